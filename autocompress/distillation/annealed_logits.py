"""Regression on the teacher's logits, which grow as a temperature falls (Jafari et al. 2021,
Annealing-KD, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import mse_loss

from autocompress.interfaces import Features, Lesson, Objective


@dataclass(frozen=True)
class AnnealedLogits(Objective):
    """Mean squared error against the teacher's logits times 1 - (T - 1) / Tmax.

    T goes from Tmax, which is ``recovery.annealing_stages``, to 1, each for an equal part of the
    steps. The method's second phase is ``recovery.label_phase``.
    """

    scheduled: ClassVar[bool] = True
    lesson: Lesson

    def features(self) -> tuple[tuple[str, str], ...]:
        return ()

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        stages = int(self.lesson.candidate.number("recovery.annealing_stages"))
        temperature = max(1, stages - stages * self.lesson.step // self.lesson.steps)
        return mse_loss(student.logits, teacher.logits * (1 - (temperature - 1) / stages))
