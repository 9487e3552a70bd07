"""Text classification: one sentence or a pair of sentences, one label, scored by accuracy or
another metric of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from autocompress import metrics
from autocompress.errors import UserError
from autocompress.interfaces import (
    Batch,
    Evidence,
    Head,
    HeldOut,
    Option,
    Question,
    Row,
    TaskInputs,
    TaskKind,
)
from autocompress.metrics import METRICS, OF_CLASSES, Metric
from autocompress.reading import SPLITS, Reading
from autocompress.tasks.data import (
    NO_PAIR,
    TEXT_COLUMN,
    Columns,
    Examples,
    Text,
    load_examples,
    once,
    read_lines,
)

if TYPE_CHECKING:
    import torch

OPTIONS = (
    TEXT_COLUMN,
    Option(
        "text-pair-column",
        "C",
        f"column of the second text of a pair, or {NO_PAIR}; default: a usual name",
    ),
    Option("label-column", "C", "column of the labels; default: a usual name"),
    Option(
        "metric",
        "|".join(OF_CLASSES),
        "what models are scored by; f1 is of the second class; default: accuracy",
        choices=OF_CLASSES,
    ),
    Option(
        "unlabeled",
        "FILE",
        "text for the teacher to label, a line each; default: none",
        is_file=True,
    ),
)


RUNG_EXAMPLES = 1500
"""Of the validation split, on which candidates are compared while they train."""


@dataclass(frozen=True)
class Split:
    """Tokenized examples and their labels, int64 of shape (examples,)."""

    rows: list[Row]
    labels: NDArray[np.int64]

    def take(self, indices: Sequence[int]) -> Split:
        return Split([self.rows[i] for i in indices], self.labels[list(indices)])


@dataclass(frozen=True)
class TextClassification:
    """A ``Task``: three splits that share no text, and unlabelled rows. Evidence, of shape
    (examples, 1), is the id of the class that was answered.

    Args:
        labels: names, by id.
        input_names: of the parts of a ``Row``.
        reading: what was read.
    """

    labels: tuple[str, ...]
    input_names: tuple[str, ...]
    pad_id: int
    train: Split
    validation: Split
    test: Split
    unlabeled: list[Row]
    reading: Reading
    metric: Metric = METRICS["accuracy"]
    head: ClassVar[Head] = Head.SEQUENCE_CLASSIFICATION
    batch_size: ClassVar[int] = 32
    cleaned: ClassVar[None] = None

    @property
    def rung_examples(self) -> Sequence[int]:
        """``RUNG_EXAMPLES`` at most, spread evenly over all lengths, shortest first."""
        lengths = [row.shape[1] for row in self.validation.rows]
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        places = np.linspace(0, len(lengths) - 1, min(len(lengths), RUNG_EXAMPLES))
        return [by_length[int(place)] for place in places]

    def learned(self, most: int) -> Split:
        return self.train.take(range(0, len(self.train.rows), -(-len(self.train.rows) // most)))

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows padded to the longest of them."""
        length = max(row.shape[1] for row in rows)
        inputs = {
            name: np.zeros((len(rows), length), np.int64)
            for name in (*self.input_names, "attention_mask")
        }
        inputs["input_ids"][:] = self.pad_id
        for i, row in enumerate(rows):
            for name, values in zip(self.input_names, row, strict=True):
                inputs[name][i, : row.shape[1]] = values
            inputs["attention_mask"][i, : row.shape[1]] = 1
        return Batch(inputs)

    @staticmethod
    def loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Cross-entropy of logits (batch, labels) over the rows that have a label (batch,)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels, reduction=reduction)

    def questions(self, part: HeldOut, size: int) -> list[Question]:
        return [self.batch(part.rows[i : i + size]).inputs for i in range(0, len(part.rows), size)]

    def evidence(self, answers: NDArray[np.floating[Any]], part: HeldOut) -> Evidence:
        answered: Evidence = answers.argmax(1)[:, None].astype(float)
        return answered

    def commonest(self, part: HeldOut) -> Evidence:
        labels = cast(Split, part).labels
        return np.full((len(labels), 1), np.bincount(labels).argmax(), float)

    def constant(self, evidence: Evidence) -> bool:
        return bool((evidence == evidence[0]).all())

    def score(self, evidence: Evidence, part: HeldOut) -> tuple[float, float]:
        """See ``metrics``."""
        labels = cast(Split, part).labels
        return metrics.score(self.metric, len(self.labels), labels, _ids(evidence))

    def bits_per_byte(self, evidence: Evidence, part: HeldOut) -> None:
        """Nothing is said."""

    def drop(self, baseline: Evidence, other: Evidence, part: HeldOut) -> tuple[float, float]:
        """In points of a hundred."""
        labels, count = cast(Split, part).labels, len(self.labels)
        return metrics.drop(self.metric, count, labels, _ids(baseline), _ids(other))

    def pack(self, evidence: Evidence) -> str:
        """As hex of the bits that an id takes."""
        return np.packbits(_ids(evidence)[:, None] >> self._places & 1).tobytes().hex()

    def unpack(self, text: str, count: int) -> Evidence:
        packed, places = np.frombuffer(bytes.fromhex(text), np.uint8), self._places
        bits = np.unpackbits(packed, count=count * len(places)).reshape(count, len(places))
        ids: Evidence = (bits << places).sum(1, keepdims=True).astype(float)
        return ids

    @property
    def _places(self) -> NDArray[np.int64]:
        """Of the bits of an id."""
        return np.arange((len(self.labels) - 1).bit_length())


