"""The commands on a finished run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from autocompress.cli import main
from autocompress.engine import search
from autocompress.pareto import load_front
from tests.conftest import SizeTimer


@pytest.fixture(scope="module")
def run(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "quantized"
    search(tiny_model, data_file, "cpu-1-thread", "quantization-only", out, timer=SizeTimer())
    return out


def test_front_prints_every_member(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", str(run)]) == 0
    printed = capsys.readouterr().out
    for member in load_front(run).members:
        assert f"{member.latency_ms.median:.2f}" in printed
        assert member.id in printed


def test_front_as_json_is_front_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "front.json").read_text())


def test_pick_by_each_limit_agrees_with_python(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    front = load_front(run)
    fastest = front.members[0]
    for option, value, limit in (
        ("--max-latency", f"{fastest.latency_ms.median * 1.001}ms", {"max_latency_ms": fastest.latency_ms.median * 1.001}),
        ("--min-speedup", f"{fastest.speedup * 0.999}x", {"min_speedup": fastest.speedup * 0.999}),
        ("--min-quality", "0.1", {"min_quality": 0.1}),
        ("--max-drop", "50", {"max_drop": 50.0}),
    ):
        assert main(["pick", str(run), option, value, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["id"] == front.pick(**limit).id


def test_a_request_that_nothing_meets_exits_1_and_names_the_nearest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", str(run), "--min-speedup", "99x"]) == 1
    nearest = load_front(run).members[0]
    assert f"the nearest is {nearest.id}, limited by its speedup" in capsys.readouterr().err


def test_export_copies_a_folder_that_runs_without_autocompress(run: Path, tmp_path: Path, data_file: Path) -> None:
    member = load_front(run).members[0]
    out = tmp_path / "mine"
    assert main(["export", str(run), "--trial", member.id, "--out", str(out)]) == 0
    script = (
        "import sys, onnxruntime, tokenizers\n"
        "folder, text = sys.argv[1:]\n"
        "encoded = tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json').encode(text)\n"
        "values = {'input_ids': encoded.ids, 'token_type_ids': encoded.type_ids, 'attention_mask': encoded.attention_mask}\n"
        "session = onnxruntime.InferenceSession(f'{folder}/model.onnx')\n"
        "print(session.run(None, {i.name: [values[i.name]] for i in session.get_inputs()})[0].tolist())\n"
        "assert not {'torch', 'transformers', 'autocompress'} & set(sys.modules)\n"
    )
    text = "a fine film"
    printed = subprocess.run([sys.executable, "-c", script, str(out), text], capture_output=True, text=True, check=True).stdout
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


def test_measure_an_exported_folder_a_transformers_folder_and_a_file(
    run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "quick.toml"
    profile.write_text(
        'description = "quick"\nruntime = "onnxruntime-cpu"\nthreads = 1\nbatch_size = 1\nsequence_length = 16\n'
        "final_seconds = 0.1\n"
    )
    for model in (run / "models/t000", tiny_model, run / "models/t000/model.onnx"):
        assert main(["measure", str(model), "--hardware", str(profile), "--json"]) == 0
        measured = json.loads(capsys.readouterr().out)
        latency = measured["latency_ms"]
        assert latency["basis"] == "measured"
        assert latency["n"] >= 30
        assert 0 < latency["ci95"][0] <= latency["median"] <= latency["ci95"][1]
        assert latency["median"] <= latency["p90"]


def test_report_is_one_file_that_needs_no_network(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script src" not in page
    assert "<link" not in page
    for member in load_front(run).members:
        assert f'id="row-{member.id}"' in page


def test_reading_commands_answer_without_torch(run: Path) -> None:
    for arguments in (["--help"], ["front", str(run)], ["pick", str(run), "--max-drop", "50"], ["space", "validate", "demo"]):
        code = (
            "import sys\nfrom autocompress.cli import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
            "sys.exit(len({'torch', 'transformers', 'onnxruntime', 'optuna', 'datasets'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0, arguments


def test_spaces_and_profiles_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "demo",
        "encoder",
        "quantization-only",
        "structure-only",
    ]
    assert main(["profile", "show", "cpu-1-thread-seq128"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["threads"], shown["batch_size"], shown["sequence_length"]) == (1, 1, 128)
    assert main(["space", "validate", "quantization-only"]) == 0
    assert capsys.readouterr().out == "quantization-only: valid, 2 settings, 1 corners\n"


def test_ctrl_c_leaves_a_front_and_a_run_that_goes_on(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    space, out = tmp_path / "space.toml", tmp_path / "run"
    space.write_text("[heads]\nkeep = [0.75, 0.5, 0.25]\n[recovery]\nsteps = 100000\n[[corners]]\nheads.keep = 0.5\n")
    request = ["--model", str(tiny_model), "--task", "text-classification", "--data", str(data_file), "--out", str(out)]
    command = [sys.executable, "-m", "autocompress", "search", *request, "--hardware", "cpu-1-thread", "--space"]
    with subprocess.Popen([*command, str(space)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("t000"):
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "autocompress: stopped; what was tried is kept, and the same command with --resume goes on"
    assert [member.id for member in load_front(out).members] == ["t000"]
    assert not load_front(out).verified
    other = subprocess.run([*command, "quantization-only", "--resume"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "--resume: space differs" in other.stderr
