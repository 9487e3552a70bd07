from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import RequestUnmet, UserError
from autocompress.limits import Facts, Limits
from autocompress.pareto import (
    OBJECTIVES,
    Difference,
    Front,
    Member,
    checked_objectives,
    hypervolume,
    non_dominated,
    point,
    without_ties,
)
from autocompress.scores import Latency, Quality, Timing

BASELINE_MS = 8.0
DESIGN = [
    (1 / 2.25, 0.5),
    (1 / 3.3, 0.1),
    (1 / 4.75, 1.7),
    (1 / 7, 2.3),
    (1 / 10, 4.9),
    (1 / 12, 8.4),
]
"""The front of hand-picked structures, (relative latency, drop in points)."""


def member(
    id: str,
    ms: float,
    test: float,
    *,
    validation: float | None = None,
    spread: float = 0.0,
    size: int = 1000,
    stderr: float = 0.0,
) -> Member:
    """A member of a front whose baseline takes 8 ms and has 0.875 on both splits; ``spread`` is of
    its latency, ``stderr`` of its validation drop in points."""
    validation = test if validation is None else validation
    drops = 100 * (0.875 - validation), stderr, test, 0.01, 1000, 100 * (0.875 - test), 0.5
    quality = Quality(validation, *drops, validation_stderr=stderr / 100)
    latency = Latency(ms, 1.25 * ms, 1.5 * ms, (ms - spread, ms + spread), 40)
    timing = Timing(
        latency,
        BASELINE_MS / ms,
        (BASELINE_MS / (ms + spread), BASELINE_MS / (ms - spread)),
        "int8-dynamic",
        ms,
        ms,
    )
    candidate = {"layers.keep": [0, 2], "quantization.scheme": "int8-dynamic"}
    sizes = {"layers": [0, 2], "heads": [3, 4], "ffn": [384, 96]}
    return Member(id, candidate, quality, timing, size, f"models/{id}", sizes)


def front(*members: Member, name: str = "board") -> Front:
    hardware = {"name": name, "threads": 1}
    return Front(
        "accuracy",
        member("t000", BASELINE_MS, 0.875),
        hardware,
        {"max_drop": 9.0},
        0.5,
        members,
        verified=True,
    )


def write(folder: Path, *fronts: Front, schema: Any = 2) -> None:
    value = {"schema": schema, "fronts": [*map(Front.as_dict, fronts)]}
    (folder / "front.json").write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


FAST, MIDDLE, GOOD = (
    member("t003", 1.0, 0.8125),
    member("t002", 2.0, 0.84375),
    member("t001", 4.0, 0.875),
)
"""8x with 6.25 points lost, 4x with 3.125, 2x with none."""
FRONT = front(FAST, MIDDLE, GOOD)


