"""Samplers: what proposes the next candidate. A sampler is one file here, one line in ``SAMPLERS``
and one row in the conformance test; the algorithms of one library share a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress.interfaces import Sampler
    from autocompress.search_space import SearchSpace

SAMPLERS: tuple[str, ...] = ("tpe", "gp", "nsga2", "random", "local")
"""All but ``local`` are algorithms of Optuna."""


def sampler(name: str, space: SearchSpace, seed: int, objectives: int) -> Sampler:
    """One of ``SAMPLERS``; the other arguments are those of its class."""
    from autocompress.engine.samplers.local import LocalSampler
    from autocompress.engine.samplers.optuna_sampler import OptunaSampler

    if name == "local":
        return LocalSampler(space, seed)
    return OptunaSampler(space, name, seed, objectives)
