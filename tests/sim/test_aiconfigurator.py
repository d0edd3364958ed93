"""The kernel tables behind our interface: against the real package where it is installed, errors where it is not."""

import importlib.util

import pytest

from setpoint.errors import ConfigError, ModelError
from setpoint.model import StepShape, StepTime
from setpoint.sim import catalog
from setpoint.sim.aiconfigurator import KernelTables, Overhead, fit_overhead
from setpoint.steptime.quantization import quantization
from setpoint.steptime.setup import Setup
from setpoint.units import Seconds

IS_INSTALLED = importlib.util.find_spec("aiconfigurator_core") is not None
needs_tables = pytest.mark.skipif(not IS_INSTALLED, reason="aiconfigurator-core is an optional extra")
SHAPES = [StepShape(n, n * 1000) for n in (1, 8, 64, 200)]


def setup(model: str = "llama-3.1-8b", card: str = "h100-sxm", bits: str = "bf16") -> Setup:
    return Setup(architecture=catalog.model(model), hardware=catalog.hardware(card), quantization=quantization(bits))


def test_what_has_no_tables_is_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match="no kernel tables for l4"):
        KernelTables(setup(card="l4"))
    with pytest.raises(ModelError, match="llama-2-7b"):
        KernelTables(setup("llama-2-7b"))
    with pytest.raises(ConfigError, match="unknown backend"):
        KernelTables(setup(), backend="ollama")
    with pytest.raises(ConfigError, match="q4_k_m"):
        KernelTables(setup(bits="q4_k_m"))


@pytest.mark.skipif(IS_INSTALLED, reason="the package is installed")
def test_without_the_package_the_way_to_install_it_is_said() -> None:
    with pytest.raises(ConfigError, match="not installed") as caught:
        KernelTables(setup())
    assert "setpoint[aiconfigurator]" in (caught.value.hint or "")


@needs_tables
def test_the_tables_say_what_the_facts_say() -> None:
    tables: StepTime = KernelTables(setup())
    assert tables.seconds(0, 0) == 0.0
    assert tables.seconds(0, 0, 2048, 2048 * 1024.0, 1) == pytest.approx(0.0435, rel=0.02)
    assert tables.seconds(64, 64 * 2048) == pytest.approx(0.0126, rel=0.02)


@needs_tables
def test_a_cached_prefix_costs_attention_only() -> None:
    tables = KernelTables(setup())
    alone = tables.seconds(0, 0, 512, 512 * 256.0, 1)
    behind = tables.seconds(0, 0, 512, 512 * (8192 + 256.0), 1)
    assert alone < behind < tables.seconds(0, 0, 8704, 8704 * 4352.0, 1)


@needs_tables
def test_the_overhead_is_found_again_in_measured_steps() -> None:
    real = KernelTables(setup(), overhead=Overhead(step_s=2e-3, sequence_s=3e-5))
    samples = [(shape, Seconds(real.seconds(*shape))) for shape in SHAPES]
    found = fit_overhead(KernelTables(setup()), samples)
    assert found.step_s == pytest.approx(2e-3)
    assert found.sequence_s == pytest.approx(3e-5)


@needs_tables
def test_the_monotone_model_follows_the_tables() -> None:
    tables = KernelTables(setup(), overhead=Overhead(step_s=1e-3))
    model = tables.fitted(key="llama-3.1-8b h100-sxm vllm")
    assert min(model.weights) >= 0.0
    assert model.mape < 0.1


@needs_tables
def test_a_combination_without_tables_is_named() -> None:
    with pytest.raises(ConfigError, match="nvfp4 on a100-80-sxm under vllm"):
        KernelTables(setup(card="a100-80-sxm", bits="nvfp4"))
