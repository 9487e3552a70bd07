"""Text classification: labels of every kind, pairs, padding, splits that never mix, chance at
chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from transformers import AutoTokenizer, BertConfig

from autocompress import demo
from autocompress.errors import UserError
from autocompress.interfaces import TaskInputs
from autocompress.metrics import METRICS
from autocompress.reading import SPLITS, Reading
from autocompress.tasks import TASKS
from autocompress.tasks.data import Columns, load_examples
from autocompress.tasks.text_classification import KIND, Split, TextClassification
from autocompress.tasks.text_classification import load as load_task

WORDS = ("film", "plot", "actor", "scene", "music", "story", "joke", "end", "hero", "world")
TEXTS = [f"the {a} and the {b}" for a in WORDS for b in WORDS]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.model_folder())


def table(labels: Sequence[Any], path: Path, **more: Sequence[Any]) -> str:
    """100 examples; the labels repeat."""
    columns = {"text": TEXTS, "label": [labels[i % len(labels)] for i in range(len(TEXTS))], **more}
    frame = pandas.DataFrame(columns)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    return str(path)


def load(
    tokenizer: Any, source: str, label_ids: dict[str, int] | None = None, **more: Any
) -> TextClassification:
    return load_task(tokenizer, source, more.pop("columns", Columns()), 32, label_ids, **more)


def answers(tokenizer: Any, task: TextClassification) -> dict[str, int]:
    """Label id of each text, by the text as its tokens read."""
    label_by_text = {}
    for split in (task.train, task.validation, task.test):
        for row, label in zip(split.rows, split.labels, strict=True):
            label_by_text[tokenizer.decode(row[0], skip_special_tokens=True)] = int(label)
    return label_by_text


def test_the_task_is_listed() -> None:
    assert TASKS["text-classification"].metric.name == "accuracy"


def test_evidence_is_the_class_that_was_answered(by_hand: TextClassification) -> None:
    logits = np.array([[1.0, 2.0, 0.0], [0.5, 0.1, 0.2], [-3.0, -2.0, -1.0]], np.float32)
    assert by_hand.evidence(logits, by_hand.test).tolist() == [[1], [0], [2]]


def test_f1_is_of_the_second_of_two_classes(tokenizer: Any, tmp_path: Path) -> None:
    source = table(["ham", "spam"], tmp_path / "data.csv")
    task = load(tokenizer, source, metric=METRICS["f1"])
    assert [*task.reading.classes["train"]][1] == "spam"
    with pytest.raises(UserError, match="--metric f1 is of the second of two classes, here are 3"):
        load(tokenizer, table([0, 1, 2], tmp_path / "three.csv"), metric=METRICS["f1"])


@pytest.mark.parametrize(
    ("labels", "label_ids", "names", "ids"),
    [
        pytest.param(["pos", "neg"], None, ("neg", "pos"), [1, 0], id="names"),
        pytest.param([0, 1], None, ("0", "1"), [0, 1], id="numbers"),
        pytest.param([5, 10, 1], None, ("1", "5", "10"), [1, 2, 0], id="stars in order of value"),
        pytest.param([-1, 1], None, ("-1", "1"), [0, 1], id="signs"),
        pytest.param([1.0, 2.0], None, ("1", "2"), [0, 1], id="whole floats"),
        pytest.param([True, False], None, ("False", "True"), [1, 0], id="truth"),
        pytest.param(
            ["bad", "good"], {"good": 0, "bad": 1}, ("good", "bad"), [1, 0], id="the model's names"
        ),
        pytest.param(
            [1, 0, 2],
            {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
            ("LABEL_0", "LABEL_1", "LABEL_2"),
            [1, 0, 2],
            id="ids",
        ),
        pytest.param(
            ["1", "2"], {"1": 0, "2": 1}, ("1", "2"), [0, 1], id="the model's digits are names"
        ),
        pytest.param(
            ["a", "b"],
            {"a": 0, "b": 1, "c": 2},
            ("a", "b", "c"),
            [0, 1],
            id="a class without examples",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_labels_of_every_kind(
    tokenizer: Any,
    labels: list[Any],
    label_ids: dict[str, int] | None,
    names: tuple[str, ...],
    ids: list[int],
    suffix: str,
    tmp_path: Path,
) -> None:
    task = load(tokenizer, table(labels, tmp_path / f"data{suffix}"), label_ids)
    assert task.labels == names
    assert answers(tokenizer, task) == {text: ids[i % len(ids)] for i, text in enumerate(TEXTS)}


@pytest.mark.parametrize(
    ("label_ids", "names", "ids"),
    [
        (None, ("neg", "pos"), [0, 1]),
        ({"neg": 0, "pos": 1}, ("neg", "pos"), [0, 1]),
        ({"pos": 0, "neg": 1}, ("pos", "neg"), [1, 0]),
        ({"LABEL_0": 0, "LABEL_1": 1}, ("LABEL_0", "LABEL_1"), [0, 1]),
    ],
    ids=["new head", "same order", "the model's order differs", "the model has no names"],
)
def test_class_labels_go_by_name(
    tokenizer: Any,
    label_ids: dict[str, int] | None,
    names: tuple[str, ...],
    ids: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dataset of the hub, built here, since nothing is downloaded."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    hub = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"text": texts, "label": [i % 2 for i in range(len(texts))]}, features
            )
            for name, texts in (
                ("train", TEXTS[:60]),
                ("validation", TEXTS[60:80]),
                ("test", TEXTS[80:]),
            )
        }
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, configuration: {"made/here": hub}[name]
    )
    task = load(tokenizer, "made/here", label_ids)
    assert task.labels == names
    assert answers(tokenizer, task) == {text: ids[i % 2] for i, text in enumerate(TEXTS)}
    assert [len(split.rows) for split in (task.train, task.validation, task.test)] == [60, 20, 20]


@pytest.mark.parametrize(
    ("labels", "label_ids", "message"),
    [
        (
            ["good", "bad", "so-so"],
            {"good": 0, "bad": 1},
            "label 'so-so' is not among the model's labels good, bad",
        ),
        (
            [0, 1, 2],
            {"LABEL_0": 0, "LABEL_1": 1},
            "label 2 is not among the model's labels LABEL_0, LABEL_1",
        ),
        (
            [0, 0.5],
            {"LABEL_0": 0, "LABEL_1": 1},
            "label 0.5 is not among the model's labels LABEL_0, LABEL_1",
        ),
        (["same"], None, "the train split has one class only, at least two are needed"),
        (
            [1],
            {"LABEL_0": 0, "LABEL_1": 1},
            "the train split has one class only, at least two are needed",
        ),
    ],
)
def test_labels_that_cannot_be(
    tokenizer: Any,
    labels: list[Any],
    label_ids: dict[str, int] | None,
    message: str,
    tmp_path: Path,
) -> None:
    source = table(labels, tmp_path / "data.csv")
    with pytest.raises(UserError) as caught:
        load(tokenizer, source, label_ids)
    assert (
        str(caught.value).startswith(source)
        and str(caught.value).endswith(message)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            list(range(100)),
            "column 'label' has 100 different labels in 100 rows, as identifiers or texts are; "
            "allowed are classes",
        ),
        (
            [f"about {text}" for text in TEXTS],
            "column 'label' has 100 different labels in 100 rows, as identifiers or texts are; "
            "allowed are classes",
        ),
        (
            [0.25, 1.0],
            "column 'label' has numbers such as 0.25, allowed are classes",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_new_head_needs_classes(
    tokenizer: Any, labels: list[Any], message: str, suffix: str, tmp_path: Path
) -> None:
    source = table(labels, tmp_path / f"data{suffix}")
    with pytest.raises(UserError) as caught:
        load(tokenizer, source)
    assert str(caught.value) == f"{source}: {message}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type multi_label_classification"),
        ({"problem_type": "regression"}, "problem_type regression"),
        ({"num_labels": 1}, "1 label"),
    ],
)
def test_a_head_of_another_kind(
    tokenizer: Any, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = table([0, 1], tmp_path / "data.csv")
    inputs = TaskInputs("mine", BertConfig(**config), tokenizer, 32, False, source)
    with pytest.raises(UserError) as caught:
        KIND.load(inputs)
    assert str(caught.value) == (
        f"--model mine has a head of {message}, wanted is one for single labels; --finetune "
        f"trains one"
    )
    assert KIND.load(replace(inputs, fresh=True)).labels == ("0", "1")


def test_splits_are_apart_as_the_model_reads_them(tokenizer: Any, tmp_path: Path) -> None:
    """The tokenizer knows no capitals; a text that is cut is what is left of it."""
    source = table([0, 1], tmp_path / "data.csv")
    known = [text.upper() + "  " for text in TEXTS[:20]]
    filled = ["film " * 40 + end for end in "ab"] + [f"new {word}" for word in WORDS]
    test = tmp_path / "test.csv"
    pandas.DataFrame({"text": known + filled, "label": [0, 1] * 16}).to_csv(test, index=False)
    lines = tmp_path / "lines.txt"
    lines.write_text("New  Film\nnew words\n", encoding="utf-8")
    task = load(tokenizer, source, test=str(test), unlabeled=str(lines))
    dropped = task.reading.dropped
    assert dropped["train also in validation or test"] + dropped["validation also in test"] == 20
    assert [tokenizer.decode(row[0], skip_special_tokens=True) for row in task.unlabeled] == [
        "new words"
    ]
    seen = [{row.tobytes() for row in part.rows} for part in (task.train, task.test)]
    assert not seen[0] & seen[1]


def test_what_was_read(tokenizer: Any, tmp_path: Path) -> None:
    """Texts of 5 words, one of 300; two labels of three."""
    texts = [*TEXTS[:99], "film " * 300]
    source = table(["b", "a", "b"], tmp_path / "data.csv", text=texts)
    reading = load(tokenizer, source, {"a": 0, "b": 1, "c": 2}).reading
    assert reading.columns == {"text": "text", "label": "label"}
    assert reading.rows == {"train": 60, "validation": 20, "test": 20, "unlabeled": 0}
    assert reading.cut == ("validation", "test")
    assert [list(reading.classes[split].values()) for split in SPLITS] == [
        [20, 40, 0],
        [6, 14, 0],
        [7, 13, 0],
    ]
    assert (reading.median_tokens, reading.longest_tokens) == (7, 32)


def test_rung_examples_are_spread_over_all_lengths(
    by_hand: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_hand.rung_examples == [1, 2, 0]
    lengths = np.random.default_rng(0).permutation(np.arange(1, 101))
    rows = [np.zeros((2, length), np.int64) for length in lengths]
    task = replace(by_hand, validation=Split(rows, np.zeros(100, np.int64)))
    monkeypatch.setattr("autocompress.tasks.text_classification.RUNG_EXAMPLES", 12)
    assert [rows[i].shape[1] for i in task.rung_examples] == list(range(1, 101, 9))


def test_one_class_in_the_test_split_only(tokenizer: Any, tmp_path: Path) -> None:
    train = table([0, 1], tmp_path / "data.csv")
    test = tmp_path / "test.csv"
    pandas.DataFrame(
        {"text": [f"unseen {word} here" for word in WORDS] * 2, "label": [1] * 20}
    ).to_csv(test, index=False)
    with pytest.raises(
        UserError, match="the test split has one class only, at least two are needed"
    ):
        load(tokenizer, train, test=str(test))


def test_pairs_have_token_types(tokenizer: Any, tmp_path: Path) -> None:
    source = table([0, 1], tmp_path / "data.csv", second=[f"about {text}" for text in TEXTS])
    task = load(tokenizer, source, columns=Columns(text_pair="second"))
    assert task.input_names == ("input_ids", "token_type_ids")
    for row in task.train.rows:
        ids, types = row
        [first, second] = np.flatnonzero(ids == tokenizer.sep_token_id)
        assert (
            types.tolist() == [0] * (first + 1) + [1] * (second - first) and second == len(ids) - 1
        )
        one, two = (
            tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:first], ids[first:])
        )
        assert two == f"about {one}" and one in TEXTS


def test_single_texts_have_one_token_type(tokenizer: Any, tmp_path: Path) -> None:
    task = load(tokenizer, table([0, 1], tmp_path / "data.csv"))
    assert all(row[1].max() == 0 for row in task.train.rows)


def test_long_texts_are_cut(tokenizer: Any, tmp_path: Path) -> None:
    source = table([0, 1], tmp_path / "data.csv", text=[" ".join([text] * 20) for text in TEXTS])
    task = load(tokenizer, source)
    assert {
        row.shape for split in (task.train, task.validation, task.test) for row in split.rows
    } == {(2, 32)}
    assert all(row[0, -1] == tokenizer.sep_token_id for row in task.train.rows)


def test_splits_are_apart_complete_and_the_same_each_time(tokenizer: Any, data_file: Path) -> None:
    task, again = (load(tokenizer, str(data_file)) for _ in range(2))
    texts = [
        {row.tobytes() for row in split.rows} for split in (task.train, task.validation, task.test)
    ]
    assert [len(split.rows) for split in (task.train, task.validation, task.test)] == [240, 80, 80]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    for one, other in (
        (task.train, again.train),
        (task.validation, again.validation),
        (task.test, again.test),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(one.rows, other.rows, strict=True))
        assert np.array_equal(one.labels, other.labels)


def test_unlabelled_lines_of_a_split_are_dropped(tokenizer: Any, tmp_path: Path) -> None:
    lines, data = tmp_path / "lines.txt", table([0, 1], tmp_path / "data.csv")
    splits = load_examples(data, Columns())
    first, second, third = (part[0][0] for part in (splits.train, splits.validation, splits.test))
    lines.write_text(
        "\n".join([first, "something new", "", second, "something new", third, "and another"])
        + "\n"
    )
    task = load(tokenizer, data, unlabeled=str(lines))
    assert [tokenizer.decode(row[0], skip_special_tokens=True) for row in task.unlabeled] == [
        "something new",
        "and another",
    ]
    assert task.reading.dropped["unlabeled also in a split"] == 3


@pytest.fixture
def by_hand() -> TextClassification:
    rows = [np.array([[5, 6, 7], [0, 0, 1]]), np.array([[8], [1]]), np.array([[9, 10], [0, 1]])]
    split = Split(rows, np.array([0, 1, 0]))
    return TextClassification(
        ("a", "b"), ("input_ids", "token_type_ids"), 3, split, split, split, [], Reading({}, {}, {})
    )


def test_batches_are_padded_to_their_longest(by_hand: TextClassification) -> None:
    first, second = by_hand.questions(by_hand.train, 2)
    assert {name: array.tolist() for name, array in first.items()} == {
        "input_ids": [[5, 6, 7], [8, 3, 3]],
        "token_type_ids": [[0, 0, 1], [1, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert {name: array.tolist() for name, array in second.items()} == {
        "input_ids": [[9, 10]],
        "token_type_ids": [[0, 1]],
        "attention_mask": [[1, 1]],
    }
    assert {array.dtype for array in first.values()} == {np.dtype(np.int64)}
