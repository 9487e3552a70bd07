"""The short training run that repairs a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import CandidateFailed
from autocompress.interfaces import Features, Lesson, Modifier, Objective
from autocompress.plan import Part
from autocompress.training.outputs import Teacher, TransferSet
from autocompress.training.steps import Optimizer, repeated, schedule, trunk_steps, within
from autocompress.training.taps import watch


class Recovery:
    """Trains one student by its candidate's settings; can stop at any step and go on.

    Without dropout: the runs are short, the teacher's soft labels regularise, and random masks cost
    a third of a step.

    Args:
        lesson: of the student.
        objectives: with their weights.
        modifiers: installed in the student.
        seed: of the search: from the same shares of the data all its students draw the same
            batches, so that they differ by what they are, and the teacher is asked once.

    Raises:
        CandidateFailed: the candidate wants text that there is none of.
    """

    def __init__(
        self,
        lesson: Lesson,
        teacher: Teacher,
        objectives: Sequence[tuple[Objective, float]],
        modifiers: Sequence[Modifier],
        seed: int,
    ) -> None:
        self.lesson, self.teacher = lesson, teacher
        self.objectives, self.modifiers = list(objectives), list(modifiers)
        self.student: nn.Module = lesson.student.eval()
        self.depth = len(teacher.family.structure(self.student).layers)
        candidate = lesson.candidate
        self.steps = int(candidate.number("recovery.steps", 0))
        self.label_weight = candidate.number("recovery.hard_label_weight", 1)
        self.done = 0
        beside = [p for objective, _ in self.objectives for p in objective.trained()]
        beside += [p for modifier in self.modifiers for p in modifier.parameters()]
        self.optimizer = Optimizer(
            self.student, candidate.number("recovery.learning_rate"), self.steps, beside=beside
        )
        self.transfer = _transfer_set(
            teacher, cleaned=bool(candidate.get("recovery.cleaned", False))
        )
        unlabelled_share = candidate.number("recovery.unlabeled_share", 0)
        pairs = [pair for objective, _ in self.objectives for pair in objective.features()]
        self.watched = sorted({mine for mine, _ in pairs})
        self.taught = sorted({theirs for _, theirs in pairs})
        data_share = candidate.number("recovery.data_share", 1)
        self.batches = _batches(self.transfer, data_share, unlabelled_share, seed)

    @property
    def shared(self) -> int:
        """Steps that a recovery of the same settings has in common with this one, however many it
        has in all, if it has no fewer."""
        objectives = any(objective.scheduled for objective, _ in self.objectives)
        if objectives or any(modifier.scheduled for modifier in self.modifiers):
            return 0
        return min(trunk_steps(self.steps), self.lesson.steps)

    def advance(self, until: int) -> None:
        """Train up to this step.

        Raises:
            CandidateFailed: the loss is not finite.
        """
        with watch(self.student, self.teacher.family, self.depth, self.watched) as seen:
            while self.done < min(until, self.steps):
                self.lesson.step, self.lesson.training = self.done, True
                for modifier in self.modifiers:
                    modifier.before_step()
                self.optimizer.step(self._loss(next(self.batches), seen))
                for modifier in self.modifiers:
                    modifier.after_step()
                self.lesson.training = False
                self.done += 1

    def finish(self) -> list[Part]:
        """Leave a plain student.

        Returns:
            What the modifiers learned, for its plan.
        """
        parts = [modifier.remove() for modifier in reversed(self.modifiers)]
        return [part for part in reversed(parts) if part is not None]

    def state(self) -> dict[str, Tensor]:
        """All that steps change, the student's own weights included; shared tensors as copies."""
        tensors = {
            f"student.{name}": tensor.detach().cpu().clone().contiguous()
            for name, tensor in self.student.state_dict().items()
        }
        for prefix, member in self._members():
            tensors |= {
                f"{prefix}{name}": tensor.detach().cpu().clone().contiguous()
                for name, tensor in member.state().items()
            }
        return tensors | {"random": self.lesson.random.get_state(), "done": torch.tensor(self.done)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``, on a recovery made of the same settings."""
        self.student.load_state_dict(within(state, "student."))
        for prefix, member in self._members():
            member.restore(within(state, prefix))
        self.lesson.random.set_state(state["random"])
        self.done = int(state["done"])
        for _ in range(self.done):
            next(self.batches)

    def _members(self) -> Iterator[tuple[str, Optimizer | Objective | Modifier]]:
        yield "optimizer.", self.optimizer
        for i, (objective, _) in enumerate(self.objectives):
            yield f"objective.{i}.", objective
        for i, modifier in enumerate(self.modifiers):
            yield f"modifier.{i}.", modifier

    def _loss(self, indices: list[int], seen: dict[str, Tensor]) -> Tensor:
        compute = self.lesson.compute
        inputs = compute.tensors(self.transfer.batch([self.transfer.rows[i] for i in indices]))
        logits = compute.logits(self.student, inputs).flatten(0, -2)
        loss: Tensor = 0 * logits[0].sum()
        self.lesson.inputs = inputs
        labels_alone = self.lesson.steps <= self.done < self.steps
        weight = 1.0 if labels_alone else self.label_weight
        if weight < 1:
            mask = inputs["attention_mask"]
            tokens = {name: value.float() for name, value in seen.items()}
            student = Features(logits, mask, tokens)
            teacher = self.teacher.features(self.taught, inputs)
            for objective, own_weight in self.objectives:
                loss = loss + (1 - weight) * own_weight * objective.loss(student, teacher)
        answers = compute.moved(self.transfer.answers(indices))
        if weight > 0 and (answers >= 0).any():
            loss = loss + weight * self.transfer.loss(logits, answers)
        for modifier in self.modifiers:
            penalty = modifier.penalty()
            loss = loss if penalty is None else loss + penalty
        return loss


def _transfer_set(teacher: Teacher, *, cleaned: bool) -> TransferSet:
    transfer = teacher.cleaned if cleaned else teacher.transfer
    if transfer is None:
        raise CandidateFailed(
            "recovery.cleaned is true, but there is no cleaned text: it is for language modeling"
        )
    return transfer


def _batches(
    transfer: TransferSet, data_share: float, unlabelled_share: float, seed: int
) -> Iterator[list[int]]:
    """Rows of each step; of the labelled ones a share, of a batch a share of unlabelled ones.

    Once every row was drawn, the same batches come again, unless the teacher is asked each time.
    """
    labelled = len(transfer.labels)
    lengths = np.array([row.shape[1] for row in transfer.rows], np.int64)
    if unlabelled_share > 0 and len(lengths) == labelled:
        raise CandidateFailed(
            "recovery.unlabeled_share is more than 0, but there is no unlabelled text: "
            "give --unlabeled"
        )
    size = transfer.batch_size
    unlabelled = round(unlabelled_share * size)
    sources = [_part(labelled, data_share, seed), np.arange(labelled, len(lengths))]
    per_batch = [size - unlabelled, unlabelled]
    drawn = schedule([lengths[source] for source in sources], per_batch, [seed])
    if not transfer.by_token:
        epochs = [
            -(-len(source) // taken)
            for source, taken in zip(sources, per_batch, strict=True)
            if taken
        ]
        drawn = repeated(drawn, max(epochs), [seed])
    rows = np.concatenate(sources)
    return (rows[indices].tolist() for indices in drawn)


def _part(count: int, share: float, seed: int) -> NDArray[np.int64]:
    """A share of so many indices; with the same seed a smaller share is part of a larger one."""
    if share == 1:
        return np.arange(count)
    return np.random.default_rng(seed).permutation(count)[: max(1, round(share * count))]
