"""Conformance of the distillation objectives, and each by hand."""

from __future__ import annotations

from math import log, sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from autocompress.candidate import Candidate
from autocompress.distillation import objectives
from autocompress.distillation.layer_maps import LAYER_MAPS
from autocompress.distillation.settings import OBJECTIVES
from autocompress.interfaces import Features, Lesson, Matching, Objective
from autocompress.techniques import SETTINGS
from autocompress.training.compute import CPU

HEADS, HEAD_SIZE, WIDTH = 4, 3, 12
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
KEPT_HEADS = (1, 3)
MATCHING = Matching(((1, 2), (2, 4)), KEPT_HEADS, HEAD_SIZE)
KL = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
"""Of (1/2, 1/2) from (3/4, 1/4)."""

KNOWN = objectives()
ATTENTION = ("attention-maps", "value-relations")
READING = tuple(name for name in OBJECTIVES if name != "adversarial-logits")
"""All but the one that runs the models itself, which has a file of its own."""
each_objective = pytest.mark.parametrize("name", READING)
each_attention_objective = pytest.mark.parametrize("name", ATTENTION)


def candidate(*names: str, **more: Any) -> Candidate:
    chosen = {f"recovery.{name}": value for name, value in more.items()}
    return SETTINGS.candidate({"recovery.steps": 1, "recovery.objectives": list(names), **chosen})


def made(name: str, matching: Matching | None = None, step: int = 9, **more: Any) -> Objective:
    """The objective of a recovery in its last step of ten. By default the student has two layers,
    and its teacher four; two too under ``random-layers``, so that there is but one draw."""
    two = Matching(((1, 1), (2, 2)), KEPT_HEADS, HEAD_SIZE)
    model: Any = SimpleNamespace(config=SimpleNamespace(hidden_size=WIDTH))
    matching = matching or (two if name == "random-layers" else MATCHING)
    return KNOWN[name](
        Lesson(
            candidate(name, **more),
            matching,
            model,
            model,
            torch.Generator().manual_seed(0),
            10,
            CPU,
            step=step,
        )
    )


def read(name: str) -> list[str]:
    """The student's features that an objective reads."""
    return [mine for mine, _ in made(name).features()]


def teacher_features() -> Features:
    """Random; zero on padding, as the cache of the teacher gives them."""
    random = torch.Generator().manual_seed(0)
    names = ["hidden.1", "hidden.2", "hidden.4", "last", "query", "key", "value"]
    tokens = {
        name: torch.randn(3, 5, WIDTH, generator=random) * MASK.unsqueeze(-1) for name in names
    }
    return Features(torch.randn(3, 4, generator=random), MASK, tokens)


def like(teacher: Features, name: str) -> Features:
    """A student of two layers and two heads that computes what its teacher does, and anything on
    padding."""
    dims = [head * HEAD_SIZE + i for head in KEPT_HEADS for i in range(HEAD_SIZE)]
    tokens = {name: teacher.tokens[name][..., dims] for name in ("query", "key", "value")}
    tokens |= {
        mine: teacher.tokens[theirs]
        for mine, theirs in made(name).features()
        if name not in ATTENTION
    }
    junk = {
        name: torch.where(MASK.unsqueeze(-1) == 1, value, 7.0) for name, value in tokens.items()
    }
    return Features(teacher.logits, MASK, junk)


def unlike(teacher: Features, name: str) -> Features:
    student, random = like(teacher, name), torch.Generator().manual_seed(1)

    def moved(tensor: Tensor) -> Tensor:
        return (tensor + 0.5 * torch.randn(tensor.shape, generator=random)).requires_grad_()

    return Features(
        moved(student.logits), MASK, {name: moved(value) for name, value in student.tokens.items()}
    )


def loss(
    name: str, student: Features, teacher: Features, matching: Matching | None = None
) -> Tensor:
    return made(name, matching).loss(student, teacher)


def with_padding(features: Features, value: float) -> Features:
    """Two more columns of padding."""
    tokens = {
        name: torch.nn.functional.pad(t, (0, 0, 0, 2), value=value)
        for name, t in features.tokens.items()
    }
    return Features(features.logits, torch.nn.functional.pad(features.mask, (0, 2)), tokens)


