"""Loads the model that is to be compressed, and fine-tunes it where that is asked for."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import re
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from autocompress.cores import reserved
from autocompress.environment import silenced, versions
from autocompress.errors import CandidateFailed, UserError
from autocompress.families import family_of
from autocompress.files import RECORD, cache_folder, folder_aside, keep_folder, kept_folder
from autocompress.interfaces import Task
from autocompress.training.compute import CPU, Compute
from autocompress.training.steps import Optimizer, falling, schedule, seeded

MOST_BYTES = 2**31
"""Of one ONNX file."""
EPOCHS = 2
LEARNING_RATE = 1e-4
_PACE_STEPS = 5
"""That are timed to foretell the others."""
_SCHEMA = 1
"""Of how teachers are fine-tuned and kept."""
_NOT_OF_THE_GRAPH = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
)
_HEADS = ("classifier", "pre_classifier", "score")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_UNUSABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    struct.error,
)
"""What is raised over files that do not hold what they should."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing but errors is logged by transformers and the hub inside the block, which would count
    its tries; no progress is drawn."""
    before = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    _draw_progress(False, False)
    try:
        with silenced("transformers", "huggingface_hub"):
            yield
    finally:
        _draw_progress(*before)


def _draw_progress(transformers: bool, hub: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an environment variable stands above it
        if transformers:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        else:
            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        (enable_progress_bars if hub else disable_progress_bars)()


def _in_a_line(error: Exception) -> str:
    """What an error says first, or the more telling second where it announces it."""
    if isinstance(error, KeyError):
        return f"{error} is unknown"
    first, *rest = str(error).splitlines() or [repr(error)]
    return " ".join([first, *rest[:1]]) if first.endswith(":") else first


@quiet()
def load_config(source: str) -> Any:
    """The transformers config of a folder or hub id.

    Raises:
        UserError: no such model, or a model type that cannot be cut.
    """
    folder = Path(source)
    looks_local = folder.exists() or source.startswith((".", "/", "~"))
    is_gguf = folder.is_file() and folder.suffix == ".gguf"
    if looks_local and not is_gguf and not (folder / "config.json").is_file():
        reason = "holds no config.json" if folder.is_dir() else "does not exist"
        raise UserError(f"model folder {source} {reason}")
    try:
        values = (
            json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if looks_local and not is_gguf
            else {}
        )
        if not isinstance(values, dict):
            raise UserError(f"--model {source}: config.json holds no object")
        exported = (folder / RECORD).is_file() and (folder / "model.onnx").is_file()
        if values.get("model_type") == "autocompress" or exported:
            raise UserError(
                f"{source} is already compressed by autocompress; give the model it was made from"
            )
        if "model_type" in values:
            family_of(values["model_type"])
        config = AutoConfig.from_pretrained(**_place(source), trust_remote_code=False)
    except _UNUSABLE as error:
        raise UserError(f"--model {source} cannot be loaded: {_in_a_line(error)}") from error
    except ImportError as error:
        raise UserError(
            f"--model {source}: to read it, pip install 'autocompress[gguf]'"
        ) from error
    family_of(config.model_type)
    for name in _SIZES:
        if getattr(config, name) < 1:
            raise UserError(
                f"--model {source}: config.json says {name} is {getattr(config, name)}, it must be "
                "at least 1"
            )
    return config


def positions_of(config: Any) -> int:
    """Tokens that a model takes at most."""
    return int(config.max_position_embeddings) - (2 if config.model_type == "roberta" else 0)


def _place(source: str) -> dict[str, str]:
    """Where transformers finds a folder, a hub id, or a .gguf file, whose weights it decodes to
    floats."""
    path = Path(source)
    if path.is_file() and path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": source}


@quiet()
def load_tokenizer(source: str, vocabulary: int) -> Any:
    """The tokenizer beside the model.

    Args:
        vocabulary: tokens that the model has embeddings for.

    Raises:
        UserError: none there, an empty one, or one with more tokens than the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(**_place(source), trust_remote_code=False)
    except Exception as error:
        if not isinstance(error, _UNUSABLE) and type(error) is not Exception:  # as of tokenizers
            raise
        raise UserError(f"--model {source} has no usable tokenizer: {_in_a_line(error)}") from error
    ids = tokenizer.get_vocab().values()
    if len(ids) <= len(tokenizer.all_special_tokens):
        raise UserError(f"--model {source} has no usable tokenizer: its vocabulary is empty")
    words = max(ids) + 1
    if words > vocabulary:
        raise UserError(
            f"--model {source}: the tokenizer has {words} tokens, the model only {vocabulary}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_teacher(source: str, task: Task, *, fresh: bool = False) -> nn.Module:
    """The model with the head that the task wants, in fp32; raises as ``load_classifier``.

    Args:
        fresh: a classifier gets a new head.
    """
    return (
        load_language_model(source)
        if task.head.generates
        else load_classifier(source, task.labels if fresh else None)
    )


def load_language_model(source: str) -> nn.Module:
    """The model in fp32; raises as ``load_classifier``."""
    return _load(AutoModelForCausalLM, source)


def load_classifier(source: str, labels: tuple[str, ...] | None) -> nn.Module:
    """The model in fp32.

    Args:
        labels: label names for a new head; None wants the head that the model has.

    Raises:
        UserError: no safetensors weights, weights that are not finite, or no head where one is
            wanted.
    """
    new_head: dict[str, Any] = {}
    if labels is not None:
        new_head = {
            "id2label": dict(enumerate(labels)),
            "label2id": {name: i for i, name in enumerate(labels)},
        }
        new_head |= {
            "num_labels": len(labels),
            "problem_type": None,
            "ignore_mismatched_sizes": True,
        }
    return _load(AutoModelForSequenceClassification, source, **new_head)


@quiet()
def _load(auto: Any, source: str, **new_head: Any) -> nn.Module:
    try:
        with seeded(0):  # of a new head
            model, info = auto.from_pretrained(
                **_place(source),
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **new_head,
            )
    except _UNUSABLE as error:
        raise UserError(
            f"--model {source}: weights cannot be loaded (safetensors and GGUF only): "
            f"{_in_a_line(error)}"
        ) from error
    _refuse_other_shapes(source, model.config, info)
    fresh = (*_HEADS, "bert.pooler") if new_head else ()
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(fresh))
    if missing:
        hint = (
            "; give --finetune to train a classification head"
            if missing[0].startswith(_HEADS)
            else ""
        )
        raise UserError(f"--model {source} has no weights for {missing[0]}{hint}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"--model {source}: the weights of {name} are not all finite (NaN or infinity)"
            )
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size >= MOST_BYTES:
        raise UserError(
            f"--model {source} has {size / 2**30:.1f} GiB of weights in fp32, an ONNX file holds "
            f"{MOST_BYTES / 2**30:g}"
        )
    model.config.architectures = [type(model).__name__]  # GGUF does not say
    loaded: nn.Module = model.eval()
    return loaded


