"""The search: prepare, ask, try, journal, tell, verify."""

from __future__ import annotations

import contextlib
import errno
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from autocompress import environment
from autocompress.candidate import Candidate
from autocompress.distillation.settings import UNLABELED_SHARE
from autocompress.errors import CandidateFailed, RequestUnmet, SearchFailed, UserError
from autocompress.families import family_of
from autocompress.hardware.profile import HardwareProfile
from autocompress.hardware.timing import OnnxRuntimeTimer
from autocompress.interfaces import Timer
from autocompress.journal import Run, Trial
from autocompress.pareto import Budget, Front, Member, nearest
from autocompress.report import write_report
from autocompress.request import Request
from autocompress.samplers.optuna_sampler import OptunaSampler
from autocompress.search_space import SearchSpace
from autocompress.structure import Structure
from autocompress.tasks.text_classification import METRIC, TextClassification
from autocompress.tasks.text_classification import load as load_task
from autocompress.teacher import finetuned, load_classifier, load_config, load_tokenizer, weights_digest
from autocompress.techniques import TECHNIQUES, resolve
from autocompress.verification import keep_models, losses, misses, provisional, standing, verified, violation, write_front
from autocompress.workbench import OutOfTime, Workbench, unpack

_MOST_REPEATS = 300
"""Proposals in a row that were tried before, after which the space counts as exhausted."""
_STRUCTURAL = tuple({setting.name.partition(".")[0] for technique in TECHNIQUES for setting in technique.settings})


class Listener(Protocol):
    """Hears of a search's progress."""

    def stage(self, name: str, done: int = 0, of: int = 0) -> None:
        """A stage has begun, or has got so far."""
        ...

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        """A trial has ended; seconds to the end of the whole search, None when nothing is known yet."""
        ...


class Silent:
    """Hears nothing."""

    def stage(self, name: str, done: int = 0, of: int = 0) -> None: ...

    def trial(self, trial: Trial, remaining_s: float | None) -> None: ...


@dataclass(frozen=True)
class SearchResult:
    """What a search leaves.

    Args:
        front: the verified front.
        run: the run folder.
        trials: all of them, the baseline first.
    """

    front: Front
    run: Path
    trials: tuple[Trial, ...]


def search_for(request: Request, listener: Listener | None = None, timer: Timer | None = None) -> SearchResult:
    """Search, verify, and write the run folder.

    Args:
        listener: hears of the progress.
        timer: measures latencies; by default onnxruntime under the request's profile.

    Raises:
        UserError: a mistake in the request; nothing is written then.
        RequestUnmet: no model meets the budget; the run folder shows what was tried.
        SearchFailed: every trial failed.
        KeyboardInterrupt: stopped; the front so far is written, and the run can be resumed.
    """
    listener = listener or Silent()
    clock = _Clock(request)
    if not request.resume:
        Run.check_free(request.out)
    listener.stage("reading model and data")
    task, tokenizer = _load_data(request)
    if not task.unlabeled and any(p.name == UNLABELED_SHARE for p in request.space.parameters):
        listener.stage(f"without --unlabeled {UNLABELED_SHARE} is not searched")
        request = replace(request, space=request.space.without(UNLABELED_SHARE))
    model: Any = load_classifier(request.model, task.labels if request.finetune else None)
    model.config.pad_token_id = task.pad_id
    description = _description(request, weights_digest(model), task)
    run = Run.resume(request.out, description["inputs"]) if request.resume else Run.start(request.out, description)
    scratch = run.folder / "scratch"
    try:
        with run.locked():
            run.note(trials=request.most_trials, time_limit_s=request.time_limit_s)
            if request.finetune:
                listener.stage("fine-tuning the teacher")
                model = finetuned(model, task, request.seed, lambda done, of: listener.stage("fine-tuning the teacher", done, of))
            tokenizer.save_pretrained(run.folder / "tokenizer")
            listener.stage("preparing the teacher")
            config: Any = model.config
            bench = Workbench.prepare(
                run,
                task,
                model,
                family_of(config.model_type),
                run.folder / "tokenizer",
                timer or OnnxRuntimeTimer(request.hardware),
                request.hardware.batch_size,
                request.budget,
                request.seed,
            )
            return _Loop(request, bench, listener, clock).run()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"no room left on the disk of {request.out}: free some and go on with --resume") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def search(
    model: str | Path,
    data: str | Path,
    hardware: str | HardwareProfile,
    space: str | SearchSpace,
    out: str | Path,
    *,
    task: str = "text-classification",
    budget: Budget | None = None,
    listener: Listener | None = None,
    timer: Timer | None = None,
    **options: Any,
) -> SearchResult:
    """Search for the compressed models worth having; the command ``autocompress search`` in Python.

    Args:
        hardware: a profile, the name of a shipped one, or a TOML path.
        space: likewise.
        options: any other field of ``Request``, such as ``trials``, ``time_limit_s``, ``finetune``, ``seed``, ``resume``.

    Returns:
        The verified front, whose ``pick`` chooses by budget, and the run folder.

    Raises:
        See ``search_for``.
    """
    request = Request(
        str(model),
        task,
        str(data),
        hardware if isinstance(hardware, HardwareProfile) else HardwareProfile.load(hardware),
        space if isinstance(space, SearchSpace) else SearchSpace.load(space),
        Path(out),
        budget=budget or Budget(),
        **options,
    )
    return search_for(request, listener, timer)


