"""A hardware profile: everything that a latency depends on besides the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from autocompress import resources
from autocompress.candidate import (
    EitherOf,
    Flag,
    Integer,
    OneOf,
    Plain,
    Positive,
    Real,
    SubsetOf,
    Text,
    Value,
)
from autocompress.errors import UserError
from autocompress.formats import FORMATS, sped_up_by
from autocompress.hardware.keys import Table, check_names, check_values, declared

RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnxruntime-cpu": sped_up_by("onnxruntime-cpu"),
    "onnxruntime-cuda": sped_up_by("onnxruntime-cuda")[::-1],
    "torch-cuda": sped_up_by("torch-cuda")[::-1],
}
"""Runtime -> the number formats that it is known to speed up on some device, and fp32; of a GPU
fp32 last, because the first is what torch computes in for want of another, see
``precision_of``."""
USUAL = "cpu-1-thread-task"
"""The shipped profile where none is named: this machine, at the lengths of the user's own texts."""
CLASSES = ("cpu", "gpu", "edge")
STATISTICS = ("median", "mean", "p10")
IDENTITY = ("system", "cpu", "cores", "features", "gpu")
"""Keys of a fingerprint that must hold; the others tell what the profile was made with."""
FINGERPRINT = (
    *IDENTITY,
    *("l2_bytes", "governor", "threads_per_core", "memory_bytes", "driver"),
    *("python", "onnxruntime", "torch", "cuda", "providers", "busy_cores"),
)
_OF_TIMINGS = (
    *("cuda_graphs", "regime", "statistic", "confidence"),
    *("target_precision", "trial_seconds", "final_seconds"),
)
PHASES = ("decode", "prefill", "end-to-end")
"""Of a language model: what can be timed of it."""
REGIMES = ("warm", "cold")
"""Of the caches."""
BOTH_REGIMES = ("onnxruntime-cpu",)
"""Runtimes that can be timed in either."""
ASIDE = 0.5
"""Of ``final_seconds``, for a phase or a regime that latency is not of."""
TASK_LENGTHS = "task"
"""Stands for the lengths of the validation split."""
_EXTENDS = "extends"
"""The key, of a file only, that names the profile whose values are taken where the file has
none."""


@dataclass(frozen=True)
class _Fact(Plain):
    """What a fingerprint tells."""

    def allows(self, value: Value) -> bool:
        return not isinstance(value, tuple) or all(isinstance(item, str) for item in value)

    def __str__(self) -> str:
        return "text, a number or a list of text"


@dataclass(frozen=True)
class Peaks:
    """Published limits of a device that is not at hand, for an estimate; ``PEAK_KEYS`` explains
    them.

    Raises:
        UserError: a value out of range, or no figure for fp32.
    """

    gops: Annotated[
        Mapping[str, float],
        Table(tuple(FORMATS), Positive()),
        "10^9 operations (a multiplication and an addition are two) per second by number format; "
        "for a CPU of one core",
    ]
    memory_gb_per_s: Annotated[float, Positive(), "bandwidth that all cores share"]
    overhead_us: Annotated[float, Positive(), "microseconds that starting one operator takes"]
    efficiency: Annotated[
        float,
        Positive("a share", 1),
        "share of gops that matrix products of this size reach",
    ]

    def __post_init__(self) -> None:
        check_values(self, PEAK_KEYS, "peaks")
        if "fp32" not in self.gops:
            raise UserError("peaks: gops names no fp32")


PEAK_KEYS = declared(Peaks)
"""The keys of ``[peaks]``."""
_SHARE = "a share"
_TOKENS = Integer(1, 100_000)


