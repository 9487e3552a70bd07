"""Searches that were stopped, killed or extended, on a device that does not depend on the
machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.engine.loop import SearchResult
from autocompress.engine.session import search
from autocompress.errors import UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Device
from autocompress.journal import Run
from autocompress.pareto import Budget, load_front
from tests.conftest import SizeDevice
from tests.searching import CPU, SPACE, StopAfter, space, timeless


def test_same_seed_same_search_and_another_seed_another(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    again = search(
        tiny_model, data_file, "cpu-1-thread", space(), tmp_path / "a", trials=8, connect=SizeDevice
    )
    assert timeless(again.trials) == timeless(whole.trials)
    other = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        tmp_path / "b",
        trials=8,
        connect=SizeDevice,
        seed=1,
    )
    assert [t.candidate for t in other.trials] != [t.candidate for t in whole.trials]


def test_stopped_by_ctrl_c_and_resumed_it_ends_the_same(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(
            tiny_model,
            data_file,
            "cpu-1-thread",
            space(),
            out,
            trials=8,
            connect=SizeDevice,
            listener=StopAfter(4),
        )
    so_far = load_front(out)
    assert not so_far.verified
    assert (out / "report.html").is_file()
    assert all((out / member.path / "model.onnx").is_file() for member in so_far.members)
    resumed = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        out,
        trials=8,
        connect=SizeDevice,
        resume=True,
    )
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert resumed.front == whole.front


def test_a_finished_run_can_be_extended(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=4, connect=SizeDevice)
    longer = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        out,
        trials=8,
        connect=SizeDevice,
        resume=True,
    )
    assert timeless(longer.trials) == timeless(whole.trials)
    assert longer.front == whole.front
    assert json.loads((out / "run.json").read_text())["trials"] == 8


KILLED = """
import sys
from pathlib import Path
from autocompress.engine.session import search
from tests.conftest import SizeDevice
from tests.searching import space
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
    resumed = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        out,
        trials=8,
        connect=SizeDevice,
        resume=True,
    )
    assert list(resumed.trials[: len(before)]) == before
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert resumed.front == whole.front


def test_resuming_with_other_inputs_is_refused(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
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
    other = replace(
        trials[2], sizes=trials[2].sizes | {"ffn": [1] * len(trials[2].sizes["layers"])}
    )
    lines = (out / "trials.jsonl").read_text().splitlines()
    record = json.loads(lines[2])
    lines[2] = json.dumps(record | {"sizes": other.sizes})
    (out / "trials.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"^--resume: trial t002 cannot be replayed"):
        search(
            tiny_model,
            data_file,
            "cpu-1-thread",
            space(),
            out,
            trials=8,
            connect=SizeDevice,
            resume=True,
        )


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [("busy_cores", 0.2, False), ("memory_bytes", 1, False), ("cpu", "two", True)],
)
def test_a_run_goes_on_on_the_device_that_it_began_on(
    key: str,
    value: object,
    refused: bool,
    whole: SearchResult,
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
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
        assert (
            search(
                tiny_model, data_file, CPU, space(), out, trials=8, connect=other, resume=True
            ).front
            == whole.front
        )


def test_a_full_disk_is_said_and_the_run_resumable(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk:
        free = 10

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: Disk)
        with pytest.raises(UserError, match="no room left on the disk"):
            search(
                tiny_model, data_file, "cpu-1-thread", space(), out, trials=2, connect=SizeDevice
            )
    assert len(Run(out).trials()) == 1
    found = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        out,
        trials=2,
        connect=SizeDevice,
        resume=True,
    )
    assert len(found.trials) == 3


def test_resuming_with_fewer_trials_loses_nothing(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.run, out)
    again = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        out,
        trials=2,
        connect=SizeDevice,
        resume=True,
    )
    assert timeless(again.trials) == timeless(whole.trials)
    assert again.front == whole.front
