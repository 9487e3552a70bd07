"""Sparsity: a share of the weights of each layer's matrices is exactly zero.

Which ones go is decided by magnitude (Gordon et al. 2020, "Compressing BERT: Studying the Effects
of Weight Pruning on Transfer Learning", section 2) or by movement: scores S are the sums of
-(dL/dW') W over the steps, W' being the weights less those that are masked, so weights that shrink
go (Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", section 4). Soft
movement trains the scores with the weights, under a penalty on their sigmoids; there the paper
fixes the threshold and the penalty decides the share, here the share is given and the threshold
follows. The rounds of a lottery ticket are those of Chen et al. 2020, "The Lottery Ticket
Hypothesis for Pre-trained BERT Networks".

Beside the gradual schedule, weights may be drawn to zero after every step, the small ones more than
the large ones: one by one as in Guo et al. 2019, "Reweighted Proximal Pruning for Large-Scale
Language Representation", or in the rows and columns of blocks as in Li et al. 2020, "Efficient
Transformer-based Large Scale Language Representations using Hardware-friendly Block Structured
Pruning". The papers' strength decides the share, here the share is given.

All schedules go by share of ``Lesson.steps``: what is masked at a step depends on how many there
are. Files only become smaller where zeros are stored as such.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.candidate import Candidate, Integer, OneOf, Real, Setting, Value
from autocompress.errors import CandidateFailed
from autocompress.interfaces import Family, Knowledge, Lesson, Modifier, Technique
from autocompress.plan import Part, Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from autocompress.quantizers.codes import Codes

RENEWALS = 100
"""How often masks are chosen anew in a training."""
RAMP = 0.1, 0.8
"""Between these shares of the steps the zeros of ``cubic`` grow; those of the paper's own code."""
ROUND = 0.1
"""What goes of the remaining weights in each of the ``rounds``."""
PENALTY = 400.0
"""On the mean sigmoid of soft scores in the end, as in the paper's own code; it grows with the
zeros."""
SCORE_RATE = 1e-2 / 3e-5
"""How much faster than weights soft scores learn, as in the paper's own code."""
EPSILON = 1e-3
"""Beside the size of a group that is drawn to zero; ours."""


@dataclass(frozen=True)
class Sparse(Part):
    """Zeros.

    Args:
        share: of the weights.
        scope: see ``sparsity.scope``.
        embedding: whether the word embedding has them, too.
        at_start: whether they are there before any training.
    """

    technique: ClassVar[str] = "sparsity"
    share: float
    scope: str
    embedding: bool
    at_start: bool

    def words(self) -> str:
        return f"{self.share:.0%} zeros"

    def codes(self, model: nn.Module) -> Sequence[Codes]:
        """None of its own, but zeros are stored as such."""
        return []


def _sparse(settings: Mapping[str, Value]) -> bool:
    return settings["sparsity.share"] != 0


def _sparse_and_trained(settings: Mapping[str, Value]) -> bool:
    return _sparse(settings) and settings["recovery.steps"] != 0


def _by_magnitude(settings: Mapping[str, Value]) -> bool:
    return _sparse_and_trained(settings) and settings["sparsity.criterion"] == "magnitude"


def _gradual(settings: Mapping[str, Value]) -> bool:
    return _by_magnitude(settings) and settings["sparsity.schedule"] == "cubic"


