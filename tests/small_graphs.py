"""An fp32 graph of each family, for the tests of number formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
from autocompress.families import FAMILIES
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Batch
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS

VOCABULARY, HIDDEN, FFN, POSITIONS, LAYERS = 3000, 64, 128, 32, 3
Inputs = dict[str, NDArray[np.int64]]

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
        vocab_size=VOCABULARY,
        dim=HIDDEN,
        n_layers=LAYERS,
        n_heads=4,
        hidden_dim=FFN,
        max_position_embeddings=POSITIONS,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_inner=FFN,
        n_positions=POSITIONS,
        pad_token_id=1,
    ),
    "llama": lambda: LlamaConfig(**LLAMA),
    "mistral": lambda: MistralConfig(**LLAMA),
    "qwen2": lambda: Qwen2Config(**LLAMA),
}
MODELS = (*FAMILIES, "cut")
CUT = Structure(
    (Layer(0, (), (1, 5, 40)), Layer(1, (0, 3), tuple(range(0, FFN, 3))), Layer(2, (), ()))
)


def batches(seed: int) -> list[Inputs]:
    """Two batches with padding."""
    rng = np.random.default_rng(seed)
    padded_batches = []
    for length in (9, 14):
        mask = (np.arange(length) < rng.integers(2, length + 1, (32, 1))).astype(np.int64)
        ids = np.where(mask == 1, rng.integers(5, VOCABULARY, (32, length)), 1)
        padded_batches.append({"input_ids": ids, "attention_mask": mask})
    return padded_batches


def write_graphs(folder: Path) -> dict[str, Path]:
    """An fp32 graph of each family, and one of a cut model."""
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
    return SETTINGS.candidate(
        chosen | ({} if block is None else {"quantization.block_size": block})
    )


def logit_error(source: Path, target: Path) -> float:
    """Root mean square of the error, as a share of the standard deviation."""
    expected, logits = (predict(path, batches(1)) for path in (source, target))
    return float(np.sqrt(np.mean((logits - expected) ** 2)) / expected.std())


each_model = pytest.mark.parametrize("model", MODELS)
