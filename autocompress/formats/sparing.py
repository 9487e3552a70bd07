"""Which layers keep more bits than the others."""

from __future__ import annotations

from collections.abc import Callable

from autocompress.candidate import Value
from autocompress.errors import CandidateFailed

RULES: dict[str, Callable[[int], list[int]]] = {
    "none": lambda n: [],
    "first": lambda n: [0],
    "last": lambda n: [n - 1],
    "ends": lambda n: [0, n - 1],
}
"""Rule -> kept layers -> the layers spared."""


class LayersSpared:
    """The name of a rule, or the list of layers itself."""

    has_ranges = False

    def allows(self, value: Value) -> bool:
        if isinstance(value, tuple):
            whole = {
                item
                for item in value
                if isinstance(item, int) and not isinstance(item, bool) and item >= 0
            }
            return len(value) > 0 and list(value) == sorted(whole)
        return isinstance(value, str) and value in RULES

    def canonical(self, value: Value) -> Value:
        return "first" if value == (0,) else value

    def __str__(self) -> str:
        return f"one of {', '.join(RULES)}, or an ascending list of kept layers counted from 0"


def layers_spared(value: Value, layers: int) -> list[int]:
    """Those that a value of the setting names.

    Args:
        layers: how many there are.

    Raises:
        CandidateFailed: one that is not there.
    """
    listed = (
        [item for item in value if isinstance(item, int)]
        if isinstance(value, tuple)
        else RULES[str(value)](layers)
    )
    if listed and listed[-1] >= layers:
        raise CandidateFailed(
            f"quantization.spared names layer {listed[-1]}, the model has {layers} (0 to "
            f"{layers - 1})"
        )
    return listed
