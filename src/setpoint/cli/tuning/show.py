"""The result on the terminal: bars first, for those who look, then the table, for those who read."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from setpoint.cli.tuning.words import (
    idle_line,
    main_target,
    money,
    options_of,
    rate,
    reported,
    shortfall_line,
    trio,
    verdict,
)
from setpoint.planner.point import bill
from setpoint.planner.result import Measured, Tuning

BAR_WIDTH = 36
TABLE_WIDTH = 132
HEADROOM_MIN = 0.01


def show(result: Tuning, console: Console) -> None:
    """Print the result; where the output is no terminal, lines are as long as they need to be."""
    if not console.is_terminal:
        console = Console(file=console.file, width=TABLE_WIDTH)
    console.print()
    console.print(Text(verdict(result), style="bold"))
    console.print()
    _bars(result, console)
    _table(result, console)
    _point(result, console)
    if result.shortfall is not None:
        console.print(Text("\nWhy", style="bold"))
        _lines(console, [shortfall_line(result.shortfall), idle_line(result.shortfall) or ""])
        console.print(Text("What would meet the targets", style="bold"))
        _lines(console, [f"{one.text} ({one.basis})" for one in result.shortfall.remedies] or ["nothing that we tried"])
    if result.notes:
        console.print(Text("\nTo bear in mind", style="bold"))
        _lines(console, result.notes)
    console.print()


def _lines(console: Console, lines: "list[str] | tuple[str, ...]") -> None:
    for line in lines:
        if line:
            console.print(Text(f"- {line}"))


def _bars(result: Tuning, console: Console) -> None:
    """Draw the highest load that met the targets, one bar a strategy, with the simulator's expectation as a mark."""
    rates = [one.held_rps or 0.0 for one in result.strategies] + [one.predicted_rps or 0.0 for one in result.strategies]
    most = max(rates, default=0.0)
    if most <= 0.0:
        return
    console.print(Text("Highest load within the targets, requests/s (| as simulated)", style="dim"))
    for one in result.strategies:
        filled = round(BAR_WIDTH * (one.held_rps or 0.0) / most)
        cells = ["█"] * filled + [" "] * (BAR_WIDTH - filled)
        if one.predicted_rps is not None:
            cells[min(BAR_WIDTH - 1, max(0, round(BAR_WIDTH * one.predicted_rps / most) - 1))] = "|"
        is_chosen = result.choice is not None and result.choice.strategy == one.strategy
        value = rate(one.held_rps) if one.held_rps is not None else "none" if one.trials else "not measured"
        style = "bold cyan" if is_chosen else ""
        console.print(Text(f"  {one.strategy:<12}{''.join(cells)} {value}", style=style))
    console.print()


def _table(result: Tuning, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("strategy", no_wrap=True)
    for name in (
        "held\nreq/s",
        "at\nreq/s",
        "output\ntok/s",
        "in time",
        "TTFT ms\nP50 / P95 / P99",
        "TPOT ms\nP50 / P95 / P99",
        "E2E ms\nP50 / P95 / P99",
        "req/h",
        "cost per\nM output",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for one in result.strategies:
        cells = _cells(one, result)
        is_chosen = result.choice is not None and result.choice.strategy == one.strategy
        table.add_row(*cells, style="bold cyan" if is_chosen else "")
    console.print(table)
    text = "~ marks what the number of requests cannot support; 'held' is the highest load that met the targets, "
    console.print(Text(text + "the rest of a row is measured at the load 'at'.", style="dim"))


def _cells(one: Measured, result: Tuning) -> list[str]:
    found = reported(one)
    if found is None:
        return [one.strategy, "not measured", *[""] * 8]
    trial, worst = found
    price = result.bill.price_per_hour if result.bill is not None else 0.0
    cost = bill(trial, price)
    attained = "-" if worst.attainment is None else f"{worst.attainment.value:.0%}"
    return [
        one.strategy,
        rate(one.held_rps) if one.held_rps is not None else "none",
        rate(trial.rate_rps),
        f"{trial.output_tokens_per_s:.0f}",
        attained,
        *(trio(worst.latencies[which]) for which in ("ttft", "tpot", "e2e")),
        f"{cost.requests_per_hour:,.0f}" if one.held_rps is not None else "-",
        money(cost.per_million_output_tokens) if one.held_rps is not None else "-",
    ]


def _point(result: Tuning, console: Console) -> None:
    point, cost, choice = result.point, result.bill, result.choice
    if point is None or cost is None or choice is None:
        return
    console.print(Text("\nOperating point", style="bold"))
    options = f" ({options_of(point.options)})" if point.options else ""
    weights = f", weights {point.quantize}" if point.quantize else ""
    knobs = (
        f"strategy {point.strategy}{options}, {point.slots} slots, {point.step_tokens_max} tokens a step, "
        f"{point.kv_tokens:,} KV tokens, context {point.context_tokens:,}, {point.threads} threads{weights}"
    )
    yields = (
        f"{cost.requests_per_hour:,.0f} requests/h, {cost.output_tokens_per_hour / 1e6:.2f} M output tokens/h; at "
        f"{money(cost.price_per_hour)} an hour {money(cost.per_million_output_tokens)} a million output tokens, "
        f"{money(cost.per_thousand_requests)} a thousand requests"
    )
    _lines(console, [knobs, yields, headroom_line(result)])


def headroom_line(result: Tuning) -> str:
    """Return how much is left at the chosen point."""
    choice, target = result.choice, main_target(result)
    if choice is None or target is None:
        return ""
    load = (
        "more load was not tried"
        if choice.headroom_ratio is None
        else f"the load may rise by some {choice.headroom_ratio:.0%}"
        if choice.headroom_ratio > HEADROOM_MIN
        else "none in load"
    )
    room = f"latencies by {choice.latency_room_ratio:.0%} of their targets"
    reach = [f"at least {rate(choice.holding.low_rps)}"] if choice.holding.low_rps is not None else []
    reach += [f"less than {rate(choice.holding.high_rps)}"] if choice.holding.high_rps is not None else []
    sure = f"; with 90 % probability the limit is {' and '.join(reach)} requests/s" if reach else ""
    return f"headroom: {load}, {room}{sure}"
