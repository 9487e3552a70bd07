"""Product codes with a table for each slice of a row, as compact tables of word vectors have them.

Jegou et al. 2011, "Product Quantization for Nearest Neighbor Search", section 2.2: a vector is cut
into equal slices, and each becomes the nearest of a few that k-means finds for that slice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from autocompress.quantizers.codes import Codes, Matrix, Quantizer
from autocompress.quantizers.product import fitted, nearest


@dataclass(frozen=True)
class Codebooks(Quantizer):
    """2^bits entries for each slice.

    Args:
        books: slices of a row.
    """

    books: int = field(default=1, kw_only=True)
    name: ClassVar[str] = "codebooks"

    def codes(self, weight: Matrix) -> Codes:
        tables, indices = [], []
        for part in self._slices(weight):
            table = np.unique(fitted(part, 2**self.bits), axis=0)
            tables.append(table)
            indices.append(nearest(part, table).astype(np.uint8))
        return self._of(weight, tables, indices)

    def found(self, decoded: Matrix) -> Codes:
        tables, indices = [], []
        for part in self._slices(decoded):
            bits = np.ascontiguousarray(part).view(np.int32)
            table, index = np.unique(bits, axis=0, return_inverse=True)
            if len(table) > 2**self.bits:
                return super().found(decoded)
            tables.append(table.view(np.float32))
            indices.append(index.ravel().astype(np.uint8))
        return self._of(decoded, tables, indices)

    def groups(self, weight: Matrix) -> Matrix:
        """Slices, one a row; raises as ``codes``."""
        if weight.shape[1] % self.books:
            raise ValueError(
                f"{self.books} codebooks do not divide rows of {weight.shape[1]} weights"
            )
        return weight.reshape(-1, weight.shape[1] // self.books)

    def _slices(self, weight: Matrix) -> list[Matrix]:
        slices = self.groups(weight).reshape(len(weight), self.books, -1)
        return [np.ascontiguousarray(slices[:, book]) for book in range(self.books)]

    def _of(self, weight: Matrix, tables: list[Matrix], indices: list[NDArray[np.uint8]]) -> Codes:
        """Tables of equally many entries, where a slice takes fewer its last again."""
        most = max(map(len, tables))
        table = np.concatenate([np.pad(t, ((0, most - len(t)), (0, 0)), "edge") for t in tables])
        shape = weight.shape[0], weight.shape[1]
        return Codes(shape, self.bits, np.stack(indices, 1).ravel(), table, books=self.books)
