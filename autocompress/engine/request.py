"""What a search is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from autocompress.engine.backends import BACKENDS
from autocompress.engine.samplers import SAMPLERS
from autocompress.errors import UserError
from autocompress.files import fingerprint
from autocompress.hardware.profile import PHASES, HardwareProfile
from autocompress.interfaces import Head, Sampler, TaskKind, Technique
from autocompress.journal import KEEP
from autocompress.limits import Limits
from autocompress.names import did_you_mean, unknown
from autocompress.pareto import LATENCY_AND_QUALITY, METRICS, Metric, checked_objectives
from autocompress.search_space import SearchSpace
from autocompress.tasks import TASKS
from autocompress.techniques import TECHNIQUES

DEFAULT_TRIALS = 50
SEEDS = 2**32
"""That the generators of random numbers take."""
_STATE = ("memory_bytes", "busy_cores", "governor")
"""What a device may change between a run and its resume."""


@dataclass(frozen=True)
class Request:
    """All that a search is asked.

    Args:
        model: folder or hub id of a fine-tuned classifier, or with ``finetune`` of a model without
            that head; of a causal language model for language modeling.
        task: one of ``TASKS`` by name, or one of the user's own.
        data: csv, tsv, json(l) or parquet file, or a dataset id on the hub; for language modeling
            also a txt file of documents with blank lines between them.
        hardware: what latency is measured under; every device gets a front of its own.
        space: what is searched.
        out: the run folder, new or empty.
        options: of the task, by the names that they have on the command line, without the dashes.
        validation: file or split name; by default the data's own, else cut from it. Guides the
            search.
        test: likewise; scored once, at the end.
        finetune: train the model on the data first (2 epochs) and compress the result.
        budget: constraints on every model of a front.
        budgets: constraints of single devices, by name of the profile, in place of ``budget``.
        trials: candidates beside the baseline; 50 when no time limit is given either.
        time_limit_s: seconds for everything, verification included.
        sampler: ``tpe``, ``gp``, ``nsga2``, ``random``, ``local``, or an object with ``ask``,
            ``tell`` and ``learn``.
        techniques: that the space may name, in order of application.
        train_on: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for a GPU where there is one.
        tf32: whether a GPU may round the inputs of fp32 products.
        seed: same seed, same search, as far as latencies repeat; from 0 to 2^32 - 1.
        resume: go on with the run in ``out``.
        objectives: what is minimised, of ``pareto.OBJECTIVES``; by default what the space says,
            else latency and quality.
        keep: whose models' files stay, one of ``journal.KEEP``.
        workers: that make students at the same time; one is the search itself.
        backend: ``serial``, ``processes`` on this machine, or ``ray``; by default the first for one
            worker, and the second for several.
        ray_address: of a cluster of Ray; by default one that is begun on this machine.
        gpus_per_worker: that Ray gives each one, also a part of one.

    Raises:
        UserError: unknown task, sampler or objective, an option that the task does not have or a
            value that it does not take, or a limit out of range.
    """

    model: str
    task: str | TaskKind
    data: str
    hardware: tuple[HardwareProfile, ...]
    space: SearchSpace
    out: Path
    options: Mapping[str, str | int] = field(default_factory=dict)
    validation: str | None = None
    test: str | None = None
    finetune: bool = False
    budget: Limits = field(default_factory=Limits)
    budgets: Mapping[str, Limits] = field(default_factory=dict)
    trials: int | None = None
    time_limit_s: float | None = None
    sampler: str | Sampler = "tpe"
    techniques: Sequence[Technique] = TECHNIQUES
    train_on: str = "auto"
    tf32: bool = False
    seed: int = 0
    resume: bool = False
    objectives: tuple[str, ...] | None = None
    keep: str = KEEP[0]
    workers: int = 1
    backend: str | None = None
    ray_address: str | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        self._check_task()
        self._check_options()
        self._check_workers()
        for budget in (self.budget, *self.budgets.values()):
            budget.check(self.metric)
        if isinstance(self.sampler, str) and self.sampler not in SAMPLERS:
            raise UserError(unknown("sampler", self.sampler, SAMPLERS))
        if self.objectives is not None:
            checked_objectives(self.objectives, "objectives")
        names = [profile.name for profile in self.hardware]
        if not names:
            raise UserError("no hardware profile is given")
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"hardware profile {name} is given twice")
        for name in self.budgets:
            if name not in names:
                phases = f", nor a phase ({', '.join(PHASES)})" if self.kind.head.generates else ""
                raise UserError(
                    f"a limit is set for {name}, which is not among the hardware profiles "
                    f"{', '.join(names)}{phases}"
                )
        if self.trials is not None and self.trials < 1:
            raise UserError(f"trials is {self.trials}: it must be at least 1")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed is {self.seed}: it must be from 0 to {SEEDS - 1}")
        if self.keep not in KEEP:
            raise UserError(f"keep is {self.keep!r}: it must be one of {', '.join(KEEP)}")
        if self.time_limit_s is not None and self.time_limit_s <= 0:
            raise UserError(f"time limit is {self.time_limit_s:g} s: it must be more than zero")

    def _check_task(self) -> None:
        if isinstance(self.task, str):
            if self.task not in TASKS:
                raise UserError(unknown("task", self.task, TASKS))
            return
        missing = [part.name for part in fields(TaskKind) if not hasattr(self.task, part.name)]
        if missing:
            raise UserError(
                f"task {self.task!r} has no {', '.join(missing)}: give a TaskKind, or one of "
                f"{', '.join(TASKS)}"
            )
        if not isinstance(self.task.head, Head):
            raise UserError(
                f"task {self.task.name}: its head is {self.task.head!r}, known are "
                f"{', '.join(map(str, Head))}"
            )
        if self.task.metric not in METRICS.values():
            raise UserError(
                f"task {self.task.name}: its metric is {self.task.metric!r}, known are "
                f"{', '.join(METRICS)}"
            )

    def _check_workers(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers is {self.workers}: it must be at least 1")
        if self.backend not in (None, *BACKENDS):
            raise UserError(f"unknown backend {self.backend!r}; known are {', '.join(BACKENDS)}")
        if self.backend == "serial" and self.workers > 1:
            raise UserError(f"--backend serial has one worker, --workers is {self.workers}")
        if self.gpus_per_worker < 0:
            raise UserError(f"--gpus-per-worker is {self.gpus_per_worker:g}: it must be 0 or more")
        for option, given in (
            ("--ray-address", self.ray_address is not None),
            ("--gpus-per-worker", self.gpus_per_worker > 0),
        ):
            if given and self.backend != "ray":
                raise UserError(f"{option} is for --backend ray")

    def _check_options(self) -> None:
        own = {option.name: option for option in self.kind.options}
        for name, value in self.options.items():
            if name not in own:
                takers = [kind.name for kind in TASKS.values() if name in _names(kind)]
                raise UserError(
                    f"--{name} is for the task {' and '.join(takers)}, not for {self.kind.name}"
                    if takers
                    else f"--{name} is unknown; the options of {self.kind.name} are "
                    f"{', '.join(own) or 'none'}"
                )
            if not isinstance(value, own[name].takes):
                wanted = "text" if own[name].takes is str else "a whole number"
                raise UserError(f"--{name} is {value!r}: it must be {wanted}")
            if own[name].choices and value not in own[name].choices:
                near = did_you_mean(value, own[name].choices)
                raise UserError(
                    f"--{name} is {value!r}{near}: it must be one of {', '.join(own[name].choices)}"
                )

    @property
    def kind(self) -> TaskKind:
        """The task."""
        return TASKS[self.task] if isinstance(self.task, str) else self.task

    @property
    def metric(self) -> Metric:
        """What the task scores models by."""
        return METRICS[str(self.options.get("metric", self.kind.metric.name))]

    @property
    def all_objectives(self) -> tuple[str, ...]:
        """What is minimised, in the order of ``pareto.OBJECTIVES``."""
        if self.objectives is None:
            return self.space.objectives or LATENCY_AND_QUALITY
        return checked_objectives(self.objectives, "objectives")

    @property
    def most_trials(self) -> int | None:
        """Trials beside the baseline; without any limit given, 50."""
        return DEFAULT_TRIALS if self.trials is None and self.time_limit_s is None else self.trials

    def budget_on(self, name: str) -> Limits:
        """The constraints on one device."""
        return self.budgets.get(name, self.budget)

    def inputs(self, weights: str, fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What a resumed run must share with its beginning; the limits on trials and time may
        change.

        Args:
            weights: digest of the model's, before any fine-tuning.
            fingerprints: of the devices, by name of the profile.
        """
        sampler, objectives = self.sampler, self.all_objectives
        files = {name: getattr(self, name) for name in ("data", "validation", "test")}
        return {
            "model": self.model,
            "weights": weights,
            "task": self.kind.name,
            **{name: path and fingerprint(path) for name, path in files.items()},
            **{
                option.name: fingerprint(str(value)) if option.is_file else value
                for option in self.kind.options
                if (value := self.options.get(option.name)) is not None
            },
            "metric": self.metric.name,
            "finetune": self.finetune,
            "hardware": [profile.as_dict() for profile in self.hardware],
            "space": self.space.as_dict(),
            "budgets": {
                profile.name: self.budget_on(profile.name).as_dict() for profile in self.hardware
            },
            **({} if objectives == LATENCY_AND_QUALITY else {"objectives": list(objectives)}),
            "sampler": sampler if isinstance(sampler, str) else type(sampler).__qualname__,
            "seed": self.seed,
            "devices": {
                name: {key: value for key, value in device_facts.items() if key not in _STATE}
                for name, device_facts in fingerprints.items()
            },
        }


def _names(kind: TaskKind) -> tuple[str, ...]:
    return tuple(option.name for option in kind.options)