@pytest.mark.parametrize(
    ("points", "members"),
    [
        ([], []),
        ([(3, 3)], [0]),
        ([(1, 1), (1, 1), (1, 1)], [0]),
        ([(1, 2), (2, 1)], [0, 1]),
        ([(1, 2), (1, 1)], [1]),
        ([(2, 1), (1, 1)], [1]),
        ([(1, 5), (2, 4), (2, 4), (3, 3), (3, 4), (1, 6), (0.5, 9)], [0, 1, 3, 6]),
        ([(1, 2, 3), (1, 2, 2), (2, 1, 3)], [1, 2]),
    ],
)
def test_fronts_by_hand(points: list[tuple[float, ...]], members: list[int]) -> None:
    assert non_dominated(points) == members


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20))
def test_members_are_not_dominated_and_all_others_are(points: list[tuple[int, int]]) -> None:
    def beaten(by: tuple[int, int], point: tuple[int, int]) -> bool:
        return by != point and by[0] <= point[0] and by[1] <= point[1]

    members = [points[i] for i in non_dominated(points)]
    assert len(set(members)) == len(members)
    assert not any(beaten(point, m) for m in members for point in points)
    assert all(any(beaten(m, point) for m in members) for point in set(points) - set(members))


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        (DESIGN[:1], 0.50),
        (DESIGN, 0.9 * 0.02 + 6 / 7 * 0.52 + 0.78947 * 0.12 + 0.69697 * 0.32),
        ([(0.5, 0.5)], 0.5 * 0.9),
        ([(0.5, 0.5), (0.1, 2.5)], 0.5 * 0.9 + 0.4 * 0.5),
        ([(0.1, 2.5), (0.5, 0.5), (0.5, 0.5)], 0.5 * 0.9 + 0.4 * 0.5),
        ([(0.5, 0.5), (0.6, 1.0)], 0.5 * 0.9),
        ([(0.5, 0.5), (0.5, 1.0), (0.6, 0.5)], 0.5 * 0.9),
        ([(0.25, -1.0)], 0.75),
        ([(0.25, 5.0)], 0.0),
        ([(0.25, 9.0)], 0.0),
        ([(1.0, 0.0)], 0.0),
        ([(1.5, 0.0)], 0.0),
        ([(0.0, 0.0)], 1.0),
    ],
)
def test_hypervolume_by_hand(points: list[tuple[float, float]], area: float) -> None:
    assert hypervolume(points, 5.0) == pytest.approx(area, abs=5e-5)
    assert hypervolume([(relative, 10 * drop) for relative, drop in points], 50.0) == pytest.approx(
        area, abs=5e-5
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(-1, 9)), min_size=1, max_size=8))
def test_a_model_more_never_covers_less(points: list[tuple[float, float]]) -> None:
    area, less = hypervolume(points, 5.0), hypervolume(points[1:], 5.0)
    assert 0 <= less <= area + 1e-12 <= 1 + 2e-12
    assert hypervolume(points[::-1], 5.0) == pytest.approx(area)
    assert hypervolume([points[i] for i in non_dominated(points)], 5.0) == pytest.approx(area)


@pytest.mark.parametrize(
    ("limits", "picked"),
    [
        ({"max_latency_ms": 1.0}, FAST),
        ({"max_latency_ms": 1.999}, FAST),
        ({"max_latency_ms": 2.0}, MIDDLE),
        ({"max_latency_ms": 99.0}, GOOD),
        ({"min_speedup": 8.0}, FAST),
        ({"min_speedup": 2.001}, MIDDLE),
        ({"min_speedup": 2.0}, GOOD),
        ({"max_drop": 6.25}, FAST),
        ({"max_drop": 6.0}, MIDDLE),
        ({"max_drop": 0.0}, GOOD),
        ({"min_quality": 0.8125}, FAST),
        ({"min_quality": 0.82}, MIDDLE),
        ({"min_quality": 0.875}, GOOD),
        ({"max_latency_ms": 3.0, "max_drop": 6.25}, MIDDLE),
        ({"min_speedup": 4.0, "min_quality": 0.81}, MIDDLE),
        ({"max_drop": 4.0, "min_quality": 0.85}, GOOD),
    ],
)
def test_pick(limits: dict[str, Any], picked: Member) -> None:
    assert FRONT.pick(**limits) == picked


def test_the_test_score_chooses_nothing() -> None:
    """What is chosen by its test score has been flattered by it."""
    flattered, steady = (
        member("t004", 1.0, 0.90, validation=0.80),
        member("t005", 2.0, 0.80, validation=0.85),
    )
    mixed_front = front(flattered, steady)
    assert mixed_front.pick(max_latency_ms=2) == mixed_front.pick(min_quality=0.85) == steady
    assert mixed_front.pick(max_drop=2.5) == mixed_front.balanced == steady
    message = "accuracy 0.8000 on validation (drop 7.50 points, margin 0.00)"
    with pytest.raises(RequestUnmet, match=re.escape(message)):
        mixed_front.pick(max_latency_ms=1, max_drop=2.5)


def test_a_limit_of_quality_is_kept_with_a_margin() -> None:
    """The more rivals, and the surer one wants to be, the more of it; tables of the normal
    distribution say 1.2816 for nine of ten, and 1.645 for nineteen of twenty."""
    lone = front(member("t001", 1.0, 0.9, validation=0.865, stderr=0.5))
    for confidence, stderrs in ((0.5, 0.0), (0.9, 1.2816), (0.95, 1.6449)):
        margin = 0.5 * stderrs
        assert lone.margin(lone.members[0], confidence) == pytest.approx(margin, abs=1e-4)
        cases: tuple[tuple[str, float, float], ...] = (
            ("max_drop", 1 + margin, 1e-3),
            ("min_quality", 0.865 - margin / 100, -1e-5),
        )
        for name, limit, more in cases:
            how: dict[str, Any] = {"confidence": confidence}
            assert lone.pick(**how | {name: limit + more}) == lone.members[0]
            with pytest.raises(RequestUnmet, match=f"points, margin {margin:.2f}"):
                lone.pick(**how | {name: limit - more})
    among_seven = front(*lone.members, *[FAST] * 6)
    stderrs = NormalDist().inv_cdf((1 + 0.8 ** (1 / 7)) / 2)
    assert among_seven.margin(lone.members[0]) == pytest.approx(0.5 * stderrs)
    assert among_seven.margin(lone.members[0], 0.5) == 0.0


