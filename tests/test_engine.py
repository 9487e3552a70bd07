"""The whole search on a tiny model and real sentences, with devices that do not depend on the machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForSequenceClassification

from autocompress.artifact import facts, load_model, scheme_of
from autocompress.engine import SearchResult, outclassed
from autocompress.errors import CandidateFailed, RequestUnmet, SearchFailed, UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Device
from autocompress.journal import Run, Trial
from autocompress.onnx_runtime import predict
from autocompress.pareto import METRICS, Budget, load_front, load_fronts, non_dominated
from autocompress.scores import Latency, Score, Timing
from autocompress.search_space import SearchSpace
from autocompress.session import search
from autocompress.tasks.data import Columns, load_examples
from tests.conftest import SizeDevice

CPU = "cpu-1-thread"

SPACE: dict[str, Any] = {
    "layers": {"keep": [1.0, 0.5, 0.25]},
    "heads": {"keep": {"low": 0.0, "high": 1.0, "step": 0.25}},
    "ffn": {"keep": {"low": 0.0, "high": 1.0, "step": 0.25}, "importance": ["fisher", "magnitude"]},
    "recovery": {"steps": [0, 40]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
    "corners": [{"quantization": {"scheme": "int8-dynamic"}}],
}


UNCUT = {"layers.keep": 1.0, "width.latency": 1.0, "heads.keep": 1.0, "ffn.keep": 1.0}


def space(values: Mapping[str, Any] = SPACE) -> SearchSpace:
    return SearchSpace.from_mapping("test", values)


class StopAfter:
    """A listener that presses Ctrl-C after some trials."""

    def __init__(self, trials: int) -> None:
        self.left = trials

    def stage(self, name: str, done: int = 0, of: int = 0) -> None: ...

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def timed(**speedups: float) -> dict[str, Score]:
    """Scores of these speedups by device."""
    latency = Latency(1.0, 1.0, 1.0, (1.0, 1.0), 30)
    return {name: Score(Timing(latency, speedup, (speedup, speedup))) for name, speedup in speedups.items()}


def timeless(trials: tuple[Trial, ...] | list[Trial]) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in trials]


@pytest.fixture(scope="module")
def whole(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """An uninterrupted search of 8 candidates."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, connect=SizeDevice)


def test_the_front_is_what_its_files_are(whole: SearchResult, data_file: Path) -> None:
    front = load_front(whole.run)
    assert front == whole.front
    assert front.verified
    assert load_fronts(whole.run) == whole.fronts == {CPU: front}
    assert (front.hardware["name"], front.hardware["lengths"]) == (CPU, [32])
    latencies = [member.latency_ms.value for member in front.members]
    assert latencies == sorted(latencies)
    points = [(member.latency_ms.value, 1 - member.quality.validation) for member in front.members]
    assert non_dominated(points) == list(range(len(points)))
    assert {folder.name for folder in (whole.run / "models").iterdir()} == {"t000", *(m.id for m in front.members)}

    from transformers import AutoTokenizer

    held_out = load_examples(str(data_file), Columns()).test
    for member in front.members:
        folder = whole.run / member.path
        tokenizer = AutoTokenizer.from_pretrained(whole.run / "tokenizer")
        batches = [dict(tokenizer([text], return_tensors="np", truncation=True, max_length=64)) for text, _, _ in held_out]
        answers = predict(folder / "model.onnx", batches).argmax(1) == [label for _, _, label in held_out]
        assert member.quality.test == answers.mean()
        assert member.quality.n_test == len(held_out) == 80
        assert member.weight_bytes == (folder / "model.onnx").stat().st_size
        assert member.latency_ms.value == member.weight_bytes / 1e5
        recorded = json.loads((folder / "autocompress.json").read_text())
        assert recorded["candidate"] == member.candidate
        assert recorded["parity"]["fp32_max_abs_difference"] <= 1e-4
        assert recorded["scores"].keys() == {CPU}
        scores = recorded["scores"][CPU]
        assert scores["quality"]["test"] == member.quality.test
        assert (scores["timing"]["speedup"], scores["weight_bytes"]) == (member.speedup, member.weight_bytes)
        assert scores["lengths"] == [32]
        assert sum(p.numel() for p in load_model(folder).parameters()) <= sum(
            p.numel() for p in load_model(whole.run / "models/t000").parameters()
        )


def test_the_baseline_is_the_teacher_in_fp32(whole: SearchResult) -> None:
    baseline = whole.front.baseline
    assert (baseline.id, baseline.speedup, baseline.quality.drop_test, baseline.path) == ("t000", 1.0, 0.0, "models/t000")
    assert baseline.candidate == UNCUT | {"quantization.scheme": "fp32"}


