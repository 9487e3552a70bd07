"""Soft labels (Hinton et al. 2015; Ganesh et al. 2021, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div, log_softmax

from autocompress.interfaces import Features, Lesson, Objective


@dataclass(frozen=True)
class Logits(Objective):
    """The ``divergence`` of the student from its teacher at ``recovery.temperature``."""

    lesson: Lesson

    def features(self) -> tuple[tuple[str, str], ...]:
        return ()

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        return divergence(
            student.logits, teacher.logits, self.lesson.candidate.number("recovery.temperature")
        )


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) of the softmax at temperature T, mean over rows.

    Args:
        student, teacher: logits, (rows, classes).
    """
    student_log = log_softmax(student / temperature, dim=-1)
    teacher_log = log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
