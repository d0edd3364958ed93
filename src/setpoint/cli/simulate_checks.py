"""Which options of `setpoint simulate` contradict each other: what is given and would have no effect is refused.

An option that is silently ignored answers another question than the one that was asked.
"""

from collections.abc import Collection
from pathlib import Path

import typer

from setpoint.core.routing import ROUTING
from setpoint.errors import ConfigError
from setpoint.steptime.names import unknown

ENGINES = ("vllm", "sglang", "trtllm", "llamacpp")

_MADE_UP = ("prompt", "output", "burstiness", "turns", "think", "prefix", "prefixes")
_OF_MODELS = ("quantization", "fp8_kv", "tp", "engine", "engine_version", "kernel_tables", "catalog")
_OF_TRACES = ("trace_form", "prompt_max", "output_max", "length_scale")
_EXCLUDED: dict[str, tuple[tuple[str, ...], str]] = {
    "step_time": (_OF_MODELS, "was measured with"),
    "trace": (_MADE_UP, "holds"),
    "lengths": (("prompt", "output", "turns", "think", "prefix", "prefixes"), "holds"),
    "mix": (("prompt", "output", "turns", "think", "prefix", "prefixes", *_OF_TRACES), "names classes that have"),
    "pools": (("replicas",), "says"),
}
"""By option: those that it leaves without effect, and why, in words."""


def given_options(context: typer.Context) -> frozenset[str]:
    """Return the names of the parameters that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def refuse_contradictions(given: Collection[str]) -> None:
    """Raise `ConfigError` for the first option that another one leaves without effect."""
    for master, (others, why) in _EXCLUDED.items():
        idle = [name for name in others if name in given]
        if master in given and idle:
            raise ConfigError(
                f"{_flag(idle[0])} has no effect beside {_flag(master)}, which {why} its own",
                hint=f"leave {_flag(idle[0])} or {_flag(master)} out",
            )
    if not {"trace", "lengths"} & set(given):
        for name in _OF_TRACES:
            if name in given:
                raise ConfigError(
                    f"{_flag(name)} is about a trace, and there is none", hint="give --trace or --lengths"
                )
    if "seeds" in given and {"timeline", "journal"} & set(given):
        raise ConfigError("--timeline and --journal are of one run", hint="leave --seeds out")


def check_names(engine: str, routing: str) -> None:
    """Raise `ConfigError` for an engine or a routing rule that there is none of."""
    if engine not in ENGINES:
        raise unknown(ConfigError, "engine", engine, ENGINES, "profile it: `setpoint profile URL`")
    if routing not in ROUTING:
        raise unknown(ConfigError, "routing", routing, ROUTING, "see docs/simulate.md")


def check_writable(**paths: Path | None) -> None:
    """Raise `ConfigError` for an option whose file cannot be made, before anything is computed."""
    for name, path in paths.items():
        if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
            raise ConfigError(f"cannot write {_flag(name)} {path}", hint="name a file in a folder that exists")


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"
