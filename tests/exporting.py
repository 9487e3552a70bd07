"""Model folders made in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.candidate import Candidate
from autocompress.interfaces import Batch
from autocompress.plan import Plan
from autocompress.shipping import Graph
from autocompress.structure import Structure


def export_model(
    model: nn.Module,
    structure: Structure | Plan,
    candidate: Candidate,
    target: Path,
    calibration: Sequence[Batch],
    tokenizer_files: Path,
) -> dict[str, float]:
    """A whole model folder in the candidate's number format, and its parity."""
    config: Any = model.config
    plan = structure if isinstance(structure, Plan) else Plan(config.model_type, structure)
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.parent / f"{target.name}.fp32.onnx"
    told = {"candidate": candidate.as_dict()}
    try:
        graph = Graph(model.eval(), plan, file, calibration)
        return graph.ship(candidate, target, tokenizer_files, told=told)
    finally:
        file.unlink(missing_ok=True)
