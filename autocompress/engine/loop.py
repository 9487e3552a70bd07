"""The search: ask, try, journal, tell, verify."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from autocompress.candidate import Candidate
from autocompress.engine.foresight import Foresight
from autocompress.engine.request import Request
from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.engine.verification import (
    all_standing,
    keep_models,
    losses,
    misses,
    provisional,
    verified,
    violation,
    write_fronts,
)
from autocompress.engine.workbench import OutOfTime, Workbench
from autocompress.errors import CandidateFailed, RequestUnmet, SearchFailed, UserError
from autocompress.journal import Trial
from autocompress.pareto import Front, Member, Metric, nearest
from autocompress.report import write_report
from autocompress.scores import Timing
from autocompress.structure import Structure
from autocompress.techniques import TECHNIQUES
from autocompress.units import clock

_MOST_REPEATS = 300
"""Proposals in a row that were tried before, after which the space counts as exhausted."""
_MOST_UNFIT = 10
"""Candidates in a row that the time left is too short for, after which the search ends."""
_LAST_SHARE = 0.1
"""Of the time limit: a candidate that does not fit the time left then ends the search."""
_TIMING_NOISE = 0.03
"""Share by which two timings of one model differ by chance."""
_STRUCTURAL = tuple(
    {setting.name.partition(".")[0] for technique in TECHNIQUES for setting in technique.settings}
)


class Listener(Protocol):
    """Hears of a search's progress."""

    def stage(self, name: str, done: int = 0, of: int = 0) -> None:
        """A stage has begun, or has got so far."""
        ...

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        """A trial has ended; seconds to the end of the whole search, None when nothing is known
        yet."""
        ...


class Silent:
    """Hears nothing."""

    def stage(self, name: str, done: int = 0, of: int = 0) -> None: ...

    def trial(self, trial: Trial, remaining_s: float | None) -> None: ...


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


class Clock:
    """Time left under the request's limit; time spent before a resume counts."""

    def __init__(self, request: Request) -> None:
        self.started = time.monotonic()
        self.limit = request.time_limit_s
        self.before = 0.0

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.started

    def left(self, reserve: float) -> float:
        return float("inf") if self.limit is None else self.limit - self.spent - reserve


