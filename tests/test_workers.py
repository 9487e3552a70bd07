"""Students made by several workers: the same ones, each once, whatever becomes of the workers."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from autocompress import HardwareProfile
from autocompress.engine.attempt import Attempt
from autocompress.engine.backends.crew import Crew, WorkerLost
from autocompress.engine.loop import Loop, SearchResult
from autocompress.engine.request import Request
from autocompress.engine.workshop import Made, Order
from autocompress.errors import CandidateFailed, UserError
from autocompress.files import sha256
from autocompress.hardware.agent import usable_cores
from autocompress.journal import Run
from autocompress.pareto import non_dominated
from autocompress.search_space import SearchSpace
from autocompress.searching import search
from autocompress.student import WEIGHTS
from autocompress.techniques import TECHNIQUES, vocabulary
from tests.conftest import SizeDevice
from tests.poison import Poison
from tests.pretended import pretended
from tests.searching import CPU, Scripted, space, timeless

RAY = importlib.util.find_spec("ray") is not None
OTHERS = [
    pytest.param("processes"),
    pytest.param("ray", marks=pytest.mark.skipif(not RAY, reason="ray is not installed")),
]
two_cores = pytest.mark.skipif(usable_cores() < 2, reason="two workers take two cores")


def poisoned(*deeds: str) -> dict[str, Any]:
    """Settings that differ in their widths, and in what their students do; trained throughout."""
    return {
        "heads": {"keep": [0.5]},
        "ffn": {"keep": [(1 + i) / (1 + len(deeds)) for i in range(len(deeds))]},
        "recovery": {"steps": [3]},
        "poison": {"deed": list(deeds)},
    }


def tried(result: SearchResult) -> dict[str, tuple[str, object]]:
    """How each student ended, and its drop."""
    return {str(t.student): (t.state, t.rungs) for t in result.trials[1:]}


@pytest.mark.parametrize("backend", OTHERS)
def test_one_worker_makes_the_students_of_the_search_itself(
    backend: str, whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """In the same order, to the bit."""
    out = tmp_path / "run"
    options: dict[str, Any] = {"trials": 8, "connect": SizeDevice, "backend": backend}
    found = search(tiny_model, data_file, CPU, space(), out, **options)
    assert timeless(found.trials) == timeless(whole.trials)
    assert found.front == whole.front
    for member in whole.front.members:
        [trial] = [one for one in whole.trials if one.id == member.id]
        own, other = (run / "students" / str(trial.student) / WEIGHTS for run in (out, whole.run))
        assert sha256(own) == sha256(other)
    assert not (out / "scratch").exists()


@two_cores
@pytest.mark.parametrize("backend", OTHERS)
def test_two_workers_make_no_student_twice_and_any_beginning_of_their_journal_resumes(
    backend: str, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"trials": 6, "connect": SizeDevice, "workers": 2}
    options["backend"] = backend
    at_once = search(tiny_model, data_file, CPU, space(), tmp_path / "run", **options)
    journal = (at_once.run / "events.jsonl").read_text().splitlines(keepends=True)
    events = list(map(json.loads, journal))
    sealed = Counter(event["student"] for event in events if event["event"] == "sealed")
    assert len(sealed) > 3 and set(sealed.values()) == {1}
    tried = [(trial.student, json.dumps(trial.candidate)) for trial in at_once.trials]
    assert len(set(tried)) == len(tried)
    open_before_an_end = [event["event"] for event in events]
    assert ["asked", "asked"] in [open_before_an_end[i : i + 2] for i in range(len(events))]
    for kept in (len(events) // 3, 2 * len(events) // 3):
        out = Path(shutil.copytree(at_once.run, tmp_path / str(kept)))
        (out / "events.jsonl").write_text("".join(journal[:kept]) + journal[kept][:20])
        serial = options | {"workers": 1, "backend": "serial", "resume": True}
        resumed = search(tiny_model, data_file, CPU, space(), out, **serial)
        before = [e["trial"] for e in events[:kept] if "trial" in e]
        again = {trial.number: trial for trial in resumed.trials}
        assert all(again[trial["number"]].candidate == trial["candidate"] for trial in before)
        numbers = [trial.number for trial in Run(out).trials()]
        assert numbers == list(range(len(numbers)))


@two_cores
@pytest.mark.parametrize("backend", OTHERS)
def test_a_poisoned_student_costs_itself_alone(
    backend: str,
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It raises, is not finite, ends its worker or hangs; one whose worker is killed is made by
    another."""

    def patience_s(_: Loop, attempt: Attempt) -> float:
        return 3.0 if attempt.candidate.get("poison.deed") == "hang" else float("inf")

    monkeypatch.setattr(Loop, "_patience_s", patience_s)
    deeds = ["none", "raise", "nan", "exit", "killed-once", "memory", "hang"]
    values = poisoned(*deeds)
    asked = [
        {"ffn.keep": keep, "recovery.steps": 3, "poison.deed": deed}
        for keep, deed in zip(values["ffn"]["keep"], deeds, strict=True)
    ]
    techniques = (*TECHNIQUES, Poison(tmp_path / "once"))
    result = search(
        tiny_model,
        data_file,
        CPU,
        SearchSpace.from_mapping("poison", values, settings=vocabulary(techniques)),
        tmp_path / "run",
        trials=len(deeds),
        connect=SizeDevice,
        sampler=Scripted(*asked),
        techniques=techniques,
        workers=2,
        backend=backend,
    )
    ended = {str(t.candidate.get("poison.deed", "none")): t for t in result.trials[1:]}
    assert {deed: trial.state for deed, trial in ended.items()} == {
        deed: "complete" if deed in ("none", "killed-once") else "failed" for deed in deeds
    }
    reasons = {deed: str(trial.reason) for deed, trial in ended.items()}
    assert reasons["raise"] == "ValueError: poisoned"
    assert reasons["nan"] == "the training loss became nan"
    assert reasons["memory"] == "out of memory"
    assert reasons["exit"].startswith("it ended 2 workers, the last one")
    assert reasons["hang"] == "not done after 3 s, its worker was ended"
    assert all("\n" not in reason for reason in reasons.values())


