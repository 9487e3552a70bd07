"""What the attention objectives share: relations between tokens, head by head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import log_softmax


def split_heads(
    tokens: torch.Tensor, head_size: int, only: Sequence[int] | None = None
) -> torch.Tensor:
    """(batch, length, heads * head_size) -> (batch, heads, length, head_size), of the listed heads
    only."""
    heads = tokens.view(*tokens.shape[:-1], -1, head_size).transpose(1, 2)
    return heads if only is None else heads[:, list(only)]


def relation_loss(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
    causal: bool = False,
) -> torch.Tensor:
    """KL(teacher || student) of softmax(A B^T / sqrt(head_size)), mean over heads and real tokens.

    Args:
        student: A and B of shape (batch, heads, length, head_size).
        teacher: likewise.
        mask: (batch, length).
        causal: no token relates to later ones.
    """
    hidden = mask[:, None, None, :] == 0
    if causal:
        hidden = hidden | torch.ones_like(hidden).expand(-1, -1, mask.shape[1], -1).triu(1)
    mine, theirs = _log_relation(*student, hidden), _log_relation(*teacher, hidden)
    divergence = (theirs.exp() * (theirs - mine)).masked_fill(hidden, 0).sum(-1)
    rows = mask[:, None, :]
    return (divergence * rows).sum() / (rows.sum() * divergence.shape[1])


def _log_relation(left: torch.Tensor, right: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    scores = left @ right.transpose(-1, -2) / left.shape[-1] ** 0.5
    return log_softmax(scores.masked_fill(hidden, -1e9), dim=-1)