class Loop:
    """One search, from a prepared workbench to verified fronts."""

    def __init__(
        self, request: Request, bench: Workbench, listener: Listener, clock: Clock
    ) -> None:
        self.request, self.bench, self.listener, self.clock = request, bench, listener, clock
        self.trials: list[Trial] = []
        self.sampler = OptunaSampler(
            request.space, request.sampler, request.seed, devices=len(bench.devices)
        )

    @property
    def metric(self) -> Metric:
        return self.bench.task.metric

    def run(self) -> SearchResult:
        """Raises as ``session.search_for``."""
        recorded = self.bench.run.trials()
        self.clock.before = sum(trial.seconds for trial in recorded)
        try:
            self._search(recorded)
            self._refuse_all_failed()
            self.listener.stage("verifying the front")
            found = verified(self.trials, self.bench)
        except (KeyboardInterrupt, UserError, CandidateFailed):
            if len(self.trials) > len(recorded):
                with contextlib.suppress(OSError):
                    self._write_provisional()
                    write_report(self.bench.run.folder)
            raise
        fronts = found.fronts
        for trial, reason in found.failed.items():
            self.listener.stage(f"{trial} left out: {reason}")
        write_fronts(self.bench.run, fronts)
        self.bench.run.note(prediction=self.foresight.summary(self.trials))
        write_report(self.bench.run.folder)
        keep_models(self.bench.run, [member for front in fronts for member in front.members])
        if not any(front.members for front in fronts):
            raise RequestUnmet(
                f"none of {len(self.trials) - 1} candidates meets the budget; "
                f"{self._nearest(found.rejected)}"
            )
        by_name = dict(zip(self.bench.devices, fronts, strict=True))
        return SearchResult(by_name, self.bench.run.folder, tuple(self.trials))

    def _write_provisional(self) -> None:
        write_fronts(
            self.bench.run,
            [provisional(self.trials, name, self.bench) for name in self.bench.devices],
        )

    def _search(self, recorded: Sequence[Trial]) -> None:
        self._record(recorded[0] if recorded else self.bench.baseline(), bool(recorded))
        half = self.clock.left(0) / 2
        self.foresight = Foresight.prepare(
            self.bench,
            self.trials[0],
            self.request.space,
            self.listener.stage,
            lambda: self.clock.left(0) < half,
        )
        baseline = self.trials[0]
        seen: dict[object, Trial] = {
            _identity(self.bench.full, Candidate(tuple(baseline.candidate.items()))): baseline
        }
        repeats = unfit = 0
        most = self.request.most_trials
        while repeats < _MOST_REPEATS and (
            most is None or len(self.trials) <= most or len(self.trials) < len(recorded)
        ):
            handle, chosen = self.sampler.ask()
            candidate, structure, problem = self._resolve(self.request.space.candidate(chosen))
            identity = _identity(structure, candidate) if structure else candidate
            known = seen.get(identity) or seen.get(candidate)
            if known is not None:
                self._tell(handle, known)
                repeats += 1
                continue
            repeats = 0
            number = len(self.trials)
            if number < len(recorded):
                trial = recorded[number]
                if trial.candidate != candidate.as_dict() or (
                    structure is not None and trial.sizes != structure.sizes()
                ):
                    raise UserError(
                        f"--resume: trial {trial.id} cannot be replayed; was the run made with "
                        f"other library versions?"
                    )
            elif self.clock.left(self._verification_s()) <= 0:
                break
            elif structure is None:
                trial = Trial(number, candidate.as_dict(), "failed", reason=problem)
            else:
                found = self.foresight.foretold(
                    Trial(number, candidate.as_dict(), "failed", structure.sizes()),
                    structure,
                    candidate,
                )
                if found.state == "over-budget":
                    trial = found
                else:
                    try:
                        problem = self._too_long(self._seconds_for(candidate))
                        if problem is None:
                            trial = self.bench.evaluate(
                                found, candidate, structure, baseline, self._promote
                            )
                        else:
                            trial = replace(found, reason=problem)
                    except OutOfTime:
                        break
                    unfit = 0 if problem is None else unfit + 1
                    if unfit > _MOST_UNFIT:
                        break
            if structure is not None:
                self.foresight.learn(trial, structure, candidate)
            self._record(trial, number < len(recorded))
            seen[identity] = seen[candidate] = trial
            self._tell(handle, trial)

    def _resolve(self, candidate: Candidate) -> tuple[Candidate, Structure | None, str | None]:
        """The candidate's structure; an uncut candidate loses the settings of what a cut needs, a
        start and recovery."""
        try:
            structure = self.foresight.resolve(candidate)
        except CandidateFailed as error:
            return candidate, None, str(error)
        return (
            (
                candidate.without("weights", "recovery")
                if structure == self.bench.full
                else candidate
            ),
            structure,
            None,
        )

    def _record(self, trial: Trial, replayed: bool) -> None:
        self.trials.append(trial)
        if replayed:
            return
        self.bench.run.append(trial)
        self.listener.trial(trial, self._remaining_s())
        if trial.state == "complete":
            self._write_provisional()
            keep_models(self.bench.run, all_standing(self.trials, self.bench))

    def _tell(self, handle: int, trial: Trial) -> None:
        if trial.state == "failed":
            self.sampler.tell(
                handle, (*(1.0 for _ in self.bench.devices), self.metric.largest_drop), 1.0
            )
        else:
            self.sampler.tell(handle, losses(trial, self.metric), self._violation(trial))

    def _violation(self, trial: Trial) -> float:
        """Of the device whose limits are missed by least; a drop that counts nothing in the
        hypervolume is one, too."""
        budgets = self.bench.budgets
        if trial.scores:
            lost = trial.rungs[-1][1] if trial.state == "complete" else 0.0
            return min(
                violation(trial, name, budgets[name])
                + self.bench.memory_excess(name, score.timing)
                + max(0.0, lost / max(self.metric.worst_drop, budgets[name].max_drop or 0.0) - 1)
                for name, score in trial.scores.items()
            )
        return min(
            max(0.0, self.foresight.excess(name, relative))
            for name, relative in trial.predicted.items()
        )

    def _promote(
        self,
        rung: int,
        steps: int,
        drop: tuple[float, float],
        timings: Mapping[str, Timing],
        remaining_s: float,
    ) -> str | None:
        return outclassed(self.trials, rung, steps, drop, timings, self.metric) or self._too_long(
            remaining_s
        )

    def _too_long(self, seconds: float) -> str | None:
        """Why something that takes so long cannot be done; None when it can.

        Raises:
            OutOfTime: nothing else could be done either.
        """
        left = self.clock.left(self._verification_s())
        if seconds <= left:
            return None
        if self.clock.limit is None or left < _LAST_SHARE * self.clock.limit:
            raise OutOfTime
        return f"its training would take {clock(seconds)} more, {clock(left)} are left"

    def _seconds_for(self, candidate: Candidate) -> float:
        """What a trial may take, from the trials so far: from those trained in full, where there
        are any."""
        steps = candidate.number("recovery.steps", 0)
        trained = [trial for trial in self.trials[1:] if trial.rungs and trial.rungs[-1][0]]
        rates = [
            t.seconds / t.rungs[-1][0]
            for t in [t for t in trained if t.state == "complete"] or trained
        ]
        return 1.25 * steps * statistics.median(rates or [0.0])

    def _verification_s(self) -> float:
        """What the end of the search may take: the baseline's trial was an export, a timing and a
        scoring."""
        models = len(all_standing(self.trials, self.bench)) + 1
        profiles = {
            name: device.profile
            for name, device in self.bench.devices.items()
            if not device.profile.estimated
        }
        phases = {
            name: len(profiles[name].phases(True)) if score.timing.phase else 1
            for name, score in self.trials[0].scores.items()
            if name in profiles
        }
        timing_s = sum(phases[name] * profile.final_seconds for name, profile in profiles.items())
        return 5 + models * (timing_s + 0.5 * self.trials[0].seconds)

    def _remaining_s(self) -> float | None:
        by_time = self.clock.left(0)
        if self.request.most_trials is None:
            return by_time
        tried = self.trials[1:]
        if not tried:
            return None
        mean = sum(trial.seconds for trial in tried) / len(tried)
        return min(by_time, mean * (self.request.most_trials - len(tried)) + self._verification_s())

    def _refuse_all_failed(self) -> None:
        tried = self.trials[1:]
        if tried and all(trial.state == "failed" for trial in tried):
            reasons = "; ".join(dict.fromkeys(f"{trial.id}: {trial.reason}" for trial in tried[:3]))
            raise SearchFailed(f"all {len(tried)} trials failed: {reasons}")

    def _nearest(self, rejected: Mapping[str, Sequence[Member]]) -> str:
        for name, members in rejected.items():
            if members:
                return nearest(members, self.bench.budgets[name], self.metric)
        foretold = [
            (self.foresight.excess(name, relative), t, name)
            for t in self.trials
            if t.state == "over-budget" and not t.scores
            for name, relative in t.predicted.items()
        ]
        timed = [
            (violation(t, name, self.bench.budgets[name]), t, name)
            for t in self.trials
            for name in t.scores
        ]
        least = min(miss for miss, _, _ in timed)
        for miss, trial, name in sorted(foretold, key=lambda one: one[0])[:1]:
            if miss < least:
                limit = "latency" if self.bench.budgets[name].max_latency_ms else "speedup"
                foretold_in_words = self.foresight.in_words(trial)
                return (
                    f"the nearest is {trial.id}, limited by its {limit}: {foretold_in_words}, "
                    "not trained"
                )
        _, found, name = min(timed, key=lambda one: (one[0], losses(one[1], self.metric)))
        score, budget = found.scores[name], self.bench.budgets[name]
        limits = (
            " and ".join(limit for limit, miss in misses(found, name, budget).items() if miss > 0)
            or "memory"
        )
        metric, scored = self.metric, score.quality
        quality = (
            f", {metric.name} {metric.text(scored.validation)} on the validation split"
            if scored
            else ", not trained"
        )
        return f"the nearest is {found.id}, limited by its {limits}: {score.timing}{quality}"


