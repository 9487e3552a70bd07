"""How much the loss feels a gate on each head, neuron and hidden dimension (Michel et al. 2019,
equation 2), heads in the order in which pruning in rounds takes them (section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.interfaces import Batch, Family, Loss
from autocompress.knowledge.fisher import Gates, derivatives, importance
from autocompress.structure import Importance
from autocompress.training.compute import CPU, Compute

ROUNDS = 10
"""In which all heads go, as many in each."""


def measure(
    model: nn.Module,
    family: Family,
    batches: Sequence[tuple[Batch, NDArray[np.int64]]],
    loss: Loss,
    compute: Compute = CPU,
) -> Importance:
    """Sum over examples of the magnitude of the derivative of the example's own loss by a gate of
    value 1, as a share of the Euclidean norm of all these sums of a layer.

    A head scores its place in the order in which heads go, counted from 1, or nothing where the
    loss does not feel it: each round closes the gates of those that matter least, and measures the
    ones left anew.

    Args:
        batches, loss: as of ``fisher.measure``.
    """
    heads = [np.ones(len(layer.heads)) for layer in family.structure(model).layers]
    places = [np.zeros(len(gates)) for gates in heads]

    def shares() -> dict[Gates, NDArray[np.float64]]:
        sums: dict[Gates, Tensor] = {}
        for gradients in derivatives(model, family, batches, loss, compute, heads):
            for gates, gradient in gradients.items():
                sums[gates] = sums.get(gates, torch.zeros(())) + gradient.abs().sum(0)
        for layer, gates_left in enumerate(heads):
            sums["heads", layer] *= torch.from_numpy(gates_left)
        return {gates: (own / own.norm().clamp(min=1e-30)).numpy() for gates, own in sums.items()}

    uncut = scores = shares()
    total = sum(map(len, heads))
    in_a_round = -(-total // ROUNDS)
    for gone in range(0, total, in_a_round):
        if gone:
            scores = shares()
        left = [
            (scores["heads", layer][head], layer, head)
            for layer, gates_left in enumerate(heads)
            for head in np.flatnonzero(gates_left).tolist()
        ]
        for place, (share, layer, head) in enumerate(sorted(left)[:in_a_round], start=gone + 1):
            heads[layer][head], places[layer][head] = 0, place if share else 0
    return importance(uncut | {("heads", layer): own for layer, own in enumerate(places)})
