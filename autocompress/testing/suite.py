"""What the suites share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest


class Suite:
    """Tests of every member; a test that takes ``member`` runs for each of them.

    Attributes:
        members: those under test, by name, or each with a ``name`` of its own.
    """

    members: ClassVar[Any] = ()

    @classmethod
    def named(cls) -> dict[str, Any]:
        """The members by name."""
        if isinstance(cls.members, Mapping):
            return dict(cls.members)
        return {member.name: member for member in cls.members}

    @classmethod
    def cases(cls) -> dict[str, Sequence[tuple[str, Any]]]:
        """What else tests run for: argument to titles and values."""
        return {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """See ``members`` and ``cases``."""
        for argument, listed in {"member": list(self.named().items()), **self.cases()}.items():
            if argument in metafunc.fixturenames:
                titles, values = [title for title, _ in listed], [value for _, value in listed]
                metafunc.parametrize(argument, values, ids=titles, scope="class")
