"""Latency tables against worlds whose latencies are known exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.candidate import Candidate
from autocompress.errors import CandidateFailed
from autocompress.latency.predictor import (
    LEAST_MARGIN,
    MOST_MEASUREMENTS,
    LatencyTable,
    Shape,
    probes,
    shape_of,
)
from autocompress.plan import Part, Plan
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS

Costs = Mapping[str, tuple[float, float, float, float, float, float]]
"""By number format: of what is in no layer, of a layer, of having heads, per head, of having an
FFN, per neuron."""

WORLD: Costs = {
    "fp32": (0.04, 0.01, 0.012, 0.004, 0.008, 0.00005),
    "int8-dynamic": (0.02, 0.004, 0.005, 0.001, 0.003, 0.00001),
    "int8-weights/32": (0.03, 0.006, 0.007, 0.002, 0.004, 0.00002),
    "int8-weights/128": (0.028, 0.005, 0.006, 0.0018, 0.0035, 0.000018),
    "int4-weights/32": (0.025, 0.005, 0.004, 0.0015, 0.002, 0.000015),
}
LAYERS, HEADS, FFN = 6, 12, 1536
STEP = 64
"""Neurons that are computed together: each takes its time also where only one of them is left."""
SMALL = (0.0, 0.0)
"""Weights of a head and of a neuron: none that would not fit a cache."""
MINILM = (4 * 384 * 32.0, 2 * 384.0)


def latency(shape: Shape, world: Costs = WORLD) -> float:
    total = world[shape.rest][0]
    for heads, ffn, name in shape.layers:
        _, layer, any_heads, per_head, any_ffn, per_neuron = world[name]
        total += (
            layer
            + any_heads * (heads > 0)
            + per_head * heads
            + any_ffn * (ffn > 0)
            + per_neuron * -(-ffn // STEP) * STEP
        )
    return total


def measured(formats: Sequence[str], world: Costs = WORLD) -> list[tuple[Shape, float]]:
    return [(shape, latency(shape, world)) for shape in probes(LAYERS, HEADS, FFN, formats)]


def even(layers: int, heads: int, ffn: int, name: str = "fp32") -> Shape:
    return Shape(((heads, ffn, name),) * layers, name)


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize(
    "sizes", [(6, 12, 1536), (12, 12, 3072), (4, 4, 64), (2, 2, 8), (6, 1, 1536), (24, 16, 4096)]
)
def test_probes_are_few_distinct_and_of_every_format(
    sizes: tuple[int, int, int], count: int
) -> None:
    layers, heads, ffn = sizes
    formats = [f"format-{i}" for i in range(count)]
    probe_shapes = probes(layers, heads, ffn, formats)
    assert len(probe_shapes) == len(set(probe_shapes)) <= MOST_MEASUREMENTS == 50
    for name in formats:
        assert sum(shape.rest == name for shape in probe_shapes) >= 6
        assert even(layers, heads, ffn, name) in probe_shapes  # the whole model
    for shape in probe_shapes:
        assert 1 <= len(shape.layers) <= layers
        assert len(set(shape.layers)) == 1 and shape.layers[0][2] == shape.rest
        assert 0 <= shape.layers[0][0] <= heads and 0 <= shape.layers[0][1] <= ffn


@pytest.mark.parametrize("count", [1, 7])
def test_a_model_of_one_layer_has_fewer_shapes(count: int) -> None:
    probe_shapes = probes(1, 12, 1536, [f"format-{i}" for i in range(count)])
    assert len(probe_shapes) == len(set(probe_shapes)) >= 4 * count


@pytest.mark.parametrize("count", [8, 9, 12, 16])
def test_probes_stay_few_for_more_formats_than_there_are(count: int) -> None:
    assert len(probes(LAYERS, HEADS, FFN, [f"format-{i}" for i in range(count)])) <= 50


def test_probes_by_hand() -> None:
    """What tells depth, heads and neurons apart."""
    probe_shapes = probes(6, 12, 1536, ["fp32"])
    for shape in (
        even(6, 12, 1536),
        even(1, 12, 1536),
        even(6, 3, 1536),
        even(6, 12, 192),
        even(3, 6, 768),
    ):
        assert shape in probe_shapes


def test_probes_of_more_formats_begin_with_the_same_shapes() -> None:
    """So a search with one more format finds the others' measurements again."""
    for count in range(1, 9):
        formats = [f"format-{i}" for i in range(count + 1)]
        before, after = (
            set(probes(LAYERS, HEADS, FFN, formats[:-1])),
            set(probes(LAYERS, HEADS, FFN, formats)),
        )
        assert {shape for shape in after if shape.rest != formats[-1]} <= before


