"""The fitted model: never negative, monotone, near the truth, honest about its error, and kept as it is."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.errors import ConfigError
from setpoint.model import StepShape
from setpoint.steptime.learner import FixedStepTime, LearnedStepTime, restored
from setpoint.steptime.model import FEATURES, Sample, StepTimeModel, decode, encode, fit, linear
from setpoint.units import Seconds

WEIGHTS = (0.004, 0.0002, 2e-7, 1e-4, 5e-4, 3e-8, 2e-4)
"""The truth: a knee at 16 tokens, cheap before and dear behind it."""
KNEE = 16

shapes = st.builds(
    StepShape,
    decodes=st.integers(0, 256),
    context_tokens=st.integers(0, 100_000),
    prefill_tokens=st.integers(0, 4096),
    prefill_work=st.floats(0.0, 1e8),
    prefills=st.integers(0, 16),
)


def truth(weights: tuple[float, ...] = WEIGHTS) -> FixedStepTime:
    model = linear(key="truth", step_s=1.0, decode_s=0.0, prefill_s=0.0)
    return FixedStepTime(msgspec.structs.replace(model, knee=KNEE, weights=weights, tail_ratio=1.0))


def profile(draw: random.Random, count: int, *, noise: float, world: FixedStepTime | None = None) -> list[Sample]:
    """Return steps of mixed shapes, measured with relative `noise`."""
    world = world or truth()
    samples = []
    for _ in range(count):
        decodes = draw.choice((0, 1, 2, 4, 8, 16, 32, 64))
        prefill = draw.choice((0, 0, 8, 16, 32, 64, 128, 256, 512))
        if not decodes + prefill:
            decodes = 1
        before = draw.choice((0, 64, 512)) if prefill else 0
        shape = StepShape(
            decodes,
            decodes * draw.choice((16, 128, 1024)),
            prefill,
            prefill * (before + 0.5 * prefill),
            1 + draw.randrange(3) if prefill else 0,
        )
        samples.append((shape, Seconds(world.seconds(*shape) * draw.lognormvariate(0.0, noise))))
    return samples


def together(a: StepShape, b: StepShape) -> StepShape:
    return StepShape(
        a.decodes + b.decodes,
        a.context_tokens + b.context_tokens,
        a.prefill_tokens + b.prefill_tokens,
        a.prefill_work + b.prefill_work,
        a.prefills + b.prefills,
    )


def error(model: StepTimeModel, samples: list[Sample]) -> float:
    return sum(abs(model.predict(shape) / seconds - 1.0) for shape, seconds in samples) / len(samples)


FITTED = fit(profile(random.Random(5), 400, noise=0.05), key="smol@here")


class TestFitting:
    def test_it_recovers_a_known_model_within_its_noise(self) -> None:
        unseen = profile(random.Random(6), 300, noise=0.0)
        assert error(FITTED, unseen) < 0.03

    def test_without_noise_it_recovers_it_nearly_exactly(self) -> None:
        model = fit(profile(random.Random(5), 400, noise=0.0), key="exact")
        assert model.knee == KNEE
        assert error(model, profile(random.Random(6), 300, noise=0.0)) < 0.005

    def test_it_knows_its_error(self) -> None:
        unseen = profile(random.Random(7), 500, noise=0.05)
        assert pytest.approx(error(FITTED, unseen), abs=0.015) == FITTED.mape
        covered = sum(seconds <= FITTED.tail_ratio * FITTED.predict(shape) for shape, seconds in unseen)
        assert 0.88 <= covered / len(unseen) <= 0.99

    def test_too_few_steps_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="19 measured steps"):
            fit(profile(random.Random(1), 19, noise=0.1), key="few")

    @given(st.integers(0, 10_000))
    def test_no_weight_is_negative_whatever_was_measured(self, seed: int) -> None:
        draw = random.Random(seed)
        samples = [(shape, Seconds(draw.uniform(1e-4, 1.0))) for shape, _ in profile(draw, 25, noise=0.0)]
        assert min(fit(samples, key="noise").weights) >= 0.0


class TestPredicting:
    @given(shapes, shapes)
    def test_more_of_anything_never_takes_less_time(self, shape: StepShape, more: StepShape) -> None:
        step_time = FixedStepTime(FITTED)
        larger = together(shape, more)
        assert 0.0 <= step_time.seconds(*shape) <= step_time.seconds(*larger) * (1 + 1e-12)

    @given(shapes)
    def test_the_quick_way_and_the_plain_way_agree(self, shape: StepShape) -> None:
        assert FixedStepTime(FITTED).seconds(*shape) == pytest.approx(FITTED.predict(shape))

    def test_known_costs_are_taken_as_they_are(self) -> None:
        step_time = FixedStepTime(linear(key="x", step_s=0.01, decode_s=0.002, context_s=1e-6, prefill_s=0.001))
        assert step_time.seconds(1, 1000) == pytest.approx(0.01 + 0.002 + 0.001)
        assert step_time.seconds(0, 0, 10, 50.0, 1) == pytest.approx(0.02)


class TestKeeping:
    def test_it_is_saved_and_loaded_as_it_is(self) -> None:
        assert decode(encode(FITTED)) == FITTED

    @pytest.mark.parametrize("is_learning", [True, False])
    def test_a_journal_gets_the_same_step_time_again(self, *, is_learning: bool) -> None:
        again = restored(encode(FITTED), is_learning)
        assert isinstance(again, LearnedStepTime) is is_learning
        assert again.seconds(3, 500, 7, 20.0, 1) == FixedStepTime(FITTED).seconds(3, 500, 7, 20.0, 1)

    @pytest.mark.parametrize("data", [b"", b"\xff", b"{}", b"[1]", encode(FITTED)[:-20]])
    def test_what_is_no_model_is_refused(self, data: bytes) -> None:
        with pytest.raises(ConfigError, match="not a step-time model"):
            decode(data)

    @pytest.mark.parametrize(
        "changed",
        [
            msgspec.structs.replace(FITTED, format=99),
            msgspec.structs.replace(FITTED, weights=FITTED.weights[1:]),
            msgspec.structs.replace(FITTED, weights=(-1.0,) * FEATURES),
        ],
    )
    def test_a_model_of_another_version_is_refused(self, changed: StepTimeModel) -> None:
        with pytest.raises(ConfigError, match="another version"):
            decode(encode(changed))
