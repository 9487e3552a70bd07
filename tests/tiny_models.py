"""A tiny random model of every family: 3 layers of 4 heads and 12 neurons, 32 wide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
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

from autocompress.families import family_of
from autocompress.interfaces import Family

HIDDEN, HEADS, FFN, LAYERS, VOCABULARY = 32, 4, 12, 3, 50
PER_HEAD = HIDDEN // HEADS
"""Inputs of the attention's output projection that belong to one head."""


@dataclass(frozen=True)
class Tiny:
    """A model, and by hand what goes with each thing cut from it.

    Args:
        head: weights and biases of a head.
        neuron: likewise.
        norm: of the norm of a branch, that goes with its last unit.
        head_size: dimensions of a head's keys.
    """

    config: Callable[[], PreTrainedConfig]
    head: int
    neuron: int
    norm: int = 0
    head_size: int = PER_HEAD
    auto: Any = AutoModelForSequenceClassification

    @property
    def family(self) -> Family:
        return family_of(self.config().model_type)


def _bert(kind: Any = BertConfig, **more: Any) -> Callable[[], PreTrainedConfig]:
    shape = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
    }
    return lambda: kind(
        **{"vocab_size": VOCABULARY, "max_position_embeddings": 18, **shape, **more}
    )


def _gpt2(**more: Any) -> Callable[[], PreTrainedConfig]:
    return lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=FFN,
        n_positions=128,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        **more,
    )


def _llama(kind: Any = LlamaConfig, **more: Any) -> Callable[[], PreTrainedConfig]:
    """Two heads of queries on each of 4 heads of keys and values."""
    tokens = {
        "vocab_size": VOCABULARY,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "max_position_embeddings": 128,
    }
    grouped = {"num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS}
    return _bert(kind, **{**tokens, **grouped, **more})


_WITH_BIASES = 3 * PER_HEAD * (HIDDEN + 1) + PER_HEAD * HIDDEN
_GROUPED = (PER_HEAD + 4 + 4 + PER_HEAD) * HIDDEN
MODELS: dict[str, Tiny] = {
    "bert": Tiny(_bert(), _WITH_BIASES, 2 * HIDDEN + 1),
    "roberta": Tiny(_bert(RobertaConfig, pad_token_id=1), _WITH_BIASES, 2 * HIDDEN + 1),
    "distilbert": Tiny(
        lambda: DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=HIDDEN,
            n_layers=LAYERS,
            n_heads=HEADS,
            hidden_dim=FFN,
            max_position_embeddings=16,
        ),
        _WITH_BIASES,
        2 * HIDDEN + 1,
    ),
    "gpt2": Tiny(_gpt2(), _WITH_BIASES, 2 * HIDDEN + 1, 2 * HIDDEN),
    "gpt2 with its head tied": Tiny(
        _gpt2(), _WITH_BIASES, 2 * HIDDEN + 1, 2 * HIDDEN, auto=AutoModelForCausalLM
    ),
    "gpt2 scaled by layer": Tiny(
        _gpt2(scale_attn_by_inverse_layer_idx=True),
        _WITH_BIASES,
        2 * HIDDEN + 1,
        2 * HIDDEN,
        auto=AutoModelForCausalLM,
    ),
    "llama": Tiny(_llama(), _GROUPED, 3 * HIDDEN, HIDDEN, 4),
    "llama with a language head": Tiny(
        _llama(), _GROUPED, 3 * HIDDEN, HIDDEN, 4, AutoModelForCausalLM
    ),
    "llama ungrouped, tied, with biases": Tiny(
        _llama(
            num_attention_heads=HEADS, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
        ),
        _WITH_BIASES,
        3 * HIDDEN + 2,
        HIDDEN,
        auto=AutoModelForCausalLM,
    ),
    "llama with wide heads": Tiny(
        _llama(head_dim=12),
        (24 + 12 + 12 + 24) * HIDDEN,
        3 * HIDDEN,
        HIDDEN,
        12,
        AutoModelForCausalLM,
    ),
    "mistral": Tiny(
        _llama(MistralConfig, sliding_window=5),
        _GROUPED,
        3 * HIDDEN,
        HIDDEN,
        4,
        AutoModelForCausalLM,
    ),
    "qwen2": Tiny(
        _llama(Qwen2Config, use_sliding_window=True, sliding_window=5, max_window_layers=2),
        _GROUPED + PER_HEAD + 4 + 4,
        3 * HIDDEN,
        HIDDEN,
        4,
        AutoModelForCausalLM,
    ),
}


def build(name: str) -> nn.Module:
    """A model whose every parameter is random: biases and norms too, so that none can go missing
    unseen."""
    torch.manual_seed(0)
    model: nn.Module = MODELS[name].auto.from_config(MODELS[name].config())
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_norm = key.endswith("weight") and ("norm" in key.lower() or ".ln_" in key)
            if parameter.dim() == 1:
                parameter.normal_(1.0 if is_norm else 0.0, 0.1)
            else:
                parameter.normal_(0, 0.15)
    return model.eval()


def inputs() -> dict[str, Tensor]:
    """Three sentences of 7, 5 and 2 tokens."""
    ids = torch.randint(5, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(7) < torch.tensor([[7], [5], [2]])).long()
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}
