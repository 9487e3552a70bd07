"""The share of what came of candidates that one setting explains."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.influence import influence


def test_what_a_setting_decides_is_all_its_own() -> None:
    share, stderr = influence(["a", "b"] * 10, [1.0, 2.0] * 10) or (0.0, 0.0)
    assert share == pytest.approx(1.0) and stderr == pytest.approx(0.0)


@pytest.mark.parametrize("of", [3, 20])
def test_chance_explains_nothing_on_average(of: int) -> None:
    """Of few values and of numbers with many, which are put into three groups."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(200):
        values = generator.integers(0, of, 24).tolist()
        found.append(influence(values, generator.normal(size=24).tolist()) or (0.0, 0.0))
    shares, errors = np.array(found).T
    assert np.mean(shares > 2 * errors) < 0.1
    assert np.median(shares) < 0.02


def test_the_error_is_that_of_drawing_anew_or_a_little_more() -> None:
    generator = np.random.default_rng(1)
    found = []
    for _ in range(300):
        values = generator.integers(0, 2, 40)
        outcomes = values + generator.normal(size=40)
        found.append(influence(values.tolist(), outcomes.tolist()) or (0.0, 0.0))
    shares, errors = np.array(found).T
    assert 1.0 < np.mean(errors) / np.std(shares) < 1.3


def test_one_that_failed_badly_does_not_decide() -> None:
    values, drops = ["a", "b"] * 8, [float(i // 2) + i % 2 * 4 for i in range(16)]
    assert influence(values, drops) == influence(values, [*drops[:-1], 1e6])


@pytest.mark.parametrize(
    "values", [["a", "b"] * 3, ["a"] * 12, [f"{i % 7}" for i in range(12)], []]
)
def test_too_little_tells_nothing(values: list[str]) -> None:
    assert influence(values, [float(i) for i in range(len(values))]) is None
