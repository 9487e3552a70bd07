"""Language modeling: packing that loses nothing, windows that score each token once, perplexity
against token by token."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from autocompress import demo
from autocompress.errors import UserError
from autocompress.hardware.agent import log_probabilities, negative_log_likelihood
from autocompress.reading import Reading
from autocompress.tasks.language_modeling import (
    LanguageModeling,
    Score,
    Windows,
    compare,
    load,
    windows,
)
from tests.conftest import END

LENGTHS: dict[str, Any] = {"block_length": 32, "context": 24, "stride": 9, "positions": 64}
Ids = NDArray[np.int64]


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer: Any) -> Any:
    return byte_tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """A GPT-2 of 2 layers whose random predictions are far from uniform."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
    )
    return GPT2LMHeadModel(config).eval()  # type: ignore[no-untyped-call]


def write(path: Path, documents: list[str]) -> str:
    if path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8"
        )
    else:
        path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return str(path)


def train_texts(tokenizer: Any, task: LanguageModeling) -> list[str]:
    """The documents of the training blocks, the last one cut off."""
    text: str = tokenizer.decode(np.concatenate([row[0] for row in task.train.rows]))
    return text.split(END)[:-1]


def scored_texts(tokenizer: Any, text_windows: Windows) -> list[str]:
    """The documents as the scored tokens read, one window after the other."""
    scored = [
        row[0, -count:] for row, count in zip(text_windows.rows, text_windows.scored, strict=True)
    ]
    text: str = tokenizer.decode(np.concatenate(scored))
    assert text.endswith(END)
    return text.split(END)[:-1]


def score(model: Any, text_windows: Windows, batch_size: int = 4) -> Score:
    nll = []
    for start in range(0, len(text_windows.rows), batch_size):
        ids = np.concatenate(text_windows.rows[start : start + batch_size])
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids)).logits.numpy()
        nll.append(
            negative_log_likelihood(logits, ids, text_windows.scored[start : start + batch_size])
        )
    return Score(np.concatenate(nll), text_windows.scored, text_windows.text_bytes)


def token_by_token(model: Any, stream: Ids, context: int, stride: int) -> list[float]:
    """Nats of every token but the first, each from a forward pass of its own over what precedes it,
    in fp64."""
    nll = []
    exact = GPT2LMHeadModel(model.config).double().eval()  # type: ignore[no-untyped-call]
    exact.load_state_dict(model.state_dict())
    for position in range(1, len(stream)):
        moves = max(0, math.ceil((position + 1 - context) / stride))
        start = max(0, min(moves * stride, len(stream) - context))
        with torch.inference_mode():
            logits = exact(torch.from_numpy(stream[None, start:position])).logits[0, -1]
        nll.append(-float(torch.log_softmax(logits, 0)[stream[position]]))
    return nll


def test_blocks_hold_the_documents_one_after_the_other(
    tokenizer: Any, documents: list[str], tmp_path: Path
) -> None:
    task = load(tokenizer, write(tmp_path / "corpus.txt", documents), **LENGTHS)
    assert {row.shape for row in task.train.rows} == {(1, 32)} and {
        row.dtype for row in task.train.rows
    } == {np.dtype(np.int64)}
    packed = train_texts(tokenizer, task)
    missing = (
        set(documents)
        - set(packed)
        - {*scored_texts(tokenizer, task.validation), *scored_texts(tokenizer, task.test)}
    )
    tokens = sum(len(ids) + 1 for ids in tokenizer([*packed, *missing])["input_ids"])
    assert len(task.train.rows) == tokens // 32
    assert len(missing) <= 1


