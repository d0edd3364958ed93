"""The first steps of an engine: they bring its memory in, and show roughly what a step costs.

A dozen steps of four shapes (a short and a long prompt, one decode and several) give the scheduler a step-time model to
begin with. The fastest of each shape counts: whatever else the machine is doing only ever makes a step slower. The
scheduler goes on learning from every step that follows; a full profile is another matter.
"""

from collections.abc import Callable

from setpoint.engines.api import Executor, Generation, Sampling
from setpoint.steptime.model import StepTimeModel, linear
from setpoint.units import Tokens

REPEATS = 3
SEQUENCES = 4
SHORT, LONG = 8, 64
"""Prompt tokens."""
OUTPUT_TOKENS = 2 * REPEATS + 1
REQUEST_ID = -1
"""Ids of the warm-up count down from here, where no request of a client is."""


class _WarmUp:
    """An idle executor with a stopwatch."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self._executor = executor
        self._clock = clock
        self._made = 0
        self._open: list[int] = []

    def admit(self, prompt_tokens: int) -> int:
        """Take a prompt in that shares no prefix with another; return its id."""
        request_id = REQUEST_ID - self._made
        self._made += 1
        prompt = (self._made, *([0] * (prompt_tokens - 1)))
        sampling = Sampling(temperature=0.0, is_eos_ignored=True)
        tokens = Tokens(OUTPUT_TOKENS)
        generation = Generation(prompt=prompt, class_name="", output_tokens_max=tokens, sampling=sampling)
        self._executor.prepare(request_id, generation)
        self._executor.admit(request_id, len(self._open))
        self._open.append(request_id)
        return request_id

    def prefill_s(self, prompt_tokens: int) -> float:
        """Return the seconds of the fastest of some prefills, whose sequences are released."""
        return min(self._prefill_s(prompt_tokens) for _ in range(REPEATS))

    def _prefill_s(self, prompt_tokens: int) -> float:
        request_id = self.admit(prompt_tokens)
        seconds = self.run([], [(request_id, prompt_tokens)])
        self.release()
        return seconds

    def decode_s(self, sequences: int) -> float:
        """Return the seconds of the fastest of some decodes of that many sequences, which are released."""
        ids = [self.admit(SHORT) for _ in range(sequences)]
        for request_id in ids:
            self.run([], [(request_id, SHORT)])
        fastest = min(self.run(ids, []) for _ in range(REPEATS))
        self.release()
        return fastest

    def run(self, decodes: list[int], prefills: list[tuple[int, int]]) -> float:
        """Run one step and return its seconds."""
        start = self._clock()
        self._executor.run(decodes, prefills)
        return self._clock() - start

    def release(self) -> None:
        """Leave the executor empty."""
        while self._open:
            self._executor.release(self._open.pop())


def warm_up(executor: Executor, clock: Callable[[], float], *, key: str) -> StepTimeModel:
    """Run the first steps of an idle engine, leave it empty, and return a rough step-time model.

    `key` names (model, hardware, engine build).
    """
    capacity = executor.capacity
    long = min(LONG, capacity.step_tokens_max, capacity.context_tokens_max - OUTPUT_TOKENS)
    many = min(SEQUENCES, capacity.slots)
    steps = _WarmUp(executor, clock)
    try:
        # the first prefill pays for memory that is touched for the first time: the fastest does not
        short_s, long_s = steps.prefill_s(SHORT), steps.prefill_s(long)
        one_s, many_s = steps.decode_s(1), steps.decode_s(many)
    finally:
        steps.release()
    prefill_s = max(0.0, long_s - short_s) / max(1, long - SHORT)
    decode_s = max(0.0, many_s - one_s) / max(1, many - 1)
    return linear(key=key, step_s=max(one_s - decode_s, 0.1 * one_s), decode_s=decode_s, prefill_s=prefill_s)
