"""Examples and documents from files or hub ids, and splits that never mix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import UserError
from autocompress.interfaces import Option

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
DOCUMENT_FORMATS = FORMATS | {".txt": "text"}
"""A text file is a table whose rows, of the one column ``text``, are its parts between blank
lines."""
HELD_OUT_SHARE, HELD_OUT_MOST = 0.2, 1500
"""Validation and test are cut from the data where they are not given: this share each, at most this
many examples."""

Example = tuple[str, str | None, Any]
"""Text, second text of a pair or None, label as found."""
TEXT_COLUMN = Option("text-column", "C", "column of the texts; a usual name is found")


@dataclass(frozen=True)
class Columns:
    """Column names; None lets the loader find a usual one."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


_USUAL = {
    "text": ("text", "sentence", "content", "review", "sentence1"),
    "label": ("label", "labels", "target", "class"),
}


@dataclass
class Examples:
    """The three splits, and what was dropped to keep them apart."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    label_names: list[str] | None = None
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Documents:
    """The three splits of a corpus, and how many documents were dropped, by reason."""

    train: list[str]
    validation: list[str]
    test: list[str]
    dropped: dict[str, int]


def load_examples(
    source: str, columns: Columns, validation: str | None = None, test: str | None = None
) -> Examples:
    """Read and split.

    Args:
        source: a csv, tsv, json(l) or parquet file, or a dataset id on the hub, with the name of
            its configuration where it has several: ``nyu-mll/glue:sst2``.
        validation: another file, or the name of a split of the hub dataset; by default its
            ``validation`` split where it has labels, else cut from the training data.
        test: likewise.

    Raises:
        UserError: not readable, a column is missing, a text is empty, or too little data.
    """
    tables = _tables(source, validation, test, FORMATS)
    splits = {name: _examples(table, columns, where) for name, (table, where) in tables.items()}
    for name, choice in (("validation", validation), ("test", test)):
        from_hub = name in tables and tables[name][1] != choice
        if from_hub and all(label in (-1, "-1") for _, _, label in splits[name]):
            if choice is not None:
                raise UserError(f"--{name} {choice}: the split has no labels")
            del splits[name]
    examples = _split(splits["train"], splits.get("validation"), splits.get("test"))
    for name, split in (
        ("train", examples.train),
        ("validation", examples.validation),
        ("test", examples.test),
    ):
        if len(split) < 10:
            raise UserError(
                f"the {name} split has {len(split)} examples after dropping repeats, at least 10 "
                f"are needed"
            )
    examples.label_names = _label_names(tables["train"][0], columns)
    return examples


def load_documents(
    source: str,
    text_column: str | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> Documents:
    """Read and split texts without labels; those without a visible character are skipped and
    counted.

    Args:
        source: as for ``load_examples``, or a txt file of documents with blank lines between them.
        text_column: None finds a usual one.

    Raises:
        UserError: not readable, or no such column.
    """
    dropped: dict[str, int] = {}
    splits: dict[str, list[Example]] = {}
    for name, (table, where) in _tables(source, validation, test, DOCUMENT_FORMATS).items():
        texts = _documents(table, text_column, where)
        splits[name] = [(text, None, None) for text in texts if text.strip()]
        dropped[f"{name} empty"] = len(texts) - len(splits[name])
    examples = _split(splits["train"], splits.get("validation"), splits.get("test"))
    for name, split in (
        ("train", examples.train),
        ("validation", examples.validation),
        ("test", examples.test),
    ):
        if not split:
            lost = "".join(
                f", {count} {reason}"
                for reason, count in (dropped | examples.dropped).items()
                if count
            )
            raise UserError(
                f"{source}: no document is left for the {name} split of "
                f"{len(splits['train'])}{lost}"
                + (
                    "; in a txt file blank lines separate documents"
                    if source.endswith(".txt")
                    else ""
                )
            )
    train, held_out, test_texts = (
        [text for text, _, _ in split]
        for split in (examples.train, examples.validation, examples.test)
    )
    return Documents(train, held_out, test_texts, dropped | examples.dropped)


def _tables(
    source: str, validation: str | None, test: str | None, formats: Mapping[str, str]
) -> dict[str, tuple[Any, str]]:
    """Tables by split, each with the words for where it is from; validation and test only where
    there are any."""
    if Path(source).suffix in formats or Path(source).exists():
        tables = {"train": _read_file(source, formats)}
    else:
        tables = _read_hub(source)
    if "train" not in tables:
        raise UserError(f"--data {source} has no split 'train'; it has {', '.join(tables)}")
    by_split = {"train": (tables["train"], source)}
    for name, choice in (("validation", validation), ("test", test)):
        if choice is not None and choice not in tables:
            by_split[name] = _read_file(choice, formats), choice
        elif choice is not None or (name in tables and name not in (validation, test)):
            by_split[name] = tables[choice or name], f"{source} ({choice or name})"
    return by_split


def _split(
    train: list[Example], validation: list[Example] | None, test: list[Example] | None
) -> Examples:
    dropped: dict[str, int] = {}
    train = _without_repeats(train, "train", dropped)
    order = np.random.default_rng(0).permutation(len(train))
    train = [train[i] for i in order]
    held_out = min(HELD_OUT_MOST, int(HELD_OUT_SHARE * len(train)))
    if test is None:
        train, test = train[: -held_out or None], train[len(train) - held_out :]
    if validation is None:
        train, validation = train[: -held_out or None], train[len(train) - held_out :]
    validation = _without_repeats(validation, "validation", dropped)
    test = _without_repeats(test, "test", dropped)
    validation = _without_texts_of(test, validation, "validation also in test", dropped)
    train = _without_texts_of(
        [*validation, *test], train, "train also in validation or test", dropped
    )
    return Examples(train, validation, test, None, dropped)


def _without_repeats(examples: list[Example], name: str, dropped: dict[str, int]) -> list[Example]:
    unique = list(dict.fromkeys(examples))
    dropped[f"{name} repeated"] = len(examples) - len(unique)
    return unique


def _without_texts_of(
    others: list[Example], examples: list[Example], name: str, dropped: dict[str, int]
) -> list[Example]:
    texts = {(text, pair) for text, pair, _ in others}
    kept = [example for example in examples if example[:2] not in texts]
    dropped[name] = len(examples) - len(kept)
    return kept


def read_lines(path: str) -> list[str]:
    """The distinct non-empty lines of a text file, in order.

    Raises:
        UserError: no such file, not UTF-8, or nothing in it.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--unlabeled {path} cannot be read: {error}") from error
    distinct = list(dict.fromkeys(line for line in lines if line))
    if not distinct:
        raise UserError(f"--unlabeled {path} has no text")
    return distinct


