"""Language modeling: documents in packed blocks to train on, scored by the perplexity of
overlapping windows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import CandidateFailed, UserError
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
from autocompress.metrics import METRICS, Metric
from autocompress.reading import Reading
from autocompress.tasks.cleaning import clean
from autocompress.tasks.data import TEXT_COLUMN, Documents, Encode, Text, load_documents, once

if TYPE_CHECKING:
    import torch

LENGTH = 256
"""Tokens of a block and of a window where none are asked for, or as many as the model takes. They
are alike, because positions that recovery does not train are scored otherwise."""
SCORED_TOKENS, RUNG_TOKENS = 2**15, 2**12
"""About so many of a held-out split: for the score of an artifact, and for that of a candidate
while it trains."""
STEP_TOKENS = 1024
"""Of a training step: each costs a row of the vocabulary in the student, in the teacher and in
their losses."""
_LOGITS_AT_ONCE = 2**26
"""Numbers that a model answers one question with at most, but for a single window: 256 MB."""
OPTIONS = (
    TEXT_COLUMN,
    Option(
        "block-length",
        "N",
        f"tokens of a block of training text; default: {LENGTH}, or as many as the model takes",
        int,
    ),
    Option("context", "N", "tokens of a window of scored text; default: likewise", int),
    Option("stride", "N", "tokens that each window scores; default: half of --context", int),
)


@dataclass(frozen=True)
class Blocks:
    """Text to train on: rows of shape (1, block length), documents one after the other, each with
    its end-of-text token."""

    rows: list[Row]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(blocks, block length): the token that follows each; -100 after the last, whose next one
        is in another block."""
        ids = np.concatenate(self.rows)
        return np.concatenate([ids[:, 1:], np.full((len(ids), 1), -100)], axis=1)


@dataclass(frozen=True)
class Windows:
    """Text to score: overlapping stretches of it, of which each scores its last tokens, so that
    none is scored twice.

    The text begins with an end-of-text token, which gives its first document the context that the
    others have, and ends with one; only the first is not scored.

    Args:
        rows: of shape (1, length), all of one length.
        scored: int64 of shape (windows,), how many tokens at the end of each row are scored.
        text_bytes: of the documents in UTF-8, the end-of-text tokens apart.
    """

    rows: list[Row]
    scored: NDArray[np.int64]
    text_bytes: int

    def take(self, indices: Sequence[int]) -> Windows:
        """These windows; of the bytes the share that their tokens have."""
        scored = self.scored[list(indices)]
        share = scored.sum() / self.scored.sum()
        return Windows([self.rows[i] for i in indices], scored, round(share * self.text_bytes))

    def spread(self, tokens: int) -> list[int]:
        """Windows that score about so many tokens, two at least, spread evenly; all where they
        score no more."""
        count = len(self.rows) * tokens // int(self.scored.sum())
        places = np.linspace(0, len(self.rows) - 1, min(len(self.rows), max(2, count)))
        return [int(place) for place in places]


