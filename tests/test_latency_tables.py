"""What a latency table depends on, what is measured for it and what it foretells; no searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from autocompress import Limits, SearchSpace
from autocompress.candidate import Candidate, OneOf, Real, Setting
from autocompress.engine.foresight import Foresight
from autocompress.engine.tables import Tables, _digest, table_formats
from autocompress.engine.verification import losses
from autocompress.families import family_of
from autocompress.formats import FORMATS
from autocompress.interfaces import Knowledge, Technique
from autocompress.journal import Trial
from autocompress.latency.predictor import LatencyTable, Shape, probes, shape_of
from autocompress.pareto import METRICS
from autocompress.plan import Part, Plan
from autocompress.scores import Latency, Score, Timing
from autocompress.structure import Importance, Layer, Structure
from autocompress.techniques import SETTINGS, TECHNIQUES, vocabulary
from tests.additive_device import FFN, FP32, HEADS, LAYERS, PROFILE, AdditiveDevice, milliseconds

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


class KnownImportance(dict[str, Importance]):
    """In place of what is measured of a model."""

    once = task = felt = None


def tables(maker: object) -> Tables:
    """Of a maker alone."""
    none: Any = None
    scores = Importance((np.ones(HEADS),) * LAYERS, (np.ones(FFN),) * LAYERS)
    measured: Any = KnownImportance({"fisher": scores})
    return Tables(none, cast(Any, maker), measured, none, none)


def key_of(device: AdditiveDevice, **change: Any) -> str:
    """Of a device's table for a BERT model of these sizes."""
    model = BertForSequenceClassification(BertConfig(**(SIZES | change)))
    family = family_of("bert")
    teacher = SimpleNamespace(model=model, family=family)
    maker = SimpleNamespace(teacher=teacher, full=Plan("bert", family.structure(model)))
    return _digest(tables(maker).key(device))


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 2},
        {"threads": 2},
        {"statistic": "mean"},
        {"regime": "cold"},
        {"runtime": "onnxruntime-cuda", "device_class": "edge"},
    ],
    ids=str,
)
def test_another_workload_has_another_table(change: Mapping[str, Any]) -> None:
    assert key_of(AdditiveDevice(replace(PROFILE, **change), [32])) != key_of(
        AdditiveDevice(PROFILE, [32])
    )


def test_other_lengths_have_another_table() -> None:
    assert key_of(AdditiveDevice(PROFILE, [16])) != key_of(AdditiveDevice(PROFILE, [32]))


@pytest.mark.parametrize(
    "key", ["system", "cpu", "cores", "features", "gpu", "onnxruntime", "torch"]
)
def test_another_device_has_another_table(key: str) -> None:
    other = AdditiveDevice(PROFILE, [32])
    other.fingerprint[key] = "another"
    assert key_of(other) != key_of(AdditiveDevice(PROFILE, [32]))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 64},
        {"vocab_size": 60},
        {"num_attention_heads": 8},
        {"intermediate_size": 32},
        {"num_hidden_layers": 1},
        {"hidden_act": "relu"},
    ],
    ids=str,
)
def test_a_model_of_another_shape_has_another_table(change: Mapping[str, Any]) -> None:
    device = AdditiveDevice(PROFILE, [32])
    assert key_of(device, **change) != key_of(device)


def test_what_no_latency_depends_on_is_not_part_of_a_tables_key() -> None:
    """Weights, name, how long is timed, how busy the machine is just now."""
    profile = replace(
        PROFILE,
        name="renamed",
        trial_seconds=9.0,
        confidence=0.9,
        description="x",
        memory_limit_mb=5.0,
    )
    other = AdditiveDevice(profile, [32])
    other.fingerprint |= {"busy_cores": 1.0, "memory_bytes": 1}
    assert key_of(other) == key_of(AdditiveDevice(PROFILE, [32]))


