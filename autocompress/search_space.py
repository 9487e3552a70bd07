"""A search space: which settings vary, over what, and the points tried first."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress import resources
from autocompress.candidate import Candidate, Integer, Setting, Settings, Value, thaw
from autocompress.errors import UserError
from autocompress.names import unknown
from autocompress.pareto import checked_objectives
from autocompress.techniques import SETTINGS


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[Value, ...]

    @property
    def ascending(self) -> tuple[int | float, ...] | None:
        """Numbers, in order: neighbours among them are alike, which names are not. None of
        others."""
        numbers = [v for v in self.values if isinstance(v, int | float) and type(v) is not bool]
        return tuple(sorted(numbers)) if len(numbers) == len(self.values) else None

    def __str__(self) -> str:
        return " | ".join(json.dumps(thaw(value)) for value in self.values)


@dataclass(frozen=True)
class Range:
    """A number from low to high.

    Args:
        step: only low, low + step, ...; None is continuous (or every whole number).
        log: vary the order of magnitude.
        integer: whole numbers only.
    """

    low: float
    high: float
    step: float | None
    log: bool
    integer: bool

    def __str__(self) -> str:
        notes = [f"step {self.step:g}"] if self.step else []
        return " ".join([f"{self.low:g} to {self.high:g}", *notes, *(["log"] if self.log else [])])


@dataclass(frozen=True)
class Parameter:
    """A setting and what the space lets it be."""

    setting: Setting
    values: Choices | Range

    @property
    def name(self) -> str:
        return self.setting.name

    def contains(self, value: Value) -> bool:
        if isinstance(self.values, Choices):
            return any(
                value == choice and type(value) is type(choice) for choice in self.values.values
            )
        if not isinstance(value, int | float) or not self.values.low <= value <= self.values.high:
            return False
        return self.values.step is None or _divides(self.values.step, value - self.values.low)


@dataclass(frozen=True)
class SearchSpace:
    """Parameters in order of application, and corners: candidates that a search tries first.

    Settings that the space does not name stay at their defaults. ``objectives`` are what a search
    of it minimises; None where the space does not say.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    corners: tuple[Mapping[str, Value], ...] = ()
    settings: Settings = SETTINGS
    objectives: tuple[str, ...] | None = None

    @classmethod
    def load(cls, name_or_path: str, settings: Settings = SETTINGS) -> SearchSpace:
        """A shipped space by name, or a TOML file by path.

        Args:
            settings: what a space may name; more than those of the techniques that ship with
                ``techniques.vocabulary``.

        Raises:
            UserError: not found, unknown section or key, wrong type, range reversed, value not
                allowed.
        """
        path = resources.locate("search_spaces", name_or_path)
        return cls.from_mapping(path.stem, resources.read_toml(path), path, settings)

    @classmethod
    def from_mapping(
        cls,
        name: str,
        values: Mapping[str, Any],
        path: Path | str = "space",
        settings: Settings = SETTINGS,
    ) -> SearchSpace:
        """From parsed TOML; raises as ``load``."""
        values = dict(values)
        description, corners = values.pop("description", ""), values.pop("corners", [])
        objectives = values.pop("objectives", None)
        if not isinstance(description, str):
            raise UserError(f"{path}: description is {description!r}, it must be text")
        flat = flatten(values, str(path), settings)
        for key in flat:
            if key not in settings.by_name:
                raise UserError(f"{path}: {unknown('setting', key, settings.by_name)}")
        if not flat:
            raise UserError(f"{path}: the space names no setting")
        parameters = tuple(
            Parameter(setting, _values(setting, flat[setting.name], str(path)))
            for setting in settings
            if setting.name in flat
        )
        if objectives is not None:
            objectives = checked_objectives(objectives, f"{path}: objectives")
        space = cls(name, description, parameters, settings=settings, objectives=objectives)
        if not isinstance(corners, list) or not all(isinstance(corner, dict) for corner in corners):
            raise UserError(f"{path}: corners must be tables, [[corners]]")
        points = (space._corner(i, corner, str(path)) for i, corner in enumerate(corners, 1))
        return replace(space, corners=tuple(points))

    def _corner(self, number: int, corner: Mapping[str, Any], path: str) -> dict[str, Value]:
        """All settings of a corner: what it leaves out has the space's only value, else the
        setting's default."""
        where = f"{path}: corner {number}"
        given = flatten(corner, where, self.settings)
        self.settings.candidate(given, where)
        point = {
            name: self.settings.by_name[name].check(value, where) for name, value in given.items()
        }
        for name in point.keys() - {parameter.name for parameter in self.parameters}:
            raise UserError(f"{where}: {name} is not a parameter of the space")
        only = {
            p.name: p.values.values[0]
            for p in self.parameters
            if isinstance(p.values, Choices) and len(p.values.values) == 1
        }
        complete = self.settings.complete(only | point)
        for parameter in self.parameters:
            value = complete[parameter.name]
            if (
                parameter.name in point or parameter.setting.when(complete)
            ) and not parameter.contains(value):
                raise UserError(
                    f"{where}: {parameter.name} is {thaw(value)!r}, outside the space: "
                    f"{parameter.values}"
                )
        return complete

    def without(self, name: str) -> SearchSpace:
        """The space with this setting left at its default."""
        parameters = tuple(parameter for parameter in self.parameters if parameter.name != name)
        return replace(
            self,
            parameters=parameters,
            corners=tuple({**c, name: self.settings.by_name[name].default} for c in self.corners),
        )

    def limited(self, name: str, allowed: Collection[Value]) -> tuple[SearchSpace, list[Value]]:
        """The space without the choices of a setting that are not allowed, and without the corners
        that have them.

        Returns:
            The space, and the choices that went.

        Raises:
            UserError: no choice would be left.
        """
        choices = [
            p.values.values
            for p in self.parameters
            if p.name == name and isinstance(p.values, Choices)
        ]
        dropped = [value for values in choices for value in values if value not in allowed]
        if not dropped:
            return self, []
        left = Choices(tuple(value for values in choices for value in values if value in allowed))
        if not left.values:
            offered = ", ".join(map(str, allowed))
            raise UserError(
                f"search space {self.name}: {name} is {', '.join(map(str, dropped))}, the devices "
                f"offer {offered}"
            )
        parameters = tuple(
            replace(p, values=left) if p.name == name else p for p in self.parameters
        )
        corners = tuple(corner for corner in self.corners if corner[name] in allowed)
        return replace(self, parameters=parameters, corners=corners), dropped

    def candidate(self, chosen: Mapping[str, Value]) -> Candidate:
        """The candidate of a point of this space."""
        return self.settings.candidate(chosen, self.name)

    def assembled(self, value: Callable[[Parameter], Value]) -> dict[str, Value]:
        """A point: what ``value`` gives of each setting that means something beside those before;
        it is not asked of others."""
        chosen: dict[str, Value] = {}
        for parameter in (
            *self.parameters,
            *self.parameters,
        ):  # some mean nothing before later ones
            complete = self.settings.complete(chosen)
            if parameter.name not in chosen and parameter.setting.when(complete):
                chosen[parameter.name] = value(parameter)
        return chosen

    def point(self, chosen: Mapping[str, Value]) -> dict[str, Value] | None:
        """The settings of a candidate that the space varies, those that mean something beside the
        others; None where one of them is outside of it."""
        complete = self.settings.complete(chosen)
        active = [p for p in self.parameters if p.setting.when(complete)]
        if not all(parameter.contains(complete[parameter.name]) for parameter in active):
            return None
        return {parameter.name: complete[parameter.name] for parameter in active}

    def as_dict(self) -> dict[str, Any]:
        """As JSON, for the record of a run."""
        return {
            "name": self.name,
            "parameters": {parameter.name: str(parameter.values) for parameter in self.parameters},
            "corners": [
                {p.name: thaw(corner[p.name]) for p in self.parameters} for corner in self.corners
            ],
            **({"objectives": list(self.objectives)} if self.objectives else {}),
        }


