"""Searches over recorded learning curves, as ``benchmarks/search_quality.py`` replays them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning_curves import Artifact, Curve, Curves
from replay import Nearest, Outcome, dealt, replayed, space_of
from search_quality import POLICIES, Grid, calibration

from autocompress.candidate import Value
from autocompress.search_space import SearchSpace
from tests.searching import Scripted

INT8: dict[str, Value] = {"quantization.scheme": "int8-dynamic"}
EXAMPLES = 100
"""Of each split, so that an example is a point."""


def artifact(
    steps: int, speedup: float, validation: int, test: int, number_format: Any = INT8
) -> Artifact:
    """One that answers so many examples of each split wrongly, and took 4 s beside its training."""
    right = np.ones(2 * EXAMPLES, bool)
    right[:validation] = right[EXAMPLES : EXAMPLES + test] = False
    latency = 8 / speedup
    return Artifact(
        steps,
        number_format,
        (latency, 0.99 * latency, 1.01 * latency),
        (speedup, 0.99 * speedup, 1.01 * speedup),
        1000,
        4.0,
        right,
    )


def curve(point: Mapping[str, Value], layers: int, *artifacts: Artifact) -> Curve:
    """A student of a second a step."""
    sizes = {"layers": [*range(layers)], "heads": [12] * layers, "ffn": [1536] * layers}
    return Curve(point, sizes, 1.0, artifacts)


def point(depth: float, width: float) -> dict[str, Value]:
    corner = SearchSpace.load("demo").corners[-1]
    given = {"layers.keep": depth, "heads.keep": width, "ffn.keep": width}
    return SearchSpace.load("demo").assembled(lambda p: given.get(p.name, corner[p.name]))


HALF, SMALLEST, WIDE = point(0.5, 0.5), point(0.33, 0.25), point(0.67, 1.0)
CURVES = Curves(
    {"space": "demo", "validation": EXAMPLES, "test": EXAMPLES},
    curve({}, 6, artifact(0, 1, 0, 0, {}), artifact(0, 2, 1, 2)),
    (
        curve(HALF, 3, artifact(32, 4, 3, 4), artifact(128, 4, 1, 1)),
        curve(SMALLEST, 2, artifact(32, 10, 8, 9), artifact(128, 10, 4, 3)),
        curve(WIDE, 4, artifact(32, 3, 4, 4), artifact(128, 3, 2, 0)),
    ),
)
BOTH = 0.9 * 0.4 + 0.75 * (0.8 - 0.4)
"""Area of 10x at 3 points and 4x at 1 point on test; nothing counts from 5 points on."""


def searched(seconds: float, *, on_ladder: bool) -> Outcome:
    def scripted(space: SearchSpace) -> Scripted:
        return Scripted(HALF, SMALLEST, WIDE)

    return replayed(CURVES, scripted, seconds, on_ladder=on_ladder)


def test_what_the_ladder_finds_is_what_is_worked_out_by_hand() -> None:
    """The uncut model in int8 takes 4 s. All three are tried at 32 steps, 36 s each; the wide one
    is dominated by the half one, and goes no further; of the others' 128 steps 25 are done: 107 s
    each. WIDE is best on test, which chooses nothing."""
    outcome = searched(1e4, on_ladder=True)
    assert sorted(outcome.members) == [(4, 1, 1), (10, 4, 3)]
    assert outcome.artifacts == 1 + 3 + 2
    ended, area = outcome.history[-1]
    assert ended == 4 + 3 * 36 + 2 * 107
    assert area == pytest.approx(BOTH)
    assert outcome.at(4) == pytest.approx(0.5 * 0.6)  # 2x at 2 points
    assert outcome.at(40) == pytest.approx(0.75 * 0.2 + 0.5 * (0.6 - 0.2))  # the int8 one stands


def test_without_a_ladder_each_is_trained_in_full_as_long_as_there_is_time() -> None:
    """Of 200 s the first leaves 64, in which the others begin and do not end."""
    outcome = searched(1e4, on_ladder=False)
    assert [ended for ended, _ in outcome.history] == [0, 4, 136, 268, 400]
    assert outcome.history[-1][1] == pytest.approx(BOTH)
    assert outcome.reached(BOTH - 1e-9) == 268
    short = searched(200, on_ladder=False)
    assert sorted(short.members) == [(4, 1, 1)]
    assert short.history[-1] == pytest.approx((136, 0.75 * 0.8))


def test_a_file_gives_back_what_was_recorded(tmp_path: Path) -> None:
    CURVES.save(tmp_path / "curves.jsonl.xz")
    again = Curves.load(tmp_path / "curves.jsonl.xz")
    assert again.about == CURVES.about
    for one, other in zip(
        (again.uncut, *again.students), (CURVES.uncut, *CURVES.students), strict=True
    ):
        assert (one.point, one.sizes, one.step_s) == (other.point, other.sizes, other.step_s)
        for a, b in zip(one.artifacts, other.artifacts, strict=True):
            np.testing.assert_array_equal(a.right, b.right)
            nothing = np.zeros(0, bool)
            assert replace(a, right=nothing).speedup == pytest.approx(b.speedup)
            assert (a.steps, a.number_format, a.seconds) == (b.steps, b.number_format, b.seconds)


def test_steps_between_two_rungs_give_what_the_lower_one_gave() -> None:
    [half, *_] = CURVES.students
    assert [half.at(steps, INT8).steps for steps in (32, 127, 128, 500)] == [32, 32, 128, 128]
    with pytest.raises(KeyError):
        half.at(31, INT8)


def test_examples_are_dealt_alike_for_all_students() -> None:
    """Who is wrong where another one is, is so wherever the examples go."""
    once, again, other = (dealt(CURVES, seed) for seed in (1, 1, 2))
    half, smallest, _ = (one.artifacts[-1].right for one in once.students)
    assert (half.sum(), smallest.sum()) == (198, 193)
    assert (half >= smallest).all()
    np.testing.assert_array_equal(half, again.students[0].artifacts[-1].right)
    assert (half != other.students[0].artifacts[-1].right).any()


def test_a_point_has_the_student_that_is_nearest_and_the_sampler_hears_of_its_own() -> None:
    """Amounts kept weigh four times what a learning rate does; a range of 7 steps has its own
    part."""
    space = space_of(CURVES)
    asked = {**HALF, "recovery.learning_rate": 1.5e-4, "recovery.steps": 128}
    inner = Scripted(asked)
    points = [{**curve.point, "recovery.steps": 128} for curve in CURVES.students]
    nearest = Nearest(inner, space, points)
    handle, found = nearest.ask()
    assert found == points[0]
    nearest.tell(handle, (0.25, 1.0))
    assert inner.told == {1: ((0.25, 1.0), 0.0)}
    wide = {**HALF, "heads.keep": 0.625, "recovery.steps": 128}
    weights = sum(1.0 if name.endswith(".keep") else 0.25 for name in wide)
    assert nearest.distance(wide, points[0]) == pytest.approx(0.125 / 0.875 / weights)


def test_the_sequence_goes_over_every_depth_and_width_once() -> None:
    grid = Grid(SearchSpace.load("demo"), 3)
    cuts = {(p["layers.keep"], p["heads.keep"], p["ffn.keep"]) for _, p in _asked(grid, 16)}
    assert len(cuts) == 16
    assert {heads for _, heads, _ in cuts} == {1.0, 0.75, 0.5, 0.25}
    assert all(heads == ffn for _, heads, ffn in cuts)


def _asked(sampler: Any, times: int) -> list[tuple[int, dict[str, Value]]]:
    return [sampler.ask() for _ in range(times)]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_ends_with_time_and_students_left_over(name: str) -> None:
    policy = POLICIES[name]
    making = partial(policy.of, seed=0)
    outcome = replayed(dealt(CURVES, 0), making, 150, on_ladder=policy.on_ladder)
    assert 0 < outcome.history[-1][0] <= 150
    assert outcome.artifacts >= 1


def test_calibration_tells_by_how_much_fronts_are_flattered() -> None:
    """One front loses 2 points on validation and 3 on test, the other 2 and 2; halves foretold 1
    and 0."""
    known = [
        Outcome((), ((4.0, 1.0, 2.0), (9.0, 3.0, 4.0)), 1.0, 2),
        Outcome((), ((4.0, 2.0, 2.0),), 0.0, 1),
        Outcome((), (), 5.0, 0),
    ]
    told = calibration(known)
    assert (told["optimism"], told["stderr"]) == pytest.approx((0.5, 0.5))
    assert told["error"] == pytest.approx(
        {"as_is": 0.5**0.5, "halves": 0.0, "half_of_halves": (1 - 0.5**0.5) / 2**0.5}
    )
