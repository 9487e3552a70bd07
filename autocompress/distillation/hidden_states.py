"""Hidden states of mapped layers (Jiao et al. 2020, TinyBERT, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autocompress.interfaces import Features, Lesson


@dataclass(frozen=True)
class HiddenStates:
    """Mean squared error over real tokens and dimensions, mean over the mapped layers.

    Cutting keeps the hidden size, so no projection stands between the two.
    """

    lesson: Lesson

    def features(self) -> tuple[tuple[str, str], ...]:
        return mapped(self.lesson)

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        mask = student.mask.unsqueeze(-1)
        losses = []
        for mine, theirs in self.features():
            squares = (student.tokens[mine] - teacher.tokens[theirs]).pow(2) * mask
            losses.append(squares.sum() / (mask.sum() * squares.shape[-1]))
        return torch.stack(losses).mean()


def mapped(lesson: Lesson) -> tuple[tuple[str, str], ...]:
    """The hidden states of the layers that ``recovery.layer_map`` pairs."""
    return tuple(
        (f"hidden.{student}", f"hidden.{teacher}") for student, teacher in lesson.matching.layers
    )
