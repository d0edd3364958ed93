"""The result as a report and as the panels of its chart: what stands where, and in which words."""

from setpoint.cli.tuning.show import headroom_line
from setpoint.cli.tuning.words import (
    idle_line,
    interval,
    main_target,
    money,
    ms,
    options_of,
    rate,
    reported,
    shortfall_line,
    targets_of,
    trio,
    verdict,
)
from setpoint.dashboard.chart import Panel, Series, Spot
from setpoint.dashboard.report import Figure, Mood, Report, Section, Table
from setpoint.planner.holding import holds
from setpoint.planner.point import bill
from setpoint.planner.result import Measured, Tuning
from setpoint.planner.trial import Trial

HOW_TO_READ = (
    """Each line of the chart is one strategy under rising load. To the right is more work done, upwards more waiting.
    Good is low and far to the right; the line bends upwards where the machine runs out of time.""",
    """P95 means that 95 of 100 requests were at least as fast. The thin vertical bars are 95 % confidence intervals,
    with neighbouring requests not counted as independent; a hollow point has too few requests for one.""",
    """TTFT is the time from the planned send to the first token, TPOT the time for each further token, E2E the time to
    the last. A request that failed counts as infinitely late. All loads are open-loop Poisson arrivals.""",
    """A load holds when the promised share of the requests met every target of their class. Trials of a strategy are
    made monotone in the rate (isotonic regression) before the highest load that holds is read off; where the true limit
    may lie comes from a posterior over all of them.""",
)


def panels(result: Tuning) -> list[Panel]:
    """Return throughput against P95 TTFT and against P95 TPOT of the target class, one line a strategy."""
    target = main_target(result)
    made = []
    for which, name, limit in (
        ("ttft", "TTFT", None if target is None else target.ttft_s),
        ("tpot", "TPOT", None if target is None else target.tpot_s),
    ):
        made.append(
            Panel(
                title=f"P95 {name} of {result.target}",
                x_label="output tokens per second",
                y_label=f"P95 {name}, milliseconds",
                series=tuple(_series(one, result, which) for one in result.strategies if one.trials),
                target=None if limit is None else limit * 1e3,
                target_label="" if limit is None else f"target {ms(limit)} ms",
            )
        )
    return made


def _series(one: Measured, result: Tuning, which: str) -> Series:
    choice = result.choice
    chosen = choice.holding.trial if choice is not None and choice.strategy == one.strategy else None
    spots = []
    for index, trial in sorted(enumerate(one.trials), key=lambda pair: pair[1].output_tokens_per_s):
        seen = trial.classes.get(result.target)
        value = None if seen is None else seen.quantile(which, 0.95)
        if value is None or value.value is None or not trial.is_valid:
            continue
        spots.append(
            Spot(
                x=trial.output_tokens_per_s,
                y=value.value * 1e3,
                low=None if value.low is None else value.low * 1e3,
                high=None if value.high is None else value.high * 1e3,
                is_firm=value.support == "full",
                is_chosen=index == chosen,
            )
        )
    return Series(name=one.strategy, spots=tuple(spots), is_accented=chosen is not None)


def make_report(result: Tuning, svg: str, toml: str) -> Report:
    """Return the report; `toml` is the text of `setpoint.toml`, empty when there is none."""
    mood: Mood = "bad" if result.choice is None else "good" if result.choice.is_met else "warn"
    sections = [Section(title="Throughput against latency", svg=svg), _strategies(result), *_why(result)]
    if result.notes:
        sections.append(Section(title="To bear in mind", points=result.notes))
    if toml:
        text = "This is the file setpoint.toml beside this report: setpoint serve --config setpoint.toml"
        sections.append(Section(title="Operating point", text=(headroom_line(result), text), listing=toml))
    sections += [
        Section(title="How to read this", points=HOW_TO_READ, is_folded=True),
        _workload(result),
        _step_times(result),
        _trials(result),
        _machine(result),
    ]
    return Report(
        title=f"Operating point for {result.model.name}",
        subtitle=f"{result.machine.processor}, {result.machine.cores} cores · {result.started_at}"
        + (" · quick run" if result.is_quick else "")
        + (" · interrupted" if result.is_cut else ""),
        verdict=verdict(result),
        mood=mood,
        figures=_figures(result),
        sections=sections,
        footer=f"setpoint {result.version}"
        + (f", commit {result.commit}" if result.commit else "")
        + f" · seed {result.seed} · {result.command}",
    )


