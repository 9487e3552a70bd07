"""Conformance of the tasks: what a search needs holds for each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from autocompress.engine.session import LOADERS
from autocompress.interfaces import Task
from autocompress.pareto import METRICS
from autocompress.tasks import TASKS, language_modeling, text_classification
from autocompress.tasks.data import Columns

Request = Callable[[str], Any]
EXAMPLES: dict[str, Callable[[Request], Task[Any]]] = {
    "text-classification": lambda get: text_classification.load(
        AutoTokenizer.from_pretrained(get("tiny_model")), str(get("data_file")), Columns(), 64, None
    ),
    "language-modeling": lambda get: language_modeling.load(
        get("byte_tokenizer"), str(get("text_file")), positions=64, context=48, stride=20
    ),
}


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task[Any]:
    return EXAMPLES[request.param](request.getfixturevalue)


def answers_at_random(task: Task[Any], part: Any) -> Any:
    """As a model would give them: of a classifier logits, of a language model nats."""
    rng, count = np.random.default_rng(0), len(part.rows)
    return (
        rng.normal(0, 1, (count, len(task.labels)))
        if task.labels
        else rng.uniform(1, 9, count) * part.scored
    )


def test_every_task_is_known_everywhere() -> None:
    assert list(EXAMPLES) == list(TASKS) == list(LOADERS)
    assert {kind.metric.name for kind in TASKS.values()} == set(METRICS)
    options = [option for kind in TASKS.values() for option in kind.options]
    assert len(set(options)) == len(options)


def test_lessons_have_an_answer_for_each_row(task: Task[Any]) -> None:
    assert len(task.train.labels) == len(task.train.rows) > task.batch_size >= 1
    labels = np.asarray(task.train.labels)
    assert labels.dtype == np.int64 and labels.min() >= -100 and labels.max() > 0
    batch = task.batch(task.train.rows[:3])
    assert {array.shape for array in batch.inputs.values()} == {
        (3, max(row.shape[1] for row in task.train.rows[:3]))
    }
    assert labels.shape[1:] in ((), (task.train.rows[0].shape[1],))


def test_splits_share_no_row(task: Task[Any]) -> None:
    train, validation, test = (
        {row.tobytes() for row in part.rows} for part in (task.train, task.validation, task.test)
    )
    assert not train & validation and not train & test and not validation & test


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_questions_are_of_every_example_in_order(task: Task[Any], size: int) -> None:
    questions = task.questions(task.test, size)
    assert all(1 <= len(question["input_ids"]) <= size for question in questions)
    padded = [ids for question in questions for ids in question["input_ids"]]
    lengths = [length for question in questions for length in question["attention_mask"].sum(1)]
    for ids, length, row in zip(padded, lengths, task.test.rows, strict=True):
        assert np.array_equal(ids[:length], row[0])


def test_evidence_is_a_number_for_each_example_and_survives_the_journal(task: Task[Any]) -> None:
    evidence = task.evidence(answers_at_random(task, task.validation), task.validation)
    assert evidence.shape == (len(task.validation.rows),) and evidence.dtype == np.float64
    assert np.array_equal(
        task.unpack(json.loads(json.dumps(task.pack(evidence))), len(evidence)), evidence
    )


def test_a_model_loses_nothing_against_itself_and_what_the_other_gains(task: Task[Any]) -> None:
    part = task.validation
    evidence = task.evidence(answers_at_random(task, part), part)
    assert task.drop(evidence, evidence, part) == (0, 0)
    other = task.evidence(answers_at_random(task, part)[::-1], part)
    (there, there_stderr), (back, back_stderr) = (
        task.drop(evidence, other, part),
        task.drop(other, evidence, part),
    )
    assert there * back <= 0 and there_stderr > 0 and back_stderr > 0
    before, after = task.score(evidence, part)[0], task.score(other, part)[0]
    assert (task.metric.change(there) >= 0) == (after >= before)


def test_rung_examples_are_a_part_of_the_validation_split(task: Task[Any]) -> None:
    examples = list(task.rung_examples)
    assert 2 <= len(set(examples)) == len(examples) <= len(task.validation.rows)
    part = task.validation.take(examples)
    assert all(row is task.validation.rows[i] for row, i in zip(part.rows, examples, strict=True))
    evidence = task.evidence(answers_at_random(task, task.validation), task.validation)
    value, stderr = task.score(evidence[examples], part)
    assert np.isfinite([value, stderr]).all() and stderr > 0


def test_what_is_told_of_the_data_is_json(task: Task[Any], tmp_path: Path) -> None:
    assert json.loads(json.dumps({**task.facts, **task.dropped}))
