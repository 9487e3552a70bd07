from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from transformers import AutoTokenizer

from autocompress import demo
from autocompress.errors import UserError
from autocompress.tasks import text_classification
from autocompress.tasks.data import (
    Columns,
    Documents,
    Example,
    Examples,
    load_documents,
    load_examples,
    once,
    read_lines,
)

AWKWARD = [
    "NA",
    "null",
    "12",
    "1e5",
    "2020-01-01",
    "true",
    'a "quoted", word',
    "größer – 日本",
    "tab\there",
    "two\nlines",
    " spaced ",
]
Rows = list[dict[str, Any]]


def rows(*numbers: int, label: int | None = None) -> Rows:
    """Sentences that differ by their number; labels alternate."""
    return [{"text": f"sentence {i}", "label": i % 2 if label is None else label} for i in numbers]


def write(path: Path, table: Rows) -> str:
    """The table in the format of the suffix."""
    names = list(table[0])
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(
                    file, names, delimiter="\t" if path.suffix == ".tsv" else ","
                )
                writer.writeheader()
                writer.writerows(table)
        case ".jsonl":
            path.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table),
                encoding="utf-8",
            )
        case ".json":
            path.write_text(json.dumps(table), encoding="utf-8")
        case _:
            pandas.DataFrame(table).to_parquet(path)
    return str(path)


def texts(split: Sequence[Example]) -> set[str]:
    return {text for text, _, _ in split}


def everything(examples: Examples) -> list[Example]:
    return [*examples.train, *examples.validation, *examples.test]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    table = rows(*range(60)) + [{"text": text, "label": 1} for text in AWKWARD]
    examples = load_examples(write(tmp_path / f"data{suffix}", table), Columns())
    reference = load_examples(write(tmp_path / "reference.jsonl", table), Columns())
    assert examples == reference
    assert set(everything(examples)) == {(row["text"], None, row["label"]) for row in table}
    assert {type(label) for _, _, label in everything(examples)} == {int}


@pytest.mark.parametrize(
    ("count", "held_out"), [(50, 10), (99, 19), (100, 20), (7_499, 1_499), (7_600, 1_500)]
)
def test_validation_and_test_are_cut_from_the_data(
    tmp_path: Path, count: int, held_out: int
) -> None:
    source = write(tmp_path / "data.csv", rows(*range(count)))
    examples = load_examples(source, Columns())
    assert [len(split) for split in (examples.train, examples.validation, examples.test)] == [
        count - 2 * held_out,
        held_out,
        held_out,
    ]
    assert len(texts(everything(examples))) == count
    assert load_examples(source, Columns()) == examples


def test_a_split_that_is_given_is_not_cut(tmp_path: Path) -> None:
    source, test = (
        write(tmp_path / "data.csv", rows(*range(100))),
        write(tmp_path / "test.tsv", rows(*range(200, 230))),
    )
    examples = load_examples(source, Columns(), test=test)
    assert [len(split) for split in (examples.train, examples.validation, examples.test)] == [
        80,
        20,
        30,
    ]
    assert texts(examples.test) == {f"sentence {i}" for i in range(200, 230)}


