"""Soft labels (Hinton et al. 2015; Ganesh et al. 2021, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div, log_softmax

from autocompress.candidate import Candidate
from autocompress.interfaces import Features, Matching


@dataclass(frozen=True)
class Logits:
    """T^2 KL(teacher || student) of the softmax at temperature T, mean over the batch."""

    name: str = "logits"

    def features(self, matching: Matching) -> tuple[tuple[str, str], ...]:
        return ()

    def loss(self, student: Features, teacher: Features, candidate: Candidate, matching: Matching) -> torch.Tensor:
        temperature = candidate.number("recovery.temperature")
        student_log = log_softmax(student.logits / temperature, dim=-1)
        teacher_log = log_softmax(teacher.logits / temperature, dim=-1)
        return temperature**2 * kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
