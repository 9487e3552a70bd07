"""From profiles to devices: lengths, identity, what is missing here, memory, and one user of the cores at a time."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from autocompress import HardwareProfile, RequestUnmet, SearchResult, SearchSpace, UserError, load_front, resources, search
from autocompress import measure as measure_module
from autocompress.hardware.cores import reserved
from autocompress.hardware.datasheet import DatasheetDevice
from autocompress.hardware.devices import QUANTILES, connect, host_of, lengths_of, typical_lengths
from autocompress.hardware.host import LocalHost
from autocompress.hardware.onnx_device import OnnxDevice, described
from autocompress.hardware.remote import Board
from autocompress.journal import Run
from autocompress.measure import measure_latency
from autocompress.scores import Latency, Timing
from autocompress.tasks.data import Columns, load_examples
from tests.test_doctor import unsaid
from tests.test_foresight import AdditiveDevice, Connected

PROFILE = HardwareProfile.load("cpu-1-thread")
QUICK = replace(PROFILE, trial_seconds=0.1, final_seconds=0.1, target_precision=0.5)


def test_eight_lengths_by_hand() -> None:
    assert QUANTILES == 8
    # of 16 the middles of eight pairs are the second of each; of 8 all; of fewer some more than once
    assert typical_lengths(range(100, 116)) == (101, 103, 105, 107, 109, 111, 113, 115)
    assert typical_lengths([8, 7, 6, 5, 4, 3, 2, 1]) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert typical_lengths([9, 5, 7]) == (5, 5, 5, 7, 7, 9, 9, 9)
    assert typical_lengths([12]) == (12,) * 8
    assert typical_lengths([4] * 90 + [64] * 10) == (4, 4, 4, 4, 4, 4, 4, 64)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200))
@settings(deadline=None)
def test_eight_lengths_are_of_the_split_ascending_and_in_its_middle(lengths: list[int]) -> None:
    found = typical_lengths(lengths)
    assert len(found) == 8
    assert set(found) <= set(lengths)
    assert list(found) == sorted(found)
    assert typical_lengths(lengths[::-1]) == found
    ordered = sorted(lengths)
    for i, length in enumerate(found):  # the middle of the i-th eighth: at least that many are as short, as many as long
        below = sum(other <= length for other in ordered)
        assert below >= (2 * i + 1) * len(ordered) / 16
        assert sum(other >= length for other in ordered) >= len(ordered) * (16 - 2 * i - 1) / 16


def test_a_number_is_the_only_length_whatever_the_task() -> None:
    assert lengths_of(replace(PROFILE, sequence_length=128), [1, 2, 3]) == (128,)
    assert lengths_of(replace(PROFILE, sequence_length=128), None) == (128,)


def test_the_task_has_the_lengths_where_the_profile_says_so() -> None:
    assert lengths_of(HardwareProfile.load("cpu-1-thread-task"), [9, 5, 7]) == (5, 5, 5, 7, 7, 9, 9, 9)


@pytest.mark.parametrize("task", [None, []])
def test_without_a_task_there_are_no_lengths_of_one(task: list[int] | None) -> None:
    with pytest.raises(
        UserError, match=r"^hardware profile cpu-1-thread-task: sequence_length is 'task', and there is no task here"
    ):
        lengths_of(HardwareProfile.load("cpu-1-thread-task"), task)


def test_locations_have_hosts() -> None:
    assert isinstance(host_of("local"), LocalHost)
    assert isinstance(host_of("cmd:sh -c"), Board)
    with pytest.raises(UserError, match="malformed"):
        host_of("ssh://")


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    """This machine's fingerprint."""
    return described(LocalHost())


def test_a_device_that_is_the_profiles_is_connected(here: Mapping[str, Any]) -> None:
    wanted = {key: here[key] for key in ("system", "cpu", "cores", "features", "gpu")}
    device = connect(replace(PROFILE, fingerprint=wanted), [32])
    assert isinstance(device, OnnxDevice)
    assert device.lengths == (32,)
    assert {key: device.fingerprint[key] for key in wanted} == wanted
    device.close()


def test_versions_tell_only_what_a_profile_was_made_with() -> None:
    connect(replace(PROFILE, fingerprint={"onnxruntime": "1.0", "python": "3.9.0", "driver": "1"}), [32]).close()


