"""Latency tables of whole searches, on a device whose latency is an exact sum over what was exported."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import BertConfig, BertForSequenceClassification

from autocompress import Budget, HardwareProfile, RequestUnmet, SearchFailed, SearchResult, SearchSpace, search
from autocompress.artifact import facts, onnx_file
from autocompress.errors import AutocompressError, CandidateFailed
from autocompress.families import family_of
from autocompress.foresight import Foresight, _digest, _key, formats_of, read_table
from autocompress.hardware.predictor import LatencyTable, Shape, probes, shape_of
from autocompress.journal import Run, Trial
from autocompress.onnx_runtime import predict
from autocompress.pareto import METRICS
from autocompress.scores import Latency, Score, Timing
from autocompress.structure import Structure
from autocompress.techniques import SETTINGS
from autocompress.techniques.quantization import SCHEMES
from autocompress.verification import losses
from autocompress.workbench import Workbench
from tests.searching import StopAfter

COSTS = {
    "fp32": (2.0, 0.5, 0.25, 1.0, 0.125, 0.03125),
    "int8-dynamic": (1.0, 0.25, 0.125, 0.5, 0.0625, 0.0078125),
    "int8-weights/32": (1.25, 0.375, 0.1875, 0.625, 0.09375, 0.01171875),
}
"""Milliseconds by number format: of what is in no layer, of a layer, of having heads, per head, of having an FFN, per neuron."""
LAYERS, HEADS, FFN = 4, 4, 64
"""Of ``tiny_model``; fp32 takes 2 + 4 * (0.5 + 0.25 + 4 + 0.125 + 2) = 29.5 ms."""


def milliseconds(shape: Shape) -> float:
    total = COSTS[shape.rest][0]
    for heads, ffn, name in shape.layers:
        _, layer, any_heads, per_head, any_ffn, per_neuron = COSTS[name]
        total += layer + any_heads * (heads > 0) + per_head * heads + any_ffn * (ffn > 0) + per_neuron * ffn
    return total


def exported_shape(folder: Path) -> Shape:
    """What a model folder says of itself."""
    known = facts(folder)
    block = known["candidate"].get("quantization.block_size")

    def named(scheme: str) -> str:
        return f"{scheme}/{block}" if scheme.endswith("-weights") else scheme

    sizes, formats = known["sizes"], [named(scheme) for scheme in known["quantization"]["layers"]]
    return Shape(tuple(zip(sizes["heads"], sizes["ffn"], formats, strict=True)), named(known["quantization"]["scheme"]))


class AdditiveDevice:
    """Latency is the sum of ``COSTS`` over the exported folder, exactly; remembers what it was asked to time."""

    answers_like = "local onnxruntime-cpu"

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
        self.profile, self.lengths = profile, tuple(lengths)
        self.fingerprint: dict[str, Any] = {"cpu": "additive", "cores": 1, "features": [], "memory_bytes": 2**30, "busy_cores": 0.0}
        self.memory_bytes = 10**6
        self.calls = 0
        self.table: list[Shape] = []
        self.trials: list[str] = []

    def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
        self.calls += 1
        for path in models:
            if "models" in path.parts:
                self.trials.append(path.name)
            else:
                self.table.append(exported_shape(path))
        first = milliseconds(exported_shape(baseline))
        found = [
            Timing(Latency(ms, ms, ms, (ms, ms), 30), first / ms, (first / ms, first / ms), memory_bytes=self.memory_bytes)
            for ms in (milliseconds(exported_shape(path)) for path in (baseline, *models))
        ]
        return found[0], found[1:]

    def predict(self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]) -> NDArray[np.float32]:
        return predict(onnx_file(model), batches)

    def close(self) -> None: ...


class Connected:
    """Hands out a device and keeps it for inspection."""

    def __init__(self, kind: type[AdditiveDevice] = AdditiveDevice) -> None:
        self.kind, self.devices = kind, dict[str, AdditiveDevice]()

    def __call__(self, profile: HardwareProfile, lengths: Sequence[int]) -> AdditiveDevice:
        self.devices[profile.name] = self.kind(profile, lengths)
        return self.devices[profile.name]

    @property
    def device(self) -> AdditiveDevice:
        return next(iter(self.devices.values()))


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _found_again(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are measured once for all tests that do not ask for a fresh cache."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(shared_cache))


@pytest.fixture
def cache(_found_again: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def started(tiny_model: Path, data_file: Path, tmp_path: Path) -> Any:
    """A search on the tiny model; what is given replaces the defaults."""

    def start(values: Mapping[str, Any], out: str, connect: Any, **options: Any) -> SearchResult:
        space = SearchSpace.from_mapping("test", values)
        given: dict[str, Any] = {"hardware": "cpu-1-thread", "trials": 3, "budget": Budget(min_speedup=1.05)} | options
        return search(tiny_model, data_file, space=space, out=tmp_path / out, connect=connect, **given)

    return start


FP32 = {"heads": {"keep": [1.0, 0.75, 0.5, 0.25], "allocation": "uniform"}, "ffn": {"keep": [1.0, 0.5], "allocation": "uniform"}}
TWO = FP32 | {"quantization": {"scheme": ["fp32", "int8-dynamic"]}}
THREE = FP32 | {"quantization": {"scheme": ["fp32", "int8-dynamic", "int8-weights"]}}


def test_a_table_is_measured_once_and_found_again(started: Any, cache: Path, tmp_path: Path) -> None:
    first, second, third = Connected(), Connected(), Connected()
    started(TWO, "first", first)
    two = probes(LAYERS, HEADS, FFN, ["fp32", "int8-dynamic"])
    assert first.device.table == two
    assert first.device.calls < len(two)  # several models in one process

    result = started(TWO, "second", second)
    assert second.device.table == []
    assert (result.run / "latency" / "cpu-1-thread.json").is_file()

    started(THREE, "third", third)
    three = probes(LAYERS, HEADS, FFN, ["fp32", "int8-dynamic", "int8-weights/32"])
    assert third.device.table == [shape for shape in three if shape.rest == "int8-weights/32"]
    assert len(list((cache / "latency").iterdir())) == 1
    rows = read_table(tmp_path / "third", "cpu-1-thread").rows
    assert {shape for shape, _ in rows} == set(three)
    whole = milliseconds(Shape(((HEADS, FFN, "fp32"),) * LAYERS, "fp32"))
    assert whole == 29.5
    for shape, relative in rows:
        assert relative == pytest.approx(milliseconds(shape) / whole, rel=1e-12)


SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def key_of(device: AdditiveDevice, **change: Any) -> str:
    """Of a device's table for a BERT model of these sizes."""
    model = BertForSequenceClassification(BertConfig(**(SIZES | change)))
    family = family_of("bert")
    known: Any = SimpleNamespace(devices={"a": device}, model=model, family=family, full=family.structure(model))
    return _digest(_key(known, "a"))


