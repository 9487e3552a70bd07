"""When a candidate need not be trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.engine.scoring import Scorer, Timings
from autocompress.journal import Trial
from autocompress.pareto import SAME_SIZE, Metric
from autocompress.scores import Timing

_CLEARLY = 2.0
"""Standard errors by which a candidate must be worse."""
_FEWEST_RANKED = 4
"""Students that a rank correlation is told of."""
_TIMING_NOISE = 0.03
"""Share by which two timings of one model differ by chance."""


@dataclass(frozen=True)
class Contender:
    """A candidate at a rung.

    Args:
        student: its id.
        rung: recovery steps done.
        steps: that it is to have in all.
        drop: on the task's rung examples.
        timings: by device.
        weight_bytes: of its file.
    """

    student: str
    rung: int
    steps: int
    drop: float
    timings: Timings
    weight_bytes: int | None = None


@dataclass(frozen=True)
class Answers:
    """What students answered to the task's rung examples, each at its rungs and at the end of its
    training.

    Args:
        known: evidence as the task packs it, by student and recovery steps.
    """

    scorer: Scorer
    known: Mapping[tuple[str | None, int], str]

    def behind(self, student: str, rival: Trial, rung: int) -> tuple[float, float] | None:
        """By how much a student is worse than a rival's at a rung, with the paired standard error;
        None where that one's answers are not known."""
        theirs = self.known.get((rival.student, rung))
        if theirs is None:
            return None
        return self.scorer.drop_in_training(theirs, self.known[student, rung])

    def lost_by_format(self, rival: Trial) -> float:
        """What its number format cost a rival in the end, on the device where that was most; zero
        where that is not known."""
        trained = self.known.get((rival.student, rival.rungs[-1][0]))
        if trained is None:
            return 0.0
        shipped = [self.scorer.at_rungs(score) for score in rival.scores.values() if score.evidence]
        return max(0.0, *(self.scorer.drop_in_training(trained, packed)[0] for packed in shipped))


def outclassed(
    own: Contender,
    trials: Sequence[Trial],
    answers: Answers,
    metric: Metric,
    objectives: Collection[str],
) -> str | None:
    """Why a candidate need not be trained on: the best of the completed trials that it can be
    compared with was better at the same rung by more than two paired standard errors, and by more
    than its number format cost it in the end, since students are compared and artifacts shipped.

    It can be compared with a trial that is no slower on any device, and no larger, as far as these
    are objectives, and whose learning rate was not much further down: it had no fewer steps in all,
    or four times as many as these.

    Returns:
        The reason; None to go on.
    """

    def in_the_end(rival: Trial) -> float:
        return dict(rival.rungs)[own.rung] + answers.lost_by_format(rival)

    rivals = [trial for trial in trials if _comparable(trial, own, objectives)]
    if not rivals:
        return None
    rival = min(rivals, key=in_the_end)
    behind = answers.behind(own.student, rival, own.rung)
    if behind is None or behind[0] <= _CLEARLY * behind[1] + answers.lost_by_format(rival):
        return None
    beside = {"latency": "slower", "size": "larger"}
    no_worse = " or ".join(word for name, word in beside.items() if name in objectives)
    return (
        f"{metric.drop_text(own.drop)} after {own.rung} steps, where {rival.id} had "
        f"{dict(rival.rungs)[own.rung]:.2f} and is no {no_worse}"
    )


def rank_correlations(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """How alike students rank at a rung and in the end: Spearman's correlation of their drops, by
    recovery steps of the rung, with the number of students; of rungs that ``_FEWEST_RANKED``
    students came by."""
    finished = [t for t in trials if t.state == "complete" and t.asked is None and t.number]
    told = {}
    for steps in sorted({steps for trial in finished for steps, _ in trial.rungs[:-1]}):
        pairs = [
            (dict(trial.rungs)[steps], trial.rungs[-1][1])
            for trial in finished
            if steps in dict(trial.rungs[:-1])
        ]
        there, in_the_end = map(_ranks, zip(*pairs, strict=True))
        if len(pairs) >= _FEWEST_RANKED and there.std() and in_the_end.std():
            correlation = float(np.corrcoef(there, in_the_end)[0, 1])
            told[str(steps)] = {"rank_correlation": correlation, "n": len(pairs)}
    return told


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Of each value among all; equal ones share the mean of theirs."""
    own = np.asarray(values)[:, None]
    ranks: NDArray[np.float64] = ((own > own.T).sum(1) + (own >= own.T).sum(1)) / 2
    return ranks


def _comparable(trial: Trial, own: Contender, objectives: Collection[str]) -> bool:
    no_slower = "latency" not in objectives or all(
        name in trial.scores and _no_slower(trial.scores[name].timing, timing)
        for name, timing in own.timings.items()
    )
    no_larger = "size" not in objectives or (
        trial.weight_bytes is not None
        and own.weight_bytes is not None
        and trial.weight_bytes <= SAME_SIZE * own.weight_bytes
    )
    return (
        trial.state == "complete"
        and own.rung in dict(trial.rungs)
        and trial.candidate.get("recovery.steps", 0) >= min(own.steps, 4 * own.rung)
        and no_slower
        and no_larger
    )


def _no_slower(one: Timing, other: Timing) -> bool:
    """By speedup and by latency: in a single timing a slow moment of the baseline upsets the one,
    of the machine the other."""
    slack = 1 + _TIMING_NOISE
    return (
        slack * one.speedup >= other.speedup
        and one.latency_ms.value <= slack * other.latency_ms.value
    )
