"""How numbers and decisions of a result are put into words, the same on the terminal and in the report."""

from collections.abc import Iterable, Mapping

from setpoint.metrics import Quantile
from setpoint.planner.result import ClassTarget, Measured, Tuning
from setpoint.planner.shortfall import Shortfall
from setpoint.planner.trial import ClassTrial, Trial

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end-to-end latency"}


def ms(seconds: float | None) -> str:
    """Return a duration in milliseconds, with a dash for none."""
    if seconds is None:
        return "-"
    value = seconds * 1000.0
    return f"{value:.1f}" if value < 10.0 else f"{value:,.0f}"  # noqa: PLR2004 - a decimal matters below ten


def rate(value: float | None) -> str:
    """Return requests per second."""
    return "-" if value is None else f"{value:.2f}"


def money(value: float | None) -> str:
    """Return an amount of money without its currency."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"  # noqa: PLR2004 - cents, or parts of one


def trio(quantiles: Iterable[Quantile]) -> str:
    """Return P50 / P95 / P99 in milliseconds; `~` marks what the sample cannot support, a dash what failed."""
    return " / ".join(("~" if one.support == "too_few" else "") + ms(one.value) for one in quantiles)


def interval(quantile: Quantile) -> str:
    """Return a quantile in milliseconds with its interval."""
    low = "?" if quantile.low is None else ms(quantile.low)
    high = "?" if quantile.high is None else ms(quantile.high)
    return f"{ms(quantile.value)} ({low} to {high})"


def targets_of(target: ClassTarget, factor: float = 1.0) -> str:
    """Return the promise of a class."""
    parts = [
        f"{name} {ms(value * factor)} ms"
        for name, value in (("TTFT", target.ttft_s), ("TPOT", target.tpot_s))
        if value is not None
    ]
    if not parts and target.e2e_s is not None:
        parts = [f"done within {target.e2e_s / 3600.0:g} h"]
    return f"P{target.percentile * 100:g} of {' and '.join(parts)}" if parts else "no target"


def main_target(result: Tuning) -> ClassTarget | None:
    """Return the promise of the class tuned for."""
    return next((one for one in result.targets if one.class_name == result.target), None)


def options_of(options: Mapping[str, float | bool | str]) -> str:
    """Return the options of a strategy."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def verdict(result: Tuning) -> str:
    """Return the outcome in one or two sentences."""
    target = main_target(result)
    if result.choice is None or target is None:
        has_trials = any(one.trials for one in result.strategies)
        what = "No load held at all" if has_trials else "Nothing was measured to the end"
        return f"{what}, so there is nothing to recommend."
    choice = result.choice
    load = f"{choice.holding.rate_rps:.2f} requests/s"
    if choice.is_met:
        return f"{choice.strategy} carries {load} within the {result.target} targets ({targets_of(target)})."
    return (
        f"No load met the {result.target} targets ({targets_of(target)}). With targets {choice.factor:g} times as long "
        f"({targets_of(target, choice.factor)}) {choice.strategy} carries {load}."
    )


def shortfall_line(short: Shortfall) -> str:
    """Return which target fails, where, and by how much."""
    where = f"at {short.rate_rps:.2f} requests/s with {short.strategy}, the measured load that came nearest"
    if short.target_s is None or short.value_s is None or short.over_ratio is None:
        why = "requests failed" if short.objective == "failures" else "the load was not kept up with"
        return f"{short.class_name}: {why} {where}."
    name = NAMES[short.objective]
    which = f"P{short.percentile * 100:g} {name}"
    if short.over_ratio <= 0.0:
        return (
            f"{short.class_name}: each target alone was met ({which} {ms(short.value_s)} of {ms(short.target_s)} ms), "
            f"but not all of them by {short.percentile:.0%} of the requests, {where}."
        )
    return (
        f"{short.class_name}: {which} was {ms(short.value_s)} ms, {short.over_ratio:.0%} over its target of "
        f"{ms(short.target_s)} ms, {where}."
    )


def idle_line(short: Shortfall) -> str | None:
    """Return whether an idle machine would meet the target, by the step-time model."""
    if short.is_met_idle is None or short.objective not in NAMES:
        return None
    what = "the first token of a P95 prompt" if short.objective == "ttft" else "one decode step"
    if short.is_met_idle:
        return f"By the step times {what} is fast enough on an idle machine: what costs the target is waiting."
    return f"By the step times {what} alone takes longer than the target: no scheduling can meet it on this machine."


def reported(one: Measured) -> tuple[Trial, ClassTrial] | None:
    """Return the trial that stands for a strategy, with its worst class: where it held, or came nearest."""
    if not one.trials:
        return None
    trial = one.trials[one.best_trial if one.best_trial is not None else 0]
    worst = trial.worst() or next(iter(trial.classes.values()), None)
    return None if worst is None else (trial, worst)
