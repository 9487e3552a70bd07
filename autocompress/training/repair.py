"""Closed-form repair of a cut model: what its layers add to the residual stream is fitted anew to
the teacher's, without a training step.

Each output projection, of attention and of the FFN, is the solution of a ridge regression, from the
input up, such that the sum of stream and branch matches the teacher's at the same place: where
layers were dropped, at the last teacher layer of those that one now stands for. After He et al.
2017 (Channel pruning for accelerating very deep neural networks), who fit what is left of a pruned
layer to what it gave, by least squares, and Kwon et al. 2022 (A fast post-training pruning
framework for transformers), whose mask tuning scales the heads and neurons that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from autocompress.errors import NOT_FINITE, CandidateFailed
from autocompress.interfaces import Family
from autocompress.structure import Structure
from autocompress.training.outputs import Teacher

_BRANCHES = ("attention_output", "ffn_output")
_RIDGE = 1e-2
"""Penalty on the change of weights, as a share of the mean square of the inputs."""
_TOKENS = 8_192
"""Of calibration text, padding aside."""
_LONGEST = 2
"""Mean lengths at which a calibration text is cut, so that most of their batch is text."""


class Calibration:
    """Texts that students are repaired on, in one batch, and what the teacher makes of them.

    The teacher's sums take 8 bytes per token, layer and dimension of the stream: those of 8,192
    tokens 151 MB in a model of 6 layers 384 wide, 604 MB in one of 12 layers 768 wide.

    Args:
        batch: model inputs, attention mask included.
    """

    @torch.no_grad()
    def __init__(self, teacher: nn.Module, family: Family, batch: Mapping[str, Tensor]) -> None:
        self.teacher, self.family, self.batch = teacher, family, batch
        self.depth = len(family.structure(teacher).layers)
        self.is_text = batch["attention_mask"].bool()
        self.sums: dict[tuple[int, str], Tensor] = {}
        """Of stream and branch, (tokens, width) in fp32, by layer and branch."""

        def keep(layer: int, branch: str) -> Callable[[Tensor], None]:
            def kept(total: Tensor) -> None:
                self.sums[layer, branch] = total[self.is_text]

            return kept

        with ExitStack() as stack:
            for layer in range(self.depth):
                for branch in _BRANCHES:
                    place = family.summed(teacher, layer, branch)
                    stack.callback(_at(*place, keep(layer, branch)).remove)
            self.run(teacher)

    @classmethod
    def of(cls, teacher: Teacher) -> Self:
        """With texts spread evenly over those that students learn from."""
        rows = teacher.transfer.rows
        mean = sum(row.shape[1] for row in rows) / len(rows)
        count = max(1, min(len(rows), int(_TOKENS / mean)))
        spread = (rows[len(rows) * place // count] for place in range(count))
        batch = teacher.transfer.batch([row[:, : int(_LONGEST * mean)] for row in spread])
        return cls(teacher.model, teacher.family, teacher.compute.tensors(batch))

    def run(self, model: Any) -> None:
        """Let the texts through a model, its head aside."""
        without_cache = {"use_cache": False} if self.family.causal else {}
        model.eval().base_model(**self.batch, **without_cache)


@torch.no_grad()
def repair(model: nn.Module, structure: Structure, calibration: Calibration) -> None:
    """Fit the output projections of a cut model, in place, while the texts pass through it once.

    Args:
        model: cut by this structure from the teacher of the calibration, on the same device.

    Raises:
        CandidateFailed: a layer of the model is given numbers that are not finite.
    """
    family, teacher = calibration.family, calibration.teacher
    ends = [*(layer.source for layer in structure.layers[1:]), calibration.depth]
    with ExitStack() as stack:
        for index, (layer, end) in enumerate(zip(structure.layers, ends, strict=True)):
            for branch, units in zip(_BRANCHES, (layer.heads, layer.ffn), strict=True):
                summed, is_input = family.summed(model, index, branch)
                if family.post_norm:
                    norm, _ = family.summed(teacher, end - 1, branch)
                    summed.load_state_dict(norm.state_dict())
                if units:
                    projection = family.part(model, index, branch)
                    fit = _Fit(projection, calibration.sums[end - 1, branch], calibration.is_text)
                    stack.callback(_at(projection, True, fit.keep).remove)
                    stack.callback(_at(summed, is_input, fit.correct).remove)
        calibration.run(model)


def _at(module: nn.Module, is_input: bool, act: Callable[[Tensor], None]) -> RemovableHandle:
    """Show what goes into a module (true) or comes out of it, each time that it runs."""

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        act(inputs[0])

    def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        act(output)

    if is_input:
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)


class _Fit:
    """A projection that is fitted as soon as what it is added to is known.

    Args:
        wanted: sum of stream and branch, (tokens, width).
        is_text: places of the tokens, (rows, length).
    """

    def __init__(self, projection: nn.Module, wanted: Tensor, is_text: Tensor) -> None:
        self.projection, self.wanted, self.is_text = projection, wanted, is_text

    def keep(self, inputs: Tensor) -> None:
        """What the projection is given, (rows, length, inputs)."""
        self.inputs = inputs

    def correct(self, total: Tensor) -> None:
        """Change the projection such that the sum, (rows, length, width), comes near the wanted
        one; and the sum itself, in place, to what it is then."""
        missing = self.wanted - total[self.is_text]
        weight, bias = self.projection.get_parameter("weight"), self.projection.bias
        has_bias = isinstance(bias, nn.Parameter)
        change, shift = _solved(self.inputs[self.is_text], missing, has_bias)
        weight.add_(change if isinstance(self.projection, Conv1D) else change.T)
        if isinstance(bias, nn.Parameter):
            bias.add_(shift)
        total.add_(self.inputs @ change + shift)
        del self.inputs


def _solved(inputs: Tensor, outputs: Tensor, with_shift: bool) -> tuple[Tensor, Tensor]:
    """The matrix, (inputs, outputs), and the shift that lead from inputs to outputs, by ridge
    regression.

    Args:
        inputs: (tokens, inputs).
        outputs: (tokens, outputs).
        with_shift: without, it is zero.

    Raises:
        CandidateFailed: not all inputs are finite.
    """
    center, offset = inputs.mean(0), outputs.mean(0)
    if not with_shift:
        center, offset = torch.zeros_like(center), torch.zeros_like(offset)
    inputs, outputs = inputs - center, outputs - offset
    gram = (inputs.T @ inputs).double()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    factor, info = torch.linalg.cholesky_ex(gram)
    if info.item():
        raise CandidateFailed(NOT_FINITE)
    matrix = torch.cholesky_solve((inputs.T @ outputs).double(), factor).to(inputs.dtype)
    return matrix, offset - center @ matrix
