"""Learning from every step: it follows a drift, keeps what it does not see, and says how sure it is."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.model import StepShape
from setpoint.steptime.learner import FixedStepTime, LearnedStepTime
from setpoint.steptime.model import fit, linear
from setpoint.units import Seconds

WORLD = linear(key="world", step_s=0.005, decode_s=5e-4, context_s=1e-7, prefill_s=3e-4, work_s=1e-8)


def a_step(draw: random.Random, *, is_prefilling: bool) -> StepShape:
    decodes = draw.randint(1, 32)
    prefill = draw.choice((16, 64, 256)) if is_prefilling else 0
    return StepShape(decodes, decodes * draw.randint(16, 800), prefill, 0.5 * prefill**2, int(prefill > 0))


def learner(draw: random.Random) -> LearnedStepTime:
    """Return a learner that was fitted to a noisy profile of the world."""
    world = FixedStepTime(WORLD)
    samples = [(shape, Seconds(world.seconds(*shape) * draw.lognormvariate(0.0, 0.03))) for shape in shapes(draw)]
    return LearnedStepTime(fit(samples, key="world"))


def shapes(draw: random.Random) -> list[StepShape]:
    return [a_step(draw, is_prefilling=i % 2 == 0) for i in range(200)]


def live(
    step_time: LearnedStepTime,
    draw: random.Random,
    steps: int,
    *,
    slower: float = 1.0,
    is_prefilling: bool | None = None,
) -> None:
    """Let it see steps of a world that is `slower` than the profiled one."""
    world = FixedStepTime(WORLD)
    for i in range(steps):
        shape = a_step(draw, is_prefilling=i % 2 == 0 if is_prefilling is None else is_prefilling)
        step_time.observe(shape, Seconds(slower * world.seconds(*shape) * draw.lognormvariate(0.0, 0.05)))


def off_by(step_time: LearnedStepTime, shape: StepShape, *, slower: float = 1.0) -> float:
    return step_time.seconds(*shape) / (slower * FixedStepTime(WORLD).seconds(*shape)) - 1.0


DECODING = StepShape(16, 6400)
PREFILLING = StepShape(4, 1600, 256, 0.5 * 256**2, 1)


def test_it_follows_a_machine_that_became_slower() -> None:
    draw = random.Random(1)
    step_time = learner(draw)
    live(step_time, draw, 1500, slower=1.6)
    assert off_by(step_time, DECODING, slower=1.6) == pytest.approx(0.0, abs=0.06)
    assert off_by(step_time, PREFILLING, slower=1.6) == pytest.approx(0.0, abs=0.06)


def test_it_does_not_forget_what_it_never_sees() -> None:
    draw = random.Random(2)
    step_time = learner(draw)
    live(step_time, draw, 5000, is_prefilling=False)
    assert off_by(step_time, PREFILLING) == pytest.approx(0.0, abs=0.15)


def test_a_guess_gives_way_to_a_few_dozen_steps_even_where_these_are_small() -> None:
    draw = random.Random(4)
    step_time = LearnedStepTime(linear(key="guess", step_s=0.02, decode_s=0.004, prefill_s=0.002))
    world = FixedStepTime(WORLD)
    for _ in range(100):
        decodes = draw.randint(1, 4)
        shape = StepShape(decodes, 100 * decodes, 0, 0.0, 0)
        step_time.observe(shape, Seconds(world.seconds(*shape) * draw.lognormvariate(0.0, 0.02)))
    assert off_by(step_time, StepShape(16, 1600)) == pytest.approx(0.0, abs=0.3)


def test_its_tail_covers_nearly_95_of_100_steps() -> None:
    draw = random.Random(3)
    step_time = learner(draw)
    live(step_time, draw, 3000)
    assert 0.90 <= step_time.coverage <= 0.99
    assert step_time.mape == pytest.approx(0.04, abs=0.02)
    assert step_time.tail_ratio == pytest.approx(1.085, abs=0.03)


def test_before_the_first_step_it_says_what_the_fit_knew() -> None:
    step_time = learner(random.Random(4))
    assert step_time.mape == step_time.model.mape
    assert step_time.coverage == 0.95
    assert step_time.tail_ratio == step_time.model.tail_ratio


def test_a_stall_is_no_lesson_about_shapes() -> None:
    draw = random.Random(5)
    step_time = learner(draw)
    live(step_time, draw, 400)
    for _ in range(8):
        step_time.observe(DECODING, Seconds(3.0))
    assert off_by(step_time, DECODING) == pytest.approx(0.0, abs=0.06)


@given(
    st.integers(0, 1000),
    st.lists(st.floats(1e-5, 5.0), min_size=40, max_size=80),
)
def test_whatever_it_sees_more_work_never_takes_less_time(seed: int, durations: list[float]) -> None:
    draw = random.Random(seed)
    step_time = LearnedStepTime(WORLD)
    for seconds in durations:
        step_time.observe(a_step(draw, is_prefilling=draw.random() < 0.5), Seconds(seconds))
    small = a_step(draw, is_prefilling=False)
    larger = small._replace(prefill_tokens=64, prefill_work=2048.0, prefills=1)
    assert 0.0 <= step_time.seconds(*small) <= step_time.seconds(*larger)
    assert step_time.tail_ratio >= 1.0


def test_one_that_is_fixed_learns_nothing() -> None:
    step_time = FixedStepTime(WORLD)
    before = step_time.seconds(*DECODING)
    step_time.observe(DECODING, Seconds(9.0))
    assert (step_time.seconds(*DECODING), step_time.is_fixed) == (before, True)
