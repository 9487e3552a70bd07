"""Conformance of the importance criteria, and each against its definition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, BertConfig

from autocompress.families import FAMILIES
from autocompress.importance import CRITERIA, fisher, magnitude
from autocompress.interfaces import Batch
from autocompress.structure import Importance

FAMILY = FAMILIES["bert"]
HEADS, HEAD_SIZE, FFN, LAYERS = 4, 8, 12, 3
LENGTHS = (9, 4, 6, 2, 7, 5, 8)
LABELS = np.array([0, 2, 1, 1, 0, 2, 2])

MEASURES: dict[str, Callable[[nn.Module], Importance]] = {
    "fisher": lambda model: fisher.measure(model, FAMILY, batches()),
    "magnitude": lambda model: magnitude.measure(model, FAMILY),
}
each_criterion = pytest.mark.parametrize("criterion", CRITERIA)


def build(hidden: int = HEADS * HEAD_SIZE, layers: int = LAYERS, heads: int = HEADS, ffn: int = FFN) -> nn.Module:
    """A random model of three classes."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=16,
    )
    config.num_labels = 3
    torch.manual_seed(0)
    model: nn.Module = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(0, 0.2)
    return model


def rows() -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 50, length) for length in LENGTHS]


def padded(examples: list[NDArray[np.int64]]) -> Batch:
    inputs = {name: np.zeros((len(examples), max(map(len, examples))), np.int64) for name in ("input_ids", "attention_mask")}
    for i, row in enumerate(examples):
        inputs["input_ids"][i, : len(row)] = row
        inputs["attention_mask"][i, : len(row)] = 1
    return Batch(inputs)


def batches() -> list[tuple[Batch, NDArray[np.int64]]]:
    """Two batches, with padding."""
    return [(padded(rows()[:4]), LABELS[:4]), (padded(rows()[4:]), LABELS[4:])]


def by_the_definition(model: nn.Module) -> Importance:
    """Fisher information of explicit gates, one example and one backward pass at a time."""
    model.eval()
    heads = [np.zeros(HEADS) for _ in range(LAYERS)]
    ffn = [np.zeros(FFN) for _ in range(LAYERS)]
    for row, label in zip(rows(), LABELS, strict=True):
        gates = [(torch.ones(HEADS, requires_grad=True), torch.ones(FFN, requires_grad=True)) for _ in range(LAYERS)]
        handles = []
        for i, (head_gate, ffn_gate) in enumerate(gates):
            for role, gate, size in (("attention_output", head_gate, HEAD_SIZE), ("ffn_output", ffn_gate, 1)):

                def hook(module: nn.Module, inputs: tuple[Tensor], gate: Tensor = gate, size: int = size) -> tuple[Tensor]:
                    parts = inputs[0].view(*inputs[0].shape[:-1], -1, size)
                    return ((parts * gate.unsqueeze(-1)).flatten(-2),)

                handles.append(FAMILY.part(model, i, role).register_forward_pre_hook(hook))
        logits = model(input_ids=torch.from_numpy(row).unsqueeze(0)).logits
        cross_entropy(logits, torch.tensor([label])).backward()  # type: ignore[no-untyped-call]
        for i, (head_gate, ffn_gate) in enumerate(gates):
            assert head_gate.grad is not None and ffn_gate.grad is not None
            heads[i] += head_gate.grad.numpy().astype(float) ** 2 / len(LABELS)
            ffn[i] += ffn_gate.grad.numpy().astype(float) ** 2 / len(LABELS)
        for handle in handles:
            handle.remove()
    return Importance(tuple(heads), tuple(ffn))


def flat(importance: Importance) -> NDArray[np.float64]:
    return np.concatenate([*importance.heads, *importance.ffn])


def test_every_criterion_has_a_row_here() -> None:
    assert tuple(MEASURES) == CRITERIA


