"""GPT-2: query, key and value in one matrix, whose parts the attention splits at a width that it
remembers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from autocompress.families.decoder import Branch, DecoderFamily, NoHeads
from autocompress.families.starts import Reduce, copied
from autocompress.interfaces import Take
from autocompress.structure import Structure


class Gpt2Family(DecoderFamily):
    """See ``FAMILY``."""

    def attention_tap(self, model: nn.Module, layer: int, role: str) -> tuple[nn.Module, Take]:
        block = self.part(model, layer, "block")
        place = ("query", "key", "value").index(role)
        return block.get_submodule("attn.c_attn"), lambda output: output.chunk(3, dim=-1)[place]

    def blank(self, config: Any, sizes: Mapping[str, Any]) -> nn.Module:
        model = super().blank(config, sizes)
        if config.scale_attn_by_inverse_layer_idx:
            for i, source in enumerate(sizes["layers"]):
                attention: Any = self.part(model, i, "block").get_submodule("attn")
                if not isinstance(attention, NoHeads):
                    attention.scaling *= (i + 1) / (source + 1)
        return model

    def _shrink(self, model: nn.Module, structure: Structure, reduce: Reduce = copied) -> None:
        super()._shrink(model, structure, reduce)
        for i, layer in enumerate(structure.layers):
            attention: Any = self.part(model, i, "block").get_submodule("attn")
            attention.split_size = len(layer.heads) * self.head_size(model)


FAMILY = Gpt2Family(
    name="gpt2",
    tables=("transformer.wte", "transformer.wpe"),
    layers="transformer.h",
    norm="transformer.ln_f",
    attention=Branch("ln_1", "attn", ("attn.c_attn",), "attn.c_proj", fused=3),
    ffn=Branch("ln_2", "mlp", ("mlp.c_fc",), "mlp.c_proj"),
)
