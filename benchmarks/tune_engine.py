"""The tuner of other engines against the truth: a small space measured to the end, and what the defaults hold.

    python benchmarks/tune_engine.py [--quick] [--json]                        # an engine whose capacity is known
    python benchmarks/tune_engine.py --engine llama-server
    python benchmarks/tune_engine.py --engine vllm --model DIR --command DIR/venv/bin/vllm

`known` is the mock server of `mock_server.c`: it has so many slots and takes so long a token, so that what each setting
holds does not depend on the machine. `setpoint tune` runs as its users run it; the grid then measures every setting of
the same space by the load generator's search, for as long as the tuner's longest evaluation; `--no-grid` leaves that
out. With `--plugin` the knobs of vLLM are its scheduler, which may be the plug-in, and the budget of a step.

Ratios: `gain`, the held load of the pick over that of the defaults, on prompts that the search never saw, with `gain
low` and `gain high`, its 90% interval; `of_grid`, what the grid says of the pick over the best of the grid, at least
0.9 is wanted; `starts_of_grid`, settings started by the tuner over those of the grid, at most 0.5 is wanted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from known_server import build
from reporting import Row, arguments, report, say

from setpoint.engines.llamacpp.quantize import quantized_model
from setpoint.engines.llamacpp.starter import resolve_model

COMMAND = "import sys; from setpoint.cli import main; main(sys.argv[1:])"
SCRIPT = """#!/bin/sh
slots=2; itl=20; mode=ok
while [ $# -gt 0 ]; do
  case $1 in --port) port=$2;; --slots) slots=$2;; --itl) itl=$2;; --mode) mode=$2;; esac; shift 2
