"""Recipes: methods of the literature, each as one point of the search space."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress import resources
from autocompress.candidate import Value, thaw
from autocompress.errors import UserError
from autocompress.search_space import Choices, Parameter, SearchSpace, flatten
from autocompress.techniques import SETTINGS

_ABOUT = ("description", "paper", "section")
_DIFFERS = "differs"


@dataclass(frozen=True)
class Recipe:
    """A named method.

    Args:
        paper: authors, year and title.
        section: where the paper describes it.
        settings: by name; all others have their defaults.
        differs: what stands in for what the paper does, beside what ``docs/recipes.md`` says of
            all; nothing where it is the paper's.
    """

    name: str
    description: str
    paper: str
    section: str
    settings: Mapping[str, Value]
    differs: str = ""

    @classmethod
    def load(cls, name_or_path: str, changes: Sequence[str] = ()) -> Recipe:
        """A shipped recipe by name, or a TOML file by path.

        Args:
            changes: ``key=value``, in place of what the recipe says; values as in TOML, and bare
                words.

        Raises:
            UserError: not found, not a recipe, unknown setting, value not allowed, or a setting
                that means nothing beside the others.
        """
        path = resources.locate("search_spaces/recipes", name_or_path)
        values = resources.read_toml(path)
        about = {key: values.pop(key, None) for key in _ABOUT}
        about[_DIFFERS] = values.pop(_DIFFERS, "")
        for key, text in about.items():
            if not isinstance(text, str):
                raise UserError(f"{path}: {key} is {text!r}, it must be text")
        given = flatten(values, str(path))
        settings, changed = _named(given, given, str(path)), dict(_change(text) for text in changes)
        if changed:
            settings = _named(given | changed, changed, "--set")
        return cls(path.stem, **about, settings=settings)

    @property
    def space(self) -> SearchSpace:
        """The recipe as a search space of one point."""
        parameters = tuple(
            Parameter(SETTINGS.by_name[name], Choices((value,)))
            for name, value in self.settings.items()
        )
        return SearchSpace(self.name, self.description, parameters)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        about = {key: getattr(self, key) for key in ("name", *_ABOUT, _DIFFERS)}
        return about | {"settings": {name: thaw(value) for name, value in self.settings.items()}}


def _named(given: Mapping[str, Any], required: Collection[str], where: str) -> dict[str, Value]:
    """The given settings that mean something beside one another, as the required ones must."""
    active = SETTINGS.active(given, where)
    for name in required:
        if name not in active:
            raise UserError(f"{where}: {name} means nothing beside the other settings")
    return {name: value for name, value in active.items() if name in given}


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: give key=value, such as recovery.steps=500")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
