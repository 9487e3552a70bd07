"""What a sampler is told of a trial: its losses, and by how much it misses the limits."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.engine.foresight import Foresight
from autocompress.engine.scoring import Scorer
from autocompress.engine.verification import facts, losses
from autocompress.journal import Trial
from autocompress.limits import QUALITY


@dataclass(frozen=True)
class Outcomes:
    """Judges trials.

    Args:
        foresight: of those whose latency was only predicted.
    """

    scorer: Scorer
    foresight: Foresight

    def of(self, trial: Trial) -> tuple[tuple[float, ...], float]:
        """Losses, all to be minimised, and the violation, more than zero where a limit is missed or
        the trial failed."""
        metric = self.scorer.task.metric
        if trial.state == "failed":
            worst = (*[1.0] * (losses_of(self.scorer) - 1), metric.largest_drop)
            return worst, metric.largest_drop / metric.worst_drop
        return self.losses(trial), self._violation(trial)

    def losses(self, trial: Trial) -> tuple[float, ...]:
        """See ``verification.losses``."""
        scorer = self.scorer
        return losses(trial, scorer.task.metric, scorer.objectives, scorer.baseline_bytes)

    def _violation(self, trial: Trial) -> float:
        """Of the device whose limits are missed by least. Missing one of latency or size by its
        whole counts as much as missing one of quality by the drop that counts nothing in the
        hypervolume, which is a limit where there is no other."""
        if trial.scores:
            return min(self._missed(trial, name) for name in trial.scores)
        return min(
            max(0.0, self.foresight.excess(name, relative))
            for name, relative in trial.predicted.items()
        )

    def _missed(self, trial: Trial, name: str) -> float:
        misses = self.scorer.budgets[name].misses(facts(trial, name, self.scorer))
        worst = self.scorer.task.metric.worst_drop
        of_quality = {key: 100 * misses.pop(key) / worst for key in QUALITY if key in misses}
        lost = trial.rungs[-1][1] if trial.state in ("complete", "outdone") else 0.0
        by_default = {} if "drop" in of_quality else {"drop": lost / worst - 1}
        return sum(max(0.0, miss) for miss in (misses | by_default | of_quality).values())


def losses_of(scorer: Scorer) -> int:
    """How many a trial has."""
    latencies = len(scorer.devices) if "latency" in scorer.objectives else 0
    return latencies + ("size" in scorer.objectives) + 1
