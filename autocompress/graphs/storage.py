"""Weights of a finished ONNX file stored as codes, or as a bitmap and what is not zero.

What decodes them reads constants alone, so onnxruntime runs it once, when it loads the file, and
then computes as with the plain one: the same bits come out. A tensor is found by its bytes, so it
is what the model has whatever became of its name on the way to the file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from autocompress.graphs.folding import STORED, Folding, by_rows, codes_bytes, spread_bytes
from autocompress.quantizers.codes import Codes, Matrix

_LEAST_SAVED = 2048
"""Bytes that are worth the operators."""
_STORABLE = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def store(path: Path, matrices: Iterable[Codes]) -> dict[str, dict[str, int]]:
    """Replace each matrix of a file by the least that decodes to it, in place.

    Args:
        path: ONNX file in fp32, or with weights in int8.
        matrices: of the model, as it holds them in fp32; in the file they may be transposed, and
            rounded to int8 by one scale or one for each column.

    Returns:
        ``{"codes": ..., "bitmaps": ..., "dense": ...}``: the matrices of the file by how they are
        stored, each with its bytes.
    """
    model = onnx.load(path)
    graph = model.graph
    known, folding, lookups = _Known(matrices, graph), Folding(), _lookups(graph)
    inputs = {item.name for item in graph.input}
    told: dict[str, dict[str, int]] = {"codes": {}, "bitmaps": {}, "dense": {}}
    kept = []
    for tensor in graph.initializer:
        stored = None
        if (
            tensor.data_type in _STORABLE
            and len(tensor.dims) == 2
            and tensor.name not in inputs  # of which it is the default alone
        ):
            array = onnx.numpy_helper.to_array(tensor)
            stored = _smallest(array, known.codes_of(tensor.name, array))
            told[stored.way][tensor.name] = stored.bytes
        if stored is None or stored.make is None:
            kept.append(tensor)
            continue
        looked_up = lookups.get(tensor.name, [])
        shape = stored.make(folding, not looked_up)
        folding.nodes[-1].output[0] = tensor.name
        graph.value_info.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
        )
        if len(shape) > 2:
            _join_columns(graph, looked_up, folding)
    if folding.nodes:
        nodes = [*folding.nodes, *graph.node]
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend([*kept, *folding.constants.values()])
        graph.node.extend(nodes)
        onnx.save(model, path)
    return told


class _Stored(NamedTuple):
    """A way to store a matrix.

    Args:
        make: adds what decodes it, last of all the operator that gives the tensor, and says its
            shape; where it need not be whole, its columns may lie along several axes. None of a
            dense one.
    """

    way: str
    bytes: int
    make: Callable[[Folding, bool], Sequence[int]] | None


def _smallest(array: NDArray[Any], coded: _Coded | None) -> _Stored:
    """Of all ways; a dense one unless another saves enough."""

    def spread(folding: Folding, whole: bool) -> Sequence[int]:
        folding.spread(array)
        return array.shape

    ways = [_Stored("bitmaps", spread_bytes(array), spread)]
    if coded is not None:
        ways.append(_Stored("codes", codes_bytes(coded.codes), coded.make))
    least = min(ways, key=lambda stored: stored.bytes)
    if least.bytes + _LEAST_SAVED <= array.nbytes:
        return least
    return _Stored("dense", array.nbytes, None)


class _Rounding(NamedTuple):
    """What brought a tensor to 8 bits.

    Args:
        names: of the tensors of scales and of zero points; the latter empty where there is none.
        scales, zeros: as they are multiplied with the matrix: (1, 1), (1, columns) or (rows, 1).
        axis: of the scales; None where there is one.
    """

    names: tuple[str, str]
    scales: Matrix
    zeros: NDArray[np.integer]
    axis: int | None

    def makes(self, array: NDArray[np.integer], values: Matrix) -> bool:
        """Whether it makes this of these; the first row tells most matrices apart."""
        return all(
            np.array_equal(self._integers(values[:count]), array[:count])
            for count in (1, len(values))
        )

    def _integers(self, values: Matrix) -> NDArray[np.floating]:
        """Of the first rows, as ``QuantizeLinear`` has them."""
        count, ends = len(values), np.iinfo(self.zeros.dtype)
        steps = np.rint(values / self.scales[:count]) + self.zeros[:count]
        integers: NDArray[np.floating] = np.clip(steps, ends.min, ends.max)
        return integers


class _Coded(NamedTuple):
    """A tensor of a file.

    Args:
        codes: of its matrix.
        transposed: whether the tensor has the matrix's rows as columns.
        rounding: None of one in fp32.
    """

    codes: Codes
    transposed: bool
    rounding: _Rounding | None = None

    def make(self, folding: Folding, whole: bool) -> Sequence[int]:
        """See ``_Stored``. One scale for all is a matter of the values that there are, not of the
        matrix."""
        alike = self.rounding is None or self.rounding.axis is None
        each = partial(self._rounded, folding)
        codes = (self.codes.transposed() if self.transposed else None) or self.codes
        values, shape = folding.values(codes, *([each] if alike else []))
        if len(shape) > 2 and (whole or not alike or not by_rows(codes)):
            values, shape = folding.shaped(values, codes.shape), codes.shape
        if self.transposed and codes is self.codes:
            values, shape = folding.made("Transpose", values, perm=[1, 0]), codes.shape[::-1]
        if not alike:
            each(values)
        return shape

    def _rounded(self, folding: Folding, values: str) -> str:
        if self.rounding is None:
            return values
        scales, zeros = self.rounding.names
        shape = () if self.rounding.axis is None else (self.rounding.zeros.size,)
        zeros = zeros or folding.constant(np.zeros(shape, np.int8))
        return folding.made("QuantizeLinear", values, scales, zeros, axis=self.rounding.axis)


class _Known:
    """Matrices of a model, to be found in a graph."""

    def __init__(self, matrices: Iterable[Codes], graph: onnx.GraphProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.by_digest: dict[bytes, tuple[Codes, bool]] = {}
        self.by_shape: dict[tuple[int, ...], list[tuple[Codes, bool]]] = {}
        for codes in matrices:
            values = codes.decode()
            for transposed, turned in ((False, values), (True, values.T)):
                self.by_digest.setdefault(_digest(turned), (codes, transposed))
                self.by_shape.setdefault(turned.shape, []).append((codes, transposed))

    def codes_of(self, name: str, array: NDArray[Any]) -> _Coded | None:
        """Those of a tensor; None where it is none of the matrices."""
        if array.dtype == np.float32:
            found = self.by_digest.get(_digest(array))
            return _Coded(*found) if found else None
        for rounding in self._roundings(name.removesuffix("_quantized"), array.shape):
            for codes, transposed in self.by_shape.get(array.shape, []):
                values = codes.decode().T if transposed else codes.decode()
                if rounding.makes(array, values):
                    return _Coded(codes, transposed, rounding)
        return None

    def _roundings(self, name: str, shape: tuple[int, ...]) -> Iterator[_Rounding]:
        """What may have made a tensor of this name, as quantizers call what they make."""
        scales, zeros = self._tensor(f"{name}_scale"), self._tensor(f"{name}_zero_point")
        if scales is None or scales.ndim > 1:
            return
        names = f"{name}_scale", "" if zeros is None else f"{name}_zero_point"
        offsets = np.zeros(scales.shape, np.int8) if zeros is None else zeros
        for axis, fitting in ((None, (1, 1)), (1, (1, shape[1])), (0, (shape[0], 1))):
            if scales.size == max(fitting):
                yield _Rounding(names, scales.reshape(fitting), offsets.reshape(fitting), axis)

    def _tensor(self, name: str) -> NDArray[Any] | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)


def _digest(array: NDArray[Any]) -> bytes:
    told = f"{array.shape} ".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(told).digest()


def _lookups(graph: onnx.GraphProto) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    """The tensors of which nothing but rows are read, by lookups whose indices have a known number
    of axes: these lookups, each with that number."""
    axes = {item.name: len(item.type.tensor_type.shape.dim) for item in graph.input}
    one = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        by_row = node.op_type == "Gather" and not any(item.i for item in node.attribute)
        if node.op_type in ("Cast", "Identity") and node.input[0] in axes:
            axes[node.output[0]] = axes[node.input[0]]
        elif by_row and node.input[0] in one and node.input[1] in axes:
            axes[node.output[0]] = axes[node.input[1]]
        if by_row and node.input[1] in axes:
            found.setdefault(node.input[0], []).append((node, axes[node.input[1]]))
    read = Counter(name for node in graph.node for name in node.input)
    return {name: nodes for name, nodes in found.items() if len(nodes) == read[name]}


def _join_columns(
    graph: onnx.GraphProto, lookups: Sequence[tuple[onnx.NodeProto, int]], folding: Folding
) -> None:
    """A row is looked up along several axes, and made one again: no more than a view of it."""
    for node, axes in lookups:
        columns = folding.constant(np.array([*(0 for _ in range(axes)), -1], np.int64))
        rows, node.output[0] = node.output[0], f"{node.output[0]}{STORED}"
        joined = onnx.helper.make_node(
            "Reshape", [node.output[0], columns], [rows], f"{node.name}{STORED}"
        )
        graph.node.insert(list(graph.node).index(node) + 1, joined)
