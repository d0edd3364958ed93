"""Step times from NVIDIA's measured kernel tables, where `aiconfigurator-core` (Apache-2.0) is installed.

The tables hold the time of kernels on ten GPU systems under vLLM, SGLang and TensorRT-LLM; what the host adds (the
scheduler, sampling, the gaps between launches) is not in them, so an `Overhead` of ours stands on top: fitted to
measured steps with `fit_overhead`, or taken from the shipped efficiencies with `assumed_overhead`.

Interpolated measurements are not monotone to the last digit. For a simulated world that is no harm; a scheduler, which
bisects, is given `fitted`: the monotone model of `setpoint.steptime.model`, fitted to the tables.
"""

import importlib
from collections.abc import Sequence
from itertools import product
from typing import Any

import msgspec

from setpoint.errors import ConfigError, ModelError
from setpoint.model import StepShape
from setpoint.steptime.efficiency import Calibration
from setpoint.steptime.model import Sample, StepTimeModel, fit
from setpoint.steptime.names import unknown
from setpoint.steptime.setup import Setup
from setpoint.units import Seconds

BACKENDS = ("vllm", "sglang", "trtllm")
MODELS = {
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
    "llama-3.1-405b": "meta-llama/Meta-Llama-3.1-405B",
    "llama-4-scout": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
}
"""Catalog names and those under which the package ships a configuration."""

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "bfloat16",
    "fp8": "fp8",
    "w8a8": "int8",
    "w8a16": "int8",
    "w4a16": "int4",
    "nvfp4": "nvfp4",
    "mxfp4": None,
}
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONTEXTS = (128, 512, 2048, 6144)
_PROMPTS = (0, 64, 256, 512, 1024, 2048, 4096)
_SAMPLE_BATCHES = (0, 1, 8, 32, 128)


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """What the host adds to the kernels of a step: seconds a step, and a decoding sequence."""

    step_s: float = 0.0
    sequence_s: float = 0.0


