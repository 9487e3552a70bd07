"""Value relations of the last layer (Wang et al. 2020, MiniLM, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autocompress.distillation.relations import relation_loss, split_heads
from autocompress.interfaces import Features, Lesson, Objective


@dataclass(frozen=True)
class ValueRelations(Objective):
    """KL of softmax(V V^T / sqrt(head_size)) of the last layer; a kept head matches the teacher's
    head of its number.

    Zero when the student's last layer has no heads.
    """

    lesson: Lesson

    def features(self) -> tuple[tuple[str, str], ...]:
        return (("value", "value"),) if self.lesson.matching.heads else ()

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        matching = self.lesson.matching
        if not matching.heads:
            return 0 * student.logits.sum()
        mine = split_heads(student.tokens["value"], matching.head_size)
        theirs = split_heads(teacher.tokens["value"], matching.head_size, matching.heads)
        return relation_loss((mine, mine), (theirs, theirs), student.mask)
