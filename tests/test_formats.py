"""Conformance of the number formats: every file runs, is smaller, answers alike, and leaves no
matrix in fp32 but spared ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModelForSequenceClassification

from autocompress.candidate import Candidate
from autocompress.errors import CandidateFailed
from autocompress.families import FAMILIES
from autocompress.formats import FORMAT_SETTINGS, FORMATS, choices, convert, words
from autocompress.graphs import runtime
from autocompress.graphs.edit import merge_equal_initializers
from autocompress.graphs.export import to_onnx
from autocompress.graphs.reading import Product, float_weight_bytes, layer_of, operations
from autocompress.graphs.runtime import predict, quantize_int8_by_token
from autocompress.hardware.datasheet import roofline_ms
from autocompress.hardware.profile import RUNTIMES, Peaks
from autocompress.hardware.torch_cuda import _DTYPES
from autocompress.interfaces import Batch
from autocompress.latency.predictor import LatencyTable, Shape
from autocompress.search_space import SearchSpace
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS
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
VARIANTS = [
    (scheme, block)
    for scheme, known in FORMATS.items()
    for block in ((32, 128) if known.in_blocks else (None,))
]
QUANTIZED = [variant for variant in VARIANTS if FORMATS[variant[0]].stored != "fp32"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_graphs(tmp_path_factory.mktemp("graphs"))


Converted = Callable[[str, str, int | None], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def converted(graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A model in a number format, converted once, alone in its folder."""

    @cache
    def once(model: str, scheme: str, block: int | None) -> tuple[Path, dict[str, Any]]:
        target = tmp_path_factory.mktemp("converted") / "model.onnx"
        return target, convert(graphs[model], target, candidate(scheme, block), batches(0))

    return once


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
    assert tuple(TOLERANCES) == tuple(FORMATS)
    blocks = {block for _, block in VARIANTS if block is not None}
    [setting] = [
        setting for setting in FORMAT_SETTINGS if setting.name == "quantization.block_size"
    ]
    assert [size for size in range(1, 1025) if setting.domain.allows(size)] == sorted(blocks)
    assert set(CONFIGS) == set(FAMILIES)


@each_model
@each_variant
def test_logits_stay_near(
    graphs: dict[str, Path], converted: Converted, model: str, scheme: str, block: int | None
) -> None:
    target, _ = converted(model, scheme, block)
    error = logit_error(graphs[model], target)
    assert error <= TOLERANCES[scheme]
    assert (error == 0) == (scheme in ("fp32", "bf16"))


@each_model
@each_quantized
def test_every_matrix_is_converted(
    graphs: dict[str, Path], converted: Converted, model: str, scheme: str, block: int | None
) -> None:
    source, (target, report) = graphs[model], converted(model, scheme, block)
    before = matrices(source, onnx.TensorProto.FLOAT)
    assert (VOCABULARY, HIDDEN) in before and {(2, HIDDEN), (HIDDEN, 2)} & set(before)
    assert report == {"scheme": scheme, "layers": [scheme] * LAYERS, "left_in_fp32": {}}
    assert not set(before) & set(matrices(target, onnx.TensorProto.FLOAT))
    narrow = (
        (onnx.TensorProto.FLOAT16,)
        if scheme == "fp16"
        else (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    )
    assert matrices(target, *narrow).count((VOCABULARY, HIDDEN)) == 1
    assert target.stat().st_size < source.stat().st_size * (0.65 if scheme == "fp16" else 0.5)
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]


