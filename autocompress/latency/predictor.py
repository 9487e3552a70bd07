"""Latency foretold from a table: the sum of terms of every layer, fitted to measurements of this
model's own shapes.

A layer costs an amount per head, one per FFN neuron, a step for having any of either, and a
constant for the rest of it, all by number format; what is in no layer costs a constant by format.
Weights that do not fit the caches cost extra: two sizes are fitted beyond which each further byte
has a price. Nothing costs less than zero. Everything is relative to the latency of the uncut fp32
model, which is timed in turn with each measurement, so a table holds while the machine's speed
drifts. Measured trials join the table as they come and count twice, so a table that is off is set
right.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate
from autocompress.structure import Structure
from autocompress.techniques.quantization import BYTES, layer_schemes

MOST_MEASUREMENTS = 50
_TRIAL_WEIGHT = 2.0
_SHARES = (
    (1, 1, 1),
    (0, 1, 1),
    (1, 0.25, 1),
    (1, 1, 0.125),
    (0.5, 0, 0.5),
    (0.5, 0.5, 0),
    (0.34, 0.25, 0.125),
    (0.5, 0.5, 0.5),
    (0, 0.5, 0.5),
    (0.67, 0.25, 0.25),
)
"""Of the layers, heads and FFN neurons of each probe, in order of what they tell; of the layers at
least one."""
_SMALL_CACHES_MB = (0.25, 0.5, 1.0, 2.0, 4.0)
_LARGE_CACHES_MB = (8.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(frozen=True)
class Shape:
    """What a latency depends on.

    Args:
        layers: (heads, FFN neurons, number format) of each.
        rest: number format of everything that is in no layer.
    """

    layers: tuple[tuple[int, int, str], ...]
    rest: str


def shape_of(structure: Structure, candidate: Candidate) -> Shape:
    """The shape that a candidate gives a structure; weights in blocks count as a format by the size
    of the block.

    Raises:
        CandidateFailed: the candidate's number formats do not fit the structure.
    """
    block = candidate.get("quantization.block_size", 0)

    def format_of(scheme: str) -> str:
        return f"{scheme}/{block}" if scheme.endswith("-weights") else scheme

    schemes = map(format_of, layer_schemes(candidate, len(structure.layers)))
    layers = zip(structure.head_counts, structure.ffn_widths, schemes, strict=True)
    return Shape(tuple(layers), format_of(candidate.text("quantization.scheme", "fp32")))


def probes(layers: int, heads: int, ffn: int, formats: Sequence[str]) -> list[Shape]:
    """Shapes to measure, at most 50: for each format the whole model, a single layer, few heads, a
    narrow FFN, and mixtures."""
    each = min(len(_SHARES), MOST_MEASUREMENTS // len(formats))
    return list(
        dict.fromkeys(
            Shape(((round(h * heads), round(f * ffn), name),) * max(1, round(depth * layers)), name)
            for name in formats
            for depth, h, f in _SHARES[:each]
        )
    )


@dataclass
class LatencyTable:
    """Measured shapes of one model on one device under one workload.

    Args:
        rows: shapes, and their latency relative to the uncut fp32 model.
        weights: how many a head has, and an FFN neuron.
        trials: those of the search, as ``rows``.
    """

    rows: list[tuple[Shape, float]]
    weights: tuple[float, float]
    trials: list[tuple[Shape, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._fit()

    def add(self, shape: Shape, relative: float) -> None:
        """A measured trial; the table is fitted anew."""
        self.trials.append((shape, relative))
        self._fit()

    def predict(self, shape: Shape) -> float:
        """Latency relative to the uncut fp32 model.

        Raises:
            KeyError: a number format that the table has not seen.
        """
        return float(self._terms(shape, self.caches) @ self.costs)

    def knows(self, shape: Shape) -> bool:
        """Whether all of a shape's number formats were measured."""
        return {shape.rest, *(name for _, _, name in shape.layers)} <= self.columns.keys()

    def errors(self) -> NDArray[np.float64]:
        """Relative error of each row and trial foretold from all the others, signed; infinite for
        one that alone tells a cost.

        By the leverages of the linear fit, the sizes of the caches and the costs set to zero taken
        as they are (Hastie et al. 2009, The Elements of Statistical Learning, section 7.10.3).
        """
        return self._errors

    def _fit(self) -> None:
        seen = [*self.rows, *self.trials]
        formats = sorted(
            {shape.rest for shape, _ in seen}
            | {layer[2] for shape, _ in seen for layer in shape.layers}
        )
        self.columns = {name: i for i, name in enumerate(formats)}
        counts = np.array([1.0] * len(self.rows) + [_TRIAL_WEIGHT] * len(self.trials))
        shares = counts / [relative for _, relative in seen]
        fits = []
        for caches in itertools.product(_SMALL_CACHES_MB, _LARGE_CACHES_MB):
            matrix = np.array([self._terms(shape, caches) for shape, _ in seen]) * shares[:, None]
            costs = _non_negative(matrix, counts)
            fits.append((float(np.square(matrix @ costs - counts).sum()), caches, costs, matrix))
        _, self.caches, self.costs, matrix = min(fits, key=lambda fit: fit[0])
        own = 1 - _leverages(matrix[:, self.costs > 0])
        with np.errstate(divide="ignore", invalid="ignore"):
            self._errors = np.where(own > 1e-6, (matrix @ self.costs / counts - 1) / own, np.inf)

    def _terms(self, shape: Shape, caches: tuple[float, float]) -> NDArray[np.float64]:
        terms = np.zeros((len(self.columns), 6))
        terms[self.columns[shape.rest], 0] = 1
        megabytes = 0.0
        for heads, ffn, name in shape.layers:
            terms[self.columns[name]] += (0, 1, heads > 0, heads, ffn > 0, ffn)
            megabytes += (
                BYTES[name.partition("/")[0]]
                * (heads * self.weights[0] + ffn * self.weights[1])
                / 1e6
            )
        return np.append(terms.ravel(), [max(0.0, megabytes - size) for size in caches])


def _leverages(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each row draws its own fitted value, 0 to 1."""
    left, sizes, _ = np.linalg.svd(
        matrix / np.maximum(np.abs(matrix).max(axis=0), 1e-12), full_matrices=False
    )
    leverages: NDArray[np.float64] = np.square(left[:, sizes > 1e-6 * sizes[0]]).sum(axis=1)
    return leverages


def _non_negative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares, the most negative cost set to zero until none is."""
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
    costs, active = np.zeros(matrix.shape[1]), np.abs(matrix).max(axis=0) > 0
    while active.any():
        found = np.linalg.lstsq(matrix[:, active] / scale[active], target, rcond=1e-6)[0]
        if found.min() >= 0:
            costs[active] = found / scale[active]
            break
        active[np.flatnonzero(active)[found.argmin()]] = False
    return costs
