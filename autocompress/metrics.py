"""What models are scored by: the words of each metric, and how it is computed.

Metrics of classes are functions of a ``Tally``; their errors are found by drawing the examples
anew, with the answers of both models kept together (Efron 1979, "Bootstrap methods: another look at
the jackknife").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Draws of the examples; the error that they give is itself off by 1.6 percent."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """How often each class was right and answered; arrays of shape (..., classes).

    Args:
        labels: examples of the class.
        answers: examples that got it as the answer.
        hits: examples of the class that got it.
    """

    labels: Floats
    answers: Floats
    hits: Floats


def accuracy(tally: Tally) -> Floats:
    """The share of right answers."""
    return _share(tally.hits.sum(-1), tally.labels.sum(-1))


def balanced_accuracy(tally: Tally) -> Floats:
    """The share of right answers within each class, averaged over the classes that there are."""
    return _share(_share(tally.hits, tally.labels).sum(-1), (tally.labels > 0).sum(-1))


def f1(tally: Tally) -> Floats:
    """Harmonic mean of precision and recall of the second class, 0 where it is never hit."""
    return _f1_by_class(tally)[..., 1]


def macro_f1(tally: Tally) -> Floats:
    """``f1`` of each class, averaged over the classes that there are or that were answered."""
    seen = (tally.labels + tally.answers > 0).sum(-1)
    return _share(_f1_by_class(tally).sum(-1), seen)


def mcc(tally: Tally) -> Floats:
    """Correlation of answers and labels, of any number of classes; 0 where either is constant
    (Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
    coefficient")."""
    total = tally.labels.sum(-1)

    def covariance(a: Floats, b: Floats, together: Floats) -> Floats:
        both: Floats = together * total - (a * b).sum(-1)
        return both

    spread = covariance(tally.labels, tally.labels, total) * covariance(
        tally.answers, tally.answers, total
    )
    return _share(
        covariance(tally.labels, tally.answers, tally.hits.sum(-1)), np.sqrt(np.maximum(spread, 0))
    )


def _f1_by_class(tally: Tally) -> Floats:
    return _share(2 * tally.hits, tally.labels + tally.answers)


def _share(part: Floats, whole: Floats) -> Floats:
    """0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole > 0)


@dataclass(frozen=True)
class Metric:
    """What the models of a task are scored by; a drop is how much worse a model is than the
    baseline.

    Args:
        name: of the score.
        lost: what a drop is for the score, in a word.
        unit: of drops.
        worst_drop: at which a model counts nothing in the hypervolume.
        largest_drop: that can be asked for; it stands for a model that was not scored.
        higher_is_better: whether a drop lowers the score.
        digits: of the score that are shown.
        examples: what is scored.
        enough: of these for an error of a drop to be believed.
        of: the score, where it is one of classes.
        by_example: whether it is a mean over examples, whose error is known without draws.
    """

    name: str
    lost: str
    unit: str
    worst_drop: float
    largest_drop: float
    higher_is_better: bool
    digits: int
    examples: str
    enough: int
    of: Callable[[Tally], Floats] | None = None
    by_example: bool = False

    def text(self, score: float) -> str:
        """The score as it is printed."""
        return f"{score:.{self.digits}f}"

    def change(self, drop: float) -> float:
        """How the score changes with a drop, in its unit."""
        return 0 - drop if self.higher_is_better else drop

    @property
    def axis(self) -> str:
        """The title of an axis of changes."""
        better = "" if self.higher_is_better else " (lower is better)"
        return f"{self.name} against the baseline, {self.unit}{better}"

    def drop_text(self, drop: float) -> str:
        """Such as ``drop 1.25 points``."""
        return f"{self.lost} {drop:.2f} {self.unit}"


def _of_classes(
    name: str,
    of: Callable[[Tally], Floats],
    worst_drop: float = 5.0,
    largest_drop: float = 100.0,
    *,
    by_example: bool = False,
) -> Metric:
    return Metric(
        name,
        "drop",
        "points",
        worst_drop,
        largest_drop,
        higher_is_better=True,
        digits=4,
        examples="test examples",
        enough=100,
        of=of,
        by_example=by_example,
    )


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _of_classes("accuracy", accuracy, by_example=True),
        _of_classes("macro-f1", macro_f1),
        _of_classes("f1", f1),
        _of_classes("mcc", mcc, 10.0, 200.0),
        _of_classes("balanced-accuracy", balanced_accuracy),
        Metric(
            "perplexity",
            "increase",
            "percent",
            50.0,
            10_000.0,
            higher_is_better=False,
            digits=2,
            examples="windows of test text",
            enough=30,
        ),
    )
}
"""By name. Points are of a hundred, percent are of the baseline's score. On two classes of equal
size a model that knows nothing has an mcc of 0 and an accuracy of 0.5: the one falls twice as fast
as the other."""
OF_CLASSES = tuple(name for name, metric in METRICS.items() if metric.of)
"""Names of those that any task of classes can be scored by."""


def score(
    metric: Metric, classes: int, labels: NDArray[np.int64], answers: NDArray[np.int64]
) -> tuple[float, float]:
    """Of a model that classifies, with its standard error.

    Args:
        classes: that there are.
        labels: class ids of shape (examples,).
        answers: likewise.
    """
    if metric.by_example:
        return _mean(answers == labels)
    [drawn] = resampled(metric, classes, labels, answers)
    return float(drawn[0]), _stderr(drawn)


def drop(
    metric: Metric,
    classes: int,
    labels: NDArray[np.int64],
    baseline: NDArray[np.int64],
    other: NDArray[np.int64],
) -> tuple[float, float]:
    """From one model to another in points of a hundred, with its paired standard error; arguments
    as of ``score``."""
    if metric.by_example:
        lost, stderr = _mean((baseline == labels) * 1.0 - (other == labels))
    else:
        before, after = resampled(metric, classes, labels, baseline, other)
        lost, stderr = float(before[0] - after[0]), _stderr(before - after)
    return 100 * lost, 100 * stderr


def _mean(values: NDArray[Any]) -> tuple[float, float]:
    """With its standard error."""
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5


def _stderr(drawn: Floats) -> float:
    return float(drawn[1:].std(ddof=1))


def resampled(
    metric: Metric, classes: int, labels: NDArray[np.int64], *answers: NDArray[np.int64]
) -> list[Floats]:
    """Scores of models on the examples as they are, and on ``RESAMPLES`` draws of as many examples,
    the same for all of these models.

    Args:
        classes: that there are.
        labels: class ids of shape (examples,).
        answers: likewise, of each model.

    Returns:
        For each model an array of shape (1 + RESAMPLES,), the score itself first.
    """
    if metric.of is None:
        raise ValueError(f"{metric.name} is no metric of classes")
    shape = (classes,) * (1 + len(answers))
    kinds, counts = np.unique(np.ravel_multi_index((labels, *answers), shape), return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(labels), counts / len(labels), size=RESAMPLES)
    weights = np.concatenate([counts[None], draws]).astype(float)
    label, *answered = np.unravel_index(kinds, shape)
    one_hot = np.eye(classes)
    return [
        metric.of(
            Tally(
                weights @ one_hot[label],
                weights @ one_hot[answer],
                weights @ (one_hot[label] * one_hot[answer]),
            )
        )
        for answer in answered
    ]
