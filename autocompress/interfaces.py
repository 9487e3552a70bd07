"""The plug points on one page. Shapes and units are part of the contract; ``autocompress.testing``
has a suite for each.

House words, in the order in which a search meets them:

    teacher     the user's model, fine-tuned: what is compressed, and what students learn from
    baseline    the teacher exported in fp32 and run by the device's runtime; speedups and drops are
                against it
    candidate   one point of a search space: the settings that differ from their defaults
    corner      a candidate that a space has tried first
    plan        what a student is made of, before there are weights: structure and parts
    structure   which layers are kept, and in each which heads and FFN neurons
    part        what a technique makes of a student beside its structure
    knowledge   what is measured of the teacher once: importance, and what a technique asks for
    student     a model in the making: a folder of weights, plan and progress, named by a digest
    recovery    the short training that repairs a cut
    rung        so many recovery steps, after which a student is sealed and scored; the better ones
                go on to the next
    trunk       the training that the students of a candidate share, whatever their steps: each of
                them leaves it a little before its end
    modifier    what trains along with a student and leaves a plain one behind
    sealed      of a student: nothing is to be trained any more
    artifact    a student in one number format, as a folder that ships
    trial       one artifact in a search, or why there is none
    evidence    what is kept of a model's answer to each example of a split
    drop        how much worse than the baseline a model is, in the unit of the metric
    foretold    predicted from a latency table, before anything is built
    phase       of a language model: what of it is timed, prefill, decode or both
    limits      what a model must meet
    front       the models that none beats in all objectives, and that meet the limits
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, Setting, Value
from autocompress.metrics import Metric
from autocompress.plan import Part, Plan
from autocompress.scores import Timing
from autocompress.structure import Importance, Structure

if TYPE_CHECKING:
    import torch

    from autocompress.hardware.profile import HardwareProfile
    from autocompress.reading import Reading
    from autocompress.training.compute import Compute

Row = NDArray[np.int64]
"""One tokenized example, shape (inputs, length): token ids, then token types where the model has
them."""
Labelled = tuple["Batch", NDArray[np.int64]]
"""Model inputs, and labels as ``TrainingSplit`` has them."""
Feeling = Callable[["torch.nn.Module", Sequence[Labelled], "Loss", "Compute"], Any]
"""See ``Knowledge.felt``."""
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
        measured: gives what a function of the uncut model and its family finds, such as singular
            values; each function is called once in a search.
        word_counts: gives how often the training text has each token, by its id.
        felt: gives what a function of the uncut model, some of its training text with labels, the
            task's loss and where they run finds, such as curvature; each is called once likewise.
    """

    importance: Mapping[str, Importance]
    latency: Callable[[Structure], float] | None = None
    measured: Callable[[Callable[[torch.nn.Module, Family], Any]], Any] | None = None
    word_counts: Callable[[], NDArray[np.int64]] | None = None
    felt: Callable[[Feeling], Any] | None = None


class Technique(ABC):
    """One way to make a student smaller. It plans before there are weights; where it leaves a part
    in the plan, it builds that part's shapes and fills them, and it may train along.

    At its settings' defaults it returns the plan it was given.
    """

    name: str
    settings: tuple[Setting, ...]
    part: ClassVar[type[Part] | None] = None
    """What it leaves in plans beside their structure."""

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        """What is left of it; pure.

        Args:
            plan: what earlier techniques left.

        Raises:
            CandidateFailed: the settings do not fit this model.
        """
        return plan

    def build(self, model: torch.nn.Module, part: Any, family: Family) -> None:
        """Give the model the shapes of its part, in place, whatever its weights: loading from disk
        runs this on a blank model."""

    def fill(
        self, model: torch.nn.Module, before: torch.nn.Module, part: Any, family: Family
    ) -> None:
        """First weights for what ``build`` made.

        Args:
            model: built; all other weights are there.
            before: the same model before it was built.
        """

    def modifier(self, lesson: Lesson) -> Modifier | None:
        """What trains along, installed in ``lesson.student``; None when the candidate asks for
        nothing."""
        return None