done
[ $mode = broken ] && {{ echo "error: this mode is not supported here"; exit 3; }}
sleep 1000000 | {binary} $port /dev/null $slots 20 0.3 $itl 0.1 1
"""
"""The mock server ends with its standard input, which is kept open by a sleeper that ends with its process group."""


class Trial(NamedTuple):
    """How an engine is tuned: arguments of `setpoint tune`, and those of the space."""

    name: str
    base: tuple[str, ...]
    space: tuple[str, ...]


def known(folder: Path) -> Trial:
    """Return the engine whose capacity is known: 1 to 4 slots, 10 or 20 ms a token, and a mode that crashes."""
    script = folder / "engine.sh"
    script.write_text(SCRIPT.format(binary=build(folder)))
    script.chmod(0o755)
    load = ("--prompt", "12", "--output", "16", "--ttft-ms", "300", "--tpot-ms", "100", "--users", "16")
    knobs = ("--knob", "--slots=2,1,4", "--knob", "--itl=20,10", "--knob", "--mode=ok,broken")
    return Trial("known", ("--launch", str(script), *load, "--percentile", "0.9"), knobs)


def llama_server(args: argparse.Namespace) -> Trial:
    """Return llama-server with a small model under targets that leave it a choice."""
    model = str(quantized_model(resolve_model(args.model), args.quantize))
    load = ("--prompt", "48", "--output", "24", "--ttft-ms", "1000", "--tpot-ms", "100", "--users", "32")
    space = ("--only", "slots,ubatch", "--knob", "slots=2,16", "--knob", "ubatch=64")
    return Trial("llama-server", (model, "--engine", "llama-server", *load, "--context", "512"), space)


def vllm(args: argparse.Namespace) -> Trial:
    """Return vLLM with short chat.

    A P95 target is told by hundreds of requests, so that prompts and answers are short. The TPOT target is about twice
    a decode alone: a step with a whole prompt takes longer, and the budget of a step decides what is held.
    """
    if args.model is None:
        sys.exit("error: --model: name the folder of a model that vLLM can read")
    flags = "--enforce-eager --max-model-len 1024"
    lengths = ("--prompt", "lognormal:mean=36,cv=0.5,max=192", "--output", "lognormal:mean=9,cv=0.5,max=48")
    targets = ("--ttft-ms", f"{args.ttft_ms:g}", "--tpot-ms", f"{args.tpot_ms:g}")
    base = (args.model, "--engine", "vllm", "--command", args.command, "--engine-args", flags, *lengths, *targets)
    own = ("--only", "batched_tokens,sequences", "--knob", "sequences=16")
    # where there is one class, `priority` is first come first served
    ours = ("--only", "batched_tokens,scheduler", "--knob", "scheduler=fcfs,setpoint")
    space = ours if args.plugin else own
    return Trial("vllm", (*base, "--users", "32", "--context", "1024"), (*space, "--knob", "batched_tokens=16,24"))


def tuned(trial: Trial, space: Sequence[str], minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Run `setpoint tune` and return its result; exits with its complaint when it fails."""
    command = [sys.executable, "-c", COMMAND, "tune", *trial.base, *space, "--json", "--fresh"]
    command += ["--minutes", f"{minutes:g}", "--seed", str(seed), "--out", str(folder)]
    say(f"{trial.name}: {minutes:g} minutes")
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        sys.exit(f"error: setpoint tune ended with {run.returncode}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def grid(trial: Trial, minutes: float, seed: int, folder: Path) -> dict[str, float]:
    """Return what each setting holds, every one measured as long as the tuner's finalists in a run of `minutes`."""
    everything = tuned(trial, (*trial.space, "--grid"), minutes, seed + 17, folder)
    return {name_of(one["setting"]): held(one) for one in everything["evaluations"]}


def held(one: dict[str, Any]) -> float:
    """Return the rate that an evaluation found, none for what failed or missed the targets with one user."""
    return float(one["score_rps"]) if one.get("low_rps") is not None else 0.0


def name_of(setting: Sequence[Sequence[str]]) -> str:
    """Return a setting as a word."""
    return ", ".join(f"{name} {value}" for name, value in setting) or "defaults"


def rows_of(result: dict[str, Any], truth: dict[str, float]) -> list[Row]:
    """Return a row for each setting that was tried: what it held, with its 90% interval."""
    last = {name_of(one["setting"]): one for one in result["evaluations"]}
    return [
        {
            "setting": setting,
            "how": one["how"],
            "held": held(one),
            "low": one.get("low_rps"),
            "high": one.get("high_rps"),
            "grid": truth.get(setting),
            "pick": setting == name_of(result["pick"]),
        }
        for setting, one in last.items()
    ]


def main() -> None:
    """Tune, measure the grid, and compare."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--engine", choices=("known", "llama-server", "vllm"), default="known")
        parser.add_argument("--command", default="vllm", help="the vllm command (default: vllm)")
        parser.add_argument("--plugin", action="store_true", help="vLLM's plug-in among the knobs")
        parser.add_argument("--no-grid", action="store_true", help="leave the grid out")
        parser.add_argument("--ttft-ms", type=float, default=1500.0, help="of vLLM's load (default: 1500)")
        parser.add_argument("--tpot-ms", type=float, default=130.0, help="twice a decode alone is meant (default: 130)")
        parser.add_argument("--minutes", type=float, help="of each run of the tuner (default: 10; with --quick 5)")

    args = arguments(__doc__ or "", extend)
    minutes = args.minutes or (5.0 if args.quick else 10.0)
    with tempfile.TemporaryDirectory(prefix="setpoint-tune-engine-") as name:
        folder = Path(name)
        made = {"known": lambda: known(folder), "llama-server": lambda: llama_server(args), "vllm": lambda: vllm(args)}
        trial = made[args.engine]()
        result = tuned(trial, trial.space, minutes, args.seed, folder)
        truth = {} if args.no_grid else grid(trial, minutes, args.seed, folder)
    best = max(truth.values(), default=0.0)
    gain = result["gain"] or {}
    ratios: dict[str, float | None] = {
        "gain": gain.get("ratio"),
        "gain low": gain.get("low"),
        "gain high": gain.get("high"),
        "evaluations": float(len(result["evaluations"])),
    }
    if truth:
        ratios["of_grid"] = truth[name_of(result["pick"])] / best if best else None
        ratios["starts_of_grid"] = len({name_of(one["setting"]) for one in result["evaluations"]}) / len(truth)
    report("tune_engine", ratios, rows_of(result, truth), args)


if __name__ == "__main__":
    main()
