"""Codes for the word embedding alone, which takes most bytes of a small model and loses least by
few bits (Ganesh et al. 2021, section 3.1).

Beside them ``codes.*`` says of all other matrices what they may be. Scales, where a method has any,
are of a row each: words differ in length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.candidate import Candidate, Integer, OneOf, Setting, Value
from autocompress.interfaces import Family, Knowledge, Lesson, Modifier, Technique
from autocompress.plan import Plan
from autocompress.quantizers import QUANTIZERS
from autocompress.quantizers.codebooks import Codebooks
from autocompress.quantizers.codes import Quantizer
from autocompress.techniques.codes import Coded, CodedAnswers, code, codes_embedding

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CodedEmbedding(Coded):
    """Which values a word embedding takes.

    Args:
        codebooks: slices of a row that have a table each; 0 is a method of ``format``.
    """

    technique: ClassVar[str] = "embedding-codes"
    codebooks: int = 0

    def quantizer(self, bits: int) -> Quantizer:
        return Codebooks(bits, books=self.codebooks) if self.codebooks else super().quantizer(bits)

    def words(self) -> str:
        if self.codebooks:
            return f"embedding of {self.codebooks} codebooks of {2**self.bits}"
        return f"embedding in {self.bits}-bit {self.format} codes"

    def matrices(self, model: nn.Module) -> dict[str, Any]:
        from autocompress.families.stream import word_table

        table = word_table(model)
        return {name: module for name, module in model.named_modules() if module is table}


def _whole(settings: Mapping[str, Value]) -> bool:
    """Whether the embedding has no factors, which codes of its own are not for."""
    return settings.get("embedding.rank", 0) == 0


def _coded(settings: Mapping[str, Value]) -> bool:
    return _whole(settings) and settings["embedding.codebooks"] == 0


class EmbeddingCoding(Technique):
    """Codes the word embedding of a student when all training is done."""

    name = "embedding-codes"
    part = CodedEmbedding
    settings = (
        Setting(
            "embedding.codebooks",
            Integer(0, 1024, "none"),
            0,
            "slices of a word's vector, each one of few; not beside embedding.rank",
            when=_whole,
        ),
        Setting(
            "embedding.entries",
            OneOf(tuple(2**bits for bits in range(2, 9))),
            256,
            "how many a slice may be",
            when=lambda s: _whole(s) and s["embedding.codebooks"] != 0,
        ),
        Setting(
            "embedding.format",
            OneOf(("none", *QUANTIZERS)),
            "none",
            "which values the word embedding may take, in place of codes.format; not beside "
            "embedding.rank",
            when=_coded,
        ),
        Setting(
            "embedding.bits",
            Integer(2, 8),
            4,
            "bits of its codes",
            when=lambda s: _coded(s) and s["embedding.format"] != "none",
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        part = _part(candidate)
        return plan if part is None else plan.with_part(part)

    def fill(
        self, model: nn.Module, before: nn.Module, part: CodedEmbedding, family: Family
    ) -> None:
        if part.at_once:
            code(model, part)

    def modifier(self, lesson: Lesson) -> Modifier | None:
        part = _part(lesson.candidate)
        return None if part is None else CodedAnswers(lesson, part)


def _part(candidate: Candidate) -> CodedEmbedding | None:
    if not codes_embedding(candidate):
        return None
    books = int(candidate.number("embedding.codebooks", 0))
    entries = int(candidate.number("embedding.entries", 256))
    bits = entries.bit_length() - 1 if books else int(candidate.number("embedding.bits", 4))
    return CodedEmbedding(
        candidate.text("embedding.format", "none"),
        bits,
        "row",
        -4.0,
        at_once=candidate.number("recovery.steps", 0) == 0,
        codebooks=books,
    )
