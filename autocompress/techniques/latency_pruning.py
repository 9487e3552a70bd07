"""Heads and FFN neurons pruned together, those first that matter least for the time they take.

Importance per unit of latency as in Shen et al. 2022, "Structural Pruning via Latency-Saliency
Knapsack" (HALP), section 3, with Fisher information (comparable between heads and neurons) and the
device's own latency table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from autocompress.candidate import Candidate, Real, Setting
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Knowledge, StructuralTechnique
from autocompress.structure import Layer, Structure

Unit = tuple[int, Literal["heads", "ffn"], int]
"""(position of the layer, kind, index of the head or neuron)."""


class LatencyPruning(StructuralTechnique):
    """Removes units in order of importance per latency until the predicted latency is
    ``width.latency`` of what it was."""

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


def _least_worth_first(structure: Structure, knowledge: Knowledge) -> list[Unit]:
    assert knowledge.latency is not None
    scores = knowledge.importance["fisher"]
    worth: list[tuple[float, Unit]] = []
    for position, layer in enumerate(structure.layers):
        for kind, kept, important in (
            ("heads", layer.heads, scores.heads),
            ("ffn", layer.ffn, scores.ffn),
        ):
            cost = _cost(structure, position, kind, knowledge.latency)
            worth += [(float(important[layer.source][i]) / cost, (position, kind, i)) for i in kept]  # type: ignore[misc]
    return [unit for _, unit in sorted(worth, key=lambda pair: pair[0])]


def _cost(
    structure: Structure, position: int, kind: str, latency: Callable[[Structure], float]
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


def _without(structure: Structure, units: Sequence[Unit]) -> Structure:
    gone = set(units)

    def left(position: int, layer: Layer) -> Layer:
        heads = tuple(i for i in layer.heads if (position, "heads", i) not in gone)
        return replace(
            layer, heads=heads, ffn=tuple(i for i in layer.ffn if (position, "ffn", i) not in gone)
        )

    return Structure(
        tuple(left(position, layer) for position, layer in enumerate(structure.layers))
    )
