"""The knobs of an engine, as data: what each means, which values it has, and which arguments a setting becomes.

A file per engine and version lies in `setpoint/data/engines`; a user's own has the same format. A *setting* gives each
knob that differs from the engine's default its value, so that the empty setting is the engine as it comes. Values and
arguments may hold names in braces (`{model}`, `{port}`, `{cores}`), which the caller fills in.
"""

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

import msgspec

from setpoint.errors import ConfigError
from setpoint.loadgen.target import EngineKind

Setting = tuple[tuple[str, str], ...]
"""Pairs of knob and value in the order of the knobs; what is left out is at the engine's default."""
DEFAULTS: Setting = ()

_FILES = {"llama-server": "llama-server.toml", "vllm": "vllm-0.32.toml", "sglang": "sglang-0.5.toml"}


class Knob(msgspec.Struct, frozen=True, kw_only=True):
    """One knob. `flag` with `values`, or `choices` with the arguments of each; the `default` gives none.

    `also`: arguments beside any value that is not the default. `ordered`: neighbouring values do alike. `spread`: by
    what factor it may change the held load. `kv_bytes`: of a value in the KV cache, where the knob sets that. `needs`:
    left out on a machine without it.
    """

    name: str
    default: str
    meaning: str = ""
    trades: str = ""
    flag: str = ""
    values: tuple[str, ...] = ()
    choices: dict[str, tuple[str, ...]] = {}
    also: tuple[str, ...] = ()
    ordered: bool = False
    spread: float = 1.3
    kv_bytes: dict[str, float] = {}
    needs: Literal["gpu"] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Every value, the default among them; in their order when there is one."""
        own = (*self.values, *self.choices)
        return own if self.default in own else (self.default, *own)

    def args(self, label: str) -> tuple[str, ...]:
        """Return the arguments of a value."""
        if label == self.default:
            return ()
        return (*self.choices.get(label, (self.flag, label)), *self.also)


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine: how it is started and asked, and its knobs.

    `args` come right after `command`. `kv_of`: the knob whose value is the number of sequences that the engine reserves
    KV cache for, where it does. `never`: values that contradict each other.
    """

    engine: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    knobs: tuple[Knob, ...]
    kind: EngineKind = "openai"
    version: str = ""
    version_args: tuple[str, ...] = ()
    ready: str = "/health"
    start_limit_s: float = 300.0
    environment: dict[str, str] = {}
    kv_of: str | None = None
    never: tuple[dict[str, str], ...] = ()

    def is_allowed(self, setting: Setting) -> bool:
        """Tell whether no two values contradict each other."""
        chosen = self.values_of(setting)
        return not any(all(chosen.get(k) == v for k, v in one.items()) for one in self.never)

    def values_of(self, setting: Setting) -> dict[str, str]:
        """Return the value of every knob."""
        return {knob.name: knob.default for knob in self.knobs} | dict(setting)

    def setting(self, values: Mapping[str, str]) -> Setting:
        """Return the setting of `values`; those that are the defaults do not count."""
        chosen = ((knob, values.get(knob.name, knob.default)) for knob in self.knobs)
        return tuple((knob.name, value) for knob, value in chosen if value != knob.default)

    def settings(self) -> Iterator[Setting]:
        """Yield every setting that is allowed, the defaults first where they come first in each knob."""
        for values in itertools.product(*(knob.labels for knob in self.knobs)):
            one = self.setting({knob.name: value for knob, value in zip(self.knobs, values, strict=True)})
            if self.is_allowed(one):
                yield one

    @property
    def size(self) -> int:
        """How many settings there are, contradictions counted."""
        whole = 1
        for knob in self.knobs:
            whole *= len(knob.labels)
        return whole

    def knob_args(self, setting: Setting) -> list[str]:
        """Return the arguments of a setting alone, names in braces not yet filled in."""
        chosen = dict(setting)
        return [arg for knob in self.knobs for arg in knob.args(chosen.get(knob.name, knob.default))]


def read_engine(name: str, path: Path | None = None) -> Engine:
    """Return the engine called `name`, or the one that the file at `path` describes; raises ConfigError."""
    if path is None and name not in _FILES:
        raise ConfigError(f"unknown engine {name!r}", hint=f"one of {', '.join(_FILES)}, or --launch for any other")
    try:
        text = (files("setpoint.data") / "engines" / _FILES[name] if path is None else path).read_text("utf-8")
        found = msgspec.convert(tomllib.loads(text), Engine)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"cannot read the knobs of {path or name}: {error}", hint="see docs/tune.md") from error
    for knob in found.knobs:
        if not knob.flag and knob.values:
            raise ConfigError(f"the knob {knob.name} has values but no flag", hint="add `flag`, or use `choices`")
    return found


