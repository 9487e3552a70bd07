"""Quantization of the exported graph, by onnxruntime's quantizers.

Dynamic and static int8 as in the survey of Ganesh et al. 2021, section 3.1 (fixed-length integers after training, weights
per channel); weight-only int8 and int4 in blocks, computed with int8 activations. The embedding always gets 8 bits: it
is more sensitive than the layers (Shen et al. 2020).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, OneOf, Setting
from autocompress.errors import CandidateFailed, UserError

SCHEMES: tuple[str, ...] = ("fp32", "int8-dynamic", "int8-static", "int8-weights", "int4-weights")

QUANTIZATION_SETTINGS: tuple[Setting, ...] = (
    Setting("quantization.scheme", OneOf(SCHEMES), "fp32", "number format of the exported model"),
    Setting(
        "quantization.block_size",
        OneOf((32, 128)),
        32,
        "weights that share a scale",
        when=lambda s: s["quantization.scheme"] in ("int8-weights", "int4-weights"),
    ),
)


def quantize(
    source: Path, target: Path, candidate: Candidate, calibration: Sequence[Mapping[str, NDArray[np.int64]]]
) -> dict[str, Any]:
    """Write the graph that ships.

    Args:
        source: fp32 ONNX file.
        target: file to write.
        calibration: model inputs from the training split, name to (batch, length); read by ``int8-static`` only.

    Returns:
        ``{"scheme": ..., "left_in_fp32": {tensor: bytes}}``.

    Raises:
        CandidateFailed: the graph cannot be converted.
    """
    from autocompress import onnx_runtime as ort

    scheme = candidate.text("quantization.scheme", "fp32")
    try:
        match scheme:
            case "fp32":
                shutil.copyfile(source, target)
            case "int8-dynamic":
                ort.quantize_dynamic_int8(source, target)
            case "int8-static":
                ort.quantize_static_int8(source, target, calibration)
            case _:
                aside = target.with_suffix(".matmul.onnx")
                block = int(candidate.number("quantization.block_size"))
                ort.quantize_matmul_weights(source, aside, 8 if scheme == "int8-weights" else 4, block)
                ort.quantize_dynamic_int8(aside, target, only=["Gather"])
                aside.unlink()
    except (UserError, ValueError, RuntimeError, KeyError) as error:
        raise CandidateFailed(f"{scheme}: {type(error).__name__}: {error}") from error
    return {"scheme": scheme, "left_in_fp32": {} if scheme == "fp32" else ort.float_weight_bytes(target)}
