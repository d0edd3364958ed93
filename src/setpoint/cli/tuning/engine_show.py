"""The result of tuning an engine: put together, shown on the terminal, and written to files."""

import shlex
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from setpoint.cli.tuning.engine import EngineTuner
from setpoint.cli.tuning.facts import package_version
from setpoint.cli.tuning.words import money, rate
from setpoint.loadgen.crossing import Crossing
from setpoint.metrics import sample_size_min
from setpoint.planner.engine_measure import gain
from setpoint.planner.engine_result import (
    EngineTuning,
    Gain,
    Held,
    best_first,
    encode,
    tokens_cost,
    verdict,
    words_of,
)
from setpoint.planner.knobs import DEFAULTS, Setting

PORT_SHOWN = 8000
ROWS_MAX = 12
WIDTH = 132


def conclude(tuner: EngineTuner, facts: dict[str, str], *, price_per_hour: float, seconds: float) -> EngineTuning:
    """Return the result; `facts` holds `command`, `started_at`, `build`, `machine` and `workload`."""
    ask, best = tuner.ask, tuner.pick
    held = {setting: _held(tuner, setting, price_per_hour) for setting in (DEFAULTS, best)}
    crossings = [tuner.checked[one].crossing if one in tuner.checked else None for one in (best, DEFAULTS)]
    return EngineTuning(
        version=package_version(),
        command=facts["command"],
        started_at=facts["started_at"],
        seconds=seconds,
        seed=ask.seed,
        is_cut=tuner.is_cut,
        engine=ask.engine.engine,
        build=facts["build"],
        machine=facts["machine"],
        model=ask.model,
        objectives=tuple(one.text for one in tuner.bench.objectives),
        workload=facts["workload"],
        users=ask.users,
        price_per_hour=price_per_hour,
        space=ask.engine.size,
        evaluations=tuple(tuner.history),
        dropped=dict(Counter(tuner.dropped.values())),
        pick=best,
        defaults_held=held[DEFAULTS],
        pick_held=held[best],
        gain=_gain(crossings[0], crossings[1]) if best != DEFAULTS else None,
        is_grid=ask.is_grid,
        launch=shlex.join(ask.command(best, PORT_SHOWN)),
        launch_defaults=shlex.join(ask.command(DEFAULTS, PORT_SHOWN)),
        notes=tuple(_notes(tuner, best)),
    )


def _gain(best: Crossing | None, before: Crossing | None) -> Gain | None:
    if best is None or before is None:
        return None
    ratio, low, high = gain(best, before)
    return Gain(ratio=ratio, low=low, high=high)


def _held(tuner: EngineTuner, setting: Setting, price_per_hour: float) -> Held | None:
    checked = tuner.checked.get(setting)
    if checked is None or checked.crossing is None:
        return None
    middle = checked.crossing.at(0.5)
    requests, tokens = tokens_cost(price_per_hour, middle, tuner.bench.output_mean)
    opened = [one for one in checked.trials if one.trial.kind != "closed"]
    return Held(
        rate_rps=middle,
        low_rps=checked.crossing.at(0.05),
        high_rps=checked.crossing.at(0.95),
        confirmed_rps=checked.confirmed_rps,
        per_thousand_requests=requests,
        per_million_output_tokens=tokens,
        trials=len(opened),
        requests=sum(one.requests for one in opened),
    )


