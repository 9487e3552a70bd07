"""Latency tables: measured once per device and model shape, and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress import environment
from autocompress.candidate import Candidate
from autocompress.engine.converting import Converter
from autocompress.engine.making import Maker, Measured
from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.engine.scoring import Scorer
from autocompress.errors import CandidateFailed
from autocompress.files import cache_folder, keep_json, kept_json
from autocompress.formats import FORMATS, choices
from autocompress.hardware.agent import usable_cores
from autocompress.interfaces import Device, Knowledge, Task
from autocompress.latency.predictor import LatencyTable, Shape, probes, shape_of
from autocompress.plan import Plan
from autocompress.search_space import SearchSpace
from autocompress.shipping import Graph
from autocompress.structure import Layer, Structure
from autocompress.student import first
from autocompress.techniques import SETTINGS, resolve
from autocompress.training.teacher import computed_by

_TOGETHER = 8
"""Models that are timed in one process, beside the baseline."""
_FIRST = 4
"""Shapes of a number format without which nothing is foretold of it: the whole model, a single
layer, few heads, a narrow FFN."""
_DEVICE_KEYS = (
    "system",
    "cpu",
    "cores",
    "features",
    "gpu",
    "driver",
    "onnxruntime",
    "torch",
    "source",
    "date",
)
_SCHEMA = 4
"""Of a table's file and the graphs that it was measured with."""
_DRAWS, _PLANS_PER_PART, _MOST_OF_PARTS = 60, 5, 24
"""Points of the space drawn to find plans with each kind of part, plans that are measured of each,
and measurements of them at most."""
Rows = list[tuple[Shape, float]]
Probe = tuple[Plan, Candidate]
"""A plan and a number format."""


def planned(
    maker: Maker,
    measured: Measured,
    candidate: Candidate,
    latency: Callable[[Structure], float] | None = None,
) -> Plan:
    """The candidate's plan; raises as ``techniques.resolve``."""
    counts = partial(word_counts, measured.task)
    knowledge = Knowledge(measured, latency, measured.once, counts, measured.felt)
    return resolve(maker.full, candidate, knowledge, maker.techniques)


def word_counts(task: Task) -> NDArray[np.int64]:
    """How often the text that students learn from has each token, by its id."""
    rows = (*task.train.rows, *task.unlabeled)
    counts: NDArray[np.int64] = np.bincount(np.concatenate([row[0] for row in rows]))
    return counts


def read_table(run: Path, name: str) -> LatencyTable:
    """The table that a run used for a device."""
    file = run / "latency" / f"{name}.json"
    heads, ffn = json.loads(file.read_text(encoding="utf-8"))["key"]["weights"]
    return LatencyTable(_read(file), (heads, ffn))