def _ids(evidence: Evidence) -> NDArray[np.int64]:
    return evidence[:, 0].astype(np.int64)


def load(
    tokenizer: Any,
    source: str,
    columns: Columns,
    max_length: int,
    label_ids: dict[str, int] | None,
    validation: str | None = None,
    test: str | None = None,
    unlabeled: str | None = None,
    metric: Metric = METRICS["accuracy"],
) -> TextClassification:
    """Read, split and tokenize.

    Args:
        tokenizer: of transformers.
        max_length: tokens; longer texts are cut.
        label_ids: the model's label names to ids; None takes the labels from the data.

    Raises:
        UserError: see ``load_examples``; one class only; a label that the model does not have; more
            than two classes for a metric of two.
    """
    input_names = tuple(
        name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names
    )

    def encode(texts: Sequence[Text]) -> list[Row]:
        pairs = [pair for _, pair in texts if pair is not None]
        encoded = tokenizer(
            [text for text, _ in texts], pairs or None, truncation=True, max_length=max_length
        )
        return [
            np.stack([np.asarray(encoded[name][i], np.int64) for name in input_names])
            for i in range(len(texts))
        ]

    rows_of = once(encode)
    examples = load_examples(source, columns, validation, test, rows_of)
    if label_ids is None:
        label_ids = _classes(examples, source)
    if metric is METRICS["f1"] and len(label_ids) != 2:
        raise UserError(
            f"--metric f1 is of the second of two classes, here are {len(label_ids)}: macro-f1 is "
            f"of all"
        )
    to_id = _label_reader(label_ids, examples.label_names)
    names = tuple(sorted(label_ids, key=lambda name: label_ids[name]))
    parts = [examples.train, examples.validation, examples.test]
    splits, classes = {}, {}
    for name, part in zip(SPLITS, parts, strict=True):
        ids = np.array([to_id(label, f"{source} ({name})") for _, _, label in part], np.int64)
        splits[name] = Split(rows_of([example[:2] for example in part]), ids)
        counts = np.bincount(ids, minlength=len(names)).tolist()
        classes[name] = dict(zip(names, counts, strict=True))
        if np.count_nonzero(counts) < 2:
            raise UserError(
                f"{source}: the {name} split has one class only, at least two are needed"
            )
    dropped, fresh = dict(examples.dropped), []
    if unlabeled:
        lines: list[Text] = [(line, None) for line in read_lines(unlabeled)]
        texts: list[Text] = [(text, None) for part in parts for text, _, _ in part]
        known = {row.tobytes() for row in rows_of(texts)}
        fresh = [row for row in rows_of(lines) if row.tobytes() not in known]
        dropped["unlabeled also in a split"] = len(lines) - len(fresh)
    lengths = [row.shape[1] for split in splits.values() for row in split.rows]
    reading = Reading(
        examples.columns.by_role,
        {**{name: len(split.rows) for name, split in splits.items()}, "unlabeled": len(fresh)},
        dropped,
        examples.cut,
        classes,
        float(np.median(lengths)),
        max(lengths),
    )
    return TextClassification(
        names,
        input_names,
        int(tokenizer.pad_token_id or 0),
        splits["train"],
        splits["validation"],
        splits["test"],
        fresh,
        reading,
        metric,
    )


