"""Latency of any model a user has: an exported folder, a transformers folder, an ONNX file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from autocompress.errors import UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.hardware.timing import OnnxRuntimeTimer
from autocompress.pareto import Latency


def measure_latency(model: Path, profile: HardwareProfile) -> Latency:
    """Time a model in a fresh process.

    Raises:
        UserError: nothing there that can be timed.
    """
    file = model / "model.onnx" if model.is_dir() else model
    if file.is_file() and file.suffix == ".onnx":
        return OnnxRuntimeTimer(profile)(file, [], final=True)[0]
    if not (model / "config.json").is_file():
        raise UserError(f"{model} is neither an .onnx file nor a folder with model.onnx or config.json")
    from autocompress.export import to_onnx
    from autocompress.interfaces import Batch
    from autocompress.teacher import load_classifier, load_config, load_tokenizer

    config = load_config(str(model))
    names = [
        name
        for name in load_tokenizer(str(model), config.vocab_size).model_input_names
        if name in ("input_ids", "token_type_ids", "attention_mask")
    ]
    inputs = {name: np.ones((2, profile.sequence_length), np.int64) for name in names}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"][:] = 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        to_onnx(load_classifier(str(model), None), file, Batch(inputs))
        return OnnxRuntimeTimer(profile)(file, [], final=True)[0]