@dataclass(frozen=True)
class HardwareProfile:
    """One device, runtime and workload; a TOML file in ``hw_profiles/`` or of the user's.

    Its keys, below, are explained by ``autocompress profile settings``; ``name`` is the file's
    stem, and ``device_class`` is ``class`` in a file.

    Raises:
        UserError: a value out of range, or keys that contradict each other.
    """

    name: str
    description: Annotated[str, Text(), "one line"]
    device_class: Annotated[Literal["cpu", "gpu", "edge"], OneOf(CLASSES), "kind of device"]
    runtime: Annotated[str, OneOf(tuple(RUNTIMES)), "what runs the model"]
    batch_size: Annotated[int, Integer(1, 4096), "examples per inference"]
    sequence_length: Annotated[
        int | str,
        EitherOf(_TOKENS, Text('"task"', TASK_LENGTHS)),
        "tokens per example, or task for the lengths of the task's validation split",
    ]
    prompt_length: Annotated[
        int | None,
        _TOKENS,
        "of a language model, tokens that prefill reads and end-to-end begins with; this and the "
        "next two are half of sequence_length where they are not given, half of the middle length "
        "under task",
    ] = None
    context_length: Annotated[
        int | None, _TOKENS, "tokens in the cache when one more is decoded"
    ] = None
    generated_tokens: Annotated[
        int | None, _TOKENS, "of end-to-end, the prompt's successor included"
    ] = None
    phase: Annotated[
        str | None,
        OneOf(PHASES),
        "of a language model, what its latency is; decode where it is not given",
    ] = None
    location: Annotated[
        str,
        Text("local, ssh://[user@]host[:port] or cmd:COMMAND", "local|ssh://.*|cmd:.*"),
        "where the device is: here, behind ssh, or behind a command that takes a shell command "
        "line",
    ] = "local"
    python: Annotated[str, Text(), "the device's Python, for a device that is not local"] = (
        "python3"
    )
    ssh_config: Annotated[str, Text(), "file for ssh -F, for a device behind ssh"] = ""
    threads: Annotated[int, Integer(0, 1024, "all cores"), "intra-op threads"] = 1
    cuda_graphs: Annotated[
        bool, Flag(), "whether torch-cuda replays a captured graph; plain eager calls otherwise"
    ] = False
    precisions: Annotated[
        tuple[str, ...],
        SubsetOf(tuple(FORMATS)),
        "number formats that this device speeds up, those of the runtime where they are not given; "
        "a search tries no others but fp32; torch-cuda computes what it cannot in the first of "
        "them",
    ] = ()
    memory_limit_mb: Annotated[
        float | None,
        Positive("megabytes"),
        "most megabytes that a model may add to its process at the peak",
    ] = None
    regime: Annotated[
        str,
        OneOf(REGIMES),
        "what latency is of: inferences back to back, or, under onnxruntime-cpu, single ones after "
        "the caches were displaced, as for a request now and then; final models are timed in both",
    ] = "warm"
    statistic: Annotated[
        str, OneOf(STATISTICS), "of the rounds; other work on the machine moves p10 least"
    ] = "p10"
    confidence: Annotated[float, Real(0.5, 0.999, _SHARE), "of the intervals reported"] = 0.95
    target_precision: Annotated[
        float,
        Real(0.001, 0.5, _SHARE),
        "stop timing when the interval of the speedup is this narrow, as a share on either side",
    ] = 0.02
    trial_seconds: Annotated[float, Real(0.1, 600, "seconds"), "at most, per trial"] = 2.0
    final_seconds: Annotated[
        float,
        Real(0.1, 3600, "seconds"),
        "at most, per model that is reported; half of it for each phase and regime that latency is "
        "not of",
    ] = 3.0
    basis: Annotated[
        str, OneOf(("measured", "datasheet")), "datasheet is an estimate from peaks"
    ] = "measured"
    source: Annotated[str, Text(), "where the figures of the profile come from"] = ""
    date: Annotated[str, Text(), "when, as YYYY-MM-DD"] = ""
    fingerprint: Annotated[
        Mapping[str, Any],
        Table(FINGERPRINT, _Fact()),
        "what the device must be, as autocompress profile new found it",
    ] = field(default_factory=dict)
    peaks: Annotated[
        Peaks | None, Table(tuple(PEAK_KEYS)), "for datasheet, published limits of the device"
    ] = None

    def __post_init__(self) -> None:
        where = f"hardware profile {self.name}"
        check_values(self, KEYS, where)
        object.__setattr__(self, "precisions", tuple(self.precisions) or RUNTIMES[self.runtime])
        for complaint in self._contradictions():
            raise UserError(f"{where}: {complaint}")

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
            (
                self.regime == "cold" and self.runtime not in BOTH_REGIMES,
                f"regime = cold is of {', '.join(BOTH_REGIMES)} only",
            ),
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
        timed = [
            (
                datasheet and getattr(self, key) != KEYS[key].default,
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
            UserError: something timed is longer, or of language models, and this is none.
        """
        wanted = {"sequence_length": max(lengths)}
        if not generates:
            self.check_not_generating()
        else:
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

    def regimes(self, final: bool) -> tuple[str, ...]:
        """What to time: the regime that latency is of, then for the numbers that are reported the
        other, where there are two."""
        other = REGIMES[1 - REGIMES.index(self.regime)]
        return (self.regime, other) if final and self.runtime in BOTH_REGIMES else (self.regime,)

    def all_final_seconds(self, *, generates: bool) -> float:
        """Per model that is reported, of its timings in all phases and regimes; 0 of estimates.

        Args:
            generates: whether it is a language model.
        """
        if self.estimated:
            return 0.0
        others = len(self.regimes(True)) + (len(self.phases(True)) if generates else 1) - 2
        return self.final_seconds * (1 + ASIDE * others)

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
        check_names(values, KEYS, path, _EXTENDS)
        given = {KEYS[name].attribute: value for name, value in values.items()}
        if isinstance(given.get("peaks"), dict):
            try:
                check_names(given["peaks"], PEAK_KEYS, "peaks")
                given["peaks"] = Peaks(**given["peaks"])
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        return cls(name, **given)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        attributes = dataclasses.asdict(self) | {"precisions": list(self.precisions)}
        return {
            "class" if key == "device_class" else key: value for key, value in attributes.items()
        }


KEYS = declared(HardwareProfile, device_class="class")
"""The keys of a profile's file, by name."""


def precision_of(scheme: str, profile: HardwareProfile) -> str:
    """What ``torch-cuda`` computes a model exported in ``scheme`` in: the same where the profile
    offers it or it is fp32, else the first that it offers."""
    return scheme if scheme in ("fp32", *profile.precisions) else profile.precisions[0]


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
    base_path = resources.locate(
        "hw_profiles", str(path.parent / base) if base.endswith(".toml") else base
    )
    return {**_extended(base_path, (*before, resolved)), **values}