@dataclass(frozen=True)
class LanguageModeling:
    """A ``Task``: three splits that share no document, the held-out ones ``Windows``. Evidence, of
    shape (windows, 1), is the negative log-likelihood of a window in nats.

    Args:
        cleaned: ``train`` without the lines that ``clean`` drops.
        reading: what was read; dropped are documents, of cleaned text lines, and windows that are
            not scored.
        tokens_at_once: of a question.
    """

    train: Blocks
    cleaned: Blocks | None
    validation: Windows
    test: Windows
    reading: Reading
    tokens_at_once: int = STEP_TOKENS
    metric: ClassVar[Metric] = METRICS["perplexity"]
    head: ClassVar[Head] = Head.CAUSAL_LM
    labels: ClassVar[tuple[str, ...]] = ()
    pad_id: ClassVar[None] = None
    unlabeled: ClassVar[tuple[Row, ...]] = ()

    @property
    def batch_size(self) -> int:
        return _rows_of(STEP_TOKENS, self.train.rows[0])

    @property
    def rung_examples(self) -> Sequence[int]:
        return self.validation.spread(RUNG_TOKENS)

    def learned(self, most: int) -> Windows:
        rows = self.train.rows[:: math.ceil(len(self.train.rows) / most)]
        return Windows(rows, np.array([row.shape[1] - 1 for row in rows]), 1)

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows of one length; there is nothing to pad."""
        ids = np.concatenate(list(rows))
        return Batch({"input_ids": ids, "attention_mask": np.ones_like(ids)})

    @staticmethod
    def loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Cross-entropy of logits (batch, length, vocabulary) over the tokens (batch, length) that
        have a next one; also of all tokens one below the other."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction)

    def questions(self, part: HeldOut, size: int) -> list[Question]:
        """At most ``tokens_at_once`` at a time, or one window."""
        size = min(size, _rows_of(self.tokens_at_once, part.rows[0]))
        scored = cast(Windows, part).scored
        return [
            self.batch(part.rows[i : i + size]).inputs | {"scored": scored[i : i + size]}
            for i in range(0, len(part.rows), size)
        ]

    def evidence(self, answers: NDArray[np.floating[Any]], part: HeldOut) -> Evidence:
        return answers[:, None].astype(float)

    def commonest(self, part: HeldOut) -> None:
        """There are no classes."""

    def constant(self, evidence: Evidence) -> bool:
        """Never: what is answered is not kept."""
        return False

    def score(self, evidence: Evidence, part: HeldOut) -> tuple[float, float]:
        """Perplexity."""
        score = _score(evidence, part)
        return _finite(score.perplexity, score.stderr)

    def bits_per_byte(self, evidence: Evidence, part: HeldOut) -> float:
        """See ``Score``."""
        return _score(evidence, part).bits_per_byte

    def drop(self, baseline: Evidence, other: Evidence, part: HeldOut) -> tuple[float, float]:
        """See ``compare``."""
        return _finite(*compare(_score(baseline, part), _score(other, part)))

    def pack(self, evidence: Evidence) -> str:
        """As hex of the 64-bit floats."""
        return evidence.astype("<f8").tobytes().hex()

    def unpack(self, text: str, count: int) -> Evidence:
        return np.frombuffer(bytes.fromhex(text), "<f8", count)[:, None].astype(float)


def _score(evidence: Evidence, part: HeldOut) -> Score:
    text = cast(Windows, part)
    return Score(evidence[:, 0], text.scored, text.text_bytes)


def _rows_of(tokens: int, row: Row) -> int:
    """Rows of that length that hold so many tokens at most, one at least."""
    return max(1, tokens // int(row.shape[1]))


def _finite(value: float, stderr: float) -> tuple[float, float]:
    if not math.isfinite(value) or not math.isfinite(stderr):
        raise CandidateFailed("its perplexity is beyond all bounds")
    return value, stderr


def load(
    tokenizer: Any,
    source: str,
    text_column: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    *,
    positions: int,
    block_length: int | None = None,
    context: int | None = None,
    stride: int | None = None,
    with_cleaned: bool = False,
) -> LanguageModeling:
    """Read, split, tokenize and pack.

    Args:
        tokenizer: of transformers.
        source, text_column, validation, test: see ``load_documents``.
        positions: tokens that the model takes at most.
        block_length: tokens of a training block; the last block is dropped where it is not full. By
            default ``LENGTH``.
        context: tokens of a scored window; by default ``LENGTH``.
        stride: scored tokens of a window, each of which has at least ``context - stride`` tokens
            before it; by default half of ``context``.
        with_cleaned: the training documents also go through ``clean``, which may leave no block;
            what is scored stays as it is.

    Raises:
        UserError: see ``load_documents``; lengths that do not fit the model or one another; no
            end-of-text token; a split that does not fill one block or window.
    """
    block_length = min(LENGTH, positions) if block_length is None else block_length
    context = min(LENGTH, positions) if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    for name, tokens, least, most, reason in (
        ("block_length", block_length, 2, positions, "the model's context"),
        ("context", context, 2, positions, "the model's context"),
        ("stride", stride, 1, context - 1, "one less than context"),
    ):
        if not least <= tokens <= most:
            raise UserError(f"{name} is {tokens}: allowed is {least} to {most}, {reason}")
    end = _end_of_text(tokenizer)

    def encode(texts: Sequence[Text]) -> list[NDArray[np.int32]]:
        listed = [text for text, _ in texts]
        encoded = tokenizer(
            listed, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]]

    ids_of = once(encode)
    documents = load_documents(source, text_column, validation, test, ids_of)
    report: dict[str, int] = {}

    def to_learn(texts: list[str], name: str) -> Blocks:
        packed = _stream(ids_of, texts, end, block_length, f"{source}: the {name} split")
        return Blocks(
            list(packed[: len(packed) // block_length * block_length].reshape(-1, 1, block_length))
        )

    def to_score(texts: list[str], name: str) -> Windows:
        stream = _stream(ids_of, texts, end, context, f"{source}: the {name} split")
        all_windows = windows(
            np.concatenate([[end], stream]),
            context,
            stride,
            sum(len(text.encode()) for text in texts),
        )
        scored = all_windows.spread(SCORED_TOKENS)
        report[f"{name} windows not scored"] = len(all_windows.rows) - len(scored)
        return all_windows.take(scored)

    train, cleaned = to_learn(documents.train, "train"), None
    if with_cleaned:
        left, lines_dropped = _cleaned(documents)
        report |= lines_dropped
        with contextlib.suppress(UserError):  # cleaning left too little
            cleaned = to_learn(left, "cleaned train")
    validation_windows, test_windows = (
        to_score(documents.validation, "validation"),
        to_score(documents.test, "test"),
    )
    parts = {"train": documents.train, "validation": documents.validation, "test": documents.test}
    lengths = [len(ids) for texts in parts.values() for ids in _encoded(ids_of, texts)]
    rows = {"train": train.rows, "validation": validation_windows.rows, "test": test_windows.rows}
    reading = Reading(
        documents.columns.by_role,
        {**{name: len(listed) for name, listed in rows.items()}, "unlabeled": 0},
        documents.dropped | report,
        documents.cut,
        median_tokens=float(np.median(lengths)),
        longest_tokens=max(lengths),
        text=(
            f"trained on blocks of {block_length} tokens, scored in windows of "
            f"{validation_windows.rows[0].shape[1]}; tokens scored: "
            f"{validation_windows.scored.sum()} of validation, {test_windows.scored.sum()} of "
            f"test; documents: {', '.join(f'{len(texts)} of {n}' for n, texts in parts.items())}"
        ),
    )
    at_once = min(STEP_TOKENS, _LOGITS_AT_ONCE // len(tokenizer))
    return LanguageModeling(train, cleaned, validation_windows, test_windows, reading, at_once)


def _cleaned(documents: Documents) -> tuple[list[str], dict[str, int]]:
    """The training documents; what cleaning leaves of one may be another that is held out."""
    train, report = clean(documents.train)
    held_out = {*documents.validation, *documents.test}
    apart = [text for text in train if text not in held_out]
    report["then also in validation or test"] = len(train) - len(apart)
    return apart, {f"cleaned train {reason}": count for reason, count in report.items()}


def _end_of_text(tokenizer: Any) -> int:
    """The end-of-text token; the separator where there is none, as of models trained with BERT's
    tokenizer."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        "the model's tokenizer has neither an end-of-text token (eos_token) nor a separator "
        "(sep_token)"
    )


