"""The residual stream: the hidden vector of each token, that every layer reads and adds to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def inputs_of(projection: nn.Module) -> int:
    """Of a matrix, or of several that are multiplied one after the other; none of a stand-in."""
    if isinstance(projection, nn.Sequential):
        return inputs_of(projection[0])
    if isinstance(projection, Conv1D):
        return int(projection.weight.shape[0])
    return projection.in_features if isinstance(projection, nn.Linear) else 0


@dataclass(frozen=True)
class Access:
    """A module whose inputs (``reads``) or outputs (``writes``) are the stream's dimensions."""

    module: nn.Module
    reads: bool = False
    writes: bool = False

    def axes(self) -> dict[str, tuple[int, ...]]:
        """Parameter -> those of its axes that the dimensions lie along, if any."""
        transposed = isinstance(self.module, Conv1D | nn.Embedding)
        ends = [axis for axis, used in ((0, self.writes), (1, self.reads)) if used]
        of_matrix = tuple(1 - axis if transposed else axis for axis in ends)
        of_vector = (0,) if self.writes else ()
        return {
            name: of_matrix if parameter.dim() > 1 else of_vector
            for name, parameter in self.module.named_parameters(recurse=False)
        }


class Streamed(ABC):
    """What a ``Family`` does with hidden dimensions, given the modules at its stream."""

    @abstractmethod
    def stream(self, model: nn.Module) -> Iterator[Access]:
        """Every module with parameters at the residual stream, and those past it that are as
        wide."""
        ...

    def hidden_size(self, model: nn.Module) -> int:
        return len(self.hidden_gates(model)[0].get_parameter("weight"))

    def narrow(self, model: nn.Module, kept: Sequence[int]) -> None:
        narrowed: dict[nn.Parameter, nn.Parameter] = {}
        for access in self.stream(model):
            for name, axes in access.axes().items():
                whole = access.module.get_parameter(name)
                if whole not in narrowed:
                    narrowed[whole] = _selected(whole, axes, kept)
                setattr(access.module, name, narrowed[whole])
            _restate(access.module)

    def hidden_weights(self, model: nn.Module) -> tuple[Tensor, ...]:
        hidden_axes = dict.fromkeys(
            (access.module.get_parameter(name), axis)
            for access in self.stream(model)
            for name, axes in access.axes().items()
            for axis in axes
        )
        return tuple(
            parameter.detach().movedim(axis, 0)
            for parameter, axis in hidden_axes
            if parameter.dim() > 1
        )

    def hidden_gates(self, model: nn.Module) -> tuple[nn.Module, ...]:
        return tuple(
            access.module for access in self.stream(model) if access.reads and access.writes
        )


def word_table(model: nn.Module) -> nn.Embedding:
    """What a model looks words up in, also where a matrix widens its rows."""
    whole: Any = model
    modules = whole.get_input_embeddings().modules()
    table: nn.Embedding = next(module for module in modules if isinstance(module, nn.Embedding))
    return table


def _selected(whole: Tensor, axes: Sequence[int], kept: Sequence[int]) -> nn.Parameter:
    index = torch.tensor(kept, device=whole.device)
    part = whole.detach()
    for axis in axes:
        part = part.index_select(axis, index)
    return nn.Parameter(part)


def _restate(module: nn.Module) -> None:
    """Let the module say the sizes that its weight now has."""
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
