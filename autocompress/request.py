"""What a search is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress import environment
from autocompress.errors import UserError
from autocompress.files import fingerprint
from autocompress.hardware.profile import HardwareProfile
from autocompress.pareto import Budget
from autocompress.samplers import SAMPLERS
from autocompress.search_space import SearchSpace
from autocompress.tasks import TASKS
from autocompress.tasks.data import Columns

DEFAULT_TRIALS = 50


@dataclass(frozen=True)
class Request:
    """All that a search is asked.

    Args:
        model: folder or hub id of a fine-tuned classifier, or of an encoder with ``finetune``.
        task: ``text-classification``.
        data: csv, tsv, json(l) or parquet file, or a dataset id on the hub.
        hardware: what latency is measured under.
        space: what is searched.
        out: the run folder, new or empty.
        columns: of the data; usual names are found.
        validation: file or split name; by default the data's own, else cut from it. Guides the search.
        test: likewise; scored once, at the end.
        unlabeled: text file, a line each, for the teacher to label.
        finetune: train the model on the data first (2 epochs) and compress the result.
        budget: constraints on every model of the front.
        trials: candidates beside the baseline; 50 when no time limit is given either.
        time_limit_s: seconds for everything, verification included.
        sampler: ``tpe`` or ``random``.
        seed: same seed, same search, as far as latencies repeat.
        resume: go on with the run in ``out``.

    Raises:
        UserError: unknown task or sampler, or a limit out of range.
    """

    model: str
    task: str
    data: str
    hardware: HardwareProfile
    space: SearchSpace
    out: Path
    columns: Columns = field(default_factory=Columns)
    validation: str | None = None
    test: str | None = None
    unlabeled: str | None = None
    finetune: bool = False
    budget: Budget = field(default_factory=Budget)
    trials: int | None = None
    time_limit_s: float | None = None
    sampler: str = "tpe"
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"unknown task {self.task!r}; known are {', '.join(TASKS)}")
        if self.sampler not in SAMPLERS:
            raise UserError(f"unknown sampler {self.sampler!r}; known are {', '.join(SAMPLERS)}")
        if self.trials is not None and self.trials < 1:
            raise UserError(f"trials is {self.trials}: it must be at least 1")
        if self.time_limit_s is not None and self.time_limit_s <= 0:
            raise UserError(f"time limit is {self.time_limit_s:g} s: it must be more than zero")

    @property
    def most_trials(self) -> int | None:
        """Trials beside the baseline; without any limit given, 50."""
        return DEFAULT_TRIALS if self.trials is None and self.time_limit_s is None else self.trials

    def inputs(self, weights: str) -> dict[str, Any]:
        """What a resumed run must share with its beginning; the limits on trials and time may change.

        Args:
            weights: digest of the model's, before any fine-tuning.
        """
        files = {name: getattr(self, name) for name in ("data", "validation", "test", "unlabeled")}
        return {
            "model": self.model,
            "weights": weights,
            "task": self.task,
            **{name: path and fingerprint(path) for name, path in files.items()},
            "columns": [self.columns.text, self.columns.text_pair, self.columns.label],
            "finetune": self.finetune,
            "hardware": self.hardware.as_dict(),
            "space": self.space.as_dict(),
            "budget": self.budget.as_dict(),
            "sampler": self.sampler,
            "seed": self.seed,
            "device": {key: value for key, value in environment.device().items() if key != "memory_bytes"},
        }