def _encoded(ids_of: Encode, texts: Sequence[str]) -> Sequence[NDArray[np.integer[Any]]]:
    return ids_of([(text, None) for text in texts])


def _stream(
    ids_of: Encode, texts: Sequence[str], end: int, least: int, where: str
) -> NDArray[np.int64]:
    parts = [np.append(ids, end).astype(np.int64) for ids in _encoded(ids_of, texts)]
    stream = np.concatenate([np.zeros(0, np.int64), *parts])
    if len(stream) < least:
        raise UserError(
            f"{where} has {len(stream)} tokens in {len(texts)} documents, at least {least} are "
            f"needed"
        )
    return stream


def windows(stream: NDArray[np.int64], context: int, stride: int, text_bytes: int) -> Windows:
    """Every token of the stream but the first is scored once, given at least ``context - stride``
    tokens before it or all.

    Args:
        stream: of shape (tokens,), two at least.
        context: tokens of a window; of the only one fewer, where the stream is shorter.
        stride: tokens from one window to the next; the last window ends where the stream ends. 1 to
            ``context - 1``.
    """
    length = min(context, len(stream))
    last = len(stream) - length
    starts = np.array([*range(0, last, stride), last])
    scored = np.diff(starts + length, prepend=1)
    return Windows([stream[None, start : start + length] for start in starts], scored, text_bytes)