def test_what_is_dropped_to_keep_the_splits_apart(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", rows(*range(40), 0, 1, 1))
    validation = write(tmp_path / "validation.csv", rows(*range(40, 60), 38, 39, 39))
    test = write(tmp_path / "test.csv", rows(*range(60, 80), 37, 57, 58, 59))
    examples = load_examples(train, Columns(), validation, test)
    assert examples.dropped == {
        "train empty": 0,
        "validation empty": 0,
        "test empty": 0,
        "train repeated": 3,
        "validation repeated": 1,
        "test repeated": 0,
        "validation also in test": 3,
        "train also in validation or test": 3,
    }
    assert texts(examples.train) == {f"sentence {i}" for i in range(37)}
    assert texts(examples.validation) == {f"sentence {i}" for i in (38, 39, *range(40, 57))}
    assert texts(examples.test) == {f"sentence {i}" for i in (37, *range(57, 80))}


def test_splits_share_no_text_even_under_another_label(tmp_path: Path) -> None:
    table = (
        rows(*range(100), label=0) + rows(*range(0, 100, 2), label=1) + rows(*range(30), label=0)
    )
    examples = load_examples(write(tmp_path / "data.csv", table), Columns())
    train, validation, test = (
        texts(split) for split in (examples.train, examples.validation, examples.test)
    )
    assert not train & validation and not train & test and not validation & test
    assert len(train | validation | test) == 100
    assert examples.dropped["train repeated"] == 30
    assert len(everything(examples)) + sum(examples.dropped.values()) == len(table)


def test_a_text_with_another_partner_is_another_text(tmp_path: Path) -> None:
    table = [
        {"sentence1": "the same", "sentence2": f"partner {i}", "target": "ab"[i % 2]}
        for i in range(50)
    ]
    examples = load_examples(write(tmp_path / "pairs.csv", table), Columns(text_pair="sentence2"))
    assert set(everything(examples)) == {
        ("the same", f"partner {i}", "ab"[i % 2]) for i in range(50)
    }


def test_columns_by_name(tmp_path: Path) -> None:
    table = [
        {"text": "never read", "label": 7, "body": f"sentence {i}", "stars": i % 2}
        for i in range(50)
    ]
    examples = load_examples(
        write(tmp_path / "data.csv", table), Columns(text="body", label="stars")
    )
    assert set(everything(examples)) == {(f"sentence {i}", None, i % 2) for i in range(50)}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(text="body"), "has no column 'body'; its columns are first, label"),
        (
            Columns(text="first", label="stars"),
            "has no column 'stars'; its columns are first, label",
        ),
        (
            Columns(text="first", text_pair="second"),
            "has no column 'second'; its columns are first, label",
        ),
        (Columns(), "give --text-column, one of first, label"),
    ],
)
def test_wrong_columns(tmp_path: Path, columns: Columns, message: str) -> None:
    source = write(
        tmp_path / "data.csv", [{"first": f"sentence {i}", "label": i % 2} for i in range(50)]
    )
    with pytest.raises(UserError, match=re.escape(source) + ":? " + re.escape(message)):
        load_examples(source, columns)


def pairs_of(first: str, second: str) -> Rows:
    return [
        {second: f"partner {i}", "label": i % 2, first: f"sentence {i // 2}"} for i in range(50)
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("question", "sentence"),
    ],
)
@pytest.mark.parametrize("asked", [None, "first", "second", "both"])
def test_a_usual_pair_is_found(tmp_path: Path, first: str, second: str, asked: str | None) -> None:
    source = write(tmp_path / "data.csv", pairs_of(first, second))
    text, pair = first if asked in ("first", "both") else None, None
    if asked in ("second", "both"):
        pair = second
    examples = load_examples(source, Columns(text, pair))
    assert examples.columns == Columns(first, second, "label")
    assert set(everything(examples)) == {
        (f"sentence {i // 2}", f"partner {i}", i % 2) for i in range(50)
    }


