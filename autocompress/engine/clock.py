"""The time of a search: what is left of its limit, and what trainings are going to take."""

from __future__ import annotations

import statistics
import time

from autocompress.plan import Plan
from autocompress.structure import Structure

MUCH_SLOWER = 1.5
"""Times what a step took at first that is told to the user."""
_MARGIN = 1.25
"""By which a training may take longer than those before it say."""
_PRESENT = 3
"""Trainings that tell the pace: the first ones that at first, the latest ones that now."""


class Clock:
    """Time left under a limit, seconds; time spent before a resume counts.

    Args:
        limit: None is no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.started = time.monotonic()
        self.limit = limit
        self.before = 0.0

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.started

    def left(self, reserve: float) -> float:
        return float("inf") if self.limit is None else self.limit - self.spent - reserve


class Pace:
    """What trainings take, from the steps of the latest ones and the sizes of their students.

    Args:
        uncut: structure of the teacher.
    """

    def __init__(self, uncut: Structure) -> None:
        self.uncut = uncut
        self.known: list[float] = []
        self._beside: list[float] = []

    def learn(self, plan: Plan, step_s: float) -> None:
        """A step of this student took so many seconds."""
        self.known.append(step_s / self._work(plan))

    def learn_beside(self, seconds: float) -> None:
        """A number format of a student took so long, its training apart."""
        self._beside.append(seconds)

    @property
    def beside_s(self) -> float:
        """What a number format of a student takes, training apart; 0 while nothing is known."""
        return _MARGIN * statistics.median(self._beside[-_PRESENT:]) if self._beside else 0.0

    def steps(self, plan: Plan, seconds: float) -> float:
        """That fit so much time; none while nothing is known."""
        step_s = self.seconds(plan, 1)
        return max(0.0, seconds) / step_s if step_s else 0.0

    @property
    def slower(self) -> float:
        """Times that a step takes what it took at first, for its student's size; one training must
        have been learned of."""
        first, present = self.known[:_PRESENT], self.known[-_PRESENT:]
        return statistics.median(present) / statistics.median(first)

    def seconds(self, plan: Plan, steps: float) -> float:
        """That so many steps may take; 0 while nothing is known."""
        if not self.known:
            return 0.0
        step_s = self._work(plan) * statistics.median(self.known[-_PRESENT:])
        return _MARGIN * steps * step_s

    def _work(self, plan: Plan) -> float:
        """Of a training step, in whole layers; the teacher, and what is in no layer, count as
        one."""
        heads, ffn = max(1, *self.uncut.head_counts), max(1, *self.uncut.ffn_widths)
        layers = plan.structure.layers
        return 1 + sum(0.2 + 0.3 * len(x.heads) / heads + 0.5 * len(x.ffn) / ffn for x in layers)
