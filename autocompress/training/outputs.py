"""What students learn from: rows of text, and what the teacher says of them."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.interfaces import Batch, Family, Features, Loss, Row
from autocompress.training.compute import CPU, Compute
from autocompress.training.steps import BATCH_SIZE
from autocompress.training.taps import watch

MOST_KEPT = 2**31
"""Bytes of a teacher's outputs on disk; of other batches it is asked each time."""
LEFT_FREE = 2**30
"""Bytes of the disk that they leave to everything else."""
_LOGITS = "logits"


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
    """The uncut model, asked of a batch beside the student that learns from it.

    What it says is kept for the students that learn from the same batch later, as far as there is
    room. It would say the same again, to the bit, so that no student depends on others. A language
    model is asked each time.

    Args:
        model: moved to the device of ``compute``.
        scratch: folder for what is kept, features in fp16; emptied first.
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
        self.model = model.to(compute.device).eval()
        self.family = family
        self.transfer = transfer
        self.cleaned = cleaned
        self.compute = compute
        self.structure = family.structure(model)
        self.scratch = scratch
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self._kept = Kept(scratch / "teacher")

    def features(self, names: Sequence[str], inputs: Mapping[str, Tensor]) -> Features:
        """Of the batch that these are the inputs of."""
        batch, wanted = _digest(inputs), (_LOGITS, *names)
        outputs = self._kept.found(batch, wanted) or self._asked(batch, names, inputs)
        logits, *tokens = (self.compute.moved(outputs[name]).float() for name in wanted)
        return Features(logits, inputs["attention_mask"], dict(zip(names, tokens, strict=True)))

    def _asked(
        self, batch: bytes, names: Sequence[str], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        depth = len(self.structure.layers)
        with watch(self.model, self.family, depth, names) as seen, torch.no_grad():
            logits = self.compute.logits(self.model, inputs).flatten(0, -2)
        if self.transfer.by_token:
            return {_LOGITS: logits, **seen}
        outputs = {_LOGITS: logits, **{name: _in_half(seen[name]) for name in names}}
        self._kept.keep(batch, outputs)
        return outputs


class Kept:
    """Outputs of batches in one file, as long as there is room: of a batch that has none, nothing.

    It is written, never mapped into memory, where a full disk would end the process.

    Args:
        file: not there yet.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.room = file, MOST_KEPT
        self._places: dict[bytes, dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]]] = {}

    def found(self, batch: bytes, names: Sequence[str]) -> dict[str, Tensor] | None:
        """These outputs; None where not all of them are kept."""
        places = self._places.get(batch, {})
        if not all(name in places for name in names):
            return None
        outputs = {}
        for name in names:
            start, kind, shape = places[name]
            values = np.fromfile(self.file, kind, math.prod(shape), offset=start)
            outputs[name] = torch.from_numpy(values.reshape(shape))
        return outputs

    def keep(self, batch: bytes, outputs: Mapping[str, Tensor]) -> None:
        """Those that are not kept yet, all or none."""
        places = dict(self._places.get(batch, {}))
        fresh = {name: value for name, value in outputs.items() if name not in places}
        size = sum(value.nbytes for value in fresh.values())
        free = shutil.disk_usage(self.file.parent).free - LEFT_FREE
        if size > min(self.room, free):
            return
        self.room -= size
        try:
            with self.file.open("ab") as file:
                for name, value in fresh.items():
                    values = value.cpu().contiguous().numpy()
                    places[name] = file.tell(), values.dtype, values.shape
                    file.write(values.data)
        except OSError:  # a quota, a limit of file sizes, a disk that others have filled
            self.room = 0
            return
        self._places[batch] = places


def _digest(inputs: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in sorted(inputs.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.digest()


def _in_half(values: Tensor) -> Tensor:
    """In fp16, where what is too large becomes the largest number."""
    largest = torch.finfo(torch.float16).max
    return values.float().clamp(-largest, largest).to(torch.float16)
