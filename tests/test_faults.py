"""Whatever goes wrong at the door, or with a file: one clear line, nothing half-written; and what
kills and damage leave of a run and of the cache."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autocompress.engine.listener import Silent
from autocompress.engine.loop import SearchResult
from autocompress.errors import AutocompressError, UserError
from autocompress.files import keep_folder, keep_json, kept_folder, kept_json
from autocompress.journal import Run
from autocompress.limits import Limits
from autocompress.scores import Timing
from autocompress.searching import search
from tests.conftest import SizeDevice
from tests.faults import (
    CASES,
    WITHOUT_GPU,
    Edit,
    Ground,
    Toll,
    answer,
    becomes,
    damage,
    half,
    killed,
)
from tests.searching import CPU, space


@pytest.fixture(scope="module")
def ground(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    run = tmp_path_factory.mktemp("runs") / "run"
    search(tiny_model, data_file, CPU, "quantization-only", run, connect=SizeDevice)
    return Ground(tiny_model, data_file, run)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_writes_nothing(
    name: str, ground: Ground, tmp_path: Path
) -> None:
    if name in WITHOUT_GPU and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    given = answer(CASES[name], ground, tmp_path)
    assert given.is_clear(CASES[name]), given


def test_kills_lose_and_change_nothing(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """Litter is counted by ``benchmarks/faults.py``."""
    toll = killed(4, tiny_model, data_file, tmp_path)
    assert replace(toll, litter_bytes=0) == Toll(kills=4)


class Unwilling(SizeDevice):
    """Times nothing."""

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        raise UserError("it will not")


def test_a_mistake_that_shows_late_leaves_nothing_in_the_way(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="it will not"):
        search(tiny_model, data_file, CPU, "quantization-only", out, connect=Unwilling)
    assert not out.exists()
    search(tiny_model, data_file, CPU, "quantization-only", out, connect=SizeDevice, trials=1)
    with pytest.raises(UserError, match="it will not"):
        search(
            *(tiny_model, data_file, CPU, "quantization-only", out),
            connect=Unwilling,
            trials=1,
            resume=True,
        )
    assert (out / "front.json").is_file()


@pytest.mark.parametrize("file", ["model.onnx", "autocompress.json", "config.json"])
def test_a_damaged_member_is_left_out_of_the_front(
    file: str, whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """What the run has tried stays."""
    out = Path(shutil.copytree(whole.run, tmp_path / "run"))
    hurt, *others = whole.front.members
    damage(out / hurt.path / file, half)
    heard = Told()
    resumed = search(
        *(tiny_model, data_file, CPU, space(), out),
        trials=8,
        connect=SizeDevice,
        resume=True,
        listener=heard,
    )
    assert resumed.front.verified and {m.id for m in others} <= {
        m.id for m in resumed.front.members
    }
    assert hurt.id not in {member.id for member in resumed.front.members} and others
    assert Run(out).trials() == list(whole.trials)
    [line] = [stage for stage in heard.stages if "left out" in stage]
    assert line.startswith(f"{hurt.id} left out: ") and file in line and "damaged" in line


class Told(Silent):
    """Remembers its stages and what it was told."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, name: str, done: int = 0, of: int = 0) -> None:
        self.stages.append(name)

    def said(self, line: str) -> None:
        self.stages.append(line)


DAMAGES: Mapping[str, Edit] = {
    "cut": half,
    "empty": becomes(""),
    "of another kind": becomes("[1]"),
    "other values": lambda content: content.replace(b"7", b"0"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_of_the_cache_is_dropped_in_one_line(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, folder = tmp_path / "table.json", tmp_path / "folder"
    assert kept_json(table) is None and not kept_folder(folder)
    keep_json(table, {"rows": [7.5]})
    folder.mkdir()
    (folder / "config.json").write_text('{"size": 7}')
    keep_folder(folder)
    assert kept_json(table) == {"rows": [7.5]} and kept_folder(folder)
    assert not caplog.messages
    damage(table, DAMAGES[how])
    damage(folder / "config.json", DAMAGES[how])
    assert kept_json(table) is None and not kept_folder(folder)
    assert caplog.messages == [f"{path} is damaged: it is made again" for path in (table, folder)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/none", "{}/file", "{}/" + "n" * 300])
def test_a_cache_that_cannot_be_had_hurts_nothing(
    place: str,
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A latency table and a fine-tuned teacher are then not kept."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", place.format(tmp_path))
    limited = Limits(min_speedup=1.01)
    values = {"layers": {"keep": [0.5]}}
    result = search(
        *(tiny_model, data_file, CPU, space(values), tmp_path / "run"),
        connect=SizeDevice,
        trials=1,
        budget=limited,
    )
    assert result.front.members
    assert (tmp_path / "file").read_text() == "mine"


def _with_a_limit(most_bytes: int, model: Path, data: Path, out: Path, said: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    try:
        search(model, data, CPU, "quantization-only", out, connect=SizeDevice)
    except AutocompressError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        said.write_text(str(error))


@pytest.mark.parametrize("most_bytes", [0, 300_000, 3_000_000])
def test_a_limit_of_file_sizes_is_said(
    most_bytes: int, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """At any point of a run."""
    said = tmp_path / "said"
    child = multiprocessing.get_context("forkserver").Process(
        target=_with_a_limit, args=(most_bytes, tiny_model, data_file, tmp_path / "run", said)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert "File too large" in said.read_text()
