"""From profiles to devices: lengths, identity, and what is missing here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress import HardwareProfile, SearchSpace, UserError, resources, search
from autocompress.hardware.datasheet import DatasheetDevice
from autocompress.hardware.devices import QUANTILES, connect, host_of, lengths_of, typical_lengths
from autocompress.hardware.host import LocalHost
from autocompress.hardware.onnx_device import OnnxDevice, described
from autocompress.hardware.remote import Board
from autocompress.scores import Latency
from tests.additive_device import AdditiveDevice, Connected
from tests.test_doctor import unsaid

PROFILE = HardwareProfile.load("cpu-1-thread")
QUICK = replace(PROFILE, trial_seconds=0.1, final_seconds=0.1, target_precision=0.5)


INT8 = SearchSpace.from_mapping("test", {"quantization": {"scheme": ["int8-dynamic"]}})


def test_eight_lengths_by_hand() -> None:
    assert QUANTILES == 8
    # of 16 the middles of eight pairs are the second of each; of 8 all; of fewer some more than
    # once
    assert typical_lengths(range(100, 116)) == (101, 103, 105, 107, 109, 111, 113, 115)
    assert typical_lengths([8, 7, 6, 5, 4, 3, 2, 1]) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert typical_lengths([9, 5, 7]) == (5, 5, 5, 7, 7, 9, 9, 9)
    assert typical_lengths([12]) == (12,) * 8
    assert typical_lengths([4] * 90 + [64] * 10) == (4, 4, 4, 4, 4, 4, 4, 64)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200))
@settings(deadline=None)
def test_eight_lengths_are_of_the_split_ascending_and_in_its_middle(lengths: list[int]) -> None:
    typical = typical_lengths(lengths)
    assert len(typical) == 8
    assert set(typical) <= set(lengths)
    assert list(typical) == sorted(typical)
    assert typical_lengths(lengths[::-1]) == typical
    ordered = sorted(lengths)
    for i, length in enumerate(
        typical
    ):  # the middle of the i-th eighth: at least that many are as short, as many as long
        below = sum(other <= length for other in ordered)
        assert below >= (2 * i + 1) * len(ordered) / 16
        assert sum(other >= length for other in ordered) >= len(ordered) * (16 - 2 * i - 1) / 16


def test_a_number_is_the_only_length_whatever_the_task() -> None:
    assert lengths_of(replace(PROFILE, sequence_length=128), [1, 2, 3]) == (128,)
    assert lengths_of(replace(PROFILE, sequence_length=128), None) == (128,)


def test_the_task_has_the_lengths_where_the_profile_says_so() -> None:
    assert lengths_of(HardwareProfile.load("cpu-1-thread-task"), [9, 5, 7]) == (
        5,
        5,
        5,
        7,
        7,
        9,
        9,
        9,
    )


@pytest.mark.parametrize("task", [None, []])
def test_without_a_task_there_are_no_lengths_of_one(task: list[int] | None) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^hardware profile cpu-1-thread-task: sequence_length is 'task', and there is no "
            r"task here"
        ),
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
    connect(
        replace(PROFILE, fingerprint={"onnxruntime": "1.0", "python": "3.9.0", "driver": "1"}), [32]
    ).close()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu", "Cortex-A76"),
        ("cores", 999),
        ("features", ["asimd"]),
        ("system", "Darwin arm64"),
        ("gpu", "T4"),
    ],
)
def test_another_device_than_the_profiles_is_refused_in_one_line(
    here: Mapping[str, Any], key: str, value: object
) -> None:
    with pytest.raises(UserError) as caught:
        connect(replace(PROFILE, fingerprint={**here, key: value}), [32])
    assert str(caught.value) == (
        f"hardware profile cpu-1-thread is of another device: its {key} is {value!r}, here it is "
        f"{here[key]!r}; "
        "make a profile with: autocompress profile new NAME"
    )


def test_more_threads_than_cores_are_refused() -> None:
    """They wait for each other without end."""
    cores = os.cpu_count() or 1
    with pytest.raises(UserError, match=f"threads is {cores + 1}, the device has {cores} cores$"):
        connect(replace(PROFILE, threads=cores + 1), [32])


def test_a_fingerprint_with_an_unknown_key_is_refused() -> None:
    """A key that is misspelt would never be compared."""
    given = {
        "description": "",
        "class": "cpu",
        "runtime": "onnxruntime-cpu",
        "batch_size": 1,
        "sequence_length": 32,
    }
    with pytest.raises(UserError, match="cpuu"):
        HardwareProfile.from_mapping("x", given | {"fingerprint": {"cpuu": "Cortex-A76"}})


def test_what_a_gpu_runtime_misses_here_is_said_in_one_line() -> None:
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UserError) as caught:
            connect(HardwareProfile.load("gpu-cuda"), [32])
        assert "torch-cuda needs an NVIDIA GPU" in str(caught.value) and "\n" not in str(
            caught.value
        )
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        profile = replace(
            PROFILE, runtime="onnxruntime-cuda", device_class="gpu", precisions=("fp16", "fp32")
        )
        with pytest.raises(UserError) as caught:
            connect(profile, [32])
        assert "onnxruntime there has no CUDAExecutionProvider; onnxruntime-gpu has it" in str(
            caught.value
        )
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


def test_a_device_that_does_not_say_how_busy_it_is_can_be_searched_for(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """Where /proc/stat cannot be read, as on macOS and in sandboxes; run.json holds no NaN."""

    class Silent(AdditiveDevice):
        def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
            super().__init__(profile, lengths)
            self.fingerprint["busy_cores"] = unsaid()

    search_result = search(
        tiny_model, data_file, PROFILE, INT8, tmp_path / "run", trials=1, connect=Connected(Silent)
    )
    assert search_result.front.members


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
    """What is asked of the agent is what the profile says, and what it answers is what is
    reported."""
    from autocompress.hardware import onnx_device

    requests: list[Mapping[str, Any]] = []

    def answer(
        _: object, request: Mapping[str, Any], models: Sequence[Path] = (), **others: object
    ) -> dict[str, Any]:
        requests.append(request)
        if request["action"] == "describe":
            return {"cpu": "board", "memory_bytes": 2**30, "providers": ["CPUExecutionProvider"]}
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
    profile = replace(
        PROFILE,
        threads=4,
        batch_size=3,
        statistic="mean",
        confidence=0.9,
        trial_seconds=2.5,
        final_seconds=9.0,
    )
    host: Any = SimpleNamespace(close=lambda: None)
    device = OnnxDevice(profile, [8, 16], host)
    assert not device.is_local
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(b"1")
    baseline, [timing] = device.time(tmp_path / "a.onnx", [tmp_path / "b.onnx"], final=False)
    device.time(tmp_path / "a.onnx", [], final=True)
    _, trial, final, beside = requests
    assert trial == {
        "action": "time",
        "runtime": "onnxruntime-cpu",
        "threads": 4,
        "batch_size": 3,
        "lengths": (8, 16),
        "statistic": "mean",
        "confidence": 0.9,
        "target_precision": 0.02,
        "regime": "warm",
        "seconds": 2.5,
        "memory": [False, True],
    }
    assert (final["regime"], beside["regime"]) == ("warm", "cold")
    assert (final["seconds"], final["memory"]) == (9.0, [True])
    assert baseline.latency_ms == Latency(4.0, 4.0, 4.0, (4.0, 4.0), 30, "mean", 0.9)
    assert (timing.speedup, timing.precision, timing.wall_ms, timing.cpu_ms) == (
        2.0,
        "fp32",
        2.0,
        2.0,
    )
    assert (timing.memory_bytes, timing.energy_mj, timing.disturbed) == (None, 7.0, False)
