"""Metrics of classes by hand, errors by drawing examples anew, and models that answer everything
alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress import search
from autocompress.engine.loop import SearchResult
from autocompress.errors import UserError
from autocompress.limits import Facts, Limits
from autocompress.metrics import METRICS, OF_CLASSES, drop, resampled, score
from autocompress.pareto import load_front
from autocompress.reading import Reading
from autocompress.tasks.text_classification import Split, TextClassification
from tests.conftest import SizeDevice
from tests.searching import CPU, space

Ids = NDArray[np.int64]
TWO = [1] * 4 + [0] * 6, [1, 1, 0, 0, 1, 0, 0, 0, 0, 0]
THREE = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
RARE = [1] + [0] * 24, [0] * 25


@pytest.mark.parametrize(
    ("metric", "pair", "classes", "value"),
    [
        ("accuracy", TWO, 2, 0.7),
        ("f1", TWO, 2, 4 / 7),
        ("macro-f1", TWO, 2, (4 / 7 + 10 / 13) / 2),
        ("balanced-accuracy", TWO, 2, (2 / 4 + 5 / 6) / 2),
        ("mcc", TWO, 2, (2 * 5 - 2 * 1) / (3 * 4 * 6 * 7) ** 0.5),
        ("accuracy", THREE, 3, 4 / 6),
        ("macro-f1", THREE, 3, (4 / 5 + 2 / 4 + 2 / 3) / 3),
        ("balanced-accuracy", THREE, 3, (2 / 3 + 1 / 2 + 1) / 3),
        ("mcc", THREE, 3, 12 / (24 * 22) ** 0.5),
        ("macro-f1", THREE, 5, (4 / 5 + 2 / 4 + 2 / 3) / 3),  # two classes that nobody has
        ("balanced-accuracy", THREE, 5, (2 / 3 + 1 / 2 + 1) / 3),
        ("mcc", THREE, 5, 12 / (24 * 22) ** 0.5),
        ("accuracy", RARE, 2, 0.96),
        ("f1", RARE, 2, 0.0),
        ("macro-f1", RARE, 2, 24 / 49),
        ("balanced-accuracy", RARE, 2, 0.5),
        ("mcc", RARE, 2, 0.0),
    ],
)
def test_scores_by_hand(
    metric: str, pair: tuple[list[int], list[int]], classes: int, value: float
) -> None:
    labels, answers = map(np.array, pair)
    for order in (slice(None), slice(None, None, -1)):
        there = score(METRICS[metric], classes, labels[order], answers[order])
        assert there[0] == pytest.approx(value)
        assert resampled(METRICS[metric], classes, labels[order], answers[order])[0][
            0
        ] == pytest.approx(value)


def drawn(examples: int, seed: int) -> tuple[Ids, Ids, Ids]:
    """Labels, one in eight of the second class, and the answers of two models that err alike."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(examples) < 0.125).astype(np.int64)
    chance = rng.random(examples)
    one, other = (np.where(chance < share, 1 - labels, labels) for share in (0.1, 0.13))
    return labels, one, other


def test_draws_give_the_error_that_the_formula_gives() -> None:
    accuracy, data = METRICS["accuracy"], drawn(1000, 0)
    before, after = resampled(accuracy, 2, *data)
    for values, (figure, stderr) in (
        (100 * (before - after), drop(accuracy, 2, *data)),
        (before, score(accuracy, 2, *data[:2])),
    ):
        assert values[0] == pytest.approx(figure)
        assert values[1:].std() == pytest.approx(stderr, rel=0.05)


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_the_paired_error_is_the_spread_over_data(metric: str) -> None:
    """And less than that of two scores apart."""
    drops, stderrs, apart = np.array(
        [
            (*drop(METRICS[metric], 2, *data), 100 * score(METRICS[metric], 2, *data[:2])[1])
            for data in (drawn(400, seed) for seed in range(200))
        ]
    ).T
    assert stderrs.mean() == pytest.approx(drops.std(), rel=0.15)
    assert stderrs.mean() < 0.8 * apart.mean()


