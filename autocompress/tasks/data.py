"""Examples and documents from files or hub ids, and splits that never mix."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import UserError
from autocompress.interfaces import Option
from autocompress.names import did_you_mean

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
DOCUMENT_FORMATS = FORMATS | {".txt": "text"}
"""A text file is a table whose rows, of the one column ``text``, are its parts between blank
lines."""
HELD_OUT_SHARE, HELD_OUT_MOST = 0.2, 1500
"""Validation and test are cut from the data where they are not given: this share each, at most this
many examples."""

MOST_EMPTY = 0.01
"""Share of the rows that may lack a text, and are left out."""
_ENCODED_AT_ONCE = 1000
"""The tokenizer's own record of a token takes some hundred bytes."""

Text = tuple[str, str | None]
"""And the second text of a pair."""
Example = tuple[str, str | None, Any]
"""Text, second text of a pair or None, label as found."""
_Ids = TypeVar("_Ids", bound=NDArray[np.integer[Any]])
Encode = Callable[[Sequence[Text]], Sequence[NDArray[np.integer[Any]]]]
"""What models see of texts: two of which it is the same are the same text."""
TEXT_COLUMN = Option("text-column", "C", "column of the texts; default: a usual name")


@dataclass(frozen=True)
class Columns:
    """Column names; None lets the loader find a usual one, ``NO_PAIR`` no second text."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None

    @property
    def by_role(self) -> dict[str, str]:
        """Those that are named."""
        return {role.replace("_", " "): name for role, name in vars(self).items() if name}


NO_PAIR = "none"
"""In place of the second text's column, where the first one's would bring it along."""
_PAIRS = {
    "sentence1": "sentence2",
    "premise": "hypothesis",
    "question1": "question2",
    "question": "sentence",
}
_USUAL = {
    "text": ("text", "sentence", "content", "review"),
    "label": ("label", "labels", "target", "class"),
}


@dataclass
class Examples:
    """The three splits, what was dropped to keep them apart, the columns they are of, and which of
    them were cut from the training data."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    label_names: list[str] | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    cut: tuple[str, ...] = ()


@dataclass(frozen=True)
class Documents:
    """The three splits of a corpus, and how many documents were dropped, by reason; see
    ``Examples``."""

    train: list[str]
    validation: list[str]
    test: list[str]
    dropped: dict[str, int]
    columns: Columns
    cut: tuple[str, ...]


def once(
    encode: Callable[[Sequence[Text]], Sequence[_Ids]],
) -> Callable[[Sequence[Text]], list[_Ids]]:
    """The same, but each text is encoded once, some at a time."""
    known: dict[Text, _Ids] = {}

    def encoded(texts: Sequence[Text]) -> list[_Ids]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for start in range(0, len(new), _ENCODED_AT_ONCE):
            some = new[start : start + _ENCODED_AT_ONCE]
            known.update(zip(some, encode(some), strict=True))
        return [known[text] for text in texts]

    return encoded


def _as_written(texts: Sequence[Text]) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(repr(text).encode("utf-8", "replace"), np.uint8) for text in texts]


def load_examples(
    source: str,
    columns: Columns,
    validation: str | None = None,
    test: str | None = None,
    encode: Encode = _as_written,
) -> Examples:
    """Read and split; what is cut from the data has its share of every label.

    Args:
        source: a csv, tsv, json(l) or parquet file, or a dataset id on the hub, with the name of
            its configuration where it has several: ``nyu-mll/glue:sst2``.
        validation: another file, or the name of a split of the hub dataset; by default its
            ``validation`` split where it has labels, else cut from the training data.
        test: likewise.
        encode: what models see of the texts, by which the splits are kept apart.

    Raises:
        UserError: not readable, a column is missing or taken twice, more than a few rows have no
            text, one has no label, or too little data.
    """
    tables = _tables(source, validation, test, FORMATS)
    taken = {name: _taken(table, columns, where) for name, (table, where) in tables.items()}
    dropped: dict[str, int] = {}
    splits = {}
    for name, (table, where) in tables.items():
        if bool(taken[name].text_pair) != bool(taken["train"].text_pair):
            raise UserError(
                f"{where} has the columns {', '.join(_names(table))}, of which not the same are "
                f"texts as in {source}; give --text-column and --text-pair-column"
            )
        splits[name] = _examples(table, taken[name], where)
        dropped[f"{name} empty"] = len(table) - len(splits[name])
    for name, choice in (("validation", validation), ("test", test)):
        from_hub = name in tables and tables[name][1] != choice
        if from_hub and all(label in (-1, "-1") for _, _, label in splits[name]):
            if choice is not None:
                raise UserError(f"--{name} {choice}: the split has no labels")
            del splits[name], dropped[f"{name} empty"]
    examples = _split(splits, dropped, encode)
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
    examples.columns = taken["train"]
    examples.label_names = _label_names(tables["train"][0], taken["train"])
    return examples


