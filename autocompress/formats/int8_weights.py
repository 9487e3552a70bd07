"""Weights as 8-bit integers that share scales in blocks, computed with int8 activations."""

from __future__ import annotations

from autocompress.interfaces import Conversion, Format


def _convert(given: Conversion) -> None:
    from autocompress.graphs import runtime

    block = given.block_size
    runtime.quantize_matmul_weights(given.source, given.target, 8, block, given.spared)
    runtime.quantize_dynamic_int8(given.target, given.target, only=["Gather"])


FORMAT = Format(
    "int8-weights",
    bytes=1.0,
    stored="int8-weights",
    gains=("onnxruntime-cpu",),
    convert=_convert,
    more_bits="fp32",
    in_blocks=True,
)
