"""Laws of the correction: it stays monotone, it is never worse than none, and it finds what was done to a source."""

from collections.abc import Sequence
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.worlds import Curved

from setpoint.model import LinearStepTime, StepShape, chunk_work
from setpoint.sim import catalog
from setpoint.steptime.calibrate import START
from setpoint.steptime.correction import (
    CorrectedSteadyStep,
    CorrectedStepTime,
    Correction,
    fit_correction,
    prior_of,
)
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import linear
from setpoint.steptime.quantization import quantization
from setpoint.steptime.roofline import Roofline
from setpoint.steptime.setup import Setup

BASE = FixedStepTime(linear(key="base", step_s=0.006, decode_s=0.0003, context_s=1e-7, prefill_s=0.00006, work_s=1e-9))
WINDOWED = Roofline(
    Setup(
        architecture=catalog.model("gemma-3-27b"),
        hardware=catalog.hardware("h100-sxm"),
        quantization=quantization("bf16"),
    ),
    START,
)
"""Its time of pure decoding is a line only once its windows are full."""
SHAPES = [StepShape(n, 400 * n) for n in (1, 4, 16, 64)]
SHAPES += [StepShape(n, 400 * n, p, chunk_work(0, p), 1) for n in (0, 8, 32) for p in (64, 512, 2048)]
corrections = st.builds(
    Correction,
    scale=st.floats(0.2, 3.0),
    step_s=st.floats(0.0, 0.02),
    sequence_s=st.floats(0.0, 0.001),
    token_s=st.floats(0.0, 0.0005),
)
sizes = st.integers(0, 500)


@given(corrections, sizes, sizes, sizes, sizes)
def test_a_corrected_step_time_is_monotone(c: Correction, decodes: int, context: int, tokens: int, more: int) -> None:
    step_time = CorrectedStepTime(BASE, c)
    here = step_time.seconds(decodes, context, tokens, chunk_work(0, tokens), int(tokens > 0))
    assert here >= 0.0
    assert step_time.seconds(decodes + more, context, tokens, chunk_work(0, tokens), int(tokens > 0)) >= here
    assert step_time.seconds(decodes, context + more, tokens, chunk_work(0, tokens), int(tokens > 0)) >= here
    grown = tokens + more
    assert step_time.seconds(decodes, context, grown, chunk_work(0, grown), int(grown > 0)) >= here


def test_no_correction_changes_nothing_and_an_empty_step_takes_no_time() -> None:
    step_time = CorrectedStepTime(BASE, Correction())
    assert [step_time.seconds(*shape) for shape in SHAPES] == [BASE.seconds(*shape) for shape in SHAPES]
    assert CorrectedStepTime(BASE, Correction(step_s=1.0)).seconds(0, 0) == 0.0


@given(
    corrections, st.sampled_from([BASE, WINDOWED]), st.integers(1, 64), st.integers(0, 10_000), st.integers(0, 10**6)
)
def test_pure_decoding_is_the_line_that_it_says_to_the_last_bit(
    c: Correction, base: LinearStepTime, decodes: int, each: int, more: int
) -> None:
    step_time = CorrectedStepTime(base, c)
    assert isinstance(step_time, LinearStepTime)
    context = decodes * each
    line = step_time.decode_line(decodes, context)
    assert (line is None) == (base.decode_line(decodes, context) is None)
    for tokens in (context, context + more):
        found = step_time.seconds(decodes, tokens)
        uncorrected = base.seconds(decodes, tokens)
        assert found == pytest.approx(c.scale * uncorrected + c.step_s + decodes * c.sequence_s, rel=1e-12)
        assert line is None or found == line[0] + tokens * line[1]


def test_a_source_that_knows_no_line_has_none_when_corrected() -> None:
    curved = CorrectedStepTime(Curved(), Correction(scale=2.0))
    assert curved.decode_line(4, 100) is None
    assert curved.seconds(4, 100) == 2.0 * Curved().seconds(4, 100)


class Fractional:
    """A base that answers for fractions."""

    def seconds_of(
        self, decodes: float, context: float, prefill_tokens: float = 0.0, work: float = 0.0, prefills: float = 0.0
    ) -> float:
        return 0.001 * decodes + 1e-6 * context + 1e-4 * prefill_tokens + 0.0 * (work + prefills)


@given(corrections, st.floats(0.5, 100.0), st.floats(0.0, 500.0))
def test_fractions_are_corrected_as_whole_steps_are(c: Correction, decodes: float, tokens: float) -> None:
    corrected = CorrectedSteadyStep(Fractional(), c)
    expected = c.scale * Fractional().seconds_of(decodes, 10.0, tokens) + c.step_s
    expected += decodes * c.sequence_s + tokens * c.token_s
    assert corrected.seconds_of(decodes, 10.0, tokens) == pytest.approx(expected)
    assert corrected.seconds_of(0.0, 0.0) == 0.0


def errors_against(truth: CorrectedStepTime, c: Correction) -> list[float]:
    found = CorrectedStepTime(BASE, c)
    return [log(found.seconds(*shape) / truth.seconds(*shape)) for shape in SHAPES]


@settings(max_examples=40, deadline=None)
@given(corrections)
def test_what_was_done_to_a_source_is_found_and_never_made_worse(true: Correction) -> None:
    truth = CorrectedStepTime(BASE, true)
    weights = [1.0] * len(SHAPES)
    prior = prior_of(BASE)
    best, loss = fit_correction(lambda c: errors_against(truth, c), weights, prior)
    before = sum(abs(error) for error in errors_against(truth, prior.center))
    assert loss <= 10.0 * before + 1e-9
    after = [abs(error) for error in errors_against(truth, best)]
    assert sum(after) / len(after) < 0.12 + 0.2 * before / len(after)


def test_values_that_cannot_be_predicted_do_not_stop_the_fit() -> None:
    truth = CorrectedStepTime(BASE, Correction(scale=1.5))

    def residuals(c: Correction) -> Sequence[float | None]:
        return [None, *errors_against(truth, c)]

    best, _ = fit_correction(residuals, [1.0] * (1 + len(SHAPES)), prior_of(BASE))
    assert sum(abs(error) for error in errors_against(truth, best)) / len(SHAPES) < 0.05


def test_one_value_moves_little_of_what_it_says_nothing_about() -> None:
    shape = SHAPES[0]
    truth = CorrectedStepTime(BASE, Correction(scale=1.3))

    def residuals(c: Correction) -> Sequence[float | None]:
        return [log(CorrectedStepTime(BASE, c).seconds(*shape) / truth.seconds(*shape))]

    best, _ = fit_correction(residuals, [1.0], prior_of(BASE))
    assert CorrectedStepTime(BASE, best).seconds(*shape) == pytest.approx(truth.seconds(*shape), rel=0.1)
    assert best.token_s == pytest.approx(0.0, abs=1e-6)
    assert best.request_s == 0.0
