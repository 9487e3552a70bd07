"""Finds the TOML files that ship with autocompress, or the user's own by path."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from autocompress.errors import UserError
from autocompress.names import did_you_mean

Kind = Literal["search_spaces", "search_spaces/recipes", "hw_profiles"]
_NOUN: dict[Kind, str] = {
    "search_spaces": "search space",
    "search_spaces/recipes": "recipe",
    "hw_profiles": "hardware profile",
}


def _folder(kind: Kind) -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / kind).is_dir():
        return checkout / kind
    return package / kind


def names(kind: Kind) -> list[str]:
    """The names of the shipped files of this kind, sorted."""
    return sorted(path.stem for path in _folder(kind).glob("*.toml"))


def locate(kind: Kind, name_or_path: str) -> Path:
    """The file behind a shipped name or a path that ends in ``.toml``.

    Raises:
        UserError: neither a shipped name nor an existing file.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f"{_NOUN[kind]} file {name_or_path} does not exist")
        return path
    if name_or_path not in names(kind):
        near = did_you_mean(name_or_path, names(kind))
        raise UserError(
            f"unknown {_NOUN[kind]} {name_or_path!r}{near}: give a path to a .toml file or one of "
            f"{', '.join(names(kind))}"
        )
    return _folder(kind) / f"{name_or_path}.toml"


def read_toml(path: Path) -> dict[str, Any]:
    """The parsed file.

    Raises:
        UserError: the file is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
