"""Attention maps of the last layer (Wang et al. 2020, MiniLM, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autocompress.distillation.relations import relation_loss, split_heads
from autocompress.interfaces import Features, Lesson, Objective


@dataclass(frozen=True)
class AttentionMaps(Objective):
    """KL of the last layer's attention distributions; a kept head matches the teacher's head of its
    number.

    Zero when the student's last layer has no heads.
    """

    lesson: Lesson

    def features(self) -> tuple[tuple[str, str], ...]:
        return (("query", "query"), ("key", "key")) if self.lesson.matching.heads else ()

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        matching = self.lesson.matching
        if not matching.heads:
            return 0 * student.logits.sum()
        mine, theirs = (
            _split(student, matching.head_size),
            _split(teacher, matching.head_size, matching.heads),
        )
        return relation_loss(mine, theirs, student.mask, matching.causal)


def _split(
    features: Features, size: int, only: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys, each (batch, heads of queries, length, size): keys are repeated for the
    queries that share them."""
    query, key = features.tokens["query"], features.tokens["key"]
    shared = query.shape[-1] // key.shape[-1]
    groups = split_heads(query, shared * size, only)
    queries = groups.reshape(*groups.shape[:-1], shared, size).transpose(2, 3).flatten(1, 2)
    return queries, split_heads(key, size, only).repeat_interleave(shared, dim=1)
