"""A language model as a graph for ONNX: its cache goes in and comes out, and one graph reads the prompt and each token after it.

Everything is written as onnxruntime runs it best: queries that share a key are multiplied with it at once, products and
reshapes carry no shape arithmetic, and a head that is tied to the embedding reads the embedding's own table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import eager_mask
from transformers.pytorch_utils import Conv1D

from autocompress.families import family_of

_ATTENTION = "autocompress"


def generates(model: nn.Module) -> bool:
    """Whether the model has a language modeling head."""
    return isinstance(model, GenerationMixin)


class Cached(nn.Module):
    """A language model whose cache is tensors; layers without heads have none.

    Positions count the tokens that the mask lets through, so prompts of different lengths can be padded on the left.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        family = family_of(model.config.model_type)
        heads = family.structure(model).head_counts
        self.depth, self.head_size = len(heads), family.head_size(model)
        self.heads = {layer: count for layer, count in enumerate(heads) if count}
        cache = [f"{layer}.{part}" for layer in self.heads for part in ("key", "value")]
        self.input_names = ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in cache)]
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
        past = [torch.zeros(2, count, 2, self.head_size) for count in self.heads.values() for _ in ("key", "value")]
        return (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64), *past)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Tokens (batch, length), mask (batch, past + length), and of each layer with heads keys and values (batch, heads, past,
        head size) -> logits (batch, length, vocabulary), keys and values (batch, heads, past + length, head size)."""
        length = input_ids.shape[1]
        nothing = attention_mask[:, None, length:, None].float()
        given = dict(zip(self.heads, zip(past[::2], past[1::2], strict=True), strict=True))
        cache: Any = Cache([_layer(*given.get(layer, (nothing, nothing))) for layer in range(self.depth)])
        hidden = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -length:],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        table, head = self.model.get_input_embeddings().weight, self.model.get_output_embeddings()
        logits = _tied_head(hidden, table) if head.weight is table else head(hidden)
        return (logits, *chain.from_iterable((cache.layers[layer].keys, cache.layers[layer].values) for layer in self.heads))


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    return layer


@contextmanager
def traceable(model: Any) -> Iterator[None]:
    """While the graph is traced, the model's attention and products are those of this file."""
    before = model.config._attn_implementation
    model.config._attn_implementation = _ATTENTION
    try:
        with mock.patch.object(Conv1D, "forward", lambda self, x: x @ self.weight + self.bias):
            yield
    finally:
        model.config._attn_implementation = before


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """As transformers' eager attention, but keys and values are not copied for each head of queries that shares them."""
    heads, size, groups = int(query.shape[1]), int(query.shape[3]), getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        query = _reshape(query, (0, heads // groups, -1, size))
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    weights = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
    found: Tensor = weights @ value
    if groups > 1:
        found = _reshape(found, (0, heads, -1, size))
    return found.transpose(1, 2), None


class _Reshape(torch.autograd.Function):
    """With a constant shape, in which 0 keeps a dimension as it is."""

    @staticmethod
    def forward(_: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])

    @staticmethod
    def symbolic(g: Any, x: Any, shape: tuple[int, ...]) -> Any:
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(shape)))


class _TiedHead(torch.autograd.Function):
    """The product with the transposed embedding as a Gemm that transposes as it goes."""

    @staticmethod
    def forward(_: Any, hidden: Tensor, table: Tensor) -> Tensor:
        return hidden @ table.T

    @staticmethod
    def symbolic(g: Any, hidden: Any, table: Any) -> Any:
        vocabulary, width = table.type().sizes()
        rows = g.op("Reshape", hidden, g.op("Constant", value_t=torch.tensor([-1, width])))
        scores = g.op("Gemm", rows, table, transB_i=1)
        shape = g.op("Concat", g.op("Shape", hidden, end_i=2), g.op("Constant", value_t=torch.tensor([vocabulary])), axis_i=0)
        return g.op("Reshape", scores, shape)


_reshape: Any = _Reshape.apply
_tied_head: Any = _TiedHead.apply
AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, eager_mask)
