"""vLLM: the policy inside an unmodified vLLM, as a scheduler class that it loads by name.

`vllm serve MODEL --scheduler-cls setpoint.engines.vllm.SetpointScheduler` is the whole installation. vLLM is imported
when that name is asked for, and by `setpoint.engines.vllm.classes` and `.stat_logger` alone, so that all the rest runs
and is tested without it.

vLLM's own `schedule()` does the scheduling. Before each call the pilot asks a `SteeredMachine` of the core for a plan
and arranges what `schedule()` looks at, so that it does just that; after the call everything is put back, and the
machine is told what vLLM made of it.
"""

from typing import Any

__all__ = ["SetpointScheduler"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type exists only where vLLM is installed
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from setpoint.engines.vllm import classes  # noqa: PLC0415 - vLLM takes seconds and gigabytes to import

    return getattr(classes, name)
