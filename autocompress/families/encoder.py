"""BERT-type encoders with a classification head: post-norm layers of query, key, value, output, and
a two-matrix FFN."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from autocompress.families.starts import STARTS, Reduce, copied, renew
from autocompress.families.stream import Access, Streamed, inputs_of
from autocompress.interfaces import Take
from autocompress.structure import Layer, Structure


class Bias(nn.Module):
    """What is left of an output projection without inputs: its bias, to be broadcast by the
    residual sum."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, length, anything) -> (width,)."""
        return self.bias


class Filler(nn.Module):
    """Stands in for the query, key and value projection of a layer without heads; its output is
    never used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, length, hidden) -> (batch, length, width)."""
        return hidden[..., :1].repeat(1, 1, self.width)


@dataclass(frozen=True)
class EncoderFamily(Streamed):
    """A ``Family``, stated by names.

    Args:
        layers: path of the layer list in the classification model.
        depth_key: the config key that holds the number of layers.
        parts: role -> path inside a layer; roles as in ``interfaces.Family``, and ``ffn_input``,
            ``attention_norm`` and ``ffn_norm``.
        embeddings: path of the tables and the norm after them.
        pooler: path of the projection from the last layer.
        classifier: path of the projection from the pooler.
    """

    name: str
    layers: str
    depth_key: str
    parts: Mapping[str, str]
    embeddings: str
    pooler: str
    classifier: str
    causal: ClassVar[bool] = False
    post_norm: ClassVar[bool] = True

    def structure(self, model: nn.Module) -> Structure:
        size = self.head_size(model)
        indices = range(len(self._layers(model)))
        heads = [inputs_of(self.part(model, i, "attention_output")) // size for i in indices]
        return Structure.full(
            heads, [inputs_of(self.part(model, i, "ffn_output")) for i in indices]
        )

    def head_size(self, model: nn.Module) -> int:
        config: Any = model.config
        return int(config.hidden_size // config.num_attention_heads)

    def part(self, model: nn.Module, layer: int, role: str) -> nn.Module:
        return self._layers(model)[layer].get_submodule(self.parts[role])

    def put(self, model: nn.Module, layer: int, role: str, module: nn.Module) -> None:
        self._layers(model)[layer].set_submodule(self.parts[role], module)

    def tap(self, model: nn.Module, layer: int, role: str) -> tuple[nn.Module, Take]:
        return self.part(model, layer, role), lambda output: output

    def summed(self, model: nn.Module, layer: int, role: str) -> tuple[nn.Module, bool]:
        return self.part(model, layer, role.replace("output", "norm")), True

    def weights(self, model: nn.Module, layer: int, kind: str) -> tuple[Tensor, ...]:
        inputs, output = (
            (("query", "key", "value"), "attention_output")
            if kind == "heads"
            else (("ffn_input",), "ffn_output")
        )
        matrices = {
            role: self.part(model, layer, role).get_parameter("weight").detach()
            for role in (*inputs, output)
        }
        return (*(matrices[role] for role in inputs), matrices[output].T)

    def stream(self, model: nn.Module) -> Iterator[Access]:
        for child in model.get_submodule(self.embeddings).children():
            yield Access(child, reads=isinstance(child, nn.LayerNorm), writes=True)
        for layer in range(len(self._layers(model))):
            for role in ("query", "key", "value", "ffn_input"):
                yield Access(self.part(model, layer, role), reads=True)
            for role in ("attention_output", "ffn_output"):
                yield Access(self.part(model, layer, role), writes=True)
            for role in ("attention_norm", "ffn_norm"):
                yield Access(self.part(model, layer, role), reads=True, writes=True)
        yield Access(model.get_submodule(self.pooler), reads=True, writes=True)
        yield Access(model.get_submodule(self.classifier), reads=True)

    def cut(self, model: nn.Module, structure: Structure, start: str = "copied") -> nn.Module:
        smaller = copy.deepcopy(model)
        layers = self._layers(smaller)
        self._replace(smaller, [layers[layer.source] for layer in structure.layers])
        for i, layer in enumerate(structure.layers):
            self._cut_layer(smaller, i, layer, STARTS[start])
        if start == "embeddings":
            renew(list(self._layers(smaller)))
        setattr(smaller.config, self.depth_key, len(structure.layers))
        return smaller

    def blank(self, config: Any, sizes: Mapping[str, Any]) -> nn.Module:
        config = copy.deepcopy(config)
        setattr(config, self.depth_key, len(sizes["layers"]))
        model: nn.Module = AutoModelForSequenceClassification.from_config(
            config, trust_remote_code=False
        )  # type: ignore[no-untyped-call]
        for i, (heads, ffn) in enumerate(zip(sizes["heads"], sizes["ffn"], strict=True)):
            self._cut_layer(model, i, Layer(i, tuple(range(heads)), tuple(range(ffn))))
        return model

    def _layers(self, model: nn.Module) -> nn.ModuleList:
        layers = model.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def _replace(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        parent, _, name = self.layers.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.ModuleList(layers))

    def _cut_layer(
        self, model: nn.Module, index: int, layer: Layer, reduce: Reduce = copied
    ) -> None:
        def part(role: str) -> nn.Module:
            return self.part(model, index, role)

        def put(role: str, module: nn.Module) -> None:
            self.put(model, index, role, module)

        size = self.head_size(model)
        for role in ("query", "key", "value"):
            put(
                role,
                _keep_outputs(part(role), size, layer.heads, reduce)
                if layer.heads
                else Filler(size),
            )
        put("attention_output", _keep_inputs(part("attention_output"), size, layer.heads, reduce))
        put(
            "ffn_input",
            _keep_outputs(part("ffn_input"), 1, layer.ffn, reduce) if layer.ffn else nn.Identity(),
        )
        put("ffn_output", _keep_inputs(part("ffn_output"), 1, layer.ffn, reduce))


def _keep_outputs(linear: nn.Module, size: int, kept: Sequence[int], reduce: Reduce) -> nn.Module:
    assert isinstance(linear, nn.Linear)
    if size * len(kept) == linear.out_features:
        return linear
    return _linear(reduce(linear.weight, 0, size, kept), reduce(linear.bias, 0, size, kept))


def _keep_inputs(linear: nn.Module, size: int, kept: Sequence[int], reduce: Reduce) -> nn.Module:
    assert isinstance(linear, nn.Linear)
    if not kept:
        return Bias(linear.bias)
    return (
        linear
        if size * len(kept) == linear.in_features
        else _linear(reduce(linear.weight, 1, size, kept), linear.bias)
    )


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear
