"""What the commands take, and what they take where they are not told."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import autocompress
from autocompress import searching
from autocompress.arguments import parser
from autocompress.cli import main
from autocompress.engine import defaults, session
from autocompress.engine.request import Request
from autocompress.errors import UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.search_space import SearchSpace


def commands(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield of
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


def test_every_option_says_what_it_is_and_its_default() -> None:
    for command in commands(parser()):
        for action in command._actions:
            if not action.option_strings or action.help == argparse.SUPPRESS:
                continue
            assert action.help, (command.prog, action.dest)
            if action.nargs != 0 and not action.required:
                printed = command._get_formatter()._expand_help(action)
                assert "default: " in printed, (command.prog, action.dest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serach", "invalid choice: 'serach' (did you mean 'search'?)"),
        ("space lst", "invalid choice: 'lst' (did you mean 'list'?)"),
        ("search --modle m", "unrecognized arguments: --modle (did you mean '--model'?)"),
        ("search --model m --data d --space encodre", "'encodre' (did you mean 'encoder'?)"),
        ("measure m --hardware cpu-1-tread", "(did you mean 'cpu-1-thread'?)"),
        ("recipe show bert_pkd", "(did you mean 'bert-pkd'?)"),
        ("search --model m --data d --space demo --task text-clasification", "(did you mean '"),
    ],
)
def test_a_name_that_is_nearly_right_is_guessed(
    words: str, message: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiny_model) if word == "m" else word for word in words.split()]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_a_name_that_is_like_no_other_is_told_all_there_are(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("[depth]\nkeep = 0.5\n")
    with pytest.raises(UserError, match=r"unknown setting 'depth.keep'; known are layers.keep, "):
        SearchSpace.load(str(file))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What searches were asked, none of which was begun."""
    requests: list[Request] = []

    def record(request: Request, *_: Any) -> None:
        requests.append(request)
        raise UserError("recorded")

    monkeypatch.setattr(session, "search_for", record)
    return requests


def test_a_model_and_data_are_enough(
    asked: list[Request],
    tiny_model: Path,
    tiny_gpt2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for model, task, space in (
        (tiny_model, "text-classification", "encoder"),
        (tiny_gpt2, "language-modeling", "decoder"),
    ):
        words = ["search", "--model", str(model), "--data", "d.csv"]
        assert main(words) == 2
        out = f"runs/{model.name}-1"
        taken = f"--task {task} --space {space} --hardware cpu-1-thread-task --out {out}"
        assert f"not given, and taken: {taken}" in capsys.readouterr().err
        with pytest.raises(UserError, match="recorded"):
            searching.search(model, "d.csv")
        for request in asked[-2:]:
            assert (request.task, request.space.name, str(request.out)) == (task, space, out)
            assert [profile.name for profile in request.hardware] == ["cpu-1-thread-task"]
        Path(out).mkdir(parents=True)
        assert main([*words, "--resume", "--quiet"]) == main([*words, "--space", "demo"]) == 2
        assert [str(one.out) for one in asked[-2:]] == [out, f"runs/{model.name}-2"]
        assert asked[-1].space.name == "demo"
        assert "--space" not in capsys.readouterr().err


def test_a_large_decoder_is_cut_in_depth_alone(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "SMALL_DECODER", 1000)
    assert defaults.of_model(str(tiny_gpt2)) == ("language-modeling", "decoder-depth")
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    for head, task in (
        ("GPT2ForSequenceClassification", "text-classification"),
        ("GPT2Model", None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [head]}))
        if task:
            assert defaults.of_model(str(tmp_path)) == (task, "decoder-depth")
        else:
            with pytest.raises(UserError, match="no head that tells its task: give --task"):
                defaults.of_model(str(tmp_path))


def test_init_writes_what_a_search_takes(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["init", "--model", str(tiny_model), "--out", str(tmp_path / "mine")]
    assert main(words) == 0
    space, profile = (str(tmp_path / "mine" / name) for name in ("space.toml", "profile.toml"))
    assert f"--space {space} --hardware {profile}" in capsys.readouterr().out
    shipped = SearchSpace.load("encoder").as_dict()
    assert SearchSpace.load(space).as_dict() == shipped | {"name": "space"}
    own, usual = (HardwareProfile.load(name).as_dict() for name in (profile, "cpu-1-thread-task"))
    told = {"name": "profile", "description": "my device"}
    assert {key: own[key] for key in usual} == usual | told
    commented = Path(profile).read_text().replace("# threads = 1", "threads = 2")
    Path(profile).write_text(commented)
    assert HardwareProfile.load(profile).threads == 2
    assert main(words) == 2
    assert "space.toml exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("autocompress sea", ["search"]),
        ("autocompress space val", ["validate"]),
        ("autocompress pick run --max-l", ["--max-latency"]),
        ("autocompress search --model m --fine", ["--finetune"]),
    ],
)
def test_bash_completes(typed: str, offered: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 0
    script = capsys.readouterr().out
    words = typed.split()
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _autocompress"
    told = subprocess.run(
        [str(shutil.which("bash")), "-c", f'{script}\n{ask}; echo "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == offered


def test_the_public_names() -> None:
    assert autocompress.__all__ == [
        "AutocompressError",
        "Candidate",
        "Columns",
        "DeviceLost",
        "Front",
        "HardwareProfile",
        "Limits",
        "Member",
        "Recipe",
        "RequestUnmet",
        "SearchFailed",
        "SearchResult",
        "SearchSpace",
        "UserError",
        "load_front",
        "load_fronts",
        "load_model",
        "search",
        "write_report",
    ]
    for name in autocompress.__all__:
        assert getattr(autocompress, name).__name__ == name


def test_search_is_imported_without_what_it_needs_later() -> None:
    heavy = {"torch", "transformers", "optuna", "onnxruntime", "datasets", "pandas", "plotly"}
    code = f"import sys\nfrom autocompress import search\nprint({heavy} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def test_a_system_without_fcntl_is_told_where_a_lock_is_wanted() -> None:
    code = (
        "import sys\nsys.modules['fcntl'] = None\n"
        "from autocompress import cores, cli, searching, verbs\n"
        "from autocompress.errors import UserError\n"
        "try:\n    cores.reserved().__enter__()\n"
        "except UserError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fcntl, which this system lacks: search on Linux or macOS" in told.stdout