def test_two_hundred_trials_with_faults_end_with_the_front_of_the_survivors(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """Three students in ten fail in some way."""
    faults = [ValueError("broken"), MemoryError(), CandidateFailed("the loss is not finite")]
    failed = set[int]()

    def made(order: Order) -> Made:
        draw = random.Random(order.number)
        if draw.random() < 0.3:
            failed.add(order.number)
            raise draw.choice(faults)
        return Made(sealed=True, steps=3, training_s=0.1, seconds=0.2)

    values = {
        "heads": {"keep": {"low": 0.1, "high": 1.0}, "importance": ["magnitude"]},
        "ffn": {"keep": {"low": 0.1, "high": 1.0}, "importance": ["magnitude"]},
        "recovery": {"steps": [3], "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
    }
    options: dict[str, Any] = {"trials": 200, "connect": SizeDevice, "sampler": "random"}
    with pretended(made):
        result = search(tiny_model, data_file, CPU, space(values), tmp_path / "run", **options)
    tried = result.trials[1:]
    assert len(tried) == 200 and 40 < len(failed) < 80
    assert {trial.number for trial in tried if trial.state == "failed"} == failed
    reasons = {trial.reason for trial in tried if trial.state == "failed"}
    assert reasons == {"ValueError: broken", "out of memory", "the loss is not finite"}
    survivors = [trial for trial in result.trials if trial.state == "complete"]
    points = [
        (1 / score.timing.speedup, score.quality.drop_validation)
        for trial in survivors
        if (score := trial.scores[CPU]).quality
    ]
    front = {survivors[i].id for i in non_dominated(points)}
    assert {member.id for member in result.front.members} == front


SEARCH = """
import sys
from pathlib import Path
from autocompress.searching import search
from tests.conftest import SizeDevice
from tests.poison import Poison
from tests.searching import CPU
from tests.test_workers import poisoned
from autocompress.search_space import SearchSpace
from autocompress.techniques import TECHNIQUES, vocabulary

if __name__ == "__main__":
    model, data, out = sys.argv[1:]
    techniques = (*TECHNIQUES, Poison(Path(out).with_name("once")))
    values = SearchSpace.from_mapping(
        "poison", poisoned("hang"), settings=vocabulary(techniques)
    )
    options = {"techniques": techniques, "connect": SizeDevice, "backend": "processes"}
    search(model, data, CPU, values, out, trials=1, **options)
"""


def test_no_worker_outlives_its_search(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """One that hangs ends when the search is killed."""
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SEARCH)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tiny_model), str(data_file), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
    )
    scratch = out / "scratch" / "worker-0"
    until = time.monotonic() + 240
    while not scratch.exists():  # it is set up, and hangs
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    [worker] = [pid for pid in _children(process.pid) if _command(pid).find("spawn_main") > 0]
    process.kill()
    process.wait()
    while _command(worker):
        assert time.monotonic() < until, "the worker goes on"
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in file.read_text().split()]