def test_a_front_that_knows_no_error_of_a_score_has_no_margin_for_it() -> None:
    """As written before there was one; drops had theirs."""
    sure = member("t001", 1.0, 0.865, stderr=0.5)
    older = front(replace(sure, quality=replace(sure.quality, validation_stderr=None)))
    assert older.pick(min_quality=0.865).id == "t001"
    with pytest.raises(RequestUnmet, match="limited by its drop"):
        older.pick(max_drop=1.0)


def test_a_limit_admits_a_drop_that_equals_it_but_for_rounding() -> None:
    """7 of 1,000 sentences lost are 0.7000000000000001 points."""
    exact = replace(MIDDLE, quality=replace(MIDDLE.quality, drop_validation=100 * (7 / 1000)))
    assert front(exact).pick(max_drop=0.7) == exact


UNSURE_FAST, UNSURE_GOOD = (
    member("t003", 1.0, 0.8125, spread=0.25),
    member("t001", 4.0, 0.875, spread=1.0),
)
"""From 0.75 to 1.25 ms and 6.4x to 10.7x; from 3 to 5 ms and 1.6x to 2.7x."""


@pytest.mark.parametrize(
    ("limits", "picked", "with_tie"),
    [
        ({"max_latency_ms": 5.0}, "t001", "t001"),
        ({"max_latency_ms": 4.999}, "t003", "t001"),
        ({"max_latency_ms": 4.0}, "t003", "t001"),
        ({"max_latency_ms": 3.999}, "t003", "t003"),
        ({"max_latency_ms": 1.25}, "t003", "t003"),
        ({"min_speedup": 1.6}, "t001", "t001"),
        ({"min_speedup": 1.601}, "t003", "t001"),
        ({"min_speedup": 2.0}, "t003", "t001"),
        ({"min_speedup": 2.001}, "t003", "t003"),
        ({"max_drop": 0.0}, "t001", "t001"),
        ({"min_quality": 0.8}, "t003", "t003"),
    ],
)
def test_a_member_whose_interval_crosses_the_limit_is_picked_only_where_ties_are_allowed(
    limits: dict[str, Any], picked: str, with_tie: str
) -> None:
    unsure = front(UNSURE_FAST, UNSURE_GOOD)
    assert unsure.pick(**limits).id == picked
    assert unsure.pick(**limits, allow_tie=True).id == with_tie


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_latency_ms": 1.2},
            "t003 meets the request at 1 ms, but its interval (0.75 to 1.25 ms) crosses it; "
            "--allow-tie takes it",
        ),
        (
            {"min_speedup": 7.0},
            "t003 meets the request at 8x, but its interval (6.4 to 10.7x) crosses it; "
            "--allow-tie takes it",
        ),
        (
            {"max_latency_ms": 4.5, "max_drop": 0.0},
            "t001 meets the request at 4 ms, but its interval (3 to 5 ms) crosses it; --allow-tie "
            "takes it",
        ),
    ],
)
def test_when_only_ties_meet_a_request_the_refusal_says_so(
    limits: dict[str, Any], message: str
) -> None:
    unsure = front(UNSURE_FAST, UNSURE_GOOD)
    with pytest.raises(RequestUnmet, match="^" + re.escape(message) + "$"):
        unsure.pick(**limits)
    assert unsure.pick(**limits, allow_tie=True).id == message[:4]


def test_beyond_an_interval_no_tie_helps() -> None:
    with pytest.raises(RequestUnmet, match="the nearest is t003, limited by its latency: "):
        front(UNSURE_FAST, UNSURE_GOOD).pick(max_latency_ms=0.9, allow_tie=True)


