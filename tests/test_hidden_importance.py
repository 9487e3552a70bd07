"""How much hidden dimensions matter, under each criterion, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
)

from autocompress.families import FAMILIES
from autocompress.knowledge import fisher, magnitude
from tests.test_families import logits
from tests.test_importance import (
    LABELS,
    LANGUAGE_MODEL,
    MEASURES,
    by_fisher,
    each_criterion,
    each_model,
    rows,
)
from tests.test_narrow import KEPT, gated, narrowed, ones_at
from tests.tiny_models import HIDDEN, MODELS, build, inputs

STEP = 1e-5


def losses(name: str, model: nn.Module, gate: Tensor) -> Tensor:
    """Of each example alone, under this gate."""
    per_example = []
    with gated(model, gate), torch.no_grad():
        for row, label in zip(rows(), LABELS, strict=True):
            ids = torch.from_numpy(row).unsqueeze(0)
            answer = model(input_ids=ids).logits
            per_example.append(
                cross_entropy(answer[0, :-1], ids[0, 1:], reduction="sum")
                if name == LANGUAGE_MODEL
                else cross_entropy(answer, torch.tensor([label]))
            )
    return torch.stack(per_example)


@each_model
def test_fisher_is_the_mean_squared_difference_that_a_gate_makes(name: str) -> None:
    scores = by_fisher(name, build(name), [slice(0, 4), slice(4, 7)]).hidden
    model, ones = build(name).double(), torch.ones(HIDDEN).double()
    dimensions = (0, 7, 18, 31)
    expected = []
    for dimension in dimensions:
        step = STEP * torch.eye(HIDDEN).double()[dimension]
        slopes = (losses(name, model, ones + step) - losses(name, model, ones - step)) / (2 * STEP)
        expected.append(slopes.square().mean().item())
    np.testing.assert_allclose(scores[list(dimensions)], expected, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_gates_of_zero_and_one_are_the_narrowed_model(name: str) -> None:
    model = build(name)
    for module in MODELS[name].family.hidden_gates(model):
        module.register_forward_hook(fisher.hidden_gate(ones_at(KEPT).repeat(3, 1)))
    torch.testing.assert_close(logits(model, inputs()), logits(narrowed(name)), rtol=0, atol=1e-5)


@each_model
@each_criterion
def test_one_finite_score_per_dimension_and_no_trace_in_the_model(
    name: str, criterion: str
) -> None:
    model = build(name)
    measurements: list[NDArray[np.float64]] = [
        MEASURES[criterion](name, model).hidden for _ in range(2)
    ]
    assert measurements[0].shape == (HIDDEN,) and measurements[0].dtype == np.float64
    assert np.isfinite(measurements[0]).all() and (measurements[0] > 0).all()
    assert np.array_equal(measurements[0], measurements[1])
    assert not any(module._forward_hooks for module in model.modules())


@each_model
def test_fisher_does_not_depend_on_how_examples_are_batched(name: str) -> None:
    together = by_fisher(name, build(name), [slice(0, 7)]).hidden
    alone = by_fisher(name, build(name), [slice(i, i + 1) for i in range(7)]).hidden
    np.testing.assert_allclose(together, alone, rtol=1e-3)


def test_magnitude_by_hand() -> None:
    """Squares of 2 and 18 with mean 10 in dimensions 0 and 1; a number of the pooler's diagonal
    goes with both its row and its column, one of a tied table goes once."""
    config = BertConfig(
        vocab_size=8,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=2,
        max_position_embeddings=4,
    )
    bert: nn.Module = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    llama: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        LlamaConfig(
            vocab_size=8,
            hidden_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=2,
            tie_word_embeddings=True,
        )
    )
    for model, entries in (
        (
            bert,
            {
                "bert.pooler.dense": (0, 0, 1.0),
                "bert.embeddings.position_embeddings": (3, 1, 3.0),
                "bert.encoder.layer.0.attention.self.query": (0, 1, -2.0),
                "bert.encoder.layer.0.output.dense": (1, 0, 2.0),
                "classifier": (1, 1, 1.0),
            },
        ),
        (
            llama,
            {
                "lm_head": (7, 0, 1.0),
                "model.layers.0.self_attn.o_proj": (0, 1, -1.0),
                "model.layers.0.mlp.up_proj": (0, 1, 3.0),
                "model.layers.0.mlp.down_proj": (1, 0, 3.0),
            },
        ),
    ):
        family = FAMILIES[model.config.model_type]  # type: ignore[union-attr, index]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(9 if parameter.dim() == 1 else 0)
            for path, (row, column, value) in entries.items():
                model.get_submodule(path).get_parameter("weight")[row, column] = value
        np.testing.assert_allclose(
            magnitude.measure(model, family).hidden, [0.2**0.5, 1.8**0.5], rtol=1e-12
        )
