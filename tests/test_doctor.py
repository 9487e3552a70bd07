"""What the doctor says of a device whose answers are given, and, once, of this machine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autocompress import UserError, console
from autocompress.cli import main
from autocompress.errors import CandidateFailed
from autocompress.files import sha256
from autocompress.graphs import reading as onnx_graphs
from autocompress.hardware import agent, doctor
from autocompress.hardware.devices import host_of
from autocompress.hardware.doctor import GAIN, STEADY, Diagnosis, examine, gains

SCHEMES = ("fp16", "int8-dynamic", "int8-static", "int8-weights", "int4-weights")
QUIET: dict[str, Any] = {
    "system": "Linux x86_64",
    "cpu": "A CPU",
    "cores": 4,
    "features": ["avx2", "avx512_vnni"],
    "governor": "performance",
    "threads_per_core": 1,
    "memory_bytes": 8 * 2**30,
    "gpu": "",
    "driver": "",
    "python": "3.11.7",
    "onnxruntime": "1.22.0",
    "providers": ["CPUExecutionProvider"],
    "busy_cores": 0.05,
}


def unsaid() -> Any:
    """What the agent answers for busy cores where /proc/stat cannot be read."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(agent, "_read", lambda path: "")
        return agent.busy_cores(seconds=0)


class FakeHost:
    """A ``Host`` whose agent gives the answers that it is told to: speedups of the formats in their
    order, then of twins.

    Like the real agent it answers with the nonce and the hashes of the files that it was given.
    """

    location = "fake"

    def __init__(
        self,
        device: Mapping[str, Any] = QUIET,
        speedups: Mapping[str, Any] | None = None,
        twins: Any = (1.0,),
    ) -> None:
        self.device, self.speedups, self.twins = (
            dict(device),
            dict(speedups or dict.fromkeys(SCHEMES, 1.0)),
            list(twins),
        )
        self.formats, self.asked = iter(SCHEMES), list[dict[str, Any]]()
        self.closed = False

    def place(self, file: Path, name: str) -> str:
        return str(file)

    def forget(self, names: Collection[str]) -> None: ...

    def run_agent(self, request: str, limit_s: float) -> str:
        asked = json.loads(request)
        self.asked.append(asked)
        hashes = [sha256(Path(model["path"])) for model in asked["models"]]
        answer: dict[str, Any] = {"nonce": asked["nonce"], "sha256": hashes}
        if asked["action"] == "describe":
            return json.dumps(answer | self.device)
        twin = hashes[0] == hashes[1]
        speedup = self.twins.pop(0) if twin else self.speedups[next(self.formats)]
        if isinstance(speedup, str):
            return json.dumps(answer | {"refused": speedup})
        processes = 3 * [np.tile([1.0, 1.0 / speedup], (10, 1)).tolist()]
        measured = {"wall_ms": processes, "cpu_ms": processes, "clock": "cpu"}
        return json.dumps(
            answer | measured | {"memory_bytes": [None, None], "energy_mj": [None, None]}
        )

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the time it takes to write the probe in every format."""
    monkeypatch.setattr(doctor, "gains", lambda *_: {"fp32": 1.0, "int8-dynamic": 2.5})
    monkeypatch.setattr(onnx_graphs, "write_probe", lambda path: path.write_bytes(b"probe"))


def examined(twins: Any = (1.0,) * 6, **change: Any) -> Diagnosis:
    return examine(FakeHost({**QUIET, **change}, twins=twins))


@pytest.mark.usefixtures("given")
def test_a_quiet_machine_times_well() -> None:
    diagnosis = examined()
    assert diagnosis.times_well
    assert diagnosis.spread == 0.0
    assert diagnosis.gains == {"fp32": 1.0, "int8-dynamic": 2.5}
    assert diagnosis.device == QUIET
    assert diagnosis.remarks == (
        (True, "other processes keep 0.05 of 4 cores busy"),
        (True, "frequency governor: performance"),
        (True, "1 hardware thread per core"),
        (True, "int8 instructions: avx512_vnni"),
        (True, "fastest number format: int8-dynamic, fp32 1.00x, int8-dynamic 2.50x"),
        (True, "a model against its twin: speedup repeats within 0.0 % (standard deviation)"),
    )


def wrong(diagnosis: Diagnosis) -> list[str]:
    return [text for fine, text in diagnosis.remarks if not fine]


@pytest.mark.usefixtures("given")
def test_a_busy_machine_is_said_to_be_busy() -> None:
    diagnosis = examined(busy_cores=1.5)
    assert wrong(diagnosis) == ["other processes keep 1.50 of 4 cores busy"]
    assert not diagnosis.times_well
    assert (
        examined(busy_cores=0.4).times_well and not examined(busy_cores=0.41).times_well
    )  # a tenth of four cores


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("governor", ["powersave", "schedutil", "ondemand"])
def test_a_governor_that_slows_down_is_named_with_what_to_do(governor: str) -> None:
    expected = (
        f"frequency governor: {governor}; clock speed follows the load, set it to performance"
    )
    assert wrong(examined(governor=governor)) == [expected]
    assert examined(governor="not exposed").times_well


@pytest.mark.usefixtures("given")
def test_two_threads_per_core_are_said_and_no_fault() -> None:
    diagnosis = examined(threads_per_core=2)
    assert diagnosis.times_well
    assert (
        True,
        "2 hardware threads per core; a timing shares its core with whatever runs on the other",
    ) in diagnosis.remarks


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("feature", ["avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"])
def test_int8_instructions_are_found(feature: str) -> None:
    assert (True, f"int8 instructions: {feature}") in examined(
        features=["avx2", feature, "bf16"]
    ).remarks


@pytest.mark.usefixtures("given")
def test_missing_int8_instructions_are_said() -> None:
    diagnosis = examined(features=["avx2", "avx512f"])
    assert (
        True,
        "no int8 instructions (VNNI, AMX, dot product): int8 gains little",
    ) in diagnosis.remarks


@pytest.mark.usefixtures("given")
def test_a_machine_that_wavers_is_told_by_a_model_against_its_twin() -> None:
    speedups = (0.97, 1.03, 0.97, 1.03, 0.97, 1.03)
    diagnosis = examined(speedups)
    assert diagnosis.spread == pytest.approx(0.03 * (6 / 5) ** 0.5)  # of a sample of six
    assert wrong(diagnosis) == [
        "a model against its twin: speedup repeats within 3.3 % (standard deviation)"
    ]
    steady = [1 + 0.9 * STEADY * (5 / 6) ** 0.5 * (x - 1) / 0.03 for x in speedups]
    assert examined(steady).times_well


@pytest.mark.usefixtures("given")
def test_each_comparison_is_asked_of_the_device_anew() -> None:
    host = FakeHost(twins=(1.0,) * 6)
    examine(host)
    describe, *times = host.asked
    assert describe["action"] == "describe"
    assert len(times) == 6 == len({asked["nonce"] for asked in times})
    for asked in times:
        assert asked["action"] == "time"
        first, second = asked["models"]
        assert first == second  # the same file twice
        assert (asked["threads"], asked["batch_size"], asked["lengths"]) == (1, 1, [32])


@pytest.mark.usefixtures("given")
def test_every_comparison_is_told_and_on_a_busy_machine_there_is_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After 15 seconds each, nothing is begun after the third; two are the fewest that
    tell a spread."""
    for each, count in ((5.0, 6), (15.0, 3), (100.0, 2)):
        now, told = itertools.count(0, each), list[str]()
        fake = SimpleNamespace(monotonic=lambda now=now: next(now))
        monkeypatch.setattr(doctor, "time", fake)
        diagnosis = examine(FakeHost(twins=(0.99, 1.01) * 3), told=told.append)
        assert told == [f"timing a model against its twin, {i + 1} of 6" for i in range(count)]
        assert diagnosis.spread == pytest.approx(np.std(([0.99, 1.01] * 3)[:count], ddof=1))