@each_model
@pytest.mark.parametrize("given", [{}, {"only": ["Gather"]}, {"spared": [1]}])
def test_int8_dynamic_is_the_graph_that_onnxruntime_makes(
    graphs: dict[str, Path], model: str, given: dict[str, Any], tmp_path: Path
) -> None:
    """Also of a channel of zeros."""
    graph = onnx.load(graphs[model])
    matrix = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2)
    numbers = onnx.numpy_helper.to_array(matrix).copy()
    numbers[:, 0] = 0
    matrix.CopyFrom(onnx.numpy_helper.from_array(numbers, matrix.name))
    onnx.save(graph, tmp_path / "fp32")
    runtime.quantize_dynamic_int8(tmp_path / "fp32", tmp_path / "own", **given)
    left = [
        node.name for node in graph.graph.node if layer_of(node.name) in given.get("spared", ())
    ]
    quantize_dynamic(
        runtime._without_gemm(tmp_path / "fp32"),
        tmp_path / "theirs",
        op_types_to_quantize=given.get("only"),
        nodes_to_exclude=left,
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    own, theirs = (onnx.load(tmp_path / name) for name in ("own", "theirs"))
    for tensor in theirs.graph.initializer:
        tensor.ClearField("data_location")
    assert own == theirs


@pytest.mark.parametrize("scheme", FORMATS)
def test_temporary_files_lie_beside_the_target(
    graphs: dict[str, Path], scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the system's folder, where a kill would leave them."""
    nowhere = str(tmp_path / "nowhere")
    monkeypatch.setattr(tempfile, "tempdir", nowhere)
    convert(graphs["bert"], tmp_path / "model.onnx", candidate(scheme), batches(0))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert tempfile.gettempdir() == nowhere


@each_model
def test_fp16_is_fp16_within(graphs: dict[str, Path], model: str, tmp_path: Path) -> None:
    """Each weight is the nearest float16; what goes in and comes out keeps its type."""
    source, target = graphs[model], tmp_path / "model.onnx"
    convert(source, target, candidate("fp16"), [])
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
    expected, logits = (predict(path, batches(1)) for path in (source, target))
    assert np.abs(logits - expected).max() <= 2e-2 * expected.std()


def test_under_bf16_the_file_is_the_fp32_one(graphs: dict[str, Path], tmp_path: Path) -> None:
    report = convert(graphs["bert"], tmp_path / "model.onnx", candidate("bf16"), [])
    assert (tmp_path / "model.onnx").read_bytes() == graphs["bert"].read_bytes()
    assert report == {"scheme": "bf16", "layers": ["bf16"] * LAYERS, "left_in_fp32": {}}
    assert [name for name, known in FORMATS.items() if known.stored != name] == ["bf16"]
    assert FORMATS["bf16"].stored == "fp32"


def test_bits_show_in_the_bytes(graphs: dict[str, Path], tmp_path: Path) -> None:
    """The embedding at 8 bits, the layers at 8 or 4 with a scale of 4 bytes for 32 weights; head
    and graph are small."""
    sizes = []
    for scheme, block in (("fp32", None), ("int8-weights", 32), ("int4-weights", 32)):
        convert(graphs["bert"], tmp_path / "model.onnx", candidate(scheme, block), [])
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
        convert(
            graphs["cut"], tmp_path / f"{name}.onnx", candidate(scheme, block, "ends"), batches(0)
        )
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def product(path: Path, weights: NDArray[np.float32]) -> None:
    """A graph of one matrix product."""
    make = onnx.helper
    shapes = {"x": ["rows", "tokens", weights.shape[0]], "y": ["rows", "tokens", weights.shape[1]]}
    ends = [
        make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    held = [onnx.numpy_helper.from_array(weights, "w")]
    nodes = [make.make_node("MatMul", ["x", "w"], ["y"], "/layer.0/product")]
    graph = make.make_graph(nodes, "one product", ends[:1], ends[1:], held)
    opsets = [make.make_opsetid("", 17)]
    onnx.save(make.make_model(graph, opset_imports=opsets, ir_version=9), path)


@pytest.mark.parametrize(
    ("scheme", "by_token"),
    [("int8-dynamic", False), ("int8-dynamic", True), ("int8-static", False)],
)
def test_int8_weights_have_a_scale_for_each_channel(
    scheme: str, by_token: bool, tmp_path: Path
) -> None:
    """Channels whose sizes differ by a thousand: with one scale the small ones would be 0."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 4)).astype(np.float32) * np.array(
        [1, 0.1, 0.01, 0.001], np.float32
    )
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    product(source, weights)
    x = rng.normal(size=(2, 5, 64)).astype(np.float32)
    convert(source, target, candidate(scheme), [{"x": x}], by_token=by_token)  # type: ignore[dict-item]
    expected, answers = x @ weights, predict(target, [{"x": x}])
    errors = np.abs(answers - expected).max((0, 1)) / np.abs(expected).max((0, 1))
    assert (errors < 0.03).all()


def test_by_token_every_number_comes_back_within_half_a_step_of_eight_bits(
    tmp_path: Path,
) -> None:
    """Tokens whose sizes differ by a thousand, through a matrix that int8 holds exactly."""
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    product(source, np.eye(64, dtype=np.float32))
    sizes = np.array([[1], [30], [1000]], np.float32)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64)).astype(np.float32) * sizes
    quantize_int8_by_token(source, target)
    half_a_step = np.abs(x).max(-1, keepdims=True) / 127 / 2
    assert (np.abs(predict(target, [{"x": x}]) - x) <= 1.001 * half_a_step).all()


def test_static_ranges_come_from_the_calibration(graphs: dict[str, Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        convert(
            graphs["bert"], tmp_path / f"{seed}.onnx", candidate("int8-static", None), batches(seed)
        )
    assert (tmp_path / "0.onnx").read_bytes() != (tmp_path / "1.onnx").read_bytes()


@each_model
def test_static_ranges_are_finite(graphs: dict[str, Path], model: str, tmp_path: Path) -> None:
    """The attention mask adds the lowest fp32 number to scores of padding; a range that holds it
    crushes all others."""
    convert(graphs[model], tmp_path / "model.onnx", candidate("int8-static", None), batches(0))
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
        convert(graphs["bert"], tmp_path / "model.onnx", candidate("int8-static", None), [])


def test_bytes_left_in_fp32_are_counted_by_hand(graphs: dict[str, Path]) -> None:
    weight_bytes = float_weight_bytes(graphs["bert"])
    embeddings = (VOCABULARY + POSITIONS + 2) * HIDDEN
    layers = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
    head = HIDDEN * HIDDEN + 2 * HIDDEN
    assert sum(weight_bytes.values()) == 4 * (embeddings + layers + head)
    assert max(weight_bytes.values()) == 4 * VOCABULARY * HIDDEN


def test_what_the_runtimes_gain_by_is_in_the_table() -> None:
    """A GPU computes in the first of its formats what it cannot compute otherwise."""
    assert RUNTIMES == {
        "onnxruntime-cpu": ("fp32", "int8-dynamic", "int8-static", "int8-weights", "int4-weights"),
        "onnxruntime-cuda": ("fp16", "fp32"),
        "torch-cuda": ("bf16", "fp16", "fp32"),
    }
    assert {runtime for known in FORMATS.values() for runtime in known.gains} == set(RUNTIMES)
    assert set(_DTYPES) == set(RUNTIMES["torch-cuda"])
    assert {name: known.name for name, known in FORMATS.items()} == {name: name for name in FORMATS}
    assert {known.stored for known in FORMATS.values()} <= set(FORMATS)


@pytest.mark.parametrize("scheme", FORMATS)
def test_estimates_take_their_bytes_from_the_table(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of weights that do not fit the caches."""
    slow_memory = Peaks({"fp32": 1e9}, 1.0, 1.0, 1.0)
    whole = Shape(((8, 64, scheme),) * 4, scheme)
    table = LatencyTable([(whole, 1.0)], (1e6, 1e5))

    def estimates() -> tuple[float, float]:
        beyond_1_mb = table._terms(whole, (1.0, 8.0))[-2]
        return roofline_ms([Product(1000, scheme)], 0, slow_memory, 1, 1), beyond_1_mb + 1.0

    before, own = estimates(), FORMATS[scheme]
    monkeypatch.setitem(FORMATS, scheme, replace(own, bytes=2 * own.bytes))
    assert estimates() == pytest.approx([2 * value for value in before])
    assert before[1] == pytest.approx(own.bytes * 4 * (8 * 1.0 + 64 * 0.1))


@each_variant
def test_a_file_is_read_as_what_it_was_converted_to(
    graphs: dict[str, Path], scheme: str, block: int | None, tmp_path: Path
) -> None:
    convert(graphs["bert"], tmp_path / "model.onnx", candidate(scheme, block), batches(0))
    products, _ = operations(tmp_path / "model.onnx")
    assert {product.scheme for product in products} == {FORMATS[scheme].stored}
    assert sorted(product.weights for product in products) == sorted(
        product.weights for product in operations(graphs["bert"])[0]
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"layers.keep": 0.5}, "fp32"),
        ({"quantization.scheme": "fp16"}, "fp16"),
        ({"quantization.scheme": "int8-dynamic"}, "int8-dynamic"),
        (
            {"quantization.scheme": "int8-dynamic", "quantization.spared": "ends"},
            "int8-dynamic, spared ends",
        ),
        ({"quantization.scheme": "int4-weights"}, "int4-weights/32"),
        (
            {
                "quantization.scheme": "int4-weights",
                "quantization.block_size": 128,
                "quantization.spared": [0, 2],
            },
            "int4-weights/128, spared [0, 2]",
        ),
    ],
)
def test_a_format_in_words(given: dict[str, Any], expected: str) -> None:
    assert words(SETTINGS.candidate(given).as_dict()) == expected