def test_half_a_pair_is_not_taken_for_a_text(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv", pairs_of("sentence1", "reply"))
    with pytest.raises(UserError, match="give --text-column, one of reply, label, sentence1"):
        load_examples(source, Columns())
    assert load_examples(source, Columns("sentence1", "reply")).columns.text_pair == "reply"
    source = write(tmp_path / "data.csv", pairs_of("sentence1", "sentence2"))
    alone = load_examples(source, Columns("sentence2", "none"))
    assert {pair for _, pair, _ in everything(alone)} == {None}
    test = write(tmp_path / "test.csv", rows(*range(20)))
    message = "has the columns text, label, of which not the same are texts as in .*data.csv"
    with pytest.raises(UserError, match=message):
        load_examples(source, Columns(), test=test)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(text_pair="text"), "column 'text' is taken as text and text pair"),
        (Columns(label="text"), "column 'text' is taken as text and label"),
        (Columns(label="twice"), "has 2 columns 'twice'"),
    ],
)
def test_a_column_is_one_thing(tmp_path: Path, columns: Columns, message: str) -> None:
    table = "".join(f"sentence {i},{i % 2},{i},{i}\n" for i in range(50))
    (tmp_path / "data.csv").write_text("text,label,twice,twice\n" + table, encoding="utf-8")
    with pytest.raises(UserError, match="data.csv:? " + re.escape(message)):
        load_examples(str(tmp_path / "data.csv"), columns)
    assert len(everything(load_examples(str(tmp_path / "data.csv"), Columns()))) == 50


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_labels_stay_as_they_are_written(tmp_path: Path, suffix: str) -> None:
    table = [{"text": f"sentence {i}", "label": f"0{i % 2}"} for i in range(50)]
    examples = load_examples(write(tmp_path / f"data{suffix}", table), Columns())
    assert {label for _, _, label in everything(examples)} == {"00", "01"}


def test_what_is_cut_has_its_share_of_every_label(tmp_path: Path) -> None:
    """Of 500 rows every 25th is rare."""
    table = [{"text": f"sentence {i}", "label": int(i % 25 == 0)} for i in range(500)]
    source = write(tmp_path / "data.csv", table)
    examples = load_examples(source, Columns())
    rare = [
        sum(label for _, _, label in split)
        for split in (examples.train, examples.validation, examples.test)
    ]
    assert rare == [12, 4, 4] and examples.cut == ("validation", "test")
    first = [label for _, _, label in examples.train]
    assert first != sorted(first)
    order = [int(text.split()[1]) for text, _, _ in examples.train]
    assert abs(np.corrcoef(order, range(len(order)))[0, 1]) < 0.2


def test_texts_that_a_model_sees_alike_are_the_same(tmp_path: Path) -> None:
    def encode(texts: Sequence[tuple[str, str | None]]) -> list[Any]:
        return [np.array([ord(letter) for letter in text.lower().strip()]) for text, _ in texts]

    train = write(tmp_path / "train.csv", [*rows(*range(40)), {"text": "SENTENCE 3", "label": 1}])
    held_out = [
        {"text": f" Sentence {i}", "label": i % 2} for i in (*range(50, 70), 50 - 20, 50 - 20)
    ]
    test = write(tmp_path / "test.jsonl", held_out)
    examples = load_examples(train, Columns(), train_free(tmp_path), test, encode)
    assert examples.dropped["train repeated"] == examples.dropped["test repeated"] == 1
    assert examples.dropped["train also in validation or test"] == 1
    assert "sentence 30" not in texts(examples.train) and " Sentence 30" in texts(examples.test)
    assert len(examples.train) == 39


def train_free(folder: Path) -> str:
    """Validation text that nothing else has."""
    return write(folder / "validation.csv", rows(*range(80, 100)))


def test_every_text_is_encoded_once() -> None:
    asked: list[tuple[str, str | None]] = []

    def encode(texts: Sequence[tuple[str, str | None]]) -> list[Any]:
        asked.extend(texts)
        return [np.array([len(text)]) for text, _ in texts]

    encoded = once(encode)
    many = [("a" * (i % 3000), None) for i in range(3500)]
    assert [int(ids[0]) for ids in encoded(many)] == [i % 3000 for i in range(3500)]
    assert [int(ids[0]) for ids in encoded([("aa", "b"), ("aa", None)])] == [2, 2]
    assert len(asked) == len(set(asked)) == 3001


