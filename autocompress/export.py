"""The model folder that ships: ONNX that runs without autocompress, and weights that load back into torch."""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Sequence
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
from autocompress.files import folder_aside, sha256, write_json
from autocompress.interfaces import Batch
from autocompress.onnx_runtime import declare_inputs, keep_normalization_apart, predict
from autocompress.structure import Structure
from autocompress.techniques.quantization import quantize
from autocompress.training import tensors

PARITY_LIMIT = 1e-4
"""Largest difference of a logit between torch and the fp32 graph; a model beyond it is rejected."""


class _Positional(nn.Module):
    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)), use_cache=False).logits
        return logits


def to_onnx(model: nn.Module, path: Path, example: Batch) -> None:
    """Write the fp32 graph with free batch and length axes.

    Uses torch's TorchScript exporter: for BERT types its graphs run about 10 % faster than the newer one's.

    Raises:
        CandidateFailed: the model cannot be exported.
    """
    names = list(example.inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Positional(model, names).eval(),
                tuple(tensors(example).values()),
                str(path),
                dynamo=False,
                input_names=names,
                output_names=["logits"],
                dynamic_axes={name: {0: "batch", 1: "length"} for name in names},
                opset_version=17,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise CandidateFailed(f"export to ONNX: {error}") from error
    declare_inputs(path, names)
    keep_normalization_apart(path)


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
        calibration: training batches for static quantization; the first also serves the parity check.
        tokenizer_files: folder whose files are copied along.

    Returns:
        Parity with torch: ``fp32_max_abs_difference`` of the graph before quantization, ``max_abs_difference`` and
        ``agreement`` (share of equal answers) of the one that ships.

    Raises:
        CandidateFailed: not exportable, or the fp32 graph differs from torch by more than ``PARITY_LIMIT``.
    """
    model.eval()
    config: Any = model.config
    with folder_aside(target) as folder:
        fp32, shipped = folder / "fp32.onnx", folder / "model.onnx"
        to_onnx(model, fp32, calibration[0])
        batches = [dict(batch.inputs) for batch in calibration]
        quantization = quantize(fp32, shipped, candidate, batches)
        with torch.inference_mode():
            reference = model(**tensors(calibration[0])).logits.numpy()
        try:
            parity = _parity(reference, predict(fp32, batches[:1]), predict(shipped, batches[:1]))
        except UserError as error:
            raise CandidateFailed(str(error)) from error
        if not parity["fp32_max_abs_difference"] <= PARITY_LIMIT:
            raise CandidateFailed(f"the ONNX graph's logits differ from torch's by {parity['fp32_max_abs_difference']:.2g}")
        fp32.unlink()
        try:
            save_weights(model, str(folder / "model.safetensors"), {"format": "pt"})
        except SafetensorError as error:
            raise OSError(errno.ENOSPC if "space" in str(error) else errno.EIO, f"model.safetensors: {error}") from error
        original = config.to_dict() | {"architectures": [type(model).__name__]}
        family = original.pop("model_type")
        described = {"family": family, "original": original, "sizes": structure.sizes()}
        write_json(folder / "config.json", REFUSED | described)
        shutil.copytree(tokenizer_files, folder, dirs_exist_ok=True)
        hashes = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        facts = {"candidate": candidate.as_dict(), "sizes": structure.sizes(), "quantization": quantization}
        write_json(folder / "autocompress.json", facts | {"parity": parity, "sha256": hashes, "versions": versions()})
    return parity


def _parity(reference: NDArray[np.float32], fp32: NDArray[np.float32], shipped: NDArray[np.float32]) -> dict[str, float]:
    return {
        "fp32_max_abs_difference": float(np.abs(reference - fp32).max()),
        "max_abs_difference": float(np.abs(reference - shipped).max()),
        "agreement": float((reference.argmax(-1) == shipped.argmax(-1)).mean()),
    }
