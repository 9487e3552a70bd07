"""How long devices may take, by value."""

from __future__ import annotations

import math

import pytest

from autocompress.hardware.patience import Patience, time_left, until

TIME = {"action": "time", "seconds": 5, "models": ["a", "b"]}
SCORE = {"action": "score", "models": ["a"], "count": 4}


def test_an_end_holds_inside_and_an_inner_one_before_the_outer() -> None:
    assert time_left() == math.inf
    with until(lambda: 9.0):
        with until(lambda: 4.0):
            assert time_left() == 4.0
        assert time_left() == 9.0
    assert time_left() == math.inf


def test_an_unknown_device_may_be_the_slowest() -> None:
    patience = Patience(model_s=1000, batch_s=10)
    assert patience.limit_s(TIME) == 10 * (5 + 5) + 2 * 1000
    assert patience.limit_s(SCORE) == 10 * 5 + 4 * 10
    assert patience.limit_s({"action": "describe"}) == 50


def test_a_known_device_may_take_ten_times_what_it_took_for_as_much() -> None:
    patience = Patience(model_s=1000, batch_s=10)
    patience.learn(TIME, 8.0)
    patience.learn(TIME, 2.0)
    assert patience.limit_s(TIME | {"models": ["a", "b", "c"]}) == 10 * (5 + 5 + 3 * 4.0)
    assert patience.limit_s(TIME | {"phase": "end-to-end"}) == 2100
    patience.learn(SCORE, 2.0)
    assert patience.limit_s(SCORE | {"count": 64}) == 10 * (5 + 64 * 0.5)
    patience.learn({"action": "describe", "models": []}, 99.0)
    assert patience.limit_s({"action": "describe"}) == 50


@pytest.mark.parametrize(
    ("left", "limit"), [(20.0, 24.0), (100.0, 100.0), (1e6, 120.0), (-5.0, 24.0)]
)
def test_the_time_left_caps_it_yet_what_is_asked_can_be_done(left: float, limit: float) -> None:
    patience = Patience()
    patience.learn(TIME, 2.0)
    with until(lambda: left):
        assert patience.limit_s(TIME) == pytest.approx(limit)


def test_a_first_timing_is_capped_too() -> None:
    with until(lambda: 40.0):
        assert Patience().limit_s(TIME) == 40.0
