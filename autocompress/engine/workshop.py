"""The first step of a trial as an order: from a plan to a sealed student, in whatever process."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from torch import nn

from autocompress.candidate import Candidate
from autocompress.engine.making import Maker, Making
from autocompress.engine.scoring import packed_in_training
from autocompress.errors import AutocompressError, CandidateFailed, UserError
from autocompress.interfaces import Task
from autocompress.plan import Plan


@dataclass(frozen=True)
class Order:
    """A student that is to be made.

    Args:
        number: of its first trial.
        asked: whether it answers the task's rung examples at the end of its training.
        left_s: seconds that there are for it.
        limit_s: seconds after which whoever makes it counts as hanging.
    """

    number: int
    plan: Plan
    candidate: Candidate
    asked: bool = False
    left_s: float = float("inf")
    limit_s: float = float("inf")


@dataclass(frozen=True)
class Made:
    """What came of an order.

    Args:
        sealed: whether the student is in its folder; else its time was up, or it failed.
        steps: that it was trained for.
        training_s: seconds of them.
        seconds: of everything.
        failed: why.
    """

    sealed: bool
    steps: int = 0
    training_s: float = 0.0
    seconds: float = 0.0
    failed: str | None = None


class Workshop:
    """Makes what is ordered, in this process."""

    def __init__(self, maker: Maker, task: Task) -> None:
        self.maker, self.task = maker, task

    def make(self, order: Order) -> Made:
        """A student that cannot be made costs itself alone.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        started = time.monotonic()
        try:
            made = self._made(order, started)
        except Exception as error:
            reason = reason_of(error) or _unexpected(error)
            if reason is None:
                raise
            made = Made(sealed=False, failed=reason, seconds=time.monotonic() - started)
        return made

    def _made(self, order: Order, started: float) -> Made:
        making = self.maker.begin(order.plan, order.candidate)
        steps = int(order.candidate.number("recovery.steps", 0))
        before, begun = making.done, time.monotonic()
        sealed = self.maker.train(
            making, steps, lambda seconds: seconds <= order.left_s - (time.monotonic() - started)
        )
        training_s, trained = time.monotonic() - begun, making.done - before
        if sealed:
            self.maker.seal(making, self._answers(making) if order.asked else None)
        return Made(sealed, trained, training_s, time.monotonic() - started)

    def _answers(self, making: Making) -> str | None:
        """Of the model in training to validation examples; None where it is trained no more."""
        model: nn.Module = making.model
        if making.recovery is None:
            return None
        return packed_in_training(self.task, model, self.maker.teacher.compute)


def reason_of(error: Exception) -> str | None:
    """Why a candidate fails by this error; None where it is no fault of the candidate."""
    if isinstance(error, CandidateFailed | UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, RuntimeError) and "memory" in str(error):
        return f"out of memory: {str(error).splitlines()[0]}"
    return None


def _unexpected(error: Exception) -> str | None:
    """Of a technique or an objective that breaks; its traceback is logged."""
    if isinstance(error, OSError | AutocompressError):
        return None
    logging.getLogger(__name__).error("a student cannot be made", exc_info=error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
