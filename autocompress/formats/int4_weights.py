"""Weights as 4-bit integers that share scales in blocks, computed with int8 activations; spared
layers and the embedding have 8 bits."""

from __future__ import annotations

from dataclasses import replace

from autocompress.formats import int8_weights
from autocompress.interfaces import Conversion, Format


def _convert(given: Conversion) -> None:
    from autocompress.graphs.runtime import quantize_matmul_weights

    quantize_matmul_weights(given.source, given.target, 4, given.block_size, given.spared)
    rest = replace(given, source=given.target, spared=frozenset())
    int8_weights.FORMAT.convert(rest)


FORMAT = Format(
    "int4-weights",
    bytes=0.5,
    stored="int4-weights",
    gains=("onnxruntime-cpu",),
    convert=_convert,
    more_bits="int8-weights",
    in_blocks=True,
)
