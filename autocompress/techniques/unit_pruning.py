"""Pruning of whole attention heads or whole FFN neurons.

Michel et al. 2019 for heads, Prasanna et al. 2020 for both; the Fisher criterion as in Kwon et al.
2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, OneOf, Real, Setting, Value
from autocompress.interfaces import Knowledge, StructuralTechnique
from autocompress.knowledge import CRITERIA
from autocompress.structure import Layer, Structure


class UnitPruning(StructuralTechnique):
    """Keeps the most important share of the units that are left; a layer may end with none. Not
    beside ``width.latency``, which prunes both kinds of units together.

    Args:
        name: of the technique.
        section: which units, as in ``Layer``; also the section of the settings ``keep``,
            ``importance``, ``allocation``.
        noun: the units in words.
    """

    def __init__(self, name: str, section: Literal["heads", "ffn"], noun: str) -> None:
        self.name, self.section = name, section
        keep = f"{section}.keep"

        def by_share(settings: Mapping[str, Value]) -> bool:
            return settings["width.latency"] == 1

        def some(settings: Mapping[str, Value]) -> bool:
            return by_share(settings) and settings[keep] not in (0, 1)

        self.settings = (
            Setting(keep, Real(0, 1), 1.0, f"share of the {noun} kept", when=by_share),
            Setting(
                f"{section}.importance",
                OneOf(CRITERIA),
                "fisher",
                f"how {noun} are ranked",
                when=some,
            ),
            Setting(
                f"{section}.allocation",
                OneOf(("global", "uniform")),
                "global",
                f"{noun} ranked over all layers, or the same share in each",
                when=some,
            ),
        )

    def refine(self, structure: Structure, candidate: Candidate, knowledge: Knowledge) -> Structure:
        share = candidate.number(f"{self.section}.keep", 1)
        if share == 1:
            return structure
        scores = getattr(
            knowledge.importance[candidate.text(f"{self.section}.importance", "fisher")],
            self.section,
        )
        units = [getattr(layer, self.section) for layer in structure.layers]
        left = [
            scores[layer.source][list(kept)]
            for layer, kept in zip(structure.layers, units, strict=True)
        ]
        chosen = allocate(left, share, candidate.text(f"{self.section}.allocation", "global"))
        kept = [
            tuple(layer[i] for i in positions)
            for layer, positions in zip(units, chosen, strict=True)
        ]
        layers = []
        for layer, positions in zip(structure.layers, kept, strict=True):
            heads, ffn = (
                (positions, layer.ffn) if self.section == "heads" else (layer.heads, positions)
            )
            layers.append(Layer(layer.source, heads, ffn))
        return Structure(tuple(layers))


def allocate(
    scores: Sequence[NDArray[np.float64]], share: float, allocation: str
) -> list[tuple[int, ...]]:
    """Positions to keep in each layer.

    Args:
        scores: per layer, importance of what is still there.
        share: of all positions, from 0 to 1.
        allocation: ``uniform`` keeps the same share in every layer; ``global`` keeps the most
            important ones wherever they lie, so a layer may end with none.

    Returns:
        Ascending positions per layer; ties go to the earlier layer and position.
    """
    if allocation == "uniform":
        return [_top(layer, round(share * len(layer))) for layer in scores]
    flat = np.concatenate(list(scores))
    kept = set(_top(flat, round(share * len(flat))))
    ends = np.cumsum([len(layer) for layer in scores])
    return [
        tuple(i for i in range(len(layer)) if end - len(layer) + i in kept)
        for layer, end in zip(scores, ends.tolist(), strict=True)
    ]


def _top(scores: NDArray[np.float64], count: int) -> tuple[int, ...]:
    best = np.argsort(-scores, kind="stable")[:count]
    return tuple(sorted(best.tolist()))
