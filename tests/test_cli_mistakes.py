"""Bad input: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autocompress.cli import main

Change = Callable[[Path, dict[str, str]], None]


def _set(option: str, value: str) -> Change:
    return lambda folder, options: options.update({option: value})


def _file(option: str, name: str, text: str) -> Change:
    def change(folder: Path, options: dict[str, str]) -> None:
        (folder / name).write_text(text, encoding="utf-8")
        options[option] = str(folder / name)

    return change


def _model(edit: Callable[[Path], object]) -> Change:
    def change(folder: Path, options: dict[str, str]) -> None:
        shutil.copytree(options["--model"], folder / "model")
        edit(folder / "model")
        options["--model"] = str(folder / "model")

    return change


def _config(**values: object) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | values))

    return edit


def _nan_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def _without_head(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, model / "model.safetensors", {"format": "pt"})


def _without_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def _other_run(folder: Path, options: dict[str, str]) -> None:
    Path(options["--out"]).mkdir()
    (Path(options["--out"]) / "run.json").write_text("{}")


def _full_folder(folder: Path, options: dict[str, str]) -> None:
    Path(options["--out"]).mkdir()
    (Path(options["--out"]) / "notes.txt").write_text("mine")


def _rows(*rows: str) -> str:
    return "text,label\n" + "".join(f"{row}\n" for row in rows)


_TWENTY = [f"a fine film number {i},{i % 2}" for i in range(60)]
_PROFILE = 'description = "x"\nruntime = "onnxruntime-cpu"\nthreads = 1\nbatch_size = 1\nsequence_length = 32\n'

MISTAKES: dict[str, tuple[Change, str]] = {
    "model folder missing": (_set("--model", "/no/such/model"), "model folder /no/such/model does not exist"),
    "model folder without config": (_model(lambda m: (m / "config.json").unlink()), "holds no config.json"),
    "model folder without weights": (_model(lambda m: (m / "model.safetensors").unlink()), "weights cannot be loaded"),
    "pickled weights only": (
        _model(lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin")),
        "weights cannot be loaded (safetensors only)",
    ),
    "weights damaged": (_model(lambda m: (m / "model.safetensors").write_bytes(b"junk")), "weights cannot be loaded"),
    "config damaged": (_model(lambda m: (m / "config.json").write_text("{")), "cannot be loaded"),
    "unknown architecture": (_model(_config(model_type="no_such_type")), "model type 'no_such_type' is not supported"),
    "unsupported architecture": (_model(_config(model_type="t5")), "model type 't5' is not supported; supported are bert"),
    "already compressed": (_model(_config(model_type="autocompress")), "already compressed"),
    "NaN weights": (_model(_nan_weights), "are not all finite"),
    "no classification head": (_model(_without_head), "give --finetune"),
    "no tokenizer": (_model(_without_tokenizer), "no usable tokenizer"),
    "hub id out of reach": (_set("--model", "no-such-user/no-such-model"), "--model no-such-user/no-such-model cannot be loaded"),
    "unknown task": (_set("--task", "poetry"), "unknown task 'poetry'; known are text-classification"),
    "data missing": (_set("--data", "/no/such.csv"), "data file /no/such.csv does not exist"),
    "data of unknown format": (_file("--data", "data.xml", "<a/>"), "give .csv, .tsv, .json, .jsonl or .parquet"),
    "data damaged": (_file("--data", "data.jsonl", "{\n"), "cannot be read"),
    "data empty": (_file("--data", "data.csv", ""), "cannot be read"),
    "too little data": (_file("--data", "data.csv", _rows(*_TWENTY[:12])), "at least 10 are needed"),
    "wrong text column": (_set("--text-column", "body"), "has no column 'body'; its columns are text, label"),
    "wrong label column": (_set("--label-column", "stars"), "has no column 'stars'; its columns are text, label"),
    "wrong pair column": (_set("--text-pair-column", "other"), "has no column 'other'"),
    "no usual text column": (_file("--data", "data.csv", "x,label\na,1\n"), "give --text-column, one of x, label"),
    "no usual label column": (_file("--data", "data.csv", "text,y\na,1\n"), "give --label-column, one of text, y"),
    "empty text": (_file("--data", "data.csv", _rows(*_TWENTY, '"  ",1')), "row 61 has no text in column 'text'"),
    "missing label": (_file("--data", "data.csv", _rows(*_TWENTY, "a film,")), "row 61 has no label"),
    "one class only": (_file("--data", "data.csv", _rows(*(f"film {i},1" for i in range(60)))), "one class only"),
    "label not in the model's": (_file("--data", "data.csv", _rows(*_TWENTY, "film,7")), "label 7 is not among the model's labels"),
    "word label not in the model's": (_file("--data", "data.csv", _rows(*_TWENTY, "film,good")), "is not among the model's labels"),
    "validation missing": (_set("--validation", "/no/such.csv"), "data file /no/such.csv does not exist"),
    "test missing": (_set("--test", "/no/such.csv"), "data file /no/such.csv does not exist"),
    "unlabelled missing": (_set("--unlabeled", "/no/such.txt"), "--unlabeled /no/such.txt cannot be read"),
    "unlabelled empty": (_file("--unlabeled", "text.txt", "\n\n"), "has no text"),
    "unknown profile": (_set("--hardware", "cpu-2"), "unknown hardware profile 'cpu-2'"),
    "profile file missing": (_set("--hardware", "my.toml"), "hardware profile file my.toml does not exist"),
    "profile not TOML": (_file("--hardware", "p.toml", "= 3"), "not valid TOML"),
    "profile key unknown": (_file("--hardware", "p.toml", _PROFILE + "cores = 2\n"), "unknown key 'cores'"),
    "profile key missing": (_file("--hardware", "p.toml", _PROFILE.replace("threads = 1\n", "")), "missing key 'threads'"),
    "profile type wrong": (_file("--hardware", "p.toml", _PROFILE.replace("threads = 1", 'threads = "1"')), "must be of type int"),
    "profile out of range": (
        _file("--hardware", "p.toml", _PROFILE.replace("batch_size = 1", "batch_size = 0")),
        "batch_size is 0",
    ),
    "profile runtime unknown": (_file("--hardware", "p.toml", _PROFILE.replace("onnxruntime-cpu", "tpu")), "runtime is 'tpu'"),
    "profile longer than the model": (_set("--hardware", "cpu-1-thread-seq128"), "the model takes 64 tokens at most"),
    "unknown space": (_set("--space", "galaxy"), "unknown search space 'galaxy'"),
    "space file missing": (_set("--space", "my.toml"), "search space file my.toml does not exist"),
    "space section unknown": (_file("--space", "s.toml", "[colour]\nkeep = [1.0]\n"), "unknown setting 'colour.keep'"),
    "space key unknown": (_file("--space", "s.toml", "[heads]\nkept = [1.0]\n"), "unknown setting 'heads.kept'"),
    "space type wrong": (_file("--space", "s.toml", '[heads]\nkeep = ["all"]\n'), "heads.keep is 'all'"),
    "space range reversed": (_file("--space", "s.toml", "[heads]\nkeep = { low = 0.9, high = 0.1 }\n"), "range reversed"),
    "space range beyond": (_file("--space", "s.toml", "[heads]\nkeep = { low = 0.5, high = 1.5 }\n"), "high of the range"),
    "space empty": (_file("--space", "s.toml", 'description = "nothing"\n'), "names no setting"),
    "space corner outside": (_file("--space", "s.toml", "[ffn]\nkeep = [0.5]\n[[corners]]\nffn.keep = 1.0\n"), "outside the space"),
    "budget of zero": (_set("--max-latency", "0ms"), "--max-latency is '0ms': it must be more than zero"),
    "latency without unit": (_set("--max-latency", "3"), "give a number with its unit"),
    "latency in an unknown unit": (_set("--max-latency", "3min"), "give a number with its unit"),
    "speedup without unit": (_set("--min-speedup", "2"), "--min-speedup is '2': give a number with its unit (x), such as 2x"),
    "negative drop": (_set("--max-drop", "-1"), "max_drop is -1"),
    "drop not a number": (_set("--max-drop", "little"), "invalid float value: 'little'"),
    "no trials": (_set("--trials", "0"), "trials is 0: it must be at least 1"),
    "time limit without unit": (_set("--time-limit", "10"), "--time-limit is '10': give a number with its unit"),
    "time limit of zero": (_set("--time-limit", "0m"), "it must be more than zero"),
    "unknown sampler": (_set("--sampler", "oracle"), "unknown sampler 'oracle'; known are tpe, random"),
    "unknown option": (_set("--colour", "red"), "unrecognized arguments: --colour red"),
    "output holds another run": (_other_run, "holds another run: give --resume to go on with it"),
    "output is not empty": (_full_folder, "is not empty and holds no run"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_exit_2_and_writes_nothing(
    name: str, tiny_model: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "--model": str(tiny_model),
        "--task": "text-classification",
        "--data": str(data_file),
        "--hardware": "cpu-1-thread",
        "--space": "quantization-only",
        "--out": str(tmp_path / "run"),
    }
    change, message = MISTAKES[name]
    change(tmp_path, options)
    before = sorted(path for path in tmp_path.rglob("*"))
    code = main(["search", *(word for pair in options.items() for word in pair)])
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if not line.endswith("...")]
    assert len(errors) == 1, printed.err
    assert errors[0].startswith("autocompress: ")
    assert message in errors[0]
    assert printed.out == ""
    assert code == 2
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["front", "/no/such/run"], "holds no front.json"),
        (["pick", "/no/such/run", "--max-latency", "3ms"], "holds no front.json"),
        (["pick", "/no/such/run"], "one of the arguments --max-latency --min-speedup --min-quality --max-drop is required"),
        (["pick", "run", "--max-latency", "3ms", "--min-speedup", "2x"], "not allowed with argument"),
        (["export", "/no/such/run", "--trial", "t001", "--out", "x"], "holds no front.json"),
        (["report", "/no/such/run"], "holds no front.json"),
        (["measure", "/no/such/model", "--hardware", "cpu-1-thread"], "neither an .onnx file nor a folder"),
        (["profile", "show", "nothing"], "unknown hardware profile 'nothing'"),
        (["space", "show", "nothing"], "unknown search space 'nothing'"),
        (["space", "validate", "nothing.toml"], "does not exist"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_other_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]


def test_resuming_nothing(tiny_model: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(tiny_model), "--task", "text-classification", "--data", str(data_file), "--hardware", "cpu-1-thread"]
    assert main(["search", *options, "--space", "demo", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
