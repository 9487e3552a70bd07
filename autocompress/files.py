"""Files that are either whole or not there: written aside, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from autocompress.errors import UserError

RECORD = "autocompress.json"
"""What a model folder says of itself, and the hashes of its files."""
_DIGEST = "digest"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = (
    *_NO_ROOM,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EIO,
)


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


def keep_only(
    folder: Path, names: Collection[str | None], ours: str, at_work: Collection[str] = ()
) -> None:
    """Delete the folders in a folder that are called as ours are, but these, and what a kill left
    of writing one; whatever else lies there stays. Links are neither followed nor deleted.

    Args:
        ours: pattern of the names of our folders.
        at_work: names of more folders that stay, with what is being written of them.

    Raises:
        UserError: the folder is a link.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: nothing is deleted behind it, put a folder there")
    called = re.compile(rf"({ours})|\.({ours})\.\d+(?:\.old)?\.part")
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path.name in names or path.is_symlink() or not path.is_dir():
            continue
        match = called.fullmatch(path.name)
        if match and (match[1] or match[2]) not in at_work:
            shutil.rmtree(path)


def link(source: Path, target: Path) -> None:
    """A second name for a file that nobody will change; a copy where the disk knows no such."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def refused_by_the_disk(error: OSError) -> bool:
    """Whether an error says that a file cannot be had as things are: its name is too long, the disk
    is full or read-only, a limit or a right is in the way."""
    return error.errno in _REFUSALS


def no_room(error: OSError) -> bool:
    """Whether an error says that no more can be written."""
    return error.errno in _NO_ROOM


def lock(file: IO[Any], *, wait: bool = True, alone: bool = True) -> bool:
    """Keeps an open file for this process, until it is closed.

    Args:
        wait: until whoever has it is done.
        alone: if not, together with others that keep it so.

    Returns:
        Whether it is had; not to wait, and another process has it.

    Raises:
        UserError: the system has no such locks.
    """
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise UserError(
            "a search locks its folder and its device by fcntl, which this system lacks: search on "
            "Linux or macOS (in Windows under WSL); front, pick, export and report work here too"
        ) from error
    try:
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_files(folder: Path) -> list[Path]:
    """The files of a model folder, all as they were written; none that others put there.

    Raises:
        UserError: one is missing, damaged or a link.
    """
    record = folder / RECORD
    try:
        hashes = json.loads(record.read_text(encoding="utf-8"))["sha256"]
        files = {folder / name: digest for name, digest in hashes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{record} is missing or damaged: {error!r}") from error
    for file in (record, *files):
        if file.parent != folder or file.is_symlink() or not file.is_file():
            raise UserError(f"{file} is no file that autocompress wrote there")
        if file in files and sha256(file) != files[file]:
            raise UserError(f"{file} is damaged: its sha256 is not the one in {record.name}")
    return [record, *files]


def fingerprint(source: str) -> str:
    """Digest of a file, or the text itself when it names no file (a hub id, a split)."""
    return sha256(Path(source)) if Path(source).is_file() else source


def keep_json(path: Path, value: Mapping[str, Any]) -> None:
    """As ``write_json``, with a digest by which ``kept_json`` knows the file again."""
    write_json(path, {**value, _DIGEST: _digest(value)})


def kept_json(path: Path) -> dict[str, Any] | None:
    """What ``keep_json`` wrote; None where there is nothing to be read, or something else, which is
    deleted in one line."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if value.pop(_DIGEST) == _digest(value):
            return value
    except OSError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    _drop(path)
    return None


def keep_folder(folder: Path) -> None:
    """Write down the files of a folder, by which ``kept_folder`` knows them again."""
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    write_json(folder / RECORD, {"sha256": hashes})


def kept_folder(folder: Path) -> bool:
    """Whether a folder is as ``keep_folder`` left it; a damaged one is deleted in one line."""
    try:
        if folder.is_dir():
            whole_files(folder)
            return True
    except UserError:
        _drop(folder)
    except OSError:
        pass
    return False


def _drop(path: Path) -> None:
    logging.getLogger(__name__).warning("%s is damaged: it is made again", path)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where what outlives a run is kept: fine-tuned teachers, latency tables, locks of devices."""
    if os.environ.get("AUTOCOMPRESS_CACHE"):
        return Path(os.environ["AUTOCOMPRESS_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autocompress"
    except RuntimeError:  # a user without a home
        return own_temporary_folder()


def own_temporary_folder() -> Path:
    """Raises:
    PermissionError: others can write there.
    """
    folder = Path(tempfile.gettempdir()) / f"autocompress-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(errno.EACCES, "it is not the user's own", str(folder))
    return folder