def foresight(
    budgets: Mapping[str, Limits],
    baseline_ms: Mapping[str, float],
    latency_tables: Mapping[str, LatencyTable],
) -> Foresight:
    """Of devices by name."""
    devices = {name: SimpleNamespace(profile=PROFILE) for name in budgets}
    none: Any = None
    scorer: Any = SimpleNamespace(budgets=budgets, devices=devices)
    return Foresight(none, none, scorer, dict(baseline_ms), dict(latency_tables))


def foretold(known: Foresight, plan: Plan) -> Trial:
    return known.foretold(Trial(1, {}, "asked"), plan, UNCUT)


def even(heads: int, ffn: int) -> Plan:
    """So many of each in every layer of ``tiny_model``."""
    return Plan("bert", Structure.full([heads] * LAYERS, [ffn] * LAYERS))


UNCUT = SETTINGS.candidate({})
FULL = even(HEADS, FFN)
ROWS = [(shape, milliseconds(shape) / 29.5) for shape in probes(LAYERS, HEADS, FFN, ["fp32"])]


@pytest.mark.parametrize(("by", "refused"), [(0.099, False), (0.101, True)])
@pytest.mark.parametrize("kind", ["latency", "speedup"])
def test_a_candidate_is_refused_only_when_it_misses_by_a_tenth(
    kind: str, by: float, refused: bool
) -> None:
    half = even(2, 32)
    ms = milliseconds(shape_of(half, UNCUT))
    budget = (
        Limits(max_latency_ms=ms / (1 + by))
        if kind == "latency"
        else Limits(min_speedup=29.5 / ms * (1 + by))
    )
    table = LatencyTable(list(ROWS), (0, 0))
    trial = foretold(foresight({"a": budget}, {"a": 29.5}, {"a": table}), half)
    assert trial.predicted == {"a": pytest.approx(ms / 29.5)}
    assert trial.state == ("over-budget" if refused else "asked")
    assert trial.reason == (f"predicted {ms:.3g} ms on a, so not tried" if refused else None)


@pytest.mark.parametrize(("times", "refused"), [(0.98, False), (1.02, True)])
def test_the_margin_grows_with_the_errors_of_the_table(times: float, refused: bool) -> None:
    rng = np.random.default_rng(1)
    noisy = LatencyTable(
        [(shape, relative * (1 + 0.1 * float(rng.standard_normal()))) for shape, relative in ROWS],
        (0, 0),
    )
    margin = 3 * float(np.median(np.abs(noisy.errors())))
    assert margin > 0.15
    relative = noisy.predict(shape_of(FULL, UNCUT))
    budget = Limits(max_latency_ms=29.5 * relative / (1 + times * margin))
    trial = foretold(foresight({"a": budget}, {"a": 29.5}, {"a": noisy}), FULL)
    assert (trial.state == "over-budget") == refused


def test_a_candidate_is_refused_only_when_every_device_refuses_it() -> None:
    def table() -> LatencyTable:
        return LatencyTable(list(ROWS), (0, 0))

    tight, wide = Limits(max_latency_ms=1.0), Limits(max_latency_ms=100.0)
    for b, refused in ((tight, True), (wide, False), (Limits(max_drop=1.0), False)):
        known = foresight(
            {"a": tight, "b": b}, {"a": 29.5, "b": 59.0}, {"a": table(), "b": table()}
        )
        trial = foretold(known, FULL)
        assert (trial.state == "over-budget") == refused
        if refused:
            assert trial.reason == "predicted 29.5 ms on a, 59 ms on b, so not tried"


def test_without_tables_nothing_is_foretold() -> None:
    trial = foretold(foresight({"a": Limits(max_latency_ms=1.0)}, {}, {}), FULL)
    assert (trial.predicted, trial.state, trial.reason) == ({}, "asked", None)


def test_trials_set_the_table_right() -> None:
    """A machine on which heads take half again as long as the table says."""
    table = LatencyTable(list(ROWS), (0, 0))
    known = foresight({"a": Limits(max_latency_ms=1.0)}, {"a": 29.5}, {"a": table})
    fewer = even(3, 32)
    before = table.predict(shape_of(fewer, UNCUT))
    true = before * 1.5
    timing = Timing(Latency(1, 1, 1, (1, 1), 30), 1 / true, (1 / true, 1 / true))
    known.learn(Trial(1, {}, "complete", scores={"a": Score(timing)}), fewer, UNCUT)
    assert before < table.predict(shape_of(fewer, UNCUT)) <= true * 1.0001
    known.learn(Trial(2, {}, "over-budget"), fewer, UNCUT)  # was not measured
    assert len(table.trials) == 1


