"""The search: ask, try, journal, tell, verify."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autocompress.candidate import Candidate
from autocompress.engine.attempt import Attempt
from autocompress.engine.clock import MUCH_SLOWER, Clock, Pace
from autocompress.engine.foresight import Foresight
from autocompress.engine.listener import Listener
from autocompress.engine.nearest import nearest_in_words
from autocompress.engine.request import Request
from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.engine.stopping import Answers, Contender, outclassed, rank_correlations
from autocompress.engine.tables import Tables
from autocompress.engine.verification import (
    all_standing,
    facts,
    keep_models,
    losses,
    provisional,
    verified,
    write_fronts,
)
from autocompress.errors import (
    CandidateFailed,
    DeviceLost,
    RequestUnmet,
    SearchFailed,
    UserError,
)
from autocompress.files import whole_files
from autocompress.formats import choices
from autocompress.interfaces import Sampler
from autocompress.journal import Run, Trial
from autocompress.limits import QUALITY
from autocompress.pareto import Front, Metric
from autocompress.plan import Plan
from autocompress.report import write_report
from autocompress.student import Rung
from autocompress.techniques import FORMAT_NAMES
from autocompress.units import clock

_MOST_REPEATS = 300
"""Proposals in a row that were tried before, after which the space counts as exhausted."""
_MOST_UNFIT = 10
"""Candidates in a row that the time left is too short for, after which the search ends."""
_MOST_REFUSED = 100
"""Candidates of which none could be built and met the limits of latency and size, after which the
space counts as holding none."""
_LAST_SHARE = 0.1
"""Of the time limit: a candidate that does not fit the time left then ends the search."""
_TIME_IS_UP = "the time is up"


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
    """One search: asks, plans, has students made, converted and scored, and tells; then verifies.

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
        self.asked = 0
        self.formats = choices(request.space.parameters)
        self.settings = request.space.settings
        self.sampler = _sampler(request, self._losses)
        self._ended = {trial.number: trial for trial in run.trials()}
        self._written = set(self._ended)
        self._known: dict[object, Trial] = {}
        self._passed_over: dict[Candidate, int] = {}
        self._too_long_s: list[float] = []
        self._answers = run.answers()
        self._pace = Pace(self.maker.full.structure)
        self._slowness_is_told = False
        self._proposed = 0

    @property
    def metric(self) -> Metric:
        return self.scorer.task.metric

    @property
    def _losses(self) -> int:
        """How many a trial has."""
        objectives = self.scorer.objectives
        latencies = len(self.scorer.devices) if "latency" in objectives else 0
        return latencies + ("size" in objectives) + 1

    def search(self) -> SearchResult:
        """Raises as ``session.search_for``."""
        before = len(self._ended)
        self.clock.before = sum(trial.seconds for trial in self._ended.values())
        try:
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
            self.listener.stage(f"{trial} left out: {reason}")
        write_fronts(self.run, fronts)
        self.run.note(
            prediction=self.foresight.summary(self.trials), rungs=rank_correlations(self.trials)
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

    def _keep(self, ids: Sequence[str]) -> None:
        """Delete the models, and the students, of all other trials but the baseline's."""
        kept = {"t000", *ids}
        keep_models(self.scorer.models, kept)
        self.maker.keep({t.student for t in self.trials if t.id in kept})

    def _search(self) -> None:
        recorded = deque(self.run.proposals())
        baseline = self._baseline(recorded.popleft() if recorded else None)
        self.foresight = Foresight.prepare(
            self.tables,
            baseline,
            self.request.space,
            self.listener.stage,
            lambda: self.clock.left(0),
        )
        if self._uncut_formats(baseline, recorded):
            self._try_candidates(baseline, recorded)

    def _try_candidates(self, baseline: Trial, recorded: deque[list[Trial]]) -> None:
        """As many as were asked for and fit the time."""
        repeats = unfit = 0
        most = self.request.most_trials
        asked = self._asked(recorded)
        while (
            repeats < _MOST_REPEATS
            and not self._holds_nothing()
            and (most is None or self.asked < most or recorded)
        ):
            handle, candidate = next(asked)
            self._proposed += 1
            plan, problem = self._planned(candidate, fresh=not recorded)
            known = self._trial_of(candidate, plan)
            if known is not None:
                self._tell(handle, known)
            if known is not None or candidate in self._passed_over:
                repeats += 1
                continue
            repeats = 0
            if not recorded and self._left <= 0:
                break
            proposal = self._proposal(candidate, plan, recorded)
            if proposal is None:
                break
            if proposal[0].state == "passed-over":
                self._passed_over[candidate] = handle
                unfit = 0 if recorded else unfit + 1
                if unfit > _MOST_UNFIT:
                    break
                continue
            unfit = 0
            if plan is None:
                trials = [replace(proposal[0], state="failed", reason=problem)]
                trials = [self._ended.get(trial.number, trial) for trial in trials]
            else:
                tried = self._tried(proposal, plan, candidate, baseline)
                if tried is None:
                    break
                trials = tried
            self.asked += 1
            self._record(trials, plan)
            self._known[candidate] = trials[0]
            self._tell(handle, trials[0])

    def _asked(self, recorded: deque[list[Trial]]) -> Iterator[tuple[int, Candidate]]:
        """Handles and candidates: those of a run that goes on as they were asked for, then what it
        passed over once more, then whatever the sampler wants."""
        while recorded:
            wanted = self._candidate(recorded[0][0])
            again = self._passed_over.pop(wanted, None)
            yield self._sampled() if again is None else (again, wanted)
        for candidate, handle in [*self._passed_over.items()]:
            del self._passed_over[candidate]
            plan, _ = self._planned(candidate, fresh=True)
            if self._trial_of(candidate, plan) is None:
                yield handle, candidate
        while True:
            yield self._sampled()

    def _sampled(self) -> tuple[int, Candidate]:
        handle, chosen = self.sampler.ask()
        return handle, self.request.space.candidate(chosen)

    def _holds_nothing(self) -> bool:
        """Whether so many candidates were refused, and all there were, that none is to be
        expected."""
        met = any(trial.state in ("complete", "stopped") for trial in self.trials[1:])
        return not met and self.asked >= _MOST_REFUSED

    def _baseline(self, recorded: Sequence[Trial] | None) -> Trial:
        """The uncut model in fp32, timed and scored; what all else is compared with."""
        started = time.monotonic()
        plan, candidate = self.maker.full, self.settings.candidate({})
        student = self.maker.id_of(plan, candidate)
        trial = Trial(0, candidate.as_dict(), "asked", plan.sizes(), student=student)
        if recorded is None:
            self.run.asked([trial])
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
            self.listener.stage(f"the commonest class alone has {share}")
        return trial

    def _uncut_formats(self, baseline: Trial, recorded: deque[list[Trial]]) -> bool:
        """The uncut model in every other number format, which costs no training.

        Returns:
            Whether there was the time for it.
        """
        plan, uncut = self.maker.full, self.settings.candidate({})
        others = [wanted for wanted in self.formats if wanted != uncut.only(FORMAT_NAMES)]
        if not others:
            return True
        if recorded:
            proposal = recorded.popleft()
        else:
            proposal = [replace(t, asked=0) for t in self._trials(plan, uncut, others)]
            self.run.asked(proposal)
        tried = self._tried(proposal, plan, uncut, baseline)
        if tried is not None:
            self._record(tried, plan)
        return tried is not None

    def _trials(
        self, plan: Plan | None, candidate: Candidate, formats: Sequence[Candidate]
    ) -> list[Trial]:
        """To be tried: one of each number format of a student, numbered from here on."""
        first = len(self.trials)
        if plan is None:
            return [Trial(first, candidate.as_dict(), "asked")]
        student = self.maker.id_of(plan, candidate)
        return [
            Trial(
                first + i,
                self._in_format(candidate, wanted).as_dict(),
                "asked",
                plan.sizes(),
                student=student,
                asked=None if i == 0 else first,
            )
            for i, wanted in enumerate(formats)
        ]

    def _in_format(self, candidate: Candidate, wanted: Candidate) -> Candidate:
        """The candidate in another number format."""
        others = {name: v for name, v in candidate.settings if name not in FORMAT_NAMES}
        return self.settings.candidate(others | dict(wanted.settings))

    def _proposal(
        self, candidate: Candidate, plan: Plan | None, recorded: deque[list[Trial]]
    ) -> list[Trial] | None:
        """What this candidate is to be tried as, or passed over as for want of time; the same as
        before in a run that goes on. None when the time is up.

        Raises:
            UserError: the run that goes on asked for something else here.
        """
        own = candidate.only(FORMAT_NAMES)
        formats = [own, *(wanted for wanted in self.formats if wanted != own)]
        trials = self._trials(plan, candidate, formats)
        if recorded:
            before = recorded.popleft()
            if [replace(trial, state="asked") for trial in before] != trials:
                raise UserError(
                    f"--resume: trial {before[0].id} cannot be replayed; was the run made with "
                    "other library versions?"
                )
            return before
        problem = self._unfit(trials, plan, candidate)
        if problem == _TIME_IS_UP:
            return None
        if problem is not None:
            self.listener.stage(f"a candidate is passed over: {problem}")
            trials = [replace(trial, state="passed-over") for trial in trials]
            self.run.passed_over(trials)
            return trials
        self.run.asked(trials)
        return trials

    def _unfit(
        self, trials: Sequence[Trial], plan: Plan | None, candidate: Candidate
    ) -> str | None:
        """Why what is to be trained of a candidate does not fit the time left, as ``_too_long``."""
        if plan is None or all(trial.state != "asked" for trial in self._foretold(trials, plan)):
            return None
        return self._too_long(self._pace.seconds(plan, candidate.number("recovery.steps", 0)))

    def _foretold(self, trials: Sequence[Trial], plan: Plan) -> list[Trial]:
        return [self.foresight.foretold(t, plan, self._candidate(t)) for t in trials]

    def _tried(
        self, proposal: Sequence[Trial], plan: Plan, candidate: Candidate, baseline: Trial
    ) -> list[Trial] | None:
        """What comes of a student in its number formats; None when the time is up, and nothing
        does."""
        formats = [self._candidate(trial) for trial in proposal]
        foretold = self._foretold(proposal, plan)
        trials = [self._ended.get(trial.number, trial) for trial in foretold]
        for stopped in [trial for trial in trials if trial.state == "stopped"][:1]:
            trials = [_stopped_like(stopped, trial) for trial in trials]
        left = [i for i, trial in enumerate(trials) if trial.state == "asked"]
        if not left:
            return trials
        if self._left <= 0:
            return None
        attempt = Attempt(
            self.maker,
            self.converter,
            self.scorer,
            plan,
            candidate,
            [trials[i] for i in left],
            [formats[i] for i in left],
            baseline,
            [trial for trial in trials if trial.state != "asked"],
        )
        with attempt.failing():
            in_time = self._carried_out(attempt)
            if attempt.rate_s:
                self._pace.learn(plan, attempt.rate_s)
                self._say_if_slower()
            if not in_time:
                return None
        ended = {trial.number: trial for trial in attempt.ended()}
        return [ended.get(trial.number, trial) for trial in trials]

    def _say_if_slower(self) -> None:
        """Once."""
        if self._pace.slower > MUCH_SLOWER and not self._slowness_is_told:
            self._slowness_is_told = True
            self.listener.said(
                f"a training step takes {self._pace.slower:.1f} times what it took at first: is "
                f"there other work on this machine?"
            )

    def _carried_out(self, attempt: Attempt) -> bool:
        """Make, convert, score. False when the time is up before there is anything to score."""
        attempt.begin()
        if attempt.open:
            self._write(trial for trial in attempt.trials if trial.state != "asked")
        for rung in attempt.rungs:
            if not attempt.open:
                return True
            student, reached = attempt.making.student.id, attempt.advance(rung)
            self._note_rung(student, reached)
            own = Contender(
                student, rung, attempt.steps, reached[1], attempt.timings, attempt.weight_bytes
            )
            answers = Answers(self.scorer, self._answers)
            reason = outclassed(
                own, self.trials, answers, self.metric, self.scorer.objectives
            ) or self._too_long(attempt.rate_s * (attempt.steps - rung))
            if reason == _TIME_IS_UP:
                return False
            if reason is not None:
                attempt.stop(reason)
                return True
        if attempt.open:
            sealed = attempt.seal()
            for there in sealed.rungs:  # of a student found sealed, those that were not written
                self._note_rung(sealed.id, there)
            self.run.sealed(sealed.id)
            attempt.convert_and_score(sealed)
        return True

    def _note_rung(self, student: str, reached: Rung) -> None:
        steps, drop, answers = reached
        self.run.rung(student, steps, drop, answers)
        self._answers[student, steps] = answers

    def _planned(self, candidate: Candidate, *, fresh: bool) -> tuple[Plan | None, str | None]:
        """The candidate's plan, or why it has none."""
        try:
            return self.foresight.plan(candidate, self._proposed, fresh=fresh), None
        except CandidateFailed as error:
            return None, str(error)

    def _trial_of(self, candidate: Candidate, plan: Plan | None) -> Trial | None:
        """What came of the candidate, or of another one that gives the same model."""
        if plan is None:
            return self._known.get(candidate)
        identity = self.maker.id_of(plan, candidate), candidate.only(FORMAT_NAMES)
        return self._known.get(identity) or self._known.get(candidate)

    def _record(self, trials: Sequence[Trial], plan: Plan | None) -> None:
        """Trials that came to an end, some of them in an earlier process."""
        fresh = [trial for trial in trials if trial.number not in self._ended]
        for trial in trials:
            self.trials.append(trial)
            candidate = self._candidate(trial)
            if plan is not None:
                self._known[trial.student, candidate.only(FORMAT_NAMES)] = trial
                if trial.number:
                    self.foresight.learn(trial, plan, candidate)
            if trial in fresh:
                self._write([trial])
                self.listener.trial(trial, self._remaining_s())
        if any(trial.state == "complete" for trial in fresh):
            self._write_provisional()
        if fresh and len(self.trials) > 1:
            self._keep([trial.id for trial in all_standing(self.trials, self.scorer)])

    def _write(self, trials: Iterable[Trial]) -> None:
        """Into the journal, once."""
        for trial in trials:
            if trial.number not in self._written:
                self.run.ended(trial)
                self._written.add(trial.number)

    def _tell(self, handle: int, trial: Trial) -> None:
        if trial.state == "failed":
            worst = (*[1.0] * (self._losses - 1), self.metric.largest_drop)
            self.sampler.tell(handle, worst, self.metric.largest_drop / self.metric.worst_drop)
        else:
            self.sampler.tell(handle, self._losses_of(trial), self._violation(trial))

    def _losses_of(self, trial: Trial) -> tuple[float, ...]:
        return losses(trial, self.metric, self.scorer.objectives, self.scorer.baseline_bytes)

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
        worst = self.metric.worst_drop
        of_quality = {key: 100 * misses.pop(key) / worst for key in QUALITY if key in misses}
        lost = trial.rungs[-1][1] if trial.state in ("complete", "outdone") else 0.0
        by_default = {} if "drop" in of_quality else {"drop": lost / worst - 1}
        return sum(max(0.0, miss) for miss in (misses | by_default | of_quality).values())

    @property
    def _left(self) -> float:
        """Seconds, the verification apart."""
        return self.clock.left(self._verification_s())

    def _too_long(self, seconds: float) -> str | None:
        """Why something that takes so long cannot be done, ``_TIME_IS_UP`` when nothing else could
        be done either; None when it can."""
        left = self._left
        if seconds <= left:
            return None
        self._too_long_s.append(seconds)
        if self.clock.limit is None or left < _LAST_SHARE * self.clock.limit:
            return _TIME_IS_UP
        return f"its training would take {clock(seconds)} more, {clock(left)} are left"

    def _candidate(self, trial: Trial) -> Candidate:
        return self.settings.candidate(trial.candidate)

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
        by_time = self.clock.left(0)
        if self.request.most_trials is None:
            return by_time
        if not self.asked:
            return None
        mean = sum(trial.seconds for trial in self.trials if trial.asked != 0) / self.asked
        left = self.request.most_trials - self.asked
        return min(by_time, mean * left + self._verification_s())

    def _refuse_too_short(self) -> None:
        least, limit = min(self._too_long_s, default=0.0), self.clock.limit
        verification_s = self._verification_s()
        ended = any(trial.state != "stopped" for trial in self.trials[1:])
        if limit is None or ended or self.clock.left(verification_s + least) > 0:
            return
        needed = self.clock.spent + verification_s + max(least, self.trials[0].seconds)
        raise SearchFailed(
            f"the time limit of {clock(limit)} is too short to try a candidate, which takes about "
            f"{clock(needed)} in all: go on with --resume and a longer --time-limit"
        )

    def _refuse_all_failed(self) -> None:
        tried = self.trials[1:]
        if tried and all(trial.state == "failed" for trial in tried):
            reasons = "; ".join(dict.fromkeys(f"{trial.id}: {trial.reason}" for trial in tried[:3]))
            raise SearchFailed(f"all {len(tried)} trials failed: {reasons}")


def _stopped_like(stopped: Trial, trial: Trial) -> Trial:
    """The trial, if it is open, as another one of its student ended."""
    if trial.state != "asked":
        return trial
    return replace(trial, state="stopped", reason=stopped.reason, rungs=stopped.rungs)


def _sampler(request: Request, losses: int) -> Sampler:
    if not isinstance(request.sampler, str):
        return request.sampler
    return OptunaSampler(request.space, request.sampler, request.seed, losses)