def custom_engine(launch: Sequence[str], knobs: Sequence[Knob], kind: EngineKind = "openai") -> Engine:
    """Return the engine that the command line `launch` starts; it must say where `{port}` goes, or it gets `--port`."""
    has_port = any("{port}" in part for part in launch)
    args = () if has_port else ("--port", "{port}")
    return Engine(engine="custom", command=tuple(launch), args=args, knobs=tuple(knobs), kind=kind, ready="/v1/models")


def narrowed(engine: Engine, only: Sequence[str], given: Mapping[str, tuple[str, ...]], *, has_gpu: bool) -> Engine:
    """Return the engine with the knobs `only` (all when empty) and the values `given` for some.

    A name in `given` that is a flag (`--batch`) becomes a knob of its own, whose first value is the default. Raises
    ConfigError for an unknown name.
    """
    known = {knob.name: knob for knob in engine.knobs}
    for name in (*only, *given):
        if name not in known and not name.startswith("-"):
            raise ConfigError(f"{engine.engine} has no knob {name!r}", hint=f"it has {', '.join(known) or 'none'}")
    kept = []
    for knob in engine.knobs:
        if (only and knob.name not in only) or (knob.needs == "gpu" and not has_gpu):
            continue
        kept.append(_with_values(knob, given[knob.name]) if knob.name in given else knob)
    for flag, values in given.items():
        if flag.startswith("-"):
            kept.append(Knob(name=flag, flag=flag, default=values[0], values=values[1:], ordered=_is_ordered(values)))
    if not kept:
        raise ConfigError("there is no knob to turn", hint="name some with --knob, such as --knob '--batch=1,2,4'")
    return msgspec.structs.replace(engine, knobs=tuple(kept))


def _with_values(knob: Knob, values: tuple[str, ...]) -> Knob:
    unknown = [value for value in values if value not in knob.labels and not knob.flag]
    if unknown:
        raise ConfigError(f"{knob.name} has no value {unknown[0]!r}", hint=f"it has {', '.join(knob.labels)}")
    choices = {name: args for name, args in knob.choices.items() if name in values}
    own = tuple(value for value in values if value not in knob.choices and (value != knob.default or knob.flag))
    return msgspec.structs.replace(knob, choices=choices, values=own if knob.flag else ())


def _is_ordered(values: Sequence[str]) -> bool:
    return all(value.replace(".", "", 1).isdigit() for value in values)


def parse_knob(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the values of `NAME=V1,V2`; raises ConfigError."""
    name, found, rest = text.rpartition("=")
    values = tuple(value.strip() for value in rest.split(",") if value.strip())
    if not found or not name or not values:
        raise ConfigError(f"cannot read the knob {text!r}", hint="write slots=4,8,16 or '--batch=1,2,4'")
    return name.strip(), values


def with_variants(engine: Engine, variants: Sequence[str]) -> Engine:
    """Return the engine with one knob more: which file or folder of weights it loads."""
    if not variants:
        return engine
    knob = Knob(
        name="weights",
        default="given",
        meaning="other weights of the same model",
        trades="memory and speed, against quality",
        choices=dict.fromkeys(variants, ()),
        spread=1.8,
    )
    return msgspec.structs.replace(engine, knobs=(*engine.knobs, knob))


def filled(engine: Engine, names: Mapping[str, str]) -> Engine:
    """Return the engine with the names in the values of its knobs filled in, and values that come twice left out."""

    def of(knob: Knob) -> Knob:
        values = tuple(dict.fromkeys(_fill(value, names) for value in knob.values))
        return msgspec.structs.replace(knob, values=values)

    return msgspec.structs.replace(engine, knobs=tuple(of(knob) for knob in engine.knobs))


def command_of(engine: Engine, setting: Setting, extra: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return the command that starts the engine with a setting, `extra` arguments beside it."""
    mine = dict(names) | {"slots_context": str(_slots(engine, setting) * int(names.get("context", "0")))}
    weights = dict(setting).get("weights")
    if weights is not None:
        mine |= {"model": weights}
    parts = [*engine.command, *engine.args, *engine.knob_args(setting)]
    return [*(_fill(part, mine) for part in parts), *extra]


def _slots(engine: Engine, setting: Setting) -> int:
    value = dict(setting).get(engine.kv_of or "", "")
    return int(value) if value.isdigit() else 0


def _fill(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text
