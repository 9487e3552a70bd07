"""Conformance of the families: what is cut is gone, and what is left computes what it computed
before."""

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
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autocompress.distillation import objectives
from autocompress.distillation.relations import split_heads
from autocompress.errors import UserError
from autocompress.families import FAMILIES, family_of
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Batch, Features, Lesson, Matching
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS
from autocompress.training.compute import CPU
from autocompress.training.taps import watch
from tests.tiny_models import FFN, HEADS, LAYERS, MODELS, build, inputs

ALL_HEADS, ALL_FFN = tuple(range(HEADS)), tuple(range(FFN))
FULL = Structure.full([HEADS] * LAYERS, [FFN] * LAYERS)
STRUCTURES = {
    "uncut": FULL,
    "fewer heads": Structure(tuple(replace(layer, heads=(0, 3)) for layer in FULL.layers)),
    "fewer neurons": Structure(tuple(replace(layer, ffn=(1, 5, 6, 11)) for layer in FULL.layers)),
    "fewer layers": Structure((FULL.layers[0], FULL.layers[2])),
    "every layer another size": Structure(
        (Layer(0, (2,), ALL_FFN), Layer(1, (0, 1, 3), (0, 7)), Layer(2, ALL_HEADS, (4,)))
    ),
    "a layer without heads": Structure(
        (Layer(0, (), (2, 3)), Layer(1, (1,), ALL_FFN), Layer(2, (), (0,)))
    ),
    "a layer without FFN": Structure(
        (Layer(0, (0, 1), ()), Layer(1, ALL_HEADS, (5,)), Layer(2, (3,), ()))
    ),
    "one empty layer": Structure((Layer(1, (), ()),)),
}


each_model = pytest.mark.parametrize("name", MODELS)
each_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)


def logits(model: nn.Module, given: Mapping[str, Tensor] | None = None) -> Tensor:
    answers: Tensor = model(**(given or inputs())).logits
    return answers


def loss(model: nn.Module) -> Tensor:
    """Of every row of logits against another class."""
    rows = logits(model).flatten(0, -2)
    return cross_entropy(rows, torch.arange(len(rows)) % rows.shape[1])


