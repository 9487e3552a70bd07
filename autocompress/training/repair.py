"""Closed-form repair of a cut model: what its layers add to the residual stream is fitted anew to
the teacher's, without a training step.

Each output projection, of attention and of the FFN, is the solution of a ridge regression, layer by
layer from the input up, such that the sum of stream and branch matches the teacher's at the same
place: where layers were dropped, at the last teacher layer of those that one now stands for. After
He et al. 2017 (Channel pruning, section 3.1), who fit what is left of a pruned layer to its output,
and Kwon et al. 2022 (A fast post-training pruning framework for transformers, section 4.3), who
scale the heads and neurons that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autocompress.interfaces import Family
from autocompress.structure import Structure
from autocompress.training.compute import Compute
from autocompress.training.outputs import TransferSet

_BRANCHES = ("attention_output", "ffn_output")
_RIDGE = 1e-2
"""Penalty on the change of weights, as a share of the mean square of the inputs."""
_MOST_TOKENS = 16_384
"""Of calibration text, padding aside."""
_ROWS_AT_ONCE = 64
Probe = tuple[nn.Module, bool]
"""A module, and whether what goes into it is wanted (true) or what comes out."""


def calibration(text: TransferSet, compute: Compute) -> list[dict[str, Tensor]]:
    """Inputs of rows spread evenly over a text, in batches of like lengths."""
    lengths = [row.shape[1] for row in text.rows]
    count = max(1, min(len(lengths), int(_MOST_TOKENS * len(lengths) / sum(lengths))))
    spread = [text.rows[len(lengths) * place // count] for place in range(count)]
    rows = sorted(spread, key=lambda row: row.shape[1])
    starts = range(0, count, _ROWS_AT_ONCE)
    return [compute.tensors(text.batch(rows[i : i + _ROWS_AT_ONCE])) for i in starts]


def repair(
    model: nn.Module,
    teacher: nn.Module,
    family: Family,
    structure: Structure,
    batches: Sequence[Mapping[str, Tensor]],
) -> None:
    """Fit the output projections of a cut model, in place.

    Args:
        model: cut from the teacher by this structure, on the same device.
        batches: model inputs of calibration texts, attention mask included.
    """
    model.eval()
    teacher.eval()
    ends = [layer.source for layer in structure.layers[1:]] + [
        len(family.structure(teacher).layers)
    ]
    with torch.no_grad():
        own, taught = _Passage(model, family, batches), _Passage(teacher, family, batches)
        for index, (layer, end) in enumerate(zip(structure.layers, ends, strict=True)):
            while taught.layer < end - 1:
                taught.go_on({})
            wanted = {branch: family.summed(teacher, end - 1, branch) for branch in _BRANCHES}
            sums = taught.go_on(wanted)
            for branch, units in zip(_BRANCHES, (layer.heads, layer.ffn), strict=True):
                summed = family.summed(model, index, branch)
                if units:
                    projection = family.part(model, index, branch)
                    _, seen = own.seen({"inputs": (projection, True), "sum": summed})
                    _fit(projection, seen["inputs"], sums[branch] - seen["sum"])
                if family.post_norm:
                    summed[0].load_state_dict(wanted[branch][0].state_dict())
            own.go_on({})


class _Passage:
    """Batches on their way through a model, layer by layer.

    Args:
        batches: model inputs.
    """

    def __init__(
        self, model: nn.Module, family: Family, batches: Sequence[Mapping[str, Tensor]]
    ) -> None:
        self.blocks = [
            family.part(model, i, "block") for i in range(len(family.structure(model).layers))
        ]
        self.layer = 0
        without_cache = {"use_cache": False} if family.causal else {}
        self.given: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        """What each layer is given beside the hidden states, by batch and layer."""
        self.hidden: list[Tensor] = []
        """What the next layer is given, (rows, length, width), by batch."""
        self.is_text = [batch["attention_mask"].bool() for batch in batches]
        for batch in batches:
            beside: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
            handles = [
                block.register_forward_pre_hook(
                    lambda _, args, kwargs, beside=beside: beside.append((args, kwargs)),
                    with_kwargs=True,
                )
                for block in self.blocks
            ]
            try:
                model(**batch, **without_cache)
            finally:
                for handle in handles:
                    handle.remove()
            self.hidden.append(beside[0][0][0])
            self.given.append([(args[1:], kwargs) for args, kwargs in beside])

    def seen(self, probes: Mapping[str, Probe]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What the next layer makes of each batch, and what the probes saw of all text, (tokens,
        width)."""
        outputs: list[Tensor] = []
        caught: dict[str, list[Tensor]] = {name: [] for name in probes}
        for hidden, beside, is_text in zip(self.hidden, self.given, self.is_text, strict=True):
            args, kwargs = beside[self.layer]
            with _probing(probes) as seen:
                outputs.append(self.blocks[self.layer](hidden, *args, **kwargs))
            for name, value in seen.items():
                caught[name].append(value[is_text])
        return outputs, {name: torch.cat(values) for name, values in caught.items()}

    def go_on(self, probes: Mapping[str, Probe]) -> dict[str, Tensor]:
        """Let the batches through the next layer."""
        self.hidden, caught = self.seen(probes)
        self.layer += 1
        return caught


@contextmanager
def _probing(probes: Mapping[str, Probe]) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def hook(name: str, is_input: bool) -> Any:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0] if is_input else output

        return keep

    handles = [
        module.register_forward_hook(hook(name, is_input))
        for name, (module, is_input) in probes.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _fit(projection: nn.Module, inputs: Tensor, missing: Tensor) -> None:
    """Change the projection such that it adds what is missing.

    Args:
        inputs: (tokens, inputs).
        missing: (tokens, width).
    """
    weight, bias = projection.get_parameter("weight"), projection.bias
    center, offset = inputs.mean(0), missing.mean(0)
    if not isinstance(bias, nn.Parameter):
        center, offset = torch.zeros_like(center), torch.zeros_like(offset)
    inputs, missing = inputs - center, missing - offset
    gram = (inputs.T @ inputs).double()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, (inputs.T @ missing).double()).to(weight.dtype)
    weight.add_(change if isinstance(projection, Conv1D) else change.T)
    if isinstance(bias, nn.Parameter):
        bias.add_(offset - center @ change)
