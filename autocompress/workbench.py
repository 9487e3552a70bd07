"""Everything a search needs to try one candidate: the teacher with its outputs, importance, baseline and devices."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autocompress.candidate import Candidate
from autocompress.errors import CandidateFailed, UserError
from autocompress.export import export_model
from autocompress.hardware.cores import reserved
from autocompress.importance import fisher, magnitude
from autocompress.interfaces import Device, Family
from autocompress.journal import Run, Trial
from autocompress.pareto import Budget
from autocompress.recovery import Recovery, Teacher, TransferSet
from autocompress.scores import Quality, Score, Timing
from autocompress.structure import Importance, Structure
from autocompress.tasks.text_classification import Split, TextClassification, correct
from autocompress.techniques import SETTINGS
from autocompress.training import forward_all

FIRST_RUNG = 32
"""Recovery steps after which candidates are compared: enough to rank them, 0 and 16 are not (see README)."""
_RUNG_FACTOR = 6
_IMPORTANCE_EXAMPLES = 512
_CALIBRATION_EXAMPLES = 128

Bits = NDArray[np.bool_]
Promote = Callable[[int, float, Mapping[str, Timing], float], str | None]
"""(recovery steps done, validation quality, timings by device, seconds that the remaining steps take) -> None to go on, or the
reason to stop; may raise ``OutOfTime``."""


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


def pack(answers: Bits) -> str:
    """Correctness per example as hex."""
    return np.packbits(answers).tobytes().hex()


def unpack(text: str, count: int) -> Bits:
    """The inverse of ``pack`` for so many examples."""
    bits: Bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)
    return bits


def drop(baseline: Bits, answers: Bits) -> tuple[float, float]:
    """Accuracy lost against the baseline and its paired standard error, both in points of a hundred."""
    differences = baseline.astype(float) - answers
    return 100 * float(differences.mean()), 100 * float(differences.std(ddof=1)) / len(differences) ** 0.5


@dataclass
class Workbench:
    """See ``prepare``.

    Args:
        devices: by name of their profiles, the first one first.
        budgets: likewise.
    """

    run: Run
    task: TextClassification
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
        task: TextClassification,
        model: nn.Module,
        family: Family,
        tokenizer_files: Path,
        devices: Mapping[str, Device],
        budgets: Mapping[str, Budget],
        seed: int,
    ) -> Workbench:
        """Score the importance of every head and neuron, from the first training examples."""
        rows, labels = task.train.rows[:_IMPORTANCE_EXAMPLES], task.train.labels[:_IMPORTANCE_EXAMPLES]
        starts = range(0, len(rows), 32)
        batches = [(task.batch(rows[i : i + 32]), labels[i : i + 32]) for i in starts]
        importance = {"fisher": fisher.measure(model, family, batches), "magnitude": magnitude.measure(model, family)}
        transfer = TransferSet([*task.train.rows, *task.unlabeled], task.train.labels, task.batch)
        teacher = Teacher(model, family, transfer, run.folder / "scratch")
        full = family.structure(model)
        return cls(run, task, model, family, full, importance, teacher, tokenizer_files, devices, budgets, seed)

    @property
    def models(self) -> Path:
        return self.run.folder / "models"

    @property
    def baseline_folder(self) -> Path:
        return self.models / "t000"

    def baseline(self) -> Trial:
        """Trial 0: the teacher itself, exported in fp32."""
        started = time.monotonic()
        candidate = SETTINGS.candidate({}).without("recovery")
        parity = self.export(self.model, self.full, candidate, self.baseline_folder)
        timings = {name: device.time(self.baseline_folder, [], final=False)[0] for name, device in self.devices.items()}
        answers = self.answers(self.baseline_folder, self.task.validation)
        scores = {
            name: Score(timing, Quality(float(answers[name].mean()), 0.0, 0.0), pack(answers[name]))
            for name, timing in timings.items()
        }
        return Trial(
            0,
            candidate.as_dict(),
            "complete",
            self.full.sizes(),
            rungs=((0, min(float(found.mean()) for found in answers.values())),),
            scores=scores,
            weight_bytes=(self.baseline_folder / "model.onnx").stat().st_size,
            parity=parity,
            seconds=time.monotonic() - started,
            path="models/t000",
        )

    def evaluate(self, found: Trial, candidate: Candidate, structure: Structure, baseline: Trial, promote: Promote) -> Trial:
        """Cut, time, recover, export, score. Failures come back as failed trials.

        The candidate is timed before it is trained, so one that misses a latency limit costs seconds.

        Args:
            found: what is known of the trial.
            promote: decides after each rung.

        Raises:
            OSError: the disk is full.
            OutOfTime: ``promote`` said so.
        """
        started = time.monotonic()
        if shutil.disk_usage(self.run.folder).free < 4 * (self.baseline_folder / "model.onnx").stat().st_size:
            raise OSError(errno.ENOSPC, "no room for another model")
        try:
            found = self._try(found, candidate, structure, baseline, promote)
        except (CandidateFailed, UserError) as error:
            found = replace(found, state="failed", reason=str(error))
        except MemoryError:
            found = replace(found, state="failed", reason="out of memory")
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            found = replace(found, state="failed", reason=f"out of memory: {str(error).splitlines()[0]}")
        if found.state != "complete":
            shutil.rmtree(self.models / found.id, ignore_errors=True)
        return replace(found, seconds=time.monotonic() - started)

    def _try(self, found: Trial, candidate: Candidate, structure: Structure, baseline: Trial, promote: Promote) -> Trial:
        folder = self.models / found.id
        student = self.family.cut(self.model, structure, candidate.text("weights.start", "copied"))
        steps = int(candidate.number("recovery.steps", 0))

        def export_and_time() -> tuple[Trial, dict[str, Timing]]:
            parity = self.export(student, structure, candidate, folder)
            timings = {
                name: device.time(self.baseline_folder, [folder], final=False)[1][0] for name, device in self.devices.items()
            }
            scores = {name: Score(timing) for name, timing in timings.items()}
            size = (folder / "model.onnx").stat().st_size
            return replace(found, parity=parity, scores=scores, weight_bytes=size), timings

        found, timings = export_and_time()
        misses = [miss for name, timing in timings.items() if (miss := self.too_much(name, timing))]
        if len(misses) == len(timings):
            return replace(found, state="over-budget", reason="; ".join(misses))
        if steps:
            recovery = Recovery(student, structure, candidate, self.teacher, (self.seed, found.number))
            for rung in rungs(steps):
                before, begun = recovery.done, time.monotonic()
                with reserved():
                    recovery.advance(rung)
                remaining_s = (time.monotonic() - begun) / (rung - before) * (steps - rung)
                quality = float(self._torch_answers(student).mean())
                found = replace(found, rungs=(*found.rungs, (rung, quality)))
                reason = promote(rung, quality, timings, remaining_s)
                if reason is not None:
                    return replace(found, state="stopped", reason=reason)
            with reserved():
                recovery.advance(steps)
            found, timings = export_and_time()
        answers = self.answers(folder, self.task.validation)
        scores = {name: self._scored(timing, answers[name], baseline.scores[name]) for name, timing in timings.items()}
        worst = min(float(bits.mean()) for bits in answers.values())
        return replace(found, state="complete", scores=scores, path=f"models/{found.id}", rungs=(*found.rungs, (steps, worst)))

    def _scored(self, timing: Timing, answers: Bits, baseline: Score) -> Score:
        reference = unpack(baseline.correct or "", len(answers))
        return Score(timing, Quality(float(answers.mean()), *drop(reference, answers)), pack(answers))

    def too_much(self, name: str, timing: Timing) -> str | None:
        """What a model needs beyond a device's limits of latency and memory; None when it needs no more."""
        where = f" on {name}" if len(self.devices) > 1 else ""
        if not self.budgets[name].admits_speed(timing.latency_ms.value, timing.speedup):
            return f"{timing}{where}"
        if self.memory_excess(name, timing) > 0:
            limit, eaten = self.devices[name].profile.memory_limit_mb, (timing.memory_bytes or 0) / 1e6
            return f"{timing.latency_ms.about}{eaten:.0f} MB of memory at the peak, the limit is {limit:g}{where}"
        return None

    def memory_excess(self, name: str, timing: Timing) -> float:
        """By how much a model misses the device's limit of memory, as a share of it; zero when it holds."""
        limit = self.devices[name].profile.memory_limit_mb
        return 0.0 if limit is None or timing.memory_bytes is None else max(0.0, timing.memory_bytes / (limit * 1e6) - 1)

    def answers(self, model: Path, split: Split) -> dict[str, Bits]:
        """Which examples an artifact answers correctly on each device, run at its profile's batch size."""
        known: dict[object, Bits] = {}
        for device in self.devices.values():
            kind = device.answers_like, device.profile.batch_size
            if kind not in known:
                batches = [dict(batch.inputs) for batch in self.task.batches(split.rows, device.profile.batch_size)]
                known[kind] = correct(device.predict(model, batches), split.labels)
        return {name: known[device.answers_like, device.profile.batch_size] for name, device in self.devices.items()}

    def _torch_answers(self, student: nn.Module) -> Bits:
        split = self.task.validation
        answers = np.zeros(len(split.rows), bool)
        for where, logits, _ in forward_all(student, self.family, split.rows, self.task.batch):
            answers[where] = correct(logits.numpy(), split.labels[where])
        return answers

    def export(self, model: nn.Module, structure: Structure, candidate: Candidate, target: Path) -> dict[str, float]:
        """Write a model folder; see ``export_model``."""
        calibration = self.task.batches(self.task.train.rows[:_CALIBRATION_EXAMPLES], 32)
        return export_model(model, structure, candidate, target, calibration, self.tokenizer_files)
