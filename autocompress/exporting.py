"""The folder that a model leaves a run as: it opens in ONNX Runtime, Optimum and the tokenizers of
transformers.

Its root holds ``model.onnx``, the tokenizer, the config that the model was made with and a model
card, and no weights of torch: with such a config, loaders of torch would fill what was cut with
random ones. They lie aside, where they are asked for, under a config that these loaders refuse.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress import card
from autocompress.errors import UserError
from autocompress.files import RECORD, folder_aside, sha256, whole_files, write_json, write_text
from autocompress.journal import Run

if TYPE_CHECKING:
    from autocompress.pareto import Front, Member

WEIGHTS_FOLDER = "weights"
"""What ``load_model`` reads of an exported folder."""
_CONFIG, _WEIGHTS, _TOKENIZER = "config.json", "model.safetensors", "tokenizer_config.json"
_OF_THIS_MACHINE = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
"""Entries of configs."""
_OLDER_NAMES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Classes of tokenizers by the names that transformers 4 knows as well, which Optimum needs."""


def export(front: Front, member: Member, target: Path, *, with_weights: bool = False) -> None:
    """See ``Front.export``."""
    if front.run is None:
        raise UserError("this front belongs to no run folder: load_front(RUN) gives one that does")
    if target.exists():
        raise UserError(f"--out {target} exists already; give a new folder")
    described, files = Run(front.run).description(), _files(front.run, member)
    refused = _read(files.pop(_CONFIG))
    config = _plain(refused)
    weights, record = files.pop(_WEIGHTS), _read(files.pop(RECORD))
    try:
        with folder_aside(target) as folder:
            for name, file in files.items():
                shutil.copyfile(file, folder / name)
            write_json(folder / _CONFIG, config)
            if _TOKENIZER in files:
                write_json(folder / _TOKENIZER, _tokenizer(_read(files[_TOKENIZER]), config))
            if with_weights:
                aside = folder / WEIGHTS_FOLDER
                aside.mkdir()
                shutil.copyfile(weights, aside / _WEIGHTS)
                write_json(aside / _CONFIG, refused | {"original": _cleaned(refused["original"])})
            hashes = {
                file.relative_to(folder).as_posix(): sha256(file)
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
            write_json(folder / RECORD, record | {"sha256": hashes})
            write_text(
                folder / "README.md", card.text(front, member, described, config, target.name)
            )
    except OSError as error:
        raise UserError(f"--out {target} cannot be written: {error.strerror}") from error


def _files(run: Path, member: Member) -> dict[str, Path]:
    """Those of a model in its run, by name, all as they were written."""
    source = run / member.path
    if not source.resolve().is_relative_to(run.resolve()):
        raise UserError(f"{run / 'front.json'}: {member.id} lies outside of the run ({source})")
    if not (source / "model.onnx").is_file():
        raise UserError(f"{run} no longer holds the files of {member.id} ({source})")
    files = {file.name: file for file in whole_files(source)}
    for name in (_CONFIG, _WEIGHTS):
        if name not in files:
            raise UserError(f"{source / RECORD} is damaged: it names no {name}")
    return files


def _plain(refused: dict[str, Any]) -> dict[str, Any]:
    """The config that a run's model was made with; older runs name the family beside their
    sizes."""
    family = refused["plan"]["family"] if "plan" in refused else refused["family"]
    return {"model_type": family, **_cleaned(refused["original"])}


def _tokenizer(settings: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Settings that give a model what it takes: the segments of pairs only where it has them."""
    named = settings.get("tokenizer_class")
    inputs = ["input_ids", "attention_mask"]
    if config.get("type_vocab_size", 1) > 1:
        inputs.insert(1, "token_type_ids")
    return {"model_input_names": inputs, **_cleaned(settings)} | (
        {"tokenizer_class": _OLDER_NAMES[named]} if named in _OLDER_NAMES else {}
    )


def _cleaned(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in _OF_THIS_MACHINE}


def _read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document
