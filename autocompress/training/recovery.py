"""The short training run that repairs a cut."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autocompress.candidate import Candidate
from autocompress.distillation import objectives
from autocompress.distillation.layer_maps import LAYER_MAPS
from autocompress.distillation.settings import CLEANED, weight_setting
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Batch, Family, Features, Lesson, Matching, Row
from autocompress.structure import Structure
from autocompress.training.steps import (
    BATCH_SIZE,
    Optimizer,
    fast_math,
    forward_all,
    schedule,
    tensors,
    watch,
)


@dataclass(frozen=True)
class TransferSet:
    """What students learn from: labelled rows first, then unlabelled ones.

    Args:
        labels: of the labelled rows, see ``TrainingSplit``.
        batch: turns rows into a ``Batch``.
        batch_size: rows of a step.
    """

    rows: Sequence[Row]
    labels: NDArray[np.int64]
    batch: Callable[[Sequence[Row]], Batch]
    batch_size: int = BATCH_SIZE

    @property
    def by_token(self) -> bool:
        """Whether each token has an answer, so that a teacher's are too many to keep."""
        return self.labels.ndim > 1

    def answers(self, indices: Sequence[int]) -> Tensor:
        """The labels of these rows, one after the other; -100 for an unlabelled row."""
        found = np.full((len(indices), *self.labels.shape[1:]), -100)
        labelled = [i for i, index in enumerate(indices) if index < len(self.labels)]
        found[labelled] = self.labels[[indices[i] for i in labelled]]
        return torch.from_numpy(found).flatten()