def test_names_agree_with_the_settings() -> None:
    assert tuple(KNOWN) == OBJECTIVES


@each_objective
def test_nothing_is_lost_when_the_student_is_like_its_teacher(name: str) -> None:
    teacher = teacher_features()
    assert loss(name, like(teacher, name), teacher).item() == pytest.approx(0, abs=1e-5)


@each_objective
def test_an_unlike_student_is_pulled(name: str) -> None:
    teacher = teacher_features()
    student = unlike(teacher, name)
    distillation_loss = loss(name, student, teacher)
    assert distillation_loss.shape == () and distillation_loss.item() > 0.01
    for gradient in torch.autograd.grad(
        distillation_loss, [student.tokens[mine] for mine in read(name)] or [student.logits]
    ):
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 1e-4


@each_objective
def test_a_step_down_the_gradient_lowers_the_loss(name: str) -> None:
    teacher = teacher_features()
    student = unlike(teacher, name)
    before = loss(name, student, teacher)
    gradients = torch.autograd.grad(
        before, [student.logits, *(student.tokens[n] for n in read(name))], allow_unused=True
    )
    logits = student.logits if gradients[0] is None else student.logits - 0.1 * gradients[0]
    moved = dict(student.tokens) | {
        n: student.tokens[n] - 0.1 * g for n, g in zip(read(name), gradients[1:], strict=True)
    }
    assert loss(name, Features(logits, MASK, moved), teacher) < before


@each_objective
def test_padding_counts_for_nothing(name: str) -> None:
    teacher = teacher_features()
    student = unlike(teacher, name)
    padded_loss = loss(name, with_padding(student, -3.0), with_padding(teacher, 0.0))
    assert padded_loss.item() == pytest.approx(loss(name, student, teacher).item(), rel=1e-5)


@each_objective
def test_gradient_on_padding_is_zero(name: str) -> None:
    teacher = teacher_features()
    student = unlike(teacher, name)
    tokens = [student.tokens[mine] for mine in read(name)]
    gradients = torch.autograd.grad(loss(name, student, teacher), tokens) if tokens else ()
    assert all(gradient[MASK == 0].abs().max() == 0 for gradient in gradients)


def test_features_that_are_read() -> None:
    hidden = (("hidden.1", "hidden.2"), ("hidden.2", "hidden.4"))
    assert {name: made(name, MATCHING).features() for name in READING} == {
        "logits": (),
        "hidden-states": hidden,
        "normalized-hidden-states": hidden,
        "cosine": (("last", "last"),),
        "attention-maps": (("query", "query"), ("key", "key")),
        "value-relations": (("value", "value"),),
        "random-layers": (
            ("hidden.1", "hidden.1"),
            ("hidden.1", "hidden.2"),
            ("hidden.1", "hidden.3"),
        ),
        "annealed-logits": (),
    }


@each_attention_objective
def test_a_last_layer_without_heads_has_nothing_to_match(name: str) -> None:
    teacher, none = teacher_features(), Matching(MATCHING.layers, (), HEAD_SIZE)
    assert made(name, none).features() == ()
    logits = teacher.logits.clone().requires_grad_()
    distillation_loss = loss(name, Features(logits, MASK, {}), teacher, none)
    [gradient] = torch.autograd.grad(distillation_loss, [logits])
    assert distillation_loss.item() == 0 and gradient.abs().max() == 0


@each_attention_objective
def test_a_head_matches_the_one_of_its_number(name: str) -> None:
    teacher = teacher_features()
    student, swapped = like(teacher, name), Matching(MATCHING.layers, KEPT_HEADS[::-1], HEAD_SIZE)
    assert loss(name, student, teacher, swapped).item() > 0.01


@pytest.mark.parametrize(
    ("temperature", "teacher_logit", "expected"),
    [(1.0, log(3), KL), (2.0, 2 * log(3), 4 * KL), (0.5, log(3) / 2, KL / 4)],
)
def test_logits_by_hand(temperature: float, teacher_logit: float, expected: float) -> None:
    """Two examples of two classes, the second without a difference."""
    teacher = Features(torch.tensor([[teacher_logit, 0.0], [1.0, 1.0]]), MASK[:2], {})
    student = Features(torch.tensor([[5.0, 5.0], [-2.0, -2.0]]), MASK[:2], {})
    distillation_loss = made("logits", temperature=temperature).loss(student, teacher)
    assert distillation_loss.item() == pytest.approx(expected / 2, rel=1e-5)


