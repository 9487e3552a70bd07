"""What is to be tried next: a new candidate, one of the ladder trained on, or a student in other
number formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from autocompress.candidate import Candidate, Value
from autocompress.engine.clock import Allowance
from autocompress.engine.foresight import Foresight
from autocompress.engine.ladder import Climber, finalists, may_go_on, promotable, rungs
from autocompress.engine.outcomes import Outcomes, losses_of
from autocompress.engine.request import Request
from autocompress.engine.samplers import sampler
from autocompress.engine.verification import all_standing
from autocompress.errors import CandidateFailed, UserError
from autocompress.formats import choices
from autocompress.interfaces import Sampler
from autocompress.journal import Asked, Origin, Trial
from autocompress.plan import Plan
from autocompress.techniques import FORMAT_NAMES

_MOST_REPEATS = 300
"""Proposals in a row that were tried before, after which the space counts as exhausted."""
_MOST_REFUSED = 100
"""Candidates of which none could be built and met the limits of latency and size, after which the
space counts as holding none."""


@dataclass(eq=False)
class Proposal:
    """A student in some number formats, to be tried.

    Args:
        trials: in state ``asked``, or as the latency tables or a failed plan ended them.
        plan: None where the candidate cannot be planned.
        climber: whose rung it is; None of uncut formats.
        handle: of the sampler, which is told under it; None where it did not ask.
        alike: what the sampler proposed meanwhile and gives the same model, each with its handle.
    """

    by: Origin
    trials: list[Trial]
    candidate: Candidate
    plan: Plan | None
    climber: Climber | None = None
    handle: int | None = None
    alike: list[tuple[int, Climber]] = field(default_factory=list)


class Proposer:
    """Proposes, and hears what came of it.

    Args:
        foresight: plans candidates, and foretells their latencies.
        allowance: what is proposed fits its time.
        trials: that came to an end, the baseline first; it grows.
    """

    def __init__(
        self,
        request: Request,
        foresight: Foresight,
        allowance: Allowance,
        trials: Sequence[Trial],
    ) -> None:
        self.request, self.foresight = request, foresight
        self.allowance, self.trials = allowance, trials
        self.maker, self.scorer = foresight.maker, foresight.scorer
        self.outcomes = Outcomes(self.scorer, foresight)
        self.formats = choices(request.space.parameters)
        self.settings = request.space.settings
        self.sampler = _sampler(request, losses_of(self.scorer))
        self.climbers: list[Climber] = []
        self.asked = 0
        self._numbered = len(trials)
        self._proposed = 0
        self._exhausted = False
        self._known: dict[object, Trial] = {self._model(trial): trial for trial in trials}
        self._climbing: dict[object, tuple[Climber, Trial]] = {}
        self._open: list[Proposal] = []

    def next(self) -> Proposal | None:
        """What is worth most to be tried next, beside what was proposed before; None where nothing
        is, until one of those has ended."""
        return self._opened(self._next())

    def _next(self) -> Proposal | None:
        if not self._all_asked and not self._exhausted and self.allowance.exploring:
            return self._promotion() or self._new() or self._finishing()
        return self._finishing() or self._new()

    def again(self, event: Asked) -> Proposal:
        """What was proposed in an earlier process.

        Raises:
            UserError: this one would propose something else there.
        """
        proposal = self._again(event)
        if proposal is None or proposal.trials != [replace(t, state="asked") for t in event.trials]:
            raise UserError(
                f"--resume: trial {event.trials[0].id} cannot be replayed; was the run made with "
                "other library versions?"
            )
        self._opened(proposal)
        return proposal

    def _opened(self, proposal: Proposal | None) -> Proposal | None:
        """It counts as open until it has ended, in whatever process."""
        if proposal is not None:
            self._open.append(proposal)
        return proposal

    def _again(self, event: Asked) -> Proposal | None:
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

    def uncut_formats(self) -> Proposal | None:
        """The uncut model in one number format of each scheme, which costs no training; None where
        there is but one."""
        first = self.trials[0]
        others = self._untried_formats(first.student)
        by_scheme = {one.text("quantization.scheme", "fp32"): one for one in reversed(others)}
        some = [one for one in others if one in by_scheme.values()]
        return self._opened(self._in_formats(first, some, None)) if some else None

    def ended(self, proposal: Proposal) -> None:
        """What came of it, its trials being among all others; the sampler is told."""
        climber, first = proposal.climber, proposal.trials[0]
        self._open.remove(proposal)
        for trial in proposal.trials:
            self._known[self._model(trial)] = trial
        if proposal.by == "sampler":
            self.asked += 1
            self._known[climber.candidate if climber else proposal.candidate] = first
        if proposal.handle is not None:
            self.sampler.tell(proposal.handle, *self.outcomes.of(first))
        elif climber is not None:
            for trial in proposal.trials if proposal.by == "formats" else [first]:
                self.sampler.learn(self._chosen(climber, trial), *self.outcomes.of(trial))
        if climber is not None and proposal.by != "formats":
            self._join(climber, first)
        for handle, alike in proposal.alike:
            known = self._tried_before(alike.candidate, alike) or first
            self.sampler.tell(handle, *self.outcomes.of(known))

    def _model(self, trial: Trial) -> object:
        return trial.student, self._candidate(trial).only(FORMAT_NAMES)

    def trunks(self) -> set[str]:
        """Of candidates that may be trained on."""
        return {
            self.maker.trunk_of(climber.plan, climber.candidate)
            for climber in may_go_on(self.climbers, self._rivals)
        }

    def remaining_s(self) -> float | None:
        """What is still to be tried will take, if it takes so long as what was tried, and the
        front's candidates climb to the end of the ladder; None where nothing says so."""
        most = self.request.most_trials
        if most is None or not self.asked:
            return None
        first_s = [t.seconds for t in self.trials if len(t.rungs) < 2 and t.asked != 0]
        climbing_s = sum(
            self.allowance.needs_s(one.plan, rungs(one.candidate)[-1] - one.steps)
            for one in finalists(self.climbers, self._rivals)
        )
        return max(0, most - self.asked) * sum(first_s) / self.asked + climbing_s

    @property
    def _all_asked(self) -> bool:
        most = self.request.most_trials
        asked = self.asked + sum(proposal.by == "sampler" for proposal in self._open)
        return most is not None and asked >= most

    def _new(self) -> Proposal | None:
        """The sampler's next candidate that was not tried before; None where there is none, or not
        the time for it."""
        first = min((min(climber.reached) for climber in self.climbers), default=0)
        unwanted = self._exhausted or self._all_asked or self._holds_nothing()
        if unwanted or not self.allowance.fits(self.maker.full, first):
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
            known, same = self._tried_before(candidate, climber), self._open_like(climber)
            if known is not None:
                self.sampler.tell(handle, *self.outcomes.of(known))
            elif climber is not None and same is not None:
                same.alike.append((handle, climber))
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
        if climber is None or candidate in self._known:
            return self._known.get(candidate)
        if self._identity(climber) in self._climbing:
            before, trial = self._climbing[self._identity(climber)]
            if rungs(candidate)[-1] > rungs(before.candidate)[-1]:
                before.candidate = candidate
            return trial
        known = self._known.get(self._lowest(climber))
        if known is not None:
            self._join(climber, known)
        return known

    def _open_like(self, climber: Climber | None) -> Proposal | None:
        """An open proposal of the same candidate, or one that gives the same model."""
        if climber is None:
            return None
        identity, model = self._identity(climber), self._lowest(climber)
        for proposal in self._open:
            first = proposal.climber if proposal.by == "sampler" else None
            same = first is not None and self._identity(first) == identity
            if same or model in map(self._model, proposal.trials):
                return proposal
        return None

    def _lowest(self, climber: Climber) -> object:
        """Its model at its first rung."""
        lowest = self._at(climber.candidate, rungs(climber.candidate)[0])
        return self.maker.id_of(climber.plan, lowest), lowest.only(FORMAT_NAMES)

    def _identity(self, climber: Climber) -> object:
        """Of all rungs of a candidate."""
        plan, candidate = climber.plan, climber.candidate
        return self.maker.trunk_of(plan, candidate), candidate.only(FORMAT_NAMES)

    def _join(self, climber: Climber, trial: Trial) -> None:
        """A candidate came to a rung, or to its end there; one that answers the same whatever it is
        asked, though it was trained, goes no further."""
        if trial.state in ("complete", "outdone") and not _learned_nothing(trial):
            steps = int(trial.candidate.get("recovery.steps", 0))
            climber.reached[steps], climber.latest = self.outcomes.losses(trial), trial.number
            if climber not in self.climbers:
                self.climbers.append(climber)
        elif climber in self.climbers:
            self.climbers.remove(climber)
        self._climbing[self._identity(climber)] = climber, trial

    def _chosen(self, climber: Climber, trial: Trial) -> dict[str, Value]:
        """A trial as the sampler would have asked for it."""
        active = self._candidate(trial).active
        return {**climber.chosen, **{n: active[n] for n in FORMAT_NAMES if n in active}}

    def _promotion(self) -> Proposal | None:
        """The next rung of a candidate of the better half."""
        for climber in promotable([one for one in self.climbers if one not in self._climbers_open]):
            if climber.next and self.allowance.fits(climber.plan, climber.next, climber.steps):
                return self._rung_of(climber, climber.next)
        return None

    def _finishing(self) -> Proposal | None:
        """More steps for a candidate of the front, as many as fit the time; else its student in the
        number formats that it was not tried in."""
        best = [c for c in finalists(self.climbers, self._rivals) if c not in self._climbers_open]
        waiting = [climber for climber in best if not climber.fitted]
        for some in (waiting, best):  # each has its share once, before any has more
            for share in (1 / max(1, len(some)), 1):
                for climber in some:
                    more = climber.next or 0
                    steps = self.allowance.steps(climber.plan, climber.steps, more, share)
                    if steps is not None:
                        return self._rung_of(climber, steps)
        standing = {trial.number for trial in all_standing(self.trials, self.scorer)}
        for climber in self.climbers:
            if climber.latest in standing and climber not in self._climbers_open:
                first = self._numbered_as(climber.latest)
                others = self._untried_formats(first.student)
                if others and self.allowance.fits(climber.plan, 0, formats=len(others)):
                    return self._in_formats(first, others, climber)
        return None

    @property
    def _climbers_open(self) -> list[Climber]:
        return [proposal.climber for proposal in self._open if proposal.climber]

    @property
    def _rivals(self) -> list[tuple[float, ...]]:
        """Losses of the uncut model in its number formats."""
        return [
            self.outcomes.losses(trial)
            for trial in self.trials
            if trial.student == self.trials[0].student and trial.state == "complete"
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

    def _candidate(self, trial: Trial) -> Candidate:
        return self.settings.candidate(trial.candidate)

    def _holds_nothing(self) -> bool:
        """Whether so many candidates were refused, and all there were, that none is to be
        expected."""
        met = any(trial.state == "complete" for trial in self.trials[1:])
        return not met and self.asked >= _MOST_REFUSED

    def _planned(self, candidate: Candidate, *, fresh: bool) -> tuple[Plan | None, str | None]:
        """The candidate's plan, or why it has none."""
        try:
            return self.foresight.plan(candidate, self._proposed, fresh=fresh), None
        except CandidateFailed as error:
            return None, str(error)


def _learned_nothing(trial: Trial) -> bool:
    qualities = [score.quality for score in trial.scores.values()]
    constant = all(quality is not None and quality.constant for quality in qualities)
    return constant and bool(trial.candidate.get("recovery.steps", 0))


def _sampler(request: Request, losses: int) -> Sampler:
    if not isinstance(request.sampler, str):
        return request.sampler
    return sampler(request.sampler, request.space, request.seed, losses)
