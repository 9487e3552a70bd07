"""Pruning by importance per millisecond, against orders and latencies worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import CandidateFailed
from autocompress.interfaces import Knowledge
from autocompress.plan import Plan
from autocompress.structure import Importance, Layer, Structure
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.latency_pruning import LatencyPruning

TECHNIQUE = LatencyPruning()
REST, PER_HEAD, PER_NEURON = 2.0, 10.0, 1.0
HEADS = ([5.0, 20.0], [12.0, 39.0])
FFN = ([0.1, 0.2, 3.0, 4.0], [0.4, 1.1, 2.5, 6.0])


def additive(structure: Structure) -> float:
    """A head takes ten times as long as a neuron; the uncut model 50."""
    return REST + PER_HEAD * sum(structure.head_counts) + PER_NEURON * sum(structure.ffn_widths)


def fisher(heads: Sequence[Sequence[float]], ffn: Sequence[Sequence[float]]) -> Importance:
    return Importance(
        tuple(np.array(row, float) for row in heads), tuple(np.array(row, float) for row in ffn)
    )


def refine(
    structure: Structure,
    share: float,
    latency: Callable[[Structure], float] | None = additive,
    scores: Importance | None = None,
) -> Structure:
    knowledge = Knowledge({"fisher": scores or fisher(HEADS, FFN)}, latency)
    return TECHNIQUE.refine(structure, SETTINGS.candidate({"width.latency": share}), knowledge)


FULL = Structure.full([2, 2], [4, 4])
REMOVED_FIRST = [
    (0, "ffn", 0),  # 0.1 per millisecond; 49 left
    (0, "ffn", 1),  # 0.2; 48
    (1, "ffn", 0),  # 0.4; 47
    (0, "heads", 0),  # 5 in 10 ms, 0.5; 37
    (1, "ffn", 1),  # 1.1; 36
    (1, "heads", 0),  # 12 in 10 ms, 1.2; 26
    (0, "heads", 1),  # 2.0; 16
    (1, "ffn", 2),  # 2.5; 15
    (0, "ffn", 2),  # 3.0; 14
    (1, "heads", 1),  # 3.9; 4
    (0, "ffn", 3),  # 4.0; 3
    (1, "ffn", 3),  # 6.0; 2
]


def without(structure: Structure, removed: Sequence[tuple[int, str, int]]) -> Structure:
    return Structure(
        tuple(
            Layer(
                layer.source,
                tuple(i for i in layer.heads if (position, "heads", i) not in removed),
                tuple(i for i in layer.ffn if (position, "ffn", i) not in removed),
            )
            for position, layer in enumerate(structure.layers)
        )
    )


def test_at_its_default_it_leaves_the_model_as_it_is() -> None:
    assert refine(FULL, 1.0) is FULL
    assert refine(FULL, 1.0, latency=None) is FULL


@pytest.mark.parametrize(
    ("milliseconds", "removed"),
    [
        (49.5, 1),
        (49, 1),
        (48.9, 2),
        (47, 3),
        (46.9, 4),
        (37, 4),
        (36, 5),
        (35, 6),
        (26, 6),
        (25.9, 7),
        (16, 7),
        (14, 9),
        (13.9, 10),
    ],
)
def test_what_matters_least_for_its_time_goes_first(milliseconds: float, removed: int) -> None:
    assert refine(FULL, milliseconds / 50) == without(FULL, REMOVED_FIRST[:removed])


def test_all_heads_and_neurons_may_go() -> None:
    assert refine(FULL, 0.04) == Structure((Layer(0, (), ()), Layer(1, (), ())))


def test_the_share_is_of_what_earlier_techniques_left() -> None:
    """Half the layers at 27 ms; scores are found through the layer's place in the original
    model."""
    left = Structure((Layer(1, (0, 1), (0, 1, 2, 3)),))
    assert additive(left) == 26
    assert refine(left, 25 / 26) == Structure((Layer(1, (0, 1), (1, 2, 3)),))
    assert refine(left, 24 / 26) == Structure((Layer(1, (0, 1), (2, 3)),))
    assert refine(left, 23.9 / 26) == Structure((Layer(1, (1,), (2, 3)),))
    candidate = SETTINGS.candidate({"layers.keep": [1], "width.latency": 24 / 26})
    knowledge = Knowledge({"fisher": fisher(HEADS, FFN)}, additive)
    structure = resolve(Plan("bert", FULL), candidate, knowledge).structure
    assert structure == Structure((Layer(1, (0, 1), (2, 3)),))


def test_cheap_heads_stay_where_dear_ones_go() -> None:
    """Equal importance: time alone decides."""
    even = fisher(([1.0] * 4, [1.0] * 4), ([1.0] * 4, [1.0] * 4))
    full = Structure.full([4, 4], [4, 4])

    def slow_first_layer(structure: Structure) -> float:
        a, b = structure.head_counts
        return 100.0 * a + b + 0.001 * sum(structure.ffn_widths)

    refined = refine(full, 0.51, slow_first_layer, even)  # 206 of 404
    assert refined.head_counts == (2, 4) and refined.ffn_widths == (4, 4)


def test_the_only_head_of_a_layer_takes_what_it_takes() -> None:
    """One head each, all else equal: 0.5 and 1.2 per millisecond, before neurons of more."""
    full = Structure.full([1, 1], [4, 4])
    scores = fisher(([5.0], [12.0]), ([9.0] * 4, [9.0] * 4))
    assert refine(full, 20 / 30, additive, scores) == Structure(
        (Layer(0, (), (0, 1, 2, 3)), Layer(1, (0,), (0, 1, 2, 3)))
    )


def test_neurons_go_in_the_steps_of_the_runtime() -> None:
    """The 16 least important of 256 at a time, until 2 + 2 x 10 + 512 ms are half of that."""
    rng = np.random.default_rng(0)
    ffn = rng.permutation(512).reshape(2, 256) / 512
    full, scores = Structure.full([1, 1], [256, 256]), fisher(([1e3], [1e3]), ffn.tolist())
    refined = refine(full, 0.5, additive, scores)
    assert refined.head_counts == (1, 1)
    assert sum(refined.ffn_widths) == 240 and all(n % 16 == 0 for n in refined.ffn_widths)
    for layer, important in zip(refined.layers, ffn, strict=True):
        gone = np.delete(important, layer.ffn)
        assert gone.max() < important[list(layer.ffn)].min()


def test_out_of_reach_fails_the_candidate() -> None:
    with pytest.raises(
        CandidateFailed,
        match=r"^width\.latency 0\.03 is out of reach: without any heads and neurons more is left$",
    ):
        refine(FULL, 0.03)


def test_without_a_table_the_candidate_fails() -> None:
    with pytest.raises(
        CandidateFailed, match=r"^width\.latency needs a latency table, and none was measured$"
    ):
        refine(FULL, 0.5, latency=None)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Structure, Importance, Callable[[Structure], float]]:
    """An uncut model of two heads and neurons at least per layer, its scores, and an additive
    latency with a price per layer."""
    layers = draw(st.integers(1, 3))
    heads = draw(st.lists(st.integers(2, 4), min_size=layers, max_size=layers))
    ffn = draw(st.lists(st.integers(2, 9), min_size=layers, max_size=layers))
    score = st.floats(0.001, 1000)
    scores = fisher(
        [draw(st.lists(score, min_size=count, max_size=count)) for count in heads],
        [draw(st.lists(score, min_size=count, max_size=count)) for count in ffn],
    )
    price = st.floats(0.01, 100)
    prices = draw(st.lists(st.tuples(price, price), min_size=layers, max_size=layers))
    rest = draw(st.floats(0, 10))

    def latency(structure: Structure) -> float:
        pairs = zip(structure.layers, prices, strict=True)
        return rest + sum(len(layer.heads) * a + len(layer.ffn) * b for layer, (a, b) in pairs)

    return Structure.full(heads, ffn), scores, latency


@given(worlds(), st.floats(0.02, 0.999))
@settings(deadline=None)
def test_the_target_is_met_and_no_more_is_removed_than_that_takes(
    world: tuple[Structure, Importance, Callable[[Structure], float]], share: float
) -> None:
    full, scores, latency = world
    target = share * latency(full)
    try:
        refined = refine(full, share, latency, scores)
    except CandidateFailed:
        assert (
            latency(Structure(tuple(Layer(layer.source, (), ()) for layer in full.layers))) > target
        )
        return
    assert latency(refined) <= target

    def worth(unit: tuple[int, str, int]) -> float:
        """Importance over what it takes, from two structures that differ by one unit."""
        position, kind, index = unit
        important = (scores.heads if kind == "heads" else scores.ffn)[position][index]
        return float(important) / (latency(full) - latency(without(full, [unit])))

    units = [(p, "heads", i) for p, layer in enumerate(full.layers) for i in layer.heads]
    units += [(p, "ffn", i) for p, layer in enumerate(full.layers) for i in layer.ffn]
    kept = {(p, "heads", i) for p, layer in enumerate(refined.layers) for i in layer.heads}
    kept |= {(p, "ffn", i) for p, layer in enumerate(refined.layers) for i in layer.ffn}
    removed = sorted((unit for unit in units if unit not in kept), key=worth)
    assert removed  # a share below 1 removes something
    assert all(worth(unit) >= worth(removed[-1]) * (1 - 1e-6) for unit in kept)
    # ties in worth may be broken either way; one of the last must have been needed
    last = [unit for unit in removed if worth(unit) >= worth(removed[-1]) * (1 - 1e-6)]
    assert any(
        latency(without(full, [u for u in removed if u != unit])) > target * (1 - 1e-9)
        for unit in last
    )


@given(worlds(), st.floats(0.3, 1), st.floats(0.3, 1))
@settings(deadline=None)
def test_a_smaller_share_keeps_less_of_the_same(
    world: tuple[Structure, Importance, Callable[[Structure], float]], one: float, other: float
) -> None:
    full, scores, latency = world
    try:
        small, large = (refine(full, share, latency, scores) for share in sorted((one, other)))
    except CandidateFailed:
        return
    for less, more in zip(small.layers, large.layers, strict=True):
        assert set(less.heads) <= set(more.heads) and set(less.ffn) <= set(more.ffn)
        assert list(less.heads) == sorted(less.heads) and list(less.ffn) == sorted(less.ffn)
    assert latency(small) <= latency(large)


def test_shares_are_from_two_percent_to_all() -> None:
    setting = SETTINGS.by_name["width.latency"]
    assert setting.default == 1.0
    assert [setting.domain.allows(value) for value in (0.0, 0.019, 0.02, 1.0, 1.01, True)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
