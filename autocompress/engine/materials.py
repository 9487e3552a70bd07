"""What a search works on, read alike in each of its processes: its data and its teacher."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.candidate import Value
from autocompress.cores import reserved
from autocompress.distillation.settings import CLEANED
from autocompress.engine.making import Maker, teacher_of
from autocompress.engine.request import Request
from autocompress.engine.workshop import Workshop
from autocompress.errors import UserError
from autocompress.families import family_of
from autocompress.hardware.devices import lengths_of
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Task, TaskInputs, Technique
from autocompress.search_space import Choices, SearchSpace
from autocompress.techniques import TECHNIQUES
from autocompress.training.compute import Compute
from autocompress.training.teacher import (
    digest_of,
    load_config,
    load_teacher,
    load_tokenizer,
    positions_of,
    quiet,
)

_OF_THE_SEARCH = ("space", "techniques", "sampler")
"""Fields of a request that a worker has no use for, or gets otherwise."""


@dataclass(frozen=True)
class Materials:
    """Of which a workshop is set up in another process, also of another machine that has the same
    folders. It can be pickled, as long as what the user gave can be.

    Args:
        asked: of the search's request, by the names of its fields.
        techniques: those that ship by their names.
        cleaned: whether cleaned text may be learned from.
        teacher: folder or hub id of its model, fine-tuned where that is asked.
        lineage: of the search's own ``Maker``.
        threads: of torch; as many as it chooses where none are given.
        directory: that paths are relative to.
    """

    asked: Mapping[str, Any]
    techniques: Sequence[str | Technique]
    cleaned: bool
    teacher: str
    lineage: str
    threads: int | None = None
    directory: Path = field(default_factory=Path.cwd)

    @classmethod
    def of(cls, request: Request, maker: Maker, threads: int | None = None) -> Materials:
        """What ``maker`` makes students of; a fine-tuned teacher is written beside them."""
        teacher = request.model
        if request.finetune:
            teacher = str(maker.folder.parent / "scratch" / "teacher-model")
            model: Any = maker.teacher.model
            model.save_pretrained(teacher)
        asked = {part.name: getattr(request, part.name) for part in fields(Request)}
        asked = {name: value for name, value in asked.items() if name not in _OF_THE_SEARCH}
        techniques = [one.name if one in TECHNIQUES else one for one in request.techniques]
        cleaned = may_be(request.space, CLEANED, True)
        return cls(asked, techniques, cleaned, teacher, maker.lineage, threads)

    @property
    def request(self) -> Request:
        """The search's, as far as students follow from it."""
        shipped = {technique.name: technique for technique in TECHNIQUES}
        techniques = [shipped[one] if isinstance(one, str) else one for one in self.techniques]
        section, key = CLEANED.split(".")
        space = SearchSpace.from_mapping("worker", {section: {key: [self.cleaned], "steps": [1]}})
        return Request(**self.asked, space=space, techniques=techniques)

    @quiet()
    def workshop(self, scratch: Path) -> Workshop:
        """A workshop of this process that shares the machine with others of the search.

        Args:
            scratch: folder of its own; emptied first.

        Raises:
            UserError: something is not as the search read it.
        """
        os.chdir(self.directory)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        request = self.request
        task, _ = read_data(request)
        model = read_teacher(self.teacher, task, fresh=False)
        config: Any = model.config
        compute = Compute.choose(request.train_on, request.tf32)
        teacher = teacher_of(task, model, family_of(config.model_type), scratch, compute)
        folder = request.out / "students"
        maker = Maker(teacher, folder, digest_of(model), request.seed, request.techniques)
        if maker.lineage != self.lineage:
            raise UserError(
                f"a worker read another model or other text than the search from {self.teacher} "
                f"and {request.data}: were they changed meanwhile?"
            )
        maker.holding_cores = lambda: reserved(alone=False)
        return Workshop(maker, task)


def read_teacher(source: str, task: Task, *, fresh: bool) -> nn.Module:
    """See ``load_teacher``; it pads as the task does."""
    model: Any = load_teacher(source, task, fresh=fresh)
    if task.pad_id is not None:
        model.config.pad_token_id = task.pad_id
    teacher: nn.Module = model
    return teacher


def read_data(request: Request) -> tuple[Task, Any]:
    """The task with its data, and the tokenizer; raises as ``session.search_for``."""
    config = load_config(request.model)
    tokenizer = load_tokenizer(request.model, config.vocab_size)
    positions = positions_of(config)
    generates = request.kind.head.generates
    for profile in request.hardware:
        if generates and profile.runtime == "torch-cuda":
            raise UserError(
                f"hardware profile {profile.name}: torch-cuda times no language models, "
                f"onnxruntime-cuda does"
            )
    task = request.kind.load(
        TaskInputs(
            request.model,
            config,
            tokenizer,
            positions,
            family_of(config.model_type).causal,
            request.data,
            request.validation,
            request.test,
            request.options,
            fresh=request.finetune,
            cleaned=may_be(request.space, CLEANED, True),
        )
    )
    for profile in request.hardware:
        profile.check_lengths(timed_lengths(profile, task), positions, generates=generates)
    return task, tokenizer


def timed_lengths(profile: HardwareProfile, task: Task) -> tuple[int, ...]:
    """Tokens of the texts that a device times."""
    return lengths_of(profile, [row.shape[1] for row in task.validation.rows])


def may_be(space: SearchSpace, name: str, value: Value) -> bool:
    """Whether any candidate of a space has this choice in a setting."""
    return any(
        p.name == name and isinstance(p.values, Choices) and value in p.values.values
        for p in space.parameters
    )