def plan(*counts: tuple[int, int], parts: tuple[Part, ...] = ()) -> Plan:
    """Of layers with so many heads and neurons."""
    layers = (
        Layer(i, tuple(range(heads)), tuple(range(ffn))) for i, (heads, ffn) in enumerate(counts)
    )
    return Plan("bert", Structure(tuple(layers)), parts)


def candidate(**chosen: object) -> Candidate:
    return SETTINGS.candidate({f"quantization.{name}": value for name, value in chosen.items()})


def test_a_shape_is_counts_and_formats() -> None:
    layers = (Layer(0, (1, 3), (0, 5, 9)), Layer(4, (), (2,)), Layer(5, (0,), ()))
    cut = Plan("bert", Structure(layers))
    assert shape_of(cut, candidate()) == Shape(
        ((2, 3, "fp32"), (0, 1, "fp32"), (1, 0, "fp32")), "fp32"
    )
    named = candidate(scheme="int8-dynamic")
    assert shape_of(cut, named) == Shape(
        ((2, 3, "int8-dynamic"), (0, 1, "int8-dynamic"), (1, 0, "int8-dynamic")), "int8-dynamic"
    )


@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights"])
@pytest.mark.parametrize("block", [32, 128])
def test_weights_in_blocks_are_a_format_by_block(scheme: str, block: int) -> None:
    name = f"{scheme}/{block}"
    shape = shape_of(plan((2, 8)), candidate(scheme=scheme, block_size=block))
    assert shape == Shape(((2, 8, name),), name)


@pytest.mark.parametrize(
    ("scheme", "spared", "expected"),
    [
        ("int8-dynamic", "first", ("fp32", "int8-dynamic", "int8-dynamic")),
        ("int8-static", "last", ("int8-static", "int8-static", "fp32")),
        ("int8-weights", "ends", ("fp32", "int8-weights/32", "fp32")),
        ("int4-weights", "ends", ("int8-weights/32", "int4-weights/32", "int8-weights/32")),
        ("int4-weights", (1,), ("int4-weights/32", "int8-weights/32", "int4-weights/32")),
    ],
)
def test_spared_layers_have_a_format_of_their_own(
    scheme: str, spared: object, expected: tuple[str, ...]
) -> None:
    shape = shape_of(plan((2, 8), (1, 4), (2, 2)), candidate(scheme=scheme, spared=spared))
    assert tuple(name for *_, name in shape.layers) == expected
    assert shape.rest == (f"{scheme}/32" if scheme.endswith("-weights") else scheme)


def test_a_spared_layer_that_is_not_there_fails_the_candidate() -> None:
    with pytest.raises(
        CandidateFailed, match=r"quantization.spared names layer 2, the model has 2"
    ):
        shape_of(plan((2, 8), (2, 8)), candidate(scheme="int8-dynamic", spared=(0, 2)))


@dataclass(frozen=True)
class Ranks(Part):
    """A rank for each layer: as many units of work, less one neuron's each."""

    technique = "ranks"
    ranks: tuple[int, ...]

    def terms(self, index: int, layer: Layer) -> Mapping[str, float]:
        rank = self.ranks[index]
        return {"rank": float(rank), "saved": float(rank * len(layer.ffn))}


@dataclass(frozen=True)
class Note(Part):
    """Changes no shape."""

    technique = "note"


def test_what_parts_add_is_counted_by_technique_term_and_format_of_the_layer() -> None:
    made = plan((2, 8), (1, 4), (2, 0), (2, 5), parts=(Note(), Ranks((3, 5, 7, 0))))
    named = candidate(scheme="int4-weights", spared="first")
    assert shape_of(made, candidate()).extra == (("ranks rank fp32", 15), ("ranks saved fp32", 44))
    assert shape_of(made, named).extra == (
        ("ranks rank int4-weights/32", 12),
        ("ranks rank int8-weights/32", 3),
        ("ranks saved int4-weights/32", 20),
        ("ranks saved int8-weights/32", 24),
    )
    assert shape_of(replace(made, parts=(Note(), Ranks((0,) * 4))), named).extra == ()
    assert replace(shape_of(made, named), extra=()) == shape_of(replace(made, parts=()), named)


