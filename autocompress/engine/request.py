"""What a search is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress.engine.samplers import SAMPLERS
from autocompress.errors import UserError
from autocompress.files import fingerprint
from autocompress.hardware.profile import PHASES, HardwareProfile
from autocompress.pareto import Budget, Metric
from autocompress.search_space import SearchSpace
from autocompress.tasks import TASKS
from autocompress.tasks.data import Columns

DEFAULT_TRIALS = 50
_STATE = ("memory_bytes", "busy_cores", "governor")
"""What a device may change between a run and its resume."""


@dataclass(frozen=True)
class Request:
    """All that a search is asked.

    Args:
        model: folder or hub id of a fine-tuned classifier, or with ``finetune`` of a model without
            that head; of a causal language model for language modeling.
        task: ``text-classification`` or ``language-modeling``.
        data: csv, tsv, json(l) or parquet file, or a dataset id on the hub; for language modeling
            also a txt file of documents with blank lines between them.
        hardware: what latency is measured under; every device gets a front of its own.
        space: what is searched.
        out: the run folder, new or empty.
        columns: of the data; usual names are found. Those of a second text and of labels are for
            text classification.
        validation: file or split name; by default the data's own, else cut from it. Guides the
            search.
        test: likewise; scored once, at the end.
        unlabeled: text file, a line each, for the teacher to label, in text classification.
        block_length: language modeling: tokens of a block of training text; by default 256, or as
            many as the model takes.
        context: language modeling: tokens of a window of scored text; by default as for
            ``block_length``.
        stride: language modeling: tokens that each window scores; by default half of ``context``.
        finetune: train the model on the data first (2 epochs) and compress the result.
        budget: constraints on every model of a front.
        budgets: constraints of single devices, by name of the profile, in place of ``budget``.
        trials: candidates beside the baseline; 50 when no time limit is given either.
        time_limit_s: seconds for everything, verification included.
        sampler: ``tpe`` or ``random``.
        seed: same seed, same search, as far as latencies repeat.
        resume: go on with the run in ``out``.

    Raises:
        UserError: unknown task or sampler, an option of another task, or a limit out of range.
    """

    model: str
    task: str
    data: str
    hardware: tuple[HardwareProfile, ...]
    space: SearchSpace
    out: Path
    columns: Columns = field(default_factory=Columns)
    validation: str | None = None
    test: str | None = None
    unlabeled: str | None = None
    block_length: int | None = None
    context: int | None = None
    stride: int | None = None
    finetune: bool = False
    budget: Budget = field(default_factory=Budget)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    trials: int | None = None
    time_limit_s: float | None = None
    sampler: str = "tpe"
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"unknown task {self.task!r}; known are {', '.join(TASKS)}")
        self._refuse_options_of_other_tasks()
        for budget in (self.budget, *self.budgets.values()):
            budget.check(self.metric)
        if self.sampler not in SAMPLERS:
            raise UserError(f"unknown sampler {self.sampler!r}; known are {', '.join(SAMPLERS)}")
        names = [profile.name for profile in self.hardware]
        if not names:
            raise UserError("no hardware profile is given")
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"hardware profile {name} is given twice")
        for name in self.budgets:
            if name not in names:
                phases = (
                    f", nor a phase ({', '.join(PHASES)})"
                    if self.task == "language-modeling"
                    else ""
                )
                raise UserError(
                    f"a limit is set for {name}, which is not among the hardware profiles "
                    f"{', '.join(names)}{phases}"
                )
        if self.trials is not None and self.trials < 1:
            raise UserError(f"trials is {self.trials}: it must be at least 1")
        if self.time_limit_s is not None and self.time_limit_s <= 0:
            raise UserError(f"time limit is {self.time_limit_s:g} s: it must be more than zero")

    def _refuse_options_of_other_tasks(self) -> None:
        given = {
            "text-pair-column": self.columns.text_pair,
            "label-column": self.columns.label,
            "unlabeled": self.unlabeled,
            "block-length": self.block_length,
            "context": self.context,
            "stride": self.stride,
        }
        for name, kind in TASKS.items():
            for option in kind.options:
                if name != self.task and given[option] is not None:
                    raise UserError(f"--{option} is for the task {name}, not for {self.task}")

    @property
    def metric(self) -> Metric:
        """What the task scores models by."""
        return TASKS[self.task].metric

    @property
    def most_trials(self) -> int | None:
        """Trials beside the baseline; without any limit given, 50."""
        return DEFAULT_TRIALS if self.trials is None and self.time_limit_s is None else self.trials

    def budget_on(self, name: str) -> Budget:
        """The constraints on one device."""
        return self.budgets.get(name, self.budget)

    def inputs(self, weights: str, fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What a resumed run must share with its beginning; the limits on trials and time may
        change.

        Args:
            weights: digest of the model's, before any fine-tuning.
            fingerprints: of the devices, by name of the profile.
        """
        files = {name: getattr(self, name) for name in ("data", "validation", "test", "unlabeled")}
        return {
            "model": self.model,
            "weights": weights,
            "task": self.task,
            **{name: path and fingerprint(path) for name, path in files.items()},
            "columns": [self.columns.text, self.columns.text_pair, self.columns.label],
            "text": [self.block_length, self.context, self.stride],
            "finetune": self.finetune,
            "hardware": [profile.as_dict() for profile in self.hardware],
            "space": self.space.as_dict(),
            "budgets": {
                profile.name: self.budget_on(profile.name).as_dict() for profile in self.hardware
            },
            "sampler": self.sampler,
            "seed": self.seed,
            "devices": {
                name: {key: value for key, value in found.items() if key not in _STATE}
                for name, found in fingerprints.items()
            },
        }
