"""Latency tables of a search: measured once per device and model shape, kept on disk, set right by
the trials."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress import environment
from autocompress.candidate import Candidate
from autocompress.engine.workbench import Workbench
from autocompress.errors import CandidateFailed
from autocompress.files import write_json
from autocompress.interfaces import Device
from autocompress.journal import Trial
from autocompress.latency.predictor import LatencyTable, Shape, probes, shape_of
from autocompress.search_space import Choices, SearchSpace
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.quantization import MORE_BITS
from autocompress.training.teacher import cache_folder

_TOGETHER = 8
"""Models that are timed in one process, beside the baseline."""
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
_SCHEMA = 2
"""Of a table's file and the graphs that it was measured with."""
_LEAST_MARGIN = 0.1
"""A candidate is refused unseen only when it is predicted to miss a limit by more than this
share."""
_NOT_OF_THE_GRAPH = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
)
Rows = list[tuple[Shape, float]]


@dataclass
class Foresight:
    """What the tables say of candidates; empty where no limit and no setting asks for them."""

    bench: Workbench
    baseline_ms: dict[str, float]
    tables: dict[str, LatencyTable]

    @classmethod
    def prepare(
        cls,
        bench: Workbench,
        baseline: Trial,
        space: SearchSpace,
        stage: Callable[[str, int, int], None],
        out_of_time: Callable[[], bool],
    ) -> Foresight:
        """Tables where the budget limits latency or the space prunes by latency.

        Args:
            stage: hears what is being done, and how far it is.
            out_of_time: whether to leave the rest unmeasured.
        """
        limited = any(
            b.max_latency_ms is not None or b.min_speedup is not None
            for b in bench.budgets.values()
        )
        by_latency = any(
            p.name == "width.latency" and str(p.values) != "1.0" for p in space.parameters
        )
        if not (limited or by_latency):
            return cls(bench, {}, {})
        baseline_ms = {
            name: score.timing.latency_ms.value for name, score in baseline.scores.items()
        }
        tables = tables_for(
            bench,
            space,
            lambda done, of: stage("measuring the latency table", done, of),
            out_of_time,
        )
        return cls(bench, baseline_ms, tables)

    def resolve(self, candidate: Candidate) -> Structure:
        """The candidate's structure; raises as ``techniques.resolve`` and ``shape_of``."""

        def latency(structure: Structure) -> float:
            name, table = next(iter(self.tables.items()))
            shape = shape_of(structure, candidate)
            if not table.knows(shape):
                raise CandidateFailed(
                    f"the latency table of {name} does not know the number formats of this "
                    f"candidate"
                )
            return table.predict(shape)

        structure = resolve(
            self.bench.full, candidate, self.bench.importance, latency if self.tables else None
        )
        shape_of(structure, candidate)
        return structure

    def foretold(self, trial: Trial, structure: Structure, candidate: Candidate) -> Trial:
        """The trial with its predicted latencies; over budget when every device's limit is missed
        by more than the table errs."""
        shape = shape_of(structure, candidate)
        predicted = {
            name: table.predict(shape) for name, table in self.tables.items() if table.knows(shape)
        }
        trial = replace(trial, predicted=predicted)
        if len(predicted) == len(self.bench.devices) and all(
            self.excess(name, relative) > self._margin(name) for name, relative in predicted.items()
        ):
            return replace(
                trial, state="over-budget", reason=f"{self.in_words(trial)}, so not tried"
            )
        return trial

    def in_words(self, trial: Trial) -> str:
        """What was predicted of a trial."""

        def one(name: str, relative: float) -> str:
            about = "~" if self.bench.devices[name].profile.estimated else ""
            return f"{about}{relative * self.baseline_ms[name]:.3g} ms on {name}"

        return "predicted " + ", ".join(
            one(name, relative) for name, relative in trial.predicted.items()
        )

    def learn(self, trial: Trial, structure: Structure, candidate: Candidate) -> None:
        """Set the tables right by a trial that was measured."""
        for name, table in self.tables.items():
            if name in trial.scores:
                table.add(shape_of(structure, candidate), 1 / trial.scores[name].timing.speedup)

    def excess(self, name: str, relative: float) -> float:
        """By how much a latency relative to the baseline misses the device's limits, as a share;
        below zero when it holds."""
        budget = self.bench.budgets[name]
        by_latency = (
            relative * self.baseline_ms[name] / budget.max_latency_ms - 1
            if budget.max_latency_ms
            else -1.0
        )
        return max(by_latency, relative * budget.min_speedup - 1 if budget.min_speedup else -1.0)

    def summary(self, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
        """Mean absolute relative error of the predictions, over the trials measured afterwards, by
        device."""
        found = {}
        for name in self.tables:
            pairs = [
                (t.predicted[name], 1 / t.scores[name].timing.speedup)
                for t in trials
                if name in t.predicted and name in t.scores
            ]
            if pairs:
                found[name] = {
                    "mean_abs_error": float(np.mean([abs(p / m - 1) for p, m in pairs])),
                    "n": len(pairs),
                }
        return found

    def _margin(self, name: str) -> float:
        return max(_LEAST_MARGIN, 3 * float(np.median(np.abs(self.tables[name].errors()))))


def formats_of(space: SearchSpace) -> list[str]:
    """Every number format that a layer may have in a space, named as ``shape_of`` names them; fp32
    first."""
    values: dict[str, tuple[Any, ...]] = {
        p.name: p.values.values for p in space.parameters if isinstance(p.values, Choices)
    }
    found = ["fp32"]
    spares = values.get("quantization.spared", ("none",)) != ("none",)
    for scheme in values.get("quantization.scheme", ("fp32",)):
        for name in (scheme, MORE_BITS.get(scheme, scheme)) if spares else (scheme,):
            blocks = (
                values.get("quantization.block_size", (32,)) if name.endswith("-weights") else (0,)
            )
            found += [f"{name}/{block}" if block else name for block in blocks]
    return list(dict.fromkeys(found))


def tables_for(
    bench: Workbench,
    space: SearchSpace,
    progress: Callable[[int, int], None],
    out_of_time: Callable[[], bool],
) -> dict[str, LatencyTable]:
    """A table for each device, from the run folder, from the cache of earlier searches, or measured
    now.

    Args:
        progress: hears how many measurements are done, of how many.
        out_of_time: whether to leave the rest unmeasured; asked when some are.

    Raises:
        OSError: the disk is full.
    """
    files = {name: bench.run.folder / "latency" / f"{name}.json" for name in bench.devices}
    if not all(file.is_file() for file in files.values()):
        cached = {
            name: cache_folder() / "latency" / f"{_digest(_key(bench, name))}.json"
            for name in bench.devices
        }
        known = {name: _read(file) for name, file in cached.items()}
        wanted = _probes(bench, formats_of(space))
        missing = [
            shape for shape in wanted if any(shape not in dict(rows) for rows in known.values())
        ]
        done, of = 0, len(missing)
        while done < of and not (done and out_of_time()):
            progress(done, of)
            some = missing[done : done + min(_TOGETHER, bench.room())]
            done += len(some)
            for name, rows in _measured(bench, some).items():
                known[name] += [row for row in rows if row[0] not in dict(known[name])]
                with contextlib.suppress(OSError):  # the cache is a convenience
                    _write(cached[name], _key(bench, name), known[name])
        for name, rows in known.items():
            _write(files[name], _key(bench, name), [row for row in rows if row[0] in wanted])
    return {name: read_table(bench.run.folder, name) for name in files}


def read_table(run: Path, name: str) -> LatencyTable:
    """The table that a run used for a device."""
    file = run / "latency" / f"{name}.json"
    heads, ffn = json.loads(file.read_text(encoding="utf-8"))["key"]["weights"]
    return LatencyTable(_read(file), (heads, ffn))


def _probes(bench: Workbench, formats: Sequence[str]) -> list[Shape]:
    full = bench.full
    return probes(len(full.layers), max(full.head_counts), max(full.ffn_widths), formats)


def _measured(bench: Workbench, shapes: Sequence[Shape]) -> dict[str, Rows]:
    scratch = bench.run.folder / "scratch" / "latency"
    folders = [scratch / str(i) for i in range(len(shapes))]
    try:
        for shape, folder in zip(shapes, folders, strict=True):
            structure, candidate = _example(shape)
            assert shape_of(structure, candidate) == shape
            bench.export(bench.family.cut(bench.model, structure), structure, candidate, folder)
        pairs = list(zip(shapes, folders, strict=True))
        return {
            name: _timed(device, bench.baseline_folder, pairs)
            for name, device in bench.devices.items()
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _timed(device: Device, baseline: Path, pairs: Sequence[tuple[Shape, Path]]) -> Rows:
    """Rows of the shapes that the device can run."""
    try:
        timings = device.time(baseline, [folder for _, folder in pairs], final=False)[1]
        return [
            (shape, 1 / timing.speedup) for (shape, _), timing in zip(pairs, timings, strict=True)
        ]
    except CandidateFailed as error:
        if len(pairs) > 1:
            return [row for pair in pairs for row in _timed(device, baseline, [pair])]
        if pairs[0][0].rest == "fp32":  # what every device can run
            raise CandidateFailed(
                f"{device.profile.name}, measuring the latency table: {error}"
            ) from error
        return []


def _example(shape: Shape) -> tuple[Structure, Candidate]:
    """A structure and a candidate of this shape."""
    layers = tuple(
        Layer(i, tuple(range(heads)), tuple(range(ffn)))
        for i, (heads, ffn, _) in enumerate(shape.layers)
    )
    scheme, _, block = shape.rest.partition("/")
    chosen: dict[str, Any] = {"quantization.scheme": scheme}
    if block:
        chosen["quantization.block_size"] = int(block)
    return Structure(layers), SETTINGS.candidate(chosen).without("recovery")


def _key(bench: Workbench, name: str) -> dict[str, Any]:
    """Everything that a table's figures depend on."""
    device = bench.devices[name]
    config: Any = bench.model.config
    profile = device.profile
    return {
        "device": {
            key: device.fingerprint[key] for key in _DEVICE_KEYS if key in device.fingerprint
        },
        "runtime": profile.runtime,
        "threads": profile.intra_op_threads,
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
        "statistic": profile.statistic,
        "model": {
            name: value for name, value in config.to_dict().items() if name not in _NOT_OF_THE_GRAPH
        },
        "layers": [list(bench.full.head_counts), list(bench.full.ffn_widths)],
        "weights": _weights(bench),
        "versions": environment.versions(),
        "schema": _SCHEMA,
    }


def _weights(bench: Workbench) -> tuple[float, float]:
    """Weights of a head, and of an FFN neuron."""

    def of_one(kind: str, units: int) -> float:
        return sum(matrix.numel() for matrix in bench.family.weights(bench.model, 0, kind)) / units

    return of_one("heads", bench.full.head_counts[0]), of_one("ffn", bench.full.ffn_widths[0])


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def _write(path: Path, key: Mapping[str, Any], rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        {"layers": shape.layers, "rest": shape.rest, "relative_latency": relative}
        for shape, relative in rows
    ]
    write_json(path, {"key": key, "rows": listed})


def _read(path: Path) -> Rows:
    if not path.is_file():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [
        (
            Shape(tuple((h, f, name) for h, f, name in row["layers"]), row["rest"]),
            row["relative_latency"],
        )
        for row in rows
    ]
