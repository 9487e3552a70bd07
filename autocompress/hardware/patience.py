"""How long a device may take to answer: by what is asked of it, by what it took before, and by the
time that is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_START_S = 5.0
"""Of a process that loads its libraries on a slow board."""
_MOST, _LEAST = 10.0, 2.0
"""Times what is expected that an answer may take, while there is time left and at any rate."""
_LEFT: ContextVar[Callable[[], float]] = ContextVar("_LEFT", default=lambda: math.inf)


@contextmanager
def until(left: Callable[[], float]) -> Iterator[None]:
    """Inside, devices are waited for no longer than there is time.

    Args:
        left: seconds that are left.
    """
    token = _LEFT.set(left)
    try:
        yield
    finally:
        _LEFT.reset(token)


def time_left() -> float:
    """Seconds; infinitely many where nobody set an end."""
    return _LEFT.get()()


@dataclass
class Patience:
    """With one device, which is known better with each answer.

    Args:
        model_s: to time a model there, as long as none was timed.
        batch_s: to score a batch there, as long as none was scored.
    """

    model_s: float = 1800.0
    batch_s: float = 60.0
    _pace: dict[object, float] = field(default_factory=dict)

    def limit_s(self, request: Mapping[str, Any]) -> float:
        """Seconds that the answer to a request may take."""
        kind, parts = _kind(request), _parts(request)
        expected: float = _START_S + request.get("seconds", 0) + parts * self._pace.get(kind, 0)
        most = _MOST * expected
        if kind not in self._pace:
            most += parts * (self.batch_s if "count" in request else self.model_s)
        return min(most, max(_LEAST * expected, time_left()))

    def learn(self, request: Mapping[str, Any], seconds: float) -> None:
        """A request was answered in so many seconds."""
        if parts := _parts(request):
            kind = _kind(request)
            self._pace[kind] = max(self._pace.get(kind, 0), seconds / parts)


def _kind(request: Mapping[str, Any]) -> object:
    return request["action"], request.get("phase"), request.get("regime")


def _parts(request: Mapping[str, Any]) -> int:
    """Batches to score, or models to time."""
    return int(request.get("count") or len(request.get("models", ())))