@pytest.mark.parametrize(
    ("key", "value"), [("cpu", "Cortex-A76"), ("cores", 999), ("features", ["asimd"]), ("system", "Darwin arm64"), ("gpu", "T4")]
)
def test_another_device_than_the_profiles_is_refused_in_one_line(here: Mapping[str, Any], key: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        connect(replace(PROFILE, fingerprint={**here, key: value}), [32])
    assert str(caught.value) == (
        f"hardware profile cpu-1-thread is of another device: its {key} is {value!r}, here it is {here[key]!r}; "
        "make a profile with: autocompress profile new NAME"
    )


def test_a_fingerprint_with_an_unknown_key_is_refused() -> None:
    """A key that is misspelt would never be compared."""
    given = {"description": "", "class": "cpu", "runtime": "onnxruntime-cpu", "batch_size": 1, "sequence_length": 32}
    with pytest.raises(UserError, match="cpuu"):
        HardwareProfile.from_mapping("x", given | {"fingerprint": {"cpuu": "Cortex-A76"}})


def test_what_a_gpu_runtime_misses_here_is_said_in_one_line() -> None:
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UserError) as caught:
            connect(HardwareProfile.load("gpu-cuda"), [32])
        assert "torch-cuda needs an NVIDIA GPU" in str(caught.value) and "\n" not in str(caught.value)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        profile = replace(PROFILE, runtime="onnxruntime-cuda", device_class="gpu", precisions=("fp16", "fp32"))
        with pytest.raises(UserError) as caught:
            connect(profile, [32])
        assert "onnxruntime there has no CUDAExecutionProvider; onnxruntime-gpu has it" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", resources.names("hw_profiles"))
def test_every_shipped_profile_connects_or_says_why_not(name: str) -> None:
    profile = HardwareProfile.load(name)
    lengths = lengths_of(profile, [7, 12, 30])
    refusal = ""
    try:
        device = connect(profile, lengths)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert name in refusal and "\n" not in refusal
        assert profile.runtime.endswith("-cuda")
        return
    assert (device.profile, tuple(device.lengths)) == (profile, lengths)
    assert isinstance(device, DatasheetDevice) == profile.estimated
    assert device.answers_like
    device.close()


# ---------------------------------------------------------------------------------------------------------------------------------
# Lengths of a task, all the way through


INT8 = SearchSpace.from_mapping("test", {"quantization": {"scheme": ["int8-dynamic"]}})


