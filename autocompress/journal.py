"""The run folder: inputs, one line per event, resume.

What happens to a trial is a line each: it is asked for, its student is sealed, and each of its
number formats is scored, refused or fails. A killed process loses at
most what it was at: files are renamed into place before their line is appended and flushed, and a
line cut short by the kill is dropped on resume. Trials follow from events whatever their order.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from autocompress import records
from autocompress.errors import UserError
from autocompress.files import lock, write_json
from autocompress.scores import Score

SCHEMA = 4
"""Of ``run.json`` and its events; runs of schema 1 to 3 are read, not gone on with."""
State = Literal["asked", "complete", "stopped", "over-budget", "outdone", "failed"]
Origin = Literal["uncut", "sampler", "ladder", "formats"]
"""Why trials are asked for: the uncut model in fp32, what the sampler wants, a candidate trained
on, other number formats of a student."""
KEEP = ("front", "all")
"""Whose models' files a run keeps: the front's, or all completed trials'."""
_EVENTS: dict[State, str] = {
    "complete": "scored",
    "stopped": "refused",
    "over-budget": "refused",
    "outdone": "refused",
    "failed": "failed",
}
"""How a trial ends -> the event."""
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Trial:
    """One model: a student in one number format.

    Args:
        number: 0 is the baseline.
        candidate: the settings that differ from their defaults.
        sizes: see ``Plan.sizes``; None when the candidate could not be planned.
        state: ``asked``: nothing has come of it yet; ``complete``: scored; ``over-budget``: misses
            a limit of latency, size or memory on every device; ``outdone``: another number format
            of its student is no slower and no larger, and answers as the student itself;
            ``failed``: see reason; ``stopped``: in runs of schema 3 and before.
        reason: why it failed, is over budget or outdone.
        rungs: (recovery steps, drop on validation examples) each time its candidate was scored, the
            last one included; on the worst device.
        scores: of the artifact, by name of the hardware profile; none of a candidate that was not
            timed.
        predicted: latency relative to the baseline that the device's table foretold before the
            trial, by profile.
        weight_bytes: size of model.onnx.
        parity: see ``shipping``.
        seconds: wall time; that of a student is counted to the first of its trials that was not
            refused before any training.
        path: the model's folder inside the run; None when no files were kept.
        student: its id.
        asked: number of the trial that was asked for, of which this is another number format; None
            of that one itself.
    """

    number: int
    candidate: dict[str, Any]
    state: State
    sizes: dict[str, Any] | None = None
    reason: str | None = None
    rungs: tuple[tuple[int, float], ...] = ()
    scores: dict[str, Score] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    weight_bytes: int | None = None
    parity: dict[str, float] | None = None
    seconds: float = 0.0
    path: str | None = None
    student: str | None = None
    asked: int | None = None

    @property
    def id(self) -> str:
        return f"t{self.number:03}"

    def bytes_on(self, name: str) -> int | None:
        """Of the weights as a device held them: of the file, where it ran that itself."""
        score = self.scores.get(name)
        return (score and score.timing.weight_bytes) or self.weight_bytes

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Trial:
        """Raises:
        KeyError, TypeError, ValueError, AttributeError: it is damaged.
        """
        trial = cls(
            **value
            | {
                "rungs": tuple((steps, quality) for steps, quality in value["rungs"]),
                "scores": {name: Score.from_json(score) for name, score in value["scores"].items()},
            }
        )
        records.check(trial)
        return trial


@dataclass(frozen=True)
class Asked:
    """Trials of one student, as they were asked for."""

    by: Origin
    trials: tuple[Trial, ...]


def run_folder(name: str, resume: bool = False) -> Path:
    """The next free ``runs/NAME-N``; to go on with a run, the last that there is."""
    paths = [Path(f"runs/{name}-{n}") for n in range(1, 10_000)]
    free = next(i for i, path in enumerate(paths) if not path.exists())
    return paths[max(0, free - 1) if resume else free]


