"""The search: propose, try, journal, tell, verify."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autocompress.candidate import Candidate
from autocompress.engine.attempt import Attempt
from autocompress.engine.backends import Backend
from autocompress.engine.clock import MUCH_SLOWER, Allowance, Clock, Pace
from autocompress.engine.foresight import Foresight
from autocompress.engine.ladder import (
    FIRST_RUNG,
    rank_correlations,
)
from autocompress.engine.listener import Listener
from autocompress.engine.nearest import nearest_in_words
from autocompress.engine.proposing import Proposal, Proposer
from autocompress.engine.request import Request
from autocompress.engine.tables import Tables
from autocompress.engine.verification import (
    all_standing,
    keep_models,
    provisional,
    verified,
    write_fronts,
)
from autocompress.engine.workshop import Made
from autocompress.errors import (
    CandidateFailed,
    DeviceLost,
    RequestUnmet,
    SearchFailed,
    UserError,
)
from autocompress.files import whole_files
from autocompress.journal import Asked, Run, Trial
from autocompress.pareto import Front, Metric
from autocompress.plan import Plan
from autocompress.report import write_report
from autocompress.units import clock

_PATIENCE = 10
"""Times what a student should take, before it counts as hanging."""
_LEAST_PATIENCE_S = 600.0
"""Seconds beside that, in which a worker is set up, too."""
_PATIENCE_UNKNOWN_S = 3600.0
"""While nothing says what one takes."""


@dataclass(frozen=True)
class SearchResult:
    """What a search leaves.

    Args:
        fronts: the verified front of each device, by name of its profile.
        run: the run folder.
        trials: all of them, the baseline first.
    """

    fronts: dict[str, Front]
    run: Path
    trials: tuple[Trial, ...]

    @property
    def front(self) -> Front:
        """Of the first device."""
        return next(iter(self.fronts.values()))


class Loop:
    """One search: proposes, has students made, converted and scored, and tells; then verifies.

    Args:
        run: the folder, held by this process.
        tables: measure latencies before candidates are tried.
    """

    def __init__(
        self, request: Request, run: Run, tables: Tables, listener: Listener, clock: Clock
    ) -> None:
        self.request, self.run, self.listener, self.clock = request, run, listener, clock
        self.tables, self.maker = tables, tables.maker
        self.converter, self.scorer = tables.converter, tables.scorer
        self.trials: list[Trial] = []
        self.pace = Pace(self.maker.full.structure)
        self.allowance = Allowance(clock, self.pace, self._verification_s)
        self._ended = {trial.number: trial for trial in run.trials()}
        for trial in self._ended.values():
            self.scorer.remember(trial.id, {n: score.timing for n, score in trial.scores.items()})
        self._written = set(self._ended)
        self._slowness_is_told = False
        self._ordered: dict[int, tuple[Proposal, Attempt]] = {}
        self._begun: list[Proposal] = []
        self._held: list[Proposal] = []

    @property
    def metric(self) -> Metric:
        return self.scorer.task.metric

    def search(self, backend: Backend) -> SearchResult:
        """Raises as ``session.search_for``.

        Args:
            backend: makes the students.
        """
        before, self.backend = len(self._ended), backend
        self.clock.before = sum(trial.seconds for trial in self._ended.values())
        try:
            with contextlib.closing(backend):
                self._search()
            self._refuse_too_short()
            self._refuse_all_failed()
            stage = f"verifying the front, which takes about {clock(self._verification_s())}"
            self.listener.stage(stage)
            outcome = verified(
                self.trials, self.scorer, lambda done, of: self.listener.stage(stage, done, of)
            )
        except (KeyboardInterrupt, UserError, CandidateFailed, DeviceLost):
            if len(self.trials) > before:
                with contextlib.suppress(OSError):
                    self._write_provisional()
                    write_report(self.run.folder)
            raise
        fronts = outcome.fronts
        for trial, reason in outcome.failed.items():
            self.listener.said(f"{trial} left out: {reason}")
        write_fronts(self.run, fronts)
        self.run.note(
            prediction=self.foresight.summary(self.trials),
            rungs=rank_correlations(one.history for one in self.proposer.climbers),
        )
        write_report(self.run.folder)
        self._keep([member.id for front in fronts for member in front.members])
        if not any(front.members for front in fronts):
            tried, rejected = len(self.trials) - 1, outcome.rejected
            near = nearest_in_words(self.trials, self.scorer, self.foresight, rejected)
            raise RequestUnmet(f"none of {tried} candidates meets the budget; {near}")
        by_name = dict(zip(self.scorer.devices, fronts, strict=True))
        return SearchResult(by_name, self.run.folder, tuple(self.trials))

    def _write_provisional(self) -> None:
        fronts = [provisional(self.trials, name, self.scorer) for name in self.scorer.devices]
        write_fronts(self.run, fronts)

    def _keep(
        self, ids: Sequence[str], trunks: Collection[str] = (), at_work: Collection[str] = ()
    ) -> None:
        """Delete the models, and the students, of all other trials but the baseline's, and all
        trunks but these; what is at work stays. Where all are to be kept, of those that did not
        complete."""
        if self.request.keep == "all":
            ids = [trial.id for trial in self.trials if trial.state == "complete"]
        kept = {"t000", *ids}
        keep_models(self.scorer.models, kept)
        self.maker.keep({*trunks, *(t.student for t in self.trials if t.id in kept)}, at_work)

    def _search(self) -> None:
        history = self.run.history()
        baseline = self._baseline(asked=bool(history))
        self.foresight = Foresight.prepare(
            self.tables,
            baseline,
            self.request.space,
            self.listener.stage,
            lambda: self.clock.left(0),
        )
        self.proposer = Proposer(self.request, self.foresight, self.allowance, self.trials)
        left_open = self._replayed([event for event in history if not _of_baseline(event)])
        if not any(isinstance(event, Asked) and event.by == "formats" for event in history):
            uncut = self._asked(self.proposer.uncut_formats())
            left_open += [uncut] if uncut else []
        self._carry_out(iter(left_open))
        self.allowance.begin()
        self._carry_out(self._wanted())

    def _wanted(self) -> Iterator[Proposal | None]:
        """What is worth most at the time; None where nothing is, for now."""
        while True:
            yield self._asked(self.proposer.next())

    def _asked(self, proposal: Proposal | None) -> Proposal | None:
        """With a line in the journal."""
        if proposal is None:
            return None
        self.run.asked(proposal.by, proposal.trials)
        return self._foretold(proposal)

    def _baseline(self, *, asked: bool) -> Trial:
        """The uncut model in fp32, timed and scored; what all else is compared with.

        Args:
            asked: whether it is in the journal.
        """
        started = time.monotonic()
        plan, candidate = self.maker.full, self.request.space.settings.candidate({})
        student = self.maker.id_of(plan, candidate)
        trial = Trial(0, candidate.as_dict(), "asked", plan.sizes(), student=student)
        if not asked:
            self.run.asked("uncut", [trial])
        trial = self._ended.get(0, trial)
        if trial.state == "asked":
            sealed = self.maker.seal(self.maker.begin(plan, candidate))
            with self.converter.graph_of(sealed) as graph:
                folder, parity = self.converter.ship(
                    graph, sealed, candidate, trial.candidate, trial.id
                )
            timings = self.scorer.time_baseline()
            scores = self.scorer.scores(folder, timings, None)
            self.scorer.refuse_ignorance(scores)
            trial = replace(
                trial,
                state="complete",
                rungs=((0, 0.0),),
                scores=scores,
                weight_bytes=(folder / "model.onnx").stat().st_size,
                parity=parity,
                path=f"models/{trial.id}",
                seconds=time.monotonic() - started,
            )
        else:
            whole_files(self.scorer.baseline)
        self._record([trial], plan)
        alone = self.scorer.commonest(self.scorer.task.validation)
        if alone is not None:
            share = f"{self.metric.name} {self.metric.text(alone)} on validation"
            self.listener.said(f"the commonest class alone has {share}")
        return trial

    def _replayed(self, history: Sequence[Asked | Trial]) -> list[Proposal]:
        """All that an earlier process did is done again but for the work itself, in the same order.

        Returns:
            What it left open.

        Raises:
            UserError: it asked for something else than this one would.
        """
        waiting: dict[int, Proposal] = {}
        for event in history:
            if isinstance(event, Asked):
                proposal = self._foretold(self.proposer.again(event))
                waiting |= {trial.number: proposal for trial in proposal.trials}
                continue
            proposal = waiting.pop(event.number)
            proposal.trials = [
                event if trial.number == event.number else trial for trial in proposal.trials
            ]
            if not any(trial.number in waiting for trial in proposal.trials):
                self._end(proposal)
        return list({id(proposal): proposal for proposal in waiting.values()}.values())

    def _foretold(self, proposal: Proposal) -> Proposal:
        """With what the latency tables, or a plan that failed, say of its trials."""
        plan = proposal.plan
        if plan is None:
            proposal.trials = [replace(trial, state="failed") for trial in proposal.trials]
        else:
            proposal.trials = [
                self.foresight.foretold(trial, plan, self._candidate(trial))
                for trial in proposal.trials
            ]
        return proposal

    def _carry_out(self, proposals: Iterator[Proposal | None]) -> None:
        """Try them, as many at a time as there are workers; what comes of each is recorded. A
        single worker waits until its student is scored, several are given more to do meanwhile."""
        self._hand_out(proposals)
        while self._ordered:
            order, made = self.backend.done()
            proposal, attempt = self._ordered.pop(order.number)
            if self.backend.workers > 1:
                self._hand_out(proposals)
            self._carry_on(proposal, attempt, made)
            self._hand_out(proposals)

    def _hand_out(self, proposals: Iterator[Proposal | None]) -> None:
        """To free workers, but none that has a trunk in common with one that is begun."""
        workers = self.backend.workers
        while len(self._ordered) < workers and len(self._held) < workers:
            free = (one for one in self._held if not self._meets_one_begun(one))
            proposal = next(free, None)
            if proposal is not None:
                self._held.remove(proposal)
            else:
                proposal = next(proposals, None)
            if proposal is None:
                return
            if self._meets_one_begun(proposal):
                self._held.append(proposal)
            else:
                self._begin(proposal)

    def _meets_one_begun(self, proposal: Proposal) -> bool:
        return self._trunk(proposal) in map(self._trunk, self._begun)

    def _trunk(self, proposal: Proposal) -> str | None:
        plan, candidate = proposal.plan, proposal.candidate
        return None if plan is None else self.maker.trunk_of(plan, candidate)

    def _begin(self, proposal: Proposal) -> None:
        """Order its student, where one is needed and there is the time."""
        trials, plan = proposal.trials, proposal.plan
        left = [trial for trial in trials if trial.state == "asked"]
        if plan is None or not left:
            self._end(proposal)
            return
        if self.allowance.left <= 0:
            return
        climber = proposal.climber
        attempt = Attempt(
            self.maker,
            self.converter,
            self.scorer,
            plan,
            proposal.candidate,
            left,
            [self._candidate(trial) for trial in left],
            self.trials[0],
            [*self._same_student(left[0]), *(t for t in trials if t.state != "asked")],
            climber.history if climber and proposal.by == "ladder" else (),
        )
        with attempt.failing():
            attempt.begin()
        if not attempt.open:
            self._end_with(proposal, attempt)
            return
        self._write([trial for trial in attempt.trials if trial.state != "asked"])
        self._begun.append(proposal)
        self._ordered[left[0].number] = proposal, attempt
        left_s = self.allowance.left - self.pace.beside_s
        self.backend.submit(attempt.order(left_s, self._patience_s(attempt)))

    def _patience_s(self, attempt: Attempt) -> float:
        """After which a student counts as hanging."""
        known_s = self.pace.seconds(attempt.plan, attempt.steps)
        return _LEAST_PATIENCE_S + (_PATIENCE * known_s or _PATIENCE_UNKNOWN_S)

    def _carry_on(self, proposal: Proposal, attempt: Attempt, made: Made) -> None:
        """Score what was made, unless its time was up before there was anything to score."""
        with attempt.failing():
            student = attempt.student(made, self.backend.workers)
            if student is not None:
                self.run.sealed(student.id)
                attempt.convert_and_score(student)
        self._begun.remove(proposal)
        self._learn_pace(attempt)
        if made.sealed or made.failed:
            self._end_with(proposal, attempt)

    def _end_with(self, proposal: Proposal, attempt: Attempt) -> None:
        ended = {trial.number: trial for trial in attempt.ended()}
        proposal.trials = [ended.get(trial.number, trial) for trial in proposal.trials]
        self._end(proposal)

    def _learn_pace(self, attempt: Attempt) -> None:
        made = attempt.made
        if made.steps:
            self.pace.learn(attempt.plan, made.training_s / made.steps)
            self._say_if_slower()
        ended = attempt.ended()
        if any(trial.state == "complete" for trial in ended):
            self.pace.learn_beside(attempt.beside_s / len(ended))

    def _same_student(self, trial: Trial) -> list[Trial]:
        return [one for one in self.trials if one.student == trial.student]

    def _say_if_slower(self) -> None:
        """Once."""
        if self.pace.slower > MUCH_SLOWER and not self._slowness_is_told:
            self._slowness_is_told = True
            self.listener.said(
                f"a training step takes {self.pace.slower:.1f} times what it took at first: is "
                f"there other work on this machine?"
            )

    def _end(self, proposal: Proposal) -> None:
        """A proposal came to an end, maybe in an earlier process."""
        self._record(proposal.trials, proposal.plan)
        self.proposer.ended(proposal)
        if any(trial.number not in self._ended for trial in proposal.trials):
            standing = [trial.id for trial in all_standing(self.trials, self.scorer)]
            self._keep(standing, self.proposer.trunks(), self._at_work())

    def _at_work(self) -> set[str]:
        """Students that workers read and write, or will."""
        proposals = [(one.plan, one.candidate) for one in (*self._begun, *self._held)]
        return {
            name
            for plan, candidate in proposals
            if plan is not None
            for name in self.maker.read_for(plan, candidate)
        }

    def _record(self, trials: Sequence[Trial], plan: Plan | None) -> None:
        """Trials that came to an end, some of them in an earlier process."""
        fresh = [trial for trial in trials if trial.number not in self._ended]
        for trial in trials:
            self.trials.append(trial)
            if plan is not None and trial.number:
                self.foresight.learn(trial, plan, self._candidate(trial))
            if trial in fresh:
                self._write([trial])
                self.listener.trial(trial, self._remaining_s())
        if any(trial.state == "complete" for trial in fresh):
            self._write_provisional()

    def _write(self, trials: Sequence[Trial]) -> None:
        """Into the journal, once."""
        for trial in trials:
            if trial.number not in self._written:
                self.run.ended(trial)
                self._written.add(trial.number)

    def _candidate(self, trial: Trial) -> Candidate:
        return self.request.space.settings.candidate(trial.candidate)

    def _verification_s(self) -> float:
        """What the end of the search may take: its timings, and the test split answered by each
        model in proportion to its latency; half of the baseline's trial was such a scoring."""
        standing = [trial for trial in all_standing(self.trials, self.scorer) if trial.number]
        baseline, task = self.trials[0], self.scorer.task
        timing_s = sum(
            self.scorer.devices[name].profile.all_final_seconds(generates=bool(score.timing.phase))
            for name, score in baseline.scores.items()
        )
        work = sum(
            max(1 / score.timing.speedup for score in trial.scores.values())
            for trial in (baseline, *standing)
        )
        share = len(task.test.rows) / len(task.validation.rows)
        scoring_s = 0.5 * baseline.seconds * work * share
        return 5 + max(1, len(standing)) * timing_s + scoring_s

    def _remaining_s(self) -> float | None:
        """To the end of the search; None when nothing is known yet."""
        by_time = self.clock.left(0)
        by_trials = self.proposer.remaining_s() if self.trials[1:] else None
        if by_trials is None:
            return by_time if self.request.most_trials is None else None
        return min(by_time, by_trials + self._verification_s())

    def _refuse_too_short(self) -> None:
        limit, first = self.clock.limit, self.trials[0]
        if limit is None or self.trials[1:]:
            return
        needed = (
            self.clock.spent
            + self._verification_s()
            + max(first.seconds, self.allowance.needs_s(self.maker.full, FIRST_RUNG))
        )
        raise SearchFailed(
            f"the time limit of {clock(limit)} is too short to try a candidate, which takes about "
            f"{clock(needed)} in all: go on with --resume and a longer --time-limit"
        )

    def _refuse_all_failed(self) -> None:
        tried = self.trials[1:]
        if tried and all(trial.state == "failed" for trial in tried):
            reasons = "; ".join(dict.fromkeys(f"{trial.id}: {trial.reason}" for trial in tried[:3]))
            raise SearchFailed(f"all {len(tried)} trials failed: {reasons}")


def _of_baseline(event: Asked | Trial) -> bool:
    return event.by == "uncut" if isinstance(event, Asked) else event.number == 0
