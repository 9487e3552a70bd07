"""The report's page as a browser draws it; skipped where there is no Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.pareto import Member
from autocompress.report import write_report
from tests.test_report import (
    BASELINE,
    CPU,
    DESCRIPTION,
    ESTIMATED,
    FRONT,
    MEMBERS,
    PHONE,
    in_both_regimes,
    of_size,
    start,
)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
DRIVER = """
const failures = [];
window.addEventListener("error", event => failures.push(event.message));
const $ = selector => document.querySelector(selector);
const $$ = selector => [...document.querySelectorAll(selector)];
const texts = selector => $$(selector).map(element => element.textContent);
const strong = index => $(`#choice-${index} strong`)?.textContent ?? null;
const event = (target, kind, more = {}) => {
  target.dispatchEvent(Object.assign(new Event(kind, {bubbles: true}), more));
};
"""
ENDING = """
const pre = document.createElement("pre");
pre.textContent = "ANSWER" + JSON.stringify({...answer, failures});
document.body.replaceChildren(pre);
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two devices, the first of them in both regimes and with size as an objective."""
    sized = (BASELINE, *MEMBERS)
    baseline, *members = [in_both_regimes(of_size(member)) for member in sized]
    front = replace(
        FRONT,
        baseline=baseline,
        members=tuple(members),
        objectives=("latency", "quality", "size"),
        size_hypervolume=0.5,
    )
    inputs = DESCRIPTION["inputs"] | {"hardware": [CPU, PHONE]}
    folder = tmp_path_factory.mktemp("runs") / "run"
    return write_report(start(folder, DESCRIPTION | {"inputs": inputs}, [front, ESTIMATED]).folder)


def told(page: Path, script: str, width: int = 1200) -> dict[str, Any]:
    """What ``answer`` is after a script ran in the page."""
    driven = page.with_name(f"driven-{width}.html")
    text = page.read_text(encoding="utf-8")
    text = text.replace("<script>", f"<script>{DRIVER}</script><script>", 1)
    end = f"<script>setTimeout(() => {{ {script} {ENDING} }}, 300);</script></body>"
    driven.write_text(text.replace("</body>", end), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=2000",
    ]
    command = [str(BROWSER), *options, f"--window-size={width},900", "--dump-dom", driven.as_uri()]
    dump = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    answer = re.search("ANSWER(.*?)</pre>", dump)
    assert answer, dump[-2000:]
    value: dict[str, Any] = json.loads(answer[1])
    return value


def test_a_budget_chooses_and_axes_switch(page: Path) -> None:
    script = """
    const answer = {first: strong(0), points: $$("#front-0 .member").length};
    answer.command = $("#choice-0 code").textContent;
    $("#budget-0").value = "1.2"; event($("#budget-0"), "change");
    answer.fast = strong(0);
    const drag = (kind, share) => {
      const {left, width} = $("#front-0 svg").getBoundingClientRect();
      event($("#front-0 .grip") ?? window, kind, {clientX: left + share * width});
    };
    drag("pointerdown", 0.9); drag("pointermove", 0.5); const near = strong(0);
    drag("pointermove", 0.25); drag("pointerup", 0.25); drag("pointermove", 0.9);
    answer.dragged = [near, strong(0), Number($("#budget-0").value) > 4];
    event($("#front-0 [data-id=t003]"), "keydown", {key: "Enter"});
    answer.taken = strong(0);
    $("#axes-0 [data-axis='1']").click();
    answer.cold = [$("#budgets-0").hidden, $("#choice-0 .choice").textContent];
    $("#axes-0 [data-axis='2']").click();
    answer.size = [$("#label-0"), $("#choice-0 strong"), $("#axes-0 [aria-pressed=true]")];
    answer.size = answer.size.map(one => one.textContent);
    """
    answer = told(page, script)
    assert answer.pop("cold") == [
        True,
        "t003 is the model that you chose: 4.50 ms, 1.78x, 0.5 MB, accuracy 0.8755 (-0.45 points) "
        "on test, chosen on validation. 2 layers, heads 2-4, FFN 8.",
    ]
    assert answer == {
        "first": "t002",
        "points": 3,
        "command": "autocompress export run --hardware cpu --trial t002 --out my-model",
        "fast": "t001",
        "dragged": ["t002", "t003", True],
        "taken": "t003",
        "size": ["Size budget", "t003", "size"],
        "failures": [],
    }


def test_models_side_by_side_sorting_and_devices(page: Path) -> None:
    script = """
    const answer = {models: texts("#compare-0 thead th"), bars: texts("#compare-0 .bar").slice(-6)};
    const box = id => $(`#device-0 .front input[value=${id}]`);
    answer.full = box("t002").disabled;
    box("t000").click(); box("t002").click();
    answer.then = texts("#compare-0 thead th");
    const ids = () => texts("#device-0 .trials tbody td:first-child");
    const head = name => $$("#device-0 .trials th").find(th => th.textContent === name);
    head("speedup").querySelector("button").click(); answer.up = ids();
    head("speedup").querySelector("button").click(); answer.down = ids();
    answer.sorted = head("speedup").getAttribute("aria-sort");
    $("#switch").value = "1"; event($("#switch"), "change");
    answer.devices = $$("section").map(section => section.hidden);
    answer.phone = $("#choice-1 .choice").textContent;
    """
    answer = told(page, script)
    assert answer.pop("phone").startswith("t002 is the best model within 25.00 ms: ~20.00 ms, ~3.")
    assert answer == {
        "models": ["model", "t001", "t003", "t000"],
        "bars": ["4 heads", "8 FFN"] * 3,
        "full": True,
        "then": ["model", "t001", "t002", "t003"],
        "up": ["t000", "t003", "t002", "t001", "t004"],
        "down": ["t001", "t002", "t003", "t000", "t004"],
        "sorted": "descending",
        "devices": [True, False],
        "failures": [],
    }


def in_all_phases(measured: Member) -> Member:
    """The same model as one of language, whose table has the most columns and wide figures."""
    timing = in_both_regimes(of_size(measured)).timing
    latency = replace(timing.latency_ms, value=100 * timing.latency_ms.value)
    timing = replace(timing, latency_ms=latency, phase="decode")
    others = tuple(replace(timing, phase=name, beside=None) for name in ("prefill", "end-to-end"))
    return replace(measured, timing=replace(timing, others=others), weight_bytes=10**9)


@pytest.fixture(scope="module")
def widest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    front = replace(
        FRONT,
        metric="perplexity",
        baseline=in_all_phases(BASELINE),
        members=tuple(map(in_all_phases, MEMBERS)),
        objectives=("latency", "quality", "size"),
        size_hypervolume=0.5,
    )
    return write_report(start(tmp_path_factory.mktemp("runs") / "run", DESCRIPTION, [front]).folder)


@pytest.mark.parametrize("width", [500, 1200, 1920])
def test_nothing_is_cut(widest: Path, width: int) -> None:
    """At 500, the narrowest window that the browser has, the page is given 420."""
    script = f"""
    document.body.style.width = "{420 if width == 500 else width}px";
    const wide = one => one.scrollWidth > one.clientWidth;
    const answer = {{cut: $$(".scroll").filter(wide).map(one => one.innerHTML.slice(0, 40))}};
    answer.over = wide(document.documentElement) || wide(document.body);
    """
    assert told(widest, script, width) == {"cut": [], "over": False, "failures": []}