def test_the_tie_that_is_named_is_the_one_that_would_be_taken() -> None:
    """Of two members whose intervals cross the limit, --allow-tie takes the more accurate one."""
    fast, good = member("t003", 1.0, 0.80, spread=0.5), member("t001", 1.2, 0.85, spread=0.5)
    crossing = front(fast, good)
    assert crossing.pick(max_latency_ms=1.25, allow_tie=True) == good
    with pytest.raises(
        RequestUnmet,
        match=(
            r"^t001 meets the request at 1\.2 ms, but its interval \(0\.7 to 1\.7 ms\) crosses "
            r"it"
        ),
    ):
        crossing.pick(max_latency_ms=1.25)


def test_estimates_have_no_interval_to_cross() -> None:
    latency = Latency(1.0, 1.0, 1.0, (1.0, 1.0), 0, basis="datasheet")
    estimated = replace(FAST, timing=Timing(latency, 8.0, (8.0, 8.0)))
    datasheet_front = replace(
        front(estimated),
        baseline=replace(
            FRONT.baseline, timing=Timing(replace(latency, value=8.0), 1.0, (1.0, 1.0))
        ),
    )
    assert datasheet_front.pick(max_latency_ms=1.0) == estimated
    assert datasheet_front.estimated and not FRONT.estimated


def test_pick_among_equals() -> None:
    slower, faster = member("t004", 2.0, 0.85), member("t005", 1.5, 0.85)
    assert front(slower, faster).pick(max_latency_ms=2) == faster
    worse, better = member("t006", 1.0, 0.85), member("t007", 1.0, 0.86)
    assert front(worse, better).pick(max_drop=5) == better


@pytest.mark.parametrize(
    ("limits", "nearest", "limiting"),
    [
        ({"max_latency_ms": 0.5}, "t003", "latency"),
        ({"min_speedup": 10.0}, "t003", "speedup"),
        ({"min_quality": 0.9}, "t001", "quality"),
        ({"max_latency_ms": 1.5, "max_drop": 3.5}, "t003", "drop"),
        ({"max_latency_ms": 0.9, "max_drop": 1.0}, "t003", "latency and drop"),
        ({"max_latency_ms": 3.9, "max_drop": 0.0}, "t001", "latency"),
    ],
)
def test_a_request_that_no_model_meets(limits: dict[str, Any], nearest: str, limiting: str) -> None:
    with pytest.raises(
        RequestUnmet, match=f"the nearest is {nearest}, limited by its {limiting}: "
    ):
        FRONT.pick(**limits)


def test_the_nearest_is_described() -> None:
    with pytest.raises(
        RequestUnmet,
        match=re.escape(
            "1 ms (8.00x), accuracy 0.8125 on validation (drop 6.25 points, margin 0.00)"
        ),
    ):
        FRONT.pick(max_latency_ms=0.5)


def test_an_empty_front_meets_no_request() -> None:
    with pytest.raises(RequestUnmet):
        front().pick(max_drop=1.0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "give at least one limit"),
        ({"max_latency_ms": 0.0}, "max_latency_ms is 0: it must be more than zero"),
        ({"min_speedup": -1.0}, "min_speedup is -1: "),
        ({"min_speedup": float("inf")}, "min_speedup is inf: "),
        ({"max_latency_ms": float("nan")}, "max_latency_ms is nan: "),
        ({"max_bytes": 0}, "max_bytes is 0: it must be more than zero"),
        ({"min_compression": -8.0}, "min_compression is -8: it must be more than zero"),
        ({"max_drop": -0.1}, "max_drop is -0.1: it is in points, from 0 to 100"),
        ({"max_drop": 101.0}, "max_drop is 101: "),
        ({"min_quality": 0.0}, "min_quality is 0: it is a share"),
        ({"min_quality": 86.0}, "min_quality is 86: it is a share"),
        ({"max_perplexity": 1.0}, "max_perplexity is 1: it must be more than 1"),
        (
            {"max_perplexity": 9.0},
            "max_perplexity is set, but the models are scored by their accuracy; give min_quality "
            "or max_drop",
        ),
        ({"max_drop": 1.0, "confidence": 0.49}, "confidence is 0.49: it must be from 0.5, which"),
        ({"max_drop": 1.0, "confidence": 1.0}, "confidence is 1: it must be from 0.5, which"),
        ({"max_drop": 1.0, "confidence": float("nan")}, "confidence is nan: "),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        FRONT.pick(**limits)


