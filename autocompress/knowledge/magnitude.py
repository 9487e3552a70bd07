"""Magnitude: how large the weights of a head, neuron or hidden dimension are (Michel et al. 2019
normalise per layer; so do we)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.interfaces import Family
from autocompress.structure import Importance


def measure(model: nn.Module, family: Family) -> Importance:
    """L2 norm of the weights that go when a unit goes, divided by the root mean square over the
    layer's, or over all hidden dimensions."""
    layers = family.structure(model).layers
    heads = [
        _scores(family.weights(model, i, "heads"), len(layer.heads))
        for i, layer in enumerate(layers)
    ]
    ffn = [
        _scores(family.weights(model, i, "ffn"), len(layer.ffn)) for i, layer in enumerate(layers)
    ]
    hidden = _scores(family.hidden_weights(model), family.hidden_size(model))
    return Importance(tuple(heads), tuple(ffn), hidden)


def _scores(matrices: Sequence[Tensor], units: int) -> NDArray[np.float64]:
    squares = torch.stack(
        [
            matrix.pow(2).reshape(units, -1).sum(1, dtype=torch.float64)  # no fp64 vocabulary
            for matrix in matrices
        ]
    ).sum(0)
    scores: NDArray[np.float64] = (squares / squares.mean()).sqrt().numpy()
    return scores