class Sparsity(Technique):
    """Zeroes ``sparsity.share`` of the matrices of all layers; at once, or as training goes on."""

    name = "sparsity"
    part = Sparse
    settings = (
        Setting("sparsity.share", Real(0, 0.99), 0.0, "share of the layers' weights that is zero"),
        Setting(
            "sparsity.criterion",
            OneOf(("magnitude", "movement", "soft-movement")),
            "magnitude",
            "zero are the smallest weights, or those that shrink in training",
            when=_sparse_and_trained,
        ),
        Setting(
            "sparsity.schedule",
            OneOf(("once", "cubic", "rounds")),
            "once",
            "zero before training, more and more of them, or in rounds that begin anew",
            when=_by_magnitude,
        ),
        Setting(
            "sparsity.proximal",
            Real(0, 1),
            0.0,
            "by how much weights of size 1 shrink in every step, others by that over their size",
            when=_gradual,
        ),
        Setting(
            "sparsity.block",
            Integer(1, 1024),
            1,
            "weights shrink and go as rows and columns of blocks of so many; at 1 by themselves",
            when=lambda s: _gradual(s) and s["sparsity.proximal"] != 0,
        ),
        Setting(
            "sparsity.scope",
            OneOf(("layer", "global")),
            "layer",
            "the share is one of each matrix, or one of all together",
            when=_sparse,
        ),
        Setting(
            "sparsity.embedding",
            OneOf((False, True)),
            False,
            "zeros in the word embedding, too",
            when=_sparse,
        ),
    )

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        share = candidate.number("sparsity.share", 0)
        if share == 0:
            return plan
        scope, embedding = (
            candidate.text("sparsity.scope"),
            bool(candidate.get("sparsity.embedding")),
        )
        at_start = _schedule(candidate) == "once"
        return plan.with_part(Sparse(share, scope, embedding, at_start))

    def fill(self, model: nn.Module, before: nn.Module, part: Sparse, family: Family) -> None:
        if part.at_start:
            matrices = prunable(model, embedding=part.embedding)
            scores = {name: weight.detach().abs() for name, weight in matrices.items()}
            clear(matrices, kept(scores, part.share, part.scope))

    def modifier(self, lesson: Lesson) -> Modifier | None:
        if lesson.candidate.number("sparsity.share", 0) == 0:
            return None
        if lesson.candidate.number("sparsity.proximal", 0) > 0:
            return Proximal(lesson)
        modifiers = {"magnitude": Masks, "movement": Movement, "soft-movement": SoftMovement}
        return modifiers[_criterion(lesson.candidate)](lesson)


def _criterion(candidate: Candidate) -> str:
    return candidate.text("sparsity.criterion", "magnitude")


def _schedule(candidate: Candidate) -> str:
    """Movement can be told only as training goes on."""
    usual = "once" if _criterion(candidate) == "magnitude" else "cubic"
    return candidate.text("sparsity.schedule", usual)