PROFILE = HardwareProfile.load("cpu-1-thread")


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 2}, {"threads": 2}, {"statistic": "mean"}, {"runtime": "onnxruntime-cuda", "device_class": "edge"}],
    ids=str,
)
def test_another_workload_has_another_table(change: Mapping[str, Any]) -> None:
    assert key_of(AdditiveDevice(replace(PROFILE, **change), [32])) != key_of(AdditiveDevice(PROFILE, [32]))


def test_other_lengths_have_another_table() -> None:
    assert key_of(AdditiveDevice(PROFILE, [16])) != key_of(AdditiveDevice(PROFILE, [32]))


@pytest.mark.parametrize("key", ["system", "cpu", "cores", "features", "gpu", "onnxruntime", "torch"])
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
    profile = replace(PROFILE, name="renamed", trial_seconds=9.0, confidence=0.9, description="x", memory_limit_mb=5.0)
    other = AdditiveDevice(profile, [32])
    other.fingerprint |= {"busy_cores": 1.0, "memory_bytes": 1}
    assert key_of(other) == key_of(AdditiveDevice(PROFILE, [32]))


def test_over_budget_is_refused_before_training_and_export(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(*_: object) -> Trial:
        raise AssertionError("a refused candidate was tried")

    monkeypatch.setattr(Workbench, "evaluate", tried)
    connected = Connected()
    with pytest.raises(RequestUnmet, match="none of 4 candidates meets the budget"):
        started(FP32 | {"recovery": {"steps": 40}}, "run", connected, trials=4, budget=Budget(max_latency_ms=1.0))
    trials = Run(tmp_path / "run").trials()
    assert len(trials) == 5
    for trial in trials[1:]:
        assert trial.state == "over-budget"
        assert trial.sizes is not None
        sizes = zip(trial.sizes["heads"], trial.sizes["ffn"], strict=True)
        true = milliseconds(Shape(tuple((heads, ffn, "fp32") for heads, ffn in sizes), "fp32"))
        assert trial.predicted == {"cpu-1-thread": pytest.approx(true / 29.5)}
        assert trial.reason == f"predicted {true:.3g} ms on cpu-1-thread, so not tried"
        assert (trial.scores, trial.rungs, trial.path, trial.weight_bytes) == ({}, (), None, None)
    assert connected.device.trials == []
    assert [folder.name for folder in (tmp_path / "run" / "models").iterdir()] == ["t000"]


def test_predictions_are_compared_with_what_was_measured_then(started: Any) -> None:
    result = started(TWO, "run", Connected(), trials=6)
    scored = [trial for trial in result.trials[1:] if trial.scores]
    assert len(scored) >= 3
    for trial in scored:
        assert trial.predicted["cpu-1-thread"] == pytest.approx(1 / trial.scores["cpu-1-thread"].timing.speedup, rel=1e-6)
    noted = json.loads((result.run / "run.json").read_text())["prediction"]["cpu-1-thread"]
    assert noted["n"] == len(scored)
    assert noted["mean_abs_error"] < 1e-6


def test_a_model_without_any_heads_is_foretold_as_well(started: Any) -> None:
    result = started({"heads": {"keep": 0.0}}, "run", Connected(), trials=1)
    assert result.trials[1].predicted["cpu-1-thread"] == pytest.approx((29.5 - 4 * 4.25) / 29.5, rel=1e-6)


def test_nothing_is_measured_where_nothing_asks_for_it(started: Any, cache: Path) -> None:
    for number, values in enumerate((TWO, FP32 | {"width": {"latency": 1.0}})):
        connected = Connected()
        result = started(values, f"run-{number}", connected, budget=Budget(max_drop=50.0), trials=1)
        assert connected.device.table == []
        assert not cache.exists()
        assert not (result.run / "latency").exists()
        assert all(trial.predicted == {} for trial in result.trials)
        assert json.loads((result.run / "run.json").read_text())["prediction"] == {}


def test_pruning_by_latency_asks_for_a_table_without_any_limit(started: Any, cache: Path) -> None:
    connected = Connected()
    result = started({"width": {"latency": [0.6]}}, "run", connected, trials=1, budget=Budget())
    assert connected.device.table == probes(LAYERS, HEADS, FFN, ["fp32"])
    [_, trial] = result.trials
    assert 0.55 * 29.5 < trial.scores["cpu-1-thread"].timing.latency_ms.value <= 0.6 * 29.5


BY_LATENCY = {
    "width": {"latency": {"low": 0.3, "high": 0.99}},
    "recovery": {"steps": [0, 4]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
}


def test_a_resumed_search_uses_its_own_table(started: Any, cache: Path, tmp_path: Path) -> None:
    """Not the cache, which may be gone or changed by then; the trials replayed set the table right as they did before."""
    options: dict[str, Any] = {"trials": 5, "budget": Budget(min_speedup=1.2)}
    whole = started(BY_LATENCY, "whole", Connected(), **options)
    with pytest.raises(KeyboardInterrupt):
        started(BY_LATENCY, "run", Connected(), listener=StopAfter(3), **options)
    shutil.rmtree(cache)
    connected = Connected()
    resumed = started(BY_LATENCY, "run", connected, resume=True, **options)
    assert connected.device.table == []
    assert not cache.exists()
    assert [replace(trial, seconds=0.0) for trial in resumed.trials] == [replace(trial, seconds=0.0) for trial in whole.trials]
    assert resumed.front == whole.front


def test_two_devices_have_a_table_each_and_one_that_admits_is_enough(started: Any, cache: Path) -> None:
    connected = Connected()
    options: dict[str, Any] = {
        "hardware": ["cpu-1-thread", "cpu-all-cores"],
        "budget": Budget(),
        "budgets": {"cpu-1-thread": Budget(min_speedup=99.0)},
        "trials": 2,
    }
    result = started(FP32, "run", connected, **options)
    for device in connected.devices.values():
        assert device.table == probes(LAYERS, HEADS, FFN, ["fp32"])
    for trial in result.trials[1:]:
        assert trial.state == "complete"
        assert set(trial.predicted) == {"cpu-1-thread", "cpu-all-cores"}
    assert result.fronts["cpu-1-thread"].members == ()
    assert result.fronts["cpu-all-cores"].members


def bench(**budgets: Budget) -> Any:
    return SimpleNamespace(budgets=budgets, devices={name: SimpleNamespace(profile=PROFILE) for name in budgets})


def foretold(foresight: Foresight, structure: Structure) -> Trial:
    return foresight.foretold(Trial(1, {}, "failed"), structure, SETTINGS.candidate({}))


FULL = Structure.full([HEADS] * LAYERS, [FFN] * LAYERS)
ROWS = [(shape, milliseconds(shape) / 29.5) for shape in probes(LAYERS, HEADS, FFN, ["fp32"])]


@pytest.mark.parametrize(("by", "refused"), [(0.099, False), (0.101, True)])
@pytest.mark.parametrize("kind", ["latency", "speedup"])
def test_a_candidate_is_refused_only_when_it_misses_by_a_tenth(kind: str, by: float, refused: bool) -> None:
    half = Structure.full([2] * LAYERS, [32] * LAYERS)
    ms = milliseconds(shape_of(half, SETTINGS.candidate({})))
    budget = Budget(max_latency_ms=ms / (1 + by)) if kind == "latency" else Budget(min_speedup=29.5 / ms * (1 + by))
    found = foretold(Foresight(bench(a=budget), {"a": 29.5}, {"a": LatencyTable(list(ROWS), (0, 0))}), half)
    assert found.predicted == {"a": pytest.approx(ms / 29.5)}
    assert found.state == ("over-budget" if refused else "failed")
    assert found.reason == (f"predicted {ms:.3g} ms on a, so not tried" if refused else None)


@pytest.mark.parametrize(("times", "refused"), [(0.98, False), (1.02, True)])
def test_the_margin_grows_with_the_errors_of_the_table(times: float, refused: bool) -> None:
    rng = np.random.default_rng(1)
    noisy = LatencyTable([(shape, relative * (1 + 0.1 * float(rng.standard_normal()))) for shape, relative in ROWS], (0, 0))
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
        found = foretold(Foresight(bench(a=tight, b=b), {"a": 29.5, "b": 59.0}, {"a": table(), "b": table()}), FULL)
        assert (found.state == "over-budget") == refused
        if refused:
            assert found.reason == "predicted 29.5 ms on a, 59 ms on b, so not tried"


def test_without_tables_nothing_is_foretold() -> None:
    found = foretold(Foresight(bench(a=Budget(max_latency_ms=1.0)), {}, {}), FULL)
    assert (found.predicted, found.state, found.reason) == ({}, "failed", None)


def test_trials_set_the_table_right() -> None:
    """A machine on which heads take half again as long as the table says."""
    foresight = Foresight(bench(a=Budget(max_latency_ms=1.0)), {"a": 29.5}, {"a": LatencyTable(list(ROWS), (0, 0))})
    fewer = Structure.full([3] * LAYERS, [32] * LAYERS)
    before = foresight.tables["a"].predict(shape_of(fewer, SETTINGS.candidate({})))
    true = before * 1.5
    timing = Timing(Latency(1, 1, 1, (1, 1), 30), 1 / true, (1 / true, 1 / true))
    foresight.learn(Trial(1, {}, "complete", scores={"a": Score(timing)}), fewer, SETTINGS.candidate({}))
    after = foresight.tables["a"].predict(shape_of(fewer, SETTINGS.candidate({})))
    assert before < after <= true * 1.0001
    foresight.learn(Trial(2, {}, "over-budget"), fewer, SETTINGS.candidate({}))  # was not measured
    assert len(foresight.tables["a"].trials) == 1


def test_the_error_by_hand() -> None:
    def trial(number: int, predicted: float, speedup: float) -> Trial:
        timing = Timing(Latency(1, 1, 1, (1, 1), 30), speedup, (speedup, speedup))
        return Trial(number, {}, "complete", predicted={"a": predicted}, scores={"a": Score(timing)})

    trials = [Trial(0, {}, "complete"), trial(1, 0.55, 2.0), trial(2, 0.2, 4.0), Trial(3, {}, "over-budget", predicted={"a": 0.9})]
    foresight = Foresight(bench(a=Budget()), {"a": 29.5}, {"a": LatencyTable(list(ROWS), (0, 0))})
    assert foresight.summary(trials) == {"a": {"mean_abs_error": pytest.approx((0.1 + 0.2) / 2), "n": 2}}
    assert foresight.summary(trials[:1]) == {}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({}, ["fp32"]),
        ({"scheme": "fp16"}, ["fp32", "fp16"]),
        ({"scheme": ["int8-dynamic", "fp32"]}, ["fp32", "int8-dynamic"]),
        ({"scheme": ["int8-weights"]}, ["fp32", "int8-weights/32"]),
        ({"scheme": ["int8-weights", "int4-weights"], "block_size": 128}, ["fp32", "int8-weights/128", "int4-weights/128"]),
        ({"scheme": ["int4-weights"], "block_size": [32, 128]}, ["fp32", "int4-weights/32", "int4-weights/128"]),
        ({"scheme": ["int8-dynamic", "fp32"], "spared": ["none", "ends"]}, ["fp32", "int8-dynamic"]),
        ({"scheme": ["int4-weights"], "spared": "none"}, ["fp32", "int4-weights/32"]),
        (
            {"scheme": ["int4-weights"], "block_size": [32, 128], "spared": ["none", "first"]},
            ["fp32", "int4-weights/32", "int4-weights/128", "int8-weights/32", "int8-weights/128"],
        ),
        ({"scheme": ["int4-weights"], "spared": [[0, 2]]}, ["fp32", "int4-weights/32", "int8-weights/32"]),
        ({"scheme": ["bf16"], "block_size": [32, 128]}, ["fp32", "bf16"]),
    ],
)
def test_formats_of_a_space(quantization: Mapping[str, Any], expected: Sequence[str]) -> None:
    found = formats_of(SearchSpace.from_mapping("test", FP32 | ({"quantization": quantization} if quantization else {})))
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
                chosen = {"quantization.scheme": scheme, "quantization.block_size": block, "quantization.spared": rule}
                shape = shape_of(FULL, SETTINGS.candidate(chosen))
                assert {shape.rest, *(name for *_, name in shape.layers)} <= known


