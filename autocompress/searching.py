"""A search from Python. Importing it imports no torch: that is for the first search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.hardware.profile import USUAL, HardwareProfile
from autocompress.journal import run_folder
from autocompress.limits import Limits
from autocompress.search_space import SearchSpace
from autocompress.techniques import TECHNIQUES, vocabulary

if TYPE_CHECKING:
    from autocompress.engine.listener import Listener
    from autocompress.engine.loop import SearchResult
    from autocompress.engine.session import Connect
    from autocompress.interfaces import TaskKind, Technique
    from autocompress.tasks.data import Columns


def search(
    model: str | Path,
    data: str | Path,
    hardware: str | HardwareProfile | Sequence[str | HardwareProfile] = USUAL,
    space: str | SearchSpace | None = None,
    out: str | Path | None = None,
    *,
    task: str | TaskKind | None = None,
    columns: Columns | None = None,
    budget: Limits | None = None,
    listener: Listener | None = None,
    connect: Connect | None = None,
    **options: Any,
) -> SearchResult:
    """Search for the compressed models worth having; the command ``autocompress search`` in Python.

    Args:
        hardware: a profile, the name of a shipped one, or a TOML path; or several of them, each of
            which gets a front.
        space: likewise, one; it may name the settings of ``techniques``. By default the shipped one
            for the model's family and size.
        out: the run folder; by default the next free ``runs/NAME-N``, or the last to go on with.
        task: by name, or one of your own; by default that of the model's head.
        columns: of the data; usual names are found.
        listener: hears of the progress. By default it is logged as ``autocompress``, and shown
            where there is a terminal or a notebook; ``engine.listener.Silent`` hears nothing.
        connect: reaches the devices.
        options: any other field of ``Request``, such as ``trials``, ``time_limit_s``, ``finetune``,
            ``seed``, ``resume``, ``sampler``, ``techniques``, the last two also objects of your
            own; and the options of the task, such as ``unlabeled`` or ``block_length``.

    Returns:
        The verified fronts, whose ``pick`` chooses by budget, and the run folder.

    Raises:
        See ``engine.session.search_for``.
    """
    from autocompress import progress
    from autocompress.engine import defaults, session
    from autocompress.engine.request import Request
    from autocompress.hardware import devices

    listed = [hardware] if isinstance(hardware, str | HardwareProfile) else hardware
    known = {field.name for field in fields(Request)} - {"options"}
    of_task = {name: options.pop(name) for name in [*options] if name not in known}
    if columns is not None:
        of_task |= {f"{role}_column": name for role, name in vars(columns).items()}
    if task is None or space is None:
        usual_task, usual_space = defaults.of_model(str(model))
        task, space = task or usual_task, space or usual_space
    request = Request(
        str(model),
        task,
        str(data),
        tuple(
            profile if isinstance(profile, HardwareProfile) else HardwareProfile.load(profile)
            for profile in listed
        ),
        _space(space, options.get("techniques", TECHNIQUES)),
        Path(out) if out else run_folder(short_name(model), options.get("resume", False)),
        {
            name.replace("_", "-"): str(value) if isinstance(value, Path) else value
            for name, value in of_task.items()
            if value is not None
        },
        budget=budget or Limits(),
        **options,
    )
    connect = connect or devices.connect
    if listener is not None:
        return session.search_for(request, listener, connect)
    shown = progress.is_watched()
    with progress.Progressing(request.time_limit_s, request.metric, shown=shown) as listening:
        return session.search_for(request, listening, connect)


def short_name(model: str | Path) -> str:
    """Of a folder, a file or a hub id, for a run's folder."""
    path = Path(model)
    last = path.resolve().stem if path.suffix == ".gguf" else path.resolve().name
    return re.sub(r"[^\w.-]+", "-", last)


def _space(space: str | SearchSpace, techniques: Sequence[Technique]) -> SearchSpace:
    return (
        space if isinstance(space, SearchSpace) else SearchSpace.load(space, vocabulary(techniques))
    )
