"""Files that are either whole or not there: written aside, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autocompress.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A scratch folder that becomes ``path`` (replacing it) when the block ends without an
    error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, before = (
        path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old.part")
    )
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            path.replace(before)
        aside.replace(path)
    finally:
        for left in (aside, before):
            shutil.rmtree(left, ignore_errors=True)


def keep_only(folder: Path, names: Collection[str | None], ours: str) -> None:
    """Delete the folders in a folder that are called as ours are, but these, and what a kill left
    of writing one; whatever else lies there stays. Links are neither followed nor deleted.

    Args:
        ours: pattern of the names of our folders.

    Raises:
        UserError: the folder is a link.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: nothing is deleted behind it, put a folder there")
    called = re.compile(rf"(?:{ours})|\.(?:{ours})\.\d+(?:\.old)?\.part")
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path.name in names or path.is_symlink() or not path.is_dir():
            continue
        if called.fullmatch(path.name):
            shutil.rmtree(path)


def link(source: Path, target: Path) -> None:
    """A second name for a file that nobody will change; a copy where the disk knows no such."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(source: str) -> str:
    """Digest of a file, or the text itself when it names no file (a hub id, a split)."""
    return sha256(Path(source)) if Path(source).is_file() else source


def cache_folder() -> Path:
    """Where what outlives a run is kept: fine-tuned teachers, latency tables, locks of devices."""
    if os.environ.get("AUTOCOMPRESS_CACHE"):
        return Path(os.environ["AUTOCOMPRESS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autocompress"
