"""What training a teacher and recovering a student share: batches of like lengths, bf16, the
optimizers, features."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autocompress.errors import CandidateFailed
from autocompress.interfaces import Batch, Family, Row, Take

BATCH_SIZE = 32
"""Sentences of a training step."""
_POOL = 20


@contextmanager
def fast_math() -> Iterator[None]:
    """bf16 where the CPU computes it fast (about 2x), and attention as plain products: at the
    length of sentences the fused CPU kernel costs a step a quarter more."""
    bf16 = torch.backends.mkldnn.is_available() and _has_bf16()  # type: ignore[no-untyped-call]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), sdpa_kernel(SDPBackend.MATH):
        yield


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def tensors(batch: Batch) -> dict[str, Tensor]:
    """Model inputs as torch tensors that share the arrays' memory."""
    return {name: torch.from_numpy(array) for name, array in batch.inputs.items()}


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


def _endless(count: int, offset: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (rng.permutation(count) + offset).tolist()


class Optimizer:
    """AdamW on the dense parameters, lazy Adam on word embeddings that no head shares (only the
    rows a batch touches), with a linear warm-up and a linear decay to zero.

    Args:
        beside: parameters that are not the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        steps: int,
        weight_decay: float = 0.01,
        beside: Iterable[nn.Parameter] = (),
    ) -> None:
        whole: Any = model
        embeddings, head = whole.get_input_embeddings(), whole.get_output_embeddings()
        embeddings.sparse = head is None or head.weight is not embeddings.weight
        lazy = [embeddings.weight] if embeddings.sparse else []
        self.dense = [
            *(p for p in model.parameters() if not any(p is weight for weight in lazy)),
            *beside,
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(self.dense, lr=learning_rate, weight_decay=weight_decay, fused=True),
            *(torch.optim.SparseAdam([weight], lr=learning_rate) for weight in lazy),
        ]
        warm_up = max(1, min(20, steps // 10))

        def factor(step: int) -> float:
            return min((step + 1) / warm_up, max(0.0, 1 - step / steps))

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(part, factor) for part in self.parts]

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
        for part, schedule in zip(self.parts, self.schedules, strict=True):
            part.step()
            schedule.step()


@contextmanager
def watch(
    model: nn.Module, family: Family, depth: int, names: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """Collects features, named as in ``interfaces.Features``, of every forward pass inside the
    block.

    Args:
        depth: layers of the model.
    """
    seen: dict[str, Tensor] = {}
    handles = []

    def keep(name: str, take: Take) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = take(output[0] if isinstance(output, tuple) else output)

        return hook

    try:
        for name in names:
            kind, _, number = name.partition(".")
            place = (int(number) - 1, "block") if kind == "hidden" else (depth - 1, kind)
            module, take = family.tap(model, *place)
            handles.append(module.register_forward_hook(keep(name, take)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def forward_all(
    model: nn.Module, family: Family, rows: Sequence[Row], batch: Any, names: Sequence[str] = ()
) -> Iterator[tuple[NDArray[np.int64], Tensor, Mapping[str, Tensor]]]:
    """Runs rows through the model without training it, in batches of like lengths.

    Args:
        batch: turns rows into a ``Batch``.
        names: features to watch.

    Yields:
        Indices of the rows, logits (rows, labels) in fp32, and features (rows, length, width),
        padding included.
    """
    model.eval()
    depth = len(family.structure(model).layers)
    order = np.argsort([row.shape[1] for row in rows], kind="stable")
    for start in range(0, len(order), 64):
        indices = order[start : start + 64]
        inputs = tensors(batch([rows[i] for i in indices]))
        with watch(model, family, depth, names) as seen, torch.inference_mode(), fast_math():
            logits = model(**inputs).logits.float()
        yield indices, logits, seen