def _notes(tuner: EngineTuner, best: Setting) -> list[str]:
    notes = []
    failed = [one for one in tuner.history if one.is_failed]
    if failed:
        notes.append(f"{len(failed)} settings crashed or hung and were passed over: see the evaluations.")
    unfit = sum(one.how == "unfit" for one in tuner.history)
    if unfit:
        notes.append(f"{unfit} evaluations do not count, because the measuring client could not keep up itself.")
    chosen = dict(best)
    if {"cache_type", "kv_dtype", "quantization", "weights"} & set(chosen):
        notes.append("The pick changes the precision of weights or KV cache: check what that does to your answers.")
    if chosen.get("speculation"):
        notes.append("Speculation gains by how much answers repeat; the words of this load were random.")
    for setting in (DEFAULTS, best):
        checked = tuner.checked.get(setting)
        needed = max((sample_size_min(one.quantile) for one in tuner.bench.objectives), default=0)
        if (
            checked is not None
            and (seen := sum(r.requests for r in checked.trials if r.trial.kind != "closed")) < needed
        ):
            notes.append(f"{words_of(setting)}: {seen} requests in the check, {needed} bear the percentile: --minutes.")
    return notes


def show_engine(result: EngineTuning, console: Console) -> None:
    """Print the verdict, what was tried, the check, and the command."""
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH)
    console.print()
    console.print(Text(verdict(result), style="bold"))
    console.print(Text(f"targets: {'; '.join(result.objectives)}", style="dim"))
    console.print()
    _tried(result, console)
    _check(result, console)
    console.print(Text("\nLaunch", style="bold"))
    # a line of its own that can be copied, however long it is
    console.print(
        result.launch if result.is_recommended else result.launch_defaults,
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    if not result.is_recommended and result.pick != DEFAULTS:
        console.print(Text("The candidate that was not shown to be better:", style="dim"))
        console.print(result.launch, soft_wrap=True, markup=False, highlight=False)
    if result.notes or result.dropped:
        console.print(Text("\nTo bear in mind", style="bold"))
    for note in result.notes:
        console.print(Text(f"- {note}"))
    for reason, count in result.dropped.items():
        console.print(Text(f"- {count} settings were not started: {reason}"))


def _tried(result: EngineTuning, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("setting", "held req/s", "90% interval", "rung", ""):
        table.add_column(name, justify="left" if name in {"setting", ""} else "right", overflow="fold")
    rows = best_first(result.evaluations)
    for one in rows[:ROWS_MAX]:
        within = "" if one.low_rps is None else f"{one.low_rps:.2f} to {one.high_rps or 0.0:.2f}"
        held = rate(one.score_rps) if one.low_rps is not None else "none" if one.how == "measured" else "-"
        what = "" if one.how == "measured" else one.how
        style = "bold cyan" if one.setting == result.pick else ""
        table.add_row(
            words_of(one.setting), held, within, str(one.rung), f"{what} {one.words}".strip()[:60], style=style
        )
    console.print(table)
    more = f"; {len(rows) - ROWS_MAX} more in engine.json" if len(rows) > ROWS_MAX else ""
    text = f"{len(result.evaluations)} evaluations of {len(rows)} settings, out of {result.space}{more}"
    console.print(Text(text, style="dim"))


def _check(result: EngineTuning, console: Console) -> None:
    if result.defaults_held is None and result.pick_held is None:
        return
    console.print(Text("\nChecked on prompts and seeds that the search never saw", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "held req/s", "90% interval", "confirmed", "per 1000 requests", "per M output tokens"):
        table.add_column(name, justify="right" if name else "left")
    for name, held in (("defaults", result.defaults_held), ("pick", result.pick_held)):
        if held is None:
            table.add_row(name, "none")
            continue
        table.add_row(
            name,
            rate(held.rate_rps),
            f"{held.low_rps:.2f} to {held.high_rps:.2f}",
            rate(held.confirmed_rps),
            money(held.per_thousand_requests),
            money(held.per_million_output_tokens),
        )
    console.print(table)


def write_engine(result: EngineTuning, out: Path) -> list[Path]:
    """Write `engine.json` and `launch.sh` to the folder, and return them."""
    files = [out / "engine.json", out / "launch.sh"]
    files[0].write_bytes(encode(result) + b"\n")
    command = result.launch if result.is_recommended else result.launch_defaults
    files[1].write_text(f"#!/bin/sh\n# {verdict(result)}\nexec {command}\n", encoding="utf-8")
    files[1].chmod(0o755)
    return files