@pytest.fixture(scope="module")
def by_task(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    out = tmp_path_factory.mktemp("runs") / "task"
    return search(tiny_model, data_file, "cpu-1-thread-task", INT8, out, trials=1, connect=Connected())


@pytest.fixture(scope="module")
def eight(tiny_model: Path, data_file: Path) -> list[int]:
    """Of the 80 validation texts, the 6th, 16th ... 76th by tokens."""
    texts = [text for text, _, _ in load_examples(str(data_file), Columns()).validation]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lengths = sorted(len(tokenizer(text, truncation=True, max_length=64)["input_ids"]) for text in texts)
    assert len(lengths) == 80
    return [lengths[i] for i in range(5, 80, 10)]


def test_the_lengths_of_a_task_are_recorded(by_task: SearchResult, eight: list[int]) -> None:
    assert len(set(eight)) > 3
    [front] = json.loads((by_task.run / "front.json").read_text())["fronts"]
    assert front["hardware"]["lengths"] == eight
    assert front["hardware"]["sequence_length"] == "task"
    assert load_front(by_task.run).hardware["lengths"] == eight
    for member in (by_task.front.baseline, *by_task.front.members):
        facts = json.loads((by_task.run / member.path / "autocompress.json").read_text())
        assert facts["scores"]["cpu-1-thread-task"]["lengths"] == eight


class Asked:
    """Stands in for ``connect`` in ``measure``: remembers the lengths."""

    def __init__(self) -> None:
        self.lengths: list[tuple[int, ...]] = []

    def __call__(self, profile: HardwareProfile, lengths: Sequence[int]) -> AdditiveDevice:
        self.lengths.append(tuple(lengths))
        return AdditiveDevice(profile, lengths)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    stand_in = Asked()
    monkeypatch.setattr(measure_module, "connect", stand_in)
    return stand_in


def test_an_exported_model_is_measured_at_the_lengths_of_its_task(by_task: SearchResult, eight: list[int], asked: Asked) -> None:
    profile = HardwareProfile.load("cpu-1-thread-task")
    for member in (by_task.front.baseline, *by_task.front.members):
        timing = measure_latency(by_task.run / member.path, profile)
        assert timing.latency_ms.value == pytest.approx(member.latency_ms.value)
    assert set(asked.lengths) == {tuple(eight)}


def test_an_exported_model_is_measured_at_the_number_of_tokens_that_the_profile_says(by_task: SearchResult, asked: Asked) -> None:
    """Also under the name of the profile that it was searched for."""
    folder = by_task.run / by_task.front.baseline.path
    measure_latency(folder, PROFILE)
    measure_latency(folder, replace(PROFILE, name="cpu-1-thread-task", sequence_length=16))
    assert asked.lengths == [(32,), (16,)]


def test_another_device_measures_an_exported_model_at_its_task_s_lengths_too(
    by_task: SearchResult, eight: list[int], asked: Asked
) -> None:
    """The task is the model's, whichever profile it was searched for."""
    measure_latency(by_task.run / by_task.front.baseline.path, replace(PROFILE, name="my-board", sequence_length="task"))
    assert asked.lengths == [tuple(eight)]


def test_a_model_without_a_task_cannot_be_measured_at_its_lengths(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="there is no task here"):
        measure_latency(tiny_model, HardwareProfile.load("cpu-1-thread-task"))


def test_an_exported_model_is_really_measured(by_task: SearchResult) -> None:
    profile = replace(HardwareProfile.load("cpu-1-thread-task"), final_seconds=0.1, target_precision=0.5)
    timing = measure_latency(by_task.run / "models" / "t000", profile)
    assert timing.latency_ms.basis == "measured" and timing.latency_ms.n >= 30
    assert 0 < timing.latency_ms.value < 1000


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    for name in ("nowhere", "file.txt"):
        (tmp_path / "file.txt").write_text("no model")
        with pytest.raises(UserError, match=r"is neither an \.onnx file nor a folder with model\.onnx or config\.json$"):
            measure_latency(tmp_path / name, QUICK)


@pytest.mark.parametrize("text", ["{", "[1]", '{"quantization": 3}', '{"scores": []}'])
def test_a_damaged_export_is_said_in_one_line(by_task: SearchResult, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes((by_task.run / "models" / "t000" / "model.onnx").read_bytes())
    (folder / "autocompress.json").write_text(text)
    with pytest.raises(UserError, match=r"autocompress\.json"):
        measure_latency(folder, QUICK)


# ---------------------------------------------------------------------------------------------------------------------------------
# Memory


class Hungry(AdditiveDevice):
    """150 MB for every model but those in int8, which take 90."""

    def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
        first, rest = super().time(baseline, models, final=final)

        def eaten(path: Path) -> int:
            scheme = json.loads((path / "autocompress.json").read_text())["quantization"]["scheme"]
            return 90_000_000 if scheme.startswith("int8") else 150_000_000

        found = [replace(timing, memory_bytes=eaten(path)) for timing, path in zip(rest, models, strict=True)]
        return replace(first, memory_bytes=eaten(baseline)), found


def test_a_model_that_needs_too_much_memory_is_over_budget(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    space = SearchSpace.from_mapping(
        "test", {"layers": {"keep": [0.5]}, "recovery": {"steps": 40}, "quantization": {"scheme": ["fp32", "int8-dynamic"]}}
    )
    profile = replace(PROFILE, memory_limit_mb=100.0)
    found = search(tiny_model, data_file, profile, space, tmp_path / "run", trials=2, connect=Connected(Hungry))
    states = {trial.candidate["quantization.scheme"]: trial for trial in found.trials[1:]}
    assert states["int8-dynamic"].state == "complete"
    refused = states["fp32"]
    assert (refused.state, refused.reason) == ("over-budget", "150 MB of memory at the peak, the limit is 100")
    assert (refused.rungs, refused.path) == ((), None)  # not trained, and no files are kept
    assert [member.id for member in found.front.members] == [states["int8-dynamic"].id]  # nor is the baseline on the front


@pytest.mark.parametrize("limit", [149.9, 150.0])
def test_the_limit_is_in_millions_of_bytes(tiny_model: Path, data_file: Path, tmp_path: Path, limit: float) -> None:
    space = SearchSpace.from_mapping("test", {"layers": {"keep": [0.5]}})
    profile = replace(PROFILE, memory_limit_mb=limit)
    if limit < 150:
        with pytest.raises(
            RequestUnmet, match=r"none of 1 candidates meets the budget; the nearest is t00\d, limited by its memory:"
        ):
            search(tiny_model, data_file, profile, space, tmp_path / "run", trials=1, connect=Connected(Hungry))
    else:
        found = search(tiny_model, data_file, profile, space, tmp_path / "run", trials=1, connect=Connected(Hungry))
        assert found.trials[1].state == "complete"


def test_memory_that_is_too_much_only_at_the_end_is_named(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    class Later(AdditiveDevice):
        def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
            first, rest = super().time(baseline, models, final=final)
            eaten = 150_000_000 if final else 10_000_000
            return first, [replace(timing, memory_bytes=eaten) for timing in rest]

    profile = replace(PROFILE, memory_limit_mb=100.0)
    with pytest.raises(RequestUnmet, match=r"limited by its memory"):
        search(tiny_model, data_file, profile, INT8, tmp_path / "run", trials=1, connect=Connected(Later))


def test_the_sampler_is_told_that_a_model_needs_too_much_memory(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a latency limit: by a violation, else the sampler takes fast models that do not fit for good ones."""
    from autocompress.samplers.optuna_sampler import OptunaSampler

    told: list[float] = []

    class Listening(OptunaSampler):
        def tell(self, handle: int, losses: Sequence[float] | None, violation: float = 0.0) -> None:
            told.append(violation)
            super().tell(handle, losses, violation)

    profile = replace(PROFILE, memory_limit_mb=100.0)
    space = SearchSpace.from_mapping("test", {"layers": {"keep": [0.5]}})
    monkeypatch.setattr("autocompress.engine.OptunaSampler", Listening)
    with pytest.raises(RequestUnmet):
        search(tiny_model, data_file, profile, space, tmp_path / "run", trials=1, connect=Connected(Hungry))
    assert told and told[0] > 0


def test_memory_is_really_measured(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """Half a megabyte is less than the int8 embedding alone, 30522 * 32 bytes."""
    with pytest.raises(RequestUnmet, match="limited by its memory"):
        search(tiny_model, data_file, replace(QUICK, memory_limit_mb=0.5), INT8, tmp_path / "run", trials=1)
    baseline, trial = Run(tmp_path / "run").trials()
    assert trial.state == "over-budget"
    assert trial.reason is not None and trial.reason.endswith(" MB of memory at the peak, the limit is 0.5")
    eaten = trial.scores["cpu-1-thread"].timing.memory_bytes
    assert eaten is not None and 30522 * 32 < eaten < 500e6
    assert trial.reason.startswith(f"{eaten / 1e6:.0f} MB")
    uncut = baseline.scores["cpu-1-thread"].timing.memory_bytes
    assert uncut is not None and uncut > eaten  # in fp32 the embedding alone is 3.9 MB


# ---------------------------------------------------------------------------------------------------------------------------------
# What a device does not say


def test_a_device_that_does_not_say_how_busy_it_is_can_be_searched_for(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """Where /proc/stat cannot be read, as on macOS and in sandboxes; run.json holds no NaN."""

    class Silent(AdditiveDevice):
        def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
            super().__init__(profile, lengths)
            self.fingerprint["busy_cores"] = unsaid()

    found = search(tiny_model, data_file, PROFILE, INT8, tmp_path / "run", trials=1, connect=Connected(Silent))
    assert found.front.members


def test_a_mismatch_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board that is not the profile's is left as it was found."""
    closed: list[bool] = []

    class Host(LocalHost):
        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr("autocompress.hardware.devices.host_of", lambda *_: Host())
    with pytest.raises(UserError, match="is of another device"):
        connect(replace(PROFILE, fingerprint={"cpu": "another"}), [32])
    assert closed == [True]


def test_a_board_s_time_is_of_the_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked of the agent is what the profile says, and what it answers is what is reported."""
    from autocompress.hardware import onnx_device

    requests: list[Mapping[str, Any]] = []

    def answer(_: object, request: Mapping[str, Any], models: Sequence[Path] = (), batches: object = ()) -> dict[str, Any]:
        requests.append(request)
        if request["action"] == "describe":
            return {"cpu": "board", "providers": ["CPUExecutionProvider"]}
        processes = 3 * [np.tile([4.0, 2.0][: len(models)], (10, 1)).tolist()]
        nothing = [None] * len(models)
        return {
            "wall_ms": processes,
            "cpu_ms": processes,
            "clock": "wall",
            "memory_bytes": nothing,
            "energy_mj": [7.0] * len(models),
        }

    monkeypatch.setattr(onnx_device, "ask", answer)
    profile = replace(PROFILE, threads=4, batch_size=3, statistic="mean", confidence=0.9, trial_seconds=2.5, final_seconds=9.0)
    host: Any = SimpleNamespace(close=lambda: None)
    device = OnnxDevice(profile, [8, 16], host)
    assert not device.is_local
    (tmp_path / "a.onnx").touch()
    baseline, [timing] = device.time(tmp_path / "a.onnx", [tmp_path / "b.onnx"], final=False)
    device.time(tmp_path / "a.onnx", [], final=True)
    _, trial, final = requests
    assert trial == {
        "action": "time",
        "runtime": "onnxruntime-cpu",
        "threads": 4,
        "batch_size": 3,
        "lengths": (8, 16),
        "statistic": "mean",
        "confidence": 0.9,
        "target_precision": 0.02,
        "seconds": 2.5,
        "memory": [False, True],
    }
    assert (final["seconds"], final["memory"]) == (9.0, [True])
    assert baseline.latency_ms == Latency(4.0, 4.0, 4.0, (4.0, 4.0), 30, "mean", 0.9)
    assert (timing.speedup, timing.precision, timing.wall_ms, timing.cpu_ms) == (2.0, "fp32", 2.0, None)
    assert (timing.memory_bytes, timing.energy_mj, timing.disturbed) == (None, 7.0, False)


# ---------------------------------------------------------------------------------------------------------------------------------
# One user of the cores


HOLDER = """
import sys
from autocompress.hardware.cores import reserved
print("asking", flush=True)
with reserved():
    open(sys.argv[2], "a").write(sys.argv[1] + " in\\n")
    print("in", flush=True)
    sys.stdin.readline()
    open(sys.argv[2], "a").write(sys.argv[1] + " out\\n")
"""


class Holder:
    """Another process that reserves the cores until it is told to let go."""

    def __init__(self, name: str, log: Path, temporary: Path) -> None:
        command = [sys.executable, "-c", HOLDER, name, str(log)]
        environment = {**os.environ, "TMPDIR": str(temporary)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ended(self) -> int:
        return self.process.wait(timeout=60)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the lock that no other test and no search on this machine uses."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_second_process_waits_until_the_first_lets_go(temporary: Path) -> None:
    log = temporary / "log"
    first = Holder("first", log, temporary)
    assert [first.says(), first.says()] == ["asking", "in"]
    [lock] = temporary.glob("autocompress-*.lock")
    with lock.open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second = Holder("second", log, temporary)
    assert second.says() == "asking"
    second.let_go()  # as soon as it is in
    first.let_go()
    assert (first.ended(), second.ended()) == (0, 0)
    assert log.read_text().splitlines() == ["first in", "first out", "second in", "second out"]


def test_a_process_that_is_killed_lets_go(temporary: Path) -> None:
    first = Holder("first", temporary / "log", temporary)
    assert [first.says(), first.says()] == ["asking", "in"]
    first.process.kill()
    first.ended()
    with reserved():
        pass


def test_the_cores_are_free_again_after_an_error(temporary: Path) -> None:
    with pytest.raises(ZeroDivisionError), reserved():
        raise ZeroDivisionError
    with reserved():
        pass


def test_a_timing_waits_for_whoever_trains(temporary: Path, by_task: SearchResult) -> None:
    """``OnnxDevice.time`` holds the lock while the agent runs, and only on this machine."""
    held: list[bool] = []

    class Host(LocalHost):
        def run_agent(self, request: str) -> str:
            locks = list(temporary.glob("autocompress-*.lock"))
            with (locks[0] if locks else temporary / "none").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.append(False)
                except BlockingIOError:
                    held.append(True)
            return super().run_agent(request)

    device = OnnxDevice(QUICK, [8], Host())
    device.time(by_task.run / "models" / "t000", [], final=False)
    assert held == [False, True]  # to describe takes none of the cores
