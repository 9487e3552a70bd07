"""What a task promises."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from autocompress.hardware.agent import kept
from autocompress.interfaces import Evidence, HeldOut, Task, TaskInputs, TaskKind
from autocompress.metrics import METRICS
from autocompress.reading import Reading
from autocompress.testing.models import BERT, GPT2
from autocompress.testing.suite import Suite

_ONLY = "only"
"""Begins the word that no other text of the data has."""
_TEXTS, _POSITIONS = 300, 32


class TaskSuite(Suite):
    """Splits share no text, a model that knows nothing scores at chance, and none loses anything
    against itself.

    Attributes:
        members: the kinds of tasks.
    """

    members: ClassVar[Iterable[TaskKind]] = ()

    @classmethod
    def inputs(cls, kind: TaskKind, folder: Path) -> TaskInputs:
        """What a task is read from: a table of columns ``text`` and ``label`` (0 or 1) whose first
        texts come twice; for tasks that read another one, to be overridden."""
        return made_up(kind, folder)

    @classmethod
    def chance(cls, task: Task, classes: int) -> float:
        """The score of a model to which all classes are alike: of an accuracy, or a perplexity."""
        return float(classes) if task.head.generates else 1 / classes

    @pytest.fixture(scope="class")
    @classmethod
    def given(cls, member: TaskKind, tmp_path_factory: pytest.TempPathFactory) -> TaskInputs:
        return cls.inputs(member, tmp_path_factory.mktemp("data"))

    @pytest.fixture(scope="class")
    @classmethod
    def task(cls, member: TaskKind, given: TaskInputs) -> Task:
        return member.load(given)

    @pytest.fixture
    def classes(self, task: Task, given: TaskInputs) -> int:
        """Among which a model chooses."""
        return len(task.labels) or len(given.tokenizer)

    def test_it_is_of_its_kind(self, member: TaskKind, task: Task) -> None:
        assert (member.metric, member.head) == (task.metric, task.head)
        assert bool(task.labels) != member.head.generates
        assert Reading.from_json(json.loads(json.dumps(task.reading.as_dict()))) == task.reading

    def test_splits_share_no_text(self, task: Task, given: TaskInputs) -> None:
        parts = [task.train.rows, task.validation.rows, task.test.rows]
        vocabulary = given.tokenizer.get_vocab().items()
        markers = {token for word, token in vocabulary if word.startswith(_ONLY)}
        rows = [{row.tobytes() for row in part} for part in parts]
        seen = [{int(token) for row in part for token in row[0]} & markers for part in parts]
        for train, validation, test in (rows, seen):
            assert not train & validation and not train & test and not validation & test
        held_out = rows[1] | rows[2]
        assert not held_out & {row.tobytes() for row in task.unlabeled}

    def test_lessons_have_an_answer_for_each_row(self, task: Task, classes: int) -> None:
        rows, labels = task.train.rows, np.asarray(task.train.labels)
        assert len(labels) == len(rows) >= task.batch_size >= 1
        assert labels.dtype == np.int64 and labels.min() >= -100 and 0 < labels.max() < classes
        longest = max(row.shape[1] for row in rows[:3])
        assert {array.shape for array in task.batch(rows[:3]).inputs.values()} == {(3, longest)}

    def test_loss_by_hand(self, task: Task) -> None:
        """Of two labels, given a probability of 3/4 and of 1/4, and one that does not count."""
        logits = torch.tensor([[1.0, 3.0], [1.0, 3.0], [5.0, 1.0]]).log().requires_grad_()
        labels = torch.tensor([1, 0, -100])
        expected = -math.log(3 / 4) - math.log(1 / 4)
        for reduction, share in (("mean", 2), ("sum", 1)):
            given = (logits[None], labels[None]) if task.head.generates else (logits, labels)
            loss = task.loss(*given, reduction=reduction)
            assert loss.item() == pytest.approx(expected / share)
            [gradient] = torch.autograd.grad(loss, [logits])
            assert gradient[:2].abs().min() > 0 and gradient[2].abs().max() == 0

    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_questions_are_of_every_example_in_order(self, task: Task, size: int) -> None:
        questions = task.questions(task.test, size)
        assert all(1 <= len(question["input_ids"]) <= size for question in questions)
        asked = [ids for question in questions for ids in question["input_ids"]]
        lengths = [length for question in questions for length in question["attention_mask"].sum(1)]
        for ids, length, row in zip(asked, lengths, task.test.rows, strict=True):
            assert np.array_equal(ids[:length], row[0])

    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_constant_answers_score_at_chance(self, task: Task, classes: int, split: str) -> None:
        """On average over the classes that are always answered."""
        part = getattr(task, split)
        scores = []
        answers = np.zeros((1, classes)) if task.head.generates else np.eye(classes)
        for always in answers:
            evidence = _evidence(task, part, partial(np.broadcast_to, always), classes)
            scores.append(task.score(evidence, part)[0])
        assert np.mean(scores) == pytest.approx(self.chance(task, classes))

    def test_the_commonest_class_answers_everything_alike(self, task: Task, classes: int) -> None:
        assert not task.constant(_at_random(task, classes))
        for part in (task.validation, task.test):
            alone = task.commonest(part)
            assert (alone is None) == task.head.generates
            if alone is not None:
                assert task.constant(alone) and len(alone) == len(part.rows)
                assert task.score(alone, part)[0] >= self.chance(task, classes)

    def test_it_is_scored_by_any_metric_that_it_offers(
        self, member: TaskKind, given: TaskInputs
    ) -> None:
        offered = {option.name: option.choices for option in member.options}.get("metric", ())
        for name in offered:
            options = {**given.options, "metric": name}
            assert member.load(replace(given, options=options)).metric == METRICS[name]

    def test_evidence_is_kept_for_each_example_and_survives_the_journal(
        self, task: Task, classes: int
    ) -> None:
        evidence = _at_random(task, classes)
        assert evidence.ndim == 2 and len(evidence) == len(task.validation.rows)
        assert evidence.dtype == np.float64
        back = task.unpack(json.loads(json.dumps(task.pack(evidence))), len(evidence))
        assert np.array_equal(back, evidence) and back.dtype == np.float64

    def test_a_model_loses_nothing_against_itself(self, task: Task, classes: int) -> None:
        """And against another one what that one gains against it."""
        part = task.validation
        evidence, other = (_at_random(task, classes, seed) for seed in (0, 1))
        assert task.drop(evidence, evidence, part) == (0, 0)
        there, there_stderr = task.drop(evidence, other, part)
        back, back_stderr = task.drop(other, evidence, part)
        assert there * back <= 0 and there_stderr > 0 and back_stderr > 0
        before, after = task.score(evidence, part)[0], task.score(other, part)[0]
        assert (task.metric.change(there) >= 0) == (after >= before)

    def test_what_was_read_is_what_there_is(self, task: Task, given: TaskInputs) -> None:
        reading = task.reading
        rows = {name: len(getattr(task, name).rows) for name in ("train", "validation", "test")}
        assert reading.rows == {**rows, "unlabeled": len(task.unlabeled)}
        assert reading.columns["text"] == "text" and reading.cut == ("validation", "test")
        assert reading.dropped["train repeated"] == 20
        assert 1 <= reading.median_tokens <= reading.longest_tokens <= given.positions
        for counts in reading.classes.values():
            assert tuple(counts) == task.labels

    def test_learned_examples_are_scored_as_held_out_ones_are(
        self, task: Task, classes: int
    ) -> None:
        part = task.learned(7)
        ours = {row.tobytes() for row in task.train.rows}
        assert 2 <= len(part.rows) <= 7 and {row.tobytes() for row in part.rows} <= ours
        evidence = _evidence(task, part, np.zeros, classes)
        assert len(evidence) == len(part.rows) and math.isfinite(task.score(evidence, part)[0])

    def test_rung_examples_are_a_part_of_the_validation_split(
        self, task: Task, classes: int
    ) -> None:
        examples = list(task.rung_examples)
        assert 2 <= len(set(examples)) == len(examples) <= len(task.validation.rows)
        part = task.validation.take(examples)
        pairs = zip(part.rows, examples, strict=True)
        assert all(row is task.validation.rows[i] for row, i in pairs)
        value, stderr = task.score(_at_random(task, classes)[examples], part)
        assert math.isfinite(value) and math.isfinite(stderr) and stderr > 0


def made_up(kind: TaskKind, folder: Path) -> TaskInputs:
    """Texts of words in a row, each with one that no other text has."""
    words = [f"word{i}" for i in range(20)]
    rng = np.random.default_rng(0)
    listed = [
        (" ".join([f"{_ONLY}{i}", *rng.choice(words, 3 + i % 6)]), i % 2) for i in range(_TEXTS)
    ]
    file = folder / "data.csv"
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", "label"])
        writer.writerows([*listed, *listed[:20]])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    every = [*special.values(), *words, *(f"{_ONLY}{i}" for i in range(_TEXTS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(every)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast
    wrapped = fast(tokenizer_object=tokenizer, model_max_length=_POSITIONS, **special)
    causal = kind.head.generates
    config = GPT2 if causal else BERT
    return TaskInputs("tiny", config, wrapped, _POSITIONS, causal, str(file), fresh=True)


def _evidence(
    task: Task, part: HeldOut, logits: Callable[[tuple[int, ...]], NDArray[Any]], classes: int
) -> Evidence:
    """Of a model whose logits are made so, from their shape."""

    def answer(question: Any) -> Any:
        rows, length = question["input_ids"].shape
        shape = (rows, length) if task.head.generates else (rows,)
        return kept(logits((*shape, classes)), question)

    answers = np.concatenate([answer(question) for question in task.questions(part, 8)])
    return task.evidence(answers, part)


def _at_random(task: Task, classes: int, seed: int = 0) -> Evidence:
    """Of a model that knows nothing."""
    rng = np.random.default_rng(seed)
    return _evidence(task, task.validation, lambda shape: rng.normal(0, 1, shape), classes)
