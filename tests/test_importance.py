"""Conformance of the importance criteria, and each against its definition."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, BertConfig

from autocompress.families import FAMILIES
from autocompress.interfaces import Batch
from autocompress.knowledge import CRITERIA, fisher, gradient, magnitude
from autocompress.structure import Importance
from autocompress.tasks.language_modeling import LanguageModeling
from autocompress.tasks.text_classification import TextClassification
from autocompress.training.compute import CPU, Compute
from tests.tiny_models import FFN, HEADS, LAYERS, MODELS, build

LENGTHS = (9, 4, 6, 2, 7, 5, 8)
LABELS = np.array([0, 1, 1, 1, 0, 0, 1])
LANGUAGE_MODEL = "llama with a language head"

MEASURES: dict[str, Callable[[str, nn.Module], Importance]] = {
    "fisher": lambda name, model: by_fisher(name, model, [slice(0, 4), slice(4, 7)]),
    "gradient": lambda name, model: by_gradient(name, model, [slice(0, 4), slice(4, 7)]),
    "magnitude": lambda name, model: magnitude.measure(model, MODELS[name].family),
}
each_criterion = pytest.mark.parametrize("criterion", CRITERIA)
each_model = pytest.mark.parametrize("name", ["bert", "gpt2", "llama", LANGUAGE_MODEL])


def rows() -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 50, length) for length in LENGTHS]


def padded(examples: list[NDArray[np.int64]]) -> Batch:
    length = max(map(len, examples))
    ids, mask = (
        np.ones((len(examples), length), np.int64),
        np.zeros((len(examples), length), np.int64),
    )
    for i, row in enumerate(examples):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return Batch({"input_ids": ids, "attention_mask": mask})


def next_tokens(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token that follows each; -100 where that is padding or nothing."""
    after = np.concatenate([ids[:, 1:], np.ones((len(ids), 1), np.int64)], axis=1)
    return np.where(after == 1, -100, after)


def by_fisher(
    name: str, model: nn.Module, parts: list[slice], compute: Compute = CPU
) -> Importance:
    """Fisher information from these batches."""
    return _from_examples(fisher.measure, name, model, parts, compute)


def by_gradient(name: str, model: nn.Module, parts: list[slice]) -> Importance:
    """The gradient criterion from these batches."""
    return _from_examples(gradient.measure, name, model, parts)


def _from_examples(
    measure: Callable[..., Importance],
    name: str,
    model: nn.Module,
    parts: list[slice],
    compute: Compute = CPU,
) -> Importance:
    batches = [padded(rows()[part]) for part in parts]
    labels = [
        next_tokens(batch.inputs["input_ids"]) if name == LANGUAGE_MODEL else LABELS[part]
        for batch, part in zip(batches, parts, strict=True)
    ]
    task = LanguageModeling if name == LANGUAGE_MODEL else TextClassification
    examples = list(zip(batches, labels, strict=True))
    return measure(model, MODELS[name].family, examples, task.loss, compute)


