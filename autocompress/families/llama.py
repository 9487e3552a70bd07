"""Llama: grouped queries, rotary positions, gated FFN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.families.decoder import Branch, DecoderFamily
from autocompress.interfaces import Take


class LlamaFamily(DecoderFamily):
    """See ``FAMILY``."""

    def attention_tap(self, model: nn.Module, layer: int, role: str) -> tuple[nn.Module, Take]:
        block = self.part(model, layer, "block")
        rotary, size = model.get_submodule("model.rotary_emb"), self.head_size(model)

        def rotated(output: Tensor) -> Tensor:
            """By the positions of sentences that are padded on the right."""
            cos, sin = rotary(
                output, torch.arange(output.shape[1], device=output.device).unsqueeze(0)
            )
            heads = output.view(*output.shape[:-1], -1, size)
            left, right = heads.chunk(2, dim=-1)
            turned: Tensor = heads * cos.unsqueeze(2) + torch.cat(
                [-right, left], dim=-1
            ) * sin.unsqueeze(2)
            return turned.flatten(2)

        projection = block.get_submodule(f"self_attn.{role[0]}_proj")
        return projection, (lambda output: output) if role == "value" else rotated


FAMILY = LlamaFamily(
    name="llama",
    tables=("model.embed_tokens",),
    layers="model.layers",
    norm="model.norm",
    attention=Branch(
        "input_layernorm",
        "self_attn",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
    ),
    ffn=Branch(
        "post_attention_layernorm", "mlp", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
    ),
)
