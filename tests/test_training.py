"""Batches, optimizer and hooks that training a teacher and recovering a student share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autocompress.errors import CandidateFailed
from autocompress.families import FAMILIES
from autocompress.interfaces import Batch, Row
from autocompress.training.compute import CPU
from autocompress.training.steps import Optimizer, falling, held, repeated, schedule, trunk_steps
from autocompress.training.taps import watch
from autocompress.training.teacher import load_classifier
from tests.tiny_models import build, inputs

FAMILY = FAMILIES["bert"]
LABELLED, UNLABELLED = 130, 70
LENGTHS = [
    np.random.default_rng(source).integers(2, 40, count)
    for source, count in enumerate((LABELLED, UNLABELLED))
]
POOL = 20


def batches_of(per_batch: list[int], count: int, seed: tuple[int, ...] = (0, 1)) -> list[list[int]]:
    return list(islice(schedule(LENGTHS[: len(per_batch)], per_batch, seed), count))


def rows(lengths: list[int]) -> list[Row]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 500, (1, length)) for length in lengths]


def to_batch(some: Sequence[Row]) -> Batch:
    inputs = {
        name: np.zeros((len(some), max(row.shape[1] for row in some)), np.int64)
        for name in ("input_ids", "attention_mask")
    }
    for i, row in enumerate(some):
        inputs["input_ids"][i, : row.shape[1]], inputs["attention_mask"][i, : row.shape[1]] = (
            row[0],
            1,
        )
    return Batch(inputs)


@pytest.fixture
def model(tiny_model: Path) -> nn.Module:
    return load_classifier(str(tiny_model), None)


@pytest.mark.parametrize("per_batch", [[32], [32, 0], [24, 8], [0, 32], [1, 3]])
def test_batches_take_the_right_number_of_each_source(per_batch: list[int]) -> None:
    batches = batches_of(per_batch, 3 * POOL)
    assert {len(batch) for batch in batches} == {sum(per_batch)}
    for start in range(0, len(batches), POOL):
        drawn = [index for batch in batches[start : start + POOL] for index in batch]
        assert sum(index < LABELLED for index in drawn) == POOL * per_batch[0]


def test_every_example_comes_once_in_each_epoch() -> None:
    batches = batches_of([24, 8], 10 * POOL)
    for pools in range(1, 11):
        drawn = np.bincount(
            [i for batch in batches[: pools * POOL] for i in batch], minlength=LABELLED + UNLABELLED
        )
        for counts, taken in ((drawn[:LABELLED], 24), (drawn[LABELLED:], 8)):
            epochs = pools * POOL * taken / len(counts)
            assert counts.min() >= int(epochs) and counts.max() <= int(epochs) + 1


def test_batches_are_of_like_lengths() -> None:
    lengths = np.concatenate(LENGTHS)
    for start in range(3):
        pool = batches_of([24, 8], (start + 1) * POOL)[start * POOL :]
        spans = [(lengths[batch].min(), lengths[batch].max()) for batch in pool]
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(spans)))
        assert spans != sorted(spans)


def test_same_seed_same_batches() -> None:
    first = batches_of([24, 8], 50, (3, 5))
    assert batches_of([24, 8], 50, (3, 5)) == first
    assert batches_of([24, 8], 50, (3, 6)) != first
    assert batches_of([24, 8], 50, (4, 5)) != first


def test_repeated_batches_come_in_another_order_each_time_and_leave_no_row_out() -> None:
    batches = batches_of([32], POOL)
    drawn = list(islice(repeated(schedule(LENGTHS[:1], [32], (0, 1)), 5, (2,)), 3 * POOL))
    rounds = [drawn[start : start + POOL] for start in (0, POOL, 2 * POOL)]
    assert rounds[0] == batches
    assert all(sorted(one) == sorted(batches) for one in rounds)
    assert len({tuple(map(tuple, one)) for one in rounds}) == 3
    assert {row for batch in batches for row in batch} == set(range(LABELLED))


Share = Callable[[int, int], float]


def rates(model: nn.Module, steps: int, taken: int, share: Share = held) -> list[float]:
    """Of the steps taken, of all weights alike."""
    optimizer = Optimizer(model, 0.5, steps, share=share)
    bias, seen = model.get_parameter("classifier.bias"), []
    for _ in range(taken):
        optimizer.step(bias.sum())
        (rate,) = {part.param_groups[0]["lr"] for part in optimizer.parts}
        seen.append(rate)
    return seen


@pytest.mark.parametrize(("steps", "trunk"), [(1, 0), (5, 4), (32, 25), (128, 102)])
def test_the_rate_rises_stays_and_falls_to_zero(model: nn.Module, steps: int, trunk: int) -> None:
    assert trunk_steps(steps) == trunk
    seen = rates(model, steps, steps + 1)
    rising = [0.5 * min(1, step / 8) for step in range(1, steps + 2)]
    fallen = [0.5 * (steps - step) / (steps - trunk) for step in range(trunk, steps + 1)]
    expected = [*rising[:trunk], *map(min, rising[trunk:], fallen)]
    np.testing.assert_allclose(seen, expected, rtol=1e-12)
    assert seen[-2] > seen[-1] == 0


def test_the_rate_before_the_decay_is_the_same_however_long_the_run(model: nn.Module) -> None:
    trunk = trunk_steps(32)
    assert rates(model, 32, trunk) == rates(model, 128, trunk)


@pytest.mark.parametrize(("steps", "warm_up"), [(100, 10), (50, 5), (400, 20), (5, 1), (1, 1)])
def test_the_rate_of_a_teacher_rises_then_falls_to_zero(
    model: nn.Module, steps: int, warm_up: int
) -> None:
    expected = [0.5 * min((step + 1) / warm_up, 1 - step / steps) for step in range(steps + 1)]
    np.testing.assert_allclose(rates(model, steps, steps + 1, falling), expected, rtol=1e-12)


def test_all_parameters_train_and_of_the_embedding_only_the_rows_seen(model: nn.Module) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = to_batch(rows([5, 9, 9]))
    optimizer = Optimizer(model, 1e-3, 10)
    optimizer.step(cross_entropy(model(**CPU.tensors(batch)).logits, torch.tensor([0, 1, 1])))
    moved = {
        name: parameter.detach() != before[name] for name, parameter in model.named_parameters()
    }
    assert [name for name, changed in moved.items() if not changed.any()] == []
    touched = (
        moved["bert.embeddings.word_embeddings.weight"].any(dim=1).nonzero().flatten().tolist()
    )
    assert set(touched) == set(
        batch.inputs["input_ids"][batch.inputs["attention_mask"] == 1].tolist()
    )


def test_weights_decay_without_a_gradient(model: nn.Module) -> None:
    """By a hundredth of the learning rate, but for the rows of the embedding."""
    optimizer = Optimizer(model, 0.5, 10, share=lambda done, steps: 1.0)
    embedding = model.get_parameter("bert.embeddings.word_embeddings.weight")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step(torch.stack([0 * parameter.sum() for parameter in optimizer.dense]).sum())
    for name, parameter in model.named_parameters():
        share = 1.0 if parameter is embedding else 1 - 0.5 * 0.01
        torch.testing.assert_close(parameter.detach(), share * before[name])


@pytest.mark.parametrize(("scale", "norm"), [(1e4, 1.0), (1e-4, None)])
def test_the_gradient_of_a_step_has_a_norm_of_one_at_most(
    model: nn.Module, scale: float, norm: float | None
) -> None:
    inputs, labels = CPU.tensors(to_batch(rows([4, 7]))), torch.tensor([0, 1])
    expected = torch.autograd.grad(
        cross_entropy(model(**inputs).logits, labels), model.get_parameter("classifier.weight")
    )[0]
    optimizer = Optimizer(model, 1e-3, 10)
    optimizer.step(scale * cross_entropy(model(**inputs).logits, labels))
    gradients = [parameter.grad for parameter in optimizer.dense if parameter.grad is not None]
    if norm is not None:
        assert float(torch.cat([own.flatten() for own in gradients]).norm()) == pytest.approx(norm)
    else:
        own = model.get_parameter("classifier.weight").grad
        torch.testing.assert_close(own, scale * expected)


def test_steps_lower_the_loss(model: nn.Module) -> None:
    inputs, labels = CPU.tensors(to_batch(rows([4, 5, 6, 7] * 8))), torch.tensor([0, 1, 1, 0] * 8)
    optimizer = Optimizer(model, 5e-3, 40)
    losses = []
    for _ in range(40):
        loss = cross_entropy(model(**inputs).logits, labels)
        losses.append(loss.item())
        optimizer.step(loss)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["gpt2 with its head tied", "llama with a language head", "gpt2"])
def test_decoders_train_with_heads_tied_and_not(name: str) -> None:
    model = build(name)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = Optimizer(model, 5e-3, 40)
    losses = []
    for _ in range(40):
        rows = model(**inputs()).logits.flatten(0, -2)
        losses.append(cross_entropy(rows, torch.arange(len(rows)) % rows.shape[1]))
        optimizer.step(losses[-1])
    assert losses[-1] < 0.5 * losses[0]
    assert [
        key for key, parameter in model.named_parameters() if torch.equal(parameter, before[key])
    ] == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_fails_the_candidate_before_any_update(
    model: nn.Module, value: str
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = Optimizer(model, 1e-3, 10)
    with pytest.raises(CandidateFailed, match=rf"^the training loss became {value}$"):
        optimizer.step(model(**CPU.tensors(to_batch(rows([5])))).logits.sum() + float(value))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_watch_collects_what_the_layers_compute(model: nn.Module) -> None:
    inputs = CPU.tensors(to_batch(rows([7, 3])))
    names = ["hidden.1", "hidden.2", "hidden.4", "query", "key", "value"]
    expected = copy.deepcopy(model)(**inputs, output_hidden_states=True).hidden_states
    with watch(model, FAMILY, 4, names) as seen:
        assert hooks(model) == len(names)
        model(**inputs)
    assert hooks(model) == 0
    assert set(seen) == set(names) and {
        name: tensor.shape for name, tensor in seen.items()
    } == dict.fromkeys(names, (2, 7, 32))
    for number in (1, 2, 4):
        assert torch.equal(seen[f"hidden.{number}"], expected[number])
    for role in ("query", "key", "value"):
        assert torch.equal(seen[role], FAMILY.part(model, 3, role)(expected[3]))


def test_watch_sees_each_pass_and_lets_gradients_through(model: nn.Module) -> None:
    def last(seen: dict[str, Tensor], some: list[int]) -> Tensor:
        model(**CPU.tensors(to_batch(rows(some))))
        return seen["hidden.4"]

    with watch(model, FAMILY, 4, ["hidden.4"]) as seen:
        assert last(seen, [3]).shape == (1, 3, 32)
        last(seen, [8, 2]).pow(2).sum().backward()  # type: ignore[no-untyped-call]
    gradient = FAMILY.part(model, 0, "query").get_parameter("weight").grad
    assert gradient is not None and gradient.abs().max() > 0


def test_watch_removes_its_hooks_when_the_pass_fails(model: nn.Module) -> None:
    with pytest.raises(IndexError), watch(model, FAMILY, 4, ["hidden.2", "hidden.9", "value"]):
        model(input_ids=torch.tensor([[10**6]]))
    assert hooks(model) == 0
