"""The one door to Optuna: multi-objective TPE and NSGA-II with constraints, and random search."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from autocompress.candidate import Candidate, Value, freeze, thaw
from autocompress.environment import silenced
from autocompress.search_space import Choices, Parameter, SearchSpace

_START_UP_TRIALS = 8
_CONSTRAINT = "budget"
_POPULATION = 16
"""Of NSGA-II: a search has tens of trials, not thousands."""
_ALGORITHMS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=_START_UP_TRIALS,
        multivariate=True,
        group=True,
        constant_liar=True,
    ),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=_POPULATION),
    "gp": lambda seed: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=_START_UP_TRIALS, warn_independent_sampling=False
    ),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
"""By the names in ``samplers.SAMPLERS``."""
_OF_WHOLE_POINTS = ("gp",)
"""They model only settings that every point has: also those that mean nothing are asked for."""
_MEMORY = {"tpe": 256, "gp": 100}
"""Outcomes that an algorithm learns from, all of them where there is no number."""
_MORE_TRIES = 16
"""Where a proposal is one that runs already."""


class _Memory(optuna.storages.InMemoryStorage):
    """What an algorithm learns from: trials less those forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: set[int] = set()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[optuna.trial.FrozenTrial]:
        trials = super().get_all_trials(study_id, deepcopy, states)
        return [trial for trial in trials if trial.number not in self.forgotten]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Of torch, in which a Gaussian process is small: more threads take five times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class OptunaSampler:
    """A ``Sampler`` over a space: its corners first, in order, then the algorithm's proposals.

    Conditions hold inside a point: a setting that means nothing beside the earlier ones is not
    asked for.

    Args:
        algorithm: one of ``samplers.SAMPLERS``.
        seed: same seed and same outcomes told, same points.
        objectives: losses that an outcome has.
    """

    @silenced("optuna")
    def __init__(self, space: SearchSpace, algorithm: str, seed: int, objectives: int = 2) -> None:
        self.space, self.whole = space, algorithm in _OF_WHOLE_POINTS
        self.memory = _MEMORY.get(algorithm, math.inf)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = _ALGORITHMS[algorithm](seed)
        self.storage = _Memory()
        self.study = optuna.create_study(
            directions=["minimize"] * objectives, sampler=sampler, storage=self.storage
        )
        self.running: dict[int, tuple[optuna.Trial, Candidate]] = {}
        for corner in space.corners:
            within = [p for p in space.parameters if p.contains(corner[p.name])]
            self.study.enqueue_trial({p.name: _encode(p, corner[p.name]) for p in within})

    @silenced("optuna")
    @_one_thread()
    def ask(self) -> tuple[int, dict[str, Value]]:
        running = {candidate for _, candidate in self.running.values()}
        trial, chosen = self._proposed()
        for _ in range(_MORE_TRIES):
            if self.space.candidate(chosen) not in running:
                break
            self.study.tell(trial, state=TrialState.FAIL)
            trial, chosen = self._proposed()
        self.running[trial.number] = trial, self.space.candidate(chosen)
        return trial.number, chosen

    @silenced("optuna")
    def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
        trial, _ = self.running.pop(handle)
        trial.set_constraint(_CONSTRAINT, violation)
        self.study.tell(trial, list(losses))
        self._forget()

    @silenced("optuna")
    def learn(
        self, chosen: Mapping[str, Value], losses: Sequence[float], violation: float = 0.0
    ) -> None:
        point = self.space.point(chosen)
        if point is None:
            return
        if self.whole:
            point = {p.name: _first(p) for p in self.space.parameters} | point
        active = [parameter for parameter in self.space.parameters if parameter.name in point]
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params={p.name: _encode(p, point[p.name]) for p in active},
                distributions={p.name: _distribution(p) for p in active},
                constraints={_CONSTRAINT: violation},
            )
        )
        trial = self.study.get_trials(deepcopy=False)[-1]
        if isinstance(self.study.sampler, optuna.samplers.BaseGASampler):
            self.study.sampler.get_trial_generation(self.study, trial)  # else it is of none
        self.study.tell(trial.number, list(losses))
        self._forget()

    def _forget(self) -> None:
        """Of the older half of what the algorithm learns from, the worst, when there is too much:
        its time grows with it."""
        ended = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len(ended) <= self.memory:
            return
        losses = np.array([trial.values for trial in ended])
        violations = np.array([trial.constraints[_CONSTRAINT] for trial in ended])
        older = len(ended) // 2
        better = (losses[None] <= losses[:older, None]).all(axis=2).sum(axis=1)
        worst = np.lexsort((better, violations[:older]))[-1]
        self.storage.forgotten.add(ended[worst].number)

    def _proposed(self) -> tuple[optuna.Trial, dict[str, Value]]:
        trial = self.study.ask()
        if self.whole:
            for parameter in self.space.parameters:
                _suggest(trial, parameter)
        return trial, self.space.assembled(partial(_suggest, trial))


def _encode(parameter: Parameter, value: Value) -> Any:
    values = parameter.values
    if not isinstance(values, Choices):
        return value
    ordered = values.ascending
    return json.dumps(thaw(value)) if ordered is None else ordered.index(value)


def _decode(parameter: Parameter, encoded: Any) -> Value:
    values = parameter.values
    if not isinstance(values, Choices):
        return freeze(encoded)
    ordered = values.ascending
    return freeze(json.loads(encoded)) if ordered is None else ordered[encoded]


def _distribution(parameter: Parameter) -> BaseDistribution:
    """Of the encoded values."""
    values = parameter.values
    if isinstance(values, Choices):
        if values.ascending is not None:
            return IntDistribution(0, len(values.values) - 1)
        return CategoricalDistribution([_encode(parameter, value) for value in values.values])
    if values.integer:
        low, high, step = int(values.low), int(values.high), int(values.step or 1)
        return IntDistribution(low, high, step=step, log=values.log)
    return FloatDistribution(values.low, values.high, step=values.step, log=values.log)


def _first(parameter: Parameter) -> Value:
    values = parameter.values
    return values.values[0] if isinstance(values, Choices) else values.low


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Value:
    name = parameter.name
    match _distribution(parameter):
        case IntDistribution() as of:
            encoded: Any = trial.suggest_int(name, of.low, of.high, step=of.step, log=of.log)
        case FloatDistribution() as of:
            encoded = trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)
        case CategoricalDistribution() as of:
            encoded = trial.suggest_categorical(name, of.choices)
    return _decode(parameter, encoded)
