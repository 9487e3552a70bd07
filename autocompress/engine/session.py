"""From a request to a finished run: reads model and data, reaches the devices, prepares,
searches."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress import environment
from autocompress.distillation.settings import CLEANED, UNLABELED_SHARE
from autocompress.engine import doubts
from autocompress.engine.backends import backend
from autocompress.engine.clock import Clock
from autocompress.engine.converting import Converter
from autocompress.engine.listener import Listener, Silent
from autocompress.engine.loop import Loop, SearchResult
from autocompress.engine.making import Maker, Measured, teacher_of
from autocompress.engine.materials import may_be, read_data, read_teacher, timed_lengths
from autocompress.engine.request import Request
from autocompress.engine.scoring import Scorer
from autocompress.engine.tables import Tables
from autocompress.engine.waiting import WaitedFor
from autocompress.errors import UserError
from autocompress.families import family_of
from autocompress.files import no_room
from autocompress.hardware.devices import connect
from autocompress.hardware.patience import until
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Device, Task
from autocompress.journal import SCHEMA, Run
from autocompress.training.compute import Compute
from autocompress.training.teacher import (
    digest_of,
    finetuned,
    finetuning_steps,
    is_kept,
    quiet,
    steps_within,
)

CALIBRATION_BATCHES = 4
"""Of training examples, for the ranges of activations."""
FINETUNING_SHARE = 1 / 3
"""Of the time limit, that fine-tuning the teacher may take."""
BUSY_SHARE = 0.25
"""Of a device's cores kept busy by others, above which a search warns."""
Connect = Callable[[HardwareProfile, Sequence[int]], Device]
"""From a profile and the lengths to time, to the device."""


@quiet()
def search_for(
    request: Request, listener: Listener | None = None, connect: Connect = connect
) -> SearchResult:
    """Search, verify, and write the run folder.

    Args:
        listener: hears of the progress.
        connect: reaches the devices.

    Raises:
        UserError: a mistake in the request, or a device that cannot be reached; nothing is written
            then. Nor is anything left where the baseline cannot be had.
        RequestUnmet: no model meets the budget of any device; the run folder shows what was tried.
        SearchFailed: every trial failed.
        DeviceLost: a device went away for long; the run is left as by KeyboardInterrupt.
        KeyboardInterrupt: stopped; the fronts so far are written, and the run can be resumed.
    """
    listener = listener or Silent()
    clock, compute = Clock(request.time_limit_s), Compute.choose(request.train_on, request.tf32)
    if not request.resume:
        Run.check_free(request.out)
    listener.stage("reading model and data")
    task, tokenizer = read_data(request)
    request = _fitted(request, task, listener)
    model = read_teacher(request.model, task, fresh=request.finetune)
    with contextlib.ExitStack() as stack:
        devices: dict[str, Device] = {}
        stack.enter_context(until(lambda: clock.left(0)))
        for profile in request.hardware:
            device = WaitedFor(connect(profile, timed_lengths(profile, task)), listener.stage)
            devices[profile.name] = device
            stack.callback(device.close)
        fingerprints = {name: dict(device.fingerprint) for name, device in devices.items()}
        _warn_of_load(fingerprints, listener)
        description = _description(request, digest_of(model), task, fingerprints)
        run = (
            Run.resume(request.out, description["inputs"])
            if request.resume
            else Run.start(request.out, description)
        )
        try:
            stack.enter_context(run.locked())
            if not request.resume:
                stack.enter_context(run.only_if_tried())
            stack.callback(shutil.rmtree, run.folder / "scratch", ignore_errors=True)
            said = _say_what_was_read(request, task, model, compute, listener)
            run.note(
                trials=request.most_trials,
                time_limit_s=request.time_limit_s,
                data=description["data"] | {"doubts": said},
            )
            if request.finetune:
                model = _finetuned(model, task, request, run, listener, compute)
            _save(tokenizer, run.folder / "tokenizer")
            listener.stage("preparing the teacher")
            budgets = {
                name: request.budget_on(name).on(device.profile.memory_limit_mb)
                for name, device in devices.items()
            }
            baseline = run.folder / "models" / "t000"
            scorer = Scorer(task, devices, budgets, baseline, request.all_objectives)
            tables = _tables(run.folder, request, model, scorer, compute)
            makes = backend(request, tables.maker, task)
            return Loop(request, run, tables, listener, clock).search(makes)
        except OSError as error:
            if not no_room(error):
                raise
            go_on = "go on with --resume" if run.trials() else "try again"
            raise UserError(
                f"no room left on the disk of {request.out} ({error.strerror}): free some and "
                f"{go_on}"
            ) from error


