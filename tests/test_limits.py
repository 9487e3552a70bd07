"""Limits by hand: each one, at its edge, and by how much it is missed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from autocompress.errors import UserError
from autocompress.limits import Facts, Limits
from autocompress.metrics import METRICS

FACTS = Facts(
    latency_ms=3.0,
    speedup=2.0,
    weight_bytes=500,
    baseline_bytes=4000,
    memory_bytes=150_000_000,
    quality=0.84,
    drop=3.0,
)
"""8 times smaller than the baseline."""


@pytest.mark.parametrize(
    ("limit", "name", "miss"),
    [
        ({"max_latency_ms": 3.0}, "latency", 0.0),
        ({"max_latency_ms": 2.0}, "latency", 0.5),
        ({"max_latency_ms": 6.0}, "latency", -0.5),
        ({"min_speedup": 2.0}, "speedup", 0.0),
        ({"min_speedup": 3.0}, "speedup", 0.5),
        ({"min_speedup": 1.0}, "speedup", -0.5),
        ({"max_drop": 3.0}, "drop", 0.0),
        ({"max_drop": 1.0}, "drop", 0.02),
        ({"max_drop": 5.0}, "drop", -0.02),
        ({"min_quality": 0.84}, "quality", 0.0),
        ({"min_quality": 0.86}, "quality", 0.02),
        ({"max_bytes": 500}, "size", 0.0),
        ({"max_bytes": 400}, "size", 0.25),
        ({"max_bytes": 1000}, "size", -0.5),
        ({"min_compression": 8.0}, "compression", 0.0),
        ({"min_compression": 12.0}, "compression", 0.5),
        ({"min_compression": 4.0}, "compression", -0.5),
        ({"max_memory_mb": 150.0}, "memory", 0.0),
        ({"max_memory_mb": 100.0}, "memory", 0.5),
        ({"max_memory_mb": 300.0}, "memory", -0.5),
    ],
)
def test_a_limit(limit: dict[str, Any], name: str, miss: float) -> None:
    limits = Limits(**limit)
    assert limits.misses(FACTS) == {name: pytest.approx(miss, abs=1e-9)}
    assert limits.admits(FACTS) == (miss <= 0)
    assert limits.missed(FACTS) == ([name] if miss > 0 else [])
    assert limits.violation(FACTS) == pytest.approx(max(0.0, miss), abs=1e-9)
    assert limits.misses(Facts()) == {} and limits.admits(Facts())  # nothing is known
    confidence = {"confidence": 0.9} if limits.of_quality else {}
    assert limits.as_dict() == limit | confidence


def test_a_perplexity() -> None:
    limits = Limits(max_perplexity=20.0)
    assert limits.misses(Facts(quality=25.0)) == {"perplexity": 0.25}
    assert limits.admits(Facts(quality=20.0)) and not limits.admits(Facts(quality=20.1))
    margin = 0.1 * limits.stderrs(7)
    for quality, admitted in ((19.999 - margin, True), (20.001 - margin, False)):
        assert limits.admits(Facts(quality=quality, quality_stderr=0.1, rivals=7)) == admitted


def test_several_limits_must_all_hold() -> None:
    """What holds by far makes up for nothing."""
    limits = Limits(max_latency_ms=2.0, min_speedup=1.0, max_drop=1.0, max_bytes=400)
    assert limits.missed(FACTS) == ["latency", "drop", "size"]
    assert limits.violation(FACTS) == pytest.approx(0.5 + 0.02 + 0.25)
    assert not limits.admits(FACTS)
    assert Limits().admits(FACTS) and Limits().misses(FACTS) == {}


def test_what_is_unknown_is_not_checked() -> None:
    limits = Limits(max_latency_ms=2.0, max_drop=1.0, min_compression=9.0, max_memory_mb=1.0)
    assert limits.missed(Facts(latency_ms=3.0)) == ["latency"]
    assert limits.missed(Facts(weight_bytes=1)) == []  # smaller than what?
    assert limits.missed(Facts(weight_bytes=500, baseline_bytes=4000)) == ["compression"]


def test_a_drop_that_equals_its_limit_but_for_rounding_holds() -> None:
    """7 of 1,000 sentences lost are 0.7000000000000001 points."""
    assert Limits(max_drop=0.7).admits(Facts(drop=100 * (7 / 1000)))
    assert not Limits(max_drop=0.7).admits(Facts(drop=0.7001))


def test_what_is_not_a_number_meets_no_limit() -> None:
    assert not Limits(max_latency_ms=1.0).admits(Facts(latency_ms=float("nan")))


@pytest.mark.parametrize(
    ("own", "device", "both"),
    [(None, None, None), (None, 9.0, 9.0), (9.0, None, 9.0), (9.0, 5.0, 5.0), (5.0, 9.0, 5.0)],
)
def test_of_two_limits_of_memory_the_tighter_one_holds(
    own: float | None, device: float | None, both: float | None
) -> None:
    limits = Limits(max_drop=1.0, max_memory_mb=own).on(device)
    assert limits == Limits(max_drop=1.0, max_memory_mb=both)


@pytest.mark.parametrize(
    "name", ["max_latency_ms", "min_speedup", "max_bytes", "min_compression", "max_memory_mb"]
)
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_limits_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name} is {value:g}: it must be more than zero$"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("limits", "metric", "message"),
    [
        (Limits(max_drop=-0.1), "accuracy", "max_drop is -0.1: it is in points, from 0 to 100"),
        (Limits(max_drop=101.0), "accuracy", "max_drop is 101: it is in points, from 0 to 100"),
        (
            Limits(max_perplexity=9.0),
            "accuracy",
            "max_perplexity is set, but the models are",
        ),
        (Limits(min_quality=0.5), "perplexity", "min_quality is set, but the models are"),
    ],
)
def test_limits_of_another_metric(limits: Limits, metric: str, message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        limits.check(METRICS[metric])


def test_limits_that_fit_their_metric() -> None:
    Limits(max_drop=101.0, max_perplexity=9.0, max_bytes=1).check(METRICS["perplexity"])
    Limits(max_drop=100.0, min_quality=0.9, min_compression=2).check(METRICS["accuracy"])
