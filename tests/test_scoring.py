"""What the third step of a trial does once only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from autocompress.engine.scoring import Scorer, Timings
from autocompress.files import write_json
from autocompress.graphs.reading import write_probe
from autocompress.hardware.profile import HardwareProfile
from autocompress.limits import Limits
from autocompress.scores import Timing
from tests.conftest import SizeDevice

CPU = "cpu-1-thread"


class Counting(SizeDevice):
    """Ever slower; remembers what it timed beside the baseline."""

    is_disturbed = False

    def __init__(self) -> None:
        super().__init__(HardwareProfile.load(CPU), [4])
        self.asked: list[str] = []

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        self.asked += [path.name for path in models]
        self.pace *= 1.5
        first, rest = super().time(baseline, models, final=final)
        return first, [replace(timing, disturbed=self.is_disturbed) for timing in rest]


def scoring(folder: Path, device: Counting) -> Scorer:
    task: Any = None
    return Scorer(task, {CPU: device}, {CPU: Limits()}, folder / "t000")


def model(folder: Path, inner: int, factor: float = 1.0, scheme: str = "fp32") -> Path:
    folder.mkdir()
    write_probe(folder / "model.onnx", width=32, inner=inner)
    probe = onnx.load(folder / "model.onnx")
    for tensor in probe.graph.initializer:
        numbers = factor * onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    onnx.save(probe, folder / "model.onnx")
    write_json(folder / "autocompress.json", {"quantization": {"scheme": scheme}})
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """The baseline, a model, one of its shapes, one of others, one in another number format."""
    given: list[dict[str, Any]] = [{}, {}, {"factor": 2.0}, {"inner": 48}, {"scheme": "bf16"}]
    sizes = [128, 64, 64, 48, 64]
    return [
        model(tmp_path / f"t00{i}", **{"inner": sizes[i], **more}) for i, more in enumerate(given)
    ]


def measured(outcome: object) -> Timings:
    assert isinstance(outcome, dict)
    return outcome


def test_a_graph_is_timed_once_whatever_its_weights(folders: list[Path], tmp_path: Path) -> None:
    device = Counting()
    scorer = scoring(tmp_path, device)
    _, one, alike, wider, in_bf16 = folders
    first = measured(scorer.time([one])[0])
    others = [measured(outcome) for outcome in scorer.time([alike, wider, in_bf16])]
    assert device.asked == ["t001", "t003", "t004"]
    assert [timings[CPU].taken_from for timings in (first, *others)] == [None, "t001", None, None]
    assert others[0] == {CPU: replace(first[CPU], taken_from="t001")}
    assert scorer.time([one]) == [first]
    resumed = scoring(tmp_path, device)
    resumed.remember("t002", others[0])
    resumed.remember("t001", first)
    assert resumed.time([alike]) == [others[0]]
    assert len(device.asked) == 3


def test_a_disturbed_timing_is_taken_over_by_none(folders: list[Path], tmp_path: Path) -> None:
    device = Counting()
    scorer = scoring(tmp_path, device)
    device.is_disturbed = True
    scorer.time([folders[1]])
    device.is_disturbed = False
    [timings] = scorer.time([folders[2]])
    assert device.asked == ["t001", "t002"]
    assert measured(timings)[CPU].taken_from is None
