"""What models compute inside, seen while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.interfaces import Batch, Family, Row, Take
from autocompress.training.compute import CPU, Compute

_ROWS_AT_ONCE = 64


@contextmanager
def watch(
    model: nn.Module, family: Family, depth: int, names: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """Collects features, named as in ``interfaces.Features``, of every forward pass inside the
    block.

    Args:
        depth: layers of the model.
    """
    seen: dict[str, Tensor] = {}
    handles = []

    def keep(name: str, take: Take) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = take(output[0] if isinstance(output, tuple) else output)

        return hook

    try:
        for name in names:
            kind, _, number = name.partition(".")
            place = (int(number) - 1, "block") if kind == "hidden" else (depth - 1, kind)
            module, take = family.tap(model, *place)
            handles.append(module.register_forward_hook(keep(name, take)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def forward_all(
    model: nn.Module,
    family: Family,
    rows: Sequence[Row],
    batch: Callable[[Sequence[Row]], Batch],
    names: Sequence[str] = (),
    compute: Compute = CPU,
) -> Iterator[tuple[NDArray[np.int64], Tensor, Mapping[str, Tensor]]]:
    """Runs rows through the model without training it, in batches of like lengths.

    Args:
        batch: turns rows into a ``Batch``.
        names: features to watch.

    Yields:
        Indices of the rows, logits (rows, labels) in fp32, and features (rows, length, width),
        padding included.
    """
    model.eval()
    depth = len(family.structure(model).layers)
    order = np.argsort([row.shape[1] for row in rows], kind="stable")
    for start in range(0, len(order), _ROWS_AT_ONCE):
        indices = order[start : start + _ROWS_AT_ONCE]
        inputs = compute.tensors(batch([rows[i] for i in indices]))
        with watch(model, family, depth, names) as seen, torch.inference_mode(), compute.math():
            logits = model(**inputs).logits.float()
        yield indices, logits, seen