class StructuralTechnique(Technique):
    """Decides which layers, heads and neurons are kept, and never touches weights: the family cuts
    the model once, at the end."""

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        return replace(plan, structure=self.refine(plan.structure, candidate, knowledge))

    @abstractmethod
    def refine(self, structure: Structure, candidate: Candidate, knowledge: Knowledge) -> Structure:
        """The structure that is left; arguments and errors as of ``plan``."""
        ...


class Modifier(ABC):
    """Changes how a student is trained, and leaves a plain one behind. Modifiers stack.

    It acts only while ``Lesson.training`` is true: scored in between, a student answers as after
    ``remove``.

    Args:
        scheduled: as of an ``Objective``.
    """

    scheduled: ClassVar[bool] = False

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """Trained beside the student's."""
        return ()

    def before_step(self) -> None:
        """Schedules and draws, by ``Lesson.step``."""

    def penalty(self) -> torch.Tensor | None:
        """Added to the loss."""
        return None

    def after_step(self) -> None:
        """After the optimizer's step: proximal steps, ranges."""

    @abstractmethod
    def remove(self) -> Part | None:
        """Fold everything into plain weights; what was learned becomes part of the plan."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """All that is not in the student's own state, so that stopping and going on changes no
        bit."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """The inverse of ``state``."""


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

    @property
    def post_norm(self) -> bool:
        """Whether a norm follows the sum of stream and branch, in place of leading the branch."""
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

    def put(self, model: torch.nn.Module, layer: int, role: str, module: torch.nn.Module) -> None:
        """Another module in a role of a layer: a matrix, or a ``Sequential`` of several."""
        ...

    def tap(self, model: torch.nn.Module, layer: int, role: str) -> tuple[torch.nn.Module, Take]:
        """The module whose output holds a layer's ``query``, ``key`` or ``value`` as attention
        multiplies them, what the layer (``block``) gives to the next, or what the last layer gives
        to the head (``last``), and what takes it from there."""
        ...

    def summed(self, model: torch.nn.Module, layer: int, role: str) -> tuple[torch.nn.Module, bool]:
        """The module inside a layer at which the residual stream has just had a branch added to it,
        that of ``attention_output`` or ``ffn_output``, and whether it goes in there (true) or comes
        out. Where a norm follows the sum, the module is that norm."""
        ...

    def weights(self, model: torch.nn.Module, layer: int, kind: str) -> tuple[torch.Tensor, ...]:
        """Views of the matrices that a layer's units, ``heads`` or ``ffn``, lie in, each with the
        units along its rows, one after the other, in equal shares."""
        ...

    def hidden_size(self, model: torch.nn.Module) -> int:
        """Dimensions of the residual stream, which the config of a narrowed model does not tell."""
        ...

    def narrow(self, model: torch.nn.Module, kept: Sequence[int]) -> None:
        """Take hidden dimensions out of the model itself: out of embeddings, norms, the inputs and
        outputs of the layers, and both sides of a pooler.

        Heads keep their size, and the config its hidden size, because the one follows from the
        other: so a narrowed model is ``narrow`` of what ``blank`` makes, not ``blank`` alone.

        Args:
            kept: ascending indices below ``hidden_size``.
        """
        ...

    def hidden_weights(self, model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
        """Views of the matrices that hidden dimensions lie in, each with these as its rows; a
        matrix that they lie in twice comes twice, a tied one once."""
        ...

    def hidden_gates(self, model: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
        """The norms of the residual stream, and the pooler's projection: whatever reads a hidden
        dimension reads it from one of their outputs."""
        ...


@dataclass(frozen=True)
class Conversion:
    """What the conversion of a graph is given.

    Args:
        source: fp32 ONNX file.
        target: file to write.
        calibration: model inputs from the training split, name to (batch, length).
        by_token: whether activations whose range is found as the model runs have a scale for each
            token, as causal models need it.
        block_size: weights that share a scale, where they lie in blocks.
        spared: layers that keep more bits.
        ranges: module of the torch model, such as ``bert.pooler.dense``, to the least and the
            largest number that goes into its product, as training with quantization has learned
            them.
    """

    source: Path
    target: Path
    calibration: Sequence[Mapping[str, NDArray[np.int64]]]
    by_token: bool
    block_size: int
    spared: frozenset[int]
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Format:
    """A number format of the exported graph.

    Args:
        bytes: of a weight.
        stored: the format that the ONNX file holds.
        gains: runtimes that it is known to speed up on some device; of fp32, all there are.
        convert: writes the graph; raises ``UserError`` where onnxruntime cannot.
        more_bits: the format of layers that are spared; None where none can be.
        in_blocks: whether weights share their scales in blocks, the size of which is a setting.
    """

    name: str
    bytes: float
    stored: str
    gains: tuple[str, ...]
    convert: Callable[[Conversion], None]
    more_bits: str | None = None
    in_blocks: bool = False


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
"""What a model answered to each example of a split, or how well, shape (examples, numbers): a task
keeps as many of each example as its score needs."""


class Head(StrEnum):
    """What a model answers with, named as transformers names its auto classes."""

    SEQUENCE_CLASSIFICATION = "sequence-classification"
    CAUSAL_LM = "causal-lm"

    @property
    def generates(self) -> bool:
        """Whether it makes a language model; a model at hand is asked by
        ``graphs.decoding.generates``."""
        return self is Head.CAUSAL_LM


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


class Loss(Protocol):
    """See ``Task.loss``."""

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
    ) -> torch.Tensor: ...


class Task(Protocol):
    """What models are taught and scored on. Splits share no text; those that a method is given are
    the task's own, or taken from them."""

    @property
    def metric(self) -> Metric: ...

    @property
    def head(self) -> Head:
        """Of the models."""
        ...

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
    def validation(self) -> HeldOut: ...

    @property
    def test(self) -> HeldOut: ...

    @property
    def reading(self) -> Reading:
        """What was read of the data, and what was left out."""
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

    def learned(self, most: int) -> HeldOut:
        """So many examples of ``train`` at most, spread evenly, to be scored as held-out ones are:
        what a model makes of text that it has learned."""
        ...

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows as one batch, padded where they differ in length."""
        ...

    def loss(
        self, logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
    ) -> torch.Tensor:
        """How far answers are from the labels: a scalar, differentiable in the logits.

        Args:
            logits: as models give them, (batch, ..., classes).
            labels: as ``TrainingSplit`` has them, (batch, ...); -100 counts nothing.
            reduction: ``mean`` over all labels that count, or their ``sum``.
        """
        ...

    def questions(self, part: HeldOut, size: int) -> list[Question]:
        """All examples in order, ``size`` at a time or fewer."""
        ...

    def evidence(self, answers: NDArray[np.floating[Any]], part: HeldOut) -> Evidence:
        """From what was answered to ``questions``, one below the other."""
        ...

    def commonest(self, part: HeldOut) -> Evidence | None:
        """Of a model that always answers the commonest class; None where there are no classes."""
        ...

    def constant(self, evidence: Evidence) -> bool:
        """Whether a model gave the same answer to every example."""
        ...

    def score(self, evidence: Evidence, part: HeldOut) -> tuple[float, float]:
        """In the metric, with its standard error.

        Raises:
            CandidateFailed: not a finite number.
        """
        ...

    def bits_per_byte(self, evidence: Evidence, part: HeldOut) -> float | None:
        """To say the text, of a language model."""
        ...

    def drop(self, baseline: Evidence, other: Evidence, part: HeldOut) -> tuple[float, float]:
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
class Option:
    """What one task may be told and others may not; ``--block-length`` on the command line,
    ``block_length`` in Python.

    Args:
        name: ``block-length``.
        metavar, help: for the command line.
        takes: what its value is.
        is_file: whether the value is a path, whose content a resumed run must find unchanged.
        choices: values that it may have; any where there are none. Those of ``metric`` are of
            ``metrics.METRICS``, and the one that is chosen takes the place of the task's own.
    """

    name: str
    metavar: str
    help: str
    takes: type[str] | type[int] = str
    is_file: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskInputs:
    """What a task is read from.

    Args:
        model: folder or hub id, as the user wrote it.
        config: of the model, as transformers has it.
        tokenizer: of transformers, beside the model.
        positions: tokens that the model takes at most.
        causal: see ``Family``.
        data: file, or data set id on the hub.
        validation: file, or name of a split; None cuts it from the data.
        test: likewise.
        options: of this task that were given, by name.
        fresh: whether the model gets a new head, for the classes that the data has.
        cleaned: whether candidates may learn from cleaned text.
    """

    model: str
    config: Any
    tokenizer: Any
    positions: int
    causal: bool
    data: str
    validation: str | None = None
    test: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False
    cleaned: bool = False


@dataclass(frozen=True)
class TaskKind:
    """A task before any data is read.

    Args:
        name: of the task on the command line.
        metric: one of ``metrics.METRICS``, where no other one is asked for.
        load: reads, splits and tokenizes; raises ``UserError`` for what does not fit the task.
    """

    name: str
    metric: Metric
    head: Head
    options: tuple[Option, ...]
    load: Callable[[TaskInputs], Task]


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
        widths: of hidden states, of the student and of the teacher; None where they are equal.
    """

    layers: tuple[tuple[int, int], ...]
    heads: tuple[int, ...]
    head_size: int
    causal: bool = False
    widths: tuple[int, int] | None = None


