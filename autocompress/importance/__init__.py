"""How much heads and FFN neurons matter, and which of them a share keeps.

A criterion is one file here, one line in ``CRITERIA`` and one row in its conformance test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CRITERIA: tuple[str, ...] = ("fisher", "magnitude")
"""The criteria; each is a module of this package with a function ``measure``."""

Allocation = Literal["global", "uniform"]


@dataclass(frozen=True)
class Importance:
    """Scores of an uncut model under one criterion; larger matters more.

    Args:
        heads: per layer, float64 of shape (heads,).
        ffn: per layer, float64 of shape (ffn,).
    """

    heads: tuple[NDArray[np.float64], ...]
    ffn: tuple[NDArray[np.float64], ...]


def allocate(scores: Sequence[NDArray[np.float64]], share: float, allocation: str) -> list[tuple[int, ...]]:
    """Positions to keep in each layer.

    Args:
        scores: per layer, importance of what is still there.
        share: of all positions, from 0 to 1.
        allocation: ``uniform`` keeps the same share in every layer; ``global`` keeps the most important ones wherever
            they lie, so a layer may end with none.

    Returns:
        Ascending positions per layer; ties go to the earlier layer and position.
    """
    if allocation == "uniform":
        return [_top(layer, round(share * len(layer))) for layer in scores]
    flat = np.concatenate(list(scores))
    kept = set(_top(flat, round(share * len(flat))))
    ends = np.cumsum([len(layer) for layer in scores])
    return [
        tuple(i for i in range(len(layer)) if end - len(layer) + i in kept)
        for layer, end in zip(scores, ends.tolist(), strict=True)
    ]


def _top(scores: NDArray[np.float64], count: int) -> tuple[int, ...]:
    best = np.argsort(-scores, kind="stable")[:count]
    return tuple(sorted(best.tolist()))