def test_splits_are_apart_complete_and_the_same_each_time(
    tokenizer: Any, documents: list[str], tmp_path: Path
) -> None:
    source = write(tmp_path / "corpus.txt", documents)
    task, again = (load(tokenizer, source, **LENGTHS) for _ in range(2))
    validation, test = scored_texts(tokenizer, task.validation), scored_texts(tokenizer, task.test)
    assert len(validation) == len(test) == 60
    assert not set(validation) & set(test) and not set(train_texts(tokenizer, task)) & {
        *validation,
        *test,
    }
    assert {*validation, *test, *train_texts(tokenizer, task)} <= set(documents)
    assert task.validation.text_bytes == sum(len(text.encode()) for text in validation)
    assert task.test.text_bytes == sum(len(text.encode()) for text in test)
    assert set(task.reading.dropped.values()) == {0}
    for one, other in (
        (task.train, again.train),
        (task.validation, again.validation),
        (task.test, again.test),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(one.rows, other.rows, strict=True))


def test_splits_that_are_given(tokenizer: Any, documents: list[str], tmp_path: Path) -> None:
    """A document that stands in two is dropped from the earlier split, one that is repeated is
    counted once."""
    train = write(
        tmp_path / "train.jsonl",
        [*documents[:100], documents[0], documents[200], documents[101], "", " \n"],
    )
    validation = write(
        tmp_path / "validation.txt", [documents[101], *documents[101:110], documents[200]]
    )
    test = write(tmp_path / "test.txt", documents[200:205])
    task = load(tokenizer, train, validation=validation, test=test, **LENGTHS)
    assert scored_texts(tokenizer, task.validation) == documents[101:110]
    assert scored_texts(tokenizer, task.test) == documents[200:205]
    assert set(train_texts(tokenizer, task)) <= set(documents[:100])
    assert task.reading.dropped == {
        "train empty": 2,
        "validation empty": 0,
        "test empty": 0,
        "train repeated": 1,
        "validation repeated": 1,
        "test repeated": 0,
        "validation also in test": 1,
        "train also in validation or test": 2,
        "validation windows not scored": 0,
        "test windows not scored": 0,
    }


def test_a_dataset_of_the_hub(
    tokenizer: Any, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        "train": documents[:100],
        "validation": documents[100:110],
        "test": documents[110:120],
        "extra": documents[120:125],
    }
    hub = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, configuration: {"made/here": hub}[name]
    )
    task = load(tokenizer, "made/here", test="extra", **LENGTHS)
    assert scored_texts(tokenizer, task.validation) == parts["validation"]
    assert scored_texts(tokenizer, task.test) == parts["extra"]
    assert set(train_texts(tokenizer, task)) <= set(parts["train"])


def test_cleaning_is_of_the_training_documents_only(
    tokenizer: Any, documents: list[str], tmp_path: Path
) -> None:
    lines = [line for text in documents[:100] for line in text.split("\n")]
    train = [*documents[:100], f"<p>markup</p>\n{documents[150]}", "12345", lines[0]]
    train_file, test = write(tmp_path / "train.jsonl", train), [*documents[150:155], "<p>12345</p>"]
    given: dict[str, Any] = {
        "validation": write(tmp_path / "validation.txt", documents[160:165]),
        "test": write(tmp_path / "test.txt", test),
    }
    raw = load(tokenizer, train_file, **given, **LENGTHS)
    task = load(tokenizer, train_file, **given, **LENGTHS, with_cleaned=True)
    assert scored_texts(tokenizer, task.test) == scored_texts(tokenizer, raw.test) == test
    assert any("<p>" in text for text in train_texts(tokenizer, raw))
    assert raw.cleaned is None and task.cleaned is not None
    assert train_texts(tokenizer, task) == train_texts(tokenizer, raw)
    cleaned = replace(task, train=task.cleaned)
    assert {line for text in train_texts(tokenizer, cleaned) for line in text.split("\n")} <= set(
        lines
    )
    assert task.reading.dropped["cleaned train lines with HTML"] == 1
    assert task.reading.dropped["cleaned train repeated lines"] >= 1
    assert task.reading.dropped["cleaned train documents left empty"] == 2
    assert task.reading.dropped["cleaned train then also in validation or test"] == 1
    assert raw.reading.dropped == {name: task.reading.dropped[name] for name in raw.reading.dropped}