def flatten(values: Mapping[str, Any], where: str, settings: Settings = SETTINGS) -> dict[str, Any]:
    """``{"layers": {"keep": 0.5}}`` as ``{"layers.keep": 0.5}``.

    Raises:
        UserError: a key outside of a section, or a section that no setting has; ``where`` leads the
            message.
    """
    flat: dict[str, Any] = {}
    for section, keys in values.items():
        if not isinstance(keys, dict):
            raise UserError(
                f"{where}: unknown key {section!r}; settings stand in sections such as [layers]"
            )
        if section not in {name.partition(".")[0] for name in settings.by_name}:
            name = f"{section}.{next(iter(keys), '')}"
            raise UserError(f"{where}: {unknown('setting', name, settings.by_name)}")
        flat |= {f"{section}.{key}": value for key, value in keys.items()}
    return flat


def _divides(step: float, distance: float) -> bool:
    return abs(distance / step - round(distance / step)) < 1e-9


def _values(setting: Setting, given: Any, path: str) -> Choices | Range:
    name = setting.name
    if isinstance(given, dict):
        return _range(setting, given, path)
    choices = given if isinstance(given, list) else [given]
    if not choices:
        raise UserError(f"{path}: {name} is an empty list, give at least one value")
    checked = tuple(setting.check(value, path) for value in choices)
    if len(set(map(repr, checked))) < len(checked):
        raise UserError(f"{path}: {name} lists a value twice")
    return Choices(checked)


def _range(setting: Setting, given: Mapping[str, Any], path: str) -> Range:
    name = setting.name
    if not setting.domain.has_ranges:
        raise UserError(
            f"{path}: {name} is a range, allowed is a list of values, each {setting.domain}"
        )
    unknown = given.keys() - {"low", "high", "step", "log"}
    if unknown:
        raise UserError(
            f"{path}: {name} has the unknown key {min(unknown)!r}; a range has low, high, step, log"
        )
    for key in ("low", "high"):
        if key not in given:
            raise UserError(f"{path}: {name} is a range without {key!r}")
        setting.check(given[key], f"{path}: {key} of the range")
        if isinstance(given[key], list):
            raise UserError(f"{path}: {name} is {given[key]!r} at {key}, a range needs numbers")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if low >= high:
        raise UserError(
            f"{path}: {name} has its range reversed or empty: low {low:g}, high {high:g}"
        )
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise UserError(
            f"{path}: {name}: log is true or false; a log range has low above 0 and no step"
        )
    integer = isinstance(setting.domain, Integer)
    if step is not None:
        number = isinstance(step, int if integer else int | float) and not isinstance(step, bool)
        if not number or not 0 < step <= high - low or not _divides(step, high - low):
            kind = "a whole number" if integer else "a number"
            raise UserError(
                f"{path}: {name} has step {step!r}, allowed is {kind} above 0 that divides "
                f"{high - low:g}"
            )
    return Range(low, high, step, log, integer)
