"""The lengths of a task, all the way through, and models timed by ``autocompress measure``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from autocompress import HardwareProfile, SearchResult, UserError, load_front
from autocompress import measure as measure_module
from autocompress.artifact import facts
from autocompress.cli import main
from autocompress.hardware.agent import FEWEST_PROCESSES, FEWEST_ROUNDS
from autocompress.measure import measure_latency
from autocompress.searching import search
from autocompress.tasks.data import Columns, load_examples
from tests.additive_device import AdditiveDevice
from tests.conftest import SizeDevice

PROFILE = HardwareProfile.load("cpu-1-thread")
QUICK = replace(PROFILE, trial_seconds=0.1, final_seconds=0.1, target_precision=0.5)


@pytest.fixture(scope="module")
def eight(tiny_model: Path, data_file: Path) -> list[int]:
    """Of the 80 validation texts, the 6th, 16th ... 76th by tokens."""
    texts = [text for text, _, _ in load_examples(str(data_file), Columns()).validation]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lengths = sorted(
        len(tokenizer(text, truncation=True, max_length=64)["input_ids"]) for text in texts
    )
    assert len(lengths) == 80
    return [lengths[i] for i in range(5, 80, 10)]


def test_the_lengths_of_a_task_are_recorded(by_task: SearchResult, eight: list[int]) -> None:
    assert len(set(eight)) > 3
    [front] = json.loads((by_task.run / "front.json").read_text())["fronts"]
    assert front["hardware"]["lengths"] == eight
    assert front["hardware"]["sequence_length"] == "task"
    assert load_front(by_task.run).hardware["lengths"] == eight
    for member in (by_task.front.baseline, *by_task.front.members):
        facts = json.loads((by_task.run / member.path / "autocompress.json").read_text())
        assert facts["scores"]["cpu-1-thread-task"]["lengths"] == eight


class Asked:
    """Stands in for ``connect`` in ``measure``: remembers the lengths."""

    def __init__(self) -> None:
        self.lengths: list[tuple[int, ...]] = []

    def __call__(self, profile: HardwareProfile, lengths: Sequence[int]) -> AdditiveDevice:
        self.lengths.append(tuple(lengths))
        return AdditiveDevice(profile, lengths)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    stand_in = Asked()
    monkeypatch.setattr(measure_module, "connect", stand_in)
    return stand_in


def test_an_exported_model_is_measured_at_the_lengths_of_its_task(
    by_task: SearchResult, eight: list[int], asked: Asked
) -> None:
    profile = HardwareProfile.load("cpu-1-thread-task")
    for member in (by_task.front.baseline, *by_task.front.members):
        timing = measure_latency(by_task.run / member.path, profile)
        assert timing.latency_ms.value == pytest.approx(member.latency_ms.value)
    assert set(asked.lengths) == {tuple(eight)}


def test_an_exported_model_is_measured_at_the_number_of_tokens_that_the_profile_says(
    by_task: SearchResult, asked: Asked
) -> None:
    """Also under the name of the profile that it was searched for."""
    folder = by_task.run / by_task.front.baseline.path
    measure_latency(folder, PROFILE)
    measure_latency(folder, replace(PROFILE, name="cpu-1-thread-task", sequence_length=16))
    assert asked.lengths == [(32,), (16,)]


def test_another_device_measures_an_exported_model_at_its_task_s_lengths_too(
    by_task: SearchResult, eight: list[int], asked: Asked
) -> None:
    """The task is the model's, whichever profile it was searched for."""
    measure_latency(
        by_task.run / by_task.front.baseline.path,
        replace(PROFILE, name="my-board", sequence_length="task"),
    )
    assert asked.lengths == [tuple(eight)]


def test_a_model_without_a_task_cannot_be_measured_at_its_lengths(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="there is no task here"):
        measure_latency(tiny_model, HardwareProfile.load("cpu-1-thread-task"))


def test_an_exported_model_is_really_measured(by_task: SearchResult) -> None:
    profile = replace(
        HardwareProfile.load("cpu-1-thread-task"), final_seconds=0.1, target_precision=0.5
    )
    timing = measure_latency(by_task.run / "models" / "t000", profile)
    assert timing.latency_ms.basis == "measured" and timing.latency_ms.n >= 24
    assert 0 < timing.latency_ms.value < 1000


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    for name in ("nowhere", "file.txt"):
        (tmp_path / "file.txt").write_text("no model")
        with pytest.raises(
            UserError,
            match=(
                r"is neither an \.onnx file nor a folder with model\.onnx or config\.json \(hub "
                r"ids are not taken here\)$"
            ),
        ):
            measure_latency(tmp_path / name, QUICK)


