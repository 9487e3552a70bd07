"""Directions of the hidden states of mapped layers (Sun et al. 2019, Patient Knowledge
Distillation, equation 7)."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from autocompress.distillation.hidden_states import mapped
from autocompress.distillation.projection import HiddenObjective
from autocompress.interfaces import Features


class NormalizedHiddenStates(HiddenObjective):
    """Squared distance of the hidden states, each scaled to length 1, mean over real tokens and
    over the mapped layers.

    Of all tokens, as in the code of Li et al. 2021 for GPT-2, where the paper takes the first one;
    of the last layer too.
    """

    def features(self) -> tuple[tuple[str, str], ...]:
        return mapped(self.lesson)

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        losses = []
        for mine, theirs in self.features():
            own = normalize(self.projected(student.tokens[mine]), dim=-1)
            distances = (own - normalize(teacher.tokens[theirs], dim=-1)).pow(2).sum(-1)
            losses.append((distances * student.mask).sum() / student.mask.sum())
        return torch.stack(losses).mean()
