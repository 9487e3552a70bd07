"""Which teacher layer each student layer matches; layers are counted from 1."""

from __future__ import annotations

from collections.abc import Callable

LAYER_MAPS: dict[str, Callable[[int, int], list[tuple[int, int]]]] = {
    "uniform": lambda student, teacher: [
        (i, round(i * teacher / student)) for i in range(1, student + 1)
    ],
    "pseudo-uniform": lambda student, teacher: [
        (
            i,
            teacher
            if i == student
            else 1 + (2 * (i - 1) * (teacher - 1) + student - 1) // (2 * (student - 1)),
        )
        for i in range(1, student + 1)
    ],
    "last": lambda student, teacher: [(i, teacher - student + i) for i in range(1, student + 1)],
}
"""Name -> (student layers, teacher layers) -> pairs. ``uniform`` is PKD-skip and TinyBERT's map,
``last`` PKD-last; ``pseudo-uniform`` has both ends and is the map of Li et al. 2021 for GPT-2
(layers 0 2 4 7 9 11 of 12, counted from 0)."""
