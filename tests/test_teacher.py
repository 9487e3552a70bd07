"""Loading the model to compress: what is wrong is said in one line; a fine-tuned teacher is made
once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForSequenceClassification,
)

from autocompress import demo
from autocompress.errors import UserError
from autocompress.families import FAMILIES
from autocompress.tasks.data import Columns
from autocompress.tasks.text_classification import Split, TextClassification
from autocompress.tasks.text_classification import load as load_task
from autocompress.training import teacher
from autocompress.training.compute import CPU
from autocompress.training.steps import Optimizer
from autocompress.training.teacher import (
    digest_of,
    finetune,
    finetuned,
    finetuning_steps,
    is_kept,
    load_classifier,
    load_config,
    load_tokenizer,
    steps_within,
)

VOCABULARY = 30522
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 8,
}
HEADLESS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (
        BertModel,
        lambda: BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        ),
    ),
    "roberta": (
        RobertaModel,
        lambda: RobertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        ),
    ),
    "distilbert": (
        DistilBertModel,
        lambda: DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, n_layers=1, n_heads=2, hidden_dim=8
        ),
    ),
    "gpt2": (
        GPT2Model,
        lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_inner=8),
    ),
    "llama": (LlamaModel, lambda: LlamaConfig(**LLAMA)),
    "mistral": (MistralModel, lambda: MistralConfig(**LLAMA)),
    "qwen2": (Qwen2Model, lambda: Qwen2Config(**LLAMA)),
}


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def task(data_file: Path) -> TextClassification:
    return load_task(
        AutoTokenizer.from_pretrained(demo.model_folder()), str(data_file), Columns(), 64, None
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def headless(name: str, folder: Path) -> Path:
    """A model without a classification head."""
    torch.manual_seed(0)
    model, config = HEADLESS[name]
    model(config()).save_pretrained(folder)
    return folder


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )


def refused(call: Any, *arguments: Any) -> str:
    """The message of the mistake; one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_classifier_loads_as_it_was_saved(tiny_model: Path) -> None:
    model = load_classifier(str(tiny_model), None)
    stored = load_file(tiny_model / "model.safetensors")
    loaded = model.state_dict()
    assert stored.keys() <= loaded.keys() and all(
        torch.equal(loaded[name], value) for name, value in stored.items()
    )
    assert not model.training and {parameter.dtype for parameter in model.parameters()} == {
        torch.float32
    }
    assert load_config(str(tiny_model)).num_hidden_layers == 4


