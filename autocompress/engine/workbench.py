"""Everything a search needs to try one candidate: the teacher with its outputs, importance,
baseline and devices."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.candidate import Candidate
from autocompress.cores import reserved
from autocompress.errors import CandidateFailed, UserError
from autocompress.graphs.export import export_model
from autocompress.hardware.agent import kept
from autocompress.interfaces import Batch, Device, Evidence, Family, HeldOut, Question, Task
from autocompress.journal import Run, Trial
from autocompress.knowledge import fisher, magnitude
from autocompress.pareto import Budget
from autocompress.scores import Quality, Score, Timing
from autocompress.structure import Importance, Structure
from autocompress.techniques import SETTINGS
from autocompress.training.recovery import Recovery, Teacher, TransferSet
from autocompress.training.steps import fast_math

FIRST_RUNG = 32
"""Recovery steps after which candidates are compared: enough to rank them, 0 and 16 are not (see
README)."""
_RUNG_FACTOR = 6
_IMPORTANCE_BATCHES = 16
_CALIBRATION_BATCHES = 4

Promote = Callable[[int, int, tuple[float, float], Mapping[str, Timing], float], str | None]
"""(recovery steps done, and in all, drop on validation examples and its standard error, timings by
device, seconds that the remaining steps take) -> None to go on, or the reason to stop; may raise
``OutOfTime``."""


class OutOfTime(Exception):
    """The trial cannot end within the search's time; it leaves no trace."""


def rungs(steps: int) -> list[int]:
    """Recovery steps at which a candidate of so many steps may be stopped: 32, 192, 1152, ..."""
    found = []
    rung = FIRST_RUNG
    while rung < steps:
        found.append(rung)
        rung *= _RUNG_FACTOR
    return found


def torch_answer(model: nn.Module, question: Question) -> NDArray[np.floating[Any]]:
    """What the model answers, in fast arithmetic: for comparisons among models in training."""
    inputs = {name: torch.from_numpy(array) for name, array in question.items() if name != "scored"}
    with torch.inference_mode(), fast_math():
        logits = model.eval()(**inputs).logits.float()
    answer: NDArray[np.floating[Any]] = kept(logits.numpy(), question)
    return answer


class _Importance(dict[str, Importance]):
    """Scores of every head and neuron, by criterion; from the first training examples, when they
    are first wanted."""

    def __init__(self, task: Task[Any], model: nn.Module, family: Family) -> None:
        super().__init__()
        self.task, self.model, self.family = task, model, family

    def __missing__(self, criterion: str) -> Importance:
        measures = {
            "fisher": lambda: fisher.measure(self.model, self.family, self._batches()),
            "magnitude": lambda: magnitude.measure(self.model, self.family),
        }
        with reserved():
            self[criterion] = measures[criterion]()
        return self[criterion]

    def _batches(self) -> list[tuple[Batch, NDArray[np.int64]]]:
        rows, labels, size = self.task.train.rows, self.task.train.labels, self.task.batch_size
        starts = range(0, min(len(rows), _IMPORTANCE_BATCHES * size), size)
        return [(self.task.batch(rows[i : i + size]), labels[i : i + size]) for i in starts]


