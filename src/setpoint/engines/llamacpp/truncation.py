"""Which tokens top-k, top-p and min-p leave, found without sorting the vocabulary.

Top-k needs only what reaches a bound that is cheap to find (`likeliest`), top-p only the order within one of many bins
(`_nucleus`). Both are exact.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from setpoint.engines.api import Sampling

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

_GROUP: Final = 64
_FLOORS: Final = (1e-3, 1e-5, 1e-7)
_BIN_SHIFT: Final = 18


def survivors(weights: Floats, sampling: Sampling) -> Ids:
    """Return the ids that min-p, top-k and top-p leave, applied in this order.

    The largest weight is 1, so a weight is at once the ratio that min-p speaks of. Top-p measures the mass of what
    top-k left.
    """
    if sampling.top_k:
        ids = likeliest(weights, min(sampling.top_k, len(weights)))
        ids = ids[weights[ids] >= sampling.min_p]
        if sampling.top_p < 1.0:
            running = np.cumsum(weights[ids], dtype=np.float64)
            ids = ids[: int(np.searchsorted(running, sampling.top_p * running[-1])) + 1]
        return ids
    if sampling.top_p >= 1.0:
        return np.flatnonzero(weights >= sampling.min_p)
    total = weights.sum() if sampling.min_p <= 0.0 else weights[weights >= sampling.min_p].sum()
    mass = sampling.top_p * float(total)
    for floor in _FLOORS:
        likely = np.flatnonzero(weights >= max(floor, sampling.min_p))
        values = weights[likely]
        if float(values.sum(dtype=np.float64)) > mass:
            return likely[_nucleus(values, mass)]
    ids = np.flatnonzero(weights >= sampling.min_p)
    return ids[_nucleus(weights[ids], mass)]


def _nucleus(values: Floats, mass: float) -> Ids:
    """Return the indices of the fewest `values` that come to `mass`.

    The upper bits of a positive float grow with it, so they sort values into bins, 32 to an octave. Bisection finds the
    bin in which the mass is reached, and only that bin is sorted.
    """
    bins = values.view(np.int32) >> _BIN_SHIFT
    low, high = 0, int(bins.max()) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if float(values @ (bins >= middle).astype(np.float32)) >= mass:
            low = middle
        else:
            high = middle
    above = np.flatnonzero(bins > low)
    inside = np.flatnonzero(bins == low)
    inside = inside[np.argsort(-values[inside], kind="stable")]
    missing = mass - float(values[above].sum(dtype=np.float64))
    count = int(np.searchsorted(np.cumsum(values[inside], dtype=np.float64), missing)) + 1
    return np.concatenate([above, inside[:count]])


def likeliest(row: Floats, count: int) -> Ids:
    """Return the ids of the `count` largest logits, largest first.

    The largest of disjoint groups are distinct tokens, so the `count`-th largest of these maxima bounds the answer from
    below, and only what reaches it is sorted.
    """
    if count == 0:
        return np.empty(0, dtype=np.intp)
    groups = len(row) // _GROUP
    if count <= groups:
        maxima = row[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        ids = np.flatnonzero(row >= np.partition(maxima, -count)[-count])
    else:
        ids = np.arange(len(row))
    return ids[np.argsort(-row[ids], kind="stable")[:count]]