PRICES = {"ranks rank": 0.004, "ranks saved": -0.00003}


def with_ranks(*ranks: int, heads: int = 6, ffn: int = 400, scheme: str = "fp32") -> Shape:
    made = plan(*(((heads, ffn),) * len(ranks)), parts=(Ranks(ranks),))
    return shape_of(made, candidate(scheme=scheme))


def with_parts(shape: Shape) -> float:
    """A rank takes time, and saves some for each neuron of the layer: more in fp32."""
    times = {"fp32": 1.0, "int8-dynamic": 0.5}
    return latency(shape) + sum(
        PRICES[name.rpartition(" ")[0]] * times[name.rpartition(" ")[2]] * amount
        for name, amount in shape.extra
    )


@pytest.mark.parametrize("weights", [SMALL, MINILM], ids=["no-caches", "caches"])
def test_costs_and_gains_of_parts_are_foretold_exactly(weights: tuple[float, float]) -> None:
    formats = ["fp32", "int8-dynamic"]
    measured_parts = [
        with_ranks(*ranks, heads=heads, ffn=ffn, scheme=scheme)
        for scheme in formats
        for ranks, heads, ffn in (
            ((1, 0, 2), 6, 400),
            ((4, 4), 12, 1000),
            ((3,) * 6, 12, 1536),
            ((9, 0, 0, 1), 3, 50),
        )
    ]
    seen = [*probes(LAYERS, HEADS, FFN, formats), *measured_parts]
    table = LatencyTable([(shape, with_parts(shape)) for shape in seen], weights)
    for shape in (
        with_ranks(2, 5, 1, heads=7, ffn=900),
        with_ranks(0, 1, heads=3, ffn=300, scheme="int8-dynamic"),
        even(4, 9, 400),
    ):
        assert table.knows(shape)
        assert table.predict(shape) == pytest.approx(with_parts(shape), rel=1e-6)


def test_what_was_measured_fewer_than_four_times_is_not_foretold() -> None:
    rows = measured(["fp32", "int8-dynamic"])
    assert LatencyTable(rows, SMALL).knows(even(2, 3, 4, "int8-dynamic"))
    assert not LatencyTable(rows, SMALL).knows(even(2, 3, 4, "fp16"))
    assert not LatencyTable(rows, SMALL).knows(Shape(((1, 1, "fp16"),), "fp32"))
    table, wanted = LatencyTable(rows, SMALL), with_ranks(2, 2, 2)
    with pytest.raises(KeyError, match="ranks rank fp32"):
        table.predict(wanted)
    for rank in range(1, 5):
        assert not table.knows(wanted) and table.knows(with_ranks(0, 0))
        shape = with_ranks(rank, 1, ffn=100 * rank)
        table.add(shape, with_parts(shape))
    assert table.knows(wanted)
    assert not table.knows(with_ranks(2, 2, 2, scheme="int8-dynamic"))


@st.composite
def shapes(draw: st.DrawFn, least: int = 1) -> Shape:
    names = st.sampled_from(list(WORLD))
    layer = st.tuples(st.integers(least, HEADS), st.integers(least, FFN), names)
    return Shape(tuple(draw(st.lists(layer, min_size=1, max_size=LAYERS))), draw(names))


@pytest.fixture(scope="module")
def exact() -> LatencyTable:
    return LatencyTable(measured(list(WORLD)), SMALL)


@given(shapes())
@settings(deadline=None)
def test_an_additive_world_is_foretold_exactly(exact: LatencyTable, shape: Shape) -> None:
    """Unseen shapes, also of layers in different formats, from uniform probes alone."""
    assert exact.predict(shape) == pytest.approx(latency(shape), rel=1e-6)


def test_a_neuron_past_a_step_is_foretold_to_take_a_whole_one(exact: LatencyTable) -> None:
    """The last of 64 takes none; of a narrow model each counts."""
    times = [exact.predict(even(6, 12, ffn)) for ffn in (640, 641, 704, 705)]
    assert times[1] == times[2] and times[0] < times[1] < times[3]
    assert times[1] - times[0] == pytest.approx(6 * 64 * WORLD["fp32"][5])
    rows = [(shape, 1.0 + shape.layers[0][1]) for shape in probes(2, 1, 64, ["fp32"])]
    narrow = LatencyTable(rows, SMALL)
    assert narrow.predict(even(1, 1, 8)) < narrow.predict(even(1, 1, 9))


