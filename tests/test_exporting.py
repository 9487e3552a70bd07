"""What leaves a run: a folder that other tools open as it is, with a card, for the hub as well."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autocompress import load_model
from autocompress.artifact import bytes_in_torch, facts
from autocompress.cli import main
from autocompress.engine.loop import SearchResult
from autocompress.errors import RequestUnmet, UserError
from autocompress.graphs.runtime import predict
from autocompress.pareto import Front, Member, load_front
from autocompress.searching import search
from autocompress.training.teacher import load_config
from tests.conftest import SizeDevice
from tests.searching import Scripted, space

OPTIMUM = os.environ.get("OPTIMUM_PYTHON", "")
WITH_OPTIMUM = pytest.mark.skipif(
    not OPTIMUM,
    reason="OPTIMUM_PYTHON names no Python with optimum-onnx, which wants transformers 4",
)
TEXTS = ["a film of quiet power", "dull beyond words"]
ROOT = [
    "README.md",
    "autocompress.json",
    "config.json",
    "model.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module")
def run(
    tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchResult:
    """A search that keeps all, of a model whose folder names its labels and its licence."""
    model = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "my-model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    named = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    (model / "config.json").write_text(json.dumps(config | named), encoding="utf-8")
    (model / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n", encoding="utf-8")
    return search(
        model,
        data_file,
        "cpu-1-thread",
        space({"layers": {"keep": [0.25, 0.5]}, "quantization": {"scheme": ["int8-dynamic"]}}),
        tmp_path_factory.mktemp("runs") / "run",
        trials=3,
        keep="all",
        connect=SizeDevice,
    )


@pytest.fixture(scope="module")
def cut(run: SearchResult) -> Member:
    return next(member for member in run.front.members if len(member.sizes["layers"]) < 4)


@pytest.fixture(scope="module")
def exported(run: SearchResult, cut: Member, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "mine"
    run.front.export(cut, out)
    return out


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def test_the_root_is_what_other_tools_read(
    exported: Path, run: SearchResult, cut: Member, tiny_model: Path
) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ROOT
    config, original = read(exported / "config.json"), read(tiny_model / "config.json")
    changed = {"id2label", "label2id", "num_hidden_layers", "problem_type"}
    assert {name: config[name] for name in original if name not in changed} == {
        name: value for name, value in original.items() if name not in changed
    }
    assert config["num_hidden_layers"] == len(cut.sizes["layers"])
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}
    for name in ("model.onnx", "tokenizer.json"):
        assert (exported / name).read_bytes() == (run.run / cut.path / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert dict(tokenizer(TEXTS)) == dict(AutoTokenizer.from_pretrained(tiny_model)(TEXTS))


def test_nothing_names_a_path_of_this_machine(exported: Path, run: SearchResult) -> None:
    told = "".join(
        path.read_text(encoding="utf-8") for path in exported.iterdir() if path.suffix != ".onnx"
    )
    assert str(run.run.parents[1]) not in told and "_name_or_path" not in told


def test_hashes_are_of_the_exported_files(exported: Path, run: SearchResult, cut: Member) -> None:
    described, before = facts(exported), facts(run.run / cut.path)
    assert sorted(described["sha256"]) == [
        name for name in ROOT if name not in ("README.md", "autocompress.json")
    ]
    for name, digest in described["sha256"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    assert described | {"sha256": None} == before | {"sha256": None}


def test_without_weights_nothing_can_be_filled_at_random(exported: Path) -> None:
    auto: Any = AutoModelForSequenceClassification
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        auto.from_pretrained(exported)
    with pytest.raises(
        UserError, match=rf"^{exported} holds no weights of torch: export it --with"
    ):
        load_model(exported)
    with pytest.raises(UserError, match=rf"^{exported} is already compressed by autocompress"):
        load_config(str(exported))


def test_weights_lie_aside(run: SearchResult, cut: Member, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    words = [str(run.run), "--trial", cut.id, "--out", str(out), "--with-weights"]
    assert main(["export", *words]) == 0
    assert sorted(path.name for path in out.iterdir()) == [*ROOT, "weights"]
    assert sorted(path.name for path in (out / "weights").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert "_name_or_path" not in (out / "weights" / "config.json").read_text(encoding="utf-8")
    assert "weights/model.safetensors" in facts(out)["sha256"]
    here, there = load_model(out).state_dict(), load_model(run.run / cut.path).state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert bytes_in_torch(out, "fp32") == (out / "weights/model.safetensors").stat().st_size
    auto: Any = AutoModelForSequenceClassification
    for folder in (out, out / "weights"):
        with pytest.raises((OSError, ValueError)):
            auto.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_any_completed_trial_is_exported_where_all_are_kept(
    run: SearchResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_front = {member.id for member in run.front.members}
    others = [t for t in run.trials[1:] if t.state == "complete" and t.id not in on_front]
    assert others
    for trial in others:
        out = tmp_path / trial.id
        assert main(["export", str(run.run), "--trial", trial.id, "--out", str(out)]) == 0
        assert facts(out)["candidate"] == trial.candidate
        ours, uncut = (
            score.quality.validation
            for score in (one.scores["cpu-1-thread"] for one in (trial, run.trials[0]))
            if score.quality
        )
        row = rf"\| accuracy on validation \| {ours:.4f} ± 0\.\d+ \| {uncut:.4f} ± 0\.\d+ \|"
        assert re.search(row, (out / "README.md").read_text(encoding="utf-8"))
    shutil.copytree(run.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / str(others[0].path))
    words = [str(tmp_path / "run"), "--trial", others[0].id, "--out", str(tmp_path / "none")]
    assert main(["export", *words]) == 2
    assert "no longer holds its files: search --keep all keeps them" in capsys.readouterr().err


def test_a_front_without_a_run_exports_nothing(run: SearchResult, tmp_path: Path) -> None:
    alone = Front.from_json(json.loads(json.dumps(run.front.as_dict())))
    assert alone == run.front
    with pytest.raises(UserError, match=r"^this front belongs to no run folder"):
        alone.export(alone.members[0], tmp_path / "mine")


def test_the_card_says_where_it_is_from_and_what_was_measured(
    exported: Path, run: SearchResult, cut: Member
) -> None:
    assert metadata_load(exported / "README.md") == {
        "base_model": "a/b",
        "license": "mit",
        "pipeline_tag": "text-classification",
        "tags": ["onnx", "onnxruntime", "autocompress"],
    }
    card, q, uncut = (exported / "README.md").read_text("utf-8"), cut.quality, run.front.baseline
    assert "Made from my-model by autocompress: " in card
    assert "- Task: text-classification\n- Data: reviews.csv\n- Device: cpu-1-thread; " in card
    assert q.test is not None and q.test_stderr is not None and uncut.quality.test is not None
    low, high = cut.latency_ms.interval
    rows = [
        f"| accuracy on test | {q.test:.4f} ± {q.test_stderr:.4f} | {uncut.quality.test:.4f} ± ",
        f"| drop, points | {q.drop_test:.2f} ± {q.drop_test_stderr:.2f} |  |",
        f"| latency | {cut.latency_ms.value:.3g} ms (95 % {low:.3g} to {high:.3g}) | ",
        f"| speedup | {cut.speedup:.2f}x (",
        f"| model.onnx | {cut.weight_bytes / 1e6:.1f} MB | {uncut.weight_bytes / 1e6:.1f} MB |",
        '| `quantization.scheme` | `"int8-dynamic"` |',
    ]
    assert [row for row in rows if row not in card] == []


def _examples(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)


def _answer(python: str, code: str, folder: Path) -> str:
    done = subprocess.run(
        [python, "-c", code], cwd=folder.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _logits(folder: Path) -> NDArray[np.float32]:
    """Of what the card's examples ask."""
    text = "a gripping, beautifully acted film"
    inputs = AutoTokenizer.from_pretrained(folder)([text], return_tensors="np")
    return predict(folder / "model.onnx", [dict(inputs)])


