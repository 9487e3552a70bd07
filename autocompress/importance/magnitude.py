"""Magnitude: how large a head's or neuron's own weights are (Michel et al. 2019 normalise per layer; so do we)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.interfaces import Family
from autocompress.structure import Importance


def measure(model: nn.Module, family: Family) -> Importance:
    """L2 norm of the weights that go when a unit goes, divided by the layer's root mean square."""
    heads, ffn = [], []
    size = family.head_size(model)
    for index in range(len(family.structure(model).layers)):
        inward = [_weight(family.part(model, index, role)) for role in ("query", "key", "value")]
        outward = _weight(family.part(model, index, "attention_output")).T
        per_dimension = sum(weight.pow(2).sum(1) for weight in [*inward, outward])
        assert isinstance(per_dimension, torch.Tensor)
        heads.append(_normalised(per_dimension.view(-1, size).sum(1)))
        per_neuron = _weight(family.part(model, index, "ffn_input")).pow(2).sum(1)
        ffn.append(_normalised(per_neuron + _weight(family.part(model, index, "ffn_output")).pow(2).sum(0)))
    return Importance(tuple(heads), tuple(ffn))


def _weight(module: nn.Module) -> torch.Tensor:
    assert isinstance(module, nn.Linear)
    return module.weight.detach().double()


def _normalised(squares: torch.Tensor) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = (squares / squares.mean()).sqrt().numpy()
    return scores
