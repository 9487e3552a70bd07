"""What latency tables say of candidates before they are tried, set right by those that were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autocompress.candidate import Candidate
from autocompress.engine.making import Maker, Measured
from autocompress.engine.scoring import Scorer
from autocompress.engine.tables import GrowingTables, Tables, planned
from autocompress.errors import CandidateFailed
from autocompress.journal import Trial
from autocompress.latency.predictor import LatencyTable, Shape, shape_of
from autocompress.limits import Facts
from autocompress.plan import Plan
from autocompress.search_space import SearchSpace
from autocompress.structure import Structure

_GROWING_SHARE = 1 / 20
"""Of a search's time, for a table that only some candidates need."""


@dataclass
class Foresight:
    """What latency tables say of candidates; without tables, nothing.

    Args:
        baseline_ms: latency of the uncut model, by device.
        tables: by device; none where no limit and no setting asks for them.
        growing: gives tables when candidates first need them; None where they are whole from the
            beginning, or not needed.
        measured_trials: shapes and latencies relative to the baseline, by device.
    """

    maker: Maker
    measured: Measured
    scorer: Scorer
    baseline_ms: dict[str, float]
    tables: dict[str, LatencyTable]
    growing: GrowingTables | None = None
    measured_trials: dict[str, list[tuple[Shape, float]]] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls,
        tables: Tables,
        baseline: Trial,
        space: SearchSpace,
        stage: Callable[[str, int, int], None],
        left_s: Callable[[], float],
    ) -> Foresight:
        """Tables where the budget limits latency or the space prunes by latency; where it is one
        choice among others not to, and nothing is limited, they grow as candidates need them.

        Args:
            stage: hears what is being done, and how far it is.
            left_s: of the search; whole tables take half of it at most, tables that grow a
                twentieth.
        """
        whole_s = left_s()

        def progress(done: int, of: int) -> None:
            stage("measuring the latency table", done, of)

        limited = any(limits.of_speed for limits in tables.scorer.budgets.values())
        shares = [
            p for p in space.parameters if p.name == "width.latency" and str(p.values) != "1.0"
        ]
        baseline_ms = {
            name: score.timing.latency_ms.value for name, score in baseline.scores.items()
        }
        known = cls(tables.maker, tables.measured, tables.scorer, baseline_ms, {})
        if limited or any(not parameter.contains(1.0) for parameter in shares):
            known.tables = tables.of(space, progress, lambda: left_s() < whole_s / 2)
        elif shares:
            known.growing = GrowingTables(tables, space, _GROWING_SHARE * whole_s, progress)
        return known

    def plan(self, candidate: Candidate, proposal: int = 0, *, fresh: bool = True) -> Plan:
        """The candidate's plan; raises as ``techniques.resolve`` and ``shape_of``.

        Args:
            proposal: its number among all that were proposed, tried before or not.
            fresh: whether it is not replayed.
        """
        grown = False

        def latency(structure: Structure) -> float:
            nonlocal grown
            shape = shape_of(replace(self.maker.full, structure=structure), candidate)
            if self.growing and not grown:
                grown = True
                self.tables = self.growing.at(proposal, shape, self.measured_trials, fresh=fresh)
            name = next(iter(self.scorer.devices))
            table = self.tables.get(name)
            if table is None or not table.knows(shape):
                raise CandidateFailed(
                    f"the latency table of {name} does not know the number formats of this "
                    "candidate"
                )
            return table.predict(shape)

        known = latency if self.tables or self.growing else None
        plan = planned(self.maker, self.measured, candidate, known)
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
            self.excess(name, relative) > self.tables[name].margin
            for name, relative in predicted.items()
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
        for name, score in trial.scores.items():
            row = shape_of(plan, candidate), 1 / score.timing.speedup
            self.measured_trials.setdefault(name, []).append(row)
            if name in self.tables:
                self.tables[name].add(*row)

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
