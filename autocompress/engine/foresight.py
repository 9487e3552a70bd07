"""What latency tables say of candidates before they are tried, set right by those that were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.candidate import Candidate
from autocompress.engine.making import Maker, Measured
from autocompress.engine.scoring import Scorer
from autocompress.engine.tables import Tables, planned
from autocompress.errors import CandidateFailed
from autocompress.journal import Trial
from autocompress.latency.predictor import LatencyTable, shape_of
from autocompress.limits import Facts
from autocompress.plan import Plan
from autocompress.search_space import SearchSpace
from autocompress.structure import Structure

_LEAST_MARGIN = 0.1
"""A candidate is refused unseen only when it is predicted to miss a limit by more than this
share."""


@dataclass
class Foresight:
    """What latency tables say of candidates; without tables, nothing.

    Args:
        baseline_ms: latency of the uncut model, by device.
        tables: by device; none where no limit and no setting asks for them.
    """

    maker: Maker
    measured: Measured
    scorer: Scorer
    baseline_ms: dict[str, float]
    tables: dict[str, LatencyTable]

    @classmethod
    def prepare(
        cls,
        tables: Tables,
        baseline: Trial,
        space: SearchSpace,
        stage: Callable[[str, int, int], None],
        out_of_time: Callable[[], bool],
    ) -> Foresight:
        """Tables where the budget limits latency or the space prunes by latency.

        Args:
            stage: hears what is being done, and how far it is.
            out_of_time: whether to leave the rest unmeasured.
        """
        limited = any(limits.of_speed for limits in tables.scorer.budgets.values())
        by_latency = any(
            p.name == "width.latency" and str(p.values) != "1.0" for p in space.parameters
        )
        if not (limited or by_latency):
            return cls(tables.maker, tables.measured, tables.scorer, {}, {})
        baseline_ms = {
            name: score.timing.latency_ms.value for name, score in baseline.scores.items()
        }
        latency_tables = tables.of(
            space,
            lambda done, of: stage("measuring the latency table", done, of),
            out_of_time,
        )
        return cls(tables.maker, tables.measured, tables.scorer, baseline_ms, latency_tables)

    def plan(self, candidate: Candidate) -> Plan:
        """The candidate's plan; raises as ``techniques.resolve`` and ``shape_of``."""

        def latency(structure: Structure) -> float:
            name, table = next(iter(self.tables.items()))
            shape = shape_of(replace(self.maker.full, structure=structure), candidate)
            if not table.knows(shape):
                raise CandidateFailed(
                    f"the latency table of {name} does not know the number formats of this "
                    "candidate"
                )
            return table.predict(shape)

        plan = planned(self.maker, self.measured, candidate, latency if self.tables else None)
        shape_of(plan, candidate)
        return plan

    def foretold(self, trial: Trial, plan: Plan, candidate: Candidate) -> Trial:
        """The trial with its predicted latencies; over budget when every device's limit is missed
        by more than the table errs."""
        shape = shape_of(plan, candidate)
        predicted = {
            name: table.predict(shape) for name, table in self.tables.items() if table.knows(shape)
        }
        trial = replace(trial, predicted=predicted)
        if len(predicted) == len(self.scorer.devices) and all(
            self.excess(name, relative) > self._margin(name) for name, relative in predicted.items()
        ):
            return replace(
                trial, state="over-budget", reason=f"{self.in_words(trial)}, so not tried"
            )
        return trial

    def in_words(self, trial: Trial) -> str:
        """What was predicted of a trial."""

        def one(name: str, relative: float) -> str:
            about = "~" if self.scorer.devices[name].profile.estimated else ""
            return f"{about}{relative * self.baseline_ms[name]:.3g} ms on {name}"

        return "predicted " + ", ".join(
            one(name, relative) for name, relative in trial.predicted.items()
        )

    def learn(self, trial: Trial, plan: Plan, candidate: Candidate) -> None:
        """Set the tables right by a trial that was measured."""
        for name, table in self.tables.items():
            if name in trial.scores:
                table.add(shape_of(plan, candidate), 1 / trial.scores[name].timing.speedup)

    def excess(self, name: str, relative: float) -> float:
        """By how much a latency relative to the baseline misses the device's limits, as a share;
        below zero when it holds."""
        facts = Facts(latency_ms=relative * self.baseline_ms[name], speedup=1 / relative)
        return max(self.scorer.budgets[name].misses(facts).values(), default=-1.0)

    def summary(self, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
        """Mean absolute relative error of the predictions, over the trials measured afterwards, by
        device."""
        errors = {}
        for name in self.tables:
            pairs = [
                (t.predicted[name], 1 / t.scores[name].timing.speedup)
                for t in trials
                if name in t.predicted and name in t.scores
            ]
            if pairs:
                errors[name] = {
                    "mean_abs_error": float(np.mean([abs(p / m - 1) for p, m in pairs])),
                    "n": len(pairs),
                }
        return errors

    def _margin(self, name: str) -> float:
        return max(_LEAST_MARGIN, 3 * float(np.median(np.abs(self.tables[name].errors()))))
