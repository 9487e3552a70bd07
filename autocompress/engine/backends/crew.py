"""What backends of workers have in common, wherever these run."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Generic, TypeVar

from autocompress.engine.workshop import Made, Order

_MOST_LOST = 2
"""Workers that an order may cost."""
_LOOK_S = 1.0
"""Between two looks at orders that take too long."""
_Worker = TypeVar("_Worker")


class WorkerLost(Exception):
    """A worker that ended before its order did; the message says how."""


class Crew(ABC, Generic[_Worker]):
    """A ``Backend`` of workers, each at one order at a time, hired when there is one for it.

    The order of a worker that is lost goes to another one, from where its trunk was written last;
    an order that costs a second worker has failed, and so has one that goes beyond its limit.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, tuple[Order, float]] = {}
        self._lost: Counter[int] = Counter()

    @abstractmethod
    def hired(self) -> _Worker:
        """A new worker.

        Raises:
            UserError: there can be none.
        """

    @abstractmethod
    def give(self, worker: _Worker, order: Order) -> None:
        """Have the order made; a worker that is lost need not be noticed here."""

    @abstractmethod
    def heard_of(self, workers: Sequence[_Worker], timeout_s: float) -> Sequence[_Worker]:
        """Those that have ended their order, or are lost; waits for the first of them."""

    @abstractmethod
    def result(self, worker: _Worker) -> Made:
        """Of a worker that was heard of.

        Raises:
            WorkerLost: it is.
            OSError, UserError: see ``Backend.done``.
        """

    @abstractmethod
    def dismiss(self, worker: _Worker) -> None:
        """Whatever it is at; it does not go on when this returns."""

    def submit(self, order: Order) -> None:
        worker = self._idle.pop() if self._idle else self.hired()
        self._busy[worker] = order, time.monotonic() + order.limit_s
        self.give(worker, order)

    def done(self) -> tuple[Order, Made]:
        while True:
            for worker in self.heard_of(list(self._busy), _LOOK_S):
                order, _ = self._busy.pop(worker)
                self._idle.append(worker)
                try:
                    return order, self.result(worker)
                except WorkerLost as lost:
                    self._idle.remove(worker)
                    self.dismiss(worker)
                    self._lost[order.number] += 1
                    if self._lost[order.number] < _MOST_LOST:
                        self.submit(order)
                        continue
                    reason = f"it ended {_MOST_LOST} workers, {lost}"
                    return order, Made(sealed=False, failed=reason)
            for worker, (order, until) in self._busy.items():
                if time.monotonic() > until:
                    del self._busy[worker]
                    self.dismiss(worker)
                    reason = f"not done after {order.limit_s:.0f} s, its worker was ended"
                    return order, Made(sealed=False, failed=reason)

    def close(self) -> None:
        for worker in (*self._idle, *self._busy):
            self.dismiss(worker)
        self._idle.clear()
        self._busy.clear()
