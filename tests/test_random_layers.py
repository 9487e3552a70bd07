"""RAIL-KD: which layers are drawn and when, and the distance by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autocompress.distillation.random_layers import RandomLayers
from autocompress.interfaces import Features, Lesson, Matching
from autocompress.techniques import SETTINGS
from autocompress.training.compute import CPU

MASK = torch.tensor([[1, 1], [1, 0]])
DEEP = Matching(((1, 4), (2, 8), (3, 12)), (), 1)


def made(matching: Matching, hidden_size: int = 2, **more: Any) -> RandomLayers:
    chosen = {"steps": 500, "objectives": ["logits", "random-layers"], **more}
    model: Any = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden_size))
    candidate = SETTINGS.candidate({f"recovery.{name}": value for name, value in chosen.items()})
    return RandomLayers(
        Lesson(candidate, matching, model, model, torch.Generator().manual_seed(0), 500, CPU)
    )


def features(*states: torch.Tensor) -> Features:
    return Features(
        torch.zeros(2, 2), MASK, {f"hidden.{i}": state for i, state in enumerate(states, 1)}
    )


def drawn(objective: RandomLayers, step: int) -> list[int]:
    objective.lesson.step = step
    objective.loss(features(*[torch.ones(2, 2, 2)] * 2), features(*[torch.ones(2, 2, 2)] * 11))
    return objective.drawn


def test_layers_are_drawn_in_order_from_all_but_the_last_and_drawn_again() -> None:
    objective = made(DEEP, redraw_steps=10)
    drawn_layers = [drawn(objective, step) for step in range(400)]
    assert all(len(layers) == 2 and layers == sorted(set(layers)) for layers in drawn_layers)
    assert all(drawn_layers[step] == drawn_layers[step - step % 10] for step in range(400))
    draws = drawn_layers[::10]
    assert {layer for layers in draws for layer in layers} == set(range(1, 12))
    assert len({tuple(layers) for layers in draws}) > 10


def test_looking_at_a_loss_draws_nothing() -> None:
    objective = made(DEEP, redraw_steps=10)
    assert drawn(objective, 0) == drawn(objective, 0) == drawn(objective, 9)


def plain(objective: RandomLayers) -> RandomLayers:
    """With projections that keep the numbers as they are."""
    groups, width, projected = objective.projection.shape
    with torch.no_grad():
        for matrices in (objective.projection, objective.target):
            matrices.copy_(torch.eye(width, projected).expand(groups, -1, -1))
    return objective


THREE = Matching(((1, 1), (2, 2), (3, 3)), (), 1)
"""Two layers of the student before its last, and two of the teacher, so that there is one draw."""
FIRST = torch.tensor([[[1.0, 8.0], [5.0, 0.0]], [[3.0, 0.0], [50.0, 50.0]]])
"""Over real tokens the means are (3, 4) and (3, 0)."""
ALONG = torch.tensor([[[2.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 9.0]]])
"""Means along the first axis."""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("layer-wise", ((0.4**2 + 0.8**2) + 0) / 2),
        # (3, 4, 2, 0) from (2, 0, 2, 0), each of length 1; the second example is (3, 0, 1, 0) from
        # (1, 0, 1, 0)
        ("concatenated", (2 - 2 * 10 / (29**0.5 * 8**0.5) + 2 - 2 * 4 / (10**0.5 * 2**0.5)) / 2),
    ],
)
def test_the_distance_by_hand(kind: str, expected: float) -> None:
    objective = plain(made(THREE, random_layers=kind))
    distance = objective.loss(features(FIRST, ALONG), features(ALONG, ALONG))
    assert distance.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["layer-wise", "concatenated"])
def test_like_layers_are_at_no_distance_and_only_the_students_projection_learns(kind: str) -> None:
    objective = made(THREE, random_layers=kind)
    assert objective.loss(features(FIRST, ALONG), features(FIRST, ALONG)).item() == pytest.approx(
        0, abs=1e-6
    )
    [trained] = objective.trained()
    assert trained is objective.projection and not objective.target.requires_grad
    objective.loss(features(FIRST, ALONG), features(ALONG, FIRST)).backward()  # type: ignore[no-untyped-call]
    assert objective.projection.grad is not None and objective.projection.grad.abs().max() > 1e-3


def test_a_student_of_one_layer_has_nothing_to_match() -> None:
    objective = made(Matching(((1, 12),), (), 1))
    logits = torch.ones(2, 2, requires_grad=True)
    loss = objective.loss(Features(logits, MASK, {}), features())
    assert objective.features() == () and loss.item() == 0 and loss.requires_grad
