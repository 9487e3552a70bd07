"""The validation split chooses, with a margin for chance, and the test split only reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress import Limits, search
from autocompress.engine import verification
from autocompress.engine.loop import SearchResult
from autocompress.errors import RequestUnmet
from autocompress.limits import CONFIDENCE
from autocompress.pareto import Front, Member, non_dominated, point
from autocompress.scores import Quality
from tests.conftest import SizeDevice
from tests.searching import CPU, space
from tests.test_pareto import front, member

DRAWS = 400
CHANCE = 2 * (0.1 * 0.9 / DRAWS) ** 0.5
"""Two standard errors of a share of one in ten."""
CHANGED = 0.08
"""Share of the sentences that a model answers otherwise than the baseline."""
Draw = NDArray[np.float64]
"""A validation drop, its standard error and a test drop of each model, (models, 3)."""


def drawn(true: Draw, sentences: int, seed: int) -> list[Draw]:
    """As measured on random sentences, of models whose drops in truth are known, in points."""
    rng = np.random.default_rng(seed)
    lost, either = (CHANGED + true / 100) / 2, np.full_like(true, CHANGED)

    def split() -> tuple[Draw, Draw]:
        chance = rng.random((sentences, len(true)), dtype=np.float32)
        differences = (chance < lost).astype(float) - ((chance >= lost) & (chance < either))
        stderr = differences.std(axis=0, ddof=1) / sentences**0.5
        return 100 * differences.mean(axis=0), 100 * stderr

    draws = []
    for _ in range(DRAWS):
        (validation, stderr), (test, _) = split(), split()
        draws.append(np.stack([validation, stderr, test], axis=1))
    return draws


def front_of(draw: Draw, speeds: Draw) -> Front:
    members = []
    for i, (validation, stderr, test) in enumerate(draw):
        quality = Quality(0.8, validation, stderr, 0.8, 0.01, 1000, test, stderr)
        members.append(replace(member(f"t{i:03}", 8 / speeds[i], 0.8), quality=quality))
    return front(*sorted(members, key=lambda m: m.latency_ms.value))


def by_test(validation_front: Front) -> Front:
    """With the test figures in the place of the others, as if they chose."""

    def turned(one: Member) -> Member:
        lost = one.quality.drop_test or 0.0
        return replace(one, quality=replace(one.quality, drop_validation=lost))

    return replace(validation_front, members=tuple(map(turned, validation_front.members)))


def outcome(fronts: list[Front], true: Draw, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Shares of the draws in which the picked model loses more than one point in truth, and in
    which one is picked."""
    picked = []
    for drawn_front in fronts:
        try:
            picked.append(true[int(drawn_front.pick(max_drop=1.0, confidence=confidence).id[1:])])
        except RequestUnmet:
            continue
    return sum(lost > 1 for lost in picked) / DRAWS, len(picked) / DRAWS


@pytest.mark.parametrize(("models", "sentences"), [(7, 1500), (15, 300)])
def test_a_limit_of_quality_holds_in_nine_of_ten_draws(models: int, sentences: int) -> None:
    """The faster a model the more it loses, from a point gained to half a point too much."""
    true, speeds = np.linspace(-1.0, 1.5, models), np.linspace(2.0, 16.0, models)
    fronts = [front_of(draw, speeds) for draw in drawn(true, sentences, models)]
    broken, answered = outcome(fronts, true)
    assert broken <= 0.1 + CHANCE
    assert answered > 0.3
    assert outcome([by_test(drawn_front) for drawn_front in fronts], true, confidence=0.5)[0] > 0.3
    assert outcome(fronts, true, confidence=0.5)[0] > 0.3


def test_a_limit_holds_though_the_front_is_what_looked_best_of_thirty() -> None:
    """A margin for a lone model would not do."""
    rng = np.random.default_rng(3)
    limits, speeds = Limits(max_drop=1.0), rng.uniform(2.0, 16.0, 30)
    true = np.minimum(4 * (speeds / 16) ** 2 - 0.5 + rng.exponential(0.5, 30), 7.0)
    fronts = []
    for draw in drawn(true, 300, 3):
        drawn_front = front_of(draw, speeds)
        stay = non_dominated([point(m, ("latency", "quality")) for m in drawn_front.members])
        fronts.append(replace(drawn_front, members=tuple(drawn_front.members[i] for i in stay)))
    assert outcome(fronts, true)[0] <= 0.1 + CHANCE
    alone = [
        next((int(m.id[1:]) for m in drawn_front.members if limits.admits(m.facts(1000, 1))), None)
        for drawn_front in fronts
    ]
    assert sum(i is not None and true[i] > 1 for i in alone) / DRAWS > 0.1 + CHANCE


VALUES: dict[str, Any] = {
    "layers": {"keep": [1.0, 0.5]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
}


Begin = Callable[..., SearchResult]


@pytest.fixture
def begin(tiny_model: Path, data_file: Path, tmp_path: Path) -> Begin:
    def begin(name: str, **more: Any) -> SearchResult:
        out = tmp_path / name
        return search(
            tiny_model, data_file, CPU, space(VALUES), out, trials=1, connect=SizeDevice, **more
        )

    return begin


def test_verification_rejects_and_keeps_nothing_by_its_test_score(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, fronts = Limits(max_drop=20.0), []
    for name, lost in (("awful", 90.0), ("splendid", -90.0)):

        def tested(scorer: Any, quality: Quality, *_: Any, lost: float = lost) -> Quality:
            return replace(quality, test=0.5, test_stderr=0.0, n_test=40, drop_test=lost)

        monkeypatch.setattr(verification, "_tested", tested)
        fronts.append(begin(name, budget=limits).front)
    awful, splendid = fronts
    assert [m.id for m in awful.members] == [m.id for m in splendid.members] != []
    assert {m.quality.drop_test for m in awful.members} == {90.0}
    assert (awful.hypervolume_test, splendid.hypervolume_test) == (0.0, 1 - 1 / _fastest(splendid))
    assert awful.hypervolume == splendid.hypervolume
    assert awful.pick(max_drop=20.0).id == splendid.pick(max_drop=20.0).id


@pytest.mark.parametrize("slower", [False, True])
def test_members_beaten_on_test_are_marked(slower: bool) -> None:
    """By more than the paired error, by one that is no slower; and they stay."""
    drops = {"t001": 3.0, "t002": 1.0, "t003": 1.5}
    latencies = {"t001": 2.0, "t002": 4.0 if slower else 1.0, "t003": 1.5}
    members = [member(name, ms, 0.8) for name, ms in latencies.items()]
    scorer: Any = SimpleNamespace(
        objectives=("latency", "quality"),
        task=SimpleNamespace(test=None, drop=lambda a, b, part: (b - a, 1.0)),
    )
    tested: Any = {name: {"board": lost} for name, lost in drops.items()}
    marked = verification._marked(members, "board", tested, scorer)
    assert [one.id for one in marked] == list(drops)
    beaten_by = "t003" if slower else "t002"
    assert [one.quality.beaten_by for one in marked] == [beaten_by, None, None]
    assert marked[0].mark == f"; beaten on test by {beaten_by}"


def _fastest(verified_front: Front) -> float:
    return max(one.speedup for one in verified_front.members)
