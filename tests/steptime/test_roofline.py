"""The roofline is non-negative and monotone in each argument; memory says what fits; queues obey Little's law."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.errors import ConfigError
from setpoint.model import StepTime
from setpoint.sim import catalog
from setpoint.steptime.calibrate import START
from setpoint.steptime.finite import finite_run, lengths
from setpoint.steptime.memory import fit
from setpoint.steptime.quantization import FORMATS, quantization
from setpoint.steptime.roofline import Roofline
from setpoint.steptime.setup import Layout, Setup
from setpoint.steptime.steady import Lengths, Limits, Replica, disaggregated

MODELS = ("llama-3.1-8b", "gpt-oss-120b", "deepseek-v3", "gemma-3-27b", "mixtral-8x7b", "qwen2.5-0.5b")
CARDS = ("h100-sxm", "b200", "l4", "mi300x", "rtx-4090")
LAYOUTS = (Layout(), Layout(tensor=4), Layout(tensor=8, is_spread=True), Layout(pipeline=2, tensor=2))
CHAT = Lengths(prompt_tokens=1000.0, output_tokens=200.0)


def setup(
    model: str = "llama-3.1-8b", card: str = "h100-sxm", bits: str = "bf16", layout: Layout | None = None
) -> Setup:
    return Setup(
        architecture=catalog.model(model),
        hardware=catalog.hardware(card),
        quantization=quantization(bits),
        layout=layout or Layout(),
    )


rooflines = st.builds(
    lambda model, card, bits, layout: Roofline(setup(model, card, bits, layout), START),
    st.sampled_from(MODELS),
    st.sampled_from(CARDS),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(LAYOUTS),
)
shapes = st.tuples(
    st.integers(0, 512), st.integers(0, 500_000), st.integers(0, 16384), st.floats(0, 1e9), st.integers(0, 64)
)


def roofline(model: str = "llama-3.1-8b", card: str = "h100-sxm", layout: Layout | None = None) -> Roofline:
    return Roofline(setup(model, card, layout=layout), START)


def replica(card: str = "h100-sxm", limits: Limits | None = None) -> Replica:
    return Replica(step=roofline(card=card), fit=fit(setup(card=card)), limits=limits or Limits())


@given(rooflines, shapes, st.integers(0, 4), st.integers(1, 10_000))
def test_more_work_never_takes_less_time(
    step: Roofline, shape: tuple[int, int, int, float, int], argument: int, more: int
) -> None:
    larger = list(shape)
    larger[argument] += more
    assert 0.0 <= step.seconds(*shape) <= step.seconds(*larger)  # type: ignore[arg-type]


def test_a_roofline_is_a_step_time_that_never_learns() -> None:
    step: StepTime = roofline()
    assert step.is_fixed
    assert step.seconds(0, 0) == 0.0
    assert step.tail_ratio >= 1.0


@pytest.mark.parametrize(("prompt", "seconds"), [(512, 0.0120), (2048, 0.0435), (8192, 0.1997)])
def test_a_prefill_is_near_the_measured_kernels(prompt: int, seconds: float) -> None:
    assert roofline().seconds(0, 0, prompt, prompt * prompt / 2, 1) == pytest.approx(seconds, rel=0.5)


@pytest.mark.parametrize(("batch", "seconds"), [(1, 0.0062), (64, 0.0126), (256, 0.0307)])
def test_a_decode_is_near_the_measured_kernels(batch: int, seconds: float) -> None:
    assert roofline().seconds(batch, batch * 2048) == pytest.approx(seconds, rel=0.5)


def test_at_small_batch_a_mixture_reads_few_experts_and_at_large_batch_all() -> None:
    step = roofline("qwen3-30b-a3b")
    dense = roofline("qwen3-32b")
    assert step.seconds(1, 100) < 0.5 * dense.seconds(1, 100)
    assert step.seconds(64, 6400) > 2 * step.seconds(1, 100)


def test_a_windowed_layer_stops_reading() -> None:
    step = roofline("gemma-3-27b")
    near = step.seconds(1, 1024) - step.seconds(1, 512)
    far = step.seconds(1, 100_512) - step.seconds(1, 100_000)
    assert far < 0.3 * near


def test_a_layout_of_no_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 tensor ranks"):
        Layout(tensor=0)


def test_70b_in_16_bits_does_not_fit_on_one_h100_and_fits_on_four() -> None:
    one = fit(setup("llama-3.1-70b"))
    assert not one.is_fitting
    assert one.kv_tokens == 0
    assert one.short_bytes > 60e9
    four = fit(setup("llama-3.1-70b", layout=Layout(tensor=4)))
    assert four.is_fitting
    assert four.short_bytes == 0.0


def test_8b_leaves_some_430_thousand_tokens_on_an_h100() -> None:
    room = fit(setup())
    assert room.kv_tokens == pytest.approx(430_000, rel=0.1)
    assert room.sequences(1000) == pytest.approx(room.kv_tokens / 1000, rel=0.01)


def test_more_ranks_than_kv_heads_copy_the_cache_and_latent_attention_always_does() -> None:
    qwen = catalog.model("qwen3-30b-a3b")
    assert Layout(tensor=8).kv_shards(qwen) == 4
    shared = fit(setup("deepseek-v3", "h200-sxm", "fp8", Layout(tensor=8)))
    spread = fit(setup("deepseek-v3", "h200-sxm", "fp8", Layout(tensor=8, is_spread=True)))
    assert spread.kv_tokens > 4 * shared.kv_tokens


@given(st.floats(1.0, 2000.0), st.sampled_from(["h100-sxm", "l4", "b200"]))
def test_a_closed_loop_obeys_littles_law(concurrency: float, card: str) -> None:
    state = replica(card).closed_loop(CHAT, concurrency)
    present = state.requests_per_s * (state.ttft_s + CHAT.output_tokens * state.tpot_s)
    half_a_step = 0.5 * state.tpot_s * state.requests_per_s
    assert present - half_a_step == pytest.approx(concurrency, rel=0.02)


@given(st.floats(0.1, 60.0), st.floats(1.01, 3.0))
def test_more_load_means_more_throughput_and_no_less_latency(rate: float, factor: float) -> None:
    light, heavy = replica().open_loop(CHAT, rate), replica().open_loop(CHAT, rate * factor)
    assert light.output_tokens_per_s <= heavy.output_tokens_per_s * 1.001
    assert light.tpot_s <= heavy.tpot_s * 1.001


def test_a_target_on_tpot_costs_throughput() -> None:
    free, tight = replica().saturated(CHAT), replica().within(CHAT, 0.02, 10.0)
    assert tight.tpot_s == pytest.approx(0.02, rel=0.01)
    assert tight.requests_per_s < free.requests_per_s
    assert tight.bound == "target"


def test_a_target_on_the_tail_of_ttft_costs_throughput() -> None:
    loose, tight = replica().within(CHAT, 1.0, 10.0), replica().within(CHAT, 1.0, 0.2)
    assert tight.requests_per_s < loose.requests_per_s
    assert tight.ttft_s < 0.2


def test_a_replica_without_room_serves_nothing() -> None:
    room = fit(setup("llama-3.1-70b", "l4"))
    full = Replica(step=roofline("llama-3.1-70b", "l4"), fit=room)
    assert full.saturated(CHAT).output_tokens_per_s == 0.0
    assert finite_run(full, [10], [10]) is None


def test_more_prefill_workers_answer_sooner() -> None:
    worker = replica()
    one = disaggregated(worker, 1, worker, 1, CHAT, 64)
    two = disaggregated(worker, 2, worker, 1, CHAT, 64)
    assert two.ttft_s < one.ttft_s
    assert two.requests_per_s >= one.requests_per_s


@given(st.integers(1, 300), st.floats(1, 2000), st.sampled_from([0.0, 0.3, 0.8]))
def test_lengths_have_their_mean(count: int, mean: float, spread: float) -> None:
    assert sum(lengths(count, mean, spread)) / count == pytest.approx(mean, rel=0.05, abs=1.0)


def test_a_run_of_equal_requests_takes_the_time_of_its_steps() -> None:
    worker = replica()
    run = finite_run(worker, [100] * 8, [50] * 8)
    assert run is not None
    expected = worker.step.seconds_of(0, 0, 800, 8 * 100 * 50, 8)
    expected += sum(worker.step.seconds_of(8, 8 * (100 + i)) for i in range(49))
    assert run.seconds == pytest.approx(expected, rel=1e-9)
    assert run.peak_sequences == 8


def test_a_long_backlog_runs_at_the_steady_rate() -> None:
    worker = replica(limits=Limits(sequences_max=64))
    run = finite_run(worker, [200] * 2000, list(lengths(2000, 200, 0.5)))
    assert run is not None
    steady = worker.saturated(Lengths(prompt_tokens=200, output_tokens=200))
    assert run.output_tokens_per_s == pytest.approx(steady.output_tokens_per_s, rel=0.1)


def test_slow_arrivals_wait_for_their_own_prefill_only() -> None:
    worker = replica()
    run = finite_run(worker, [100] * 20, [10] * 20, gap_s=10.0)
    assert run is not None
    assert run.ttft_s == pytest.approx(worker.step.seconds_of(0, 0, 100, 5000, 1))
    assert run.peak_sequences == 1
