"""The ladder: every candidate begins with few recovery steps, and climbs where that pays.

At each rung a student is sealed, converted and scored like any other: what is compared are
artifacts. Of those that came by a rung the better half goes on to the next one, of four times the
steps, as soon as there are four of them: successive halving without waiting (Li et al. 2020, A
system for massively parallel hyperparameter tuning, section 3.2), with the rank of a candidate in
several objectives (Deb et al. 2002, NSGA-II, section III) in place of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, Value
from autocompress.pareto import non_dominated
from autocompress.plan import Plan

FIRST_RUNG = 32
"""Recovery steps after which candidates are first compared: enough to rank them, see
``docs/how-it-searches.md``."""
_FACTOR = 4
_PROMOTED = 1 / 2
"""Of those that came by a rung."""
_FEWEST_RANKED = 4
"""That came by a rung, before any goes on from it, and that a rank correlation is told of."""
History = tuple[tuple[int, float], ...]
"""(recovery steps, drop on validation examples) of a student at its rungs."""


def rungs(candidate: Candidate) -> tuple[int, ...]:
    """Recovery steps at which a candidate is scored: 32, 128, 512, ... and its own at the end;
    where the cut is repaired in closed form, first without any."""
    most = int(candidate.number("recovery.steps", 0))
    if not most:
        return (0,)
    stops = [0] if candidate.get("weights.repair", False) else []
    rung = FIRST_RUNG
    while 2 * rung < most:
        stops.append(rung)
        rung *= _FACTOR
    return (*stops, most)


@dataclass(eq=False)
class Climber:
    """A candidate on the ladder.

    Args:
        chosen: as the sampler proposed it.
        candidate: trained in full.
        reached: losses at the steps where it was scored, the drop last.
        latest: number of the trial where it has come to.
    """

    chosen: Mapping[str, Value]
    candidate: Candidate
    plan: Plan
    reached: dict[int, tuple[float, ...]] = field(default_factory=dict)
    latest: int | None = None

    @property
    def steps(self) -> int:
        """Where it has come to; it must have come somewhere."""
        return max(self.reached)

    @property
    def next(self) -> int | None:
        """Steps of its next rung; None at the end of the ladder."""
        return next((rung for rung in rungs(self.candidate) if rung > self.steps), None)

    @property
    def fitted(self) -> bool:
        """Whether it has come beyond a rung, as far as its share of the time went."""
        return self.steps not in rungs(self.candidate)

    @property
    def history(self) -> History:
        """Its drops."""
        return tuple((steps, losses[-1]) for steps, losses in sorted(self.reached.items()))


def promotable(climbers: Sequence[Climber]) -> Iterator[Climber]:
    """Those to go on: of the better half at a rung, the highest rung first, the best ones that have
    not gone on."""
    for rung in sorted({steps for climber in climbers for steps in climber.reached}, reverse=True):
        there = [climber for climber in climbers if rung in climber.reached]
        if len(there) < _FEWEST_RANKED:
            continue
        for climber in _better_half(there, rung):
            if climber.steps == rung and climber.next is not None:
                yield climber


def finalists(climbers: Sequence[Climber], rivals: Sequence[tuple[float, ...]]) -> list[Climber]:
    """Those that can go on and that nothing dominates where they have come to, the one with the
    fewest steps first.

    Args:
        rivals: losses of what is not on the ladder.
    """
    points = [climber.reached[climber.steps] for climber in climbers]
    best = [climbers[i] for i in non_dominated([*points, *rivals]) if i < len(climbers)]
    return sorted((one for one in best if one.next is not None), key=lambda one: one.steps)


def may_go_on(
    climbers: Sequence[Climber], rivals: Sequence[tuple[float, ...]]
) -> Iterator[Climber]:
    """Those of which the next one to climb may come."""
    yield from finalists(climbers, rivals)
    for rung in {climber.steps for climber in climbers}:
        there = [climber for climber in climbers if rung in climber.reached]
        yield from (one for one in _better_half(there, rung, more=1) if one.steps == rung)


def _better_half(there: Sequence[Climber], rung: int, more: int = 0) -> list[Climber]:
    order = ranked([climber.reached[rung] for climber in there])
    return [there[i] for i in order[: int(_PROMOTED * len(there)) + more]]


def ranked(losses: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices, best first: by fronts of what is not dominated, and inside of a front by the
    hypervolume that a point alone adds to it, latency and size on a logarithmic scale, so that half
    the latency counts as much at the fast end as at the slow one, where drops are still large.

    Args:
        losses: relative latencies and size, more than zero, then the drop, all to be minimised.
    """
    points = [(*(math.log(cost) for cost in own[:-1]), own[-1]) for own in losses]
    left, order = list(range(len(points))), list[int]()
    while left:
        front = [left[i] for i in non_dominated([points[i] for i in left])]
        added = _added([points[i] for i in front], points)
        order += [front[i] for i in sorted(range(len(front)), key=lambda i: -added[i])]
        left = [i for i in left if i not in front]
    return order


def _added(
    front: Sequence[tuple[float, ...]], everything: Sequence[tuple[float, ...]]
) -> list[float]:
    """The area that each point adds to a front, in the cost where that is most, as far as half more
    than the worst of all points."""
    worst = np.max(everything, axis=0)
    span = np.maximum(worst - np.min(everything, axis=0), 1e-9)
    values = (np.asarray(front) - worst) / span  # the best is -1, the worst 0
    areas = [_exclusive(values[:, [cost, -1]]) for cost in range(values.shape[1] - 1)]
    return [float(area) for area in np.max(areas, axis=0)] if areas else [0.0] * len(front)


def _exclusive(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of points of two losses, the area that each alone dominates below the bound."""
    bound = 0.5
    order = np.lexsort((points[:, 1], points[:, 0]))
    costs, drops = points[order].T
    widths = np.diff(costs, append=bound)
    heights = np.diff(np.minimum.accumulate(drops), prepend=bound)
    areas = np.empty(len(points))
    areas[order] = np.maximum(0, widths) * np.maximum(0, -heights)
    return areas


def rank_correlations(histories: Iterable[History]) -> dict[str, dict[str, float]]:
    """How alike students rank at a rung and where they came to: Spearman's correlation of their
    drops, by recovery steps of the rung, with the number of students; of rungs that
    ``_FEWEST_RANKED`` students came by."""
    told = {}
    climbed = [history for history in histories if len(history) > 1]
    for steps in sorted({steps for history in climbed for steps, _ in history[:-1]}):
        pairs = [
            (dict(history)[steps], history[-1][1])
            for history in climbed
            if steps in dict(history[:-1])
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