class Run:
    """A run folder. Make one with ``start`` or ``resume``, inside ``locked``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def events_file(self) -> Path:
        return self.folder / "events.jsonl"

    @classmethod
    def check_free(cls, folder: Path) -> None:
        """Raises:
        UserError: the folder already holds something.
        """
        if folder.is_file():
            raise UserError(f"--out {folder} is a file")
        if (folder / "run.json").is_file():
            raise UserError(
                f"--out {folder} holds another run: give --resume to go on with it, or another "
                f"folder"
            )
        if folder.is_dir() and any(not path.name.endswith(".part") for path in folder.iterdir()):
            raise UserError(f"--out {folder} is not empty and holds no run: give another folder")

    @classmethod
    def start(cls, folder: Path, description: dict[str, Any]) -> Run:
        """A new run whose ``run.json`` holds ``description``.

        Raises:
            UserError: the folder cannot be written.
        """
        cls.check_free(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run = cls(folder)
            write_json(folder / "run.json", description)
        except OSError as error:
            raise UserError(f"--out {folder} cannot be written: {error.strerror}") from error
        return run

    @classmethod
    def resume(cls, folder: Path, inputs: dict[str, Any]) -> Run:
        """The run in ``folder``, whose recorded inputs must equal ``inputs``.

        Raises:
            UserError: no run there, a damaged one, or inputs that differ; the message names the
                first difference.
        """
        if not (folder / "run.json").is_file():
            raise UserError(f"--resume: {folder} holds no run")
        description = cls(folder).description()
        if description.get("schema") != SCHEMA:
            raise UserError(
                f"--resume: the run in {folder} is of an earlier version (schema "
                f"{description.get('schema')}, this one writes {SCHEMA}): its models can be "
                "picked and exported, but it cannot be gone on with"
            )
        recorded = description["inputs"]
        asked = json.loads(json.dumps(inputs))
        for key in [*recorded, *(asked.keys() - recorded.keys())]:
            if recorded.get(key) != asked.get(key):
                then, now = _short(recorded.get(key)), _short(asked.get(key))
                raise UserError(
                    f"--resume: {key} differs: the run in {folder} has {then}, asked is {now}"
                )
        return cls(folder)

    def description(self) -> dict[str, Any]:
        """``run.json``.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.folder / "run.json"
        try:
            description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(description["inputs"], dict):
                raise TypeError("inputs is no object")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is missing or damaged: {error!r}") from error
        return description

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process.

        Raises:
            UserError: another process is working on it.
        """
        with (self.folder / ".lock").open("w") as file:
            if not lock(file, wait=False):
                raise UserError(f"{self.folder} is in use by another autocompress process")
            self._drop_partial_line()
            yield

    @contextmanager
    def only_if_tried(self) -> Iterator[None]:
        """Leaves nothing in the folder where the block ends with an error before any trial came to
        an end, so that the corrected request can be made there; a run that was stopped stays."""
        try:
            yield
        except Exception:
            if not self.trials():
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def note(self, **facts: Any) -> None:
        """Replace facts in ``run.json``."""
        write_json(self.folder / "run.json", self.description() | facts)

    def asked(self, by: Origin, trials: Sequence[Trial]) -> None:
        """Record what was asked for, one trial for each number format of a student."""
        asked = [asdict(trial) for trial in trials]
        self._append({"event": "asked", "by": by, "trials": asked})

    def sealed(self, student: str) -> None:
        """Record, once, that a student is trained."""
        self._append_once({"event": "sealed", "student": student})

    def ended(self, trial: Trial) -> None:
        """Record what came of a trial."""
        self._append({"event": _EVENTS[trial.state], "trial": asdict(trial)})

    def trials(self) -> list[Trial]:
        """All that came to an end, by number; a line cut short by a kill does not count.

        Raises:
            UserError: a line is damaged.
        """
        old = self.folder / "trials.jsonl"
        if old.is_file():
            return list(_read(old, Trial.from_json))
        by_number = {trial.number: trial for trial in _read(self.events_file, _ended) if trial}
        return [by_number[number] for number in sorted(by_number)]

    def history(self) -> list[Asked | Trial]:
        """What was asked for and what came to an end, in that order; raises as ``trials``."""
        return [told for told in _read(self.events_file, _told) if told is not None]

    def _append_once(self, event: Mapping[str, Any]) -> None:
        if event not in list(_read(self.events_file, dict)):
            self._append(event)

    def _append(self, event: Mapping[str, Any]) -> None:
        """On disk when this returns."""
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _drop_partial_line(self) -> None:
        data = self.events_file.read_bytes() if self.events_file.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with self.events_file.open("r+b") as file:
                file.truncate(len(whole))


def _ended(event: Mapping[str, Any]) -> Trial | None:
    return Trial.from_json(event["trial"]) if event["event"] in _EVENTS.values() else None


def _told(event: Mapping[str, Any]) -> Asked | Trial | None:
    if event["event"] != "asked":
        return _ended(event)
    trials = tuple(Trial.from_json(trial) for trial in event["trials"])
    return Asked(event["by"], trials)


def _read(file: Path, what: Callable[[Any], _Parsed]) -> Iterator[_Parsed]:
    """What is made of each line; one cut short at the end does not count.

    Raises:
        UserError: a line is damaged.
    """
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            yield what(json.loads(line.decode()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}, line {number} is damaged: {error!r}") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
