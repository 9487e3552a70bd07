"""Single precision: the exported graph as it is, and what every other format is compared with."""

from __future__ import annotations

import shutil

from autocompress.interfaces import Conversion, Format


def _convert(given: Conversion) -> None:
    shutil.copyfile(given.source, given.target)


FORMAT = Format(
    "fp32",
    bytes=4.0,
    stored="fp32",
    gains=("onnxruntime-cpu", "onnxruntime-cuda", "torch-cuda"),
    convert=_convert,
)
