"""What every benchmark shares: arguments, the machine that the numbers depend on, and how they are printed."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path

from rich.console import Console
from rich.table import Table

Row = Mapping[str, object]


def arguments(
    description: str, extend: Callable[[argparse.ArgumentParser], None] = lambda _: None
) -> argparse.Namespace:
    """Parse what every benchmark understands."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="end within a minute, with wider intervals")
    parser.add_argument("--json", action="store_true", help="print one object on stdout")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", help="a GGUF file (default: the starter model)")
    parser.add_argument("--quantize", default="q4_0", help="type to requantize the model to, or none (default: q4_0)")
    parser.add_argument(
        "--provider", default=None, help="xllamacpp or llama-cpp-python (default: the faster installed)"
    )
    extend(parser)
    return parser.parse_args()


def report(name: str, ratios: Mapping[str, float | None], rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print what came out: one JSON object, or tables for people."""
    rows = [{key: _finite(value) for key, value in row.items()} for row in rows]
    result = {
        "benchmark": name,
        "ratios": {key: _finite(value) for key, value in ratios.items()},
        "rows": rows,
        "machine": machine(),
        "command": sys.argv,
    }
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    console = Console(width=160)
    table = Table(title=name)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)
    for key, value in ratios.items():
        console.print(f"{key} = {_cell(value)}")


def _finite(value: object) -> object:
    """Return `value`, or `None` for an infinity, which JSON has no number for."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, object]:
    """Return what the numbers depend on: processor, cores, system, commit."""
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text(encoding="utf-8") if cpu.exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - the developer's own git
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "avx512": "avx512f" in text,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def say(text: str) -> None:
    """Tell the person at the terminal what is being done."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