@dataclass(frozen=True)
class Tables:
    """What latency tables are measured with.

    Args:
        folder: of the run.
    """

    folder: Path
    maker: Maker
    measured: Measured
    converter: Converter
    scorer: Scorer

    def of(
        self,
        space: SearchSpace,
        progress: Callable[[int, int], None],
        out_of_time: Callable[[], bool],
    ) -> dict[str, LatencyTable]:
        """A table for each device, from the run folder, from the cache of earlier searches, or
        measured now.

        Args:
            progress: hears how many measurements are done, of how many.
            out_of_time: whether to leave the rest unmeasured; asked when some are.

        Raises:
            OSError: the disk is full.
        """
        devices = self.scorer.devices
        files = {name: self.folder / "latency" / f"{name}.json" for name in devices}
        if not all(kept_json(file) for file in files.values()):
            keys = {name: self.key(device) for name, device in devices.items()}
            known = self.known(self._probes(space), keys, progress, out_of_time)
            for name, rows in known.items():
                _write(files[name], keys[name], rows)
        return {name: read_table(self.folder, name) for name in files}

    def known(
        self,
        wanted: Mapping[Shape, Probe],
        keys: Mapping[str, Mapping[str, Any]],
        progress: Callable[[int, int], None],
        out_of_time: Callable[[], bool],
    ) -> dict[str, Rows]:
        """Rows of the wanted shapes by device; what is measured joins the cache."""
        cached = {name: _cached(key) for name, key in keys.items()}
        known = {name: _read(file) for name, file in cached.items()}
        missing = [s for s in wanted if any(s not in dict(rows) for rows in known.values())]
        done, of = 0, len(missing)
        while done < of and not (done and out_of_time()):
            progress(done, of)
            room = self.converter.room(self.scorer.baseline)
            some = missing[done : done + min(_TOGETHER, room)]
            done += len(some)
            for name, rows in self._timed({shape: wanted[shape] for shape in some}).items():
                known[name] += [row for row in rows if row[0] not in dict(known[name])]
                with contextlib.suppress(OSError):  # the cache is a convenience
                    _write(cached[name], keys[name], known[name])
        return {name: [row for row in rows if row[0] in wanted] for name, rows in known.items()}

    def _probes(self, space: SearchSpace) -> dict[Shape, Probe]:
        """What to measure: shapes of every number format of the space, then plans with parts."""
        formats, examples = table_formats(space), self.plain_probes(space)
        drawn = list(self._drawn(space))
        with_parts = [(plan, _in_format(name)) for name in formats for plan in drawn]
        for plan, wanted in with_parts[:_MOST_OF_PARTS]:
            examples.setdefault(shape_of(plan, wanted), (plan, wanted))
        return examples

    def plain_probes(self, space: SearchSpace) -> dict[Shape, Probe]:
        """Shapes of every number format of the space, without parts."""
        full = self.maker.full.structure
        heads, ffn = max(full.head_counts), max(full.ffn_widths)
        shapes = probes(len(full.layers), heads, ffn, table_formats(space))
        return {shape: self._example(shape) for shape in shapes}

    def _drawn(self, space: SearchSpace) -> Iterator[Plan]:
        """A few plans of the space with each kind of part that the table must have terms for."""
        with_parts = [technique for technique in self.maker.techniques if technique.part]
        settings = {setting.name for technique in with_parts for setting in technique.settings}
        if settings.isdisjoint(parameter.name for parameter in space.parameters):
            return
        counts: dict[str, int] = {}
        sampler = OptunaSampler(space, "random", 0)
        for _ in range(_DRAWS):
            try:
                plan = planned(self.maker, self.measured, space.candidate(sampler.ask()[1]))
            except CandidateFailed:
                continue
            shape = shape_of(plan, SETTINGS.candidate({}))
            kinds = [part.technique for part in plan.parts if shape.extra]
            if any(counts.get(kind, 0) < _PLANS_PER_PART for kind in kinds):
                counts |= {kind: counts.get(kind, 0) + 1 for kind in kinds}
                yield plan

    def _example(self, shape: Shape) -> Probe:
        """A plan and a number format of this shape."""
        layers = tuple(
            Layer(i, tuple(range(heads)), tuple(range(ffn)))
            for i, (heads, ffn, _) in enumerate(shape.layers)
        )
        plan = replace(self.maker.full, structure=Structure(layers))
        return plan, _in_format(shape.rest)

    def _timed(self, wanted: Mapping[Shape, Probe]) -> dict[str, Rows]:
        scratch = self.folder / "scratch" / "latency"
        scratch.mkdir(parents=True, exist_ok=True)
        folders = {shape: scratch / str(i) for i, shape in enumerate(wanted)}
        teacher, converter = self.maker.teacher, self.converter
        try:
            for shape, (plan, candidate) in wanted.items():
                model = first(
                    teacher.model, teacher.family, plan, "copied", self.maker.techniques
                ).cpu()
                graph = Graph(model, plan, scratch / "fp32.onnx", converter.calibration)
                told = {"candidate": candidate.as_dict()}
                graph.ship(candidate, folders[shape], converter.tokenizer_files, None, told)
            return {
                name: _rows(device, self.scorer.baseline, list(folders.items()))
                for name, device in self.scorer.devices.items()
            }
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def key(self, device: Device) -> dict[str, Any]:
        """Everything that a table's figures depend on."""
        config: Any = self.maker.teacher.model.config
        full, profile = self.maker.full.structure, device.profile
        return {
            "device": {
                key: device.fingerprint[key] for key in _DEVICE_KEYS if key in device.fingerprint
            },
            "runtime": profile.runtime,
            "threads": profile.threads or usable_cores(),
            "cuda_graphs": profile.cuda_graphs,
            "precisions": list(profile.precisions) if profile.runtime == "torch-cuda" else [],
            "peaks": profile.as_dict()["peaks"],
            "batch_size": profile.batch_size,
            "lengths": list(device.lengths),
            "generation": [
                profile.phase,
                profile.prompt_length,
                profile.context_length,
                profile.generated_tokens,
            ],
            "regime": profile.regime,
            "statistic": profile.statistic,
            "model": computed_by(config),
            "layers": [list(full.head_counts), list(full.ffn_widths)],
            "weights": [
                self._weights("heads", full.head_counts[0]),
                self._weights("ffn", full.ffn_widths[0]),
            ],
            "versions": environment.versions(),
            "schema": _SCHEMA,
        }

    def _weights(self, kind: str, units: int) -> float:
        """Of one of so many units of a layer."""
        teacher = self.maker.teacher
        matrices = teacher.family.weights(teacher.model, 0, kind)
        return sum(matrix.numel() for matrix in matrices) / units


