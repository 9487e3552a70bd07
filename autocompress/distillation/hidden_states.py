"""Hidden states of mapped layers (Jiao et al. 2020, TinyBERT, section 3.1)."""

from __future__ import annotations

import torch

from autocompress.distillation.projection import HiddenObjective
from autocompress.interfaces import Features, Lesson


class HiddenStates(HiddenObjective):
    """Mean squared error over real tokens and dimensions, mean over the mapped layers."""

    def features(self) -> tuple[tuple[str, str], ...]:
        return mapped(self.lesson)

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        mask = student.mask.unsqueeze(-1)
        losses = []
        for mine, theirs in self.features():
            squares = (self.projected(student.tokens[mine]) - teacher.tokens[theirs]).pow(2) * mask
            losses.append(squares.sum() / (mask.sum() * squares.shape[-1]))
        return torch.stack(losses).mean()


def mapped(lesson: Lesson) -> tuple[tuple[str, str], ...]:
    """The hidden states of the layers that ``recovery.layer_map`` pairs."""
    return tuple(
        (f"hidden.{student}", f"hidden.{teacher}") for student, teacher in lesson.matching.layers
    )
