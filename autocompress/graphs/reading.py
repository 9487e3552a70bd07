"""ONNX files read and edited as graphs, without running them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx

from autocompress.errors import UserError
from autocompress.files import sha256
from autocompress.graphs.folding import STORED

PAST = "past_key_values."
"""Of the names of the inputs that hold a language model's cache, such as
``past_key_values.0.key``."""


def has_cache(path: Path) -> bool:
    """Whether a file is a language model whose cache goes in and comes out; what is no ONNX file is
    not."""
    return _has_cache(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _has_cache(path: Path, _: int) -> bool:
    """Read once for each time that the file was written: it is asked before every timing, and
    weights are large."""
    try:
        inputs = _loaded(path, weights=False).graph.input
    except UserError:
        return False
    return any(item.name.startswith(PAST) for item in inputs)


def graph_digest(path: Path) -> str:
    """Of an ONNX file but for the numbers of its weights, which take the same time whatever they
    are: shapes, which are integers of 64 bits, count. What is no ONNX file is read as it is."""
    try:
        model = _loaded(path)
    except UserError:
        return sha256(path)
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.INT64:
            for numbers in ("raw_data", "float_data", "int32_data"):
                tensor.ClearField(numbers)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def external_files(path: Path) -> list[str]:
    """Names of the files beside it that hold weights of an ONNX file; what is no ONNX file has
    none."""
    try:
        graph = _loaded(path, weights=False).graph
    except UserError:
        return []
    entries = [entry for tensor in graph.initializer for entry in tensor.external_data]
    return sorted({entry.value for entry in entries if entry.key == "location"})


def _loaded(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Raises:
    UserError: no ONNX file.
    """
    try:
        model = onnx.load(path, load_external_data=weights)
    except FileNotFoundError as error:
        raise UserError(f"{path} lacks a file: {error}") from error
    except Exception as error:
        if type(error).__name__ not in ("DecodeError", "ValidationError"):
            raise
        raise UserError(f"{path} is no ONNX file") from error
    if not model.graph.node:
        raise UserError(f"{path} is no ONNX file")
    return model


def layer_of(node_name: str) -> int | None:
    """The layer a node belongs to, by the scope that torch's exporter writes, such as
    ``/model/bert/encoder/layer.3/``."""
    match = re.search(r"/(?:layer|layers|h)\.(\d+)/", node_name)
    return int(match[1]) if match else None


def module_of(node_name: str) -> str:
    """The module of the torch model that a node belongs to, by the same scope, in which members of
    a ``Sequential`` bear its name again, as in ``/model/output/dense/dense.1/MatMul``."""
    scope = re.sub(r"([^/]+)/(?=\1\.\d+/)", "", node_name)
    return scope.replace("/", ".").rpartition(".")[0].removeprefix(_WRAPPER)


def layer_count(path: Path) -> int:
    """How many layers the graph has."""
    return len({layer_of(node.name) for node in onnx.load(path).graph.node} - {None})


