"""Local search: mutations of the front, as in Pareto local search (Paquete et al. 2004) and the
mutation step of NSGA-II."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.candidate import Candidate, Value
from autocompress.pareto import non_dominated
from autocompress.search_space import Choices, Range, SearchSpace

_START_UP_POINTS = 6
"""Drawn at random after the corners."""
_TRIES = 32
"""To find a point that is new, before another way is taken."""
_STEPS = 16
"""Of a range that has none of its own."""


@dataclass(frozen=True)
class _Outcome:
    candidate: Candidate
    point: Mapping[str, Value]
    losses: tuple[float, ...]


class LocalSampler:
    """A ``Sampler`` over a space: its corners first, in order, then some points at random, then
    neighbours of the front, one or two settings away; never a point that it knows, while it finds
    others.

    The front is of the points told that miss the limits by least; the one whose neighbours were
    asked for least often comes next.

    Args:
        seed: same seed and same outcomes told, same points.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space, self.random = space, random.Random(seed)
        self.corners = deque(space.corners)
        self.asked = 0
        self.running: dict[int, dict[str, Value]] = {}
        self.front: list[_Outcome] = []
        self.violation = math.inf
        self._known: set[Candidate] = set()
        self._mutated: Counter[Candidate] = Counter()

    def ask(self) -> tuple[int, dict[str, Value]]:
        chosen = self._corner() if self.corners else self._new()
        self._known.add(self.space.candidate(chosen))
        self.asked += 1
        self.running[self.asked] = chosen
        return self.asked, dict(chosen)

    def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
        self._learn(self.running.pop(handle), losses, violation)

    def learn(
        self, chosen: Mapping[str, Value], losses: Sequence[float], violation: float = 0.0
    ) -> None:
        point = self.space.point(chosen)
        if point is not None:
            self._learn(point, losses, violation)

    def _learn(self, point: Mapping[str, Value], losses: Sequence[float], violation: float) -> None:
        candidate = self.space.candidate(point)
        self._known.add(candidate)
        if violation > self.violation:
            return
        rivals = self.front if violation == self.violation else []
        outcomes = [*rivals, _Outcome(candidate, point, tuple(losses))]
        self.violation = violation
        self.front = [outcomes[i] for i in non_dominated([o.losses for o in outcomes])]

    def _corner(self) -> dict[str, Value]:
        corner = self.corners.popleft()
        return self.space.assembled(lambda parameter: corner[parameter.name])

    def _new(self) -> dict[str, Value]:
        for parent in self._parents():
            self._mutated[parent.candidate] += 1
            for _ in range(_TRIES):
                point = self._neighbour(parent.point)
                if self.space.candidate(point) not in self._known:
                    return point
        point = self._drawn({})
        for _ in range(_TRIES):
            if self.space.candidate(point) not in self._known:
                break
            point = self._drawn({})
        return point

    def _parents(self) -> list[_Outcome]:
        if self.asked < len(self.space.corners) + _START_UP_POINTS:
            return []
        return sorted(self.front, key=lambda outcome: self._mutated[outcome.candidate])

    def _neighbour(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """One or two settings away; what only now means something is drawn."""
        near = {
            parameter.name: values
            for parameter in self.space.parameters
            if parameter.name in point
            and (values := _neighbours(parameter.values, point[parameter.name]))
        }
        changed = self.random.sample([*near], min(self.random.randint(1, 2), len(near)))
        return self._drawn({**point, **{name: self.random.choice(near[name]) for name in changed}})

    def _drawn(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """The given settings as far as they mean something, and all others at random."""
        return self.space.assembled(
            lambda p: given[p.name] if p.name in given else self.random.choice(_drawable(p.values))
        )


def _neighbours(values: Choices | Range, value: Value) -> list[Value]:
    """The next smaller and the next larger number, or every other name."""
    ordered = _ordered(values)
    if ordered is None:
        return [other for other in _drawable(values) if other != value]
    assert isinstance(value, int | float)
    smaller = [number for number in ordered if number < value]
    larger = [number for number in ordered if number > value]
    return [*smaller[-1:], *larger[:1]]


def _drawable(values: Choices | Range) -> Sequence[Value]:
    return values.values if isinstance(values, Choices) else _grid(values)


def _ordered(values: Choices | Range) -> Sequence[int | float] | None:
    return values.ascending if isinstance(values, Choices) else _grid(values)


def _grid(values: Range) -> list[int | float]:
    """Ascending; of a range without steps so many that are equally far apart, or equally many times
    as large."""
    low, high = values.low, values.high
    last = round((high - low) / values.step) if values.step else _STEPS
    shares = [i / last for i in range(last + 1)]
    if values.log:
        numbers = [low * (high / low) ** share for share in shares]
    else:
        numbers = [low + (high - low) * share for share in shares]
    if values.integer:
        return sorted({round(number) for number in numbers})
    return [min(max(float(f"{number:.10g}"), low), high) for number in numbers]