def test_perplexities_are_picked_the_lowest_first() -> None:
    """8x at 30 (50 percent more than the baseline's 20), 4x at 22, 2x at 19."""
    perplexities = {"t003": 30.0, "t002": 22.0, "t001": 19.0, "t000": 20.0}

    def scored(m: Member) -> Member:
        value = perplexities[m.id]
        return replace(
            m, quality=Quality(value, 5 * value - 100, 0.0, value, 0.5, 100, 5 * value - 100, 1.0)
        )

    perplexity_front = replace(
        front(*map(scored, (FAST, MIDDLE, GOOD))),
        metric="perplexity",
        baseline=scored(FRONT.baseline),
    )
    expected: tuple[tuple[dict[str, Any], str], ...] = (
        ({"max_latency_ms": 9.0}, "t001"),
        ({"max_latency_ms": 3.0}, "t002"),
        ({"max_drop": 10.0}, "t002"),
        ({"max_drop": 500.0}, "t003"),
        ({"max_drop": 0.0}, "t001"),
        ({"max_perplexity": 22.0}, "t002"),
        ({"max_perplexity": 29.0, "min_speedup": 2.0}, "t001"),
    )
    for limits, picked in expected:
        assert perplexity_front.pick(**limits).id == picked
    with pytest.raises(
        RequestUnmet,
        match=re.escape(
            "limited by its perplexity: 4 ms (2.00x), perplexity 19.00 on validation (increase "
            "-5.00 percent, margin 0.00)"
        ),
    ):
        perplexity_front.pick(max_perplexity=18.0)
    with pytest.raises(
        UserError,
        match=(
            "min_quality is set, but the models are scored by their perplexity; give max_perplexity"
        ),
    ):
        perplexity_front.pick(min_quality=0.5)
    with pytest.raises(UserError, match="max_drop is 10001: it is in percent, from 0 to 10000"):
        perplexity_front.pick(max_drop=10_001)
    # 3/4 of 4/5, against 1/2 of all and 7/8 of nothing
    assert perplexity_front.balanced.id == "t002"


def test_facts_are_of_the_validation_split_and_for_certain_the_slow_ends() -> None:
    uncut = FRONT.baseline.weight_bytes
    lucky = member("t004", 4.0, 0.80, validation=0.90, spread=1.0, size=250, stderr=0.5)
    quality = 0.90, 100 * (0.875 - 0.90), 0.005, 0.5
    assert lucky.facts(uncut, 3) == Facts(4.0, 2.0, 250, 1000, None, *quality, rivals=3)
    certain = lucky.facts(uncut, 3, certain=True)
    assert (certain.latency_ms, certain.speedup, certain.compression) == (5.0, 1.6, 4.0)
    for limit, met, for_certain in ((5.0, True, True), (4.5, True, False), (3.9, False, False)):
        limits = Limits(max_latency_ms=limit)
        assert limits.admits(lucky.facts(uncut, 3)) == met
        assert limits.admits(certain) == for_certain


SMALL, TINY = (
    member("t004", 4.0, 0.84375, size=125),
    member("t005", 6.0, 0.8125, size=50),
)
"""8 times smaller with 3.125 points lost, 20 times with 6.25."""
SIZED = replace(
    front(FAST, MIDDLE, GOOD, SMALL, TINY), objectives=OBJECTIVES, size_hypervolume=0.25
)


@pytest.mark.parametrize(
    ("limits", "picked"),
    [
        ({"max_bytes": 1000}, "t001"),
        ({"max_bytes": 999}, "t004"),
        ({"max_bytes": 125}, "t004"),
        ({"max_bytes": 124.9}, "t005"),
        ({"min_compression": 8.0}, "t004"),
        ({"min_compression": 8.01}, "t005"),
        ({"max_bytes": 200, "max_drop": 7.0}, "t004"),  # by quality, t005 would be no faster
        ({"max_bytes": 1000, "max_drop": 4.0}, "t001"),  # the best, not t002, the fastest
        ({"max_bytes": 1000, "max_latency_ms": 2.0}, "t002"),
        ({"max_bytes": 125, "min_speedup": 1.5}, "t004"),
        ({"max_drop": 4.0}, "t002"),  # quality alone: the fastest
    ],
)
def test_pick_by_size(limits: dict[str, Any], picked: str) -> None:
    assert SIZED.pick(**limits).id == picked


