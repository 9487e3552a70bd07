"""Hidden states of mapped layers (Sun et al. 2019, PKD; Jiao et al. 2020, TinyBERT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autocompress.candidate import Candidate
from autocompress.interfaces import Features, Matching


@dataclass(frozen=True)
class HiddenStates:
    """Mean squared error over real tokens and dimensions, mean over the mapped layers.

    Cutting keeps the hidden size, so no projection stands between the two.
    """

    name: str = "hidden-states"

    def features(self, matching: Matching) -> tuple[tuple[str, str], ...]:
        return tuple((f"hidden.{student}", f"hidden.{teacher}") for student, teacher in matching.layers)

    def loss(self, student: Features, teacher: Features, candidate: Candidate, matching: Matching) -> torch.Tensor:
        mask = student.mask.unsqueeze(-1)
        losses = []
        for mine, theirs in self.features(matching):
            squares = (student.tokens[mine] - teacher.tokens[theirs]).pow(2) * mask
            losses.append(squares.sum() / (mask.sum() * squares.shape[-1]))
        return torch.stack(losses).mean()
