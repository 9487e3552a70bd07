"""The model folder that ships: ONNX that runs without autocompress, and weights that load back into
torch."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.artifact import REFUSED
from autocompress.candidate import Candidate
from autocompress.environment import versions
from autocompress.errors import NOT_FINITE, CandidateFailed, UserError
from autocompress.families import family_of
from autocompress.files import folder_aside, link, sha256, write_json
from autocompress.formats import convert
from autocompress.graphs.decoding import generates
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import Model, past_of
from autocompress.graphs.storage import store
from autocompress.interfaces import Batch
from autocompress.plan import Plan
from autocompress.quantizers.codes import Codes
from autocompress.student import WEIGHTS, config_of, write_weights
from autocompress.training.compute import CPU

PARITY_LIMIT = 1e-4
"""Largest difference of a logit between torch and the fp32 graph, of logits up to 10; of larger
ones in proportion, as fp32 rounds them. A model beyond it is rejected, unless torch itself rounds
by as much: activations of language models go into the thousands."""
_ROUNDINGS = 4
"""How far the graph may be from torch, in differences between torch in fp32 and in fp64."""
_PARITY_ROWS, _PARITY_TOKENS = 2, 64
"""Of a language model, whose logits take as much memory as its vocabulary is large."""


class Graph:
    """A student's fp32 graph, from which it is converted to any number of formats.

    Args:
        model: the student, read back from its folder; in evaluation mode, on the CPU.
        plan: of the student.
        file: where the graph is written.
        calibration: training batches for static quantization; the first also serves the parity
            check, of a language model as much of it as is quick.

    Raises:
        CandidateFailed: not exportable, or the graph differs from torch by more than
            ``PARITY_LIMIT``.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, file: Path, calibration: Sequence[Batch]
    ) -> None:
        self.model, self.plan, self.file, self.calibration = model, plan, file, calibration
        to_onnx(model, file, calibration[0])
        self._check()

    def ship(
        self,
        candidate: Candidate,
        target: Path,
        tokenizer_files: Path,
        weights: Path | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """Write a whole model folder in one number format, or nothing.

        Args:
            candidate: its number format.
            tokenizer_files: folder whose files are copied along.
            weights: the student's own file of weights, which gets a second name; else they are
                written.
            told: what else the folder says of itself.

        Returns:
            Parity with torch: ``largest_logit`` of torch, ``fp32_max_abs_difference`` of the graph
            before conversion, ``max_abs_difference`` and ``agreement`` (share of equal answers) of
            the one that ships; of a language model over all tokens, the last of which is read with
            the others in the cache.

        Raises:
            CandidateFailed: the graph cannot be converted, or what it becomes overflows.
        """
        config: Any = self.model.config
        stored: dict[str, Any] = {}
        with folder_aside(target) as folder:
            quantization = convert(
                self.file,
                folder / "model.onnx",
                candidate,
                [dict(batch.inputs) for batch in self.calibration],
                by_token=family_of(config.model_type).causal,
                ranges=self.plan.ranges(),
            )
            if self._codes is not None:
                stored = {"storage": store(folder / "model.onnx", self._codes)}
            parity = self._parity(folder / "model.onnx")
            if weights is None:
                write_weights(self.model, folder / WEIGHTS)
            else:
                link(weights, folder / WEIGHTS)
            described = {"original": config_of(self.model), "plan": self.plan.as_dict()}
            write_json(folder / "config.json", REFUSED | described)
            shutil.copytree(tokenizer_files, folder, dirs_exist_ok=True)
            hashes = {path.name: sha256(path) for path in sorted(folder.iterdir())}
            facts = {"sizes": self.plan.sizes(), "quantization": quantization, "parity": parity}
            record = {**facts, **stored, **(told or {}), "sha256": hashes, "versions": versions()}
            write_json(folder / "autocompress.json", record)
        return parity

    @cached_property
    def _codes(self) -> list[Codes] | None:
        return self.plan.codes(self.model)

    @cached_property
    def _batch(self) -> Batch:
        batch = self.calibration[0]
        if not generates(self.model):
            return batch
        few = {k: array[:_PARITY_ROWS, :_PARITY_TOKENS] for k, array in batch.inputs.items()}
        return Batch(few)

    @cached_property
    def _real(self) -> Any:
        """Index of the answers that count: of a language model those to real tokens."""
        return self._batch.inputs["attention_mask"] == 1 if generates(self.model) else slice(None)

    @cached_property
    def _reference(self) -> NDArray[np.float32]:
        """Logits of torch."""
        with torch.inference_mode():
            logits = self.model.eval()(**CPU.tensors(self._batch)).logits
        real_logits: NDArray[np.float32] = logits.numpy()[self._real]
        return real_logits

    @cached_property
    def _before(self) -> NDArray[np.float32]:
        """Logits of the fp32 graph."""
        return self._answers(self.file)

    def _check(self) -> None:
        difference = float(np.abs(self._reference - self._before).max())
        largest = float(np.abs(self._reference).max())
        alike = difference <= PARITY_LIMIT * max(1.0, largest / 10)
        if not alike and not difference <= _ROUNDINGS * self._rounding():
            raise CandidateFailed(
                f"the ONNX graph's logits differ from torch's by {difference:.2g}"
            )

    def _parity(self, shipped: Path) -> dict[str, float]:
        reference, before, after = self._reference, self._before, self._answers(shipped)
        if not np.isfinite(after).all():
            raise CandidateFailed(NOT_FINITE)
        return {
            "largest_logit": float(np.abs(reference).max()),
            "fp32_max_abs_difference": float(np.abs(reference - before).max()),
            "max_abs_difference": float(np.abs(reference - after).max()),
            "agreement": float((reference.argmax(-1) == after.argmax(-1)).mean()),
        }

    def _rounding(self) -> float:
        """By how much torch's own logits change in fp64."""
        with torch.inference_mode():
            double = copy.deepcopy(self.model).double()(**CPU.tensors(self._batch)).logits
        return float(np.abs(self._reference - double.numpy()[self._real]).max())

    def _answers(self, file: Path) -> NDArray[np.float32]:
        """Logits; of a language model those of the last token come from a second run, with the
        others in the cache."""
        inputs = self._batch.inputs
        try:
            model = Model(file, threads=1)
            if not generates(self.model):
                return model(inputs)
            first = model.outputs({name: array[:, :-1] for name, array in inputs.items()})
            one = {
                "input_ids": inputs["input_ids"][:, -1:],
                "attention_mask": inputs["attention_mask"],
            }
            last = model.outputs({**one, **past_of(first)})
        except UserError as error:
            raise CandidateFailed(str(error)) from error
        logits = np.concatenate([first["logits"], last["logits"]], axis=1)
        real_logits: NDArray[np.float32] = logits[self._real]
        return real_logits
