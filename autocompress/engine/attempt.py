"""One student through the three steps of a trial: made, converted to its number formats, scored.

The search calls each step and decides in between; making is an order to whoever makes students.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from autocompress.candidate import Candidate
from autocompress.engine.converting import Converter
from autocompress.engine.ladder import History
from autocompress.engine.making import Maker
from autocompress.engine.scoring import Scorer, Timings
from autocompress.engine.workshop import Made, Order, reason_of
from autocompress.errors import CandidateFailed
from autocompress.journal import Trial
from autocompress.plan import Plan
from autocompress.scores import Score
from autocompress.shipping import Graph
from autocompress.student import Student


class Attempt:
    """Trials of one student, a number format each.

    Args:
        plan, candidate: of the student.
        trials: in state ``asked``.
        formats: what each is converted by, in the same order.
        baseline: of the uncut model, scored.
        ended: other trials of the student, that have come to their end.
        history: of the candidate at lower rungs; without one, and where a limit may refuse it, the
            first trial is timed before any training.
    """

    def __init__(
        self,
        maker: Maker,
        converter: Converter,
        scorer: Scorer,
        plan: Plan,
        candidate: Candidate,
        trials: Sequence[Trial],
        formats: Sequence[Candidate],
        baseline: Trial,
        ended: Sequence[Trial] = (),
        history: History = (),
    ) -> None:
        self.maker, self.converter, self.scorer = maker, converter, scorer
        self.plan, self.candidate, self.baseline = plan, candidate, baseline
        self.history = history
        self.siblings = [trial for trial in ended if trial.state == "complete"]
        self.trials = list(trials)
        self.formats = dict(zip((trial.number for trial in trials), formats, strict=True))
        self.steps = int(candidate.number("recovery.steps", 0))
        self.made = Made(sealed=False)
        self._counted = trials[0].number
        self._own_s = self._making_s = 0.0

    @property
    def open(self) -> list[Trial]:
        """Those of which nothing has come yet."""
        return [trial for trial in self.trials if trial.state == "asked"]

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What goes wrong inside fails the open trials, and no more; its time is theirs."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            reason = reason_of(error)
            if reason is None:
                raise
            self._end_all("failed", reason)
        finally:
            self._own_s += time.monotonic() - started

    def begin(self) -> None:
        """Where the student is to be trained and a limit may refuse it, time it first, so that one
        that misses a limit of latency costs seconds.

        Raises:
            CandidateFailed: it cannot be built, or cannot run.
            OSError: the disk is full.
        """
        self.converter.room(self.scorer.baseline)
        if not self.steps or self.history or not self.scorer.refuses_early:
            return
        making = self.maker.begin(self.plan, self.candidate)
        if making.recovery is None:
            return
        student = making.student
        with self.converter.graph_of(student) as graph:
            failed: CandidateFailed | None = None
            for trial in self.open:
                try:
                    folder = self._ship(graph, student, trial)
                except CandidateFailed as error:
                    failed = error  # once trained, it may do
                    continue
                [timings] = self.scorer.time([folder])
                if isinstance(timings, CandidateFailed):
                    self._refuse(trial, "failed", str(timings))
                    continue
                self._note(trial, folder, timings)
                if self._now(trial).state == "asked":
                    break
            else:
                if failed:
                    raise failed
        self._counted = min((trial.number for trial in self.open), default=self._counted)

    def order(self, left_s: float, limit_s: float = float("inf")) -> Order:
        """To make the student; see ``Order``."""
        several = len(self.open) + len(self.siblings) > 1
        number = self.trials[0].number
        return Order(number, self.plan, self.candidate, several, left_s, limit_s)

    def student(self, made: Made, workers: int) -> Student | None:
        """What was ordered; None where its time was up.

        Args:
            workers: that made students meanwhile: of its time, it takes a share of the search's.

        Raises:
            CandidateFailed: it could not be made.
        """
        self.made, self._making_s = made, made.seconds / workers
        if made.failed is not None:
            raise CandidateFailed(made.failed)
        return self.maker.sealed(self.plan, self.candidate) if made.sealed else None

    def convert_and_score(self, student: Student) -> None:
        """Every open trial gets its artifact, its timings and its scores.

        Raises:
            CandidateFailed: the student cannot be exported.
        """
        shipped: dict[int, Path] = {}
        with self.converter.graph_of(student) as graph:
            for trial in self.open:
                with self._failing_alone(trial):
                    shipped[trial.number] = self._ship(graph, student, trial)
        timed = self.scorer.time(list(shipped.values())) if shipped else []
        for number, timings in zip(shipped, timed, strict=True):
            trial = next(own for own in self.trials if own.number == number)
            if isinstance(timings, CandidateFailed):
                self._refuse(trial, "failed", str(timings))
                continue
            known_to_fit = bool(trial.scores)
            self._note(trial, shipped[number], timings, may_refuse=not known_to_fit)
        trained = self._answers_of(student)
        as_trained = [one for one in self.siblings if trained and self._answers_alike(one, trained)]
        for trial in sorted(self.open, key=self._costs):
            outdone = next((one for one in as_trained if self._is_no_dearer(one, trial)), None)
            if outdone:
                reason = f"{outdone.id} is no {self._dearer} and answers as the student itself"
                rungs = (*self.history, outdone.rungs[-1])
                self._end(trial, state="outdone", reason=reason, rungs=rungs)
                continue
            with self._failing_alone(trial):
                self._score(trial, student, shipped[trial.number])
                if trained and self._answers_alike(self._now(trial), trained):
                    as_trained.append(self._now(trial))

    def _answers_of(self, student: Student) -> str | None:
        """What the student answered at the end of its training, or the uncut model as it is,
        packed; None of a student that was cut and not trained."""
        if student.plan == self.maker.full and not self.steps:
            return self.scorer.at_rungs(next(iter(self.baseline.scores.values())))
        return student.answers

    def _answers_alike(self, trial: Trial, trained: str) -> bool:
        """Whether its number format cost no more than a standard error, on every device."""
        lost = [
            self.scorer.drop_in_training(trained, self.scorer.at_rungs(score))
            for score in trial.scores.values()
        ]
        return all(drop <= stderr for drop, stderr in lost)

    def _costs(self, trial: Trial) -> tuple[float, ...]:
        """What is to be small, quality aside."""
        objectives = self.scorer.objectives
        timings = [score.timing for score in trial.scores.values()]
        latencies = [timing.latency_ms.value for timing in timings]
        return (
            *(latencies if "latency" in objectives else []),
            *([trial.weight_bytes or 0] if "size" in objectives else []),
        )

    def _is_no_dearer(self, one: Trial, other: Trial) -> bool:
        return all(a <= b for a, b in zip(self._costs(one), self._costs(other), strict=True))

    @property
    def _dearer(self) -> str:
        words = {"latency": "slower", "size": "larger"}
        return " or ".join(word for name, word in words.items() if name in self.scorer.objectives)

    def _score(self, trial: Trial, student: Student, folder: Path) -> None:
        timings = {name: score.timing for name, score in trial.scores.items()}
        scores = self.scorer.scores(folder, timings, self.baseline.scores)
        worst = max(score.quality.drop_validation for score in scores.values() if score.quality)
        self._end(
            trial,
            state="complete",
            sizes=student.plan.sizes(),
            scores=scores,
            path=f"models/{trial.id}",
            rungs=(*self.history, (self.steps, worst)),
        )

    def _ship(self, graph: Graph, student: Student, trial: Trial) -> Path:
        folder, parity = self.converter.ship(
            graph, student, self.formats[trial.number], trial.candidate, trial.id
        )
        self._put(replace(self._now(trial), parity=parity))
        return folder

    def _now(self, trial: Trial) -> Trial:
        return next(own for own in self.trials if own.number == trial.number)

    def _note(
        self, trial: Trial, folder: Path, timings: Timings, *, may_refuse: bool = True
    ) -> None:
        """What was measured of an artifact; one that fits no device is refused."""
        size = (folder / "model.onnx").stat().st_size
        scores = {name: Score(timing) for name, timing in timings.items()}
        trial = self._put(replace(self._now(trial), scores=scores, weight_bytes=size))
        refused = self.scorer.refused(timings, size) if may_refuse else None
        if refused is not None:
            self._refuse(trial, "over-budget", refused)

    def _refuse(self, trial: Trial, state: str, reason: str) -> None:
        """For its timings alone; the same whether they were taken before its training or after."""
        self._end(trial, state=state, reason=reason, rungs=(), parity=None)

    @contextmanager
    def _failing_alone(self, trial: Trial) -> Iterator[None]:
        try:
            yield
        except CandidateFailed as error:
            self._end(trial, state="failed", reason=str(error))

    def _end_all(self, state: str, reason: str) -> None:
        for trial in self.open:
            self._end(trial, state=state, reason=reason)

    def _end(self, trial: Trial, **facts: object) -> None:
        ended = self._put(replace(self._now(trial), **{"rungs": self.history, **facts}))  # type: ignore[arg-type]
        if ended.state != "complete":
            shutil.rmtree(self.converter.models / ended.id, ignore_errors=True)

    def _put(self, trial: Trial) -> Trial:
        self.trials = [trial if own.number == trial.number else own for own in self.trials]
        return trial

    @property
    def beside_s(self) -> float:
        """Seconds so far, training apart."""
        return self._own_s + self.made.seconds - self.made.training_s

    def ended(self) -> list[Trial]:
        """All trials; the time of the student counts to the first that was not refused early."""
        spent = self._own_s + self._making_s
        return [
            replace(trial, seconds=spent if trial.number == self._counted else 0.0)
            for trial in self.trials
        ]
