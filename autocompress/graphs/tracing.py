"""What stands in for a model's own operations while its graph is traced: the same results in fewer
and faster operators.

Attention as plain products with one mask for all layers, queries that share a key multiplied with
it at once, reshapes without shape arithmetic, and a head that is tied to the embedding reading the
embedding's own table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, eager_mask
from transformers.pytorch_utils import Conv1D

_ATTENTION = "autocompress"


@contextmanager
def traceable(model: Any) -> Iterator[None]:
    """While the graph is traced, the model's attention, mask and products are those of this
    file."""
    before = model.config._attn_implementation
    model.config._attn_implementation = _ATTENTION
    try:
        with mock.patch.object(Conv1D, "forward", lambda self, x: x @ self.weight + self.bias):
            yield
    finally:
        model.config._attn_implementation = before


def tied_head(hidden: Tensor, table: Tensor) -> Tensor:
    """The product of (batch, length, width) with the transposed embedding, as a Gemm that
    transposes as it goes."""
    scores: Tensor = _TiedHead.apply(hidden, table)  # type: ignore[no-untyped-call]
    return scores


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers' eager attention, but keys and values are not copied for each head of queries
    that shares them."""
    heads, size, groups = (
        int(query.shape[1]),
        int(query.shape[3]),
        getattr(module, "num_key_value_groups", 1),
    )
    if groups > 1:
        query = _reshape(query, (0, heads // groups, -1, size))
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    weights = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
    attended: Tensor = weights @ value
    if groups > 1:
        attended = _reshape(attended, (0, heads, -1, size))
    return attended.transpose(1, 2), None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **rest: Any,
) -> Tensor:
    """As transformers' eager mask, which spends fifty operators on positions.

    A query sees the tokens that are no padding, and in a causal model of these only as many as up
    to itself.
    """
    if attention_mask is None or mask_function not in (
        bidirectional_mask_function,
        causal_mask_function,
    ):
        return eager_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            dtype,
            **rest,
        )
    visible = attention_mask[:, None, None, :]
    if mask_function is causal_mask_function:
        order = attention_mask.long().cumsum(-1)
        visible = (
            order.masked_fill(~attention_mask, torch.iinfo(torch.int64).max)[:, None, None, :]
            <= order[:, None, -q_length:, None]
        )
    return torch.where(visible, 0.0, torch.finfo(dtype).min)


class _Reshape(torch.autograd.Function):
    """With a constant shape, in which 0 keeps a dimension as it is."""

    @staticmethod
    def forward(_: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])

    @staticmethod
    def symbolic(g: Any, x: Any, shape: tuple[int, ...]) -> Any:
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(shape)))


class _TiedHead(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, hidden: Tensor, table: Tensor) -> Tensor:
        return hidden @ table.T

    @staticmethod
    def symbolic(g: Any, hidden: Any, table: Any) -> Any:
        vocabulary, width = table.type().sizes()
        rows = g.op("Reshape", hidden, g.op("Constant", value_t=torch.tensor([-1, width])))
        scores = g.op("Gemm", rows, table, transB_i=1)
        shape = g.op(
            "Concat",
            g.op("Shape", hidden, end_i=2),
            g.op("Constant", value_t=torch.tensor([vocabulary])),
            axis_i=0,
        )
        return g.op("Reshape", scores, shape)


_reshape: Any = _Reshape.apply
AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, _mask)
