"""What a technique promises."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_model
from torch import nn

from autocompress.candidate import Candidate, Flag, Integer, OneOf, Real, Setting, SubsetOf, Value
from autocompress.engine.making import recovery_of
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Technique
from autocompress.plan import Part, Plan
from autocompress.student import blank, first, plan_from, write_weights
from autocompress.techniques import TECHNIQUES, vocabulary
from autocompress.testing.models import (
    BERT,
    GPT2,
    LLAMA,
    Workshop,
    logits,
    real_bytes,
    same,
    tied,
    weights,
)
from autocompress.testing.suite import Suite
from autocompress.training.recovery import Recovery

Strength = Mapping[str, Value]
_STEPS, _STOP = 4, 2
_SEEDS = (3, 5)


class TechniqueSuite(Suite):
    """At its defaults a technique changes nothing; at every strength its students are what their
    plans say, also after a stay on disk, and never larger; and what trains along leaves no trace.

    Attributes:
        members: the techniques.
        strengths: settings to try, by name of the technique; else each setting is tried at some
            values that it allows.
        same_size: names of those that leave a part which takes nothing away.
        configs: of the models; see ``models.tiny``.
        recovery: settings of all recoveries.
    """

    members: ClassVar[Iterable[Technique]] = ()
    strengths: ClassVar[Mapping[str, Sequence[Strength]]] = {}
    same_size: ClassVar[Collection[str]] = ()
    configs: ClassVar[Sequence[Any]] = (BERT, GPT2, LLAMA)
    recovery: ClassVar[Strength] = {"recovery.steps": _STEPS, "recovery.learning_rate": 1e-2}

    @classmethod
    def tried(cls, technique: Technique) -> Sequence[Strength]:
        """The strengths of one."""
        return cls.strengths.get(technique.name) or [
            {setting.name: value} for setting in technique.settings for value in _values(setting)
        ]

    def fitting(
        self, technique: Technique, workshop: Workshop, before: Plan
    ) -> Iterator[tuple[Bench, Plan]]:
        """At each strength that fits the model."""
        for strength in self.tried(technique):
            bench = Bench(workshop, technique, {**self.recovery, **strength})
            with contextlib.suppress(CandidateFailed):
                yield bench, technique.plan(before, bench.candidate, workshop.knowledge)

    @classmethod
    def cases(cls) -> dict[str, Sequence[tuple[str, Any]]]:
        tried = [
            (f"{name} {_told(strength)}", (member, strength))
            for name, member in cls.named().items()
            for strength in cls.tried(member)
        ]
        return {
            "config": [(config.architectures[0], config) for config in cls.configs],
            "given": [("uncut", "uncut"), ("cut", "cut")],
            "at": tried,
            "along": [(title, at) for title, at in tried if _trains(at[0])],
        }

    @pytest.fixture(scope="class")
    @classmethod
    def workshops(cls, tmp_path_factory: pytest.TempPathFactory) -> list[Workshop]:
        """Shared by all tests."""
        return [Workshop(config, tmp_path_factory.mktemp("teacher")) for config in cls.configs]

    @pytest.fixture
    def workshop(self, config: Any, workshops: list[Workshop]) -> Workshop:
        return workshops[self.configs.index(config)]

    def test_it_does_something_at_some_strength(
        self, member: Technique, workshop: Workshop, given: str
    ) -> None:
        """It plans, or trains along."""
        before, acted = workshop.plans[given], []
        for bench, plan in self.fitting(member, workshop, before):
            recovery = bench.begun(plan)
            acted.append(plan != before or bool(recovery.modifiers))
            recovery.finish()
        if not acted:
            pytest.skip("it does not fit this model")
        assert any(acted), f"{member.name}: say strengths to try"

    def test_defaults_leave_the_plan_and_every_bit(
        self, member: Technique, workshop: Workshop, given: str
    ) -> None:
        """And its recovery is that of a model without the technique."""
        plan = workshop.plans[given]
        bench = Bench(workshop, member, self.recovery)
        assert bench.plan(plan) == plan
        student, alone = bench.student(plan), workshop.family.cut(workshop.model, plan.structure)
        assert torch.equal(logits(student), logits(alone))
        if given == "uncut":
            assert torch.equal(logits(student), logits(workshop.model))
        if _trains(member):
            plain = bench.recovery(alone, plan, techniques=())
            beside = bench.recovery(student, plan)
            plain.advance(_STEPS)
            beside.advance(_STEPS)
            assert beside.finish() == [] and same(weights(student), weights(alone))

    def test_its_plans_are_keys_json_and_words(
        self, at: tuple[Technique, Strength], workshop: Workshop, given: str
    ) -> None:
        member, strength = at
        bench = Bench(workshop, member, strength)
        plan = bench.plan(workshop.plans[given])
        assert plan == bench.plan(workshop.plans[given]) and plan.family == workshop.family.name
        _check_plan(plan, bench.techniques)
        part = plan.part(member.name)
        assert part is None or isinstance(part, member.part or ())
        assert part is None or part.words().strip()

    def test_what_others_left_stays(
        self, at: tuple[Technique, Strength], workshop: Workshop, given: str
    ) -> None:
        """Parts, and layers in their order; no unit is kept that the model has not."""
        member, strength = at
        before = workshop.plans[given].with_part(Foreign(("a", 3)))
        after = Bench(workshop, member, strength).plan(before)
        assert after.parts[0] == Foreign(("a", 3))
        there = {layer.source: layer for layer in before.structure.layers}
        sources = [layer.source for layer in after.structure.layers]
        assert sources == sorted(set(sources)) and set(sources) <= set(there)
        for layer in after.structure.layers:
            for kept in (layer.heads, layer.ffn):
                assert list(kept) == sorted(set(kept))
        whole = {layer.source: layer for layer in workshop.plans["uncut"].structure.layers}
        for layer in after.structure.layers:
            assert set(layer.heads) <= set(whole[layer.source].heads)
            assert set(layer.ffn) <= set(whole[layer.source].ffn)

    def test_a_student_read_back_is_the_student(
        self, at: tuple[Technique, Strength], workshop: Workshop, given: str, tmp_path: Path
    ) -> None:
        """Written as files hold it and built blank: the same answers, and what was tied is."""
        member, strength = at
        bench = Bench(workshop, member, strength)
        plan = bench.plan(workshop.plans[given])
        student = bench.student(plan)
        _check_read_back(student, plan, bench, tmp_path)

    def test_same_seed_same_weights(
        self, at: tuple[Technique, Strength], workshop: Workshop
    ) -> None:
        """Whatever state torch's own random numbers are in."""
        member, strength = at
        bench = Bench(workshop, member, strength)
        plan = bench.plan(workshop.plans["cut"])
        student_weights = []
        for state in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(state)
                student_weights.append(weights(bench.student(plan)))
        assert same(*student_weights)

    def test_students_never_grow(self, member: Technique, workshop: Workshop, given: str) -> None:
        """And shrink at some strength, if any changes the plan."""
        before = workshop.plans[given]
        whole = real_bytes(Bench(workshop, member, {}).student(before))
        sizes = []
        for bench, plan in self.fitting(member, workshop, before):
            size = real_bytes(bench.student(plan))
            assert size <= whole
            sizes += [size] if plan != before else []
        assert not sizes or member.name in self.same_size or min(sizes) < whole

    def test_stopping_and_going_on_changes_no_bit(
        self, at: tuple[Technique, Strength], workshop: Workshop
    ) -> None:
        member, strength = at
        bench = Bench(workshop, member, {**self.recovery, **strength})
        plan = bench.plan(workshop.plans["cut"])
        at_once, stopped, resumed = (bench.begun(plan) for _ in range(3))
        at_once.advance(_STEPS)
        stopped.advance(_STOP)
        resumed.restore(stopped.state())
        assert resumed.done == _STOP
        resumed.advance(_STEPS)
        assert at_once.finish() == resumed.finish()
        assert same(weights(at_once.student), weights(resumed.student))

    def test_training_begins_alike_whatever_steps_are_to_come(
        self, along: tuple[Technique, Strength], workshop: Workshop
    ) -> None:
        """Unless what trains along says that it is scheduled."""
        member, strength = along
        settings = {**self.recovery, **strength}
        longer = {**settings, "recovery.steps": 10 * _STEPS}
        benches = [Bench(workshop, member, own) for own in (settings, longer)]
        begun = [bench.begun(bench.plan(workshop.plans["cut"])) for bench in benches]
        for recovery in begun:
            recovery.advance(_STOP)
        assert not begun[0].shared or same(begun[0].state(), begun[1].state())

    def test_what_trains_along_acts_in_training_alone(
        self, along: tuple[Technique, Strength], workshop: Workshop
    ) -> None:
        """Scored in between, a student answers as after it is removed; and then it is plain."""
        member, strength = along
        bench = Bench(workshop, member, {**self.recovery, **strength})
        plan = bench.plan(workshop.plans["cut"])
        plain, recovery = bench.student(plan), bench.begun(plan)
        recovery.advance(_STOP)
        student = recovery.student
        scored = logits(student)
        recovery.finish()
        assert torch.equal(logits(student), scored)
        _check_plain(student, plain)

    def test_what_was_learned_joins_the_plan(
        self, along: tuple[Technique, Strength], workshop: Workshop, tmp_path: Path
    ) -> None:
        member, strength = along
        bench = Bench(workshop, member, {**self.recovery, **strength})
        plan = bench.plan(workshop.plans["cut"])
        recovery = bench.begun(plan)
        recovery.advance(_STEPS)
        for part in recovery.finish():
            assert part.technique == member.name and part.words().strip()
            plan = plan.with_part(part)
        _check_plan(plan, bench.techniques)
        _check_read_back(recovery.student, plan, bench, tmp_path)


