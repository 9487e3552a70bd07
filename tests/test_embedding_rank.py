"""A word embedding of low rank: its error, what it leaves alone, and training it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autocompress.engine.making import recovery_of
from autocompress.errors import CandidateFailed
from autocompress.families.stream import word_table
from autocompress.plan import Plan
from autocompress.student import first
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.embedding_rank import NarrowEmbedding
from autocompress.testing.models import BERT, GPT2, HIDDEN, LLAMA, VOCABULARY, Workshop, logits


@pytest.fixture(params=[BERT, LLAMA], ids=["bert", "llama"])
def workshop(request: pytest.FixtureRequest, tmp_path: Path) -> Workshop:
    return Workshop(request.param, tmp_path)


def planned(workshop: Workshop, **chosen: Any) -> tuple[Plan, Any]:
    candidate = SETTINGS.candidate({k.replace("__", "."): v for k, v in chosen.items()})
    return resolve(workshop.plans["uncut"], candidate, workshop.knowledge), candidate


def student(workshop: Workshop, **chosen: Any) -> nn.Module:
    plan, _ = planned(workshop, **chosen)
    return first(workshop.model, workshop.family, plan, "copied").eval()


def test_its_error_is_what_the_singular_values_say(workshop: Workshop) -> None:
    whole = word_table(workshop.model).weight.detach()
    model: Any = student(workshop, embedding__rank=8)
    rows = model.get_input_embeddings()(torch.arange(VOCABULARY)).detach()
    dropped = torch.linalg.svdvals(whole.double())[8:]
    error = float((rows - whole).double().pow(2).sum())
    assert error == pytest.approx(float(dropped.pow(2).sum()), rel=1e-4)
    assert word_table(model).weight.shape == (VOCABULARY, 8)
    assert workshop.family.hidden_size(model) == HIDDEN


def test_a_table_of_that_rank_keeps_its_answers(workshop: Workshop) -> None:
    table = word_table(workshop.model)
    with torch.no_grad():
        table.weight.copy_(table.weight[:, :8] @ table.weight[:8])
    narrow = logits(student(workshop, embedding__rank=8))
    torch.testing.assert_close(narrow, logits(workshop.model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "rank"),
    [
        ({"embedding__rank": 19}, 19),
        ({"embedding__rank": 20}, None),
        ({"embedding__rank": 12, "hidden__keep": 0.5, "hidden__importance": "magnitude"}, 12),
        ({"embedding__rank": 13, "hidden__keep": 0.5, "hidden__importance": "magnitude"}, None),
    ],
)
def test_factors_that_would_be_no_smaller_are_merged_back(
    workshop: Workshop, chosen: dict[str, Any], rank: int | None
) -> None:
    """A table of 50 words and 32 columns pays below rank 19.5, of 16 columns below 12.1."""
    part = planned(workshop, **chosen)[0].part("embedding-rank")
    assert part == (None if rank is None else NarrowEmbedding(rank))


def test_a_head_that_shares_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CandidateFailed, match=r"^embedding\.rank: the head of this model shares"):
        planned(Workshop(GPT2, tmp_path), embedding__rank=8)


@pytest.mark.parametrize("objective", ["logits", "adversarial-logits"])
def test_it_learns(workshop: Workshop, objective: str) -> None:
    """But not what pads."""
    settings = {"recovery__steps": 4, "recovery__objectives": [objective]}
    plan, candidate = planned(workshop, embedding__rank=8, **settings)
    model: Any = first(workshop.model, workshop.family, plan, "copied")
    table, widened = (p.detach().clone() for p in model.get_input_embeddings().parameters())
    recovery = recovery_of(model, plan.structure, candidate, workshop.teacher, (3, 5))
    recovery.advance(4)
    after = list(model.get_input_embeddings().parameters())
    assert not torch.equal(after[1], widened)
    changed = (after[0] != table).any(1)
    assert changed.any() and not changed[1]