def test_the_error_by_hand() -> None:
    def trial(number: int, predicted: float, speedup: float) -> Trial:
        timing = Timing(Latency(1, 1, 1, (1, 1), 30), speedup, (speedup, speedup))
        return Trial(
            number, {}, "complete", predicted={"a": predicted}, scores={"a": Score(timing)}
        )

    trials = [
        Trial(0, {}, "complete"),
        trial(1, 0.55, 2.0),
        trial(2, 0.2, 4.0),
        Trial(3, {}, "over-budget", predicted={"a": 0.9}),
    ]
    known = foresight({"a": Limits()}, {"a": 29.5}, {"a": LatencyTable(list(ROWS), (0, 0))})
    assert known.summary(trials) == {
        "a": {"mean_abs_error": pytest.approx((0.1 + 0.2) / 2), "n": 2}
    }
    assert known.summary(trials[:1]) == {}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({}, ["fp32"]),
        ({"scheme": "fp16"}, ["fp32", "fp16"]),
        ({"scheme": ["int8-dynamic", "fp32"]}, ["fp32", "int8-dynamic"]),
        ({"scheme": ["int8-weights"]}, ["fp32", "int8-weights/32"]),
        (
            {"scheme": ["int8-weights", "int4-weights"], "block_size": 128},
            ["fp32", "int8-weights/128", "int4-weights/128"],
        ),
        (
            {"scheme": ["int4-weights"], "block_size": [32, 128]},
            ["fp32", "int4-weights/32", "int4-weights/128"],
        ),
        (
            {"scheme": ["int8-dynamic", "fp32"], "spared": ["none", "ends"]},
            ["fp32", "int8-dynamic"],
        ),
        ({"scheme": ["int4-weights"], "spared": "none"}, ["fp32", "int4-weights/32"]),
        (
            {"scheme": ["int4-weights"], "block_size": [32, 128], "spared": ["none", "first"]},
            ["fp32", "int4-weights/32", "int4-weights/128", "int8-weights/32", "int8-weights/128"],
        ),
        (
            {"scheme": ["int4-weights"], "spared": [[0, 2]]},
            ["fp32", "int4-weights/32", "int8-weights/32"],
        ),
        ({"scheme": ["bf16"], "block_size": [32, 128]}, ["fp32", "bf16"]),
    ],
)
def test_formats_of_a_space(quantization: Mapping[str, Any], expected: Sequence[str]) -> None:
    formats = table_formats(
        SearchSpace.from_mapping(
            "test", FP32 | ({"quantization": quantization} if quantization else {})
        )
    )
    assert formats[0] == "fp32"
    assert sorted(formats) == sorted(expected)


@given(
    st.lists(st.sampled_from(list(FORMATS)), min_size=1, max_size=7, unique=True),
    st.lists(st.sampled_from([32, 128]), max_size=2, unique=True),
    st.lists(st.sampled_from(["none", "first", "last", "ends", [0, 1]]), max_size=5, unique_by=str),
)
@settings(deadline=None)
def test_no_candidate_of_a_space_has_a_format_that_its_table_lacks(
    schemes: list[str], blocks: list[int], spared: list[str | list[int]]
) -> None:
    """A table knows the formats that it was measured in, and raises KeyError for others."""
    quantization: dict[str, Any] = {"scheme": schemes}
    quantization |= {"block_size": blocks} if blocks else {}
    quantization |= {"spared": spared} if spared else {}
    known = set(table_formats(SearchSpace.from_mapping("test", {"quantization": quantization})))
    for scheme in schemes:
        for block in blocks or [32]:
            for rule in spared or ["none"]:
                chosen = {
                    "quantization.scheme": scheme,
                    "quantization.block_size": block,
                    "quantization.spared": rule,
                }
                shape = shape_of(FULL, SETTINGS.candidate(chosen))
                assert {shape.rest, *(name for *_, name in shape.layers)} <= known