class KernelTables:
    """A `StepTime` that asks the tables, and adds the overhead."""

    is_fixed = True
    tail_ratio = 1.5

    def __init__(self, setup: Setup, *, backend: str = "vllm", overhead: Overhead | None = None) -> None:
        """Load the tables; raises `ConfigError` without the package or tables, `ModelError` for a model it lacks."""
        if backend not in BACKENDS:
            raise unknown(ConfigError, "backend", backend, BACKENDS, "or use the roofline")
        self.overhead = overhead or Overhead()
        self._query: dict[str, dict[str, int]] = {"scheduled_requests": {}}
        self._tables = _load(setup, backend)
        try:
            self.seconds(1, 1, 1, 0.5, 1)
        except Exception as error:  # its errors share no base that it publishes
            raise _absent(setup, backend, error) from error

    def seconds(
        self,
        decodes: int,
        context_tokens: int,
        prefill_tokens: int = 0,
        prefill_work: float = 0.0,
        prefills: int = 0,
        /,
    ) -> float:
        """Return the seconds of a step of this shape; the tables take all prompts of a step for equally long."""
        if not decodes + prefill_tokens:
            return 0.0
        cached = prefill_work - prefill_tokens * prefill_tokens / (2 * prefills) if prefills else 0.0
        self._query["scheduled_requests"] = {
            "num_prefill_requests": prefills,
            "sum_prefill_tokens": prefill_tokens,
            "sum_prefill_kv_tokens": round(max(0.0, cached) * prefills / prefill_tokens) if prefill_tokens else 0,
            "num_decode_requests": decodes,
            "sum_decode_kv_tokens": max(decodes, context_tokens) if decodes else 0,
        }
        kernels_s = float(self._tables.estimate_forward_pass_time_ms(self._query)) / 1e3
        return kernels_s + self.overhead.step_s + decodes * self.overhead.sequence_s

    def seconds_of(
        self, decodes: float, context: float, prefill_tokens: float = 0.0, work: float = 0.0, prefills: float = 0.0
    ) -> float:
        """Return the same for the nearest whole shape, as the solvers of `setpoint.steptime.steady` ask."""
        if decodes + prefill_tokens <= 0.0:
            return 0.0
        tokens = round(prefill_tokens)
        chunks = max(1, round(prefills)) if tokens else 0
        return self.seconds(max(0 if tokens else 1, round(decodes)), round(context), tokens, work, chunks)

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn nothing."""

    def fitted(self, *, key: str) -> StepTimeModel:
        """Return the monotone model fitted to the tables, overhead included."""
        return fit([(shape, Seconds(self.seconds(*shape))) for shape in _grid()], key=key)


def fit_overhead(tables: KernelTables, samples: Sequence[Sample]) -> Overhead:
    """Return the overhead that explains measured steps best, by least squares, neither part below zero.

    Raises `ConfigError` with fewer than two samples.
    """
    if len(samples) < 2:  # noqa: PLR2004 - two unknowns
        raise ConfigError(f"{len(samples)} measured steps are too few", hint="two of different batch are the least")
    bare = tables.overhead
    rest = [
        (shape.decodes, seconds - tables.seconds(*shape) + bare.step_s + shape.decodes * bare.sequence_s)
        for shape, seconds in samples
    ]
    count, mean_n, mean_s = len(rest), _mean([n for n, _ in rest]), _mean([s for _, s in rest])
    spread = sum((n - mean_n) ** 2 for n, _ in rest) / count
    slope = sum((n - mean_n) * (s - mean_s) for n, s in rest) / count / spread if spread else 0.0
    slope = max(0.0, slope)
    step_s = mean_s - slope * mean_n
    if step_s < 0.0:
        squares = sum(n * n for n, _ in rest)
        return Overhead(sequence_s=max(0.0, sum(n * s for n, s in rest) / squares if squares else 0.0))
    return Overhead(step_s=step_s, sequence_s=slope)


def assumed_overhead(calibration: Calibration, engine: str) -> Overhead:
    """Return the shipped overhead of an engine, for use before anything was measured."""
    efficiency = calibration.of(engine=engine)
    return Overhead(step_s=efficiency.step_s, sequence_s=efficiency.sequence_s)


def _load(setup: Setup, backend: str) -> Any:  # noqa: ANN401 - the package publishes no type for it
    name, hardware = setup.architecture.name, setup.hardware
    if hardware.aiconfigurator is None:
        raise ConfigError(f"no kernel tables for {hardware.name}", hint="use the roofline, or profile the engine")
    if name not in MODELS:
        raise unknown(ModelError, "model in the kernel tables", name, MODELS, "use the roofline")
    if setup.quantization.name not in _DTYPES:
        raise unknown(ConfigError, "quantization", setup.quantization.name, _DTYPES, "use the roofline")
    try:
        engine = importlib.import_module("aiconfigurator_core.sdk.engine")
        tables = importlib.import_module("aiconfigurator_core.sdk.rust_engine_step").RustForwardPassPerfModel
    except ImportError as error:
        hint = "pip install 'setpoint[aiconfigurator]', or use the roofline"
        raise ConfigError("the kernel tables are not installed", hint=hint) from error
    wanted: dict[str, Any] = {
        "schema_version": engine.ENGINE_CONFIG_SCHEMA_VERSION,
        "model_name": MODELS[name],
        "system_name": hardware.aiconfigurator,
        "backend": backend,
        "tp_size": setup.layout.tensor,
        "pp_size": setup.layout.pipeline,
    }
    if dtype := _DTYPES[setup.quantization.name]:
        wanted["weight_dtype"] = dtype
    if setup.quantization.kv_bits == 8:  # noqa: PLR2004 - one byte
        wanted["kv_cache_dtype"] = "fp8"
    try:
        return tables.from_native(wanted)
    except ValueError as error:
        raise _absent(setup, backend, error) from error


def _absent(setup: Setup, backend: str, error: Exception) -> ConfigError:
    what = f"{setup.architecture.name} as {setup.quantization.name} on {setup.hardware.name} under {backend}"
    hint = "use the roofline, or profile the engine"
    return ConfigError(f"the kernel tables do not have {what}: {error}", hint=hint)


def _grid() -> list[StepShape]:
    """Return the shapes at which the tables are read for a fit: decodes alone, and with a prompt."""
    alone = [StepShape(n, n * c) for n, c in product(_BATCHES, _CONTEXTS)]
    mixed = [
        StepShape(n, n * c, p, p * p / 2, 1)
        for n, c, p in product(_SAMPLE_BATCHES, _CONTEXTS[1:], _PROMPTS[1:])
        if n or c == _CONTEXTS[1]
    ]
    return alone + mixed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
