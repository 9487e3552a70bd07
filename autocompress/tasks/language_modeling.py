"""Language modeling: documents in packed blocks to train on, scored by the perplexity of overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import UserError
from autocompress.interfaces import Batch, Row
from autocompress.tasks.cleaning import clean
from autocompress.tasks.data import Documents, load_documents

METRIC = "perplexity"
_DOCUMENTS_AT_ONCE = 1000
"""Tokenized at a time: the tokenizer's own record of a token takes some hundred bytes."""
_TOKENS_AT_ONCE = 16
"""Rows of the vocabulary, about 3 MB for GPT-2's, that the log-softmax works on at a time: they stay in the cache."""


@dataclass(frozen=True)
class Blocks:
    """Text to train on: rows of shape (1, block length), documents one after the other, each with its end-of-text token."""

    rows: list[Row]


@dataclass(frozen=True)
class Windows:
    """Text to score: overlapping stretches of it, of which each scores its last tokens, so that none is scored twice.

    The text begins with an end-of-text token, which gives its first document the context that the others have, and ends with
    one; only the first is not scored.

    Args:
        rows: of shape (1, length), all of one length.
        scored: int64 of shape (windows,), how many tokens at the end of each row are scored.
        text_bytes: of the documents in UTF-8, the end-of-text tokens apart.
    """

    rows: list[Row]
    scored: NDArray[np.int64]
    text_bytes: int


@dataclass(frozen=True)
class LanguageModeling:
    """Three splits that share no document.

    Args:
        dropped: documents dropped from the splits and lines dropped by cleaning, by reason.
    """

    train: Blocks
    validation: Windows
    test: Windows
    dropped: dict[str, int]

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows of one length; there is nothing to pad."""
        ids = np.concatenate(list(rows))
        return Batch({"input_ids": ids, "attention_mask": np.ones_like(ids)})

    def batches(self, rows: Sequence[Row], size: int) -> list[Batch]:
        """All rows in order, ``size`` at a time."""
        return [self.batch(rows[i : i + size]) for i in range(0, len(rows), size)]


def load(
    tokenizer: Any,
    source: str,
    text_column: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    *,
    block_length: int,
    context: int,
    stride: int,
    positions: int,
    cleaned: bool = False,
) -> LanguageModeling:
    """Read, split, tokenize and pack.

    Args:
        tokenizer: of transformers.
        source, text_column, validation, test: see ``load_documents``.
        block_length: tokens of a training block; the last block is dropped where it is not full.
        context: tokens of a scored window.
        stride: scored tokens of a window; each has at least ``context - stride`` tokens before it.
        positions: tokens that the model takes at most.
        cleaned: the training documents go through ``clean``; what is scored stays as it is.

    Raises:
        UserError: see ``load_documents``; lengths that do not fit the model or one another; no end-of-text token; a split
            that does not fill one block or window.
    """
    for name, found, least, most, reason in (
        ("block_length", block_length, 2, positions, "the model's context"),
        ("context", context, 2, positions, "the model's context"),
        ("stride", stride, 1, context - 1, "one less than context"),
    ):
        if not least <= found <= most:
            raise UserError(f"{name} is {found}: allowed is {least} to {most}, {reason}")
    end = _end_of_text(tokenizer)
    documents = load_documents(source, text_column, validation, test)
    train, report = _cleaned(documents) if cleaned else (documents.train, {})
    packed = _stream(tokenizer, train, end, block_length, f"{source}: the train split")
    blocks = packed[: len(packed) // block_length * block_length].reshape(-1, 1, block_length)

    def to_score(texts: list[str], name: str) -> Windows:
        stream = _stream(tokenizer, texts, end, context, f"{source}: the {name} split")
        return windows(np.concatenate([[end], stream]), context, stride, sum(len(text.encode()) for text in texts))

    validation_windows, test_windows = to_score(documents.validation, "validation"), to_score(documents.test, "test")
    return LanguageModeling(Blocks(list(blocks)), validation_windows, test_windows, documents.dropped | report)


def _cleaned(documents: Documents) -> tuple[list[str], dict[str, int]]:
    """The training documents; what cleaning leaves of one may be another that is held out."""
    train, report = clean(documents.train)
    held_out = {*documents.validation, *documents.test}
    apart = [text for text in train if text not in held_out]
    report["then also in validation or test"] = len(train) - len(apart)
    return apart, {f"train {reason}": count for reason, count in report.items()}


def _end_of_text(tokenizer: Any) -> int:
    """The end-of-text token; the separator where there is none, as of models trained with BERT's tokenizer."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise UserError("the model's tokenizer has neither an end-of-text token (eos_token) nor a separator (sep_token)")


