"""What torch's exporter writes, improved to the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

_KEEP_DIMENSIONS = (
    "Add",
    "Cast",
    "Div",
    "LayerNormalization",
    "MatMul",
    "Mul",
    "Softmax",
    "Split",
    "Sum",
)
"""Operators whose result has the dimensions of their first computed input, all but the last."""


def tidy(path: Path, inputs: Sequence[str]) -> None:
    """Tidy an exported graph in place.

    Args:
        inputs: to be declared even where nothing reads them, so that all models are called alike;
            integers (batch, length).
    """
    model = onnx.load(path)
    present = {item.name for item in model.graph.input}
    for name in inputs:
        if name not in present:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(
                    name, onnx.TensorProto.INT64, ["batch", "length"]
                )
            )
    read_matrices_themselves(model.graph)
    keep_normalization_apart(model.graph)
    settle_shapes(model.graph)
    onnx.save(model, path)


def read_matrices_themselves(graph: onnx.GraphProto) -> None:
    """Drop the copies through which the exporter has layers read a matrix that they share; the
    quantizers take a product with a copy for one without weights, and leave it as it is."""
    stored = {tensor.name for tensor in graph.initializer if len(tensor.dims) >= 2}
    outputs = {item.name for item in graph.output}
    copies = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in stored and node.output[0] not in outputs
    }
    kept = [node for node in graph.node if node.output[0] not in copies]
    for node in kept:
        node.input[:] = [copies.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)


def keep_normalization_apart(graph: onnx.GraphProto) -> None:
    """Write every addition that feeds a layer normalization as ``Sum``, which computes the same.

    In quantized graphs onnxruntime (1.31) fuses ``Add`` and ``LayerNormalization`` into an operator
    that takes five times as long on CPUs: a third of the time of a small int8 encoder.
    """
    normalized = {node.input[0] for node in graph.node if node.op_type == "LayerNormalization"}
    for node in graph.node:
        if node.op_type == "Add" and node.output[0] in normalized:
            node.op_type = "Sum"


def settle_shapes(graph: onnx.GraphProto) -> None:
    """Write sizes that are known as constants, keep batch and length in a reshape by their place,
    and drop what nothing reads then.

    The exporter computes each size from the shape of some earlier tensor, five operators for every
    reshape; onnxruntime simplifies only those that share theirs with no other.
    """
    shapes = _Shapes(graph)
    for node in graph.node:
        if node.op_type == "Gather" and isinstance(size := shapes.measured(node.output[0]), int):
            node.CopyFrom(
                onnx.helper.make_node(
                    "Constant",
                    [],
                    node.output,
                    node.name,
                    value=shapes.constant(node.output[0], size),
                )
            )
        sizes = shapes.producers.get(node.input[1]) if node.op_type == "Reshape" else None
        if sizes is not None and sizes.op_type == "Concat":
            numbers = [
                shapes.settled(name, place, node.input[0]) for place, name in enumerate(sizes.input)
            ]
            if None not in numbers:
                node.input[1] = f"{node.name}_shape"
                graph.initializer.append(shapes.constant(node.input[1], numbers))
    _drop_unread(graph)


class _Shapes:
    """Where the sizes in a graph come from."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producers = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = node.attribute[0].t
            elif node.op_type == "Identity" and node.input[0] in self.constants:
                self.constants[node.output[0]] = self.constants[node.input[0]]

    def constant(self, name: str, values: object) -> onnx.TensorProto:
        """A new constant of integers."""
        self.constants[name] = onnx.numpy_helper.from_array(np.array(values, np.int64), name)
        return self.constants[name]

    def values(self, name: str) -> list[int]:
        """Of a constant; none of anything else."""
        known = self.constants.get(name)
        return [] if known is None else np.atleast_1d(onnx.numpy_helper.to_array(known)).tolist()

    def settled(self, name: str, place: int, data: str) -> int | None:
        """A number of a shape: itself where it is known, 0 where it is what the reshaped tensor has
        at the same place."""
        if known := self.values(name):
            return known[0]
        node = self.producers[name]
        dimension = self.measured(node.input[0]) if node.op_type == "Unsqueeze" else None
        if isinstance(dimension, int):
            return dimension
        return 0 if dimension == self.dimension(data, place) else None

    def measured(self, name: str) -> int | tuple[str, int] | None:
        """The dimension that a number taken from a shape is."""
        node = self.producers.get(name)
        shape = (
            self.producers.get(node.input[0])
            if node is not None and node.op_type == "Gather"
            else None
        )
        if node is None or shape is None or shape.op_type != "Shape" or shape.attribute:
            return None
        places = self.values(node.input[1])
        return (
            self.dimension(shape.input[0], places[0])
            if len(places) == 1 and places[0] >= 0
            else None
        )

    def dimension(self, name: str, place: int) -> int | tuple[str, int]:
        """Its size where that is constant; else the tensor that it comes from, and its place
        there."""
        while (node := self.producers.get(name)) is not None:
            computed = [item for item in node.input if item not in self.constants]
            if node.op_type == "Transpose":
                place = node.attribute[0].ints[place]
            elif node.op_type == "Reshape":
                sizes = self.values(node.input[1])
                if place >= len(sizes) or sizes[place] < 0:
                    break
                if sizes[place] > 0:
                    return sizes[place]
            elif node.op_type not in _KEEP_DIMENSIONS:
                break
            name = computed[0]
        return name, place


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the nodes that no output comes from."""
    wanted = {item.name for item in graph.output}
    kept = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