def _finetuned(
    model: nn.Module,
    task: Task,
    request: Request,
    run: Run,
    listener: Listener,
    compute: Compute,
) -> nn.Module:
    """The model, trained for no longer than a third of the time limit; on a resume for as many
    steps as before."""
    stage, whole, limit = "fine-tuning the teacher", finetuning_steps(task), request.time_limit_s
    listener.stage(stage)
    steps = run.description().get("finetuning_steps")
    if steps is None:
        steps = whole
        if limit is not None and not is_kept(model, task, request.seed, whole):
            steps = steps_within(limit * FINETUNING_SHARE, model, task, compute)
        run.note(finetuning_steps=steps)
    if steps < whole:
        stage = f"{stage}, {steps} of {whole} steps to end within a third of the time limit"
    return finetuned(
        model, task, request.seed, lambda done, of: listener.stage(stage, done, of), compute, steps
    )


def _save(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:  # as of tokenizers
            raise
        raise UserError(f"{folder} cannot be written: {error}") from error


def _tables(
    folder: Path, request: Request, model: nn.Module, scorer: Scorer, compute: Compute
) -> Tables:
    """What students are made, converted and scored with."""
    task = scorer.task
    config: Any = model.config
    family = family_of(config.model_type)
    teacher = teacher_of(task, model, family, folder / "scratch", compute)
    lineage = digest_of(model)
    maker = Maker(teacher, folder / "students", lineage, request.seed, request.techniques)
    rows, size = task.train.rows, task.batch_size
    starts = range(0, min(len(rows), CALIBRATION_BATCHES * size), size)
    converter = Converter(
        scorer.models,
        folder / "tokenizer",
        [task.batch(rows[i : i + size]) for i in starts],
        folder / "scratch",
        request.techniques,
    )
    measured = Measured(task, model, family, compute)
    return Tables(folder, maker, measured, converter, scorer)


def _fitted(request: Request, task: Task, listener: Listener) -> Request:
    """The request less what its data and devices have no use for."""
    space = request.space
    searched = {parameter.name for parameter in space.parameters}
    if not task.unlabeled and UNLABELED_SHARE in searched:
        listener.said(f"without --unlabeled {UNLABELED_SHARE} is not searched")
        space = space.without(UNLABELED_SHARE)
    if task.cleaned is None and may_be(space, CLEANED, True):
        if not may_be(space, CLEANED, False):
            raise UserError(
                f"search space {space.name}: {CLEANED} is true, but there is no cleaned text to "
                f"learn from"
            )
        listener.said(f"{CLEANED} is not searched: there is no cleaned text to learn from")
        space = space.without(CLEANED)
    limits = [request.budget_on(profile.name) for profile in request.hardware]
    if "size" in request.all_objectives or any(one.of_size for one in limits):
        return replace(request, space=space)
    offered = dict.fromkeys(
        ["fp32", *(name for profile in request.hardware for name in profile.precisions)]
    )
    narrowed, dropped = space.limited("quantization.scheme", offered)
    if dropped:
        names = " and ".join(profile.name for profile in request.hardware)
        listener.said(
            f"{', '.join(map(str, dropped))} not searched: no gain on {names} by its profile"
        )
    return replace(request, space=narrowed)


def _warn_of_load(fingerprints: Mapping[str, Mapping[str, Any]], listener: Listener) -> None:
    for name, fingerprint in fingerprints.items():
        if (fingerprint.get("busy_cores") or 0) > BUSY_SHARE * fingerprint.get("cores", 1):
            listener.said(
                f"{name}: other processes keep {fingerprint['busy_cores']:.1f} of "
                f"{fingerprint['cores']} cores busy; training will be slow and "
                "latencies less certain"
            )


def _say_what_was_read(
    request: Request, task: Task, model: nn.Module, compute: Compute, listener: Listener
) -> list[str]:
    """And return the doubts about it."""
    timed = {profile.name: profile.sequence_length for profile in request.hardware}
    for name, line in task.reading.lines({} if task.head.generates else timed).items():
        listener.said(f"{name}: {line}")
    lines = doubts.of_lengths(request.hardware, task)
    if not request.finetune:
        listener.stage("asking the model of text that it may know")
        lines += doubts.of_text_seen(request.data, task, model, compute)
    for line in lines:
        listener.said(line)
    return lines


def _description(
    request: Request, weights: str, task: Task, fingerprints: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "inputs": request.inputs(weights, fingerprints),
        "trials": request.most_trials,
        "time_limit_s": request.time_limit_s,
        "data": {"source": request.data, **task.reading.as_dict()},
        "versions": environment.versions(),
        "devices": fingerprints,
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
