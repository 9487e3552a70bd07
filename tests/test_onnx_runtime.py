"""What onnxruntime makes of an exported graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from autocompress.graphs.export import to_onnx
from autocompress.graphs.reading import write_probe
from autocompress.graphs.runtime import predict, quantize_dynamic_int8
from autocompress.graphs.tidy import keep_normalization_apart
from autocompress.interfaces import Batch
from autocompress.training.teacher import load_classifier


def example() -> Batch:
    ones = np.ones((2, 8), np.int64)
    return Batch({"input_ids": 5 * ones, "token_type_ids": 0 * ones, "attention_mask": ones})


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    to_onnx(load_classifier(str(tiny_model), None), path, example())
    return path


def optimized_operators(path: Path, scratch: Path) -> Counter[str]:
    """Operators of the graph that a session really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_normalization_is_not_fused_with_the_residual_sum(exported: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "int8.onnx"
    quantize_dynamic_int8(exported, quantized)
    count = optimized_operators(quantized, tmp_path)
    assert count["SkipLayerNormalization"] == 0
    assert count["LayerNormalization"] == 9  # one after the embeddings, two in each of four layers


def test_without_the_rewrite_it_would_be_fused(exported: Path, tmp_path: Path) -> None:
    """Should this fail with a newer onnxruntime, the rewrite may have become useless."""
    model = onnx.load(exported)
    for node in model.graph.node:
        if node.op_type == "Sum":
            node.op_type = "Add"
    plain, quantized = tmp_path / "plain.onnx", tmp_path / "int8.onnx"
    onnx.save(model, plain)
    quantize_dynamic_int8(plain, quantized)
    assert optimized_operators(quantized, tmp_path)["SkipLayerNormalization"] > 0


def test_the_rewrite_computes_the_same(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    rewritten = [node for node in model.graph.node if node.op_type == "Sum"]
    assert len(rewritten) == 9
    for node in rewritten:
        node.op_type = "Add"
    plain = tmp_path / "plain.onnx"
    onnx.save(model, plain)
    inputs = [dict(example().inputs)]
    before = predict(plain, inputs)
    keep_normalization_apart(model.graph)
    onnx.save(model, plain)
    assert np.array_equal(predict(plain, inputs), before)
    assert np.array_equal(predict(exported, inputs), before)


def test_probe_runs_and_has_the_weights_it_says(tmp_path: Path) -> None:
    path = tmp_path / "probe.onnx"
    write_probe(path, width=64, inner=128, layers=3)
    weights = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    assert weights == {"embedding": (32, 64)} | {f"up{i}": (64, 128) for i in range(3)} | {
        f"down{i}": (128, 64) for i in range(3)
    }
    assert predict(path, [{"input_ids": np.ones((2, 5), np.int64)}]).shape == (2, 5, 64)