def test_a_format_whose_turn_has_not_come_in_time_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told = itertools.count(0, 10.0), list[str]()
    monkeypatch.setattr(doctor, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert list(gains(FakeHost(), "onnxruntime-cpu", told.append, 15.0)) == ["fp32", *SCHEMES[:2]]
    assert told == [f"timing {scheme}" for scheme in SCHEMES[:2]]


@pytest.mark.usefixtures("given")
def test_what_the_machine_does_not_say_is_not_made_up() -> None:
    diagnosis = examined(busy_cores=unsaid())
    assert diagnosis.times_well
    assert not any(word in text for _, text in diagnosis.remarks for word in ("nan", "None"))


@pytest.mark.usefixtures("given")
def test_a_device_that_is_lost_is_an_error() -> None:
    with pytest.raises(CandidateFailed, match=r"^gone$"):
        examined(twins=("gone",))


def test_gains_are_speedups_over_fp32_in_every_format_that_runs() -> None:
    """Files are written in each format, in a fixed order; one that onnxruntime there cannot load or
    run is left out."""
    refused = "onnxruntime cannot load it: Could not find an implementation for MatMulNBits"
    speedups = {
        "fp16": 0.5,
        "int8-dynamic": 3.0,
        "int8-static": 2.0,
        "int8-weights": refused,
        "int4-weights": 1.5,
    }
    host = FakeHost(speedups=speedups)
    format_gains = gains(host, "onnxruntime-cpu")
    assert format_gains == pytest.approx(
        {"fp32": 1.0, "fp16": 0.5, "int8-dynamic": 3.0, "int8-static": 2.0, "int4-weights": 1.5}
    )
    assert list(format_gains) == ["fp32", "fp16", "int8-dynamic", "int8-static", "int4-weights"]
    files = [[model["path"] for model in asked["models"]] for asked in host.asked]
    assert [Path(second).stem for _, second in files] == list(SCHEMES)
    assert {Path(first).stem for first, _ in files} == {"fp32"}
    assert GAIN == 1.05


def test_any_other_refusal_is_an_error() -> None:
    with pytest.raises(CandidateFailed, match="connection lost"):
        gains(
            FakeHost(speedups=dict.fromkeys(SCHEMES, "connection lost: no answer")),
            "onnxruntime-cpu",
        )


def test_a_diagnosis_is_printed_a_line_each() -> None:
    remarks = ((True, "all is [well]"), (False, "this is not"))
    text = console.diagnosis(Diagnosis(QUIET, {"fp32": 1.0}, 0.0, remarks))
    assert text.plain.splitlines() == [
        "A CPU, 4 cores, 8 GiB, onnxruntime 1.22.0",
        "ok    all is [well]",
        "look  this is not",
    ]
    assert [(text.plain[s.start : s.end], s.style) for s in text.spans] == [
        ("ok  ", "green"),
        ("look", "red"),
    ]


@pytest.mark.parametrize(
    "location",
    [
        "cmd:sh -c 'exit 3'",
        "cmd:/nowhere/to/be/found",
        "ssh://",
        "ssh://nowhere.invalid",
        "ftp://x",
    ],
    ids=str,
)
def test_a_device_that_cannot_be_reached_is_the_users_mistake(
    location: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.hardware.remote.PAUSES", ())
    assert main(["doctor", "--device", location]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith("autocompress: ")


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("busy", [0.05, 3.0, unsaid()], ids=["quiet", "busy", "unsaid"])
def test_doctor_prints_json_that_any_reader_takes(
    busy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = FakeHost({**QUIET, "busy_cores": busy}, twins=(1.0,) * 6)
    monkeypatch.setattr("autocompress.hardware.devices.host_of", lambda *_: host)
    status = main(["doctor", "--json"])

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is no JSON")

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["times_well"] == (busy != 3.0)
    assert status == (1 if busy == 3.0 else 0)
    assert host.closed


@pytest.mark.slow
def test_the_doctor_on_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one real run; only the number of repetitions is smaller."""
    monkeypatch.setattr(doctor, "_TWINS", 2)
    status = main(["doctor", "--json"])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert status == (0 if document["times_well"] else 1)
    assert document["device"]["cores"] >= 1 and document["device"]["onnxruntime"]
    assert document["gains"].pop("fp32") == 1.0
    assert set(document["gains"]) <= set(SCHEMES) and "int8-dynamic" in document["gains"]
    assert all(0.05 < gain < 50 for gain in document["gains"].values())
    assert document["spread"] >= 0
    assert len(document["remarks"]) == 6
    assert document["times_well"] == all(fine for fine, _ in document["remarks"])
    if status:
        assert printed.err.endswith(
            "...\nautocompress: this device cannot be timed well as it is now; "
            "see the lines marked above\n"
        )


def test_an_unknown_device_location_names_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"allowed is ssh://\[user@\]host\[:port\] or cmd:WRAPPER"):
        host_of("telnet://board")
