"""What a generator of random numbers offers, for code that is handed one and makes none.

The pure layers draw from what a caller passes in; `setpoint.seeds.stream` makes it.
"""

from collections.abc import Iterable, MutableSequence
from typing import Any, Protocol, TypeVar

_T = TypeVar("_T")


class Chance(Protocol):
    """A seeded generator of random numbers; a `random.Random` is one."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...

    def expovariate(self, lambd: float, /) -> float:
        """Draw from the exponential distribution of rate `lambd`."""
        ...

    def gammavariate(self, alpha: float, beta: float, /) -> float:
        """Draw from the gamma distribution of shape `alpha` and scale `beta`."""
        ...

    def lognormvariate(self, mu: float, sigma: float, /) -> float:
        """Draw a number whose logarithm is normal."""
        ...

    def randrange(self, stop: int, /) -> int:
        """Draw an integer in [0, stop)."""
        ...

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        """Put the values into a random order, in place."""
        ...


def shuffled(values: Iterable[_T], chance: Chance) -> list[_T]:
    """Return the values in a random order."""
    found = list(values)
    chance.shuffle(found)
    return found
