"""Where step times come from, and how far each is to be trusted: a fit to a real engine, a roofline, kernel tables."""

from pathlib import Path

import msgspec

from setpoint.errors import ConfigError, ModelError
from setpoint.model import Capacity, StepTime
from setpoint.sim import catalog
from setpoint.sim.aiconfigurator import KernelTables, assumed_overhead
from setpoint.steptime.efficiency import engine_key
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.memory import fit
from setpoint.steptime.model import decode
from setpoint.steptime.quantization import quantization
from setpoint.steptime.roofline import roofline
from setpoint.steptime.setup import Layout, Setup
from setpoint.units import Blocks, Tokens

GIGA = 1e9
BLOCK_TOKENS = 16
SLOTS = 256
STEP_TOKENS = 8192
CONTEXT_TOKENS = 131_072
TRANSFER_BYTES_S = 50e9
"""Bytes a second between a prefill and a decode replica (400 Gbit/s)."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A step-time model with its capacity; `trust` says in words what error to expect.

    `belief`: what a scheduler is given instead, where the world is not monotone. `transfer_s`: seconds a token of KV.
    `request_s`: see `Scenario`.
    """

    step_time: StepTime
    capacity: Capacity
    name: str
    trust: str
    belief: StepTime | None = None
    transfer_s: float = 0.0
    request_s: float = 0.0


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the options say of the deployment; `None` leaves the choice to what is known of it."""

    model: str | None = None
    hardware: str | None = None
    quantization: str = "bf16"
    tensor: int = 1
    engine: str = "vllm"
    step_time: Path | None = None
    is_tables: bool = False
    catalog: Path | None = None
    kv_tokens: int | None = None
    slots: int | None = None
    step_tokens: int | None = None
    context_tokens: int | None = None


def find_source(wanted: Wanted) -> Source:
    """Return the source that the options name; raises `ConfigError` or `ModelError` with what would mend it."""
    if wanted.step_time is not None:
        if wanted.model is not None or wanted.hardware is not None:
            raise ConfigError(
                "--step-time is a model of one engine on one machine: it takes no --model or --hardware",
                hint="leave those out, or leave --step-time out to predict from the catalog",
            )
        return _fitted(wanted)
    if wanted.model is None or wanted.hardware is None:
        raise ConfigError(
            "nothing says how long a step takes",
            hint="give --model and --hardware (llama-3.1-8b, h100-sxm), or --step-time with a file of `setpoint tune`",
        )
    return _predicted(wanted)


def _fitted(wanted: Wanted) -> Source:
    assert wanted.step_time is not None
    try:
        model = decode(wanted.step_time.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {wanted.step_time}: {error.strerror}", hint="is the path right?") from error
    if wanted.kv_tokens is None:
        raise ConfigError(
            "a step-time file does not say how much the engine holds",
            hint="give --kv-tokens and --slots as the engine was run with (setpoint.toml of `setpoint tune` has both)",
        )
    return Source(
        step_time=FixedStepTime(model),
        capacity=_capacity(wanted, wanted.kv_tokens, slots=16, step_tokens=512),
        name=model.key,
        trust=f"step times as measured on that engine; a step is off by {model.mape:.0%} on average, "
        f"one in twenty takes {model.tail_ratio:.2f} times as long as expected, or longer",
    )


def _predicted(wanted: Wanted) -> Source:
    setup = Setup(
        architecture=catalog.model(wanted.model or "", extra=wanted.catalog),
        hardware=catalog.hardware(wanted.hardware or "", extra=wanted.catalog),
        quantization=quantization(wanted.quantization),
        layout=Layout(tensor=wanted.tensor),
    )
    room = fit(setup)
    name = f"{setup.architecture.name} {wanted.quantization} on {wanted.tensor} x {setup.hardware.name}"
    if not room.is_fitting:
        raise ModelError(
            f"{name} does not fit: the weights take {room.weight_bytes / GIGA:,.1f} GB of each GPU, "
            f"{room.short_bytes / GIGA:,.1f} GB more than it can give",
            hint="spread it over more GPUs (--tp), quantize it (--quantization fp8 or w4a16), or take larger hardware",
        )
    capacity = _capacity(wanted, wanted.kv_tokens or room.kv_tokens, slots=SLOTS, step_tokens=STEP_TOKENS)
    per_token = setup.architecture.kv_bytes_per_token(setup.quantization.kv_bytes)
    transfer_s = per_token / TRANSFER_BYTES_S
    calibration = catalog.calibration()
    engine = engine_key(wanted.engine)
    if wanted.is_tables:
        tables = KernelTables(setup, backend=wanted.engine, overhead=assumed_overhead(calibration, engine))
        return Source(
            step_time=tables,
            belief=FixedStepTime(tables.fitted(key=name)),
            capacity=capacity,
            name=f"{name} ({wanted.engine}, kernel tables)",
            trust="kernel tables of aiconfigurator with a fitted overhead of the host; see docs/validation.md",
            transfer_s=transfer_s,
        )
    error = calibration.expected_error
    step = roofline(setup, calibration, engine=engine, is_streamed=True)
    return Source(
        step_time=step,
        request_s=step.request_s,
        capacity=capacity,
        name=f"{name} ({wanted.engine}, roofline)",
        trust=f"a roofline that never saw this engine run: on published measurements of other hardware its median "
        f"error was {error.throughput:.0%} of throughput, {error.tpot:.0%} of TPOT and {error.ttft:.0%} of TTFT "
        f"({error.values} values); differences between strategies are surer than absolute figures",
        transfer_s=transfer_s,
    )


def _capacity(wanted: Wanted, kv_tokens: int, *, slots: int, step_tokens: int) -> Capacity:
    context = wanted.context_tokens or min(CONTEXT_TOKENS, kv_tokens)
    return Capacity(
        slots=wanted.slots or slots,
        kv_blocks=Blocks(kv_tokens // BLOCK_TOKENS),
        block_tokens=Tokens(BLOCK_TOKENS),
        step_tokens_max=Tokens(wanted.step_tokens or step_tokens),
        context_tokens_max=Tokens(context),
    )
