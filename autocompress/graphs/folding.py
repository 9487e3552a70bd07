"""Operators on constants, which onnxruntime runs once, when it loads a file: packed bits become a
tensor.

Of the operators that could unpack bits the two shifts are fast, and older than the operator sets
that bring a bitwise and, or types of 4 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from autocompress.quantizers.codes import Codes

STORED = "/s/"
"""Begins the names of what is added; short, for it is there many times."""
_SLICE_BITS = (8, 4, 2, 1)
"""Widths that fill bytes; an index of 7 bits is kept as 4, 2 and 1."""


class Folding:
    """What is added to a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[object, ...], onnx.TensorProto] = {}

    def values(self, codes: Codes) -> str:
        """The matrix that codes decode to; its name, as of all that is made here."""
        table = codes.table if codes.table.shape[1] > 1 else codes.table.ravel()
        values = self.made("Gather", self.constant(table), self._indices(codes))
        if len(codes.scales):
            runs = self.shaped(values, (len(codes.scales), -1))
            values = self.made("Mul", runs, self.constant(codes.scales[:, None]))
        if len(codes.positions):
            places = self.constant(codes.positions), self.constant(codes.outliers)
            values = self.made("ScatterElements", self.shaped(values, (-1,)), *places)
        return self.shaped(values, codes.shape)

    def spread(self, array: NDArray[Any]) -> str:
        """Any array that has a usual number, from a bitmap and the others: zero of floats, of
        integers of 8 bits the commonest."""
        others = _others(array)
        held = np.concatenate([array.ravel()[~others][:1], array.ravel()[others]])
        values = self.made("Gather", self.constant(held), self._ranks(others))
        return self.shaped(values, array.shape)

    def shaped(self, name: str, shape: Sequence[int]) -> str:
        return self.made("Reshape", name, self.constant(np.array(shape, np.int64)))

    def made(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """What one more operator makes.

        Args:
            output: its name, where it matters.
        """
        output = output or f"{STORED}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, array: NDArray[Any]) -> str:
        """Its name; of equal ones there is one."""
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self.constants:
            name = f"{STORED}c{len(self.constants)}"
            self.constants[key] = onnx.numpy_helper.from_array(array, name)
        return str(self.constants[key].name)

    def _indices(self, codes: Codes) -> str:
        """int32, flat."""
        commonest = _commonest(codes)
        if commonest is None:
            return self._unpacked(codes.indices, codes.bits)
        others = codes.indices != commonest
        first = self.constant(np.array([commonest], np.int32))
        packed = self._unpacked(codes.indices[others], codes.bits)
        return self.made("Gather", self.made("Concat", first, packed, axis=0), self._ranks(others))

    def _ranks(self, there: NDArray[np.bool_]) -> str:
        """int32, flat: 1, 2, ... where it is true, else 0."""
        bits = self._unpacked(there.astype(np.uint8), 1)
        counted = self.made("CumSum", bits, self.constant(np.array(0, np.int32)))
        return self.made("Mul", counted, bits)

    def _unpacked(self, integers: NDArray[np.uint8], bits: int) -> str:
        """int32, from integers of so many bits, flat."""
        count, done, total = integers.size, 0, ""
        padded = np.concatenate([integers, np.zeros(-count % 8, np.uint8)])
        for width in _SLICE_BITS:
            if not bits & width:
                continue
            part = self._slice((padded >> done) & (2**width - 1), width, done)
            total = self.made("Add", total, part) if total else part
            done += width
        if len(padded) == count:
            return total
        ends = (self.constant(np.array([end], np.int64)) for end in (0, count))
        return self.made("Slice", total, *ends)

    def _slice(self, integers: NDArray[Any], width: int, place: int) -> str:
        """int32, flat: integers of so many bits, moved up to their place in the whole."""
        lows = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        packed = (integers.astype(np.uint8).reshape(len(lows), -1) << lows).sum(0, np.uint8)
        bits = self.constant(packed[None])
        if width < 8:
            bits = self._shifted(bits, 8 - width - lows, "LEFT")
            bits = self._shifted(bits, np.array(8 - width, np.uint8), "RIGHT")
        if place:
            bits = self._shifted(bits, np.array(place, np.uint8), "LEFT")
        return self.shaped(self.made("Cast", bits, to=onnx.TensorProto.INT32), (-1,))

    def _shifted(self, bits: str, by: NDArray[np.uint8], direction: str) -> str:
        return self.made("BitShift", bits, self.constant(by), direction=direction)


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
