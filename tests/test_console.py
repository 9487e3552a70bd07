"""Progress, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from autocompress import console
from autocompress.journal import State, Trial
from autocompress.metrics import METRICS
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


def trial(number: int, state: State, reason: str | None = None) -> Trial:
    return Trial(number, {"layers.keep": 0.5}, state, reason=reason)


def test_what_is_refused_alike_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On screen, unless it is verbose, and in the log, also where nothing is shown."""
    slow = "foretold 12.{} ms on cpu, the limit is 3 ms, so not tried"
    for options, lines in (
        ({}, ["t001  over-budget: " + slow.format(1), "      and 2 more likewise"]),
        ({"verbose": True}, [f"t00{i}  over-budget: {slow.format(i)}" for i in (1, 2, 3)]),
        ({"shown": False}, ["t001  over-budget: " + slow.format(1), "      and 2 more likewise"]),
    ):
        out = io.StringIO()
        monkeypatch.setattr(console, "err", Console(file=out, width=200, soft_wrap=True))
        caplog.clear()
        with (
            caplog.at_level("INFO", logger="autocompress"),
            Progressing(None, METRICS["accuracy"], **options) as listener,
        ):
            for number in (1, 2, 3):
                listener.trial(trial(number, "over-budget", slow.format(number)), 60.0)
            listener.trial(trial(4, "failed", "no room\nfor it, " + 80 * "x"), 60.0)
        logged = [line.rstrip() for line in caplog.messages]
        assert logged[-1].startswith("t004  failed: no room")
        assert len(logged[-1]) <= 80 or "verbose" in options
        assert [line[: len(want)] for line, want in zip(logged, lines, strict=False)] == lines
        printed = [line.rstrip() for line in out.getvalue().splitlines()]
        assert printed == ([] if "shown" in options else "\n".join(logged).splitlines())


def test_a_candidate_is_told_by_what_the_baseline_has_not() -> None:
    whole = ["6 layers", "heads 12", "FFN 1536", "fp32"]
    assert console.differing(["6 layers", "heads 6", "FFN 1536", "int8-dynamic"], whole) == (
        "heads 6, int8-dynamic"
    )
    assert console.differing(whole, whole) == "as the baseline"


def test_a_long_line_is_broken_between_words_on_a_terminal_alone() -> None:
    line = "t001  " + ", ".join(f"piece {i}" for i in range(20))
    for terminal in (False, True):
        told = console.folded(line, Console(force_terminal=terminal, width=80)).plain
        if not terminal:
            assert told == line
            continue
        first, *rest = told.splitlines()
        assert len(rest) > 1 and all(len(one) <= 80 for one in (first, *rest))
        assert all(one.startswith("      piece") or one[6:7].isdigit() for one in rest)
        assert " ".join(one.strip() for one in (first, *rest)) == line
