"""Heads and FFN neurons pruned together, those first that matter least for the time they take.

Importance per unit of latency as in Shen et al. 2022, "Structural Pruning via Latency-Saliency
Knapsack" (HALP), section 3, with Fisher information (comparable between heads and neurons) and the
device's own latency table. What stands in for what: their knapsack is solved by dynamic programming
over a latency for each number of channels left, and pruning goes on in steps between which the
model is trained; here units go in the order of one ratio, a layer's units cost the same each, and
it is done at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from autocompress.candidate import Candidate, Real, Setting
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Knowledge, StructuralTechnique
from autocompress.structure import Layer, Structure, ffn_step, in_blocks

Kind = Literal["heads", "ffn"]
Units = tuple[int, Kind, tuple[int, ...]]
"""(position of the layer, kind, indices of heads or neurons): what goes together, a head or so many
neurons as an FFN is cut by."""


class LatencyPruning(StructuralTechnique):
    """Removes heads, and neurons in steps of ``ffn_step``, in order of importance per latency until
    the predicted latency is ``width.latency`` of what it was."""

    name = "latency-pruning"
    settings = (
        Setting(
            "width.latency",
            Real(0.02, 1),
            1.0,
            "share of the predicted latency that stays when heads and neurons go",
        ),
    )

    def refine(self, structure: Structure, candidate: Candidate, knowledge: Knowledge) -> Structure:
        share = candidate.number("width.latency", 1)
        if share == 1:
            return structure
        if knowledge.latency is None:
            raise CandidateFailed("width.latency needs a latency table, and none was measured")
        latency, units = knowledge.latency, _least_worth_first(structure, knowledge)
        target = share * latency(structure)
        low, high = 0, len(units)
        if latency(_without(structure, units)) > target:
            raise CandidateFailed(
                f"width.latency {share:g} is out of reach: without any heads and neurons more is "
                f"left"
            )
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if latency(_without(structure, units[:middle])) <= target
                else (middle + 1, high)
            )
        return _without(structure, units[:low])


def _least_worth_first(structure: Structure, knowledge: Knowledge) -> list[Units]:
    assert knowledge.latency is not None
    scores = knowledge.importance["fisher"]
    step = ffn_step(max(map(len, scores.ffn)))
    worth: list[tuple[float, Units]] = []
    for position, layer in enumerate(structure.layers):
        kinds: tuple[Kind, Kind] = ("heads", "ffn")
        for kind in kinds:
            kept = getattr(layer, kind)
            important = getattr(scores, kind)[layer.source][list(kept)]
            cost = _cost(structure, position, kind, knowledge.latency)
            for block in in_blocks(important, step if kind == "ffn" else 1):
                units = (position, kind, tuple(kept[i] for i in block))
                worth.append((float(important[block].mean()) / cost, units))
    return [units for _, units in sorted(worth, key=lambda pair: pair[0])]


def _cost(
    structure: Structure, position: int, kind: Kind, latency: Callable[[Structure], float]
) -> float:
    """Latency that a unit of a layer takes, on average over half of them."""
    layer = structure.layers[position]
    units = layer.heads if kind == "heads" else layer.ffn
    if not units:
        return 1.0
    half = units[: len(units) // 2]
    layers = list(structure.layers)
    layers[position] = replace(layer, heads=half) if kind == "heads" else replace(layer, ffn=half)
    return max(
        1e-9, (latency(structure) - latency(Structure(tuple(layers)))) / (len(units) - len(half))
    )


def _without(structure: Structure, units: Sequence[Units]) -> Structure:
    gone = {(position, kind, i) for position, kind, some in units for i in some}

    def left(position: int, layer: Layer) -> Layer:
        heads = tuple(i for i in layer.heads if (position, "heads", i) not in gone)
        return replace(
            layer, heads=heads, ffn=tuple(i for i in layer.ffn if (position, "ffn", i) not in gone)
        )

    return Structure(
        tuple(left(position, layer) for position, layer in enumerate(structure.layers))
    )