def test_of_equal_quality_within_a_size_the_faster_is_picked() -> None:
    slower, faster = member("t006", 2.0, 0.85), member("t007", 1.5, 0.85)
    assert front(slower, faster).pick(max_bytes=1000) == faster


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_bytes": 40},
            "the nearest is t005, limited by its size: 6 ms (1.33x), 5e-05 MB, accuracy 0.8125",
        ),
        ({"min_compression": 30}, "the nearest is t005, limited by its compression: "),
        (
            {"max_bytes": 100, "max_latency_ms": 5.0, "max_drop": 4.0},
            "the nearest is t005, limited by its latency and drop: ",
        ),
    ],
)
def test_a_size_that_no_model_meets(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestUnmet, match=re.escape(message)):
        SIZED.pick(**limits)


@pytest.mark.parametrize(
    ("members", "hint"),
    [
        ((FAST, MIDDLE, GOOD), Limits(min_speedup=4)),
        ((FAST, GOOD), Limits(min_speedup=2)),  # 8x costs more than counts
        ((member("t001", 3.5, 0.875, spread=0.1),), Limits(min_speedup=2)),
        ((member("t001", 2.0, 0.875, spread=0.1),), Limits(min_speedup=3)),  # 3.8 to 4.2
        ((FAST,), None),
        ((member("t001", 7.9, 0.875),), None),
        ((), None),
    ],
)
def test_a_hint_is_met_by_a_model_that_counts(
    members: tuple[Member, ...], hint: Limits | None
) -> None:
    """The worst drop that counts is 5 points."""
    assert front(*members).hint == hint


def test_where_latency_is_no_objective_the_hint_is_of_size() -> None:
    by_size = replace(SIZED, objectives=("quality", "size"))
    assert by_size.hint == Limits(min_compression=4) and by_size.choose(by_size.hint) == SMALL


@pytest.mark.parametrize(("examples", "few"), [(99, True), (100, False), (None, False)])
def test_no_error_on_few_examples_is_no_certainty(examples: int | None, few: bool) -> None:
    def tested(one: Member, stderr: float) -> Member:
        return replace(one, quality=replace(one.quality, n_test=examples, drop_test_stderr=stderr))

    alike, other = tested(MIDDLE, 0.0), tested(GOOD, 0.5)
    small = replace(front(alike, other), baseline=tested(FRONT.baseline, 0.0), commonest=0.5)
    assert small.error_text(alike) == ("?" if few else "0.00")
    assert small.error_text(other) == "0.50" and small.error_text(small.baseline) == "0.00"
    alone = "the commonest class alone has accuracy 0.5000"
    too_few = "only 99 test examples, too few to tell models apart"
    flattered = (
        "drop on test less that on validation, which chose the members: +0.00 ± 0.25 points on "
        "average"
    )
    assert small.notes == [alone, *([too_few] if few else []), flattered]


def test_what_choosing_flatters_is_told() -> None:
    """Members lose 4 points more on test than on validation, and 1 less; their errors are 0.5 on
    test, and on validation 1.2 and 0; the baseline was not chosen."""
    lucky = member("t002", 2.0, 0.8, validation=0.84, stderr=1.2)
    unlucky = member("t001", 4.0, 0.87, validation=0.86)
    chosen = front(lucky, unlucky, FRONT.baseline)
    assert chosen.optimism_points == pytest.approx((1.5, (1.3 + 0.5) / 2))
    text = "drop on test less that on validation, which chose the members: +1.50 ± 0.90 points"
    assert chosen.notes == [f"{text} on average"]
    perplexity = replace(chosen, metric="perplexity")
    assert perplexity.notes[0].startswith("increase on test") and "0.90 percent" in str(
        perplexity.optimism
    )


def test_what_was_not_chosen_or_not_tested_is_not_flattered() -> None:
    untested = replace(GOOD, quality=Quality(0.8, 1.0, 0.5))
    for unknown in (front(), front(FRONT.baseline), front(untested)):
        assert unknown.optimism_points is None and unknown.notes == []


