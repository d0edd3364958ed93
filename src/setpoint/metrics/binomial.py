"""The few special functions that the intervals need, for real-valued sample sizes (an effective size is no integer).

The regularized incomplete beta function by its continued fraction (Lentz's method; Press et al., Numerical Recipes,
section 6.4) gives the binomial and Student's t distributions; their quantiles are found by bisection.
"""

import math
from collections.abc import Callable
from functools import lru_cache

_TERMS_MAX = 500
_TINY = 1e-300
_PRECISION = 1e-13


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return I_x(a, b) for positive `a`, `b` and `x` in 0..1."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_front)
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _off_zero(1.0 - (a + b) * x / (a + 1.0))
    h = d
    for m in range(1, _TERMS_MAX + max(0, int(math.sqrt(max(a, b))))):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / _off_zero(1.0 + term * d)
            c = _off_zero(1.0 + term / c)
            h *= d * c
        if abs(d * c - 1.0) < _PRECISION:
            break
    return h


def _off_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def binomial_cdf(k: float, n: float, p: float) -> float:
    """Return P(Bin(n, p) <= k)."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    return incomplete_beta(n - k, k + 1.0, 1.0 - p)


def binomial_tail(k: float, n: float, p: float) -> float:
    """Return P(Bin(n, p) >= k)."""
    if k <= 0:
        return 1.0
    if k > n:
        return 0.0
    return incomplete_beta(k, n - k + 1.0, p)


@lru_cache(maxsize=1024)
def student_t_quantile(p: float, freedom: float) -> float:
    """Return the `p` quantile of Student's t with `freedom` degrees of freedom."""
    if p < 0.5:  # noqa: PLR2004 - the median of a symmetric distribution
        return -student_t_quantile(1.0 - p, freedom)
    low, high = 0.0, 1.0
    while _student_t_cdf(high, freedom) < p:
        low, high = high, high * 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _student_t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2.0


def _student_t_cdf(t: float, freedom: float) -> float:
    return 1.0 - 0.5 * incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))


def share_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share of `successes` among `n` independent trials (both real)."""
    if n <= 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if successes <= 0 else _solve(lambda p: binomial_tail(successes, n, p) < tail)
    high = 1.0 if successes >= n else _solve(lambda p: binomial_cdf(successes, n, p) > tail)
    return low, high


def _solve(is_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2.0
