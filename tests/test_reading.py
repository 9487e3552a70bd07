"""What was read is said as it is; what is to be doubted is said where there is reason to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress import search
from autocompress.engine import doubts
from autocompress.engine.listener import Silent
from autocompress.hardware.profile import HardwareProfile
from autocompress.reading import Reading
from autocompress.tasks.text_classification import Split, TextClassification
from autocompress.training.compute import CPU
from tests.conftest import SizeDevice
from tests.searching import space

READING = Reading(
    {"text": "sentence1", "text pair": "sentence2", "label": "label"},
    {"train": 6, "validation": 4, "test": 5, "unlabeled": 7},
    {"train repeated": 0, "train empty": 3},
    ("test",),
    {
        "train": {"no": 4, "yes": 2},
        "validation": {"no": 1, "yes": 3},
        "test": {"no": 4, "yes": 1},
    },
    12.5,
    40,
)


def test_lines() -> None:
    assert READING.lines({"cpu": 32, "own": "task"}) == {
        "columns": "text 'sentence1', text pair 'sentence2', label 'label'",
        "examples": "train 6, validation 4, test 5 (cut from the data), unlabelled 7",
        "examples dropped": "3 train empty",
        "classes": "no: 4, 1, 4; yes: 2, 3, 1 (in train, validation, test)",
        "tokens of a text": (
            "median 12.5, longest 40; cpu times 32; own times them as long as they are"
        ),
    }


def test_the_most_frequent_of_many_classes_are_listed() -> None:
    counts = {f"class{i}": i for i in range(25)}
    splits = ("train", "validation", "test")
    line = replace(READING, classes=dict.fromkeys(splits, counts)).lines({})["classes"]
    assert line.startswith("class5: 5, 5, 5; ") and "class4:" not in line
    assert line.endswith("class24: 24, 24, 24; and 5 more (in train, validation, test)")


def test_a_run_of_an_earlier_version_says_less() -> None:
    old = {"source": "a.csv", **READING.rows, "dropped": {"train repeated": 2}, "labels": ["a"]}
    reading = Reading.from_json(old)
    assert reading == Reading({}, READING.rows, {"train repeated": 2})
    assert reading.lines({"cpu": 32}) == {
        "examples": "train 6, validation 4, test 5, unlabelled 7",
        "examples dropped": "2 train repeated",
    }


@pytest.mark.parametrize(
    ("name", "median", "said"),
    [
        ("cpu-1-thread", 16, "cpu-1-thread times texts of 32 tokens, the median text has 16: "),
        ("cpu-1-thread", 17, None),
        ("cpu-1-thread", 63, None),
        ("cpu-1-thread", 64, "cpu-1-thread times texts of 32 tokens, the median text has 64: "),
        ("cpu-1-thread-seq128", 40, "cpu-1-thread-seq128 times texts of 128 tokens, the median "),
        ("cpu-1-thread-task", 500, None),
    ],
)
def test_lengths_apart_are_said(name: str, median: float, said: str | None) -> None:
    task: Any = SimpleNamespace(
        reading=replace(READING, median_tokens=median), head=TextClassification.head
    )
    lines = doubts.of_lengths([HardwareProfile.load(name)], task)
    assert len(lines) == (said is not None)
    if said:
        assert lines[0].startswith(said)
        assert lines[0].endswith("cpu-1-thread-task times the task's own lengths")


class Knowing(nn.Module):
    """Answers token ``i`` with label ``labels[i]``."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(torch.from_numpy(labels), 2).float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.logits[input_ids[:, 0]])

    def get_output_embeddings(self) -> None: ...


def of_tokens(tokens: Sequence[int], labels: NDArray[np.int64]) -> Split:
    return Split([np.array([[token]]) for token in tokens], labels[list(tokens)])


@pytest.mark.parametrize("knows_validation", [True, False])
@pytest.mark.parametrize("cut", [(), ("test",), ("validation",), ("validation", "test")])
def test_a_model_that_was_trained_on_what_it_is_scored_on(
    cut: tuple[str, ...], knows_validation: bool
) -> None:
    """600 random labels to learn, 400 to be asked for; the test split is not touched."""
    labels = np.random.default_rng(0).integers(0, 2, 1000)
    train, validation = of_tokens(range(600), labels), of_tokens(range(600, 1000), labels)
    sealed: Any = None
    reading = replace(READING, cut=cut)
    task = TextClassification(
        ("no", "yes"), ("input_ids",), 0, train, validation, sealed, [], reading
    )
    known = labels.copy()
    if not knows_validation:
        known[600:] = np.random.default_rng(1).integers(0, 2, 400)
    said = doubts.of_text_seen("mine.csv", task, Knowing(known), CPU)
    assert len(said) == bool(cut) + (("validation" in cut) == knows_validation) * bool(cut)
    if cut:
        assert f"give {' and '.join(f'--{name}' for name in cut)} that it has not" in said[0]
    if len(said) == 2 and "validation" in cut:
        assert "accuracy is 1.0000 on training text and 1.0000 on validation text" in said[1]
        assert said[1].endswith("no worse on what should be new to it: it has seen both or neither")
    if len(said) == 2 and "validation" not in cut:
        assert said[1].endswith("it has learned the text that the test split is cut from")


def test_a_search_says_what_it_read(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    class Hearing(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def said(self, line: str) -> None:
            self.lines.append(line)

    heard, run = Hearing(), tmp_path / "run"
    formats = space({"quantization": {"scheme": ["int8-dynamic"]}})
    search(
        tiny_model, data_file, "cpu-1-thread", formats, run, trials=1, connect=SizeDevice,
        listener=heard,
    )  # fmt: skip
    data = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]
    lines = Reading.from_json(data).lines({"cpu-1-thread": 32})
    assert heard.lines == [
        *(f"{name}: {line}" for name, line in lines.items()),
        *data["doubts"],
        "the commonest class alone has accuracy 0.5000 on validation",
    ]
    assert lines["columns"] == "text 'text', label 'label'"
    assert data["classes"] == {
        "train": {"LABEL_0": 120, "LABEL_1": 120},
        "validation": {"LABEL_0": 40, "LABEL_1": 40},
        "test": {"LABEL_0": 40, "LABEL_1": 40},
    }
    assert data["doubts"][0].startswith(f"validation and test are cut from {data_file}: ")
    page = (run / "report.html").read_text(encoding="utf-8")
    for name in (*lines, "doubts"):
        assert f"<dt>{name}</dt>" in page
