"""Laws of the search over an engine's settings, on landscapes that are known."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.loadgen.crossing import Crossing
from setpoint.planner.engine_measure import gain
from setpoint.planner.engine_search import (
    Evaluate,
    Evaluation,
    How,
    latest,
    next_evaluation,
    pick,
    ranking,
    suspects,
)
from setpoint.planner.knobs import DEFAULTS, Engine, Knob, Setting
from setpoint.planner.surrogate import Seen, Surrogate, cholesky
from setpoint.seeds import stream

ENGINE = Engine(
    engine="known",
    command=("known",),
    args=(),
    knobs=(
        Knob(name="slots", flag="-s", default="4", values=("1", "2", "4", "8", "16"), ordered=True, spread=2.5),
        Knob(name="chunk", flag="-c", default="512", values=("64", "128", "256", "512"), ordered=True, spread=1.5),
        Knob(name="kind", default="plain", choices={"fast": ("-f",), "slow": ("-l",), "broken": ("-b",)}, spread=1.4),
    ),
    never=({"slots": "16", "kind": "slow"},),
)
WORTH = {
    "slots": {"1": 0.4, "2": 0.7, "4": 1.0, "8": 1.6, "16": 2.1},
    "chunk": {"64": 0.7, "128": 1.1, "256": 1.3, "512": 1.0},
    "kind": {"plain": 1.0, "fast": 1.3, "slow": 0.6, "broken": 1.0},
}
SECONDS = (30.0, 50.0, 90.0)
NOISE = (0.15, 0.1, 0.06)

Landscape = Callable[[Setting], float]


def worth(setting: Setting) -> float:
    return math.prod(WORTH[name][value] for name, value in ENGINE.values_of(setting).items())


def evaluated(step: Evaluate, rate: float, noise: float, how: How = "measured") -> Evaluation:
    wide = math.exp(1.645 * noise)
    return Evaluation(
        setting=step.setting,
        rung=step.rung,
        seconds=SECONDS[step.rung],
        how=how,
        score_rps=rate,
        low_rps=rate / wide,
        high_rps=rate * wide,
    )


def searched(landscape: Landscape, seed: int, search_s: float = 900.0) -> list[Evaluation]:
    chance, history = stream(seed, "noise"), list[Evaluation]()
    while (step := next_evaluation(history, ENGINE, search_s=search_s, seed=seed)) is not None:
        how: How = "crashed" if ("kind", "broken") in step.setting else "measured"
        rate = landscape(step.setting) * math.exp(chance.gauss(0.0, NOISE[step.rung]))
        history.append(evaluated(step, rate, NOISE[step.rung], how))
    return history


@pytest.mark.parametrize("seed", range(8))
def test_the_pick_is_near_the_best_of_the_whole_grid_for_a_third_of_its_starts(seed: int) -> None:
    history = searched(worth, seed)
    best = max(worth(one) for one in ENGINE.settings() if ("kind", "broken") not in one)
    assert worth(pick(history, ENGINE)) >= 0.75 * best
    assert len(latest(history)) <= ENGINE.size / 3


@pytest.mark.parametrize("seed", range(8))
def test_where_nothing_beats_the_defaults_they_are_the_pick_or_nearly(seed: int) -> None:
    history = searched(lambda setting: 1.0 - 0.15 * len(setting), seed)
    assert len(pick(history, ENGINE)) <= 1


@given(seed=st.integers(0, 1000), search_s=st.floats(0.0, 3000.0))
@settings(max_examples=25, deadline=None)
def test_the_search_keeps_its_time_begins_with_the_defaults_and_never_starts_what_contradicts_itself(
    seed: int, search_s: float
) -> None:
    history = searched(worth, seed, search_s)
    assert history[0].setting == DEFAULTS
    assert sum(one.seconds for one in history) <= max(SECONDS[0], search_s + SECONDS[-1] / 2.0)
    assert all(ENGINE.is_allowed(one.setting) for one in history)
    pairs = [(one.setting, one.rung) for one in history]
    assert len(set(pairs)) == len(pairs), "nothing is measured twice alike"


def test_the_same_history_gives_the_same_next_step() -> None:
    history = searched(worth, 3, 400.0)
    for length in range(len(history)):
        steps = {repr(next_evaluation(history[:length], ENGINE, search_s=400.0, seed=3)) for _ in range(2)}
        assert len(steps) == 1


def test_the_longest_evaluations_go_to_few_and_the_best() -> None:
    history = searched(worth, 1, 1500.0)
    counts = [sum(one.rung == rung for one in history) for rung in range(3)]
    assert counts[0] > counts[1] >= counts[2] >= 1


def test_a_value_that_alone_explains_a_crash_is_not_tried_again() -> None:
    history = searched(worth, 2, 2500.0)
    crashed = [one.setting for one in history if one.how == "crashed"]
    if crashed:
        assert suspects(history) <= {("kind", "broken")}
    blamed = [index for index, one in enumerate(history) if ("kind", "broken") in suspects(history[: index + 1])]
    after = history[blamed[0] + 1 :] if blamed else []
    assert all(("kind", "broken") not in one.setting for one in after)


def test_a_crash_of_two_new_values_blames_neither_until_one_is_seen_to_run() -> None:
    both = Evaluate(setting=ENGINE.setting({"slots": "8", "kind": "broken"}), rung=0)
    history = [evaluated(Evaluate(setting=DEFAULTS, rung=0), 1.0, 0.1), evaluated(both, 0.0, 0.1, "crashed")]
    assert suspects(history) == set()
    history.append(evaluated(Evaluate(setting=ENGINE.setting({"slots": "8"}), rung=0), 1.5, 0.1))
    assert suspects(history) == {("kind", "broken")}


def test_one_lucky_short_evaluation_does_not_outrank_a_long_one() -> None:
    steady = Evaluate(setting=ENGINE.setting({"slots": "8"}), rung=2)
    lucky = Evaluate(setting=ENGINE.setting({"chunk": "64", "kind": "slow"}), rung=0)
    history = [
        evaluated(Evaluate(setting=DEFAULTS, rung=2), 1.0, 0.05),
        evaluated(steady, 1.6, 0.05),
        evaluated(lucky, 1.7, 0.9),
    ]
    assert ranking(history, ENGINE)[0][0].setting == steady.setting
    assert pick(history, ENGINE) == steady.setting


def test_what_is_impossible_is_never_proposed() -> None:
    def is_possible(setting: Setting) -> bool:
        return dict(setting).get("slots") not in {"8", "16"}

    history = list[Evaluation]()
    while (step := next_evaluation(history, ENGINE, search_s=2000.0, seed=1, is_possible=is_possible)) is not None:
        history.append(evaluated(step, worth(step.setting), 0.1))
    assert all(is_possible(one.setting) for one in history)


@given(values=st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_surrogate_goes_through_what_is_certain_and_doubts_what_is_far(values: list[float], seed: int) -> None:
    chance = stream(seed, "settings")
    everything = list(ENGINE.settings())
    seen = [
        Seen(setting=s, value=v, noise=1e-3)
        for s, v in zip(chance.sample(everything, len(values)), values, strict=True)
    ]
    surrogate = Surrogate(ENGINE, seen)
    for one in seen:
        guess = surrogate.guess(one.setting)
        assert guess.mean == pytest.approx(one.value, abs=0.02)
        assert guess.sd < 0.01
    assert all(surrogate.guess(one).sd <= Surrogate(ENGINE, []).guess(one).sd + 1e-9 for one in everything)


def test_cholesky_gives_the_root_of_its_matrix() -> None:
    rows = [[4.0, 2.0, 0.6], [2.0, 3.0, 0.4], [0.6, 0.4, 1.0]]
    lower = [[*row, *[0.0] * (3 - len(row))] for row in cholesky(rows)]
    for i in range(3):
        for j in range(3):
            assert sum(lower[i][k] * lower[j][k] for k in range(3)) == pytest.approx(rows[i][j])


def crossing_at(rate: float, spread: float) -> Crossing:
    rates = tuple(rate * math.exp(0.02 * (i - 60)) for i in range(121))
    masses = [math.exp(-0.5 * (math.log(one / rate) / spread) ** 2) for one in rates]
    return Crossing(rates=rates, masses=tuple(mass / sum(masses) for mass in masses))


def test_the_gain_is_the_ratio_of_the_held_rates_with_the_doubt_of_both() -> None:
    middle, low, high = gain(crossing_at(3.0, 0.1), crossing_at(2.0, 0.1))
    assert middle == pytest.approx(1.5, rel=0.03)
    assert math.log(high / low) == pytest.approx(2 * 1.645 * 0.1 * math.sqrt(2.0), rel=0.1)
    _, same_low, same_high = gain(crossing_at(2.0, 0.1), crossing_at(2.0, 0.1))
    assert same_low < 1.0 < same_high
