"""The operations that models are traced with: the results of transformers' own, in a graph without
shape arithmetic."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from transformers import masking_utils

from autocompress.graphs import tracing
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.graphs.tidy import settle_shapes
from autocompress.interfaces import Batch
from tests.tiny_models import LAYERS, build

PADDED = ["11111", "11100", "00111", "01101", "00000"]


@pytest.mark.parametrize("name", ["causal_mask_function", "bidirectional_mask_function"])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_mask_is_transformers_own(name: str, length: int) -> None:
    mask = torch.tensor([[letter == "1" for letter in row] for row in PADDED])
    function = getattr(masking_utils, name)
    given: dict[str, Any] = {
        "mask_function": function,
        "attention_mask": mask,
        "dtype": torch.float32,
    }
    expected = masking_utils.eager_mask(len(mask), length, 5, 5 - length, **given)
    traced_mask = tracing._mask(len(mask), length, 5, 5 - length, **given)
    assert torch.equal(traced_mask.expand_as(expected), expected)


def test_a_sliding_window_is_left_to_transformers() -> None:
    function = masking_utils.sliding_window_causal_mask_function(2)
    traced_mask = tracing._mask(
        1, 4, 4, mask_function=function, attention_mask=torch.ones(1, 4, dtype=torch.bool)
    )
    assert (traced_mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    "name", ["bert", "distilbert", "roberta", "gpt2", "llama ungrouped, tied, with biases"]
)
def test_no_layer_computes_a_shape(name: str, tmp_path: Path) -> None:
    ones = np.ones((2, 5), np.int64)
    to_onnx(
        build(name), tmp_path / "model.onnx", Batch({"input_ids": 5 * ones, "attention_mask": ones})
    )
    graph = onnx.load(tmp_path / "model.onnx").graph
    read = {name for node in graph.node for name in node.input} | {
        item.name for item in graph.output
    }
    assert all(read.intersection(node.output) for node in graph.node)
    within = Counter(
        node.op_type
        for node in graph.node
        if any(f".{layer}/" in node.name for layer in range(LAYERS))
    )
    assert within["Softmax"] == LAYERS
    assert (within["Shape"], within["IsNaN"], within["Range"]) == (0, 0, 0)


def graph_of_a_reshape(measured: str, place: int) -> onnx.ModelProto:
    """x (batch, length, 4), through a product to (batch, length, 6), in pairs; a number of the
    shape is that of another tensor."""
    weights = {
        "weights": np.ones((4, 6), np.float32),
        "place": np.array(place),
        "axes": np.array([0]),
    }
    nodes = [
        make_node("MatMul", ["x", "weights"], ["wide"], "product"),
        make_node("Transpose", ["x"], ["turned"], "turn", perm=[1, 0, 2]),
        make_node("Shape", [measured], ["shape"], "shape"),
        make_node("Gather", ["shape", "place"], ["number"], "gather"),
        make_node("Unsqueeze", ["number", "axes"], ["numbers"], "unsqueeze"),
        make_node(
            "Constant", [], ["two"], "two", value=onnx.numpy_helper.from_array(np.array([2]))
        ),
        make_node(
            "Constant", [], ["any"], "any", value=onnx.numpy_helper.from_array(np.array([-1]))
        ),
        make_node("Concat", ["numbers", "any", "two"], ["sizes"], "concat", axis=0),
        make_node("Reshape", ["wide", "sizes"], ["y"], "reshape"),
    ]
    value, floats = make_tensor_value_info, onnx.TensorProto.FLOAT
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = make_graph(
        nodes,
        "g",
        [value("x", floats, ["b", "l", 4])],
        [value("y", floats, [None, None, 2])],
        tensors,
    )
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("measured", "place", "settled"),
    [("x", 0, True), ("wide", 0, True), ("turned", 0, False), ("x", 1, False)],
)
def test_only_what_is_the_same_dimension_is_settled(
    measured: str, place: int, settled: bool, tmp_path: Path
) -> None:
    model = graph_of_a_reshape(measured, place)
    given = [{"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}]
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(model, before)
    settle_shapes(model.graph)
    onnx.save(model, after)
    assert ("Shape" not in {node.op_type for node in model.graph.node}) == settled
    assert np.array_equal(predict(after, given), predict(before, given))
