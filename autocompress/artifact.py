"""Reads model folders, those of a run and those that ``export`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from autocompress.errors import UserError
from autocompress.exporting import WEIGHTS_FOLDER
from autocompress.files import write_json
from autocompress.formats import FORMATS
from autocompress.interfaces import Technique
from autocompress.plan import Plan
from autocompress.structure import Structure
from autocompress.student import WEIGHTS, load_plain, plan_from
from autocompress.techniques import TECHNIQUES

REFUSED = {
    "model_type": "autocompress",
    "vocab_size": "compressed: load it with autocompress.load_model",
}
"""Stands in config.json so that every loader of transformers refuses the folder: even a model class
that is named outright, with ``ignore_mismatched_sizes``, would fill cut weights with fresh random
ones."""


def onnx_file(model: Path) -> Path:
    """The ONNX file of a model folder; of an ONNX file itself."""
    return model / "model.onnx" if model.is_dir() else model


def facts(folder: Path) -> dict[str, Any]:
    """``autocompress.json``; empty for what autocompress did not write.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "autocompress.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict) or not all(
        isinstance(document.get(key, {}), dict) for key in ("quantization", "scores")
    ):
        raise UserError(f"{path} is damaged: it is not as autocompress writes it")
    return document


def scheme_of(model: Path) -> str:
    """The number format that a folder was exported in; fp32 for what autocompress did not write."""
    return str(facts(model).get("quantization", {}).get("scheme", "fp32"))


def bytes_in_torch(model: Path, precision: str) -> int:
    """Of a model's weights as torch holds them in a number format: from those in fp32 where the
    folder has them, else from the ONNX file."""
    file, held = _torch_folder(model) / WEIGHTS, "fp32"
    if not file.is_file():
        file, held = onnx_file(model), scheme_of(model)
    return round(file.stat().st_size * FORMATS[precision].bytes / FORMATS[held].bytes)


def annotate(folder: Path, added: Mapping[str, Any]) -> None:
    """Add facts, such as scores, to ``autocompress.json``."""
    write_json(folder / "autocompress.json", facts(folder) | dict(added))


def load_model(folder: str | Path, techniques: Sequence[Technique] = TECHNIQUES) -> nn.Module:
    """The compressed model of an exported folder as a transformers model in fp32, in evaluation
    mode.

    A quantized export loads with the fp32 weights it was made from.

    Args:
        techniques: more than those that ship, where it was made by others.

    Raises:
        UserError: not a folder that autocompress wrote, without weights of torch, or damaged.
    """
    folder = Path(folder)
    held = _torch_folder(folder)
    try:
        config = json.loads((held / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != REFUSED["model_type"]:
            if facts(folder) and not (held / WEIGHTS).is_file():
                raise UserError(f"{folder} holds no weights of torch: export it --with-weights")
            raise UserError(f"{folder} was not written by autocompress; load it with transformers")
        return load_plain(held, config["original"], _plan(config, techniques), techniques)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error


def _torch_folder(folder: Path) -> Path:
    """Where a model folder holds what torch needs."""
    aside = folder / WEIGHTS_FOLDER
    return aside if aside.is_dir() else folder


def _plan(config: Mapping[str, Any], techniques: Sequence[Technique]) -> Plan:
    """Of a folder's config; older folders hold sizes alone."""
    if "plan" in config:
        return plan_from(config["plan"], techniques)
    return Plan(config["family"], Structure.of_sizes(config["sizes"]))