def test_drops_are_paired(whole: SearchResult) -> None:
    compared = 0
    for trial in whole.trials[1:]:
        baseline, score = whole.trials[0].scores[CPU], trial.scores[CPU]
        if score.quality is None or baseline.evidence is None or score.evidence is None:
            continue
        a, b = (np.unpackbits(np.frombuffer(bytes.fromhex(t), np.uint8), count=80) for t in (baseline.evidence, score.evidence))
        differences = a.astype(float) - b
        assert score.quality.drop_validation == pytest.approx(100 * differences.mean())
        assert score.quality.drop_validation_stderr == pytest.approx(100 * differences.std(ddof=1) / 80**0.5)
        compared += 1
    assert compared >= 3


def test_no_candidate_is_tried_twice(whole: SearchResult) -> None:
    tried = [json.dumps([trial.sizes, trial.candidate], sort_keys=True) for trial in whole.trials]
    assert len(set(tried)) == len(tried) == 9
    assert whole.trials[1].candidate == UNCUT | {"quantization.scheme": "int8-dynamic", "quantization.spared": "none"}


def test_same_seed_same_search_and_another_seed_another(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    again = search(tiny_model, data_file, "cpu-1-thread", space(), tmp_path / "a", trials=8, connect=SizeDevice)
    assert timeless(again.trials) == timeless(whole.trials)
    other = search(tiny_model, data_file, "cpu-1-thread", space(), tmp_path / "b", trials=8, connect=SizeDevice, seed=1)
    assert [t.candidate for t in other.trials] != [t.candidate for t in whole.trials]


def test_stopped_by_ctrl_c_and_resumed_it_ends_the_same(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, connect=SizeDevice, listener=StopAfter(4))
    so_far = load_front(out)
    assert not so_far.verified
    assert (out / "report.html").is_file()
    assert all((out / member.path / "model.onnx").is_file() for member in so_far.members)
    resumed = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, connect=SizeDevice, resume=True)
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert resumed.front == whole.front


def test_a_finished_run_can_be_extended(whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=4, connect=SizeDevice)
    longer = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, connect=SizeDevice, resume=True)
    assert timeless(longer.trials) == timeless(whole.trials)
    assert longer.front == whole.front
    assert json.loads((out / "run.json").read_text())["trials"] == 8


KILLED = """
import sys
from pathlib import Path
from autocompress.session import search
from tests.conftest import SizeDevice
from tests.test_engine import space
model, data, out = sys.argv[1:]
search(model, data, "cpu-1-thread", space(), out, trials=8, connect=SizeDevice)
"""


@pytest.mark.parametrize("lines", [1, 4])
def test_killed_and_resumed_it_ends_the_same(
    lines: int, whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(tiny_model), str(data_file), str(out)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as process:
        while process.poll() is None:
            journal = out / "trials.jsonl"
            if journal.is_file() and journal.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    before = Run(out).trials()
    assert lines <= len(before) < 9
    with (out / "trials.jsonl").open("a") as file:
        file.write('{"number": 99, "cand')
    resumed = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, connect=SizeDevice, resume=True)
    assert list(resumed.trials[: len(before)]) == before
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert resumed.front == whole.front