@pytest.mark.parametrize(("empty", "accepted"), [(2, True), (3, False)])
def test_a_few_rows_without_text_are_left_out(tmp_path: Path, empty: int, accepted: bool) -> None:
    table = [*rows(*range(200 - empty)), *({"text": " ", "label": ""} for _ in range(empty))]
    source = write(tmp_path / "data.csv", table)
    if accepted:
        examples = load_examples(source, Columns())
        assert examples.dropped["train empty"] == empty
        assert len(everything(examples)) == 200 - empty
        return
    with pytest.raises(UserError, match=r"row 198 has no text .* 3 of 200 rows, up to 1 %"):
        load_examples(source, Columns())


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "", "label": 1}, "row 31 has no text in column 'text'"),
        ({"text": " \t", "label": 1}, "row 31 has no text in column 'text'"),
        ({"text": None, "label": 1}, "row 31 has no text in column 'text'"),
        ({"text": "fine", "label": None}, "row 31 has no label"),
    ],
)
def test_a_row_that_lacks_something(
    tmp_path: Path, suffix: str, row: dict[str, Any], message: str
) -> None:
    source = write(tmp_path / f"data{suffix}", [*rows(*range(30)), row, *rows(*range(40, 60))])
    with pytest.raises(UserError, match="^" + re.escape(f"{source}: {message}")):
        load_examples(source, Columns())


def test_a_pair_that_lacks_its_second_text(tmp_path: Path) -> None:
    table = [{"text": f"sentence {i}", "reply": "yes", "label": i % 2} for i in range(50)]
    table[3]["reply"] = ""
    with pytest.raises(UserError, match=re.escape("row 4 has no text in column 'reply'")):
        load_examples(write(tmp_path / "data.csv", table), Columns(text_pair="reply"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", b"", "cannot be read"),
        ("data.csv", b"text,label\n\xff\xfe,1\n", "cannot be read"),
        ("data.jsonl", b'{"text": "a", ', "cannot be read"),
        ("data.jsonl", b"[1, 2]\n3\n", "cannot be read"),
        ("data.parquet", b"PAR0", "cannot be read"),
        ("data.txt", b"text", "give .csv, .tsv, .json, .jsonl or .parquet"),
        ("data.xlsx", b"text", "give .csv, .tsv, .json, .jsonl or .parquet"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match=re.escape(f"{tmp_path / name}") + ".*" + re.escape(message)
    ):
        load_examples(str(tmp_path / name), Columns())


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("data file nowhere.csv does not exist")):
        load_examples("nowhere.csv", Columns())
    with pytest.raises(UserError, match=re.escape("data file nowhere.tsv does not exist")):
        load_examples(write(tmp_path / "data.csv", rows(*range(50))), Columns(), test="nowhere.tsv")


def test_too_little_data(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match="the validation split has 9 examples after dropping repeats, at least 10 are needed",
    ):
        load_examples(write(tmp_path / "data.csv", rows(*range(49))), Columns())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the hub: ``reviews`` has labels in its splits train, validation and extra, none
    in test."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    splits = {
        "train": rows(*range(50)),
        "validation": rows(*range(60, 80)),
        "extra": rows(*range(80, 95)),
        "test": rows(*range(100, 130), label=-1),
    }
    dataset = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(split, features) for name, split in splits.items()}
    )
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *asked: {("reviews", None): dataset, ("many", "one"): dataset}[asked],
    )


@pytest.mark.usefixtures("hub")
def test_a_test_split_without_labels_is_ignored() -> None:
    examples = load_examples("reviews", Columns())
    assert examples.label_names == ["bad", "good"]
    assert [len(split) for split in (examples.train, examples.validation, examples.test)] == [
        40,
        20,
        10,
    ]
    assert texts(examples.train) | texts(examples.test) == {f"sentence {i}" for i in range(50)}
    assert texts(examples.validation) == {f"sentence {i}" for i in range(60, 80)}


@pytest.mark.usefixtures("hub")
def test_a_configuration_follows_a_colon() -> None:
    assert load_examples("many:one", Columns()) == load_examples("reviews", Columns())


