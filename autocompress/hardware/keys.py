"""The keys of a TOML file, declared as the annotations of a dataclass: the domain, a summary, and
the default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

from autocompress.candidate import Domain, Plain, Setting, Value
from autocompress.errors import UserError
from autocompress.names import did_you_mean


@dataclass(frozen=True)
class Table(Plain):
    """A TOML table with keys out of these, whose values ``entry`` allows; a ``Value`` is none."""

    keys: tuple[str, ...]
    entry: Domain | None = None

    def allows(self, value: Value) -> bool:
        return False

    def __str__(self) -> str:
        return f"a table of {', '.join(self.keys)}"


@dataclass(frozen=True)
class Key(Setting):
    """A setting of a file.

    Args:
        default: ``MISSING`` for a key that must be given; it need not be in the domain, as None.
        attribute: of the dataclass.
    """

    default: Any
    attribute: str = ""

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def has_default(self) -> bool:
        """Whether the default is a value that a file could hold."""
        return self.default not in (MISSING, None, (), {})


def declared(cls: Any, **names: str) -> dict[str, Key]:
    """What a dataclass declares as ``attribute: Annotated[type, domain, summary] = default``, by
    the name in a file.

    Args:
        names: by attribute, where a file has another.
    """
    hints = get_type_hints(cls, include_extras=True)
    keys = {}
    for item in dataclasses.fields(cls):
        if get_origin(hints[item.name]) is Annotated:
            domain, summary = hints[item.name].__metadata__
            name = names.get(item.name, item.name)
            default = item.default if item.default_factory is MISSING else item.default_factory()
            keys[name] = Key(name, domain, default, summary, attribute=item.name)
    return keys


def check_names(
    values: Mapping[str, Any], keys: Mapping[str, Key], where: Path | str, *beside: str
) -> None:
    """Whether every value is of a declared key, or of one beside, and no required one is missing.

    Raises:
        UserError: ``where`` leads the message.
    """
    for name in values:
        if name not in keys:
            meant = [key.name for key in keys.values() if key.attribute == name]
            known = ", ".join((*keys, *beside))
            hint = f"did you mean {meant[0]}?" if meant else f"known are {known}"
            near = "" if meant else did_you_mean(name, keys)
            raise UserError(f"{where}: unknown key {name!r}{near}; {hint}")
    for key in keys.values():
        if key.required and key.name not in values:
            raise UserError(f"{where}: missing key {key.name!r}")


def check_values(record: Any, keys: Mapping[str, Key], where: str) -> None:
    """Whether a dataclass holds what its keys allow; one that was not given holds the default
    itself.

    Raises:
        UserError: ``where`` leads the message.
    """
    for key in keys.values():
        value = getattr(record, key.attribute)
        if value is key.default or dataclasses.is_dataclass(value):  # which checked itself
            continue
        if isinstance(key.domain, Table) and key.domain.entry and isinstance(value, Mapping):
            _check_table(key, key.domain.keys, key.domain.entry, value, where)
        else:
            key.check(value, where)


def _check_table(
    key: Key, names: tuple[str, ...], entry: Domain, table: Mapping[str, Any], where: str
) -> None:
    for name, value in table.items():
        if name not in names:
            raise UserError(f"{where}: {key.name} names {name!r}, known are {', '.join(names)}")
        replace(key, name=f"{key.name}.{name}", domain=entry).check(value, where)
