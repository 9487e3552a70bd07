"""The commands on a finished run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from autocompress import resources
from autocompress.artifact import annotate, facts, load_model
from autocompress.candidate import thaw
from autocompress.cli import main
from autocompress.engine import session
from autocompress.engine.request import Request
from autocompress.errors import RequestUnmet, UserError
from autocompress.files import sha256
from autocompress.hardware.profile import HardwareProfile
from autocompress.journal import Run
from autocompress.limits import Limits
from autocompress.pareto import load_front, load_fronts
from autocompress.searching import search
from autocompress.techniques import SETTINGS
from tests.conftest import SizeDevice
from tests.searching import space
from tests.test_several_devices import BOTH, DEPTH, Farm


@pytest.fixture(scope="module")
def run(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "quantized"
    search(tiny_model, data_file, "cpu-1-thread", "quantization-only", out, connect=SizeDevice)
    return out


@pytest.fixture(scope="module")
def pair(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two devices, ``cpu-1-thread`` and ``old``, whose fastest models differ."""
    out = tmp_path_factory.mktemp("runs") / "pair"
    search(tiny_model, data_file, BOTH, space(DEPTH), out, trials=3, connect=Farm())
    return out


@pytest.fixture(scope="module")
def old(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as versions before students wrote it: a line for each trial, candidates with all
    their settings, models that name their sizes alone."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("runs") / "old"))
    shutil.rmtree(folder / "students")
    (folder / "events.jsonl").unlink()
    (folder / "report.html").unlink()

    def older(record: dict[str, Any], *unknown: str) -> dict[str, Any]:
        active = SETTINGS.candidate(record["candidate"]).active
        kept = {name: value for name, value in record.items() if name not in unknown}
        return kept | {"candidate": {name: thaw(value) for name, value in active.items()}}

    trials = [older(asdict(trial), "student", "asked") for trial in Run(run).trials()]
    (folder / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    described = json.loads((run / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(described | {"schema": 1}))
    [front] = json.loads((run / "front.json").read_text())["fronts"]
    front |= {
        "baseline": older(front["baseline"]),
        "members": [older(member) for member in front["members"]],
    }
    del front["objectives"], front["size_hypervolume"]
    (folder / "front.json").write_text(json.dumps({"schema": 2, "fronts": [front]}))
    for model in (folder / "models").iterdir():
        config = json.loads((model / "config.json").read_text())
        sizes = {"family": config["plan"]["family"], "sizes": facts(model)["sizes"]}
        (model / "config.json").write_text(
            json.dumps({key: value for key, value in config.items() if key != "plan"} | sizes)
        )
        hashes = facts(model)["sha256"] | {"config.json": sha256(model / "config.json")}
        annotate(model, {"sha256": hashes})
    return folder


def test_a_run_of_an_earlier_version_is_read(
    old: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [replace(trial, student=None, asked=None) for trial in Run(run).trials()] == [
        replace(trial, candidate=SETTINGS.candidate(trial.candidate).as_dict())
        for trial in Run(old).trials()
    ]
    printed = {}
    for folder in (run, old):
        assert main(["front", str(folder)]) == 0
        assert main(["pick", str(folder), "--max-latency", "1s"]) == 0
        printed[folder] = capsys.readouterr().out
    assert printed[old] == printed[run].replace(str(run), str(old))
    best = load_front(run).pick(max_latency_ms=1000.0)
    out = tmp_path / "model"
    words = ["--trial", best.id, "--with-weights", "--out", str(out)]
    assert main(["export", str(old), *words]) == 0
    here, there = (load_model(folder).state_dict() for folder in (out, run / best.path))
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert main(["report", str(old)]) == 0
    assert f'id="row-0-{best.id}"' in (old / "report.html").read_text(encoding="utf-8")


def test_a_run_of_an_earlier_version_is_not_gone_on_with(
    old: Path, tiny_model: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ["--model", str(tiny_model), "--data", str(data_file), "--out", str(old)]
    request += ["--hardware", "cpu-1-thread", "--space", "quantization-only", "--resume"]
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    assert main(["search", "--task", "text-classification", *request]) == 2
    [*_, said] = capsys.readouterr().err.splitlines()
    assert said == (
        f"autocompress: --resume: the run in {old} is of an earlier version (schema 1, this one "
        "writes 4): its models can be picked and exported, but it cannot be gone on with"
    )
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before


def test_front_prints_every_member(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", str(run)]) == 0
    printed = capsys.readouterr().out
    for member in load_front(run).members:
        assert f"{member.latency_ms.value:.2f}" in printed
        assert member.id in printed


def test_front_as_json_is_front_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "front.json").read_text())


def test_pick_by_each_limit_agrees_with_python(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = load_front(run)
    slow, least = (
        front.members[0].latency_ms.interval[1] * 1.001,
        front.members[0].timing.speedup_interval[0] * 0.999,
    )
    limits: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("--max-latency", f"{slow}ms", {"max_latency_ms": slow}),
        ("--min-speedup", f"{least}x", {"min_speedup": least}),
        ("--min-quality", "0.1", {"min_quality": 0.1}),
        ("--max-drop", "50", {"max_drop": 50.0}),
        ("--max-size", "3MB", {"max_bytes": 3e6}),
        ("--min-compression", "1.5x", {"min_compression": 1.5}),
    )
    for option, value, limit in limits:
        assert main(["pick", str(run), option, value, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["id"] == front.pick(**limit).id


def test_pick_export_and_python_choose_alike_at_a_confidence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit lies where the fastest model holds it without a margin, and not with one."""
    run = shutil.copytree(run, tmp_path / "run")
    value = json.loads((run / "front.json").read_text(encoding="utf-8"))
    value["fronts"][0]["members"][0]["quality"]["drop_validation_stderr"] = 1.0
    (run / "front.json").write_text(json.dumps(value), encoding="utf-8")
    front = load_front(run)
    fastest = front.members[0]
    limit = fastest.quality.drop_validation + 0.5 * front.margin(fastest)
    picked = []
    for confidence in (0.5, 0.9):
        out = tmp_path / f"at-{confidence}"
        words = [str(run), f"--max-drop={limit}", "--confidence", f"{confidence}"]
        try:
            best = front.pick(max_drop=limit, confidence=confidence)
        except RequestUnmet:
            assert main(["pick", *words]) == main(["export", *words, "--out", str(out)]) == 1
            assert "limited by its drop" in capsys.readouterr().err
            continue
        picked.append(best.id)
        assert main(["pick", *words]) == main(["export", *words, "--out", str(out)]) == 0
        q, margin = best.quality, front.margin(best, confidence)
        line = (
            f"accuracy {q.test:.4f} (drop {q.drop_test:.2f} points) unbiased on test, chosen on "
            f"validation by drop {q.drop_validation:.2f} points, margin {margin:.2f}, "
        )
        assert capsys.readouterr().out.count(line) == 2
    assert picked[0] == fastest.id and picked[1:] != [fastest.id]


def test_several_limits_together(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--max-size", "3MB", "--max-drop", "50", "--min-speedup", "1.1x"]
    assert main(["pick", str(run), *limits, "--json"]) == 0
    best = load_front(run).pick(max_bytes=3e6, max_drop=50.0, min_speedup=1.1)
    assert json.loads(capsys.readouterr().out)["id"] == best.id
    assert main(["pick", str(run), "--max-size", "3MB", "--min-quality", "0.99"]) == 1
    assert "limited by its quality: " in capsys.readouterr().err


def test_a_request_that_nothing_meets_exits_1_and_names_the_nearest(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pick", str(run), "--min-speedup", "99x"]) == 1
    nearest = load_front(run).members[0]
    assert f"the nearest is {nearest.id}, limited by its speedup" in capsys.readouterr().err


def test_export_copies_a_folder_that_runs_without_autocompress(
    run: Path, tmp_path: Path, data_file: Path
) -> None:
    member = load_front(run).members[0]
    out = tmp_path / "mine"
    assert main(["export", str(run), "--trial", member.id, "--out", str(out)]) == 0
    script = (
        "import sys, onnxruntime, tokenizers\n"
        "folder, text = sys.argv[1:]\n"
        "encoded = tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json').encode(text)\n"
        "values = {'input_ids': encoded.ids, 'token_type_ids': encoded.type_ids, "
        "'attention_mask': encoded.attention_mask}\n"
        "session = onnxruntime.InferenceSession(f'{folder}/model.onnx')\n"
        "print(session.run(None, {i.name: [values[i.name]] for i in "
        "session.get_inputs()})[0].tolist())\n"
        "assert not {'torch', 'transformers', 'autocompress'} & set(sys.modules)\n"
    )
    text = "a fine film"
    printed = subprocess.run(
        [sys.executable, "-c", script, str(out), text], capture_output=True, text=True, check=True
    ).stdout
    from transformers import AutoTokenizer

    inputs = dict(AutoTokenizer.from_pretrained(run / "tokenizer")([text], return_tensors="np"))
    expected = onnxruntime.InferenceSession(run / member.path / "model.onnx").run(None, inputs)[0]
    np.testing.assert_allclose(json.loads(printed), expected, atol=1e-6)


def test_export_takes_the_options_of_pick_and_never_overwrites(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    assert main(["export", str(run), "--max-drop", "100", "--out", str(out)]) == 0
    chosen = load_front(run).pick(max_drop=100)
    assert json.loads((out / "autocompress.json").read_text())["candidate"] == chosen.candidate
    capsys.readouterr()
    assert main(["export", str(run), "--max-drop", "100", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(run), "--trial", "t999", "--out", str(tmp_path / "other")]) == 2
    assert "'t999' is not in the front" in capsys.readouterr().err


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run that may be damaged, and the folder of one of its models."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    return copy, copy / load_front(copy).members[0].path


def _link_out(file: Path) -> None:
    """The same bytes, outside of the run."""
    file.rename(file.parents[3] / "outside")
    file.symlink_to(file.parents[3] / "outside")


def _record(name: str, digest: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "autocompress.json"
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"sha256": {name: digest}}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.onnx").unlink(), "no longer holds the files of"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is no file that autocompress"),
        (
            lambda f: (f / "tokenizer.json").write_text("{}"),
            "tokenizer.json is damaged: its sha",
        ),
        (lambda f: (f / "autocompress.json").unlink(), "autocompress.json is missing or damaged: "),
        (lambda f: (f / "autocompress.json").write_text("[]"), "json is missing or damaged: "),
        (lambda f: _link_out(f / "config.json"), "config.json is no file that autocompress wrote"),
        (lambda f: _link_out(f / "autocompress.json"), "autocompress.json is no file that auto"),
        (_link_out, "lies outside of the run"),
        (_record("../t000/model.onnx", "0"), "../t000/model.onnx is no file that autocompress"),
        (_record("/etc/hostname", "0"), "/etc/hostname is no file that autocompress wrote there"),
        (_record("..", "0"), "is no file that autocompress wrote there"),
        (_record("model.onnx", 0), "model.onnx is damaged: its sha256"),
    ],
)
def test_a_damaged_model_is_not_exported(
    damage: Callable[[Path], None],
    message: str,
    copied: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, folder = copied
    damage(folder)
    mine = run.parent / "new" / "mine"
    assert main(["export", str(run), "--trial", folder.name, "--out", str(mine)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not mine.parent.exists()


@pytest.mark.parametrize("path", ["../outside", "/absolute", "models/../../outside"])
def test_only_what_is_in_the_run_is_exported(
    path: str, copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole model, but elsewhere."""
    run, folder = copied
    elsewhere = run.parent / "outside"
    folder.rename(elsewhere)
    told = json.loads((run / "front.json").read_text())
    told["fronts"][0]["members"][0]["path"] = path.replace("/absolute", str(elsewhere))
    (run / "front.json").write_text(json.dumps(told))
    mine = run.parent / "mine"
    assert main(["export", str(run), "--trial", folder.name, "--out", str(mine)]) == 2
    printed = capsys.readouterr().err
    assert f"{folder.name} lies outside of the run" in printed and printed.count("\n") == 1
    assert not mine.exists()


def test_what_others_put_into_a_model_folder_is_not_exported(
    copied: tuple[Path, Path], tmp_path: Path
) -> None:
    run, folder = copied
    before = {file.name for file in folder.iterdir()}
    (folder / "notes.txt").write_text("mine")
    mine = tmp_path / "mine"
    assert main(["export", str(run), "--trial", folder.name, "--out", str(mine)]) == 0
    assert {file.name for file in mine.iterdir()} == before - {"model.safetensors"} | {"README.md"}


def test_the_front_of_one_device_or_of_all(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fronts = load_fronts(pair)
    assert main(["front", str(pair), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((pair / "front.json").read_text())
    assert main(["front", str(pair), "--json", "--hardware", "old"]) == 0
    [shown] = json.loads(capsys.readouterr().out)["fronts"]
    assert shown == json.loads(json.dumps(fronts["old"].as_dict()))
    assert main(["front", str(pair)]) == 0
    printed = capsys.readouterr().out
    for name, front in fronts.items():
        assert f"{len(front.members)} models on {name} (accuracy on test)" in printed
    assert main(["front", str(pair), "--hardware", "old"]) == 0
    printed = capsys.readouterr().out
    assert "models on old" in printed and "models on cpu-1-thread" not in printed


def test_pick_and_export_for_one_of_two_devices(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fronts = load_fronts(pair)
    picked = {}
    for options, name in (
        ([], "cpu-1-thread"),
        (["--hardware", "cpu-1-thread"], "cpu-1-thread"),
        (["--hardware", "old"], "old"),
    ):
        assert main(["pick", str(pair), "--min-speedup", "2.4x", "--json", *options]) == 0
        picked[name] = json.loads(capsys.readouterr().out)
        best = fronts[name].pick(min_speedup=2.4)
        assert (picked[name]["id"], picked[name]["timing"]["speedup"]) == (best.id, best.speedup)
    assert picked["old"]["id"] != picked["cpu-1-thread"]["id"]
    out = tmp_path / "mine"
    assert (
        main(["export", str(pair), "--min-speedup", "2.4x", "--hardware", "old", "--out", str(out)])
        == 0
    )
    assert facts(out)["candidate"] == picked["old"]["candidate"]
    capsys.readouterr()
    assert main(["pick", str(pair), "--min-speedup", "2.4x", "--hardware", "phone"]) == 2
    assert (
        capsys.readouterr().err
        == f"autocompress: --hardware phone: {pair} has fronts for cpu-1-thread, old\n"
    )


def test_the_export_that_pick_proposes_is_of_the_model_it_names(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the model is not on the front of the first device."""
    monkeypatch.chdir(tmp_path)
    best = load_fronts(pair)["old"].pick(min_speedup=2.4)
    assert main(["pick", str(pair), "--min-speedup", "2.4x", "--hardware", "old"]) == 0
    line, proposed = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{best.id}: ")
    [command] = re.findall(r"export: autocompress (export .*)", proposed)
    assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert facts(tmp_path / "my-model")["candidate"] == best.candidate


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "run.json",
            "",
            "run.json is missing or damaged: JSONDecodeError('Expecting value: line 1",
        ),
        ("run.json", "[]", "run.json is missing or damaged: "),
        ("run.json", '{"schema": 2}', "run.json is missing or damaged: KeyError('inputs')"),
        ("events.jsonl", "\n\n", "events.jsonl, line 1 is damaged: "),
    ],
)
def test_a_damaged_run_is_no_surprise(
    name: str,
    content: str,
    message: str,
    copied: tuple[Path, Path],
    tiny_model: Path,
    data_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To read its front takes neither file; to report or to go on takes both."""
    run, _ = copied
    original = session.search_for
    monkeypatch.setattr(
        session, "search_for", lambda request, listener: original(request, listener, SizeDevice)
    )
    (run / name).write_text(content)
    words = ["--model", str(tiny_model), "--task", "text-classification", "--data", str(data_file)]
    words += ["--hardware", "cpu-1-thread", "--space", "quantization-only", "--out", str(run)]
    assert main(["front", str(run)]) == 0
    assert main(["pick", str(run), "--max-drop", "100"]) == 0
    capsys.readouterr()
    for command in (["report", str(run)], ["search", *words, "--resume"]):
        assert main(command) == 2
        last_line = capsys.readouterr().err.splitlines()[-1]
        assert last_line.startswith("autocompress: ") and message in last_line
    assert (run / name).read_text() == content


ODD = "x [/b] [red] it's :smile: & $HOME"
"""As a path it means something to rich, and to a shell."""


def test_what_the_user_names_is_printed_as_it_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And as one word of the commands that are proposed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, ODD)
    told = json.loads(Path(ODD, "front.json").read_text())
    told["fronts"][0]["hardware"]["name"] = ODD
    Path(ODD, "front.json").write_text(json.dumps(told))
    assert main(["front", ODD]) == 0
    assert f"models on {ODD} (accuracy" in capsys.readouterr().out
    assert main(["pick", ODD, "--max-drop", "100", "--hardware", ODD]) == 0
    [command] = re.findall(r"export: autocompress (export .*)", capsys.readouterr().out)
    words = shlex.split(command)
    assert words[1:4] == [ODD, "--hardware", ODD]
    assert main([*words[:-1], f"{ODD} too"]) == 0
    assert capsys.readouterr().out.endswith(f"\nwrote {ODD} too\n")
    assert main(["export", ODD, "--trial", ODD, "--out", "mine"]) == 2
    assert f"trial {ODD!r} is not in the front" in capsys.readouterr().err


def test_a_search_into_an_odd_folder_ends_well(
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    original = session.search_for
    monkeypatch.setattr(
        session, "search_for", lambda request, listener: original(request, listener, SizeDevice)
    )
    words = ["--model", str(tiny_model), "--task", "text-classification", "--data", str(data_file)]
    words += ["--hardware", "cpu-1-thread", "--space", "quantization-only", "--trials", "1"]
    assert main(["search", *words, "--out", ODD]) == 0
    report, choose = capsys.readouterr().out.splitlines()[-2:]
    assert report == f"report: {ODD}/report.html"
    command = shlex.split(choose.removeprefix("choose: autocompress "))
    assert command == ["pick", ODD, "--min-speedup", "3x"]  # the fastest gains 3.8x
    assert main(command) == 0


def test_a_limit_within_the_interval_is_refused_but_for_allow_tie(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fastest = load_front(run).members[0]
    latency, speedup = fastest.latency_ms.value, fastest.speedup
    for limit, value, (low, high), unit in (
        (["--max-latency", f"{latency * 1.001}ms"], latency, fastest.latency_ms.interval, " ms"),
        (["--min-speedup", f"{speedup * 0.999}x"], speedup, fastest.timing.speedup_interval, "x"),
    ):
        assert main(["pick", str(run), *limit]) == 1
        assert capsys.readouterr().err == (
            f"autocompress: {fastest.id} meets the request at {value:.3g}{unit}, but its interval "
            f"({low:.3g} to {high:.3g}{unit}) "
            "crosses it; --allow-tie takes it\n"
        )
        assert main(["pick", str(run), *limit, "--allow-tie", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["id"] == fastest.id
    out = tmp_path / "mine"
    limit = ["--max-latency", f"{fastest.latency_ms.value * 1.001}ms"]
    assert main(["export", str(run), *limit, "--out", str(out)]) == 1
    assert not out.exists()
    assert main(["export", str(run), *limit, "--out", str(out), "--allow-tie"]) == 0
    assert facts(out)["candidate"] == fastest.candidate


def words(limits: str, hardware: tuple[str, ...] = ("cpu-1-thread", "cpu-all-cores")) -> list[str]:
    """A search's command line, of a model that is not there."""
    request = (
        "search --model m --task text-classification --data d.csv --space demo --out /no/such/run"
    )
    return [
        *request.split(),
        *(word for name in hardware for word in ("--hardware", name)),
        *limits.split(),
    ]


@pytest.mark.parametrize(
    ("limits", "first", "second"),
    [
        ("", Limits(), Limits()),
        ("--max-latency 3ms", Limits(max_latency_ms=3.0), Limits(max_latency_ms=3.0)),
        (
            "--max-latency cpu-1-thread=3ms --max-latency cpu-all-cores=0.02s",
            Limits(max_latency_ms=3.0),
            Limits(max_latency_ms=20.0),
        ),
        (
            "--max-latency 5ms --max-latency cpu-all-cores=20ms",
            Limits(max_latency_ms=5.0),
            Limits(max_latency_ms=20.0),
        ),
        (
            "--max-latency cpu-all-cores=20ms --max-latency 5ms",
            Limits(max_latency_ms=5.0),
            Limits(max_latency_ms=20.0),
        ),
        ("--min-speedup cpu-1-thread=2x", Limits(min_speedup=2.0), Limits()),
        (
            "--min-speedup cpu-1-thread=2x --max-latency cpu-all-cores=20ms",
            Limits(min_speedup=2.0),
            Limits(max_latency_ms=20.0),
        ),
        (
            "--max-drop 1.5 --max-latency cpu-all-cores=20ms",
            Limits(max_drop=1.5),
            Limits(max_drop=1.5, max_latency_ms=20.0),
        ),
        (
            "--max-drop 1.5 --confidence 0.8 --min-speedup cpu-1-thread=2x",
            Limits(max_drop=1.5, confidence=0.8, min_speedup=2.0),
            Limits(max_drop=1.5, confidence=0.8),
        ),
        (
            "--max-size 10MB --min-compression 8x --min-speedup cpu-1-thread=2x",
            Limits(max_bytes=10e6, min_compression=8.0, min_speedup=2.0),
            Limits(max_bytes=10e6, min_compression=8.0),
        ),
    ],
)
def test_limits_of_single_devices(
    limits: str, first: Limits, second: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def record(request: Request, listener: object) -> None:
        asked.append(request)
        raise UserError("recorded")

    monkeypatch.setattr(session, "search_for", record)
    assert main(words(limits)) == 2
    [request] = asked
    assert [profile.name for profile in request.hardware] == ["cpu-1-thread", "cpu-all-cores"]
    assert [request.budget_on(profile.name) for profile in request.hardware] == [first, second]


@pytest.mark.parametrize(
    ("options", "space_says", "resolved"),
    [
        ("", None, ("latency", "quality")),
        ("", ["quality", "size"], ("quality", "size")),
        ("--objectives size,quality,latency", None, ("latency", "quality", "size")),
        ("--objectives latency,quality", ["quality", "size"], ("latency", "quality")),
    ],
)
def test_objectives_of_the_command_come_before_those_of_the_space(
    options: str,
    space_says: list[str] | None,
    resolved: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Request] = []

    def record(request: Request, listener: object) -> None:
        asked.append(request)
        raise UserError("recorded")

    monkeypatch.setattr(session, "search_for", record)
    named = f"objectives = {json.dumps(space_says)}\n" if space_says else ""
    (tmp_path / "s.toml").write_text(f"{named}[heads]\nkeep = [0.5]\n")
    given = words(options)
    given[given.index("--space") + 1] = str(tmp_path / "s.toml")
    assert main(given) == 2
    [request] = asked
    assert request.all_objectives == resolved


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            "--max-latency phone=3ms",
            "a limit is set for phone, which is not among the hardware profiles cpu-1-thread, "
            "cpu-all-cores",
        ),
        ("--max-latency 3ms --max-latency 4ms", "--max-latency is given twice"),
        (
            "--max-latency cpu-1-thread=3ms --max-latency cpu-1-thread=4ms",
            "--max-latency is given twice for cpu-1-thread",
        ),
        (
            "--min-speedup cpu-1-thread=3x --min-speedup cpu-1-thread=3x",
            "--min-speedup is given twice for cpu-1-thread",
        ),
        (
            "--max-latency 3ms --min-speedup 2x",
            "give --max-latency or --min-speedup, not both for one device",
        ),
        (
            "--max-latency cpu-1-thread=3ms --min-speedup cpu-1-thread=2x",
            "give --max-latency or --min-speedup, not both for one device",
        ),
        (
            "--max-latency 3ms --min-speedup cpu-1-thread=2x",
            "give --max-latency or --min-speedup, not both for one device",
        ),
        (
            "--max-latency cpu-1-thread=3",
            "--max-latency is '3': give a number with its unit (us, ms, s), such as 3ms",
        ),
        (
            "--max-latency cpu-1-thread=",
            "--max-latency is '': give a number with its unit (us, ms, s), such as 3ms",
        ),
        (
            "--min-speedup cpu-1-thread=2ms",
            "--min-speedup is '2ms': give a number with its unit (x), such as 2x",
        ),
    ],
)
def test_mistakes_in_limits_of_single_devices(
    limits: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(limits)) == 2
    assert capsys.readouterr().err == f"autocompress: {message}\n"


def test_a_search_on_two_devices_from_the_command_line(
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = session.search_for
    monkeypatch.setattr(
        session, "search_for", lambda request, listener: original(request, listener, Farm())
    )
    (tmp_path / "old.toml").write_text('extends = "cpu-1-thread"\n')
    (tmp_path / "space.toml").write_text(
        '[layers]\nkeep = [1.0, 0.5]\n[quantization]\nscheme = ["fp32", "int8-dynamic"]\n'
    )
    options = {
        "--model": tiny_model,
        "--task": "text-classification",
        "--data": data_file,
        "--space": tmp_path / "space.toml",
        "--out": tmp_path / "run",
        "--max-latency": "old=3.5ms",
        "--trials": 1,
    }
    request = [str(word) for pair in options.items() for word in pair]
    assert (
        main(
            [
                "search",
                *request,
                "--hardware",
                "cpu-1-thread",
                "--hardware",
                str(tmp_path / "old.toml"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    fronts = load_fronts(tmp_path / "run")
    assert list(fronts) == ["cpu-1-thread", "old"]
    for name, front in fronts.items():
        assert f"{len(front.members)} models on {name} (accuracy on test)" in printed.out
    assert "latency foretold on old: " in printed.out
    assert [member.latency_ms.value for member in fronts["old"].members] == [3.0]
    [baseline] = [line for line in printed.err.splitlines() if line.startswith("t000")]
    score = fronts["cpu-1-thread"].baseline
    assert (
        f"baseline: {score.quality.validation:.4f} (+0.0 points)  {score.latency_ms.value:.2f} ms "
        f" 1.00x  5.00 ms  1.00x" in baseline
    )


def test_report_is_one_file_that_needs_no_network(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script src" not in page
    assert "<link" not in page
    for member in load_front(run).members:
        assert f'id="row-0-{member.id}"' in page


def test_reading_commands_answer_without_torch(run: Path) -> None:
    for arguments in (
        ["--help"],
        ["front", str(run)],
        ["pick", str(run), "--max-drop", "50"],
        ["space", "validate", "demo"],
        ["recipe", "show", "distilgpt2"],
        ["profile", "list"],
        ["profile", "show", "gpu-cuda"],
    ):
        code = (
            "import sys\nfrom autocompress.cli import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
            "sys.exit(len({'torch', 'transformers', 'onnxruntime', 'optuna', 'datasets'} & "
            "set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0, (
            arguments
        )


def test_settings_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "settings"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "layers.keep = 1.0\n    share of the layers kept, or the list of them\n    a share more "
        "than 0 and "
    )
    assert [line.split(" = ")[0] for line in printed.splitlines() if not line.startswith(" ")] == [
        s.name for s in SETTINGS
    ]


def test_the_keys_of_a_profile_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "settings"]) == 0
    printed = capsys.readouterr().out
    names = [line.split(" = ")[0] for line in printed.splitlines() if not line.startswith(" ")]
    required = ["description", "class", "runtime", "batch_size", "sequence_length"]
    peaks = ["gops", "memory_gb_per_s", "overhead_us", "efficiency"]
    assert names[:5] == [f"{name}, required" for name in required]
    assert names[-4:] == [f"peaks.{name}, required" for name in peaks]
    shown = HardwareProfile.load("cpu-1-thread").as_dict()
    assert [*required, *names[5:-4]] == [key for key in shown if key != "name"]
    assert "threads = 1\n    intra-op threads\n    a whole number from 0 (all cores)" in printed
    assert "\nphase\n" in printed and "\nprecisions\n" in printed  # what is not given


def test_spaces_and_profiles_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "decoder",
        "decoder-depth",
        "decoder-truncation",
        "demo",
        "encoder",
        "encoder-small",
        "quantization-only",
        "structure-only",
    ]
    assert main(["profile", "show", "cpu-1-thread-seq128"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["class"], shown["threads"], shown["batch_size"], shown["sequence_length"]) == (
        "cpu",
        1,
        1,
        128,
    )
    assert main(["profile", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == resources.names("hw_profiles")
    assert f"{'gpu-h200':24} {HardwareProfile.load('gpu-h200').description}" in listed
    assert main(["space", "validate", "quantization-only"]) == 0
    assert capsys.readouterr().out == "quantization-only: valid, 2 settings, 0 corners\n"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_a_front_and_a_run_that_goes_on(
    stop: signal.Signals,
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    space, out = tmp_path / "space.toml", tmp_path / "run"
    space.write_text(
        "[heads]\nkeep = [0.75, 0.5, 0.25]\n[recovery]\nsteps = 100000\n[[corners]]\nheads.keep = "
        "0.5\n"
    )
    request = [
        "--model",
        str(tiny_model),
        "--task",
        "text-classification",
        "--data",
        str(data_file),
        "--out",
        str(out),
    ]
    command = [
        sys.executable,
        "-m",
        "autocompress",
        "search",
        *request,
        "--hardware",
        "cpu-1-thread",
        "--space",
    ]

    def heard() -> None:
        """Also where the tests run in a background that ignores Ctrl-C."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [*command, str(space)], stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("t000"):
                break
        time.sleep(1)
        process.send_signal(stop)
        said = process.stderr.read()
    assert process.returncode == 130
    assert (
        said.splitlines()[-1] == "autocompress: stopped; what was tried is kept, "
        "and the same command with --resume goes on"
    )
    assert [member.id for member in load_front(out).members] == ["t000"]
    assert not load_front(out).verified
    assert main([*command[3:], "quantization-only", "--resume"]) == 2
    assert "--resume: space differs" in capsys.readouterr().err
