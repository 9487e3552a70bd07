"""Conformance of the number formats: every file runs, is smaller, answers alike, and leaves no matrix in fp32 but spared ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PretrainedConfig,
    Qwen2Config,
    RobertaConfig,
)

from autocompress.candidate import Candidate
from autocompress.errors import CandidateFailed, UserError
from autocompress.export import to_onnx
from autocompress.families import FAMILIES
from autocompress.interfaces import Batch
from autocompress.onnx_graphs import float_weight_bytes
from autocompress.onnx_runtime import predict
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS
from autocompress.techniques.quantization import MORE_BITS, QUANTIZATION_SETTINGS, SCHEMES, layer_schemes, onnx_format, quantize

VOCABULARY, HIDDEN, FFN, POSITIONS, LAYERS = 3000, 64, 128, 32, 3
Inputs = dict[str, NDArray[np.int64]]

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
VARIANTS = [(scheme, block) for scheme in SCHEMES for block in ((32, 128) if scheme in IN_BLOCKS else (None,))]
QUANTIZED = [variant for variant in VARIANTS if variant[0] not in ("fp32", "bf16")]
SPARED: list[tuple[Any, list[int]]] = [
    ("none", []),
    ("first", [0]),
    ("last", [2]),
    ("ends", [0, 2]),
    ([1], [1]),
    ([0, 1, 2], [0, 1, 2]),
]
"""Setting, and the layers of three that it spares."""

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": FFN,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 1,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=FFN,
        max_position_embeddings=POSITIONS,
    ),
    "roberta": lambda: RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=FFN,
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        pad_token_id=1,
    ),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, n_layers=LAYERS, n_heads=4, hidden_dim=FFN, max_position_embeddings=POSITIONS
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_inner=FFN, n_positions=POSITIONS, pad_token_id=1
    ),
    "llama": lambda: LlamaConfig(**LLAMA),
    "mistral": lambda: MistralConfig(**LLAMA),
    "qwen2": lambda: Qwen2Config(**LLAMA),
}
MODELS = (*FAMILIES, "cut")
CUT = Structure((Layer(0, (), (1, 5, 40)), Layer(1, (0, 3), tuple(range(0, FFN, 3))), Layer(2, (), ())))


def batches(seed: int) -> list[Inputs]:
    """Two batches with padding."""
    rng = np.random.default_rng(seed)
    found = []
    for length in (9, 14):
        mask = (np.arange(length) < rng.integers(2, length + 1, (32, 1))).astype(np.int64)
        ids = np.where(mask == 1, rng.integers(5, VOCABULARY, (32, length)), 1)
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An fp32 graph of each family, and one of a cut model."""
    folder = tmp_path_factory.mktemp("graphs")
    for name in MODELS:
        torch.manual_seed(0)
        config = CONFIGS["bert" if name == "cut" else name]()
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 0.06)
                elif key.endswith("bias"):
                    parameter.normal_(0, 0.05)
        smaller = FAMILIES["bert"].cut(model, CUT) if name == "cut" else model
        to_onnx(smaller, folder / f"{name}.onnx", Batch(batches(0)[0]))
    return {name: folder / f"{name}.onnx" for name in MODELS}


def candidate(scheme: str, block: int | None = None, spared: Any = "none") -> Candidate:
    chosen = {"quantization.scheme": scheme, "quantization.spared": spared}
    return SETTINGS.candidate(chosen | ({} if block is None else {"quantization.block_size": block}))


def matrices(path: Path, *types: int) -> list[tuple[int, ...]]:
    """Shapes of the stored tensors of two dimensions, scales aside."""
    stored = [tensor for tensor in onnx.load(path).graph.initializer if not tensor.name.endswith(("_scale", "_scales"))]
    return [tuple(tensor.dims) for tensor in stored if len(tensor.dims) == 2 and tensor.data_type in types]


def layer_weights(path: Path) -> list[list[str]]:
    """Names of the matrices that each layer of an fp32 graph multiplies by."""
    graph = onnx.load(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in stored]
    return [[node.input[1] for node in products if f".{i}/" in node.name] for i in range(LAYERS)]


def stored_as(path: Path, weight: str) -> dict[str, tuple[int, bytes]]:
    """What a graph holds for a matrix of the fp32 graph: what is added to its name, to type and bytes."""
    return {
        tensor.name.removeprefix(weight): (tensor.data_type, onnx.numpy_helper.to_array(tensor).tobytes())
        for tensor in onnx.load(path).graph.initializer
        if tensor.name == weight or tensor.name.startswith(f"{weight}_")
    }


def logit_error(source: Path, target: Path) -> float:
    """Root mean square of the error, as a share of the standard deviation."""
    expected, found = (predict(path, batches(1)) for path in (source, target))
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


