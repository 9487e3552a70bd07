"""Latency tables of whole searches, on a device whose latency is an exact sum over what was
exported."""

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

import pytest

from autocompress import Limits, RequestUnmet, SearchFailed, SearchResult, SearchSpace, search
from autocompress.candidate import Value
from autocompress.engine.attempt import Attempt
from autocompress.engine.converting import Converter
from autocompress.engine.tables import read_table
from autocompress.errors import AutocompressError, CandidateFailed
from autocompress.journal import Run, Trial
from autocompress.latency.predictor import Shape, probes
from autocompress.scores import Timing
from tests.additive_device import (
    FFN,
    FP32,
    HEADS,
    LAYERS,
    PROFILE,
    AdditiveDevice,
    Connected,
    exported_shape,
    milliseconds,
)
from tests.searching import Scripted, StopAfter, scheme, timeless


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
def own_cache(shared_cache: Path, cache: Path) -> Path:
    """What the shared one holds so far, for this test alone."""
    shutil.copytree(shared_cache, cache)
    return cache


@pytest.fixture
def started(tiny_model: Path, data_file: Path, tmp_path: Path) -> Any:
    """A search on the tiny model; what is given replaces the defaults."""

    def start(values: Mapping[str, Any], out: str, connect: Any, **options: Any) -> SearchResult:
        space = SearchSpace.from_mapping("test", values)
        given: dict[str, Any] = {
            "hardware": "cpu-1-thread",
            "trials": 1,
            "budget": Limits(min_speedup=1.05),
        } | options
        return search(
            tiny_model, data_file, space=space, out=tmp_path / out, connect=connect, **given
        )

    return start


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Of a search, for which time goes by as ``slow`` devices say."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("autocompress.engine.loop.time.monotonic", lambda: clock.now)
    return clock


def slow(clock: SimpleNamespace, seconds: float) -> type[AdditiveDevice]:
    """Of devices that take so long for each process that measures some of a table."""

    class Slow(AdditiveDevice):
        def time(
            self, baseline: Path, models: Sequence[Path], *, final: bool
        ) -> tuple[Timing, list[Timing]]:
            clock.now += seconds if models and "models" not in models[0].parts else 0
            return super().time(baseline, models, final=final)

    return Slow


TWO = FP32 | {"quantization": {"scheme": ["fp32", "int8-dynamic"]}}
THREE = FP32 | {"quantization": {"scheme": ["fp32", "int8-dynamic", "int8-weights"]}}


def test_a_table_is_measured_once_and_found_again(
    started: Any, cache: Path, tmp_path: Path
) -> None:
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


def test_a_damaged_table_is_measured_again(
    started: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, again, found = Connected(), Connected(), Connected()
    started(FP32, "first", first)
    [file] = (cache / "latency").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"0.5", b"0.0"))
    started(FP32, "again", again)
    assert again.device.table == first.device.table
    assert file.read_bytes() == whole
    assert caplog.messages == [f"{file} is damaged: it is made again"]
    started(FP32, "found", found)
    assert found.device.table == []