@pytest.mark.parametrize("text", ["{", "[1]", '{"quantization": 3}', '{"scores": []}'])
def test_a_damaged_export_is_said_in_one_line(
    by_task: SearchResult, tmp_path: Path, text: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(
        (by_task.run / "models" / "t000" / "model.onnx").read_bytes()
    )
    (folder / "autocompress.json").write_text(text)
    with pytest.raises(UserError, match=r"autocompress\.json"):
        measure_latency(folder, QUICK)


@pytest.fixture(scope="module")
def run(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "quantized"
    search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        "quantization-only",
        out,
        trials=1,
        connect=SizeDevice,
    )
    return out


def test_measure_an_exported_folder_a_transformers_folder_and_a_file(
    run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "quick.toml"
    profile.write_text(
        'extends = "cpu-1-thread"\nsequence_length = 16\nfinal_seconds = 0.1\nstatistic = "median"\n'  # noqa: E501
    )
    for model in (run / "models/t000", tiny_model, run / "models/t000/model.onnx"):
        assert main(["measure", str(model), "--hardware", str(profile), "--json"]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert measured["model"] == str(model)
        assert (measured["hardware"]["name"], measured["hardware"]["sequence_length"]) == (
            "quick",
            16,
        )
        timing, latency = measured["timing"], measured["timing"]["latency_ms"]
        assert (latency["basis"], latency["statistic"], latency["confidence"]) == (
            "measured",
            "median",
            0.95,
        )
        assert latency["n"] >= FEWEST_PROCESSES * FEWEST_ROUNDS
        assert 0 < latency["interval"][0] <= latency["value"] <= latency["interval"][1]
        assert latency["value"] <= latency["p90"] <= latency["slowest"]
        assert (timing["speedup"], timing["speedup_interval"]) == (1.0, [1.0, 1.0])
        assert timing["cpu_ms"] > 0 and timing["wall_ms"] > 0 and timing["memory_bytes"] > 0
        assert (timing["regime"], timing["beside"]["regime"]) == ("warm", "cold")
    assert main(["measure", str(tiny_model), "--hardware", str(profile)]) == 0
    line, cold = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"{tiny_model} on quick: [\d.e+-]+ ms \(95 % [\d.e+-]+ to [\d.e+-]+\), median of \d+ rounds, p90 [\d.e+-]+ ms, "  # noqa: E501
        rf"wall [\d.e+-]+ ms, \d+ MB at the peak(, [\d.e+-]+ mJ)?(, disturbed: other work took the cores)?",  # noqa: E501
        line,
    )
    assert re.match(r"cold [\d.e+-]+ ms \(95 % ", cold)


def test_an_exported_folder_is_measured_at_the_lengths_of_its_task(
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The profile that a model was searched for wants the task's own lengths; its folder has
    recorded them."""
    out, asked = tmp_path / "run", list[tuple[int, ...]]()

    def connect(profile: Any, lengths: Any) -> SizeDevice:
        asked.append(tuple(lengths))
        return SizeDevice(profile, lengths)

    search(
        tiny_model,
        data_file,
        "cpu-1-thread-task",
        "quantization-only",
        out,
        trials=1,
        connect=SizeDevice,
    )
    monkeypatch.setattr(measure_module, "connect", connect)
    model = out / "models/t000"
    assert main(["measure", str(model), "--hardware", "cpu-1-thread-task", "--json"]) == 0
    latency_ms = json.loads(capsys.readouterr().out)["timing"]["latency_ms"]["value"]
    assert latency_ms == (model / "model.onnx").stat().st_size / 1e5
    assert main(["measure", str(model), "--hardware", "cpu-1-thread"]) == 0
    recorded = tuple(facts(model)["scores"]["cpu-1-thread-task"]["lengths"])
    assert asked == [recorded, (32,)] and len(recorded) == 8


def test_an_exported_folder_is_measured_at_the_length_that_the_profile_asks_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a profile of that name had another length when the model was found."""
    asked = list[tuple[int, ...]]()

    def connect(profile: Any, lengths: Any) -> SizeDevice:
        asked.append(tuple(lengths))
        return SizeDevice(profile, lengths)

    monkeypatch.setattr(measure_module, "connect", connect)
    (tmp_path / "cpu-1-thread.toml").write_text('extends = "cpu-1-thread"\nsequence_length = 16\n')
    assert (
        main(
            ["measure", str(run / "models/t000"), "--hardware", str(tmp_path / "cpu-1-thread.toml")]
        )
        == 0
    )
    assert asked == [(16,)]
