"""A matrix as codes: indices into a table of the values that its weights may take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
GROUPS = ("tensor", "row", 64, 128)
"""Weights that share a scale."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Weights are counted row by row.

    Args:
        shape: of the matrix.
        bits: of an index.
        indices: uint8, flat; each stands for as many neighbours as the table is wide.
        table: float32 of shape (entries, width).
        scales: float32, flat: of each run of equally many weights one that its values are
            multiplied by; of no run where there are none.
        positions: int32, ascending: the outliers', whose values are not from the table.
        outliers: float32, in that order.
        books: tables below each other in the one, equally many entries each; the first index of a
            row is of the first one, and so on.
    """

    shape: tuple[int, int]
    bits: int
    indices: NDArray[np.uint8]
    table: Matrix
    scales: Matrix = field(default_factory=lambda: np.zeros(0, np.float32))
    positions: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    outliers: Matrix = field(default_factory=lambda: np.zeros(0, np.float32))
    books: int = 1

    def decode(self) -> Matrix:
        """The matrix, to the last bit as runtimes decode it."""
        first = np.arange(self.books) * (len(self.table) // self.books)
        values = self.table[self.indices.reshape(-1, self.books) + first].ravel()
        if len(self.scales):
            values = (values.reshape(len(self.scales), -1) * self.scales[:, None]).ravel()
        values[self.positions] = self.outliers
        matrix: Matrix = values.reshape(self.shape)
        return matrix

    def transposed(self) -> Codes | None:
        """Of the matrix transposed; None where neighbours share an index or a scale."""
        rows, columns = self.shape
        if self.table.shape[1] > 1 or len(self.scales):
            return None
        positions = self.positions % columns * rows + self.positions // columns
        order = np.argsort(positions)
        return replace(
            self,
            shape=(columns, rows),
            indices=self.indices.reshape(self.shape).T.ravel(),
            positions=positions[order],
            outliers=self.outliers[order],
        )

    @classmethod
    def of_values(cls, matrix: Matrix, bits: int) -> Codes:
        """The codes of any matrix: its commonest values are the table, all others outliers.

        Args:
            matrix: float32 of shape (rows, columns).
        """
        flat = np.ascontiguousarray(matrix).view(np.uint32).ravel()
        distinct, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
        kept = np.sort(np.argsort(-counts, kind="stable")[: 2**bits])
        of_value = np.full(len(distinct), -1, np.int32)
        of_value[kept] = np.arange(len(kept))
        indices = of_value[inverse.ravel()]
        positions = np.flatnonzero(indices < 0).astype(np.int32)
        return cls(
            (matrix.shape[0], matrix.shape[1]),
            bits,
            np.maximum(indices, 0).astype(np.uint8),
            distinct[kept].view(np.float32)[:, None],
            positions=positions,
            outliers=matrix.ravel()[positions],
        )


@dataclass(frozen=True)
class Quantizer(ABC):
    """Brings the weights of a matrix to few values.

    Args:
        bits: of a code.
        group: weights that share a scale, one of ``GROUPS``; read where ``grouped``.
        cut: log-density below which a weight is an outlier; read where ``splits``.
    """

    bits: int
    group: str | int = "tensor"
    cut: float = -4.0

    name: ClassVar[str]
    block: ClassVar[int] = 1
    """Weights that one code stands for."""
    grouped: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    @abstractmethod
    def codes(self, weight: Matrix) -> Codes:
        """Of a matrix.

        Args:
            weight: float32 of shape (outputs, inputs), finite.

        Raises:
            ValueError: its rows cannot be divided as they should be.
        """
        ...

    def found(self, decoded: Matrix) -> Codes:
        """Codes of what ``codes`` once decoded to, in no more bytes; of any other matrix some that
        decode to it as well, in as many bytes as it takes."""
        return Codes.of_values(decoded, self.bits)

    def groups(self, weight: Matrix) -> Matrix:
        """Weights that share a scale, or a code, side by side; raises as ``codes``."""
        if self.group == "tensor":
            return weight.reshape(1, -1)
        size = weight.shape[1] if self.group == "row" else int(self.group)
        if weight.shape[1] % size:
            raise ValueError(f"groups of {size} do not divide rows of {weight.shape[1]} weights")
        return weight.reshape(-1, size)
