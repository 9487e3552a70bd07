from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import UserError
from autocompress.journal import Run, Trial
from autocompress.scores import Latency, Quality, Score, Timing

INPUTS = {
    "model": "abc",
    "seed": 0,
    "space": {"parameters": {"layers.keep": "1.0 | 0.5"}},
    "unlabeled": None,
}
FAILED = Trial(
    3, {"layers.keep": [0, 9]}, "failed", reason="layers.keep names layer 9", seconds=0.25
)
TIMING = Timing(
    Latency(1.25, 1.5, 2.0, (1.2, 1.3), 40, "p10", 0.9),
    3.3,
    (3.2, 3.4),
    "int8-dynamic",
    wall_ms=1.3,
    cpu_ms=1.25,
    disturbed=True,
    memory_bytes=12_345_678,
    energy_mj=4.5,
)
ESTIMATE = Timing(Latency(9.0, 9.0, 9.0, (9.0, 9.0), 0, basis="datasheet"), 2.0, (2.0, 2.0))
COMPLETE = Trial(
    number=12,
    candidate={
        "layers.keep": [0, 2],
        "recovery.objectives": ["logits"],
        "quantization.scheme": "int8-dynamic",
    },
    state="complete",
    sizes={"layers": [0, 2], "heads": [3, 4], "ffn": [384, 96]},
    rungs=((0, 0.517), (32, 0.84375)),
    scores={
        "board": Score(TIMING, Quality(0.84375, 3.125, 0.9), "ff80"),
        "phone": Score(ESTIMATE),
    },
    predicted={"board": 0.31, "phone": 0.5},
    weight_bytes=1_234_567,
    parity={"logits": 1e-6},
    seconds=41.5,
    path="models/t012",
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.start(tmp_path / "run", {"inputs": INPUTS, "started": "today"})


def test_trials_come_back_as_they_were(run: Run) -> None:
    assert run.trials() == []
    run.append(FAILED)
    run.append(COMPLETE)
    assert run.trials() == [FAILED, COMPLETE]
    assert Run.resume(run.folder, INPUTS).trials() == [FAILED, COMPLETE]
    assert [trial.id for trial in run.trials()] == ["t003", "t012"]
    assert list(run.trials()[1].scores) == ["board", "phone"]


def test_one_line_per_trial(run: Run) -> None:
    run.append(replace(FAILED, reason="two\nlines\u2028and three"))
    run.append(COMPLETE)
    lines = run.trials_file.read_bytes().split(b"\n")
    assert [json.loads(line)["number"] for line in lines[:-1]] == [3, 12] and lines[-1] == b""
    assert run.trials()[0].reason == "two\nlines\u2028and three"


def test_the_description_is_kept(run: Run) -> None:
    assert json.loads((run.folder / "run.json").read_text(encoding="utf-8")) == {
        "inputs": INPUTS,
        "started": "today",
    }


@pytest.mark.parametrize("lost", [1, 2, 100])
def test_a_line_cut_short_is_dropped_on_resume(run: Run, lost: int) -> None:
    run.append(FAILED)
    run.append(COMPLETE)
    run.trials_file.write_bytes(run.trials_file.read_bytes()[:-lost])
    resumed = Run.resume(run.folder, INPUTS)
    assert resumed.trials() == [FAILED]
    with resumed.locked():
        resumed.append(COMPLETE)
    assert resumed.trials() == [FAILED, COMPLETE]


def test_a_first_line_cut_short_leaves_none(run: Run) -> None:
    run.trials_file.write_text('{"number": 0, ', encoding="utf-8")
    assert Run.resume(run.folder, INPUTS).trials() == []


def test_a_number_that_json_does_not_have_is_refused_and_leaves_no_trace(run: Run) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.append(
            replace(COMPLETE, scores={"board": Score(replace(TIMING, speedup=float("nan")))})
        )
    assert run.trials_file.read_bytes() == b""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed differs: the run in {folder} has 0, asked is 1"),
        ({"model": "abd"}, 'model differs: the run in {folder} has "abc", asked is "abd"'),
        (
            {"unlabeled": "more.txt"},
            'unlabeled differs: the run in {folder} has null, asked is "more.txt"',
        ),
        ({"extra": 1}, "extra differs: the run in {folder} has null, asked is 1"),
        ({"space": {"parameters": {}}}, "space differs: "),
    ],
)
def test_other_inputs_are_refused_by_name(run: Run, change: dict[str, Any], message: str) -> None:
    with pytest.raises(
        UserError, match="^" + re.escape("--resume: " + message.format(folder=run.folder))
    ):
        Run.resume(run.folder, {**INPUTS, **change})


def test_inputs_are_compared_as_json(run: Run, tmp_path: Path) -> None:
    tupled = Run.start(tmp_path / "tupled", {"inputs": {"budget": (1, 2)}})
    assert Run.resume(tupled.folder, {"budget": (1, 2)}).trials() == []


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"--resume: {tmp_path} holds no run")):
        Run.resume(tmp_path, INPUTS)


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    assert Run.start(tmp_path, {"inputs": INPUTS}).trials() == []


def test_a_folder_with_a_run_is_occupied(run: Run) -> None:
    run.append(FAILED)
    with pytest.raises(UserError, match="holds another run: give --resume"):
        Run.start(run.folder, {"inputs": {}})
    assert Run.resume(run.folder, INPUTS).trials() == [FAILED]


def test_a_folder_with_something_else_is_occupied(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        Run.start(tmp_path, {"inputs": INPUTS})
    with pytest.raises(UserError, match="is a file"):
        Run.start(notes, {"inputs": INPUTS})
    with pytest.raises(UserError, match="cannot be written"):
        Run.start(notes / "run", {"inputs": INPUTS})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_is_held_by_one_process(run: Run) -> None:
    code = """
import sys
from pathlib import Path
from autocompress.errors import UserError
from autocompress.journal import Run
try:
    with Run(Path(sys.argv[1])).locked():
        print("free")
except UserError as error:
    print(error)
"""

    def other_process() -> str:
        command = [sys.executable, "-c", code, str(run.folder)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    with run.locked():
        assert other_process() == f"{run.folder} is in use by another autocompress process"
    assert other_process() == "free"
