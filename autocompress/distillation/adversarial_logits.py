"""Soft labels of texts that are changed to where student and teacher differ most (Rashid et al.
2021, MATE-KD, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from autocompress.distillation.logits import divergence
from autocompress.families.stream import word_table
from autocompress.interfaces import Features, Lesson, Objective
from autocompress.training.steps import optimizer_state, restore_optimizer, within

_STEPS_PER_UPDATE = 10
_LEARNING_RATE = 1e-3
_SEEN = 5
"""Tokens that the generator chooses one by, itself in the middle."""


class TextGenerator(nn.Module):
    """A masked language model: names the tokens of some places by the embeddings of those beside
    them.

    The paper takes a pre-trained one. This one needs no download: the teacher's embeddings, which
    it does not train, below and above one convolution. Untrained it draws from nearly all of the
    vocabulary alike.

    Args:
        embeddings: (vocabulary, width).
    """

    embeddings: Tensor

    def __init__(self, embeddings: Tensor, random: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings, persistent=False)
        width = embeddings.shape[1]
        self.blank = nn.Parameter(torch.zeros(width))
        self.beside = nn.Parameter(
            torch.randn(width, width, _SEEN, generator=random) / (width * _SEEN) ** 0.5
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """Logits, (places, vocabulary).

        Args:
            ids: (batch, length).
            places: bool, likewise; True where a token is to be named.
        """
        size = self.embeddings.norm(dim=1).mean()
        tokens = torch.where(places.unsqueeze(-1), self.blank, self.embeddings[ids] / size)
        hidden = torch.conv1d(tokens.transpose(1, 2), self.beside, padding=_SEEN // 2).transpose(
            1, 2
        )
        named: Tensor = self.norm(gelu(hidden[places])) / size
        return named @ self.embeddings.T


class AdversarialLogits(Objective):
    """``divergence`` on the batch with ``recovery.masked_share`` of its tokens replaced by draws
    from a generator.

    The generator learns to raise that divergence: Gumbel-softmax at temperature 1, straight through
    the drawn tokens to their embeddings in both models. It learns in one step before every tenth of
    the student's, which is the paper's ten for a hundred, spread out.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        teacher: Any = lesson.teacher
        self.generator = TextGenerator(
            teacher.get_input_embeddings().weight.detach(), lesson.random
        ).to(lesson.compute.device)
        self.padding = [] if teacher.config.pad_token_id is None else [teacher.config.pad_token_id]
        self.optimizer = torch.optim.AdamW(self.generator.parameters(), lr=_LEARNING_RATE)

    def features(self) -> tuple[tuple[str, str], ...]:
        return ()

    def state(self) -> dict[str, Tensor]:
        learned = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        return learned | {f"adam.{k}": v for k, v in optimizer_state(self.optimizer).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.generator.load_state_dict(within(state, "generator."))
        restore_optimizer(self.optimizer, within(state, "adam."))

    def loss(self, student: Features, teacher: Features) -> Tensor:
        if self.lesson.step % _STEPS_PER_UPDATE == 0:
            self._train_generator()
        with torch.no_grad():
            ids, _, _ = self._changed()
            theirs = self._rows(self.lesson.teacher, ids)
        return self._divergence(self._rows(self.lesson.student, ids), theirs)

    def _train_generator(self) -> None:
        models, parameters = (
            (self.lesson.student, self.lesson.teacher),
            list(self.generator.parameters()),
        )
        with torch.enable_grad():
            ids, places, soft = self._changed()
            logits = []
            for model in models:
                with _straight_through(model, places, soft):
                    logits.append(self._rows(model, ids))
            gradients = torch.autograd.grad(-self._divergence(*logits), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def _changed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's ids with some replaced, the places of these, and what they were drawn by,
        (places, vocabulary)."""
        ids, mask, random = (
            self.lesson.inputs["input_ids"],
            self.lesson.inputs["attention_mask"],
            self.lesson.random,
        )
        share = self.lesson.candidate.number("recovery.masked_share")
        drawn = torch.rand(ids.shape, generator=random).to(ids.device)
        places = (drawn < share) & (mask == 1)
        with self.lesson.compute.math(ids.shape[1]):
            logits = self.generator(ids, places).float()
        logits[:, self.padding] = -torch.inf
        noise = -torch.empty(logits.shape).exponential_(generator=random).log()
        soft = torch.softmax(logits + noise.to(logits.device), dim=-1)
        return ids.masked_scatter(places, soft.argmax(-1)), places, soft

    def _rows(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Logits of a classifier, or of all real tokens in a language model, (rows, classes)."""
        logits = self.lesson.compute.logits(model, {**self.lesson.inputs, "input_ids": ids})
        return logits[self.lesson.inputs["attention_mask"] == 1] if logits.dim() == 3 else logits

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return divergence(student, teacher, self.lesson.candidate.number("recovery.temperature"))


@contextmanager
def _straight_through(model: Any, places: Tensor, soft: Tensor) -> Iterator[None]:
    """Embeddings of tokens at these places stay as they are, but gradients go to what the tokens
    were drawn by."""
    embeddings = word_table(model)

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        mixed = soft @ embeddings.weight.detach()
        return output.index_put(
            places.nonzero(as_tuple=True),
            (mixed - mixed.detach()).to(output.dtype),
            accumulate=True,
        )

    handle = embeddings.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
