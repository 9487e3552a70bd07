"""Product codes: neighbouring weights of a row share one index into a table of blocks.

Stock et al. 2020, "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", as Fan
et al. 2021, "Training with Quantization Noise for Extreme Model Compression", section 3.2 use it;
k-means minimizes the squared errors of weights. Block size, sample, iterations and start are ours.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from autocompress.quantizers.codes import Codes, Matrix, Quantizer

BLOCK = 4
"""Weights of a block."""
_SAMPLE, _ITERATIONS, _AT_ONCE = 2**15, 12, 2**14


class Product(Quantizer):
    """2^bits blocks that fit the matrix."""

    name: ClassVar[str] = "product"
    block: ClassVar[int] = BLOCK

    def codes(self, weight: Matrix) -> Codes:
        blocks = self.groups(weight)
        table = np.unique(fitted(blocks, 2**self.bits), axis=0)
        return self._of(weight, nearest(blocks, table), table)

    def found(self, decoded: Matrix) -> Codes:
        blocks = self.groups(decoded).view(np.int32)
        table, indices = np.unique(blocks, axis=0, return_inverse=True)
        if len(table) > 2**self.bits:
            return super().found(decoded)
        return self._of(decoded, indices.ravel(), table.view(np.float32))

    def groups(self, weight: Matrix) -> Matrix:
        """Blocks; the last of a row may go on in the next one."""
        if weight.size % BLOCK:
            raise ValueError(f"blocks of {BLOCK} do not divide {weight.size} weights")
        return weight.reshape(-1, BLOCK)

    def _of(self, weight: Matrix, indices: NDArray[np.integer], table: Matrix) -> Codes:
        shape = weight.shape[0], weight.shape[1]
        return Codes(shape, self.bits, indices.astype(np.uint8), table)


def fitted(blocks: Matrix, count: int) -> Matrix:
    """Means of clusters, which begin at blocks spread evenly over the order of their sums."""
    step = -(-len(blocks) // _SAMPLE)
    sample = blocks[::step]
    order = np.argsort(sample.sum(axis=1), kind="stable")
    starts = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    means: Matrix = sample[order[starts]]
    for _ in range(_ITERATIONS):
        index = nearest(sample, means)
        populations = np.bincount(index, minlength=len(means))
        sums = [np.bincount(index, column, len(means)) for column in sample.T]
        moved = np.stack(sums, axis=1) / np.maximum(populations, 1)[:, None]
        means = np.where(populations[:, None] > 0, moved, means).astype(np.float32)
    return means


def nearest(blocks: Matrix, table: Matrix) -> NDArray[np.integer]:
    """Index of the entry nearest to each block."""
    squares = (table**2).sum(axis=1) / 2
    parts = (blocks[i : i + _AT_ONCE] for i in range(0, len(blocks), _AT_ONCE))
    return np.concatenate([(squares - part @ table.T).argmin(axis=1) for part in parts])