@contextmanager
def masked(name: str, model: nn.Module, structure: Structure) -> Iterator[nn.Module]:
    """The uncut model, in which what the structure leaves out contributes nothing."""
    family = MODELS[name].family
    kept = {layer.source: layer for layer in structure.layers}

    def only(
        units: int, indices: tuple[int, ...]
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        gate = torch.zeros(units).index_fill(0, torch.tensor(indices, dtype=torch.long), 1)
        return lambda module, given: (
            given[0] * gate.repeat_interleave(given[0].shape[-1] // units),
            *given[1:],
        )

    def skip(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return (arguments[0], *output[1:]) if isinstance(output, tuple) else arguments[0]

    handles = []
    for i in range(LAYERS):
        if i in kept:
            handles.append(
                family.part(model, i, "attention_output").register_forward_pre_hook(
                    only(HEADS, kept[i].heads)
                )
            )
            handles.append(
                family.part(model, i, "ffn_output").register_forward_pre_hook(
                    only(FFN, kept[i].ffn)
                )
            )
        else:
            handles.append(family.part(model, i, "block").register_forward_hook(skip))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def parameters_removed(model: nn.Module, name: str, structure: Structure) -> int:
    """Counted from the sizes; the norm before heads or neurons goes with the last of them."""
    tiny = MODELS[name]
    block = sum(p.numel() for p in tiny.family.part(model, 0, "block").parameters())
    heads = sum(HEADS - count for count in structure.head_counts)
    neurons = sum(FFN - width for width in structure.ffn_widths)
    norms = [*structure.head_counts, *structure.ffn_widths].count(0)
    return (
        (LAYERS - len(structure.layers)) * block
        + heads * tiny.head
        + neurons * tiny.neuron
        + norms * tiny.norm
    )


def watched(
    name: str, model: nn.Module, *features: str, **more: Any
) -> tuple[Any, dict[str, Tensor]]:
    """The model's output and its features."""
    family = MODELS[name].family
    with (
        torch.no_grad(),
        watch(model, family, len(family.structure(model).layers), features) as seen,
    ):
        return model(**inputs(), **more), seen


def test_every_family_has_a_row_here() -> None:
    assert {tiny.config().model_type for tiny in MODELS.values()} == set(FAMILIES)
    assert all(family.name == model_type for model_type, family in FAMILIES.items())


@each_model
def test_structure_is_read_right(name: str) -> None:
    model, family = build(name), MODELS[name].family
    assert family.structure(model) == FULL
    assert family.structure(model).sizes() == {
        "layers": [0, 1, 2],
        "heads": [4, 4, 4],
        "ffn": [12, 12, 12],
    }
    assert family.head_size(model) == MODELS[name].head_size


@each_model
def test_every_matrix_of_a_layer_belongs_to_heads_or_neurons(name: str) -> None:
    model, family = build(name), MODELS[name].family
    for i in range(LAYERS):
        heads, ffn = family.weights(model, i, "heads"), family.weights(model, i, "ffn")
        assert all(len(matrix) % HEADS == 0 for matrix in heads) and {
            len(matrix) for matrix in ffn
        } == {FFN}
        claimed = sorted(value for matrix in (*heads, *ffn) for value in matrix.flatten().tolist())
        parameters = [p for p in family.part(model, i, "block").parameters() if p.dim() == 2]
        assert claimed == sorted(value for p in parameters for value in p.flatten().tolist())


@each_model
def test_weights_of_a_unit_are_those_that_go_with_it(name: str) -> None:
    model, family = build(name), MODELS[name].family
    smaller = family.cut(model, Structure((replace(FULL.layers[1], heads=(1, 3), ffn=(0, 7, 8)),)))
    for kind, units, kept in (("heads", HEADS, (1, 3)), ("ffn", FFN, (0, 7, 8))):
        pairs = zip(family.weights(model, 1, kind), family.weights(smaller, 0, kind), strict=True)
        for whole, left in pairs:
            assert torch.equal(whole.reshape(units, -1)[list(kept)], left.reshape(len(kept), -1))


@each_model
def test_queries_keys_and_values_are_those_that_attention_multiplies(name: str) -> None:
    """The attention maps follow from queries and keys, and what goes into the output projection
    from maps and values."""
    model, family, size = build(name), MODELS[name].family, MODELS[name].head_size
    model.set_attn_implementation("eager")  # type: ignore[operator]
    given: list[Tensor] = []
    family.part(model, LAYERS - 1, "attention_output").register_forward_pre_hook(
        lambda _, arguments: given.append(arguments[0])
    )
    output, seen = watched(name, model, "query", "key", "value", output_attentions=True)
    query, key, value = (split_heads(seen[role], size) for role in ("query", "key", "value"))
    shared = query.shape[1] // HEADS
    real = inputs()["attention_mask"] == 1
    visible = real[:, None, None, :].expand(-1, 1, 7, -1)
    if family.causal:
        window = getattr(model.config, "sliding_window", None) or 7
        visible = visible & torch.ones(7, 7, dtype=torch.bool).tril().triu(1 - window)
    scale = (
        LAYERS * size**0.5
        if getattr(model.config, "scale_attn_by_inverse_layer_idx", False)
        else size**0.5
    )
    scores = query @ key.repeat_interleave(shared, 1).transpose(-1, -2) / scale
    maps = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    rows = real[:, None, :].expand(-1, maps.shape[1], -1)
    torch.testing.assert_close(output.attentions[-1][rows], maps[rows], rtol=0, atol=1e-5)
    mixed = (maps @ value.repeat_interleave(shared, 1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(given[0].view_as(mixed)[real], mixed[real], rtol=0, atol=1e-5)


@each_model
def test_hidden_states_are_what_a_layer_gives_to_the_next(name: str) -> None:
    output, seen = watched(
        name, build(name), "hidden.1", "hidden.2", "last", output_hidden_states=True
    )
    assert torch.equal(seen["hidden.1"], output.hidden_states[1]) and torch.equal(
        seen["hidden.2"], output.hidden_states[2]
    )
    assert torch.equal(seen["last"], output.hidden_states[-1])


@each_model
@pytest.mark.parametrize("objective", ["attention-maps", "value-relations"])
def test_kept_heads_match_their_teacher_s(name: str, objective: str) -> None:
    """Nothing before the last layer is cut, so its heads compute what they computed."""
    model, family = build(name), MODELS[name].family
    kept = (1, 3)
    smaller = family.cut(model, Structure((*FULL.layers[:2], replace(FULL.layers[2], heads=kept))))
    make_objective = objectives()[objective]
    mask, losses = inputs()["attention_mask"], []
    for heads in (kept, (0, 2)):
        matching = Matching((), heads, family.head_size(model), family.causal)
        made = make_objective(
            Lesson(SETTINGS.candidate({}), matching, smaller, model, torch.Generator(), 1, CPU)
        )
        names = {theirs for _, theirs in made.features()}
        student, teacher = (
            Features(torch.zeros(3, 2), mask, watched(name, one, *names)[1])
            for one in (smaller, model)
        )
        losses.append(made.loss(student, teacher).item())
    assert losses[0] == pytest.approx(0, abs=1e-6) and losses[1] > 1e-3


@each_model
def test_cutting_nothing_changes_no_bit(name: str) -> None:
    model = build(name)
    assert torch.equal(logits(MODELS[name].family.cut(model, FULL)), logits(model))


@each_model
@each_structure
def test_cutting_leaves_the_original_as_it_was(name: str, structure: Structure) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config, expected = model.config.to_dict(), logits(model)  # type: ignore[union-attr,operator]
    smaller = MODELS[name].family.cut(model, structure)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    after = model.state_dict()
    assert after.keys() == before.keys() and all(
        torch.equal(after[key], value) for key, value in before.items()
    )
    assert model.config.to_dict() == config  # type: ignore[union-attr,operator]
    assert torch.equal(logits(model), expected)


@each_model
@each_structure
def test_cut_model_equals_the_masked_one(name: str, structure: Structure) -> None:
    model = build(name)
    answers = logits(MODELS[name].family.cut(model, structure))
    with masked(name, model, structure):
        expected = logits(model)
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-5)
    if structure != FULL:
        assert (expected - logits(model)).abs().max() > 1e-3


@each_model
@each_structure
def test_gradients_equal_the_masked_ones(name: str, structure: Structure) -> None:
    model = build(name)
    smaller = MODELS[name].family.cut(model, structure)
    loss(smaller).backward()  # type: ignore[no-untyped-call]
    with masked(name, model, structure):
        loss(model).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    mine, theirs = (whole.get_input_embeddings().weight.grad for whole in (smaller, model))  # type: ignore[operator]
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@each_model
@each_structure
def test_structure_and_parameter_count_after_the_cut(name: str, structure: Structure) -> None:
    model, family = build(name), MODELS[name].family
    smaller = family.cut(model, structure)
    left = family.structure(smaller)
    assert (left.head_counts, left.ffn_widths) == (structure.head_counts, structure.ffn_widths)
    before, after = (sum(p.numel() for p in whole.parameters()) for whole in (model, smaller))
    assert before - after == parameters_removed(model, name, structure)


@each_model
@each_structure
@pytest.mark.parametrize("config_of", ["the whole", "the cut"])
def test_blank_with_loaded_weights_is_the_same_model(
    name: str, structure: Structure, config_of: str, tmp_path: Path
) -> None:
    model, family = build(name), MODELS[name].family
    smaller: Any = family.cut(model, structure)
    save_model(smaller, str(tmp_path / "weights.safetensors"))
    config = (
        MODELS[name].config()
        if config_of == "the whole"
        else type(smaller.config)(**smaller.config.to_dict())
    )
    config.architectures = [type(model).__name__]
    loaded = family.blank(config, json.loads(json.dumps(structure.sizes())))
    load_model(loaded, tmp_path / "weights.safetensors")
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded.eval()), logits(smaller))


@each_model
def test_cutting_a_cut_model_again(name: str) -> None:
    model, family = build(name), MODELS[name].family
    once = family.cut(model, Structure((Layer(0, (1,), (3, 9)), Layer(2, (0, 2), (8,)))))
    twice = family.cut(
        family.cut(
            model,
            Structure((Layer(0, (1, 2), (1, 3, 9)), Layer(1, (), ()), Layer(2, (0, 2, 3), (7, 8)))),
        ),
        Structure((Layer(0, (0,), (1, 2)), Layer(2, (0, 1), (1,)))),
    )
    assert torch.equal(logits(once), logits(twice))


@each_model
@pytest.mark.parametrize("title", ["a layer without heads", "one empty layer"])
def test_exported_graph_agrees_at_other_shapes(name: str, title: str, tmp_path: Path) -> None:
    smaller = MODELS[name].family.cut(build(name), STRUCTURES[title])
    example, path = {key: value.numpy() for key, value in inputs().items()}, tmp_path / "model.onnx"
    to_onnx(smaller, path, Batch(example))
    shorter = {key: value[:1, :4] for key, value in example.items()}
    for given in (example, shorter):
        expected = logits(smaller, {key: torch.from_numpy(value) for key, value in given.items()})
        answers, wanted = predict(path, [given]), expected.detach().numpy()
        if answers.ndim == 3:  # of a language model, what padding answers means nothing
            real = given["attention_mask"] == 1
            answers, wanted = answers[real], wanted[real]
        np.testing.assert_allclose(answers, wanted, rtol=0, atol=1e-5)


def test_unknown_model_type_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"^model type 't5' is not supported; supported are bert, roberta, distilbert, gpt2, ",
    ):
        family_of("t5")
