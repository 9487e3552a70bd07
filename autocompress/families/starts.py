"""What the weights of a student's layers begin as (Li et al. 2021, released code: the extraction of
students from GPT-2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Reduce = Callable[[Tensor, int, int, Sequence[int]], Tensor]
"""(matrix or bias, axis that units lie along, entries of each unit, units kept) -> the same with
fewer units."""


def copied(tensor: Tensor, axis: int, size: int, kept: Sequence[int]) -> Tensor:
    """The kept units."""
    units = _units(tensor, axis, size)
    return units.index_select(axis, torch.tensor(kept, device=tensor.device)).flatten(
        axis, axis + 1
    )


def pooled(tensor: Tensor, axis: int, size: int, kept: Sequence[int]) -> Tensor:
    """As many units as are kept, each the average of neighbours: windows as wide as fit with a
    stride of one."""
    units = _units(tensor, axis, size).movedim(axis, 0)
    window = len(units) - len(kept) + 1
    sums = torch.cat(
        [torch.zeros_like(units[:1], dtype=torch.float64), units.cumsum(0, dtype=torch.float64)]
    )
    means = ((sums[window:] - sums[:-window]) / window).to(tensor.dtype)
    return means.movedim(0, axis).flatten(axis, axis + 1)


def _units(tensor: Tensor, axis: int, size: int) -> Tensor:
    """With the axis as two: units, and the entries of each."""
    return tensor.detach().reshape(*tensor.shape[:axis], -1, size, *tensor.shape[axis + 1 :])


def renew(layers: Sequence[nn.Module]) -> None:
    """Matrices drawn from N(0, 0.02), biases zero, norms one; the same at every call."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers:
            for name, parameter in layer.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.02, generator=random)
                else:
                    parameter.fill_(0 if name.endswith("bias") else 1)


STARTS: dict[str, Reduce] = {"copied": copied, "pooled": pooled, "embeddings": copied}
"""Start -> how heads and neurons are made fewer. ``embeddings`` keeps what is outside of the
layers, which are made anew."""
