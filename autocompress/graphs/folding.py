"""Operators on constants, which onnxruntime runs once, when it loads a file: packed bits become a
tensor.

Of the operators that could unpack bits the two shifts are fast, and older than the operator sets
that bring a bitwise and, or types of 4 bits. Each copy of a whole matrix takes longer than all
else, so several indices are looked up at once, in a table of all that they may be together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from autocompress.quantizers.codes import Codes

STORED = "/s/"
"""Begins the names of what is added; short, for it is there many times."""
_SLICE_BITS = (16, 8, 4, 2, 1)
"""Widths that fill bytes; an integer of 7 bits is kept as 4, 2 and 1."""
_WORD_BITS = 16
"""Of indices that are looked up at once, at most: loading takes as long as there are lookups, and
copies of a whole matrix."""


class Folding:
    """What is added to a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[object, ...], onnx.TensorProto] = {}
        self.words: dict[tuple[int, int, int], str] = {}

    def values(
        self, codes: Codes, each: Callable[[str], str] = lambda name: name
    ) -> tuple[str, tuple[int, ...]]:
        """The matrix that codes decode to; its name, as of all that is made here, and its shape:
        ``by_rows`` its columns lie along one axis or more, else it is in pieces.

        Args:
            each: adds what is done to each of its numbers.
        """
        rows, _ = codes.shape
        lead: tuple[int, ...] = (rows,) if by_rows(codes) else ()
        if len(codes.scales):
            lead = rows, len(codes.scales) // rows
        inner = codes.indices.size // math.prod(lead)
        count = _at_once(codes, inner)
        shape = (*lead, inner // count, *_several(count * codes.table.shape[1]))
        table, indices = self._table(codes, count), self._indices(codes, count)
        places = self.shaped(indices, (*lead, inner // count))
        if codes.books > 1:
            first = np.arange(codes.books, dtype=np.int32) * (len(codes.table) // codes.books)
            places = self.made("Add", places, self.constant(first))
        if len(codes.scales):
            values = self.made("Gather", table, places)
            scales = codes.scales.reshape(*lead, *(1 for _ in shape[len(lead) :]))
            values = each(self.made("Mul", values, self.constant(scales)))
        else:
            values = self.made("Gather", each(table), places)
        if len(codes.positions):
            strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
            at = self.constant(codes.positions[:, None])
            at = self.made("Div", at, self.constant(np.array(strides, np.int32)))
            at = self.made("Mod", at, self.constant(np.array(shape, np.int32)))
            at = self.made("Cast", at, to=onnx.TensorProto.INT64)
            values = self.made("ScatterND", values, at, each(self.constant(codes.outliers)))
        return values, shape

    def spread(self, array: NDArray[Any]) -> str:
        """Any array that has a usual number, from a bitmap and the others: zero of floats, of
        integers of 8 bits the commonest."""
        others = _others(array)
        held = np.concatenate([array.ravel()[~others][:1], array.ravel()[others]])
        values = self.made("Gather", self.constant(held), self._ranks(others))
        return self.shaped(values, array.shape)

    def shaped(self, name: str, shape: Sequence[int]) -> str:
        return self.made("Reshape", name, self.constant(np.array(shape, np.int64)))

    def made(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """What one more operator makes."""
        output = f"{STORED}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, array: NDArray[Any]) -> str:
        """Its name; of equal ones there is one."""
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self.constants:
            name = f"{STORED}c{len(self.constants)}"
            self.constants[key] = onnx.numpy_helper.from_array(array, name)
        return str(self.constants[key].name)

    def _table(self, codes: Codes, count: int) -> str:
        """What an index stands for, (entries, numbers); of several at once all that they may be."""
        width = codes.table.shape[1]
        table = self.constant(codes.table if width > 1 else codes.table.ravel())
        if count == 1:
            return table
        several = self.made("Gather", table, self._several(codes.bits, count, len(codes.table)))
        return several if width == 1 else self.shaped(several, (-1, count * width))

    def _several(self, bits: int, count: int, entries: int) -> str:
        """int32, (words, count): the indices below ``entries`` in each word of several."""
        key = bits, count, entries
        if key not in self.words:
            ends = (self.constant(np.array(n, np.int32)) for n in (0, 2 ** (bits * count), 1))
            words = self.made("Cast", self.made("Range", *ends), to=onnx.TensorProto.UINT32)
            highs = 32 - bits * np.arange(1, count + 1, dtype=np.uint32)
            words = self._shifted(self.shaped(words, (-1, 1)), highs, "LEFT")
            words = self._shifted(words, np.array(32 - bits, np.uint32), "RIGHT")
            indices = self.made("Cast", words, to=onnx.TensorProto.INT32)
            last = self.constant(np.array(entries - 1, np.int32))
            self.words[key] = self.made("Min", indices, last)
        return self.words[key]

    def _indices(self, codes: Codes, count: int) -> str:
        """int32, flat, several in a word."""
        commonest = _commonest(codes)
        if commonest is None:
            lows = np.uint16(codes.bits) * np.arange(count, dtype=np.uint16)
            words = codes.indices.reshape(-1, count).astype(np.uint16) << lows
            return self._unpacked(words.sum(1, np.uint16), codes.bits * count)
        others = codes.indices != commonest
        first = self.constant(np.array([commonest], np.int32))
        packed = self._unpacked(codes.indices[others].astype(np.uint16), codes.bits)
        return self.made("Gather", self.made("Concat", first, packed, axis=0), self._ranks(others))

    def _ranks(self, there: NDArray[np.bool_]) -> str:
        """int32, flat: 1, 2, ... where it is true, else 0."""
        bits = self._unpacked(there.astype(np.uint16), 1)
        counted = self.made("CumSum", bits, self.constant(np.array(0, np.int32)))
        return self.made("Mul", counted, bits)

    def _unpacked(self, integers: NDArray[np.uint16], bits: int) -> str:
        """int32, from integers of so many bits, flat."""
        count, done, total = integers.size, 0, ""
        padded = np.concatenate([integers, np.zeros(-count % 8, np.uint16)])
        for width in _SLICE_BITS:
            if not bits & width:
                continue
            part = self._slice((padded >> done) & (2**width - 1), width)
            if done:
                part = self.made("Mul", part, self.constant(np.array(2**done, np.int32)))
            total = self.made("Add", total, part) if total else part
            done += width
        if len(padded) == count:
            return total
        ends = (self.constant(np.array([end], np.int64)) for end in (0, count))
        return self.made("Slice", total, *ends)

    def _slice(self, integers: NDArray[Any], width: int) -> str:
        """int32, flat: integers of so many bits."""
        if width == 16:
            return self.made("Cast", self.constant(integers), to=onnx.TensorProto.INT32)
        lows = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        packed = (integers.astype(np.uint8).reshape(len(lows), -1) << lows).sum(0, np.uint8)
        if width == 8:
            return self.made("Cast", self.constant(packed), to=onnx.TensorProto.INT32)
        bits = self._shifted(self.constant(packed[None]), 8 - width - lows, "LEFT")
        bits = self._shifted(bits, np.array(8 - width, np.uint8), "RIGHT")
        return self.shaped(self.made("Cast", bits, to=onnx.TensorProto.INT32), (-1,))

    def _shifted(self, bits: str, by: NDArray[np.unsignedinteger], direction: str) -> str:
        return self.made("BitShift", bits, self.constant(by), direction=direction)


def by_rows(codes: Codes) -> bool:
    """Whether no index stands for numbers of two rows."""
    return not codes.shape[1] % codes.table.shape[1]


def _at_once(codes: Codes, inner: int) -> int:
    """Indices to a word, of which there are less than a matrix has, by far.

    Args:
        inner: indices that follow each other in a row, or under one scale.
    """
    if codes.books > 1 or _commonest(codes) is not None:
        return 1
    fitting = (
        count
        for count in (8, 4, 2)
        if inner % count == 0
        and codes.bits * count <= _WORD_BITS
        and 2 ** (codes.bits * count) <= codes.indices.size // 8
    )
    return next(fitting, 1)


def _several(count: int) -> tuple[int, ...]:
    """An axis of so many, if there are several."""
    return (count,) if count > 1 else ()


def codes_bytes(codes: Codes) -> int:
    """What ``Folding.values`` stores of them, less its operators."""
    held = (codes.table, codes.scales, codes.positions, codes.outliers)
    count = codes.indices.size
    indices = _packed_bytes(count, codes.bits)
    commonest = _commonest(codes)
    if commonest is not None:
        others = int((codes.indices != commonest).sum())
        indices = _packed_bytes(count, 1) + _packed_bytes(others, codes.bits)
    return indices + sum(array.nbytes for array in held)


def spread_bytes(array: NDArray[Any]) -> int:
    """What ``Folding.spread`` stores of it, less its operators."""
    others = int(np.count_nonzero(_others(array)))
    return _packed_bytes(array.size, 1) + others * array.itemsize


def _others(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Flat: which numbers are not the usual one. A negative zero is not zero."""
    bits = np.ascontiguousarray(array).view(f"u{array.itemsize}").ravel()
    usual = np.bincount(bits).argmax() if array.itemsize == 1 else 0
    return np.asarray(bits != usual)


def _commonest(codes: Codes) -> int | None:
    """The index that is worth a bitmap of its own, and packing the others alone; None where none
    is."""
    counts = np.bincount(codes.indices)
    count, others = codes.indices.size, codes.indices.size - int(counts.max())
    saved = _packed_bytes(count, codes.bits) - _packed_bytes(others, codes.bits)
    return int(counts.argmax()) if saved > _packed_bytes(count, 1) else None


def _packed_bytes(count: int, bits: int) -> int:
    return -(-count // 8) * bits
