"""GOBO: a dictionary of centroids for nearly all weights, the few outliers as they are.

Zadeh et al. 2020, "GOBO: Quantizing Attention-Based NLP Models for Low Latency and Energy Efficient
Inference", section 4: an outlier is a weight whose log-density under the Gaussian fitted to its
matrix is below the cut, -4. Clusters begin with equal populations; each iteration assigns
weights to the nearest centroid and moves centroids to the mean, as long as that lowers the sum of
all |errors|.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autocompress.quantizers.codes import Codes, Matrix, Quantizer

_Values = NDArray[np.float64]


class Centroids(Quantizer):
    """2^bits values that fit the matrix, and its outliers."""

    name: ClassVar[str] = "centroids"
    splits: ClassVar[bool] = True

    def codes(self, weight: Matrix) -> Codes:
        flat = weight.ravel()
        outside = self.outside(flat)
        inner = flat[~outside]
        table = clustered(np.sort(inner.astype(np.float64)), 2**self.bits).astype(np.float32)
        table = np.unique(table)
        indices = np.zeros(len(flat), np.uint8)
        indices[~outside] = np.searchsorted(halfway(table), inner)
        positions = np.flatnonzero(outside).astype(np.int32)
        return Codes(
            (weight.shape[0], weight.shape[1]),
            self.bits,
            indices,
            table[:, None],
            positions=positions,
            outliers=flat[positions],
        )

    def outside(self, flat: Matrix) -> NDArray[np.bool_]:
        """Which weights are outliers; never all of them."""
        values = flat.astype(np.float64)
        deviation = values.std()
        if not deviation:
            return np.zeros(len(flat), bool)
        distance = (values - values.mean()) / deviation
        log_density = -(distance**2) / 2 - np.log(deviation * np.sqrt(2 * np.pi))
        outside: NDArray[np.bool_] = log_density < self.cut
        return outside if not outside.all() else np.zeros(len(flat), bool)


def clustered(values: _Values, count: int) -> _Values:
    """Centroids.

    Args:
        values: ascending.
        count: of centroids.
    """
    sums = np.concatenate([[0], np.cumsum(values)])
    edges = np.linspace(0, len(values), min(count, len(values)) + 1).round().astype(np.intp)
    centroids = np.diff(sums[edges]) / np.diff(edges)
    error = _summed_error(values, sums, centroids)
    while True:
        moved = _moved(values, sums, centroids)
        after = _summed_error(values, sums, moved)
        if not after < error:
            return centroids
        centroids, error = moved, after


def _summed_error(values: _Values, sums: _Values, centroids: _Values) -> float:
    """Of all distances to the nearest centroid."""
    edges = _edges(values, centroids)
    middle = np.searchsorted(values, centroids)
    below = centroids * (middle - edges[:-1]) - (sums[middle] - sums[edges[:-1]])
    above = sums[edges[1:]] - sums[middle] - centroids * (edges[1:] - middle)
    return float((below + above).sum())


def _moved(values: _Values, sums: _Values, centroids: _Values) -> _Values:
    """To the mean of those nearest; where there are none it stays."""
    edges = _edges(values, centroids)
    populations = np.diff(edges)
    means = np.diff(sums[edges]) / np.maximum(populations, 1)
    return np.sort(np.where(populations > 0, means, centroids))


def _edges(values: _Values, centroids: _Values) -> NDArray[np.intp]:
    """Where the values nearest to each centroid begin, and the end of the last."""
    inner = np.searchsorted(values, halfway(centroids), side="right")
    return np.concatenate([[0], inner, [len(values)]])


def halfway(centroids: NDArray[Any]) -> NDArray[Any]:
    """Between neighbours."""
    middles: NDArray[Any] = (centroids[1:] + centroids[:-1]) / 2
    return middles
