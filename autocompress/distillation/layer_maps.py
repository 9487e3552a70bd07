"""Which teacher layer each student layer matches; layers are counted from 1."""

from __future__ import annotations

from collections.abc import Callable

LAYER_MAPS: dict[str, Callable[[int, int], list[tuple[int, int]]]] = {
    "uniform": lambda student, teacher: [(i, round(i * teacher / student)) for i in range(1, student + 1)],
    "last": lambda student, teacher: [(i, teacher - student + i) for i in range(1, student + 1)],
}
"""Name -> (student layers, teacher layers) -> pairs. ``uniform`` is PKD-skip and TinyBERT's map, ``last`` PKD-last."""
