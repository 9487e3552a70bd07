"""A hardware profile: everything that a latency depends on besides the model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autocompress import resources
from autocompress.errors import UserError
from autocompress.techniques.quantization import SCHEMES

RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnxruntime-cpu": ("fp32", "int8-dynamic", "int8-static", "int8-weights", "int4-weights"),
    "onnxruntime-cuda": ("fp16", "fp32"),
    "torch-cuda": ("bf16", "fp16", "fp32"),
}
"""Runtime -> the number formats that it is known to speed up on some device, and fp32."""
CLASSES = ("cpu", "gpu", "edge")
STATISTICS = ("median", "mean", "p10")
IDENTITY = ("system", "cpu", "cores", "features", "gpu")
"""Keys of a fingerprint that must hold; the others tell what the profile was made with."""
FINGERPRINT = (
    *IDENTITY,
    *(
        "l2_bytes",
        "governor",
        "threads_per_core",
        "memory_bytes",
        "driver",
        "python",
        "onnxruntime",
        "torch",
        "cuda",
    ),
    *("providers", "busy_cores"),
)
_OF_TIMINGS = (
    "cuda_graphs",
    "statistic",
    "confidence",
    "target_precision",
    "trial_seconds",
    "final_seconds",
)
PHASES = ("decode", "prefill", "end-to-end")
"""Of a language model: what can be timed of it."""
TASK_LENGTHS = "task"
"""Stands for the lengths of the validation split."""
_EXTENDS = "extends"
"""The key, of a file only, that names the profile whose values are taken where the file has
none."""


@dataclass(frozen=True)
class Peaks:
    """Published limits of a device that is not at hand, for an estimate.

    Args:
        gops: 10^9 operations (a multiplication and an addition are two) per second by number
            format; for a CPU of one core.
        memory_gb_per_s: bandwidth that all cores share.
        overhead_us: microseconds that starting one operator takes.
        efficiency: share of ``gops`` that matrix products of this size reach.
    """

    gops: Mapping[str, float]
    memory_gb_per_s: float
    overhead_us: float
    efficiency: float

    def __post_init__(self) -> None:
        values = {
            **self.gops,
            "memory_gb_per_s": self.memory_gb_per_s,
            "overhead_us": self.overhead_us,
        }
        if "fp32" not in self.gops:
            raise UserError("peaks: gops names no fp32")
        for name, value in values.items():
            if name in self.gops and name not in SCHEMES:
                raise UserError(f"peaks: gops names {name!r}, known are {', '.join(SCHEMES)}")
            if not 0 < value < float("inf"):
                raise UserError(f"peaks: {name} is {value!r}, it must be more than zero")
        if not 0 < self.efficiency <= 1:
            raise UserError(
                f"peaks: efficiency is {self.efficiency!r}, allowed is a share more than 0 and at "
                f"most 1"
            )


@dataclass(frozen=True)
class HardwareProfile:
    """One device, runtime and workload; a TOML file in ``hw_profiles/`` or of the user's.

    Args:
        name: the file's stem.
        description: one line.
        device_class: ``class`` in the file: cpu, gpu or edge.
        runtime: ``onnxruntime-cpu``, ``onnxruntime-cuda`` or ``torch-cuda``.
        location: ``local``, ``ssh://[user@]host[:port]``, or ``cmd:`` and a command that takes a
            shell command line.
        python: the device's Python, for a device that is not local.
        ssh_config: file for ``ssh -F``, for a device behind ssh.
        threads: intra-op threads; 0 is all cores of this machine.
        batch_size: examples per inference.
        sequence_length: tokens per example, or ``task`` for the lengths of the task's validation
            split.
        prompt_length: of a language model, tokens that ``prefill`` reads and ``end-to-end`` begins
            with; this and the next two are half of ``sequence_length`` where they are not given,
            half of the middle length under ``task``.
        context_length: tokens in the cache when one more is decoded.
        generated_tokens: of ``end-to-end``, the prompt's successor included.
        phase: of a language model, what its latency is: ``decode`` (by default), ``prefill`` or
            ``end-to-end``.
        cuda_graphs: whether ``torch-cuda`` replays a captured graph; plain eager calls otherwise.
        precisions: number formats that this device speeds up, by default those of the runtime; a
            search tries no others but fp32. ``torch-cuda`` computes what it cannot in the first of
            them.
        memory_limit_mb: most megabytes that a model may add to its process at the peak.
        statistic: of the rounds: p10, which other work on the machine moves least (see
            ``benchmarks/timing_repeatability.py``), median or mean.
        confidence: of the intervals reported.
        target_precision: stop timing when the interval of the speedup is this narrow, as a share on
            either side.
        trial_seconds: at most, per trial.
        final_seconds: at most, per model that is reported.
        basis: ``measured``, or ``datasheet`` for an estimate from ``peaks``.
        source: where the figures of the profile come from.
        date: when, as YYYY-MM-DD.
        fingerprint: what the device must be: cpu, cores, features, gpu ... as ``autocompress
            profile new`` found them.
        peaks: for ``datasheet``.

    Raises:
        UserError: a value out of range, or keys that contradict each other.
    """

    name: str
    description: str
    device_class: Literal["cpu", "gpu", "edge"]
    runtime: str
    batch_size: int
    sequence_length: int | str
    prompt_length: int | None = None
    context_length: int | None = None
    generated_tokens: int | None = None
    phase: str | None = None
    location: str = "local"
    python: str = "python3"
    ssh_config: str = ""
    threads: int = 1
    cuda_graphs: bool = False
    precisions: tuple[str, ...] = ()
    memory_limit_mb: float | None = None
    statistic: str = "p10"
    confidence: float = 0.95
    target_precision: float = 0.02
    trial_seconds: float = 2.0
    final_seconds: float = 5.0
    basis: str = "measured"
    source: str = ""
    date: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    peaks: Peaks | None = None

    def __post_init__(self) -> None:
        length = self.sequence_length
        if not self.precisions:
            object.__setattr__(self, "precisions", RUNTIMES.get(self.runtime, ("fp32",)))
        checks = (
            ("class", self.device_class, self.device_class in CLASSES, ", ".join(CLASSES)),
            ("runtime", self.runtime, self.runtime in RUNTIMES, ", ".join(RUNTIMES)),
            (
                "location",
                self.location,
                self.location == "local" or self.location.startswith(("ssh://", "cmd:")),
                "local, ssh://[user@]host[:port] or cmd:COMMAND",
            ),
            (
                "threads",
                self.threads,
                0 <= self.threads <= 1024,
                "a whole number from 0 (all cores) to 1024",
            ),
            (
                "batch_size",
                self.batch_size,
                1 <= self.batch_size <= 4096,
                "a whole number from 1 to 4096",
            ),
            (
                "sequence_length",
                length,
                length == TASK_LENGTHS if isinstance(length, str) else 1 <= length <= 100_000,
                'a whole number from 1 to 100000, or "task"',
            ),
            *(
                (
                    key,
                    value,
                    value is None or 1 <= value <= 100_000,
                    "a whole number from 1 to 100000",
                )
                for key, value in self._generation()
            ),
            ("phase", self.phase, self.phase is None or self.phase in PHASES, ", ".join(PHASES)),
            (
                "precisions",
                list(self.precisions),
                0 < len(set(self.precisions)) == len(self.precisions)
                and set(self.precisions) <= set(SCHEMES),
                f"a list of {', '.join(SCHEMES)}",
            ),
            (
                "memory_limit_mb",
                self.memory_limit_mb,
                self.memory_limit_mb is None or 0 < self.memory_limit_mb < 1e9,
                "megabytes more than 0",
            ),
            ("statistic", self.statistic, self.statistic in STATISTICS, ", ".join(STATISTICS)),
            (
                "confidence",
                self.confidence,
                0.5 <= self.confidence <= 0.999,
                "a share from 0.5 to 0.999",
            ),
            (
                "target_precision",
                self.target_precision,
                0.001 <= self.target_precision <= 0.5,
                "a share from 0.001 to 0.5",
            ),
            (
                "trial_seconds",
                self.trial_seconds,
                0.1 <= self.trial_seconds <= 600,
                "seconds from 0.1 to 600",
            ),
            (
                "final_seconds",
                self.final_seconds,
                0.1 <= self.final_seconds <= 3600,
                "seconds from 0.1 to 3600",
            ),
            ("basis", self.basis, self.basis in ("measured", "datasheet"), "measured, datasheet"),
        )
        for key, value, holds, allowed in checks:
            if not holds:
                raise UserError(
                    f"hardware profile {self.name}: {key} is {value!r}, allowed is {allowed}"
                )
        unknown = [key for key in self.fingerprint if key not in FINGERPRINT]
        if unknown:
            raise UserError(
                f"hardware profile {self.name}: fingerprint names {unknown[0]!r}, known are "
                f"{', '.join(FINGERPRINT)}"
            )
        for key, value in self.fingerprint.items():
            if not (
                isinstance(value, str | int | float)
                or (isinstance(value, list) and all(isinstance(item, str) for item in value))
            ):
                raise UserError(
                    f"hardware profile {self.name}: fingerprint has {key} = {value!r}, allowed is "
                    f"text, a number or a list of text"
                )
        for complaint in self._contradictions():
            raise UserError(f"hardware profile {self.name}: {complaint}")

    def _contradictions(self) -> list[str]:
        cuda, torch = self.runtime.endswith("-cuda"), self.runtime == "torch-cuda"
        remote, datasheet = self.location != "local", self.basis == "datasheet"
        rules = (
            (
                self.device_class == "gpu" and not cuda,
                "class is gpu, but the runtime is onnxruntime-cpu",
            ),
            (
                self.device_class == "cpu" and cuda,
                f"class is cpu, but the runtime is {self.runtime}",
            ),
            (cuda and self.threads != 1, "threads mean nothing to a CUDA runtime; leave them out"),
            (self.cuda_graphs and not torch, "cuda_graphs are of torch-cuda only"),
            (torch and remote, "torch-cuda runs on this machine only"),
            (
                self.runtime == "onnxruntime-cuda"
                and self.memory_limit_mb is not None
                and not datasheet,
                "memory_limit_mb cannot be checked under onnxruntime-cuda, which does not tell "
                "the GPU's memory; leave it out",
            ),
            (
                torch and set(self.precisions) - {"fp32", "fp16", "bf16"},
                "torch-cuda computes in fp32, fp16 and bf16 only",
            ),
            (
                remote and self.threads == 0,
                "threads is 0 (all cores of this machine), but the device is another; give their "
                "number",
            ),
            (not remote and self.python != "python3", "python is for a device that is not local"),
            (
                self.ssh_config and not self.location.startswith("ssh://"),
                "ssh_config is for a location that begins with ssh://",
            ),
            (
                datasheet and remote,
                "a datasheet profile is of no connected device; leave out the location",
            ),
            (
                datasheet and (self.peaks is None or not self.source or not self.date),
                "datasheet needs peaks, source and date",
            ),
            (not datasheet and self.peaks is not None, "peaks are for basis = datasheet only"),
            (
                datasheet and self.fingerprint,
                "a fingerprint is of a measured device, the basis is datasheet",
            ),
            (
                datasheet and self.threads == 0,
                "threads is 0 (all cores of this machine), but a datasheet is of another device",
            ),
        )
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        timed = [
            (
                datasheet and getattr(self, key) != defaults[key],
                f"{key} is of timings, the basis is datasheet",
            )
            for key in _OF_TIMINGS
        ]
        return [complaint for broken, complaint in (*rules, *timed) if broken]

    def _generation(self) -> list[tuple[str, int | None]]:
        return [
            (key, getattr(self, key))
            for key in ("prompt_length", "context_length", "generated_tokens")
        ]

    def generation(self, lengths: Sequence[int]) -> dict[str, int]:
        """``prompt_length``, ``context_length`` and ``generated_tokens`` of a language model.

        Args:
            lengths: tokens per example, ascending, of which the middle one counts.
        """
        return {
            key: value or max(1, lengths[len(lengths) // 2] // 2)
            for key, value in self._generation()
        }

    def check_lengths(self, lengths: Sequence[int], positions: int, *, generates: bool) -> None:
        """Whether a model can be timed.

        Args:
            lengths: as for ``generation``.
            positions: tokens that the model takes at most.
            generates: whether it is a language model.

        Raises:
            UserError: something timed is longer.
        """
        wanted = {"sequence_length": max(lengths)}
        if generates:
            tokens = self.generation(lengths)
            wanted = {
                "prompt_length and generated_tokens together": tokens["prompt_length"]
                + tokens["generated_tokens"],
                "context_length and the token after it": tokens["context_length"] + 1,
            }
        for what, needed in wanted.items():
            if needed > positions:
                raise UserError(
                    f"hardware profile {self.name}: {what} is {needed}, the model takes "
                    f"{positions} tokens at most"
                )

    def phases(self, final: bool) -> tuple[str, ...]:
        """What to time of a language model: the phase that its latency is of, then for the numbers
        that are reported the others."""
        chosen = self.phase or PHASES[0]
        return (chosen, *(phase for phase in PHASES if phase != chosen and final))

    def check_not_generating(self) -> None:
        """Raises:
        UserError: the profile names what only a language model has; for a model that is none.
        """
        for key, value in (*self._generation(), ("phase", self.phase)):
            if value is not None:
                raise UserError(
                    f"hardware profile {self.name}: {key} is for language models, and this model "
                    f"generates nothing"
                )

    @property
    def intra_op_threads(self) -> int:
        return self.threads or os.cpu_count() or 1

    @property
    def estimated(self) -> bool:
        """Whether latencies are estimates from published peaks."""
        return self.basis == "datasheet"

    @classmethod
    def load(cls, name_or_path: str) -> HardwareProfile:
        """A shipped profile by name, or a TOML file by path, with all that it extends.

        Raises:
            UserError: not found, unknown or missing key, wrong type, value out of range, profiles
                that extend each other.
        """
        path = resources.locate("hw_profiles", name_or_path)
        return cls.from_mapping(path.stem, _extended(path, ()), path)

    @classmethod
    def from_mapping(
        cls, name: str, values: Mapping[str, Any], path: Path | str = "profile"
    ) -> HardwareProfile:
        """From parsed TOML; raises as ``load``."""
        if "device_class" in values:
            raise UserError(f"{path}: unknown key 'device_class'; did you mean class?")
        given = {"device_class" if key == "class" else key: value for key, value in values.items()}
        return cls(name, **_checked(cls, given, path, skip=("name",), extra=(_EXTENDS,)))

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        found = dataclasses.asdict(self) | {"precisions": list(self.precisions)}
        return {"class" if key == "device_class" else key: value for key, value in found.items()}


def precision_of(scheme: str, profile: HardwareProfile) -> str:
    """What ``torch-cuda`` computes a model exported in ``scheme`` in: the same where the profile
    offers it or it is fp32, else the first that it offers."""
    return scheme if scheme in ("fp32", *profile.precisions) else profile.precisions[0]


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "float | None": (int, float),
    "int | None": (int,),
    "str | None": (str,),
    "int | str": (int, str),
    "tuple[str, ...]": (list, tuple),
    "Mapping[str, Any]": (dict,),
    "Mapping[str, float]": (dict,),
    "Peaks | None": (dict,),
    "Literal['cpu', 'gpu', 'edge']": (str,),
}


def _checked(
    cls: Any,
    values: Mapping[str, Any],
    where: Path | str,
    skip: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Keyword arguments of a dataclass from parsed TOML.

    Args:
        skip: fields that are no keys.
        extra: keys that were read before.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in skip}
    shown = {name: "class" if name == "device_class" else name for name in fields}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(
                f"{where}: unknown key {key!r}; known are {', '.join((*shown.values(), *extra))}"
            )
        kind = str(fields[key].type).replace('"', "'")
        wanted = _TYPES[kind]
        strings = (
            "tuple" in kind
            and isinstance(value, list | tuple)
            and not all(isinstance(item, str) for item in value)
        )
        if value is None and "None" in kind:
            found[key] = None
        elif (
            not isinstance(value, wanted)
            or (isinstance(value, bool) and bool not in wanted)
            or strings
        ):
            names = {"tuple[str, ...]": "a list of names"}.get(
                kind, " or ".join(t.__name__ for t in wanted)
            )
            raise UserError(f"{where}: {shown[key]} is {value!r}, it must be of type {names}")
        elif kind == "Mapping[str, float]" and not _all_numbers(value):
            raise UserError(f"{where}: {shown[key]} is {value!r}, it must map names to numbers")
        else:
            found[key] = value
    missing = [
        shown[key]
        for key, f in fields.items()
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and key not in found
    ]
    if missing:
        raise UserError(f"{where}: missing key {missing[0]!r}")
    if found.get("precisions") in ([], ()):
        raise UserError(
            f"hardware profile {Path(where).stem}: precisions is [], allowed is a list of "
            f"{', '.join(SCHEMES)}"
        )
    if isinstance(found.get("precisions"), list):
        found["precisions"] = tuple(found["precisions"])
    if isinstance(found.get("peaks"), dict):
        try:
            found["peaks"] = Peaks(**_checked(Peaks, found["peaks"], "peaks"))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return found


def _all_numbers(table: Any) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in table.values()
    )


def _extended(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """The file's values over those of the profile that it extends."""
    resolved = path.resolve()
    if resolved in before:
        loop = " -> ".join(p.name for p in (*before[before.index(resolved) :], resolved))
        raise UserError(f"{path}: profiles extend each other in a loop: {loop}")
    values = resources.read_toml(path)
    base = values.pop(_EXTENDS, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: extends is {base!r}, it must be a profile's name or path")
    found = resources.locate(
        "hw_profiles", str(path.parent / base) if base.endswith(".toml") else base
    )
    return {**_extended(found, (*before, resolved)), **values}
