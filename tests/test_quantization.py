"""Conformance of the quantization schemes: every file runs, is smaller, answers alike, and leaves no matrix in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    RobertaConfig,
)

from autocompress.candidate import Candidate
from autocompress.errors import CandidateFailed
from autocompress.export import to_onnx
from autocompress.families import FAMILIES
from autocompress.interfaces import Batch
from autocompress.onnx_runtime import float_weight_bytes, predict
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS
from autocompress.techniques.quantization import QUANTIZATION_SETTINGS, SCHEMES, quantize

VOCABULARY, HIDDEN, FFN, POSITIONS = 3000, 64, 128, 32
Inputs = dict[str, NDArray[np.int64]]

TOLERANCES = {"fp32": 0.0, "int8-dynamic": 0.06, "int8-static": 0.15, "int8-weights": 0.05, "int4-weights": 0.4}
"""Root mean square of the error of a logit, as a share of the logits' standard deviation."""
IN_BLOCKS = ("int8-weights", "int4-weights")
VARIANTS = [(scheme, block) for scheme in SCHEMES for block in ((32, 128) if scheme in IN_BLOCKS else (None,))]
QUANTIZED = [variant for variant in VARIANTS if variant[0] != "fp32"]

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
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
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=FFN,
        max_position_embeddings=POSITIONS,
    ),
    "roberta": lambda: RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=FFN,
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        pad_token_id=1,
    ),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, n_layers=2, n_heads=4, hidden_dim=FFN, max_position_embeddings=POSITIONS
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=2, n_head=4, n_inner=FFN, n_positions=POSITIONS, pad_token_id=1
    ),
    "llama": lambda: LlamaConfig(**LLAMA),
    "mistral": lambda: MistralConfig(**LLAMA),
    "qwen2": lambda: Qwen2Config(**LLAMA),
}
MODELS = (*FAMILIES, "cut")
CUT = Structure((Layer(0, (), (1, 5, 40)), Layer(1, (0, 3), tuple(range(0, FFN, 3)))))


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


def candidate(scheme: str, block: int | None) -> Candidate:
    return SETTINGS.candidate({"quantization.scheme": scheme} | ({} if block is None else {"quantization.block_size": block}))


def matrices(path: Path, *types: int) -> list[tuple[int, ...]]:
    """Shapes of the stored tensors of two dimensions, scales aside."""
    stored = [tensor for tensor in onnx.load(path).graph.initializer if not tensor.name.endswith(("_scale", "_scales"))]
    return [tuple(tensor.dims) for tensor in stored if len(tensor.dims) == 2 and tensor.data_type in types]


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
    expected, found = (predict(path, batches(1)) for path in (graphs[model], target))
    error = float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())
    assert error <= TOLERANCES[scheme]
    assert (error == 0) == (scheme == "fp32")


@each_model
@each_quantized
def test_every_matrix_is_converted(graphs: dict[str, Path], model: str, scheme: str, block: int | None, tmp_path: Path) -> None:
    source, target = graphs[model], tmp_path / "model.onnx"
    before = matrices(source, onnx.TensorProto.FLOAT)
    assert (VOCABULARY, HIDDEN) in before and {(2, HIDDEN), (HIDDEN, 2)} & set(before)
    report = quantize(source, target, candidate(scheme, block), batches(0))
    assert report == {"scheme": scheme, "left_in_fp32": {}}
    assert not set(before) & set(matrices(target, onnx.TensorProto.FLOAT))
    assert matrices(target, onnx.TensorProto.INT8, onnx.TensorProto.UINT8).count((VOCABULARY, HIDDEN)) == 1
    assert target.stat().st_size < source.stat().st_size / 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_bits_show_in_the_bytes(graphs: dict[str, Path], tmp_path: Path) -> None:
    """The embedding at 8 bits, the layers at 8 or 4 with a scale of 4 bytes for 32 weights; head and graph are small."""
    sizes = []
    for scheme, block in (("fp32", None), ("int8-weights", 32), ("int4-weights", 32)):
        quantize(graphs["bert"], tmp_path / "model.onnx", candidate(scheme, block), [])
        sizes.append((tmp_path / "model.onnx").stat().st_size)
    layers = 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
    assert sizes[0] - sizes[1] == pytest.approx(3 * VOCABULARY * HIDDEN + (3 - 4 / 32) * layers, rel=0.03)
    assert sizes[1] - sizes[2] == pytest.approx(layers / 2, rel=0.1)


@each_variant
def test_same_candidate_same_bytes(graphs: dict[str, Path], scheme: str, block: int | None, tmp_path: Path) -> None:
    for name in ("first", "second"):
        quantize(graphs["cut"], tmp_path / f"{name}.onnx", candidate(scheme, block), batches(0))
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
    layers = 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
    head = HIDDEN * HIDDEN + 2 * HIDDEN
    assert sum(found.values()) == 4 * (embeddings + layers + head)
    assert max(found.values()) == 4 * VOCABULARY * HIDDEN
