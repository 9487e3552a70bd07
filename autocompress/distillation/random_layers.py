"""Random layers of the teacher, drawn anew now and then (Haidar et al. 2021, RAIL-KD, section
3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from autocompress.interfaces import Features, Lesson, Objective

_PROJECTED = 128


class RandomLayers(Objective):
    """Squared distance between projections, scaled to length 1, of hidden states averaged over real
    tokens.

    All layers of the student but its last match as many of the teacher's but its last, drawn at
    random and in order every ``recovery.redraw_steps`` steps. ``layer-wise`` the distances are
    summed over layers; ``concatenated`` there is one, of all layers side by side. Mean over the
    batch; zero for a student of one layer.

    Both are projected by the same random matrices at first, and the student's are trained; were the
    teacher's too, both could fall to one point.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        pairs, config = lesson.matching.layers, _config(lesson.student)
        own, theirs = lesson.matching.widths or (config.hidden_size, config.hidden_size)
        self.own = range(1, len(pairs))
        self.offered = range(1, pairs[-1][1])
        self.together = lesson.candidate.text("recovery.random_layers") == "concatenated"
        mine = self._matrices(own)
        self.projection = nn.Parameter(mine)
        self.target = mine.clone() if own == theirs else self._matrices(theirs)
        self.draws = 0
        self.drawn: list[int] = []

    def _matrices(self, width: int) -> Tensor:
        """(layers or 1, width of what is projected, projected)."""
        groups, wide = (1, len(self.own) * width) if self.together else (len(self.own), width)
        drawn = torch.randn(groups, wide, _PROJECTED, generator=self.lesson.random)
        return self.lesson.compute.moved(drawn / max(1, wide) ** 0.5)

    def features(self) -> tuple[tuple[str, str], ...]:
        return tuple(
            (f"hidden.{own}", f"hidden.{offered}")
            for own, offered in product(self.own, self.offered)
        )

    def trained(self) -> tuple[nn.Parameter, ...]:
        return (self.projection,)

    def state(self) -> dict[str, Tensor]:
        drawn = torch.tensor([self.draws, *self.drawn])
        return {"projection": self.projection.detach(), "drawn": drawn}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.projection.data.copy_(state["projection"])
        self.draws, *self.drawn = state["drawn"].tolist()

    def loss(self, student: Features, teacher: Features) -> Tensor:
        if not self.own:
            return 0 * student.logits.sum()
        if self.lesson.step >= self.draws * self.lesson.candidate.number("recovery.redraw_steps"):
            chosen = torch.randperm(len(self.offered), generator=self.lesson.random)[
                : len(self.own)
            ]
            self.drawn = sorted(self.offered[i] for i in chosen.tolist())
            self.draws += 1
        mine = self._projected(student, self.own, student.mask, self.projection)
        theirs = self._projected(teacher, self.drawn, student.mask, self.target)
        return (mine - theirs).pow(2).sum(dim=(1, 2)).mean()

    def _projected(
        self, features: Features, layers: Sequence[int], mask: Tensor, matrices: Tensor
    ) -> Tensor:
        """(batch, layers or 1, projected), each of length 1."""
        share = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)
        means = torch.stack(
            [(features.tokens[f"hidden.{layer}"] * share).sum(1) for layer in layers], dim=1
        )
        groups = means.flatten(1).unsqueeze(1) if self.together else means
        return normalize(torch.einsum("bgw,gwp->bgp", groups, matrices), dim=-1)


def _config(model: Any) -> Any:
    return model.config