def _read_file(source: str, formats: Mapping[str, str]) -> Any:
    path = Path(source)
    if path.is_dir():
        raise UserError(f"data file {source} is a folder: give one file")
    if not path.is_file():
        raise UserError(f"data file {source} does not exist")
    if path.suffix not in formats:
        *others, last = formats
        raise UserError(f"data file {source}: give {', '.join(others)} or {last}")
    import pandas

    try:
        match formats[path.suffix]:
            case "csv":
                frame = pandas.read_csv(
                    path,
                    sep="\t" if path.suffix == ".tsv" else ",",
                    keep_default_na=False,
                    encoding="utf-8",
                )
            case "json":
                frame = pandas.read_json(path, lines=path.suffix == ".jsonl", dtype=False)
            case "text":
                frame = pandas.DataFrame(
                    {"text": re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())}
                )
            case _:
                frame = pandas.read_parquet(path)
    except (ValueError, TypeError, OSError) as error:
        hint = (
            "; with one object in each line it is a .jsonl file" if path.suffix == ".json" else ""
        )
        raise UserError(
            f"data file {source} cannot be read: {str(error).splitlines()[0]}{hint}"
        ) from error
    return frame


def _read_hub(source: str) -> dict[str, Any]:
    import datasets

    name, _, configuration = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UserError(
            f"--data {source} is neither a file nor a dataset that can be loaded: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return dict(dataset)


def _label_names(table: Any, columns: Columns) -> list[str] | None:
    features = getattr(table, "features", None) or {}
    names = (
        getattr(features.get(_column(table, "label", columns.label, "the data")), "names", None)
        if features
        else None
    )
    return list(names) if names else None


def _column(table: Any, role: str, wanted: str | None, source: str) -> str:
    present = [
        str(name)
        for name in (table.column_names if hasattr(table, "column_names") else table.columns)
    ]
    if wanted is not None:
        if wanted not in present:
            raise UserError(
                f"{source} has no column {wanted!r}; its columns are {', '.join(present)}"
            )
        return wanted
    for name in _USUAL[role]:
        if name in present:
            return name
    raise UserError(f"{source}: give --{role}-column, one of {', '.join(present)}")


def _values(table: Any, name: str) -> list[Any]:
    values: Sequence[Any] = table[name]
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _examples(table: Any, columns: Columns, source: str) -> list[Example]:
    text_column = _column(table, "text", columns.text, source)
    texts = _values(table, text_column)
    labels = _values(table, _column(table, "label", columns.label, source))
    pairs = (
        _values(table, _column(table, "text", columns.text_pair, source))
        if columns.text_pair
        else [None] * len(texts)
    )
    _refuse_open_quotes(texts, source)
    for number, (text, pair, label) in enumerate(zip(texts, pairs, labels, strict=True), start=1):
        for column, cell in ((text_column, text), (columns.text_pair, pair)):
            if column is not None and (not isinstance(cell, str) or not cell.strip()):
                raise UserError(f"{source}: row {number} has no text in column {column!r}")
        if label == "" or _missing(label):
            raise UserError(f"{source}: row {number} has no label")
        if not isinstance(label, str | int | float):
            raise UserError(
                f"{source}: row {number} has the label {label!r}, allowed is one number or one word"
            )
    return list(zip(texts, pairs, labels, strict=True))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _documents(table: Any, text_column: str | None, source: str) -> list[str]:
    column = _column(table, "text", text_column, source)
    texts = ["" if _missing(text) else text for text in _values(table, column)]
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise UserError(
                f"{source}: row {number} has {type(text).__name__} {str(text)[:40]!r} in column "
                f"{column!r}, allowed is text"
            )
    _refuse_open_quotes(texts, source)
    return texts


def _refuse_open_quotes(texts: Iterable[Any], source: str) -> None:
    if not source.endswith(".tsv"):
        return
    for number, text in enumerate(texts, start=1):
        if isinstance(text, str) and "\t" in text and "\n" in text:
            raise UserError(
                f"{source}: row {number} runs over several lines; close or double the quotation "
                f"mark it begins with"
            )