def test_the_sampler_learns_what_a_refused_candidate_was_predicted_to_take() -> None:
    """As many losses as the sampler has objectives: a latency per device, then quality."""
    refused = Trial(1, {}, "over-budget", predicted={"a": 0.7, "b": 0.9})
    assert losses(refused, METRICS["accuracy"]) == (0.7, 0.9, 100.0)


def test_refusals_are_told_to_the_sampler_without_a_complaint(started: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(RequestUnmet):
            started(FP32, "run", Connected(), trials=3, budget=Budget(min_speedup=99.0))


REFUSED = {"recovery": {"steps": 40, "learning_rate": {"low": 1e-4, "high": 1e-3}}, "heads": {"keep": {"low": 0.5, "high": 0.9}}}
OUT_OF_REACH = {"width": {"latency": {"low": 0.02, "high": 0.1}}}


@pytest.mark.parametrize("values", [REFUSED, OUT_OF_REACH], ids=["refused", "failed"])
def test_a_search_of_which_no_candidate_is_tried_ends_in_time(started: Any, values: Mapping[str, Any]) -> None:
    """Every candidate is new, and too slow by prediction or not to be built: the time limit holds all the same."""

    class Impatient(StopAfter):
        def trial(self, trial: Trial, remaining_s: float | None) -> None:
            assert time.monotonic() < end, "the search goes on long after its time limit"

    end = time.monotonic() + 40
    options: dict[str, Any] = {"trials": None, "time_limit_s": 10.0, "budget": Budget(min_speedup=99.0)}
    with pytest.raises((RequestUnmet, SearchFailed)):
        started(values, "run", Connected(), hardware=replace(PROFILE, final_seconds=0.1), listener=Impatient(0), **options)


def test_no_candidate_is_tried_twice_while_its_table_changes(started: Any) -> None:
    """The table learns from every trial, so the same share of latency gives another structure later."""

    class Slower(AdditiveDevice):
        """Trials take a fifth longer than the table says."""

        def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
            first, rest = super().time(baseline, models, final=final)
            slow = [
                replace(timing, speedup=timing.speedup / 1.2) if "models" in path.parts else timing
                for timing, path in zip(rest, models, strict=True)
            ]
            return first, slow

    result = started({"width": {"latency": [0.5, 0.7]}}, "run", Connected(Slower), trials=8, budget=Budget())
    assert sorted(trial.candidate["width.latency"] for trial in result.trials[1:]) == [0.5, 0.7]


@pytest.mark.parametrize("limited", [False, True])
def test_a_candidate_whose_formats_do_not_fit_fails_alone(started: Any, limited: bool) -> None:
    """Layer 3 is spared, also where only two layers are left."""
    values = {"layers": {"keep": [0.5, 1.0]}, "quantization": {"scheme": "int8-dynamic", "spared": [[3]]}}
    budget = Budget(min_speedup=1.01) if limited else Budget()
    result = started(values, "run", Connected(), trials=5, budget=budget)
    assert {trial.state: trial.reason for trial in result.trials} == {
        "complete": None,
        "failed": "quantization.spared names layer 3, the model has 2 (0 to 1)",
    }


def test_a_cache_that_cannot_be_written_does_not_stop_a_search(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for fine-tuned teachers: kept where that can be."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "file"))
    connected = Connected()
    result = started(FP32, "run", connected, trials=1)
    assert connected.device.table == probes(LAYERS, HEADS, FFN, ["fp32"])
    assert result.trials[1].predicted


def test_what_was_measured_of_an_interrupted_table_is_kept(started: Any, cache: Path) -> None:
    """A large model's table takes long; Ctrl-C between two of its processes loses none of what they measured."""

    class Interrupted(AdditiveDevice):
        def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
            if models and self.table:
                raise KeyboardInterrupt
            return super().time(baseline, models, final=final)

    first, second = Connected(Interrupted), Connected()
    with pytest.raises(KeyboardInterrupt):
        started(TWO, "first", first)
    done = cast(Interrupted, first.device).table
    assert 0 < len(done) < len(probes(LAYERS, HEADS, FFN, ["fp32", "int8-dynamic"]))
    started(TWO, "second", second)
    assert not set(done) & set(second.device.table)


def test_a_format_that_a_device_cannot_run_fails_its_candidates_alone(started: Any, cache: Path) -> None:
    """As it does in a search that needs no table."""

    class Old(AdditiveDevice):
        def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
            if any(exported_shape(path).rest == "int8-weights/32" for path in models):
                raise CandidateFailed("onnxruntime cannot load it: no MatMulNBits")
            return super().time(baseline, models, final=final)

    values = {"quantization": {"scheme": ["int8-dynamic", "int8-weights"]}}
    for number, budget in enumerate((Budget(), Budget(min_speedup=1.05))):
        result = started(values, f"run-{number}", Connected(Old), budget=budget, trials=2)
        states = {trial.candidate["quantization.scheme"]: trial.state for trial in result.trials[1:]}
        assert states == {"int8-dynamic": "complete", "int8-weights": "failed"}


def test_pruning_by_latency_fails_in_a_format_that_the_device_cannot_run(started: Any, cache: Path) -> None:
    class Old(AdditiveDevice):
        def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
            if any(exported_shape(path).rest == "int8-dynamic" for path in models):
                raise CandidateFailed("onnxruntime cannot load it: no MatMulInteger")
            return super().time(baseline, models, final=final)

    values = {"width": {"latency": 0.5}, "quantization": {"scheme": ["int8-dynamic", "fp32"]}}
    result = started(values, "run", Connected(Old), trials=2)
    reasons = {trial.candidate["quantization.scheme"]: trial.reason for trial in result.trials[1:]}
    assert reasons == {
        "int8-dynamic": "the latency table of cpu-1-thread does not know the number formats of this candidate",
        "fp32": None,
    }


def test_a_table_takes_half_the_time_at_most(started: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not measured by then stays unmeasured, also after a resume."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("autocompress.engine.time.monotonic", lambda: clock.now)

    class Slow(AdditiveDevice):
        def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
            clock.now += 20 if len(models) > 1 else 0
            return super().time(baseline, models, final=final)

    connected, again = Connected(Slow), Connected(Slow)
    started(TWO, "run", connected, trials=1, time_limit_s=60.0)
    wanted = probes(LAYERS, HEADS, FFN, ["fp32", "int8-dynamic"])
    assert connected.device.table == wanted[:16] != wanted
    started(TWO, "run", again, trials=2, time_limit_s=None, resume=True)
    assert again.device.table == []
    assert [shape for shape, _ in read_table(tmp_path / "run", "cpu-1-thread").rows] == wanted[:16]


def test_no_more_models_are_exported_at_once_than_fit_the_disk(started: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    class Counting(AdditiveDevice):
        def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
            together.append(len(models))
            return super().time(baseline, models, final=final)

    monkeypatch.setattr(Workbench, "room", lambda self: 3)
    started(FP32, "run", Connected(Counting), trials=1)
    assert together[1:5] == [3, 3, 3, 1]


def test_a_device_that_is_lost_while_its_table_is_measured_is_said_in_one_line(started: Any, cache: Path) -> None:
    class Lost(AdditiveDevice):
        def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
            if self.calls:
                raise CandidateFailed("connection lost: no answer")
            return super().time(baseline, models, final=final)

    with pytest.raises(AutocompressError, match="connection lost"):
        started(TWO, "run", Connected(Lost))