@each_criterion
def test_one_finite_score_per_unit(criterion: str) -> None:
    found = MEASURES[criterion](build())
    assert [scores.shape for scores in found.heads] == [(HEADS,)] * LAYERS
    assert [scores.shape for scores in found.ffn] == [(FFN,)] * LAYERS
    assert np.isfinite(flat(found)).all() and (flat(found) > 0).all()
    assert flat(found).dtype == np.float64


@each_criterion
def test_a_unit_without_weights_scores_nothing(criterion: str) -> None:
    model = build()
    head = slice(2 * HEAD_SIZE, 3 * HEAD_SIZE)
    with torch.no_grad():
        for role in ("query", "key", "value"):
            FAMILY.part(model, 1, role).get_parameter("weight")[head] = 0
        FAMILY.part(model, 1, "attention_output").get_parameter("weight")[:, head] = 0
        FAMILY.part(model, 0, "ffn_input").get_parameter("weight")[7] = 0
        FAMILY.part(model, 0, "ffn_output").get_parameter("weight")[:, 7] = 0
    found = MEASURES[criterion](model)
    assert [(i, h) for i in range(LAYERS) for h in range(HEADS) if found.heads[i][h] == 0] == [(1, 2)]
    assert [(i, n) for i in range(LAYERS) for n in range(FFN) if found.ffn[i][n] == 0] == [(0, 7)]


@each_criterion
def test_measuring_repeats_and_leaves_the_model_as_it_was(criterion: str) -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = MEASURES[criterion](model), MEASURES[criterion](model)
    assert np.array_equal(flat(first), flat(second))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_fisher_is_the_mean_squared_gradient_of_each_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "fast_math", nullcontext)
    found, expected = fisher.measure(build(), FAMILY, batches()), by_the_definition(build())
    np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-3)


def test_fisher_in_fast_arithmetic_ranks_alike() -> None:
    found, expected = flat(fisher.measure(build(), FAMILY, batches())), flat(by_the_definition(build()))
    ranks = [np.argsort(np.argsort(scores)) for scores in (found, expected)]
    assert np.asarray(np.corrcoef(ranks))[0, 1] > 0.98


def test_fisher_does_not_depend_on_how_examples_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "fast_math", nullcontext)
    together = fisher.measure(build(), FAMILY, [(padded(rows()), LABELS)])
    alone = fisher.measure(build(), FAMILY, [(padded([row]), LABELS[i : i + 1]) for i, row in enumerate(rows())])
    np.testing.assert_allclose(flat(together), flat(alone), rtol=1e-3)


def test_fisher_is_nothing_where_the_output_projection_is_zero() -> None:
    model = build()
    with torch.no_grad():
        FAMILY.part(model, 2, "attention_output").get_parameter("weight")[:, :HEAD_SIZE] = 0
    scores = fisher.measure(model, FAMILY, batches()).heads[2]
    assert scores[0] == 0 and (scores[1:] > 0).all()


def test_magnitude_by_hand() -> None:
    """Two heads of two dimensions and two neurons; squares of 1 and 49 with mean 25 give 0.2 and 1.4."""
    model = build(hidden=4, layers=1, heads=2, ffn=2)
    with torch.no_grad():
        weights = {role: FAMILY.part(model, 0, role).get_parameter("weight") for role in FAMILY.parts if role != "block"}  # type: ignore[attr-defined]
        for weight in weights.values():
            weight.zero_()
        weights["query"][0, 3] = -1
        weights["key"][2, 0] = 6
        weights["value"][3, 1] = 3
        weights["attention_output"][0, 2] = 2
        weights["ffn_output"][1, 0] = 1
        weights["ffn_input"][1] = torch.tensor([6.0, 0.0, -2.0, 0.0])
        weights["ffn_output"][2, 1] = 3
    found = magnitude.measure(model, FAMILY)
    np.testing.assert_allclose(found.heads, [[0.2, 1.4]], rtol=1e-12)
    np.testing.assert_allclose(found.ffn, [[0.2, 1.4]], rtol=1e-12)
