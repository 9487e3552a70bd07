"""The report says what the run's files say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import UserError
from autocompress.journal import Run, Trial
from autocompress.pareto import Front, Latency, Member, Quality
from autocompress.report import write_report
from autocompress.verification import write_front

DESCRIPTION: dict[str, Any] = {
    "inputs": {
        "model": "models/<mine>",
        "hardware": {"name": "cpu", "description": "a </script> machine", "threads": 1},
        "space": {"name": "encoder"},
        "sampler": "tpe",
        "seed": 0,
    },
    "data": {"source": "d.csv", "train": 1, "validation": 2, "test": 3, "unlabeled": 0, "dropped": {"train repeated": 4}},
    "device": {"cpu": "a cpu", "cores": 2, "memory_bytes": 2**34, "features": ["avx2"]},
    "versions": {"torch": "2"},
    "started": "2026-11-20T00:00:00+00:00",
}
SIZES = {"layers": [0, 1], "heads": [2, 4], "ffn": [8, 8]}


def member(number: int, ms: float, drop: float) -> Member:
    quality = Quality(0.9 - drop / 100, drop, 0.5, 0.88 - drop / 100, 0.01, 1000, drop, 0.5)
    latency = Latency(ms, ms * 1.1, (ms * 0.99, ms * 1.01), 30)
    speedup = 6 / ms
    settings = {"heads.keep": 0.5, "quantization.scheme": "int8-dynamic"}
    return Member(f"t{number:03}", settings, quality, latency, speedup, (speedup, speedup), 10**6, f"models/t{number:03}", SIZES)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.start(tmp_path / "run", DESCRIPTION)
    # rectangles, (1 - ms / 6) * (5 - drop) / 5: 0.33, 0.60, 0.45
    members = (member(1, 1.0, 3.0), member(2, 2.0, 0.5), member(3, 3.0, 0.5 - 0.05))
    baseline = member(0, 6.0, 0.0)
    for m in (baseline, *members):
        number = int(m.id[1:])
        run.append(
            Trial(
                number,
                m.candidate,
                "complete",
                SIZES,
                None,
                ((0, 0.9),),
                m.quality,
                "00",
                m.latency_ms,
                m.speedup,
                m.speedup_ci95,
                5,
            )
        )
    run.append(Trial(4, {"heads.keep": 0.25}, "failed", reason="export"))
    write_front(run, Front("accuracy", baseline, DESCRIPTION["inputs"]["hardware"], {}, 0.7, members, verified=True))
    return run


def script_value(page: str, name: str) -> Any:
    found = re.search(rf"const {name} = (.*);\n", page)
    assert found is not None
    return json.loads(found[1])


def test_the_script_has_the_front_and_starts_at_the_balanced_one(run: Run) -> None:
    page = write_report(run.folder).read_text(encoding="utf-8")
    models = script_value(page, "models")
    assert [(m["id"], m["latency"], m["speedup"]) for m in models] == [("t001", 1.0, 6.0), ("t002", 2.0, 3.0), ("t003", 3.0, 2.0)]
    assert [m["quality"] for m in models] == pytest.approx([0.85, 0.875, 0.8755])
    assert models[1]["qualityText"] == "0.8750 (-0.50 points)"
    assert script_value(page, "run") == str(run.folder)
    assert "show(2.0, true);" in page


def test_the_page_counts_what_happened(run: Run) -> None:
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert "3 models on the front of 4 candidates (3 complete, 1 failed)" in page
    assert "<dt>examples dropped</dt><dd>4 train repeated</dd>" in page
    assert page.count('<tr class="baseline">') == 1


def test_nothing_of_the_users_is_read_as_markup(run: Run) -> None:
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert "models/&lt;mine&gt; on cpu" in page
    assert "a &lt;/script&gt; machine" in page
    assert "<mine>" not in page


def test_a_damaged_run_is_one_clear_line(run: Run) -> None:
    (run.folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json or trials.jsonl is missing or damaged"):
        write_report(run.folder)
