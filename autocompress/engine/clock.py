"""The time of a search: what is left of its limit, and what trainings are going to take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from autocompress.plan import Plan
from autocompress.structure import Structure

MUCH_SLOWER = 3.0
"""Times what a step took at first that is told to the user; a teacher that is asked of new batches
takes up to 2.5 times."""
_MARGIN = 1.25
"""By which a training may take longer than those of other students say."""
_MARGIN_AGAIN = 1.1
"""By which it may take longer than that of the same student said."""
_EXPLORING_SHARE = 0.6
"""Of the time for candidates, in which new ones are tried; then those of the front are trained on,
as long as there is anything to gain."""
_LEAST_GAIN = 1.25
"""Times the steps so far that a candidate is trained on for, where the time left is too short for
its next rung."""
_WHOLE_STEPS = 32
"""Steps fitted to the time left are a multiple of these."""
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
        self._of_plan: dict[Plan, float] = {}
        self._beside: list[float] = []

    def learn(self, plan: Plan, step_s: float) -> None:
        """A step of this student took so many seconds."""
        self.known.append(step_s / self._work(plan))
        self._of_plan[plan] = step_s

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
        if plan in self._of_plan:
            return _MARGIN_AGAIN * steps * self._of_plan[plan]
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


class Allowance:
    """The time that there is for candidates.

    Args:
        verification_s: what the end of the search will take.
    """

    def __init__(self, clock: Clock, pace: Pace, verification_s: Callable[[], float]) -> None:
        self.clock, self.pace, self.verification_s = clock, pace, verification_s
        self.began_s = 0.0

    def begin(self) -> None:
        """Candidates are tried from now on."""
        self.began_s = self.clock.spent

    @property
    def left(self) -> float:
        """Seconds, the verification apart."""
        return self.clock.left(self.verification_s())

    @property
    def exploring(self) -> bool:
        """Whether new candidates are wanted more than better ones."""
        spent = self.clock.spent - self.began_s
        return spent < _EXPLORING_SHARE * (spent + self.left)

    def needs_s(self, plan: Plan, steps: float) -> float:
        """That so much training takes, with all that comes beside it."""
        return self.pace.seconds(plan, steps) + self.pace.beside_s

    def fits(self, plan: Plan, steps: float, done: float = 0, formats: int = 1) -> bool:
        """Whether the time left is enough to train so many steps, some of them done, and to score
        so many number formats."""
        needs_s = self.pace.seconds(plan, steps - done) + formats * self.pace.beside_s
        return needs_s <= self.left

    def steps(self, plan: Plan, done: int, wanted: int, share: float) -> int | None:
        """Those wanted, or as many as fit a share of the time left; None where these would gain
        nothing."""
        spend_s = share * self.left - self.pace.beside_s
        if self.pace.seconds(plan, wanted - done) <= spend_s:
            return wanted
        steps = _WHOLE_STEPS * int((done + self.pace.steps(plan, spend_s)) // _WHOLE_STEPS)
        return steps if steps >= max(_WHOLE_STEPS, _LEAST_GAIN * done) else None