@dataclass(frozen=True)
class Thinned(Part):
    technique = "thinning"
    share: float

    def terms(self, index: int, layer: Layer) -> Mapping[str, float]:
        return {"thinned": self.share * len(layer.ffn)}


class Thinning(Technique):
    """Leaves a part with a term of its own, or, as a note, one without."""

    name = "thinning"
    settings = (
        Setting("thinning.share", Real(0, 1), 0.0, "how much"),
        Setting("thinning.noted", OneOf((True, False)), False, "whether it is noted only"),
    )
    part = Thinned

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        share = candidate.number("thinning.share")
        if candidate.get("thinning.noted"):
            share = 0.0
        return plan.with_part(Thinned(share))


@pytest.mark.parametrize(
    ("quantization", "known"),
    [
        ({"scheme": "fp32"}, 1),
        ({"scheme": ["int8-dynamic"]}, 2),
        ({"scheme": ["int4-weights"], "block_size": [32, 128], "spared": ["none", "ends"]}, 5),
        ({"scheme": list(FORMATS)}, 5),
    ],
    ids=["one", "two", "spared", "all"],
)
def test_what_parts_add_is_measured_often_enough_in_as_many_formats_as_time_allows(
    quantization: dict[str, Any], known: int
) -> None:
    """24 times at most; a table foretells nothing of what was measured fewer than 4 times."""
    techniques = (*TECHNIQUES, Thinning())
    space = SearchSpace.from_mapping(
        "test",
        {
            "ffn": {"keep": {"low": 0.1, "high": 1.0}, "allocation": "uniform"},
            "thinning": {"share": {"low": 0.1, "high": 0.9}},
            "quantization": quantization,
        },
        settings=vocabulary(techniques),
    )
    space_probes = tables(SimpleNamespace(full=FULL, techniques=techniques))._probes(space)
    formats = table_formats(space)
    plain = probes(LAYERS, HEADS, FFN, formats)
    assert list(space_probes)[: len(plain)] == plain
    assert len(space_probes) - len(plain) <= 24
    for shape, (plan, wanted) in space_probes.items():
        assert shape_of(plan, wanted) == shape
    table = LatencyTable([(shape, 1.0) for shape in space_probes], (0, 0))
    thinned = [
        Shape(((HEADS, FFN, name),), name, ((f"thinning thinned {name}", 32.0),))
        for name in formats
    ]
    assert [table.knows(shape) for shape in thinned] == [i < known for i in range(len(formats))]


def test_nothing_is_foretold_of_a_part_that_was_not_measured() -> None:
    known = foresight(
        {"a": Limits(max_latency_ms=1.0)}, {"a": 29.5}, {"a": LatencyTable(list(ROWS), (0, 0))}
    )
    trial = foretold(known, FULL.with_part(Thinned(0.5)))
    assert (trial.predicted, trial.state) == ({}, "asked")
    assert foretold(known, FULL.with_part(Thinned(0.0))).state == "over-budget"


def test_a_space_without_parts_asks_for_no_more_measurements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And draws no plans, of which none would have a part."""
    monkeypatch.delattr("autocompress.engine.tables.OptunaSampler")
    maker = SimpleNamespace(full=FULL, techniques=TECHNIQUES)
    space = SearchSpace.from_mapping("test", {"layers": {"keep": [1.0, 0.5]}})
    assert list(tables(maker)._probes(space)) == probes(LAYERS, HEADS, FFN, ["fp32"])


def test_the_sampler_learns_what_a_refused_candidate_was_predicted_to_take() -> None:
    """As many losses as the sampler has objectives: a latency per device, then quality."""
    refused = Trial(1, {}, "over-budget", predicted={"a": 0.7, "b": 0.9})
    assert losses(refused, METRICS["accuracy"]) == (0.7, 0.9, 100.0)
