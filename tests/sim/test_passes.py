"""Passes laid out many at a time are those that asking for each would give, to the last bit."""

from hypothesis import given
from hypothesis import strategies as st
from tests.sim.worlds import WORLD

from setpoint.model import Horizon, StepPlan, StepShape
from setpoint.sim.passes import Passes, World
from setpoint.units import NEVER, Instant, Seconds

PACES = st.none() | st.floats(0.005, 0.1).map(Seconds)
INSTANTS = st.none() | st.floats(1.0, 6.0).map(Instant)


class ByTheStep(World):
    """The same world, asked for each pass."""

    def __init__(self) -> None:
        super().__init__(WORLD)
        self.line = None


def laid_out(world: World, plan: StepPlan, shape: StepShape, hints: list[float]) -> Passes:
    """Return the passes of `plan` after the hints have come one by one, each of them in vain."""
    passes = Passes(plan, shape, 1.0, world.seconds(*shape) * world.factor, plan.horizon.steps)
    for hint in hints:
        if passes.may_go_on:
            passes.lay_out(world, hint)
    return passes


@given(
    shape=st.builds(lambda n, c: StepShape(n, n * c), st.integers(1, 40), st.integers(1, 5000)),
    horizon=st.builds(Horizon, st.integers(2, 300), PACES, INSTANTS),
    hints=st.lists(st.floats(1.0, 6.0) | st.just(NEVER), max_size=4).map(sorted),
    factor=st.sampled_from([1.0, 1.0, 2.5, 1e-9]),
)
def test_many_at_a_time_are_as_one_by_one(
    shape: StepShape, horizon: Horizon, hints: list[float], factor: float
) -> None:
    plan = StepPlan(step_id=1, horizon=horizon)
    swift, slow = World(WORLD), ByTheStep()
    swift.factor = slow.factor = factor
    one, other = laid_out(swift, plan, shape, hints), laid_out(slow, plan, shape, hints)
    assert one.durations == other.durations
    assert one.ends == other.ends
    assert one.at == other.at == one.ends[-1]
    assert len(one.ends) <= horizon.steps


@given(cut_s=st.floats(0.0, 3.0), steps=st.integers(1, 100))
def test_a_cut_ends_with_the_pass_that_is_under_way(cut_s: float, steps: int) -> None:
    plan = StepPlan(step_id=1, horizon=Horizon(steps))
    passes = laid_out(World(WORLD), plan, StepShape(2, 100), [NEVER])
    whole = [*passes.ends]
    passes.cut(1.0 + cut_s)
    assert passes.ends == [end for begin, end in zip([0.0, *whole], whole, strict=False) if begin < 1.0 + cut_s]
    assert passes.at == passes.ends[-1]
    assert not passes.may_go_on
