"""Direction of what the head is given (Sanh et al. 2019, DistilBERT, section 3; also DistilGPT2's
third loss)."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from autocompress.distillation.projection import HiddenObjective
from autocompress.interfaces import Features


class Cosine(HiddenObjective):
    """One less the cosine of the last hidden states, mean over real tokens."""

    def features(self) -> tuple[tuple[str, str], ...]:
        return (("last", "last"),)

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        own = self.projected(student.tokens["last"])
        cosines = cosine_similarity(own, teacher.tokens["last"], dim=-1)
        return ((1 - cosines) * student.mask).sum() / student.mask.sum()
