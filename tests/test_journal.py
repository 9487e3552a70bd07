from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import UserError
from autocompress.journal import SCHEMA, Asked, Run, State, Trial
from autocompress.scores import Latency, Quality, Score, Timing

INPUTS = {
    "model": "abc",
    "seed": 0,
    "space": {"parameters": {"layers.keep": "1.0 | 0.5"}},
    "unlabeled": None,
}
DESCRIPTION = {"schema": SCHEMA, "inputs": INPUTS, "started": "today"}
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
    student="0123456789abcdef",
    asked=11,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.start(tmp_path / "run", DESCRIPTION)


def test_trials_come_back_as_they_were(run: Run) -> None:
    assert run.trials() == []
    run.ended(FAILED)
    run.ended(COMPLETE)
    assert run.trials() == [FAILED, COMPLETE]
    assert Run.resume(run.folder, INPUTS).trials() == [FAILED, COMPLETE]
    assert [trial.id for trial in run.trials()] == ["t003", "t012"]
    assert list(run.trials()[1].scores) == ["board", "phone"]


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("complete", "scored"),
        ("stopped", "refused"),
        ("over-budget", "refused"),
        ("outdone", "refused"),
        ("failed", "failed"),
    ],
)
def test_what_comes_of_a_trial_is_an_event_of_that_name(run: Run, state: State, event: str) -> None:
    run.ended(replace(COMPLETE, state=state))
    assert json.loads(run.events_file.read_text(encoding="utf-8"))["event"] == event
    assert [trial.state for trial in run.trials()] == [state]


def test_what_was_asked_for_and_what_came_of_it_come_back_in_their_order(run: Run) -> None:
    first = Asked("sampler", tuple(Trial(n, {}, "asked", student="a") for n in (1, 2)))
    other = Asked("formats", (Trial(3, {"layers.keep": 0.5}, "asked", student="b", asked=1),))
    run.asked(first.by, first.trials)
    assert (run.history(), run.trials()) == ([first], [])
    later = replace(first.trials[1], state="complete")
    run.ended(later)
    run.sealed("b")
    run.asked(other.by, other.trials)
    sooner = replace(first.trials[0], state="failed")
    run.ended(sooner)
    assert run.history() == [first, later, other, sooner]
    assert run.trials() == [sooner, later]


def test_a_student_is_sealed_once_however_often_it_is_told(run: Run) -> None:
    for _ in range(2):
        run.sealed("a")
        run.sealed("b")
    lines = run.events_file.read_text(encoding="utf-8").splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == [
        ("sealed", "a"),
        ("sealed", "b"),
    ]
    assert (run.history(), run.trials()) == ([], [])


def test_one_line_per_trial(run: Run) -> None:
    run.ended(replace(FAILED, reason="two\nlines\u2028and three"))
    run.ended(COMPLETE)
    lines = run.events_file.read_bytes().split(b"\n")
    numbers = [json.loads(line)["trial"]["number"] for line in lines[:-1]]
    assert numbers == [3, 12] and lines[-1] == b""
    assert run.trials()[0].reason == "two\nlines\u2028and three"


def test_the_description_is_kept(run: Run) -> None:
    assert json.loads((run.folder / "run.json").read_text(encoding="utf-8")) == DESCRIPTION


@pytest.mark.parametrize("lost", [1, 2, 100])
def test_a_line_cut_short_is_dropped_on_resume(run: Run, lost: int) -> None:
    run.ended(FAILED)
    run.ended(COMPLETE)
    run.events_file.write_bytes(run.events_file.read_bytes()[:-lost])
    resumed = Run.resume(run.folder, INPUTS)
    assert resumed.trials() == [FAILED]
    with resumed.locked():
        resumed.ended(COMPLETE)
    assert resumed.trials() == [FAILED, COMPLETE]


