"""Causal decoders: layers of two pre-norm branches, attention and FFN, under a language modeling or
a classification head."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from autocompress.families.starts import STARTS, Reduce, copied, renew
from autocompress.families.stream import Access, Streamed, inputs_of
from autocompress.interfaces import Head, Take
from autocompress.structure import Layer, Structure


class NoNeurons(nn.Module):
    """Stands in for the FFN of a layer without neurons: the bias of its output projection, or
    zero."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, length, width) -> (width,) or (), to be broadcast by the residual sum."""
        return hidden_states.new_zeros(()) if self.bias is None else self.bias


class NoHeads(NoNeurons):
    """Stands in for the attention of a layer without heads.

    Transformers reads the length of the cache, and from it positions and masks, off one layer, the
    first as a rule. So this one writes too: one number for each token.
    """

    layer_idx: int

    def forward(self, hidden_states: Tensor, past_key_values: Any = None, **_: Any) -> Any:
        """(batch, length, width) -> (width,) or (), and no attention weights."""
        if past_key_values is not None:
            nothing = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            past_key_values.update(nothing, nothing, self.layer_idx)
        return super().forward(hidden_states), None


@dataclass(frozen=True)
class Branch:
    """Attention or FFN: what it adds to the residual stream is the sum of what its units add, heads
    or neurons.

    Args, as paths inside a layer:
        norm: what the branch begins with.
        module: all the rest of it.
        inputs: the projections whose outputs belong to units.
        output: the projection whose inputs do.
        fused: how many projections lie side by side in each of ``inputs``.
    """

    norm: str
    module: str
    inputs: tuple[str, ...]
    output: str
    fused: int = 1


@dataclass(frozen=True)
class DecoderFamily(Streamed):
    """A ``Family`` but for ``attention_tap``, stated by names.

    A head is what one head of keys and values does: with grouped queries, together with all heads
    of queries that share it.

    Args:
        tables: paths of the embeddings.
        layers: path of the layer list in the model.
        norm: path of the norm before the head.
    """

    name: str
    tables: tuple[str, ...]
    layers: str
    norm: str
    attention: Branch
    ffn: Branch
    causal: ClassVar[bool] = True
    post_norm: ClassVar[bool] = False

    def structure(self, model: nn.Module) -> Structure:
        config: Any = model.config
        queries = config.num_attention_heads // getattr(
            config, "num_key_value_heads", config.num_attention_heads
        )
        blocks = self._blocks(model)
        heads = [
            _inputs(block, self.attention) // (queries * self.head_size(model)) for block in blocks
        ]
        return Structure.full(heads, [_inputs(block, self.ffn) for block in blocks])

    def head_size(self, model: nn.Module) -> int:
        config: Any = model.config
        return int(
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )

    def part(self, model: nn.Module, layer: int, role: str) -> nn.Module:
        return self._blocks(model)[layer].get_submodule(self._path(role))

    def put(self, model: nn.Module, layer: int, role: str, module: nn.Module) -> None:
        self._blocks(model)[layer].set_submodule(self._path(role), module)

    def _path(self, role: str) -> str:
        paths = {"attention_output": self.attention.output, "ffn_output": self.ffn.output}
        return paths.get(role, "")

    def tap(self, model: nn.Module, layer: int, role: str) -> tuple[nn.Module, Take]:
        if role in ("last", "block"):
            return model.get_submodule(self.norm) if role == "last" else self.part(
                model, layer, "block"
            ), lambda output: output
        return self.attention_tap(model, layer, role)

    @abstractmethod
    def attention_tap(self, model: nn.Module, layer: int, role: str) -> tuple[nn.Module, Take]:
        """``tap`` of a ``query``, ``key`` or ``value``."""
        ...

    def summed(self, model: nn.Module, layer: int, role: str) -> tuple[nn.Module, bool]:
        block = self.part(model, layer, "block")
        before_ffn = role == "attention_output"
        return (block.get_submodule(self.ffn.norm), True) if before_ffn else (block, False)

    def weights(self, model: nn.Module, layer: int, kind: str) -> tuple[Tensor, ...]:
        block, branch = self._blocks(model)[layer], self.attention if kind == "heads" else self.ffn
        inputs = [_matrix(block.get_submodule(path)).chunk(branch.fused) for path in branch.inputs]
        return (*chain.from_iterable(inputs), _matrix(block.get_submodule(branch.output)).T)

    def stream(self, model: nn.Module) -> Iterator[Access]:
        for path in self.tables:
            yield Access(model.get_submodule(path), writes=True)
        for block in self._blocks(model):
            for branch in (self.attention, self.ffn):
                module = block.get_submodule(branch.module)
                if isinstance(module, NoNeurons):
                    yield Access(module, writes=True)
                    continue
                yield Access(block.get_submodule(branch.norm), reads=True, writes=True)
                for path in branch.inputs:
                    yield Access(block.get_submodule(path), reads=True)
                yield Access(block.get_submodule(branch.output), writes=True)
        yield Access(model.get_submodule(self.norm), reads=True, writes=True)
        head = "lm_head" if hasattr(model, "lm_head") else "score"
        yield Access(model.get_submodule(head), reads=True)

    def cut(self, model: nn.Module, structure: Structure, start: str = "copied") -> nn.Module:
        smaller = copy.deepcopy(model)
        self._shrink(smaller, structure, STARTS[start])
        if start == "embeddings":
            renew(list(self._blocks(smaller)))
        _set_layers(smaller.config, [layer.source for layer in structure.layers])
        return smaller

    def blank(self, config: Any, sizes: Mapping[str, Any]) -> nn.Module:
        config = copy.deepcopy(config)
        _set_layers(config, sizes["layers"])
        auto: Any = (
            AutoModelForCausalLM
            if head_of(config).generates
            else AutoModelForSequenceClassification
        )
        model: nn.Module = auto.from_config(config, trust_remote_code=False)
        pairs = enumerate(zip(sizes["heads"], sizes["ffn"], strict=True))
        self._shrink(
            model,
            Structure(
                tuple(Layer(i, tuple(range(heads)), tuple(range(ffn))) for i, (heads, ffn) in pairs)
            ),
        )
        return model

    def _blocks(self, model: nn.Module) -> nn.ModuleList:
        blocks = model.get_submodule(self.layers)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _shrink(self, model: nn.Module, structure: Structure, reduce: Reduce = copied) -> None:
        """Cut the model itself, its config aside."""
        blocks, whole = self._blocks(model), self.structure(model).layers
        kept = [blocks[layer.source] for layer in structure.layers]
        for i, (block, layer) in enumerate(zip(kept, structure.layers, strict=True)):
            _keep(
                block, self.attention, len(whole[layer.source].heads), layer.heads, reduce, NoHeads
            )
            _keep(block, self.ffn, len(whole[layer.source].ffn), layer.ffn, reduce, NoNeurons)
            attention: Any = block.get_submodule(self.attention.module)
            attention.layer_idx = i
        model.set_submodule(self.layers, nn.ModuleList(kept))