def _refuse_other_shapes(source: str, config: Any, info: Mapping[str, Any]) -> None:
    """Weights that the config has no place for are not cut, nor begun anew."""
    layers = config.num_hidden_layers
    for key in sorted(info["unexpected_keys"]):
        number = re.search(r"\.(\d+)\.", key)
        if number and int(number[1]) >= layers:
            raise UserError(
                f"--model {source} has weights for {key}, its config.json says {layers} layers"
            )
    for key, found, wanted in sorted(info["mismatched_keys"]):
        if not key.startswith(_HEADS):
            raise UserError(
                f"--model {source}: the weights of {key} are {list(found)}, its config.json says "
                f"{list(wanted)}"
            )


def digest_of(model: nn.Module) -> str:
    """Hex digest of all that a model computes by: its weights, and of its config what is not of its
    labels or its origin."""
    config: Any = model.config
    digest = hashlib.sha256(json.dumps(computed_by(config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def computed_by(config: Any) -> dict[str, Any]:
    """The entries of a transformers config that a model computes by."""
    entries = config.to_dict().items()
    return {name: value for name, value in entries if name not in _NOT_OF_THE_GRAPH}


def finetuning_steps(task: Task) -> int:
    """Of 2 epochs, in batches of the task's size."""
    return EPOCHS * max(1, len(task.train.rows) // task.batch_size)


def steps_within(seconds: float, model: nn.Module, task: Task, compute: Compute = CPU) -> int:
    """Steps of ``finetune`` that take so long at most, by the pace of a few on a copy of the model;
    no more than ``finetuning_steps``, and at least one."""
    tried = copy.deepcopy(model).to(compute.device).train()
    with reserved(), seeded(0):
        training = _trained(tried, task, 0, 1 + _PACE_STEPS, compute)
        next(training)  # the first step is slower
        begun = time.monotonic()
        tokens = sum(training)
        token_s = (time.monotonic() - begun) / tokens
    step_s = token_s * task.batch_size * float(np.mean([row.shape[1] for row in task.train.rows]))
    return max(1, min(finetuning_steps(task), int(seconds / step_s)))


def finetune(
    model: nn.Module,
    task: Task,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
    compute: Compute = CPU,
    steps: int | None = None,
) -> None:
    """Train all weights on the training split: batches of the task's size, AdamW at 1e-4.

    Args:
        progress: told steps done and steps in all.
        steps: 2 epochs where they are not given.

    Raises:
        CandidateFailed: the loss is not finite.
    """
    steps = steps or finetuning_steps(task)
    model.to(compute.device).train()
    with seeded(seed):  # dropout
        for done, _ in enumerate(_trained(model, task, seed, steps, compute), 1):
            progress(done, steps)
    model.cpu().eval()


def _trained(
    model: nn.Module, task: Task, seed: int, steps: int, compute: Compute
) -> Iterator[int]:
    """Train a model on its device, step by step; how many tokens each step has learned from."""
    lengths = np.array([row.shape[1] for row in task.train.rows], np.int64)
    batches = schedule([lengths], [task.batch_size], [seed])
    optimizer = Optimizer(model, LEARNING_RATE, steps, share=falling)
    for indices in itertools.islice(batches, steps):
        inputs = compute.tensors(task.batch([task.train.rows[i] for i in indices]))
        labels = compute.moved(torch.from_numpy(task.train.labels[indices]))
        optimizer.step(task.loss(compute.logits(model, inputs), labels))
        yield inputs["input_ids"].numel()


@quiet()
def finetuned(
    model: nn.Module,
    task: Task,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
    compute: Compute = CPU,
    steps: int | None = None,
) -> nn.Module:
    """The model after ``finetune``, kept on disk under what it was made from, where that can be
    written.

    The folder is ``$AUTOCOMPRESS_CACHE``, else ``$XDG_CACHE_HOME/autocompress``, else
    ``~/.cache/autocompress``.
    """
    steps = steps or finetuning_steps(task)
    folder = _kept_in(model, task, seed, steps)
    if is_kept(model, task, seed, steps):
        return load_teacher(str(folder), task)
    try:
        with reserved():
            finetune(model, task, seed, progress, compute, steps)
    except CandidateFailed as error:
        raise UserError(f"fine-tuning failed: {error}") from error
    with contextlib.suppress(OSError, SafetensorError), folder_aside(folder) as aside:
        model.save_pretrained(aside)  # type: ignore[operator]
        keep_folder(aside)
    return model


def is_kept(model: nn.Module, task: Task, seed: int, steps: int) -> bool:
    """Whether ``finetuned`` finds what it would make."""
    return kept_folder(_kept_in(model, task, seed, steps))


def _kept_in(model: nn.Module, task: Task, seed: int, steps: int) -> Path:
    recipe = [_SCHEMA, steps, LEARNING_RATE, seed, task.labels, versions()["torch"]]
    made_from = hashlib.sha256(digest_of(model).encode())
    made_from.update(json.dumps(recipe).encode())
    for row, label in zip(task.train.rows, task.train.labels, strict=True):
        made_from.update(row.tobytes() + label.tobytes())
    return cache_folder() / "teachers" / made_from.hexdigest()[:16]
