"""How much the loss feels it when a matrix takes few values: by doing that to one at a time (Boo
and Sung 2020, "Fixed-Point Optimization of Transformer Neural Network"), or by the curvature of the
loss (Shen et al. 2020, "Q-BERT: Hessian Based Ultra Low Precision Quantization of BERT")."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autocompress.interfaces import Batch, Labelled, Loss
from autocompress.training.compute import Compute
from autocompress.training.steps import seeded

_BATCHES = 4
_CURVED = 3
"""Batches that curvature is measured on, so many examples of each."""
_EXAMPLES = 4
_ITERATIONS, _TOLERANCE = 8, 5e-2


def one_at_a_time(
    model: nn.Module,
    coded: Mapping[str, Callable[[], Tensor]],
    batches: Sequence[Labelled],
    loss: Loss,
    compute: Compute,
) -> dict[str, float]:
    """By how much the loss grows when one matrix alone is coded, for each of its weights; 0 where
    it does not grow.

    Args:
        coded: by name of the parameter, what makes its values.
        batches, loss: as of ``fisher.measure``.
    """
    model.to(compute.device).eval()

    def mean_loss() -> float:
        losses = [
            loss(compute.logits(model, compute.tensors(batch)), _moved(labels, compute))
            for batch, labels in batches[:_BATCHES]
        ]
        return float(torch.stack(losses).double().mean())

    with torch.no_grad():
        plain, felt = mean_loss(), {}
        for name, values in coded.items():
            weight = model.get_parameter(name)
            before, weight.data = weight.data, values()
            felt[name] = max(0.0, mean_loss() - plain) / weight.numel()
            weight.data = before
    return felt


def by_curvature(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Labelled],
    loss: Loss,
    compute: Compute,
) -> dict[str, float]:
    """|mean| + standard deviation over batches of the top eigenvalue of the loss's Hessian by each
    parameter (Shen et al. 2020, equation 2)."""
    model.to(compute.device).eval()
    found: dict[str, list[float]] = {name: [] for name in names}
    weights = [model.get_parameter(name) for name in names]
    for batch, labels in batches[:_CURVED]:
        some = Batch({name: array[:_EXAMPLES] for name, array in batch.inputs.items()})
        with _twice_differentiable(model):
            answers = compute.logits(model, compute.tensors(some))
            value = loss(answers, _moved(labels[:_EXAMPLES], compute))
            gradients = torch.autograd.grad(value, weights, create_graph=True)
            for name, weight, gradient in zip(names, weights, gradients, strict=True):

                def product(
                    vector: Tensor, weight: Tensor = weight, gradient: Tensor = gradient
                ) -> Tensor:
                    [moved] = torch.autograd.grad(gradient, weight, vector, retain_graph=True)
                    return moved

                found[name].append(top_eigenvalue(product, _drawn(weight)))
    values = {name: torch.tensor(own, dtype=torch.float64) for name, own in found.items()}
    return {name: float(own.mean().abs() + own.std(correction=0)) for name, own in values.items()}


def top_eigenvalue(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    tolerance: float = _TOLERANCE,
    iterations: int = _ITERATIONS,
) -> float:
    """The eigenvalue of largest magnitude of a symmetric matrix, by power iteration.

    Args:
        product: of the matrix with a vector.
        start: any vector that has a share of the eigenvector.
        tolerance: relative change at which it ends.
        iterations: at most.
    """
    vector, value = start / start.norm(), 0.0
    for _ in range(iterations):
        moved = product(vector)
        before, value = value, float((vector * moved).sum())
        length = moved.norm()
        if not length or abs(value - before) <= tolerance * abs(value):
            break
        vector = moved / length
    return value


def _drawn(weight: Tensor) -> Tensor:
    with seeded(0):
        return torch.randn(weight.shape).to(weight.device)


def _moved(labels: object, compute: Compute) -> Tensor:
    return compute.moved(torch.as_tensor(labels))


@contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Neither fused attention nor sparse gradients have second derivatives."""
    sparse = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse]
    try:
        for embedding in sparse:
            embedding.sparse = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for embedding in sparse:
            embedding.sparse = True
