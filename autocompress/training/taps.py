"""What models compute inside, seen while they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from autocompress.interfaces import Family, Take


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