def test_half_precision_weights_load_in_fp32(copied: Path) -> None:
    BertForSequenceClassification.from_pretrained(copied, dtype=torch.float16).save_pretrained(
        copied
    )
    model = load_classifier(str(copied), None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stored = load_file(copied / "model.safetensors")
    assert stored["classifier.weight"].dtype == torch.float16
    assert torch.equal(model.state_dict()["classifier.weight"], stored["classifier.weight"].float())


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert (
        refused(load_config, str(tmp_path / "nothing"))
        == f"model folder {tmp_path}/nothing does not exist"
    )
    assert refused(load_config, str(tmp_path)) == f"model folder {tmp_path} holds no config.json"


@pytest.mark.parametrize("text", ["", "{", "[]", '"bert"', "{}", '{"model_type": 3}'])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    refused(load_config, str(tmp_path))


@pytest.mark.parametrize("model_type", ["t5", "made-up"])
def test_a_model_type_that_cannot_be_cut(model_type: str, copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    expected = f"model type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}"
    assert refused(load_config, str(copied)) == expected


def test_a_real_t5_cannot_be_cut(tmp_path: Path) -> None:
    config = T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForSequenceClassification(config).save_pretrained(tmp_path)
    assert refused(load_config, str(tmp_path)).startswith("model type 't5' is not supported")


def test_no_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    assert refused(load_classifier, str(copied), None).startswith(
        f"--model {copied}: weights cannot be loaded (safetensors and GGUF only): "
    )


def test_pickled_weights_are_not_opened(copied: Path) -> None:
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert refused(load_classifier, str(copied), None).startswith(
        f"--model {copied}: weights cannot be loaded (safetensors and GGUF only): "
    )


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_weights_that_are_cut_off(size: int, copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert refused(load_classifier, str(copied), None).startswith(
        f"--model {copied}: weights cannot be loaded"
    )


def test_weights_of_other_sizes_than_the_config_says(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    assert str(copied) in refused(load_classifier, str(copied), None)


@pytest.mark.parametrize("labels", [None, ("a", "b")])
def test_fewer_layers_stored_than_the_config_says(
    labels: tuple[str, ...] | None, copied: Path
) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    message = refused(load_classifier, str(copied), labels)
    assert message.startswith(f"--model {copied} has no weights for bert.encoder.layer.4.")
    assert "--finetune" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    name = "bert.encoder.layer.2.output.dense.weight"
    weights[name][3, 5] = value
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    expected = f"--model {copied}: the weights of {name} are not all finite (NaN or infinity)"
    assert refused(load_classifier, str(copied), None) == expected


def test_more_weights_than_an_onnx_file_holds(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * sum(
        parameter.numel() for parameter in load_classifier(str(copied), None).parameters()
    )
    monkeypatch.setattr(teacher, "MOST_BYTES", size)
    assert refused(load_classifier, str(copied), None).startswith(
        f"--model {copied} has {size / 2**30:.1f} GiB of weights in fp32"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_head_is_asked_for(name: str, tmp_path: Path) -> None:
    message = refused(load_classifier, str(headless(name, tmp_path)), None)
    assert message.startswith(f"--model {tmp_path} has no weights for ")
    assert message.endswith("; give --finetune to train a classification head")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_head_has_the_labels_and_repeats(name: str, tmp_path: Path) -> None:
    source = str(headless(name, tmp_path))
    model = load_classifier(source, ("bad", "good", "so-so"))
    config: Any = model.config
    assert config.num_labels == 3 and config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert config.label2id == {"bad": 0, "good": 1, "so-so": 2}
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3)
    assert same_weights(model, load_classifier(source, ("bad", "good", "so-so")))


def test_a_head_of_other_labels_is_replaced(tiny_model: Path) -> None:
    model = load_classifier(str(tiny_model), ("a", "b", "c"))
    assert model.get_parameter("classifier.weight").shape == (3, 32)
    stored = load_file(tiny_model / "model.safetensors")
    assert torch.equal(
        model.get_parameter("bert.pooler.dense.weight"), stored["bert.pooler.dense.weight"]
    )


def test_a_tokenizer_that_is_missing_or_too_large(tiny_model: Path, tmp_path: Path) -> None:
    assert load_tokenizer(str(tiny_model), VOCABULARY).model_input_names[0] == "input_ids"
    message = refused(load_tokenizer, str(tiny_model), 1000)
    assert (
        message
        == f"--model {tiny_model}: the tokenizer has {VOCABULARY} tokens, the model only 1000"
    )
    shutil.copy(tiny_model / "config.json", tmp_path)
    assert refused(load_tokenizer, str(tmp_path), VOCABULARY).startswith(
        f"--model {tmp_path} has no usable tokenizer: "
    )


def test_a_tokenizer_without_padding_pads_with_the_token_that_ends_texts(
    tiny_model: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), VOCABULARY).pad_token == "[SEP]"
    assert load_tokenizer(str(tiny_model), VOCABULARY).pad_token == "[PAD]"


def test_the_digest_is_of_names_and_values(tiny_model: Path) -> None:
    model, other = (load_classifier(str(tiny_model), None) for _ in range(2))
    assert digest_of(model) == digest_of(other)
    with torch.no_grad():
        other.get_parameter("classifier.bias")[0] += 1e-6
    assert digest_of(model) != digest_of(other)


def test_the_digest_is_of_what_the_config_computes_by(tiny_model: Path, tmp_path: Path) -> None:
    """Equal weights with another activation are another model; the same one in another folder,
    with other names for its labels, is not."""
    model: Any = load_classifier(str(tiny_model), None)
    before = digest_of(model)
    model.config.id2label = {0: "no", 1: "yes"}
    model.save_pretrained(tmp_path)
    assert digest_of(load_classifier(str(tmp_path), None)) == before
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert digest_of(load_classifier(str(tmp_path), None)) != before


def test_fine_tuning_is_fitted_to_its_time(
    tiny_model: Path, task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the pace of a few steps, the first of which is slower; the model is left as it was."""
    model = load_classifier(str(tiny_model), task.labels)
    before, now = digest_of(model), 0.0

    def step(optimizer: Optimizer, loss: torch.Tensor) -> None:
        nonlocal now
        now += 0.5 if optimizer.done else 60.0
        optimizer.done += 1

    monkeypatch.setattr(Optimizer, "step", step)
    monkeypatch.setattr("autocompress.training.teacher.time.monotonic", lambda: now)
    rows = [np.zeros((2, 8), np.int64)] * 3200
    many = replace(task, train=Split(rows, np.arange(3200) % 2))
    fitted = [steps_within(seconds, model, many) for seconds in (0.1, 20.0, 99.0, 1000.0)]
    assert fitted == [1, 40, 198, 200]
    assert finetuning_steps(many) == 200 and digest_of(model) == before


def test_a_shorter_fine_tuning_is_another_teacher(
    tiny_model: Path, task: TextClassification, cache: Path
) -> None:
    steps: list[tuple[int, int]] = []
    model = load_classifier(str(tiny_model), task.labels)
    whole = finetuning_steps(task)
    finetuned(model, task, 0, lambda done, of: steps.append((done, of)), steps=3)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    fresh = load_classifier(str(tiny_model), task.labels)
    assert is_kept(fresh, task, 0, 3) and not is_kept(fresh, task, 0, whole)


def test_fine_tuning_learns_what_can_be_learned(
    tiny_model: Path, task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two words of each text gives its label away."""
    monkeypatch.setattr(teacher, "EPOCHS", 20)
    monkeypatch.setattr(teacher, "LEARNING_RATE", 3e-3)
    rows = [np.array([[101, 3000 + i % 2, 4000 + i, 102], [0, 0, 0, 0]]) for i in range(64)]
    telling = replace(task, train=Split(rows, np.arange(64) % 2))
    model = load_classifier(str(tiny_model), task.labels)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)

    def loss() -> float:
        with torch.inference_mode():
            logits = model(**CPU.tensors(task.batch(rows))).logits
        return cross_entropy(logits, torch.from_numpy(telling.train.labels)).item()

    before = loss()
    told: list[tuple[int, int]] = []
    finetune(model, telling, 0, lambda done, of: told.append((done, of)))
    assert told == [(step, 40) for step in range(1, 41)]
    assert loss() < 0.5 * before and not model.training


def test_a_fine_tuned_teacher_is_kept_and_found_again(
    tiny_model: Path, task: TextClassification, cache: Path
) -> None:
    steps: list[int] = []

    def made(seed: int = 0) -> tuple[nn.Module, int]:
        steps.clear()
        return finetuned(
            load_classifier(str(tiny_model), task.labels),
            task,
            seed,
            lambda done, of: steps.append(done),
        ), len(steps)

    first, trained = made()
    assert trained == 2 * (len(task.train.rows) // 32) and not same_weights(
        first, load_classifier(str(tiny_model), task.labels)
    )
    again, trained_again = made()
    assert trained_again == 0 and same_weights(again, first) and not again.training
    mine, theirs = (vars(model.config)["id2label"] for model in (again, first))
    assert mine == theirs == {0: "0", 1: "1"}
    other, trained_other = made(seed=1)
    assert trained_other == trained and not same_weights(other, first)
    assert len(list((cache / "teachers").iterdir())) == 2


def test_a_damaged_fine_tuned_teacher_is_made_again(
    tiny_model: Path, task: TextClassification, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = replace(task, train=Split(task.train.rows[:64], task.train.labels[:64]))

    def made() -> nn.Module:
        return finetuned(load_classifier(str(tiny_model), task.labels), few, 0)

    first = made()
    [folder] = (cache / "teachers").iterdir()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2]):
        weights.write_bytes(damage)
        assert same_weights(made(), first)
        assert weights.read_bytes() == whole
    assert caplog.messages == [f"{folder} is damaged: it is made again"] * 2


def test_fine_tuning_repeats_with_its_seed(
    tiny_model: Path, task: TextClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = []
    for name in ("one", "two"):
        monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / name))
        teachers.append(finetuned(load_classifier(str(tiny_model), task.labels), task, 3))
    assert same_weights(*teachers)


def test_other_data_is_another_teacher(
    tiny_model: Path, task: TextClassification, cache: Path
) -> None:
    flipped = Split(task.train.rows, 1 - task.train.labels)
    other = replace(task, train=flipped)
    assert not same_weights(
        *(finetuned(load_classifier(str(tiny_model), t.labels), t, 0) for t in (task, other))
    )
    assert len(list((cache / "teachers").iterdir())) == 2


def test_fewer_examples_than_a_batch_can_be_learned(
    tiny_model: Path, task: TextClassification, cache: Path
) -> None:
    few = Split(task.train.rows[:20], np.arange(20) % 2)
    trained = finetuned(load_classifier(str(tiny_model), task.labels), replace(task, train=few), 0)
    assert not same_weights(trained, load_classifier(str(tiny_model), task.labels))


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (
            "oddball",
            "--model {} cannot be loaded: GGUF model with architecture oddball is not supported "
            "yet.",
        ),
        ("bloom", "model type 'bloom' is not supported; supported are bert, "),
        (None, "--model {} cannot be loaded: "),
    ],
)
def test_gguf_files_that_cannot_be_compressed(
    architecture: str | None, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    if architecture is None:
        file.write_bytes(b"no such file format")
    else:
        writer = gguf.GGUFWriter(file, architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with pytest.raises(UserError) as caught:
        load_config(str(file))
    assert str(caught.value).startswith(reason.format(file)) and "\n" not in str(caught.value)