def test_where_cleaning_leaves_too_little_there_is_none(
    tokenizer: Any, documents: list[str], tmp_path: Path
) -> None:
    source = write(
        tmp_path / "train.jsonl", ["<p>" + text.replace("\n", " ") for text in documents[:60]]
    )
    task = load(tokenizer, source, **LENGTHS, with_cleaned=True)
    assert task.cleaned is None and len(task.train.rows) > 0
    assert task.reading.dropped["cleaned train documents left empty"] == 36


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"block_length": 65}, "block_length is 65: allowed is 2 to 64, the model's context"),
        ({"block_length": 1}, "block_length is 1: allowed is 2 to 64, the model's context"),
        ({"context": 65}, "context is 65: allowed is 2 to 64, the model's context"),
        ({"stride": 24}, "stride is 24: allowed is 1 to 23, one less than context"),
        ({"stride": 0}, "stride is 0: allowed is 1 to 23, one less than context"),
    ],
)
def test_lengths_that_cannot_be(tokenizer: Any, lengths: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tokenizer, "never read", **LENGTHS | lengths)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_too_little_text(tokenizer: Any, documents: list[str], name: str, tmp_path: Path) -> None:
    parts = {
        "train": documents[:50],
        "validation": documents[50:55],
        "test": documents[55:60],
        name: ["good", "film"],
    }
    files: dict[str, Any] = {
        part: write(tmp_path / f"{part}.txt", texts) for part, texts in parts.items()
    }
    tokens = sum(len(ids) + 1 for ids in tokenizer(["good", "film"])["input_ids"])
    with pytest.raises(UserError) as caught:
        load(tokenizer, files.pop("train"), **files, **LENGTHS)
    least = 32 if name == "train" else 24
    message = f"the {name} split has {tokens} tokens in 2 documents, at least {least} are needed"
    assert str(caught.value) == f"{tmp_path / 'train.txt'}: {message}"


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_just_enough_text(tokenizer: Any, documents: list[str], name: str, tmp_path: Path) -> None:
    parts = {
        "train": documents[:50],
        "validation": documents[50:55],
        "test": documents[55:60],
        name: documents[60:61],
    }
    files: dict[str, Any] = {
        part: write(tmp_path / f"{part}.txt", texts) for part, texts in parts.items()
    }
    tokens = sum(len(ids) + 1 for ids in tokenizer(parts[name])["input_ids"])
    lengths = (
        {"block_length": tokens, "positions": tokens}
        if name == "train"
        else {"context": tokens, "positions": tokens}
    )
    task = load(tokenizer, files.pop("train"), **files, **LENGTHS | lengths)
    assert len(getattr(task, name).rows) == (1 if name == "train" else 2)


def test_one_document_cannot_be_cut_in_three(
    tokenizer: Any, documents: list[str], tmp_path: Path
) -> None:
    source = write(tmp_path / "book.txt", ["\n".join(documents)])
    with pytest.raises(
        UserError,
        match=(
            "no document is left for the validation split of 1; in a txt file blank lines "
            "separate documents"
        ),
    ):
        load(tokenizer, source, **LENGTHS)


def test_the_separator_stands_in_for_the_end_of_text(documents: list[str], tmp_path: Path) -> None:
    """As of GPT-2 models trained with BERT's tokenizer."""
    bert = AutoTokenizer.from_pretrained(demo.model_folder())
    task = load(bert, write(tmp_path / "corpus.txt", documents), **LENGTHS)
    ids = np.concatenate([row[0] for row in task.train.rows])
    assert bert.eos_token_id is None and bert.cls_token_id not in ids
    assert 177 <= np.count_nonzero(ids == bert.sep_token_id) <= 180
    assert task.test.rows[0][0, 0] == task.test.rows[-1][0, -1] == bert.sep_token_id


def test_no_end_of_text_at_all(tokenizer: Any) -> None:
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)  # type: ignore[no-untyped-call]
    message = (
        r"the model's tokenizer has neither an end-of-text token \(eos_token\) nor a "
        r"separator \(sep_token\)"
    )
    with pytest.raises(UserError, match=message):
        load(without, "never read", **LENGTHS)


