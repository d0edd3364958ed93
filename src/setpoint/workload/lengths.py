"""How long prompts and answers are: distributions of token counts, each drawn as a whole number of at least 1.

Written on a command line as `256`, `uniform:100-500`, `lognormal:mean=200,cv=0.8,max=2048`.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Protocol

import msgspec

from setpoint.chance import Chance
from setpoint.errors import WorkloadError

TOKENS_MAX = 10_000_000


class Lengths(Protocol):
    """A distribution of token counts."""

    def draw(self, chance: Chance) -> int:
        """Return a length in tokens."""
        ...

    @property
    def mean(self) -> float:
        """The mean length, before any clipping."""
        ...


class Fixed(msgspec.Struct, frozen=True, tag=True):
    """Always `tokens`."""

    tokens: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_range(self.tokens, self.tokens)

    def draw(self, chance: Chance) -> int:  # noqa: ARG002 - the interface of all distributions
        """Return the length; nothing is drawn."""
        return self.tokens

    @property
    def mean(self) -> float:
        """The length."""
        return float(self.tokens)


class Uniform(msgspec.Struct, frozen=True, tag=True):
    """Every whole number from `low` to `high`, both included, equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_range(self.low, self.high)

    def draw(self, chance: Chance) -> int:
        """Return a length in tokens."""
        return self.low + chance.randrange(self.high - self.low + 1)

    @property
    def mean(self) -> float:
        """The mean length."""
        return (self.low + self.high) / 2.0


class LogNormal(msgspec.Struct, frozen=True, tag=True):
    """Log-normal with the given mean and coefficient of variation, clipped to `low`..`high` (which shifts the mean)."""

    mean: float
    cv: float = 1.0
    low: int = 1
    high: int = TOKENS_MAX

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_range(self.low, self.high)
        if not (self.mean > 0.0 and 0.0 <= self.cv < math.inf):
            raise WorkloadError(
                f"a log-normal length needs a positive mean and cv, not {self.mean:g} and {self.cv:g}", hint=HINT
            )

    def draw(self, chance: Chance) -> int:
        """Return a length in tokens."""
        variance = math.log1p(self.cv**2)
        value = chance.lognormvariate(math.log(self.mean) - variance / 2.0, math.sqrt(variance))
        return max(self.low, min(self.high, round(value)))


class Empirical(msgspec.Struct, frozen=True, tag=True):
    """Lengths that were seen, each drawn in proportion to its count; `cumulative` holds the running sum of counts."""

    lengths: tuple[int, ...]
    cumulative: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        rises = all(earlier < later for earlier, later in pairwise((0, *self.cumulative)))
        if not self.lengths or len(self.lengths) != len(self.cumulative) or not rises:
            raise WorkloadError("an empirical distribution needs lengths, each with a count of 1 or more", hint=HINT)
        _check_range(min(self.lengths), max(self.lengths))

    @classmethod
    def of(cls, seen: Iterable[int]) -> "Empirical":
        """Return the distribution of the lengths `seen`."""
        counts = sorted(Counter(seen).items())
        return cls(lengths=tuple(tokens for tokens, _ in counts), cumulative=tuple(accumulate(n for _, n in counts)))

    def draw(self, chance: Chance) -> int:
        """Return a length in tokens."""
        return self.lengths[bisect_right(self.cumulative, chance.randrange(self.cumulative[-1]))]

    @property
    def mean(self) -> float:
        """The mean length."""
        counts = (later - earlier for earlier, later in pairwise((0, *self.cumulative)))
        return sum(a * b for a, b in zip(self.lengths, counts, strict=True)) / self.cumulative[-1]


AnyLengths = Fixed | Uniform | LogNormal | Empirical

HINT = "write 256, uniform:100-500 or lognormal:mean=200,cv=0.8,max=2048"


def parse_lengths(text: str) -> AnyLengths:
    """Return the distribution that `text` names, in the grammar of the module docstring.

    Raises WorkloadError when it names none.
    """
    kind, _, rest = text.strip().partition(":")
    try:
        if not rest:
            return Fixed(int(kind))
        if kind == "fixed":
            return Fixed(int(rest))
        if kind == "uniform":
            low, _, high = rest.partition("-")
            return Uniform(int(low), int(high))
        if kind == "lognormal":
            return _parse_lognormal(rest)
    except ValueError:
        raise WorkloadError(f"cannot read the length {text!r}", hint=HINT) from None
    raise WorkloadError(f"unknown kind of length {kind!r} in {text!r}", hint=HINT)


def _parse_lognormal(rest: str) -> LogNormal:
    given: dict[str, float] = {}
    for part in rest.split(","):
        name, _, value = part.partition("=")
        if name.strip() not in {"mean", "cv", "min", "max"}:
            raise WorkloadError(f"unknown setting {name.strip()!r} of a log-normal length", hint=HINT)
        given[name.strip()] = float(value)
    if "mean" not in given:
        raise WorkloadError("a log-normal length needs its mean", hint=HINT)
    low, high = int(given.get("min", 1)), int(given.get("max", TOKENS_MAX))
    return LogNormal(given["mean"], given.get("cv", 1.0), low, high)


def _check_range(low: int, high: int) -> None:
    if not 1 <= low <= high <= TOKENS_MAX:
        raise WorkloadError(
            f"a length must lie in 1..{TOKENS_MAX:,} tokens with its lower end first, not {low}..{high}", hint=HINT
        )
