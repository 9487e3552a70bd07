"""How much of what came of the candidates of a search goes with one of their settings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

_ENOUGH = 8
"""Candidates, for a share to be told."""
_GROUPS = 3
"""Of alike many candidates, into which those of a number with many values are put."""


def influence(values: Sequence[Hashable], outcomes: Sequence[float]) -> tuple[float, float] | None:
    """The share of the variance of the outcomes' ranks that the values explain, and its error.

    The share is corrected for what chance explains (Kelley 1935, "An unbiased correlation ratio
    measure"), and ranks keep a candidate that failed badly from deciding it. Each setting is looked
    at alone: what only two of them do together is in no share, and settings that were chosen
    together share one. The standard error is the jackknife's (Efron 1979).

    Args:
        values: of the setting, one of each candidate; numbers with more than three values are put
            into three groups.
        outcomes: of these candidates, as many.

    Returns:
        The share from 0 to 1 and its standard error; None of fewer than eight candidates, of a
        setting with one value, and where groups have fewer than two candidates on average.
    """
    n, groups = len(outcomes), _grouped(values)
    count = int(groups.max(initial=0)) + 1
    if n < _ENOUGH or count < 2 or n < 2 * count:
        return None
    known = np.asarray(outcomes, np.float64)
    left_out = [_share(np.delete(groups, i), np.delete(known, i)) for i in range(n)]
    stderr = np.sqrt((n - 1) * np.var(left_out))
    return max(0.0, _share(groups, known)), float(stderr)


def _grouped(values: Sequence[Hashable]) -> NDArray[np.intp]:
    """The number of each value's group."""
    numbers = all(isinstance(value, int | float) for value in values)
    if not numbers or len(set(values)) <= _GROUPS:
        seen = list(dict.fromkeys(values))
        return np.array([seen.index(value) for value in values], np.intp)
    ranks = _ranks(np.array(values, np.float64))
    return np.unique(np.ceil(ranks * _GROUPS / len(values)), return_inverse=True)[1]


def _share(groups: NDArray[np.intp], outcomes: NDArray[np.float64]) -> float:
    ranks, sizes = _ranks(outcomes), np.bincount(groups)
    n, count = len(ranks), np.count_nonzero(sizes)
    total = np.var(ranks) * n
    if total == 0 or n == count:
        return 0.0
    means = np.bincount(groups, ranks) / np.maximum(sizes, 1)
    within = ((ranks - means[groups]) ** 2).sum()
    return float(1 - within / (n - count) * (n - 1) / total)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1; of equal values their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks
