"""What the weights of a student's layers begin as, in every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autocompress.families.starts import STARTS, copied, pooled
from autocompress.structure import Layer, Structure
from autocompress.techniques import initialization
from tests.test_families import ALL_FFN, ALL_HEADS, FULL, each_model, each_structure, logits
from tests.tiny_models import FFN, HEADS, MODELS, build

HALF = Structure((Layer(0, (1, 3), (0, 1, 2, 3, 4)), Layer(2, (0, 2), ALL_FFN)))
each_start = pytest.mark.parametrize("start", STARTS)


def test_names_agree_with_the_setting() -> None:
    assert tuple(STARTS) == initialization.STARTS


def test_reductions_by_hand() -> None:
    """Four units of two rows each, down to two: each the mean of three neighbours."""
    tensor = torch.arange(8.0).repeat_interleave(3).view(8, 3)
    assert copied(tensor, 0, 2, (1, 3))[:, 0].tolist() == [2, 3, 6, 7]
    assert pooled(tensor, 0, 2, (1, 3))[:, 0].tolist() == [2, 3, 4, 5]
    assert torch.equal(pooled(tensor.T, 1, 2, (1, 3)), pooled(tensor, 0, 2, (1, 3)).T)
    assert pooled(tensor[:, 0], 0, 2, (0, 1, 2)).tolist() == [1, 2, 3, 4, 5, 6]
    assert pooled(tensor[:, 0], 0, 2, (2,)).tolist() == [3, 4]


@each_model
@each_start
@each_structure
def test_shapes_do_not_depend_on_the_start(name: str, start: str, structure: Structure) -> None:
    model, family = build(name), MODELS[name].family
    before = {key: value.clone() for key, value in model.state_dict().items()}
    smaller, expected = family.cut(model, structure, start), family.cut(model, structure)
    shapes = [
        {key: value.shape for key, value in one.state_dict().items()} for one in (smaller, expected)
    ]
    assert shapes[0] == shapes[1]
    assert all(value.is_contiguous() for value in smaller.state_dict().values())
    assert torch.isfinite(logits(smaller)).all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each_model
def test_pooling_what_is_not_made_narrower_changes_no_bit(name: str) -> None:
    model, family = build(name), MODELS[name].family
    fewer = Structure((FULL.layers[0], FULL.layers[2]))
    assert torch.equal(logits(family.cut(model, fewer, "pooled")), logits(family.cut(model, fewer)))


def windows(matrix: Tensor, units: int, left: int) -> Tensor:
    """Means of neighbouring units, (left, entries)."""
    rows = matrix.reshape(units, -1)
    return torch.stack([rows[i : i + units - left + 1].mean(0) for i in range(left)])


@each_model
def test_pooled_units_are_averages_of_neighbours(name: str) -> None:
    model, family = build(name), MODELS[name].family
    smaller = family.cut(model, HALF, "pooled")
    for i, layer in enumerate(HALF.layers):
        for kind, units, left in (("heads", HEADS, len(layer.heads)), ("ffn", FFN, len(layer.ffn))):
            pairs = zip(
                family.weights(model, layer.source, kind),
                family.weights(smaller, i, kind),
                strict=True,
            )
            for whole, averaged in pairs:
                torch.testing.assert_close(averaged.reshape(left, -1), windows(whole, units, left))


@pytest.mark.parametrize(
    ("name", "whole", "averaged"),
    [
        (
            "bert",
            "bert.encoder.layer.0.intermediate.dense.bias",
            "bert.encoder.layer.0.intermediate.dense.bias",
        ),
        (
            "distilbert",
            "distilbert.transformer.layer.0.ffn.lin1.bias",
            "distilbert.transformer.layer.0.ffn.lin1.bias",
        ),
        ("gpt2", "transformer.h.0.mlp.c_fc.bias", "transformer.h.0.mlp.c_fc.bias"),
        (
            "llama ungrouped, tied, with biases",
            "model.layers.0.mlp.up_proj.bias",
            "model.layers.0.mlp.up_proj.bias",
        ),
    ],
)
def test_biases_are_averaged_with_their_units(name: str, whole: str, averaged: str) -> None:
    model = build(name)
    smaller = MODELS[name].family.cut(model, HALF, "pooled")
    expected = windows(model.get_parameter(whole), FFN, 5).flatten()
    torch.testing.assert_close(smaller.get_parameter(averaged), expected)


def test_each_part_of_the_fused_matrix_is_pooled_by_itself() -> None:
    model = build("gpt2")
    bias = model.get_parameter("transformer.h.0.attn.c_attn.bias")
    pooled_bias = (
        MODELS["gpt2"]
        .family.cut(model, HALF, "pooled")
        .get_parameter("transformer.h.0.attn.c_attn.bias")
    )
    expected = torch.cat([windows(part, HEADS, 2).flatten() for part in bias.chunk(3)])
    torch.testing.assert_close(pooled_bias, expected)


def outside(model: nn.Module, blocks: list[nn.Module]) -> dict[str, Tensor]:
    """What is in no layer, by name."""
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside
    }


@each_model
def test_only_embeddings_and_head_are_kept_and_the_layers_begin_anew(name: str) -> None:
    model, family = build(name), MODELS[name].family
    structure = Structure((replace(FULL.layers[0], heads=(0, 3)), FULL.layers[2]))
    smaller, again = (family.cut(model, structure, "embeddings") for _ in range(2))
    blocks = [family.part(smaller, i, "block") for i in range(2)]
    kept, original = outside(smaller, blocks), dict(model.named_parameters())
    assert kept and all(torch.equal(value, original[key]) for key, value in kept.items())
    matrices = torch.cat(
        [p.flatten() for block in blocks for p in block.parameters() if p.dim() > 1]
    )
    assert (
        matrices.std().item() == pytest.approx(0.02, rel=0.03)
        and abs(matrices.mean().item()) < 1e-3
    )
    vectors = {key: p for block in blocks for key, p in block.named_parameters() if p.dim() == 1}
    assert all((p == (0 if key.endswith("bias") else 1)).all() for key, p in vectors.items())
    assert not torch.equal(matrices[:99], matrices[-99:])
    assert torch.equal(logits(smaller), logits(again))


def test_all_heads_stay_heads() -> None:
    """A student with as many heads and neurons as its teacher is a copy under every start but the
    last."""
    model, family = build("gpt2"), MODELS["gpt2"].family
    same = Structure((Layer(1, ALL_HEADS, ALL_FFN),))
    by_start = {start: logits(family.cut(model, same, start)) for start in STARTS}
    assert torch.equal(by_start["copied"], by_start["pooled"]) and not torch.equal(
        by_start["copied"], by_start["embeddings"]
    )
