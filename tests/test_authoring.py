"""``autocompress profile new``: what it writes loads, and is of the device that it was made on."""

from __future__ import annotations

import json
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from autocompress import HardwareProfile, UserError
from autocompress.cli import main
from autocompress.errors import CandidateFailed
from autocompress.hardware import authoring, doctor
from autocompress.hardware.authoring import new_profile
from autocompress.hardware.devices import connect
from autocompress.hardware.host import Host
from tests.test_doctor import QUIET, FakeHost

VALUES: dict[str, Any] = {
    "runtime": "onnxruntime-cpu",
    "location": "local",
    "python": "python3",
    "ssh_config": "",
    "threads": 1,
    "batch_size": 1,
    "sequence_length": 32,
}
BOARD: dict[str, Any] = VALUES | {
    "location": "cmd:docker exec -i board sh -c",
    "python": "/opt/py/bin/python",
}


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> list[FakeHost]:
    """Devices are fakes, found here; their gains are given."""
    made: list[FakeHost] = []

    def host_of(location: str, python: str = "python3", ssh_config: str = "") -> FakeHost:
        made.append(FakeHost(QUIET | {"features": ["asimd", "asimddp"], "cpu": 'Board "5" \\ µ'}))
        return made[-1]

    monkeypatch.setattr("autocompress.hardware.devices.host_of", host_of)
    monkeypatch.setattr(authoring, "host_of", host_of)
    gains = {
        "fp32": 1.0,
        "fp16": 1.049,
        "int8-dynamic": 1.05,
        "int8-static": 0.7,
        "int8-weights": 4.0,
    }
    monkeypatch.setattr(authoring, "gains", lambda host, runtime: gains)
    return made


def test_a_profile_of_a_board(hosts: list[FakeHost], tmp_path: Path) -> None:
    target = tmp_path / "board.toml"
    profile = new_profile(
        target, BOARD | {"threads": 4, "batch_size": 2, "sequence_length": "task"}
    )
    assert profile == HardwareProfile.load(str(target))
    assert profile.name == "board"
    assert profile.description == 'Board "5" \\ µ, cmd:docker exec -i board sh -c, onnxruntime-cpu'
    assert (profile.device_class, profile.runtime, profile.basis) == (
        "edge",
        "onnxruntime-cpu",
        "measured",
    )
    assert (profile.location, profile.python, profile.threads) == (
        BOARD["location"],
        BOARD["python"],
        4,
    )
    assert (profile.batch_size, profile.sequence_length) == (2, "task")
    assert profile.precisions == (
        "fp32",
        "int8-dynamic",
        "int8-weights",
    )  # those that gain a twentieth
    assert date.fromisoformat(profile.date) <= date.today()
    assert profile.source.startswith("autocompress profile new, autocompress ")
    assert dict(profile.fingerprint) == {
        key: value
        for key, value in hosts[0].device.items()
        if key not in ("busy_cores", "providers")
    }
    assert all(host.closed for host in hosts)


def test_what_is_not_given_is_not_written(hosts: list[FakeHost], tmp_path: Path) -> None:
    new_profile(tmp_path / "here.toml", VALUES)
    written = tomllib.loads((tmp_path / "here.toml").read_text(encoding="utf-8"))
    assert (
        not {"location", "python", "ssh_config", "threads", "cuda_graphs", "peaks"} & written.keys()
    )
    assert written["class"] == "cpu"
    assert HardwareProfile.load(str(tmp_path / "here.toml")).threads == 1


