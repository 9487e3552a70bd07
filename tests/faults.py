"""Mistaken requests and damaged files as data, and a search that is killed at random moments.

The tests hold every case of it; ``benchmarks/faults.py`` counts those that are not as they should
be, and kills more often.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from autocompress import resources
from autocompress.cli import main
from autocompress.engine import session
from autocompress.hardware.host import LocalHost
from autocompress.hardware.onnx_device import described
from autocompress.journal import Run, Trial
from autocompress.pareto import load_front
from autocompress.scores import Timing
from autocompress.searching import search
from tests.conftest import SizeDevice
from tests.searching import CPU, space, timeless

Options = dict[str, tuple[str, ...]]
"""Option -> its values; given more than once where there are several."""
Change = Callable[[Path, Options], None]


def _set(option: str, *values: str) -> Change:
    return lambda folder, options: options.update({option: values})


def _file(option: str, name: str, text: str) -> Change:
    def change(folder: Path, options: Options) -> None:
        (folder / name).write_text(text, encoding="utf-8")
        options[option] = (str(folder / name),)

    return change


Edit = Callable[[bytes], bytes | None]
"""Of a file's bytes; None deletes it."""


def damage(file: Path, edit: Edit) -> None:
    """Replace a file by something else."""
    after = edit(file.read_bytes())
    file.unlink()
    if after is not None:
        file.write_bytes(after)


def becomes(text: str) -> Edit:
    return lambda _: text.encode()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _gone(content: bytes) -> None:
    """Deletes."""


def _json(change: Callable[[Any], object]) -> Edit:
    """Changes a document in place."""

    def edit(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return edit


def _line(number: int, edit: Edit) -> Edit:
    def of_all(content: bytes) -> bytes:
        lines = content.split(b"\n")
        lines[number] = edit(lines[number]) or b""
        return b"\n".join(lines)

    return of_all


def _put(value: object, *keys: str | int) -> Edit:
    """Sets what lies under keys."""

    def change(document: Any) -> None:
        *above, last = keys
        for key in above:
            document = document[key]
        document[last] = value

    return _json(change)


LONG = "n" * 300
"""A name that no file system takes."""


def _bytes(option: str, name: str) -> Change:
    """A file of what is no text."""

    def change(folder: Path, options: Options) -> None:
        (folder / name).write_bytes(b"\xff\xfe\x00")
        options[option] = (str(folder / name),)

    return change


def _folder(option: str, name: str) -> Change:
    def change(folder: Path, options: Options) -> None:
        (folder / name).mkdir()
        options[option] = (str(folder / name),)

    return change


def _gguf(content: bytes) -> Change:
    def change(folder: Path, options: Options) -> None:
        (folder / "model.gguf").write_bytes(content)
        options["--model"] = (str(folder / "model.gguf"),)

    return change


def _profile(**changes: str | None) -> Change:
    """A profile with these keys set to TOML, or taken away."""
    return _file("--hardware", "p.toml", _toml(_PROFILE | changes))


def _toml(values: dict[str, str | None]) -> str:
    return "".join(f"{key} = {value}\n" for key, value in values.items() if value is not None)


def _profiles(**texts: str) -> Change:
    """Several files, the first of which is the profile asked for."""

    def change(folder: Path, options: Options) -> None:
        for name, text in texts.items():
            (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        options["--hardware"] = (str(folder / f"{next(iter(texts))}.toml"),)

    return change


def _model(edit: Callable[[Path], object]) -> Change:
    def change(folder: Path, options: Options) -> None:
        shutil.copytree(options["--model"][0], folder / "model")
        edit(folder / "model")
        options["--model"] = (str(folder / "model"),)

    return change


def _config(**values: object) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | values))

    return edit


def _other_widths(folder: Path, options: Options) -> None:
    _model(_config(intermediate_size=48))(folder, options)
    options["--finetune"] = ()


def _nan_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def _without_head(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k},
        model / "model.safetensors",
        {"format": "pt"},
    )


def _without_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def _other_run(folder: Path, options: Options) -> None:
    out = Path(options["--out"][0])
    out.mkdir()
    (out / "run.json").write_text("{}")


def _full_folder(folder: Path, options: Options) -> None:
    out = Path(options["--out"][0])
    out.mkdir()
    (out / "notes.txt").write_text("mine")


def _below_a_file(folder: Path, options: Options) -> None:
    (folder / "file").write_text("")
    options["--out"] = (str(folder / "file" / "run"),)


def _namesake(folder: Path, options: Options) -> None:
    (folder / "cpu-1-thread.toml").write_text('extends = "cpu-1-thread"\n')
    options["--hardware"] = ("cpu-1-thread", str(folder / "cpu-1-thread.toml"))


def _rows(*rows: str) -> str:
    return "text,label\n" + "".join(f"{row}\n" for row in rows)


_TWENTY = [f"a fine film number {i},{i % 2}" for i in range(60)]
_PROFILE: dict[str, str | None] = {
    "description": '"x"',
    "class": '"cpu"',
    "runtime": '"onnxruntime-cpu"',
    "threads": "1",
    "batch_size": "1",
    "sequence_length": "32",
}
_PEAKS = "{ gops = { fp32 = 10.0 }, memory_gb_per_s = 12.5, overhead_us = 3.0, efficiency = 0.5 }"
_DATASHEET: dict[str, str | None] = {
    "basis": '"datasheet"',
    "source": '"its datasheet"',
    "date": '"2026-01-31"',
    "peaks": _PEAKS,
}
_CUDA: dict[str, str | None] = {"class": '"gpu"', "runtime": '"torch-cuda"', "threads": None}