@dataclass(frozen=True)
class Score:
    """What one model makes of one text.

    Args:
        nll: float64 of shape (windows,), nats, see ``negative_log_likelihood``.
        tokens: int64 of shape (windows,), that each window scores.
        text_bytes: of the whole text.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """Per token; infinite where it is too large for a float."""
        return _exp(self.nll.sum() / self.tokens.sum())

    @property
    def stderr(self) -> float:
        """Standard error of the perplexity, as that of ``compare``."""
        return self.perplexity * _ratio(self.nll, self.tokens)[1]

    @property
    def bits_per_byte(self) -> float:
        """To say the text and where its documents end; comparable between tokenizers that lose
        nothing of the text."""
        return float(self.nll.sum()) / math.log(2) / self.text_bytes


def compare(baseline: Score, other: Score) -> tuple[float, float]:
    """Increase in perplexity against the baseline and its paired standard error, both in percent of
    the baseline's.

    The error is by the delta method: the increase is ``exp(d) - 1``, where d, the difference in
    nats per token, is a ratio of two sums over windows; windows count as independent (Cochran,
    Sampling Techniques, 1977, section 2.11).

    Args:
        baseline: of the same windows, two at least.
    """
    per_token, stderr = _ratio(other.nll - baseline.nll, baseline.tokens)
    ratio = _exp(per_token)
    return 100 * (ratio - 1), 100 * ratio * stderr


def _ratio(nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> tuple[float, float]:
    """Nats per token over all windows, and the standard error of that."""
    per_token = nats.sum() / tokens.sum()
    with np.errstate(invalid="ignore"):
        residuals = nats - per_token * tokens
    return float(per_token), math.sqrt(
        len(tokens) / (len(tokens) - 1) * float(np.square(residuals).sum())
    ) / float(tokens.sum())


def _exp(nats: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nats))


def from_inputs(given: TaskInputs) -> LanguageModeling:
    """``load``, with cleaned text where candidates may learn from it.

    Raises:
        UserError: as ``load``; the model is no decoder.
    """
    if not given.causal:
        raise UserError(
            f"--model {given.model} is of type {given.config.model_type}, language modeling needs "
            f"a decoder such as gpt2"
        )
    return load(
        given.tokenizer,
        given.data,
        given.options.get("text-column"),
        given.validation,
        given.test,
        positions=given.positions,
        block_length=given.options.get("block-length"),
        context=given.options.get("context"),
        stride=given.options.get("stride"),
        with_cleaned=given.cleaned,
    )


KIND = TaskKind(
    "language-modeling", LanguageModeling.metric, LanguageModeling.head, OPTIONS, from_inputs
)