def outclassed(
    trials: Sequence[Trial],
    rung: int,
    steps: int,
    drop: tuple[float, float],
    timings: Mapping[str, Timing],
    metric: Metric,
) -> str | None:
    """Why a candidate need not be trained on: a trial that is no slower on any device was better by
    more than one standard error after as many recovery steps, and its learning rate was not much
    further down: it had no fewer steps in all, or four times as many as these.

    Args:
        rung: recovery steps done.
        steps: that the candidate is to have in all.
        drop: on validation examples, with its standard error.
        timings: by device.

    Returns:
        The reason; None to go on.
    """
    lost, stderr = drop
    for trial in trials:
        at_rung = dict(trial.rungs).get(rung)
        no_slower = all(
            name in trial.scores and _no_slower(trial.scores[name].timing, own)
            for name, own in timings.items()
        )
        comparable = trial.candidate.get("recovery.steps", 0) >= min(steps, 4 * rung)
        if at_rung is not None and comparable and no_slower and lost - at_rung > stderr:
            return (
                f"{metric.drop_text(lost)} after {rung} steps, where {trial.id} had {at_rung:.2f} "
                "and is no slower"
            )
    return None


def _no_slower(one: Timing, other: Timing) -> bool:
    """By speedup and by latency: in a single timing a slow moment of the baseline upsets the one,
    of the machine the other."""
    slack = 1 + _TIMING_NOISE
    return (
        slack * one.speedup >= other.speedup
        and one.latency_ms.value <= slack * other.latency_ms.value
    )


def _identity(structure: Structure, candidate: Candidate) -> object:
    """Equal for candidates that give the same model by the same training, whatever their settings
    say."""
    return structure, candidate.without(*_STRUCTURAL)
