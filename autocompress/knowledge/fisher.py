"""Fisher information of a gate on each head, neuron and hidden dimension, from one pass (Kwon et
al. 2022, section 4.1).

A hidden dimension has one gate for the whole model (Xia et al. 2022, section 3.1). It multiplies
the dimension where a norm of the residual stream puts it out, weighs it in the norm's mean and
variance, and multiplies what the pooler makes of it: with gates of 0 and 1 that is the narrowed
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.interfaces import Batch, Family, Loss
from autocompress.structure import Importance
from autocompress.training.compute import CPU, Compute

Gates = tuple[str, int]
"""``heads`` or ``ffn`` and the layer they are in; ``("hidden", 0)``, of the whole model."""


def measure(
    model: nn.Module,
    family: Family,
    batches: Iterable[tuple[Batch, NDArray[np.int64]]],
    loss: Loss,
    compute: Compute = CPU,
) -> Importance:
    """Mean over examples of the squared derivative of the example's own loss by a gate of value 1.

    Args:
        batches: model inputs, and labels as ``TrainingSplit`` has them.
        loss: see ``Task``.
    """
    sums: dict[Gates, Tensor] = {}
    examples = 0
    for gradients in derivatives(model, family, batches, loss, compute):
        examples += len(gradients["hidden", 0])
        for gates, gradient in gradients.items():
            sums[gates] = sums.get(gates, torch.zeros(())) + gradient.pow(2).sum(0)
    return importance({gates: (total / examples).numpy() for gates, total in sums.items()})


def derivatives(
    model: nn.Module,
    family: Family,
    batches: Iterable[tuple[Batch, NDArray[np.int64]]],
    loss: Loss,
    compute: Compute = CPU,
    heads: Sequence[NDArray[np.float64]] | None = None,
) -> Iterator[dict[Gates, Tensor]]:
    """Of each batch the derivatives of each example's own loss by the gates, fp64 of shape
    (examples, units).

    Every example has gates of its own, so one backward pass over a batch gives the derivatives of
    each example.

    Args:
        batches, loss: as of ``measure``.
        heads: of each layer the values of its heads' gates; 1 by default, as all others have.
    """
    device = compute.device
    model.to(device).eval()
    full, hidden = family.structure(model), family.hidden_size(model)
    values = heads or [np.ones(len(layer.heads)) for layer in full.layers]
    for batch, labels in batches:
        count = len(labels)
        gates: dict[Gates, Tensor] = {}
        for index, layer in enumerate(full.layers):
            own = torch.tensor(values[index], dtype=torch.float32, device=device)
            gates["heads", index] = own.repeat(count, 1).requires_grad_()
            gates["ffn", index] = torch.ones(
                count, len(layer.ffn), device=device, requires_grad=True
            )
        handles = [
            family.part(
                model, index, "attention_output" if kind == "heads" else "ffn_output"
            ).register_forward_pre_hook(_gate(gate))
            for (kind, index), gate in gates.items()
        ]
        gates["hidden", 0] = torch.ones(count, hidden, device=device, requires_grad=True)
        handles += [
            module.register_forward_hook(hidden_gate(gates["hidden", 0]))
            for module in family.hidden_gates(model)
        ]
        try:
            inputs = compute.tensors(batch)
            answers = compute.moved(torch.from_numpy(labels))
            total = loss(compute.logits(model, inputs), answers, reduction="sum")
            gradients = torch.autograd.grad(total, list(gates.values()))
        finally:
            for handle in handles:
                handle.remove()
        yield {key: gradient.double().cpu() for key, gradient in zip(gates, gradients, strict=True)}


def importance(scores: Mapping[Gates, NDArray[np.float64]]) -> Importance:
    """Of the scores of all gates."""
    layers = range(sum(kind == "heads" for kind, _ in scores))
    heads, ffn = (tuple(scores[kind, index] for index in layers) for kind in ("heads", "ffn"))
    return Importance(heads, ffn, scores["hidden", 0])


def hidden_gate(gate: Tensor) -> Any:
    """A forward hook for ``Family.hidden_gates``.

    Args:
        gate: of shape (examples, hidden).
    """

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        own = gate.unsqueeze(1) if output.dim() == 3 else gate
        return own * (
            output if isinstance(module, nn.Linear) else _normalized(module, inputs[0], own)
        )

    return hook


def _normalized(norm: Any, x: Tensor, gate: Tensor) -> Tensor:
    """LayerNorm or RMSNorm, in whose mean and variance dimensions count as their gate says."""
    weights = gate / gate.sum(-1, keepdim=True)
    has_mean = isinstance(norm, nn.LayerNorm)
    if has_mean:
        x = x - (weights * x).sum(-1, keepdim=True)
    variance = (weights * x.square()).sum(-1, keepdim=True)
    epsilon = norm.eps if has_mean else norm.variance_epsilon
    scaled: Tensor = norm.weight * x * torch.rsqrt(variance + epsilon)
    return scaled + norm.bias if has_mean else scaled


def _gate(gate: Tensor) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dimensions = gate.repeat_interleave(inputs[0].shape[-1] // gate.shape[1], dim=1)
        return (inputs[0] * dimensions.unsqueeze(1), *inputs[1:])

    return hook
