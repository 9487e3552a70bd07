"""Who goes on to the next rung, and how long training takes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from autocompress.engine.clock import Allowance, Clock, Pace
from autocompress.engine.ladder import (
    Climber,
    finalists,
    may_go_on,
    promotable,
    rank_correlations,
    ranked,
    rungs,
)
from autocompress.plan import Plan
from autocompress.structure import Structure
from autocompress.techniques import SETTINGS

WHOLE, HALF = (Plan("bert", Structure.full([4] * n, [8] * n)) for n in (6, 3))


def climber(reached: Mapping[int, tuple[float, ...]], steps: int = 600) -> Climber:
    """A candidate of rungs at 32 and 128 steps and its own."""
    candidate = SETTINGS.candidate({"layers.keep": 0.5, "recovery.steps": steps})
    return Climber({}, candidate, HALF, dict(reached), 1)


def at(rung: int, *losses: tuple[float, ...]) -> list[Climber]:
    return [climber({rung: own}) for own in losses]


def test_a_ladder_ends_with_the_candidate_s_own_steps() -> None:
    """Twice the steps of a rung are no rung more; what is repaired is scored untrained first."""

    def of(steps: int, *, repair: bool = False) -> tuple[int, ...]:
        given = {"layers.keep": 0.5, "recovery.steps": steps, "weights.repair": repair}
        return rungs(SETTINGS.candidate(given))

    assert [of(steps) for steps in (0, 33, 64, 65, 600)] == [
        (0,),
        (33,),
        (64,),
        (32, 65),
        (32, 128, 600),
    ]
    assert [of(steps, repair=True) for steps in (0, 8, 600)] == [(0,), (0, 8), (0, 32, 128, 600)]
    own = climber({32: (0.5, 9.0)})
    assert (own.steps, own.next) == (32, 128)
    own.reached[128] = 0.5, 4.0
    assert (own.next, own.history) == (600, ((32, 9.0), (128, 4.0)))
    own.reached[416] = 0.5, 3.0  # fitted to the time left
    assert own.next == 600
    own.reached[600] = 0.5, 2.0
    assert own.next is None


@pytest.mark.parametrize(
    ("losses", "order"),
    [
        # three that nothing dominates, one that the first does, one that this one does
        ([(0.5, 2.0), (0.1, 9.0), (0.9, 0.0), (0.5, 3.0), (0.6, 4.0)], [{0, 1, 2}, {3}, {4}]),
        # the fast end counts as much as the slow one: the same ratio of latency, the same points
        ([(0.8, 1.0), (0.4, 2.0), (0.2, 3.0), (0.19, 3.1), (0.1, 4.0)], [{0, 1, 4}, {2}, {3}]),
        # alike, each adds nothing
        ([(0.5, 2.0), (0.5, 2.0), (0.5, 1.0)], [{2}, {0}, {1}]),
        ([(0.5, 0.5, 1.0), (0.5, 0.25, 2.0), (0.6, 0.6, 2.0)], [{0, 1}, {2}]),
        ([(3.0,), (1.0,), (2.0,)], [{1}, {2}, {0}]),
        ([], []),
    ],
)
def test_candidates_are_ranked_by_fronts_and_by_what_they_add(
    losses: list[tuple[float, ...]], order: list[set[int]]
) -> None:
    ranks = ranked(losses)
    for together in order:
        assert set(ranks[: len(together)]) == together
        ranks = ranks[len(together) :]
    assert ranks == []


def test_the_better_half_of_a_rung_goes_on_the_highest_rung_first() -> None:
    good, fair, poor, _ = everyone = at(32, (0.5, 5.0), (0.4, 6.0), (0.6, 9.0), (0.7, 9.5))
    assert list(promotable([good, fair, poor])) == []  # too few to tell
    assert {id(one) for one in promotable(everyone)} == {id(good), id(fair)}
    good.reached[128] = 0.5, 3.0
    assert list(promotable(everyone)) == [fair]  # the other half stays
    fair.reached[128] = 0.4, 4.0
    everyone += [climber({32: (0.9, 9.9), 128: own}) for own in ((0.55, 3.5), (0.6, 3.6))]
    everyone += (better := at(32, (0.3, 6.0)))
    assert {id(one) for one in promotable(everyone)} == {id(good), id(fair), id(better[0])}
    assert list(promotable(everyone))[-1] is better[0]
    for one in (good, fair):
        one.reached[600] = 0.5, 1.0
    assert list(promotable(everyone)) == better
    assert list(promotable(at(600, *[(0.5, 5.0)] * 4))) == []


def test_the_front_climbs_to_the_end_the_least_trained_first() -> None:
    """Whatever came of the limits of quality: more steps may meet them."""
    front, trained, beaten, done = (
        climber({32: (0.5, 5.0)}),
        climber({32: (0.3, 20.0), 128: (0.3, 8.0)}),
        climber({32: (0.6, 6.0)}),
        climber({600: (0.7, 1.0)}),
    )
    everyone = [trained, front, beaten, done]
    assert finalists(everyone, []) == [front, trained]
    assert finalists(everyone, [(0.4, 0.0)]) == [trained]  # an uncut model in a fast format
    assert finalists([], [(0.4, 0.0)]) == []


def test_steps_that_are_no_rung_were_fitted_to_the_time() -> None:
    reached = dict.fromkeys((32, 100), (0.5, 5.0))
    assert climber(reached).fitted and not climber({32: (0.5, 5.0)}).fitted
    assert not climber({600: (0.5, 5.0)}).fitted and climber({600: (0.5, 5.0)}, 700).fitted


def test_whoever_may_still_climb_is_kept() -> None:
    """One more than the better half: another candidate may let it in."""
    climbers = at(32, (0.5, 5.0), (0.6, 6.0), (0.7, 7.0), (0.8, 8.0))
    assert {id(one) for one in may_go_on(climbers, [])} == {id(one) for one in climbers[:3]}


def test_rungs_are_told_by_how_they_ranked() -> None:
    """Four students; one more climbed no rung, and one came by 192 steps alone."""
    drops = [(9.0, 3.0), (7.0, 2.0), (5.0, 2.5), (1.0, 1.0)]
    histories = [((32, there), (500, end)) for there, end in drops]
    told = rank_correlations([*histories, ((500, 9.0),), ((192, 9.0), (500, 9.0)), ()])
    assert list(told) == ["32"] and told["32"]["n"] == 4
    assert told["32"]["rank_correlation"] == pytest.approx(0.8)
    assert rank_correlations(histories[:3]) == {}
    assert rank_correlations([((32, 1.0), last) for _, last in histories]) == {}
    tied = [((32, 5.0), (500, 3.0)), *histories[1:]]
    assert rank_correlations(tied)["32"]["rank_correlation"] == pytest.approx(1.5 / 22.5**0.5)


def test_steps_that_take_longer_are_noticed_and_planned_with() -> None:
    """A student of all layers does twice the work of the teacher's own share beside it."""
    pace, other = Pace(WHOLE.structure), Plan("bert", Structure.full([4] * 2, [8] * 2))
    assert (pace.seconds(WHOLE, 100), pace.steps(WHOLE, 100), pace.beside_s) == (0, 0, 0)
    for plan in (WHOLE, HALF, WHOLE):
        pace.learn(plan, 0.7 if plan == WHOLE else 0.4)
    assert pace.slower == pytest.approx(1) and pace.seconds(other, 100) == pytest.approx(37.5)
    assert pace.steps(other, 37.5) == pytest.approx(100) and pace.steps(other, -1) == 0
    assert pace.seconds(HALF, 100) == pytest.approx(44)  # of itself more is known
    for plan in (HALF, WHOLE):
        pace.learn(plan, 3 * (0.7 if plan == WHOLE else 0.4))
    assert pace.slower == pytest.approx(3) and pace.seconds(other, 100) == pytest.approx(112.5)
    assert pace.seconds(HALF, 100) == pytest.approx(132)
    for seconds in (100.0, 4.0, 2.0, 8.0):  # the last three count
        pace.learn_beside(seconds)
    assert pace.beside_s == pytest.approx(5)


