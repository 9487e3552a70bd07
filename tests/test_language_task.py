"""What a search needs of the task: lessons, questions, evidence, scores; the same from every
runtime."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.engine.scoring import torch_answer
from autocompress.errors import CandidateFailed
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.hardware.agent import kept
from autocompress.hardware.host import LocalHost, ask
from autocompress.interfaces import Task
from autocompress.reading import Reading
from autocompress.tasks import TASKS
from autocompress.tasks.language_modeling import (
    LENGTH,
    Blocks,
    LanguageModeling,
    Score,
    Windows,
    compare,
    load,
    windows,
)
from autocompress.training.compute import CPU
from autocompress.training.teacher import load_language_model
from tests.test_language_modeling import score


@pytest.fixture(scope="module")
def task(byte_tokenizer: Any, text_file: Path) -> LanguageModeling:
    return load(byte_tokenizer, str(text_file), positions=64, context=48, stride=20)


@pytest.fixture(scope="module")
def model(tiny_gpt2: Path) -> Any:
    return load_language_model(str(tiny_gpt2))


def by_hand(tokens: list[int]) -> tuple[LanguageModeling, Windows]:
    part = Windows([np.zeros((1, 5), np.int64)] * len(tokens), np.array(tokens), 100)
    return LanguageModeling(
        Blocks([np.array([[3, 4, 5]])]), None, part, part, Reading({}, {}, {})
    ), part


def test_it_is_a_task(task: LanguageModeling) -> None:
    as_task: Task = task
    assert (
        as_task.metric == TASKS["language-modeling"].metric and as_task.metric.name == "perplexity"
    )


def test_the_token_that_follows_is_the_label() -> None:
    blocks = Blocks([np.array([[7, 8, 9]]), np.array([[1, 2, 3]])])
    assert blocks.labels.tolist() == [[8, 9, -100], [2, 3, -100]]


def test_lengths_by_default(byte_tokenizer: Any, text_file: Path) -> None:
    """As many as the model takes, up to ``LENGTH``; half a window is context."""
    for positions, length in ((64, 64), (1024, LENGTH)):
        loaded = load(byte_tokenizer, str(text_file), positions=positions)
        assert loaded.train.rows[0].shape == loaded.validation.rows[0].shape == (1, length)
        assert loaded.validation.scored[1] == length // 2
        assert loaded.batch_size == 1024 // length
        assert f"blocks of {length} tokens, scored in windows of {length}" in loaded.reading.text


def test_windows_that_are_taken_are_spread_evenly() -> None:
    whole = windows(np.arange(101), 11, 10, 500)
    assert whole.scored.tolist() == [10] * 10
    assert whole.spread(1000) == list(range(10)) and whole.spread(100) == list(range(10))
    assert whole.spread(40) == [0, 3, 6, 9] and whole.spread(1) == [0, 9]
    part = whole.take([0, 3])
    assert (
        [row[0, 0] for row in part.rows] == [0, 30]
        and part.scored.tolist() == [10, 10]
        and part.text_bytes == 100
    )


def test_too_much_text_is_scored_in_part_and_said(
    byte_tokenizer: Any, text_file: Path, task: LanguageModeling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.tasks.language_modeling.SCORED_TOKENS", 1000)
    part = load(byte_tokenizer, str(text_file), positions=64, context=48, stride=20)
    assert 40 <= len(part.validation.rows) <= 50 and part.validation.scored.sum() == pytest.approx(
        1000, abs=40
    )
    assert part.reading.dropped["validation windows not scored"] == len(task.validation.rows) - len(
        part.validation.rows
    )
    assert f"{part.validation.scored.sum()} of validation" in part.reading.text


def test_questions_hold_all_windows_in_order(task: LanguageModeling) -> None:
    questions = task.questions(task.test, 8)
    assert {len(question["input_ids"]) for question in questions[:-1]} == {8}
    assert np.array_equal(
        np.concatenate([question["input_ids"] for question in questions]),
        np.concatenate(task.test.rows),
    )
    assert np.array_equal(
        np.concatenate([question["scored"] for question in questions]), task.test.scored
    )
    assert len(task.questions(task.test, 1000)[0]["input_ids"]) == 1024 // 48


@pytest.mark.parametrize(("words", "rows"), [(600, 21), (100_000, 13), (250_000, 5), (2**26, 1)])
def test_a_question_of_a_large_vocabulary_has_less_text(
    byte_tokenizer: Any, text_file: Path, words: int, rows: int
) -> None:
    """Its answer has at most 2^26 numbers, but for one window of 48 tokens."""

    class Large(type(byte_tokenizer)):  # type: ignore[misc]
        def __len__(self) -> int:
            return words

    tokenizer = Large(
        tokenizer_object=byte_tokenizer._tokenizer, eos_token=byte_tokenizer.eos_token
    )
    task = load(tokenizer, str(text_file), positions=64, context=48, stride=20)
    sizes = {len(question["input_ids"]) for question in task.questions(task.test, 1000)[:-1]}
    assert sizes == {rows}


def test_every_runtime_gives_the_same_evidence(
    task: LanguageModeling, model: Any, tmp_path: Path
) -> None:
    part = task.validation.take(range(20))
    expected = score(model, part)
    to_onnx(model, tmp_path / "model.onnx", task.batch(task.train.rows[:2]))
    questions = task.questions(part, 3)
    local = task.evidence(predict(tmp_path / "model.onnx", questions, kept), part)
    np.testing.assert_allclose(local[:, 0], expected.nll, rtol=1e-4)
    assert task.score(local, part)[0] == pytest.approx(expected.perplexity, rel=1e-4)
    asked = ask(
        LocalHost(),
        {"action": "score", "runtime": "onnxruntime-cpu", "threads": 1},
        [tmp_path / "model.onnx"],
        questions,
    )
    assert np.array_equal(np.load(io.BytesIO(base64.b64decode(asked["npy"]))), local[:, 0])
    in_torch = task.evidence(
        np.concatenate([torch_answer(model, question, CPU) for question in questions]), part
    )
    np.testing.assert_allclose(in_torch[:, 0], expected.nll, rtol=0.02)


def test_evidence_comes_back_as_it_was(task: LanguageModeling) -> None:
    evidence = np.random.default_rng(0).normal(100, 30, (17, 1))
    assert np.array_equal(task.unpack(json.loads(json.dumps(task.pack(evidence))), 17), evidence)


def test_score_and_drop_by_hand() -> None:
    """2 nats over 4 tokens, and a quarter more per token; the windows differ by a half each from
    their mean."""
    task, part = by_hand([2, 2])
    baseline, other = np.array([[1.5], [0.5]]), np.array([[2.5], [0.5]])
    value, stderr = task.score(baseline, part)
    assert value == pytest.approx(math.exp(0.5))
    assert stderr == pytest.approx(math.exp(0.5) * math.sqrt(2 * (0.25 + 0.25)) / 4)
    assert task.drop(baseline, other, part) == pytest.approx(
        compare(*(Score(nll[:, 0], part.scored, 1) for nll in (baseline, other)))
    )
    assert task.drop(baseline, other, part)[0] == pytest.approx(100 * (math.exp(0.25) - 1))


@pytest.mark.parametrize("nats", [float("nan"), float("inf"), 2e3])
def test_what_is_no_perplexity_fails_the_candidate(nats: float) -> None:
    task, part = by_hand([1, 1])
    sane, mad = np.array([[1.0], [2.0]]), np.array([[nats], [nats]])
    with pytest.raises(CandidateFailed, match="its perplexity is beyond all bounds"):
        task.score(mad, part)
    with pytest.raises(CandidateFailed, match="its perplexity is beyond all bounds"):
        task.drop(sane, mad, part)


def test_a_window_is_scored_the_same_alone_and_among_others(
    task: LanguageModeling, model: Any
) -> None:
    ids, scored = np.concatenate(task.test.rows[:3]), task.test.scored[:3]
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids)).logits.numpy()
    together = kept(logits, {"input_ids": ids, "scored": scored})
    alone = [
        kept(logits[i : i + 1], {"input_ids": ids[i : i + 1], "scored": scored[i : i + 1]})[0]
        for i in range(3)
    ]
    assert together.tolist() == alone
    assert kept(logits, {"input_ids": ids}) is logits
