"""Codes: matrices of few values, which files hold as indices into a table (Ganesh et al. 2021,
section 3.1). Post-training: weights are brought to these values when all training is done.

The numbers that a runtime computes in are another choice, see ``formats``; the methods are those of
``quantizers``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.candidate import Candidate, Integer, OneOf, Real, Setting, Value
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Family, Knowledge, Lesson, Modifier, Technique
from autocompress.plan import Part, Plan
from autocompress.quantizers import QUANTIZERS
from autocompress.quantizers.codes import GROUPS, Codes, Matrix, Quantizer

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Coded(Part):
    """Which values the matrices take; the embeddings' as well.

    Args:
        format, bits, group, outliers: see ``codes.*``.
        at_once: whether nothing is trained, and the first weights are coded.
        embedding: whether the word embedding is one of them; else it has codes of its own.
    """

    technique: ClassVar[str] = "codes"
    format: str
    bits: int
    group: str | int
    outliers: float
    at_once: bool
    embedding: bool = True

    @property
    def quantizer(self) -> Quantizer:
        return QUANTIZERS[self.format](self.bits, self.group, self.outliers)

    def words(self) -> str:
        grouped = "" if self.group == "tensor" else f" by {self.group}"
        return f"{self.bits}-bit {self.format} codes{grouped}"

    def matrices(self, model: nn.Module) -> dict[str, Any]:
        """The modules whose weights are coded, by path."""
        found = matrices(model)
        if self.embedding:
            return found
        from autocompress.families.stream import word_table

        table = word_table(model).weight
        return {name: module for name, module in found.items() if module.weight is not table}

    def codes(self, model: nn.Module) -> list[Codes]:
        return [self.quantizer.found(array_of(module)) for module in self.matrices(model).values()]

    def check(self, name: str, module: Any) -> None:
        """Raises:
        CandidateFailed: groups that do not divide the weight of a module.
        """
        try:
            self.quantizer.groups(array_of(module))
        except ValueError as error:
            raise CandidateFailed(f"{self.words()}, {name}: {error}") from error

    def coded(self, name: str, module: Any) -> Tensor:
        """The weight of a module in few values; raises as ``check``."""
        import torch

        self.check(name, module)
        values = self.quantizer.codes(array_of(module)).decode()
        with torch.inference_mode(False):  # whose tensors could not be a parameter's
            coded = torch.from_numpy(values.T if hasattr(module, "nf") else values)
            return coded.contiguous().to(module.weight)


def _reads(what: str) -> Callable[[Mapping[str, Value]], bool]:
    """Whether the chosen format does."""
    return lambda s: bool(getattr(QUANTIZERS.get(str(s["codes.format"])), what, False))


class Coding(Technique):
    """Codes all matrices of a student, its embeddings too, when all training is done."""

    name = "codes"
    part = Coded
    settings = (
        Setting(
            "codes.format",
            OneOf(("none", *QUANTIZERS)),
            "none",
            "which values weights may take, and are stored as: a smaller file, no faster",
        ),
        Setting(
            "codes.bits",
            Integer(2, 8),
            4,
            "bits of a code",
            when=lambda s: s["codes.format"] != "none",
        ),
        Setting(
            "codes.group",
            OneOf(GROUPS),
            "tensor",
            "weights that share a scale: all, those of an output, or so many neighbours",
            when=_reads("grouped"),
        ),
        Setting(
            "codes.outliers",
            Real(-50, 10),
            -4.0,
            "log-density under a Gaussian below which a weight stays as it is",
            when=_reads("splits"),
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        part = _part(candidate)
        return plan if part is None else plan.with_part(part)

    def fill(self, model: nn.Module, before: nn.Module, part: Coded, family: Family) -> None:
        if part.at_once:
            code(model, part)

    def modifier(self, lesson: Lesson) -> Modifier | None:
        part = _part(lesson.candidate)
        return None if part is None else CodedAnswers(lesson, part)


class CodedAnswers(Modifier):
    """In training weights are what they are; what is scored comes from coded ones, as it will in
    the end."""

    def __init__(self, lesson: Lesson, part: Coded) -> None:
        self.lesson, self.part = lesson, part
        self.weights: dict[int, Tensor] = {}
        """By parameter, what its numbers are exchanged for."""
        self.handles: list[Any] = []
        names = {}
        for name, module in part.matrices(lesson.student).items():
            part.check(name, module)
            names[id(module.weight)] = name
        for module in lesson.student.modules():
            key = id(getattr(module, "weight", None))
            if key in names:
                exchange = partial(self._exchange, names[key])
                self.handles += [
                    module.register_forward_pre_hook(exchange),
                    module.register_forward_hook(exchange, always_call=True),
                ]

    def _exchange(self, name: str, module: Any, *_: Any) -> None:
        """Before its product, and back after it."""
        if self.lesson.training:
            return
        weight = module.weight
        if id(weight) not in self.weights:
            self.weights[id(weight)] = self.part.coded(name, module)
        weight.data, self.weights[id(weight)] = self.weights[id(weight)], weight.data

    def after_step(self) -> None:
        self.weights.clear()

    def remove(self) -> Part | None:
        for handle in self.handles:
            handle.remove()
        code(self.lesson.student, self.part)
        return None

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.weights.clear()


def _part(candidate: Candidate) -> Coded | None:
    name = candidate.text("codes.format", "none")
    if name == "none":
        return None
    group = candidate.get("codes.group", "tensor")
    assert isinstance(group, str | int)
    return Coded(
        name,
        int(candidate.number("codes.bits", 4)),
        group,
        candidate.number("codes.outliers", -4),
        at_once=candidate.number("recovery.steps", 0) == 0,
        embedding=not codes_embedding(candidate),
    )


def codes_embedding(candidate: Candidate) -> bool:
    """Whether the word embedding has codes of its own, see ``embedding_codes``."""
    own = candidate.text("embedding.format", "none") != "none"
    return own or candidate.number("embedding.codebooks", 0) > 0


def code(model: nn.Module, part: Coded) -> None:
    """Bring the weights of a model to the values of the part, in place; raises as ``check``."""
    import torch

    with torch.no_grad():
        for name, module in part.matrices(model).items():
            module.weight.copy_(part.coded(name, module))


def matrices(model: nn.Module) -> dict[str, Any]:
    """Embeddings, linear layers and transformers' Conv1D by path; of those that share a weight the
    first."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    first: dict[int, tuple[str, Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.Linear | Conv1D):
            first.setdefault(id(module.weight), (name, module))
    return dict(first.values())


def array_of(module: Any) -> Matrix:
    """Its weight as (outputs, inputs), of an embedding as it is."""
    weight = module.weight.detach().float().cpu()
    array: Matrix = (weight.T if hasattr(module, "nf") else weight).contiguous().numpy()
    return array
