"""Half precision: weights and arithmetic; the model's inputs and outputs keep their types."""

from __future__ import annotations

from autocompress.interfaces import Conversion, Format


def _convert(given: Conversion) -> None:
    from autocompress.graphs.runtime import convert_to_fp16

    convert_to_fp16(given.source, given.target)


FORMAT = Format(
    "fp16",
    bytes=2.0,
    stored="fp16",
    gains=("onnxruntime-cuda", "torch-cuda"),
    convert=_convert,
)
