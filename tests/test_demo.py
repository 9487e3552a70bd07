"""The embedded default: a real model and real sentences."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from autocompress import demo
from autocompress.cli import main
from autocompress.errors import UserError
from autocompress.pareto import load_front
from autocompress.tasks.data import Columns, load_examples


def test_the_data_are_the_real_sentences(demo_files: tuple[Path, Path]) -> None:
    labelled, unlabelled = demo_files
    with labelled.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8530
    assert [sum(row["label"] == label for row in rows) for label in ("0", "1")] == [4265, 4265]
    sentences = unlabelled.read_text(encoding="utf-8").splitlines()
    assert len(sentences) == len(set(sentences)) == demo.UNLABELED_SENTENCES
    assert all(
        len(sentence.split()) in demo.UNLABELED_WORDS and "<br" not in sentence
        for sentence in sentences
    )


def test_the_splits_share_no_text_and_are_always_the_same(demo_files: tuple[Path, Path]) -> None:
    labelled, _ = demo_files
    examples = load_examples(str(labelled), Columns())
    splits = [
        {text for text, _, _ in part}
        for part in (examples.train, examples.validation, examples.test)
    ]
    assert [len(part) for part in (examples.validation, examples.test)] == [1500, 1500]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 8530 - sum(examples.dropped.values())
    assert load_examples(str(labelled), Columns()).test == examples.test


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "no-such-package")
    with pytest.raises(UserError, match="the demo needs the package no-such-package: pip install"):
        demo.model_folder()


@pytest.mark.slow
def test_the_demo_in_five_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--time-limit", "5m", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    front = load_front(tmp_path / "run")
    assert front.verified
    assert front.baseline.quality.test is not None
    assert front.baseline.quality.test > 0.78
    assert front.pick(max_drop=3).speedup > 2
    assert (tmp_path / "run" / "exported" / "model.onnx").is_file()
    assert "autocompress pick" in printed