def _figures(result: Tuning) -> tuple[Figure, ...]:
    trial, cost, point = result.chosen_trial, result.bill, result.point
    if trial is None or cost is None or point is None:
        return ()
    seen = trial.classes[result.target] if result.target in trial.classes else next(iter(trial.classes.values()))
    ttft, tpot = seen.quantile("ttft", 0.95), seen.quantile("tpot", 0.95)
    return (
        Figure(label="Strategy", value=point.strategy, detail=options_of(point.options)),
        Figure(label="Load", value=f"{trial.rate_rps:.2f}/s", detail=f"{cost.requests_per_hour:,.0f} requests an hour"),
        Figure(label="P95 TTFT", value=f"{ms(ttft.value)} ms", detail=f"interval {_reach(interval(ttft))}"),
        Figure(label="P95 TPOT", value=f"{ms(tpot.value)} ms", detail=f"interval {_reach(interval(tpot))}"),
        Figure(
            label="Throughput",
            value=f"{trial.output_tokens_per_s:.0f} tok/s",
            detail=f"output; {cost.output_tokens_per_hour / 1e6:.2f} M an hour",
        ),
        Figure(
            label="Cost, M output tokens",
            value=money(cost.per_million_output_tokens),
            detail=f"at {money(cost.price_per_hour)} an hour",
        ),
    )


def _reach(text: str) -> str:
    return text.partition(" (")[2].rstrip(")") + " ms"


def _strategies(result: Tuning) -> Section:
    price = result.bill.price_per_hour if result.bill is not None else 0.0
    rows, strong = [], []
    for one in result.strategies:
        found = reported(one)
        if found is None:
            rows.append((one.strategy, "not measured", *[""] * 9))
            continue
        trial, worst = found
        cost = bill(trial, price)
        if result.choice is not None and one.strategy == result.choice.strategy:
            strong.append(len(rows))
        rows.append(
            (
                one.strategy + (f" ({options_of(one.options)})" if one.options else ""),
                rate(one.held_rps) if one.held_rps is not None else "none",
                rate(one.predicted_rps),
                rate(trial.rate_rps),
                f"{trial.output_tokens_per_s:.0f}",
                "-" if worst.attainment is None else f"{worst.attainment.value:.1%}",
                trio(worst.latencies["ttft"]),
                trio(worst.latencies["tpot"]),
                trio(worst.latencies["e2e"]),
                f"{cost.requests_per_hour:,.0f}" if one.held_rps is not None else "-",
                money(cost.per_million_output_tokens) if one.held_rps is not None else "-",
            )
        )
    head = (
        "strategy",
        "held, req/s",
        "simulated, req/s",
        "at, req/s",
        "output tok/s",
        "in time",
        "TTFT ms, P50 / P95 / P99",
        "TPOT ms, P50 / P95 / P99",
        "E2E ms, P50 / P95 / P99",
        "requests an hour",
        "cost, M output tokens",
    )
    text = (
        "'Held' is the highest measured load that met the targets. The rest of a row is what was measured at the load "
        "'at': there, or where the strategy came nearest. ~ marks what the number of requests cannot support."
    )
    return Section(title="Strategies", text=(text,), table=Table(head=head, rows=tuple(rows), strong=tuple(strong)))


