"""Progress, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from autocompress import console
from autocompress.pareto import METRICS
from autocompress.progress import Progressing


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_says_how_far_it_is_and_what_is_left(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log a line a minute, on a terminal a bar."""
    out, now = io.StringIO(), 100.0
    monkeypatch.setattr(console, "err", Console(file=out, force_terminal=terminal, width=200))
    monkeypatch.setattr("autocompress.progress.time.monotonic", lambda: now)
    listener = Progressing(3600.0, METRICS["accuracy"])
    listener.stage("fine-tuning the teacher")
    for done in range(1, 13):
        now += 25.0
        listener.stage("fine-tuning the teacher", done, 24)
    task = listener.progress.tasks[0]
    assert (task.completed, task.total, task.fields["end"] - now) == (12, 24, 300.0)
    said = [line for line in out.getvalue().splitlines() if " of 24" in line]
    assert said == (
        []
        if terminal
        else [
            f"fine-tuning the teacher: {done} of 24, {left} to go"
            for done, left in ((3, "8:45"), (6, "7:30"), (9, "6:15"), (12, "5:00"))
        ]
    )
    listener.stage("verifying the front")
    assert listener.progress.tasks[0].fields["end"] == 3700.0
