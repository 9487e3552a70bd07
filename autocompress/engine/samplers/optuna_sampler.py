"""The one door to Optuna: multi-objective TPE and NSGA-II with constraints, and random search."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from autocompress.candidate import Value, freeze, thaw
from autocompress.environment import silenced
from autocompress.search_space import Choices, Parameter, SearchSpace

_START_UP_TRIALS = 8
_POPULATION = 16
"""Of NSGA-II: a search has tens of trials, not thousands."""
_ALGORITHMS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=_START_UP_TRIALS, multivariate=True, group=True
    ),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=_POPULATION),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
"""By the names in ``samplers.SAMPLERS``."""


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
        self.space = space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = _ALGORITHMS[algorithm](seed)
        self.study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
        self.trials: dict[int, optuna.Trial] = {}
        for corner in space.corners:
            self.study.enqueue_trial({p.name: _encode(p, corner[p.name]) for p in space.parameters})

    @silenced("optuna")
    def ask(self) -> tuple[int, dict[str, Value]]:
        trial = self.study.ask()
        chosen: dict[str, Value] = {}
        parameters = self.space.parameters
        for parameter in (*parameters, *parameters):  # some mean nothing before later ones
            complete = self.space.settings.complete(chosen)
            if parameter.name not in chosen and parameter.setting.when(complete):
                chosen[parameter.name] = _suggest(trial, parameter)
        self.trials[trial.number] = trial
        return trial.number, chosen

    @silenced("optuna")
    def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
        trial = self.trials.pop(handle)
        trial.set_constraint("budget", violation)
        self.study.tell(trial, list(losses))


def _encode(parameter: Parameter, value: Value) -> Any:
    values = parameter.values
    if not isinstance(values, Choices):
        return value
    ordered = _ordered(values)
    return json.dumps(thaw(value)) if ordered is None else ordered.index(value)


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Value:
    values = parameter.values
    if isinstance(values, Choices):
        ordered = _ordered(values)
        if ordered is not None:
            return ordered[trial.suggest_int(parameter.name, 0, len(ordered) - 1)]
        encoded = trial.suggest_categorical(
            parameter.name, [json.dumps(thaw(value)) for value in values.values]
        )
        return freeze(json.loads(encoded))
    if values.integer:
        return trial.suggest_int(
            parameter.name,
            int(values.low),
            int(values.high),
            step=int(values.step or 1),
            log=values.log,
        )
    return trial.suggest_float(
        parameter.name, values.low, values.high, step=values.step, log=values.log
    )


def _ordered(values: Choices) -> list[Value] | None:
    """Numbers, ascending: neighbours among them are alike, which names are not. None of others."""
    numbers = [value for value in values.values if type(value) in (int, float)]
    return sorted(numbers) if len(numbers) == len(values.values) else None
