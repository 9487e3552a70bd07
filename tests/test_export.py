"""The folder that ships: complete, true to the model, refused by loaders that would damage it, and
whole or not there."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerBase,
)

from autocompress import shipping
from autocompress.artifact import annotate, load_model
from autocompress.errors import CandidateFailed, UserError
from autocompress.families import FAMILIES
from autocompress.formats import FORMATS, convert
from autocompress.graphs import export
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Batch
from autocompress.plan import Plan
from autocompress.shipping import Graph
from autocompress.structure import Layer, Structure
from autocompress.student import plan_from
from autocompress.techniques import SETTINGS
from autocompress.training.compute import CPU
from autocompress.training.teacher import load_classifier, load_config
from tests.exporting import export_model
from tests.tiny_models import MODELS, build, inputs

FAMILY = FAMILIES["bert"]
CUT = Structure(
    (Layer(0, (), tuple(range(0, 64, 3))), Layer(1, (0, 2, 3), ()), Layer(3, (1,), (5, 6)))
)
FILES = [
    "autocompress.json",
    "config.json",
    "model.onnx",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
SENTENCES = [
    "a film of quiet power , and the best of its year .",
    "dull",
    "the plot goes nowhere , but it goes there slowly .",
    "i laughed once .",
]


@dataclass(frozen=True)
class Sample:
    """A cut model, what it was made from and what is needed to export it."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    tokenizer_files: Path
    calibration: list[Batch]

    def export(self, target: Path, structure: Structure = CUT, **settings: Any) -> dict[str, float]:
        candidate = SETTINGS.candidate(
            {name.replace("__", "."): value for name, value in settings.items()}
        )
        smaller = FAMILY.cut(self.model, structure)
        return export_model(
            smaller, structure, candidate, target, self.calibration, self.tokenizer_files
        )


