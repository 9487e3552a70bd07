"""The search: propose, try, journal, tell, verify."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocompress.candidate import Candidate, Value
from autocompress.engine.attempt import Attempt
from autocompress.engine.clock import MUCH_SLOWER, Clock, Pace
from autocompress.engine.foresight import Foresight
from autocompress.engine.ladder import (
    FIRST_RUNG,
    Climber,
    finalists,
    may_go_on,
    promotable,
    rank_correlations,
    rungs,
)
from autocompress.engine.listener import Listener
from autocompress.engine.nearest import nearest_in_words
from autocompress.engine.outcomes import Outcomes, losses_of
from autocompress.engine.request import Request
from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.engine.tables import Tables
from autocompress.engine.verification import (
    all_standing,
    keep_models,
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
from autocompress.journal import Asked, Origin, Run, Trial
from autocompress.pareto import Front, Metric
from autocompress.plan import Plan
from autocompress.report import write_report
from autocompress.techniques import FORMAT_NAMES
from autocompress.units import clock

_MOST_REPEATS = 300
"""Proposals in a row that were tried before, after which the space counts as exhausted."""
_MOST_REFUSED = 100
"""Candidates of which none could be built and met the limits of latency and size, after which the
space counts as holding none."""
_EXPLORING_SHARE = 0.6
"""Of the time for candidates, in which new ones are tried; then those of the front are trained on,
as long as there is anything to gain."""
_LEAST_GAIN = 1.25
"""Times the steps so far that a candidate is trained on for, where the time left is too short for
its next rung."""
_WHOLE_STEPS = 32
"""Steps fitted to the time left are a multiple of these."""


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


@dataclass
class Proposal:
    """A student in some number formats, to be tried.

    Args:
        trials: in state ``asked``, or as the latency tables or a failed plan ended them.
        plan: None where the candidate cannot be planned.
        climber: whose rung it is; None of uncut formats.
        handle: of the sampler, which is told under it; None where it did not ask.
    """

    by: Origin
    trials: list[Trial]
    candidate: Candidate
    plan: Plan | None
    climber: Climber | None = None
    handle: int | None = None
    ended: dict[int, Trial] = field(default_factory=dict)


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
        self.asked = 0
        self.climbers: list[Climber] = []
        self.formats = choices(request.space.parameters)
        self.settings = request.space.settings
        self.sampler = _sampler(request, losses_of(self.scorer))
        self._ended = {trial.number: trial for trial in run.trials()}
        self._written = set(self._ended)
        self._numbered = 0
        self._known: dict[object, Trial] = {}
        self._climbing: dict[object, Trial] = {}
        self._pace = Pace(self.maker.full.structure)
        self._slowness_is_told = False
        self._proposed = 0
        self._exhausted = False
        self._began_s = 0.0

    @property
    def metric(self) -> Metric:
        return self.scorer.task.metric

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
            prediction=self.foresight.summary(self.trials),
            rungs=rank_correlations(one.history for one in self.climbers),
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

    def _keep(self, ids: Sequence[str], trunks: Collection[str] = ()) -> None:
        """Delete the models, and the students, of all other trials but the baseline's, and all
        trunks but these."""
        kept = {"t000", *ids}
        keep_models(self.scorer.models, kept)
        self.maker.keep({*trunks, *(t.student for t in self.trials if t.id in kept)})

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
        self.outcomes = Outcomes(self.scorer, self.foresight)
        left_open = self._replayed([event for event in history if not _of_baseline(event)])
        if not any(isinstance(event, Asked) and event.by == "formats" for event in history):
            left_open += self._uncut_formats()
        if not all(map(self._carried_through, left_open)):
            return
        self._began_s = self.clock.spent
        while proposal := self._next():
            if not self._carried_through(proposal):
                return

    def _baseline(self, *, asked: bool) -> Trial:
        """The uncut model in fp32, timed and scored; what all else is compared with.

        Args:
            asked: whether it is in the journal.
        """
        started = time.monotonic()
        plan, candidate = self.maker.full, self.settings.candidate({})
        student = self.maker.id_of(plan, candidate)
        trial = Trial(0, candidate.as_dict(), "asked", plan.sizes(), student=student)
        self._numbered = 1
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
            self.listener.stage(f"the commonest class alone has {share}")
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
                proposal = self._asked_again(event)
                waiting |= {trial.number: proposal for trial in proposal.trials}
                continue
            proposal = waiting.pop(event.number)
            proposal.trials = [
                event if trial.number == event.number else trial for trial in proposal.trials
            ]
            if not any(trial.number in waiting for trial in proposal.trials):
                self._end(proposal)
        return list({id(proposal): proposal for proposal in waiting.values()}.values())

    def _asked_again(self, event: Asked) -> Proposal:
        proposal = self._wanted_again(event)
        asked = [replace(trial, state="asked") for trial in event.trials]
        if proposal is None or proposal.trials != asked:
            raise UserError(
                f"--resume: trial {event.trials[0].id} cannot be replayed; was the run made with "
                "other library versions?"
            )
        return self._foretold(proposal)

    def _wanted_again(self, event: Asked) -> Proposal | None:
        if event.by == "sampler":
            return self._sampled(fresh=False)
        candidates = [self._candidate(trial) for trial in event.trials]
        climbers = [*self.climbers, None]
        if event.by == "formats":
            number = event.trials[0].asked
            climber = next(c for c in climbers if c is None or c.latest == number)
            formats = [candidate.only(FORMAT_NAMES) for candidate in candidates]
            return self._in_formats(self._numbered_as(number or 0), formats, climber)
        steps = int(candidates[0].number("recovery.steps", 0))
        for climber in self.climbers:
            if self._at(climber.candidate, steps) == candidates[0]:
                return self._rung_of(climber, steps)
        return None

    def _next(self) -> Proposal | None:
        """What is worth most to be tried next; None at the end of the search."""
        if self._exploring:
            proposal = self._promotion() or self._new() or self._finishing()
        else:
            proposal = self._finishing() or self._new()
        if proposal is None:
            return None
        self.run.asked(proposal.by, proposal.trials)
        return self._foretold(proposal)

    @property
    def _exploring(self) -> bool:
        """Whether new candidates are wanted more than better ones."""
        if self._exhausted or self._all_asked:
            return False
        if self.clock.limit is None:
            return True
        began, spent = self._began_s, self.clock.spent
        return spent - began < _EXPLORING_SHARE * (spent + self._left - began)

    @property
    def _all_asked(self) -> bool:
        most = self.request.most_trials
        return most is not None and self.asked >= most

    def _new(self) -> Proposal | None:
        """The sampler's next candidate that was not tried before; None where there is none, or not
        the time for it."""
        first = min((min(climber.reached) for climber in self.climbers), default=0)
        unwanted = self._exhausted or self._all_asked or self._holds_nothing()
        if unwanted or not self._fits(self.maker.full, first):
            return None
        return self._sampled(fresh=True)

    def _sampled(self, *, fresh: bool) -> Proposal | None:
        """The sampler's next candidate at its first rung; None where the space holds no more.

        Args:
            fresh: whether it is not replayed.
        """
        for _ in range(_MOST_REPEATS):
            handle, chosen = self.sampler.ask()
            self._proposed += 1
            candidate = self.request.space.candidate(chosen)
            plan, problem = self._planned(candidate, fresh=fresh)
            climber = None if plan is None else Climber(chosen, candidate, plan)
            known = self._tried_before(candidate, climber)
            if known is not None:
                self.sampler.tell(handle, *self.outcomes.of(known))
            elif climber is not None:
                proposal = self._rung_of(climber, rungs(candidate)[0])
                return replace(proposal, by="sampler", handle=handle)
            else:
                trial = Trial(self._numbered, candidate.as_dict(), "asked", reason=problem)
                self._numbered += 1
                return Proposal("sampler", [trial], candidate, None, handle=handle)
        self._exhausted = True
        return None

    def _tried_before(self, candidate: Candidate, climber: Climber | None) -> Trial | None:
        """What came of a candidate, or of another one that gives the same model; one that differs
        only in how it is trained on from there joins the ladder."""
        if climber is None:
            return self._known.get(candidate)
        if self._identity(climber) in self._climbing:
            return self._climbing[self._identity(climber)]
        lowest = self._at(candidate, rungs(candidate)[0])
        known = self._known.get((self.maker.id_of(climber.plan, lowest), lowest.only(FORMAT_NAMES)))
        if known is not None:
            self._join(climber, known)
        return known

    def _identity(self, climber: Climber) -> object:
        """Of all rungs of a candidate."""
        plan, candidate = climber.plan, climber.candidate
        return self.maker.trunk_of(plan, candidate), candidate.only(FORMAT_NAMES)

    def _join(self, climber: Climber, trial: Trial) -> None:
        """A candidate came to a rung, or was refused there."""
        if trial.state == "complete":
            steps = int(trial.candidate.get("recovery.steps", 0))
            climber.reached[steps], climber.latest = self.outcomes.losses(trial), trial.number
            if climber not in self.climbers:
                self.climbers.append(climber)
        self._climbing[self._identity(climber)] = trial

    def _promotion(self) -> Proposal | None:
        """The next rung of a candidate of the better half."""
        climber = promotable(self.climbers)
        if climber is None or climber.next is None:
            return None
        if not self._fits(climber.plan, climber.next, climber.steps):
            return None
        return self._rung_of(climber, climber.next)

    def _finishing(self) -> Proposal | None:
        """More steps for a candidate of the front, as many as fit the time; else its student in the
        number formats that it was not tried in."""
        for climber in finalists(self.climbers, self._rivals):
            steps = self._steps_in_time(climber)
            if steps is not None:
                return self._rung_of(climber, steps)
        standing = {trial.number for trial in all_standing(self.trials, self.scorer)}
        for climber in self.climbers:
            if climber.latest in standing:
                first = self._numbered_as(climber.latest)
                others = self._untried_formats(first.student)
                if others and self._fits(climber.plan, 0, times=len(others)):
                    return self._in_formats(first, others, climber)
        return None

    @property
    def _rivals(self) -> list[tuple[float, ...]]:
        """Losses of the uncut model in its number formats."""
        return [
            self.outcomes.losses(trial)
            for trial in self._same_student(self.trials[0])
            if trial.state == "complete"
        ]

    def _numbered_as(self, number: int) -> Trial:
        return next(trial for trial in self.trials if trial.number == number)

    def _rung_of(self, climber: Climber, steps: int) -> Proposal:
        """A candidate at so many steps: in its own number format, at the end of its ladder in all
        others, too."""
        candidate = self._at(climber.candidate, steps)
        formats = [candidate.only(FORMAT_NAMES)]
        if steps == rungs(climber.candidate)[-1]:
            student = self.maker.id_of(climber.plan, candidate)
            untried = self._untried_formats(student)
            formats += [wanted for wanted in untried if wanted not in formats]
        trials = self._trials(climber.plan, candidate, formats)
        return Proposal("ladder", trials, candidate, climber.plan, climber)

    def _uncut_formats(self) -> list[Proposal]:
        """The uncut model in one number format of each scheme, which costs no training."""
        first = self.trials[0]
        others = self._untried_formats(first.student)
        by_scheme = {one.text("quantization.scheme", "fp32"): one for one in reversed(others)}
        some = [one for one in others if one in by_scheme.values()]
        if not some:
            return []
        proposal = self._in_formats(first, some, None)
        self.run.asked("formats", proposal.trials)
        return [self._foretold(proposal)]

    def _untried_formats(self, student: str | None) -> list[Candidate]:
        """Those that a student was not tried in, but for schemes that another one outdid on the
        uncut model."""
        uncut = self.trials[0].student
        useless = {
            trial.candidate.get("quantization.scheme")
            for trial in self.trials
            if trial.student == uncut and trial.state == "outdone"
        }
        tried = [
            self._candidate(trial).only(FORMAT_NAMES)
            for trial in self.trials
            if trial.student == student
        ]
        return [
            wanted
            for wanted in self.formats
            if wanted not in tried and wanted.get("quantization.scheme", "fp32") not in useless
        ]

    def _in_formats(
        self, first: Trial, formats: Sequence[Candidate], climber: Climber | None
    ) -> Proposal:
        """The student of a trial in other number formats."""
        candidate = self._candidate(first)
        plan = climber.plan if climber else self.maker.full
        trials = [
            replace(trial, asked=first.number) for trial in self._trials(plan, candidate, formats)
        ]
        return Proposal("formats", trials, candidate, plan, climber)

    def _trials(
        self, plan: Plan, candidate: Candidate, formats: Sequence[Candidate]
    ) -> list[Trial]:
        """To be tried: one of each number format of a student, numbered from here on."""
        first = self._numbered
        self._numbered += len(formats)
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

    def _at(self, candidate: Candidate, steps: int) -> Candidate:
        """The candidate with so many recovery steps."""
        return self.settings.candidate({**dict(candidate.settings), "recovery.steps": steps})

    def _holds_nothing(self) -> bool:
        """Whether so many candidates were refused, and all there were, that none is to be
        expected."""
        met = any(trial.state == "complete" for trial in self.trials[1:])
        return not met and self.asked >= _MOST_REFUSED

    def _steps_in_time(self, climber: Climber) -> int | None:
        """Those of its next rung, or as many as fit the time left; None where these would gain
        nothing."""
        wanted, have = climber.next, climber.steps
        if wanted is None or self._fits(climber.plan, wanted, have):
            return wanted
        most = have + self._pace.steps(climber.plan, self._left - self._pace.beside_s)
        steps = _WHOLE_STEPS * int(most // _WHOLE_STEPS)
        return steps if steps >= max(_WHOLE_STEPS, _LEAST_GAIN * have) else None

    def _fits(self, plan: Plan, steps: float, done: float = 0, times: int = 1) -> bool:
        """Whether so much training fits the time left, with all that comes beside it.

        Args:
            times: number formats.
        """
        return self._needs_s(plan, steps - done) + (times - 1) * self._pace.beside_s <= self._left

    def _needs_s(self, plan: Plan, steps: float) -> float:
        return self._pace.seconds(plan, steps) + self._pace.beside_s

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

    def _carried_through(self, proposal: Proposal) -> bool:
        """Try it, and record what comes of it; False when the time is up before anything does."""
        trials = self._tried(proposal)
        if trials is None:
            return False
        proposal.trials = trials
        self._end(proposal)
        return True

    def _tried(self, proposal: Proposal) -> list[Trial] | None:
        """What comes of a student in its number formats; None when the time is up, and nothing
        does."""
        trials, plan = proposal.trials, proposal.plan
        left = [trial for trial in trials if trial.state == "asked"]
        if plan is None or not left:
            return trials
        if self._left <= 0:
            return None
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
            in_time = self._carried_out(attempt)
            self._learn_pace(attempt)
            if not in_time:
                return None
        ended = {trial.number: trial for trial in attempt.ended()}
        return [ended.get(trial.number, trial) for trial in trials]

    def _learn_pace(self, attempt: Attempt) -> None:
        if attempt.trained_steps:
            self._pace.learn(attempt.plan, attempt.training_s / attempt.trained_steps)
            self._say_if_slower()
        ended = attempt.ended()
        if any(trial.state == "complete" for trial in ended):
            beside_s = sum(trial.seconds for trial in ended) - attempt.training_s
            self._pace.learn_beside(beside_s / len(ended))

    def _same_student(self, trial: Trial) -> list[Trial]:
        return [one for one in self.trials if one.student == trial.student]

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
        if not attempt.open:
            return True
        self._write([trial for trial in attempt.trials if trial.state != "asked"])
        if not attempt.train(lambda seconds: seconds + self._pace.beside_s <= self._left):
            return False
        sealed = attempt.seal()
        self.run.sealed(sealed.id)
        attempt.convert_and_score(sealed)
        return True

    def _planned(self, candidate: Candidate, *, fresh: bool) -> tuple[Plan | None, str | None]:
        """The candidate's plan, or why it has none."""
        try:
            return self.foresight.plan(candidate, self._proposed, fresh=fresh), None
        except CandidateFailed as error:
            return None, str(error)

    def _end(self, proposal: Proposal) -> None:
        """A proposal came to an end, maybe in an earlier process: record it and tell of it."""
        self._record(proposal.trials, proposal.plan)
        climber, first = proposal.climber, proposal.trials[0]
        if proposal.by == "sampler":
            self.asked += 1
            self._known[proposal.candidate] = first
        if proposal.handle is not None:
            self.sampler.tell(proposal.handle, *self.outcomes.of(first))
        elif climber is not None:
            for trial in proposal.trials if proposal.by == "formats" else [first]:
                self.sampler.learn(self._chosen(climber, trial), *self.outcomes.of(trial))
        if climber is not None and proposal.by != "formats":
            self._join(climber, first)
        if any(trial.number not in self._ended for trial in proposal.trials):
            self._tidy()

    def _chosen(self, climber: Climber, trial: Trial) -> dict[str, Value]:
        """A trial as the sampler would have asked for it."""
        active = self._candidate(trial).active
        formats = {name: active[name] for name in FORMAT_NAMES if name in active}
        searched = {parameter.name for parameter in self.request.space.parameters}
        return {n: v for n, v in {**climber.chosen, **formats}.items() if n in searched}

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

    def _tidy(self) -> None:
        """Delete what nothing more comes of."""
        standing = [trial.id for trial in all_standing(self.trials, self.scorer)]
        trunks = {
            self.maker.trunk_of(climber.plan, climber.candidate)
            for climber in may_go_on(self.climbers, self._rivals)
        }
        self._keep(standing, trunks)

    def _write(self, trials: Sequence[Trial]) -> None:
        """Into the journal, once."""
        for trial in trials:
            if trial.number not in self._written:
                self.run.ended(trial)
                self._written.add(trial.number)

    @property
    def _left(self) -> float:
        """Seconds, the verification apart."""
        return self.clock.left(self._verification_s())

    def _candidate(self, trial: Trial) -> Candidate:
        return self.settings.candidate(trial.candidate)

    def _verification_s(self) -> float:
        """What the end of the search may take: the baseline's trial was an export, a timing and a
        scoring."""
        models = len(all_standing(self.trials, self.scorer)) + 1
        profiles = {
            name: device.profile
            for name, device in self.scorer.devices.items()
            if not device.profile.estimated
        }
        times = {
            name: len(profiles[name].regimes(True))
            + (len(profiles[name].phases(True)) - 1 if score.timing.phase else 0)
            for name, score in self.trials[0].scores.items()
            if name in profiles
        }
        timing_s = sum(times[name] * profile.final_seconds for name, profile in profiles.items())
        return 5 + models * (timing_s + 0.5 * self.trials[0].seconds)

    def _remaining_s(self) -> float | None:
        """To the end of the search: of its time limit, or what is still to be tried takes so long
        as what was tried, and the front's candidates climb to the end of the ladder."""
        by_time = self.clock.left(0)
        if self.request.most_trials is None:
            return by_time
        if not self.asked:
            return None
        first_s = [
            trial.seconds for trial in self.trials if len(trial.rungs) < 2 and trial.asked != 0
        ]
        to_ask = self.request.most_trials - self.asked
        climbing_s = sum(
            self._needs_s(one.plan, rungs(one.candidate)[-1] - one.steps)
            for one in finalists(self.climbers, self._rivals)
        )
        asking_s = to_ask * sum(first_s) / self.asked
        return min(by_time, asking_s + climbing_s + self._verification_s())

    def _refuse_too_short(self) -> None:
        limit, first = self.clock.limit, self.trials[0]
        if limit is None or self.trials[1:]:
            return
        needed = (
            self.clock.spent
            + self._verification_s()
            + max(first.seconds, self._needs_s(self.maker.full, FIRST_RUNG))
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


def _sampler(request: Request, losses: int) -> Sampler:
    if not isinstance(request.sampler, str):
        return request.sampler
    return OptunaSampler(request.space, request.sampler, request.seed, losses)
