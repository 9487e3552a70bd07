"""The first step of a trial: from a plan to a sealed student."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from autocompress.candidate import Candidate
from autocompress.cores import reserved
from autocompress.distillation import objectives
from autocompress.distillation.layer_maps import LAYER_MAPS
from autocompress.distillation.settings import weight_setting
from autocompress.files import keep_only
from autocompress.interfaces import (
    Batch,
    Family,
    Feeling,
    Lesson,
    Matching,
    Objective,
    Row,
    Task,
    Technique,
    TrainingSplit,
)
from autocompress.knowledge import fisher, gradient, magnitude
from autocompress.plan import Part, Plan
from autocompress.structure import Importance, Structure
from autocompress.student import Student, config_of, filled, student_id
from autocompress.techniques import TECHNIQUES, training_of
from autocompress.training.compute import CPU, Compute
from autocompress.training.outputs import Teacher, TransferSet
from autocompress.training.recovery import Recovery
from autocompress.training.repair import Calibration, repair

_CHECKED_STEPS = 32
"""Recovery steps between two looks at the time."""
_SAVED_S = 60.0
"""Seconds of training that a kill may cost."""
_IMPORTANCE_BATCHES = 16
_Measurement = TypeVar("_Measurement")


class Measured(dict[str, Importance]):
    """What is measured of the uncut model, each when it is first wanted, by its name.

    Importance of every head and neuron, by criterion, is from the first training examples.
    """

    def __init__(self, task: Task, model: nn.Module, family: Family, compute: Compute) -> None:
        super().__init__()
        self.task, self.model, self.family, self.compute = task, model, family, compute
        self._by_measure: dict[object, Any] = {}

    def __missing__(self, criterion: str) -> Importance:
        measures = {
            "fisher": lambda: fisher.measure(
                self.model, self.family, self._batches(), self.task.loss, self.compute
            ),
            "gradient": lambda: gradient.measure(
                self.model, self.family, self._batches(), self.task.loss, self.compute
            ),
            "magnitude": lambda: magnitude.measure(self.model, self.family),
        }
        with reserved():
            self[criterion] = measures[criterion]()
        return self[criterion]

    def once(self, measure: Callable[[nn.Module, Family], _Measurement]) -> _Measurement:
        """See ``Knowledge.measured``."""
        if measure not in self._by_measure:
            with reserved():
                self._by_measure[measure] = measure(self.model, self.family)
        measurement: _Measurement = self._by_measure[measure]
        return measurement

    def felt(self, measure: Feeling) -> Any:
        """See ``Knowledge.felt``."""
        if measure not in self._by_measure:
            with reserved():
                found = measure(self.model, self._batches(), self.task.loss, self.compute)
            self._by_measure[measure] = found
        return self._by_measure[measure]

    def _batches(self) -> list[tuple[Batch, NDArray[np.int64]]]:
        rows, labels, size = self.task.train.rows, self.task.train.labels, self.task.batch_size
        starts = range(0, min(len(rows), _IMPORTANCE_BATCHES * size), size)
        return [(self.task.batch(rows[i : i + size]), labels[i : i + size]) for i in starts]


@dataclass
class Making:
    """A student at work.

    Args:
        student: its trunk's folder; once it is sealed, its own.
        id: of the student.
        model: in training, with whatever modifiers are in it.
        recovery: None of a student that is not trained.
    """

    student: Student
    id: str
    model: nn.Module
    recovery: Recovery | None

    @property
    def done(self) -> int:
        """Recovery steps."""
        return self.student.steps if self.recovery is None else self.recovery.done


class Maker:
    """Makes students: begins one, advances it to a rung, seals it.

    Args:
        teacher: its model, and what it says of the text that students learn from.
        folder: where students have theirs.
        lineage: digest of the teacher's weights; the text is added.
        seed: of the search.

    Attributes:
        holding_cores: what it trains inside of.
    """

    holding_cores: Callable[[], AbstractContextManager[None]] = staticmethod(reserved)

    def __init__(
        self,
        teacher: Teacher,
        folder: Path,
        lineage: str,
        seed: int,
        techniques: Sequence[Technique] = TECHNIQUES,
        known_objectives: Mapping[str, Callable[[Lesson], Objective]] | None = None,
    ) -> None:
        self.teacher, self.folder, self.seed = teacher, folder, seed
        self.techniques = techniques
        self.objectives = known_objectives or objectives()
        config: Any = teacher.model.config
        self.full = Plan(config.model_type, teacher.structure)
        texts = [text.digest() for text in (teacher.transfer, teacher.cleaned) if text]
        self.lineage = " ".join([lineage, *texts])

    def id_of(self, plan: Plan, candidate: Candidate) -> str:
        """The name of the student that a candidate makes of a plan."""
        return student_id(self.lineage, plan, self._training(plan, candidate), self.seed)

    def trunk_of(self, plan: Plan, candidate: Candidate) -> str:
        """The name of what the student shares with those of more and fewer steps; its own where it
        is not trained."""
        training = self._training(plan, candidate)
        others = training.only([name for name in training.active if name != "recovery.steps"])
        if others == training:
            return self.id_of(plan, candidate)
        return student_id(f"{self.lineage} trunk", plan, others, self.seed)

    def read_for(self, plan: Plan, candidate: Candidate) -> set[str]:
        """Names of all students that making this one reads or writes."""
        untrained = self._untrained(plan, self._training(plan, candidate))
        return {self.id_of(plan, candidate), self.trunk_of(plan, candidate), untrained}

    def _untrained(self, plan: Plan, training: Candidate) -> str:
        begins = training.only([name for name in training.active if name.startswith("weights.")])
        return student_id(self.lineage, plan, begins, self.seed)

    @cached_property
    def _calibration(self) -> Calibration:
        return Calibration.of(self.teacher)

    def _training(self, plan: Plan, candidate: Candidate) -> Candidate:
        """What the weights follow from beside the plan: an uncut student has no start, and nothing
        to repair."""
        training = training_of(candidate, self.techniques)
        if plan.structure != self.full.structure:
            return training
        return training.only([name for name in training.active if not name.startswith("weights.")])

    def begin(self, plan: Plan, candidate: Candidate) -> Making:
        """The student as far as it has come: sealed, or as far as its trunk was trained; from its
        first weights where there is nothing yet.

        Raises:
            CandidateFailed: it cannot be built, or its training asks for what is not there.
        """
        name, trunk = self.id_of(plan, candidate), self.trunk_of(plan, candidate)
        try:
            student = (
                self._sealed(name) or self._found(trunk) or self._begun(trunk, plan, candidate)
            )
            return self._at_work(name, student, candidate)
        except SafetensorError:  # a damaged file
            return self._at_work(name, self._begun(trunk, plan, candidate), candidate)

    def sealed(self, plan: Plan, candidate: Candidate) -> Student:
        """The student, which is made; raises as ``Student.load``."""
        return Student.load(self.folder / self.id_of(plan, candidate), self.techniques)

    def _at_work(self, name: str, student: Student, candidate: Candidate) -> Making:
        model = student.model(self.techniques).to(self.teacher.compute.device)
        if student.sealed or not candidate.number("recovery.steps", 0):
            return Making(student, name, model, None)
        with self.holding_cores():
            recovery = self._recovery(student, model, candidate)
        return Making(student, name, model, recovery)

    def _found(self, name: str) -> Student | None:
        try:
            return Student.load(self.folder / name, self.techniques)
        except (OSError, ValueError, KeyError):
            return None

    def _sealed(self, name: str) -> Student | None:
        student = self._found(name)
        return student if student and student.sealed else None

    def _begun(self, trunk: str, plan: Plan, candidate: Candidate) -> Student:
        model = self._first(plan, self._training(plan, candidate))
        return Student(self.folder / trunk, plan, config_of(self.teacher.model)).begun(model)

    def _first(self, plan: Plan, training: Candidate) -> nn.Module:
        """The student before any training: of the one that is to have none, where there is such."""
        teacher = self.teacher
        untrained = self._sealed(self._untrained(plan, training))
        if untrained is not None:
            return untrained.model(self.techniques)
        start = training.text("weights.start", "copied")
        model = teacher.family.cut(teacher.model, plan.structure, start)
        if training.get("weights.repair", False):
            with self.holding_cores():
                repair(model, plan.structure, self._calibration)
        return filled(model, teacher.family, plan, self.techniques).cpu()

    def _recovery(self, student: Student, model: nn.Module, candidate: Candidate) -> Recovery:
        seeds = (self.seed, int(student.id, 16))
        structure = student.plan.structure
        recovery = recovery_of(
            model,
            structure,
            candidate,
            self.teacher,
            seeds,
            self.techniques,
            self.objectives,
            student.plan.parts,
        )
        if 0 < student.steps <= recovery.shared:
            recovery.restore(student.state())
        return recovery

    def train(self, making: Making, steps: int, goes_on: Callable[[float], bool]) -> bool:
        """Train to the end.

        Args:
            steps: in all.
            goes_on: asked after some steps whether there is the time for so many seconds more.

        Returns:
            Whether it came there; else its trunk is written as far as it came.

        Raises:
            CandidateFailed: the loss is not finite.
        """
        recovery = making.recovery
        if recovery is None:
            return True
        begun, first, saved = time.monotonic(), recovery.done, time.monotonic()
        while recovery.done < steps:
            stop = min(recovery.done + _CHECKED_STEPS, steps)
            if recovery.done < recovery.shared:
                stop = min(stop, recovery.shared)
            with self.holding_cores():
                recovery.advance(stop)
            now = time.monotonic()
            step_s = (now - begun) / (recovery.done - first)
            in_time = goes_on(step_s * (steps - recovery.done))
            at_its_end = recovery.done == recovery.shared
            if making.student.steps < recovery.done <= recovery.shared and (
                at_its_end or not in_time or now - saved > _SAVED_S
            ):
                making.student = making.student.paused(recovery.done, recovery.state())
                saved = now
            if not in_time:
                return False
        return True

    def seal(self, making: Making, answers: str | None = None) -> Student:
        """Nothing is trained any more; what modifiers learned joins the plan.

        Args:
            answers: packed evidence of what it answers.
        """
        student = making.student
        if student.sealed:
            return student
        learned = making.recovery.finish() if making.recovery else []
        plan = student.plan
        for part in learned:
            plan = plan.with_part(part)
        folder, done = self.folder / making.id, making.done
        making.student = student.as_sealed(folder, making.model.cpu(), plan, done, answers)
        return making.student

    def keep(self, ids: Collection[str | None], at_work: Collection[str] = ()) -> None:
        """Delete all students but these; raises as ``keep_only``.

        Args:
            at_work: names of more of them, that some process may be writing.
        """
        keep_only(self.folder, ids, "[0-9a-f]{16}", at_work)


def recovery_of(
    model: nn.Module,
    structure: Structure,
    candidate: Candidate,
    teacher: Teacher,
    seeds: tuple[int, int],
    techniques: Sequence[Technique] = TECHNIQUES,
    known_objectives: Mapping[str, Callable[[Lesson], Objective]] | None = None,
    parts: Sequence[Part] = (),
) -> Recovery:
    """The training of one student by its candidate's settings.

    Args:
        model: the student, on the teacher's device; modifiers are installed in it.
        seeds: of the search, which batches are drawn by; and of the student, which its objectives
            draw by.
        parts: of its plan.
    """
    lesson = replace(_lesson(model, structure, candidate, teacher, seeds[1]), parts=parts)
    modifiers = [modifier for t in techniques if (modifier := t.modifier(lesson)) is not None]
    chosen, known = candidate.get("recovery.objectives", ()), known_objectives or objectives()
    assert isinstance(chosen, tuple)
    pairs = [
        (known[str(name)](lesson), candidate.number(weight_setting(str(name)), 1))
        for name in chosen
    ]
    return Recovery(lesson, teacher, pairs, modifiers, seeds[0])


def _lesson(
    model: nn.Module, structure: Structure, candidate: Candidate, teacher: Teacher, seed: int
) -> Lesson:
    family, layers = teacher.family, structure.layers
    layer_map = LAYER_MAPS[candidate.text("recovery.layer_map", "uniform")]
    steps = int(candidate.number("recovery.steps"))
    label_phase = round(candidate.number("recovery.label_phase", 0) * steps)
    widths = family.hidden_size(model), family.hidden_size(teacher.model)
    matching = Matching(
        tuple(layer_map(len(layers), len(teacher.structure.layers))),
        layers[-1].heads,
        family.head_size(teacher.model),
        family.causal,
        widths if widths[0] != widths[1] else None,
    )
    random = torch.Generator().manual_seed(seed % 2**63)
    taught = max(1, steps - label_phase)
    return Lesson(candidate, matching, model, teacher.model, random, taught, teacher.compute)


def teacher_of(
    task: Task, model: nn.Module, family: Family, scratch: Path, compute: Compute = CPU
) -> Teacher:
    """The teacher of a task's own text."""

    def learning(text: TrainingSplit, unlabelled: Sequence[Row] = ()) -> TransferSet:
        return TransferSet(
            [*text.rows, *unlabelled],
            text.labels,
            task.batch,
            task.loss,
            task.batch_size,
            by_token=task.head.generates,
        )

    cleaned = None if task.cleaned is None else learning(task.cleaned)
    transfer = learning(task.train, task.unlabeled)
    return Teacher(model, family, transfer, scratch, cleaned, compute)