def _classes(examples: Examples, source: str) -> dict[str, int]:
    """Ids of the labels that the data has, in order.

    Raises:
        UserError: they are no classes.
    """
    listed = [
        _plain(label)
        for part in (examples.train, examples.validation, examples.test)
        for _, _, label in part
    ]
    names, column = examples.label_names, examples.columns.label
    if names is None:
        labels = set(listed)
        numbers = [label for label in listed if isinstance(label, float)]
        if numbers:
            raise UserError(
                f"{source}: column {column!r} has numbers such as {numbers[0]!r}, allowed are "
                f"classes"
            )
        if len(labels) > len(listed) / 2:
            raise UserError(
                f"{source}: column {column!r} has {len(labels)} different labels in {len(listed)} "
                f"rows, as identifiers or texts are; allowed are classes"
            )
        names = sorted(map(str, labels), key=lambda name: (_number(name), name))
    return {name: i for i, name in enumerate(names)}


def _plain(label: Any) -> Any:
    """1.0, as tables with gaps have it, is 1."""
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return 0.0


def _label_reader(label_ids: dict[str, int], names: list[str] | None) -> Any:
    ids = set(label_ids.values())
    folded = {name.casefold(): i for name, i in label_ids.items()}
    nameless = names is None or all(re.fullmatch(r"LABEL_\d+", name) for name in label_ids)

    def to_id(label: Any, where: str) -> int:
        label = _plain(label)
        known = names is not None and isinstance(label, int) and 0 <= label < len(names)
        name = names[label] if known and names is not None else str(label)
        if name.casefold() in folded:
            return folded[name.casefold()]
        if nameless and isinstance(label, int) and label in ids:
            return label
        raise UserError(
            f"{where}: label {name if known else label!r} is not among the model's labels "
            f"{', '.join(label_ids)}"
        )

    return to_id


def from_inputs(given: TaskInputs) -> TextClassification:
    """``load``, with the labels of the model, or with those of the data where its head is new.

    Raises:
        UserError: as ``load``; a head that gives no single label; a decoder whose tokenizer has no
            token to pad with.
    """
    head, labels = given.config.problem_type, given.config.id2label
    if not given.fresh and (head not in (None, "single_label_classification") or len(labels) < 2):
        what = f"problem_type {head}" if head else f"{len(labels)} label"
        raise UserError(
            f"--model {given.model} has a head of {what}, wanted is one for single labels; "
            f"--finetune trains one"
        )
    if given.causal and given.tokenizer.pad_token_id is None:
        raise UserError(
            f"--model {given.model}: the tokenizer has neither a padding token nor an end-of-text "
            f"token; a decoder that classifies needs one to find the end of a text"
        )
    columns = (given.options.get(f"{role}-column") for role in ("text", "text-pair", "label"))
    return load(
        given.tokenizer,
        given.data,
        Columns(*columns),
        min(given.tokenizer.model_max_length, given.positions),
        None if given.fresh else {name: i for i, name in labels.items()},
        given.validation,
        given.test,
        given.options.get("unlabeled"),
        METRICS[given.options.get("metric", TextClassification.metric.name)],
    )


KIND = TaskKind(
    "text-classification", TextClassification.metric, TextClassification.head, OPTIONS, from_inputs
)
