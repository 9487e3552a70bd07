"""A task whose held-out parts raise when they are touched before the step that may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from autocompress.engine.listener import Silent
from autocompress.interfaces import Task, TaskInputs, TaskKind
from autocompress.tasks import text_classification

VERIFICATION = "verifying the front"
"""The stage from which on the test split may be answered."""


class Touched(AssertionError):
    """A held-out part was touched by a step that may not."""


@dataclass(frozen=True)
class Row:
    """A held-out row: its length may be known, its tokens not."""

    shape: tuple[int, ...]

    def _touched(self, *given: Any) -> Any:
        raise Touched("the tokens of a held-out row were read outside of its task's questions")

    __iter__ = __getitem__ = __len__ = __array__ = _touched


@dataclass(frozen=True)
class HeldBack:
    """A held-out split that its own task alone looks into."""

    name: str
    own: Any

    @property
    def rows(self) -> list[Row]:
        return [Row(row.shape) for row in self.own.rows]

    @property
    def labels(self) -> Any:
        raise Touched(f"the labels of the {self.name} split were read outside of its task")

    def take(self, indices: Sequence[int]) -> HeldBack:
        return HeldBack(self.name, self.own.take(indices))


class Guarded:
    """Another task, which answers for its held-out splits when the ``Guard`` lets it."""

    def __init__(self, task: Task, guard: Guard) -> None:
        self._task, self._guard = task, guard
        self.validation = HeldBack("validation", task.validation)
        self.test = HeldBack("test", task.test)

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._task, name)
        if not callable(own):
            return own
        return lambda *given, **named: own(
            *map(self._guard.opened, given),
            **{key: self._guard.opened(value) for key, value in named.items()},
        )


class Guard(Silent):
    """Listens to a search, and opens the test split of its task when the front is verified."""

    def __init__(self) -> None:
        self.verifying = False
        self.asked: list[str] = []

    @property
    def kind(self) -> TaskKind:
        """Text classification under guard."""
        return replace(text_classification.KIND, load=self._load)

    def _load(self, given: TaskInputs) -> Task:
        return cast(Task, Guarded(text_classification.KIND.load(given), self))

    def stage(self, name: str, done: int = 0, of: int = 0) -> None:
        self.verifying = self.verifying or name.startswith(VERIFICATION)

    def opened(self, part: Any) -> Any:
        """What is behind a held-out split; anything else as it is."""
        if not isinstance(part, HeldBack):
            return part
        if part.name == "test" and not self.verifying:
            raise Touched("the test split was touched before the front was verified")
        self.asked.append(part.name)
        return part.own
