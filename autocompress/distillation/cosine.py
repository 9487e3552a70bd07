"""Direction of what the head is given (Sanh et al. 2019, DistilBERT, section 3; also DistilGPT2's
third loss)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from autocompress.interfaces import Features, Lesson


@dataclass(frozen=True)
class Cosine:
    """One less the cosine of the last hidden states, mean over real tokens."""

    lesson: Lesson

    def features(self) -> tuple[tuple[str, str], ...]:
        return (("last", "last"),)

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        cosines = cosine_similarity(student.tokens["last"], teacher.tokens["last"], dim=-1)
        return ((1 - cosines) * student.mask).sum() / student.mask.sum()