class Masks(Modifier):
    """Zeroes the smallest weights; what is zero stays it."""

    scheduled: ClassVar[bool] = True

    def __init__(self, lesson: Lesson) -> None:
        import torch

        self.lesson = lesson
        candidate, student = lesson.candidate, lesson.student
        self.schedule, self.scope = _schedule(candidate), candidate.text("sparsity.scope")
        self.final = candidate.number("sparsity.share")
        self.share = 0.0
        self.matrices = prunable(student, embedding=bool(candidate.get("sparsity.embedding")))
        self.masks = {
            name: torch.ones_like(weight, dtype=torch.bool)
            for name, weight in self.matrices.items()
        }
        rewinds = student.named_parameters() if self.schedule == "rounds" else ()
        self.start = {name: weight.detach().clone() for name, weight in rewinds}

    def before_step(self) -> None:
        step, steps = self.lesson.step, self.lesson.steps
        self.share = share_at(self.schedule, self.final, (step + 1) / steps)
        if step == 0 or RENEWALS * step // steps > RENEWALS * (step - 1) // steps:
            self._renew()

    def _renew(self) -> None:
        before, self.masks = self.masks, kept(self._scores(), self.share, self.scope)
        if self.start and any(not self.masks[name].equal(mask) for name, mask in before.items()):
            import torch

            with torch.no_grad():
                for name, weight in self.lesson.student.named_parameters():
                    weight.copy_(self.start[name])
        clear(self.matrices, self.masks)

    def _scores(self) -> Mapping[str, Tensor]:
        return {name: weight.detach().abs() for name, weight in self.matrices.items()}

    def after_step(self) -> None:
        clear(self.matrices, self.masks)

    def remove(self) -> Part | None:
        return None

    def state(self) -> dict[str, Tensor]:
        return {f"mask.{name}": mask for name, mask in self.masks.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.masks = self._own(state, "mask")

    def _own(self, state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
        return {
            name: state[f"{kind}.{name}"].to(weight.device, copy=True)
            for name, weight in self.matrices.items()
        }


class Proximal(Masks):
    """As ``Masks``, of weights that are drawn to zero.

    Raises:
        CandidateFailed: a matrix does not divide into blocks.
    """

    def __init__(self, lesson: Lesson) -> None:
        super().__init__(lesson)
        self.strength = lesson.candidate.number("sparsity.proximal")
        self.block = int(lesson.candidate.number("sparsity.block"))
        for name, weight in self.matrices.items():
            if any(size % self.block for size in weight.shape):
                rows, columns = weight.shape
                raise CandidateFailed(
                    f"sparsity.block is {self.block}, which does not divide {name}, "
                    f"{rows} by {columns}"
                )

    def after_step(self) -> None:
        import torch

        with torch.no_grad():
            for weight in self.matrices.values():
                weight.copy_(shrunk(weight, self.strength, self.block) + 0.0)  # no zero is negative
        super().after_step()

    def _scores(self) -> Mapping[str, Tensor]:
        return {
            name: group_sizes(weight.detach(), self.block) for name, weight in self.matrices.items()
        }


class Movement(Masks):
    """Zeroes the weights that shrink; what is zero may come back as it was when it went."""

    def __init__(self, lesson: Lesson) -> None:
        import torch

        super().__init__(lesson)
        self.whole = {name: weight.detach().clone() for name, weight in self.matrices.items()}
        self.scores = {name: torch.zeros_like(weight) for name, weight in self.whole.items()}
        weights: Mapping[str, Any] = self.matrices
        self.hooks = [
            weight.register_post_accumulate_grad_hook(partial(self._learn, name))
            for name, weight in weights.items()
        ]

    def _learn(self, name: str, weight: Any) -> None:
        """The gradient at hand is by the masked weights, also where these are zero."""
        self._score(name, weight.grad * self.whole[name])
        weight.grad = weight.grad * self.masks[name]

    def _score(self, name: str, movement: Tensor) -> None:
        self.scores[name] -= movement

    def _renew(self) -> None:
        import torch

        self.masks = kept(self._scores(), self.share, self.scope)
        with torch.no_grad():
            for name, weight in self.matrices.items():
                weight.copy_(self.whole[name])
        clear(self.matrices, self.masks)

    def _scores(self) -> Mapping[str, Tensor]:
        return self.scores

    def after_step(self) -> None:
        for name, weight in self.matrices.items():
            mask = self.masks[name]
            self.whole[name] = weight.detach().where(mask, self.whole[name])
        super().after_step()

    def remove(self) -> Part | None:
        for hook in self.hooks:
            hook.remove()
        return super().remove()

    def state(self) -> dict[str, Tensor]:
        whole = {f"whole.{name}": weight for name, weight in self.whole.items()}
        return super().state() | whole | {f"score.{n}": s for n, s in self._scores().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        self.whole, self.scores = self._own(state, "whole"), self._own(state, "score")


class SoftMovement(Movement):
    """As ``Movement``, by scores that are trained; they are kept divided by ``SCORE_RATE``, so that
    the optimizer moves them at the rate of weights."""

    def __init__(self, lesson: Lesson) -> None:
        from torch import nn

        super().__init__(lesson)
        self.trained = {name: nn.Parameter(score) for name, score in self.scores.items()}

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.trained.values()

    def penalty(self) -> torch.Tensor:
        import torch

        means = [torch.sigmoid(SCORE_RATE * score).mean() for score in self.trained.values()]
        growing: float = PENALTY * self.share / self.final / SCORE_RATE
        return growing * torch.stack(means).mean()

    def _score(self, name: str, movement: Tensor) -> None:
        score, movement = self.trained[name], movement.to_dense()
        score.grad = movement if score.grad is None else score.grad + movement

    def _scores(self) -> Mapping[str, Tensor]:
        return {name: score.detach() for name, score in self.trained.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        import torch

        super().restore(state)
        with torch.no_grad():
            for name, score in self.trained.items():
                score.copy_(self.scores[name])


def prunable(model: nn.Module, *, embedding: bool) -> dict[str, nn.Parameter]:
    """The matrices of all layers by name, shared ones once; with the word embedding or without."""
    from torch.nn import ModuleList

    whole: Any = model
    layers = [module for module in model.modules() if isinstance(module, ModuleList)]
    matrices = {id(p) for own in layers for p in own.parameters() if p.dim() == 2}
    if embedding:
        matrices |= {id(p) for p in whole.get_input_embeddings().parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in matrices}


def share_at(schedule: str, final: float, progress: float) -> float:
    """Of the weights, zero when so much of the training is done.

    ``cubic`` is equation 1 of Zhu and Gupta 2017, "To prune, or not to prune: exploring the
    efficacy of pruning for model compression".
    """
    if schedule == "cubic":
        first, last = RAMP
        left = 1 - min(1.0, max(0.0, (progress - first) / (last - first)))
        return final * (1 - left**3)
    if schedule == "rounds":
        rounds = math.ceil(math.log(1 - final) / math.log(1 - ROUND))
        done = min(rounds, int(progress * (rounds + 1)))
        return min(final, 1 - (1 - ROUND) ** done)
    return final


def kept(scores: Mapping[str, Tensor], share: float, scope: str) -> dict[str, Tensor]:
    """Masks of all but the lowest scores.

    Args:
        share: that goes of each matrix, or of all together where the scope is ``global``.
    """
    import torch

    if scope == "global":
        flat = torch.cat([score.flatten() for score in scores.values()])
        sizes = [score.numel() for score in scores.values()]
        masks = torch.split(_highest(flat, share), sizes)
    else:
        masks = tuple(_highest(score.flatten(), share) for score in scores.values())
    return {
        name: mask.view(score.shape)
        for (name, score), mask in zip(scores.items(), masks, strict=True)
    }


def _highest(scores: Tensor, share: float) -> Tensor:
    import torch

    lowest = scores.topk(round(share * scores.numel()), largest=False).indices
    return torch.ones_like(scores, dtype=torch.bool).index_fill_(0, lowest, False)


def shrunk(weight: Tensor, strength: float, block: int) -> Tensor:
    """Each row of a block, then each column, shorter by ``strength`` over its length; those that
    are no longer than that are zero."""
    blocks = _blocks(weight, block)
    for axis in _axes(block):
        length = blocks.norm(dim=axis, keepdim=True)
        left = 1 - strength / (length + EPSILON) / length.clamp(min=1e-30)
        blocks = blocks * left.clamp(min=0)
    return blocks.view(weight.shape)


def group_sizes(weight: Tensor, block: int) -> Tensor:
    """For each weight the length of its row or its column in its block, whichever is less."""
    import torch

    blocks = _blocks(weight, block)
    lengths = [blocks.norm(dim=axis, keepdim=True).expand_as(blocks) for axis in _axes(block)]
    return torch.stack(lengths).amin(0).view(weight.shape)


def _blocks(weight: Tensor, block: int) -> Tensor:
    rows, columns = weight.shape
    return weight.reshape(rows // block, block, columns // block, block)


def _axes(block: int) -> tuple[int, ...]:
    """Along which rows and columns of ``_blocks`` lie; of single weights these are one."""
    return (3, 1) if block > 1 else (3,)


def clear(matrices: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
    """Zero what is masked."""
    import torch

    with torch.no_grad():
        for name, weight in matrices.items():
            weight.masked_fill_(~masks[name], 0)
