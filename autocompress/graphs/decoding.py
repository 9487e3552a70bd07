"""A language model as a graph for ONNX: its cache goes in and comes out, and one graph reads the
prompt and each token after it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer

from autocompress.families import family_of
from autocompress.families.stream import word_table
from autocompress.graphs.tracing import tied_head


def generates(model: nn.Module) -> bool:
    """Whether the model has a language modeling head."""
    return isinstance(model, GenerationMixin)


class Cached(nn.Module):
    """A language model whose cache is tensors; layers without heads have none.

    Positions count the tokens that the mask lets through, so prompts of different lengths can be
    padded on the left.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        family = family_of(model.config.model_type)
        heads = family.structure(model).head_counts
        self.depth, self.head_size = len(heads), family.head_size(model)
        self.heads = {layer: count for layer, count in enumerate(heads) if count}
        cache = [f"{layer}.{part}" for layer in self.heads for part in ("key", "value")]
        self.input_names = [
            "input_ids",
            "attention_mask",
            *(f"past_key_values.{name}" for name in cache),
        ]
        self.output_names = ["logits", *(f"present.{name}" for name in cache)]

    @property
    def axes(self) -> dict[str, dict[int, str]]:
        """The free axes of every input and output."""
        free = {
            "input_ids": {0: "batch", 1: "length"},
            "attention_mask": {0: "batch", 1: "total"},
            "logits": {0: "batch", 1: "length"},
        }
        for name in (*self.input_names, *self.output_names):
            free.setdefault(name, {0: "batch", 2: "past" if name.startswith("past") else "total"})
        return free

    def example(self) -> tuple[Tensor, ...]:
        """Two rows of three tokens, after two that the cache holds."""
        past = [
            torch.zeros(2, count, 2, self.head_size)
            for count in self.heads.values()
            for _ in ("key", "value")
        ]
        return (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64), *past)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Tokens (batch, length), mask (batch, past + length), and of each layer with heads keys
        and values (batch, heads, past, head size) -> logits (batch, length, vocabulary), keys and
        values (batch, heads, past + length, head size)."""
        length = input_ids.shape[1]
        nothing = attention_mask[:, None, length:, None].float()
        given = dict(zip(self.heads, zip(past[::2], past[1::2], strict=True), strict=True))
        cache: Any = Cache(
            [_layer(*given.get(layer, (nothing, nothing))) for layer in range(self.depth)]
        )
        hidden = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -length:],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        table, head = word_table(self.model).weight, self.model.get_output_embeddings()
        logits = tied_head(hidden, table) if head.weight is table else head(hidden)
        return (
            logits,
            *chain.from_iterable(
                (cache.layers[layer].keys, cache.layers[layer].values) for layer in self.heads
            ),
        )


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    return layer
