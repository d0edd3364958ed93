"""Runs benchmarks one after the other and writes docs/results.md from what they print.

    python benchmarks/results.py [--quick] [NAME …]

Without names: all those of the embedded engine. Each is run as its own command with `--json`; its object is kept as
docs/results/NAME.json, and the page is made anew from all that is kept there, so that one benchmark can be repeated
alone; what one gave with other options is kept there by hand, under a longer name. Nothing is left out and nothing is
rounded in favour of anyone.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
KEPT = DOCS / "results"
NAMES = (
    "batching_gain",
    "continuous_batching",
    "two_classes",
    "interactive_200ms",
    "naive_against_tuned",
    "against_llama_server",
    "core_cost",
    "overload",
    "sampling_cost",
    "kv_layout",
)
HEAD = """# Results

What the benchmarks gave, as they gave it: each section names its command, the machine and the commit. The figures of
one section come from one run, side by side, and only ratios within a run mean something: processors differ, and these
were shared and noisy. `./dev benchmark results NAME` repeats one and rewrites this page.
"""


def run(name: str, *, is_quick: bool) -> None:
    """Run one benchmark and keep its object."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", *(["--quick"] if is_quick else [])]
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    found["command"] = f"python benchmarks/{name}.py" + (" --quick" if is_quick else "")
    found["seconds"] = round(time.monotonic() - started)
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return docs/results.md."""
    return "\n".join([HEAD, *(section(name, found) for name, found in results.items())])


def section(name: str, found: Mapping[str, Any]) -> str:
    """Return one benchmark as Markdown: its claim, how it was run, the ratios, the rows."""
    doc = (HERE / f"{found['benchmark']}.py").read_text(encoding="utf-8").split('"""')[1].strip().splitlines()
    machine = found.get("machine", {})
    where = ", ".join(f"{key} {value}" for key, value in machine.items())
    ratios = [{"ratio": f"`{key}`", "value": value} for key, value in found["ratios"].items()]
    parts = [f"## {name}", doc[0], f"`{found['command']}`, {found['seconds']} s; {where}.", table(ratios)]
    rows = found.get("rows") or []
    parts += [table(rows)] if rows else []
    parts += [f"{one['title']}:\n\n{table(one['rows'])}" for one in found.get("tables") or []]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table, its columns in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    """Return a value as text; a number with four digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def main() -> None:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help="default: all of the embedded engine")
    parser.add_argument("--quick", action="store_true", help="each within a minute, with wider intervals")
    parser.add_argument("--page-only", action="store_true", help="run nothing; write the page from what is kept")
    args = parser.parse_args()
    for name in () if args.page_only else args.names or NAMES:
        sys.stderr.write(f"== {name}\n")
        run(name, is_quick=args.quick)
    order = {name: index for index, name in enumerate(NAMES)}
    kept = sorted(KEPT.glob("*.json"), key=lambda path: (order.get(path.stem, len(order)), path.stem))
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in kept}
    (DOCS / "results.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