def test_a_model_loses_nothing_against_itself() -> None:
    labels, answers, _ = drawn(50, 0)
    for metric in OF_CLASSES:
        assert drop(METRICS[metric], 2, labels, answers, answers) == (0, 0)


def task_of(labels: Sequence[int], classes: int = 2, metric: str = "accuracy") -> Any:
    split = Split([np.array([[i]]) for i in range(len(labels))], np.array(labels))
    names, unread = tuple(f"class {i}" for i in range(classes)), Reading({}, {}, {})
    return TextClassification(
        names, ("input_ids",), 0, split, split, split, [], unread, METRICS[metric]
    )


@pytest.mark.parametrize("classes", [2, 3, 150, 257])
def test_answers_are_kept_in_the_bits_that_they_take(classes: int) -> None:
    answers = np.random.default_rng(0).integers(0, classes, (61, 1)).astype(float)
    task = task_of([0] * 61, classes)
    text = json.loads(json.dumps(task.pack(answers)))
    assert np.array_equal(task.unpack(text, 61), answers)
    assert len(text) == 2 * -(-61 * (classes - 1).bit_length() // 8)


def test_the_commonest_class_answers_everything_alike() -> None:
    task = task_of([2, 0, 2, 1], 3)
    alone = task.commonest(task.validation)
    assert alone.tolist() == [[2], [2], [2], [2]] and task.constant(alone)
    assert not task.constant(np.array([[2.0], [2], [1], [2]]))
    assert task.score(alone, task.validation)[0] == 0.5


def test_constant_answers_meet_no_limits() -> None:
    facts = Facts(speedup=9.0, drop=0.1, constant=True)
    assert Limits(min_speedup=2).missed(facts) == Limits().missed(facts) == ["constant answers"]


class Scripted(SizeDevice):
    """Answers as ``answered`` says, from the id of the trial and what the model itself gives."""

    def __init__(self, *arguments: Any, answered: Callable[[str, Any], Any]) -> None:
        super().__init__(*arguments)
        self.answered = answered

    def predict(self, model: Path, batches: Any) -> Any:
        return self.answered(model.name, super().predict(model, batches))


Begin = Callable[..., SearchResult]


@pytest.fixture
def begin(tiny_model: Path, data_file: Path, tmp_path: Path) -> Begin:
    def of(answered: Callable[[str, Any], Any], **options: Any) -> SearchResult:
        how: dict[str, Any] = {"trials": 2, "connect": partial(Scripted, answered=answered)}
        layers = space({"layers": {"keep": [0.25, 0.75]}})
        return search(tiny_model, data_file, CPU, layers, tmp_path / "run", **how, **options)

    return of


def test_members_whose_answers_are_constant_leave_the_front(begin: Begin) -> None:
    """Whatever their score; the sampler hears that they are not wanted."""

    def answered(trial: str, logits: Any) -> Any:
        return logits if trial == "t000" else np.tile([1.0, 0.0], (len(logits), 1))

    outcome = begin(answered)
    scored = [score.quality for trial in outcome.trials for score in trial.scores.values()]
    flags = [quality.constant for quality in scored if quality]
    assert flags == [False] + [True] * (len(flags) - 1) and len(flags) > 1
    assert [member.id for member in outcome.front.members] == ["t000"]


def test_a_teacher_no_better_than_the_commonest_class_is_refused(begin: Begin) -> None:
    with pytest.raises(UserError) as caught:
        begin(lambda trial, logits: np.tile([0.0, 1.0], (len(logits), 1)))
    assert "no better" in str(caught.value) and "\n" not in str(caught.value)


def test_a_search_by_another_metric(begin: Begin) -> None:
    outcome = begin(lambda trial, logits: logits, metric="macro-f1")
    front = load_front(outcome.run)
    assert front == outcome.front and front.metric == "macro-f1"
    described = json.loads((outcome.run / "run.json").read_text(encoding="utf-8"))
    assert described["inputs"]["metric"] == "macro-f1"
    assert "macro-f1 against the baseline" in (outcome.run / "report.html").read_text()