def input_ranges(
    path: Path, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """By tensor, the ranges of what goes into the products of modules; of a tensor that goes into
    several, one that holds all of theirs.

    Args:
        ranges: module of the torch model, such as ``bert.pooler.dense``, to least and largest
            number.

    Raises:
        ValueError: a module without a product with weights that bears its name.
    """
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    tensors = {
        module_of(node.name): node.input[0]
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    }
    by_tensor: dict[str, tuple[float, float]] = {}
    for module, (low, high) in ranges.items():
        if module not in tensors:
            raise ValueError(f"the graph has no product of {module}")
        least, largest = by_tensor.get(tensors[module], (low, high))
        by_tensor[tensors[module]] = min(low, least), max(high, largest)
    return by_tensor


_WRAPPER = ".model."
"""Begins the scope of every module, with dots for slashes: what is exported holds the model under
this name."""


def embedding_bytes(path: Path) -> int:
    """What a file holds of the tables that token ids are looked up in, stored as codes or not.

    Raises:
        UserError: no ONNX file.
    """
    graph = _loaded(path).graph
    held = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    ids, there = {"input_ids"}, list[str]()
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in ids:
            ids.add(node.output[0])
        if node.op_type == "Gather" and node.input[1] in ids:
            there.append(node.input[0])
            if node.input[0] in held and held[node.input[0]].ndim == 1:  # a row for each word
                ids.add(node.output[0])
    seen = set[str]()
    while there:
        name = there.pop()
        if name not in seen:
            seen.add(name)
            there += makers[name].input if name in makers else ()
    return sum(held[name].nbytes for name in seen & held.keys())


def float_weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of the fp32 matrices, by name: what a quantizer left; its own scales are not
    counted."""
    graph = onnx.load(path).graph
    return {
        tensor.name: 4 * int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) >= 2
        and not tensor.name.endswith(("_scale", "_scales"))
    }


@dataclass(frozen=True)
class Product:
    """A matrix product with weights.

    Args:
        weights: how many.
        scheme: number format that they are multiplied in.
        columns: of their matrix.
    """

    weights: int
    scheme: str
    columns: int = 0


@dataclass(frozen=True)
class Attention:
    """The products of activations with each other, in all layers together.

    Args:
        width: columns of the queries.
        cached: numbers that a token leaves in a language model's cache.
    """

    width: int
    cached: int


_SCHEME_BY_TYPE = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}


def operations(path: Path) -> tuple[list[Product], int]:
    """The matrix products with weights, and the number of all operators but constants and shape
    arithmetic.

    Raises:
        UserError: no ONNX file.
    """
    graph = _loaded(path).graph
    operators = sum(
        node.op_type not in _FREE and not "".join(node.input).startswith(STORED)
        for node in graph.node
    )
    return list(_products(graph).values()), operators


def attention(path: Path) -> Attention:
    """That of a model with separate softmax operators, as autocompress exports them.

    Raises:
        UserError: no ONNX file.
    """
    graph = _loaded(path).graph
    products = _products(graph)
    makers = {name: node for node in graph.node for name in node.output}

    def queries(name: str) -> int:
        """Columns of the product with weights that a tensor comes from, by its first input that
        comes from one."""
        if name in products:
            return products[name].columns
        if name not in makers:
            return 0
        node = makers[name]
        columns = next(filter(None, map(queries, node.input)), 0)
        return columns // (len(node.output) if node.op_type == "Split" else 1)

    softmaxes = (node for node in graph.node if node.op_type == "Softmax")
    caches = (item.type.tensor_type.shape.dim for item in graph.input if item.name.startswith(PAST))
    return Attention(
        sum(queries(node.input[0]) for node in softmaxes),
        sum(dims[1].dim_value * dims[3].dim_value for dims in caches),
    )


def _products(graph: onnx.GraphProto) -> dict[str, Product]:
    """Matrix products with weights, by the name of what they give."""
    tensors = {tensor.name: tensor for tensor in [*graph.initializer, *_decoded(graph)]}
    dequantized = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"
    }
    products = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            attributes = {item.name: item.i for item in node.attribute}
            products[node.output[0]] = Product(
                attributes["K"] * attributes["N"],
                f"int{attributes['bits']}-weights",
                attributes["N"],
            )
        elif node.op_type in (
            "MatMul",
            "Gemm",
            "MatMulInteger",
            "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul",
        ):
            static = [dequantized[name] for name in node.input if dequantized.get(name) in tensors]
            weights = [
                tensors[name]
                for name in [*node.input, *static]
                if name in tensors and len(tensors[name].dims) == 2
            ]
            for tensor in weights[:1]:
                integer = "int8-static" if static else "int8-dynamic"
                transposed = any(item.name == "transB" and item.i for item in node.attribute)
                products[node.output[0]] = Product(
                    int(np.prod(tensor.dims)),
                    _SCHEME_BY_TYPE.get(tensor.data_type, integer),
                    tensor.dims[0 if transposed else 1],
                )
    return products


def _decoded(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """What a session makes of stored codes, without its numbers."""
    made = {node.output[0] for node in graph.node if "".join(node.input).startswith(STORED)}
    types = {item.name: item.type.tensor_type for item in graph.value_info if item.name in made}
    return [
        onnx.TensorProto(
            name=name, data_type=kind.elem_type, dims=[dim.dim_value for dim in kind.shape.dim]
        )
        for name, kind in types.items()
    ]


_FREE = (
    "Constant",
    "ConstantOfShape",
    "Shape",
    "Gather",
    "Unsqueeze",
    "Concat",
    "Reshape",
    "Cast",
    "Slice",
    "Identity",
)
"""Operators whose time is nothing beside the others'."""


def write_probe(path: Path, width: int = 512, inner: int = 2048, layers: int = 2) -> None:
    """A model with nothing but an embedding and feed-forward layers, random weights: what a device
    is judged by."""
    rng = np.random.default_rng(0)
    nodes, weights = [], {"embedding": rng.standard_normal((32, width))}
    nodes.append(onnx.helper.make_node("Gather", ["embedding", "input_ids"], ["h0"], "/embedding"))
    for i in range(layers):
        weights[f"up{i}"] = rng.standard_normal((width, inner)) / width**0.5
        weights[f"down{i}"] = rng.standard_normal((inner, width)) / inner**0.5
        nodes += [
            onnx.helper.make_node("MatMul", [f"h{i}", f"up{i}"], [f"u{i}"], f"/layer.{i}/up"),
            onnx.helper.make_node("Relu", [f"u{i}"], [f"r{i}"], f"/layer.{i}/relu"),
            onnx.helper.make_node(
                "MatMul", [f"r{i}", f"down{i}"], [f"h{i + 1}"], f"/layer.{i}/down"
            ),
        ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "probe",
        [value("input_ids", onnx.TensorProto.INT64, ["batch", "length"])],
        [value(f"h{layers}", onnx.TensorProto.FLOAT, ["batch", "length", width])],
        [
            onnx.numpy_helper.from_array(tensor.astype(np.float32), name)
            for name, tensor in weights.items()
        ],
    )
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
        ),
        path,
    )
