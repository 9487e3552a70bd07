"""Fisher information of a gate on each head and neuron, from one pass (Kwon et al. 2022, section
4.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autocompress.interfaces import Batch, Family
from autocompress.structure import Importance
from autocompress.training.steps import fast_math


def measure(
    model: nn.Module, family: Family, batches: Iterable[tuple[Batch, NDArray[np.int64]]]
) -> Importance:
    """Mean over examples of the squared derivative of the example's own loss by a gate of value 1.

    Every example has gates of its own, so one backward pass over a batch gives the derivatives of
    each example.

    Args:
        batches: model inputs, and labels as ``TrainingSplit`` has them.
    """
    model.eval()
    full = family.structure(model)
    sums: dict[tuple[str, int], Tensor] = {}
    examples = 0
    for batch, labels in batches:
        count = len(labels)
        examples += count
        gates: dict[tuple[str, int], Tensor] = {}
        for index, layer in enumerate(full.layers):
            gates["heads", index] = torch.ones(count, len(layer.heads), requires_grad=True)
            gates["ffn", index] = torch.ones(count, len(layer.ffn), requires_grad=True)
        handles = [
            family.part(
                model, index, "attention_output" if kind == "heads" else "ffn_output"
            ).register_forward_pre_hook(_gate(gate))
            for (kind, index), gate in gates.items()
        ]
        try:
            inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
            with fast_math():
                logits = model(**inputs).logits.float().flatten(0, -2)
            loss = cross_entropy(logits, torch.from_numpy(labels).flatten(), reduction="sum")
            gradients = torch.autograd.grad(loss, list(gates.values()))
        finally:
            for handle in handles:
                handle.remove()
        for key, gradient in zip(gates, gradients, strict=True):
            sums[key] = sums.get(key, torch.zeros(())) + gradient.double().pow(2).sum(0)

    def scores(kind: str) -> tuple[NDArray[np.float64], ...]:
        return tuple((sums[kind, index] / examples).numpy() for index in range(len(full.layers)))

    return Importance(scores("heads"), scores("ffn"))


def _gate(gate: Tensor) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dimensions = gate.repeat_interleave(inputs[0].shape[-1] // gate.shape[1], dim=1)
        return (inputs[0] * dimensions.unsqueeze(1), *inputs[1:])

    return hook
