"""Layer truncation: keep some layers, drop the rest.

Rules after Li et al. 2021 and its released code (layers of a student as part of a teacher's) and
Sajjad et al. 2020, "Poor Man's BERT". Keeping half of the layers, ``bottom`` and ``bottom-half``
are the same, as are ``top`` and ``top-half``, ``sandwich`` and ``spread-sandwich``; keeping fewer,
those of the paper's code stay spread over their half.
"""

from __future__ import annotations

from collections.abc import Callable

from autocompress.candidate import Candidate, OneOf, Setting, Value
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Knowledge, StructuralTechnique
from autocompress.structure import Structure


def _bottom_half(n: int, k: int) -> list[int]:
    return [i * max(k, n // 2) // k for i in range(k)]


def _top_half(n: int, k: int) -> list[int]:
    return [n - 1 - i for i in reversed(_bottom_half(n, k))]


RULES: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": lambda n, k: [i * n // k for i in range(k)],
    "pseudo-uniform": lambda n, k: (
        [0] if k == 1 else [(2 * i * (n - 1) + k - 1) // (2 * (k - 1)) for i in range(k)]
    ),
    "bottom": lambda n, k: list(range(k)),
    "top": lambda n, k: list(range(n - k, n)),
    "sandwich": lambda n, k: [*range((k + 1) // 2), *range(n - k // 2, n)],
    "bottom-half": _bottom_half,
    "top-half": _top_half,
    "spread-sandwich": lambda n, k: [
        *_bottom_half(n, k)[: (k + 1) // 2],
        *_top_half(n, k)[(k + 1) // 2 :],
    ],
}
"""Rule -> (layers there are, layers to keep) -> the layers kept, ascending."""


class _LayersKept:
    """A share in (0, 1], or the list of layers itself."""

    has_ranges = True

    def allows(self, value: Value) -> bool:
        if isinstance(value, tuple):
            whole = [
                item
                for item in value
                if isinstance(item, int) and not isinstance(item, bool) and item >= 0
            ]
            return len(whole) == len(value) > 0 and whole == sorted(set(whole))
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1

    def canonical(self, value: Value) -> Value:
        return float(value) if isinstance(value, int | float) else value

    def __str__(self) -> str:
        return "a share more than 0 and at most 1, or an ascending list of layers counted from 0"


class LayerTruncation(StructuralTechnique):
    """Keeps ``layers.keep`` of the layers (at least one), chosen by ``layers.rule``, or exactly the
    listed ones."""

    name = "layer-truncation"
    settings = (
        Setting("layers.keep", _LayersKept(), 1.0, "share of the layers kept, or the list of them"),
        Setting(
            "layers.rule",
            OneOf(tuple(RULES)),
            "uniform",
            "which layers are kept",
            when=lambda s: not isinstance(s["layers.keep"], tuple) and s["layers.keep"] != 1,
        ),
    )

    def refine(self, structure: Structure, candidate: Candidate, knowledge: Knowledge) -> Structure:
        keep = candidate.get("layers.keep", 1.0)
        count = len(structure.layers)
        if isinstance(keep, tuple):
            listed = [item for item in keep if isinstance(item, int)]
            if listed[-1] >= count:
                raise CandidateFailed(
                    f"layers.keep names layer {listed[-1]}, the model has {count} (0 to "
                    f"{count - 1})"
                )
        elif keep == 1:
            return structure
        else:
            rule = RULES[candidate.text("layers.rule", "uniform")]
            listed = rule(count, max(1, round(candidate.number("layers.keep") * count)))
        return Structure(tuple(structure.layers[i] for i in listed))
