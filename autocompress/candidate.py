"""A candidate: one point of a search, as named settings; and the declaration of what a setting may
be.

This page imports neither torch nor onnxruntime, so spaces are validated and fronts are read in a
fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from autocompress.errors import UserError

Value = bool | int | float | str | tuple["Value", ...]
"""A setting's value: JSON scalars, or a tuple where JSON has a list."""


def freeze(value: Any) -> Value:
    """JSON / TOML lists become tuples, so that a value can be hashed.

    Raises:
        TypeError: not a scalar or a list of scalars.
    """
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} is no setting's value")


def thaw(value: Value) -> Any:
    """The inverse of ``freeze``: tuples become lists."""
    return [thaw(item) for item in value] if isinstance(value, tuple) else value


class Domain(Protocol):
    """The values that a setting allows."""

    @property
    def has_ranges(self) -> bool:
        """Whether a space may give a range of numbers."""
        ...

    def allows(self, value: Value) -> bool: ...

    def canonical(self, value: Value) -> Value:
        """The one form of an allowed value that may be written in several, such as 1 and 1.0."""
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class OneOf:
    """One of the listed values."""

    values: tuple[Value, ...]
    has_ranges: bool = False

    def allows(self, value: Value) -> bool:
        return any(value == item and type(value) is type(item) for item in self.values)

    def canonical(self, value: Value) -> Value:
        return value

    def __str__(self) -> str:
        return "one of " + ", ".join(str(value) for value in self.values)


@dataclass(frozen=True)
class SubsetOf:
    """A list without repetition of the listed names; never empty."""

    names: tuple[str, ...]
    has_ranges: bool = False

    def allows(self, value: Value) -> bool:
        return (
            isinstance(value, tuple)
            and len(value) > 0
            and len(set(value)) == len(value)
            and set(value) <= set(self.names)
        )

    def canonical(self, value: Value) -> Value:
        assert isinstance(value, tuple)
        return tuple(name for name in self.names if name in value)

    def __str__(self) -> str:
        return "a list of one or more of " + ", ".join(self.names)


@dataclass(frozen=True)
class Real:
    """A number in [low, high]."""

    low: float
    high: float
    has_ranges: bool = True

    def allows(self, value: Value) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        )

    def canonical(self, value: Value) -> Value:
        assert isinstance(value, int | float)
        return float(value)

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high]."""

    low: int
    high: int
    has_ranges: bool = True

    def allows(self, value: Value) -> bool:
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        )

    def canonical(self, value: Value) -> Value:
        return value

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Setting:
    """One named knob of a candidate.

    Args:
        name: ``section.key``, as in a search space file.
        domain: the values allowed.
        default: the value that leaves the model as it is, or the usual one.
        summary: one line for ``autocompress space settings``.
        when: whether the setting means anything beside the others, which are given with their
            defaults; an inactive setting is dropped, so two candidates that differ only there are
            the same.
    """

    name: str
    domain: Domain
    default: Value
    summary: str
    when: Callable[[Mapping[str, Value]], bool] = lambda _: True

    def check(self, value: Any, where: str) -> Value:
        """The value, frozen.

        Raises:
            UserError: the value is not allowed; ``where`` leads the message.
        """
        try:
            frozen = freeze(value)
        except TypeError as error:
            raise UserError(
                f"{where}: {self.name} is {value!r}, allowed is {self.domain}"
            ) from error
        if not self.domain.allows(frozen):
            raise UserError(f"{where}: {self.name} is {value!r}, allowed is {self.domain}")
        return self.domain.canonical(frozen)


class Settings:
    """The vocabulary of candidates: all settings that the techniques declare, in order of
    application."""

    def __init__(self, *groups: tuple[Setting, ...]) -> None:
        self.by_name = {setting.name: setting for group in groups for setting in group}

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.by_name.values())

    def complete(self, chosen: Mapping[str, Value]) -> dict[str, Value]:
        """The chosen values, and the defaults for all others."""
        return {setting.name: chosen.get(setting.name, setting.default) for setting in self}

    def candidate(self, chosen: Mapping[str, Any], where: str = "candidate") -> Candidate:
        """A validated candidate of the active settings that differ in meaning from an untouched
        model.

        Raises:
            UserError: unknown setting, or a value that is not allowed.
        """
        for name in chosen:
            if name not in self.by_name:
                raise UserError(
                    f"{where}: unknown setting {name!r}; known are {', '.join(self.by_name)}"
                )
        checked = {name: self.by_name[name].check(value, where) for name, value in chosen.items()}
        complete = self.complete(checked)
        return Candidate(tuple((s.name, complete[s.name]) for s in self if s.when(complete)))


@dataclass(frozen=True)
class Candidate:
    """The active settings of one point, in order of application; frozen, hashable, JSON both ways.

    Make one with ``Settings.candidate``, which validates.
    """

    settings: tuple[tuple[str, Value], ...]

    def get(self, name: str, default: Value | None = None) -> Value:
        """The setting's value; ``default`` when it is inactive.

        Raises:
            KeyError: inactive, and no default given.
        """
        value = dict(self.settings).get(name, default)
        if value is None:
            raise KeyError(name)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """``get`` for a setting whose domain is numbers."""
        value = self.get(name, default)
        if not isinstance(value, int | float):
            raise TypeError(f"{name} is {value!r}, no number")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """``get`` for a setting whose domain is names."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}, no name")
        return value

    def without(self, *sections: str) -> Candidate:
        """The candidate less all settings of these sections."""
        return Candidate(
            tuple(
                (name, value)
                for name, value in self.settings
                if name.partition(".")[0] not in sections
            )
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON: ``{"layers.keep": 0.5, ...}``."""
        return {name: thaw(value) for name, value in self.settings}