def test_resuming_with_other_inputs_is_refused(whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    other_data = tmp_path / "other.csv"
    other_data.write_text(data_file.read_text() + "a film of note,1\n")
    for change, key in (
        ({"seed": 3}, "seed"),
        ({"space": space(SPACE | {"heads": {"keep": [0.5]}})}, "space"),
        ({"hardware": "cpu-all-cores"}, "hardware"),
        ({"budget": Budget(min_speedup=2)}, "budgets"),
        ({"budgets": {CPU: Budget(max_drop=2)}}, "budgets"),
        ({"data": other_data}, "data"),
    ):
        arguments: dict[str, Any] = {
            "model": tiny_model,
            "data": data_file,
            "hardware": "cpu-1-thread",
            "space": space(),
            "trials": 8,
        }
        with pytest.raises(UserError, match=f"--resume: {key} differs"):
            search(**(arguments | change), out=whole.run, resume=True, connect=SizeDevice)


def test_a_run_whose_structures_come_out_otherwise_is_not_resumed(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """As when importance is computed otherwise, or the latency table was lost."""
    out = tmp_path / "run"
    shutil.copytree(whole.run, out)
    trials = Run(out).trials()
    assert trials[2].sizes is not None
    other = replace(trials[2], sizes=trials[2].sizes | {"ffn": [1] * len(trials[2].sizes["layers"])})
    lines = (out / "trials.jsonl").read_text().splitlines()
    record = json.loads(lines[2])
    lines[2] = json.dumps(record | {"sizes": other.sizes})
    (out / "trials.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"^--resume: trial t002 cannot be replayed"):
        search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, connect=SizeDevice, resume=True)


@pytest.mark.parametrize(
    ("key", "value", "refused"), [("busy_cores", 0.2, False), ("memory_bytes", 1, False), ("cpu", "two", True)]
)
def test_a_run_goes_on_on_the_device_that_it_began_on(
    key: str, value: object, refused: bool, whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """What else the device is doing, and its memory as its system counts it, may change."""
    out = Path(shutil.copytree(whole.run, tmp_path / "run"))

    def other(profile: HardwareProfile, lengths: Sequence[int]) -> Device:
        device = SizeDevice(profile, lengths)
        device.fingerprint[key] = value
        return device

    if refused:
        with pytest.raises(UserError, match="--resume: devices differs"):
            search(tiny_model, data_file, CPU, space(), out, trials=8, connect=other, resume=True)
    else:
        assert search(tiny_model, data_file, CPU, space(), out, trials=8, connect=other, resume=True).front == whole.front


def test_a_device_that_does_not_say_how_busy_it_is(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """As ``agent.busy_cores`` has it where there is no /proc/stat."""

    def silent(profile: HardwareProfile, lengths: Sequence[int]) -> Device:
        device = SizeDevice(profile, lengths)
        device.fingerprint["busy_cores"] = None
        return device

    found = search(tiny_model, data_file, CPU, space(DEPTH), tmp_path / "run", trials=1, connect=silent)
    assert len(found.trials) == 2


def test_other_processes_on_a_device_are_named(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    class Hearing(StopAfter):
        def stage(self, name: str, done: int = 0, of: int = 0) -> None:
            stages.append(name)

    def busy(profile: HardwareProfile, lengths: Sequence[int]) -> Device:
        device = SizeDevice(profile, lengths)
        device.fingerprint |= {"busy_cores": 1.1 if profile.name == "old" else 1.0, "cores": 4}
        return device

    search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", trials=1, connect=busy, listener=Hearing(99))
    said = "other processes keep 1.1 of 4 cores busy; training will be slow and latencies less certain"
    assert [stage for stage in stages if "busy" in stage] == [f"old: {said}"]


def test_a_failed_trial_is_recorded_and_the_search_goes_on(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = {"layers": {"keep": [[0, 9], [0, 3]]}, "quantization": {"scheme": ["fp32"]}}
    found = search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=10, connect=SizeDevice)
    assert {trial.state: trial.reason for trial in found.trials} == {
        "complete": None,
        "failed": "layers.keep names layer 9, the model has 4 (0 to 3)",
    }
    assert len(found.trials) == 3


def test_if_all_trials_fail_the_search_says_why(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = {"layers": {"keep": [[0, 9]]}}
    with pytest.raises(SearchFailed, match=r"all 1 trials failed: t001: layers.keep names layer 9"):
        search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=5, connect=SizeDevice)


def test_a_small_space_is_tried_whole_and_once(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    found = search(tiny_model, data_file, "cpu-1-thread", "quantization-only", tmp_path / "run", connect=SizeDevice)
    formats = [(t.candidate["quantization.scheme"], t.candidate.get("quantization.block_size")) for t in found.trials]
    weights = [(scheme, block) for scheme in ("int4-weights", "int8-weights") for block in (32, 128)]
    assert sorted(map(str, formats)) == sorted(map(str, [("fp32", None), ("int8-dynamic", None), ("int8-static", None), *weights]))
    assert all(trial.state == "complete" for trial in found.trials)


def test_a_latency_budget_is_a_constraint(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    found = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        tmp_path / "run",
        trials=6,
        connect=SizeDevice,
        budget=Budget(min_speedup=1.5),
    )
    assert found.front.members
    assert found.front.budget == {"min_speedup": 1.5}
    assert all(member.speedup >= 1.5 for member in found.front.members)
    for trial in found.trials[1:]:
        if trial.scores:
            assert (trial.state == "over-budget") == (trial.scores[CPU].timing.speedup < 1.5)
        else:
            assert trial.state == "over-budget"
            assert trial.predicted[CPU] > 1.05 / 1.5
            milliseconds = trial.predicted[CPU] * found.trials[0].scores[CPU].timing.latency_ms.value
            assert trial.reason == f"predicted {milliseconds:.3g} ms on {CPU}, so not tried"
        if trial.state == "over-budget":
            assert trial.rungs == ()
            assert trial.path is None
    assert {trial.state for trial in found.trials[1:]} == {"complete", "over-budget"}


def test_a_budget_that_nothing_meets_names_the_nearest(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RequestUnmet,
        match=r"none of 3 candidates meets the budget; the nearest is t00[1-3], limited by its speedup: .* not trained",
    ):
        search(
            tiny_model,
            data_file,
            "cpu-1-thread",
            space(),
            tmp_path / "run",
            trials=3,
            connect=SizeDevice,
            budget=Budget(min_speedup=99),
        )
    assert load_front(tmp_path / "run").members == ()


def test_a_full_disk_is_said_and_the_run_resumable(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk:
        free = 10

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: Disk)
        with pytest.raises(UserError, match="no room left on the disk"):
            search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=2, connect=SizeDevice)
    assert len(Run(out).trials()) == 1
    found = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=2, connect=SizeDevice, resume=True)
    assert len(found.trials) == 3


def test_texts_in_two_splits_are_dropped_and_counted(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    lines = data_file.read_text(encoding="utf-8").splitlines()
    test = tmp_path / "test.csv"
    test.write_text("\n".join([lines[0], *lines[1:13], *lines[-12:]]) + "\n", encoding="utf-8")
    values = {"quantization": {"scheme": ["int8-dynamic"]}}
    search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=1, connect=SizeDevice, test=str(test))
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    dropped = data["dropped"]
    assert data["test"] == 24
    assert dropped["train also in validation or test"] + dropped["validation also in test"] == 24
    assert data["train"] + data["validation"] + 24 == 400


def test_a_slower_and_clearly_worse_candidate_is_outclassed() -> None:
    trials = [Trial(1, {}, "complete", rungs=((32, 7.5), (100, 5.0)), scores=timed(a=4.0))]
    points, percent = METRICS["accuracy"], METRICS["perplexity"]
    assert outclassed(trials, 32, (8.4, 1.0), {"a": 3.0}, points) is None  # within one standard error
    assert outclassed(trials, 32, (9.5, 1.0), {"a": 5.0}, points) is None  # worse but faster
    slower = {"a": 3.0}
    assert (
        outclassed(trials, 32, (9.5, 1.0), slower, points)
        == "drop 9.50 points after 32 steps, where t001 had 7.50 and is no slower"
    )
    reason = "increase 9.50 percent after 32 steps, where t001 had 7.50 and is no slower"
    assert outclassed(trials, 32, (9.5, 1.0), slower, percent) == reason
    assert outclassed(trials, 192, (90.0, 1.0), slower, points) is None  # nothing to compare with after 192 steps


def test_faster_on_one_device_a_candidate_is_not_outclassed() -> None:
    trials, worse = [Trial(1, {}, "complete", rungs=((32, 7.5),), scores=timed(a=4.0, b=2.0))], (17.5, 1.0)
    metric = METRICS["accuracy"]
    assert outclassed(trials, 32, worse, {"a": 3.0, "b": 2.1}, metric) is None
    assert outclassed(trials, 32, worse, {"a": 4.1, "b": 1.0}, metric) is None
    assert outclassed(trials, 32, worse, {"a": 4.0, "b": 2.0}, metric) is not None
    assert outclassed([Trial(1, {}, "complete", rungs=((32, 7.5),))], 32, worse, {"a": 1.0}, metric) is None  # never timed


def test_resuming_with_fewer_trials_loses_nothing(whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.run, out)
    again = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=2, connect=SizeDevice, resume=True)
    assert timeless(again.trials) == timeless(whole.trials)
    assert again.front == whole.front


def test_a_trial_that_cannot_end_in_time_leaves_no_trace(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = {"heads": {"keep": [0.5]}, "recovery": {"steps": 1_000_000}}
    # nothing is known of the first trial's pace until its first rung, where a million steps turn out to take hours
    found = search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", time_limit_s=600, connect=SizeDevice)
    assert [trial.id for trial in found.trials] == ["t000"]
    assert [folder.name for folder in (found.run / "models").iterdir()] == ["t000"]


def test_unlabelled_share_is_not_searched_without_text(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = SPACE | {"recovery": {"steps": [8], "unlabeled_share": [0.0, 0.5]}}
    found = search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=3, connect=SizeDevice)
    assert all(trial.state == "complete" for trial in found.trials)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]["space"]["parameters"]
    assert "recovery.unlabeled_share" not in recorded


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_that_knows_no_padding_is_searched(family: str, tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(family, vocab_size=30522, max_position_embeddings=64, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")  # type: ignore[no-untyped-call]
    for path in tiny_model.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    values = {"layers": {"keep": [0.5]}, "heads": {"keep": [0.5]}, "recovery": {"steps": [2]}}
    found = search(tmp_path / "model", data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=1, connect=SizeDevice)
    assert [trial.state for trial in found.trials] == ["complete", "complete"]
    assert found.trials[1].sizes is not None and sum(found.trials[1].sizes["heads"]) == 4
    assert max(trial.parity["fp32_max_abs_difference"] for trial in found.trials if trial.parity) <= 1e-4
    loaded: Any = load_model(tmp_path / "run" / "models" / "t000")
    assert loaded.config.pad_token_id == 0


class OldDevice(SizeDevice):
    """A millisecond for each layer and one for the rest; int8 takes half as long again. It has counted its calls of ``predict``."""

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
        super().__init__(profile, lengths)
        self.fingerprint |= {"cpu": "old"}
        self.asked = 0

    def milliseconds(self, model: Path) -> float:
        layers = len(facts(model)["sizes"]["layers"])
        return (1.0 + layers) * (1.5 if scheme_of(model).startswith("int8") else 1.0)

    def predict(self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]) -> NDArray[np.float32]:
        self.asked += 1
        return super().predict(model, batches)


class Contrary(OldDevice):
    """Answers the other label than the model gives."""

    answers_like = "contrary"

    def predict(self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]) -> NDArray[np.float32]:
        return -super().predict(model, batches)


class NoInt8(SizeDevice):
    """Cannot run int8."""

    def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
        if any(scheme_of(model) == "int8-dynamic" for model in models):
            raise CandidateFailed("no int8 here")
        return super().time(baseline, models, final=final)


class LostAtTheEnd(SizeDevice):
    """Is gone when the front is verified."""

    def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
        if final:
            raise CandidateFailed("connection lost")
        return super().time(baseline, models, final=final)


class Farm:
    """Connects, and remembers the devices by name: ``old`` is one of its own, all others are ``SizeDevice``s."""

    def __init__(self, old: type[SizeDevice] = OldDevice) -> None:
        self.old = old
        self.devices: dict[str, SizeDevice] = {}

    def __call__(self, profile: HardwareProfile, lengths: Sequence[int]) -> Device:
        self.devices[profile.name] = (self.old if profile.name == "old" else SizeDevice)(profile, lengths)
        return self.devices[profile.name]

    @property
    def closed(self) -> dict[str, int]:
        """How often each device was closed."""
        return {name: device.closed for name, device in self.devices.items()}


OLD = replace(HardwareProfile.load(CPU), name="old", description="an old one")
BOTH = (CPU, OLD)
DEPTH: dict[str, Any] = {"layers": {"keep": [1.0, 0.75, 0.5, 0.25]}, "quantization": {"scheme": ["fp32", "int8-dynamic"]}}
"""Eight models, the baseline among them; nothing is trained."""


@pytest.fixture(scope="module")
def pair(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search on two devices: bytes count on the first, layers on the second."""
    out = tmp_path_factory.mktemp("runs") / "pair"
    return search(tiny_model, data_file, BOTH, space(DEPTH), out, connect=Farm())


def test_two_devices_have_a_front_each_and_the_fronts_differ(pair: SearchResult) -> None:
    assert list(pair.fronts) == [CPU, "old"] and pair.front == pair.fronts[CPU]
    assert load_fronts(pair.run) == pair.fronts
    written = json.loads((pair.run / "front.json").read_text())
    assert [front["hardware"]["name"] for front in written["fronts"]] == [CPU, "old"]
    fastest = {name: front.members[0] for name, front in pair.fronts.items()}
    assert fastest[CPU].candidate["quantization.scheme"] == "int8-dynamic" and len(fastest[CPU].sizes["layers"]) == 1
    assert fastest["old"].candidate["quantization.scheme"] == "fp32" and len(fastest["old"].sizes["layers"]) == 1
    assert fastest["old"].latency_ms.value == 2.0 and fastest["old"].speedup == 2.5
    assert {member.id for member in pair.fronts[CPU].members} != {member.id for member in pair.fronts["old"].members}


def test_each_front_is_by_the_numbers_of_its_device(pair: SearchResult) -> None:
    for name, front in pair.fronts.items():
        assert front.verified and front.baseline.id == "t000"
        points = [(member.latency_ms.value, 1 - member.quality.validation) for member in front.members]
        assert points == sorted(points) and non_dominated(points) == list(range(len(points)))
        for member in front.members:
            old = (1 + len(member.sizes["layers"])) * (1.0 if member.candidate["quantization.scheme"] == "fp32" else 1.5)
            assert member.latency_ms.value == (old if name == "old" else member.weight_bytes / 1e5)
            assert facts(pair.run / member.path)["scores"][name]["timing"]["speedup"] == member.speedup
    kept = {member.id for front in pair.fronts.values() for member in front.members}
    assert {folder.name for folder in (pair.run / "models").iterdir()} == {"t000", *kept}


def test_every_trial_is_scored_on_both_devices(pair: SearchResult) -> None:
    assert len(pair.trials) == 8
    for trial in pair.trials:
        assert list(trial.scores) == [CPU, "old"] and trial.weight_bytes is not None
        assert trial.scores[CPU].timing.latency_ms.value == trial.weight_bytes / 1e5
        assert trial.scores[CPU].quality == trial.scores["old"].quality
        assert trial.scores[CPU].evidence == trial.scores["old"].evidence


def test_the_report_has_both_fronts(pair: SearchResult) -> None:
    page = (pair.run / "report.html").read_text(encoding="utf-8")
    for index, front in enumerate(pair.fronts.values()):
        assert [f'id="row-{index}-{member.id}"' in page for member in front.members] == [True] * len(front.members)
        assert page.count(f'id="row-{index}-') == len(front.members)


def test_devices_that_answer_alike_are_asked_once(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    farm = Farm()
    search(tiny_model, data_file, (OLD, CPU), space(DEPTH), tmp_path / "a", trials=2, connect=farm)
    assert isinstance(farm.devices["old"], OldDevice) and farm.devices["old"].asked > 0
    last = Farm()
    search(tiny_model, data_file, (CPU, OLD), space(DEPTH), tmp_path / "b", trials=2, connect=last)
    assert isinstance(last.devices["old"], OldDevice) and last.devices["old"].asked == 0


def test_a_device_that_answers_otherwise_has_a_quality_of_its_own(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    found = search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", trials=3, connect=Farm(Contrary))
    for trial in found.trials:
        here, there = trial.scores[CPU].quality, trial.scores["old"].quality
        assert here is not None and there is not None
        assert there.validation == pytest.approx(1 - here.validation)
        assert there.drop_validation == pytest.approx(-here.drop_validation)
        assert trial.rungs[-1] == (0, max(here.drop_validation, there.drop_validation))
    for front in found.fronts.values():
        for member in front.members:
            recorded = facts(found.run / member.path)["scores"][front.hardware["name"]]
            assert recorded["quality"]["test"] == member.quality.test
    tested = [front.baseline.quality.test for front in found.fronts.values()]
    assert tested[0] is not None and tested[1] == pytest.approx(1 - tested[0])


def test_two_devices_stopped_and_resumed_end_the_same(
    pair: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out, farm = tmp_path / "run", Farm()
    with pytest.raises(KeyboardInterrupt):
        search(tiny_model, data_file, BOTH, space(DEPTH), out, connect=farm, listener=StopAfter(4))
    assert farm.closed == {CPU: 1, "old": 1}
    so_far = load_fronts(out)
    assert list(so_far) == [CPU, "old"] and not any(front.verified for front in so_far.values())
    assert all((out / member.path / "model.onnx").is_file() for front in so_far.values() for member in front.members)
    resumed = search(tiny_model, data_file, BOTH, space(DEPTH), out, connect=Farm(), resume=True)
    assert timeless(resumed.trials) == timeless(pair.trials)
    assert resumed.fronts == pair.fronts
    with pytest.raises(UserError, match="--resume: hardware differs"):
        search(tiny_model, data_file, BOTH[::-1], space(DEPTH), out, connect=Farm(), resume=True)


def test_a_budget_of_one_device_is_that_devices_alone(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """Twice as fast on the old device is a single layer in fp32 alone; where bytes count, int8 is faster than that."""
    budgets = {"old": Budget(min_speedup=2)}
    found = search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", connect=Farm(), sampler="random", budgets=budgets)
    assert [front.budget for front in found.fronts.values()] == [{}, {"min_speedup": 2}]
    recorded = json.loads((found.run / "run.json").read_text())["inputs"]["budgets"]
    assert recorded == {CPU: {}, "old": {"min_speedup": 2}}
    assert found.fronts["old"].members and [m.speedup for m in found.fronts["old"].members] == [2.5]
    beyond = [m for m in found.front.members if found.trials[int(m.id[1:])].scores["old"].timing.speedup < 2]
    assert beyond, "a model that misses the old device's budget is still one for the other device"
    assert {trial.state for trial in found.trials} == {"complete"}


def test_over_budget_is_what_misses_the_limits_of_every_device(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """int8 meets the first one, up to two layers in fp32 the second; three and four in fp32 meet neither."""
    budgets = {CPU: Budget(max_latency_ms=20.0), "old": Budget(max_latency_ms=3.0)}
    found = search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", connect=Farm(), sampler="random", budgets=budgets)
    states = {(t.candidate["quantization.scheme"], len(t.sizes["layers"])): t.state for t in found.trials[1:] if t.sizes}
    assert states == {
        **{("int8-dynamic", layers): "complete" for layers in (1, 2, 3, 4)},
        **{("fp32", layers): "complete" for layers in (1, 2)},
        ("fp32", 3): "over-budget",
    }
    assert {m.candidate["quantization.scheme"] for m in found.front.members} == {"int8-dynamic"}
    assert all(member.latency_ms.value <= 3.0 for member in found.fronts["old"].members)
    [trial] = [trial for trial in found.trials if trial.state == "over-budget"]
    assert trial.reason is not None and CPU in trial.reason and "on old" in trial.reason
    predicted, baseline = trial.predicted, found.trials[0].scores
    assert predicted[CPU] * baseline[CPU].timing.latency_ms.value > 20 and predicted["old"] * 5 > 3


def test_a_common_budget_holds_on_devices_without_one_of_their_own(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    found = search(
        tiny_model,
        data_file,
        BOTH,
        space(DEPTH),
        tmp_path / "run",
        connect=Farm(),
        budget=Budget(max_drop=100),
        budgets={"old": Budget(max_drop=99, max_latency_ms=99.0)},
    )
    assert [front.budget for front in found.fronts.values()] == [{"max_drop": 100}, {"max_latency_ms": 99.0, "max_drop": 99}]


def test_no_model_within_the_budget_of_any_device(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    budgets = {CPU: Budget(max_latency_ms=1e-3), "old": Budget(min_speedup=2.6)}
    with pytest.raises(RequestUnmet, match="none of 7 candidates meets the budget; the nearest is "):
        search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", connect=Farm(), sampler="random", budgets=budgets)
    assert [front.members for front in load_fronts(tmp_path / "run").values()] == [(), ()]


def test_of_two_devices_one_may_have_no_model(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    budgets = {CPU: Budget(max_latency_ms=1e-3)}
    found = search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", connect=Farm(), sampler="random", budgets=budgets)
    assert found.front.members == () and found.fronts["old"].members


def test_what_a_device_cannot_run_fails_the_trial_and_the_search_goes_on(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    farm = Farm(NoInt8)
    found = search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", connect=farm, sampler="random")
    states = {(t.candidate["quantization.scheme"], len(t.sizes["layers"])): (t.state, t.reason) for t in found.trials if t.sizes}
    assert states == {
        **{("fp32", layers): ("complete", None) for layers in (1, 2, 3, 4)},
        **{("int8-dynamic", layers): ("failed", "no int8 here") for layers in (1, 2, 3, 4)},
    }
    assert all(member.candidate["quantization.scheme"] == "fp32" for front in found.fronts.values() for member in front.members)
    assert all(front.members for front in found.fronts.values())
    assert farm.closed == {CPU: 1, "old": 1}


def test_a_device_lost_at_the_end_leaves_a_front_and_a_run_that_goes_on(
    pair: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    class Lost(LostAtTheEnd, OldDevice):
        pass

    out, farm = tmp_path / "run", Farm(Lost)
    with pytest.raises(CandidateFailed, match="connection lost"):
        search(tiny_model, data_file, BOTH, space(DEPTH), out, connect=farm)
    assert farm.closed == {CPU: 1, "old": 1}
    assert [(name, front.verified) for name, front in load_fronts(out).items()] == [(CPU, False), ("old", False)]
    resumed = search(tiny_model, data_file, BOTH, space(DEPTH), out, connect=Farm(), resume=True)
    assert timeless(resumed.trials) == timeless(pair.trials)
    assert resumed.fronts == pair.fronts


def test_every_device_is_closed_however_the_search_ends(
    pair: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    def closed(error: type[BaseException] | None, out: Path, **changes: Any) -> dict[str, int]:
        farm = Farm()
        arguments: dict[str, Any] = {"space": space(DEPTH), "trials": 1, "connect": farm, "out": out} | changes
        if error is None:
            search(tiny_model, data_file, BOTH, **arguments)
        else:
            with pytest.raises(error):
                search(tiny_model, data_file, BOTH, **arguments)
        return farm.closed

    once = {CPU: 1, "old": 1}
    assert closed(None, tmp_path / "done") == once
    assert closed(SearchFailed, tmp_path / "failed", space=space({"layers": {"keep": [[0, 9]]}})) == once
    assert closed(RequestUnmet, tmp_path / "unmet", budget=Budget(max_drop=0, min_quality=1.0)) == once
    assert closed(UserError, pair.run, resume=True, seed=3) == once
    assert closed(UserError, tmp_path / "done" / "front.json" / "no") == once
    assert closed(KeyboardInterrupt, tmp_path / "stopped", listener=StopAfter(1)) == once


def test_a_device_that_cannot_be_reached_leaves_nothing(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    class Away(SizeDevice):
        def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
            raise UserError("no such board")

    farm = Farm(Away)
    with pytest.raises(UserError, match="no such board"):
        search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", connect=farm)
    assert farm.closed == {CPU: 1}
    assert not (tmp_path / "run").exists()


def test_the_same_device_twice_or_a_limit_of_another_is_refused(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    for hardware, budgets, message in (
        ((CPU, CPU), {}, "hardware profile cpu-1-thread is given twice"),
        ((), {}, "no hardware profile is given"),
        (
            BOTH,
            {"phone": Budget(max_drop=1)},
            "a limit is set for phone, which is not among the hardware profiles cpu-1-thread, old",
        ),
    ):
        with pytest.raises(UserError, match=f"^{message}$"):
            search(
                tiny_model, data_file, hardware, space(DEPTH), tmp_path / "run", connect=Farm(), sampler="random", budgets=budgets
            )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hardware", "tried"),
    [
        ({"precisions": ("fp32", "fp16")}, ["fp16", "fp32"]),
        ({"precisions": ("int8-static",)}, ["fp32", "int8-static"]),
        ({}, ["fp32", "int8-static"]),
    ],
)
def test_number_formats_without_gain_on_any_device_are_not_searched(
    hardware: dict[str, Any], tried: list[str], tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    stages: list[str] = []

    class Hearing(StopAfter):
        def stage(self, name: str, done: int = 0, of: int = 0) -> None:
            stages.append(name)

    values = {"quantization": {"scheme": ["fp32", "fp16", "int8-static"]}}
    profile = replace(HardwareProfile.load(CPU), **hardware)
    found = search(tiny_model, data_file, profile, space(values), tmp_path / "run", connect=SizeDevice, listener=Hearing(99))
    assert sorted({str(trial.candidate["quantization.scheme"]) for trial in found.trials}) == tried
    [gone] = {"fp16", "int8-static"} - set(tried)
    assert f"{gone} not searched: no gain on cpu-1-thread by its profile" in stages


def test_a_model_that_takes_too_much_memory_is_over_budget(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """Every model takes 1 MB."""
    tight = replace(OLD, memory_limit_mb=0.5)
    found = search(tiny_model, data_file, (CPU, tight), space(DEPTH), tmp_path / "a", trials=2, connect=Farm())
    assert {trial.state for trial in found.trials} == {"complete"}
    assert found.front.members and found.fronts["old"].members == ()
    with pytest.raises(RequestUnmet, match="limited by its memory"):
        search(tiny_model, data_file, tight, space(DEPTH), tmp_path / "b", trials=2, connect=Farm())
    reasons = {trial.reason for trial in Run(tmp_path / "b").trials()[1:]}
    assert reasons == {"1 MB of memory at the peak, the limit is 0.5"}


def test_at_the_tasks_own_lengths(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """Eight lengths, as the validation split has them; a measurement of an exported folder takes them from there."""
    profile = HardwareProfile.load("cpu-1-thread-task")
    found = search(tiny_model, data_file, profile, space(DEPTH), tmp_path / "run", trials=1, connect=SizeDevice)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = [text for text, _, _ in load_examples(str(data_file), Columns()).validation]
    ordered = sorted(len(tokenizer(text, truncation=True, max_length=64)["input_ids"]) for text in texts)
    expected = [ordered[int((i + 0.5) * len(ordered) / 8)] for i in range(8)]
    assert found.front.hardware["lengths"] == expected
    assert facts(found.run / "models/t000")["scores"]["cpu-1-thread-task"]["lengths"] == expected
