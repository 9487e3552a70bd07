"""Equal tensors of a graph, stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from autocompress.graphs.edit import merge_equal_initializers
from autocompress.graphs.runtime import predict

ROWS = np.arange(256, dtype=np.float32)
WEIGHTS: dict[str, NDArray[np.generic]] = {
    "first": ROWS,
    "second": ROWS.copy(),
    "third": ROWS.copy(),
    "declared": ROWS.copy(),
    "other shape": ROWS.reshape(2, 128),
    "other type": ROWS.view(np.int32),
    "other value": ROWS + 1,
    "small": ROWS[:255],
    "small too": ROWS[:255].copy(),
}


def write(path: Path) -> None:
    """``x`` plus first, second and what a branch adds, which is third."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    number = onnx.TensorProto.FLOAT
    branch = onnx.helper.make_graph(
        [make("Identity", ["third"], ["chosen"])], "branch", [], [value("chosen", number, [256])]
    )
    nodes = [
        make("Add", ["x", "first"], ["a"]),
        make("Add", ["a", "second"], ["b"]),
        make("If", ["yes"], ["c"], then_branch=branch, else_branch=branch),
        make("Add", ["b", "c"], ["y"]),
    ]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    tensors.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value("x", number, ["batch", 256]), value("declared", number, [256])],
        [value("y", number, ["batch", 256])],
        tensors,
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, path)


def test_equal_tensors_become_the_first(tmp_path: Path) -> None:
    """Of the same type and shape, of 1 kB or more, in branches too; what is declared as an input is
    a default, which may be given otherwise."""
    path = tmp_path / "model.onnx"
    write(path)
    inputs = [{"x": np.ones((2, 256), np.float32)}]
    before = predict(path, inputs)
    merge_equal_initializers(path)
    left = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert left == [*(name for name in WEIGHTS if name not in ("second", "third")), "yes"]
    assert np.array_equal(predict(path, inputs), before)
    assert before[0, 2] == pytest.approx(1 + 3 * 2)
