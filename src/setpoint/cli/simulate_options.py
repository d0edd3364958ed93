"""What the options of `setpoint simulate` mean: plans, classes, pools, faults. Reads files; refuses with a hint."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from setpoint.cli.bench_options import WorkloadOptions, load_trace, read_rate, read_source
from setpoint.core.strategies import Option
from setpoint.errors import ConfigError, WorkloadError
from setpoint.loadgen.experiment import MixSource, TraceSource
from setpoint.metrics import ALL_CLASSES, Objective, slos_of
from setpoint.model import PRESETS, Capacity, ServiceClass
from setpoint.model.pool import PoolLayout, PoolSpec, Role
from setpoint.planner.demand import make_demand, parse_mix
from setpoint.seeds import stream
from setpoint.sim.faults import FaultSchedule, Spike, late_of, overlapping, parse_faults, words_of
from setpoint.workload import AnyRate, Gaps, PlannedRequest, Steady, Traffic, arrival_times, plan_traffic

Plan = list[PlannedRequest]
DURATION_S = 600.0
REQUESTS_MAX = 2_000_000


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much load, for how long; `lengths`: a trace whose lengths are drawn."""

    rate: str | None
    requests: int | None
    duration_s: float | None
    mix: str | None
    lengths: Path | None


def parse_options(texts: Iterable[str]) -> dict[str, Option]:
    """Return the options of a strategy from `key=value`; raises ConfigError for one that is not."""
    found: dict[str, Option] = {}
    for text in texts:
        key, mark, value = text.partition("=")
        if not mark or not key.strip() or not value.strip():
            raise ConfigError(f"cannot read the option {text!r}", hint="write --option token_budget=512")
        found[key.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Option:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_plans(
    options: WorkloadOptions, sizes: Sizes, objectives: Iterable[Objective], seeds: Sequence[int], capacity: Capacity
) -> tuple[list[Plan], str]:
    """Return one plan a seed, and the words that describe them; raises for what is contradictory or empty."""
    _check(options, sizes)
    if sizes.lengths is not None:
        trace = load_trace(msgspec.structs.replace(options, trace=sizes.lengths))
        plans = [_drawn(trace, options, sizes, seed) for seed in seeds]
        return plans, f"lengths of {sizes.lengths.name}, arrivals {sizes.rate}/s; cv={options.burstiness:g}"
    if sizes.mix is not None:
        demand = make_demand(
            (shares := parse_mix(sizes.mix, PRESETS)),
            target=next(iter(shares)),
            context_tokens=capacity.context_tokens_max,
        )
        mix = tuple(msgspec.structs.replace(t, gaps=Gaps(cv=options.burstiness)) for t in demand.traffic)
        return [_made_up(mix, sizes, seed) for seed in seeds], f"mix {sizes.mix}; cv={options.burstiness:g}"
    source, words = read_source(options, objectives)
    if isinstance(source, TraceSource):
        return [_recorded(source, sizes, seed) for seed in seeds], words
    assert isinstance(source, MixSource)
    return [_made_up(source.mix, sizes, seed) for seed in seeds], words


def _check(options: WorkloadOptions, sizes: Sizes) -> None:
    given = {
        "--trace": options.trace,
        "--lengths": sizes.lengths,
        "--mix": sizes.mix,
        "--class": options.classes or None,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} exclude each other", hint="name the workload in one way")
    if options.trace is None and sizes.rate is None:
        raise ConfigError("there is no load", hint="give --rate (requests a second), or --trace with a recorded one")


def _recorded(source: TraceSource, sizes: Sizes, seed: int) -> Plan:
    """Return the trace as it is (seed 0 begins at its start), stretched to the rate where one is given."""
    trace = source.trace
    if sizes.rate is None and seed == 0:
        plan = [one for one in trace if sizes.duration_s is None or one.at_s < sizes.duration_s]
    else:
        rate = read_rate(sizes.rate) if sizes.rate is not None else None
        if rate is not None and not isinstance(rate, Steady):
            raise ConfigError("a trace has its own pattern: it takes a plain rate only", hint="give --rate as a number")
        span = trace[-1].at_s
        rps = rate.rps if isinstance(rate, Steady) else (len(trace) - 1) / span
        seconds = sizes.duration_s or len(trace) / rps
        plan = source.plan(rps, seed, seconds)
    return plan[: sizes.requests]


def _rate(sizes: Sizes) -> AnyRate:
    return read_rate(sizes.rate or "1")


def _made_up(mix: Sequence[Traffic], sizes: Sizes, seed: int) -> Plan:
    seconds = sizes.duration_s if sizes.duration_s or sizes.requests else DURATION_S
    plan = plan_traffic(
        mix, _rate(sizes), partial(stream, seed), duration_s=seconds, count=sizes.requests or REQUESTS_MAX
    )
    if not plan:
        raise WorkloadError("no request arrives within the run", hint="give a higher --rate or a longer --duration")
    return plan


def _drawn(trace: Plan, options: WorkloadOptions, sizes: Sizes, seed: int) -> Plan:
    """Return made-up arrivals with lengths drawn from the trace, prompt and answer together."""
    times = arrival_times(_rate(sizes), stream(seed, "gaps"), Gaps(cv=options.burstiness))
    chance = stream(seed, "lengths")
    seconds = sizes.duration_s if sizes.duration_s or sizes.requests else DURATION_S
    plan: Plan = []
    for at_s in times:
        if (seconds is not None and at_s >= seconds) or len(plan) >= (sizes.requests or REQUESTS_MAX):
            break
        one = trace[chance.randrange(len(trace))]
        plan.append(msgspec.structs.replace(one, id=len(plan), at_s=at_s, prefix_blocks=()))
    if not plan:
        raise WorkloadError("no request arrives within the run", hint="give a higher --rate or a longer --duration")
    return plan


def read_classes(
    config: Path | None, objectives: Sequence[Objective], plans: Sequence[Plan]
) -> dict[str, ServiceClass]:
    """Return the classes of the settings with the targets of `--slo` over them.

    Raises ConfigError when a request or an objective names one that does not exist.
    """
    classes = dict(PRESETS)
    if config is not None:
        from setpoint.cli.serve import read_settings  # noqa: PLC0415 - it brings the embedded engine along

        classes = dict(read_settings(config, {}, None).classes)
    used = {one.class_name for plan in plans for one in plan}
    unknown = used - set(classes)
    if unknown:
        raise ConfigError(
            f"the workload names an unknown class {min(unknown)!r}",
            hint=f"known: {', '.join(classes)}; add others with --config setpoint.toml",
        )
    slos = slos_of(objectives)
    for name, slo in slos.items():
        if name not in classes and name != ALL_CLASSES:
            raise ConfigError(f"--slo names an unknown class {name!r}", hint=f"known: {', '.join(classes)}")
        for target in used if name == ALL_CLASSES else {name}:
            if not classes[target].is_harvest or slo.ttft_s is None:
                classes[target] = msgspec.structs.replace(classes[target], slo=slo)
    return classes


def parse_pools(text: str | None, replicas: int, classes: Mapping[str, ServiceClass]) -> tuple[PoolSpec, ...]:
    """Return the pools that `NAME=REPLICAS,...` names.

    `interactive` and `batch` divide the classes by whether they are batch work, and the batch pool helps out; `prefill`
    and `decode` hand prompts over; any other name must be that of a class, and one named `rest` serves the others.
    """
    if text is None:
        return (PoolSpec(name="main", replicas=replicas),)
    if replicas != 1:
        raise ConfigError("--pools says how many replicas there are: it excludes --replicas", hint="leave one out")
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, mark, count = (piece.strip() for piece in part.partition("="))
        if not mark or not count.isdigit() or int(count) < 1 or name in sizes:
            raise ConfigError(f"cannot read the pool {part!r}", hint="write --pools interactive=2,batch=1")
        sizes[name] = int(count)
    return tuple(_pool(name, count, sizes, classes) for name, count in sizes.items())


def _pool(name: str, count: int, sizes: Mapping[str, int], classes: Mapping[str, ServiceClass]) -> PoolSpec:
    if name in {"prefill", "decode"}:
        role: Role = "prefill" if name == "prefill" else "decode"
        return PoolSpec(name=name, replicas=count, role=role)
    if name in {"interactive", "batch"}:
        served = tuple(c.name for c in classes.values() if c.is_harvest == (name == "batch"))
        spill = ("batch",) if name == "interactive" and "batch" in sizes else ()
        return PoolSpec(name=name, replicas=count, classes=served, spill_to=spill)
    if name == "rest":
        return PoolSpec(name=name, replicas=count)
    if name not in classes:
        raise ConfigError(
            f"no class is called {name!r}, so no pool can be",
            hint="name pools interactive, batch, prefill, decode, rest, or after a class",
        )
    return PoolSpec(name=name, replicas=count, classes=(name,))


def read_faults(path: Path | None, layout: PoolLayout, *, last_s: float, drain_s: float) -> FaultSchedule:
    """Return the fault schedule of a file, checked against the layout and against the end of the run.

    `last_s`: when the last request comes; `drain_s` later the run is over.
    """
    if path is None:
        return FaultSchedule()
    try:
        schedule = parse_faults(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text: {error}", hint="see docs/simulate.md for an example") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="is the path right?") from error
    _check_places(schedule, layout, path)
    late = late_of(schedule, last_s, drain_s)
    if late:
        drained = "" if isinstance(late[0], Spike) else f", and the run is over {drain_s:g} s later at most"
        raise ConfigError(
            f"{path}: {words_of(late[0])} would change nothing: the last request comes at {last_s:,.1f} s{drained}",
            hint="give the run more time (--duration, --drain), or the fault an earlier one",
        )
    clash = overlapping(schedule)
    if clash is not None:
        raise ConfigError(
            f"{path}: {words_of(clash)} begins while it is slow already", hint="let one slow time end before the next"
        )
    return schedule


def _check_places(schedule: FaultSchedule, layout: PoolLayout, path: Path) -> None:
    """Raise `ConfigError` for a fault of a replica or a pool that can never be there."""
    most = layout.replicas + sum(scale.replicas for scale in schedule.scale)
    for replica in [*(crash.replica for crash in schedule.crash), *(slow.replica for slow in schedule.slow)]:
        if replica >= most:
            last = layout.replicas - 1
            known = f"they are numbered 0 to {last}" if last else "there is one, number 0: --replicas asks for more"
            raise ConfigError(f"{path}: there is no replica {replica}", hint=known)
    names = {pool.name for pool in layout.pools}
    for scale in schedule.scale:
        if scale.pool not in names:
            raise ConfigError(f"{path}: there is no pool {scale.pool!r}", hint=f"known: {', '.join(sorted(names))}")