class GrowingTables:
    """Tables that are measured when candidates need them: a few shapes of a number format at first,
    more with every further proposal while there is time. What was known at one is kept, so that a
    run that goes on plans the same again.

    Args:
        allowance_s: to measure in, but for the first shapes of each number format.
        progress: hears how many measurements are done, of how many.
    """

    def __init__(
        self,
        tables: Tables,
        space: SearchSpace,
        allowance_s: float,
        progress: Callable[[int, int], None],
    ) -> None:
        self._tables, self._left_s, self._progress = tables, allowance_s, progress
        self._wanted = tables.plain_probes(space)
        self._folder = tables.folder / "latency"
        self._keys = {name: tables.key(device) for name, device in tables.scorer.devices.items()}
        self._tried: set[Shape] = set()
        self._pace_s = 0.0

    def at(
        self, proposal: int, shape: Shape, trials: Mapping[str, Rows], *, fresh: bool
    ) -> dict[str, LatencyTable]:
        """For a proposal that needs to know of such a shape; none of a device that none is known
        of.

        Args:
            proposal: its number.
            trials: measured so far, by device.
            fresh: whether the proposal is not replayed, so that more may be measured.

        Raises:
            OSError: the disk is full.
        """
        weights = {name: tuple(key["weights"]) for name, key in self._keys.items()}
        rows = self._rows(proposal, shape, fresh=fresh)
        return {
            name: LatencyTable(known, weights[name], list(trials.get(name, ())))
            for name, known in rows.items()
            if known
        }

    def _rows(self, proposal: int, shape: Shape, *, fresh: bool) -> dict[str, Rows]:
        steps = [int(path.name) for path in self._folder.glob("[0-9]*") if path.is_dir()]
        last = max((step for step in steps if step <= proposal), default=None)
        before: dict[str, Rows] = {name: [] for name in self._keys}
        if last is not None:
            before = {name: _read(self._folder / str(last) / f"{name}.json") for name in before}
        if last == proposal or not fresh:
            return before
        rows = self._grown(before, {shape.rest, *(name for _, _, name in shape.layers)})
        for name, known in rows.items():
            _write(self._folder / str(proposal) / f"{name}.json", self._keys[name], known)
        return rows

    def _grown(self, before: Mapping[str, Rows], formats: set[str]) -> dict[str, Rows]:
        own = [dict(rows) for rows in before.values()]
        cached = [dict(_read(_cached(key))) for key in self._keys.values()]
        pairs = list(zip(own, cached, strict=True))
        known = {s for s in self._wanted if all(s in rows or s in more for rows, more in pairs)}
        missing = [s for s in self._wanted if s not in known and s not in self._tried]
        some = [
            shape
            for name in sorted(formats - {shape.rest for shape in known})
            for shape in [one for one in missing if one.rest == name][:_FIRST]
        ]
        if not some and self._left_s >= self._pace_s * min(_TOGETHER, len(missing)):
            some = sorted(missing, key=lambda shape: shape.rest not in formats)[:_TOGETHER]
        wanted = {
            shape: probe
            for shape, probe in self._wanted.items()
            if shape in some or (shape in known and not all(shape in rows for rows in own))
        }
        started = time.monotonic()
        new = self._tables.known(wanted, self._keys, self._progress, lambda: False)
        if some:
            took_s = time.monotonic() - started
            self._left_s, self._pace_s = self._left_s - took_s, took_s / len(some)
            self._tried.update(some)
        return {name: [*rows, *new[name]] for name, rows in before.items()}


