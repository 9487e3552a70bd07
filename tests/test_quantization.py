"""Conformance of the number formats: every file runs, is smaller, answers alike, and leaves no
matrix in fp32 but spared ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from autocompress.errors import CandidateFailed
from autocompress.families import FAMILIES
from autocompress.graphs.reading import float_weight_bytes
from autocompress.graphs.runtime import predict
from autocompress.techniques.quantization import (
    QUANTIZATION_SETTINGS,
    SCHEMES,
    onnx_format,
    quantize,
)
from tests.small_graphs import (
    CONFIGS,
    FFN,
    HIDDEN,
    LAYERS,
    POSITIONS,
    VOCABULARY,
    batches,
    candidate,
    each_model,
    logit_error,
    write_graphs,
)

TOLERANCES = {
    "fp32": 0.0,
    "fp16": 0.005,
    "bf16": 0.0,
    "int8-dynamic": 0.06,
    "int8-static": 0.15,
    "int8-weights": 0.05,
    "int4-weights": 0.4,
}
"""Root mean square of the error of a logit, as a share of the logits' standard deviation."""
IN_BLOCKS = ("int8-weights", "int4-weights")
VARIANTS = [
    (scheme, block)
    for scheme in SCHEMES
    for block in ((32, 128) if scheme in IN_BLOCKS else (None,))
]
QUANTIZED = [variant for variant in VARIANTS if variant[0] not in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_graphs(tmp_path_factory.mktemp("graphs"))


def matrices(path: Path, *types: int) -> list[tuple[int, ...]]:
    """Shapes of the stored tensors of two dimensions, scales aside."""
    stored = [
        tensor
        for tensor in onnx.load(path).graph.initializer
        if not tensor.name.endswith(("_scale", "_scales"))
    ]
    return [
        tuple(tensor.dims)
        for tensor in stored
        if len(tensor.dims) == 2 and tensor.data_type in types
    ]


each_variant = pytest.mark.parametrize(("scheme", "block"), VARIANTS)
each_quantized = pytest.mark.parametrize(("scheme", "block"), QUANTIZED)


def test_every_scheme_has_a_row_here() -> None:
    assert tuple(TOLERANCES) == SCHEMES
    blocks = {block for _, block in VARIANTS if block is not None}
    [setting] = [
        setting for setting in QUANTIZATION_SETTINGS if setting.name == "quantization.block_size"
    ]
    assert [size for size in range(1, 1025) if setting.domain.allows(size)] == sorted(blocks)
    assert set(CONFIGS) == set(FAMILIES)


@each_model
@each_variant
def test_logits_stay_near(
    graphs: dict[str, Path], model: str, scheme: str, block: int | None, tmp_path: Path
) -> None:
    target = tmp_path / "model.onnx"
    quantize(graphs[model], target, candidate(scheme, block), batches(0))
    error = logit_error(graphs[model], target)
    assert error <= TOLERANCES[scheme]
    assert (error == 0) == (scheme in ("fp32", "bf16"))


@each_model
@each_quantized
def test_every_matrix_is_converted(
    graphs: dict[str, Path], model: str, scheme: str, block: int | None, tmp_path: Path
) -> None:
    source, target = graphs[model], tmp_path / "model.onnx"
    before = matrices(source, onnx.TensorProto.FLOAT)
    assert (VOCABULARY, HIDDEN) in before and {(2, HIDDEN), (HIDDEN, 2)} & set(before)
    report = quantize(source, target, candidate(scheme, block), batches(0))
    assert report == {"scheme": scheme, "layers": [scheme] * LAYERS, "left_in_fp32": {}}
    assert not set(before) & set(matrices(target, onnx.TensorProto.FLOAT))
    narrow = (
        (onnx.TensorProto.FLOAT16,)
        if scheme == "fp16"
        else (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    )
    assert matrices(target, *narrow).count((VOCABULARY, HIDDEN)) == 1
    assert target.stat().st_size < source.stat().st_size * (0.65 if scheme == "fp16" else 0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


@each_model
def test_fp16_is_fp16_within(graphs: dict[str, Path], model: str, tmp_path: Path) -> None:
    """Each weight is the nearest float16; what goes in and comes out keeps its type."""
    source, target = graphs[model], tmp_path / "model.onnx"
    quantize(source, target, candidate("fp16"), [])
    before, after = (onnx.load(path).graph for path in (source, target))
    weights = [
        tensor for tensor in before.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    halves = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.initializer}
    assert {tensor.data_type for tensor in after.initializer} == {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT64,
    }
    for tensor in weights:
        assert np.array_equal(
            halves[tensor.name], onnx.numpy_helper.to_array(tensor).astype(np.float16)
        )
    assert list(after.input) == list(before.input)
    assert [item.type.tensor_type.elem_type for item in after.output] == [onnx.TensorProto.FLOAT]
    assert {node.op_type for node in before.node} == {node.op_type for node in after.node}
    expected, found = (predict(path, batches(1)) for path in (source, target))
    assert np.abs(found - expected).max() <= 2e-2 * expected.std()


def test_under_bf16_the_file_is_the_fp32_one(graphs: dict[str, Path], tmp_path: Path) -> None:
    report = quantize(graphs["bert"], tmp_path / "model.onnx", candidate("bf16"), [])
    assert (tmp_path / "model.onnx").read_bytes() == graphs["bert"].read_bytes()
    assert report == {"scheme": "bf16", "layers": ["bf16"] * LAYERS, "left_in_fp32": {}}
    assert {scheme: onnx_format(scheme) for scheme in SCHEMES if onnx_format(scheme) != scheme} == {
        "bf16": "fp32"
    }


def test_bits_show_in_the_bytes(graphs: dict[str, Path], tmp_path: Path) -> None:
    """The embedding at 8 bits, the layers at 8 or 4 with a scale of 4 bytes for 32 weights; head
    and graph are small."""
    sizes = []
    for scheme, block in (("fp32", None), ("int8-weights", 32), ("int4-weights", 32)):
        quantize(graphs["bert"], tmp_path / "model.onnx", candidate(scheme, block), [])
        sizes.append((tmp_path / "model.onnx").stat().st_size)
    layers = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
    assert sizes[0] - sizes[1] == pytest.approx(
        3 * VOCABULARY * HIDDEN + (3 - 4 / 32) * layers, rel=0.03
    )
    assert sizes[1] - sizes[2] == pytest.approx(layers / 2, rel=0.1)


@each_variant
def test_same_candidate_same_bytes(
    graphs: dict[str, Path], scheme: str, block: int | None, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        quantize(
            graphs["cut"], tmp_path / f"{name}.onnx", candidate(scheme, block, "ends"), batches(0)
        )
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_static_ranges_come_from_the_calibration(graphs: dict[str, Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        quantize(
            graphs["bert"], tmp_path / f"{seed}.onnx", candidate("int8-static", None), batches(seed)
        )
    assert (tmp_path / "0.onnx").read_bytes() != (tmp_path / "1.onnx").read_bytes()


@each_model
def test_static_ranges_are_finite(graphs: dict[str, Path], model: str, tmp_path: Path) -> None:
    """The attention mask adds the lowest fp32 number to scores of padding; a range that holds it
    crushes all others."""
    quantize(graphs[model], tmp_path / "model.onnx", candidate("int8-static", None), batches(0))
    scales = {
        tensor.name: onnx.numpy_helper.to_array(tensor).max()
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
        if tensor.name.endswith("_scale")
    }
    assert len(scales) > 10
    assert {name: scale for name, scale in scales.items() if not scale < 1} == {}


def test_static_without_calibration_fails_the_candidate(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CandidateFailed, match=r"^int8-static: ValueError: "):
        quantize(graphs["bert"], tmp_path / "model.onnx", candidate("int8-static", None), [])


def test_bytes_left_in_fp32_are_counted_by_hand(graphs: dict[str, Path]) -> None:
    found = float_weight_bytes(graphs["bert"])
    embeddings = (VOCABULARY + POSITIONS + 2) * HIDDEN
    layers = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
    head = HIDDEN * HIDDEN + 2 * HIDDEN
    assert sum(found.values()) == 4 * (embeddings + layers + head)
    assert max(found.values()) == 4 * VOCABULARY * HIDDEN
