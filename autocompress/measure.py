"""Latency of any model a user has: an exported folder, a transformers folder, an ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autocompress.artifact import facts, onnx_file
from autocompress.errors import CandidateFailed, DeviceLost, UserError
from autocompress.hardware.devices import connect, lengths_of
from autocompress.hardware.profile import HardwareProfile
from autocompress.scores import Timing


def measure_latency(model: Path, profile: HardwareProfile) -> Timing:
    """Time a model on its profile's device; an exported folder at the task's own lengths where the
    profile wants them.

    Raises:
        UserError: nothing there that can be timed, or the device cannot be reached.
    """
    lengths = lengths_of(profile, _task_lengths(model))
    device = connect(profile, lengths)
    try:
        if onnx_file(model).is_file() and onnx_file(model).suffix == ".onnx":
            return device.time(model, [], final=True)[0]
        if not (model / "config.json").is_file():
            raise UserError(
                f"{model} is neither an .onnx file nor a folder with model.onnx or config.json "
                f"(hub ids are not taken here)"
            )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            _export(model, file, profile, lengths)
            return device.time(file, [], final=True)[0]
    except (CandidateFailed, DeviceLost) as error:
        raise UserError(f"{model} cannot be timed: {error}") from error
    finally:
        device.close()


def _task_lengths(model: Path) -> list[int]:
    """The lengths that stand for the task's, of a model that was searched for under a profile that
    wants them."""
    scores = facts(model).get("scores", {})
    recorded_lengths = [
        score.get("lengths") for score in scores.values() if isinstance(score, dict)
    ]
    return next(
        (lengths for lengths in recorded_lengths if isinstance(lengths, list) and len(lengths) > 1),
        [],
    )


def _export(model: Path, target: Path, profile: HardwareProfile, lengths: Sequence[int]) -> None:
    from autocompress.families.decoder import head_of
    from autocompress.graphs.export import to_onnx
    from autocompress.interfaces import Batch
    from autocompress.training.teacher import (
        load_classifier,
        load_config,
        load_language_model,
        load_tokenizer,
        positions_of,
        quiet,
    )

    config = load_config(str(model))
    names = [
        name
        for name in load_tokenizer(str(model), config.vocab_size).model_input_names
        if name in ("input_ids", "token_type_ids", "attention_mask")
    ]
    inputs = {name: np.ones((2, 8), np.int64) for name in names}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"][:] = 0
    generates = head_of(config).generates
    profile.check_lengths(lengths, positions_of(config), generates=generates)
    loaded = load_language_model(str(model)) if generates else load_classifier(str(model), None)
    with quiet():
        to_onnx(loaded, target, Batch(inputs))
