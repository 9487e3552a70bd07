"""The model folder that ships: ONNX that runs without autocompress, and weights that load back into
torch."""

from __future__ import annotations

import copy
import errno
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn

from autocompress.artifact import REFUSED
from autocompress.candidate import Candidate
from autocompress.environment import versions
from autocompress.errors import CandidateFailed, UserError
from autocompress.families import family_of
from autocompress.files import folder_aside, sha256, write_json
from autocompress.graphs.decoding import Cached, generates
from autocompress.graphs.runtime import Model, past_of
from autocompress.graphs.tidy import tidy
from autocompress.graphs.tracing import traceable
from autocompress.interfaces import Batch
from autocompress.structure import Structure
from autocompress.techniques.quantization import quantize
from autocompress.training.steps import tensors

PARITY_LIMIT = 1e-4
"""Largest difference of a logit between torch and the fp32 graph, of logits up to 10; of larger
ones in proportion, as fp32 rounds them. A model beyond it is rejected, unless torch itself rounds
by as much: activations of language models go into the thousands."""
_ROUNDINGS = 4
"""How far the graph may be from torch, in differences between torch in fp32 and in fp64."""
_PARITY_ROWS, _PARITY_TOKENS = 2, 64
"""Of a language model, whose logits take as much memory as its vocabulary is large."""


class _Positional(nn.Module):
    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(
            **dict(zip(self.names, inputs, strict=True)), use_cache=False
        ).logits
        return logits


def to_onnx(model: nn.Module, path: Path, example: Batch) -> None:
    """Write the fp32 graph with free batch and length axes; of a language model with its cache, see
    ``Cached``.

    Uses torch's TorchScript exporter: for BERT types its graphs run about 10 % faster than the
    newer one's.

    Raises:
        CandidateFailed: the model cannot be exported.
    """
    names = list(example.inputs)
    if generates(model):
        cached = Cached(model)
        _export(
            cached, cached.example(), path, cached.input_names, cached.output_names, cached.axes
        )
    else:
        free = {name: {0: "batch", 1: "length"} for name in names}
        _export(
            _Positional(model, names),
            tuple(tensors(example).values()),
            path,
            names,
            ["logits"],
            free,
        )
    tidy(path, names)


def _export(
    module: Cached | _Positional,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    axes: Mapping[str, Mapping[int, str]],
) -> None:
    try:
        with warnings.catch_warnings(), traceable(module.model):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                example,
                str(path),
                dynamo=False,
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=17,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise CandidateFailed(f"export to ONNX: {error}") from error


def export_model(
    model: nn.Module,
    structure: Structure,
    candidate: Candidate,
    target: Path,
    calibration: Sequence[Batch],
    tokenizer_files: Path,
) -> dict[str, float]:
    """Write a whole model folder, or nothing.

    Args:
        calibration: training batches for static quantization; the first also serves the parity
            check, of a language model as much of it as is quick.
        tokenizer_files: folder whose files are copied along.

    Returns:
        Parity with torch: ``largest_logit`` of torch, ``fp32_max_abs_difference`` of the graph
            before quantization,
        ``max_abs_difference`` and ``agreement`` (share of equal answers) of the one that ships; of
        a language model over all tokens, the last of which is read with the others in the cache.

    Raises:
        CandidateFailed: not exportable, or the fp32 graph differs from torch by more than
            ``PARITY_LIMIT``.
    """
    model.eval()
    config: Any = model.config
    with folder_aside(target) as folder:
        fp32, shipped = folder / "fp32.onnx", folder / "model.onnx"
        to_onnx(model, fp32, calibration[0])
        batches = [dict(batch.inputs) for batch in calibration]
        quantization = quantize(
            fp32, shipped, candidate, batches, by_token=family_of(config.model_type).causal
        )
        try:
            parity = _parity(model, calibration[0], fp32, shipped)
        except UserError as error:
            raise CandidateFailed(str(error)) from error
        difference = parity["fp32_max_abs_difference"]
        alike = difference <= PARITY_LIMIT * max(1.0, parity["largest_logit"] / 10)
        if not alike and not difference <= _ROUNDINGS * _rounding(model, calibration[0]):
            raise CandidateFailed(
                f"the ONNX graph's logits differ from torch's by {difference:.2g}"
            )
        fp32.unlink()
        try:
            save_weights(model, str(folder / "model.safetensors"), {"format": "pt"})
        except SafetensorError as error:
            raise OSError(
                errno.ENOSPC if "space" in str(error) else errno.EIO, f"model.safetensors: {error}"
            ) from error
        original = config.to_dict() | {"architectures": [type(model).__name__]}
        family = original.pop("model_type")
        described = {"family": family, "original": original, "sizes": structure.sizes()}
        write_json(folder / "config.json", REFUSED | described)
        shutil.copytree(tokenizer_files, folder, dirs_exist_ok=True)
        hashes = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        facts = {
            "candidate": candidate.as_dict(),
            "sizes": structure.sizes(),
            "quantization": quantization,
        }
        write_json(
            folder / "autocompress.json",
            facts | {"parity": parity, "sha256": hashes, "versions": versions()},
        )
    return parity


def _parity(model: nn.Module, batch: Batch, fp32: Path, shipped: Path) -> dict[str, float]:
    batch = _checked(model, batch)
    with torch.inference_mode():
        reference = model(**tensors(batch)).logits.numpy()
    before, after = (
        _answers(Model(path, threads=1), batch.inputs, by_parts=generates(model))
        for path in (fp32, shipped)
    )
    if generates(model):
        real = batch.inputs["attention_mask"] == 1
        reference, before, after = reference[real], before[real], after[real]
    return {
        "largest_logit": float(np.abs(reference).max()),
        "fp32_max_abs_difference": float(np.abs(reference - before).max()),
        "max_abs_difference": float(np.abs(reference - after).max()),
        "agreement": float((reference.argmax(-1) == after.argmax(-1)).mean()),
    }


def _checked(model: nn.Module, batch: Batch) -> Batch:
    if not generates(model):
        return batch
    return Batch(
        {name: array[:_PARITY_ROWS, :_PARITY_TOKENS] for name, array in batch.inputs.items()}
    )


def _rounding(model: nn.Module, batch: Batch) -> float:
    """By how much torch's own logits change in fp64."""
    batch = _checked(model, batch)
    with torch.inference_mode():
        single = model(**tensors(batch)).logits
        double = copy.deepcopy(model).double()(**tensors(batch)).logits
    real = tensors(batch)["attention_mask"] == 1 if generates(model) else ...
    return float((single - double)[real].abs().max())


def _answers(
    model: Model, inputs: Mapping[str, NDArray[np.int64]], *, by_parts: bool
) -> NDArray[np.float32]:
    """Logits; by parts those of the last token come from a second run, with the others in the
    cache."""
    if not by_parts:
        return model(inputs)
    first = model.outputs({name: array[:, :-1] for name, array in inputs.items()})
    last = model.outputs(
        {
            "input_ids": inputs["input_ids"][:, -1:],
            "attention_mask": inputs["attention_mask"],
            **past_of(first),
        }
    )
    return np.concatenate([first["logits"], last["logits"]], axis=1)
