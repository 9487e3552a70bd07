"""A smaller vocabulary: which words keep their row, and what texts of them give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.engine.making import recovery_of
from autocompress.errors import CandidateFailed
from autocompress.families.stream import word_table
from autocompress.plan import Plan
from autocompress.student import first
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.vocabulary import Vocabulary
from autocompress.testing.models import (
    BERT,
    GPT2,
    HIDDEN,
    LLAMA,
    VOCABULARY,
    Workshop,
    logits,
    padded,
)
from tests.exporting import export_model

PADDING = 1


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Of 50 words."""
    return Workshop(BERT, tmp_path_factory.mktemp("teacher"))


def planned(workshop: Workshop, **chosen: Any) -> tuple[Plan, Any]:
    candidate = SETTINGS.candidate({k.replace("__", "."): v for k, v in chosen.items()})
    return resolve(workshop.plans["uncut"], candidate, workshop.knowledge), candidate


def student(workshop: Workshop, **chosen: Any) -> Any:
    plan, _ = planned(workshop, **chosen)
    return first(workshop.model, workshop.family, plan, "copied").eval()


def test_the_most_frequent_words_and_the_one_that_pads_keep_their_rows(workshop: Workshop) -> None:
    part = planned(workshop, vocabulary__keep=0.2)[0].part("vocabulary")
    assert isinstance(part, Vocabulary) and (part.count, part.of) == (10, VOCABULARY)
    kept = part.ids().tolist()
    counts = workshop.knowledge.word_counts
    assert counts is not None and PADDING in kept and counts()[PADDING] == 0
    others = [int(counts()[word]) for word in range(VOCABULARY) if word not in kept]
    assert min(int(counts()[word]) for word in kept if word != PADDING) >= max(others)
    model, whole = student(workshop, vocabulary__keep=0.2), word_table(workshop.model).weight
    assert torch.equal(word_table(model).weight, whole[kept])
    assert word_table(model).padding_idx == kept.index(PADDING)


def test_a_text_of_kept_words_gives_bit_equal_answers(workshop: Workshop) -> None:
    part: Any = planned(workshop, vocabulary__keep=0.3)[0].part("vocabulary")
    ids = part.ids()[part.ids() >= 5]
    batch = padded([np.resize(ids, (1, 12)), ids[None, :3]])
    model = student(workshop, vocabulary__keep=0.3)
    assert torch.equal(logits(model, batch), logits(workshop.model, batch))


def test_another_word_reads_the_row_that_is_most_like_its_own(workshop: Workshop) -> None:
    part: Any = planned(workshop, vocabulary__keep=0.3)[0].part("vocabulary")
    whole = word_table(workshop.model).weight.detach()
    rows = student(workshop, vocabulary__keep=0.3).get_input_embeddings()
    cosines = torch.cosine_similarity(whole[:, None], whole[None, part.ids()], dim=2)
    nearest = whole[part.ids()][cosines.argmax(1)]
    assert torch.equal(rows(torch.arange(VOCABULARY)).detach(), nearest)


def test_it_ships_and_goes_with_a_low_rank_and_training(workshop: Workshop, tmp_path: Path) -> None:
    settings = {"vocabulary__keep": 0.5, "embedding__rank": 6, "quantization__trained": True}
    plan, candidate = planned(workshop, **settings, recovery__steps=2)
    model: Any = first(workshop.model, workshop.family, plan, "copied")
    lookup, rows, widened = model.get_input_embeddings()
    assert rows.weight.shape == (25, 6) and widened.weight.shape == (HIDDEN, 6)
    before = rows.weight.detach().clone()
    recovery = recovery_of(model, plan.structure, candidate, workshop.teacher, (3, 5))
    recovery.advance(2)
    [learned] = recovery.finish()
    assert not torch.equal(rows.weight, before) and lookup.row.dtype == torch.int32
    (tmp_path / "tokenizer").mkdir()
    batch = padded([np.arange(5, 45)[None], np.arange(5, 20)[None]])
    for scheme in ("fp32", "int8-dynamic", "int8-static"):
        own = SETTINGS.candidate({**candidate.as_dict(), "quantization.scheme": scheme})
        target = tmp_path / scheme
        export_model(model, plan.with_part(learned), own, target, [batch], tmp_path / "tokenizer")


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_language_model_is_refused(config: Any, tmp_path: Path) -> None:
    with pytest.raises(CandidateFailed, match=r"^vocabulary\.keep is for classification$"):
        planned(Workshop(config, tmp_path), vocabulary__keep=0.5)


def test_an_objective_that_draws_words_is_refused(workshop: Workshop) -> None:
    drawing = {"recovery__steps": 1, "recovery__objectives": ["adversarial-logits"]}
    with pytest.raises(CandidateFailed, match=r"^vocabulary\.keep: adversarial-logits draws"):
        planned(workshop, vocabulary__keep=0.5, **drawing)