_CONFIGS: list[tuple[str, object, str]] = [
    ("hidden_size", "wide", "field 'hidden_size'"),
    ("hidden_size", 0, "hidden_size is 0, it must be at least 1"),
    ("hidden_size", -32, "hidden_size is -32, it must be at least 1"),
    ("hidden_size", 33, "The hidden size (33) is not a multiple of the number of attention heads"),
    ("hidden_size", None, "field 'hidden_size'"),
    ("num_attention_heads", 0, "num_attention_heads is 0, it must be at least 1"),
    ("num_attention_heads", 3, "is not a multiple of the number of attention heads (3)"),
    ("num_attention_heads", 4.5, "field 'num_attention_heads'"),
    ("num_hidden_layers", "four", "field 'num_hidden_layers'"),
    ("num_hidden_layers", -1, "num_hidden_layers is -1, it must be at least 1"),
    ("num_hidden_layers", 2, "has weights for bert.encoder.layer.2"),
    ("num_hidden_layers", 6, "has no weights for bert.encoder.layer.4"),
    ("intermediate_size", None, "field 'intermediate_size'"),
    ("intermediate_size", "64", "field 'intermediate_size'"),
    ("intermediate_size", 48, "weights"),
    ("vocab_size", [30522], "field 'vocab_size'"),
    ("vocab_size", 7, "the tokenizer has 30522 tokens, the model only 7"),
    ("max_position_embeddings", "64", "field 'max_position_embeddings'"),
    ("hidden_act", "no_such_act", "'no_such_act' is unknown"),
    ("hidden_act", 3, "field 'hidden_act'"),
    ("layer_norm_eps", "small", "field 'layer_norm_eps'"),
]
_GGUF = {"noise": bytes(range(256)) * 16, "nothing": b"", "its first word": b"GGUF"}

