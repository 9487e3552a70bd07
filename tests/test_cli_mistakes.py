"""Bad input: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autocompress import resources
from autocompress.cli import main

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

MISTAKES: dict[str, tuple[Change, str]] = {
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
        "unknown sampler 'oracle'; known are tpe, random",
    ),
    "unknown option": (_set("--colour", "red"), "unrecognized arguments: --colour red"),
    "output holds another run": (_other_run, "holds another run: give --resume to go on with it"),
    "output is not empty": (_full_folder, "is not empty and holds no run"),
}


NEED_NO_GPU = ("onnxruntime without CUDA", "no GPU for torch", "no GPU for the second device")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_exit_2_and_writes_nothing(
    name: str, tiny_model: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in NEED_NO_GPU and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    options: Options = {
        "--model": (str(tiny_model),),
        "--task": ("text-classification",),
        "--data": (str(data_file),),
        "--hardware": ("cpu-1-thread",),
        "--space": ("quantization-only",),
        "--out": (str(tmp_path / "run"),),
    }
    change, message = MISTAKES[name]
    change(tmp_path, options)
    before = sorted(path for path in tmp_path.rglob("*"))
    code = main(
        [
            "search",
            *(
                word
                for option, values in options.items()
                for value in values
                for word in (option, value)
            ),
        ]
    )
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
        (
            ["pick", "/no/such/run"],
            "give at least one limit of --max-latency, --min-speedup, --max-size, "
            "--min-compression, --min-quality, --max-perplexity, --max-drop",
        ),
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
            "device location 'board' is malformed; allowed is ssh://[user@]host[:port] or "
            "cmd:WRAPPER",
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
    ],
)
def test_other_commands(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_resuming_nothing(
    tiny_model: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--model",
        str(tiny_model),
        "--task",
        "text-classification",
        "--data",
        str(data_file),
        "--hardware",
        "cpu-1-thread",
    ]
    assert (
        main(["search", *options, "--space", "demo", "--out", str(tmp_path / "run"), "--resume"])
        == 2
    )
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_task_has_no_lengths_of_its_own(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", str(tiny_model), "--hardware", "cpu-1-thread-task"]) == 2
    assert capsys.readouterr().err == (
        "autocompress: hardware profile cpu-1-thread-task: sequence_length is 'task', and there "
        "is no task here; "
        "extend the profile with a number\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "name", [name for name in resources.names("hw_profiles") if name.startswith("gpu-cuda")]
)
def test_measured_on_a_gpu_that_is_not_there(
    name: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", str(tiny_model), "--hardware", name]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"autocompress: hardware profile {name}: torch-cuda needs an NVIDIA GPU, "
    )