def test_a_first_line_cut_short_leaves_none(run: Run) -> None:
    run.events_file.write_text('{"event": "scored", "trial"', encoding="utf-8")
    resumed = Run.resume(run.folder, INPUTS)
    assert (resumed.trials(), resumed.history()) == ([], [])


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"5", b"{}", b"\xff", b'"scored"'])
def test_a_line_damaged_in_the_middle_is_named(run: Run, line: bytes) -> None:
    run.ended(FAILED)
    run.ended(COMPLETE)
    whole = run.events_file.read_bytes().splitlines(keepends=True)
    run.events_file.write_bytes(whole[0] + line + b"\n" + whole[1])
    with pytest.raises(UserError, match=rf"^{run.events_file}, line 2 is damaged: .+$"):
        run.trials()
    with pytest.raises(UserError, match=rf"^{run.events_file}, line 2 is damaged: .+$"):
        run.history()


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 2', '{"schema": 2}', "5", '"inputs"'])
def test_a_damaged_description_is_named(run: Run, content: str) -> None:
    path = run.folder / "run.json"
    path.write_text(content)
    for act in (lambda: Run.resume(run.folder, INPUTS), run.description, lambda: run.note(n=1)):
        with pytest.raises(UserError, match=rf"^{path} is missing or damaged: .+$"):
            act()
    assert path.read_text() == content


def test_a_number_that_json_does_not_have_is_refused_and_leaves_no_trace(run: Run) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.ended(replace(COMPLETE, scores={"board": Score(replace(TIMING, speedup=float("nan")))}))
    assert run.events_file.read_bytes() == b""


OLD = """{"number": 0, "candidate": {"layers.keep": 1.0}, "state": "complete", "sizes": null,
"reason": null, "rungs": [[0, 0.0]], "scores": {}, "predicted": {}, "weight_bytes": 5,
"parity": null, "seconds": 2.5, "path": "models/t000"}"""


def test_a_run_of_the_first_schema_is_read_and_not_gone_on_with(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", {"schema": 1, "inputs": INPUTS})
    line = OLD.replace("\n", " ")
    (run.folder / "trials.jsonl").write_text(f"{line}\n{line[:40]}", encoding="utf-8")
    baseline = Trial(0, {"layers.keep": 1.0}, "complete", rungs=((0, 0.0),), weight_bytes=5)
    assert run.trials() == [replace(baseline, seconds=2.5, path="models/t000")]
    with pytest.raises(
        UserError, match=r"^--resume: the run in .* \(schema 1, this one writes 4\)"
    ):
        Run.resume(run.folder, INPUTS)


def test_a_run_that_stopped_students_at_rungs_is_read_and_not_gone_on_with(tmp_path: Path) -> None:
    """Of schema 3, whose events were others, too."""
    run = Run.start(tmp_path / "run", {"schema": 3, "inputs": INPUTS})
    stopped = replace(FAILED, state="stopped", reason="dominated", rungs=((32, 12.5),))
    rung = {"event": "rung", "student": "a", "steps": 32, "drop": 12.5, "answers": "7f"}
    passed = {"event": "passed-over", "trials": [asdict(replace(FAILED, number=1))]}
    told = [rung, passed, {"event": "refused", "trial": asdict(stopped)}]
    run.events_file.write_text("".join(json.dumps(event) + "\n" for event in told))
    assert run.trials() == [stopped]
    with pytest.raises(UserError, match=r"\(schema 3, this one writes 4\)"):
        Run.resume(run.folder, INPUTS)


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
    tupled = Run.start(tmp_path / "tupled", {"schema": SCHEMA, "inputs": {"budget": (1, 2)}})
    assert Run.resume(tupled.folder, {"budget": (1, 2)}).trials() == []


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"--resume: {tmp_path} holds no run")):
        Run.resume(tmp_path, INPUTS)


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    assert Run.start(tmp_path, {"inputs": INPUTS}).trials() == []


def test_a_folder_with_a_run_is_occupied(run: Run) -> None:
    run.ended(FAILED)
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
