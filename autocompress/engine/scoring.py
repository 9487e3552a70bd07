"""The third step of a trial: an artifact on every device, its timing and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.artifact import onnx_file, scheme_of
from autocompress.errors import NOT_FINITE, CandidateFailed, UserError
from autocompress.graphs.reading import graph_digest
from autocompress.hardware.agent import kept
from autocompress.interfaces import Device, Evidence, HeldOut, Question, Task
from autocompress.limits import Facts, Limits
from autocompress.pareto import LATENCY_AND_QUALITY
from autocompress.scores import Quality, Score, Timing
from autocompress.training.compute import Compute

Timings = dict[str, Timing]
"""By name of the device."""


@dataclass(frozen=True)
class Scorer:
    """Times and scores model folders.

    Args:
        devices: by name of their profiles, the first one first.
        budgets: likewise;
            the device's limit of memory is among them.
        baseline: folder of the uncut model in fp32.
        objectives: see ``pareto.OBJECTIVES``.
        differences: of validation quality, by device and the two trials: each is computed once.
        timed: trials and their timings, by graph: each is timed once.
    """

    task: Task
    devices: Mapping[str, Device]
    budgets: Mapping[str, Limits]
    baseline: Path
    objectives: tuple[str, ...] = LATENCY_AND_QUALITY
    differences: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    timed: dict[str, tuple[str, Timings]] = field(default_factory=dict)

    @property
    def baseline_bytes(self) -> int:
        """Of the uncut model's file."""
        return (self.baseline / "model.onnx").stat().st_size

    @property
    def refuses_early(self) -> bool:
        """Whether a model may be refused for its timing and its size alone, on every device."""
        limits = self.budgets.values()
        return all(one.of_speed or one.of_size or one.max_memory_mb is not None for one in limits)

    @property
    def models(self) -> Path:
        """Where all model folders are."""
        return self.baseline.parent

    def time_baseline(self) -> Timings:
        """Of the uncut model; raises as ``Device.time``."""
        return {
            name: device.time(self.baseline, [], final=False)[0]
            for name, device in self.devices.items()
        }

    def time(self, models: Sequence[Path]) -> list[Timings | CandidateFailed]:
        """Of each model on all devices; why, where one cannot run. One of the same graph as another
        one takes over its timings, unless other work disturbed them."""
        graphs = [f"{scheme_of(model)} {graph_digest(onnx_file(model))}" for model in models]
        pairs = list(zip(models, graphs, strict=True))
        new = [model for model, graph in pairs if graph not in self.timed]
        outcomes = dict(zip(new, self._timed_now(new) if new else (), strict=True))
        told: list[Timings | CandidateFailed] = []
        for model, graph in pairs:
            outcome = outcomes.get(model) or self._taken_over(model.name, graph)
            if model in outcomes and not isinstance(outcome, CandidateFailed):
                outcome = {name: replace(timing, graph=graph) for name, timing in outcome.items()}
                self.remember(model.name, outcome)
            told.append(outcome)
        return told

    def remember(self, trial: str, timings: Timings) -> None:
        """For other models of the same graph."""
        graphs = {timing.graph for timing in timings.values()}
        own = not any(timing.taken_from or timing.disturbed for timing in timings.values())
        if own and len(graphs) == 1 and (graph := graphs.pop()) is not None:
            self.timed.setdefault(graph, (trial, timings))

    def _taken_over(self, model: str, graph: str) -> Timings:
        trial, timings = self.timed[graph]
        taken_from = None if trial == model else trial
        return {name: replace(timing, taken_from=taken_from) for name, timing in timings.items()}

    def _timed_now(self, models: Sequence[Path]) -> list[Timings | CandidateFailed]:
        """In turn with the baseline."""
        try:
            by_device = {
                name: device.time(self.baseline, models, final=False)[1]
                for name, device in self.devices.items()
            }
        except CandidateFailed as error:
            if len(models) == 1:
                return [error]
            return [outcome for model in models for outcome in self._timed_now([model])]
        return [
            {name: timings[i] for name, timings in by_device.items()} for i in range(len(models))
        ]

    def evidence(self, model: Path, part: HeldOut) -> dict[str, Evidence]:
        """Of an artifact on each device, run at its profile's batch size.

        Raises:
            CandidateFailed: it cannot answer, or not with finite numbers.
        """
        known: dict[object, Evidence] = {}
        for device in self.devices.values():
            kind = device.answers_like, device.profile.batch_size
            if kind not in known:
                answers = device.predict(
                    model, self.task.questions(part, device.profile.batch_size)
                )
                known[kind] = _evidence(self.task, answers, part)
        return {
            name: known[device.answers_like, device.profile.batch_size]
            for name, device in self.devices.items()
        }

    def scores(
        self, model: Path, timings: Timings, baseline: Mapping[str, Score] | None
    ) -> dict[str, Score]:
        """Of an artifact on the validation split.

        Args:
            baseline: scores of the uncut model; None for that one itself.

        Raises:
            CandidateFailed: its answers cannot be scored.
        """
        evidence = self.evidence(model, self.task.validation)
        return {
            name: self._scored(
                timing,
                evidence[name],
                self.recorded(baseline[name]) if baseline else evidence[name],
            )
            for name, timing in timings.items()
        }

    def _scored(self, timing: Timing, evidence: Evidence, baseline: Evidence) -> Score:
        task, part = self.task, self.task.validation
        score, stderr = task.score(evidence, part)
        lost = task.drop(baseline, evidence, part)
        constant = task.constant(evidence)
        quality = Quality(score, *lost, validation_stderr=stderr, constant=constant)
        return Score(timing, quality, task.pack(evidence))

    def commonest(self, part: HeldOut) -> float | None:
        """What always answering the commonest class scores; None where there are no classes."""
        evidence = self.task.commonest(part)
        return None if evidence is None else self.task.score(evidence, part)[0]

    def refuse_ignorance(self, baseline: Mapping[str, Score]) -> None:
        """Raises:
        UserError: on no device does the uncut model better than the commonest class alone.
        """
        task, part = self.task, self.task.validation
        alone = task.commonest(part)
        evidence = [self.recorded(score) for score in baseline.values()]
        if alone is None or any(task.drop(alone, own, part)[0] < 0 for own in evidence):
            return
        least, reached = (
            f"{task.metric.name} {task.metric.text(task.score(own, part)[0])}"
            for own in (alone, evidence[0])
        )
        raise UserError(
            f"the model has {reached} on validation, no better than the commonest class alone "
            f"({least}): look at the order of its labels, train it with --finetune, or score it by "
            f"another --metric"
        )

    def recorded(self, score: Score) -> Evidence:
        """The evidence of a model that was scored on the validation split."""
        return self.task.unpack(score.evidence or "", len(self.task.validation.rows))

    def at_rungs(self, score: Score) -> str:
        """Packed evidence on the task's rung examples, of a model that was scored on the validation
        split."""
        return self.task.pack(self.recorded(score)[list(self.task.rung_examples)])

    def drop_in_training(self, one: str, other: str) -> tuple[float, float]:
        """By how much packed evidence on the task's rung examples is worse than another one, with
        the paired standard error.

        Raises:
            CandidateFailed: they cannot be scored.
        """
        examples = self.task.rung_examples
        one_evidence, other_evidence = (
            self.task.unpack(text, len(examples)) for text in (one, other)
        )
        return self.task.drop(one_evidence, other_evidence, self.task.validation.take(examples))

    def too_much(self, name: str, timing: Timing, weight_bytes: int | None) -> str | None:
        """What a model needs beyond a device's limits of latency, size and memory; None when it
        needs no more."""
        weight_bytes = timing.weight_bytes or weight_bytes
        facts = Facts(
            timing.latency_ms.value,
            timing.speedup,
            weight_bytes,
            self.baseline_bytes,
            timing.memory_bytes,
        )
        missed, limits = self.budgets[name].missed(facts), self.budgets[name].as_dict()
        if not missed:
            return None
        text = str(timing)
        if missed[0] == "size":
            size = (weight_bytes or 0) / 1e6
            held = "weights" if timing.weight_bytes else "a file"
            text = f"{held} of {size:.3g} MB, the limit is {limits['max_bytes'] / 1e6:g}"
        if missed[0] == "compression":
            text = f"{facts.compression:.2f}x smaller, the limit is {limits['min_compression']:g}x"
        if missed[0] == "memory":
            what = "memory at the peak" if timing.latency_ms.basis == "measured" else "weights"
            eaten = (timing.memory_bytes or 0) / 1e6
            text = f"{eaten:.0f} MB of {what}, the limit is {limits['max_memory_mb']:g}"
        return text + (f" on {name}" if len(self.devices) > 1 else "")

    def refused(self, timings: Timings, weight_bytes: int) -> str | None:
        """Why a model fits no device; None where it fits one."""
        misses = [
            miss
            for name, timing in timings.items()
            if (miss := self.too_much(name, timing, weight_bytes))
        ]
        return "; ".join(misses) if len(misses) == len(timings) else None


def _evidence(task: Task, answers: NDArray[np.floating[Any]], part: HeldOut) -> Evidence:
    if not np.isfinite(answers).all():
        raise CandidateFailed(NOT_FINITE)
    return task.evidence(answers, part)


def packed_in_training(task: Task, student: nn.Module, compute: Compute) -> str:
    """Packed evidence on the task's rung examples, of a model in training.

    Raises:
        CandidateFailed: its answers are not finite.
    """
    part = task.validation.take(task.rung_examples)
    questions = task.questions(part, task.batch_size)
    answers = [torch_answer(student, question, compute) for question in questions]
    return task.pack(_evidence(task, np.concatenate(answers), part))


def torch_answer(
    model: nn.Module, question: Question, compute: Compute
) -> NDArray[np.floating[Any]]:
    """What the model answers, in fast arithmetic: for comparisons among models in training."""
    inputs = {
        name: compute.moved(torch.from_numpy(array))
        for name, array in question.items()
        if name != "scored"
    }
    with torch.inference_mode():
        logits = compute.logits(model.eval(), inputs).cpu()
    answer: NDArray[np.floating[Any]] = kept(logits.numpy(), question)
    return answer