def test_the_profile_written_connects_to_its_device_and_to_no_other(
    hosts: list[FakeHost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = new_profile(tmp_path / "board.toml", BOARD)
    connect(profile, [32]).close()
    monkeypatch.setattr("autocompress.hardware.devices.host_of", lambda *_: FakeHost(QUIET))
    with pytest.raises(UserError, match="is of another device: its cpu is"):
        connect(profile, [32])


def test_an_existing_file_is_refused_before_anything_is_asked(
    hosts: list[FakeHost], tmp_path: Path
) -> None:
    target = tmp_path / "board.toml"
    target.write_text("mine")
    with pytest.raises(UserError, match=rf"^{target} exists already; give another name$"):
        new_profile(target, BOARD)
    assert target.read_text() == "mine" and hosts == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"runtime": "tflite"}, "runtime is 'tflite'"),
        ({"threads": -1}, "threads is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sequence_length": 0}, "sequence_length is 0"),
        ({"sequence_length": "long"}, "sequence_length is 'long'"),
        ({"location": "telnet://x"}, "location is 'telnet://x'"),
        ({"threads": 0, "location": "cmd:sh -c"}, "threads is 0"),
        ({"python": "python3.9"}, "python is for a device that is not local"),
        ({"ssh_config": "x"}, "ssh_config is for a location that begins with ssh://"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_asked(
    change: dict[str, Any], named: str, hosts: list[FakeHost], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=named):
        new_profile(tmp_path / "x.toml", VALUES | change)
    assert hosts == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere/x.toml", "file/x.toml"])
def test_a_target_that_cannot_be_written_is_said_in_one_line(
    name: str, hosts: list[FakeHost], tmp_path: Path
) -> None:
    """Before half a minute of measurements."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"x\.toml") as caught:
        new_profile(tmp_path / name, VALUES)
    assert "\n" not in str(caught.value) and hosts == []


@pytest.mark.parametrize("number", ["³", "12³", "-3", "3.5"])
def test_a_length_that_is_no_number_is_said_in_one_line(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "new", "x", f"--sequence-length={number}"]) == 2
    assert capsys.readouterr().err.startswith(
        "autocompress: hardware profile x: sequence_length is"
    )


def test_a_device_lost_on_the_way_leaves_no_file(
    hosts: list[FakeHost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(host: Host, runtime: str) -> dict[str, float]:
        raise CandidateFailed("connection lost: no answer within 9 s")

    monkeypatch.setattr(authoring, "gains", lost)
    with pytest.raises(
        UserError, match=r"^cmd:docker exec -i board sh -c: connection lost: no answer within 9 s$"
    ):
        new_profile(tmp_path / "board.toml", BOARD)
    assert list(tmp_path.iterdir()) == []
    assert all(host.closed for host in hosts)


def test_a_runtime_that_is_missing_here_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime
    import torch

    monkeypatch.chdir(tmp_path)
    here = {
        "onnxruntime-cuda": "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
        "torch-cuda": torch.cuda.is_available(),
    }
    for runtime in (name for name, there in here.items() if not there):
        assert main(["profile", "new", "x", "--runtime", runtime]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("autocompress: hardware profile x: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_profile_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one real run: number formats are those that gained a twentieth in it."""
    measured: dict[str, float] = {}

    def gains(host: Host, runtime: str) -> dict[str, float]:
        measured.update(doctor.gains(host, runtime))
        return measured

    monkeypatch.setattr(authoring, "gains", gains)
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "new", "mine", "--threads", "2"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[1]
        == "use it: autocompress search ... --hardware mine.toml"
    )
    profile = HardwareProfile.load("mine.toml")
    assert set(profile.precisions) == {
        "fp32",
        *(name for name, gain in measured.items() if gain >= 1.05),
    }
    assert len(measured) >= 4
    assert (profile.threads, profile.sequence_length, profile.location) == (2, "task", "local")
    device = connect(profile, [32])
    assert {key: device.fingerprint[key] for key in profile.fingerprint} == dict(
        profile.fingerprint
    )
    device.close()
    assert main(["profile", "show", "mine.toml"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == dict(profile.fingerprint)
    assert main(["profile", "new", "mine"]) == 2
    assert "mine.toml exists already" in capsys.readouterr().err


def test_a_new_profile_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    assert main(["profile", "new", str(tmp_path / "mine")]) == 2
    assert capsys.readouterr().err == f"autocompress: {path} exists already; give another name\n"
    assert [file.name for file in tmp_path.iterdir()] == [
        "mine.toml"
    ] and path.read_text() == "mine"


def test_a_new_profile_may_be_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoring, "gains", lambda host, runtime: {"fp32": 1.0})
    assert main(["profile", "new", str(tmp_path / "mine.toml")]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["mine.toml"]


def test_a_new_profile_in_a_folder_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "new", str(tmp_path / "no" / "mine")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("autocompress: ") and str(tmp_path / "no") in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ("torch-cuda", "hardware profile mine: torch-cuda needs an NVIDIA GPU, "),
        (
            "onnxruntime-cuda",
            "hardware profile mine: onnxruntime there has no CUDAExecutionProvider; "
            "onnxruntime-gpu has it",
        ),
    ],
)
def test_a_new_profile_of_a_gpu_that_is_not_there(
    runtime: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "new", str(tmp_path / "mine"), "--runtime", runtime]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"autocompress: {message}")
    assert list(tmp_path.iterdir()) == []
