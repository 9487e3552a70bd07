"""Who hears of a search's progress."""

from __future__ import annotations

from typing import Protocol

from autocompress.journal import Trial


class Listener(Protocol):
    """Hears of a search's progress."""

    def stage(self, name: str, done: int = 0, of: int = 0) -> None:
        """A stage has begun, or has got so far."""
        ...

    def said(self, line: str) -> None:
        """Something to know: what was read of the data, or a doubt about it."""
        ...

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        """A trial has ended; seconds to the end of the whole search, None when nothing is known
        yet."""
        ...


class Silent:
    """Hears nothing."""

    def stage(self, name: str, done: int = 0, of: int = 0) -> None: ...

    def said(self, line: str) -> None: ...

    def trial(self, trial: Trial, remaining_s: float | None) -> None: ...
