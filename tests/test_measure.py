"""The lengths of a task, all the way through, and models timed by ``autocompress measure``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from autocompress import HardwareProfile, SearchResult, UserError, load_front
from autocompress import measure as measure_module
from autocompress.measure import measure_latency
from autocompress.tasks.data import Columns, load_examples
from tests.additive_device import AdditiveDevice

PROFILE = HardwareProfile.load("cpu-1-thread")
QUICK = replace(PROFILE, trial_seconds=0.1, final_seconds=0.1, target_precision=0.5)


@pytest.fixture(scope="module")
def eight(tiny_model: Path, data_file: Path) -> list[int]:
    """Of the 80 validation texts, the 6th, 16th ... 76th by tokens."""
    texts = [text for text, _, _ in load_examples(str(data_file), Columns()).validation]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lengths = sorted(len(tokenizer(text, truncation=True, max_length=64)["input_ids"]) for text in texts)
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


def test_an_exported_model_is_measured_at_the_lengths_of_its_task(by_task: SearchResult, eight: list[int], asked: Asked) -> None:
    profile = HardwareProfile.load("cpu-1-thread-task")
    for member in (by_task.front.baseline, *by_task.front.members):
        timing = measure_latency(by_task.run / member.path, profile)
        assert timing.latency_ms.value == pytest.approx(member.latency_ms.value)
    assert set(asked.lengths) == {tuple(eight)}


def test_an_exported_model_is_measured_at_the_number_of_tokens_that_the_profile_says(by_task: SearchResult, asked: Asked) -> None:
    """Also under the name of the profile that it was searched for."""
    folder = by_task.run / by_task.front.baseline.path
    measure_latency(folder, PROFILE)
    measure_latency(folder, replace(PROFILE, name="cpu-1-thread-task", sequence_length=16))
    assert asked.lengths == [(32,), (16,)]


def test_another_device_measures_an_exported_model_at_its_task_s_lengths_too(
    by_task: SearchResult, eight: list[int], asked: Asked
) -> None:
    """The task is the model's, whichever profile it was searched for."""
    measure_latency(by_task.run / by_task.front.baseline.path, replace(PROFILE, name="my-board", sequence_length="task"))
    assert asked.lengths == [tuple(eight)]


def test_a_model_without_a_task_cannot_be_measured_at_its_lengths(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="there is no task here"):
        measure_latency(tiny_model, HardwareProfile.load("cpu-1-thread-task"))


def test_an_exported_model_is_really_measured(by_task: SearchResult) -> None:
    profile = replace(HardwareProfile.load("cpu-1-thread-task"), final_seconds=0.1, target_precision=0.5)
    timing = measure_latency(by_task.run / "models" / "t000", profile)
    assert timing.latency_ms.basis == "measured" and timing.latency_ms.n >= 30
    assert 0 < timing.latency_ms.value < 1000


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    for name in ("nowhere", "file.txt"):
        (tmp_path / "file.txt").write_text("no model")
        with pytest.raises(
            UserError,
            match=r"is neither an \.onnx file nor a folder with model\.onnx or config\.json \(hub ids are not taken here\)$",
        ):
            measure_latency(tmp_path / name, QUICK)


@pytest.mark.parametrize("text", ["{", "[1]", '{"quantization": 3}', '{"scores": []}'])
def test_a_damaged_export_is_said_in_one_line(by_task: SearchResult, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes((by_task.run / "models" / "t000" / "model.onnx").read_bytes())
    (folder / "autocompress.json").write_text(text)
    with pytest.raises(UserError, match=r"autocompress\.json"):
        measure_latency(folder, QUICK)
