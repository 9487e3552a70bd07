"""Generation with cut decoders, whose cache counts on every layer, and what else only decoders
have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from autocompress.structure import Layer, Structure
from tests.test_families import ALL_HEADS, STRUCTURES, each_structure
from tests.tiny_models import FFN, HEADS, HIDDEN, MODELS, VOCABULARY, build

LANGUAGE_MODELS = [name for name, tiny in MODELS.items() if tiny.auto is AutoModelForCausalLM]
each_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)


def generated(model: Any, **how: Any) -> Tensor:
    """64 tokens after each of three prompts of 6 tokens."""
    prompts = torch.randint(5, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(2))
    tokens: Tensor = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        **how,
    )
    assert tokens.shape == (3, 70)
    return tokens


@each_model
@pytest.mark.parametrize(
    "title", ["every layer another size", "a layer without heads", "one empty layer"]
)
def test_generating_with_the_cache_gives_the_same_tokens(name: str, title: str) -> None:
    smaller = MODELS[name].family.cut(build(name), STRUCTURES[title])
    expected = generated(smaller, use_cache=False)
    assert torch.equal(generated(smaller), expected)
    assert torch.equal(
        generated(smaller, cache_implementation="static", disable_compile=True), expected
    )
    assert len(set(expected.flatten().tolist())) > 5


@each_model
@pytest.mark.parametrize("sources", [(2,), (0, 2), (2, 1, 0)])
def test_the_cache_has_one_place_for_each_layer_left(name: str, sources: tuple[int, ...]) -> None:
    structure = Structure(tuple(Layer(source, ALL_HEADS[source:], (1, 5)) for source in sources))
    smaller: Any = MODELS[name].family.cut(build(name), structure)
    cache = smaller(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    assert smaller.config.num_hidden_layers == len(sources) == len(cache)
    assert [layer.keys.shape[1] for layer in cache.layers] == [HEADS - source for source in sources]
    assert torch.equal(generated(smaller), generated(smaller, use_cache=False))


@each_model
def test_beams_are_the_same_with_the_cache(name: str) -> None:
    smaller = MODELS[name].family.cut(build(name), STRUCTURES["a layer without heads"])
    assert torch.equal(
        generated(smaller, num_beams=3), generated(smaller, num_beams=3, use_cache=False)
    )


@each_model
def test_a_layer_without_heads_takes_one_number_of_cache_for_each_token(name: str) -> None:
    smaller: Any = MODELS[name].family.cut(build(name), STRUCTURES["a layer without heads"])
    cache = smaller(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    assert cache.get_seq_length() == 3
    assert [layer.keys.shape for layer in cache.layers] == [
        (1, 1, 3, 1),
        (1, 1, 3, MODELS[name].head_size),
        (1, 1, 3, 1),
    ]


@each_model
@each_structure
def test_a_tied_head_stays_tied(name: str, structure: Structure) -> None:
    model: Any = build(name)
    family, tied = MODELS[name].family, model.config.tie_word_embeddings
    config = MODELS[name].config()
    config.architectures = [type(model).__name__]
    models: list[Any] = [
        model,
        family.cut(model, structure),
        family.blank(config, structure.sizes()),
    ]
    for one in models:
        assert (one.get_output_embeddings().weight is one.get_input_embeddings().weight) == tied


def test_layer_types_follow_their_layers() -> None:
    """The last layer of three looks through a sliding window."""
    family, model = MODELS["qwen2"].family, build("qwen2")
    for sources, expected in (
        ((0, 2), ["full_attention", "sliding_attention"]),
        ((0, 1), ["full_attention"] * 2),
    ):
        smaller: Any = family.cut(
            model,
            Structure(tuple(Layer(source, ALL_HEADS, tuple(range(FFN))) for source in sources)),
        )
        assert smaller.config.layer_types == expected
        windows = [
            layer.sliding_window for layer in (block.self_attn for block in smaller.model.layers)
        ]
        assert windows == [5 if kind == "sliding_attention" else None for kind in expected]


def test_queries_go_with_the_keys_they_share() -> None:
    """Of 8 heads of queries on 4 of keys, those of key head 2 are 4 and 5."""
    name = "llama with a language head"
    model: nn.Module = build(name)
    smaller = MODELS[name].family.cut(model, Structure((Layer(1, (2,), (3, 4)),)))

    def weight(of: nn.Module, layer: int, path: str) -> Tensor:
        return of.get_parameter(f"model.layers.{layer}.{path}.weight")

    for path, rows in (
        ("q_proj", slice(16, 24)),
        ("k_proj", slice(8, 12)),
        ("v_proj", slice(8, 12)),
    ):
        assert torch.equal(
            weight(smaller, 0, f"self_attn.{path}"), weight(model, 1, f"self_attn.{path}")[rows]
        )
    assert torch.equal(
        weight(smaller, 0, "self_attn.o_proj"), weight(model, 1, "self_attn.o_proj")[:, 16:24]
    )
    for path in ("gate_proj", "up_proj"):
        assert torch.equal(weight(smaller, 0, f"mlp.{path}"), weight(model, 1, f"mlp.{path}")[3:5])
    assert torch.equal(
        weight(smaller, 0, "mlp.down_proj"), weight(model, 1, "mlp.down_proj")[:, 3:5]
    )


def test_the_fused_matrix_of_gpt2_keeps_its_three_parts() -> None:
    model = build("gpt2")
    smaller = MODELS["gpt2"].family.cut(model, Structure((Layer(2, (0, 3), (3,)),)))
    kept = [part * HIDDEN + head * 8 + i for part in range(3) for head in (0, 3) for i in range(8)]
    for name in ("weight", "bias"):
        whole, left = (
            one.get_parameter(f"transformer.h.{i}.attn.c_attn.{name}")
            for one, i in ((model, 2), (smaller, 0))
        )
        assert torch.equal(left, whole[..., kept])
