"""A narrowed model computes what the whole one does whose other hidden dimensions are nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig
from transformers.pytorch_utils import Conv1D

from autocompress.families import FAMILIES
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Batch
from autocompress.structure import Structure
from tests import test_decoding
from tests.test_decoders import LANGUAGE_MODELS, generated
from tests.test_families import FULL, STRUCTURES, each_model, each_structure, logits, loss
from tests.tiny_models import HIDDEN, MODELS, build, inputs

KEPT = tuple(i for i in range(HIDDEN) if i % 3)
NARROWER_THAN_A_HEAD = (4, 19, 30)
each_width = pytest.mark.parametrize(
    "kept", [KEPT, NARROWER_THAN_A_HEAD], ids=["fewer dimensions", "fewer than a head has"]
)
some_structures = pytest.mark.parametrize(
    "structure",
    [STRUCTURES["every layer another size"], STRUCTURES["one empty layer"]],
    ids=["every layer another size", "one empty layer"],
)
EXPORTED = ["bert", "distilbert", "gpt2 with its head tied", "llama with a language head"]
POOLERS = {
    "bert": "bert.pooler.dense",
    "roberta": "classifier.dense",
    "distilbert": "pre_classifier",
}
"""The projections besides norms that turn the stream into something as wide."""


def ones_at(kept: Sequence[int]) -> Tensor:
    return torch.zeros(HIDDEN).index_fill(0, torch.tensor(kept), 1)


@contextmanager
def gated(model: Any, gate: Tensor) -> Iterator[None]:
    """Hidden dimensions count in norms, and are put out by norms and the pooler, as much as their
    gate of shape (hidden,) says: all that a later module can read of one whose gate is 0 is 0."""

    def normalize(norm: Any, arguments: tuple[Tensor, ...], _: Tensor) -> Tensor:
        hidden, bias, epsilon = arguments[0], 0, getattr(norm, "variance_epsilon", None)
        if epsilon is None:
            hidden = hidden - ((gate * hidden).sum(-1) / gate.sum()).unsqueeze(-1)
            bias, epsilon = norm.bias, norm.eps
        variance = ((gate * hidden * hidden).sum(-1) / gate.sum()).unsqueeze(-1)
        normalized: Tensor = gate * (norm.weight * hidden / (variance + epsilon).sqrt() + bias)
        return normalized

    handles = [
        module.register_forward_hook(normalize)
        for module in model.modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
    ]
    if (pooler := POOLERS.get(model.config.model_type)) is not None:
        handles.append(
            model.get_submodule(pooler).register_forward_hook(lambda *given: gate * given[2])
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def narrowed(name: str, structure: Structure = FULL, kept: Sequence[int] = KEPT) -> Any:
    """Cut, then narrowed."""
    family = MODELS[name].family
    model = family.cut(build(name), structure)
    family.narrow(model, kept)
    return model


@each_model
def test_keeping_every_dimension_changes_no_bit(name: str) -> None:
    model = build(name)
    expected, before = logits(model), copy.deepcopy(model.state_dict())
    MODELS[name].family.narrow(model, range(HIDDEN))
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each_model
@each_structure
@each_width
def test_narrowed_model_equals_the_gated_one(
    name: str, structure: Structure, kept: tuple[int, ...]
) -> None:
    whole = MODELS[name].family.cut(build(name), structure)
    answers = logits(narrowed(name, structure, kept))
    with gated(whole, ones_at(kept)):
        expected = logits(whole)
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-5)
    assert (expected - logits(whole)).abs().max() > 1e-3


@each_model
@some_structures
def test_gradients_equal_the_gated_ones(name: str, structure: Structure) -> None:
    smaller = narrowed(name, structure)
    whole: Any = MODELS[name].family.cut(build(name), structure)
    loss(smaller).backward()  # type: ignore[no-untyped-call]
    with gated(whole, ones_at(KEPT)):
        loss(whole).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    mine, theirs = (one.get_input_embeddings().weight.grad for one in (smaller, whole))
    assert theirs[:, KEPT].abs().max() > 1e-3
    torch.testing.assert_close(mine, theirs[:, KEPT], rtol=1e-4, atol=1e-6)


@each_model
@some_structures
def test_heads_stay_whole_a_tied_head_tied_and_modules_say_their_sizes(
    name: str, structure: Structure
) -> None:
    family, smaller = MODELS[name].family, narrowed(name, structure)
    left = family.structure(smaller)
    assert (left.head_counts, left.ffn_widths) == (structure.head_counts, structure.ffn_widths)
    assert family.hidden_size(smaller) == len(KEPT)
    assert family.head_size(smaller) == MODELS[name].head_size
    assert smaller.config.hidden_size == HIDDEN
    head, table = smaller.get_output_embeddings(), smaller.get_input_embeddings()
    if head is not None:
        assert (head.weight is table.weight) == smaller.config.tie_word_embeddings
    for module in smaller.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            assert module.weight.shape == (module.nx, module.nf)
        elif isinstance(module, nn.Embedding):
            assert module.weight.shape == (module.num_embeddings, module.embedding_dim)
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.shape == module.bias.shape == module.normalized_shape


@each_model
def test_what_goes_lies_in_the_rows_of_the_hidden_weights(name: str) -> None:
    """Every number of a matrix is another one."""
    family, model, first = MODELS[name].family, build(name), 0
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    with torch.no_grad():
        for matrix in matrices:
            matrix.copy_(torch.arange(first, first + matrix.numel()).view_as(matrix))
            first += matrix.numel()
    views = [view.clone() for view in family.hidden_weights(model)]
    assert all(len(view) == HIDDEN for view in views)
    gone = [i for i in range(HIDDEN) if i not in KEPT]
    family.narrow(model, KEPT)
    left = {int(x) for p in model.parameters() if p.dim() == 2 for x in p.flatten()}
    assert {int(x) for view in views for x in view[gone].flatten()} == set(range(first)) - left


@each_model
@some_structures
def test_narrowing_and_cutting_may_be_in_either_order(name: str, structure: Structure) -> None:
    model, family = build(name), MODELS[name].family
    family.narrow(model, KEPT)
    assert torch.equal(logits(family.cut(model, structure)), logits(narrowed(name, structure)))


@each_model
def test_narrowing_a_narrowed_model_again(name: str) -> None:
    once, twice = narrowed(name, kept=(KEPT[1], KEPT[4])), narrowed(name)
    MODELS[name].family.narrow(twice, (1, 4))
    assert torch.equal(logits(once), logits(twice))


@each_model
@some_structures
@pytest.mark.parametrize("config_of", ["the whole", "the narrowed"])
def test_a_narrowed_blank_with_loaded_weights_is_the_same_model(
    name: str, structure: Structure, config_of: str, tmp_path: Path
) -> None:
    family, smaller = MODELS[name].family, narrowed(name, structure)
    save_model(smaller, str(tmp_path / "weights.safetensors"))
    config: Any = (
        MODELS[name].config()
        if config_of == "the whole"
        else type(smaller.config)(**smaller.config.to_dict())
    )
    config.architectures = [type(smaller).__name__]
    blanks = [family.blank(config, structure.sizes()) for _ in range(2)]
    for blank in blanks:
        family.narrow(blank, range(len(KEPT)))
    load_model(blanks[0], tmp_path / "weights.safetensors")
    blanks[1].load_state_dict(smaller.state_dict(), strict=True)
    for blank in blanks:
        assert torch.equal(logits(blank.eval()), logits(smaller))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@each_width
def test_generating_with_the_cache_gives_the_same_tokens(name: str, kept: tuple[int, ...]) -> None:
    smaller = narrowed(name, STRUCTURES["a layer without heads"], kept)
    expected = generated(smaller, use_cache=False)
    assert torch.equal(generated(smaller), expected)
    assert torch.equal(
        generated(smaller, cache_implementation="static", disable_compile=True), expected
    )


@pytest.mark.parametrize("name", [name for name in EXPORTED if name not in LANGUAGE_MODELS])
@pytest.mark.parametrize("title", ["uncut", "a layer without heads"])
@each_width
def test_exported_classifier_agrees(
    name: str, title: str, kept: tuple[int, ...], tmp_path: Path
) -> None:
    smaller = narrowed(name, STRUCTURES[title], kept)
    example, path = {key: value.numpy() for key, value in inputs().items()}, tmp_path / "model.onnx"
    to_onnx(smaller, path, Batch(example))
    for given in (example, {key: value[:1, :4] for key, value in example.items()}):
        expected = logits(smaller, {key: torch.from_numpy(value) for key, value in given.items()})
        np.testing.assert_allclose(
            predict(path, [given]), expected.detach().numpy(), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("name", [name for name in EXPORTED if name in LANGUAGE_MODELS])
@pytest.mark.parametrize("title", ["uncut", "a layer without heads"])
@each_width
def test_exported_language_model_agrees_with_its_cache(
    name: str, title: str, kept: tuple[int, ...], tmp_path: Path
) -> None:
    smaller = narrowed(name, STRUCTURES[title], kept)
    path = test_decoding.exported(smaller, tmp_path / "model.onnx")
    given = test_decoding.texts(2, 12)
    for ends in ((), (3, 4, 11)):
        np.testing.assert_allclose(
            test_decoding.in_pieces(path, given, *ends),
            test_decoding.logits(smaller, given),
            rtol=0,
            atol=1e-4,
        )


def test_layer_norm_by_hand() -> None:
    """Of (9, 3, 7, 1) the second and fourth are left: mean 2 and deviation 1, where those of all
    four were 5 and sqrt(10)."""
    config = BertConfig(
        vocab_size=8,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2,
        hidden_dropout_prob=0.0,
    )
    model: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    embeddings, ids = model.bert.embeddings, torch.tensor([[5]])
    with torch.no_grad():
        for table, row in (
            (embeddings.word_embeddings, [5.0, 1.0, 3.0, 2.0]),
            (embeddings.position_embeddings, [4.0, 2.0, 4.0, 0.0]),
            (embeddings.token_type_embeddings, [0.0, 0.0, 0.0, -1.0]),
        ):
            table.weight.copy_(torch.tensor(row))
        embeddings.LayerNorm.weight.copy_(torch.tensor([7.0, 2.0, 7.0, 3.0]))
        embeddings.LayerNorm.bias.copy_(torch.tensor([7.0, 0.5, 7.0, 0.25]))
    before = embeddings(ids)[0, 0, [1, 3]].tolist()
    assert before == pytest.approx([0.5 - 2 * 2 / 10**0.5, 0.25 - 3 * 4 / 10**0.5], abs=1e-5)
    FAMILIES["bert"].narrow(model, (1, 3))
    assert embeddings(ids)[0, 0].tolist() == pytest.approx([2.5, -2.75], abs=1e-5)


def test_rms_norm_by_hand() -> None:
    """Of (9, 3, 8, 1) the root mean square of the second and fourth is sqrt(5)."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2,
        pad_token_id=1,
    )
    model: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.tensor([9.0, 3.0, 8.0, 1.0]))
        model.model.norm.weight.copy_(torch.tensor([7.0, 2.0, 7.0, 4.0]))
    FAMILIES["llama"].narrow(model, (1, 3))
    normalized = model.model.norm(model.model.embed_tokens(torch.tensor([5])))
    assert normalized[0].tolist() == pytest.approx([6 / 5**0.5, 4 / 5**0.5], abs=1e-5)
