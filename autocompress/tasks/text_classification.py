"""Text classification: one sentence or a pair of sentences, one label, scored by accuracy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

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
from autocompress.pareto import METRICS, Metric
from autocompress.tasks.data import TEXT_COLUMN, Columns, Example, load_examples, read_lines

if TYPE_CHECKING:
    import torch

OPTIONS = (
    TEXT_COLUMN,
    Option("text-pair-column", "C", "column of the second text of a pair"),
    Option("label-column", "C", "column of the labels; a usual name is found"),
    Option("unlabeled", "FILE", "text for the teacher to label, a line each", is_file=True),
)


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
    (examples, 1), is 1 for a correct answer, else 0.

    Args:
        labels: names, by id.
        input_names: of the parts of a ``Row``.
        dropped: examples dropped to keep the splits apart, by reason.
    """

    labels: tuple[str, ...]
    input_names: tuple[str, ...]
    pad_id: int
    train: Split
    validation: Split
    test: Split
    unlabeled: list[Row]
    dropped: dict[str, int]
    metric: ClassVar[Metric] = METRICS["accuracy"]
    head: ClassVar[Head] = Head.SEQUENCE_CLASSIFICATION
    batch_size: ClassVar[int] = 32
    cleaned: ClassVar[None] = None

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"labels": self.labels}

    @property
    def rung_examples(self) -> Sequence[int]:
        """All, shortest first."""
        return sorted(
            range(len(self.validation.rows)), key=lambda i: self.validation.rows[i].shape[1]
        )

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
        return correct(answers, cast(Split, part).labels)[:, None].astype(float)

    def score(self, evidence: Evidence, part: HeldOut) -> tuple[float, float]:
        """Share of correct answers."""
        return _mean(evidence[:, 0])

    def bits_per_byte(self, evidence: Evidence, part: HeldOut) -> None:
        """Nothing is said."""

    def drop(self, baseline: Evidence, other: Evidence, part: HeldOut) -> tuple[float, float]:
        """In points of a hundred."""
        lost, stderr = _mean((baseline - other)[:, 0])
        return 100 * lost, 100 * stderr

    def pack(self, evidence: Evidence) -> str:
        """As hex of the packed bits."""
        return np.packbits(evidence > 0).tobytes().hex()

    def unpack(self, text: str, count: int) -> Evidence:
        packed = np.frombuffer(bytes.fromhex(text), np.uint8)
        return np.unpackbits(packed, count=count)[:, None].astype(float)


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """With its standard error."""
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5


def correct(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which examples are answered correctly.

    Args:
        logits: (examples, labels).
        labels: (examples,).
    """
    answers: NDArray[np.bool_] = logits.argmax(1) == labels
    return answers


def load(
    tokenizer: Any,
    source: str,
    columns: Columns,
    max_length: int,
    label_ids: dict[str, int] | None,
    validation: str | None = None,
    test: str | None = None,
    unlabeled: str | None = None,
) -> TextClassification:
    """Read, split and tokenize.

    Args:
        tokenizer: of transformers.
        max_length: tokens; longer texts are cut.
        label_ids: the model's label names to ids; None takes the labels from the data.

    Raises:
        UserError: see ``load_examples``; one class only; a label that the model does not have.
    """
    examples = load_examples(source, columns, validation, test)
    if label_ids is None:
        labels = {
            _plain(label)
            for part in (examples.train, examples.validation, examples.test)
            for _, _, label in part
        }
        ordered_labels = examples.label_names or sorted(
            map(str, labels), key=lambda name: (_number(name), name)
        )
        label_ids = {name: i for i, name in enumerate(ordered_labels)}
    to_id = _label_reader(label_ids, examples.label_names)
    splits = {}
    input_names = tuple(
        name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names
    )

    def encode(texts: Sequence[str], pairs: Sequence[str | None]) -> list[Row]:
        encoded = tokenizer(
            list(texts),
            list(pairs) if pairs and pairs[0] is not None else None,
            truncation=True,
            max_length=max_length,
        )
        return [
            np.stack([np.asarray(encoded[name][i], np.int64) for name in input_names])
            for i in range(len(texts))
        ]

    def split(part: list[Example], name: str) -> Split:
        ids = np.array([to_id(label, f"{source} ({name})") for _, _, label in part], np.int64)
        return Split(encode([text for text, _, _ in part], [pair for _, pair, _ in part]), ids)

    for name, part in (
        ("train", examples.train),
        ("validation", examples.validation),
        ("test", examples.test),
    ):
        splits[name] = split(part, name)
        if len(set(splits[name].labels.tolist())) < 2:
            raise UserError(
                f"{source}: the {name} split has one class only, at least two are needed"
            )
    dropped = dict(examples.dropped)
    lines = read_lines(unlabeled) if unlabeled else []
    known = {
        text for part in (examples.train, examples.validation, examples.test) for text, _, _ in part
    }
    fresh = [line for line in lines if line not in known]
    if lines:
        dropped["unlabeled also in a split"] = len(lines) - len(fresh)
    ordered = tuple(sorted(label_ids, key=lambda name: label_ids[name]))
    return TextClassification(
        ordered,
        input_names,
        int(tokenizer.pad_token_id or 0),
        splits["train"],
        splits["validation"],
        splits["test"],
        encode(fresh, []) if fresh else [],
        dropped,
    )


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
        UserError: as ``load``; a decoder whose tokenizer has no token to pad with.
    """
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
        None if given.fresh else {name: i for i, name in given.config.id2label.items()},
        given.validation,
        given.test,
        given.options.get("unlabeled"),
    )


KIND = TaskKind(
    "text-classification", TextClassification.metric, TextClassification.head, OPTIONS, from_inputs
)
