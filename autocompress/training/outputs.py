"""What students learn from: rows of text, and what the teacher says of them."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.interfaces import Batch, Family, Features, Loss, Row
from autocompress.training.compute import CPU, Compute
from autocompress.training.steps import BATCH_SIZE
from autocompress.training.taps import forward_all, watch


@dataclass(frozen=True)
class TransferSet:
    """What students learn from: labelled rows first, then unlabelled ones.

    Args:
        labels: of the labelled rows, see ``TrainingSplit``.
        batch: turns rows into a ``Batch``.
        loss: of answers against labels, see ``Task``.
        batch_size: rows of a step.
        by_token: whether each token has an answer, so that a teacher's are too many to keep.
    """

    rows: Sequence[Row]
    labels: NDArray[np.int64]
    batch: Callable[[Sequence[Row]], Batch]
    loss: Loss
    batch_size: int = BATCH_SIZE
    by_token: bool = False

    def answers(self, indices: Sequence[int]) -> Tensor:
        """The labels of these rows, one after the other; -100 for an unlabelled row."""
        labels = np.full((len(indices), *self.labels.shape[1:]), -100)
        labelled = [i for i, index in enumerate(indices) if index < len(self.labels)]
        labels[labelled] = self.labels[[indices[i] for i in labelled]]
        return torch.from_numpy(labels).flatten()

    def digest(self) -> str:
        """Hex digest of all rows and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels).tobytes())
        for row in self.rows:
            digest.update(np.array(row.shape).tobytes())
            digest.update(np.ascontiguousarray(row).tobytes())
        return digest.hexdigest()


class Teacher:
    """The uncut model, and its outputs on the transfer set, each computed once, when first wanted;
    those of a language model are computed each time.

    Labelled and unlabelled rows are run apart, so that outputs do not depend on what was wanted
    before.

    Args:
        model: moved to the device of ``compute``.
        scratch: folder for features, which are kept in fp16, all tokens one below the other;
            emptied first. On a GPU that has the room they stay there instead.
        cleaned: what students learn from with ``recovery.cleaned``, of a language model only.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        transfer: TransferSet,
        scratch: Path,
        cleaned: TransferSet | None = None,
        compute: Compute = CPU,
    ) -> None:
        self.model = model.to(compute.device)
        self.family = family
        self.transfer = transfer
        self.cleaned = cleaned
        self.compute = compute
        self.structure = family.structure(model)
        self.scratch = scratch
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        labelled = len(transfer.labels)
        self._parts = (transfer.rows[:labelled], transfer.rows[labelled:])
        self._starts = [np.cumsum([0, *(row.shape[1] for row in rows)]) for rows in self._parts]
        self._logits: dict[int, Tensor] = {}
        self._features: dict[tuple[str, int], Tensor] = {}

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
            tokens = {name: self.feature(name, indices, mask.shape[1]) for name in names}
            return Features(self.logits(indices), mask, tokens)
        depth = len(self.structure.layers)
        with (
            watch(self.model, self.family, depth, names) as seen,
            torch.no_grad(),
            self.compute.math(),
        ):
            logits = self.model(**inputs).logits.float()
        tokens = {name: value.float() for name, value in seen.items()}
        return Features(logits.flatten(0, -2), mask, tokens)

    def logits(self, indices: Sequence[int]) -> Tensor:
        """(rows, labels) in fp32; ``remember`` them first."""
        return torch.stack([self._logits[part][i] for part, i in map(self._place, indices)])

    def feature(self, name: str, indices: Sequence[int], length: int) -> Tensor:
        """(rows, length, width) in fp32, zero on padding; ``remember`` it first."""
        first = self._features[name, 0]
        out = torch.zeros(len(indices), length, first.shape[1], device=first.device)
        for i, (part, index) in enumerate(map(self._place, indices)):
            start, end = self._starts[part][index : index + 2]
            out[i, : end - start] = self._features[name, part][start:end]
        return self.compute.moved(out)

    def _place(self, index: int) -> tuple[int, int]:
        labelled = len(self._parts[0])
        return (0, index) if index < labelled else (1, index - labelled)

    def _run(self, names: Sequence[str], part: int) -> None:
        rows, starts = self._parts[part], self._starts[part]
        every = forward_all(self.model, self.family, rows, self.transfer.batch, names, self.compute)
        for where, logits, seen in every:
            if part not in self._logits:
                self._logits[part] = logits.new_empty(len(rows), logits.shape[1])
            self._logits[part][torch.from_numpy(where)] = logits
            for name in names:
                values = seen[name].to(torch.float16)
                if (name, part) not in self._features:
                    self._features[name, part] = self._room_for(
                        f"{name}.{part}", int(starts[-1]), values.shape[2]
                    )
                stored = self._features[name, part]
                for i, index in enumerate(where):
                    own = values[i, : rows[index].shape[1]]
                    stored[starts[index] : starts[index + 1]] = own.to(stored.device)

    def _room_for(self, name: str, tokens: int, width: int) -> Tensor:
        size = 2 * tokens * width
        if self.compute.room_for(size):
            return torch.empty(tokens, width, dtype=torch.float16, device=self.compute.device)
        if shutil.disk_usage(self.scratch).free < size:
            raise OSError(errno.ENOSPC, "no room for the teacher's outputs")
        file = self.scratch / f"{name}.f16"
        return torch.from_numpy(np.memmap(file, np.float16, "w+", shape=(tokens, width)))
