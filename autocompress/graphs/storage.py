"""Weights of a finished ONNX file stored as codes, or as a bitmap and what is not zero.

What decodes them reads constants alone, so onnxruntime runs it once, when it loads the file, and
then computes as with the plain one: the same bits come out. A tensor is found by its bytes, so it
is what the model has whatever became of its name on the way to the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from autocompress.graphs.folding import Folding, codes_bytes, spread_bytes
from autocompress.quantizers.codes import Codes, Matrix

_LEAST_SAVED = 2048
"""Bytes that are worth the operators."""
_STORABLE = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8)


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
    known, folding = _Known(matrices, graph), Folding()
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
        folding.made("Identity", stored.make(folding), output=tensor.name)
        graph.value_info.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
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
        make: adds what decodes it, and gives the name of what comes out; None of a dense one.
    """

    way: str
    bytes: int
    make: Callable[[Folding], str] | None


def _smallest(array: NDArray[Any], coded: _Coded | None) -> _Stored:
    """Of all ways; a dense one unless another saves enough."""
    ways = [_Stored("bitmaps", spread_bytes(array), lambda folding: folding.spread(array))]
    if coded is not None:
        ways.append(_Stored("codes", codes_bytes(coded.codes), coded.make))
    least = min(ways, key=lambda stored: stored.bytes)
    if least.bytes + _LEAST_SAVED <= array.nbytes:
        return least
    return _Stored("dense", array.nbytes, None)


class _Scales(NamedTuple):
    """Of a tensor in int8.

    Args:
        name: of the tensor that holds them.
        shape: of that tensor.
        zeros: name of their zero points; empty where there are none.
    """

    name: str
    shape: tuple[int, ...]
    zeros: str


class _Coded(NamedTuple):
    """A tensor of a file.

    Args:
        codes: of its matrix.
        transposed: whether the tensor has the matrix's rows as columns.
        scales: those that it is rounded to int8 by; None where it is in fp32.
    """

    codes: Codes
    transposed: bool
    scales: _Scales | None = None

    def make(self, folding: Folding) -> str:
        values = folding.values(self.codes)
        if self.transposed:
            values = folding.made("Transpose", values, perm=[1, 0])
        if self.scales is None:
            return values
        name, shape, zeros = self.scales
        zeros = zeros or folding.constant(np.zeros(shape, np.int8))
        return folding.made("QuantizeLinear", values, name, zeros, axis=1 if len(shape) else None)


class _Known:
    """Matrices of a model, to be found in a graph."""

    def __init__(self, matrices: Iterable[Codes], graph: onnx.GraphProto) -> None:
        self.graph_tensors = {tensor.name: tensor for tensor in graph.initializer}
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
        base = name.removesuffix("_quantized")
        names = f"{base}_scale", f"{base}_zero_point"
        scales, zeros = (self._tensor(name) for name in names)
        if scales is None:
            return None
        by = _Scales(names[0], scales.shape, "" if zeros is None else names[1])
        offset = np.int8(0) if zeros is None else zeros
        for codes, transposed in self.by_shape.get(array.shape, []):
            values = codes.decode().T if transposed else codes.decode()
            few = _rounded(values[:1], scales, offset)  # tells most matrices apart
            if np.array_equal(few, array[:1]) and np.array_equal(
                _rounded(values, scales, offset), array
            ):
                return _Coded(codes, transposed, by)
        return None

    def _tensor(self, name: str) -> NDArray[Any] | None:
        tensor = self.graph_tensors.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)


def _digest(array: NDArray[Any]) -> bytes:
    told = f"{array.shape} ".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(told).digest()


def _rounded(values: Matrix, scales: Matrix, offset: Any) -> NDArray[np.int8]:
    """As ``QuantizeLinear`` has it."""
    integers: NDArray[np.int8] = np.clip(np.rint(values / scales) + offset, -128, 127).astype(
        np.int8
    )
    return integers