def _command(pid: int) -> str:
    """Empty of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


class Simulated(Crew[str]):
    """Workers by name that are lost, hang or are done as a script says."""

    def __init__(self, workers: int, *script: str) -> None:
        super().__init__(workers)
        self.script, self.dismissed = list(script), list[str]()
        self.given = list[tuple[str, int]]()

    def hired(self) -> str:
        return f"worker {len(self.given)}"

    def give(self, worker: str, order: Order) -> None:
        self.given.append((worker, order.number))

    def heard_of(self, workers: Any, timeout_s: float) -> Any:
        return [] if self.script[0] == "hangs" else workers[:1]

    def result(self, worker: str) -> Made:
        if self.script.pop(0) == "lost":
            raise WorkerLost("the last one by SIGKILL")
        return Made(sealed=True)

    def dismiss(self, worker: str) -> None:
        self.dismissed.append(worker)


def test_an_order_is_given_to_another_worker_once() -> None:
    plan: Any = None
    crew = Simulated(2, "lost", "done", "done", "lost", "lost", "hangs")
    crew.submit(Order(1, plan, plan))
    crew.submit(Order(2, plan, plan))
    assert sorted(crew.done()[0].number for _ in range(2)) == [1, 2]
    assert crew.given[:3] == [("worker 0", 1), ("worker 1", 2), ("worker 2", 1)]
    crew.submit(Order(3, plan, plan))
    order, made = crew.done()
    assert (order.number, made.failed) == (3, "it ended 2 workers, the last one by SIGKILL")
    crew.submit(Order(4, plan, plan, limit_s=0.0))
    order, made = crew.done()
    assert (order.number, made.sealed) == (4, False)
    assert made.failed == "not done after 0 s, its worker was ended"
    hired = {worker for worker, _ in crew.given}
    crew.close()
    assert set(crew.dismissed) == hired


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "--workers is 0: it must be at least 1"),
        ({"backend": "dask"}, "unknown backend 'dask'; known are serial, processes, ray"),
        ({"backend": "serial", "workers": 2}, "--backend serial has one worker, --workers is 2"),
        ({"ray_address": "auto"}, "--ray-address is for --backend ray"),
        ({"gpus_per_worker": 0.5}, "--gpus-per-worker is for --backend ray"),
        ({"gpus_per_worker": -1.0, "backend": "ray"}, "--gpus-per-worker is -1: "),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    profile = HardwareProfile.load(CPU)
    with pytest.raises(UserError) as mistake:
        Request("m", "text-classification", "d", (profile,), space(), tmp_path, **options)
    assert str(mistake.value).startswith(said) and "\n" not in str(mistake.value)


def test_more_workers_than_cores_are_refused(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    cores = usable_cores()
    options: dict[str, Any] = {"connect": SizeDevice, "trials": 1}
    with pytest.raises(UserError, match=rf"^--workers is {cores + 1}: .* has {cores} cores"):
        search(tiny_model, data_file, CPU, space(), tmp_path / "run", workers=cores + 1, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(RAY, reason="ray is installed")
def test_without_ray_it_says_what_to_install(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"connect": SizeDevice, "backend": "ray"}
    with pytest.raises(UserError, match=r"pip install 'autocompress\[ray\]'$"):
        search(tiny_model, data_file, CPU, space(), tmp_path / "run", **options)
