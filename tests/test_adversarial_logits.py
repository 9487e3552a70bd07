"""MATE-KD: what is changed in a text, that student and teacher learn from it as they should, and
that the generator does."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.distillation.adversarial_logits import AdversarialLogits
from autocompress.distillation.logits import divergence
from autocompress.interfaces import Features, Lesson, Matching
from autocompress.techniques import SETTINGS
from autocompress.training.compute import CPU
from tests.tiny_models import MODELS, VOCABULARY, build, inputs

NOTHING = Features(torch.zeros(3, 2), inputs()["attention_mask"], {})
each_kind = pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "gpt2", "gpt2 with its head tied", "llama"]
)


def made(name: str, student: nn.Module | None = None, **more: Any) -> AdversarialLogits:
    """On one batch; the student is the teacher with other weights in its head and its first
    layer."""
    teacher = build(name)
    if student is None:
        student = copy.deepcopy(teacher)
        family = MODELS[name].family
        with torch.no_grad():
            for parameter in family.part(student, 0, "block").parameters():
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)),
                    alpha=0.2,
                )
    chosen = {"steps": 500, "objectives": ["adversarial-logits"], **more}
    candidate = SETTINGS.candidate({f"recovery.{key}": value for key, value in chosen.items()})
    random = torch.Generator().manual_seed(0)
    return AdversarialLogits(
        Lesson(candidate, Matching((), (), 1), student, teacher, random, 500, CPU, inputs())
    )


def loss(objective: AdversarialLogits, step: int = 1) -> Tensor:
    """At a step at which the generator does not learn."""
    objective.lesson.step = step
    return objective.loss(NOTHING, NOTHING)


def changed(objective: AdversarialLogits) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        ids, places, _ = objective._changed()
    return ids, places


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_a_share_of_the_real_tokens_is_replaced(share: float) -> None:
    objective, given = made("bert", masked_share=share), inputs()
    counts = 0
    for _ in range(200):
        ids, places = changed(objective)
        assert not (places & (given["attention_mask"] == 0)).any()
        assert torch.equal(ids[~places], given["input_ids"][~places])
        counts += int(places.sum())
    assert counts / 200 / 14 == pytest.approx(share, abs=0.02)


def test_untrained_the_generator_draws_from_all_of_the_vocabulary_but_padding() -> None:
    objective = made("gpt2", masked_share=1.0)
    drawn = torch.cat([ids[places] for ids, places in (changed(objective) for _ in range(100))])
    config: Any = objective.lesson.teacher.config
    assert set(drawn.tolist()) == set(range(VOCABULARY)) - {config.pad_token_id}


def test_a_text_of_which_nothing_is_replaced_is_the_text_itself() -> None:
    objective, given = made("bert", masked_share=0.01), inputs()
    none = next(i for i in range(99) if not changed(objective)[1].any())
    objective, twin = (made("bert", masked_share=0.01) for _ in range(2))
    for one in (objective, twin):
        for _ in range(none):
            changed(one)
    assert torch.equal(changed(twin)[0], given["input_ids"])
    loss_before = loss(objective)
    objective._train_generator()
    assert loss_before.item() > 1e-4


def test_a_model_without_a_padding_token() -> None:
    objective = made("gpt2 with its head tied", masked_share=1.0)
    objective.padding = []
    drawn = torch.cat([ids[places] for ids, places in (changed(objective) for _ in range(100))])
    assert set(drawn.tolist()) == set(range(VOCABULARY))
    assert torch.isfinite(loss(objective, step=10))


@each_kind
def test_a_student_like_its_teacher_loses_nothing(name: str) -> None:
    objective = made(name, build(name))
    assert loss(objective).item() == pytest.approx(0, abs=1e-5)
    assert loss(objective, step=10).item() == pytest.approx(0, abs=1e-5)


@each_kind
def test_the_loss_is_the_divergence_on_the_changed_text(name: str) -> None:
    objective, twin = made(name, temperature=3.0), made(name, temperature=3.0)
    ids, _ = changed(twin)
    mask = inputs()["attention_mask"]
    rows = []
    for model in (twin.lesson.student, twin.lesson.teacher):
        with torch.no_grad(), CPU.math(7):
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
        rows.append(logits[mask == 1] if logits.dim() == 3 else logits)
    expected = divergence(rows[0], rows[1], 3.0).item()
    assert loss(objective).item() == pytest.approx(expected, rel=1e-3) and expected > 1e-4


@each_kind
def test_gradients_go_to_the_student_only(name: str) -> None:
    objective = made(name)
    loss(objective, step=10).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in objective.lesson.student.parameters()]
    assert any(gradient is not None and gradient.abs().max() > 1e-6 for gradient in gradients)
    assert all(parameter.grad is None for parameter in objective.lesson.teacher.parameters())
    for model in (objective.lesson.student, objective.lesson.teacher):
        assert not any(module._forward_hooks for module in model.modules())


def test_the_generator_learns_in_every_tenth_step() -> None:
    objective = made("bert")
    kept = [copy.deepcopy(objective.generator.state_dict())]
    for step in range(12):
        loss(objective, step).detach()
        kept.append(copy.deepcopy(objective.generator.state_dict()))
    moved = [any(not torch.equal(a[key], b[key]) for key in a) for a, b in pairwise(kept)]
    assert moved == [step % 10 == 0 for step in range(12)]


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt2 with its head tied"])
def test_the_generator_finds_texts_on_which_the_two_differ_more(name: str) -> None:
    objective = made(name, masked_share=0.5, temperature=1.0)

    def usual() -> float:
        with torch.no_grad():
            return float(torch.stack([loss(objective) for _ in range(50)]).mean())

    before = usual()
    for _ in range(80):
        objective._train_generator()
    assert usual() > 1.1 * before


def test_the_same_seed_gives_the_same_texts() -> None:
    one, other = made("bert"), made("bert")
    assert all(torch.equal(changed(one)[0], changed(other)[0]) for _ in range(5))
    assert not torch.equal(changed(one)[0], changed(one)[0])
