"""Learning curves of students, as ``record_curves.py`` writes them and ``replay.py`` looks them up.

The file is JSON lines under xz: first what holds for all of them, then the uncut model, then a
student a line.
"""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Value, freeze, thaw

Right = NDArray[np.bool_]
"""Which examples are answered rightly: those of the validation split, then those of the test
split."""


@dataclass(frozen=True)
class Artifact:
    """A student at a rung, in a number format.

    Args:
        steps: of recovery.
        number_format: settings that differ from their defaults.
        latency_ms: with the ends of its interval.
        speedup: likewise, against the uncut model in fp32.
        seconds: that its conversion, its timing and its answers to the validation split took.
    """

    steps: int
    number_format: Mapping[str, Value]
    latency_ms: tuple[float, float, float]
    speedup: tuple[float, float, float]
    weight_bytes: int
    seconds: float
    right: Right


@dataclass(frozen=True)
class Curve:
    """A student.

    Args:
        point: of the search space; nothing of the uncut model.
        sizes: see ``Plan.sizes``.
        step_s: seconds of a recovery step: CPU time over the threads, at the rung where that was
            least, since the teacher is asked of a batch only once in a run.
    """

    point: Mapping[str, Value]
    sizes: Mapping[str, Any]
    step_s: float
    artifacts: tuple[Artifact, ...]

    def at(self, steps: int, number_format: Mapping[str, Value]) -> Artifact:
        """The artifact of the highest rung that so many steps reach.

        Raises:
            KeyError: none was recorded.
        """
        of_format = [one for one in self.artifacts if one.number_format == number_format]
        reached = [one for one in of_format if one.steps <= steps]
        if not reached:
            raise KeyError(f"{dict(self.point)} at {steps} steps in {dict(number_format)}")
        return max(reached, key=lambda one: one.steps)


@dataclass(frozen=True)
class Curves:
    """A file of them.

    Args:
        about: ``space``, ``validation`` and ``test`` (examples), and what they were recorded with.
        uncut: fp32 first.
    """

    about: Mapping[str, Any]
    uncut: Curve
    students: tuple[Curve, ...] = ()

    @cached_property
    def steps(self) -> int:
        """Of the last rung."""
        return max(artifact.steps for curve in self.students for artifact in curve.artifacts)

    @classmethod
    def load(cls, file: Path) -> Curves:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            about, *curves = (json.loads(line) for line in lines)
        count = about["validation"] + about["test"]
        nothing = np.zeros(count, bool)
        uncut = _read(curves[0], nothing)
        reference = uncut.artifacts[0].right
        return cls(about, uncut, tuple(_read(curve, reference) for curve in curves[1:]))

    def save(self, file: Path) -> None:
        """Replace the file in one step."""
        reference = self.uncut.artifacts[0].right
        written = [_written(self.uncut, np.zeros_like(reference))]
        written += [_written(curve, reference) for curve in self.students]
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{os.getpid()}.part")
        with lzma.open(aside, "wt", encoding="utf-8") as lines:
            lines.writelines(json.dumps(line) + "\n" for line in [self.about, *written])
        aside.replace(file)


def _written(curve: Curve, before: Right) -> dict[str, Any]:
    """As JSON. Answers are told by those that differ from the ones before, which are few."""
    artifacts = []
    for one in curve.artifacts:
        changed, before = one.right ^ before, one.right
        artifacts.append(
            {
                "steps": one.steps,
                "format": _thawed(one.number_format),
                "latency_ms": _rounded(one.latency_ms),
                "speedup": _rounded(one.speedup),
                "bytes": one.weight_bytes,
                "seconds": round(one.seconds, 3),
                "changed": np.packbits(changed).tobytes().hex(),
            }
        )
    return {
        "point": _thawed(curve.point),
        "sizes": dict(curve.sizes),
        "step_s": float(f"{curve.step_s:.4g}"),
        "artifacts": artifacts,
    }


def _read(line: Mapping[str, Any], before: Right) -> Curve:
    """The inverse of ``_written``."""
    artifacts = []
    for one in line["artifacts"]:
        packed = np.frombuffer(bytes.fromhex(one["changed"]), np.uint8)
        before = before ^ np.unpackbits(packed, count=len(before)).astype(bool)
        artifacts.append(
            Artifact(
                one["steps"],
                _frozen(one["format"]),
                tuple(one["latency_ms"]),
                tuple(one["speedup"]),
                one["bytes"],
                one["seconds"],
                before,
            )
        )
    return Curve(_frozen(line["point"]), line["sizes"], line["step_s"], tuple(artifacts))


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _thawed(settings: Mapping[str, Value]) -> dict[str, Any]:
    return {name: thaw(value) for name, value in settings.items()}


def _frozen(settings: Mapping[str, Any]) -> dict[str, Value]:
    return {name: freeze(value) for name, value in settings.items()}
