from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autocompress.candidate import Candidate
from autocompress.interfaces import Knowledge
from autocompress.plan import Plan
from autocompress.structure import Importance, Layer, Structure
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.unit_pruning import UnitPruning, allocate

HEADS, FFN = (
    UnitPruning("head-pruning", "heads", "heads"),
    UnitPruning("ffn-pruning", "ffn", "neurons"),
)


def scores(*layers: Sequence[float]) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.array(layer, np.float64) for layer in layers)


def candidate(**chosen: object) -> Candidate:
    """``heads_keep=0.5`` is the setting ``heads.keep``."""
    return SETTINGS.candidate({name.replace("_", ".", 1): value for name, value in chosen.items()})


@pytest.mark.parametrize(
    ("share", "allocation", "kept"),
    [
        (0.5, "global", [(0,), (0, 1), ()]),
        (0.5, "uniform", [(0,), (0,), (1,)]),
        (1 / 6, "global", [(0,), (), ()]),
        (5 / 6, "global", [(0, 1), (0, 1), (1,)]),
        (0.0, "global", [(), (), ()]),
        (0.0, "uniform", [(), (), ()]),
        (1.0, "global", [(0, 1), (0, 1), (0, 1)]),
        (1.0, "uniform", [(0, 1), (0, 1), (0, 1)]),
    ],
)
def test_allocate(share: float, allocation: str, kept: list[tuple[int, ...]]) -> None:
    assert allocate(scores([5, 1], [4, 3], [0.2, 0.5]), share, allocation) == kept


@pytest.mark.parametrize(
    ("allocation", "kept"),
    [("global", [(0, 1, 2), (0,), ()]), ("uniform", [(0,), (0,), (0,)])],
    ids=["global", "uniform"],
)
def test_ties_go_to_the_earlier_layer_and_position(
    allocation: str, kept: list[tuple[int, ...]]
) -> None:
    assert allocate(scores([1, 1, 1], [1, 1, 1], [1, 1, 1]), 4 / 9, allocation) == kept


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=4),
    st.floats(0, 1),
    st.sampled_from(["global", "uniform"]),
)
def test_the_share_is_kept_and_nothing_that_goes_matters_more(
    layers: list[list[int]], share: float, allocation: str
) -> None:
    kept = allocate(scores(*layers), share, allocation)
    pools = (
        [range(len(layers))]
        if allocation == "global"
        else [range(i, i + 1) for i in range(len(layers))]
    )
    for pool in pools:
        stays = [layers[i][j] for i in pool for j in kept[i]]
        goes = [layers[i][j] for i in pool for j in range(len(layers[i])) if j not in kept[i]]
        assert len(stays) == round(share * (len(stays) + len(goes)))
        assert not stays or not goes or min(stays) >= max(goes)
    assert all(list(positions) == sorted(set(positions)) for positions in kept)


def test_what_goes_in_steps_counts_with_its_mean() -> None:
    """Blocks of two, the third layer's last of one: 5.5, 2 | 4, 3.5 | 6."""
    known = scores([5, 1, 3, 6], [4, 3, 4, 4], [6])
    kept = [allocate(known, share, "global", 2) for share in (0.2, 0.4, 0.6, 0.8)]
    assert kept[0] == [(), (), (0,)]
    assert kept[1] == [(0, 3), (), (0,)]
    assert kept[2] == [(0, 3), (0, 2), (0,)]
    assert kept[3] == [(0, 3), (0, 1, 2, 3), (0,)]
    assert allocate(known[:2], 0.5, "uniform", 2) == [(0, 3), (0, 2)]


@pytest.mark.parametrize(
    ("width", "step"), [(3072, 64), (1024, 64), (1000, 16), (256, 16), (64, 1)]
)
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_neurons_are_kept_in_the_steps_of_the_runtime(
    width: int, step: int, allocation: str
) -> None:
    """What is left of a width that is no multiple of the step stays or goes, too."""
    rng = np.random.default_rng(0)
    known = tuple(rng.random(width) for _ in range(3))
    chosen = candidate(ffn_keep=0.37, ffn_allocation=allocation)
    full, importance = Structure.full([1] * 3, [width] * 3), Importance(scores([1]) * 3, known)
    widths = FFN.refine(full, chosen, Knowledge({"fisher": importance})).ffn_widths
    assert all(kept % step == 0 for kept in widths)
    assert abs(sum(widths) - 0.37 * 3 * width) <= 3 * step


def test_importance_is_that_of_the_layer_in_the_uncut_model() -> None:
    importance = {"fisher": Importance(scores([1, 2], [9, 9], [3, 0]), scores([1], [1], [1]))}
    full = Plan("bert", Structure.full([2, 2, 2], [1, 1, 1]))
    left = resolve(full, candidate(layers_keep=[0, 2], heads_keep=0.5), Knowledge(importance))
    assert left.structure == Structure((Layer(0, (1,), (0,)), Layer(2, (0,), (0,))))


def test_importance_is_that_of_the_units_still_there() -> None:
    importance = {"fisher": Importance(scores([9, 1, 9, 2]), scores([1]))}
    left = HEADS.refine(
        Structure((Layer(0, (1, 3), (0,)),)), candidate(heads_keep=0.5), Knowledge(importance)
    )
    assert left == Structure((Layer(0, (3,), (0,)),))


def test_the_criterion_asked_for_ranks() -> None:
    importance = {
        "fisher": Importance(scores([1]), scores([4, 3, 2, 1])),
        "magnitude": Importance(scores([1]), scores([1, 2, 3, 4])),
    }
    full = Structure.full([1], [4])
    by_fisher = FFN.refine(full, candidate(ffn_keep=0.5), Knowledge(importance))
    by_magnitude = FFN.refine(
        full, candidate(ffn_keep=0.5, ffn_importance="magnitude"), Knowledge(importance)
    )
    assert [by_fisher.layers[0].ffn, by_magnitude.layers[0].ffn] == [(0, 1), (2, 3)]
    assert by_fisher.head_counts == by_magnitude.head_counts == (1,)


def test_heads_and_neurons_are_cut_apart() -> None:
    importance = {"fisher": Importance(scores([2, 1], [4, 3]), scores([1, 2, 3, 4], [5, 6, 7, 8]))}
    chosen = candidate(heads_keep=0.5, ffn_keep=0.5, ffn_allocation="uniform")
    left = resolve(Plan("bert", Structure.full([2, 2], [4, 4])), chosen, Knowledge(importance))
    assert left.structure == Structure((Layer(0, (), (2, 3)), Layer(1, (0, 1), (2, 3))))


@pytest.mark.parametrize("technique", [HEADS, FFN], ids=["heads", "ffn"])
def test_all_and_none(technique: UnitPruning) -> None:
    known = Knowledge({"fisher": Importance(scores([1, 2]), scores([1, 2]))})
    full = Structure.full([2], [2])
    assert technique.refine(full, SETTINGS.candidate({}), known) is full
    emptied = technique.refine(full, SETTINGS.candidate({f"{technique.section}.keep": 0}), known)
    assert getattr(emptied.layers[0], technique.section) == ()
    assert (
        technique.refine(emptied, SETTINGS.candidate({f"{technique.section}.keep": 0.5}), known)
        == emptied
    )
