"""A student: a model in the making, as a folder with a name.

The name is a digest of all that its weights follow from - teacher, plan, training settings and the
search's seed - and what it draws by as well, so the same student comes out of any machine, in any
order. The folder holds its weights, its plan and how far it is trained; while it is in training,
also the state of everything that trains it.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn
from transformers import AutoConfig

from autocompress.candidate import Candidate
from autocompress.families import family_of
from autocompress.files import folder_aside, link, write_json
from autocompress.interfaces import Family, Technique
from autocompress.plan import Plan
from autocompress.techniques import TECHNIQUES

WEIGHTS = "model.safetensors"
_TRAINING = "training.safetensors"
_RECORD = "student.json"


def student_id(lineage: str, plan: Plan, training: Candidate, seed: int) -> str:
    """The name of a student.

    Args:
        lineage: digest of the teacher and of what it teaches with.
        training: see ``techniques.training_of``.
        seed: of the search.
    """
    told = [lineage, plan.as_dict(), training.as_dict(), seed]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def plan_from(value: Mapping[str, Any], techniques: Sequence[Technique] = TECHNIQUES) -> Plan:
    """A plan from ``Plan.as_dict``.

    Raises:
        ValueError: made by a technique that is not among these.
    """
    kinds = {technique.name: technique.part for technique in techniques if technique.part}
    return Plan.from_dict(value, kinds)


def blank(config: Any, plan: Plan, techniques: Sequence[Technique] = TECHNIQUES) -> nn.Module:
    """An untrained model of this plan's shapes, for weights to be loaded into.

    Args:
        config: of the whole model; ``architectures`` tells a language model from a classifier.
    """
    family = family_of(plan.family)
    model = family.blank(config, plan.structure.sizes())
    for technique, part in parts_of(plan, techniques):
        technique.build(model, part, family)
    return model


def first(
    teacher: nn.Module,
    family: Family,
    plan: Plan,
    start: str,
    techniques: Sequence[Technique] = TECHNIQUES,
) -> nn.Module:
    """The student before any training: cut from its teacher, built and filled part by part.

    Args:
        start: one of ``families.starts.STARTS``.
    """
    return filled(family.cut(teacher, plan.structure, start), family, plan, techniques)


def filled(
    model: nn.Module, family: Family, plan: Plan, techniques: Sequence[Technique] = TECHNIQUES
) -> nn.Module:
    """The cut model with the plan's parts, built and filled one by one."""
    for technique, part in parts_of(plan, techniques):
        before = copy.deepcopy(model)
        technique.build(model, part, family)
        technique.fill(model, before, part, family)
    return model


def parts_of(plan: Plan, techniques: Sequence[Technique]) -> list[tuple[Technique, Any]]:
    """The plan's parts in order, each with its technique."""
    by_name = {technique.name: technique for technique in techniques}
    return [(by_name[part.technique], part) for part in plan.parts]


def config_of(model: nn.Module) -> dict[str, Any]:
    """What of a model's config rebuilds it, beside its type."""
    config: Any = model.config
    entries = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    return entries | {"architectures": [type(model).__name__]}


@dataclass(frozen=True)
class Student:
    """One folder.

    Args:
        plan: what it is made of; what training learned joins it at the end.
        config: of the teacher.
        steps: of recovery, done so far.
        answers: packed evidence of what it answered when it was sealed, if it was asked.
        sealed: whether nothing is to be trained any more.
    """

    folder: Path
    plan: Plan
    config: Mapping[str, Any]
    steps: int = 0
    answers: str | None = None
    sealed: bool = False

    @property
    def id(self) -> str:
        return self.folder.name

    @classmethod
    def load(cls, folder: Path, techniques: Sequence[Technique] = TECHNIQUES) -> Student:
        """Raises:
        OSError, ValueError, KeyError: no whole student there.
        """
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        plan = plan_from(record["plan"], techniques)
        return cls(
            folder, plan, record["config"], record["steps"], record["answers"], record["sealed"]
        )

    def model(self, techniques: Sequence[Technique] = TECHNIQUES) -> nn.Module:
        """The plain model with the weights of the folder, in evaluation mode."""
        return load_plain(self.folder, self.config, self.plan, techniques)

    def state(self) -> dict[str, Tensor]:
        """Of its training; empty before the first step."""
        file = self.folder / _TRAINING
        return load_file(file) if file.is_file() else {}

    def paused(self, steps: int, state: Mapping[str, Tensor]) -> Student:
        """Write how far it is; whole or not at all."""
        return self._written(replace(self, steps=steps), None, state)

    def as_sealed(
        self, folder: Path, model: nn.Module, plan: Plan, steps: int, answers: str | None = None
    ) -> Student:
        """Write the trained weights into a folder, which may be its own, without the state of
        training."""
        after = replace(self, folder=folder, plan=plan, steps=steps, answers=answers, sealed=True)
        return after._written(after, model, {})

    def begun(self, model: nn.Module) -> Student:
        """Write its first weights."""
        return self._written(self, model, {})

    def _written(
        self, after: Student, model: nn.Module | None, state: Mapping[str, Tensor]
    ) -> Student:
        with folder_aside(self.folder) as folder:
            if model is None:
                link(self.folder / WEIGHTS, folder / WEIGHTS)
            else:
                write_weights(model, folder / WEIGHTS)
            if state:
                save_file(dict(state), folder / _TRAINING)
            record = {
                "plan": after.plan.as_dict(),
                "config": dict(after.config),
                "steps": after.steps,
                "answers": after.answers,
                "sealed": after.sealed,
            }
            write_json(folder / _RECORD, record)
        return after


def write_weights(model: nn.Module, file: Path) -> None:
    """As safetensors; shared tensors once.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    try:
        save_weights(model, str(file), {"format": "pt"})
    except SafetensorError as error:
        told = re.search(r"os error (\d+)", str(error))
        code = int(told[1]) if told else errno.ENOSPC if "space" in str(error) else errno.EIO
        raise OSError(code, f"{file.name}: {error}") from error


def load_plain(
    folder: Path,
    config: Mapping[str, Any],
    plan: Plan,
    techniques: Sequence[Technique] = TECHNIQUES,
) -> nn.Module:
    """The model of a plan with the weights of a folder."""
    base = AutoConfig.for_model(plan.family, **config)
    model = blank(base, plan, techniques)
    load_weights(model, folder / WEIGHTS)
    return model.eval()