class _Clock:
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


class _Loop:
    def __init__(self, request: Request, bench: Workbench, listener: Listener, clock: _Clock) -> None:
        self.request, self.bench, self.listener, self.clock = request, bench, listener, clock
        self.trials: list[Trial] = []
        self.sampler = OptunaSampler(request.space, request.sampler, request.seed)

    def run(self) -> SearchResult:
        recorded = self.bench.run.trials()
        self.clock.before = sum(trial.seconds for trial in recorded)
        try:
            self._search(recorded)
            self._refuse_all_failed()
            self.listener.stage("verifying the front")
            front, rejected = verified(self.trials, self.bench, self.request.hardware)
        except (KeyboardInterrupt, UserError, CandidateFailed):
            if len(self.trials) > len(recorded):
                with contextlib.suppress(OSError):
                    self._write_provisional()
                    write_report(self.bench.run.folder)
            raise
        write_front(self.bench.run, front)
        write_report(self.bench.run.folder)
        keep_models(self.bench.run, front.members)
        if not front.members:
            raise RequestUnmet(f"none of {len(self.trials) - 1} candidates meets the budget; {self._nearest(rejected)}")
        return SearchResult(front, self.bench.run.folder, tuple(self.trials))

    def _write_provisional(self) -> None:
        chosen = standing(self.trials, self.request.budget, self.bench)
        write_front(self.bench.run, provisional(self.trials, chosen, self.request.budget, self.request.hardware))

    def _search(self, recorded: Sequence[Trial]) -> None:
        self._record(recorded[0] if recorded else self.bench.baseline(), bool(recorded))
        baseline = self.trials[0]
        baseline_answers = unpack(baseline.correct or "", len(self.bench.task.validation.rows))
        seen: dict[object, Trial] = {_identity(self.bench.full, Candidate(tuple(baseline.candidate.items()))): baseline}
        repeats = 0
        most = self.request.most_trials
        while repeats < _MOST_REPEATS and (most is None or len(self.trials) <= most or len(self.trials) < len(recorded)):
            handle, chosen = self.sampler.ask()
            candidate, structure, problem = self._resolve(self.request.space.candidate(chosen))
            identity = _identity(structure, candidate) if structure else candidate
            if identity in seen:
                self._tell(handle, seen[identity])
                repeats += 1
                continue
            repeats = 0
            number = len(self.trials)
            if number < len(recorded):
                trial = recorded[number]
                if trial.candidate != candidate.as_dict():
                    raise UserError(f"--resume: trial {trial.id} cannot be replayed; was the run made with other library versions?")
            elif structure is None:
                trial = Trial(number, candidate.as_dict(), "failed", reason=problem)
            else:
                if self._seconds_for(candidate) > self.clock.left(self._verification_s()):
                    break
                try:
                    trial = self.bench.evaluate(number, candidate, structure, baseline_answers, self._promote)
                except OutOfTime:
                    break
            self._record(trial, number < len(recorded))
            seen[identity] = trial
            self._tell(handle, trial)

    def _resolve(self, candidate: Candidate) -> tuple[Candidate, Structure | None, str | None]:
        """The candidate's structure; recovery repairs a cut, so an uncut candidate loses its recovery settings."""
        try:
            structure = resolve(self.bench.full, candidate, self.bench.importance)
        except CandidateFailed as error:
            return candidate, None, str(error)
        return (candidate.without("recovery") if structure == self.bench.full else candidate), structure, None

    def _record(self, trial: Trial, replayed: bool) -> None:
        self.trials.append(trial)
        if replayed:
            return
        self.bench.run.append(trial)
        self.listener.trial(trial, self._remaining_s())
        if trial.state == "complete":
            self._write_provisional()
            keep_models(self.bench.run, standing(self.trials, self.request.budget, self.bench))

    def _tell(self, handle: int, trial: Trial) -> None:
        if trial.state == "failed":
            self.sampler.tell(handle, None)
        else:
            self.sampler.tell(handle, losses(trial), violation(trial, self.request.budget))

    def _promote(self, rung: int, quality: float, speedup: float, remaining_s: float) -> str | None:
        reason = outclassed(self.trials, rung, quality, speedup, len(self.bench.task.validation.rows))
        if reason is None and remaining_s > self.clock.left(self._verification_s()):
            raise OutOfTime
        return reason

    def _seconds_for(self, candidate: Candidate) -> float:
        """What a trial may take, from the trials so far that were trained in full."""
        steps = candidate.number("recovery.steps", 0)
        rates = [t.seconds / t.rungs[-1][0] for t in self.trials[1:] if t.state == "complete" and t.rungs[-1][0]]
        return 1.25 * steps * statistics.median(rates or [0.0])

    def _verification_s(self) -> float:
        """What the end of the search may take: the baseline's trial was an export, a timing and a scoring."""
        models = len(standing(self.trials, self.request.budget, self.bench)) + 1
        return 5 + models * (self.request.hardware.final_seconds + 0.5 * self.trials[0].seconds)

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

    def _nearest(self, rejected: Sequence[Member]) -> str:
        if rejected:
            return nearest(rejected, self.request.budget, METRIC)
        timed = [trial for trial in self.trials if trial.latency_ms is not None]
        found = min(timed, key=lambda trial: (violation(trial, self.request.budget), losses(trial)))
        limits = " and ".join(name for name, miss in misses(found, self.request.budget).items() if miss > 0)
        assert found.latency_ms is not None
        quality = f", {METRIC} {found.quality.validation:.4f} on the validation split" if found.quality else ", not trained"
        return (
            f"the nearest is {found.id}, limited by its {limits}: {found.latency_ms.median:.3g} ms ({found.speedup:.2f}x){quality}"
        )


