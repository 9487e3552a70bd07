from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import CandidateFailed
from autocompress.interfaces import Knowledge
from autocompress.structure import Structure
from autocompress.techniques import SETTINGS
from autocompress.techniques.layer_truncation import RULES, LayerTruncation


def kept(
    layers: int, keep: object, rule: str = "uniform", structure: Structure | None = None
) -> list[int]:
    """Layers of the original model that are left."""
    structure = structure or Structure.full([2] * layers, [4] * layers)
    candidate = SETTINGS.candidate({"layers.keep": keep, "layers.rule": rule})
    return [
        layer.source
        for layer in LayerTruncation().refine(structure, candidate, Knowledge({})).layers
    ]


@pytest.mark.parametrize(
    ("rule", "n", "k", "layers"),
    [
        ("uniform", 12, 6, [0, 2, 4, 6, 8, 10]),
        ("pseudo-uniform", 12, 6, [0, 2, 4, 7, 9, 11]),
        ("top", 12, 6, [6, 7, 8, 9, 10, 11]),
        ("bottom", 12, 6, [0, 1, 2, 3, 4, 5]),
        ("sandwich", 12, 6, [0, 1, 2, 9, 10, 11]),
        ("sandwich", 12, 5, [0, 1, 2, 10, 11]),
        ("uniform", 12, 5, [0, 2, 4, 7, 9]),
        ("pseudo-uniform", 6, 4, [0, 2, 3, 5]),
        ("pseudo-uniform", 12, 2, [0, 11]),
        ("uniform", 12, 1, [0]),
        ("pseudo-uniform", 12, 1, [0]),
        ("top", 12, 1, [11]),
        ("bottom", 12, 1, [0]),
        ("sandwich", 12, 1, [0]),
        ("bottom-half", 12, 6, [0, 1, 2, 3, 4, 5]),
        ("top-half", 12, 6, [6, 7, 8, 9, 10, 11]),
        ("spread-sandwich", 12, 6, [0, 1, 2, 9, 10, 11]),
        ("uniform", 24, 6, [0, 4, 8, 12, 16, 20]),
        ("bottom-half", 24, 6, [0, 2, 4, 6, 8, 10]),
        ("top-half", 24, 6, [13, 15, 17, 19, 21, 23]),
        ("spread-sandwich", 24, 6, [0, 2, 4, 19, 21, 23]),
        ("pseudo-uniform", 12, 3, [0, 6, 11]),
        ("pseudo-uniform", 24, 3, [0, 12, 23]),
        ("bottom-half", 6, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_rules(rule: str, n: int, k: int, layers: list[int]) -> None:
    assert RULES[rule](n, k) == layers


@settings(deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(1, 64), st.data())
def test_every_rule_keeps_k_distinct_layers_of_the_model_in_order(
    rule: str, n: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n))
    layers = RULES[rule](n, k)
    assert len(layers) == k
    assert layers == sorted(set(layers))
    assert set(layers) <= set(range(n))


@settings(deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(1, 64))
def test_all_of_them_are_all(rule: str, n: int) -> None:
    assert RULES[rule](n, n) == list(range(n))


@pytest.mark.parametrize(
    ("layers", "keep", "rule", "left"),
    [
        (6, 1.0, "top", [0, 1, 2, 3, 4, 5]),
        (6, 0.67, "pseudo-uniform", [0, 2, 3, 5]),
        (6, 0.5, "uniform", [0, 2, 4]),
        (6, 0.01, "top", [5]),
        (6, [0, 5], "bottom", [0, 5]),
        (6, [3], "bottom", [3]),
    ],
)
def test_refine(layers: int, keep: object, rule: str, left: list[int]) -> None:
    assert kept(layers, keep, rule) == left


def test_by_default_the_structure_is_left_alone() -> None:
    structure = Structure.full([2, 2], [4, 4])
    assert LayerTruncation().refine(structure, SETTINGS.candidate({}), Knowledge({})) is structure


def test_counts_the_layers_that_are_left() -> None:
    full = Structure.full([2] * 6, [4] * 6)
    even = Structure(full.layers[::2])
    assert kept(3, [1, 2], structure=even) == [2, 4]
    assert kept(3, 0.67, "top", structure=even) == [2, 4]


def test_a_layer_that_the_model_does_not_have() -> None:
    with pytest.raises(
        CandidateFailed, match=re.escape("layers.keep names layer 6, the model has 6 (0 to 5)")
    ):
        kept(6, [0, 6])
