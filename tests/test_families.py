"""Conformance of the families: what is cut is gone, and what is left computes what it computed before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, PreTrainedConfig, RobertaConfig

from autocompress.errors import UserError
from autocompress.export import to_onnx
from autocompress.families import FAMILIES, family_of
from autocompress.interfaces import Batch
from autocompress.onnx_runtime import predict
from autocompress.structure import Layer, Structure

HIDDEN, HEADS, HEAD_SIZE, FFN, LAYERS = 32, 4, 8, 12, 3
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        max_position_embeddings=16,
    ),
    "roberta": lambda: RobertaConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        max_position_embeddings=18,
        pad_token_id=1,
    ),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=50, dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=FFN, max_position_embeddings=16
    ),
}
ALL_HEADS, ALL_FFN = tuple(range(HEADS)), tuple(range(FFN))
FULL = Structure.full([HEADS] * LAYERS, [FFN] * LAYERS)
STRUCTURES = {
    "uncut": FULL,
    "fewer heads": Structure(tuple(replace(layer, heads=(0, 3)) for layer in FULL.layers)),
    "fewer neurons": Structure(tuple(replace(layer, ffn=(1, 5, 6, 11)) for layer in FULL.layers)),
    "fewer layers": Structure((FULL.layers[0], FULL.layers[2])),
    "every layer another size": Structure((Layer(0, (2,), ALL_FFN), Layer(1, (0, 1, 3), (0, 7)), Layer(2, ALL_HEADS, (4,)))),
    "a layer without heads": Structure((Layer(0, (), (2, 3)), Layer(1, (1,), ALL_FFN), Layer(2, (), (0,)))),
    "a layer without FFN": Structure((Layer(0, (0, 1), ()), Layer(1, ALL_HEADS, (5,)), Layer(2, (3,), ()))),
    "one empty layer": Structure((Layer(1, (), ()),)),
}

each_family = pytest.mark.parametrize("name", FAMILIES)
each_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)


def build(name: str) -> nn.Module:
    """A model whose every parameter is random: biases and norms too, so that none can go missing unseen."""
    torch.manual_seed(0)
    model: nn.Module = AutoModelForSequenceClassification.from_config(CONFIGS[name]())  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0, 0.1)
            else:
                parameter.normal_(0, 0.15)
    return model.eval()


def inputs() -> dict[str, Tensor]:
    """Three sentences of 7, 5 and 2 tokens."""
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(7) < torch.tensor([[7], [5], [2]])).long()
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


def logits(model: nn.Module, given: Mapping[str, Tensor] | None = None) -> Tensor:
    found: Tensor = model(**(given or inputs())).logits
    return found


@contextmanager
def masked(name: str, model: nn.Module, structure: Structure) -> Iterator[nn.Module]:
    """The uncut model, in which what the structure leaves out contributes nothing."""
    family = FAMILIES[name]
    kept = {layer.source: layer for layer in structure.layers}

    def only(width: int, indices: list[int]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        gate = torch.zeros(width).index_fill(0, torch.tensor(indices, dtype=torch.long), 1)
        return lambda module, arguments: (arguments[0] * gate, *arguments[1:])

    def skip(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return (arguments[0], *output[1:]) if isinstance(output, tuple) else arguments[0]

    handles = []
    for i in range(LAYERS):
        if i in kept:
            dims = [head * HEAD_SIZE + d for head in kept[i].heads for d in range(HEAD_SIZE)]
            handles.append(family.part(model, i, "attention_output").register_forward_pre_hook(only(HIDDEN, dims)))
            handles.append(family.part(model, i, "ffn_output").register_forward_pre_hook(only(FFN, list(kept[i].ffn))))
        else:
            handles.append(family.part(model, i, "block").register_forward_hook(skip))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def parameters_removed(model: nn.Module, name: str, structure: Structure) -> int:
    """Counted from the sizes: a head has rows and biases of three matrices and columns of a fourth, a neuron one of each."""
    block = sum(p.numel() for p in FAMILIES[name].part(model, 0, "block").parameters())
    heads = sum(HEADS - count for count in structure.head_counts)
    neurons = sum(FFN - width for width in structure.ffn_widths)
    per_head = 3 * HEAD_SIZE * (HIDDEN + 1) + HEAD_SIZE * HIDDEN
    return (LAYERS - len(structure.layers)) * block + heads * per_head + neurons * (2 * HIDDEN + 1)


def test_every_family_has_a_row_here() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@each_family
def test_structure_is_read_right(name: str) -> None:
    model, family = build(name), FAMILIES[name]
    assert family_of(CONFIGS[name]().model_type) is family and family.name == name
    assert family.structure(model) == FULL
    assert family.structure(model).sizes() == {"layers": [0, 1, 2], "heads": [4, 4, 4], "ffn": [12, 12, 12]}
    assert family.head_size(model) == HEAD_SIZE


@each_family
def test_parts_are_distinct_and_have_their_shapes(name: str) -> None:
    model, family = build(name), FAMILIES[name]
    shapes = {
        "query": (HIDDEN, HIDDEN),
        "key": (HIDDEN, HIDDEN),
        "value": (HIDDEN, HIDDEN),
        "attention_output": (HIDDEN, HIDDEN),
        "ffn_input": (FFN, HIDDEN),
        "ffn_output": (HIDDEN, FFN),
    }
    seen: set[nn.Module] = set()
    for i in range(LAYERS):
        inside = set(family.part(model, i, "block").modules())
        for role, shape in shapes.items():
            part = family.part(model, i, role)
            assert part in inside - seen and part.get_parameter("weight").shape == shape
            seen.add(part)


@each_family
def test_cutting_nothing_changes_no_bit(name: str) -> None:
    model = build(name)
    assert torch.equal(logits(FAMILIES[name].cut(model, FULL)), logits(model))


@each_family
@each_structure
def test_cutting_leaves_the_original_as_it_was(name: str, structure: Structure) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config, expected = model.config.to_dict(), logits(model)  # type: ignore[union-attr,operator]
    smaller = FAMILIES[name].cut(model, structure)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], value) for key, value in before.items())
    assert model.config.to_dict() == config  # type: ignore[union-attr,operator]
    assert torch.equal(logits(model), expected)


@each_family
@each_structure
def test_cut_model_equals_the_masked_one(name: str, structure: Structure) -> None:
    model = build(name)
    found = logits(FAMILIES[name].cut(model, structure))
    with masked(name, model, structure):
        expected = logits(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    if structure != FULL:
        assert (expected - logits(model)).abs().max() > 1e-3


@each_family
@each_structure
def test_gradients_equal_the_masked_ones(name: str, structure: Structure) -> None:
    model, labels = build(name), torch.tensor([0, 1, 1])
    smaller = FAMILIES[name].cut(model, structure)
    cross_entropy(logits(smaller), labels).backward()  # type: ignore[no-untyped-call]
    with masked(name, model, structure):
        cross_entropy(logits(model), labels).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    mine, theirs = (whole.get_input_embeddings().weight.grad for whole in (smaller, model))  # type: ignore[operator]
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@each_family
@each_structure
def test_structure_and_parameter_count_after_the_cut(name: str, structure: Structure) -> None:
    model, family = build(name), FAMILIES[name]
    smaller = family.cut(model, structure)
    left = family.structure(smaller)
    assert (left.head_counts, left.ffn_widths) == (structure.head_counts, structure.ffn_widths)
    before, after = (sum(p.numel() for p in whole.parameters()) for whole in (model, smaller))
    assert before - after == parameters_removed(model, name, structure)


@each_family
@each_structure
def test_blank_with_loaded_weights_is_the_same_model(name: str, structure: Structure, tmp_path: Path) -> None:
    model, family = build(name), FAMILIES[name]
    smaller = family.cut(model, structure)
    save_file(smaller.state_dict(), tmp_path / "weights.safetensors")
    sizes = json.loads(json.dumps(structure.sizes()))
    loaded = family.blank(CONFIGS[name](), sizes)
    loaded.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(logits(loaded.eval()), logits(smaller))


@each_family
def test_cutting_a_cut_model_again(name: str) -> None:
    model, family = build(name), FAMILIES[name]
    once = family.cut(model, Structure((Layer(0, (1,), (3, 9)), Layer(2, (0, 2), (8,)))))
    twice = family.cut(
        family.cut(model, Structure((Layer(0, (1, 2), (1, 3, 9)), Layer(1, (), ()), Layer(2, (0, 2, 3), (7, 8))))),
        Structure((Layer(0, (0,), (1, 2)), Layer(2, (0, 1), (1,)))),
    )
    assert torch.equal(logits(once), logits(twice))


@each_family
@pytest.mark.parametrize("title", ["uncut", "a layer without heads", "a layer without FFN", "one empty layer"])
def test_exported_graph_agrees_at_other_shapes(name: str, title: str, tmp_path: Path) -> None:
    smaller = FAMILIES[name].cut(build(name), STRUCTURES[title])
    example, path = {key: value.numpy() for key, value in inputs().items()}, tmp_path / "model.onnx"
    to_onnx(smaller, path, Batch(example))
    shorter = {key: value[:1, :4] for key, value in example.items()}
    for given in (example, shorter):
        expected = logits(smaller, {key: torch.from_numpy(value) for key, value in given.items()})
        np.testing.assert_allclose(predict(path, [given]), expected.detach().numpy(), rtol=0, atol=1e-5)


def test_unknown_model_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model type 'gpt2' is not supported; supported are bert, roberta, distilbert$"):
        family_of("gpt2")