def _stream(tokenizer: Any, texts: Sequence[str], end: int, least: int, where: str) -> NDArray[np.int64]:
    parts = [np.zeros(0, np.int64)]
    for start in range(0, len(texts), _DOCUMENTS_AT_ONCE):
        some = list(texts[start : start + _DOCUMENTS_AT_ONCE])
        encoded = tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        parts.extend(np.array([*ids, end], np.int64) for ids in encoded)
    stream = np.concatenate(parts)
    if len(stream) < least:
        raise UserError(f"{where} has {len(stream)} tokens in {len(texts)} documents, at least {least} are needed")
    return stream


def windows(stream: NDArray[np.int64], context: int, stride: int, text_bytes: int) -> Windows:
    """Every token of the stream but the first is scored once, given at least ``context - stride`` tokens before it or all.

    Args:
        stream: of shape (tokens,), two at least.
        context: tokens of a window; of the only one fewer, where the stream is shorter.
        stride: tokens from one window to the next; the last window ends where the stream ends. 1 to ``context - 1``.
    """
    length = min(context, len(stream))
    last = len(stream) - length
    starts = np.array([*range(0, last, stride), last])
    scored = np.diff(starts + length, prepend=1)
    return Windows([stream[None, start : start + length] for start in starts], scored, text_bytes)


def log_probabilities(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the targets, in nats, shape (tokens,).

    Args:
        logits: (tokens, vocabulary), of any runtime.
        targets: (tokens,).
    """
    found = np.empty(len(targets))
    for start in range(0, len(targets), _TOKENS_AT_ONCE):
        here = slice(start, start + _TOKENS_AT_ONCE)
        shifted = logits[here] - logits[here].max(axis=1, keepdims=True)
        chosen = np.take_along_axis(shifted, targets[here, None], axis=1)[:, 0]
        found[here] = chosen - np.log(np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64))
    return found


def negative_log_likelihood(logits: NDArray[np.float32], ids: NDArray[np.int64], scored: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the scored tokens of each window, in nats, shape (batch,).

    Args:
        logits: (batch, length, vocabulary).
        ids: (batch, length), the ``input_ids`` that gave the logits.
        scored: (batch,), as in ``Windows``.
    """
    each = zip(logits, ids, scored, strict=True)
    return np.array([-log_probabilities(of[-count - 1 : -1], row[-count:]).sum() for of, row, count in each])


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
        with np.errstate(over="ignore"):
            return float(np.exp(self.nll.sum() / self.tokens.sum()))

    @property
    def bits_per_byte(self) -> float:
        """To say the text and where its documents end; comparable between tokenizers that lose nothing of the text."""
        return float(self.nll.sum()) / math.log(2) / self.text_bytes


def compare(baseline: Score, other: Score) -> tuple[float, float]:
    """Increase in perplexity against the baseline and its paired standard error, both in percent of the baseline's.

    The error is by the delta method: the increase is ``exp(d) - 1``, where d, the difference in nats per token, is a ratio of
    two sums over windows; windows count as independent (Cochran, Sampling Techniques, 1977, section 2.11).

    Args:
        baseline: of the same windows, two at least.
    """
    tokens = baseline.tokens
    differences = other.nll - baseline.nll
    per_token = differences.sum() / tokens.sum()
    residuals = differences - per_token * tokens
    stderr = math.sqrt(len(tokens) / (len(tokens) - 1) * float(np.square(residuals).sum())) / float(tokens.sum())
    with np.errstate(over="ignore"):
        ratio = float(np.exp(per_token))
    return 100 * (ratio - 1), 100 * ratio * stderr