def load_documents(
    source: str,
    text_column: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    encode: Encode = _as_written,
) -> Documents:
    """Read and split texts without labels; those without a visible character are skipped and
    counted.

    Args:
        source: as for ``load_examples``, or a txt file of documents with blank lines between them.
        text_column: None finds a usual one.
        encode: see ``load_examples``.

    Raises:
        UserError: not readable, or no such column.
    """
    dropped: dict[str, int] = {}
    splits: dict[str, list[Example]] = {}
    tables = _tables(source, validation, test, DOCUMENT_FORMATS)
    for name, (table, where) in tables.items():
        texts = _documents(table, text_column, where)
        splits[name] = [(text, None, None) for text in texts if text.strip()]
        dropped[f"{name} empty"] = len(texts) - len(splits[name])
    examples = _split(splits, dropped, encode)
    for name, split in (
        ("train", examples.train),
        ("validation", examples.validation),
        ("test", examples.test),
    ):
        if not split:
            lost = "".join(f", {count} {reason}" for reason, count in dropped.items() if count)
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
    columns = Columns(_column(tables["train"][0], "text", text_column, source))
    return Documents(train, held_out, test_texts, dropped, columns, examples.cut)


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
    splits: Mapping[str, list[Example]], dropped: dict[str, int], encode: Encode
) -> Examples:
    """Three splits that share no text; held-out ones that are missing are cut from the training
    examples.

    Args:
        dropped: what is left out is added there.
    """
    texts = list(dict.fromkeys(example[:2] for split in splits.values() for example in split))
    seen = {
        text: hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
        for text, ids in zip(texts, encode(texts), strict=True)
    }

    def without_repeats(name: str, examples: list[Example]) -> list[Example]:
        unique: dict[tuple[bytes, Any], Example] = {}
        for example in examples:
            unique.setdefault((seen[example[:2]], example[2]), example)
        dropped[f"{name} repeated"] = len(examples) - len(unique)
        return list(unique.values())

    def without_texts_of(
        others: list[Example], examples: list[Example], reason: str
    ) -> list[Example]:
        theirs = {seen[example[:2]] for example in others}
        kept = [example for example in examples if seen[example[:2]] not in theirs]
        dropped[reason] = len(examples) - len(kept)
        return kept

    left = {name: without_repeats(name, split) for name, split in splits.items()}
    train = _shuffled(left["train"])
    held_out = min(HELD_OUT_MOST, int(HELD_OUT_SHARE * len(train)))
    cut = tuple(name for name in ("validation", "test") if name not in left)
    for name in reversed(cut):
        train, left[name] = train[: -held_out or None], train[len(train) - held_out :]
    validation = without_texts_of(left["test"], left["validation"], "validation also in test")
    train = without_texts_of(
        [*validation, *left["test"]], train, "train also in validation or test"
    )
    return Examples(train, validation, left["test"], None, dropped, cut=cut)


def _shuffled(examples: list[Example]) -> list[Example]:
    """In random order, in which every stretch has the shares of labels that the whole has."""
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    by_label: dict[Any, list[int]] = {}
    for i in order:
        by_label.setdefault(examples[i][2], []).append(i)
    place = {
        i: (rank + 0.5) / len(members)
        for members in by_label.values()
        for rank, i in enumerate(members)
    }
    return [examples[i] for i in sorted(order, key=lambda i: place[i])]


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
                cells = pandas.read_csv(
                    path,
                    sep="\t" if path.suffix == ".tsv" else ",",
                    header=None,
                    dtype=str,
                    keep_default_na=False,
                    encoding="utf-8",
                )
                frame = pandas.DataFrame({i: _typed(cells[i][1:]) for i in cells})
                frame.columns = pandas.Index(cells.iloc[0])
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


