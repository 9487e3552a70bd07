"""What training a teacher and recovering a student share: batches of like lengths, optimizers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import CandidateFailed
from autocompress.families.stream import word_table

BATCH_SIZE = 32
"""Sentences of a training step."""
_POOL = 20
_WARM_UP = 8
_LONGEST_WARM_UP = 20


def trunk_steps(steps: int) -> int:
    """Steps of so many before the learning rate decays: the first four fifths.

    They are the same whatever comes after, so a run that was stopped among them can end by the
    decay of a shorter run or a longer one.
    """
    return steps * 4 // 5


def held(done: int, steps: int) -> float:
    """Share of the learning rate after so many steps: a linear warm-up, then all of it, then a
    linear decay to zero (Hu et al. 2024, MiniCPM; Hägele et al. 2024, Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations)."""
    trunk = trunk_steps(steps)
    return min((done + 1) / _WARM_UP, 1.0, max(0.0, (steps - done) / (steps - trunk)))


def falling(done: int, steps: int) -> float:
    """Share of the learning rate after so many steps: a linear warm-up, then a linear decay to
    zero."""
    warm_up = max(1, min(_LONGEST_WARM_UP, steps // 10))
    return min((done + 1) / warm_up, max(0.0, 1 - done / steps))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's own random numbers on the CPU come from this seed inside the block, and go on as if
    it had not been afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def schedule(
    lengths: Sequence[NDArray[np.int64]], per_batch: Sequence[int], seed: Sequence[int]
) -> Iterator[list[int]]:
    """Endless batches of example indices, each batch of like lengths.

    Args:
        lengths: token counts of each source of examples; indices go on from one source to the next.
        per_batch: examples that a batch takes from each source on average, over any 20 batches
            exactly.
        seed: same seed, same batches.
    """
    rng = np.random.default_rng(list(seed))
    offsets = np.cumsum([0, *(len(source) for source in lengths)])[:-1]
    all_lengths = np.concatenate(list(lengths))
    streams = [
        _endless(len(source), int(offset), rng)
        for source, offset in zip(lengths, offsets, strict=True)
    ]
    size = sum(per_batch)
    while True:
        pool = [
            next(stream)
            for stream, count in zip(streams, per_batch, strict=True)
            for _ in range(count * _POOL)
        ]
        pool.sort(key=lambda index: int(all_lengths[index]))
        batches = [pool[i : i + size] for i in range(0, len(pool), size)]
        random.Random(int(rng.integers(2**31))).shuffle(batches)
        yield from batches


def repeated(batches: Iterator[list[int]], count: int, seed: Sequence[int]) -> Iterator[list[int]]:
    """So many batches of a ``schedule`` at least, then the same ones again and again, in another
    order each time: what a teacher said of them holds."""
    first, whole_pools = [], -(-count // _POOL) * _POOL
    for batch in itertools.islice(batches, whole_pools):
        first.append(batch)
        yield batch
    rng = np.random.default_rng(list(seed))
    while True:
        for i in rng.permutation(len(first)).tolist():
            yield first[i]


def _endless(count: int, offset: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (rng.permutation(count) + offset).tolist()


class Optimizer:
    """AdamW on the dense parameters, lazy Adam on word embeddings that no head shares (only the
    rows a batch touches).

    Args:
        steps: in all.
        beside: parameters that are not the model's.
        share: of the learning rate, by steps done and steps in all.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        steps: int,
        beside: Iterable[nn.Parameter] = (),
        share: Callable[[int, int], float] = held,
    ) -> None:
        self.learning_rate, self.steps, self.done = learning_rate, steps, 0
        self.share = share
        whole: Any = model
        embeddings, head = word_table(model), whole.get_output_embeddings()
        embeddings.sparse = head is None or head.weight is not embeddings.weight
        lazy = [embeddings.weight] if embeddings.sparse else []
        self.dense = [
            *(p for p in model.parameters() if not any(p is weight for weight in lazy)),
            *beside,
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(self.dense, learning_rate, weight_decay=0.01, fused=True),
            *(torch.optim.SparseAdam([weight], learning_rate) for weight in lazy),
        ]

    def step(self, loss: Tensor) -> None:
        """One update.

        Raises:
            CandidateFailed: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise CandidateFailed(f"the training loss became {loss.item()}")
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.dense, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.learning_rate * self.share(self.done, self.steps)
            part.step()
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """All that steps change in it."""
        named = {f"{i}": part for i, part in enumerate(self.parts)}
        return {"done": torch.tensor(self.done)} | {
            f"{i}.{name}": tensor
            for i, part in named.items()
            for name, tensor in optimizer_state(part).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``."""
        self.done = int(state["done"])
        for i, part in enumerate(self.parts):
            restore_optimizer(part, within(state, f"{i}."))


def within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of a torch optimizer as tensors by ``PARAMETER.KEY``; numbers as such of 0
    dimensions."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, parameter_state in optimizer.state_dict()["state"].items()
        for key, value in parameter_state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_state``."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    counts_in_numbers = isinstance(optimizer, torch.optim.SparseAdam)
    for name, tensor in state.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        is_number = key == "step" and counts_in_numbers
        value = int(tensor) if is_number else tensor.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = value