def test_hidden_states_by_hand() -> None:
    """Differences of 2 on three real tokens in the first pair, of 4 on one of them in the second;
    100 on padding."""
    mask = torch.tensor([[1, 1], [1, 0]])
    first = torch.tensor([[[2.0, -2.0], [2.0, 2.0]], [[-2.0, 2.0], [100.0, 100.0]]])
    second = torch.tensor([[[4.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [100.0, 100.0]]])
    student = Features(torch.zeros(2, 2), mask, {"hidden.1": first, "hidden.2": second})
    teacher = Features(
        torch.zeros(2, 2),
        mask,
        {"hidden.2": torch.zeros(2, 2, 2), "hidden.4": torch.zeros(2, 2, 2)},
    )
    assert loss("hidden-states", student, teacher).item() == pytest.approx((4 + 16 / 3) / 2)


def test_normalized_hidden_states_by_hand() -> None:
    """Of three real tokens one points along the teacher's, one across and one against it; the
    second pair agrees in all."""
    mask = torch.tensor([[1, 1], [1, 0]])
    teacher_states = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[5.0, 0.0], [1.0, 0.0]]])
    states = torch.tensor([[[7.0, 0.0], [2.0, 0.0]], [[-1.0, 0.0], [-100.0, 0.0]]])
    student = Features(
        torch.zeros(2, 2), mask, {"hidden.1": states, "hidden.2": 4 * teacher_states}
    )
    teacher = Features(
        torch.zeros(2, 2), mask, {"hidden.2": teacher_states, "hidden.4": teacher_states}
    )
    assert loss("normalized-hidden-states", student, teacher).item() == pytest.approx(
        (0 + 2 + 4) / 3 / 2
    )


def test_cosine_by_hand() -> None:
    """Three real tokens: along the teacher's, at 60 degrees, and against it; 100 on padding."""
    mask = torch.tensor([[1, 1], [1, 0]])
    last = torch.tensor([[[2.0, 0.0], [0.5, 0.75**0.5]], [[-3.0, 0.0], [100.0, 100.0]]])
    student = Features(torch.zeros(2, 2), mask, {"last": last})
    teacher = Features(
        torch.zeros(2, 2),
        mask,
        {"last": torch.tensor([[[1.0, 0.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])},
    )
    assert loss("cosine", student, teacher).item() == pytest.approx((0 + 0.5 + 2) / 3)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.2), (1, 0.2), (2, 0.4), (5, 0.6), (7, 0.8), (8, 1.0), (9, 1.0), (10, 1.0)],
)
def test_annealed_logits_by_hand(step: int, factor: float) -> None:
    """Ten steps in five stages; the teacher's logits are 10 and -10 in both rows, the student's
    zero but for one of 10."""
    teacher = Features(torch.tensor([[10.0, -10.0], [10.0, -10.0]]), MASK[:2], {})
    student = Features(torch.tensor([[0.0, 0.0], [10.0, 0.0]]), MASK[:2], {})
    annealed_loss = made("annealed-logits", step=step, annealing_stages=5).loss(student, teacher)
    expected = (3 * (10 * factor) ** 2 + (10 - 10 * factor) ** 2) / 4
    assert annealed_loss.item() == pytest.approx(expected, rel=1e-5)


def test_attention_maps_by_hand() -> None:
    """One head of size 4: the teacher attends (3/4, 1/4) from both tokens, the student evenly; the
    third token is padding."""
    mask, zeros = torch.tensor([[1, 1, 0]]), torch.zeros(1, 3, 4)
    query, key = zeros.clone(), zeros.clone()
    query[..., 0], key[0, 0, 0] = 1.0, 2 * log(3)
    student = Features(torch.zeros(1, 2), mask, {"query": zeros, "key": zeros})
    teacher = Features(torch.zeros(1, 2), mask, {"query": query, "key": key})
    assert loss("attention-maps", student, teacher, Matching((), (0,), 4)).item() == pytest.approx(
        KL, rel=1e-5
    )


