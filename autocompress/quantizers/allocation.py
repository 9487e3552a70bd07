"""Bits for each of several matrices: a knapsack over bytes, solved by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BITS = (2, 3, 4, 8)
"""What a matrix may get; those of Shen et al. 2020 (Q-BERT), section 3.1, and 3 bits below 4."""
_STEPS = 2**17
"""Into which a budget is divided at most."""
_FLOOR = 1e-6
"""A sensitivity at least, as a share of the largest: whatever is left of a budget is spent."""


def allocated(
    sensitivities: Sequence[float], sizes: Sequence[int], mean_bits: float, block: int = 1
) -> list[int]:
    """The bits of each matrix that do least harm within a budget.

    Harm is sensitivity times weights times 4^(-bits / block), as squared errors of rounding fall.
    A matrix of greater sensitivity never gets fewer bits.

    Args:
        sensitivities: of a weight of each matrix, at least 0.
        sizes: weights of each matrix.
        mean_bits: over all weights, at most; 2 or more.
        block: weights that one code stands for.
    """
    floor = _FLOOR * max(sensitivities) or 1.0
    order = sorted(range(len(sizes)), key=lambda i: -sensitivities[i])
    budget = int((mean_bits - BITS[0]) * sum(sizes))
    unit = max(math.gcd(*sizes), math.ceil(budget / _STEPS))
    room = budget // unit
    least = np.zeros((len(BITS), room + 1))  # harm by level of the last matrix and room taken
    before = []
    for i in order:
        best = np.flip(np.minimum.accumulate(np.flip(least, 0), 0), 0)
        before.append(_first_levels(least, best))
        least = np.full_like(least, np.inf)
        for level, bits in enumerate(BITS):
            taken = math.ceil(sizes[i] * (bits - BITS[0]) / unit)
            harm = max(sensitivities[i], floor) * sizes[i] * 4.0 ** (-bits / block)
            if taken <= room:
                least[level, taken:] = best[level, : room + 1 - taken] + harm
    given = [0] * len(sizes)
    level = int(least[:, room].argmin())
    for i, came_from in zip(reversed(order), reversed(before), strict=True):
        given[i] = BITS[level]
        room -= math.ceil(sizes[i] * (given[i] - BITS[0]) / unit)
        level = int(came_from[level, room])
    return given


def _first_levels(least: np.ndarray, best: np.ndarray) -> np.ndarray:
    """For each level which one, the same or a higher, has the least harm."""
    levels = np.full(least.shape, len(least) - 1, np.int8)
    for level in reversed(range(len(least) - 1)):
        levels[level] = np.where(least[level] == best[level], level, levels[level + 1])
    return levels