def _rows(device: Device, baseline: Path, pairs: Sequence[tuple[Shape, Path]]) -> Rows:
    """Of the shapes that the device can run."""
    try:
        timings = device.time(baseline, [folder for _, folder in pairs], final=False)[1]
        return [
            (shape, 1 / timing.speedup) for (shape, _), timing in zip(pairs, timings, strict=True)
        ]
    except CandidateFailed as error:
        if len(pairs) > 1:
            return [row for pair in pairs for row in _rows(device, baseline, [pair])]
        if pairs[0][0].rest == "fp32" and not pairs[0][0].extra:  # what every device can run
            raise CandidateFailed(
                f"{device.profile.name}, measuring the latency table: {error}"
            ) from error
        return []


def table_formats(space: SearchSpace) -> list[str]:
    """Every number format that a layer may have in a space, named as ``shape_of`` names them; fp32
    first."""
    names = ["fp32"]
    for candidate in choices(space.parameters):
        scheme, block = (
            candidate.text("quantization.scheme"),
            candidate.get("quantization.block_size", 32),
        )
        spares = candidate.get("quantization.spared", "none") != "none"
        for name in (scheme, FORMATS[scheme].more_bits or scheme) if spares else (scheme,):
            names.append(f"{name}/{block}" if FORMATS[name].in_blocks else name)
    return list(dict.fromkeys(names))


def _in_format(name: str) -> Candidate:
    """A candidate of nothing but a number format, named as ``shape_of`` names it."""
    scheme, _, block = name.partition("/")
    chosen: dict[str, Any] = {"quantization.scheme": scheme}
    if block:
        chosen["quantization.block_size"] = int(block)
    return SETTINGS.candidate(chosen)


def _cached(key: Mapping[str, Any]) -> Path:
    """Where the cache keeps the rows of a table."""
    return cache_folder() / "latency" / f"{_digest(key)}.json"


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def _write(path: Path, key: Mapping[str, Any], rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        {
            "layers": shape.layers,
            "rest": shape.rest,
            "extra": shape.extra,
            "relative_latency": relative,
        }
        for shape, relative in rows
    ]
    keep_json(path, {"key": key, "rows": listed})


def _read(path: Path) -> Rows:
    kept = kept_json(path) or {"rows": []}
    return [(_shape(row), row["relative_latency"]) for row in kept["rows"]]


def _shape(row: Mapping[str, Any]) -> Shape:
    layers = tuple((heads, ffn, name) for heads, ffn, name in row["layers"])
    extra = tuple((name, amount) for name, amount in row.get("extra", ()))
    return Shape(layers, row["rest"], extra)
