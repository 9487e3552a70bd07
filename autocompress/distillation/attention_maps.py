"""Attention maps of the last layer (Wang et al. 2020, MiniLM, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autocompress.candidate import Candidate
from autocompress.distillation.relations import relation_loss, split_heads
from autocompress.interfaces import Features, Matching


@dataclass(frozen=True)
class AttentionMaps:
    """KL of the last layer's attention distributions; a kept head matches the teacher's head of its number.

    Zero when the student's last layer has no heads.
    """

    name: str = "attention-maps"

    def features(self, matching: Matching) -> tuple[tuple[str, str], ...]:
        return (("query", "query"), ("key", "key")) if matching.heads else ()

    def loss(self, student: Features, teacher: Features, candidate: Candidate, matching: Matching) -> torch.Tensor:
        if not matching.heads:
            return 0 * student.logits.sum()
        size = matching.head_size
        mine = [split_heads(student.tokens[name], size) for name in ("query", "key")]
        theirs = [split_heads(teacher.tokens[name], size, matching.heads) for name in ("query", "key")]
        return relation_loss((mine[0], mine[1]), (theirs[0], theirs[1]), student.mask)
