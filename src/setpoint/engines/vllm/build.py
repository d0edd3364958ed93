"""What a pilot is built with: a machine for this engine, a step-time model to start from, and the journal.

Nothing is known of the engine's speed before its first steps, unless a fitted model is given. So the start is a guess
by kind of device, which the first few dozen steps overrule.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from setpoint.core.steered import SteeredMachine
from setpoint.core.strategies import make_strategy
from setpoint.engines.vllm.host import Host
from setpoint.engines.vllm.options import PluginOptions, read_text
from setpoint.errors import ConfigError
from setpoint.model import AnyCommand, AnyEvent, Capacity
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import StepTimeModel, decode, linear
from setpoint.units import Blocks, Tokens

GUESSES = {
    "cpu": linear(key="a guess for a CPU", step_s=0.05, decode_s=0.005, context_s=1e-6, prefill_s=0.003, work_s=1e-7),
    "other": linear(key="a guess for a GPU", step_s=0.008, decode_s=2e-5, context_s=2e-8, prefill_s=3e-5, work_s=1e-10),
}
"""A small model on few cores, and a model of eight billion parameters on a GPU: starts for learning, no claims."""


class JournalHead(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a journal: all that a machine is built from; then follow (event, commands), one pair a line."""

    strategy: str
    options: dict[str, Any]
    classes: dict[str, Any]
    capacity: Capacity
    step_time: StepTimeModel
    home: str = "vllm"


def capacity_of(host: Host) -> Capacity:
    """Return what the engine can hold and compute; all KV blocks must be free."""
    return Capacity(
        slots=min(host.max_num_running_reqs, host.max_num_active_reqs),
        kv_blocks=Blocks(host.kv_cache_manager.block_pool.get_num_free_blocks()),
        block_tokens=Tokens(host.block_size),
        step_tokens_max=Tokens(host.max_num_scheduled_tokens),
        context_tokens_max=Tokens(host.max_model_len),
    )


def step_time_of(host: Host, options: PluginOptions) -> StepTimeModel:
    """Return the step-time model to start from."""
    if options.step_time is not None:
        return decode(read_text(options.step_time).encode())
    device = getattr(getattr(host.vllm_config, "device_config", None), "device_type", "other")
    return GUESSES.get(device, GUESSES["other"])


def machine_maker(host: Host, options: PluginOptions) -> Callable[[], SteeredMachine]:
    """Return what makes machines for `host`; the step-time model of one is learned on by the next."""
    settings = options.settings
    capacity = capacity_of(host)
    step_time = LearnedStepTime(step_time_of(host, options))

    def make() -> SteeredMachine:
        strategy = make_strategy(settings.strategy.name, **settings.strategy.options)
        return SteeredMachine(strategy, settings.classes, capacity, step_time)

    return make


def open_journal(host: Host, options: PluginOptions) -> Callable[[AnyEvent, list[AnyCommand]], None] | None:
    """Return what writes one event with its commands to the journal, if there is to be one."""
    if options.journal is None:
        return None
    settings = options.settings
    head = JournalHead(
        strategy=settings.strategy.name,
        options=dict(settings.strategy.options),
        classes={name: msgspec.to_builtins(c) for name, c in settings.classes.items()},
        capacity=capacity_of(host),
        step_time=step_time_of(host, options),
    )
    try:
        file = Path(options.journal).open("wb", buffering=0)  # noqa: SIM115 - open as long as the engine
    except OSError as error:
        raise ConfigError(f"cannot write {options.journal}: {error}", hint="give a path that can be written") from error
    encode = msgspec.json.Encoder().encode
    file.write(encode(head) + b"\n")

    def write(event: AnyEvent, commands: list[AnyCommand]) -> None:
        file.write(encode((event, commands)) + b"\n")

    return write
