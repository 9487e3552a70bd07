"""Where training runs: the device, the arithmetic, and how tensors get there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from autocompress.errors import UserError
from autocompress.interfaces import Batch


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

        bf16 products where they are faster: on a GPU, and on a CPU that has them.

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
    def math(self) -> Iterator[None]:
        """The arithmetic of training and of scores that only compare students in training.

        On the CPU attention is plain products: at the length of sentences the fused kernel costs a
        step a quarter more.
        """
        kind = "cuda" if self.on_gpu else "cpu"
        fast = self.autocast or torch.bfloat16
        products = _tf32(self.tf32) if self.on_gpu else sdpa_kernel(SDPBackend.MATH)
        with torch.autocast(kind, fast, enabled=self.autocast is not None), products:
            yield

    def tensors(self, batch: Batch) -> dict[str, Tensor]:
        """Model inputs as tensors on the device; on the CPU they share the arrays' memory."""
        return {name: self.moved(torch.from_numpy(array)) for name, array in batch.inputs.items()}

    def moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device."""
        return tensor.to(self.device, non_blocking=True)

    def room_for(self, size: int) -> bool:
        """Whether the device's own memory holds so many bytes more beside a training step; never on
        the CPU, whose tensors go to disk."""
        if not self.on_gpu:
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return size < free // 4


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


def _has_bf16(device: str) -> bool:
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())