def test_the_limit_whose_interval_crosses_is_the_one_that_is_named() -> None:
    """3 to 5 ms hold for certain, 1.6x to 2.7x do not."""
    with pytest.raises(
        RequestUnmet, match=re.escape("t001 meets the request at 2x, but its interval (1.6 to")
    ):
        front(UNSURE_GOOD).pick(max_latency_ms=5.0, min_speedup=2.0)


@pytest.mark.parametrize(
    ("objectives", "stay"),
    [
        (("latency", "quality"), ["fast", "good"]),
        (("quality", "size"), ["good", "small", "tiny"]),
        (("latency", "quality", "size"), ["fast", "good", "small", "tiny"]),
    ],
)
def test_a_front_by_its_objectives(objectives: tuple[str, ...], stay: list[str]) -> None:
    """``slow`` is beaten by good in all three; ``hair`` only saves four bytes of a thousand."""
    members = [
        member("fast", 1.0, 0.80, size=1000),
        member("good", 2.0, 0.85, size=500),
        member("small", 2.0, 0.84, size=400),
        member("slow", 3.0, 0.85, size=500),
        member("hair", 1.5, 0.80, size=996),
        member("tiny", 3.0, 0.80, size=100),
        member("again", 2.0, 0.85, size=500),
    ]
    for together in (True, False):
        points = [point(m, objectives, together=together) for m in members]
        assert [members[i].id for i in non_dominated(points)] == stay


