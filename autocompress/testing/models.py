"""Models and text for the suites: tiny, random, built from configs in no time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig

from autocompress.candidate import Candidate, Settings, Value
from autocompress.families import family_of
from autocompress.interfaces import Batch, Family, Knowledge, Row
from autocompress.knowledge import fisher, gradient, magnitude
from autocompress.plan import Plan
from autocompress.structure import Layer, Structure
from autocompress.training.compute import CPU
from autocompress.training.outputs import Teacher, TransferSet
from autocompress.training.steps import seeded

HIDDEN, HEADS, FFN, LAYERS, VOCABULARY = 32, 4, 24, 4, 50
_PAD, _FIRST = 1, 5
"""The token that pads, and the first one of texts."""


def tiny(model_type: str, architecture: str, **more: Any) -> Any:
    """A config of 4 layers of 4 heads and 24 neurons, 32 wide.

    Args:
        architecture: class of transformers, which tells a language model from a classifier.
        more: keys of this model type; also in place of these sizes.
    """
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "pad_token_id": _PAD,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    ffn = {"gpt2": "n_inner", "distilbert": "hidden_dim"}.get(model_type, "intermediate_size")
    return AutoConfig.for_model(
        model_type, **{**sizes, ffn: FFN, "architectures": [architecture], **more}
    )


BERT = tiny("bert", "BertForSequenceClassification")
GPT2 = tiny("gpt2", "GPT2LMHeadModel")
"""Its head is tied to the embeddings."""
LLAMA = tiny("llama", "LlamaForCausalLM", num_attention_heads=2 * HEADS, num_key_value_heads=HEADS)
"""Its head is not; two heads of queries share each of 4 heads of keys and values."""


def build(config: Any) -> nn.Module:
    """A model whose every parameter is random, biases and norms too, so that none goes missing
    unseen; in evaluation mode."""
    with seeded(0):
        model: nn.Module = getattr(transformers, config.architectures[0])(copy.deepcopy(config))
        with torch.no_grad():
            for module in model.modules():
                is_norm = "norm" in type(module).__name__.lower()
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.dim() > 1:
                        parameter.normal_(0, 0.15)
                    else:
                        parameter.normal_(1.0 if is_norm and name == "weight" else 0.0, 0.1)
    return model.eval()


def padded(rows: Sequence[Row]) -> Batch:
    """Rows of token ids as one batch."""
    ids = np.full((len(rows), max(row.shape[1] for row in rows)), _PAD)
    for own, row in zip(ids, rows, strict=True):
        own[: row.shape[1]] = row[0]
    return Batch({"input_ids": ids, "attention_mask": (ids != _PAD).astype(np.int64)})


def texts(lengths: Sequence[int], vocabulary: int = VOCABULARY, seed: int = 0) -> list[Row]:
    """Random rows of so many tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(_FIRST, vocabulary, (1, length)) for length in lengths]


BATCH = padded(texts((7, 5, 2)))
"""Three sentences."""


def loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy, of classes or of tokens."""
    return cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction)


def logits(model: nn.Module, batch: Batch = BATCH) -> Tensor:
    """Of all rows; of a language model of all real tokens, one below the other."""
    inputs = CPU.tensors(batch)
    with torch.no_grad():
        answers: Tensor = model(**inputs).logits
    return answers[inputs["attention_mask"] == 1] if answers.dim() == 3 else answers


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def real_bytes(model: nn.Module) -> int:
    """Of the parameters, shared ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def tied(model: nn.Module) -> list[list[str]]:
    """Names of the parameters that are one, for each that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(sorted(alike) for alike in names.values() if len(alike) > 1)


def latency(structure: Structure) -> float:
    """A head takes 3, a neuron 1, a layer 2, and what is in no layer 8."""
    return 8 + sum(2 + 3 * len(layer.heads) + len(layer.ffn) for layer in structure.layers)


@dataclass(frozen=True)
class Workshop:
    """A model to make students of.

    Args:
        config: of the model, see ``tiny``.
        scratch: folder of the teacher.
    """

    config: Any
    scratch: Path

    @property
    def title(self) -> str:
        return str(self.config.architectures[0])

    @cached_property
    def family(self) -> Family:
        return family_of(self.config.model_type)

    @cached_property
    def teacher(self) -> Teacher:
        """Texts of 2 to 8 tokens, a third of them unlabelled; of a language model all of 8."""
        model = build(self.config)
        generates = "CausalLM" in self.title or "LMHead" in self.title
        lengths = [8] * 24 if generates else [2 + i % 7 for i in range(24)]
        rows = texts(lengths)
        labels = np.concatenate(rows) if generates else np.arange(16) % 2
        text = TransferSet(rows, labels, padded, loss, 4, generates)
        return Teacher(model, self.family, text, self.scratch / self.title)

    @property
    def model(self) -> nn.Module:
        """The uncut one."""
        return self.teacher.model

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The uncut one, and one of which every layer has another size."""
        whole = self.family.structure(self.model)
        one, two, three, *_ = whole.layers
        layers = (
            Layer(one.source, one.heads[1:], one.ffn[::2]),
            two,
            Layer(three.source, three.heads[:2], three.ffn[3:]),
        )
        name = self.family.name
        return {"uncut": Plan(name, whole), "cut": Plan(name, Structure(layers))}

    @cached_property
    def knowledge(self) -> Knowledge:
        transfer = self.teacher.transfer
        some = [(padded(transfer.rows[:8]), transfer.labels[:8])]
        importance = {
            "fisher": fisher.measure(self.model, self.family, some, loss),
            "gradient": gradient.measure(self.model, self.family, some, loss),
            "magnitude": magnitude.measure(self.model, self.family),
        }
        counts = np.bincount(np.concatenate([row[0] for row in transfer.rows]))
        return Knowledge(
            importance,
            latency,
            lambda f: f(self.model, self.family),
            lambda: counts,
            lambda f: f(self.model, some, loss, CPU),
        )


def with_all(settings: Settings, chosen: Mapping[str, Value]) -> Candidate:
    """A candidate in which every setting counts, also values that the vocabulary does not know,
    such as the name of a member that is in no table."""
    return Candidate(tuple(chosen.items()), {**settings.complete({}), **chosen})
