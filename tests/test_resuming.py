"""Searches that were stopped, killed or extended, on a device that does not depend on the
machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.artifact import onnx_file
from autocompress.candidate import Value
from autocompress.engine import session, waiting
from autocompress.engine.listener import Silent
from autocompress.engine.loop import SearchResult
from autocompress.errors import DeviceLost, UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Device
from autocompress.journal import Run
from autocompress.limits import Limits
from autocompress.pareto import load_front
from autocompress.scores import Timing
from autocompress.searching import search
from autocompress.training.recovery import Recovery
from autocompress.training.steps import trunk_steps
from tests.conftest import SizeDevice
from tests.searching import CPU, SPACE, Scripted, StopAfter, space, timeless


def test_another_seed_is_another_search_of_other_students(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """The same seed is the same search, whatever comes between: see below."""
    other = search(
        tiny_model, data_file, CPU, space(), tmp_path, trials=2, connect=SizeDevice, seed=1
    )
    tried = len(other.trials)
    assert [t.candidate for t in other.trials] != [t.candidate for t in whole.trials[:tried]]
    assert not {t.student for t in other.trials} & {t.student for t in whole.trials}


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


class Away(SizeDevice):
    """Is gone from the fourth timing on, so often in a row."""

    times = 1

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        if self.calls >= 3 and self.times:
            self.times -= 1
            raise DeviceLost("no route to board")
        return super().time(baseline, models, final=final)


class AwayForGood(Away):
    times = 10**6


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PAUSE_S", 0.0)


@pytest.mark.usefixtures("no_pauses")
def test_a_device_that_comes_back_changes_nothing(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    heard: list[tuple[str, int]] = []

    class Hearing(Silent):
        def stage(self, name: str, done: int = 0, of: int = 0) -> None:
            heard.append((name, of))

    found = search(
        tiny_model,
        data_file,
        CPU,
        space(),
        tmp_path / "run",
        trials=8,
        connect=Away,
        listener=Hearing(),
    )
    assert timeless(found.trials) == timeless(whole.trials)
    i = heard.index((f"waiting for {CPU}: no route to board", int(waiting.WAIT_S)))
    assert heard[i + 1] == (f"{CPU} is back", 0)


@pytest.mark.usefixtures("no_pauses")
def test_a_device_that_stays_away_stops_the_search_which_then_ends_the_same(
    whole: SearchResult,
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No trial fails for it."""
    monkeypatch.setattr(waiting, "WAIT_S", 0.05)
    out = tmp_path / "run"
    with pytest.raises(DeviceLost, match=rf"^{CPU}: no route to board; .* --resume goes on$"):
        search(tiny_model, data_file, CPU, space(), out, trials=8, connect=AwayForGood)
    assert timeless(Run(out).trials()) == timeless(whole.trials[: len(Run(out).trials())])
    assert not load_front(out).verified and (out / "report.html").is_file()
    resumed = search(
        tiny_model, data_file, CPU, space(), out, trials=8, connect=SizeDevice, resume=True
    )
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert resumed.front == whole.front


