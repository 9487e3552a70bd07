"""Everything a search needs to try one candidate: the teacher with its outputs, importance, baseline and timer."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autocompress.candidate import Candidate
from autocompress.errors import CandidateFailed, UserError
from autocompress.export import export_model
from autocompress.importance import fisher, magnitude
from autocompress.interfaces import Family, Timer
from autocompress.journal import Run, Trial
from autocompress.onnx_runtime import predict
from autocompress.pareto import Budget, Quality
from autocompress.recovery import Recovery, Teacher, TransferSet
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
Promote = Callable[[int, float, float, float], str | None]
"""(recovery steps done, validation quality, speedup, seconds that the remaining steps take) -> None to go on, or the reason
to stop; may raise ``OutOfTime``."""


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
    """See ``prepare``."""

    run: Run
    task: TextClassification
    model: nn.Module
    family: Family
    full: Structure
    importance: dict[str, Importance]
    teacher: Teacher
    tokenizer_files: Path
    timer: Timer
    batch_size: int
    budget: Budget
    seed: int

    @classmethod
    def prepare(
        cls,
        run: Run,
        task: TextClassification,
        model: nn.Module,
        family: Family,
        tokenizer_files: Path,
        timer: Timer,
        batch_size: int,
        budget: Budget,
        seed: int,
    ) -> Workbench:
        """Score the importance of every head and neuron, from the first training examples.

        Args:
            batch_size: at which artifacts are scored, the profile's.
        """
        rows, labels = task.train.rows[:_IMPORTANCE_EXAMPLES], task.train.labels[:_IMPORTANCE_EXAMPLES]
        starts = range(0, len(rows), 32)
        batches = [(task.batch(rows[i : i + 32]), labels[i : i + 32]) for i in starts]
        importance = {"fisher": fisher.measure(model, family, batches), "magnitude": magnitude.measure(model, family)}
        transfer = TransferSet([*task.train.rows, *task.unlabeled], task.train.labels, task.batch)
        teacher = Teacher(model, family, transfer, run.folder / "scratch")
        return cls(
            run,
            task,
            model,
            family,
            family.structure(model),
            importance,
            teacher,
            tokenizer_files,
            timer,
            batch_size,
            budget,
            seed,
        )

    @property
    def models(self) -> Path:
        return self.run.folder / "models"

    @property
    def baseline_file(self) -> Path:
        return self.models / "t000" / "model.onnx"

    def baseline(self) -> Trial:
        """Trial 0: the teacher itself, exported in fp32."""
        started = time.monotonic()
        candidate = SETTINGS.candidate({}).without("recovery")
        parity = self._export(self.model, self.full, candidate, 0)
        latency, _ = self.timer(self.baseline_file, [self.baseline_file], final=False)
        answers = self.answers(self.baseline_file, self.task.validation)
        quality = Quality(float(answers.mean()), 0.0, 0.0)
        return Trial(
            0,
            candidate.as_dict(),
            "complete",
            self.full.sizes(),
            None,
            ((0, quality.validation),),
            quality,
            pack(answers),
            latency,
            1.0,
            (1.0, 1.0),
            self.baseline_file.stat().st_size,
            parity,
            time.monotonic() - started,
            "models/t000",
        )

    def evaluate(self, number: int, candidate: Candidate, structure: Structure, baseline: Bits, promote: Promote) -> Trial:
        """Cut, time, recover, export, score. Failures come back as failed trials.

        The candidate is timed before it is trained, so one that misses a latency limit costs seconds.

        Args:
            baseline: which validation examples the baseline answers correctly.
            promote: decides after each rung.

        Raises:
            OSError: the disk is full.
            OutOfTime: ``promote`` said so.
        """
        started = time.monotonic()
        found = Trial(number, candidate.as_dict(), "failed", structure.sizes())
        if shutil.disk_usage(self.run.folder).free < 4 * self.baseline_file.stat().st_size:
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

    def _try(self, found: Trial, candidate: Candidate, structure: Structure, baseline: Bits, promote: Promote) -> Trial:
        number, file = found.number, self.models / found.id / "model.onnx"
        student = self.family.cut(self.model, structure)
        steps = int(candidate.number("recovery.steps", 0))

        def export_and_time() -> Trial:
            parity = self._export(student, structure, candidate, number)
            [timing] = self.timer(self.baseline_file, [file], final=False)[1]
            return replace(
                found,
                parity=parity,
                latency_ms=timing.latency_ms,
                speedup=timing.speedup,
                speedup_ci95=timing.speedup_ci95,
                weight_bytes=file.stat().st_size,
            )

        found = export_and_time()
        latency, speedup = found.latency_ms, found.speedup
        assert latency is not None and speedup is not None
        if not self.budget.admits_speed(latency.median, speedup):
            return replace(found, state="over-budget", reason=f"{latency.median:.3g} ms, {speedup:.2f}x")
        if steps:
            recovery = Recovery(student, structure, candidate, self.teacher, (self.seed, number))
            for rung in rungs(steps):
                before, begun = recovery.done, time.monotonic()
                recovery.advance(rung)
                remaining_s = (time.monotonic() - begun) / (rung - before) * (steps - rung)
                quality = float(self._torch_answers(student).mean())
                found = replace(found, rungs=(*found.rungs, (rung, quality)))
                reason = promote(rung, quality, speedup, remaining_s)
                if reason is not None:
                    return replace(found, state="stopped", reason=reason)
            recovery.advance(steps)
            found = export_and_time()
        answers = self.answers(file, self.task.validation)
        quality_found = Quality(float(answers.mean()), *drop(baseline, answers))
        return replace(
            found,
            state="complete",
            quality=quality_found,
            correct=pack(answers),
            path=f"models/{found.id}",
            rungs=(*found.rungs, (steps, quality_found.validation)),
        )

    def answers(self, file: Path, split: Split) -> Bits:
        """Which examples an artifact answers correctly, run at the profile's batch size."""
        batches = [dict(batch.inputs) for batch in self.task.batches(split.rows, self.batch_size)]
        return correct(predict(file, batches), split.labels)

    def _torch_answers(self, student: nn.Module) -> Bits:
        split = self.task.validation
        answers = np.zeros(len(split.rows), bool)
        for where, logits, _ in forward_all(student, self.family, split.rows, self.task.batch):
            answers[where] = correct(logits.numpy(), split.labels[where])
        return answers

    def _export(self, model: nn.Module, structure: Structure, candidate: Candidate, number: int) -> dict[str, float]:
        calibration = self.task.batches(self.task.train.rows[:_CALIBRATION_EXAMPLES], 32)
        return export_model(model, structure, candidate, self.models / f"t{number:03}", calibration, self.tokenizer_files)
