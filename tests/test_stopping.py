"""When a candidate is not trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.engine.clock import Pace
from autocompress.engine.scoring import Scorer
from autocompress.engine.stopping import Answers, Contender, outclassed, rank_correlations
from autocompress.journal import Trial
from autocompress.pareto import LATENCY_AND_QUALITY, METRICS, OBJECTIVES
from autocompress.plan import Plan
from autocompress.reading import Reading
from autocompress.scores import Timing
from autocompress.structure import Structure
from autocompress.tasks.text_classification import Split, TextClassification
from tests.searching import timed

N = 1000
"""Validation examples."""
UNREAD = Reading({}, {}, {})
SPLIT = Split([np.zeros((1, 2), np.int64)] * N, np.zeros(N, np.int64))
TASK = TextClassification(("a", "b"), ("input_ids",), 0, SPLIT, SPLIT, SPLIT, [], UNREAD)
Known = dict[tuple[str | None, int], str]
SCORER = Scorer(TASK, {}, {}, Path())
POINTS = METRICS["accuracy"]


def packed(right: NDArray[np.bool_]) -> str:
    """As the classes answered: the label of all is 0."""
    return TASK.pack((~right[:, None]).astype(float))


def wrong(count: int, start: int = 0) -> NDArray[np.bool_]:
    """Right everywhere but in so many places from one on."""
    right = np.ones(N, bool)
    right[start : start + count] = False
    return right


def rival(number: int, rungs: dict[int, float], speedup: float = 4.0, **more: Any) -> Trial:
    facts = {"rungs": (*rungs.items(), (253, 0.0)), "scores": timed(a=speedup)} | more
    student = f"s{number}"
    return Trial(number, {"recovery.steps": 253}, "complete", student=student, **facts)


def timings(**speedups: float) -> dict[str, Timing]:
    return {name: score.timing for name, score in timed(**speedups).items()}


def own(drop: float = 9.5, rung: int = 32, steps: int = 253, **more: Any) -> Contender:
    return Contender("own", rung, steps, drop, more.pop("timings", timings(a=3.0)), **more)


CLEAR = Answers(
    SCORER, {("own", 32): packed(wrong(95)), ("own", 192): "", ("s1", 32): packed(wrong(75))}
)
"""Two points worse, with an error of 0.44."""


def reason(contender: Contender, *trials: Trial, **more: Any) -> str | None:
    given: dict[str, Any] = {"metric": POINTS, "objectives": LATENCY_AND_QUALITY} | more
    return outclassed(contender, trials, given.pop("answers", CLEAR), **given)


def test_a_slower_and_clearly_worse_candidate_is_outclassed() -> None:
    other = rival(1, {32: 7.5, 100: 5.0})
    said = "9.50 {} after 32 steps, where t001 had 7.50 and is no slower"
    assert reason(own(), other) == "drop " + said.format("points")
    percent = METRICS["perplexity"]
    assert reason(own(), other, metric=percent) == "increase " + said.format("percent")
    assert reason(own(timings=timings(a=5.0)), other) is None  # worse but faster
    assert reason(own(rung=192), other) is None  # nothing to compare with there
    assert reason(own(steps=1000), other) is not None
    slow_moment = timings(a=3.0)["a"]
    slow_moment = replace(slow_moment, latency_ms=replace(slow_moment.latency_ms, value=0.5))
    assert reason(own(timings={"a": slow_moment}), other) is None  # faster by latency
    short = replace(other, candidate={"recovery.steps": 127})
    assert reason(own(steps=127), short) is not None
    assert reason(own(steps=128), short) is None  # the other's learning rate was further down
    assert reason(own(), replace(other, state="stopped")) is None  # nothing shipped of it
    assert reason(own(), replace(other, student="s2")) is None  # its answers are not known


def test_faster_on_one_device_a_candidate_is_not_outclassed() -> None:
    other = rival(1, {32: 7.5}, scores=timed(a=4.0, b=2.0))
    assert reason(own(timings=timings(a=3.0, b=2.1)), other) is None
    assert reason(own(timings=timings(a=4.2, b=1.0)), other) is None
    assert reason(own(timings=timings(a=4.0, b=2.0)), other) is not None
    assert reason(own(), replace(other, scores={})) is None  # never timed


@pytest.mark.parametrize(
    ("objectives", "weight_bytes", "words"),
    [
        (("latency", "quality"), 500, "is no slower"),
        (OBJECTIVES, 500, None),
        (OBJECTIVES, 1000, "is no slower or larger"),
        (OBJECTIVES, 995, "is no slower or larger"),
        (("quality", "size"), 500, None),
        (("quality", "size"), 2000, "is no larger"),
    ],
)
def test_a_smaller_candidate_is_not_outclassed_where_size_counts(
    objectives: tuple[str, ...], weight_bytes: int, words: str | None
) -> None:
    other = rival(1, {32: 7.5}, weight_bytes=1000)
    said = reason(own(weight_bytes=weight_bytes), other, objectives=objectives)
    assert (said is None) == (words is None)
    assert words is None or (said or "").endswith(words)


def test_students_are_compared_on_the_same_examples() -> None:
    """Ten points on either side of the same drop are noise, on one side they are none."""
    other = rival(1, {32: 10.0})
    known: Known = {("own", 32): packed(wrong(110)), ("s1", 32): packed(wrong(100))}
    assert reason(own(), other, answers=Answers(SCORER, known)) is not None
    known = {("own", 32): packed(wrong(110, start=500)), ("s1", 32): packed(wrong(100))}
    assert reason(own(), other, answers=Answers(SCORER, known)) is None


@pytest.mark.parametrize(("lost_by_format", "stopped"), [(0, True), (10, True), (20, False)])
def test_what_its_format_cost_the_rival_counts(lost_by_format: int, stopped: bool) -> None:
    """The candidate is two points worse by its student."""
    shipped = packed(wrong(50 + lost_by_format))
    score = replace(timed(a=4.0)["a"], evidence=shipped)
    trained: Known = {("s1", 253): packed(wrong(50))}
    answers = Answers(SCORER, {**CLEAR.known, **trained})
    said = reason(own(), rival(1, {32: 7.5}, scores={"a": score}), answers=answers)
    assert (said is not None) is stopped


def test_the_best_rival_is_the_one_that_ships_the_best() -> None:
    """A better student whose format cost it five points is none."""
    spoiled = replace(timed(a=4.0)["a"], evidence=packed(wrong(100)))
    better, good = rival(1, {32: 7.0}, scores={"a": spoiled}), rival(2, {32: 7.5})
    known: Known = {("s1", 253): packed(wrong(50)), ("s2", 32): packed(wrong(75))}
    answers = Answers(SCORER, {**CLEAR.known, **known})
    assert "where t002 had 7.50" in (reason(own(), better, good, answers=answers) or "")
    assert reason(own(), better, answers=answers) is None


@pytest.mark.parametrize(("worse_by", "least", "most"), [(0.0, 0.0, 0.05), (4.0, 0.95, 1.0)])
def test_an_equal_candidate_is_seldom_stopped_and_a_worse_one_is(
    worse_by: float, least: float, most: float
) -> None:
    """Two students that answer alike but for a twelfth of the examples; 500 draws."""
    rng, stops = np.random.default_rng(0), 0
    for _ in range(500):
        common, unlike = rng.random(N) < 0.87, rng.random((2, N)) < 1 / 12
        one, other = (np.where(u, rng.random(N) < 0.87, common) for u in unlike)
        other &= rng.random(N) >= worse_by / 87
        known: Known = {("s1", 32): packed(one), ("own", 32): packed(other)}
        stops += reason(own(), rival(1, {32: 7.5}), answers=Answers(SCORER, known)) is not None
    assert least <= stops / 500 <= most


def test_rungs_are_told_by_how_they_ranked() -> None:
    """Five students; one passed no rung, one came by 192 steps alone, one is another format."""
    drops = {1: (9.0, 3.0), 2: (7.0, 2.0), 3: (5.0, 2.5), 4: (1.0, 1.0)}
    trials = [
        Trial(n, {}, "complete", rungs=((32, there), (500, end)))
        for n, (there, end) in drops.items()
    ]
    others = [
        Trial(0, {}, "complete", rungs=((0, 0.0),)),
        Trial(5, {}, "complete", rungs=((500, 9.0),)),
        Trial(6, {}, "complete", rungs=((192, 9.0), (500, 9.0))),
        Trial(7, {}, "stopped", rungs=((32, 90.0),)),
        Trial(8, {}, "complete", rungs=((32, 90.0), (500, 0.0)), asked=1),
    ]
    told = rank_correlations([*trials, *others])
    assert list(told) == ["32"] and told["32"]["n"] == 4
    assert told["32"]["rank_correlation"] == pytest.approx(0.8)
    assert rank_correlations(trials[:3]) == {}
    alike = [replace(trial, rungs=((32, 1.0), *trial.rungs[1:])) for trial in trials]
    assert rank_correlations(alike) == {}
    tied = [replace(trials[0], rungs=((32, 5.0), (500, 3.0))), *trials[1:]]
    assert rank_correlations(tied)["32"]["rank_correlation"] == pytest.approx(1.5 / 22.5**0.5)


def test_steps_that_take_longer_are_noticed_and_planned_with() -> None:
    """A student of all layers does twice the work of the teacher's own share beside it."""
    whole, half = (Plan("bert", Structure.full([4] * n, [8] * n)) for n in (6, 3))
    pace = Pace(whole.structure)
    assert pace.seconds(whole, 100) == 0
    for plan in (whole, half, whole):
        pace.learn(plan, 0.7 if plan == whole else 0.4)
    assert pace.slower == pytest.approx(1) and pace.seconds(half, 100) == pytest.approx(50)
    for plan in (half, whole):
        pace.learn(plan, 3 * (0.7 if plan == whole else 0.4))
    assert pace.slower == pytest.approx(3) and pace.seconds(half, 100) == pytest.approx(150)