@dataclass(frozen=True)
class Foreign(Part):
    """Of another technique."""

    technique: ClassVar[str] = "of another technique"
    pair: tuple[str, int]


class Bench:
    """One technique at one strength.

    Args:
        chosen: settings that differ from their defaults.
    """

    def __init__(self, workshop: Workshop, technique: Technique, chosen: Strength) -> None:
        self.workshop, self.technique = workshop, technique
        others = tuple(t for t in TECHNIQUES if t.name != technique.name)
        self.techniques = (*others, technique)
        self.candidate: Candidate = vocabulary(self.techniques).candidate(chosen)

    def plan(self, before: Plan) -> Plan:
        """Skips the test where the strength does not fit the model."""
        try:
            return self.technique.plan(before, self.candidate, self.workshop.knowledge)
        except CandidateFailed as error:
            pytest.skip(str(error))

    def student(self, plan: Plan) -> nn.Module:
        """Before any training."""
        shop = self.workshop
        return first(shop.model, shop.family, plan, "copied", self.techniques).eval()

    def begun(self, plan: Plan) -> Recovery:
        return self.recovery(self.student(plan), plan)

    def recovery(
        self, student: nn.Module, plan: Plan, techniques: Sequence[Technique] | None = None
    ) -> Recovery:
        """Beside no technique but this one, or these."""
        along = (self.technique,) if techniques is None else techniques
        teacher, structure = self.workshop.teacher, plan.structure
        return recovery_of(
            student, structure, self.candidate, teacher, _SEEDS, along, parts=plan.parts
        )


