"""The run folder: inputs, one line per trial, resume.

A killed process loses at most the trial it was running: a trial's files are renamed into place
before its line is appended and flushed, and a line cut short by the kill is dropped on resume.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from autocompress.errors import UserError
from autocompress.files import write_json
from autocompress.scores import Score

State = Literal["complete", "stopped", "over-budget", "failed"]


@dataclass(frozen=True)
class Trial:
    """One line of ``trials.jsonl``.

    Args:
        number: 0 is the baseline.
        candidate: the active settings.
        sizes: kept layers, heads and FFN widths; None when the candidate could not be built.
        state: ``complete``: recovered in full and scored; ``stopped``: another trial was better at
            the same short recovery, or the rest of it would not fit the time left;
            ``over-budget``: misses a limit of latency or memory on every device, so not trained;
                ``failed``: see reason.
        reason: why it failed, was stopped or is over budget.
        rungs: (recovery steps, drop on validation examples) each time it was scored, the last one
            included; on the worst device.
        scores: of the artifact, by name of the hardware profile; none of a candidate that was not
            timed.
        predicted: latency relative to the baseline that the device's table foretold before the
            trial, by profile.
        weight_bytes: size of model.onnx.
        parity: see ``export``.
        seconds: wall time of the trial.
        path: the model's folder inside the run; None when no files were kept.
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

    @property
    def id(self) -> str:
        return f"t{self.number:03}"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Trial:
        return cls(
            **value
            | {
                "rungs": tuple((steps, quality) for steps, quality in value["rungs"]),
                "scores": {name: Score.from_json(score) for name, score in value["scores"].items()},
            }
        )


class Run:
    """A run folder. Make one with ``start`` or ``resume``, inside ``locked``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def trials_file(self) -> Path:
        return self.folder / "trials.jsonl"

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
            UserError: no run there, or inputs that differ; the message names the first difference.
        """
        if not (folder / "run.json").is_file():
            raise UserError(f"--resume: {folder} holds no run")
        recorded = json.loads((folder / "run.json").read_text(encoding="utf-8"))["inputs"]
        asked = json.loads(json.dumps(inputs))
        for key in [*recorded, *(asked.keys() - recorded.keys())]:
            if recorded.get(key) != asked.get(key):
                then, now = _short(recorded.get(key)), _short(asked.get(key))
                raise UserError(
                    f"--resume: {key} differs: the run in {folder} has {then}, asked is {now}"
                )
        return cls(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process.

        Raises:
            UserError: another process is working on it.
        """
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"{self.folder} is in use by another autocompress process"
                ) from error
            self._drop_partial_line()
            yield

    def note(self, **facts: Any) -> None:
        """Replace facts in ``run.json``."""
        path = self.folder / "run.json"
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | facts)

    def trials(self) -> list[Trial]:
        """All recorded trials, in order; a line cut short by a kill does not count."""
        text = self.trials_file.read_text(encoding="utf-8") if self.trials_file.is_file() else ""
        return [
            Trial.from_json(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()
        ]

    def append(self, trial: Trial) -> None:
        """Record a trial; on disk when this returns."""
        with self.trials_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _drop_partial_line(self) -> None:
        data = self.trials_file.read_bytes() if self.trials_file.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with self.trials_file.open("r+b") as file:
                file.truncate(len(whole))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
