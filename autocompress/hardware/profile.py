"""A hardware profile: everything that a latency depends on besides the model."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress import resources
from autocompress.errors import UserError


@dataclass(frozen=True)
class HardwareProfile:
    """One device, runtime and workload; a TOML file in ``hw_profiles/`` or of the user's.

    Args:
        name: the file's stem.
        description: one line.
        runtime: ``onnxruntime-cpu``.
        threads: intra-op threads; 0 is all cores.
        batch_size: examples per inference.
        sequence_length: tokens per example.
        target_precision: stop timing when the 95 % interval of the speedup is this narrow, as a share on either side.
        trial_seconds: at most, per trial.
        final_seconds: at most, per model that is reported.

    Raises:
        UserError: a value out of range.
    """

    name: str
    description: str
    runtime: str
    threads: int
    batch_size: int
    sequence_length: int
    target_precision: float = 0.02
    trial_seconds: float = 2.0
    final_seconds: float = 5.0

    def __post_init__(self) -> None:
        checks = (
            ("runtime", self.runtime == "onnxruntime-cpu", "onnxruntime-cpu"),
            ("threads", 0 <= self.threads <= 1024, "a whole number from 0 (all cores) to 1024"),
            ("batch_size", 1 <= self.batch_size <= 4096, "a whole number from 1 to 4096"),
            ("sequence_length", 1 <= self.sequence_length <= 100_000, "a whole number from 1 to 100000"),
            ("target_precision", 0.001 <= self.target_precision <= 0.5, "a share from 0.001 to 0.5"),
            ("trial_seconds", 0.1 <= self.trial_seconds <= 600, "seconds from 0.1 to 600"),
            ("final_seconds", 0.1 <= self.final_seconds <= 3600, "seconds from 0.1 to 3600"),
        )
        for key, holds, allowed in checks:
            if not holds:
                raise UserError(f"hardware profile {self.name}: {key} is {getattr(self, key)!r}, allowed is {allowed}")

    @property
    def intra_op_threads(self) -> int:
        return self.threads or os.cpu_count() or 1

    @classmethod
    def load(cls, name_or_path: str) -> HardwareProfile:
        """A shipped profile by name, or a TOML file by path.

        Raises:
            UserError: not found, unknown or missing key, wrong type, value out of range.
        """
        path = resources.locate("hw_profiles", name_or_path)
        return cls.from_mapping(path.stem, resources.read_toml(path), path)

    @classmethod
    def from_mapping(cls, name: str, values: dict[str, Any], path: Path | str = "profile") -> HardwareProfile:
        """From parsed TOML; raises as ``load``."""
        fields = {field.name: field for field in dataclasses.fields(cls) if field.name != "name"}
        for key, value in values.items():
            if key not in fields:
                raise UserError(f"{path}: unknown key {key!r}; known are {', '.join(fields)}")
            wanted = {"str": str, "int": int, "float": (int, float)}[str(fields[key].type)]
            if not isinstance(value, wanted) or isinstance(value, bool):  # type: ignore[arg-type]
                raise UserError(f"{path}: {key} is {value!r}, it must be of type {fields[key].type}")
        missing = [key for key, field in fields.items() if field.default is dataclasses.MISSING and key not in values]
        if missing:
            raise UserError(f"{path}: missing key {missing[0]!r}")
        return cls(name, **values)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