def test_the_first_example_of_the_card_answers_as_the_file(exported: Path) -> None:
    logits = _logits(exported)
    printed = _answer(sys.executable, _examples(exported)[0], exported)
    assert printed == f"{logits.argmax()} {logits}\n"


@WITH_OPTIMUM
def test_optimum_opens_a_classifier_as_it_is(exported: Path) -> None:
    [logits] = _logits(exported)
    scores = np.exp(logits) / np.exp(logits).sum()
    [answer] = ast.literal_eval(_answer(OPTIMUM, _examples(exported)[1], exported))
    assert answer["label"] == ["bad", "good"][int(logits.argmax())]
    assert answer["score"] == pytest.approx(scores.max(), abs=1e-5)


@WITH_OPTIMUM
def test_optimum_generates_with_a_language_model_as_it_is(generating: Path) -> None:
    [answer] = ast.literal_eval(_answer(OPTIMUM, _examples(generating)[1], generating))
    text = answer["generated_text"]
    assert text.startswith("The film begins") and len(text) > len("The film begins")


@pytest.fixture(scope="module")
def language(
    tiny_gpt2: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchResult:
    return search(
        tiny_gpt2,
        text_file,
        "cpu-1-thread",
        space({"layers": {"keep": [0.5]}, "heads": {"keep": [0.75, 1.0]}}),
        tmp_path_factory.mktemp("runs") / "language",
        task="language-modeling",
        trials=2,
        keep="all",
        sampler=Scripted(
            {"layers.keep": 0.5, "heads.keep": 1.0}, {"layers.keep": 0.5, "heads.keep": 0.75}
        ),
        connect=SizeDevice,
    )


@pytest.fixture(scope="module")
def generating(language: SearchResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of fewer layers."""
    out = tmp_path_factory.mktemp("exported") / "generating"
    language.front.export("t001", out)
    return out


def test_what_the_tokenizer_of_a_language_model_gives_its_graph_takes(generating: Path) -> None:
    """Also under transformers 4, which Optimum needs."""
    settings = read(generating / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert 'pipeline_tag: "text-generation"' in (generating / "README.md").read_text("utf-8")
    assert _answer(sys.executable, _examples(generating)[0], generating).startswith("The film")


def test_nothing_is_promised_of_optimum_where_the_caches_of_layers_differ(
    language: SearchResult, tmp_path: Path
) -> None:
    language.front.export("t002", tmp_path / "mine")
    assert language.front.member("t002").sizes["heads"] != [4, 4]
    assert len(_examples(tmp_path / "mine")) == 1
    assert "layers differ in their heads" in (tmp_path / "mine/README.md").read_text("utf-8")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """A hub that is told of everything: (repository, files)."""
    told: list[tuple[str, list[str]]] = []

    def upload_folder(repo_id: str, folder_path: Path) -> None:
        told.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    class Url(str):
        repo_id = "me/mine"

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo, exist_ok: Url(f"hub/{repo}"))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    return told


def test_an_export_is_pushed_to_the_hub(
    run: SearchResult,
    cut: Member,
    hub: list[tuple[str, list[str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(run.run), "--trial", cut.id, "--out", str(tmp_path / "mine")]
    assert main(["export", *words, "--push-to-hub", "mine"]) == 0
    assert hub == [("me/mine", ROOT)]
    assert capsys.readouterr().out.endswith("pushed: hub/mine\n")


def test_without_a_token_nothing_is_written_and_a_refusal_is_one_line(
    run: SearchResult,
    cut: Member,
    hub: list[tuple[str, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "mine"
    words = ["export", str(run.run), "--trial", cut.id, "--out", str(out), "--push-to-hub", "a/b"]

    def refuse(repo: str, exist_ok: bool) -> None:
        answer: Any = SimpleNamespace(headers={}, request=None)
        raise huggingface_hub.errors.HfHubHTTPError("403 Forbidden\nmore", response=answer)

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "autocompress: --push-to-hub: no token of the hub; run hf auth login, or set HF_TOKEN\n"
    )
    assert not out.exists()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    assert main(words) == 2
    assert capsys.readouterr().err.endswith(
        f"autocompress: --push-to-hub a/b: 403 Forbidden ({out} is written)\n"
    )


def test_limits_of_latency_and_drop_together_name_the_near_miss(
    run: SearchResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = load_front(run.run)
    fastest, best = front.members[0], min(front.members, key=lambda m: m.quality.drop_validation)
    slow, fast = (member.latency_ms.interval[1] * 1.001 for member in (best, fastest))
    drop = (fastest.quality.drop_validation + best.quality.drop_validation) / 2
    with pytest.raises(RequestUnmet) as unmet:
        front.pick(max_latency_ms=fast, max_drop=drop)
    assert re.search(r"; the nearest is t\d+, limited by its (latency|drop): ", str(unmet.value))
    for verb in (["pick"], ["export", "--out", str(tmp_path / "mine")]):
        words = [verb[0], str(run.run), *verb[1:]]
        assert main([*words, "--max-latency", f"{slow}ms", "--max-drop", "99"]) == 0
        assert capsys.readouterr().out.startswith(f"{best.id}: ")
        assert main([*words, "--max-latency", f"{fast}ms", "--max-drop", f"{drop}"]) == 1
        assert capsys.readouterr().err == f"autocompress: {unmet.value}\n"
