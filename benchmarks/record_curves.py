"""Records learning curves for ``search_quality.py --replay``: students of a search space, each
trained through all rungs, converted to all number formats, timed and scored.

The corners of the space come first, then points at random in turn with neighbours of the front so
far. Every student is written as soon as it is done; run again, it goes on from there. A student of
2,048 steps takes some ten minutes on two cores. Training is counted in CPU time over the threads,
so that other work on the machine says little; artifacts are timed side by side with the uncut
model, but what their conversion takes is wall time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_curves import Artifact, Curve, Curves, Right

from autocompress import demo
from autocompress.candidate import Candidate, Value
from autocompress.engine.converting import Converter
from autocompress.engine.making import Maker, Measured, teacher_of
from autocompress.engine.samplers import sampler
from autocompress.engine.samplers.local import LocalSampler
from autocompress.engine.scoring import Scorer
from autocompress.engine.session import CALIBRATION_BATCHES
from autocompress.engine.tables import planned
from autocompress.errors import CandidateFailed
from autocompress.families import family_of
from autocompress.files import cache_folder
from autocompress.hardware.agent import describe
from autocompress.hardware.devices import connect, lengths_of
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import TaskInputs
from autocompress.limits import Limits
from autocompress.plan import Plan
from autocompress.scores import Timing
from autocompress.search_space import SearchSpace
from autocompress.tasks import TASKS
from autocompress.techniques import SETTINGS
from autocompress.training.compute import Compute
from autocompress.training.teacher import (
    digest_of,
    finetuned,
    load_config,
    load_teacher,
    load_tokenizer,
    positions_of,
)

CURVES = Path(__file__).parent / "curves"


class Recorder:
    """Trains students of the embedded default.

    Args:
        rungs: recovery steps, ascending.
        formats: of ``quantization.scheme``, fp32 first.
        folder: for what is deleted in the end.
    """

    def __init__(
        self, hardware: HardwareProfile, rungs: Sequence[int], formats: Sequence[str], folder: Path
    ) -> None:
        self.hardware, self.rungs = hardware, rungs
        self.formats = [SETTINGS.candidate({"quantization.scheme": name}) for name in formats]
        source, compute = str(demo.model_folder()), Compute.choose("cpu")
        config = load_config(source)
        tokenizer = load_tokenizer(source, config.vocab_size)
        data, unlabeled = demo.data_files(cache_folder() / "demo")
        options = {"unlabeled": str(unlabeled)}
        inputs = TaskInputs(
            source, config, tokenizer, positions_of(config), False, str(data), options=options
        )
        self.task: Any = TASKS["text-classification"].load(replace(inputs, fresh=True))
        model: Any = load_teacher(source, self.task, fresh=True)
        model.config.pad_token_id = self.task.pad_id
        print("preparing the teacher", flush=True)
        model = finetuned(model, self.task, 0, compute=compute)
        family = family_of(model.config.model_type)
        teacher = teacher_of(self.task, model, family, folder / "teacher", compute)
        self.maker = Maker(teacher, folder / "students", digest_of(model), 0)
        self.measured = Measured(self.task, model, family, compute)
        tokenizer.save_pretrained(folder / "tokenizer")
        size, rows = self.task.batch_size, self.task.train.rows
        starts = range(0, CALIBRATION_BATCHES * size, size)
        calibration = [self.task.batch(rows[i : i + size]) for i in starts]
        self.converter = Converter(
            folder / "models", folder / "tokenizer", calibration, folder / "scratch"
        )
        lengths = lengths_of(hardware, [row.shape[1] for row in self.task.validation.rows])
        self.scorer = Scorer(
            self.task,
            {hardware.name: connect(hardware, lengths)},
            {hardware.name: Limits()},
            folder / "models" / "t000",
        )

    def uncut(self) -> Curve:
        """In all formats, fp32 being what the others are timed beside."""
        nothing = SETTINGS.candidate({})
        student = self.maker.seal(self.maker.begin(self.maker.full, nothing))
        began = time.monotonic()
        with self.converter.graph_of(student) as graph:
            folder, _ = self.converter.ship(graph, student, nothing, {}, "t000")
        timing = self.scorer.time_baseline()[self.hardware.name]
        first = self._artifact(0, nothing, folder, timing, began)
        others = [self._converted(student, 0, one) for one in self.formats if one != nothing]
        return Curve({}, self.maker.full.sizes(), 0.0, (first, *others))

    def curve(self, point: Mapping[str, Value], plan: Plan, candidate: Candidate) -> Curve:
        """Raises:
        CandidateFailed: it cannot be built, trained or run.
        """
        artifacts, step_s = list[Artifact](), list[float]()
        for steps in self.rungs:
            at_rung = {**dict(candidate.settings), "recovery.steps": steps}
            making = self.maker.begin(plan, SETTINGS.candidate(at_rung))
            before, began = making.done, time.process_time()
            self.maker.train(making, steps, lambda _: True)
            seconds = (time.process_time() - began) / torch.get_num_threads()
            if making.done > before:
                step_s.append(seconds / (making.done - before))
            student = self.maker.seal(making)
            artifacts += [self._converted(student, steps, one) for one in self.formats]
        self.maker.keep([])
        return Curve(point, plan.sizes(), min(step_s, default=0.0), tuple(artifacts))

    def planned(self, candidate: Candidate) -> Plan:
        """Raises as ``techniques.resolve``."""
        return planned(self.maker, self.measured, candidate)

    def _converted(self, student: Any, steps: int, number_format: Candidate) -> Artifact:
        began = time.monotonic()
        with self.converter.graph_of(student) as graph:
            folder, _ = self.converter.ship(graph, student, number_format, {}, "t001")
        [timings] = self.scorer.time([folder])
        if isinstance(timings, CandidateFailed):
            raise timings
        return self._artifact(steps, number_format, folder, timings[self.hardware.name], began)

    def _artifact(
        self, steps: int, number_format: Candidate, folder: Path, timing: Timing, began: float
    ) -> Artifact:
        on_validation = self._right(folder, self.task.validation)
        seconds = time.monotonic() - began
        latency = timing.latency_ms
        return Artifact(
            steps,
            dict(number_format.settings),
            (latency.value, *latency.interval),
            (timing.speedup, *timing.speedup_interval),
            (folder / "model.onnx").stat().st_size,
            seconds,
            np.concatenate([on_validation, self._right(folder, self.task.test)]),
        )

    def _right(self, folder: Path, part: Any) -> Right:
        answers = self.scorer.evidence(folder, part)[self.hardware.name]
        right: Right = answers[:, 0] == part.labels
        return right


def points(space: SearchSpace, known: Sequence[Curve]) -> Iterator[dict[str, Value]]:
    """To be recorded next, without end.

    Args:
        known: recorded before; it grows.
    """
    yield from (space.assembled(lambda p, c=corner: c[p.name]) for corner in space.corners)  # type: ignore[misc]
    bare, seed = replace(space, corners=()), len(known)
    anywhere, near = sampler("random", bare, seed, 2), LocalSampler(space, seed)
    for _ in range(len(space.corners) + len(known)):
        near.ask()  # its own corners, and points at random in place of those known
    learned = 0
    while True:
        yield anywhere.ask()[1]
        for curve in known[learned:]:
            last = curve.artifacts[-1]
            near.learn(curve.point, (1 / last.speedup[0], -float(last.right.mean())))
        learned = len(known)
        yield near.ask()[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", type=int, default=150, help="in the file at the end")
    parser.add_argument("--rungs", type=int, nargs="+", default=[32, 128, 512, 2048])
    parser.add_argument("--formats", nargs="+", default=["fp32", "int8-dynamic"])
    parser.add_argument("--space", default="demo")
    parser.add_argument("--hardware", default="cpu-1-thread")
    parser.add_argument("--out", type=Path, default=CURVES / "demo.jsonl.xz")
    options = parser.parse_args()
    space = SearchSpace.load(options.space)
    with tempfile.TemporaryDirectory() as scratch:
        hardware = HardwareProfile.load(options.hardware)
        recorder = Recorder(hardware, options.rungs, options.formats, Path(scratch))
        about = {
            "space": options.space,
            "validation": len(recorder.task.validation.rows),
            "test": len(recorder.task.test.rows),
            "rungs": options.rungs,
            "formats": options.formats,
            "teacher": recorder.maker.lineage,
            "hardware": options.hardware,
            "threads": torch.get_num_threads(),
        }
        if options.out.exists():
            curves = Curves.load(options.out)
            if {name: curves.about.get(name) for name in about} != about:
                parser.error(f"{options.out} was recorded otherwise: {dict(curves.about)}")
        else:
            curves = Curves({**about, "device": describe()}, recorder.uncut())
        students = list(curves.students)
        known = {SETTINGS.candidate(curve.point) for curve in students}
        following = points(space, students)
        while len(students) < options.students:
            point = next(following)
            candidate = space.candidate(point)
            if candidate in known:
                continue
            known.add(candidate)
            try:
                plan = recorder.planned(candidate)
                students.append(recorder.curve(point, plan, candidate))
            except CandidateFailed as error:
                print(f"{candidate.as_dict()} failed: {error}")
                continue
            replace(curves, students=tuple(students)).save(options.out)
            last = students[-1].artifacts[-1]
            print(
                f"{len(students)} of {options.students}: {plan.structure}, "
                f"{last.speedup[0]:.2f}x, {last.right.mean():.3f} of all answers right",
                flush=True,
            )


if __name__ == "__main__":
    main()
