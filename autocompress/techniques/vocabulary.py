"""A smaller vocabulary: words that the training text hardly has lose their row of the embedding.

The vocabulary reduction of Ganesh et al. 2021, section 3.6, after Zhao et al. 2019, "Extreme
Language Model Compression with Optimal Subwords and Shared Projections". They cut text anew into
the words that are left; here it is cut as before, and a word without a row of its own reads the row
that was most like its own. That is ours, and leaves the tokenizer, all lengths and the teacher's
answers as they are. Beside the rows a table says which row each word has, 4 bytes a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, Real, Setting
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Family, Knowledge, Technique
from autocompress.plan import Part, Plan

if TYPE_CHECKING:
    from torch import Tensor, nn

_AT_ONCE = 1024
"""Words that are compared with all rows at a time."""


@dataclass(frozen=True)
class Vocabulary(Part):
    """Words with a row of their own.

    Args:
        kept: for each word a bit, as hex.
        count: of those kept.
        of: so many.
    """

    technique: ClassVar[str] = "vocabulary"
    kept: str
    count: int
    of: int

    @classmethod
    def of_ids(cls, ids: NDArray[np.intp], of: int) -> Vocabulary:
        bits = np.zeros(of, bool)
        bits[ids] = True
        return cls(np.packbits(bits).tobytes().hex(), int(bits.sum()), of)

    def words(self) -> str:
        return f"{self.count} of {self.of} words"

    def ids(self) -> NDArray[np.intp]:
        """Of the words kept, ascending."""
        packed = np.frombuffer(bytes.fromhex(self.kept), np.uint8)
        return np.flatnonzero(np.unpackbits(packed, count=self.of))


class SmallerVocabulary(Technique):
    """Keeps the rows of the ``vocabulary.keep`` most frequent words, and of the one that pads."""

    name = "vocabulary"
    part = Vocabulary
    settings = (
        Setting(
            "vocabulary.keep",
            Real(0.001, 1),
            1.0,
            "share of the words with an embedding of their own, in classification",
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        share = candidate.number("vocabulary.keep", 1)
        if share == 1:
            return plan
        if knowledge.measured is None or knowledge.word_counts is None:
            raise CandidateFailed("vocabulary.keep needs the model and its training text")
        words, padding, classifies = knowledge.measured(words_of)
        if not classifies:
            raise CandidateFailed("vocabulary.keep is for classification")
        if "adversarial-logits" in str(candidate.get("recovery.objectives", ())):
            raise CandidateFailed(
                "vocabulary.keep: adversarial-logits draws from the whole vocabulary"
            )
        counts = np.zeros(words)
        seen = knowledge.word_counts()
        counts[: len(seen)] = seen
        if padding is not None:
            counts[padding] = np.inf
        most = np.argsort(-counts, kind="stable")[: max(1, round(share * words))]
        return plan.with_part(Vocabulary.of_ids(most, words)) if len(most) < words else plan

    def build(self, model: nn.Module, part: Vocabulary, family: Family) -> None:
        from torch import nn

        from autocompress.techniques.lookup import Lookup

        whole: Any = model
        table = whole.get_input_embeddings()
        padding = table.padding_idx
        if padding is not None:
            padding = int(np.searchsorted(part.ids(), padding))
        rows = nn.Embedding(part.count, table.weight.shape[1], padding_idx=padding)
        whole.set_input_embeddings(nn.Sequential(Lookup(part.of), rows))

    def fill(self, model: nn.Module, before: nn.Module, part: Vocabulary, family: Family) -> None:
        import torch

        built: Any = model
        whole: Any = before
        lookup, rows = built.get_input_embeddings()
        table = whole.get_input_embeddings().weight.detach()
        kept = torch.from_numpy(part.ids())
        with torch.no_grad():
            rows.weight.copy_(table[kept])
            lookup.row.copy_(nearest(table, table[kept]))
            lookup.row[kept] = torch.arange(part.count, dtype=torch.int32)


def nearest(vectors: Tensor, others: Tensor) -> Tensor:
    """For each vector which of the others has the largest cosine with it."""
    import torch
    from torch.nn.functional import normalize

    directions = normalize(others).T
    parts = torch.split(vectors, _AT_ONCE)
    alike = [(normalize(some) @ directions).argmax(1) for some in parts]
    return torch.cat(alike)


def words_of(model: nn.Module, family: Family) -> tuple[int, int | None, bool]:
    """Words of an uncut model, the one that pads, and whether it answers with classes."""
    whole: Any = model
    table = whole.get_input_embeddings()
    return table.num_embeddings, table.padding_idx, whole.get_output_embeddings() is None