@dataclass
class Workbench:
    """See ``prepare``.

    Args:
        devices: by name of their profiles, the first one first.
        budgets: likewise.
    """

    run: Run
    task: Task[Any]
    model: nn.Module
    family: Family
    full: Structure
    importance: dict[str, Importance]
    teacher: Teacher
    tokenizer_files: Path
    devices: Mapping[str, Device]
    budgets: Mapping[str, Budget]
    seed: int

    @classmethod
    def prepare(
        cls,
        run: Run,
        task: Task[Any],
        model: nn.Module,
        family: Family,
        tokenizer_files: Path,
        devices: Mapping[str, Device],
        budgets: Mapping[str, Budget],
        seed: int,
    ) -> Workbench:
        """Put together what trials need; nothing is computed yet."""
        transfer = TransferSet(
            [*task.train.rows, *task.unlabeled], task.train.labels, task.batch, task.batch_size
        )
        cleaned = (
            TransferSet(task.cleaned.rows, task.cleaned.labels, task.batch, task.batch_size)
            if task.cleaned
            else None
        )
        teacher = Teacher(model, family, transfer, run.folder / "scratch", cleaned)
        full, importance = family.structure(model), _Importance(task, model, family)
        return cls(
            run,
            task,
            model,
            family,
            full,
            importance,
            teacher,
            tokenizer_files,
            devices,
            budgets,
            seed,
        )

    @property
    def models(self) -> Path:
        return self.run.folder / "models"

    @property
    def baseline_folder(self) -> Path:
        return self.models / "t000"

    def room(self) -> int:
        """How many more models the disk has room for, at most the size of the uncut one each.

        Raises:
            OSError: for none.
        """
        found = shutil.disk_usage(self.run.folder).free // (
            4 * (self.baseline_folder / "model.onnx").stat().st_size
        )
        if not found:
            raise OSError(errno.ENOSPC, "no room for another model")
        return found

    def baseline(self) -> Trial:
        """Trial 0: the teacher itself, exported in fp32."""
        started = time.monotonic()
        candidate = SETTINGS.candidate({}).without("recovery")
        parity = self.export(self.model, self.full, candidate, self.baseline_folder)
        timings = {
            name: device.time(self.baseline_folder, [], final=False)[0]
            for name, device in self.devices.items()
        }
        evidence = self.evidence(self.baseline_folder, self.task.validation)
        scores = {
            name: self._scored(timing, evidence[name], evidence[name])
            for name, timing in timings.items()
        }
        return Trial(
            0,
            candidate.as_dict(),
            "complete",
            self.full.sizes(),
            rungs=((0, 0.0),),
            scores=scores,
            weight_bytes=(self.baseline_folder / "model.onnx").stat().st_size,
            parity=parity,
            seconds=time.monotonic() - started,
            path="models/t000",
        )

    def evaluate(
        self,
        found: Trial,
        candidate: Candidate,
        structure: Structure,
        baseline: Trial,
        promote: Promote,
    ) -> Trial:
        """Cut, time, recover, export, score. Failures come back as failed trials.

        The candidate is timed before it is trained, so one that misses a latency limit costs
        seconds.

        Args:
            found: what is known of the trial.
            promote: decides after each rung.

        Raises:
            OSError: the disk is full.
            OutOfTime: ``promote`` said so.
        """
        started = time.monotonic()
        self.room()
        try:
            found = self._try(found, candidate, structure, baseline, promote)
        except (CandidateFailed, UserError) as error:
            found = replace(found, state="failed", reason=str(error))
        except MemoryError:
            found = replace(found, state="failed", reason="out of memory")
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            found = replace(
                found, state="failed", reason=f"out of memory: {str(error).splitlines()[0]}"
            )
        if found.state != "complete":
            shutil.rmtree(self.models / found.id, ignore_errors=True)
        return replace(found, seconds=time.monotonic() - started)

    def _try(
        self,
        found: Trial,
        candidate: Candidate,
        structure: Structure,
        baseline: Trial,
        promote: Promote,
    ) -> Trial:
        folder = self.models / found.id
        student = self.family.cut(self.model, structure, candidate.text("weights.start", "copied"))
        steps = int(candidate.number("recovery.steps", 0))

        def export_and_time() -> tuple[Trial, dict[str, Timing]]:
            parity = self.export(student, structure, candidate, folder)
            timings = {
                name: device.time(self.baseline_folder, [folder], final=False)[1][0]
                for name, device in self.devices.items()
            }
            scores = {name: Score(timing) for name, timing in timings.items()}
            size = (folder / "model.onnx").stat().st_size
            return replace(found, parity=parity, scores=scores, weight_bytes=size), timings

        found, timings = export_and_time()
        misses = [miss for name, timing in timings.items() if (miss := self.too_much(name, timing))]
        if len(misses) == len(timings):
            return replace(found, state="over-budget", reason="; ".join(misses))
        if steps:
            with reserved():
                recovery = Recovery(
                    student, structure, candidate, self.teacher, (self.seed, found.number)
                )
            for rung in rungs(steps):
                before, begun = recovery.done, time.monotonic()
                with reserved():
                    recovery.advance(rung)
                remaining_s = (time.monotonic() - begun) / (rung - before) * (steps - rung)
                lost = self._drop_in_training(student, next(iter(baseline.scores.values())))
                found = replace(found, rungs=(*found.rungs, (rung, lost[0])))
                reason = promote(rung, steps, lost, timings, remaining_s)
                if reason is not None:
                    return replace(found, state="stopped", reason=reason)
            with reserved():
                recovery.advance(steps)
            found, timings = export_and_time()
        evidence = self.evidence(folder, self.task.validation)
        scores = {
            name: self._scored(timing, evidence[name], self.recorded(baseline.scores[name]))
            for name, timing in timings.items()
        }
        worst = max(score.quality.drop_validation for score in scores.values() if score.quality)
        return replace(
            found,
            state="complete",
            scores=scores,
            path=f"models/{found.id}",
            rungs=(*found.rungs, (steps, worst)),
        )

    def _scored(self, timing: Timing, evidence: Evidence, baseline: Evidence) -> Score:
        task, part = self.task, self.task.validation
        quality = Quality(task.score(evidence, part)[0], *task.drop(baseline, evidence, part))
        return Score(timing, quality, task.pack(evidence))

    def recorded(self, score: Score) -> Evidence:
        """The evidence of a model that was scored on the validation split."""
        return self.task.unpack(score.evidence or "", len(self.task.validation.rows))

    def too_much(self, name: str, timing: Timing) -> str | None:
        """What a model needs beyond a device's limits of latency and memory; None when it needs no
        more."""
        where = f" on {name}" if len(self.devices) > 1 else ""
        if not self.budgets[name].admits_speed(timing.latency_ms.value, timing.speedup):
            return f"{timing}{where}"
        if self.memory_excess(name, timing) > 0:
            limit, eaten = (
                self.devices[name].profile.memory_limit_mb,
                (timing.memory_bytes or 0) / 1e6,
            )
            what = "memory at the peak" if timing.latency_ms.basis == "measured" else "weights"
            return f"{eaten:.0f} MB of {what}, the limit is {limit:g}{where}"
        return None

    def memory_excess(self, name: str, timing: Timing) -> float:
        """By how much a model misses the device's limit of memory, as a share of it; zero when it
        holds."""
        limit = self.devices[name].profile.memory_limit_mb
        return (
            0.0
            if limit is None or timing.memory_bytes is None
            else max(0.0, timing.memory_bytes / (limit * 1e6) - 1)
        )

    def evidence(self, model: Path, part: HeldOut) -> dict[str, Evidence]:
        """Of an artifact on each device, run at its profile's batch size."""
        known: dict[object, Evidence] = {}
        for device in self.devices.values():
            kind = device.answers_like, device.profile.batch_size
            if kind not in known:
                answers = device.predict(
                    model, self.task.questions(part, device.profile.batch_size)
                )
                known[kind] = self.task.evidence(answers, part)
        return {
            name: known[device.answers_like, device.profile.batch_size]
            for name, device in self.devices.items()
        }

    def _drop_in_training(self, student: nn.Module, baseline: Score) -> tuple[float, float]:
        """On the task's rung examples, with its standard error."""
        examples = self.task.rung_examples
        part = self.task.validation.take(examples)
        answers = [
            torch_answer(student, question)
            for question in self.task.questions(part, self.task.batch_size)
        ]
        evidence = self.task.evidence(np.concatenate(answers), part)
        return self.task.drop(self.recorded(baseline)[list(examples)], evidence, part)

    def export(
        self, model: nn.Module, structure: Structure, candidate: Candidate, target: Path
    ) -> dict[str, float]:
        """Write a model folder; see ``export_model``."""
        size, rows = self.task.batch_size, self.task.train.rows
        starts = range(0, min(len(rows), _CALIBRATION_BATCHES * size), size)
        calibration = [self.task.batch(rows[i : i + size]) for i in starts]
        return export_model(model, structure, candidate, target, calibration, self.tokenizer_files)
