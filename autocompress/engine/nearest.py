"""What came nearest where nothing met the limits of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autocompress.choosing import nearest
from autocompress.engine.foresight import Foresight
from autocompress.engine.scoring import Scorer
from autocompress.engine.verification import facts, losses
from autocompress.journal import Trial
from autocompress.pareto import Member


def nearest_in_words(
    trials: Sequence[Trial],
    scorer: Scorer,
    foresight: Foresight,
    rejected: Mapping[str, Sequence[Member]],
) -> str:
    """The nearest of the verified members that were rejected; of the candidates where there are
    none, those included whose latency was only foretold.

    Args:
        trials: at least one of them timed.
        rejected: by device.
    """
    for name, members in rejected.items():
        if members:
            return nearest(members, scorer.baseline_bytes, scorer.budgets[name], scorer.task.metric)
    timed = [
        (scorer.budgets[name].violation(facts(trial, name, scorer)), trial, name)
        for trial in trials
        for name in trial.scores
    ]
    foretold = [
        (foresight.excess(name, relative), trial, name)
        for trial in trials
        if trial.state == "over-budget" and not trial.scores
        for name, relative in trial.predicted.items()
    ]
    least = min(miss for miss, _, _ in timed)
    if foretold and min(miss for miss, _, _ in foretold) < least:
        _, trial, name = min(foretold, key=lambda one: one[0])
        return _foretold(trial, name, scorer, foresight)
    metric, objectives = scorer.task.metric, scorer.objectives

    def rank(one: tuple[float, Trial, str]) -> tuple[float, tuple[float, ...]]:
        return one[0], losses(one[1], metric, objectives, scorer.baseline_bytes)

    _, trial, name = min(timed, key=rank)
    return _timed(trial, name, scorer)


def _foretold(trial: Trial, name: str, scorer: Scorer, foresight: Foresight) -> str:
    limit = "latency" if scorer.budgets[name].max_latency_ms else "speedup"
    words = foresight.in_words(trial)
    return f"the nearest is {trial.id}, limited by its {limit}: {words}, not trained"


def _timed(trial: Trial, name: str, scorer: Scorer) -> str:
    score, budget, metric = trial.scores[name], scorer.budgets[name], scorer.task.metric
    limits = " and ".join(budget.missed(facts(trial, name, scorer))) or "verification"
    size = f", {(trial.bytes_on(name) or 0) / 1e6:.3g} MB" if budget.of_size else ""
    quality = ", not trained"
    if score.quality:
        validation = metric.text(score.quality.validation)
        quality = f", {metric.name} {validation} on the validation split"
    return f"the nearest is {trial.id}, limited by its {limits}: {score.timing}{size}{quality}"