each_model = pytest.mark.parametrize("model", MODELS)
each_variant = pytest.mark.parametrize(("scheme", "block"), VARIANTS)
each_quantized = pytest.mark.parametrize(("scheme", "block"), QUANTIZED)


def test_every_scheme_has_a_row_here() -> None:
    assert tuple(TOLERANCES) == SCHEMES
    blocks = {block for _, block in VARIANTS if block is not None}
    [setting] = [setting for setting in QUANTIZATION_SETTINGS if setting.name == "quantization.block_size"]
    assert [size for size in range(1, 1025) if setting.domain.allows(size)] == sorted(blocks)
    assert set(CONFIGS) == set(FAMILIES)


@each_model
@each_variant
def test_logits_stay_near(graphs: dict[str, Path], model: str, scheme: str, block: int | None, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    quantize(graphs[model], target, candidate(scheme, block), batches(0))
    error = logit_error(graphs[model], target)
    assert error <= TOLERANCES[scheme]
    assert (error == 0) == (scheme in ("fp32", "bf16"))


@each_model
@each_quantized
def test_every_matrix_is_converted(graphs: dict[str, Path], model: str, scheme: str, block: int | None, tmp_path: Path) -> None:
    source, target = graphs[model], tmp_path / "model.onnx"
    before = matrices(source, onnx.TensorProto.FLOAT)
    assert (VOCABULARY, HIDDEN) in before and {(2, HIDDEN), (HIDDEN, 2)} & set(before)
    report = quantize(source, target, candidate(scheme, block), batches(0))
    assert report == {"scheme": scheme, "layers": [scheme] * LAYERS, "left_in_fp32": {}}
    assert not set(before) & set(matrices(target, onnx.TensorProto.FLOAT))
    narrow = (onnx.TensorProto.FLOAT16,) if scheme == "fp16" else (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    assert matrices(target, *narrow).count((VOCABULARY, HIDDEN)) == 1
    assert target.stat().st_size < source.stat().st_size * (0.65 if scheme == "fp16" else 0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


@each_model
def test_fp16_is_fp16_within(graphs: dict[str, Path], model: str, tmp_path: Path) -> None:
    """Each weight is the nearest float16; what goes in and comes out keeps its type."""
    source, target = graphs[model], tmp_path / "model.onnx"
    quantize(source, target, candidate("fp16"), [])
    before, after = (onnx.load(path).graph for path in (source, target))
    weights = [tensor for tensor in before.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    halves = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.initializer}
    assert {tensor.data_type for tensor in after.initializer} == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    for tensor in weights:
        assert np.array_equal(halves[tensor.name], onnx.numpy_helper.to_array(tensor).astype(np.float16))
    assert list(after.input) == list(before.input)
    assert [item.type.tensor_type.elem_type for item in after.output] == [onnx.TensorProto.FLOAT]
    assert {node.op_type for node in before.node} == {node.op_type for node in after.node}
    expected, found = (predict(path, batches(1)) for path in (source, target))
    assert np.abs(found - expected).max() <= 2e-2 * expected.std()


def test_under_bf16_the_file_is_the_fp32_one(graphs: dict[str, Path], tmp_path: Path) -> None:
    report = quantize(graphs["bert"], tmp_path / "model.onnx", candidate("bf16"), [])
    assert (tmp_path / "model.onnx").read_bytes() == graphs["bert"].read_bytes()
    assert report == {"scheme": "bf16", "layers": ["bf16"] * LAYERS, "left_in_fp32": {}}
    assert {scheme: onnx_format(scheme) for scheme in SCHEMES if onnx_format(scheme) != scheme} == {"bf16": "fp32"}


@each_model
@pytest.mark.parametrize("scheme", MORE_BITS)
def test_each_layer_is_stored_as_if_all_had_its_scheme(graphs: dict[str, Path], model: str, scheme: str, tmp_path: Path) -> None:
    """Spared layers hold the bits of fp32, or of int8-weights beside int4-weights; the others what they hold if none is spared."""
    source, target = graphs[model], tmp_path / "model.onnx"
    richer = "int8-weights" if scheme == "int4-weights" else "fp32"
    uniform = {}
    for name in (scheme, richer):
        uniform[name] = tmp_path / f"{name}.onnx"
        quantize(source, uniform[name], candidate(name), batches(0))
    weights = layer_weights(source)
    for spared, listed in SPARED:
        report = quantize(source, target, candidate(scheme, spared=spared), batches(0))
        schemes = [richer if i in listed else scheme for i in range(LAYERS)]
        assert report["layers"] == schemes
        for own, names in zip(schemes, weights, strict=True):
            assert [stored_as(target, name) for name in names] == [stored_as(uniform[own], name) for name in names]
        left = [name for own, names in zip(schemes, weights, strict=True) if own == "fp32" for name in names]
        assert sorted(report["left_in_fp32"]) == sorted(left)
        assert sorted(path.stem for path in tmp_path.iterdir()) == sorted({"model", *uniform})


SUFFIXES = {
    "fp32": {""},
    "int8-dynamic": {"_quantized", "_scale", "_zero_point"},
    "int8-static": {"_quantized", "_scale", "_zero_point"},
    "int8-weights": {"_Q8", "_scales"},
    "int4-weights": {"_Q4", "_scales"},
}


@pytest.mark.parametrize("scheme", SUFFIXES)
def test_a_layer_has_the_bits_of_its_scheme(graphs: dict[str, Path], scheme: str, tmp_path: Path) -> None:
    """Names, sizes: 4 bytes a weight in fp32, else 1 or a half (blocks of 32 divide the widths here)."""
    quantize(graphs["bert"], tmp_path / "model.onnx", candidate(scheme), batches(0))
    names = layer_weights(graphs["bert"])
    assert [len(layer) for layer in names] == [6] * LAYERS
    for name in [name for layer in names for name in layer]:
        stored = stored_as(tmp_path / "model.onnx", name)
        assert set(stored) == SUFFIXES[scheme]
        [(_, whole)] = stored_as(graphs["bert"], name).values()
        [held] = [data for suffix, (_, data) in stored.items() if suffix in ("", "_quantized", "_Q8", "_Q4")]
        assert len(whole) / len(held) == {"fp32": 1, "int4-weights": 8}.get(scheme, 4)


@each_model
@pytest.mark.parametrize("scheme", MORE_BITS)
def test_sparing_all_layers_brings_the_logits_nearer(graphs: dict[str, Path], model: str, scheme: str, tmp_path: Path) -> None:
    """With layers that matter more than the embedding and the head, which are never spared."""
    source, target = tmp_path / "fp32.onnx", tmp_path / "model.onnx"
    louder = onnx.load(graphs[model])
    names = [name for layer in layer_weights(graphs[model]) for name in layer]
    for tensor in louder.graph.initializer:
        if tensor.name in names:
            tensor.raw_data = (3 * onnx.numpy_helper.to_array(tensor)).tobytes()
    onnx.save(louder, source)
    errors = []
    for spared in ("none", list(range(LAYERS))):
        quantize(source, target, candidate(scheme, spared=spared), batches(0))
        errors.append(logit_error(source, target))
    assert 0 < errors[1] < 0.9 * errors[0]


class Gemms(nn.Module):
    """Layers whose product is written as a Gemm, and under the name that GPT-2 gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.h = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(LAYERS)])

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        hidden = self.embedding(input_ids).mean(1)
        for layer in self.h:
            hidden = torch.tanh(layer(hidden))
        return SimpleNamespace(logits=hidden)


@pytest.mark.parametrize("scheme", MORE_BITS)
def test_layers_of_gemms_are_spared_too(scheme: str, tmp_path: Path) -> None:
    """Some quantizers write a Gemm as a MatMul of another name."""
    inputs = [{"input_ids": batch["input_ids"]} for batch in batches(0)]
    to_onnx(Gemms(), tmp_path / "fp32.onnx", Batch(inputs[0]))
    assert "/model/h.1/Gemm" in [node.name for node in onnx.load(tmp_path / "fp32.onnx").graph.node]
    report = quantize(tmp_path / "fp32.onnx", tmp_path / "model.onnx", candidate(scheme, spared=[1]), inputs)
    assert report["layers"] == [scheme, MORE_BITS[scheme], scheme]
    for i, own in enumerate(report["layers"]):
        assert set(stored_as(tmp_path / "model.onnx", f"model.h.{i}.weight")) == SUFFIXES[own]
    predict(tmp_path / "model.onnx", inputs)


@pytest.mark.parametrize(
    ("scheme", "spared", "layers", "expected"),
    [
        ("fp32", "ends", 2, ("fp32", "fp32")),
        ("bf16", "first", 2, ("bf16", "bf16")),
        ("int8-static", "none", 2, ("int8-static", "int8-static")),
        ("int8-dynamic", "ends", 1, ("fp32",)),
        ("int8-dynamic", "last", 3, ("int8-dynamic", "int8-dynamic", "fp32")),
        ("int8-weights", [0, 2], 3, ("fp32", "int8-weights", "fp32")),
        ("int4-weights", "ends", 4, ("int8-weights", "int4-weights", "int4-weights", "int8-weights")),
    ],
)
def test_the_scheme_of_each_layer(scheme: str, spared: Any, layers: int, expected: tuple[str, ...]) -> None:
    assert layer_schemes(candidate(scheme, spared=spared), layers) == expected


def test_a_spared_layer_that_is_not_there_fails_the_candidate(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CandidateFailed, match=r"^quantization.spared names layer 3, the model has 3 \(0 to 2\)$"):
        quantize(graphs["bert"], tmp_path / "model.onnx", candidate("int8-dynamic", spared=[1, 3]), [])
    assert list(tmp_path.iterdir()) == []


def test_spared_layers_are_a_rule_or_an_ascending_list() -> None:
    domain = SETTINGS.by_name["quantization.spared"].domain
    assert [value for value in ("none", "first", "last", "ends", (0,), (1, 2)) if not domain.allows(value)] == []
    refused = ("all", 1, 0.5, True, (), (2, 1), (1, 1), (-1, 0), (0.0,), (False, True), ("first",), ((0,),))
    assert [value for value in refused if domain.allows(value)] == []
    with pytest.raises(
        UserError, match=r"quantization.spared is \[2, 1\], allowed is one of none, first, last, ends, or an ascending"
    ):
        candidate("int8-dynamic", spared=[2, 1])


def test_candidates_that_spare_alike_are_the_same() -> None:
    """The first layer alone has one form; where nothing can be spared, the setting is dropped."""
    assert candidate("int8-dynamic", spared=[0]) == candidate("int8-dynamic", spared="first")
    assert candidate("int4-weights", spared=[0, 2]).as_dict()["quantization.spared"] == [0, 2]
    assert len({candidate("int8-dynamic", spared=spared) for spared, _ in SPARED}) == len(SPARED)
    for scheme in SCHEMES:
        assert ("quantization.spared" in candidate(scheme).as_dict()) == (scheme in MORE_BITS)
        assert (candidate(scheme) == candidate(scheme, spared="last")) == (scheme not in MORE_BITS)


def test_bits_show_in_the_bytes(graphs: dict[str, Path], tmp_path: Path) -> None:
    """The embedding at 8 bits, the layers at 8 or 4 with a scale of 4 bytes for 32 weights; head and graph are small."""
    sizes = []
    for scheme, block in (("fp32", None), ("int8-weights", 32), ("int4-weights", 32)):
        quantize(graphs["bert"], tmp_path / "model.onnx", candidate(scheme, block), [])
        sizes.append((tmp_path / "model.onnx").stat().st_size)
    layers = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
    assert sizes[0] - sizes[1] == pytest.approx(3 * VOCABULARY * HIDDEN + (3 - 4 / 32) * layers, rel=0.03)
    assert sizes[1] - sizes[2] == pytest.approx(layers / 2, rel=0.1)


@each_variant
def test_same_candidate_same_bytes(graphs: dict[str, Path], scheme: str, block: int | None, tmp_path: Path) -> None:
    for name in ("first", "second"):
        quantize(graphs["cut"], tmp_path / f"{name}.onnx", candidate(scheme, block, "ends"), batches(0))
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_static_ranges_come_from_the_calibration(graphs: dict[str, Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        quantize(graphs["bert"], tmp_path / f"{seed}.onnx", candidate("int8-static", None), batches(seed))
    assert (tmp_path / "0.onnx").read_bytes() != (tmp_path / "1.onnx").read_bytes()


@each_model
def test_static_ranges_are_finite(graphs: dict[str, Path], model: str, tmp_path: Path) -> None:
    """The attention mask adds the lowest fp32 number to scores of padding; a range that holds it crushes all others."""
    quantize(graphs[model], tmp_path / "model.onnx", candidate("int8-static", None), batches(0))
    scales = {
        tensor.name: onnx.numpy_helper.to_array(tensor).max()
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
        if tensor.name.endswith("_scale")
    }
    assert len(scales) > 10
    assert {name: scale for name, scale in scales.items() if not scale < 1} == {}


def test_static_without_calibration_fails_the_candidate(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CandidateFailed, match=r"^int8-static: ValueError: "):
        quantize(graphs["bert"], tmp_path / "model.onnx", candidate("int8-static", None), [])


def test_bytes_left_in_fp32_are_counted_by_hand(graphs: dict[str, Path]) -> None:
    found = float_weight_bytes(graphs["bert"])
    embeddings = (VOCABULARY + POSITIONS + 2) * HIDDEN
    layers = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
    head = HIDDEN * HIDDEN + 2 * HIDDEN
    assert sum(found.values()) == 4 * (embeddings + layers + head)
    assert max(found.values()) == 4 * VOCABULARY * HIDDEN
