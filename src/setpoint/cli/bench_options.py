"""What the options of `setpoint bench` mean: the workload, the rate, the classes. Reads files; refuses with a hint."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from setpoint.errors import ConfigError, WorkloadError
from setpoint.loadgen.experiment import MixSource, Source, TraceSource
from setpoint.loadgen.target import ClassTargets
from setpoint.metrics import ALL_CLASSES, Objective
from setpoint.workload import (
    AnyRate,
    Diurnal,
    Gaps,
    PlannedRequest,
    Ramp,
    Stairs,
    Steady,
    Traffic,
    clip,
    parse_lengths,
    read_trace,
    scale_lengths,
)
from setpoint.workload.traces import Form

KEY_VARIABLE = "SETPOINT_API_KEY"
CLASS_HINT = "write 'chat share=0.7 prompt=lognormal:mean=200,cv=0.8 output=128 band=1'"
RATE_HINT = "write 2.5, ramp:1-8,over=60, diurnal:mean=4,swing=0.5,period=600 or stairs:30x2,30x4"
MADE_UP = ("prompt", "output", "burstiness", "prefix", "prefixes", "turns", "think_s")
TARGETS = ("ttft_ms", "tpot_ms", "e2e_s")
SETTINGS = {"share", "prompt", "output", "band", "prefix", "prefixes", "turns", "think", "cv", *TARGETS}


class WorkloadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that shape the workload, as given."""

    prompt: str = "256"
    output: str = "128"
    burstiness: float = 1.0
    classes: tuple[str, ...] = ()
    prefix: int = 0
    prefixes: int = 1
    turns: str = "1"
    think_s: float = 0.0
    trace: Path | None = None
    trace_form: Form | None = None
    prompt_max: int | None = None
    output_max: int | None = None
    length_scale: float = 1.0


def one_of(value: str | None, kind: object, option: str) -> str | None:
    """Return `value` if it is one of the names of the literal `kind`; raises ConfigError for any other."""
    allowed = getattr(kind, "__args__", ())
    if value is not None and value not in allowed:
        raise ConfigError(f"{option} {value!r} is unknown", hint="one of " + ", ".join(allowed))
    return value


def read_source(options: WorkloadOptions, objectives: Iterable[Objective]) -> tuple[Source, str]:
    """Return what makes the plans, and the words that describe it."""
    name = default_class(objectives)
    if options.trace is not None:
        trace = load_trace(options)
        if all(one.class_name == "standard" for one in trace) and name != "standard":
            trace = [msgspec.structs.replace(one, class_name=name) for one in trace]
        if trace[-1].at_s == 0.0:
            trace = [msgspec.structs.replace(one, at_s=float(number)) for number, one in enumerate(trace)]
        return TraceSource(tuple(trace)), describe_trace(options)
    texts = options.classes or (f"{name} prompt={options.prompt} output={options.output}",)
    mix = tuple(read_class(text, options)[0] for text in texts)
    return MixSource(mix), "; ".join(texts) + f"; cv={options.burstiness:g}"


def refuse_made_up(options: WorkloadOptions) -> None:
    """Raise ConfigError when a trace is given and, beside it, an option that shapes made-up prompts."""
    if options.trace is None:
        return
    plain = WorkloadOptions()
    named = [name for name in MADE_UP if getattr(options, name) != getattr(plain, name)]
    if named:
        raise ConfigError(
            f"--{named[0].removesuffix('_s')} shapes made-up prompts, and a trace brings its own",
            hint="fit the trace by --prompt-max, --output-max and --length-scale",
        )


def default_class(objectives: Iterable[Objective]) -> str:
    """Return the class that requests belong to when no mix is given: the one that the SLO names, if it names one."""
    named = {objective.class_name for objective in objectives} - {ALL_CLASSES}
    return named.pop() if len(named) == 1 else "standard"