def test_time_spent_before_a_resume_counts(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """The baseline took 1,000 seconds of the 900 there are."""
    out = tmp_path / "run"
    options: Any = {"time_limit_s": 900, "connect": SizeDevice}
    search(tiny_model, data_file, CPU, space(), out, trials=1, **options)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event.get("trial", {}).get("number") == 0:
            event["trial"]["seconds"] = 1000.0
    (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    tried = len(Run(out).trials())
    resumed = search(tiny_model, data_file, CPU, space(), out, trials=8, resume=True, **options)
    assert len(resumed.trials) == tried


class Loaded(SizeDevice):
    """Needs as much memory as a model's file is large."""

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        first, others = super().time(baseline, models, final=final)
        sizes = [onnx_file(model).stat().st_size for model in models]
        return first, [
            replace(timing, memory_bytes=size) for timing, size in zip(others, sizes, strict=True)
        ]


class Killed(BaseException):
    """Nobody catches it."""


def test_killed_before_any_line_is_whole_it_ends_the_same(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process gets one line further, and dies with the files of the next one written and the
    line itself cut short. Students climb a ladder of two rungs, one of them in several formats: it
    is refused in one of them, and complete or outdone in others. No step is made twice."""
    values = {
        "layers": {"keep": [1.0, 0.5]},
        "heads": {"keep": [1.0, 0.5]},
        "recovery": {"steps": [40, 80]},
        "quantization": {"scheme": ["fp32", "int8-dynamic", "int8-weights"]},
    }
    asked: list[dict[str, Value]] = [
        {"layers.keep": 0.5, "recovery.steps": 40},
        {"layers.keep": 0.5, "heads.keep": 0.5, "recovery.steps": 80},
    ]
    asked[1]["quantization.scheme"] = "int8-dynamic"
    profile = replace(HardwareProfile.load(CPU), memory_limit_mb=2.0)
    advance, trained = Recovery.advance, list[int]()

    def counted(recovery: Recovery, until: int) -> None:
        before = recovery.done
        advance(recovery, until)
        trained.append(recovery.done - before)

    def searched(out: Path, *, resume: bool) -> SearchResult:
        options: dict[str, Any] = {"trials": 2, "resume": resume, "sampler": Scripted(*asked)}
        return search(tiny_model, data_file, profile, space(values), out, connect=Loaded, **options)

    monkeypatch.setattr(Recovery, "advance", counted)
    at_once = searched(tmp_path / "at_once", resume=False)
    steps = sum(trained)
    assert steps == 40 + 32 + 80 - trunk_steps(32)
    trained.clear()
    lines = (at_once.run / "events.jsonl").read_bytes().splitlines()
    out = tmp_path / "run"

    append = Run._append
    left = 0

    def until_killed(run: Run, event: Mapping[str, Any]) -> None:
        nonlocal left
        if left == 0:
            with run.events_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event)[:30])
            raise Killed
        left -= 1
        append(run, event)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_append", until_killed)
        for i in range(len(lines)):
            left = min(i, 1)
            with pytest.raises(Killed):
                searched(out, resume=i > 0)
    resumed = searched(out, resume=True)
    assert timeless(resumed.trials) == timeless(at_once.trials)
    assert [(t.state, t.candidate["recovery.steps"], len(t.rungs)) for t in resumed.trials[3:]] == [
        ("over-budget", 40, 0),
        ("complete", 40, 1),
        ("complete", 32, 1),
        ("outdone", 80, 2),
        ("over-budget", 80, 0),
        ("complete", 80, 2),
    ]
    assert resumed.front == at_once.front
    assert _told(out) == _told(at_once.run)
    assert sum(trained) == steps


def _told(run: Path) -> list[tuple[str, object]]:
    """What a run's events are, and of whom."""
    events = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        (event["event"], event.get("student") or event.get("trial", {}).get("number"))
        for event in events
    ]


@pytest.mark.parametrize(("lost", "bytes_more"), [(1, 0), (4, 1), (8, 50)])
def test_from_any_beginning_of_its_events_a_run_ends_the_same(
    lost: int,
    bytes_more: int,
    whole: SearchResult,
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
) -> None:
    """Files of what the journal no longer tells of are there or not: the run was finished."""
    out = Path(shutil.copytree(whole.run, tmp_path / "run"))
    journal = out / "events.jsonl"
    kept = b"".join(journal.read_bytes().splitlines(keepends=True)[:-lost])
    journal.write_bytes(kept[: len(kept) - bytes_more])
    resumed = search(
        tiny_model, data_file, CPU, space(), out, trials=8, connect=SizeDevice, resume=True
    )
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert resumed.front == whole.front
    assert _told(out) == _told(whole.run)


def test_resuming_with_other_inputs_is_refused(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    other_data = tmp_path / "other.csv"
    other_data.write_text(data_file.read_text() + "a film of note,1\n")
    for change, key in (
        ({"seed": 3}, "seed"),
        ({"space": space(SPACE | {"heads": {"keep": [0.5]}})}, "space"),
        ({"hardware": "cpu-all-cores"}, "hardware"),
        ({"budget": Limits(min_speedup=2)}, "budgets"),
        ({"budgets": {CPU: Limits(max_drop=2)}}, "budgets"),
        ({"data": other_data}, "data"),
        ({"objectives": ("quality", "size")}, "objectives"),
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
    journal = out / "events.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    asked = next(e for e in events if e["event"] == "asked" and e["trials"][0]["number"] == 2)
    asked["trials"][0]["sizes"]["ffn"] = [1] * len(asked["trials"][0]["sizes"]["layers"])
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
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
    resumed = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        out,
        trials=2,
        connect=SizeDevice,
        resume=True,
    )
    assert len(resumed.trials) == 6


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


def test_a_fine_tuning_that_was_fitted_to_the_time_is_the_same_on_a_resume(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the time limit is by then."""
    out, asked_s, said = tmp_path / "run", list[float](), list[str]()

    def fitted(seconds: float, *_: object) -> int:
        asked_s.append(seconds)
        return 3

    monkeypatch.setattr(session, "steps_within", fitted)
    listener = Silent()
    listener.stage = lambda name, done=0, of=0: said.append(name)  # type: ignore[method-assign]
    values = {"heads": {"keep": [0.5, 0.25]}}

    def searched(**more: Any) -> SearchResult:
        options: dict[str, Any] = {"finetune": True, "listener": listener, "connect": SizeDevice}
        return search(tiny_model, data_file, CPU, space(values), out, **options, **more)

    first = searched(trials=1, time_limit_s=600)
    longer = searched(trials=2, resume=True)
    assert asked_s == [200.0]
    assert json.loads((out / "run.json").read_text())["finetuning_steps"] == 3
    stage = "fine-tuning the teacher, 3 of 14 steps to end within a third of the time limit"
    assert stage in said
    assert timeless(longer.trials)[:2] == timeless(first.trials)
