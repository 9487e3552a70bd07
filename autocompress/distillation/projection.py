"""What objectives of hidden states share: students may be less wide than their teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.interfaces import Lesson, Objective


class HiddenObjective(Objective):
    """An ``Objective`` on hidden states. Where the student's are of another width, one matrix for
    all layers brings them to the teacher's, trained along (Jiao et al. 2020, TinyBERT, section
    3.1)."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.matrix: nn.Parameter | None = None
        if lesson.matching.widths is not None:
            own, theirs = lesson.matching.widths
            drawn = torch.randn(own, theirs, generator=lesson.random) / own**0.5
            self.matrix = nn.Parameter(lesson.compute.moved(drawn))

    def projected(self, tokens: Tensor) -> Tensor:
        """(batch, length, width) of the student -> that of the teacher."""
        return tokens if self.matrix is None else tokens @ self.matrix

    def trained(self) -> tuple[nn.Parameter, ...]:
        return () if self.matrix is None else (self.matrix,)

    def state(self) -> dict[str, Tensor]:
        return {} if self.matrix is None else {"projection": self.matrix.detach()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if self.matrix is not None:
            self.matrix.data.copy_(state["projection"])