def _why(result: Tuning) -> list[Section]:
    short = result.shortfall
    if short is None:
        return []
    lines = tuple(line for line in (shortfall_line(short), idle_line(short)) if line)
    points = tuple(f"{one.text} ({one.basis})" for one in short.remedies)
    return [Section(title="Why not, and what would meet the targets", text=lines, points=points)]


def _workload(result: Tuning) -> Section:
    rows = tuple(
        (one.class_name, f"{one.share:.0%}", targets_of(one), one.prompt, one.output) for one in result.targets
    )
    head = ("class", "share of arrivals", "promise", "prompts", "answers")
    return Section(title="Workload and targets", table=Table(head=head, rows=rows), is_folded=True)


def _step_times(result: Tuning) -> Section:
    steps = result.step_time
    rows = [(f"decode, {n} sequences", ms(s), f"{int(n) / s:,.0f} tokens/s") for n, s in steps.decode_s.items()]
    rows += [(f"prefill, {n} tokens", ms(s), f"{int(n) / s:,.0f} tokens/s") for n, s in steps.prefill_s.items()]
    fitted = (
        f"Fitted to {steps.samples} shapes, {steps.rounds} rounds in {steps.seconds:.0f} s. On shapes that the fit did "
        f"not see it errs by {steps.mape:.1%} on average and {steps.p95_error:.1%} at P95; 95 % of all steps took at "
        f"most {steps.tail_ratio:.2f} times what it predicts."
    )
    text = [fitted, f"Kept as {steps.key}; setpoint serve starts from it."]
    if result.bound_rps is not None:
        text.append(f"By these step times no strategy can carry more than {result.bound_rps:.2f} requests/s for long.")
    head = ("step", "predicted, ms", "rate")
    return Section(title="Step times", text=tuple(text), table=Table(head=head, rows=tuple(rows)), is_folded=True)


def _trials(result: Tuning) -> Section:
    rows = []
    for one in result.strategies:
        rows += [_trial_row(trial, name) for trial in one.trials for name in trial.classes]
    head = (
        "strategy",
        "class",
        "rate, req/s",
        "completed, req/s",
        "output tok/s",
        "requests",
        "failed",
        "in time",
        "P95 TTFT ms (interval)",
        "P95 TPOT ms (interval)",
        "window, s",
        "verdict",
    )
    return Section(title="All trials", table=Table(head=head, rows=tuple(rows)), is_folded=True)


def _trial_row(trial: Trial, name: str) -> tuple[str, ...]:
    one = trial.classes[name]
    mark = "holds" if holds(trial) else "fails" if trial.is_valid else "not counted: " + "; ".join(trial.faults)
    return (
        trial.strategy,
        name,
        rate(trial.rate_rps),
        rate(trial.completed_rps),
        f"{trial.output_tokens_per_s:.0f}",
        str(one.requests),
        str(one.failed),
        "-" if one.attainment is None else f"{one.attainment.value:.1%}",
        interval(one.quantile("ttft", 0.95)),
        interval(one.quantile("tpot", 0.95)),
        f"{trial.window_s:.0f}",
        mark + (", overloaded" if trial.is_overloaded else "") + (", cut short" if trial.is_cut else ""),
    )


def _machine(result: Tuning) -> Section:
    machine, model = result.machine, result.model
    memory = "-" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"
    rows = (
        ("processor", f"{machine.processor}, {machine.cores} cores"),
        ("memory", memory),
        ("system", f"{machine.system}, Python {machine.python}"),
        ("engine", machine.engine),
        ("model", f"{model.file}, {model.description}, {model.parameters / 1e6:,.0f} M parameters"),
        ("weights", f"{model.weight_bytes / 1e6:,.0f} MB, context {model.context_tokens:,}"),
        ("command", result.command),
        ("seed", str(result.seed)),
        ("took", f"{result.seconds:.0f} s, from {result.started_at}"),
        ("setpoint", result.version + (f", commit {result.commit}" if result.commit else "")),
    )
    table = Table(head=("what", "value"), rows=rows)
    return Section(title="Machine, model, command", table=table, is_folded=True)
