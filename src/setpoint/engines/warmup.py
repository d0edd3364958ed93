"""The first steps of an engine: they bring its memory in, and show roughly what a step costs.

Some thirty steps of different shapes, prompts and decodes of token 0 to `SEQUENCES` sequences, give the scheduler a
step-time model to begin with; it goes on learning from every step that follows. A full profile is another matter.
"""

from collections.abc import Callable

from setpoint.engines.api import Executor, Generation, Sampling
from setpoint.model import StepShape
from setpoint.model.shape import chunk_work
from setpoint.steptime.model import Sample, StepTimeModel, fit
from setpoint.units import Seconds, Tokens

SEQUENCES = 8
CHUNKS = (16, 64, 8, 32, 96, 24, 4, 48)
DECODES_EACH = 3
REQUEST_ID = -1
"""Ids of the warm-up count down from here, where no request of a client is."""


class _Sequence:
    """One warm-up sequence: its id, and the tokens that it holds."""

    def __init__(self, executor: Executor, slot: int, prompt_tokens: int) -> None:
        self.id = REQUEST_ID - slot
        # prompts that begin differently share no prefix
        generation = Generation(
            prompt=(slot + 1, *([0] * (prompt_tokens - 1))),
            class_name="",
            output_tokens_max=Tokens(DECODES_EACH * SEQUENCES + 1),
            sampling=Sampling(temperature=0.0, is_eos_ignored=True),
        )
        self.computed = executor.prepare(self.id, generation)
        self.left = prompt_tokens - self.computed
        executor.admit(self.id, slot)


def warm_up(executor: Executor, clock: Callable[[], float], *, key: str) -> StepTimeModel:
    """Run the first steps of an idle engine, leave it empty, and return the step-time model fitted to them.

    `key` names (model, hardware, engine build).
    """
    capacity = executor.capacity
    largest = min(capacity.step_tokens_max, capacity.context_tokens_max // 2)
    sequences: list[_Sequence] = []
    samples: list[Sample] = []

    def timed(shape: StepShape, decodes: list[int], prefills: list[tuple[int, int]]) -> None:
        start = clock()
        executor.run(decodes, prefills)
        samples.append((shape, Seconds(max(clock() - start, 1e-6))))

    try:
        for slot in range(min(SEQUENCES, capacity.slots)):
            new = _Sequence(executor, slot, min(CHUNKS[slot], largest))
            work = chunk_work(new.computed, new.left)
            timed(StepShape(0, 0, new.left, work, 1), [], [(new.id, new.left)])
            new.computed += new.left
            sequences.append(new)
            for _ in range(DECODES_EACH):
                context = sum(s.computed for s in sequences)
                timed(StepShape(len(sequences), context), [s.id for s in sequences], [])
                for sequence in sequences:
                    sequence.computed += 1
    finally:
        for sequence in sequences:
            executor.release(sequence.id)
    # the first step pays for memory that is touched for the first time; a small engine repeats what it can hold
    return fit(_enough(samples[1:]), key=key)


def _enough(samples: list[Sample]) -> list[Sample]:
    return samples * -(-20 // len(samples))
