"""The shape of a step, and the interface through which anyone predicts its duration.

A shape is the handful of sums on which the time of a forward pass depends; `setpoint.steptime` holds the models.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from setpoint.units import Seconds


class StepShape(NamedTuple):
    """What one forward pass computes, as sums.

    `decodes`: sequences that decode one token each. `context_tokens`: KV tokens that these read, summed.
    `prefill_tokens`: prompt tokens computed. `prefill_work`: sum over the chunks of `chunk x (context before it +
    chunk / 2)`, the token pairs that causal attention visits. `prefills`: how many chunks.
    """

    decodes: int = 0
    context_tokens: int = 0
    prefill_tokens: int = 0
    prefill_work: float = 0.0
    prefills: int = 0


def chunk_work(computed_tokens: int, tokens: int) -> float:
    """Return the token pairs that attention visits for a chunk of `tokens` behind `computed_tokens`."""
    return tokens * (computed_tokens + 0.5 * tokens)


class StepTime(Protocol):
    """Predicts the seconds of a step; never negative, and monotone in every field of the shape."""

    @property
    def is_fixed(self) -> bool:
        """Whether `observe` leaves every later prediction as it is."""
        ...

    def seconds(
        self,
        decodes: int,
        context_tokens: int,
        prefill_tokens: int = 0,
        prefill_work: float = 0.0,
        prefills: int = 0,
        /,
    ) -> float:
        """Return the median seconds of a step of this shape."""
        ...

    @property
    def tail_ratio(self) -> float:
        """The 95th percentile of measured over predicted seconds (at least 1)."""
        ...

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn from a step that was run."""
        ...


@runtime_checkable
class LinearStepTime(StepTime, Protocol):
    """A step time that knows where pure decoding costs a straight line over the context."""

    def decode_line(self, decodes: int, context_tokens: int) -> tuple[float, float] | None:
        """Return (base, slope): `seconds(decodes, c)` is `base + c * slope`, to the last bit, from `context_tokens` on.

        `None` where it is not.
        """
        ...
