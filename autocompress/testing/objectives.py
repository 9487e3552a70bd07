"""What a distillation objective promises."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from autocompress.candidate import Value
from autocompress.engine.making import recovery_of
from autocompress.interfaces import Features, Lesson, Objective
from autocompress.structure import Structure
from autocompress.techniques import SETTINGS
from autocompress.testing.models import (
    BATCH,
    BERT,
    GPT2,
    LLAMA,
    Workshop,
    same,
    weights,
    with_all,
)
from autocompress.testing.suite import Suite
from autocompress.training.compute import CPU
from autocompress.training.recovery import Recovery
from autocompress.training.taps import watch

_STEPS, _STOP = 4, 2


class ObjectiveSuite(Suite):
    """A loss is a finite number that pulls the student and leaves the teacher alone, nothing for
    a student that is its teacher, and the same again from the same seed, stopped or not, whatever
    steps are still to come.

    Attributes:
        members: what makes each objective of a ``Lesson``, by name.
        settings: to try, by name of the objective; else it is tried at the defaults.
        never_zero: names of those that lose something even on a student that is its teacher.
        configs: of the models; see ``models.tiny``.
    """

    members: ClassVar[Mapping[str, Callable[[Lesson], Objective]]] = {}
    settings: ClassVar[Mapping[str, Sequence[Mapping[str, Value]]]] = {}
    never_zero: ClassVar[Collection[str]] = ()
    configs: ClassVar[Sequence[Any]] = (BERT, GPT2, LLAMA)

    @classmethod
    def cases(cls) -> dict[str, Sequence[tuple[str, Any]]]:
        return {
            "config": [(config.architectures[0], config) for config in cls.configs],
            "at": [
                (f"{name} {settings or ''}".strip(), (name, settings))
                for name in cls.named()
                for settings in cls.settings.get(name) or ({},)
            ],
        }

    @pytest.fixture(scope="class")
    @classmethod
    def workshops(cls, tmp_path_factory: pytest.TempPathFactory) -> list[Workshop]:
        """Shared by all tests."""
        return [Workshop(config, tmp_path_factory.mktemp("teacher")) for config in cls.configs]

    @pytest.fixture
    def workshop(self, config: Any, workshops: list[Workshop]) -> Workshop:
        return workshops[self.configs.index(config)]

    @pytest.fixture
    def bench(self, at: tuple[str, Mapping[str, Value]], workshop: Workshop) -> Bench:
        name, settings = at
        return Bench(workshop, name, self.named()[name], settings)

    def test_a_loss_is_a_finite_number_that_pulls_the_student(self, bench: Bench) -> None:
        """And not the teacher."""
        bench.workshop.model.zero_grad()
        recovery = bench.recovery()
        loss = bench.loss(recovery)
        assert loss.shape == () and torch.isfinite(loss) and loss > 1e-4
        loss.backward()  # type: ignore[no-untyped-call]
        pulls = [p.grad for p in recovery.student.parameters() if p.grad is not None]
        assert all(torch.isfinite(_dense(pull)).all() for pull in pulls)
        assert max(_dense(pull).abs().max() for pull in pulls) > 1e-6
        assert all(p.grad is None for p in bench.workshop.model.parameters())

    def test_a_student_that_is_its_teacher_loses_nothing(
        self, bench: Bench, at: tuple[str, Mapping[str, Value]]
    ) -> None:
        """In the last step, where schedules have ended."""
        whole = bench.workshop.plans["uncut"].structure
        recovery = bench.recovery(copy.deepcopy(bench.workshop.model), whole)
        loss = bench.loss(recovery, _STEPS - 1).item()
        assert (loss == pytest.approx(0, abs=1e-4)) != (at[0] in self.never_zero)

    def test_the_same_seed_loses_the_same(self, bench: Bench) -> None:
        losses = [bench.loss(bench.recovery(), step).item() for step in (0, 0, 1, 1)]
        assert losses[0] == losses[1] and losses[2] == losses[3]

    def test_stopping_and_going_on_changes_no_bit(self, bench: Bench) -> None:
        """Of the student, nor of what is trained beside it; the teacher stays as it was."""
        before = weights(bench.workshop.model)
        at_once, stopped, resumed = (bench.recovery() for _ in range(3))
        at_once.advance(_STEPS)
        stopped.advance(_STOP)
        resumed.restore(stopped.state())
        resumed.advance(_STEPS)
        assert same(at_once.state(), resumed.state())
        assert not same(weights(at_once.student), weights(bench.recovery().student))
        assert same(weights(bench.workshop.model), before)

    def test_training_begins_alike_whatever_steps_are_to_come(
        self, bench: Bench, at: tuple[str, Mapping[str, Value]]
    ) -> None:
        """Unless it says that it is scheduled."""
        name, settings = at
        longer = {**settings, "recovery.steps": 10 * _STEPS}
        other = Bench(bench.workshop, name, self.named()[name], longer)
        begun = [one.recovery() for one in (bench, other)]
        for recovery in begun:
            recovery.advance(_STOP)
        assert not begun[0].shared or same(begun[0].state(), begun[1].state())

    def test_no_trace_is_left_in_the_models(self, bench: Bench) -> None:
        recovery = bench.recovery()
        recovery.advance(1)
        for module in (*recovery.student.modules(), *bench.workshop.model.modules()):
            assert not module._forward_hooks and not module._forward_pre_hooks


class Bench:
    """One objective on one model; by default its student has another size in each layer."""

    def __init__(
        self,
        workshop: Workshop,
        name: str,
        member: Callable[[Lesson], Objective],
        settings: Mapping[str, Value],
    ) -> None:
        self.workshop, self.known = workshop, {name: member}
        chosen: dict[str, Value] = {
            "recovery.objectives": (name,),
            "recovery.steps": _STEPS,
            "recovery.learning_rate": 1e-2,
            "recovery.hard_label_weight": 0.0,
        }
        self.candidate = with_all(SETTINGS, chosen | dict(settings))

    def recovery(
        self, student: nn.Module | None = None, structure: Structure | None = None
    ) -> Recovery:
        shop = self.workshop
        structure = structure or shop.plans["cut"].structure
        made = student or shop.family.cut(shop.model, structure)
        return recovery_of(
            made, structure, self.candidate, shop.teacher, (3, 5), (), known_objectives=self.known
        )

    def loss(self, recovery: Recovery, step: int = 0) -> Tensor:
        """Of three sentences."""
        shop, lesson, student = self.workshop, recovery.lesson, recovery.student
        [(objective, _)] = recovery.objectives
        inputs = CPU.tensors(BATCH)
        lesson.inputs, lesson.step, lesson.training = inputs, step, True
        features = []
        for model, names, learns in (
            (student, recovery.watched, True),
            (shop.model, recovery.taught, False),
        ):
            depth = len(shop.family.structure(model).layers)
            with watch(model, shop.family, depth, names) as seen, torch.set_grad_enabled(learns):
                logits = model(**inputs).logits.flatten(0, -2)
            features.append(Features(logits, inputs["attention_mask"], seen))
        return objective.loss(*features)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
