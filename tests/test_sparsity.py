"""Sparsity by value: schedules, masks, movement scores, rounds, and the zeros that are left."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.engine.making import recovery_of
from autocompress.errors import CandidateFailed
from autocompress.plan import Plan
from autocompress.student import filled
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.sparsity import (
    EPSILON,
    PENALTY,
    Masks,
    Movement,
    SoftMovement,
    Sparse,
    group_sizes,
    kept,
    prunable,
    share_at,
    shrunk,
)
from autocompress.testing.models import BERT, LLAMA, Workshop
from autocompress.training.recovery import Recovery

STEPS = 30
FFN_OUTPUT = "bert.encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """4 layers of 4 heads and 24 neurons, 32 wide."""
    return Workshop(BERT, tmp_path_factory.mktemp("teacher"))


def student(workshop: Workshop, **chosen: Any) -> tuple[nn.Module, Plan, Any]:
    """A student before any training, its plan and its candidate."""
    candidate = SETTINGS.candidate({k.replace("__", "."): v for k, v in chosen.items()})
    plan = resolve(workshop.plans["uncut"], candidate, workshop.knowledge)
    cut = workshop.family.cut(workshop.model, plan.structure)
    return filled(cut, workshop.family, plan), plan, candidate


def recovery(workshop: Workshop, **chosen: Any) -> Recovery:
    chosen = {"recovery__steps": STEPS, "recovery__learning_rate": 1e-2, **chosen}
    model, plan, candidate = student(workshop, **chosen)
    return recovery_of(model, plan.structure, candidate, workshop.teacher, (3, 5))


def lesson(workshop: Workshop, **chosen: Any) -> Any:
    """Of 30 steps."""
    model, _, candidate = student(workshop, recovery__steps=STEPS, **chosen)
    return SimpleNamespace(candidate=candidate, student=model, steps=STEPS, step=0)


def zeros(model: nn.Module, *, embedding: bool = False) -> dict[str, float]:
    """Share of each matrix."""
    matrices = prunable(model, embedding=embedding)
    return {name: float((weight == 0).float().mean()) for name, weight in matrices.items()}


@pytest.mark.parametrize(
    ("schedule", "progress", "share"),
    [
        ("once", 0.01, 0.6),
        ("cubic", 0.1, 0.0),
        ("cubic", 0.45, 0.6 * (1 - 0.5**3)),
        ("cubic", 0.8, 0.6),
        ("cubic", 1.5, 0.6),
        ("rounds", 0.09, 0.0),
        ("rounds", 0.11, 1 - 0.9),
        ("rounds", 0.51, 1 - 0.9**5),
        ("rounds", 0.89, 1 - 0.9**8),
        ("rounds", 0.91, 0.6),
        ("rounds", 1.0, 0.6),
    ],
)
def test_schedules_by_hand(schedule: str, progress: float, share: float) -> None:
    """Nine rounds, of which the last takes what is missing to 60 %: 0.9 ** 9 is 0.39."""
    assert share_at(schedule, 0.6, progress) == pytest.approx(share)


def test_the_share_is_of_each_matrix_or_of_all_together() -> None:
    scores = {"a": torch.tensor([[5.0, 1.0], [4.0, 6.0]]), "b": torch.tensor([3.0, 2.0])}
    by_layer, together = kept(scores, 0.5, "layer"), kept(scores, 0.5, "global")
    assert by_layer["a"].tolist() == [[True, False], [False, True]]
    assert by_layer["b"].tolist() == [True, False]
    assert together["a"].tolist() == [[True, False], [True, True]]
    assert together["b"].tolist() == [False, False]
    equal = kept({"c": torch.zeros(8)}, 0.25, "layer")
    assert int(equal["c"].sum()) == 6


def test_without_training_the_smallest_weights_go(workshop: Workshop) -> None:
    model, plan, _ = student(workshop, sparsity__share=0.75)
    assert plan.part("sparsity") == Sparse(0.75, "layer", False, True)
    before = dict(workshop.model.named_parameters())
    for name, weight in model.named_parameters():
        if name in zeros(model):
            gone = weight == 0
            assert int(gone.sum()) == 0.75 * gone.numel()
            assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
            assert torch.equal(weight[~gone], before[name][~gone])
        else:
            assert torch.equal(weight, before[name])


def stepped(masks: Masks, weight: Any, gradient: Tensor, step: int) -> None:
    """One step of plain gradient descent at a rate of 0.1, in one matrix."""
    masks.lesson.step = step
    masks.before_step()
    weight.grad = None
    (weight * gradient).sum().backward()
    with torch.no_grad():
        weight -= 0.1 * weight.grad
    masks.after_step()


@pytest.mark.parametrize(("criterion", "gone"), [("movement", (0, 0)), ("magnitude", (0, 1))])
def test_a_large_shrinking_weight_goes_by_movement_and_a_small_growing_one_by_magnitude(
    workshop: Workshop, criterion: str, gone: tuple[int, int]
) -> None:
    """One in 768 goes; three steps come before the first zero."""
    own = lesson(
        workshop,
        sparsity__share=1 / 768,
        sparsity__criterion=criterion,
        **({"sparsity__schedule": "cubic"} if criterion == "magnitude" else {}),
    )
    weight: Any = own.student.get_parameter(FFN_OUTPUT)
    gradient = torch.zeros_like(weight)
    gradient[0, 0], gradient[0, 1] = 1.0, -1.0
    with torch.no_grad():
        weight.fill_(0.7)
        weight[0, 0], weight[0, 1] = 1.0, 0.1
    masks = {"movement": Movement, "magnitude": Masks}[criterion](own)
    for step in range(3):
        stepped(masks, weight, gradient, step)
    if isinstance(masks, Movement):
        scores = masks.scores[FFN_OUTPUT]
        assert float(scores[0, 0]) == pytest.approx(-(1.0 + 0.9 + 0.8))
        assert float(scores[0, 1]) == pytest.approx(0.1 + 0.2 + 0.3)
        assert scores.count_nonzero() == 2
    stepped(masks, weight, 0 * gradient, STEPS - 1)
    assert (weight == 0).nonzero().tolist() == [list(gone)]
    if isinstance(masks, Movement):
        stepped(masks, weight, -10 * gradient, STEPS - 1)
        stepped(masks, weight, 0 * gradient, STEPS - 1)
        assert weight[0, :2].tolist() == pytest.approx([0.7, 0.0])
    masks.remove()


def test_soft_scores_learn_by_movement_and_by_their_penalty(workshop: Workshop) -> None:
    """At zero the sigmoid's slope is a quarter; its mean is over 768 weights, and over the 24
    matrices of 4 layers."""
    own = lesson(workshop, sparsity__share=0.5, sparsity__criterion="soft-movement")
    weight: Any = own.student.get_parameter(FFN_OUTPUT)
    soft = SoftMovement(own)
    own.step = STEPS - 1
    soft.before_step()
    whole, mask = soft.whole[FFN_OUTPUT].clone(), soft.masks[FFN_OUTPUT].clone()
    ((2 * weight).sum() + soft.penalty()).backward()
    by_penalty = PENALTY / 4 / 768 / 24
    torch.testing.assert_close(soft.trained[FFN_OUTPUT].grad, 2 * whole + by_penalty)
    torch.testing.assert_close(weight.grad, 2.0 * mask)
    assert set(map(id, soft.parameters())) == {id(score) for score in soft.trained.values()}


def test_one_proximal_step_by_hand() -> None:
    """Of single weights: less by the strength over their size, but never past zero."""
    by_size = [0.2 - 0.01 / (0.2 + EPSILON), -(0.5 - 0.01 / (0.5 + EPSILON)), 0.0, 0.0]
    after = shrunk(torch.tensor([[0.2, -0.5, 0.05, 0.0]]), 0.01, 1)
    torch.testing.assert_close(after, torch.tensor([by_size]))


def test_rows_and_columns_of_blocks_shrink_and_go_together() -> None:
    """The first block's lower row has length 0.05, the second block's columns have 5 and 0."""
    weight = torch.tensor([[3.0, 4.0, 3.0, 0.0], [0.03, 0.04, 4.0, 0.0]])
    after = shrunk(weight, 0.01, 2)
    assert after[1, :2].tolist() == [0, 0] and after[:, 3].tolist() == [0, 0]
    for axis in (1, 0):
        blocks = weight.view(1, 2, 2, 2).movedim(2, 1)
        length = blocks.norm(dim=axis + 2, keepdim=True)
        left = (1 - 0.01 / (length + EPSILON) / length.clamp(min=1e-30)).clamp(min=0)
        weight = (blocks * left).movedim(1, 2).reshape(2, 4)
    torch.testing.assert_close(after, weight)
    sizes = group_sizes(torch.tensor([[3.0, 4.0, 3.0, 0.0], [0.0, 0.0, 4.0, 0.0]]), 2)
    assert sizes.tolist() == [[3, 4, 3, 0], [0, 0, 4, 0]]


def test_blocks_that_do_not_fit_are_told(workshop: Workshop) -> None:
    gradual = {"sparsity__share": 0.5, "sparsity__schedule": "cubic", "sparsity__proximal": 1e-4}
    message = (
        r"^sparsity\.block is 16, which does not divide .*\.intermediate\.dense\.weight, 24 by 32$"
    )
    with pytest.raises(CandidateFailed, match=message):
        recovery(workshop, **gradual, sparsity__block=16)
    active = SETTINGS.active({"sparsity.share": 0.5, "recovery.steps": 1, "sparsity.block": 4})
    assert "sparsity.block" not in active and "sparsity.proximal" not in active


def test_rounds_take_a_tenth_and_begin_anew(workshop: Workshop) -> None:
    """Masks are nested, and survivors what they were before any training."""
    own = recovery(workshop, sparsity__share=0.4, sparsity__schedule="rounds")
    [masks] = own.modifiers
    assert isinstance(masks, Masks)
    start = {name: p.detach().clone() for name, p in own.student.named_parameters()}
    densities = []
    before = masks.masks[FFN_OUTPUT]
    for step in range(STEPS):
        own.advance(step)
        own.lesson.step = step
        masks.before_step()
        mask = masks.masks[FFN_OUTPUT]
        assert not (mask & ~before).any()
        if not torch.equal(mask, before):
            densities.append(float(mask.float().mean()))
            for name, weight in own.student.named_parameters():
                whole = masks.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
                assert torch.equal(weight, start[name].where(whole, torch.zeros(())))
            before = mask
    assert densities == pytest.approx([0.9, 0.81, 0.729, 0.6561, 0.6], abs=1 / 768)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"sparsity__schedule": "cubic"},
        {"sparsity__schedule": "cubic", "sparsity__proximal": 1e-4},
        {"sparsity__schedule": "rounds"},
        {"sparsity__criterion": "movement"},
        {"sparsity__criterion": "soft-movement"},
        {"sparsity__criterion": "movement", "quantization__trained": True},
    ],
)
@pytest.mark.parametrize("embedding", [False, True])
def test_a_trained_student_has_its_share_of_zeros(
    workshop: Workshop, chosen: dict[str, Any], embedding: bool
) -> None:
    """Plus zero, all of them; and nothing else of it is, but for what proximal steps drew there."""
    share = {"sparsity__share": 0.5, "sparsity__embedding": embedding}
    own = recovery(workshop, **share, **chosen)
    own.advance(STEPS)
    own.finish()
    told = zeros(own.student, embedding=True)
    words = told["bert.embeddings.word_embeddings.weight"]
    assert words == 0.5 if embedding else words < 0.01
    del told["bert.embeddings.word_embeddings.weight"]
    most = 0.51 if "sparsity__proximal" in chosen else 0.5
    assert all(0.5 <= zero <= most for zero in told.values()) and len(told) == 24
    for weight in own.student.parameters():
        assert not torch.signbit(weight[weight == 0]).any()


def test_shared_matrices_are_masked_once_and_a_head_is_no_layer(tmp_path: Path) -> None:
    workshop = Workshop(LLAMA, tmp_path)
    model, _, _ = student(
        workshop, sharing__groups=1, sparsity__share=0.5, sparsity__scope="global"
    )
    shares = zeros(model)
    assert len(shares) == 7 and not any("head" in name or "embed" in name for name in shares)
    weights = prunable(model, embedding=False)
    gone = sum(int((weight == 0).sum()) for weight in weights.values())
    assert gone == sum(weight.numel() for weight in weights.values()) / 2
