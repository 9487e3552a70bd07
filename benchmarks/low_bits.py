"""What few values cost a model, and what training with them gets back: the demo's teacher.

Each format is scored in torch and fp32 arithmetic on --examples of the test split (all of them by
default), paired with the teacher's answers: once with nothing trained, and once after --steps of
recovery with labels and the teacher's. Formats that only training makes have no drop without it.
Takes some three hours with 400 steps. The last thing printed is one JSON document:

    formats             by format:
      drop_untrained    points of accuracy below the teacher's
      drop_trained      after recovery with coded weights, or with zeros
      stderr            of drop_trained, paired
    steps, examples     as above
    device              what it ran on
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autocompress import demo
from autocompress.engine.making import Measured, recovery_of, teacher_of
from autocompress.engine.scoring import torch_answer
from autocompress.families import family_of
from autocompress.hardware.agent import describe
from autocompress.interfaces import Evidence, HeldOut, Knowledge, Task, TaskInputs
from autocompress.plan import Plan
from autocompress.student import first
from autocompress.tasks.text_classification import KIND
from autocompress.techniques import SETTINGS, resolve
from autocompress.training.compute import CPU
from autocompress.training.outputs import Teacher
from autocompress.training.teacher import (
    finetuned,
    load_config,
    load_teacher,
    load_tokenizer,
    positions_of,
)

BY_64 = {"codes.format": "linear", "codes.group": 64}
FORMATS: dict[str, dict[str, Any]] = {
    "linear 4 by 64": BY_64 | {"codes.bits": 4},
    "linear 3 by 64": BY_64 | {"codes.bits": 3},
    "linear 2 by 64": BY_64 | {"codes.bits": 2},
    "linear 3 by 64, by sensitivity": BY_64
    | {"codes.allocation": "sensitivity", "codes.mean_bits": 3.0},
    "linear 3 by 64, by curvature": BY_64 | {"codes.allocation": "hessian", "codes.mean_bits": 3.0},
    "centroids 3": {"codes.format": "centroids", "codes.bits": 3},
    "centroids 2": {"codes.format": "centroids", "codes.bits": 2},
    "adaptive-float 4": {"codes.format": "adaptive-float", "codes.bits": 4},
    "product 8, a tenth": {"codes.format": "product", "codes.bits": 8, "codes.noise": 0.1},
    "half zeros": {"sparsity.share": 0.5},
    "85 % zeros by magnitude": {"sparsity.share": 0.85, "sparsity.schedule": "cubic"},
    "85 % zeros by movement": {"sparsity.share": 0.85, "sparsity.criterion": "movement"},
}
LEARNING = {
    "recovery.learning_rate": 1e-4,
    "recovery.hard_label_weight": 0.1,
    "recovery.objectives": ["logits"],
}
GRADUAL = ("sparsity.schedule", "sparsity.criterion")


def loaded(folder: Path, steps: int | None) -> tuple[Task, nn.Module]:
    """The demo's sentences, and its encoder fine-tuned on them."""
    data, _ = demo.data_files(folder)
    source = str(demo.model_folder())
    config = load_config(source)
    tokenizer = load_tokenizer(source, config.vocab_size)
    given = TaskInputs(
        source, config, tokenizer, positions_of(config), False, str(data), fresh=True
    )
    task = KIND.load(given)
    return task, finetuned(load_teacher(source, task, fresh=True), task, 0, steps=steps)


class Bench:
    """Students of one teacher, and how much worse than it they answer."""

    def __init__(self, task: Task, model: nn.Module, folder: Path, examples: int) -> None:
        family = family_of(str(model.config.model_type))  # type: ignore[union-attr]
        self.task, self.full = task, Plan(family.name, family.structure(model))
        self.teacher: Teacher = teacher_of(task, model, family, folder)
        measured = Measured(task, model, family, CPU)
        self.knowledge = Knowledge(measured, None, measured.once, None, measured.felt)
        count = min(examples or len(task.test.rows), len(task.test.rows))
        self.part: HeldOut = task.test.take(range(count))
        self.baseline = self.evidence(model)

    def evidence(self, model: nn.Module) -> Evidence:
        questions = self.task.questions(self.part, 64)
        answers = [torch_answer(model, question, CPU) for question in questions]
        return self.task.evidence(np.concatenate(answers), self.part)

    def drop(self, settings: dict[str, Any]) -> tuple[float, float]:
        candidate = SETTINGS.candidate(settings)
        plan = resolve(self.full, candidate, self.knowledge)
        student = first(self.teacher.model, self.teacher.family, plan, "copied")
        if "recovery.steps" in settings:
            recovery = recovery_of(
                student, plan.structure, candidate, self.teacher, (0, 0), parts=plan.parts
            )
            recovery.advance(recovery.steps)
            recovery.finish()
        return self.task.drop(self.baseline, self.evidence(student), self.part)

    def drops(self, settings: dict[str, Any], steps: int) -> dict[str, float | None]:
        untrained = {k: v for k, v in settings.items() if k != "codes.noise"}
        learning = LEARNING | {"recovery.steps": steps}
        if "codes.format" in settings:
            learning["codes.trained"] = True
        before = None if settings.keys() & set(GRADUAL) else round(self.drop(untrained)[0], 2)
        after, error = self.drop(settings | learning)
        return {
            "drop_untrained": before,
            "drop_trained": round(after, 2),
            "stderr": round(error, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="of recovery (400)")
    parser.add_argument("--examples", type=int, default=0, help="of the test split (all)")
    parser.add_argument("--teacher-steps", type=int, help="of fine-tuning (2 epochs)")
    parser.add_argument("--formats", help="whose names hold this text (all)", default="")
    options = parser.parse_args()
    formats: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        task, model = loaded(Path(name) / "data", options.teacher_steps)
        bench = Bench(task, model, Path(name), options.examples)
        for title, settings in FORMATS.items():
            if options.formats in title:
                formats[title] = bench.drops(settings, options.steps)
                print(f"{title}: {formats[title]}", flush=True)
    document = {
        "formats": formats,
        "steps": options.steps,
        "examples": len(bench.part.rows),
        "device": describe(),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
