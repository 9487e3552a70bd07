"""Every member of every table keeps the promises of its plug point; a new one is one row more."""

# ruff: noqa: RUF012 - tables, which nobody changes
from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from autocompress.distillation import objectives
from autocompress.engine.samplers import SAMPLERS, sampler
from autocompress.families import FAMILIES
from autocompress.formats import FORMATS
from autocompress.hardware.devices import connect
from autocompress.hardware.profile import HardwareProfile
from autocompress.quantizers import QUANTIZERS
from autocompress.tasks import TASKS
from autocompress.techniques import TECHNIQUES
from autocompress.testing import (
    DeviceSuite,
    FamilySuite,
    FormatSuite,
    ObjectiveSuite,
    QuantizerSuite,
    SamplerSuite,
    TaskSuite,
    TechniqueSuite,
    tiny,
)


class TestTechniques(TechniqueSuite):
    members = TECHNIQUES
    strengths = {
        "layer-truncation": [{"layers.keep": 0.5, "layers.rule": "top"}, {"layers.keep": (0, 2)}],
        "latency-pruning": [{"width.latency": 0.9}, {"width.latency": 0.5}],
        "head-pruning": [{"heads.keep": 0.5}, {"heads.keep": 0, "heads.importance": "magnitude"}],
        "ffn-pruning": [{"ffn.keep": 0.3}, {"ffn.keep": 0.5, "ffn.allocation": "uniform"}],
        "hidden-size": [{"hidden.keep": 0.6}, {"hidden.keep": 0.05}],
        "low-rank": [{"rank.keep": 0.2}, {"rank.keep": 0.5, "rank.allocation": "energy"}],
        "vocabulary": [{"vocabulary.keep": 0.5}, {"vocabulary.keep": 0.02}],
        "embedding-rank": [{"embedding.rank": 2}, {"embedding.rank": 12}],
        "sharing": [{"sharing.groups": 2}, {"sharing.groups": 1, "sharing.start": "mean"}],
        "sparsity": [
            {"sparsity.share": 0.5, "sparsity.embedding": True},
            {"sparsity.share": 0.3, "sparsity.schedule": "cubic", "sparsity.scope": "global"},
            {
                "sparsity.share": 0.3,
                "sparsity.schedule": "cubic",
                "sparsity.proximal": 1e-3,
            },
            {"sparsity.share": 0.4, "sparsity.schedule": "rounds"},
            {"sparsity.share": 0.6, "sparsity.criterion": "movement", "sparsity.embedding": True},
            {"sparsity.share": 0.6, "sparsity.criterion": "soft-movement"},
        ],
        "int8-training": [{"quantization.trained": True}],
        "embedding-codes": [
            {"embedding.format": "centroids", "embedding.bits": 3},
            {"embedding.format": "linear", "embedding.bits": 2},
            {"embedding.codebooks": 8, "embedding.entries": 4},
        ],
        "codes": [
            {"codes.format": "linear", "codes.group": "row"},
            {"codes.format": "centroids", "codes.bits": 2, "codes.outliers": -2.0},
            {"codes.format": "adaptive-float", "codes.bits": 5},
            {"codes.format": "product"},
            {"codes.format": "linear", "codes.group": "row", "codes.trained": True},
            {"codes.format": "centroids", "codes.bits": 2, "codes.trained": True},
            {"codes.format": "product", "codes.trained": True, "codes.noise": 0.3},
            {"codes.format": "linear", "codes.allocation": "sensitivity"},
            {
                "codes.format": "adaptive-float",
                "codes.allocation": "hessian",
                "codes.mean_bits": 5.0,
                "codes.trained": True,
            },
        ],
    }
    same_size = ("sparsity", "embedding-codes", "codes")


class TestObjectives(ObjectiveSuite):
    members = objectives()
    settings = {
        "logits": [{"recovery.temperature": 4.0}],
        "hidden-states": [{}, {"recovery.layer_map": "last"}],
        "normalized-hidden-states": [{}],
        "cosine": [{}],
        "attention-maps": [{}],
        "value-relations": [{}],
        "random-layers": [{"recovery.redraw_steps": 1}, {"recovery.random_layers": "concatenated"}],
        "adversarial-logits": [{}],
        "annealed-logits": [{"recovery.annealing_stages": 4}],
    }


class TestFamilies(FamilySuite):
    members = FAMILIES.values()
    configs = {
        "bert": [tiny("bert", "BertForSequenceClassification")],
        "roberta": [tiny("roberta", "RobertaForSequenceClassification")],
        "distilbert": [tiny("distilbert", "DistilBertForSequenceClassification")],
        "gpt2": [
            tiny("gpt2", "GPT2ForSequenceClassification"),
            tiny("gpt2", "GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=True),
        ],
        "llama": [
            tiny("llama", "LlamaForSequenceClassification", num_key_value_heads=2),
            tiny("llama", "LlamaForCausalLM", tie_word_embeddings=True, head_dim=12),
        ],
        "mistral": [tiny("mistral", "MistralForCausalLM", num_key_value_heads=4, sliding_window=5)],
        "qwen2": [tiny("qwen2", "Qwen2ForCausalLM", num_key_value_heads=2)],
    }


class TestFormats(FormatSuite):
    members = FORMATS.values()
    tolerances = {
        "fp32": 0.0,
        "fp16": 0.005,
        "bf16": 0.0,
        "int8-dynamic": 0.15,
        "int8-static": 0.2,
        "int8-weights": 0.15,
        "int4-weights": 0.8,
    }


class TestQuantizers(QuantizerSuite):
    members = QUANTIZERS
    errors = {"linear": 0.2, "centroids": 0.1, "adaptive-float": 0.15, "product": 0.6}


class TestTasks(TaskSuite):
    members = TASKS.values()


HERE = replace(
    HardwareProfile.load("cpu-1-thread"),
    sequence_length=16,
    trial_seconds=0.1,
    final_seconds=0.1,
    target_precision=0.5,
)


class TestDevices(DeviceSuite):
    members = {
        "onnxruntime-cpu": lambda: connect(HERE, [16]),
        "datasheet": lambda: connect(HardwareProfile.load("edge-raspberry-pi-5"), [32]),
    }


class TestSamplers(SamplerSuite):
    members = {name: partial(sampler, name) for name in SAMPLERS if name != "gp"}


@pytest.mark.slow
class TestSlowSamplers(SamplerSuite):
    members = {"gp": partial(sampler, "gp")}
    trials = 40


def test_every_member_has_a_row_here() -> None:
    rows = (
        (TestTechniques, TestTechniques.strengths),
        (TestObjectives, TestObjectives.settings),
        (TestFamilies, TestFamilies.configs),
        (TestFormats, TestFormats.tolerances),
        (TestQuantizers, TestQuantizers.errors),
    )
    for suite, listed in rows:
        assert list(listed) == list(suite.named())