def test_over_budget_is_refused_before_training_and_export(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(*_: object) -> None:
        raise AssertionError("a refused candidate was tried")

    monkeypatch.setattr(Attempt, "begin", tried)
    connected = Connected()
    with pytest.raises(RequestUnmet, match="none of 4 candidates meets the budget"):
        started(
            FP32 | {"recovery": {"steps": 40}},
            "run",
            connected,
            trials=4,
            budget=Limits(max_latency_ms=1.0),
        )
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
    assert [folder.name for folder in (tmp_path / "run" / "students").iterdir()] == [
        trials[0].student
    ]


def test_predictions_are_compared_with_what_was_measured_then(started: Any) -> None:
    result = started(TWO, "run", Connected(), trials=4)
    scored = [trial for trial in result.trials[1:] if trial.scores]
    assert len(scored) >= 3
    for trial in scored:
        assert trial.predicted["cpu-1-thread"] == pytest.approx(
            1 / trial.scores["cpu-1-thread"].timing.speedup, rel=1e-6
        )
    noted = json.loads((result.run / "run.json").read_text())["prediction"]["cpu-1-thread"]
    assert noted["n"] == len(scored)
    assert noted["mean_abs_error"] < 1e-6


def test_a_model_without_any_heads_is_foretold_as_well(started: Any, tmp_path: Path) -> None:
    """Its answers are all alike, so that it is on no front."""
    with pytest.raises(RequestUnmet):
        started({"heads": {"keep": 0.0}}, "run", Connected(), trials=1)
    [_, trial] = Run(tmp_path / "run").trials()
    assert trial.predicted["cpu-1-thread"] == pytest.approx((29.5 - 4 * 4.25) / 29.5, rel=1e-6)
    quality = trial.scores["cpu-1-thread"].quality
    assert quality is not None and quality.constant


def test_nothing_is_measured_where_nothing_asks_for_it(started: Any, cache: Path) -> None:
    for number, values in enumerate((TWO, FP32 | {"width": {"latency": 1.0}})):
        connected = Connected()
        result = started(values, f"run-{number}", connected, budget=Limits(max_drop=50.0), trials=1)
        assert connected.device.table == []
        assert not (cache / "latency").exists()
        assert not (result.run / "latency").exists()
        assert all(trial.predicted == {} for trial in result.trials)
        assert json.loads((result.run / "run.json").read_text())["prediction"] == {}


def test_pruning_by_latency_asks_for_a_table_without_any_limit(started: Any, cache: Path) -> None:
    connected = Connected()
    result = started({"width": {"latency": [0.6]}}, "run", connected, trials=1, budget=Limits())
    assert connected.device.table == probes(LAYERS, HEADS, FFN, ["fp32"])
    [_, trial] = result.trials
    assert 0.55 * 29.5 < trial.scores["cpu-1-thread"].timing.latency_ms.value <= 0.6 * 29.5


SOMETIMES = {
    "layers": {"keep": [1.0, 0.5]},
    "width": {"latency": [1.0, 0.8, 0.6, 0.5, 0.4]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
}


@pytest.mark.parametrize(("limit_s", "rows"), [(None, (4, 8, 16)), (300.0, (4, 8, 8))])
def test_where_pruning_by_latency_is_one_choice_of_many_the_table_grows_as_it_is_needed(
    limit_s: float | None,
    rows: tuple[int, int, int],
    started: Any,
    cache: Path,
    clock: SimpleNamespace,
) -> None:
    """None for half the layers; then four shapes of the number format that is asked for, eight more
    with every further candidate as far as a twentieth of the time goes."""

    def chosen(layers: float, share: float, scheme: str) -> dict[str, Any]:
        return {
            "layers.keep": layers,
            "width.latency": share,
            "quantization.scheme": scheme,
        }

    candidates = [
        chosen(0.5, 1.0, "fp32"),
        chosen(1.0, 0.6, "fp32"),
        chosen(1.0, 0.5, "int8-dynamic"),
        chosen(1.0, 0.4, "fp32"),
    ]
    connected = Connected(slow(clock, 5))
    result = started(
        SOMETIMES,
        "run",
        connected,
        budget=Limits(),
        sampler=Scripted(*candidates),
        trials=4,
        time_limit_s=limit_s,
    )
    assert {trial.state for trial in result.trials} <= {"complete", "outdone"}
    steps = sorted((result.run / "latency").iterdir(), key=lambda step: int(step.name))
    assert [step.name for step in steps] == ["2", "3", "4"]
    known = [json.loads((step / "cpu-1-thread.json").read_text())["rows"] for step in steps]
    assert tuple(map(len, known)) == rows
    fp32, int8 = (probes(LAYERS, HEADS, FFN, [name]) for name in ("fp32", "int8-dynamic"))
    later = [*fp32[4:], *int8[4:]][: rows[2] - 8]
    assert connected.device.table == [*fp32[:4], *int8[:4], *later]
    for trial, share in ((result.trials[4], 0.6), (result.trials[6], 0.5), (result.trials[8], 0.4)):
        whole = 12.75 if trial.number == 6 else 29.5
        ms = trial.scores["cpu-1-thread"].timing.latency_ms.value
        assert (share - 0.05) * whole < ms <= share * whole
    assert "cpu-1-thread" in result.trials[8].predicted and not result.trials[2].predicted


def test_a_proposal_that_was_tried_before_leaves_the_next_one_a_table_of_its_own(
    started: Any, own_cache: Path
) -> None:
    """Of its number format, though it gets the number of the trial that the other one was not."""
    half: dict[str, Value] = {"width.latency": 0.5}
    int8 = half | {"quantization.scheme": "int8-dynamic"}
    sampler = Scripted(int8, int8, half)
    options: dict[str, Any] = {"budget": Limits(), "sampler": sampler, "trials": 2}
    result = started(SOMETIMES, "run", Connected(), **options)
    assert sampler.asked == 3 and len(sampler.told) == 3
    asked = [trial for trial in result.trials if trial.candidate and trial.asked is None]
    assert [scheme(trial) for trial in asked] == ["int8-dynamic", "fp32"]
    assert {trial.state for trial in asked} == {"complete"}
    steps = sorted(path.name for path in (result.run / "latency").iterdir())
    assert steps == ["1", "2", "3"]


def test_a_resumed_search_finds_its_table_grown_as_far_as_it_was(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"trials": 5, "budget": Limits(), "sampler": "random"}
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "one"))
    whole_device, before, after = Connected(), Connected(), Connected()
    whole = started(SOMETIMES, "whole", whole_device, **options)
    assert len(list((whole.run / "latency").iterdir())) > 2
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        started(SOMETIMES, "run", before, listener=StopAfter(7), **options)
    shutil.rmtree(tmp_path / "other")
    resumed = started(SOMETIMES, "run", after, resume=True, **options)
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert before.device.table + after.device.table == whole_device.device.table


