"""The short training run that repairs a cut."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
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
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Batch, Family, Features, Matching, Row
from autocompress.structure import Structure
from autocompress.training import BATCH_SIZE, Optimizer, fast_math, forward_all, schedule, tensors, watch


@dataclass(frozen=True)
class TransferSet:
    """What students learn from: labelled rows first, then unlabelled ones.

    Args:
        labels: int64 of shape (labelled rows,).
        batch: turns rows into a ``Batch``.
    """

    rows: Sequence[Row]
    labels: NDArray[np.int64]
    batch: Callable[[Sequence[Row]], Batch]


class Teacher:
    """The uncut model, and its outputs on the transfer set, each computed once, when first asked for.

    Features are kept in fp16, all tokens one below the other, in a scratch file that goes with this object.
    """

    def __init__(self, model: nn.Module, family: Family, transfer: TransferSet) -> None:
        self.model = model
        self.family = family
        self.transfer = transfer
        self.structure = family.structure(model)
        self.starts = np.cumsum([0, *(row.shape[1] for row in transfer.rows)])
        self._logits = torch.empty(0)
        self._features: dict[tuple[str, int], NDArray[np.float16]] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="autocompress-teacher-")

    def logits(self, indices: Sequence[int]) -> Tensor:
        """(rows, labels) in fp32."""
        labelled = len(self.transfer.labels)
        needed = labelled if max(indices) < labelled else len(self.transfer.rows)
        if len(self._logits) < needed:
            rows = self.transfer.rows[len(self._logits) : needed]
            found = torch.empty(len(rows), self.model.config.num_labels)  # type: ignore[union-attr,arg-type]
            for where, values, _ in forward_all(self.model, self.family, rows, self.transfer.batch):
                found[torch.from_numpy(where)] = values
            self._logits = torch.cat([self._logits, found]) if len(self._logits) else found
        return self._logits[list(indices)]

    def remember(self, names: Collection[str], unlabelled: bool) -> None:
        """Compute and keep these features, of the unlabelled rows too where they are wanted."""
        labelled = len(self.transfer.labels)
        for part, rows in ((0, self.transfer.rows[:labelled]), (1, self.transfer.rows[labelled:])):
            missing = [name for name in names if (name, part) not in self._features]
            if missing and rows and part <= unlabelled:
                self._remember(missing, part, rows)

    def feature(self, name: str, indices: Sequence[int], length: int) -> Tensor:
        """(rows, length, width) in fp32, zero on padding; ``remember`` it first."""
        labelled = len(self.transfer.labels)
        width = self._features[name, 0].shape[1]
        out = np.zeros((len(indices), length, width), np.float32)
        for i, index in enumerate(indices):
            part = int(index >= labelled)
            start, end = self.starts[index : index + 2] - part * self.starts[labelled]
            out[i, : end - start] = self._features[name, part][start:end]
        return torch.from_numpy(out)

    def _remember(self, names: Sequence[str], part: int, rows: Sequence[Row]) -> None:
        starts = np.cumsum([0, *(row.shape[1] for row in rows)])
        for where, _, seen in forward_all(self.model, self.family, rows, self.transfer.batch, names):
            for name in names:
                values = seen[name].to(torch.float16).numpy()
                if (name, part) not in self._features:
                    path = Path(self._scratch.name) / f"{name}.{part}.f16"
                    self._features[name, part] = np.memmap(path, np.float16, "w+", shape=(int(starts[-1]), values.shape[2]))
                for i, index in enumerate(where):
                    self._features[name, part][starts[index] : starts[index + 1]] = values[i, : rows[index].shape[1]]


class Recovery:
    """Trains one student by its candidate's settings; can stop at any step and go on.

    Without dropout: the runs are short, the teacher's soft labels regularise, and random masks cost a third of a step.
    """

    def __init__(
        self, student: nn.Module, structure: Structure, candidate: Candidate, teacher: Teacher, seed: Sequence[int]
    ) -> None:
        torch.manual_seed(seed[-1])
        self.student = student.eval()
        self.structure = structure
        self.candidate = candidate
        self.teacher = teacher
        self.steps = int(candidate.number("recovery.steps", 0))
        self.done = 0
        names = candidate.get("recovery.objectives", ("logits",))
        known = objectives()
        self.objectives = [known[name] for name in names] if isinstance(names, tuple) else []  # type: ignore[index]
        layer_map = LAYER_MAPS[candidate.text("recovery.layer_map", "uniform")]
        depth = len(structure.layers)
        self.matching = Matching(
            tuple(layer_map(depth, len(teacher.structure.layers))),
            structure.layers[-1].heads,
            teacher.family.head_size(teacher.model),
        )
        self.optimizer = Optimizer(student, candidate.number("recovery.learning_rate"), self.steps)
        labelled = len(teacher.transfer.labels)
        lengths = np.array([row.shape[1] for row in teacher.transfer.rows], np.int64)
        share = candidate.number("recovery.unlabeled_share", 0)
        if share > 0 and len(lengths) == labelled:
            raise CandidateFailed("recovery.unlabeled_share is more than 0, but there is no unlabelled text: give --unlabeled")
        unlabelled = round(share * BATCH_SIZE)
        pairs = [pair for objective in self.objectives for pair in objective.features(self.matching)]
        self.watched, self.taught = [mine for mine, _ in pairs], sorted({theirs for _, theirs in pairs})
        teacher.remember(self.taught, unlabelled > 0)
        self.batches = schedule([lengths[:labelled], lengths[labelled:]], [BATCH_SIZE - unlabelled, unlabelled], seed)

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
        transfer = self.teacher.transfer
        inputs = tensors(transfer.batch([transfer.rows[i] for i in indices]))
        mask = inputs["attention_mask"]
        with fast_math():
            logits = self.student(**inputs).logits
        student = Features(logits.float(), mask, {name: value.float() for name, value in seen.items()})
        tokens = {name: self.teacher.feature(name, indices, mask.shape[1]) for name in self.taught}
        teacher = Features(self.teacher.logits(indices), mask, tokens)
        soft = sum(objective.loss(student, teacher, self.candidate, self.matching) for objective in self.objectives)
        weight = self.candidate.number("recovery.hard_label_weight")
        loss = (1 - weight) * torch.as_tensor(soft)
        labelled = [i for i, index in enumerate(indices) if index < len(transfer.labels)]
        if weight > 0 and labelled:
            labels = torch.from_numpy(transfer.labels[[indices[i] for i in labelled]])
            loss = loss + weight * cross_entropy(student.logits[labelled], labels)
        return loss