def read_class(text: str, options: WorkloadOptions) -> tuple[Traffic, ClassTargets]:
    """Return the traffic and the targets of `NAME key=value ...`; raises WorkloadError naming the part at fault."""
    name, *parts = text.split()
    given: dict[str, str] = {}
    for part in parts:
        key, found, value = part.partition("=")
        if not found or key not in SETTINGS:
            raise WorkloadError(f"cannot read {part!r} in the class {text!r}", hint=CLASS_HINT)
        given[key] = value
    try:
        traffic = Traffic(
            class_name=name,
            prompt=parse_lengths(given.get("prompt", options.prompt)),
            output=parse_lengths(given.get("output", options.output)),
            share=float(given.get("share", 1.0)),
            gaps=Gaps(cv=float(given.get("cv", options.burstiness))),
            prefix_tokens=int(given.get("prefix", options.prefix)),
            prefixes=int(given.get("prefixes", options.prefixes)),
            turns=parse_lengths(given.get("turns", options.turns)),
            think_s=float(given.get("think", options.think_s)),
        )
        targets = ClassTargets(
            band=int(given["band"]) if "band" in given else None,
            **{key: float(given[key]) for key in TARGETS if key in given},
        )
    except ValueError:
        raise WorkloadError(f"a number in the class {text!r} cannot be read", hint=CLASS_HINT) from None
    return traffic, targets


def load_trace(options: WorkloadOptions) -> list[PlannedRequest]:
    """Return the requests of the trace file (gzip is seen by its name), with lengths scaled and clipped as asked."""
    path = options.trace
    assert path is not None
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            trace = read_trace(lines, options.trace_form, name=path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"cannot read the trace {path}: {error}", hint="is the path right?") from None
    except (EOFError, zlib.error, csv.Error) as error:
        raise WorkloadError(f"the trace {path} is damaged: {error}", hint="fetch or write it again") from None
    if options.length_scale != 1.0:
        trace = scale_lengths(trace, prompt=options.length_scale, output=options.length_scale)
    return clip(trace, prompt_max=options.prompt_max, output_max=options.output_max)


def describe_trace(options: WorkloadOptions) -> str:
    """Return the trace in words, with all that was done to it."""
    words = f"trace {options.trace.name if options.trace else ''}"
    if options.length_scale != 1.0:
        words += f", lengths x{options.length_scale:g}"
    if options.prompt_max or options.output_max:
        words += f", clipped to {options.prompt_max or 'any'} prompt and {options.output_max or 'any'} output tokens"
    return words


def read_rate(text: str) -> AnyRate:
    """Return the rate profile that `text` names; raises WorkloadError when it names none."""
    kind, _, rest = text.partition(":")
    try:
        if not rest:
            return Steady(float(kind))
        if kind == "ramp":
            span, _, over = rest.partition(",over=")
            start, _, end = span.partition("-")
            return Ramp(float(start), float(end), float(over))
        if kind == "diurnal":
            given = dict(part.split("=", 1) for part in rest.split(","))
            return Diurnal(float(given["mean"]), float(given.get("swing", 0.5)), float(given.get("period", 86_400)))
        if kind == "stairs":
            steps = tuple(part.split("x", 1) for part in rest.split(","))
            return Stairs(tuple((float(seconds), float(rps)) for seconds, rps in steps))
    except (ValueError, KeyError):
        raise WorkloadError(f"cannot read the rate {text!r}", hint=RATE_HINT) from None
    raise WorkloadError(f"unknown kind of rate {kind!r}", hint=RATE_HINT)


def read_json_object(text: str | None, option: str) -> dict[str, Any]:
    """Return the JSON object given to an option; raises ConfigError when it is none."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{option} must be a JSON object", hint="""write '{"top_p": 0.9}'""")
    return value


def read_headers(texts: Iterable[str]) -> dict[str, str]:
    """Return headers given as `NAME: VALUE`; raises ConfigError for one that is not."""
    headers: dict[str, str] = {}
    for text in texts:
        name, found, value = text.partition(":")
        if not found or not name.strip() or any(mark in text for mark in "\r\n\0"):
            raise ConfigError(f"cannot read the header {text!r}", hint="write 'name: value'")
        headers[name.strip().lower()] = value.strip()
    return headers