@pytest.mark.usefixtures("hub")
def test_splits_by_name() -> None:
    examples = load_examples("reviews", Columns(), test="extra")
    assert [len(split) for split in (examples.train, examples.validation, examples.test)] == [
        50,
        20,
        15,
    ]
    assert texts(examples.test) == {f"sentence {i}" for i in range(80, 95)}
    with pytest.raises(UserError, match=re.escape("--test test: the split has no labels")):
        load_examples("reviews", Columns(), test="test")


def documents_of(documents: Documents) -> set[str]:
    assert len({*documents.train, *documents.validation, *documents.test}) == len(
        [*documents.train, *documents.validation, *documents.test]
    )
    return {*documents.train, *documents.validation, *documents.test}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    table = [
        {"text": text} for text in [*(f"document {i}" for i in range(60)), *AWKWARD, "one\n\ntwo"]
    ]
    documents = load_documents(write(tmp_path / f"data{suffix}", table))
    assert documents == load_documents(write(tmp_path / "reference.jsonl", table))
    assert documents_of(documents) == {row["text"] for row in table}
    assert [len(split) for split in (documents.train, documents.validation, documents.test)] == [
        44,
        14,
        14,
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_documents_of_a_text_file_have_blank_lines_between_them(
    tmp_path: Path, newline: str
) -> None:
    blocks = [f"document {i}\n its second line" for i in range(10)]
    content = "\n \n" + "\n\n".join(blocks[:5]) + "\n\n\n \t\n" + "\n \n".join(blocks[5:]) + "\n\n"
    (tmp_path / "data.txt").write_text(content, encoding="utf-8", newline=newline)
    documents = load_documents(str(tmp_path / "data.txt"))
    assert documents_of(documents) == set(blocks)
    assert set(documents.dropped.values()) == {0}


def test_documents_by_column_without_labels(tmp_path: Path) -> None:
    table = [{"text": "never read", "body": f"document {i}"} for i in range(20)]
    assert documents_of(load_documents(write(tmp_path / "data.csv", table), "body")) == {
        f"document {i}" for i in range(20)
    }
    with pytest.raises(UserError, match="has no column 'prose'; its columns are text, body"):
        load_documents(str(tmp_path / "data.csv"), "prose")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_empty_documents_are_skipped_and_counted(tmp_path: Path, suffix: str) -> None:
    table = [
        {"text": text, "id": 1}
        for text in ("", " \n\t", None, *(f"document {i}" for i in range(20)), "document 0")
    ]
    documents = load_documents(write(tmp_path / f"data{suffix}", table))
    assert documents_of(documents) == {f"document {i}" for i in range(20)}
    assert (documents.dropped["train empty"], documents.dropped["train repeated"]) == (3, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "data.jsonl",
            '{"text": "a"}\n{"text": ["b", "c"]}\n',
            "row 2 has list \"['b', 'c']\" in column 'text', allowed is text",
        ),
        ("data.csv", "text\n12\n13\n", "row 1 has int '12' in column 'text', allowed is text"),
        ("data.tsv", 'text\tid\nfine\t1\n"open\t2\nnext"\t3\n', "row 2 runs over several lines"),
        ("data.pdf", "%PDF", "give .csv, .tsv, .json, .jsonl, .parquet or .txt"),
        ("data.txt", b"\xff\xfe", "cannot be read"),
    ],
)
def test_documents_that_cannot_be_read(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        UserError, match=re.escape(str(tmp_path / name)) + ":? " + re.escape(message)
    ):
        load_documents(str(tmp_path / name))


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one\n\n  two \none\nthree\n \n", encoding="utf-8")
    assert read_lines(str(path)) == ["one", "two", "three"]
    path.write_text(" \n\n", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"--unlabeled {path} has no text")):
        read_lines(str(path))
    with pytest.raises(UserError, match=re.escape("--unlabeled nowhere.txt cannot be read")):
        read_lines("nowhere.txt")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.model_folder())