def test_the_margin_by_hand() -> None:
    """Three times the median error, a tenth at least."""
    shape = even(1, 1, 1)
    assert LatencyTable([(shape, 1.0), (shape, 1.01)], SMALL).margin == LEAST_MARGIN == 0.1
    wide = LatencyTable([(shape, 1.0), (shape, 2.0)], SMALL)
    assert wide.margin == pytest.approx(3 * float(np.median(np.abs(wide.errors())))) and (
        wide.margin > 1
    )


def test_an_additive_world_is_foretold_also_where_weights_might_not_fit_a_cache() -> None:
    table = LatencyTable(measured(list(WORLD)), MINILM)
    mixed = Shape(
        ((3, 100, "fp32"), (12, 7, "int8-dynamic"), (5, 1500, "int4-weights/32")), "int8-dynamic"
    )
    for shape in (even(4, 9, 400), even(6, 1, 1), even(2, 7, 1536, "int8-dynamic"), mixed):
        assert table.predict(shape) == pytest.approx(latency(shape), rel=1e-6)


def test_weights_that_do_not_fit_the_caches_cost_extra() -> None:
    """2 MB and 16 MB, both among the sizes that are tried; each byte beyond has a price."""
    formats = ["fp32", "int8-dynamic"]

    def true(shape: Shape) -> float:
        byte = {"fp32": 4, "int8-dynamic": 1}
        megabytes = (
            sum(
                byte[name] * (heads * MINILM[0] + ffn * MINILM[1])
                for heads, ffn, name in shape.layers
            )
            / 1e6
        )
        return latency(shape) + 0.02 * max(0.0, megabytes - 2) + 0.01 * max(0.0, megabytes - 16)

    table = LatencyTable(
        [(shape, true(shape)) for shape in probes(LAYERS, HEADS, FFN, formats)], MINILM
    )
    assert table.caches == (2.0, 16.0)
    mixed = Shape(((3, 100, "fp32"), (12, 7, "int8-dynamic"), (5, 1500, "fp32")), "int8-dynamic")
    for shape in (
        even(4, 9, 400),
        even(6, 1, 1),
        even(6, 12, 1000),
        even(2, 7, 1536, "int8-dynamic"),
        mixed,
    ):
        assert table.predict(shape) == pytest.approx(true(shape), rel=1e-6)


@pytest.mark.parametrize(("heads", "ffn"), [(0, FFN), (HEADS, 0), (0, 0)])
@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_layers_without_heads_or_neurons_are_foretold_too(count: int, heads: int, ffn: int) -> None:
    """heads.keep and ffn.keep may be 0 (a corner of the space ``encoder``, which has 7 formats),
    and latency pruning may empty a layer."""
    costs = WORLD["fp32"]
    world: Costs = {f"fp32/{i}": (*(cost / (1 + i) for cost in costs),) for i in range(count)}  # type: ignore[misc]
    table = LatencyTable(measured(list(world), world), SMALL)
    for name in world:
        shape = even(LAYERS, heads, ffn, name)
        assert table.predict(shape) == pytest.approx(latency(shape, world), rel=1e-6)


def test_no_error_where_the_world_is_additive() -> None:
    table = LatencyTable(measured(list(WORLD)), SMALL)
    told = np.isfinite(table.errors())
    assert told.mean() > 0.7
    assert table.errors()[told] == pytest.approx(np.zeros(told.sum()), abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5))
@settings(deadline=None, max_examples=50)
def test_costs_are_never_negative(seed: int, noise: float) -> None:
    """So that fewer units are never foretold to take longer, however noisy the measurements."""
    rng = np.random.default_rng(seed)
    rows = [
        (shape, value * float(np.exp(noise * rng.standard_normal())))
        for shape, value in measured(["fp32", "int8-dynamic"])
    ]
    table = LatencyTable(rows, SMALL)
    assert (table.costs >= 0).all() and np.isfinite(table.costs).all()
    for name in ("fp32", "int8-dynamic"):
        most = [table.predict(even(LAYERS, heads, 768, name)) for heads in range(HEADS + 1)]
        assert most == sorted(most)