def _trains(technique: Technique) -> bool:
    return type(technique).modifier is not Technique.modifier


def _told(strength: Strength) -> str:
    return " ".join(f"{name}={value}" for name, value in strength.items())


def _values(setting: Setting) -> list[Value]:
    """Some that its domain allows."""
    domain, values = setting.domain, list[Value]()
    if isinstance(domain, OneOf):
        values = list(domain.values)
    elif isinstance(domain, Flag):
        values = [False, True]
    elif isinstance(domain, SubsetOf):
        values = [(name,) for name in domain.names]
    elif isinstance(domain, Real):
        span = domain.high - domain.low
        values = [domain.low + share * span for share in (0.25, 0.5, 0.75)]
    elif isinstance(domain, Integer):
        values = [value for value in (domain.low, 2, 3) if domain.allows(value)]
    return [value for value in values if value != setting.default]


def _check_plan(plan: Plan, techniques: Sequence[Technique]) -> None:
    reread = plan_from(json.loads(json.dumps(plan.as_dict())), techniques)
    assert reread == plan and hash(reread) == hash(plan) and reread.as_dict() == plan.as_dict()
    for part in plan.parts:
        for index, layer in enumerate(plan.structure.layers):
            assert all(math.isfinite(amount) for amount in part.terms(index, layer).values())
        for low, high in part.ranges().values():
            assert math.isfinite(low) and math.isfinite(high) and low <= high


def _check_read_back(student: nn.Module, plan: Plan, bench: Bench, folder: Path) -> None:
    write_weights(student, folder / "model.safetensors")
    whole: Any = bench.workshop.model
    loaded = blank(whole.config, plan, bench.techniques)
    load_model(loaded, folder / "model.safetensors")
    assert type(loaded) is type(student) and same(weights(loaded), weights(student))
    assert tied(loaded) == tied(student) and real_bytes(loaded) == real_bytes(student)
    assert torch.equal(logits(loaded.eval()), logits(student))


def _check_plain(student: nn.Module, plain: nn.Module) -> None:
    """No hook, no method of its own, no parameter that was not there at first."""
    mine, theirs = dict(student.named_modules()), dict(plain.named_modules())
    assert {name: type(module) for name, module in mine.items()} == {
        name: type(module) for name, module in theirs.items()
    }
    for module in mine.values():
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        assert not any(getattr(module, name) for name in hooks)
        assert "forward" not in vars(module) and not hasattr(module, "parametrizations")
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in one.state_dict().items()}
        for one in (student, plain)
    ]
    assert shapes[0] == shapes[1] and tied(student) == tied(plain)
