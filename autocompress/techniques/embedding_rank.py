"""A word embedding of low rank: a narrow table, and a matrix from there to the hidden size.

The factorized embedding of Lan et al. 2020, "ALBERT: A Lite BERT for Self-supervised Learning of
Language Representations", section 3.1; here of a trained model, started from the singular value
decomposition of its table. It takes bytes and no latency to speak of: a text reads as many rows as
it has tokens, and a product of few columns widens them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.candidate import Candidate, Integer, Setting
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Family, Knowledge, Technique
from autocompress.plan import Part, Plan
from autocompress.techniques.hidden_size import Hidden
from autocompress.techniques.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NarrowEmbedding(Part):
    """Of a word embedding.

    Args:
        rank: columns of its table.
    """

    technique: ClassVar[str] = "embedding-rank"
    rank: int

    def words(self) -> str:
        return f"embedding of rank {self.rank}"


class EmbeddingRank(Technique):
    """Factors the word embedding, but where the factors would be no smaller."""

    name = "embedding-rank"
    part = NarrowEmbedding
    settings = (
        Setting(
            "embedding.rank",
            Integer(0, 100_000, "whole"),
            0,
            "rank of the word embedding, in models whose head does not share it",
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        rank = int(candidate.number("embedding.rank", 0))
        if rank == 0:
            return plan
        if knowledge.measured is None:
            raise CandidateFailed("embedding.rank needs the weights of the model")
        words, width, shared = knowledge.measured(table_size)
        if shared:
            raise CandidateFailed("embedding.rank: the head of this model shares its embedding")
        fewer = plan.part(Vocabulary.technique)
        if isinstance(fewer, Vocabulary):
            words = fewer.count
        narrowed = plan.part(Hidden.technique)
        if isinstance(narrowed, Hidden):
            width = len(narrowed.kept)
        smaller = rank * (words + width) < words * width
        return plan.with_part(NarrowEmbedding(rank)) if smaller else plan

    def build(self, model: nn.Module, part: NarrowEmbedding, family: Family) -> None:
        from torch import nn

        whole: Any = model
        *leading, table = _chain(whole.get_input_embeddings())
        words, width = table.weight.shape
        rows = nn.Embedding(words, part.rank, padding_idx=table.padding_idx)
        widened = nn.Linear(part.rank, width, bias=False)
        whole.set_input_embeddings(nn.Sequential(*leading, rows, widened))

    def fill(
        self, model: nn.Module, before: nn.Module, part: NarrowEmbedding, family: Family
    ) -> None:
        import torch

        built: Any = model
        whole: Any = before
        *_, rows, widened = built.get_input_embeddings()
        *_, table = _chain(whole.get_input_embeddings())
        left, sizes, right = torch.linalg.svd(table.weight.detach().double(), full_matrices=False)
        root = sizes[: part.rank].sqrt()
        with torch.no_grad():
            rows.weight.copy_(left[:, : part.rank] * root)
            widened.weight.copy_((root[:, None] * right[: part.rank]).T)


def _chain(embeddings: Any) -> list[Any]:
    """The table, and before it what a smaller vocabulary has left."""
    from torch import nn

    return list(embeddings) if isinstance(embeddings, nn.Sequential) else [embeddings]


def table_size(model: nn.Module, family: Family) -> tuple[int, int, bool]:
    """Words and columns of the embedding of an uncut model, and whether its head shares it."""
    whole: Any = model
    table, head = whole.get_input_embeddings().weight, whole.get_output_embeddings()
    return (*table.shape, head is not None and head.weight is table)