@pytest.fixture(scope="module")
def sample(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    model = load_classifier(str(tiny_model), None)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    encoded = [
        tokenizer(part, padding=True, truncation=True, max_length=64)
        for part in (SENTENCES, SENTENCES[:2])
    ]
    batches = [
        Batch({name: np.array(values, np.int64) for name, values in part.items()})
        for part in encoded
    ]
    tokenizer(SENTENCES, truncation=True, max_length=64)
    files = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(files)
    return Sample(model, tokenizer, files, batches)


@pytest.fixture(scope="module")
def folder(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in fp32."""
    target = tmp_path_factory.mktemp("exported") / "t001"
    sample.export(target, layers__keep=[0, 1, 3])
    return target


def logits(model: nn.Module, batch: Batch) -> Tensor:
    with torch.inference_mode():
        answers: Tensor = model(**CPU.tensors(batch)).logits
    return answers


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def test_the_folder_is_complete_and_described(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["t001"]
    described = read(folder / "autocompress.json")
    assert described["candidate"] == {"layers.keep": [0, 1, 3]}
    assert described["quantization"]["scheme"] == "fp32"
    assert described["sizes"] == {"layers": [0, 1, 3], "heads": [0, 3, 1], "ffn": [22, 0, 2]}
    assert plan_from(read(folder / "config.json")["plan"]) == Plan("bert", CUT)
    assert described["versions"]["torch"] == torch.__version__


def test_hashes_are_of_the_files_there(folder: Path) -> None:
    hashes = read(folder / "autocompress.json")["sha256"]
    assert sorted(hashes) == FILES[1:]
    assert hashes == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[1:]
    }


def test_weights_left_are_all_that_is_stored(sample: Sample, folder: Path) -> None:
    count = sum(parameter.numel() for parameter in FAMILY.cut(sample.model, CUT).parameters())
    for name in ("model.safetensors", "model.onnx"):
        assert (folder / name).stat().st_size == pytest.approx(4 * count, rel=0.03)


@pytest.mark.parametrize(("name", "by_token"), [("bert", False), ("gpt2", True), ("llama", True)])
def test_causal_models_get_a_scale_for_each_token(
    name: str, by_token: bool, tmp_path: Path
) -> None:
    model, family = build(name), MODELS[name].family
    batch = Batch({key: value.numpy() for key, value in inputs().items()})
    (tmp_path / "tokenizer").mkdir()
    candidate = SETTINGS.candidate({"quantization.scheme": "int8-dynamic"})
    export_model(
        model, family.structure(model), candidate, tmp_path / "t", [batch], tmp_path / "tokenizer"
    )
    operators = {node.op_type for node in onnx.load(tmp_path / "t" / "model.onnx").graph.node}
    assert ("ReduceMax" in operators, "DynamicQuantizeLinear" in operators) == (
        by_token,
        not by_token,
    )


@pytest.mark.parametrize("scheme", FORMATS)
def test_parity_is_that_of_the_files(sample: Sample, scheme: str, tmp_path: Path) -> None:
    parity = sample.export(tmp_path / "t", quantization__scheme=scheme)
    described = read(tmp_path / "t" / "autocompress.json")
    assert described["quantization"] == {
        "scheme": scheme,
        "layers": [scheme] * 3,
        "left_in_fp32": {},
    }
    assert described["parity"] == parity
    assert 0 <= parity["fp32_max_abs_difference"] <= 1e-4
    expected = logits(FAMILY.cut(sample.model, CUT), sample.calibration[0]).numpy()
    answers = predict(tmp_path / "t" / "model.onnx", [sample.calibration[0].inputs])
    assert parity["max_abs_difference"] == pytest.approx(
        float(np.abs(answers - expected).max()), rel=1e-6
    )
    assert parity["agreement"] == (answers.argmax(1) == expected.argmax(1)).mean()
    assert (parity["max_abs_difference"] <= 1e-4) == (FORMATS[scheme].stored == "fp32")


@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic"])
@pytest.mark.parametrize(
    "structure", [CUT, Structure.full([4] * 4, [64] * 4), Structure((Layer(2, (), ()),))], ids=str
)
def test_loaded_model_is_the_cut_one(
    sample: Sample, structure: Structure, scheme: str, tmp_path: Path
) -> None:
    sample.export(tmp_path / "t", structure, quantization__scheme=scheme)
    loaded, expected = load_model(tmp_path / "t"), FAMILY.cut(sample.model, structure)
    assert not loaded.training
    for batch in sample.calibration:
        assert torch.equal(logits(loaded, batch), logits(expected, batch))
    assert loaded.state_dict().keys() == expected.state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_every_family_comes_back_as_the_class_it_was(
    sample: Sample, name: str, tmp_path: Path
) -> None:
    """A head that is tied is stored once."""
    structure = Structure((Layer(0, (), (1, 2)), Layer(2, (1, 3), ())))
    smaller = MODELS[name].family.cut(build(name), structure)
    batch = Batch({key: value.numpy() for key, value in inputs().items()})
    export_model(
        smaller, structure, SETTINGS.candidate({}), tmp_path / "t", [batch], sample.tokenizer_files
    )
    loaded = load_model(tmp_path / "t")
    assert type(loaded) is type(smaller)
    assert torch.equal(logits(loaded, batch), logits(smaller, batch))
    stored = sum(
        tensor.numel() for tensor in load_file(tmp_path / "t" / "model.safetensors").values()
    )
    assert stored == sum(parameter.numel() for parameter in smaller.parameters())


def test_label_names_come_back(sample: Sample, tmp_path: Path) -> None:
    model = FAMILY.cut(sample.model, CUT)
    config: Any = model.config
    config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    export_model(
        model,
        CUT,
        SETTINGS.candidate({}),
        tmp_path / "t",
        sample.calibration,
        sample.tokenizer_files,
    )
    loaded: Any = load_model(tmp_path / "t").config
    assert loaded.id2label == {0: "bad", 1: "good"} and loaded.label2id == {"bad": 0, "good": 1}


@pytest.mark.parametrize("name", ["bert", "gpt2 with its head tied"])
def test_equal_models_have_the_same_graph(name: str, tmp_path: Path) -> None:
    example = Batch({key: value.numpy() for key, value in inputs().items()})
    for file in ("first", "second"):
        to_onnx(build(name), tmp_path / file, example)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama"])
def test_a_graph_does_not_depend_on_the_size_of_the_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = Batch({key: value.numpy() for key, value in inputs().items()})
    to_onnx(
        build(name), tmp_path / "few", Batch({k: a[:2, :3] for k, a in sentences.inputs.items()})
    )
    monkeypatch.setattr(export, "_TRACED_ROWS", 3)
    to_onnx(build(name), tmp_path / "all", sentences)
    assert (tmp_path / "few").read_bytes() == (tmp_path / "all").read_bytes()


def test_exporting_again_replaces_the_folder(sample: Sample, tmp_path: Path) -> None:
    target = tmp_path / "t"
    sample.export(target, layers__keep=0.5)
    (target / "stale.txt").write_text("old")
    sample.export(target, layers__keep=0.75)
    assert sorted(path.name for path in target.iterdir()) == FILES
    assert read(target / "autocompress.json")["candidate"]["layers.keep"] == 0.75


@pytest.mark.parametrize(
    "loader",
    [
        AutoModelForSequenceClassification,
        AutoModel,
        BertForSequenceClassification,
        BertModel,
        DistilBertForSequenceClassification,
    ],
)
def test_transformers_own_loaders_refuse_the_folder(folder: Path, loader: Any) -> None:
    """They would fill what was cut with random weights."""
    with pytest.raises((ValueError, OSError, RuntimeError, StrictDataclassError)):
        loader.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_a_compressed_folder_is_no_model_to_compress(folder: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"^{folder} is already compressed by autocompress; give the model it was made from$",
    ):
        load_config(str(folder))


def test_the_tokenizer_loads_from_the_folder(sample: Sample, folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded(SENTENCES)["input_ids"] == sample.tokenizer(SENTENCES)["input_ids"]


RUN_BARE = """
import json, sys
import numpy, onnxruntime, tokenizers
folder, sentences = sys.argv[1], json.loads(sys.argv[2])
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
answers = []
for sentence in sentences:
    encoded = tokenizer.encode(sentence)
    parts = {
        "input_ids": encoded.ids,
        "token_type_ids": encoded.type_ids,
        "attention_mask": encoded.attention_mask,
    }
    arrays = {name: numpy.array([values], numpy.int64) for name, values in parts.items()}
    [logits] = session.run(None, arrays)
    answers.append(logits[0].tolist())
assert not {"torch", "transformers", "autocompress"} & set(sys.modules)
print(json.dumps(answers))
"""


def test_the_folder_runs_with_onnxruntime_and_tokenizers_alone(
    sample: Sample, folder: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN_BARE, str(folder), json.dumps(SENTENCES)],
        capture_output=True,
        text=True,
        check=True,
    )
    model = load_model(folder)
    with torch.inference_mode():
        expected = [
            model(**sample.tokenizer(sentence, return_tensors="pt")).logits[0].tolist()
            for sentence in SENTENCES
        ]
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=0, atol=1e-4)
    assert np.ptp(expected, axis=0).min() > 0.01


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_graph_that_differs_fails_the_candidate_and_leaves_nothing(
    sample: Sample, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "PARITY_LIMIT", limit)
    monkeypatch.setattr(shipping, "_ROUNDINGS", limit)
    with pytest.raises(
        CandidateFailed, match=r"^the ONNX graph's logits differ from torch's by \d"
    ):
        sample.export(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("off", "alike"), [(5e-5, True), (3e-4, False)])
def test_a_logit_of_the_graph_may_be_off_by_a_ten_thousandth(
    off: float, alike: bool, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside(model: Any, file: Path, batch: Batch) -> None:
        other = copy.deepcopy(model)
        other.classifier.bias.data[0] += off
        to_onnx(other, file, batch)

    with torch.no_grad():
        small = copy.deepcopy(sample.model)
        small.get_parameter("classifier.weight").mul_(0.1)
    monkeypatch.setattr(shipping, "to_onnx", beside)
    with contextlib.nullcontext() if alike else pytest.raises(CandidateFailed, match="differ"):
        replace(sample, model=small).export(tmp_path / "t")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_graph_may_differ_as_much_as_torch_rounds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights so large that fp32 is off by more than the limit."""
    model, family = build(name), MODELS[name].family
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    batch = Batch({key: value.numpy() for key, value in inputs().items()})
    (tmp_path / "tokenizer").mkdir()
    monkeypatch.setattr(shipping, "PARITY_LIMIT", 0.0)
    monkeypatch.setattr(shipping, "_ROUNDINGS", 50)
    graph = Graph(model, Plan(family.name, family.structure(model)), tmp_path / "g", [batch])
    rounding = graph._rounding()
    assert 0 < rounding < 1e-3 * logits(model, batch).abs().max()
    parity = graph.ship(SETTINGS.candidate({}), tmp_path / "t", tmp_path / "tokenizer")
    assert 0 < parity["fp32_max_abs_difference"] <= 50 * rounding


def test_a_failed_export_leaves_the_older_one(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.export(tmp_path / "t", layers__keep=0.5)
    monkeypatch.setattr(shipping, "PARITY_LIMIT", -1.0)
    monkeypatch.setattr(shipping, "_ROUNDINGS", -1.0)
    with pytest.raises(CandidateFailed):
        sample.export(tmp_path / "t", layers__keep=0.75)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert read(tmp_path / "t" / "autocompress.json")["candidate"]["layers.keep"] == 0.5


def test_a_model_that_gives_no_numbers_fails_the_candidate(sample: Sample, tmp_path: Path) -> None:
    model = FAMILY.cut(sample.model, CUT)
    with torch.no_grad():
        model.get_parameter("classifier.bias").fill_(float("nan"))
    with pytest.raises(
        CandidateFailed, match=r"^the ONNX graph's logits differ from torch's by nan$"
    ):
        export_model(
            model,
            CUT,
            SETTINGS.candidate({}),
            tmp_path / "t",
            sample.calibration,
            sample.tokenizer_files,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_overflows_once_converted_fails_the_candidate_and_leaves_nothing(
    sample: Sample, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(source: Path, target: Path, *more: Any, **options: Any) -> Any:
        report = convert(source, target, *more, **options)
        model = onnx.load(target)
        [bias] = [one for one in model.graph.initializer if one.name.endswith("classifier.bias")]
        bias.CopyFrom(numpy_helper.from_array(np.array([0, value], np.float32), bias.name))
        onnx.save(model, target)
        return report

    monkeypatch.setattr(shipping, "convert", overflowing)
    with pytest.raises(CandidateFailed, match=r"^its answers are not finite$"):
        sample.export(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_annotations_are_added_to_what_is_there(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t")
    annotate(tmp_path / "t", {"scores": {"speedup": 2.5}})
    annotate(tmp_path / "t", {"note": "kept"})
    before = read(folder / "autocompress.json")
    assert read(tmp_path / "t" / "autocompress.json") == before | {
        "scores": {"speedup": 2.5},
        "note": "kept",
    }


def damage(folder: Path, name: str) -> None:
    """One of the ways in which a folder can be broken."""
    match name:
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "cut off":
            path = folder / "model.safetensors"
            path.write_bytes(path.read_bytes()[:5000])
        case "config is no JSON":
            (folder / "config.json").write_text("{")
        case "other sizes":
            config = read(folder / "config.json")
            config["plan"]["layers"][1]["heads"] = "0 2"
            (folder / "config.json").write_text(json.dumps(config))
        case "no plan":
            config = read(folder / "config.json")
            del config["plan"]
            (folder / "config.json").write_text(json.dumps(config))
        case "by an unknown technique":
            config = read(folder / "config.json")
            config["plan"]["parts"] = [{"technique": "of tomorrow"}]
            (folder / "config.json").write_text(json.dumps(config))
        case _:
            config = read(folder / "config.json")["original"]
            (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "name",
    [
        "no config",
        "no weights",
        "cut off",
        "config is no JSON",
        "other sizes",
        "no plan",
        "by an unknown technique",
        "written by transformers",
    ],
)
def test_a_damaged_folder_is_a_clear_error(folder: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t")
    damage(tmp_path / "t", name)
    with pytest.raises(
        UserError,
        match=rf"^{tmp_path / 't'} (cannot be loaded: .+|was not written by autocompress; load .+)$",  # noqa: E501
    ) as caught:
        load_model(tmp_path / "t")
    assert "\n" not in str(caught.value)