def derivatives(
    name: str, model: nn.Module, closed: Collection[tuple[int, int]] = ()
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By explicit gates, one example and one backward pass at a time: of heads (examples, layers,
    heads), of neurons likewise.

    Args:
        closed: layer and head whose gate is 0.
    """
    heads: list[Any] = []
    ffn: list[Any] = []
    for row, label in zip(rows(), LABELS, strict=True):
        gates = [
            (
                torch.tensor([float((i, head) not in closed) for head in range(HEADS)]),
                torch.ones(FFN),
            )
            for i in range(LAYERS)
        ]
        for gate in (gate for pair in gates for gate in pair):
            gate.requires_grad_()
        handles = []
        for i, (head_gate, ffn_gate) in enumerate(gates):
            for role, gate in (("attention_output", head_gate), ("ffn_output", ffn_gate)):

                def hook(
                    module: nn.Module, inputs: tuple[Tensor], gate: Tensor = gate
                ) -> tuple[Tensor]:
                    parts = inputs[0].view(*inputs[0].shape[:-1], len(gate), -1)
                    return ((parts * gate.unsqueeze(-1)).flatten(-2),)

                handles.append(
                    MODELS[name].family.part(model, i, role).register_forward_pre_hook(hook)
                )
        ids = torch.from_numpy(row).unsqueeze(0)
        logits = model(input_ids=ids).logits
        if name == LANGUAGE_MODEL:
            loss = cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        else:
            loss = cross_entropy(logits, torch.tensor([label]))
        loss.backward()  # type: ignore[no-untyped-call]
        for all_layers, own in zip((heads, ffn), zip(*gates, strict=True), strict=True):
            all_layers.append([gate.grad.numpy().astype(float) for gate in own])
        for handle in handles:
            handle.remove()
    return np.array(heads), np.array(ffn)


def by_the_definition(name: str, model: nn.Module) -> Importance:
    """Fisher information."""
    heads, ffn = ((own**2).mean(0) for own in derivatives(name, model))
    return Importance(tuple(heads), tuple(ffn))


def flat(importance: Importance) -> NDArray[np.float64]:
    return np.concatenate([*importance.heads, *importance.ffn])


def test_every_criterion_has_a_row_here() -> None:
    assert tuple(MEASURES) == CRITERIA


@each_model
@each_criterion
def test_one_finite_score_per_unit(name: str, criterion: str) -> None:
    importance = MEASURES[criterion](name, build(name))
    assert [scores.shape for scores in importance.heads] == [(HEADS,)] * LAYERS
    assert [scores.shape for scores in importance.ffn] == [(FFN,)] * LAYERS
    assert np.isfinite(flat(importance)).all() and (flat(importance) > 0).all()
    assert flat(importance).dtype == np.float64


@each_model
@each_criterion
def test_a_unit_without_weights_scores_nothing(name: str, criterion: str) -> None:
    model, family = build(name), MODELS[name].family
    for matrix in family.weights(model, 1, "heads"):
        matrix.chunk(HEADS)[2].zero_()
    for matrix in family.weights(model, 0, "ffn"):
        matrix[7] = 0
    importance = MEASURES[criterion](name, model)
    assert [(i, h) for i in range(LAYERS) for h in range(HEADS) if importance.heads[i][h] == 0] == [
        (1, 2)
    ]
    assert [(i, n) for i in range(LAYERS) for n in range(FFN) if importance.ffn[i][n] == 0] == [
        (0, 7)
    ]


@each_model
@each_criterion
def test_measuring_repeats_and_leaves_the_model_as_it_was(name: str, criterion: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = MEASURES[criterion](name, model), MEASURES[criterion](name, model)
    assert np.array_equal(flat(first), flat(second))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@each_model
def test_fisher_is_the_mean_squared_gradient_of_each_example(name: str) -> None:
    importance = MEASURES["fisher"](name, build(name))
    expected = by_the_definition(name, build(name))
    np.testing.assert_allclose(flat(importance), flat(expected), rtol=1e-3)


@each_model
def test_fisher_in_fast_arithmetic_ranks_alike(name: str) -> None:
    fast = Compute(autocast=torch.bfloat16)
    importance = by_fisher(name, build(name), [slice(0, 4), slice(4, 7)], fast)
    scores = flat(importance), flat(by_the_definition(name, build(name)))
    assert not np.array_equal(scores[0], flat(MEASURES["fisher"](name, build(name))))
    ranks = [np.argsort(np.argsort(some)) for some in scores]
    assert np.asarray(np.corrcoef(ranks))[0, 1] > 0.98


@each_model
def test_fisher_does_not_depend_on_how_examples_are_batched(name: str) -> None:
    together = by_fisher(name, build(name), [slice(0, 7)])
    alone = by_fisher(name, build(name), [slice(i, i + 1) for i in range(7)])
    np.testing.assert_allclose(flat(together), flat(alone), rtol=1e-3)


@each_model
def test_fisher_is_nothing_where_the_output_projection_is_zero(name: str) -> None:
    model = build(name)
    MODELS[name].family.weights(model, 2, "heads")[-1].chunk(HEADS)[0].zero_()
    scores = MEASURES["fisher"](name, model).heads[2]
    assert scores[0] == 0 and (scores[1:] > 0).all()


@each_model
def test_heads_go_by_their_gradient_in_their_layer_and_are_measured_anew(name: str) -> None:
    """Two at a time of twelve, in six rounds."""
    model, closed = build(name), dict[tuple[int, int], int]()
    while len(closed) < LAYERS * HEADS:
        sums = np.abs(derivatives(name, model, closed)[0]).sum(0)
        for unit in closed:
            sums[unit] = 0
        shares = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)
        units = [(i, h) for i in range(LAYERS) for h in range(HEADS) if (i, h) not in closed]
        for unit in sorted(units, key=lambda unit: float(shares[unit]))[:2]:
            closed[unit] = len(closed) + 1
    importance = MEASURES["gradient"](name, model)
    places = {(i, h): importance.heads[i][h] for i in range(LAYERS) for h in range(HEADS)}
    assert places == closed
    ffn = np.abs(derivatives(name, model)[1]).sum(0)
    np.testing.assert_allclose(
        importance.ffn, ffn / np.linalg.norm(ffn, axis=1, keepdims=True), rtol=1e-3
    )


def test_magnitude_by_hand() -> None:
    """Two heads of two dimensions and two neurons; squares of 1 and 49 with mean 25 give 0.2 and
    1.4."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2,
    )
    model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    query, key, value, attention_output = FAMILIES["bert"].weights(model, 0, "heads")
    ffn_input, ffn_output = FAMILIES["bert"].weights(model, 0, "ffn")
    for matrix in (query, key, value, attention_output, ffn_input, ffn_output):
        matrix.zero_()
    query[0, 3] = -1
    key[2, 0] = 6
    value[3, 1] = 3
    attention_output[2, 0] = 2
    ffn_output[0, 1] = 1
    ffn_input[1] = torch.tensor([6.0, 0.0, -2.0, 0.0])
    ffn_output[1, 2] = 3
    importance = magnitude.measure(model, FAMILIES["bert"])
    np.testing.assert_allclose(importance.heads, [[0.2, 1.4]], rtol=1e-12)
    np.testing.assert_allclose(importance.ffn, [[0.2, 1.4]], rtol=1e-12)
