"""Number formats of the exported graph, by onnxruntime's converters.

Dynamic and static int8 as in the survey of Ganesh et al. 2021, section 3.1 (fixed-length integers
after training, weights per channel); in causal models the activations of dynamic int8 have a scale
for each token. Weight-only int8 and int4 in blocks, computed with int8 activations. Under int8 and
int4 the embedding gets 8 bits: it is more sensitive than the layers (Shen et al. 2020); so does a
head that is tied to it, from the same table. Layers may be spared: they keep more bits than the
others, as in the mixed precision of the same paper. Under bf16 the ONNX file stays in fp32, because
onnxruntime has no bf16 arithmetic for CPUs; a runtime that has it (torch on CUDA) computes in bf16.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, OneOf, Setting, Value
from autocompress.errors import CandidateFailed, UserError

SCHEMES: tuple[str, ...] = (
    "fp32",
    "fp16",
    "bf16",
    "int8-dynamic",
    "int8-static",
    "int8-weights",
    "int4-weights",
)

BYTES = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "int8-dynamic": 1.0,
    "int8-static": 1.0,
    "int8-weights": 1.0,
    "int4-weights": 0.5,
}
"""Scheme -> bytes of a weight."""

MORE_BITS = {
    "int8-dynamic": "fp32",
    "int8-static": "fp32",
    "int8-weights": "fp32",
    "int4-weights": "int8-weights",
}
"""Scheme -> the scheme of the layers that are spared."""

SPARING_RULES: dict[str, Callable[[int], list[int]]] = {
    "none": lambda n: [],
    "first": lambda n: [0],
    "last": lambda n: [n - 1],
    "ends": lambda n: [0, n - 1],
}
"""Rule -> kept layers -> the layers spared."""


class _LayersSpared:
    """The name of a rule, or the list of layers itself."""

    has_ranges = False

    def allows(self, value: Value) -> bool:
        if isinstance(value, tuple):
            whole = {
                item
                for item in value
                if isinstance(item, int) and not isinstance(item, bool) and item >= 0
            }
            return len(value) > 0 and list(value) == sorted(whole)
        return isinstance(value, str) and value in SPARING_RULES

    def canonical(self, value: Value) -> Value:
        return "first" if value == (0,) else value

    def __str__(self) -> str:
        return (
            f"one of {', '.join(SPARING_RULES)}, or an ascending list of kept layers counted from 0"
        )


QUANTIZATION_SETTINGS: tuple[Setting, ...] = (
    Setting("quantization.scheme", OneOf(SCHEMES), "fp32", "number format of the exported model"),
    Setting(
        "quantization.block_size",
        OneOf((32, 128)),
        32,
        "weights that share a scale",
        when=lambda s: s["quantization.scheme"] in ("int8-weights", "int4-weights"),
    ),
    Setting(
        "quantization.spared",
        _LayersSpared(),
        "none",
        "layers that keep more bits",
        when=lambda s: s["quantization.scheme"] in MORE_BITS,
    ),
)


def onnx_format(scheme: str) -> str:
    """What the ONNX file holds: fp32 under bf16, which onnxruntime cannot compute on CPUs; else the
    scheme itself."""
    return "fp32" if scheme == "bf16" else scheme


def layer_schemes(candidate: Candidate, layers: int) -> tuple[str, ...]:
    """The scheme of each kept layer.

    Args:
        layers: how many layers are kept.

    Raises:
        CandidateFailed: a spared layer that the model does not have.
    """
    scheme = candidate.text("quantization.scheme", "fp32")
    spared = candidate.get("quantization.spared", "none")
    listed = (
        [item for item in spared if isinstance(item, int)]
        if isinstance(spared, tuple)
        else SPARING_RULES[str(spared)](layers)
    )
    if listed and listed[-1] >= layers:
        raise CandidateFailed(
            f"quantization.spared names layer {listed[-1]}, the model has {layers} (0 to "
            f"{layers - 1})"
        )
    return tuple(MORE_BITS[scheme] if i in listed else scheme for i in range(layers))


def quantize(
    source: Path,
    target: Path,
    candidate: Candidate,
    calibration: Sequence[Mapping[str, NDArray[np.int64]]],
    *,
    by_token: bool = False,
) -> dict[str, Any]:
    """Write the graph that ships.

    Args:
        source: fp32 ONNX file.
        target: file to write.
        calibration: model inputs from the training split, name to (batch, length); read by
            ``int8-static`` only.
        by_token: whether dynamic int8 has a scale of activations for each token, as causal models
            need it.

    Returns:
        ``{"scheme": ..., "layers": [scheme of each], "left_in_fp32": {tensor: bytes}}``.

    Raises:
        CandidateFailed: the graph cannot be converted, or has no such layer as is to be spared.
    """
    from autocompress.graphs import reading as onnx_graphs
    from autocompress.graphs import runtime as ort

    scheme = candidate.text("quantization.scheme", "fp32")
    schemes = layer_schemes(candidate, onnx_graphs.layer_count(source))
    spared = {i for i, own in enumerate(schemes) if own != scheme}
    tied, aside = target.with_suffix(".tied.onnx"), target.with_suffix(".matmul.onnx")
    try:
        if BYTES[scheme] <= 1 and ort.quantize_tied_table(source, tied):
            source = tied
        match onnx_format(scheme):
            case "fp32":
                shutil.copyfile(source, target)
            case "fp16":
                ort.convert_to_fp16(source, target)
            case "int8-dynamic" if by_token:
                ort.quantize_int8_by_token(source, target, spared)
            case "int8-dynamic":
                ort.quantize_dynamic_int8(source, target, spared=spared)
            case "int8-static":
                ort.quantize_static_int8(source, target, calibration, spared)
            case _:
                block = int(candidate.number("quantization.block_size"))
                ort.quantize_matmul_weights(
                    source, aside, 8 if scheme == "int8-weights" else 4, block, spared
                )
                if scheme == "int4-weights" and spared:
                    ort.quantize_matmul_weights(aside, aside, 8, block)
                ort.quantize_dynamic_int8(aside, target, only=["Gather"])
    except (UserError, ValueError, RuntimeError, KeyError) as error:
        raise CandidateFailed(f"{scheme}: {type(error).__name__}: {error}") from error
    finally:
        for file in (tied, aside):
            file.unlink(missing_ok=True)
    left = {} if onnx_format(scheme) == "fp32" else onnx_graphs.float_weight_bytes(target)
    return {"scheme": scheme, "layers": list(schemes), "left_in_fp32": left}
