"""The second step of a trial: a sealed student in a number format is an artifact that ships."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.candidate import Candidate
from autocompress.interfaces import Batch, Technique
from autocompress.shipping import Graph
from autocompress.student import WEIGHTS, Student
from autocompress.techniques import TECHNIQUES

_LEAST_ROOM = 4
"""Models of the uncut one's size that must fit the disk before another is made."""


@dataclass(frozen=True)
class Converter:
    """Converts students.

    Args:
        models: folder of the artifacts.
        tokenizer_files: folder whose files ship along.
        calibration: training batches.
        scratch: folder for graphs on their way.
    """

    models: Path
    tokenizer_files: Path
    calibration: Sequence[Batch]
    scratch: Path
    techniques: Sequence[Technique] = TECHNIQUES

    @contextmanager
    def graph_of(self, student: Student) -> Iterator[Graph]:
        """The student's graph, traced from its weights as read back from its folder.

        Raises:
            CandidateFailed: not exportable, or not alike.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        file = self.scratch / f"{student.id}.onnx"
        try:
            model = student.model(self.techniques)
            yield Graph(model, student.plan, file, self.calibration)
        finally:
            file.unlink(missing_ok=True)

    def ship(
        self,
        graph: Graph,
        student: Student,
        number_format: Candidate,
        candidate: Mapping[str, Any],
        name: str,
    ) -> tuple[Path, dict[str, float]]:
        """Write one artifact; raises as ``Graph.ship``.

        Args:
            candidate: all that was asked for, as JSON, for the record.
            name: of its folder.

        Returns:
            The folder, and its parity with the student.
        """
        target = self.models / name
        told = {"candidate": dict(candidate), "student": student.id}
        weights = student.folder / WEIGHTS
        return target, graph.ship(number_format, target, self.tokenizer_files, weights, told)

    def room(self, uncut: Path) -> int:
        """How many more models the disk has room for, at most the size of the uncut one each.

        Raises:
            OSError: for none.
        """
        free = shutil.disk_usage(self.models.parent).free
        room = free // (_LEAST_ROOM * (uncut / "model.onnx").stat().st_size)
        if not room:
            raise OSError(errno.ENOSPC, "no room for another model")
        return room
