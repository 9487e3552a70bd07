"""Where training runs: the device, the arithmetic, and how tensors get there."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from autocompress.errors import UserError
from autocompress.interfaces import Batch

LONGEST_PLAIN = 96
"""Tokens of a text up to which attention on the CPU is plain products. A training step took 83 ms
with them and 101 with the fused kernel at 64 tokens, 636 and 532 at 128, 1479 and 541 at 384, where
they also keep five times the memory."""


@dataclass(frozen=True)
class Compute:
    """One device and its arithmetic.

    Args:
        device: of models and batches.
        autocast: type that matrix products are computed in; None computes them in fp32.
        tf32: whether a GPU may round the inputs of fp32 products to TF32.
    """

    device: str = "cpu"
    autocast: torch.dtype | None = None
    tf32: bool = False

    @classmethod
    def choose(cls, name: str = "auto", tf32: bool = False) -> Compute:
        """By name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for the GPU where there is one.

        bf16 products where the device has them of its own: emulated they are slower than fp32.

        Raises:
            UserError: no such device here.
        """
        match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
        if match is None:
            raise UserError(f"--train-on is {name!r}, allowed is auto, cpu, cuda or cuda:N")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if name == "auto":
            name = "cuda" if gpus else "cpu"
        if name != "cpu" and int(match[1] or 0) >= gpus:
            raise UserError(f"--train-on {name}: torch sees {gpus} GPUs here")
        return cls(name, torch.bfloat16 if _has_bf16(name) else None, tf32)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @contextmanager
    def math(self, length: int) -> Iterator[None]:
        """The arithmetic of training and of scores that only compare students in training.

        Args:
            length: tokens of a text.
        """
        fast = self.autocast or torch.bfloat16
        with (
            torch.autocast(self._kind, fast, enabled=self.autocast is not None),
            _tf32(self.tf32) if self.on_gpu else _attention(length),
        ):
            yield

    def logits(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """What a model of transformers answers, in fp32.

        The product of a language head is one in fp32, too: rounded to bf16, the logits of a
        vocabulary move a perplexity by up to 2 percent.
        """
        head = model.get_output_embeddings()
        with self.math(inputs["input_ids"].shape[1]):
            if head is None:
                answers: Tensor = model(**inputs).logits.float()
                return answers
            last = model.base_model(**inputs).last_hidden_state
            with torch.autocast(self._kind, enabled=False):
                named: Tensor = head(last.float())
                return named

    @property
    def _kind(self) -> str:
        return "cuda" if self.on_gpu else "cpu"

    def tensors(self, batch: Batch) -> dict[str, Tensor]:
        """Model inputs as tensors on the device; on the CPU they share the arrays' memory."""
        return {name: self.moved(torch.from_numpy(array)) for name, array in batch.inputs.items()}

    def moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device."""
        return tensor.to(self.device, non_blocking=True)


CPU = Compute()
"""In plain fp32."""


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _attention(length: int) -> Any:
    return sdpa_kernel(SDPBackend.MATH) if length <= LONGEST_PLAIN else nullcontext()


def _has_bf16(device: str) -> bool:
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):  # mkldnn's own answer counts emulation
        return torch.cpu._is_avx512_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
