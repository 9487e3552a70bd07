"""What a latency table depends on, and what it foretells, without a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from autocompress import Budget, SearchSpace
from autocompress.engine.foresight import Foresight, _digest, _key, formats_of
from autocompress.engine.verification import losses
from autocompress.families import family_of
from autocompress.journal import Trial
from autocompress.latency.predictor import LatencyTable, probes, shape_of
from autocompress.pareto import METRICS
from autocompress.scores import Latency, Score, Timing
from autocompress.structure import Structure
from autocompress.techniques import SETTINGS
from autocompress.techniques.quantization import SCHEMES
from tests.additive_device import FFN, FP32, HEADS, LAYERS, PROFILE, AdditiveDevice, milliseconds

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def key_of(device: AdditiveDevice, **change: Any) -> str:
    """Of a device's table for a BERT model of these sizes."""
    model = BertForSequenceClassification(BertConfig(**(SIZES | change)))
    family = family_of("bert")
    known: Any = SimpleNamespace(
        devices={"a": device}, model=model, family=family, full=family.structure(model)
    )
    return _digest(_key(known, "a"))


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 2},
        {"threads": 2},
        {"statistic": "mean"},
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


def bench(**budgets: Budget) -> Any:
    return SimpleNamespace(
        budgets=budgets, devices={name: SimpleNamespace(profile=PROFILE) for name in budgets}
    )


def foretold(foresight: Foresight, structure: Structure) -> Trial:
    return foresight.foretold(Trial(1, {}, "failed"), structure, SETTINGS.candidate({}))


FULL = Structure.full([HEADS] * LAYERS, [FFN] * LAYERS)
ROWS = [(shape, milliseconds(shape) / 29.5) for shape in probes(LAYERS, HEADS, FFN, ["fp32"])]


@pytest.mark.parametrize(("by", "refused"), [(0.099, False), (0.101, True)])
@pytest.mark.parametrize("kind", ["latency", "speedup"])
def test_a_candidate_is_refused_only_when_it_misses_by_a_tenth(
    kind: str, by: float, refused: bool
) -> None:
    half = Structure.full([2] * LAYERS, [32] * LAYERS)
    ms = milliseconds(shape_of(half, SETTINGS.candidate({})))
    budget = (
        Budget(max_latency_ms=ms / (1 + by))
        if kind == "latency"
        else Budget(min_speedup=29.5 / ms * (1 + by))
    )
    found = foretold(
        Foresight(bench(a=budget), {"a": 29.5}, {"a": LatencyTable(list(ROWS), (0, 0))}), half
    )
    assert found.predicted == {"a": pytest.approx(ms / 29.5)}
    assert found.state == ("over-budget" if refused else "failed")
    assert found.reason == (f"predicted {ms:.3g} ms on a, so not tried" if refused else None)


@pytest.mark.parametrize(("times", "refused"), [(0.98, False), (1.02, True)])
def test_the_margin_grows_with_the_errors_of_the_table(times: float, refused: bool) -> None:
    rng = np.random.default_rng(1)
    noisy = LatencyTable(
        [(shape, relative * (1 + 0.1 * float(rng.standard_normal()))) for shape, relative in ROWS],
        (0, 0),
    )
    margin = 3 * float(np.median(np.abs(noisy.errors())))
    assert margin > 0.15
    relative = noisy.predict(shape_of(FULL, SETTINGS.candidate({})))
    budget = Budget(max_latency_ms=29.5 * relative / (1 + times * margin))
    found = foretold(Foresight(bench(a=budget), {"a": 29.5}, {"a": noisy}), FULL)
    assert (found.state == "over-budget") == refused


def test_a_candidate_is_refused_only_when_every_device_refuses_it() -> None:
    def table() -> LatencyTable:
        return LatencyTable(list(ROWS), (0, 0))

    tight, wide = Budget(max_latency_ms=1.0), Budget(max_latency_ms=100.0)
    for b, refused in ((tight, True), (wide, False), (Budget(max_drop=1.0), False)):
        found = foretold(
            Foresight(bench(a=tight, b=b), {"a": 29.5, "b": 59.0}, {"a": table(), "b": table()}),
            FULL,
        )
        assert (found.state == "over-budget") == refused
        if refused:
            assert found.reason == "predicted 29.5 ms on a, 59 ms on b, so not tried"


def test_without_tables_nothing_is_foretold() -> None:
    found = foretold(Foresight(bench(a=Budget(max_latency_ms=1.0)), {}, {}), FULL)
    assert (found.predicted, found.state, found.reason) == ({}, "failed", None)


def test_trials_set_the_table_right() -> None:
    """A machine on which heads take half again as long as the table says."""
    foresight = Foresight(
        bench(a=Budget(max_latency_ms=1.0)), {"a": 29.5}, {"a": LatencyTable(list(ROWS), (0, 0))}
    )
    fewer = Structure.full([3] * LAYERS, [32] * LAYERS)
    before = foresight.tables["a"].predict(shape_of(fewer, SETTINGS.candidate({})))
    true = before * 1.5
    timing = Timing(Latency(1, 1, 1, (1, 1), 30), 1 / true, (1 / true, 1 / true))
    foresight.learn(
        Trial(1, {}, "complete", scores={"a": Score(timing)}), fewer, SETTINGS.candidate({})
    )
    after = foresight.tables["a"].predict(shape_of(fewer, SETTINGS.candidate({})))
    assert before < after <= true * 1.0001
    foresight.learn(Trial(2, {}, "over-budget"), fewer, SETTINGS.candidate({}))  # was not measured
    assert len(foresight.tables["a"].trials) == 1


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
    foresight = Foresight(bench(a=Budget()), {"a": 29.5}, {"a": LatencyTable(list(ROWS), (0, 0))})
    assert foresight.summary(trials) == {
        "a": {"mean_abs_error": pytest.approx((0.1 + 0.2) / 2), "n": 2}
    }
    assert foresight.summary(trials[:1]) == {}


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
    found = formats_of(
        SearchSpace.from_mapping(
            "test", FP32 | ({"quantization": quantization} if quantization else {})
        )
    )
    assert found[0] == "fp32"
    assert sorted(found) == sorted(expected)


@given(
    st.lists(st.sampled_from(SCHEMES), min_size=1, max_size=7, unique=True),
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
    known = set(formats_of(SearchSpace.from_mapping("test", {"quantization": quantization})))
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


def test_the_sampler_learns_what_a_refused_candidate_was_predicted_to_take() -> None:
    """As many losses as the sampler has objectives: a latency per device, then quality."""
    refused = Trial(1, {}, "over-budget", predicted={"a": 0.7, "b": 0.9})
    assert losses(refused, METRICS["accuracy"]) == (0.7, 0.9, 100.0)