def test_latencies_of_one_session_compare_by_milliseconds() -> None:
    one = replace(FAST, timing=replace(FAST.timing, speedup=4.0))
    assert point(one, ("latency", "quality")) == (0.25, 6.25)
    assert point(one, ("latency", "quality"), together=True) == (1.0, 6.25)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["latency", "speed"], "here names 'speed', known are latency, quality, size"),
        (["quality", "size", "size"], "here names size twice"),
        (["latency", "size"], "here is latency, size: quality is always one of them, beside"),
        (["quality"], "here is quality: "),
        ([], "here is empty: "),
        ("latency", "here is 'latency', it must be a list of names of latency, quality, size"),
        ([1, 2], "here is [1, 2], it must be a list"),
    ],
)
def test_objectives_that_make_no_sense(given: Any, message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        checked_objectives(given, "here")


def test_objectives_have_one_order() -> None:
    assert checked_objectives(["size", "quality"], "") == ("quality", "size")
    assert checked_objectives(("size", "quality", "latency"), "") == OBJECTIVES


def test_balanced_by_size() -> None:
    """Alone, SMALL covers 7/8 of 3/8, TINY nothing, GOOD nothing by size."""
    assert SIZED.balanced == GOOD
    assert replace(SIZED, objectives=("quality", "size")).balanced == SMALL


def test_balanced() -> None:
    """Alone, FAST covers nothing, MIDDLE 3/4 of 3/8, GOOD 1/2 of all."""
    assert FRONT.balanced == GOOD
    assert front(FAST, MIDDLE).balanced == MIDDLE
    assert front().balanced == FRONT.baseline


def test_member() -> None:
    assert FRONT.member("t002") == MIDDLE
    assert FRONT.member("t000") == FRONT.baseline
    with pytest.raises(
        UserError,
        match=re.escape("trial 't009' is not in the front; its models are t000, t003, t002, t001"),
    ):
        FRONT.member("t009")


def differing(stderr_points: float) -> Difference:
    """By their accuracies, always with this standard error."""
    return lambda a, b: (100 * (a.quality.validation - b.quality.validation), stderr_points)


@pytest.mark.parametrize(
    ("spread", "better", "stderr_points", "stay"),
    [
        (0.25, 0.855, 1.0, ["small"]),
        (0.5, 0.855, 1.0, ["small"]),
        (0.125, 0.855, 1.0, ["large", "small"]),
        (0.25, 0.855, 0.4, ["large", "small"]),
        (0.25, 0.865, 1.0, ["large", "small"]),
    ],
    ids=["tie", "wide", "intervals-apart", "precise", "quality-apart"],
)
def test_of_tied_members_the_smaller_file_stays(
    spread: float, better: float, stderr_points: float, stay: list[str]
) -> None:
    """Latencies 1.0 and 1.5 touch at a spread of 0.25."""
    large = member("large", 1.0, 0.0, validation=0.85, spread=spread, size=2000)
    small = member("small", 1.5, 0.0, validation=better, spread=spread, size=1000)
    for members in ([large, small], [small, large]):
        assert [m.id for m in without_ties(members, differing(stderr_points))] == stay


@pytest.mark.parametrize(
    ("objectives", "stay"),
    [
        (("latency", "quality"), ["large", "far"]),
        (("quality", "size"), ["far"]),
        (("latency", "quality", "size"), ["large", "far"]),
    ],
)
def test_latency_tells_members_apart_only_where_it_is_an_objective(
    objectives: tuple[str, ...], stay: list[str]
) -> None:
    """Both differ by less than the standard error; what is clearly smaller stays in any case."""
    large = member("large", 1.0, 0.0, validation=0.855, spread=0.1, size=2000)
    small = member("far", 3.0, 0.0, validation=0.85, spread=0.1, size=1000)
    assert [m.id for m in without_ties([large, small], differing(1.0), objectives)] == stay


def test_the_standard_error_is_that_of_the_pair() -> None:
    members = [
        member(name, 1.0, 0.85, validation=v, spread=0.5)
        for name, v in (("a", 0.85), ("b", 0.86), ("c", 0.90))
    ]
    pairs = {frozenset("ab"): 2.0, frozenset("ac"): 1.0, frozenset("bc"): 1.0}
    assert [
        m.id
        for m in without_ties(members, lambda a, b: differing(pairs[frozenset((a.id, b.id))])(a, b))
    ] == ["a", "c"]


def test_who_ties_with_a_dropped_member_alone_stays() -> None:
    """a ~ b and b ~ c, but not a ~ c: b goes, as a is the smallest, and c stays."""
    described = [("c", 2.0, 1200), ("b", 1.5, 1100), ("a", 1.0, 1000)]
    members = [member(name, ms, 0.85, spread=0.3, size=size) for name, ms, size in described]
    assert [m.id for m in without_ties(members, differing(1.0))] == ["a", "c"]


def test_a_front_shows_itself_in_ten_lines() -> None:
    assert repr(FRONT).splitlines() == [
        "3 models on board (accuracy on test)",
        "model    ms  speedup  accuracy  drop, points   MB",
        "t003   1.00    8.00x    0.8125   6.25 ± 0.50  0.0",
        "t002   2.00    4.00x    0.8438   3.12 ± 0.50  0.0",
        "t001   4.00    2.00x    0.8750   0.00 ± 0.50  0.0",
        "t000   8.00    1.00x    0.8750   0.00 ± 0.50  0.0",
    ]
    many = front(*(member(f"t{n:03}", n, 0.8) for n in range(1, 14)))
    lines = repr(many).splitlines()
    assert [line[:4] for line in lines[2:-2]] == [f"t{n:03}" for n in (1, 3, 5, 7, 9, 11, 13)]
    assert lines[-2].startswith("t000") and lines[-1] == "and 6 more, see to_pandas()"


def test_a_front_shows_itself_in_a_notebook_without_reading_names_as_markup() -> None:
    shown = front(FAST, GOOD, name="<b>board</b>")._repr_html_()
    assert "<b>" not in shown and "&lt;b&gt;board&lt;/b&gt;" in shown
    assert re.findall(r">(t\d{3})<", shown) == ["t003", "t001", "t000"]
    assert ">6.25 ± 0.50<" in shown


def test_a_front_as_a_table_of_pandas() -> None:
    table = FRONT.to_pandas()
    assert list(table.index) == ["t003", "t002", "t001", "t000"]
    assert table.loc["t002"].to_dict() == {
        "latency_ms": 2.0,
        "latency_low_ms": 2.0,
        "latency_high_ms": 2.0,
        "speedup": 4.0,
        "accuracy": 0.84375,
        "drop": 3.125,
        "drop_stderr": 0.5,
        "drop_validation": 3.125,
        "drop_validation_stderr": 0.0,
        "bytes": 1000,
        "compression": 1.0,
        "layers.keep": [0, 2],
        "quantization.scheme": "int8-dynamic",
    }