def test_batches_by_hand() -> None:
    nothing = windows(np.arange(4), 3, 1, 0)
    task = LanguageModeling(None, None, nothing, nothing, Reading({}, {}, {}))  # type: ignore[arg-type]
    inputs = task.batch([np.array([[1, 2, 3]]), np.array([[4, 5, 6]])]).inputs
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "input_ids": [[1, 2, 3], [4, 5, 6]],
        "attention_mask": [[1, 1, 1], [1, 1, 1]],
    }
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int64)}


def test_windows_by_hand() -> None:
    text_windows = windows(np.arange(10), 4, 3, 50)
    assert [row.tolist() for row in text_windows.rows] == [
        [[0, 1, 2, 3]],
        [[3, 4, 5, 6]],
        [[6, 7, 8, 9]],
    ]
    assert text_windows.scored.tolist() == [3, 3, 3] and text_windows.text_bytes == 50
    text_windows = windows(np.arange(9), 5, 3, 0)
    assert [row.tolist() for row in text_windows.rows] == [
        [[0, 1, 2, 3, 4]],
        [[3, 4, 5, 6, 7]],
        [[4, 5, 6, 7, 8]],
    ]
    assert text_windows.scored.tolist() == [4, 3, 1]
    text_windows = windows(np.arange(3), 5, 2, 0)
    assert [row.tolist() for row in text_windows.rows] == [[[0, 1, 2]]]
    assert text_windows.scored.tolist() == [2]


@given(data=st.data(), tokens=st.integers(2, 200), context=st.integers(2, 50))
def test_every_token_but_the_first_is_scored_once(
    data: st.DataObject, tokens: int, context: int
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    text_windows = windows(np.arange(tokens), context, stride, 0)
    assert {row.shape for row in text_windows.rows} == {(1, min(context, tokens))}
    scored: list[int] = []
    for row, count in zip(text_windows.rows, text_windows.scored, strict=True):
        [ids] = row
        assert np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids)))
        first = ids[-count]
        assert first - ids[0] >= min(first, context - stride)
        scored.extend(ids[-count:])
    assert scored == list(range(1, tokens))
    assert len(text_windows.rows) == 1 + max(0, math.ceil((tokens - context) / stride))


def test_log_probabilities_against_fp64() -> None:
    rng = np.random.default_rng(0)
    logits = (20 * rng.standard_normal((50, 300)) - 500).astype(np.float32)
    logits[3], logits[4, 7] = 0, 1e4
    targets = rng.integers(0, 300, 50)
    targets[4] = 7
    expected = torch.log_softmax(torch.from_numpy(logits).double(), 1).numpy()[
        np.arange(50), targets
    ]
    before = logits.copy()
    log_probs = log_probabilities(logits, targets)
    assert log_probs.dtype == np.float64 and np.array_equal(logits, before)
    assert np.allclose(log_probs, expected, rtol=1e-6, atol=1e-5)
    assert log_probs[3] == pytest.approx(-math.log(300)) and log_probs[4] == 0


def test_log_probabilities_take_little_memory() -> None:
    logits = np.random.default_rng(0).standard_normal((128, 50257), np.float32)
    targets = np.arange(128)
    tracemalloc.start()
    try:
        log_probabilities(logits, targets)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < logits.nbytes / 3


@pytest.mark.parametrize(("context", "stride"), [(16, 1), (16, 5), (16, 15), (64, 20), (64, 63)])
def test_perplexity_against_token_by_token(
    tokenizer: Any, model: Any, documents: list[str], context: int, stride: int
) -> None:
    [ids] = tokenizer([END.join(["", *documents[:2], ""])])["input_ids"]
    stream = np.array(ids, np.int64)
    assert 2 * 64 < len(stream) < 400 and stream[0] == stream[-1] == tokenizer.eos_token_id
    window_score = score(model, windows(stream, context, stride, 321))
    expected = token_by_token(model, stream, context, stride)
    assert window_score.nll.sum() == pytest.approx(sum(expected), rel=1e-6)
    assert window_score.nll.tolist() == pytest.approx(
        [sum(some) for some in split_like(expected, window_score.tokens)], rel=1e-5
    )
    assert window_score.perplexity == pytest.approx(
        math.exp(sum(expected) / (len(stream) - 1)), rel=1e-5
    )
    assert window_score.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / 321, rel=1e-6)
    assert 1.2 * len(tokenizer) < window_score.perplexity