@dataclass
class Lesson:
    """One recovery, as its objectives and modifiers see it; ``inputs`` and ``step`` are of the
    batch at hand.

    Args:
        student: in training.
        teacher: never changed, nor are gradients left in it.
        random: what an objective draws by, so that the same seed gives the same student.
        steps: in which objectives count; labels alone may follow.
        compute: where all of it runs, see ``training.compute``.
        inputs: of both models, by their names, int64 of shape (batch, length).
        step: steps done.
        training: whether a step is being made, and not an answer to be scored.
        parts: of the student's plan.
    """

    candidate: Candidate
    matching: Matching
    student: torch.nn.Module
    teacher: torch.nn.Module
    random: torch.Generator
    steps: int
    compute: Compute
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0
    training: bool = False
    parts: Sequence[Part] = ()


class Objective(ABC):
    """A distillation loss, made anew from the ``Lesson`` of each recovery.

    Args:
        scheduled: whether it goes by the share of the steps that are done, so that with more steps
            in all a student begins otherwise.
    """

    scheduled: ClassVar[bool] = False

    @abstractmethod
    def features(self) -> tuple[tuple[str, str], ...]:
        """Names of the (student, teacher) features that the loss may read from
        ``Features.tokens``."""
        ...

    @abstractmethod
    def loss(self, student: Features, teacher: Features) -> torch.Tensor:
        """Scalar, differentiable in the student."""
        ...

    def trained(self) -> Iterable[torch.nn.Parameter]:
        """Parameters that are trained along with the student, and do not ship."""
        return ()

    def state(self) -> dict[str, torch.Tensor]:
        """All that steps change in it, so that stopping and going on changes no bit."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """The inverse of ``state``."""


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
                too, and in the other regime where the device knows two.

        Returns:
            The baseline's timing in this session, and one per model.

        Raises:
            CandidateFailed: a model cannot run there.
            DeviceLost: the device does not answer, whatever it is asked.
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
        missing. Asked for several points before it is told of any, it gives different ones, as
        long as the space has them."""
        ...

    def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
        """The outcome.

        Args:
            losses: latency relative to the baseline on each device, bytes relative to it, and the
                drop against it, as far as they are objectives.
            violation: more than zero when a limit is missed, or the trial failed: better points are
                elsewhere.
        """
        ...

    def learn(
        self, chosen: Mapping[str, Value], losses: Sequence[float], violation: float = 0.0
    ) -> None:
        """The outcome of a point that was not asked for: of a student trained further, in another
        number format, or of another worker. A point outside the space teaches nothing.

        Args:
            chosen: settings of a candidate; those left out are at their defaults, and those that
                the space does not vary, or that mean nothing beside the others, are passed over.
            losses: as in ``tell``, and so is ``violation``.
        """
        ...