def test_a_causal_token_attends_to_none_after_it() -> None:
    """As above, but the first token has nothing to choose, and the third, now real, attends evenly
    in both."""
    mask, zeros = torch.tensor([[1, 1, 1]]), torch.zeros(1, 3, 4)
    query, key = zeros.clone(), zeros.clone()
    query[0, :2, 0], key[0, 0, 0] = 1.0, 2 * log(3)
    student = Features(torch.zeros(1, 2), mask, {"query": zeros, "key": zeros})
    teacher = Features(torch.zeros(1, 2), mask, {"query": query, "key": key})
    distillation_loss = loss("attention-maps", student, teacher, Matching((), (0,), 4, causal=True))
    assert distillation_loss.item() == pytest.approx(KL / 3, rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_share_a_key_are_heads_of_their_own(causal: bool) -> None:
    """Grouped, and written out with each key repeated, are one and the same."""
    random = torch.Generator().manual_seed(2)

    def features(heads: int) -> tuple[Features, Features]:
        """Two heads of queries, of size 3, on each head of keys."""
        query, key = (
            torch.randn(3, 5, count * HEAD_SIZE, generator=random) for count in (2 * heads, heads)
        )
        repeated = key.view(3, 5, heads, HEAD_SIZE).repeat_interleave(2, dim=2).flatten(2)
        grouped, plain = ({"query": query, "key": keys} for keys in (key, repeated))
        return Features(torch.zeros(3, 2), MASK, grouped), Features(torch.zeros(3, 2), MASK, plain)

    (student, plain_student), (teacher, plain_teacher) = features(2), features(4)
    grouped_loss = loss("attention-maps", student, teacher, Matching((), (1, 3), HEAD_SIZE, causal))
    expected = loss(
        "attention-maps",
        plain_student,
        plain_teacher,
        Matching((), (2, 3, 6, 7), HEAD_SIZE, causal),
    )
    assert 0.1 < grouped_loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_value_relations_by_hand() -> None:
    """Of two tokens the first relates as (3/4, 1/4) in the teacher, all else evenly."""
    mask, zeros = torch.tensor([[1, 1]]), torch.zeros(1, 2, 4)
    value = zeros.clone()
    value[0, 0, 2] = sqrt(2 * log(3))
    student, teacher = (
        Features(torch.zeros(1, 2), mask, {"value": tokens}) for tokens in (zeros, value)
    )
    assert loss("value-relations", student, teacher, Matching((), (0,), 4)).item() == pytest.approx(
        KL / 2, rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "student", "teacher", "pairs"),
    [
        ("uniform", 3, 6, [(1, 2), (2, 4), (3, 6)]),
        ("uniform", 4, 4, [(1, 1), (2, 2), (3, 3), (4, 4)]),
        ("uniform", 2, 6, [(1, 3), (2, 6)]),
        ("uniform", 1, 12, [(1, 12)]),
        ("uniform", 3, 4, [(1, 1), (2, 3), (3, 4)]),
        ("pseudo-uniform", 6, 12, [(1, 1), (2, 3), (3, 5), (4, 8), (5, 10), (6, 12)]),
        ("pseudo-uniform", 3, 6, [(1, 1), (2, 4), (3, 6)]),  # as layers 0 3 5 are kept
        ("pseudo-uniform", 2, 6, [(1, 1), (2, 6)]),
        ("pseudo-uniform", 1, 12, [(1, 12)]),
        ("last", 3, 6, [(1, 4), (2, 5), (3, 6)]),
        ("last", 4, 4, [(1, 1), (2, 2), (3, 3), (4, 4)]),
        ("last", 1, 12, [(1, 12)]),
    ],
)
def test_layer_maps_by_hand(
    name: str, student: int, teacher: int, pairs: list[tuple[int, int]]
) -> None:
    assert LAYER_MAPS[name](student, teacher) == pairs


@pytest.mark.parametrize("name", LAYER_MAPS)
def test_layer_maps_rise_to_the_teacher_s_last_layer(name: str) -> None:
    for teacher in range(1, 25):
        for student in range(1, teacher + 1):
            mine, theirs = zip(*LAYER_MAPS[name](student, teacher), strict=True)
            assert mine == tuple(range(1, student + 1))
            assert theirs == tuple(sorted(set(theirs))) and theirs[0] >= 1 and theirs[-1] == teacher
