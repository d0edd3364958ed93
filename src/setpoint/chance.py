"""What a generator of random numbers offers, for code that is handed one and makes none.

The pure layers draw from what a caller passes in; `setpoint.seeds.stream` makes it.
"""

from typing import Protocol


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
