"""A candidate: one point of a search, as named settings; and the declaration of what a setting may
be.

This page imports neither torch nor onnxruntime, so spaces are validated and fronts are read in a
fraction of a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from autocompress.errors import UserError
from autocompress.names import unknown

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


class Plain:
    """Of values that have one form and no ranges."""

    has_ranges = False

    def canonical(self, value: Value) -> Value:
        return value


@dataclass(frozen=True)
class OneOf(Plain):
    """One of the listed values."""

    values: tuple[Value, ...]

    def allows(self, value: Value) -> bool:
        return any(value == item and type(value) is type(item) for item in self.values)

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
    """A number in [low, high]; ``what`` it is, or its unit, for people."""

    low: float
    high: float
    what: str = "a number"
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
        return f"{self.what} from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high]; ``low_means`` tells people what the lowest stands for."""

    low: int
    high: int
    low_means: str = ""
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
        low = f"{self.low} ({self.low_means})" if self.low_means else f"{self.low}"
        return f"a whole number from {low} to {self.high}"


@dataclass(frozen=True)
class Positive(Plain):
    """A finite number more than 0 and at most ``high``."""

    what: str = "a number"
    high: float = math.inf

    def allows(self, value: Value) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 < value <= self.high
            and value < math.inf
        )

    def __str__(self) -> str:
        most = f" and at most {self.high:g}" if self.high < math.inf else ""
        return f"{self.what} more than 0{most}"


@dataclass(frozen=True)
class Flag(Plain):
    """True or false."""

    def allows(self, value: Value) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text(Plain):
    """Text that matches a regular expression as a whole; ``what`` it is, for people."""

    what: str = "text"
    pattern: str = ".*"

    def allows(self, value: Value) -> bool:
        return isinstance(value, str) and bool(re.fullmatch(self.pattern, value, re.DOTALL))

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class EitherOf(Plain):
    """What one domain or the other allows."""

    first: Domain
    second: Domain

    def allows(self, value: Value) -> bool:
        return self.first.allows(value) or self.second.allows(value)

    def canonical(self, value: Value) -> Value:
        return (self.first if self.first.allows(value) else self.second).canonical(value)

    def __str__(self) -> str:
        return f"{self.first}, or {self.second}"


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
        """A validated candidate.

        Raises:
            UserError: unknown setting, or a value that is not allowed.
        """
        active = self.active(chosen, where)
        differing = ((s.name, active[s.name]) for s in self if s.name in active)
        return Candidate(
            tuple((name, v) for name, v in differing if v != self.by_name[name].default), active
        )

    def active(self, chosen: Mapping[str, Any], where: str = "candidate") -> dict[str, Value]:
        """Every setting that means something beside the chosen ones, in order, defaults included;
        raises as ``candidate``."""
        for name in chosen:
            if name not in self.by_name:
                raise UserError(f"{where}: {unknown('setting', name, self.by_name)}")
        checked = {name: self.by_name[name].check(value, where) for name, value in chosen.items()}
        complete = self.complete(checked)
        return {s.name: complete[s.name] for s in self if s.when(complete)}


@dataclass(frozen=True)
class Candidate:
    """One point; frozen, hashable, JSON both ways. Make one with ``Settings.candidate``, which
    validates.

    Args:
        settings: the active ones that differ from their defaults, in order of application. They
            alone tell candidates apart, so that a setting added later changes none.
        active: these and the defaults of all others that mean something beside them.
    """

    settings: tuple[tuple[str, Value], ...]
    active: Mapping[str, Value] = field(default_factory=dict, compare=False, repr=False)

    def get(self, name: str, default: Value | None = None) -> Value:
        """The setting's value; ``default`` when it is inactive.

        Raises:
            KeyError: inactive, and no default given.
        """
        value = self.active.get(name, default)
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

    def only(self, names: Collection[str]) -> Candidate:
        """The candidate less all settings but these."""
        return Candidate(
            tuple((name, value) for name, value in self.settings if name in names),
            {name: value for name, value in self.active.items() if name in names},
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON, only what differs from the defaults: ``{"layers.keep": 0.5, ...}``."""
        return {name: thaw(value) for name, value in self.settings}