def outclassed(trials: Sequence[Trial], rung: int, quality: float, speedup: float, examples: int) -> str | None:
    """Why a candidate need not be trained on: a trial that is no slower was better by more than one standard error after as
    many recovery steps.

    Args:
        rung: recovery steps done.
        quality: on so many validation examples.

    Returns:
        The reason; None to go on.
    """
    stderr = (quality * (1 - quality) / examples) ** 0.5
    for trial in trials:
        at_rung = dict(trial.rungs).get(rung)
        if at_rung is not None and (trial.speedup or 0) >= speedup and at_rung - quality > stderr:
            return f"{quality:.4f} after {rung} steps, where {trial.id} had {at_rung:.4f} and is no slower"
    return None


def _identity(structure: Structure, candidate: Candidate) -> object:
    """Equal for candidates that give the same model by the same training, whatever their settings say."""
    return structure, candidate.without(*_STRUCTURAL)


def _load_data(request: Request) -> tuple[TextClassification, Any]:
    config = load_config(request.model)
    tokenizer = load_tokenizer(request.model, config.vocab_size)
    positions = config.max_position_embeddings - (2 if config.model_type == "roberta" else 0)
    if request.hardware.sequence_length > positions:
        raise UserError(
            f"hardware profile {request.hardware.name}: sequence_length is {request.hardware.sequence_length}, "
            f"the model takes {positions} tokens at most"
        )
    task = load_task(
        tokenizer,
        request.data,
        request.columns,
        min(tokenizer.model_max_length, positions),
        None if request.finetune else {name: i for i, name in config.id2label.items()},
        request.validation,
        request.test,
        request.unlabeled,
    )
    return task, tokenizer


def _description(request: Request, weights: str, task: TextClassification) -> dict[str, Any]:
    splits = {name: len(getattr(task, name).rows) for name in ("train", "validation", "test")}
    return {
        "schema": 1,
        "inputs": request.inputs(weights),
        "trials": request.most_trials,
        "time_limit_s": request.time_limit_s,
        "data": {
            "source": request.data,
            "labels": task.labels,
            **splits,
            "unlabeled": len(task.unlabeled),
            "dropped": task.dropped,
        },
        "versions": environment.versions(),
        "device": environment.device(),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
