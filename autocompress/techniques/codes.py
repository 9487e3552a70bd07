"""Codes: matrices of few values, which files hold as indices into a table (Ganesh et al. 2021,
section 3.1). Weights are brought to these values when all training is done, or also in every step
of it, when gradients go to the weights as if they were not.

In training tables and scales are fitted anew every ``FITTED`` steps, and weights take the nearest
values of them: Fan et al. 2021, "Training with Quantization Noise for Extreme Model Compression",
section 4.2, who fit codewords once an epoch, and bring a share of the blocks of each matrix to them
in each step.

Matrices may get different bits: the more, the more the loss feels it when they take few values,
see ``knowledge.sensitivity`` and ``quantizers.allocation``.

The numbers that a runtime computes in are another choice, see ``formats``; the methods are those of
``quantizers``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.candidate import Candidate, Integer, OneOf, Real, Setting, Value
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Family, Knowledge, Labelled, Lesson, Loss, Modifier, Technique
from autocompress.plan import Part, Plan
from autocompress.quantizers import QUANTIZERS
from autocompress.quantizers.allocation import allocated
from autocompress.quantizers.codes import GROUPS, Codes, Matrix, Quantizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from autocompress.training.compute import Compute

_AT_ONCE = 2**14
"""Blocks that are compared with a table at a time."""
FITTED = 50
"""Steps of training between two fits of tables and scales; ours."""
_TRIED_BITS = 3
"""Of the matrix that alone is coded when the loss is asked what it feels; ours."""


@dataclass(frozen=True)
class Coded(Part):
    """Which values the matrices take; the embeddings' as well.

    Args:
        format, group, outliers: see ``codes.*``.
        bits: of a code; where there are sensitivities the mean over all weights, at most.
        at_once: whether nothing is trained, and the first weights are coded.
        embedding: whether the word embedding is one of them; else it has codes of its own.
        sensitivities: (matrix, what the loss feels of one of its weights); the paths are those of a
            student whose modules are no others than its teacher's.
    """

    technique: ClassVar[str] = "codes"
    format: str
    bits: float
    group: str | int
    outliers: float
    at_once: bool
    embedding: bool = True
    sensitivities: tuple[tuple[str, float], ...] = ()

    def words(self) -> str:
        grouped = "" if self.group == "tensor" else f" by {self.group}"
        mean = " on average" if self.sensitivities else ""
        return f"{self.bits:g}-bit {self.format} codes{grouped}{mean}"

    def matrices(self, model: nn.Module) -> dict[str, Any]:
        """The modules whose weights are coded, by path."""
        found = matrices(model)
        if self.embedding:
            return found
        from autocompress.families.stream import word_table

        table = word_table(model).weight
        return {name: module for name, module in found.items() if module.weight is not table}

    def codes(self, model: nn.Module) -> list[Codes]:
        known = self.matrices(model)
        return [
            quantizer.found(array_of(known[name]))
            for name, quantizer in self.quantizers(model).items()
        ]

    def quantizer(self, bits: int) -> Quantizer:
        """Of codes of so many bits."""
        return QUANTIZERS[self.format](bits, self.group, self.outliers)

    def quantizers(self, model: nn.Module) -> dict[str, Quantizer]:
        """Of the matrices of a model by path.

        Raises:
            CandidateFailed: groups that do not divide the weight of a module.
        """
        known = self.matrices(model)
        made = {
            name: self.quantizer(bits) for name, bits in zip(known, self._bits(known), strict=True)
        }
        for name, quantizer in made.items():
            try:
                quantizer.groups(array_of(known[name]))
            except ValueError as error:
                raise CandidateFailed(f"{self.words()}, {name}: {error}") from error
        return made

    def _bits(self, known: Mapping[str, Any]) -> Sequence[int]:
        if not self.sensitivities:
            return [int(self.bits)] * len(known)
        felt = dict(self.sensitivities)
        sizes = [module.weight.numel() for module in known.values()]
        block = QUANTIZERS[self.format].block
        return allocated([_felt(felt, name) for name in known], sizes, self.bits, block)


def _felt(felt: Mapping[str, float], name: str) -> float:
    """Of a matrix, or of the one that it is a factor or a part of; of any other one as of the most
    sensitive."""
    while name and name not in felt:
        name = name.rpartition(".")[0]
    return felt[name] if name else max(felt.values())


def coded(quantizer: Quantizer, module: Any) -> Tensor:
    """The weight of a module in few values."""
    import torch

    values = quantizer.codes(array_of(module)).decode()
    with torch.inference_mode(False):  # whose tensors could not be a parameter's
        weight = torch.from_numpy(values.T if _is_turned(module) else values)
        return weight.contiguous().to(module.weight)


def _reads(what: str) -> Callable[[Mapping[str, Value]], bool]:
    """Whether the chosen format does."""
    return lambda s: bool(getattr(QUANTIZERS.get(str(s["codes.format"])), what, False))


def _codes(settings: Mapping[str, Value]) -> bool:
    return settings["codes.format"] != "none"


def _trains(settings: Mapping[str, Value]) -> bool:
    return _codes(settings) and settings["recovery.steps"] != 0


class Coding(Technique):
    """Codes all matrices of a student, its embeddings too."""

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
            when=lambda s: _codes(s) and s["codes.allocation"] == "uniform",
        ),
        Setting(
            "codes.allocation",
            OneOf(("uniform", "sensitivity", "hessian")),
            "uniform",
            "2, 3, 4 or 8 bits for a matrix, by the loss when it alone is coded or by curvature",
            when=_codes,
        ),
        Setting(
            "codes.mean_bits",
            Real(2, 8),
            4.0,
            "bits of a code on average over all weights, at most",
            when=lambda s: _codes(s) and s["codes.allocation"] != "uniform",
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
        Setting(
            "codes.trained",
            OneOf((False, True)),
            False,
            "recover with coded weights, so that the others learn to make up for them",
            when=_trains,
        ),
        Setting(
            "codes.noise",
            Real(0, 1),
            1.0,
            "share of the codes that weights take in a training step; the others stay as they are",
            when=lambda s: _trains(s) and s["codes.trained"] is True,
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        name = candidate.text("codes.format", "none")
        if name == "none":
            return plan
        group, outliers = (
            candidate.get("codes.group", "tensor"),
            candidate.number("codes.outliers", -4),
        )
        assert isinstance(group, str | int)
        at_once = candidate.number("recovery.steps", 0) == 0
        embedding = not codes_embedding(candidate)
        allocation = candidate.text("codes.allocation")
        if allocation == "uniform":
            same = int(candidate.number("codes.bits"))
            return plan.with_part(Coded(name, same, group, outliers, at_once, embedding))
        if knowledge.measured is None or knowledge.felt is None:
            raise CandidateFailed("codes.allocation needs the model and its training text")
        blocks = knowledge.measured(block_paths)
        way = Sensitivities() if allocation == "hessian" else Sensitivities(name, group, outliers)
        felt = _moved(knowledge.felt(way), blocks, [kept.source for kept in plan.structure.layers])
        mean = candidate.number("codes.mean_bits")
        felt_of = tuple(felt.items())
        return plan.with_part(Coded(name, mean, group, outliers, at_once, embedding, felt_of))

    def fill(self, model: nn.Module, before: nn.Module, part: Coded, family: Family) -> None:
        if part.at_once:
            code(model, part)

    def modifier(self, lesson: Lesson) -> Modifier | None:
        part = next((part for part in lesson.parts if type(part) is Coded), None)
        if part is None:
            return None
        trained = lesson.candidate.get("codes.trained", False)
        return (CodedTraining if trained else CodedAnswers)(lesson, part)


@dataclass(frozen=True)
class Sensitivities:
    """What the loss of the uncut model feels of each matrix; see ``Knowledge.felt``.

    Args:
        format, group, outliers: that one matrix at a time is coded with; by curvature where there
            is no format.
    """

    format: str = ""
    group: str | int = "tensor"
    outliers: float = -4.0

    def __call__(
        self, model: nn.Module, batches: Sequence[Labelled], loss: Loss, compute: Compute
    ) -> dict[str, float]:
        from autocompress.knowledge import sensitivity

        known = matrices(model)
        weights = {f"{name}.weight": module for name, module in known.items()}
        if self.format:
            quantizer = QUANTIZERS[self.format](_TRIED_BITS, self.group, self.outliers)
            ways = {name: partial(coded, quantizer, module) for name, module in weights.items()}
            felt = sensitivity.one_at_a_time(model, ways, batches, loss, compute)
        else:
            felt = sensitivity.by_curvature(model, list(weights), batches, loss, compute)
        return dict(zip(known, felt.values(), strict=True))


def block_paths(model: nn.Module, family: Family) -> list[str]:
    """Of the layers of an uncut model."""
    paths = {id(module): path for path, module in model.named_modules()}
    count = len(family.structure(model).layers)
    return [paths[id(family.part(model, index, "block"))] for index in range(count)]


def _moved(
    felt: Mapping[str, float], blocks: Sequence[str], sources: Sequence[int]
) -> dict[str, float]:
    """By the paths that a student has which keeps these layers."""
    inside = tuple(f"{block}." for block in blocks)
    rest = {path: value for path, value in felt.items() if not path.startswith(inside)}
    return rest | {
        inside[index] + path.removeprefix(inside[source]): value
        for index, source in enumerate(sources)
        for path, value in felt.items()
        if path.startswith(inside[source])
    }


class CodedAnswers(Modifier):
    """In training weights are what they are; what is scored comes from coded ones, as it will in
    the end."""

    def __init__(self, lesson: Lesson, part: Coded) -> None:
        self.lesson, self.part = lesson, part
        self.quantizers = part.quantizers(lesson.student)
        self.known = part.matrices(lesson.student)
        self.answering: dict[str, Tensor] = {}
        """By matrix, what its numbers are exchanged for."""
        self.handles: list[Any] = []
        self.readers: dict[str, list[Any]] = {name: [] for name in self.known}
        """By matrix, the modules whose weight it is."""
        names = {id(module.weight): name for name, module in self.known.items()}
        for module in lesson.student.modules():
            name = names.get(id(getattr(module, "weight", None)))
            if name is not None:
                self.readers[name].append(module)
                after = partial(self._after, name)
                self.handles += [
                    module.register_forward_pre_hook(partial(self._before, name)),
                    module.register_forward_hook(after, always_call=True),
                ]

    def _before(self, name: str, module: Any, inputs: Sequence[Tensor]) -> None:
        if not self.lesson.training:
            self._exchange(name, module)

    def _after(self, name: str, module: Any, *_: Any) -> None:
        if not self.lesson.training:
            self._exchange(name, module)

    def _exchange(self, name: str, module: Any) -> None:
        weight = module.weight
        if name not in self.answering:
            self.answering[name] = coded(self.quantizers[name], module)
        weight.data, self.answering[name] = self.answering[name], weight.data

    def after_step(self) -> None:
        self.answering.clear()

    def remove(self) -> Part | None:
        for handle in self.handles:
            handle.remove()
        code(self.lesson.student, self.part)
        return None

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.answering.clear()


class CodedTraining(CodedAnswers):
    """As ``CodedAnswers``; in a step, too, weights are coded from when they are first read until
    their gradient is there, which goes to the weights themselves."""

    def __init__(self, lesson: Lesson, part: Coded) -> None:
        super().__init__(lesson, part)
        self.noise = lesson.candidate.number("codes.noise")
        self.fits: dict[str, Fit] = {}
        self.whole: dict[str, Tensor] = {}
        """By matrix that is coded now, what it was."""
        self.by_rows = {name for name in self.known if self._is_read_by_rows(name)}
        self.handles += [
            module.weight.register_post_accumulate_grad_hook(partial(self._back, name))
            for name, module in self.known.items()
        ]

    def before_step(self) -> None:
        if self.noise and self.lesson.step % FITTED == 0:
            for name, module in self.known.items():
                codes = self.quantizers[name].codes(array_of(module))
                self.fits[name] = Fit.of(codes, module.weight.device)

    def _before(self, name: str, module: Any, inputs: Sequence[Tensor]) -> None:
        super()._before(name, module, inputs)
        if self.lesson.training and self.noise:
            self._take(name, module, _unique(inputs[0]) if name in self.by_rows else None)

    def _is_read_by_rows(self, name: str) -> bool:
        from torch import nn

        columns = self.known[name].weight.shape[1]
        tables = all(isinstance(module, nn.Embedding) for module in self.readers[name])
        return tables and columns % self.quantizers[name].block == 0

    def _take(self, name: str, module: Any, rows: Tensor | None) -> None:
        weight = module.weight
        if name not in self.whole:
            self.whole[name] = weight.data
            weight.data = weight.data.clone()
        elif rows is None:
            return
        whole, values = self.whole[name], weight.data
        if _is_turned(module):
            whole, values = whole.T, values.T
        fit, random = self.fits[name], self.lesson.random
        if rows is None:
            values.copy_(fit.nearest(whole, self.noise, random))
        else:
            values[rows] = fit.of_rows(rows).nearest(whole[rows], self.noise, random)

    def _back(self, name: str, weight: nn.Parameter) -> None:
        if name in self.whole:
            weight.data = self.whole.pop(name)

    def after_step(self) -> None:
        super().after_step()
        for name, module in self.known.items():
            self._back(name, module.weight)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{key}.{name}": tensor
            for name, fit in self.fits.items()
            for key, tensor in vars(fit).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        if state:
            for name, module in self.known.items():
                fit = Fit(*(state[f"{key}.{name}"] for key in ("table", "scales", "outside")))
                self.fits[name] = fit.to(module.weight.device)


@dataclass(frozen=True)
class Fit:
    """What the codes of a matrix (rows, columns) were found with.

    Args:
        table: values of shape (entries, width), ascending where the width is 1.
        scales: of shape (rows, runs of a row), or (1, 1).
        outside: which weights are outliers, (rows, columns), or (1, 1) where none is.
    """

    table: Tensor
    scales: Tensor
    outside: Tensor

    @classmethod
    def of(cls, codes: Codes, device: torch.device) -> Fit:
        import torch

        table, rows = torch.from_numpy(codes.table), codes.shape[0]
        scales = torch.from_numpy(codes.scales) if len(codes.scales) else torch.ones(1)
        outside = torch.zeros(codes.shape if len(codes.positions) else (1, 1), dtype=torch.bool)
        outside.view(-1)[torch.from_numpy(codes.positions).long()] = True
        return cls(
            table if table.shape[1] > 1 else _unique(table)[:, None],
            scales.view(rows if len(scales) > 1 else 1, -1),
            outside,
        ).to(device)

    def to(self, device: torch.device) -> Fit:
        return Fit(*(tensor.to(device, copy=True) for tensor in vars(self).values()))

    def of_rows(self, rows: Tensor) -> Fit:
        scales, outside = (
            own if len(own) == 1 else own[rows] for own in (self.scales, self.outside)
        )
        return replace(self, scales=scales, outside=outside)

    def nearest(self, weight: Tensor, share: float, random: torch.Generator) -> Tensor:
        """A weight whose codes, or a share of them drawn at random, are those of the nearest
        values; the rest of it is as it was."""
        import torch

        runs = weight.reshape(len(weight), self.scales.shape[1], -1) / self.scales[..., None]
        blocks, stays = runs.reshape(-1, self.table.shape[1]), self.outside
        if share == 1:
            blocks = self._rounded(blocks)
        else:
            drawn = torch.rand(len(blocks), generator=random).to(weight.device) < share
            blocks[drawn] = self._rounded(blocks[drawn])
            stays = stays | ~drawn[:, None].expand_as(blocks).reshape(weight.shape)
        values = (blocks.view(runs.shape) * self.scales[..., None]).view(weight.shape)
        return weight.where(stays, values)

    def _rounded(self, blocks: Tensor) -> Tensor:
        import torch

        if self.table.shape[1] == 1:
            values = self.table.ravel()
            return values[torch.bucketize(blocks, (values[1:] + values[:-1]) / 2)]
        squares = self.table.square().sum(1) / 2
        some = torch.split(blocks, _AT_ONCE)
        return self.table[torch.cat([(squares - own @ self.table.T).argmin(1) for own in some])]


def _unique(tensor: Tensor) -> Tensor:
    """Its distinct values, ascending."""
    import torch

    values: Tensor = torch.unique(tensor)
    return values


def codes_embedding(candidate: Candidate) -> bool:
    """Whether the word embedding has codes of its own, see ``embedding_codes``."""
    own = candidate.text("embedding.format", "none") != "none"
    return own or candidate.number("embedding.codebooks", 0) > 0


def code(model: nn.Module, part: Coded) -> None:
    """Bring the weights of a model to the values of the part, in place; raises as ``check``."""
    import torch

    known = part.matrices(model)
    with torch.no_grad():
        for name, quantizer in part.quantizers(model).items():
            known[name].weight.copy_(coded(quantizer, known[name]))


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
    array: Matrix = (weight.T if _is_turned(module) else weight).contiguous().numpy()
    return array


def _is_turned(module: Any) -> bool:
    """Whether its weight is (inputs, outputs)."""
    return hasattr(module, "nf")
