"""The hidden size: dimensions of the residual stream that all layers read and add to.

The embedding-size pruning of Ganesh et al. 2021, section 3.2; importance as in Xia et al. 2022,
"Structured Pruning Learns Compact and Accurate Models" (CoFi), section 3.1, where one mask over
hidden dimensions is shared by all layers. Heads keep their size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from autocompress.candidate import Candidate, OneOf, Real, Setting
from autocompress.interfaces import Family, Knowledge, Technique
from autocompress.knowledge import CRITERIA
from autocompress.plan import Part, Plan
from autocompress.structure import Layer

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Hidden(Part):
    """Dimensions that stay.

    Args:
        kept: ascending.
        of: so many.
    """

    technique: ClassVar[str] = "hidden-size"
    kept: tuple[int, ...]
    of: int

    def words(self) -> str:
        return f"hidden size {len(self.kept)}"

    def terms(self, index: int, layer: Layer) -> Mapping[str, float]:
        """The share that is gone, by what it is gone from."""
        gone = 1 - len(self.kept) / self.of
        units = {"heads": gone * len(layer.heads), "ffn": gone * len(layer.ffn)}
        return {"layer": gone, "rest": gone if index == 0 else 0.0, **units}


class HiddenSize(Technique):
    """Keeps the most important ``hidden.keep`` of the dimensions."""

    name = "hidden-size"
    part = Hidden
    settings = (
        Setting("hidden.keep", Real(0.01, 1), 1.0, "share of the hidden dimensions kept"),
        Setting(
            "hidden.importance",
            OneOf(CRITERIA),
            "fisher",
            "how hidden dimensions are ranked",
            when=lambda s: s["hidden.keep"] != 1,
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        share = candidate.number("hidden.keep", 1)
        if share == 1:
            return plan
        scores = knowledge.importance[candidate.text("hidden.importance", "fisher")].hidden
        count = max(1, round(share * len(scores)))
        if count == len(scores):
            return plan
        kept = np.sort(np.argsort(-scores, kind="stable")[:count])
        return plan.with_part(Hidden(tuple(kept.tolist()), len(scores)))

    def build(self, model: nn.Module, part: Hidden, family: Family) -> None:
        family.narrow(model, range(len(part.kept)))

    def fill(self, model: nn.Module, before: nn.Module, part: Hidden, family: Family) -> None:
        narrowed = copy.deepcopy(before)
        family.narrow(narrowed, part.kept)
        model.load_state_dict(narrowed.state_dict())
