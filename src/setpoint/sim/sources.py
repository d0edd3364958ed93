"""Where step times come from, and how far each is to be trusted: a fit to a real engine, a roofline, kernel tables."""

from pathlib import Path

import msgspec

from setpoint.errors import ConfigError, ModelError
from setpoint.model import Capacity, StepTime
from setpoint.sim import catalog
from setpoint.sim.aiconfigurator import KernelTables, assumed_overhead
from setpoint.sim.calibrations import Entry, Key, find_entry, format_words, read_book
from setpoint.sim.model_header import is_model_path, read_architecture
from setpoint.sim.profiles import read_measured
from setpoint.steptime.architecture import Architecture
from setpoint.steptime.correction import CorrectedStepTime
from setpoint.steptime.efficiency import ExpectedError, engine_key
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.memory import fit
from setpoint.steptime.quantization import quantization
from setpoint.steptime.roofline import roofline
from setpoint.steptime.setup import Layout, Setup
from setpoint.units import Blocks, Tokens

GIGA = 1e9
BLOCK_TOKENS = 16
SLOTS = 256
STEP_TOKENS = 8192
CONTEXT_TOKENS = 131_072
FIT_SLOTS, FIT_STEP_TOKENS = 16, 512
TRANSFER_BYTES_S = 50e9
"""Bytes a second between a prefill and a decode replica (400 Gbit/s)."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A step-time model with its capacity; `trust` says in words what error to expect.

    `belief`: what a scheduler is given instead, where the world is not monotone. `transfer_s`: seconds a token of KV.
    `request_s`: see `Scenario`. `key`: what a correction of it holds for. `setup`: absent for a fit.
    """

    step_time: StepTime
    capacity: Capacity
    name: str
    trust: str
    key: Key
    setup: Setup | None = None
    belief: StepTime | None = None
    transfer_s: float = 0.0
    request_s: float = 0.0


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the options say of the deployment; `None` leaves the choice to what is known of it.

    `calibration`: a file of corrections, one of which must hold for this deployment.
    """

    model: str | None = None
    hardware: str | None = None
    quantization: str = "bf16"
    is_fp8_kv: bool = False
    tensor: int = 1
    engine: str = "vllm"
    engine_version: str = ""
    step_time: Path | None = None
    is_tables: bool = False
    catalog: Path | None = None
    calibration: Path | None = None
    kv_tokens: int | None = None
    slots: int | None = None
    step_tokens: int | None = None
    context_tokens: int | None = None


def find_source(wanted: Wanted) -> Source:
    """Return the source that the options name; raises `ConfigError` or `ModelError` with what would mend it."""
    source = _uncorrected(wanted)
    if wanted.calibration is None:
        return source
    entry = find_entry(read_book(wanted.calibration), source.key, wanted.calibration)
    if entry.key.version != wanted.engine_version:
        source = _uncorrected(msgspec.structs.replace(wanted, engine_version=entry.key.version))
    return corrected(source, entry)


def corrected(source: Source, entry: Entry) -> Source:
    """Return the source with a correction on top."""
    of = f"{entry.key.engine or 'the engine'} {entry.key.version}".strip()
    if entry.error_left_out is None:
        error = f"is {entry.error_after:.0%}, on the very values that it was fitted to: others are missed by more"
    else:
        error = f"is {entry.error_left_out:.0%} on each measurement under a fit to the others"
    return msgspec.structs.replace(
        source,
        step_time=CorrectedStepTime(source.step_time, entry.correction),
        belief=None if source.belief is None else CorrectedStepTime(source.belief, entry.correction),
        request_s=entry.correction.request_s,
        name=f"{source.name}, calibrated",
        trust=f"calibrated on {len(entry.values)} values measured of {of}: their median error was "
        f"{entry.error_before:.0%} before and {error}",
    )


def _uncorrected(wanted: Wanted) -> Source:
    if wanted.step_time is not None:
        if wanted.model is not None or wanted.hardware is not None:
            raise ConfigError(
                "--step-time is a model of one engine on one machine: it takes no --model or --hardware",
                hint="leave those out, or leave --step-time out to predict from the catalog",
            )
        return _fitted(wanted, wanted.step_time)
    if wanted.model is None or wanted.hardware is None:
        raise ConfigError(
            "nothing says how long a step takes",
            hint="give --model and --hardware (llama-3.1-8b, h100-sxm), or --step-time with a file of `setpoint tune` "
            "or `setpoint profile`",
        )
    return _predicted(wanted)


def _fitted(wanted: Wanted, path: Path) -> Source:
    measured = read_measured(path)
    model = measured.model
    kv_tokens = wanted.kv_tokens or measured.kv_tokens
    if kv_tokens is None:
        raise ConfigError(
            "a step-time file does not say how much the engine holds",
            hint="give --kv-tokens and --slots as the engine was run with (setpoint.toml of `setpoint tune` has both)",
        )
    limits = msgspec.structs.replace(wanted, context_tokens=wanted.context_tokens or measured.context_tokens)
    return Source(
        step_time=FixedStepTime(model),
        capacity=_capacity(
            limits,
            kv_tokens,
            slots=measured.slots or FIT_SLOTS,
            step_tokens=measured.step_tokens_max or FIT_STEP_TOKENS,
        ),
        name=model.key,
        trust=f"step times as measured on that engine; a step is off by {model.mape:.0%} on average, "
        f"one in twenty takes {model.tail_ratio:.2f} times as long as expected, or longer",
        key=Key(source="fit", model=model.key, version=wanted.engine_version),
        request_s=measured.request_s,
    )


def _predicted(wanted: Wanted) -> Source:
    setup = Setup(
        architecture=_architecture(wanted),
        hardware=catalog.hardware(wanted.hardware or "", extra=wanted.catalog),
        quantization=quantization(wanted.quantization, fp8_kv=wanted.is_fp8_kv),
        layout=Layout(tensor=wanted.tensor),
    )
    format_name = format_words(setup.quantization)
    name = f"{setup.architecture.name} {format_name} on {wanted.tensor} x {setup.hardware.name}"
    kv_tokens = _room(wanted, setup, name)
    key = Key(
        source="kernel-tables" if wanted.is_tables else "roofline",
        model=setup.architecture.name,
        hardware=setup.hardware.name,
        quantization=format_name,
        tensor=wanted.tensor,
        engine=wanted.engine,
        version=wanted.engine_version,
    )
    per_token = setup.architecture.kv_bytes_per_token(setup.quantization.kv_bytes)
    calibration = catalog.calibration()
    engine = engine_key(wanted.engine, wanted.engine_version)
    source = Source(
        step_time=(step := roofline(setup, calibration, engine=engine, is_streamed=True)),
        request_s=step.request_s,
        capacity=_capacity(wanted, kv_tokens, slots=SLOTS, step_tokens=STEP_TOKENS),
        name=f"{name} ({wanted.engine}, roofline)",
        trust=_trust_of_roofline(calibration.expected_error),
        key=key,
        setup=setup,
        transfer_s=per_token / TRANSFER_BYTES_S,
    )
    if not wanted.is_tables:
        return source
    tables = KernelTables(setup, backend=wanted.engine, overhead=assumed_overhead(calibration, engine))
    return msgspec.structs.replace(
        source,
        step_time=tables,
        belief=FixedStepTime(tables.fitted(key=name)),
        name=f"{name} ({wanted.engine}, kernel tables)",
        trust="measured kernels with a fitted overhead of the host on top: on the published points that there are "
        "tables for its median error was 10% of throughput, 14% of TPOT and 19% of TTFT (127 values, which the "
        "overhead was fitted to among others)",
    )


def _room(wanted: Wanted, setup: Setup, name: str) -> int:
    """Return the KV tokens that there are beside the weights, or that were asked for; raises `ModelError`."""
    room = fit(setup)
    if not room.is_fitting:
        raise ModelError(
            f"{name} does not fit: the weights take {room.weight_bytes / GIGA:,.1f} GB of each GPU, "
            f"{room.short_bytes / GIGA:,.1f} GB more than it can give",
            hint="spread it over more GPUs (--tp), quantize it (--quantization fp8 or w4a16), or take larger hardware",
        )
    if wanted.kv_tokens is not None and wanted.kv_tokens > room.kv_tokens:
        raise ModelError(
            f"{wanted.kv_tokens:,} KV tokens do not fit beside the weights of {name}",
            hint=f"at most {room.kv_tokens:,} do; leave --kv-tokens out to take them all",
        )
    return wanted.kv_tokens or room.kv_tokens


def _trust_of_roofline(error: ExpectedError) -> str:
    return (
        f"a roofline that never saw this engine run: on published measurements of other hardware its median error was "
        f"{error.throughput:.0%} of throughput, {error.tpot:.0%} of TPOT and {error.ttft:.0%} of TTFT "
        f"({error.values} values); differences between strategies are surer than absolute figures"
    )


def _architecture(wanted: Wanted) -> Architecture:
    """Return the shape of the model, whose heads the ranks must be able to share."""
    name = wanted.model or ""
    shape = read_architecture(name) if is_model_path(name) else catalog.model(name, extra=wanted.catalog)
    if shape.heads % wanted.tensor:
        fitting = [str(n) for n in range(2, min(shape.heads, 16) + 1) if shape.heads % n == 0]
        raise ConfigError(
            f"the {shape.heads} heads of {shape.name} cannot be shared by {wanted.tensor} GPUs",
            hint=f"--tp takes 1 or a divisor of {shape.heads}: {', '.join(fitting)}",
        )
    return shape


def _capacity(wanted: Wanted, kv_tokens: int, *, slots: int, step_tokens: int) -> Capacity:
    context = wanted.context_tokens or min(CONTEXT_TOKENS, kv_tokens)
    return Capacity(
        slots=wanted.slots or slots,
        kv_blocks=Blocks(kv_tokens // BLOCK_TOKENS),
        block_tokens=Tokens(BLOCK_TOKENS),
        step_tokens_max=Tokens(wanted.step_tokens or step_tokens),
        context_tokens_max=Tokens(context),
    )
