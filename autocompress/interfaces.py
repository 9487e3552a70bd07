"""The plug points, as protocols, on one page. Shapes and units are part of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, Setting, Value
from autocompress.pareto import Metric
from autocompress.scores import Timing
from autocompress.structure import Importance, Structure

if TYPE_CHECKING:
    import torch

    from autocompress.hardware.profile import HardwareProfile

Row = NDArray[np.int64]
"""One tokenized example, shape (inputs, length): token ids, then token types where the model has
them."""
Take = Callable[["torch.Tensor"], "torch.Tensor"]
"""Takes what is wanted from the output of a module, each (batch, length, width)."""


@dataclass(frozen=True)
class Knowledge:
    """What a technique may decide by.

    Args:
        importance: of the uncut model, by criterion; index it through ``Layer.source`` and the kept
            indices.
        latency: predicts the latency of a structure under the candidate's number formats, relative
            to the uncut fp32 model, on the first device; None where no table was measured.
    """

    importance: Mapping[str, Importance]
    latency: Callable[[Structure], float] | None = None


class Technique(Protocol):
    """A structural technique: decides what to keep, never touches weights.

    At its settings' defaults it returns the structure it was given.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> tuple[Setting, ...]: ...

    def refine(self, structure: Structure, candidate: Candidate, knowledge: Knowledge) -> Structure:
        """The structure that is left.

        Args:
            structure: what earlier techniques left.

        Raises:
            CandidateFailed: the settings do not fit this model.
        """
        ...


class Family(Protocol):
    """Where a model type keeps its layers, and how to cut them.

    A head is what one head of keys and values does: where queries are grouped, together with all
    heads of queries that share it.
    """

    @property
    def name(self) -> str: ...

    @property
    def causal(self) -> bool:
        """Whether a token attends to itself and those before it only."""
        ...

    def structure(self, model: torch.nn.Module) -> Structure:
        """The full structure of the model."""
        ...

    def cut(
        self, model: torch.nn.Module, structure: Structure, start: str = "copied"
    ) -> torch.nn.Module:
        """A smaller copy; the model itself is left as it is. Removed heads, neurons and layers
        leave the tensors.

        Args:
            start: what the weights of the kept layers begin as, one of ``families.starts.STARTS``.
        """
        ...

    def blank(self, config: Any, sizes: Mapping[str, Any]) -> torch.nn.Module:
        """An untrained model with these sizes, for weights to be loaded into.

        Args:
            config: of the whole model or of the cut one; ``architectures`` tells a language model
                from a classifier.
        """
        ...

    def head_size(self, model: torch.nn.Module) -> int:
        """Dimensions of a head's keys."""
        ...

    def part(self, model: torch.nn.Module, layer: int, role: str) -> torch.nn.Module:
        """The submodule of a layer in a role: ``attention_output`` and ``ffn_output``, whose inputs
        are the layer's heads and neurons side by side, and ``block``, the whole layer."""
        ...

    def tap(self, model: torch.nn.Module, layer: int, role: str) -> tuple[torch.nn.Module, Take]:
        """The module whose output holds a layer's ``query``, ``key`` or ``value`` as attention
        multiplies them, what the layer (``block``) gives to the next, or what the last layer gives
        to the head (``last``), and what takes it from there."""
        ...

    def weights(self, model: torch.nn.Module, layer: int, kind: str) -> tuple[torch.Tensor, ...]:
        """Views of the matrices that a layer's units, ``heads`` or ``ffn``, lie in, each with the
        units along its rows, one after the other, in equal shares."""
        ...


@dataclass(frozen=True)
class Batch:
    """Model inputs as int64 arrays of shape (batch, length), attention mask included, by the names
    of the ONNX inputs."""

    inputs: dict[str, NDArray[np.int64]]


Question = Mapping[str, NDArray[np.int64]]
"""What a device is asked of one batch: model inputs; with ``scored`` of shape (batch,) beside them,
it answers the negative log-likelihood of so many tokens at the end of each row, because the logits
of a vocabulary are too many to keep or to send."""
Evidence = NDArray[np.float64]
"""How well a model does on each example of a split, shape (examples,)."""


