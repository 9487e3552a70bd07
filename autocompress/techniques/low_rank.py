"""Low rank: the output projections of attention and FFN as products of two narrower matrices.

Weight factorization as in Ganesh et al. 2021, section 3.4; started from the singular value
decomposition as in Noach and Goldberg 2020, "Compressing Pre-trained Language Models by Matrix
Decomposition", section 3. A matrix whose factors would be no smaller stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, OneOf, Real, Setting
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Family, Knowledge, Technique
from autocompress.plan import Part, Plan
from autocompress.structure import Layer

if TYPE_CHECKING:
    from torch import nn

ROLES = ("attention_output", "ffn_output")


@dataclass(frozen=True)
class LowRank(Part):
    """Ranks by layer.

    Args:
        attention: of the attention outputs; 0 stays whole.
        ffn: of the FFN outputs, likewise.
        head_size: inputs of an attention output for each head.
        hidden: outputs of either.
    """

    technique: ClassVar[str] = "low-rank"
    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    head_size: int
    hidden: int

    def words(self) -> str:
        ranks = [rank for rank in (*self.attention, *self.ffn) if rank]
        low, high = min(ranks), max(ranks)
        return f"outputs of rank {low}" if low == high else f"outputs of rank {low}-{high}"

    def terms(self, index: int, layer: Layer) -> Mapping[str, float]:
        """Products that are added, and million weights (fewer than none)."""
        inputs = {
            "attention": (self.attention[index], len(layer.heads) * self.head_size),
            "ffn": (self.ffn[index], len(layer.ffn)),
        }
        factored = [(rank, wide) for rank, wide in inputs.values() if rank]
        saved = sum(rank * (wide + self.hidden) - wide * self.hidden for rank, wide in factored)
        return {"products": len(factored), "weights": saved / 1e6}

    def of(self, index: int) -> dict[str, int]:
        """Ranks of a layer by role."""
        return dict(zip(ROLES, (self.attention[index], self.ffn[index]), strict=True))


class LowRankOutputs(Technique):
    """Keeps ``rank.keep`` of the full rank in every matrix, or as many singular values as hold that
    share of its energy, the sum of their squares."""

    name = "low-rank"
    part = LowRank
    settings = (
        Setting("rank.keep", Real(0.01, 1), 1.0, "rank of attention and FFN outputs that stays"),
        Setting(
            "rank.allocation",
            OneOf(("uniform", "energy")),
            "uniform",
            "the share is one of the rank, or one of the sum of squared singular values",
            when=lambda s: s["rank.keep"] != 1,
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        share = candidate.number("rank.keep", 1)
        if share == 1:
            return plan
        if knowledge.measured is None:
            raise CandidateFailed("rank.keep needs the weights of the model")
        by_energy = candidate.text("rank.allocation", "uniform") == "energy"
        matrices, head_size = knowledge.measured(output_matrices)

        def rank(layer: Layer, role: str) -> int:
            size = head_size if role == "attention_output" else 1
            kept = np.array(layer.heads if size > 1 else layer.ffn, int)
            columns = (kept[:, None] * size + np.arange(size)).ravel()
            matrix = matrices[layer.source, role][:, columns]
            return _rank(matrix, share, by_energy=by_energy)

        layers = plan.structure.layers
        attention, ffn = (tuple(rank(layer, role) for layer in layers) for role in ROLES)
        hidden = next(iter(matrices.values())).shape[0]
        if not any((*attention, *ffn)):
            return plan
        return plan.with_part(LowRank(attention, ffn, head_size, hidden))

    def build(self, model: nn.Module, part: LowRank, family: Family) -> None:
        from torch import nn

        for index in range(len(part.ffn)):
            for role, rank in part.of(index).items():
                if rank:
                    weight, bias = matrix_of(family.part(model, index, role))
                    first = nn.Linear(weight.shape[1], rank, bias=False)
                    second = nn.Linear(rank, weight.shape[0], bias=bias is not None)
                    family.put(model, index, role, nn.Sequential(first, second))

    def fill(self, model: nn.Module, before: nn.Module, part: LowRank, family: Family) -> None:
        import torch

        for index in range(len(part.ffn)):
            for role, rank in part.of(index).items():
                if rank:
                    factors: Any = family.part(model, index, role)
                    weight, bias = matrix_of(family.part(before, index, role))
                    left, sizes, right = torch.linalg.svd(weight.double(), full_matrices=False)
                    root = sizes[:rank].sqrt()
                    with torch.no_grad():
                        factors[0].weight.copy_(root[:, None] * right[:rank])
                        factors[1].weight.copy_(left[:, :rank] * root)
                        if bias is not None:
                            factors[1].bias.copy_(bias)


def matrix_of(projection: Any) -> tuple[Any, Any]:
    """Weights (outputs, inputs) and bias, detached, of a linear layer or transformers' Conv1D."""
    weight = projection.weight.detach()
    bias = None if projection.bias is None else projection.bias.detach()
    return (weight.T if hasattr(projection, "nf") else weight), bias


def output_matrices(
    model: nn.Module, family: Family
) -> tuple[dict[tuple[int, str], NDArray[np.float32]], int]:
    """The output projections (hidden, inputs) of an uncut model by layer and role, and the inputs
    that belong to a head."""
    layers = family.structure(model).layers
    matrices = {
        (i, role): matrix_of(family.part(model, i, role))[0].float().cpu().numpy()
        for i in range(len(layers))
        for role in ROLES
    }
    return matrices, matrices[0, "attention_output"].shape[1] // len(layers[0].heads)


def _rank(matrix: NDArray[np.float32], share: float, *, by_energy: bool) -> int:
    """0 for a matrix whose factors would be no smaller."""
    outputs, inputs = matrix.shape
    full = min(outputs, inputs)
    if full == 0:
        return 0
    rank = max(1, round(share * full))
    if by_energy:
        energy = np.cumsum(np.square(np.linalg.svd(matrix.astype(float), compute_uv=False)))
        rank = int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12))) + 1
    return rank if rank * (inputs + outputs) < inputs * outputs else 0
