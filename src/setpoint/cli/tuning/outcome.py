"""From what was found to the result: the decisions of the planner applied, and what a reader must be told."""

from collections.abc import Callable, Sequence

import msgspec

from setpoint.cli.tuning.facts import commit, package_version
from setpoint.cli.tuning.run import BATCH, NAIVE, Asked, Found
from setpoint.metrics import sample_size_min
from setpoint.model import StepShape
from setpoint.planner.decide import Choice, choose
from setpoint.planner.demand import describe_lengths
from setpoint.planner.holding import highest, least_scale
from setpoint.planner.point import OperatingPoint, bill
from setpoint.planner.result import ClassTarget, Measured, StepTimeSummary, Tuning
from setpoint.planner.shortfall import Engine, explain, prefill_s
from setpoint.planner.trial import Trial

BUSY_LOAD = 0.5
ERROR_WORTH_SAYING = 0.2


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the run itself."""

    command: str
    started_at: str
    seconds: float
    is_quick: bool
    price_per_hour: float


def conclude(asked: Asked, found: Found, run: Run, point: Callable[[str], OperatingPoint]) -> Tuning:
    """Return the result of what was found, however little that is beyond a profile."""
    assert found.profile is not None
    assert found.machine is not None
    assert found.model is not None
    choice = choose(found.trials)
    chosen = None if choice is None else found.trials[choice.strategy][choice.holding.trial]
    engine = Engine(
        model=found.profile.model,
        prompt_typical=found.prompts[0],
        prompt_long=found.prompts[1],
        others=found.others,
    )
    is_short = choice is not None and not choice.is_met
    return Tuning(
        version=package_version(),
        commit=commit(),
        command=run.command,
        started_at=run.started_at,
        seconds=run.seconds,
        seed=asked.seed,
        is_quick=run.is_quick,
        is_cut=found.is_cut,
        machine=found.machine,
        model=found.model,
        target=asked.target,
        targets=_targets(asked, found),
        bound_rps=found.bound_rps,
        step_time=_step_time(found),
        strategies=tuple(_measured(name, found) for name in asked.strategies),
        choice=choice,
        point=None if choice is None else point(choice.strategy),
        bill=None if chosen is None else bill(chosen, run.price_per_hour),
        shortfall=explain(found.trials, asked.classes, engine) if is_short else None,
        notes=tuple(_notes(asked, found, run, choice)),
    )


def _targets(asked: Asked, found: Found) -> tuple[ClassTarget, ...]:
    if found.demand is None:
        return ()
    shares = found.demand.shares
    return tuple(
        ClassTarget(
            class_name=one.class_name,
            share=shares[one.class_name],
            percentile=asked.classes[one.class_name].slo.percentile,
            ttft_s=asked.classes[one.class_name].slo.ttft_s,
            tpot_s=asked.classes[one.class_name].slo.tpot_s,
            e2e_s=asked.classes[one.class_name].slo.e2e_s,
            prompt=describe_lengths(one.prompt),
            output=describe_lengths(one.output),
        )
        for one in found.demand.traffic
    )


def _step_time(found: Found) -> StepTimeSummary:
    profile = found.profile
    assert profile is not None
    model = profile.model
    context = sum(found.prompts)
    slots = found.capacity.slots if found.capacity is not None else 1
    return StepTimeSummary(
        key=model.key,
        samples=len(profile.samples),
        rounds=profile.rounds,
        seconds=profile.seconds,
        mape=model.mape,
        p95_error=profile.p95_error,
        tail_ratio=model.tail_ratio,
        decode_s={str(n): model.predict(StepShape(n, n * context)) for n in (1, 2, 4, 8, 16, 32) if n <= slots},
        prefill_s={str(n): prefill_s(model, n) for n in (16, 64, 128, 256, 512)},
        file=found.step_time_file,
    )


def _measured(strategy: str, found: Found) -> Measured:
    trials = found.trials.get(strategy, [])
    held = highest(trials)
    least = least_scale(trials)
    return Measured(
        strategy=strategy,
        options=found.options.get(strategy, {}),
        trials=tuple(trials),
        predicted_rps=found.predicted.get(strategy),
        held_rps=None if held is None else held.rate_rps,
        held_trial=None if held is None else held.trial,
        best_trial=held.trial if held is not None else None if least is None else least[0],
        low_rps=None if held is None else held.low_rps,
        high_rps=None if held is None else held.high_rps,
        is_supported=held is not None and held.is_supported,
    )


def _notes(asked: Asked, found: Found, run: Run, choice: Choice | None) -> list[str]:
    notes = []
    if found.is_cut:
        notes.append("The run was interrupted; the results come from what had been measured until then.")
    unmeasured = [name for name in asked.strategies if not found.trials.get(name)]
    if unmeasured:
        notes.append(f"Not measured: {', '.join(unmeasured)}.")
    notes += [f"{name} was not measured to the end: {why}" for name, why in found.failures.items()]
    notes += _sample_notes(asked, found, run, choice)
    load = found.machine.load_before if found.machine is not None else None
    if load is not None and load > BUSY_LOAD:
        notes.append(f"The machine was busy before the run (load average {load:.1f}): repeat it on an idle one.")
    trials = [trial for some in found.trials.values() for trial in some]
    invalid = [trial for trial in trials if not trial.is_valid]
    if invalid:
        notes.append(
            f"{len(invalid)} of {len(trials)} trials were not counted, because the measuring client could not keep up "
            f"itself ({invalid[0].faults[0]})."
        )
    if found.profile is not None and found.profile.p95_error > ERROR_WORTH_SAYING:
        notes.append(
            f"Step times are irregular here (P95 error of the model {found.profile.p95_error:.0%}); "
            "other work on the machine is the usual reason."
        )
    naive = [name for name in asked.strategies if name in NAIVE]
    if naive:
        notes.append(
            f"{' and '.join(naive)}: waits until a batch of {BATCH} is full; measured for the curve, not searched."
        )
    return notes


def _sample_notes(asked: Asked, found: Found, run: Run, choice: Choice | None) -> list[str]:
    if choice is None and any(found.trials.values()):
        return ["Not even much longer targets held in any trial: the load was beyond this machine. Give it more time."]
    if choice is None:
        return ["No trial was completed, so there is nothing to recommend."]
    notes = []
    trial = found.trials[choice.strategy][choice.holding.trial]
    percentile = asked.classes[asked.target].slo.percentile
    needed = sample_size_min(percentile)
    if not choice.holding.is_supported:
        notes.append(
            f"P{percentile * 100:g} needs {needed} requests for an interval, and the chosen trial had "
            f"{_requests(trial, asked.target)}: taken as measured, not as proven."
            + (" Run without --quick for a firm answer." if run.is_quick else " Give it more time with --seconds.")
        )
    if choice.rivals:
        notes.append(
            f"Within the error of measurement {' and '.join(choice.rivals)} may carry as much as {choice.strategy}."
        )
    return notes


def _requests(trial: Trial, class_name: str) -> int:
    one = trial.classes.get(class_name)
    return 0 if one is None else one.requests


def used(strategies: Sequence[Measured]) -> list[Measured]:
    """Return the strategies that have trials."""
    return [one for one in strategies if one.trials]