def counts(task: text_classification.TextClassification) -> dict[str, int]:
    """Examples per label name, all splits together."""
    labels = np.concatenate([split.labels for split in (task.train, task.validation, task.test)])
    return dict(
        zip(task.labels, np.bincount(labels, minlength=len(task.labels)).tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("data_labels", "names"),
    [
        (["neg", "pos"], ["neg", "pos"]),
        ([0, 1], ["0", "1"]),
        ([-1, 1], ["-1", "1"]),
        ([1, 2, 3], ["1", "2", "3"]),
        ([9, 10, 11], ["9", "10", "11"]),
        (["9", "10"], ["9", "10"]),
        ([False, True], ["False", "True"]),
        ([1.0, 2.0], ["1", "2"]),
    ],
    ids=str,
)
def test_labels_from_the_data(
    tmp_path: Path, tokenizer: Any, data_labels: list[Any], names: list[str]
) -> None:
    """20 examples of the first label, 30 of the second, 40 of the third."""
    labels = [label for i, label in enumerate(data_labels) for _ in range(20 + 10 * i)]
    table = [{"text": f"sentence {i}", "label": label} for i, label in enumerate(labels)]
    task = text_classification.load(
        tokenizer, write(tmp_path / "data.jsonl", table), Columns(), 16, None
    )
    assert counts(task) == {name: 20 + 10 * i for i, name in enumerate(names)}


@pytest.mark.parametrize(
    ("data_labels", "label_ids"),
    [
        ([0, 1], {"LABEL_0": 0, "LABEL_1": 1}),
        ([0.0, 1.0], {"LABEL_0": 0, "LABEL_1": 1}),
        (["0", "1"], {"0": 0, "1": 1}),
        ([1, 2], {"1": 0, "2": 1}),
        (["bad", "good"], {"bad": 0, "good": 1}),
    ],
)
def test_labels_of_the_model(
    tmp_path: Path, tokenizer: Any, data_labels: list[Any], label_ids: dict[str, int]
) -> None:
    table = [{"text": f"sentence {i}", "label": data_labels[i >= 20]} for i in range(50)]
    task = text_classification.load(
        tokenizer, write(tmp_path / "data.jsonl", table), Columns(), 16, label_ids
    )
    assert counts(task) == dict(zip(label_ids, (20, 30), strict=True))


@pytest.mark.usefixtures("hub")
def test_class_names_of_the_hub_go_before_their_numbers(tokenizer: Any) -> None:
    """The model counts its labels the other way round than the dataset does."""
    table = {f"sentence {i}": 1 - i % 2 for i in range(110)}
    task = text_classification.load(tokenizer, "reviews", Columns(), 16, {"good": 0, "bad": 1})
    decoded = [tokenizer.decode(row[0], skip_special_tokens=True) for row in task.validation.rows]
    assert task.labels == ("good", "bad")
    assert task.validation.labels.tolist() == [table[text] for text in decoded]


def test_a_label_that_the_model_does_not_have(tmp_path: Path, tokenizer: Any) -> None:
    source = write(
        tmp_path / "data.csv",
        [{"text": f"sentence {i}", "label": ["bad", "poor"][i % 2]} for i in range(50)],
    )
    message = f"{re.escape(source)} .*: label 'poor' is not among the model's labels bad, good"
    with pytest.raises(UserError, match=message):
        text_classification.load(tokenizer, source, Columns(), 16, {"bad": 0, "good": 1})


def test_unlabelled_lines_of_a_split_are_dropped(tmp_path: Path, tokenizer: Any) -> None:
    source, lines = write(tmp_path / "data.csv", rows(*range(50))), tmp_path / "lines.txt"
    lines.write_text("\n".join(f"sentence {i}" for i in range(45, 60)), encoding="utf-8")
    task = text_classification.load(tokenizer, source, Columns(), 16, None, unlabeled=str(lines))
    decoded = [tokenizer.decode(row[0], skip_special_tokens=True) for row in task.unlabeled]
    assert decoded == [f"sentence {i}" for i in range(50, 60)]
    assert task.reading.dropped["unlabeled also in a split"] == 5
