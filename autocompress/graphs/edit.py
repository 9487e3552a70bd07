"""ONNX files changed in place, to the same results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx

_LEAST_BYTES = 1024
"""Of a tensor that is worth storing once."""


def merge_equal_initializers(path: Path) -> None:
    """Store tensors of the same type, shape and bytes once, under the name of the first; converters
    copy a matrix for each layer that shares it.

    A file without such tensors stays as it is.
    """
    model = onnx.load(path)
    graph = model.graph
    fixed = {item.name for item in (*graph.input, *graph.output)}
    firsts: dict[tuple[object, ...], str] = {}
    renamed = {}
    for tensor in graph.initializer:
        held = onnx.numpy_helper.to_array(tensor).tobytes()
        if tensor.name in fixed or len(held) < _LEAST_BYTES:
            continue
        key = tensor.data_type, tuple(tensor.dims), hashlib.sha256(held).digest()
        first = firsts.setdefault(key, tensor.name)
        if first != tensor.name:
            renamed[tensor.name] = first
    if not renamed:
        return
    for node in _nodes(graph):
        node.input[:] = [renamed.get(name, name) for name in node.input]
    kept = [tensor for tensor in graph.initializer if tensor.name not in renamed]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.save(model, path)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All of them, those inside of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)