def head_of(config: Any) -> Head:
    """The head that the model of a config has, where no model is at hand."""
    language_model = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return (
        Head.CAUSAL_LM
        if language_model in (config.architectures or ())
        else Head.SEQUENCE_CLASSIFICATION
    )


def _set_layers(config: Any, sources: Sequence[int]) -> None:
    """Let the config, of the whole model or already of the cut one, say that these layers are
    left."""
    config.num_hidden_layers = len(sources)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and len(kinds) > len(sources):
        config.layer_types = [kinds[source] for source in sources]


def _keep(
    block: nn.Module,
    branch: Branch,
    units: int,
    kept: Sequence[int],
    reduce: Reduce,
    stand_in: type[NoNeurons],
) -> None:
    if len(kept) == units:
        return
    output: Any = block.get_submodule(branch.output)
    if not kept:
        block.set_submodule(branch.module, stand_in(output.bias))
        block.set_submodule(branch.norm, nn.Identity())
        return

    for path in branch.inputs:
        _select(block.get_submodule(path), 0, branch.fused, units, kept, reduce)
    _select(output, 1, 1, units, kept, reduce)


def _select(
    projection: Any, axis: int, fused: int, units: int, kept: Sequence[int], reduce: Reduce
) -> None:
    """Leave the projection with fewer units along its outputs (axis 0) or inputs (1)."""
    transposed = isinstance(projection, Conv1D)

    def fewer(tensor: Tensor, axis: int) -> nn.Parameter:
        parts = tensor.detach().chunk(fused, axis)
        return nn.Parameter(
            torch.cat([reduce(part, axis, part.shape[axis] // units, kept) for part in parts], axis)
        )

    own_axis = 1 - axis if transposed else axis
    projection.weight = fewer(projection.weight, own_axis)
    if axis == 0 and projection.bias is not None:
        projection.bias = fewer(projection.bias, 0)
    names = ("nf", "nx") if transposed else ("out_features", "in_features")
    setattr(projection, names[axis], projection.weight.shape[own_axis])


def _inputs(block: nn.Module, branch: Branch) -> int:
    if isinstance(block.get_submodule(branch.module), NoNeurons):
        return 0
    return inputs_of(block.get_submodule(branch.output))


def _matrix(projection: nn.Module) -> Tensor:
    """(outputs, inputs)."""
    weight = projection.get_parameter("weight").detach()
    return weight.T if isinstance(projection, Conv1D) else weight