SEARCHES: dict[str, tuple[Change, str]] = {
    "model folder missing": (
        _set("--model", "/no/such/model"),
        "model folder /no/such/model does not exist",
    ),
    "model folder without config": (
        _model(lambda m: (m / "config.json").unlink()),
        "holds no config.json",
    ),
    "model folder without weights": (
        _model(lambda m: (m / "model.safetensors").unlink()),
        "weights cannot be loaded",
    ),
    "pickled weights only": (
        _model(lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin")),
        "weights cannot be loaded (safetensors and GGUF only)",
    ),
    "weights damaged": (
        _model(lambda m: (m / "model.safetensors").write_bytes(b"junk")),
        "weights cannot be loaded",
    ),
    "config damaged": (_model(lambda m: (m / "config.json").write_text("{")), "cannot be loaded"),
    "unknown architecture": (
        _model(_config(model_type="no_such_type")),
        "model type 'no_such_type' is not supported",
    ),
    "unsupported architecture": (
        _model(_config(model_type="t5")),
        "model type 't5' is not supported; supported are bert",
    ),
    "already compressed": (_model(_config(model_type="autocompress")), "already compressed"),
    "NaN weights": (_model(_nan_weights), "are not all finite"),
    "no classification head": (_model(_without_head), "give --finetune"),
    "no tokenizer": (_model(_without_tokenizer), "no usable tokenizer"),
    "hub id out of reach": (
        _set("--model", "no-such-user/no-such-model"),
        "--model no-such-user/no-such-model cannot be loaded",
    ),
    "unknown task": (
        _set("--task", "poetry"),
        "unknown task 'poetry'; known are text-classification",
    ),
    "data missing": (_set("--data", "/no/such.csv"), "data file /no/such.csv does not exist"),
    "data in a folder": (_set("--data", "/"), "data file / is a folder: give one file"),
    "data of unknown format": (
        _file("--data", "data.xml", "<a/>"),
        "give .csv, .tsv, .json, .jsonl or .parquet",
    ),
    "data damaged": (_file("--data", "data.jsonl", "{\n"), "cannot be read"),
    "data empty": (_file("--data", "data.csv", ""), "cannot be read"),
    "too little data": (
        _file("--data", "data.csv", _rows(*_TWENTY[:12])),
        "at least 10 are needed",
    ),
    "wrong text column": (
        _set("--text-column", "body"),
        "has no column 'body'; its columns are text, label",
    ),
    "wrong label column": (
        _set("--label-column", "stars"),
        "has no column 'stars'; its columns are text, label",
    ),
    "wrong pair column": (_set("--text-pair-column", "other"), "has no column 'other'"),
    "no usual text column": (
        _file("--data", "data.csv", "x,label\na,1\n"),
        "give --text-column, one of x, label",
    ),
    "no usual label column": (
        _file("--data", "data.csv", "text,y\na,1\n"),
        "give --label-column, one of text, y",
    ),
    "empty text": (
        _file("--data", "data.csv", _rows(*_TWENTY, '"  ",1')),
        "row 61 has no text in column 'text'",
    ),
    "missing label": (
        _file("--data", "data.csv", _rows(*_TWENTY, "a film,")),
        "row 61 has no label",
    ),
    "one class only": (
        _file("--data", "data.csv", _rows(*(f"film {i},1" for i in range(60)))),
        "one class only",
    ),
    "label not in the model's": (
        _file("--data", "data.csv", _rows(*_TWENTY, "film,7")),
        "label 7 is not among the model's labels",
    ),
    "word label not in the model's": (
        _file("--data", "data.csv", _rows(*_TWENTY, "film,good")),
        "is not among the model's labels",
    ),
    "validation missing": (
        _set("--validation", "/no/such.csv"),
        "data file /no/such.csv does not exist",
    ),
    "test missing": (_set("--test", "/no/such.csv"), "data file /no/such.csv does not exist"),
    "unlabelled missing": (
        _set("--unlabeled", "/no/such.txt"),
        "--unlabeled /no/such.txt cannot be read",
    ),
    "unlabelled empty": (_file("--unlabeled", "text.txt", "\n\n"), "has no text"),
    "unknown profile": (_set("--hardware", "cpu-2"), "unknown hardware profile 'cpu-2'"),
    "profile file missing": (
        _set("--hardware", "my.toml"),
        "hardware profile file my.toml does not exist",
    ),
    "profile not TOML": (_file("--hardware", "p.toml", "= 3"), "not valid TOML"),
    "profile key unknown": (
        _profile(cores="2"),
        "unknown key 'cores'; known are description, class, runtime, ",
    ),
    "profile key missing": (_profile(**{"class": None}), "missing key 'class'"),
    "profile key by its name in Python": (
        _profile(device_class='"cpu"'),
        "unknown key 'device_class'; did you mean class?",
    ),
    "profile text wrong": (_profile(description="3"), "description is 3, allowed is text"),
    "profile class wrong": (
        _profile(**{"class": "1"}),
        "class is 1, allowed is one of cpu, gpu, edge",
    ),
    "profile whole number wrong": (
        _profile(threads='"1"'),
        "threads is '1', allowed is a whole number from 0 (all cores) to 1024",
    ),
    "profile whole number with a fraction": (
        _profile(batch_size="1.5"),
        "batch_size is 1.5, allowed is a whole number from 1 to 4096",
    ),
    "profile truth wrong": (
        _profile(cuda_graphs="1"),
        "cuda_graphs is 1, allowed is true or false",
    ),
    "profile number wrong": (
        _profile(trial_seconds='"2"'),
        "trial_seconds is '2', allowed is seconds from 0.1 to 600",
    ),
    "profile number true": (
        _profile(confidence="true"),
        "confidence is True, allowed is a share from 0.5 to 0.999",
    ),
    "profile limit wrong": (
        _profile(memory_limit_mb='"all"'),
        "memory_limit_mb is 'all', allowed is megabytes more than 0",
    ),
    "profile length wrong": (
        _profile(sequence_length="[32]"),
        'sequence_length is [32], allowed is a whole number from 1 to 100000, or "task"',
    ),
    "profile list wrong": (
        _profile(precisions='"fp32"'),
        "precisions is 'fp32', allowed is a list of one or more of fp32, fp16",
    ),
    "profile list of numbers": (
        _profile(precisions="[32]"),
        "precisions is [32], allowed is a list of one or more of fp32, fp16",
    ),
    "profile table wrong": (
        _profile(fingerprint='"a cpu"'),
        "fingerprint is 'a cpu', allowed is a table of system, cpu, cores",
    ),
    "profile peaks wrong": (
        _profile(peaks="10.0"),
        "peaks is 10.0, allowed is a table of gops, memory_gb_per_s",
    ),
    "profile out of range": (
        _profile(batch_size="0"),
        "batch_size is 0, allowed is a whole number from 1 to 4096",
    ),
    "profile length unknown": (
        _profile(sequence_length='"long"'),
        "sequence_length is 'long', allowed is a whole number",
    ),
    "profile class unknown": (
        _profile(**{"class": '"tpu"'}),
        "class is 'tpu', allowed is one of cpu, gpu, edge",
    ),
    "profile runtime unknown": (
        _profile(runtime='"tpu"'),
        "runtime is 'tpu', allowed is one of onnxruntime-cpu, onnxruntime-cuda",
    ),
    "profile statistic unknown": (
        _profile(statistic='"max"'),
        "statistic is 'max', allowed is one of median, mean, p10",
    ),
    "profile format unknown": (
        _profile(precisions='["int3"]'),
        "precisions is ['int3'], allowed is a list of one or more of fp32, fp16",
    ),
    "profile location unknown": (
        _profile(location='"board"'),
        "location is 'board', allowed is local, ssh://[user@]host",
    ),
    "profile location malformed": (
        _profile(**{"class": '"edge"', "location": '"ssh://"'}),
        "device location 'ssh://' is malformed; allowed is ssh://[user@]host[:port]",
    ),
    "profile longer than the model": (
        _set("--hardware", "cpu-1-thread-seq128"),
        "the model takes 64 tokens at most",
    ),
    "class is a GPU, runtime is not": (
        _profile(**{"class": '"gpu"'}),
        "class is gpu, but the runtime is onnxruntime-cpu",
    ),
    "class is a CPU, runtime is not": (
        _profile(**(_CUDA | {"class": '"cpu"'})),
        "class is cpu, but the runtime is torch-cuda",
    ),
    "threads for CUDA": (
        _profile(**(_CUDA | {"threads": "4"})),
        "threads mean nothing to a CUDA runtime; leave them out",
    ),
    "CUDA graphs of onnxruntime": (
        _profile(cuda_graphs="true"),
        "cuda_graphs are of torch-cuda only",
    ),
    "int8 for torch-cuda": (
        _profile(**(_CUDA | {"precisions": '["int8-dynamic"]'})),
        "torch-cuda computes in fp32, fp16 and bf16 only",
    ),
    "datasheet without peaks": (
        _profile(**(_DATASHEET | {"peaks": None})),
        "datasheet needs peaks, source and date",
    ),
    "datasheet without source": (
        _profile(**(_DATASHEET | {"source": None})),
        "datasheet needs peaks, source and date",
    ),
    "peaks without datasheet": (_profile(peaks=_PEAKS), "peaks are for basis = datasheet only"),
    "peaks without fp32": (
        _profile(**(_DATASHEET | {"peaks": _PEAKS.replace("fp32", "fp16")})),
        "p.toml: peaks: gops names no fp32",
    ),
    "datasheet with a fingerprint": (
        _profile(**(_DATASHEET | {"fingerprint": '{ cpu = "x" }'})),
        "a fingerprint is of a measured",
    ),
    "profile extends itself": (
        _profiles(p='extends = "p.toml"\n'),
        "profiles extend each other in a loop: p.toml -> p.toml",
    ),
    "profiles extend each other": (
        _profiles(p='extends = "q.toml"\n', q='extends = "p.toml"\n'),
        "profiles extend each other in a loop: p.toml -> q.toml -> p.toml",
    ),
    "profile extends a missing file": (
        _profiles(p='extends = "q.toml"\n'),
        "q.toml does not exist",
    ),
    "profile extends a missing name": (
        _profiles(p='extends = "cpu-7"\n'),
        "unknown hardware profile 'cpu-7'",
    ),
    "profile extends a number": (
        _profiles(p="extends = 7\n"),
        "extends is 7, it must be a profile's name or path",
    ),
    "limit of a device without a name": (
        _set("--max-latency", "=3ms"),
        "--max-latency is '=3ms': before = belongs a hardware",
    ),
    "device given twice": (
        _set("--hardware", "cpu-1-thread", "cpu-1-thread"),
        "hardware profile cpu-1-thread is given twice",
    ),
    "two devices of one name": (_namesake, "hardware profile cpu-1-thread is given twice"),
    "second device unknown": (
        _set("--hardware", "cpu-1-thread", "cpu-2"),
        "unknown hardware profile 'cpu-2'",
    ),
    "second device longer than the model": (
        _set("--hardware", "cpu-1-thread", "cpu-1-thread-seq128"),
        "hardware profile cpu-1-thread-seq128: sequence_length is 128, the model takes 64 tokens "
        "at most",
    ),
    "a device of another fingerprint": (
        _profile(fingerprint='{ cpu = "a cpu of old" }'),
        "hardware profile p is of another device: its cpu is 'a cpu of old', here it is ",
    ),
    "profile fingerprint of unknown keys": (
        _profile(fingerprint='{ colour = "red" }'),
        "fingerprint names 'colour', known are system",
    ),
    "no format that a device speeds up": (
        _file("--space", "s.toml", '[quantization]\nscheme = ["fp16"]\n'),
        "search space s: quantization.scheme is fp16, the devices offer ",
    ),
    "onnxruntime without CUDA": (
        _profile(**(_CUDA | {"runtime": '"onnxruntime-cuda"'})),
        "hardware profile p: onnxruntime there has no CUDAExecutionProvider; onnxruntime-gpu has "
        "it",
    ),
    "no GPU for torch": (
        _set("--hardware", "gpu-cuda"),
        "hardware profile gpu-cuda: torch-cuda needs an NVIDIA GPU, ",
    ),
    "no GPU for the second device": (
        _set("--hardware", "cpu-1-thread", "gpu-cuda"),
        "hardware profile gpu-cuda: torch-cuda needs an NVIDIA GPU, ",
    ),
    "unknown space": (_set("--space", "galaxy"), "unknown search space 'galaxy'"),
    "space file missing": (_set("--space", "my.toml"), "search space file my.toml does not exist"),
    "space section unknown": (
        _file("--space", "s.toml", "[colour]\nkeep = [1.0]\n"),
        "unknown setting 'colour.keep'",
    ),
    "space key unknown": (
        _file("--space", "s.toml", "[heads]\nkept = [1.0]\n"),
        "unknown setting 'heads.kept'",
    ),
    "space type wrong": (
        _file("--space", "s.toml", '[heads]\nkeep = ["all"]\n'),
        "heads.keep is 'all'",
    ),
    "space range reversed": (
        _file("--space", "s.toml", "[heads]\nkeep = { low = 0.9, high = 0.1 }\n"),
        "range reversed",
    ),
    "space range beyond": (
        _file("--space", "s.toml", "[heads]\nkeep = { low = 0.5, high = 1.5 }\n"),
        "high of the range",
    ),
    "space empty": (_file("--space", "s.toml", 'description = "nothing"\n'), "names no setting"),
    "space corner outside": (
        _file("--space", "s.toml", "[ffn]\nkeep = [0.5]\n[[corners]]\nffn.keep = 1.0\n"),
        "outside the space",
    ),
    "budget of zero": (
        _set("--max-latency", "0ms"),
        "--max-latency is '0ms': it must be more than zero",
    ),
    "latency without unit": (_set("--max-latency", "3"), "give a number with its unit"),
    "latency in an unknown unit": (_set("--max-latency", "3min"), "give a number with its unit"),
    "speedup without unit": (
        _set("--min-speedup", "2"),
        "--min-speedup is '2': give a number with its unit (x), such as 2x",
    ),
    "negative drop": (_set("--max-drop", "-1"), "max_drop is -1"),
    "drop not a number": (_set("--max-drop", "little"), "invalid float value: 'little'"),
    "size without unit": (
        _set("--max-size", "10"),
        "--max-size is '10': give a number with its unit (B, kB, MB, GB), such as 10MB",
    ),
    "size of zero": (
        _set("--max-size", "0MB"),
        "--max-size is '0MB': it must be more than zero",
    ),
    "compression without unit": (
        _set("--min-compression", "8"),
        "--min-compression is '8': give a number with its unit (x), such as 8x",
    ),
    "compression of zero": (
        _set("--min-compression", "0x"),
        "--min-compression is '0x': it must be more than zero",
    ),
    "unknown objective": (
        _set("--objectives", "latency,quality,energy"),
        "--objectives names 'energy', known are latency, quality, size",
    ),
    "objective twice": (
        _set("--objectives", "quality,size,size"),
        "--objectives names size twice",
    ),
    "no objectives": (
        _set("--objectives", ","),
        "--objectives is empty: quality is always one of them, beside latency or size",
    ),
    "objectives without quality": (
        _set("--objectives", "latency,size"),
        "--objectives is latency, size: quality is always one of them",
    ),
    "space with an unknown objective": (
        _file("--space", "s.toml", 'objectives = ["speed"]\n[heads]\nkeep = [0.5]\n'),
        "s.toml: objectives names 'speed', known are latency, quality, size",
    ),
    "space whose objectives are no list": (
        _file("--space", "s.toml", 'objectives = "size"\n[heads]\nkeep = [0.5]\n'),
        "s.toml: objectives is 'size', it must be a list of names of latency, quality, size",
    ),
    "no trials": (_set("--trials", "0"), "trials is 0: it must be at least 1"),
    "time limit without unit": (
        _set("--time-limit", "10"),
        "--time-limit is '10': give a number with its unit",
    ),
    "time limit of zero": (_set("--time-limit", "0m"), "it must be more than zero"),
    "unknown sampler": (
        _set("--sampler", "oracle"),
        "unknown sampler 'oracle'; known are tpe, gp, nsga2, random, local",
    ),
    "unknown option": (_set("--colour", "red"), "unrecognized arguments: --colour"),
    "output holds another run": (_other_run, "holds another run: give --resume to go on with it"),
    "output is not empty": (_full_folder, "is not empty and holds no run"),
    "output without a name": (_set("--out", ""), "argument --out: it is empty"),
    "output of a long name": (_set("--out", LONG), "File name too long"),
    "output below a file": (_below_a_file, "cannot be written"),
    "output given twice": (_set("--out", "a", "b"), "--out is given twice"),
    "model without a name": (_set("--model", ""), "argument --model: it is empty"),
    "model of a long name": (_set("--model", f"./{LONG}"), "File name too long"),
    "model given twice": (_set("--model", "a", "b"), "--model is given twice"),
    "data without a name": (_set("--data", ""), "argument --data: it is empty"),
    "data of a long name": (_set("--data", f"{LONG}.csv"), "File name too long"),
    "data given twice": (_set("--data", "a.csv", "b.csv"), "--data is given twice"),
    "validation of a long name": (_set("--validation", f"{LONG}.csv"), "File name too long"),
    "unlabelled of a long name": (_set("--unlabeled", f"{LONG}.txt"), "File name too long"),
    "profile of a long name": (_set("--hardware", f"{LONG}.toml"), "File name too long"),
    "profile that is no text": (_bytes("--hardware", "p.toml"), "p.toml: not valid TOML"),
    "space of a long name": (_set("--space", f"{LONG}.toml"), "File name too long"),
    "space that is no text": (_bytes("--space", "s.toml"), "s.toml: not valid TOML"),
    "space in a folder": (_folder("--space", "s.toml"), "search space file"),
    "phase of a model that has none": (
        _set("--max-latency", "decode=3ms"),
        "phase is for language models, and this model generates nothing",
    ),
    "two phases": (
        _set("--max-latency", "decode=3ms", "prefill=3ms"),
        "--max-latency names decode and prefill",
    ),
    "seed below zero": (_set("--seed", "-1"), "seed is -1: it must be from 0 to 4294967295"),
    "seed of 30 digits": (_set("--seed", "9" * 30), "it must be from 0 to 4294967295"),
    "seed that is no number": (_set("--seed", "x"), "argument --seed: invalid int value: 'x'"),
    "trials that are no number": (_set("--trials", "9.5"), "invalid int value: '9.5'"),
    "drop that is not a number": (_set("--max-drop", "nan"), "max_drop is nan"),
    "no confidence": (_set("--confidence", "0"), "confidence is 0"),
    "endless time limit": (_set("--time-limit", "1e999h"), "--time-limit is '1e999h'"),
    "training on what is not there": (_set("--train-on", "tpu"), "--train-on"),
    "weights cut": (
        _model(lambda m: damage(m / "model.safetensors", half)),
        "weights cannot be loaded",
    ),
    "weights empty": (
        _model(lambda m: damage(m / "model.safetensors", becomes(""))),
        "weights cannot be loaded",
    ),
    "tokenizer damaged": (
        _model(lambda m: damage(m / "tokenizer.json", half)),
        "has no usable tokenizer",
    ),
    "tokenizer a list": (
        _model(lambda m: damage(m / "tokenizer.json", becomes("[]"))),
        "has no usable tokenizer",
    ),
    "config a list": (_model(lambda m: damage(m / "config.json", becomes("[]"))), "config.json"),
    "config empty": (_model(lambda m: damage(m / "config.json", becomes(""))), "cannot be loaded"),
    "model type a number": (_model(_config(model_type=7)), "model type 7 is not supported"),
    "model type a list": (_model(_config(model_type=["bert"])), "model type ['bert'] is not"),
    **{
        f"config with {name} {value!r}": (_model(_config(**{name: value})), said)
        for name, value, said in _CONFIGS
    },
    "layers of other widths, to be fine-tuned": (
        _other_widths,
        "intermediate.dense.bias are [64], its",
    ),
    **{
        f"GGUF file of {name}": (_gguf(content), "cannot be loaded")
        for name, content in _GGUF.items()
    },
}


COMMANDS: list[tuple[list[str], str]] = [
    (["front", "/no/such/run"], "holds no front.json"),
    (["pick", "/no/such/run", "--max-latency", "3ms"], "holds no front.json"),
    (
        ["pick", "/no/such/run"],
        "give at least one limit of --max-latency, --min-speedup, --max-size, "
        "--min-compression, --min-quality, --max-perplexity, --max-drop, or --smallest",
    ),
    (
        ["export", "run", "--trial", "t001", "--smallest", "--out", "x"],
        "--trial t001 and --smallest are given: give a trial or limits",
    ),
    (["pick", "/no/such/run", "--smallest"], "holds no front.json"),
    (["export", "/no/such/run", "--out", "x"], "give at least one limit of --max-latency"),
    (
        ["export", "run", "--trial", "t001", "--max-drop", "0", "--out", "x"],
        "--trial t001 and --max-drop are given: give a trial or limits",
    ),
    (["pick", "/no/such/run", "--max-size", "9MB", "--max-drop", "1"], "holds no front.json"),
    (["export", "/no/such/run", "--trial", "t001", "--out", "x"], "holds no front.json"),
    (["report", "/no/such/run"], "holds no front.json"),
    (
        ["measure", "/no/such/model", "--hardware", "cpu-1-thread"],
        "neither an .onnx file nor a folder",
    ),
    (["front", "/no/such/run", "--hardware", "board"], "holds no front.json"),
    (["measure", "/no/such/model"], "the following arguments are required: --hardware"),
    (
        ["measure", "/no/such/model", "--hardware", "nothing"],
        "unknown hardware profile 'nothing'",
    ),
    (["profile", "show", "nothing"], "unknown hardware profile 'nothing'"),
    (["profile", "new"], "the following arguments are required: NAME"),
    (
        ["profile", "new", "p", "--runtime", "tpu"],
        "runtime is 'tpu', allowed is one of onnxruntime-cpu, ",
    ),
    (
        ["profile", "new", "p", "--threads", "-1"],
        "threads is -1, allowed is a whole number from 0 (all cores) to 1024",
    ),
    (
        ["profile", "new", "p", "--threads", "many"],
        "argument --threads: invalid int value: 'many'",
    ),
    (
        ["profile", "new", "p", "--sequence-length", "long"],
        "sequence_length is 'long', allowed is a whole number",
    ),
    (
        ["profile", "new", "p", "--device", "board"],
        "location is 'board', allowed is local, ssh://[user@]host[:port]",
    ),
    (
        ["profile", "new", "p", "--python", "/opt/python"],
        "python is for a device that is not local",
    ),
    (
        ["profile", "new", "p", "--runtime", "torch-cuda", "--device", "ssh://board"],
        "torch-cuda runs on this machine only",
    ),
    (
        ["doctor", "--device", "board"],
        "device location 'board' is malformed; allowed is ssh://[user@]host[:port] or cmd:WRAPPER",
    ),
    (
        ["doctor", "--ssh-config", "/no/such/config", "--device", "ssh://board"],
        "no file /no/such/config",
    ),
    (["doctor", "--python", "/opt/python3"], "python is for a device that is not local"),
    (["doctor", "--ssh-config", "config"], "ssh_config is for a device that is not local"),
    (["space", "show", "nothing"], "unknown search space 'nothing'"),
    (["space", "validate", "nothing.toml"], "does not exist"),
    (["dance"], "invalid choice: 'dance'"),
    ([], "the following arguments are required: COMMAND"),
]


@dataclass(frozen=True)
class Ground:
    """What requests are made of: a model, its data, and a finished run of the two."""

    model: Path
    data: Path
    run: Path

    @property
    def search(self) -> Options:
        """A request without a mistake."""
        return {
            "--model": (str(self.model),),
            "--task": ("text-classification",),
            "--data": (str(self.data),),
            "--hardware": (CPU,),
            "--space": ("quantization-only",),
            "--out": ("run",),
        }


@dataclass(frozen=True)
class Case:
    """A mistake, or a damaged file.

    Args:
        arguments: of the command, given an empty folder to lay files in, which is the current one.
        said: what the one line must name.
    """

    arguments: Callable[[Ground, Path], list[str]]
    said: str
    code: int = 2


@dataclass(frozen=True)
class Answer:
    """What a command did.

    Args:
        code: None where it ended in a traceback.
        lines: on standard error, but those of progress.
        printed: on standard output.
        written: files and folders that were not there before, or no longer are.
    """

    code: int | None
    lines: tuple[str, ...]
    printed: str
    written: tuple[Path, ...]

    def is_clear(self, case: Case) -> bool:
        """Whether it is one line that says what is wrong, after what a search says of its data, and
        nothing else happened."""
        wrong = [line for line in self.lines if line.startswith("autocompress: ")]
        told = len(wrong) == 1 and wrong[0] == self.lines[-1] and case.said in wrong[0]
        quiet = not self.printed and not self.written and "Traceback" not in "".join(self.lines)
        return told and quiet and self.code == case.code


def answer(case: Case, ground: Ground, folder: Path) -> Answer:
    """Run the command in this process, in ``folder``; runs go on with the device that they began
    on."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        arguments = case.arguments(ground, folder)
        steady: dict[str, Any] = {"connect": SizeDevice} if "--resume" in arguments else {}
        search_for = functools.partial(session.search_for, **steady)
        before = _files(folder)
        try:
            with mock.patch.object(session, "search_for", search_for):
                code = main(arguments)
        except Exception as error:  # noqa: BLE001 - counted
            err.write(f"{error!r}\n")
    lines = [line for line in err.getvalue().splitlines() if not line.endswith("...")]
    written = before ^ _files(folder)
    return Answer(code, tuple(lines), out.getvalue(), tuple(sorted(written)))


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != ".lock"}


def _asked(options: Options) -> list[str]:
    """An option without a value is a switch."""
    words = ["search"]
    for option, values in options.items():
        words += [word for value in values for word in (option, value)] or [option]
    return words


def _search(change: Change, said: str) -> Case:
    def arguments(ground: Ground, folder: Path) -> list[str]:
        options = ground.search
        change(folder, options)
        return _asked(options)

    return Case(arguments, said)


def _command(*arguments: str, said: str) -> Case:
    return Case(lambda ground, folder: list(arguments), said)


def _on_a_run(file: str, edit: Edit, *arguments: str, said: str, resume: bool = False) -> Case:
    """A command on a run, or a search that goes on with it, with one file of it changed."""

    def change(ground: Ground, folder: Path) -> list[str]:
        shutil.copytree(ground.run, folder / "run", copy_function=_linked)
        damage(folder / "run" / file, edit)
        return [*_asked(ground.search), "--resume"] if resume else list(arguments)

    return Case(change, said)


def _linked(source: str, target: str) -> None:
    """Weights are not written to, so that a second name will do."""
    if source.endswith((".onnx", ".safetensors")):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


_FRONTS: dict[str, Edit] = {
    "cut": half,
    "empty": becomes(""),
    "a list": becomes("[]"),
    "a word": becomes('"front"'),
    "of no front": _put([], "fronts"),
    "a text for a latency": _put("fast", "fronts", 0, "baseline", "timing", "latency_ms", "value"),
    "a text for a score": _put("0.9", "fronts", 0, "members", 0, "quality", "validation"),
    "a text for a size": _put("1 MB", "fronts", 0, "members", 0, "weight_bytes"),
    "NaN for a speedup": _put(float("nan"), "fronts", 0, "members", 0, "timing", "speedup"),
    "an interval of one number": _put([1], "fronts", 0, "baseline", "timing", "speedup_interval"),
    "nothing for members": _put(None, "fronts", 0, "members"),
    "a number for an id": _put(3, "fronts", 0, "members", 0, "id"),
    "an unknown metric": _put("charm", "fronts", 0, "metric"),
    "a device without a name": _put({}, "fronts", 0, "hardware"),
    "an unknown key": _put(1, "fronts", 0, "colour"),
}
_RUNS: dict[str, Edit] = {
    "cut": half,
    "empty": becomes(""),
    "a list": becomes("[1]"),
    "without inputs": _json(lambda run: run.pop("inputs")),
    "with a text for its inputs": _put("none", "inputs"),
}
_EVENTS: dict[str, Edit] = {
    "a line cut": _line(1, half),
    "a line empty": _line(1, becomes("")),
    "a line of a number": _line(1, becomes("7")),
    "a line that is no text": _line(1, lambda _: b"\xff\xfe"),
    "a text for a number": _line(1, _put("zero", "trial", "number")),
    "a text for seconds": _line(1, _put("long", "trial", "seconds")),
    "no scores": _line(1, _put(None, "trial", "scores")),
}


def _profile_new(name: str) -> Case:
    return _command(
        "profile", "new", name, said=f"profile name {name.removesuffix('.toml')!r} names nothing"
    )


def _measured_on(profile: str) -> Case:
    said = f"hardware profile {profile}: torch-cuda needs an NVIDIA GPU, "
    return Case(lambda ground, _: ["measure", str(ground.model), "--hardware", profile], said)


WITHOUT_GPU = (
    "onnxruntime without CUDA",
    "no GPU for torch",
    "no GPU for the second device",
    *(name for name in resources.names("hw_profiles") if name.startswith("gpu-cuda")),
)
"""Cases that are none where there is one."""

CASES: dict[str, Case] = {
    **{name: _search(*case) for name, case in SEARCHES.items()},
    **{" ".join(words) or "nothing": _command(*words, said=said) for words, said in COMMANDS},
    **{
        f"{command} of a front.json: {name}": _on_a_run(
            "front.json", edit, command, "run", *more, said="front.json is damaged"
        )
        for name, edit in _FRONTS.items()
        for command, *more in (["front"], ["pick", "--max-drop", "1"], ["report"])
    },
    "front of another schema": _on_a_run(
        "front.json", _put(99, "schema"), "front", "run", said="schema is 99"
    ),
    **{
        f"report of a run.json {name}": _on_a_run(
            "run.json", edit, "report", "run", said="run.json is missing or damaged"
        )
        for name, edit in _RUNS.items()
    },
    **{
        f"going on with a run.json {name}": _on_a_run(
            "run.json", edit, resume=True, said="run.json is missing or damaged"
        )
        for name, edit in _RUNS.items()
    },
    **{
        f"report of events with {name}": _on_a_run(
            "events.jsonl", edit, "report", "run", said="events.jsonl, line 2 is damaged"
        )
        for name, edit in _EVENTS.items()
    },
    **{
        f"going on with events with {name}": _on_a_run(
            "events.jsonl", edit, resume=True, said="events.jsonl, line 2 is damaged"
        )
        for name, edit in _EVENTS.items()
    },
    "going on without the baseline": _on_a_run(
        "models/t000/model.onnx", _gone, resume=True, said="t000/model.onnx is no file"
    ),
    "going on with half a baseline": _on_a_run(
        "models/t000/model.onnx", half, resume=True, said="t000/model.onnx is damaged"
    ),
    "export of half a model": _on_a_run(
        "models/t000/model.onnx",
        half,
        *("export", "run", "--trial", "t000", "--out", "model"),
        said="t000/model.onnx is damaged",
    ),
    "export of a model without its record": _on_a_run(
        "models/t000/autocompress.json",
        _gone,
        *("export", "run", "--trial", "t000", "--out", "model"),
        said="autocompress.json is missing or damaged",
    ),
    "measuring half a model": _on_a_run(
        "models/t000/model.onnx",
        half,
        *("measure", "run/models/t000", "--hardware", CPU),
        said="run/models/t000 cannot be timed",
    ),
    "measuring with a damaged record": _on_a_run(
        "models/t000/autocompress.json",
        half,
        *("measure", "run/models/t000", "--hardware", CPU),
        said="autocompress.json is damaged",
    ),
    "measuring on two devices": _command(
        *("measure", "m", "--hardware", CPU, "--hardware", "cpu-all-cores"),
        said="--hardware is given twice",
    ),
    **{f"profile new {name!r}": _profile_new(name) for name in (".", "..", ".toml", " ")},
    "profile new ''": _command("profile", "new", "", said="argument NAME: it is empty"),
    "profile of a long name": _command("profile", "new", LONG, said="File name too long"),
    "front of a long name": _command("front", LONG, said="File name too long"),
    "measuring a long name": _command(
        *("measure", LONG, "--hardware", CPU), said="File name too long"
    ),
    "going on with nothing": Case(
        lambda ground, folder: [*_asked(ground.search), "--resume"], "run holds no run"
    ),
    "measuring at the lengths of no task": Case(
        lambda ground, folder: ["measure", str(ground.model), "--hardware", "cpu-1-thread-task"],
        "hardware profile cpu-1-thread-task: sequence_length is 'task', and there is no task here",
    ),
    **{name: _measured_on(name) for name in WITHOUT_GPU[3:]},
    "demo at a negative seed": _command("demo", "--seed", "-1", "--out", "r", said="seed is -1"),
    "demo without a unit": _command(
        *("demo", "--time-limit", "5"), said="--time-limit is '5': give a number with its unit"
    ),
}


_KILLED: dict[str, Any] = {
    "layers": {"keep": [0.5]},
    "recovery": {"steps": [36]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
}
_CHILD_S = 600.0
"""That a search without a kill takes at most."""


class Attended(SizeDevice):
    """Is asked by an agent in a process of its own what it is, before each timing."""

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        described(LocalHost())
        return super().time(baseline, models, final=final)


@dataclass
class Toll:
    """What kills cost.

    Args:
        kills: of a process that was searching.
        lost: trials that had come to an end and were no longer there.
        changed: trials and fronts that came out otherwise than without a kill.
        orphans: processes that went on without the one that began them.
        litter_bytes: in files that a search without a kill does not leave.
    """

    kills: int = 0
    lost: int = 0
    changed: int = 0
    orphans: int = 0
    litter_bytes: int = 0


def killed(
    kills: int,
    model: Path,
    data: Path,
    folder: Path,
    device: type[SizeDevice] = SizeDevice,
    seed: int = 0,
) -> Toll:
    """Kill a search at random moments and go on with it, over and over; whenever it has come to its
    end, compare it with one that was left alone, and begin again.

    Raises:
        RuntimeError: a search ended with an error.
    """
    toll, moments = Toll(), random.Random(seed)
    whole, run, number = folder / "whole", folder / "run-0", 0
    _process(int).join()  # the server has imported everything
    started = time.monotonic()
    _searching(model, data, whole, device).join(_CHILD_S)
    seconds = time.monotonic() - started
    while toll.kills < kills or run.exists():
        before = _ended(run)
        child = _searching(model, data, run, device)
        child.join(moments.uniform(0, seconds) if toll.kills < kills else _CHILD_S)
        toll.kills += child.is_alive()
        finished = child.exitcode == 0
        if child.exitcode:
            raise RuntimeError(f"a search ended with {child.exitcode}")
        child.kill()
        child.join()
        toll.orphans += _alive_in_session(child.pid)
        toll.lost += sum(trial not in _ended(run) for trial in before)
        if finished:
            toll.changed += _differences(whole, run)
            toll.litter_bytes += _litter(run, whole)
            shutil.rmtree(run)
            number += 1
            run = folder / f"run-{number}"
    return toll


def _searching(model: Path, data: Path, run: Path, device: type[SizeDevice]) -> BaseProcess:
    """A process from a server that has imported everything, with temporary files beside the run."""
    return _process(_search_in_session, model, data, run, device)


def _process(target: Callable[..., object], *arguments: object) -> BaseProcess:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    child = server.Process(target=target, args=arguments)
    child.start()
    return child


def _search_in_session(model: Path, data: Path, run: Path, device: type[SizeDevice]) -> None:
    os.setsid()
    torch.set_num_threads(1)
    tempfile.tempdir = str(run.with_suffix(".tmp"))
    Path(tempfile.tempdir).mkdir(exist_ok=True)
    resume = (run / "run.json").is_file()
    options: dict[str, Any] = {"trials": 1, "connect": device, "resume": resume}
    search(model, data, CPU, space(_KILLED), run, **options)


def _ended(run: Path) -> list[Trial]:
    return Run(run).trials()


def _differences(whole: Path, run: Path) -> int:
    pairs = zip_longest(timeless(_ended(whole)), timeless(_ended(run)))
    fronts = load_front(whole), load_front(run)
    return sum(bool(one != other) for one, other in (*pairs, fronts))


def _litter(run: Path, whole: Path) -> int:
    kept = {path.relative_to(whole) for path in whole.rglob("*")}
    left = [path for path in run.rglob("*") if path.relative_to(run) not in kept]
    aside = [*run.with_suffix(".tmp").rglob("*")]
    return sum(path.stat().st_size for path in (*left, *aside) if path.is_file())


def _alive_in_session(leader: int | None) -> int:
    """Processes of a session, the leader aside."""
    alive = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it is gone
            process = int(stat.parent.name)
            state, _, _, of, *_ = stat.read_text().rpartition(")")[2].split()
            alive += bool(int(of) == leader != process and state != "Z")
    return alive