def test_choices_are_all_that_a_space_allows_each_once() -> None:
    """In the order of the space; settings that mean nothing beside a format are dropped."""
    quantization = {
        "scheme": ["int4-weights", "fp32", "int8-dynamic"],
        "block_size": [128, 32],
        "spared": ["none", "first"],
    }
    space = SearchSpace.from_mapping(
        "test", {"layers": {"keep": [1.0, 0.5]}, "quantization": quantization}
    )
    int4, int8, first = (
        {"quantization.scheme": "int4-weights"},
        {"quantization.scheme": "int8-dynamic"},
        {"quantization.spared": "first"},
    )
    wide = int4 | {"quantization.block_size": 128}
    expected = [wide, wide | first, int4, int4 | first, {}, int8, int8 | first]
    assert [choice.as_dict() for choice in choices(space.parameters)] == expected
    assert choices(()) == [Candidate(())]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One layer, three that share its parameters, and the latter with a copy for each."""
    folder = tmp_path_factory.mktemp("shared")
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(CONFIGS["bert"]())  # type: ignore[no-untyped-call]
    first, *others = model.bert.encoder.layer
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "LayerNorm.weight" in key else 0.0, 0.06)
    for other in others:
        for mine, own in zip(first.modules(), other.modules(), strict=True):
            own._parameters.update(mine._parameters)
    one = FAMILIES["bert"].cut(model, Structure((Layer(0, (0, 1, 2, 3), tuple(range(FFN))),)))
    paths = {name: folder / f"{name}.onnx" for name in ("one", "shared", "copies")}
    to_onnx(one, paths["one"], Batch(batches(0)[0]))
    to_onnx(model, paths["shared"], Batch(batches(0)[0]))
    copied = onnx.load(paths["shared"])
    stored = {tensor.name: tensor for tensor in copied.graph.initializer}
    readers = [
        node for node in copied.graph.node if node.op_type == "MatMul" and node.input[1] in stored
    ]
    for tensor in [stored[name] for name in {node.input[1] for node in readers}]:
        copied.graph.initializer.remove(tensor)
    for node in readers:
        copy = copied.graph.initializer.add()
        copy.CopyFrom(stored[node.input[1]])
        copy.name = node.input[1] = f"{node.name}_weight"
    onnx.save(copied, paths["copies"])
    return paths


def stored_bytes(path: Path) -> int:
    """Of all tensors."""
    tensors = onnx.load(path).graph.initializer
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors)


@each_variant
def test_layers_that_share_their_weights_are_converted_once(
    shared: dict[str, Path], scheme: str, block: int | None, tmp_path: Path
) -> None:
    """Or stored once in the end: of copies, equal ones are merged, to the same logits."""
    sizes, answers = {}, {}
    for name, source in shared.items():
        target = tmp_path / f"{name}.onnx"
        report = convert(source, target, candidate(scheme, block), batches(0))
        assert report["left_in_fp32"] == {}
        sizes[name], answers[name] = stored_bytes(target), predict(target, batches(1))
    assert sizes["shared"] - sizes["one"] < 500
    assert sizes["copies"] - sizes["one"] < 0.03 * sizes["one"]
    assert np.array_equal(answers["copies"], answers["shared"])
    if FORMATS[scheme].stored == "fp32":
        assert np.array_equal(answers["shared"], predict(shared["shared"], batches(1)))


@each_variant
def test_weights_of_their_own_stay_as_they_are(
    graphs: dict[str, Path], scheme: str, block: int | None, tmp_path: Path
) -> None:
    target = tmp_path / "model.onnx"
    convert(graphs["bert"], target, candidate(scheme, block), batches(0))
    before = target.read_bytes()
    merge_equal_initializers(target)
    assert target.read_bytes() == before


LEARNED = {
    "bert.encoder.layer.0.attention.self.query": (-1.0, 2.0),
    "bert.encoder.layer.0.attention.self.key": (-3.0, 1.0),
    "bert.encoder.layer.1.output.dense": (-0.2, 0.6),
    "bert.encoder.layer.2.attention.output.dense": (-0.5, -0.25),
    "classifier": (0.5, 4.0),
}


def activations(path: Path) -> dict[str, tuple[float, int]]:
    """What is quantized, with scale and zero point."""
    graph = onnx.load(path).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.input[0]: (held[node.input[1]].item(), held[node.input[2]].item())
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_learned_ranges_take_the_place_of_those_seen(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    """Query, key and value read the same tensor; zero lies in every range."""
    source = graphs["bert"]
    inputs = {node.name: node.input[0] for node in onnx.load(source).graph.node if node.input}
    for name, ranges in (("seen", None), ("learned", LEARNED)):
        target = tmp_path / f"{name}.onnx"
        convert(source, target, candidate("int8-static"), batches(0), ranges=ranges)
    seen, learned = (activations(tmp_path / f"{name}.onnx") for name in ("seen", "learned"))
    expected = {
        "/model/bert/encoder/layer.0/attention/self/query/MatMul": (5 / 255, 153),
        "/model/bert/encoder/layer.1/output/dense/MatMul": (0.8 / 255, 64),
        "/model/bert/encoder/layer.2/attention/output/dense/MatMul": (0.5 / 255, 255),
        "/model/classifier/Gemm": (4 / 255, 0),
    }
    changed = {inputs[node]: values for node, values in expected.items()}
    for tensor, (scale, zero) in changed.items():
        assert learned[tensor] == pytest.approx((scale, zero), rel=1e-6)
        assert learned[tensor] != seen[tensor]
    assert {key: learned[key] for key in learned.keys() - changed} == {
        key: seen[key] for key in seen.keys() - changed
    }


def test_ranges_of_spared_layers_and_of_other_formats_change_nothing(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    only = {"bert.encoder.layer.1.output.dense": (-0.2, 0.6)}
    for chosen in (candidate("int8-static", spared=[1]), candidate("int8-dynamic")):
        for name, ranges in (("without", None), ("with", only)):
            convert(graphs["bert"], tmp_path / f"{name}.onnx", chosen, batches(0), ranges=ranges)
        assert (tmp_path / "with.onnx").read_bytes() == (tmp_path / "without.onnx").read_bytes()


def test_a_range_of_no_product_fails_the_candidate(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        CandidateFailed, match=r"^int8-static: ValueError: the graph has no product of classifer$"
    ):
        convert(
            graphs["bert"],
            tmp_path / "model.onnx",
            candidate("int8-static"),
            batches(0),
            ranges={"classifer": (0.0, 1.0)},
        )