class TrainingSplit(Protocol):
    """Examples to learn from."""

    @property
    def rows(self) -> Sequence[Row]: ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class ids of shape (examples,), or of shape (examples, length) the token that follows
        each; -100 is none."""
        ...


class HeldOut(Protocol):
    """Examples to score."""

    @property
    def rows(self) -> Sequence[Row]: ...

    def take(self, indices: Sequence[int]) -> Self:
        """These examples only."""
        ...


Part = TypeVar("Part", bound=HeldOut)


class Task(Protocol[Part]):
    """What models are taught and scored on. Splits share no text."""

    @property
    def metric(self) -> Metric: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, by id; none where models answer with tokens."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The token that rows are padded with; None where all are of one length."""
        ...

    @property
    def train(self) -> TrainingSplit: ...

    @property
    def cleaned(self) -> TrainingSplit | None:
        """``train`` from which low-quality text is dropped; None where it was not asked for or
        makes no sense."""
        ...

    @property
    def unlabeled(self) -> Sequence[Row]:
        """More to learn from a teacher."""
        ...

    @property
    def validation(self) -> Part: ...

    @property
    def test(self) -> Part: ...

    @property
    def dropped(self) -> Mapping[str, int]:
        """What was left out of the data, by reason."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """As JSON, what else a reader of the results should know of the data."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples of a training step."""
        ...

    @property
    def rung_examples(self) -> Sequence[int]:
        """The validation examples that candidates are compared on while they train, those of like
        lengths side by side."""
        ...

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows as one batch, padded where they differ in length."""
        ...

    def questions(self, part: Part, size: int) -> list[Question]:
        """All examples in order, ``size`` at a time or fewer."""
        ...

    def evidence(self, answers: NDArray[np.floating[Any]], part: Part) -> Evidence:
        """From what was answered to ``questions``, one below the other."""
        ...

    def score(self, evidence: Evidence, part: Part) -> tuple[float, float]:
        """In the metric, with its standard error.

        Raises:
            CandidateFailed: not a finite number.
        """
        ...

    def bits_per_byte(self, evidence: Evidence, part: Part) -> float | None:
        """To say the text, of a language model."""
        ...

    def drop(self, baseline: Evidence, other: Evidence, part: Part) -> tuple[float, float]:
        """By how much the other one is worse, and the paired standard error of that, both in the
        unit of the metric; raises as ``score``."""
        ...

    def pack(self, evidence: Evidence) -> str:
        """As text, for the journal."""
        ...

    def unpack(self, text: str, count: int) -> Evidence:
        """The inverse of ``pack`` for so many examples."""
        ...


@dataclass(frozen=True)
class Features:
    """What a distillation objective sees of one model on one batch.

    Args:
        logits: (batch, labels); of a language model (batch * length, vocabulary).
        mask: (batch, length), 1 on real tokens.
        tokens: by feature name, (batch, length, width): ``hidden.N`` is the output of layer N
            counted from 1; ``query``, ``key``, ``value`` are of the last layer, as attention
            multiplies them, all heads side by side; ``last`` is what the head of the model is
            given, normalized where the model normalizes it.
    """

    logits: torch.Tensor
    mask: torch.Tensor
    tokens: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Matching:
    """How a student's parts correspond to its teacher's.

    Args:
        layers: (student layer, teacher layer) pairs, counted from 1.
        heads: the teacher's heads of the last layer that the student's last layer kept.
        head_size: dimensions of a head's keys.
        causal: see ``Family``.
    """

    layers: tuple[tuple[int, int], ...]
    heads: tuple[int, ...]
    head_size: int
    causal: bool = False


@dataclass
class Lesson:
    """One recovery, as its objectives see it; ``inputs`` and ``step`` are of the batch at hand.

    Args:
        student: in training.
        teacher: never changed, nor are gradients left in it.
        random: what an objective draws by, so that the same seed gives the same student.
        steps: in which objectives count; labels alone may follow.
        inputs: of both models, by their names, int64 of shape (batch, length).
        step: steps done.
    """

    candidate: Candidate
    matching: Matching
    student: torch.nn.Module
    teacher: torch.nn.Module
    random: torch.Generator
    steps: int
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0


class Objective(Protocol):
    """A distillation loss, made anew from the ``Lesson`` of each recovery. The parameters of one
    that is a ``torch.nn.Module`` are trained along with the student, and do not ship."""

    def features(self) -> tuple[tuple[str, str], ...]:
        """Names of the (student, teacher) features that the loss may read from
        ``Features.tokens``."""
        ...

    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        """Scalar, differentiable in the student."""
        ...


class Device(Protocol):
    """Where models run: measures latencies, and answers as the device does. Tests inject their own,
    since a latency is the one thing of a search that is not deterministic."""

    @property
    def profile(self) -> HardwareProfile: ...

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What the device is, as ``autocompress profile new`` writes it."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens per example that are timed, each as often as the others."""
        ...

    @property
    def answers_like(self) -> str:
        """Devices of which this is equal give the same answers, and only one of them is asked."""
        ...

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        """Time model folders in turn with the baseline's; language models in the profile's phase.

        Args:
            final: for longer, for numbers that are reported; language models in the other phases
                too.

        Returns:
            The baseline's timing in this session, and one per model.

        Raises:
            CandidateFailed: a model cannot run there, or the device was lost.
        """
        ...

    def predict(self, model: Path, batches: Sequence[Question]) -> NDArray[np.floating[Any]]:
        """What a model folder answers to all batches, one below the other: its first output, such
        as logits of shape (examples, labels), or what else the ``Question`` says; raises as
        ``time``."""
        ...

    def close(self) -> None:
        """Leave nothing behind on the device."""
        ...


class Sampler(Protocol):
    """Proposes points; minimises every objective."""

    def ask(self) -> tuple[int, dict[str, Value]]:
        """A handle and the chosen settings, all within the space; inactive settings may be
        missing."""
        ...

    def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
        """The outcome.

        Args:
            losses: latency relative to the baseline on each device, then the drop against it.
            violation: more than zero when a limit is missed, or the trial failed: better points are
                elsewhere.
        """
        ...