def split_like(values: list[float], counts: Ids) -> list[list[float]]:
    rest = iter(values)
    return [list(itertools.islice(rest, int(count))) for count in counts]


def test_text_within_the_context_is_scored_exactly(tokenizer: Any, model: Any) -> None:
    stream = np.array([0, *tokenizer("a film that never quite begins")["input_ids"], 0])
    with torch.inference_mode():
        loss = model(torch.from_numpy(stream[None]), labels=torch.from_numpy(stream[None])).loss
    text_score = score(model, windows(stream, 64, 32, 30))
    assert len(text_score.nll) == 1
    assert text_score.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_a_model_that_knows_nothing_scores_at_chance(
    tokenizer: Any, documents: list[str], tmp_path: Path
) -> None:
    task = load(tokenizer, write(tmp_path / "corpus.txt", documents), **LENGTHS)
    tokens = sum(len(ids) + 1 for ids in tokenizer(scored_texts(tokenizer, task.test))["input_ids"])
    nll = [
        negative_log_likelihood(np.zeros((1, 24, 600), np.float32), row, np.array([count]))
        for row, count in zip(task.test.rows, task.test.scored, strict=True)
    ]
    chance_score = Score(np.concatenate(nll), task.test.scored, task.test.text_bytes)
    assert chance_score.tokens.sum() == tokens
    assert chance_score.perplexity == pytest.approx(600)
    assert chance_score.bits_per_byte == pytest.approx(
        tokens * math.log2(600) / task.test.text_bytes
    )


def test_a_perplexity_beyond_all_bounds() -> None:
    sane, mad = (Score(np.array([nll, nll]), np.array([1, 1]), 2) for nll in (1.0, 1e4))
    assert mad.perplexity == math.inf and compare(sane, mad)[0] == math.inf


def test_compare_by_hand() -> None:
    """Differences of 1 and 0 nats over 2 tokens each: a quarter per token, residuals of a half."""
    baseline = Score(np.array([2.0, 4.0]), np.array([2, 2]), 10)
    other = Score(np.array([3.0, 4.0]), np.array([2, 2]), 10)
    increase, stderr = compare(baseline, other)
    assert increase == pytest.approx(100 * (math.exp(0.25) - 1))
    assert increase == pytest.approx(100 * (other.perplexity / baseline.perplexity - 1))
    assert stderr == pytest.approx(100 * math.exp(0.25) * math.sqrt(2 * (0.25 + 0.25)) / 4)
    assert compare(baseline, baseline) == (0, 0)


def test_a_model_that_is_worse_everywhere_alike_is_so_for_certain() -> None:
    tokens = np.array([23, 9, 9, 9, 4])
    nll = np.random.default_rng(0).uniform(2, 5, 5) * tokens
    increase, stderr = compare(
        Score(nll, tokens, 99), Score(nll + math.log(1.1) * tokens, tokens, 99)
    )
    assert increase == pytest.approx(10) and stderr == pytest.approx(0, abs=1e-9)


def test_the_standard_error_is_that_of_a_bootstrap_over_windows() -> None:
    rng = np.random.default_rng(0)
    tokens = np.array([63, *[32] * 148, 11])
    nll = rng.normal(3.5, 0.8, 150) * tokens
    baseline, other = (
        Score(nll, tokens, 9),
        Score(nll + rng.normal(0.1, 0.2, 150) * tokens, tokens, 9),
    )
    increase, stderr = compare(baseline, other)
    resampled = rng.integers(0, 150, (4000, 150))
    drawn = [
        (Score(baseline.nll[i], tokens[i], 9), Score(other.nll[i], tokens[i], 9)) for i in resampled
    ]
    increases = [100 * (b.perplexity / a.perplexity - 1) for a, b in drawn]
    assert increase == pytest.approx(np.mean(increases), abs=0.1)
    assert stderr == pytest.approx(np.std(increases), rel=0.05)
