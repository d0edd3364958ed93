"""What a pilot is built with: a machine for this engine, a step-time model to start from, and the journal.

Nothing is known of the engine's speed before its first steps, unless a fitted model is given. So the start is a guess
by kind of device, which the first few dozen steps overrule.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import msgspec

from setpoint.core.steered import SteeredMachine
from setpoint.core.strategies import make_strategy
from setpoint.engines.journal import JournalFile
from setpoint.engines.vllm.host import Host
from setpoint.engines.vllm.options import PluginOptions, read_text
from setpoint.journal import Header
from setpoint.model import Capacity
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import StepTimeModel, decode, linear
from setpoint.units import Blocks, Tokens

GUESSES = {
    "cpu": linear(key="a guess for a CPU", step_s=0.05, decode_s=0.005, context_s=1e-6, prefill_s=0.003, work_s=1e-7),
    "other": linear(key="a guess for a GPU", step_s=0.008, decode_s=2e-5, context_s=2e-8, prefill_s=3e-5, work_s=1e-10),
}
"""A small model on few cores, and a model of eight billion parameters on a GPU: starts for learning, no claims."""


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


def open_journal(host: Host, options: PluginOptions) -> JournalFile | None:
    """Return the journal, if there is to be one; raises `ConfigError` when it cannot be written."""
    if options.journal is None:
        return None
    settings, step_time = options.settings, step_time_of(host, options)
    header = Header(
        machine="steered",
        strategy=settings.strategy.name,
        options=settings.strategy.options,
        classes=tuple(settings.classes.values()),
        capacity=capacity_of(host),
        step_time=msgspec.Raw(msgspec.json.encode(step_time)),
        is_learning=True,
        engine=step_time.key,
        made_by=importlib.metadata.version("setpoint"),
    )
    return JournalFile(Path(options.journal), header)
