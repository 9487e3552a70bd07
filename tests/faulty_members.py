"""Members that break a promise each, in suites that must find it; run by ``test_testing``."""

# ruff: noqa: RUF012
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.candidate import Candidate, OneOf, Setting, Value
from autocompress.distillation.logits import Logits
from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.families import bert
from autocompress.families.encoder import EncoderFamily
from autocompress.formats import FORMATS
from autocompress.hardware.datasheet import DatasheetDevice
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import (
    Evidence,
    Family,
    Features,
    HeldOut,
    Knowledge,
    Lesson,
    Modifier,
    Question,
    TaskInputs,
    Technique,
)
from autocompress.plan import Part, Plan
from autocompress.scores import Timing
from autocompress.search_space import SearchSpace
from autocompress.structure import Structure
from autocompress.tasks import TASKS
from autocompress.tasks.text_classification import TextClassification, from_inputs
from autocompress.techniques.int8_training import Int8Training, Rounding
from autocompress.techniques.low_rank import LowRank, LowRankOutputs
from autocompress.testing import (
    DeviceSuite,
    FamilySuite,
    FormatSuite,
    ObjectiveSuite,
    SamplerSuite,
    TaskSuite,
    TechniqueSuite,
)
from autocompress.testing.models import BERT


def switch(name: str) -> tuple[Setting, ...]:
    return (Setting(f"{name}.on", OneOf((False, True)), False, "whether"),)


@dataclass(frozen=True)
class NoisyRanks(LowRank):
    technique: ClassVar[str] = "noisy"


class Noisy(Technique):
    """Fills nothing: weights are what torch's own random numbers make them."""

    name, settings = "noisy", switch("noisy")
    part: ClassVar[type[LowRank]] = NoisyRanks
    rank = 3

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        layers = len(plan.structure.layers)
        ranks = self.part((0,) * layers, (self.rank,) * layers, 8, 32)
        return plan.with_part(ranks) if candidate.get(f"{self.name}.on") else plan

    def build(self, model: nn.Module, part: LowRank, family: Family) -> None:
        LowRankOutputs().build(model, part, family)


@dataclass(frozen=True)
class WideRanks(LowRank):
    technique: ClassVar[str] = "widening"


class Widening(Noisy):
    """Factors that are larger than what they stand for."""

    name, settings = "widening", switch("widening")
    part: ClassVar[type[LowRank]] = WideRanks
    rank = 30


class Restless(Technique):
    """Drops a layer even when nothing is asked for."""

    name, settings = "restless", switch("restless")

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        return replace(plan, structure=Structure(plan.structure.layers[:-1]))


class Lasting(Rounding):
    """Rounds when it is scored, too, stays in the embeddings, and forgets what it has seen."""

    def _product(self, name: str, matrix: Any, inputs: Tensor) -> Tensor:
        before, self.lesson.training = self.lesson.training, True
        product = super()._product(name, matrix, inputs)
        self.lesson.training = before
        return product

    def remove(self) -> Part | None:
        self.embeddings = []
        return super().remove()

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        pass


class Along(Int8Training):
    def modifier(self, lesson: Lesson) -> Modifier | None:
        return Lasting(lesson) if lesson.candidate.get("quantization.trained", False) else None


class TestTechniques(TechniqueSuite):
    members = (Noisy(), Widening(), Restless(), Along())
    strengths = {"int8-training": [{"quantization.trained": True}]}
    configs = (BERT,)


class TeacherToo(Logits):
    """Gradients go to the teacher."""

    def loss(self, student: Features, teacher: Features) -> Tensor:
        bias = self.lesson.teacher.get_parameter("classifier.bias")
        return super().loss(student, teacher) + 0 * bias.sum()


class Drawn(Logits):
    """By torch's own random numbers."""

    def loss(self, student: Features, teacher: Features) -> Tensor:
        return super().loss(student, teacher) * (1 + torch.rand(()))


class Rowwise(Logits):
    def loss(self, student: Features, teacher: Features) -> Tensor:
        return (student.logits - teacher.logits).pow(2).sum(-1)


class Offset(Logits):
    """The least of it is not where the student is its teacher."""

    def loss(self, student: Features, teacher: Features) -> Tensor:
        return (student.logits - teacher.logits - 1).pow(2).mean()


class Hurried(Logits):
    """Goes by the share of the steps that are done, and does not say so."""

    def loss(self, student: Features, teacher: Features) -> Tensor:
        return super().loss(student, teacher) * (1 + self.lesson.step / self.lesson.steps)


class TestObjectives(ObjectiveSuite):
    members = {
        "teacher-too": TeacherToo,
        "drawn": Drawn,
        "rowwise": Rowwise,
        "offset": Offset,
        "hurried": Hurried,
    }
    configs = (BERT,)


@dataclass(frozen=True)
class Careless(EncoderFamily):
    """Cuts the model itself, forgets the queries, and takes back none of what it gives out."""

    def cut(self, model: nn.Module, structure: Structure, start: str = "copied") -> nn.Module:
        smaller = super().cut(model, structure, start)
        with torch.no_grad():
            model.get_parameter("classifier.bias").add_(1)
        return smaller

    def weights(self, model: nn.Module, layer: int, kind: str) -> tuple[Tensor, ...]:
        return super().weights(model, layer, kind)[1:]

    def put(self, model: nn.Module, layer: int, role: str, module: nn.Module) -> None:
        pass


class TestFamilies(FamilySuite):
    members = (Careless(**vars(bert.FAMILY)),)
    configs = {"bert": [BERT]}


class TestFormats(FormatSuite):
    members = (
        replace(FORMATS["int8-dynamic"], name="half", bytes=0.5, stored="half"),
        replace(FORMATS["int4-weights"], name="coarse"),
    )
    tolerances = {"coarse": 0.05}


class Leaking(TextClassification):
    """Tests on what it validates on, and drops are of something else."""

    def drop(self, baseline: Evidence, other: Evidence, part: HeldOut) -> tuple[float, float]:
        return super().drop(1 - baseline, other, part)


def leaking(given: TaskInputs) -> Leaking:
    fields = vars(from_inputs(given))
    return Leaking(**fields | {"test": fields["validation"]})


class TestTasks(TaskSuite):
    members = (replace(TASKS["text-classification"], load=leaking),)


class Shallow(DatasheetDevice):
    """All models are as fast, and answer one."""

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        first, _ = super().time(baseline, models, final=final)
        return first, [first for _ in models]

    def predict(self, model: Path, batches: Sequence[Question]) -> NDArray[np.floating[Any]]:
        return np.ones_like(super().predict(model, batches))


class TestDevices(DeviceSuite):
    members = {"shallow": lambda: Shallow(HardwareProfile.load("edge-raspberry-pi-5"), [32])}


class Stray(OptunaSampler):
    """Leaves the space, forgets its corners, and has no seed."""

    def __init__(self, space: SearchSpace, seed: int, objectives: int) -> None:
        drawn = int(torch.randint(1000, ()))
        super().__init__(replace(space, corners=()), "random", drawn, objectives)

    def ask(self) -> tuple[int, dict[str, Value]]:
        handle, point = super().ask()
        return handle, {**point, "layers.keep": 0.75}


class TestSamplers(SamplerSuite):
    members = {"stray": Stray}
