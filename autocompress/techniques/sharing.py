"""Parameter sharing: neighbouring layers have one set of weights (Lan et al. 2020, ALBERT, section
3.1; here from a trained model, as groups of its layers)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from autocompress.candidate import Candidate, Integer, OneOf, Setting
from autocompress.interfaces import Family, Knowledge, Technique
from autocompress.plan import Part, Plan
from autocompress.structure import Structure

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Shared(Part):
    """Which layers have the weights of which.

    Args:
        leaders: of each layer the first one of its group.
        start: see ``sharing.start``.
    """

    technique: ClassVar[str] = "sharing"
    leaders: tuple[int, ...]
    start: str = "first"

    def words(self) -> str:
        return f"{len(set(self.leaders))} sets of weights"

    def group(self, leader: int) -> list[int]:
        """The layers that share its weights, itself included."""
        return [index for index, own in enumerate(self.leaders) if own == leader]


class Sharing(Technique):
    """Ties the layers of each group; all of a group have the heads and neurons of its first layer,
    and matrices of other shapes, such as factors of another rank, stay their own."""

    name = "sharing"
    part = Shared
    settings = (
        Setting(
            "sharing.groups", Integer(0, 1000), 0, "sets of weights of all layers; 0 ties none"
        ),
        Setting(
            "sharing.start",
            OneOf(("first", "mean")),
            "first",
            "a set begins as its first layer, or as the mean of its layers",
            when=lambda s: s["sharing.groups"] != 0,
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        layers, groups = plan.structure.layers, int(candidate.number("sharing.groups", 0))
        count = len(layers)
        if groups == 0 or groups >= count:
            return plan
        of_group = [index * groups // count for index in range(count)]
        leaders = tuple(of_group.index(group) for group in of_group)
        alike = (
            replace(layer, heads=layers[leader].heads, ffn=layers[leader].ffn)
            for layer, leader in zip(layers, leaders, strict=True)
        )
        shared = Shared(leaders, candidate.text("sharing.start", "first"))
        return replace(plan, structure=Structure(tuple(alike))).with_part(shared)

    def build(self, model: nn.Module, part: Shared, family: Family) -> None:
        for index, leader in enumerate(part.leaders):
            theirs = dict(family.part(model, leader, "block").named_parameters())
            for name, module in family.part(model, index, "block").named_modules():
                for key, parameter in list(module.named_parameters(recurse=False)):
                    shared = theirs.get(f"{name}.{key}")
                    if shared is not None and shared.shape == parameter.shape:
                        module.register_parameter(key, shared)

    def fill(self, model: nn.Module, before: nn.Module, part: Shared, family: Family) -> None:
        if part.start == "first":
            return
        import torch

        for leader in set(part.leaders):
            members = [
                dict(family.part(before, index, "block").named_parameters())
                for index in part.group(leader)
            ]
            for name, parameter in family.part(model, leader, "block").named_parameters():
                own = [member[name].detach() for member in members if name in member]
                same = [weight for weight in own if weight.shape == parameter.shape]
                with torch.no_grad():
                    parameter.copy_(torch.stack(same).mean(0))