def test_noise_is_averaged_out() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (shape, value * (1 + 0.02 * float(rng.standard_normal())))
        for shape, value in measured(["fp32", "int8-dynamic"])
    ]
    table = LatencyTable(rows, SMALL)
    assert 0 < np.median(np.abs(table.errors())) < 0.04
    for shape in (even(4, 9, 400), even(2, 5, 1000, "int8-dynamic")):
        assert table.predict(shape) == pytest.approx(latency(shape), rel=0.05)


def test_errors_by_hand() -> None:
    """Two measurements of one shape that contradict each other: relative errors are balanced, the
    smaller one counts more."""
    shape = even(1, 1, 1)
    table = LatencyTable([(shape, 1.0), (shape, 2.0)], SMALL)
    # (p / 1 - 1)^2 + (p / 2 - 1)^2 is least at p = 1.2
    assert table.predict(shape) == pytest.approx(1.2)
    # each foretold from the other one alone
    assert table.errors() == pytest.approx([1.0, -0.5])


def test_the_errors_are_of_tables_without_the_row() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (shape, value * float(np.exp(0.03 * rng.standard_normal())))
        for shape, value in measured(["fp32", "int8-dynamic"])
    ]
    table = LatencyTable(rows, SMALL)
    expected = []
    for i, (shape, relative) in enumerate(rows):
        others = LatencyTable(rows[:i] + rows[i + 1 :], SMALL)
        same = others.caches == table.caches and ((others.costs > 0) == (table.costs > 0)).all()
        expected.append(others.predict(shape) / relative - 1 if same else None)
    pairs = zip(table.errors(), expected, strict=True)
    compared = [
        (error, other) for error, other in pairs if other is not None and np.isfinite(error)
    ]
    assert len(compared) >= len(rows) // 4
    for error, other in compared:
        assert error == pytest.approx(other, abs=1e-6)


def test_a_row_that_alone_tells_a_cost_is_foretold_by_none() -> None:
    table = LatencyTable([*measured(["fp32"]), (even(2, 4, 100, "int8-dynamic"), 0.1)], SMALL)
    assert table.errors()[-1] == np.inf


def test_trials_count_twice() -> None:
    shape = even(1, 1, 1)
    table = LatencyTable([(shape, 1.0)], SMALL)
    table.add(shape, 2.0)
    # (p / 1 - 1)^2 + (2 (p / 2 - 1))^2 is least at p = 1.5
    assert table.predict(shape) == pytest.approx(1.5)
    assert table.errors() == pytest.approx([1.0, -0.5])
    assert table.trials == [(shape, 2.0)] and table.rows == [(shape, 1.0)]


def test_trials_set_a_table_right_that_is_off() -> None:
    """Heads measured a third too cheap, as on a busy machine."""
    biased: Costs = {**WORLD, "fp32": (0.04, 0.01, 0.012, 0.003, 0.008, 0.00005)}
    table = LatencyTable(measured(["fp32"], biased), SMALL)
    unseen = [even(6, 10, 700), even(5, 8, 1100), even(3, 12, 300)]

    def error() -> float:
        return float(np.mean([abs(table.predict(shape) / latency(shape) - 1) for shape in unseen]))

    errors = [error()]
    rng = np.random.default_rng(0)
    for _ in range(8):
        for _ in range(5):
            shape = even(
                int(rng.integers(1, 7)), int(rng.integers(1, 13)), int(rng.integers(1, 1537))
            )
            table.add(shape, latency(shape))
        errors.append(error())
    assert errors[0] > 0.08
    assert errors[1] < 0.6 * errors[0]
    assert errors[-1] < 0.25 * errors[0]


def test_a_trial_may_bring_a_format_that_no_probe_had() -> None:
    table = LatencyTable(measured(["fp32"]), SMALL)
    shape = even(2, 4, 100, "int8-dynamic")
    with pytest.raises(KeyError, match="int8-dynamic"):
        table.predict(shape)
    table.add(shape, 0.1)
    assert table.predict(shape) == pytest.approx(0.1, rel=1e-6)


def test_an_unknown_format_is_a_key_error() -> None:
    table = LatencyTable(measured(["fp32"]), SMALL)
    with pytest.raises(KeyError):
        table.predict(Shape(((1, 1, "fp32"),), "fp16"))
    with pytest.raises(KeyError):
        table.predict(Shape(((1, 1, "fp16"),), "fp32"))
