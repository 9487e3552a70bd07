"""Pruning of whole attention heads or whole FFN neurons.

Michel et al. 2019 for heads, Prasanna et al. 2020 for both; the Fisher criterion as in Kwon et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from autocompress.candidate import Candidate, OneOf, Real, Setting
from autocompress.importance import CRITERIA, Importance, allocate
from autocompress.structure import Structure


@dataclass(frozen=True)
class UnitPruning:
    """Keeps the most important share of the units that are left; a layer may end with none.

    Args:
        name: of the technique.
        section: which units, as in ``Layer``; also the section of the settings ``keep``, ``importance``, ``allocation``.
        noun: the units in words.
    """

    name: str
    section: Literal["heads", "ffn"]
    noun: str

    @property
    def settings(self) -> tuple[Setting, ...]:
        keep = f"{self.section}.keep"
        return (
            Setting(keep, Real(0, 1), 1.0, f"share of the {self.noun} kept"),
            Setting(
                f"{self.section}.importance",
                OneOf(CRITERIA),
                "fisher",
                f"how {self.noun} are ranked",
                when=lambda s: s[keep] not in (0, 1),
            ),
            Setting(
                f"{self.section}.allocation",
                OneOf(("global", "uniform")),
                "global",
                f"{self.noun} ranked over all layers, or the same share in each",
                when=lambda s: s[keep] not in (0, 1),
            ),
        )

    def refine(self, structure: Structure, candidate: Candidate, importance: Mapping[str, Importance]) -> Structure:
        share = candidate.number(f"{self.section}.keep", 1)
        if share == 1:
            return structure
        scores = getattr(importance[candidate.text(f"{self.section}.importance", "fisher")], self.section)
        units = [getattr(layer, self.section) for layer in structure.layers]
        left = [scores[layer.source][list(kept)] for layer, kept in zip(structure.layers, units, strict=True)]
        chosen = allocate(left, share, candidate.text(f"{self.section}.allocation", "global"))
        kept = [tuple(layer[i] for i in positions) for layer, positions in zip(units, chosen, strict=True)]
        pairs = zip(structure.layers, kept, strict=True)
        return Structure(tuple(replace(layer, **{str(self.section): positions}) for layer, positions in pairs))  # type: ignore[arg-type]