class Stopped(Clock):
    """So many seconds were spent, and so many are left."""

    def __init__(self, spent: float, left: float) -> None:
        super().__init__(spent + left)
        self._spent = spent

    @property
    def spent(self) -> float:
        return self._spent


def test_what_is_proposed_fits_the_time_left() -> None:
    """A step takes a second, and 10 percent of that; a scoring eight, and a quarter of that."""
    pace = Pace(WHOLE.structure)
    pace.learn(HALF, 1.0)
    pace.learn_beside(8.0)

    def left(seconds: float, spent: float = 0) -> Allowance:
        return Allowance(Stopped(spent, seconds + 30), pace, lambda: 30)

    assert left(120).needs_s(HALF, 100) == pytest.approx(120)
    assert [left(s).fits(HALF, 132, 32) for s in (121, 119)] == [True, False]
    assert [left(s).fits(HALF, 132, 32, formats=2) for s in (131, 129)] == [True, False]
    assert left(121).steps(HALF, 28, 128, 1) == 128
    assert left(242).steps(HALF, 28, 128, 1 / 2) == 128
    assert left(121).steps(HALF, 28, 512, 1) == 128  # a multiple of 32
    assert left(121).steps(HALF, 103, 512, 1) == 192
    assert left(121).steps(HALF, 401, 512, 1) is None  # 480, less than a quarter more
    assert left(5).steps(HALF, 32, 512, 1) is None and left(-5).steps(HALF, 0, 32, 1) is None
    assert [left(100, spent).exploring for spent in (0, 149, 151)] == [True, True, False]
    began = left(100, 1000)
    began.begin()
    assert began.exploring
    assert Allowance(Clock(None), pace, lambda: 30).exploring