BY_LATENCY = {
    "width": {"latency": {"low": 0.3, "high": 0.99}},
    "recovery": {"steps": [0, 4]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
}


def test_a_resumed_search_uses_its_own_table(started: Any, own_cache: Path) -> None:
    """Not the cache, which may be gone or changed by then; the trials replayed set the table right
    as they did before."""
    options: dict[str, Any] = {"trials": 3, "budget": Limits(min_speedup=1.2)}
    whole = started(BY_LATENCY, "whole", Connected(), **options)
    with pytest.raises(KeyboardInterrupt):
        started(BY_LATENCY, "run", Connected(), listener=StopAfter(4), **options)
    shutil.rmtree(own_cache)
    connected = Connected()
    resumed = started(BY_LATENCY, "run", connected, resume=True, **options)
    assert connected.device.table == []
    assert not (own_cache / "latency").exists()
    assert [replace(trial, seconds=0.0) for trial in resumed.trials] == [
        replace(trial, seconds=0.0) for trial in whole.trials
    ]
    assert resumed.front == whole.front


def test_two_devices_have_a_table_each_and_one_that_admits_is_enough(
    started: Any, cache: Path
) -> None:
    connected = Connected()
    options: dict[str, Any] = {
        "hardware": ["cpu-1-thread", "cpu-all-cores"],
        "budget": Limits(),
        "budgets": {"cpu-1-thread": Limits(min_speedup=99.0)},
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


def test_refusals_are_told_to_the_sampler_without_a_complaint(started: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(RequestUnmet):
            started(FP32, "run", Connected(), trials=3, budget=Limits(min_speedup=99.0))


REFUSED = {
    "recovery": {"steps": 40, "learning_rate": {"low": 1e-4, "high": 1e-3}},
    "heads": {"keep": {"low": 0.5, "high": 0.9}},
}
OUT_OF_REACH = {"width": {"latency": {"low": 0.02, "high": 0.1}}}


@pytest.mark.parametrize("values", [REFUSED, OUT_OF_REACH], ids=["refused", "failed"])
def test_a_search_of_which_no_candidate_is_tried_ends_in_time(
    started: Any, values: Mapping[str, Any]
) -> None:
    """Every candidate is new, and too slow by prediction or not to be built: the time limit holds
    all the same."""

    class Impatient(StopAfter):
        def trial(self, trial: Trial, remaining_s: float | None) -> None:
            assert time.monotonic() < end, "the search goes on long after its time limit"

    end = time.monotonic() + 40
    options: dict[str, Any] = {
        "trials": None,
        "time_limit_s": 8.0,
        "budget": Limits(min_speedup=99.0),
    }
    with pytest.raises((RequestUnmet, SearchFailed)):
        started(
            values,
            "run",
            Connected(),
            hardware=replace(PROFILE, final_seconds=0.1),
            listener=Impatient(0),
            **options,
        )


def test_no_candidate_is_tried_twice_while_its_table_changes(started: Any) -> None:
    """The table learns from every trial, so the same share of latency gives another structure
    later."""

    class Slower(AdditiveDevice):
        """Trials take a fifth longer than the table says."""

        def time(
            self, baseline: Path, models: Sequence[Path], *, final: bool
        ) -> tuple[Timing, list[Timing]]:
            first, rest = super().time(baseline, models, final=final)
            slow = [
                replace(timing, speedup=timing.speedup / 1.2) if "models" in path.parts else timing
                for timing, path in zip(rest, models, strict=True)
            ]
            return first, slow

    result = started(
        {"width": {"latency": [0.5, 0.7]}}, "run", Connected(Slower), trials=8, budget=Limits()
    )
    assert sorted(trial.candidate["width.latency"] for trial in result.trials[1:]) == [0.5, 0.7]


@pytest.mark.parametrize("limited", [False, True])
def test_a_candidate_whose_formats_do_not_fit_fails_alone(started: Any, limited: bool) -> None:
    """Layer 3 is spared, also where only two layers are left."""
    values = {
        "layers": {"keep": [0.5, 1.0]},
        "quantization": {"scheme": "int8-dynamic", "spared": [[3]]},
    }
    budget = Limits(min_speedup=1.01) if limited else Limits()
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
    """A large model's table takes long; Ctrl-C between two of its processes loses none of what they
    measured."""

    class Interrupted(AdditiveDevice):
        def time(
            self, baseline: Path, models: Sequence[Path], *, final: bool
        ) -> tuple[Timing, list[Timing]]:
            if models and self.table:
                raise KeyboardInterrupt
            return super().time(baseline, models, final=final)

    first, second = Connected(Interrupted), Connected()
    with pytest.raises(KeyboardInterrupt):
        started(FP32, "first", first)
    done = cast(Interrupted, first.device).table
    wanted = probes(LAYERS, HEADS, FFN, ["fp32"])
    assert 0 < len(done) < len(wanted)
    started(FP32, "second", second)
    assert second.device.table == wanted[len(done) :]


@pytest.mark.usefixtures("own_cache")
def test_a_format_that_a_device_cannot_run_fails_its_candidates_alone(
    started: Any,
) -> None:
    """As it does in a search that needs no table."""

    class Old(AdditiveDevice):
        def time(
            self, baseline: Path, models: Sequence[Path], *, final: bool
        ) -> tuple[Timing, list[Timing]]:
            if any(exported_shape(path).rest == "int8-weights/32" for path in models):
                raise CandidateFailed("onnxruntime cannot load it: no MatMulNBits")
            return super().time(baseline, models, final=final)

    values = {"quantization": {"scheme": ["int8-dynamic", "int8-weights"]}}
    for number, budget in enumerate((Limits(), Limits(min_speedup=1.05))):
        result = started(values, f"run-{number}", Connected(Old), budget=budget, trials=2)
        states = {
            trial.candidate["quantization.scheme"]: trial.state for trial in result.trials[1:]
        }
        assert states == {"int8-dynamic": "complete", "int8-weights": "failed"}


def test_pruning_by_latency_fails_in_a_format_that_the_device_cannot_run(
    started: Any, cache: Path
) -> None:
    class Old(AdditiveDevice):
        def time(
            self, baseline: Path, models: Sequence[Path], *, final: bool
        ) -> tuple[Timing, list[Timing]]:
            if any(exported_shape(path).rest == "int8-dynamic" for path in models):
                raise CandidateFailed("onnxruntime cannot load it: no MatMulInteger")
            return super().time(baseline, models, final=final)

    values = {"width": {"latency": 0.5}, "quantization": {"scheme": ["int8-dynamic", "fp32"]}}
    result = started(values, "run", Connected(Old), trials=2)
    unknown = "the latency table of cpu-1-thread does not know the number formats of this candidate"
    unable = "onnxruntime cannot load it: no MatMulInteger"
    named = [("quantization.scheme", "int8-dynamic")]
    reasons = {
        (trial.asked, *dict(trial.candidate).items()): trial.reason for trial in result.trials[1:]
    }
    asked = next(t.number for t in result.trials[1:] if t.state == "complete")
    half = ("width.latency", 0.5)
    assert reasons == {
        (0, *named): unable,  # the uncut model
        (None, half, *named): unknown,
        (None, half): None,
        (asked, half, *named): unable,  # the same student
    }


def test_a_table_takes_half_the_time_at_most(
    started: Any, cache: Path, tmp_path: Path, clock: SimpleNamespace
) -> None:
    """What is not measured by then stays unmeasured, also after a resume."""
    connected, again = Connected(slow(clock, 40)), Connected(slow(clock, 40))
    started(FP32, "run", connected, trials=1, time_limit_s=60.0)
    wanted = probes(LAYERS, HEADS, FFN, ["fp32"])
    assert connected.device.table == wanted[:8] != wanted
    started(FP32, "run", again, trials=2, time_limit_s=None, resume=True)
    assert again.device.table == []
    assert [shape for shape, _ in read_table(tmp_path / "run", "cpu-1-thread").rows] == wanted[:8]


def test_no_more_models_are_exported_at_once_than_fit_the_disk(
    started: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []

    class Counting(AdditiveDevice):
        def time(
            self, baseline: Path, models: Sequence[Path], *, final: bool
        ) -> tuple[Timing, list[Timing]]:
            together.append(len(models))
            return super().time(baseline, models, final=final)

    monkeypatch.setattr(Converter, "room", lambda self, uncut: 3)
    started(FP32, "run", Connected(Counting), trials=1)
    assert together[1:5] == [3, 3, 3, 1]


def test_a_device_that_is_lost_while_its_table_is_measured_is_said_in_one_line(
    started: Any, cache: Path
) -> None:
    class Lost(AdditiveDevice):
        def time(
            self, baseline: Path, models: Sequence[Path], *, final: bool
        ) -> tuple[Timing, list[Timing]]:
            if self.calls:
                raise CandidateFailed("connection lost: no answer")
            return super().time(baseline, models, final=final)

    with pytest.raises(AutocompressError, match="connection lost"):
        started(TWO, "run", Connected(Lost))