class Teacher:
    """The uncut model, and its outputs on the transfer set, each computed once, when first wanted;
    those of a language model are computed each time.

    Labelled and unlabelled rows are run apart, so that outputs do not depend on what was wanted
    before.

    Args:
        scratch: folder for features, which are kept in fp16, all tokens one below the other;
            emptied first.
        cleaned: what students learn from with ``recovery.cleaned``, of a language model only.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        transfer: TransferSet,
        scratch: Path,
        cleaned: TransferSet | None = None,
    ) -> None:
        self.model = model
        self.family = family
        self.transfer = transfer
        self.cleaned = cleaned
        self.structure = family.structure(model)
        self.scratch = scratch
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        labelled = len(transfer.labels)
        self._parts = (transfer.rows[:labelled], transfer.rows[labelled:])
        self._starts = [np.cumsum([0, *(row.shape[1] for row in rows)]) for rows in self._parts]
        self._logits: dict[int, Tensor] = {}
        self._features: dict[tuple[str, int], NDArray[np.float16]] = {}

    def remember(self, names: Collection[str], unlabelled: bool) -> None:
        """Compute and keep the logits and these features, of the unlabelled rows too where they are
        wanted."""
        if self.transfer.by_token:
            return
        for part in range(1 + unlabelled):
            missing = [name for name in names if (name, part) not in self._features]
            if missing or part not in self._logits:
                self._run(missing, part)

    def features(
        self, names: Sequence[str], indices: Sequence[int], inputs: Mapping[str, Tensor]
    ) -> Features:
        """Of the rows, which the inputs are made of; ``remember`` these names first."""
        mask = inputs["attention_mask"]
        if not self.transfer.by_token:
            return Features(
                self.logits(indices),
                mask,
                {name: self.feature(name, indices, mask.shape[1]) for name in names},
            )
        with (
            watch(self.model, self.family, len(self.structure.layers), names) as seen,
            torch.no_grad(),
            fast_math(),
        ):
            logits = self.model(**inputs).logits.float()
        return Features(
            logits.flatten(0, -2), mask, {name: value.float() for name, value in seen.items()}
        )

    def logits(self, indices: Sequence[int]) -> Tensor:
        """(rows, labels) in fp32; ``remember`` them first."""
        return torch.stack([self._logits[part][index] for part, index in map(self._place, indices)])

    def feature(self, name: str, indices: Sequence[int], length: int) -> Tensor:
        """(rows, length, width) in fp32, zero on padding; ``remember`` it first."""
        out = np.zeros((len(indices), length, self._features[name, 0].shape[1]), np.float32)
        for i, (part, index) in enumerate(map(self._place, indices)):
            start, end = self._starts[part][index : index + 2]
            out[i, : end - start] = self._features[name, part][start:end]
        return torch.from_numpy(out)

    def _place(self, index: int) -> tuple[int, int]:
        labelled = len(self._parts[0])
        return (0, index) if index < labelled else (1, index - labelled)

    def _run(self, names: Sequence[str], part: int) -> None:
        rows, starts = self._parts[part], self._starts[part]
        for where, logits, seen in forward_all(
            self.model, self.family, rows, self.transfer.batch, names
        ):
            self._logits.setdefault(part, torch.empty(len(rows), logits.shape[1]))[
                torch.from_numpy(where)
            ] = logits
            for name in names:
                values = seen[name].to(torch.float16).numpy()
                stored = self._features.get((name, part))
                if stored is None:
                    stored = self._features[name, part] = self._room_for(
                        f"{name}.{part}", int(starts[-1]), values.shape[2]
                    )
                for i, index in enumerate(where):
                    stored[starts[index] : starts[index + 1]] = values[i, : rows[index].shape[1]]

    def _room_for(self, name: str, tokens: int, width: int) -> NDArray[np.float16]:
        if shutil.disk_usage(self.scratch).free < 2 * tokens * width:
            raise OSError(errno.ENOSPC, "no room for the teacher's outputs")
        return np.memmap(self.scratch / f"{name}.f16", np.float16, "w+", shape=(tokens, width))


class Recovery:
    """Trains one student by its candidate's settings; can stop at any step and go on.

    Without dropout: the runs are short, the teacher's soft labels regularise, and random masks cost
    a third of a step.
    """

    def __init__(
        self,
        student: nn.Module,
        structure: Structure,
        candidate: Candidate,
        teacher: Teacher,
        seed: Sequence[int],
    ) -> None:
        torch.manual_seed(seed[-1])
        self.student = student.eval()
        self.structure = structure
        self.candidate = candidate
        self.teacher = teacher
        self.steps = int(candidate.number("recovery.steps", 0))
        self.done = 0
        layer_map = LAYER_MAPS[candidate.text("recovery.layer_map", "uniform")]
        depth = len(structure.layers)
        matching = Matching(
            tuple(layer_map(depth, len(teacher.structure.layers))),
            structure.layers[-1].heads,
            teacher.family.head_size(teacher.model),
            teacher.family.causal,
        )
        random = torch.Generator().manual_seed(seed[-1])
        label_phase = round(candidate.number("recovery.label_phase", 0) * self.steps)
        self.lesson = Lesson(
            candidate, matching, student, teacher.model, random, max(1, self.steps - label_phase)
        )
        known, names = objectives(), candidate.get("recovery.objectives", ())
        assert isinstance(names, tuple)
        self.objectives = [
            (known[str(name)](self.lesson), candidate.number(weight_setting(str(name)), 1))
            for name in names
        ]
        beside = [
            p
            for objective, _ in self.objectives
            if isinstance(objective, nn.Module)
            for p in objective.parameters()
        ]
        self.optimizer = Optimizer(
            student, candidate.number("recovery.learning_rate"), self.steps, beside=beside
        )
        transfer = teacher.cleaned if candidate.get(CLEANED, False) else teacher.transfer
        if transfer is None:
            raise CandidateFailed(
                f"{CLEANED} is true, but there is no cleaned text: it is for language modeling"
            )
        self.transfer = transfer
        labelled = len(transfer.labels)
        lengths = np.array([row.shape[1] for row in transfer.rows], np.int64)
        share = candidate.number("recovery.unlabeled_share", 0)
        if share > 0 and len(lengths) == labelled:
            raise CandidateFailed(
                "recovery.unlabeled_share is more than 0, but there is no unlabelled text: give "
                "--unlabeled"
            )
        size = transfer.batch_size
        unlabelled = round(share * size)
        pairs = [pair for objective, _ in self.objectives for pair in objective.features()]
        self.watched, self.taught = (
            sorted({mine for mine, _ in pairs}),
            sorted({theirs for _, theirs in pairs}),
        )
        if self.objectives:
            teacher.remember(self.taught, unlabelled > 0)
        sources = [
            _part(labelled, candidate.number("recovery.data_share"), seed[0]),
            np.arange(labelled, len(lengths)),
        ]
        drawn = schedule(
            [lengths[source] for source in sources], [size - unlabelled, unlabelled], seed
        )
        rows = np.concatenate(sources)
        self.batches: Iterator[list[int]] = (rows[indices].tolist() for indices in drawn)

    def advance(self, until: int) -> None:
        """Train up to this step.

        Raises:
            CandidateFailed: the loss is not finite.
        """
        depth = len(self.structure.layers)
        with watch(self.student, self.teacher.family, depth, self.watched) as seen:
            while self.done < min(until, self.steps):
                self.optimizer.step(self._loss(next(self.batches), seen))
                self.done += 1

    def _loss(self, indices: list[int], seen: dict[str, Tensor]) -> Tensor:
        inputs = tensors(self.transfer.batch([self.transfer.rows[i] for i in indices]))
        with fast_math():
            logits = self.student(**inputs).logits.float().flatten(0, -2)
        loss: Tensor = 0 * logits[0].sum()
        self.lesson.inputs, self.lesson.step = inputs, self.done
        weight = (
            1.0
            if self.lesson.steps <= self.done < self.steps
            else self.candidate.number("recovery.hard_label_weight")
        )
        if weight < 1:
            mask = inputs["attention_mask"]
            student = Features(logits, mask, {name: value.float() for name, value in seen.items()})
            teacher = self.teacher.features(self.taught, indices, inputs)
            for objective, own_weight in self.objectives:
                loss = loss + (1 - weight) * own_weight * objective.loss(student, teacher)
        answers = self.transfer.answers(indices)
        if weight > 0 and (answers >= 0).any():
            loss = loss + weight * cross_entropy(logits, answers)
        return loss


def _part(count: int, share: float, seed: int) -> NDArray[np.int64]:
    """A share of so many indices; with the same seed a smaller share is part of a larger one."""
    return (
        np.random.default_rng(seed).permutation(count)[: max(1, round(share * count))]
        if share < 1
        else np.arange(count)
    )
