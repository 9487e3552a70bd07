"""What is left of a model: which layers, and in each which heads and which FFN neurons.

Structural techniques are functions from structure to structure; the model itself is cut once, at
the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layer:
    """One kept layer: its place in the original model, and the indices of the heads and neurons
    kept (ascending)."""

    source: int
    heads: tuple[int, ...]
    ffn: tuple[int, ...]


@dataclass(frozen=True)
class Structure:
    """The kept layers, from input to output."""

    layers: tuple[Layer, ...]

    @classmethod
    def full(cls, heads: Sequence[int], ffn: Sequence[int]) -> Structure:
        """The uncut structure of a model whose layer ``i`` has ``heads[i]`` heads and ``ffn[i]``
        neurons."""
        pairs = zip(heads, ffn, strict=True)
        return cls(
            tuple(Layer(i, tuple(range(h)), tuple(range(f))) for i, (h, f) in enumerate(pairs))
        )

    @property
    def head_counts(self) -> tuple[int, ...]:
        return tuple(len(layer.heads) for layer in self.layers)

    @property
    def ffn_widths(self) -> tuple[int, ...]:
        return tuple(len(layer.ffn) for layer in self.layers)

    def sizes(self) -> dict[str, Any]:
        """As JSON: ``{"layers": [0, 2], "heads": [3, 4], "ffn": [384, 96]}``, enough to rebuild the
        shapes."""
        return {
            "layers": [layer.source for layer in self.layers],
            "heads": list(self.head_counts),
            "ffn": list(self.ffn_widths),
        }

    @classmethod
    def of_sizes(cls, sizes: Mapping[str, Any]) -> Structure:
        """Of ``sizes``, for shapes alone: which heads and neurons were kept is not told."""
        triples = zip(sizes["layers"], sizes["heads"], sizes["ffn"], strict=True)
        return cls(
            tuple(Layer(s, tuple(range(heads)), tuple(range(ffn))) for s, heads, ffn in triples)
        )

    def __str__(self) -> str:
        return describe_sizes(self.sizes())


def ffn_step(width: int) -> int:
    """By how many neurons an FFN of so many is cut. Runtimes multiply in tiles, so a product takes
    longer just past a multiple of 16 neurons, and of 64: the larger that is at most a sixteenth of
    the FFN; 1 where neither is."""
    return next((step for step in (64, 16) if 16 * step <= width), 1)


def in_blocks(scores: NDArray[np.float64], step: int) -> list[NDArray[np.intp]]:
    """Positions of a layer, the most important first, in blocks of ``step``; the last may be
    smaller."""
    order = np.argsort(-scores, kind="stable")
    return [order[i : i + step] for i in range(0, len(order), step)]


@dataclass(frozen=True)
class Importance:
    """Scores of an uncut model under one criterion; larger matters more.

    Args:
        heads: per layer, float64 of shape (heads,).
        ffn: per layer, float64 of shape (ffn,).
        hidden: of the residual stream's dimensions, float64 of shape (hidden,).
    """

    heads: tuple[NDArray[np.float64], ...]
    ffn: tuple[NDArray[np.float64], ...]
    hidden: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def describe_sizes(sizes: Mapping[str, Any] | None) -> str:
    """``Plan.sizes`` in words, such as ``4 layers, heads 2-5, FFN 384``; a dash for None."""
    if sizes is None:
        return "-"
    heads, ffn = _brief(sizes["heads"]), _brief(sizes["ffn"])
    return ", ".join(
        [f"{len(sizes['layers'])} layers, heads {heads}, FFN {ffn}", *sizes.get("parts", ())]
    )


def _brief(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"
