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
from autocompress.structure import Layer, Structure, ffn_step, in_blocks


class UnitPruning(StructuralTechnique):
    """Keeps the most important share of the units that are left, neurons in steps of ``ffn_step``;
    a layer may end with none. Not beside ``width.latency``, which prunes both kinds of units
    together.

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
        step = ffn_step(max(map(len, scores))) if self.section == "ffn" else 1
        allocation = candidate.text(f"{self.section}.allocation", "global")
        chosen = allocate(left, share, allocation, step)
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
    scores: Sequence[NDArray[np.float64]], share: float, allocation: str, step: int = 1
) -> list[tuple[int, ...]]:
    """Positions to keep in each layer.

    Args:
        scores: per layer, importance of what is still there.
        share: of all blocks, from 0 to 1.
        allocation: ``uniform`` keeps the same share in every layer; ``global`` keeps the most
            important blocks wherever they lie, so a layer may end with none.
        step: positions that stay or go together: a layer's blocks are cut from its order of
            importance, and count with their mean.

    Returns:
        Ascending positions per layer; ties go to the earlier layer and position.
    """
    blocks = [in_blocks(layer, step) for layer in scores]
    pairs = zip(scores, blocks, strict=True)
    means = [[float(layer[block].mean()) for block in own] for layer, own in pairs]
    if allocation == "uniform":
        counts = [round(share * len(own)) for own in blocks]
    else:
        ranked = np.argsort(-np.concatenate(means), kind="stable")
        layer_of = np.repeat(np.arange(len(blocks)), list(map(len, blocks)))
        best = layer_of[ranked[: round(share * len(ranked))]]
        counts = np.bincount(best, minlength=len(blocks)).tolist()
    return [
        tuple(sorted(i for block in own[:count] for i in block.tolist()))
        for own, count in zip(blocks, counts, strict=True)
    ]