def _typed(cells: Any) -> Any:
    """A column as numbers, where all of its cells are such; 01 is a name."""
    import pandas

    if cells.str.fullmatch(r"0\d+", na=False).any():
        return cells
    try:
        return pandas.to_numeric(cells)
    except (ValueError, TypeError):
        return cells


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
    names = getattr(features.get(columns.label), "names", None)
    return list(names) if names else None


def _names(table: Any) -> list[str]:
    names = table.column_names if hasattr(table, "column_names") else table.columns
    return [str(name) for name in names]


def _taken(table: Any, columns: Columns, source: str) -> Columns:
    """The columns to read: those that are asked for, else usual ones. A text that usually is the
    first of a pair has its partner, where the table has it and nothing else is asked for."""
    present, text, pair = _names(table), columns.text, columns.text_pair
    if text is None and pair != NO_PAIR:
        firsts = [one for one, other in _PAIRS.items() if one in present and other in present]
        text = next((one for one in firsts if pair in (None, _PAIRS[one])), None)
    text = _column(table, "text", text, source)
    if pair is None and _PAIRS.get(text) in present:
        pair = _PAIRS[text]
    taken = Columns(
        text,
        _column(table, "text-pair", pair, source) if pair not in (None, NO_PAIR) else None,
        _column(table, "label", columns.label, source),
    )
    names = list(taken.by_role.values())
    for name in names:
        if names.count(name) > 1:
            roles = [role for role, other in taken.by_role.items() if other == name]
            raise UserError(f"{source}: column {name!r} is taken as {' and '.join(roles)}")
    return taken


def _column(table: Any, role: str, wanted: str | None, source: str) -> str:
    present = _names(table)
    name = wanted or next((name for name in _USUAL[role] if name in present), None)
    if name is None:
        raise UserError(f"{source}: give --{role}-column, one of {', '.join(present)}")
    if name not in present:
        raise UserError(
            f"{source} has no column {name!r}{did_you_mean(name, present)}; its columns are "
            f"{', '.join(present)}"
        )
    if present.count(name) > 1:
        raise UserError(f"{source} has {present.count(name)} columns {name!r}")
    return name


def _values(table: Any, name: str) -> list[Any]:
    values: Sequence[Any] = table[name]
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _examples(table: Any, columns: Columns, source: str) -> list[Example]:
    """Those that have a text, and a second one where there are pairs."""
    by_column = {name: _values(table, name) for name in columns.by_role.values()}
    texts = {name: cells for name, cells in by_column.items() if name != columns.label}
    labels = by_column[str(columns.label)]
    _refuse_open_quotes(texts[str(columns.text)], source)
    empty: dict[int, str] = {}
    for name, cells in texts.items():
        for row, cell in enumerate(cells):
            if not isinstance(cell, str) or not cell.strip():
                empty.setdefault(row, name)
    if len(empty) > MOST_EMPTY * len(labels):
        row = min(empty)
        raise UserError(
            f"{source}: row {row + 1} has no text in column {empty[row]!r}; so it is with "
            f"{len(empty)} of {len(labels)} rows, up to {100 * MOST_EMPTY:g} % are left out"
        )
    for row, label in enumerate(labels):
        if row in empty:
            continue
        if label == "" or _missing(label):
            raise UserError(f"{source}: row {row + 1} has no label")
        if not isinstance(label, str | int | float):
            raise UserError(
                f"{source}: row {row + 1} has the label {label!r}, allowed is one number or one "
                f"word"
            )
    pairs = texts[columns.text_pair] if columns.text_pair else [None] * len(labels)
    listed = zip(texts[str(columns.text)], pairs, labels, strict=True)
    return [example for row, example in enumerate(listed) if row not in empty]


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
