"""bfloat16, for a runtime that has it (torch on CUDA). The ONNX file stays in fp32, because
onnxruntime has no bf16 arithmetic for CPUs."""

from __future__ import annotations

from autocompress.formats import fp32
from autocompress.interfaces import Format

FORMAT = Format(
    "bf16",
    bytes=2.0,
    stored="fp32",
    gains=("torch-cuda",),
    convert=fp32.FORMAT.convert,
)
