"""What the settings of recovery do to a student: weights of the objectives, the phase of labels,
the share of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from autocompress.distillation.random_layers import RandomLayers
from autocompress.distillation.settings import OBJECTIVES
from autocompress.engine.making import recovery_of
from autocompress.structure import Layer, Structure
from autocompress.tasks.text_classification import TextClassification
from autocompress.techniques import SETTINGS
from autocompress.training.outputs import Teacher, TransferSet
from autocompress.training.recovery import Recovery
from autocompress.training.taps import watch
from tests.test_recovery import padded, same, weights
from tests.tiny_models import FFN, MODELS, build

FAMILY = MODELS["gpt2"].family
CUT = Structure((Layer(0, (1, 2), tuple(range(FFN))), Layer(2, (0, 3), (1, 4, 5))))
ROWS, LABELS = 64, np.random.default_rng(1).integers(0, 2, 64)


@pytest.fixture
def teacher(tmp_path: Path) -> Teacher:
    """GPT-2 as a classifier of 64 texts, that differ in their first token."""
    rng = np.random.default_rng(0)
    rows = [
        np.array([[5 + i % 45, *rng.integers(5, 50, int(rng.integers(2, 9))).tolist()]])
        for i in range(ROWS)
    ]
    return Teacher(
        build("gpt2"),
        FAMILY,
        TransferSet(rows, LABELS, padded, TextClassification.loss),
        tmp_path / "scratch",
    )


def recovery(
    teacher: Teacher, steps: int = 4, seed: tuple[int, int] = (0, 1), **more: Any
) -> Recovery:
    chosen = SETTINGS.candidate(
        {"recovery.steps": steps, **{f"recovery.{name}": value for name, value in more.items()}}
    )
    return recovery_of(FAMILY.cut(teacher.model, CUT), CUT, chosen, teacher, seed)


def loss(one: Recovery) -> Tensor:
    with watch(one.student, FAMILY, 2, one.watched) as seen:
        return one._loss(list(range(32)), seen)


def alone(teacher: Teacher, objective: str) -> float:
    return loss(recovery(teacher, objectives=[objective], hard_label_weight=0.0)).item()


def of_labels(teacher: Teacher) -> float:
    return loss(recovery(teacher, hard_label_weight=1.0)).item()


def test_the_loss_is_the_weighted_sum_of_labels_and_objectives(teacher: Teacher) -> None:
    """DistilGPT2's weights, 5 to 2 to 1."""
    one = recovery(
        teacher,
        objectives=["logits", "cosine"],
        logits_weight=2.5,
        cosine_weight=0.5,
        hard_label_weight=0.5,
    )
    weighted_sum = 4 * loss(one).item()
    parts = (alone(teacher, "logits"), of_labels(teacher), alone(teacher, "cosine"))
    assert weighted_sum == pytest.approx(5 * parts[0] + 2 * parts[1] + parts[2], rel=1e-4)
    assert min(parts) > 0.01


def test_weights_are_one_where_none_are_given(teacher: Teacher) -> None:
    total = loss(recovery(teacher, objectives=["logits", "cosine"], hard_label_weight=0.25)).item()
    expected = 0.25 * of_labels(teacher) + 0.75 * (
        alone(teacher, "logits") + alone(teacher, "cosine")
    )
    assert total == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_labels_is_theirs(teacher: Teacher) -> None:
    one = recovery(teacher, hard_label_weight=1.0)
    inputs = {
        key: torch.from_numpy(value)
        for key, value in padded(teacher.transfer.rows[:32]).inputs.items()
    }
    with torch.no_grad():
        expected = cross_entropy(one.student(**inputs).logits, torch.from_numpy(LABELS[:32]))
    assert loss(one).item() == pytest.approx(expected.item(), rel=0.02)


def test_without_a_teacher_it_is_never_asked(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(teacher, "features", refuse)
    one = recovery(teacher, hard_label_weight=1.0, objectives=["logits", "hidden-states"])
    one.advance(4)
    assert one.done == 4


@pytest.mark.parametrize(("phase", "guided"), [(0.0, 10), (0.3, 7), (0.9, 1)])
def test_labels_alone_guide_the_last_phase(teacher: Teacher, phase: float, guided: int) -> None:
    one = recovery(teacher, 10, label_phase=phase, objectives=["logits"], hard_label_weight=0.0)
    labels, soft = (
        recovery(teacher, 10, hard_label_weight=1.0),
        recovery(teacher, 10, hard_label_weight=0.0),
    )
    assert one.lesson.steps == guided
    for step in range(10):
        one.done = step
        assert loss(one).item() == loss(soft if step < guided else labels).item()


@pytest.mark.parametrize(("share", "count"), [(1.0, 64), (0.5, 32), (0.25, 16), (0.001, 1)])
def test_a_share_of_the_data_is_drawn_by_the_seed_of_the_run(
    teacher: Teacher, share: float, count: int
) -> None:
    def rows(seed: tuple[int, int], share: float = share) -> set[int]:
        one = recovery(teacher, data_share=share, seed=seed)
        return {index for _ in range(20) for index in next(one.batches)}

    assert len(rows((0, 1))) == count
    assert rows((0, 1)) == rows((0, 2)) and rows((0, 1)) <= rows((0, 3), 1.0)
    if 1 < count < ROWS:
        assert rows((0, 1)) != rows((5, 1)) and rows((0, 1)) < rows((0, 1), 2 * share)


def test_what_objectives_train_of_their_own_does_not_ship(teacher: Teacher) -> None:
    one = recovery(
        teacher, 8, objectives=["random-layers"], hard_label_weight=0.0, learning_rate=1e-2
    )
    [(objective, _)] = one.objectives
    assert isinstance(objective, RandomLayers)
    projection, target = objective.projection.detach().clone(), objective.target.clone()
    one.advance(8)
    assert not torch.equal(objective.projection, projection)
    assert torch.equal(objective.target, target)
    assert one.student.state_dict().keys() == FAMILY.cut(teacher.model, CUT).state_dict().keys()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_gradient_reaches_the_teacher(teacher: Teacher, objective: str) -> None:
    one = recovery(teacher, 12, objectives=[objective], hard_label_weight=0.0)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    one.advance(12)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert same(before, dict(teacher.model.state_dict()))
    assert not same(weights(one), weights(recovery(teacher)))


def test_a_student_of_one_layer_learns_from_the_labels_under_random_layers(
    teacher: Teacher,
) -> None:
    structure = Structure((Layer(1, (0,), (1, 2)),))
    chosen = SETTINGS.candidate({"recovery.steps": 3, "recovery.objectives": ["random-layers"]})
    one = recovery_of(FAMILY.cut(teacher.model, structure), structure, chosen, teacher, (0, 1))
    before = weights(one)
    one.advance(3)
    assert one.watched == [] and not same(before, weights(one))
