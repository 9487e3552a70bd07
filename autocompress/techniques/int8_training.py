"""Training under int8: the student learns with the rounding that static int8 will bring.

Zafrir et al. 2019, Q8BERT, section 3: weights by their largest number, activations by ranges that
follow what is seen (an exponential moving average), gradients straight through the rounding;
norms, softmax and GELU stay in fp32. Here weights are rounded by output channel and activations
asymmetrically, as the converter of static int8 does it; the average's momentum is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.candidate import OneOf, Setting
from autocompress.interfaces import Lesson, Modifier, Technique
from autocompress.plan import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MOMENTUM = 0.95
"""Share of a range that stays at each step."""


@dataclass(frozen=True)
class TrainedRanges(Part):
    """Ranges of activations that training found.

    Args:
        seen: (module, lowest, highest) of the inputs of each.
    """

    technique: ClassVar[str] = "int8-training"
    seen: tuple[tuple[str, float, float], ...]

    def words(self) -> str:
        return "trained under int8"

    def ranges(self) -> Mapping[str, tuple[float, float]]:
        return {name: (low, high) for name, low, high in self.seen}


class Int8Training(Technique):
    """Rounds what matrices multiply, and the embeddings, while the student is trained."""

    name = "int8-training"
    part = TrainedRanges
    settings = (
        Setting(
            "quantization.trained",
            OneOf((False, True)),
            False,
            "recover under the rounding of static int8",
            when=lambda s: s["recovery.steps"] != 0,
        ),
    )

    def modifier(self, lesson: Lesson) -> Modifier | None:
        return Rounding(lesson) if lesson.candidate.get("quantization.trained", False) else None


class Rounding(Modifier):
    """Fake quantization of every matrix product with weights, and of the embeddings' rows."""

    def __init__(self, lesson: Lesson) -> None:
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        self.lesson = lesson
        modules = dict(lesson.student.named_modules())
        self.embeddings: list[Any] = [m for m in modules.values() if isinstance(m, nn.Embedding)]
        tables = {id(embedding.weight) for embedding in self.embeddings}
        self.matrices: dict[str, Any] = {
            name: module
            for name, module in modules.items()
            if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in tables
        }
        self.ranges: dict[str, tuple[float, float]] = {}
        for name, matrix in self.matrices.items():
            matrix.forward = partial(self._product, name, matrix)
        for embedding in self.embeddings:
            embedding.forward = partial(self._rows, embedding)

    def _product(self, name: str, matrix: Any, inputs: Tensor) -> Tensor:
        if not self.lesson.training:
            return _forward(matrix, inputs)
        values = inputs.detach().float()
        self._follow(name, float(values.min()), float(values.max()))
        low, high = self.ranges[name]
        transposed = hasattr(matrix, "nf")
        weight = rounded_by_channel(matrix.weight, axis=0 if transposed else 1)
        return _forward(matrix, rounded(inputs, low, high), weight)

    def _follow(self, name: str, low: float, high: float) -> None:
        """Zero is always inside, since padding and the converter need it."""
        low, high = min(low, 0.0), max(high, 0.0)
        before = self.ranges.get(name, (low, high))
        self.ranges[name] = (
            MOMENTUM * before[0] + (1 - MOMENTUM) * low,
            MOMENTUM * before[1] + (1 - MOMENTUM) * high,
        )

    def _rows(self, embedding: Any, ids: Tensor) -> Tensor:
        rows = _forward(embedding, ids)
        if not self.lesson.training:
            return rows
        step = embedding.weight.detach().abs().max() / 127
        return _straight_through(rows, (rows / step).round() * step)

    def remove(self) -> Part | None:
        for module in (*self.matrices.values(), *self.embeddings):
            del module.forward
        if not self.ranges:
            return None
        return TrainedRanges(tuple((name, *pair) for name, pair in self.ranges.items()))

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return {name: torch.tensor(pair, dtype=torch.float64) for name, pair in self.ranges.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        ranges = {name: tuple(pair.tolist()) for name, pair in state.items()}
        self.ranges = {name: ranges[name] for name in self.matrices if name in ranges}


def _forward(module: nn.Module, inputs: Tensor, weight: Tensor | None = None) -> Tensor:
    """What the module's class computes, with other weights where they are given."""
    from torch.nn.functional import linear

    own: Any = module
    if weight is None:
        outputs: Tensor = type(own).forward(own, inputs)
        return outputs
    return linear(inputs, weight.T if hasattr(own, "nf") else weight, own.bias)


def rounded(values: Tensor, low: float, high: float) -> Tensor:
    """To 256 steps from low to high, zero among them; gradient 1 inside the range, 0 outside."""
    step = max((high - low) / 255, 1e-12)
    zero = round(-low / step)
    inside = values.float().clamp(low, high)
    integers = ((inside / step).round() + zero).clamp(0, 255)
    return _straight_through(inside, (integers - zero) * step)


def rounded_by_channel(weight: Tensor, axis: int) -> Tensor:
    """To 255 steps, symmetric, with a scale for each output channel.

    Args:
        axis: of the inputs.
    """
    step = (weight.detach().abs().amax(axis, keepdim=True) / 127).clamp(min=1e-12)
    return _straight_through(weight, (weight / step).round() * step)


def _straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    return values + (rounded - values).detach()
