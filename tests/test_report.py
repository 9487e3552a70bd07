"""The report says what the run's files say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autocompress import console
from autocompress.cli import main
from autocompress.engine.verification import write_fronts
from autocompress.errors import UserError
from autocompress.journal import Run, Trial
from autocompress.pareto import Front, Member
from autocompress.report import write_report
from autocompress.scores import Latency, Quality, Score, Timing

CPU: dict[str, Any] = {
    "name": "cpu",
    "description": "a </script> machine",
    "threads": 1,
    "fingerprint": {},
    "source": "",
}
PHONE: dict[str, Any] = {
    "name": "<phone>",
    "description": "a phone",
    "source": "its <datasheet>",
    "date": "2026-01-31",
}
DESCRIPTION: dict[str, Any] = {
    "inputs": {
        "model": "models/<mine>",
        "hardware": [CPU],
        "space": {"name": "encoder"},
        "sampler": "tpe",
        "seed": 0,
    },
    "data": {
        "source": "d.csv",
        "train": 1,
        "validation": 2,
        "test": 3,
        "unlabeled": 0,
        "dropped": {"train repeated": 4},
    },
    "devices": {
        "cpu": {
            "cpu": "a <cpu>",
            "cores": 2,
            "memory_bytes": 2**34,
            "features": ["avx2"],
            "gpu": "",
        }
    },
    "versions": {"torch": "2"},
    "started": "2026-11-20T00:00:00+00:00",
}
SIZES = {"layers": [0, 1], "heads": [2, 4], "ffn": [8, 8]}


def member(number: int, ms: float, drop: float) -> Member:
    quality = Quality(0.9 - drop / 100, drop, 0.5, 0.88 - drop / 100, 0.01, 1000, drop, 0.5)
    speedup = 6 / ms
    latency = Latency(ms, ms * 1.1, ms * 1.2, (ms * 0.99, ms * 1.01), 30, "median")
    timing = Timing(
        latency,
        speedup,
        (speedup * 0.98, speedup * 1.02),
        "int8-dynamic",
        ms,
        ms,
        memory_bytes=7_000_000,
    )
    settings = {"heads.keep": 0.5, "quantization.scheme": "int8-dynamic"}
    return Member(f"t{number:03}", settings, quality, timing, 10**6, f"models/t{number:03}", SIZES)


def estimated(measured: Member, factor: float) -> Member:
    """The same model on a device known from its datasheet, so many times slower."""
    ms = factor * measured.latency_ms.value
    latency = Latency(ms, ms, ms, (ms, ms), 0, basis="datasheet")
    return replace(
        measured,
        timing=Timing(
            latency, measured.speedup, (measured.speedup, measured.speedup), memory_bytes=3_000_000
        ),
    )


BASELINE = member(0, 6.0, 0.0)
# rectangles, (1 - ms / 6) * (5 - drop) / 5: 0.33, 0.60, 0.45
MEMBERS = (member(1, 1.0, 3.0), member(2, 2.0, 0.5), member(3, 3.0, 0.5 - 0.05))
FRONT = Front("accuracy", BASELINE, CPU, {}, 0.7, MEMBERS, verified=True, hypervolume_test=0.65)
ESTIMATED = Front(
    "accuracy",
    estimated(BASELINE, 10),
    PHONE,
    {"max_latency_ms": 25.0},
    0.25,
    (estimated(MEMBERS[1], 10),),
    verified=True,
)


def trial(front_member: Member, scores: dict[str, Score], predicted: dict[str, float]) -> Trial:
    return Trial(
        int(front_member.id[1:]),
        front_member.candidate,
        "complete",
        SIZES,
        None,
        ((0, 0.9),),
        scores,
        predicted,
        5,
        seconds=15.0,
    )


def start(folder: Path, description: dict[str, Any], fronts: Sequence[Front]) -> Run:
    run = Run.start(folder, description)
    for m in (BASELINE, *MEMBERS):
        scores = {"cpu": Score(m.timing, m.quality, "00")}
        if len(fronts) > 1:
            scores["<phone>"] = Score(estimated(m, 10).timing, m.quality, "00")
        run.ended(trial(m, scores, {}))
    run.ended(Trial(4, {"heads.keep": 0.25}, "failed", reason="export"))
    write_fronts(run, fronts)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return start(tmp_path / "run", DESCRIPTION, [FRONT])


@pytest.fixture
def pair(tmp_path: Path) -> Run:
    """A run on two devices, one of them estimated."""
    description = DESCRIPTION | {
        "inputs": DESCRIPTION["inputs"] | {"hardware": [CPU, PHONE]},
        "devices": DESCRIPTION["devices"]
        | {"<phone>": {"source": "its <datasheet>", "date": "2026-01-31"}},
        "prediction": {
            "cpu": {"mean_abs_error": 0.0314, "n": 17},
            "<phone>": {"mean_abs_error": 0.02, "n": 17},
        },
    }
    return start(tmp_path / "run", description, [FRONT, ESTIMATED])


def page_of(run: Run) -> str:
    return write_report(run.folder).read_text(encoding="utf-8")


def script_value(page: str, name: str) -> Any:
    match = re.search(rf"const {name} = (.*);\n", page)
    assert match is not None
    return json.loads(match[1])


def section(page: str, index: int) -> str:
    match = re.search(rf'<section id="device-{index}"(.*?)</section>', page, re.DOTALL)
    assert match is not None
    return match[1]


def row(page: str, id: str) -> dict[str, str]:
    """Cells of a table's row by the heads of their columns."""
    tables = re.findall(r'<table class="front">(.*?)</table>', page)
    table = next(body for body in tables if f'id="{id}"' in body)
    [cells] = re.findall(rf'<tr id="{id}"[^>]*>(.*?)</tr>', table)
    return dict(
        zip(re.findall("<th>(.*?)</th>", table), re.findall("<td>(.*?)</td>", cells), strict=True)
    )


def table_of(page: str, kind: str) -> list[dict[str, str]]:
    """Its rows by the heads of their columns."""
    [table] = re.findall(rf'<table class="{kind}">(.*?)</table>', page)
    heads, [_, _, *rows] = re.findall("<th>(.*?)</th>", table), table.split("<tr>")
    return [dict(zip(heads, re.findall("<td>(.*?)</td>", cells), strict=True)) for cells in rows]


def test_errors_of_predictions_say_of_what(pair: Run) -> None:
    page = page_of(pair)
    assert "predicted before each trial on cpu with a mean error of 3.1 % over 17 trials" in page
    assert (
        "predicted before each trial on &lt;phone&gt; with a mean error of 2.0 % of the estimate "
        "over 17 trials" in page
    )


def test_members_that_count_nothing_do_not_stretch_the_picture(run: Run) -> None:
    [device] = script_value(page_of(run), "devices")
    assert device["range"] == [-4.5, 1.0]  # 1.5 times the largest drop, a fifth of five points
    write_fronts(run, [replace(FRONT, members=(member(4, 0.5, 40.0), *MEMBERS))])
    [stretched] = script_value(page_of(run), "devices")
    assert stretched["range"] == device["range"]


def test_a_language_model_s_phases_are_named(tmp_path: Path) -> None:
    def spoken(original: Member) -> Member:
        others = tuple(replace(original.timing, phase=phase) for phase in ("prefill", "end-to-end"))
        return replace(original, timing=replace(original.timing, phase="decode", others=others))

    members = tuple(spoken(member) for member in FRONT.members)
    front = replace(FRONT, baseline=spoken(FRONT.baseline), members=members)
    page = page_of(start(tmp_path / "run", DESCRIPTION, [front]))
    statistic = front.baseline.latency_ms.statistic
    names = re.findall(r'data-axis="\d">([^<]+)<', page)
    assert names == ["decode latency", "prefill latency", "end-to-end latency"]
    cells = row(page, "row-0-t001")
    for name in ("prefill", "end-to-end"):
        assert (
            cells[f"{name} ms, speedup"]
            == f"{cells[f'decode ms ({statistic})']}, {cells['speedup']}"
        )


def test_the_script_has_the_front_and_starts_at_the_balanced_one(run: Run) -> None:
    page = page_of(run)
    [device] = script_value(page, "devices")
    models = device["models"]
    assert [(m["id"], m["at"][0]["value"], m["at"][0]["gain"]) for m in models] == [
        ("t001", 1.0, 6.0),
        ("t002", 2.0, 3.0),
        ("t003", 3.0, 2.0),
    ]
    assert (models[0]["at"][0]["low"], models[0]["at"][0]["high"]) == (6 * 0.98, 6 * 1.02)
    assert (models[0]["change"], models[0]["stderr"]) == (-3.0, 0.5)
    assert models[0]["layers"] == [[0, 2, 8], [1, 4, 8]]
    [axis] = device["axes"]
    assert (axis["name"], axis["gain"], axis["base"]) == ("latency", "speedup", 6.0)
    assert [choice["from"] for choice in axis["choices"]] == pytest.approx(
        [0.99, 1.0, 1.01, 2.0, 2.02, 3.0, 3.03]
    )
    assert models[1]["quality"] == "accuracy 0.8750 (-0.50 points) on test, chosen on validation"
    assert (axis["budget"], device["estimated"]) == (2.02, False)  # what it needs for certain


def test_the_page_counts_what_happened(run: Run) -> None:
    page = page_of(run)
    assert (
        "3 models on the front of cpu, from 4 candidates (3 complete, 1 failed) in 1.0 minutes."
        in page
    )
    assert "cpu: budget without limit, hypervolume 0.700 on validation, 0.650 on test." in page
    assert "<dt>examples dropped</dt><dd>4 train repeated</dd>" in page
    assert page.count('<tr class="baseline">') == 1
    trials = table_of(page, "trials")
    assert [(row["model"], row["what came of it"]) for row in trials] == [
        ("t000", "baseline"),
        *((f"t00{number}", "on the front") for number in (1, 2, 3)),
        ("t004", "failed: export"),
    ]
    assert (trials[1]["speedup"], trials[1]["drop, points"], trials[4]["speedup"]) == (
        "6.00x",
        "3.00",
        "-",
    )
    assert trials[4]["settings"] == "heads.keep 0.25"
    taken = [list(row.values()) for row in table_of(page, "time")]
    assert [cells[1:] for cells in taken] == [
        ["1", "0:15", "25 %"],
        ["3", "0:45", "75 %"],
        ["1", "0:00", "0 %"],
    ]
    assert re.findall(r'<tr id="([^"]+)"', page) == ["row-0-t001", "row-0-t002", "row-0-t003"]
    assert (
        "scored on 1000 test examples" in page
        and "95 % interval of the speedup, by the median latency" in page
    )


def test_a_row_has_everything_that_was_measured(run: Run) -> None:
    assert row(page_of(run), "row-0-t002") == {
        "model": "t002",
        "ms (median)": "2.00",
        "speedup": "3.00x",
        "95 % interval": "2.94-3.06",
        "accuracy": "0.8750",
        "drop, points": "0.50",
        "± s.e.": "0.50",
        "MB": "1.0",
        "peak MB": "7",
        "format": "int8-dynamic",
        "what it is": "2 layers, heads 2-4, FFN 8",
    }


def test_nothing_of_the_users_is_read_as_markup(run: Run) -> None:
    page = page_of(run)
    assert "models/&lt;mine&gt; on cpu" in page
    assert "a &lt;/script&gt; machine" in page
    assert "<dt>device of cpu</dt><dd>a &lt;cpu&gt;, 2 cores, 16 GiB, avx2</dd>" in page
    assert "<mine>" not in page and "<cpu>" not in page


def test_one_device_has_no_switch(run: Run) -> None:
    page = page_of(run)
    assert "<select" not in page and page.count("<section ") == 1
    assert "<h2>The front</h2>" in page


def test_each_device_has_a_section_and_the_first_is_shown(pair: Run) -> None:
    page = page_of(pair)
    assert page.count("<section ") == 2
    assert not section(page, 0).startswith(" hidden") and section(page, 1).startswith(" hidden")
    assert '<option value="0">cpu</option><option value="1">&lt;phone&gt;</option>' in page
    assert "<h2>The front on cpu</h2>" in section(
        page, 0
    ) and "<h2>The front on &lt;phone&gt;</h2>" in section(page, 1)
    assert re.findall(r'<tr id="([^"]+)"', page) == [
        "row-0-t001",
        "row-0-t002",
        "row-0-t003",
        "row-1-t002",
    ]
    assert "<phone>" not in page
    first, second = script_value(page, "devices")
    assert [m["at"][0]["value"] for m in first["models"]] == [1.0, 2.0, 3.0]
    assert [m["at"][0]["value"] for m in second["models"]] == [20.0]
    assert (second["axes"][0]["budget"], second["estimated"]) == (25.0, True)
    assert [t["at"][0]["text"] for t in second["trials"]][1] == "~20.00 ms, ~3.00x"


def test_the_command_for_another_device_names_it(pair: Run) -> None:
    """The trial need not be on the front of the first device, which ``autocompress export`` takes
    by default."""
    commands = [device["command"] for device in script_value(page_of(pair), "devices")]
    assert commands == [
        "autocompress export run --hardware cpu",
        "autocompress export run --hardware '<phone>'",
    ]


def test_the_summary_of_two_devices(pair: Run) -> None:
    page = page_of(pair)
    counted = (
        "3 models on the front of cpu and 1 models on the front of &lt;phone&gt;, from 4 "
        "candidates (3 complete, 1 failed)"
    )
    assert f"{counted} in 1.0 minutes." in page
    assert (
        "cpu: budget without limit, hypervolume 0.700 on validation, 0.650 on test. "
        "&lt;phone&gt;: budget max latency ms 25, hypervolume 0.250 on validation." in page
    )
    assert (
        "Latency was predicted before each trial on cpu with a mean error of 3.1 % over 17 trials."
        in page
    )
    assert (
        "<dt>device of &lt;phone&gt;</dt><dd>source its &lt;datasheet&gt;, date 2026-01-31</dd>"
        in page
    )


def test_estimates_are_called_estimates_and_measurements_are_not(pair: Run) -> None:
    page = page_of(pair)
    measured, guessed = section(page, 0), section(page, 1)
    assert (
        "ESTIMATES from published peaks of the device (its &lt;datasheet&gt;, 2026-01-31)"
        in guessed
    )
    cells = row(page, "row-1-t002")
    assert (
        cells["ms (estimated)"],
        cells["speedup"],
        cells["95 % interval"],
        cells["peak MB"],
    ) == ("~20.00", "~3.00x", "-", "~3")
    assert "<th>ms (median)</th>" in measured and "<th>ms (median)</th>" not in guessed
    assert "ESTIMATE" not in measured and "~" not in re.sub(
        r"(?s)<script.*?</script>", "", measured
    )


def test_without_size_the_page_knows_latency_only(run: Run) -> None:
    page = page_of(run)
    assert 'id="axes-0"' not in page and "compression" not in row(page, "row-0-t001")
    [device] = script_value(page, "devices")
    assert [axis["name"] for axis in device["axes"]] == ["latency"]
    assert device["command"] == "autocompress export run"


SIZES_MB = {"t000": 4.0, "t001": 2.0, "t002": 1.0, "t003": 0.5}


def of_size(front_member: Member) -> Member:
    return replace(front_member, weight_bytes=int(1e6 * SIZES_MB[front_member.id]))


def sized_page(run: Run, objectives: tuple[str, ...]) -> str:
    front = replace(
        FRONT,
        baseline=of_size(BASELINE),
        members=tuple(map(of_size, MEMBERS)),
        objectives=objectives,
        size_hypervolume=0.625,
        budget={"max_bytes": 1_500_000.0},
    )
    write_fronts(run, [front])
    return page_of(run)


def test_with_size_the_front_is_drawn_against_either(run: Run) -> None:
    page = sized_page(run, ("latency", "quality", "size"))
    assert re.findall(r'data-axis="(\d)">(\w+)<', page) == [("0", "latency"), ("1", "size")]
    [device] = script_value(page, "devices")
    latency, size = device["axes"]
    places = [model["at"] for model in device["models"]]
    assert [[at["value"] for at in place] for place in places] == [
        [1.0, 2.0],
        [2.0, 1.0],
        [3.0, 0.5],
    ]
    assert [[at["gain"] for at in place] for place in places] == [
        [6.0, 2.0],
        [3.0, 4.0],
        [2.0, 8.0],
    ]
    assert places[2][1]["text"] == "0.50 MB, 8.00x smaller"
    assert [(axis["unit"], axis["gain"]) for axis in device["axes"]] == [
        ("ms", "speedup"),
        ("MB", "compression"),
    ]
    assert (latency["budget"], size["budget"]) == (2.02, 1.5)
    areas = "0.700 by latency and 0.625 by size on validation, 0.650 by latency on test"
    assert f"budget max size 1.5 MB, hypervolume {areas}." in page
    assert row(page, "row-0-t003")["compression"] == "8.00x"


BUDGETS = {"latency": 3.0, "size": 2.5}
"""Milliseconds and megabytes."""


@pytest.mark.parametrize("axis", ["latency", "size"])
def test_the_report_chooses_as_pick_and_export_do(
    run: Run, axis: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Latency, drop and size together; also where an interval crosses the budget, which only
    ``--allow-tie`` takes."""
    members = [of_size(m) for m in MEMBERS]
    unsure = replace(MEMBERS[1].latency_ms, interval=(1.5, 2.5))
    members[1] = replace(members[1], timing=replace(MEMBERS[1].timing, latency_ms=unsure))
    three = replace(
        FRONT,
        baseline=of_size(BASELINE),
        members=tuple(members),
        objectives=("latency", "quality", "size"),
        size_hypervolume=0.5,
        budget={"max_latency_ms": 3.0, "max_drop": 4.0, "max_bytes": 2_500_000.0},
    )
    write_fronts(run, [three])
    [device] = script_value(page_of(run), "devices")
    [choices] = [shown["choices"] for shown in device["axes"] if shown["name"] == axis]
    chosen = set()
    for budget in (0.3, 0.7, 1.005, 1.2, 1.7, 2.1, 2.9, 3.02, 3.2, 9.0):
        [shown] = [choice for choice in choices if choice["from"] <= budget][-1:] or choices[:1]
        given = BUDGETS | {axis: budget}
        limits = [f"--max-latency={given['latency']}ms", f"--max-size={given['size']}MB"]
        picked = main(["pick", str(run.folder), *limits, "--max-drop=4", "--json"])
        said = capsys.readouterr()
        if picked == 1:
            assert "id" not in shown and shown["why"].split(";")[0] in said.err
        else:
            assert shown["id"] == json.loads(said.out)["id"]
        chosen.add(shown.get("id"))
    assert chosen == ({None, "t001", "t002", "t003"} if axis == "latency" else {None, "t002"})


def test_where_latency_is_no_objective_size_is_shown_first(run: Run) -> None:
    page = sized_page(run, ("quality", "size"))
    assert re.findall(r'data-axis="(\d)">(\w+)<', page) == [("0", "size"), ("1", "latency")]
    [device] = script_value(page, "devices")
    assert device["axes"][0]["budget"] == 1.5


def test_disturbed_timings_are_named(run: Run) -> None:
    assert "Disturbed" not in page_of(run)
    shaken = replace(MEMBERS[2], timing=replace(MEMBERS[2].timing, disturbed=True))
    write_fronts(run, [replace(FRONT, members=(*MEMBERS[:2], shaken))])
    assert "Disturbed by other work on the machine while timed: t003." in page_of(run)


def test_an_unfinished_search_says_so(run: Run) -> None:
    write_fronts(run, [replace(FRONT, verified=False)])
    assert "This search is not finished: figures are from the validation split" in page_of(run)


def test_an_empty_front_shows_the_baseline(run: Run) -> None:
    write_fronts(run, [replace(FRONT, members=())])
    page = page_of(run)
    assert [
        model["id"] for device in script_value(page, "devices") for model in device["models"]
    ] == ["t000"]
    assert "0 models on the front of cpu" in page


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"missing or damaged: JSONDecodeError\('Expecting value: line 1 column 1 .+"),
        ('{\n"inputs": ', r"missing or damaged: JSONDecodeError\('Expecting value: line 2 .+"),
        ("[]", "missing or damaged: TypeError.+"),
        ("{}", r"missing or damaged: KeyError\('inputs'\)"),
        ('{"inputs": []}', "missing or damaged: TypeError.+"),
        ('{"inputs": {}}', r"damaged: KeyError\('model'\)"),
        ('{"inputs": {"model": 5}}', "damaged: TypeError.+"),
        (None, "missing or damaged: FileNotFoundError.+"),
    ],
)
def test_a_damaged_run_is_one_clear_line(run: Run, content: str | None, complaint: str) -> None:
    path = run.folder / "run.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=rf"^{path} is {complaint}$"):
        write_report(run.folder)


def test_a_damaged_event_is_one_clear_line(run: Run) -> None:
    lines = run.events_file.read_text().splitlines(keepends=True)
    run.events_file.write_text("".join([lines[0], lines[1][:30] + "\n", *lines[2:]]))
    with pytest.raises(UserError, match=rf"^{run.events_file}, line 2 is damaged: JSONDecodeError"):
        write_report(run.folder)


def in_both_regimes(measured: Member) -> Member:
    """The same model, half again as slow when it runs once in a while, the baseline by a third."""
    timing, slower = measured.timing, 1.5 if measured.id != "t000" else 4 / 3
    cold = replace(
        timing,
        regime="cold",
        latency_ms=replace(timing.latency_ms, value=slower * timing.latency_ms.value),
        speedup=timing.speedup * (4 / 3) / slower,
    )
    return replace(measured, timing=replace(timing, beside=cold))


def test_both_regimes_are_printed_and_drawn(tmp_path: Path) -> None:
    """The one that guides, then the other, which nothing is picked by."""
    both = replace(
        FRONT, baseline=in_both_regimes(BASELINE), members=tuple(map(in_both_regimes, MEMBERS))
    )
    page = page_of(start(tmp_path / "run", DESCRIPTION, [both]))
    shown = row(page, "row-0-t002")
    assert (shown["warm ms (median)"], shown["speedup"]) == ("2.00", "3.00x")
    assert shown["cold ms, speedup"] == "3.00, 2.67x"
    assert re.findall(r'data-axis="\d">([^<]+)<', page) == ["warm latency", "cold latency"]
    [device] = script_value(page, "devices")
    warm, cold = device["axes"]
    assert [model["at"][1]["value"] for model in device["models"]] == [1.5, 3.0, 4.5]
    assert (cold["base"], cold["budget"], cold["choices"]) == (8.0, None, [])
    assert warm["gain"] == "warm speedup" and warm["budget"] == 2.02
    assert device["trials"][0]["at"][0]["gain"] == 6.0  # a search times the regime that guides
    assert device["trials"][0]["at"][1] is None

    table = console.front_table(both)
    assert [column.header for column in table.columns][1:5] == [
        "warm ms",
        "speedup",
        "cold ms",
        "speedup",
    ]
    assert [list(table.columns[i].cells)[1] for i in range(1, 5)] == [
        "2.00",
        "3.00x",
        "3.00",
        "2.67x",
    ]
    printed = StringIO()
    Console(file=printed, width=80).print(console.front_text(both))
    assert max(map(len, printed.getvalue().splitlines())) <= 80
    assert "3.00x (cold 3 ms, 2.67x), accuracy" in console.member_line(both, both.members[1])
    assert console.timing_text(both.members[1].timing).splitlines()[1].startswith("cold 3 ms")


def test_no_path_of_the_machine_is_in_the_page(tmp_path: Path) -> None:
    inputs = DESCRIPTION["inputs"] | {"model": "/home/anna/models/bert"}
    data = DESCRIPTION["data"] | {
        "source": "C:\\Users\\anna\\d.csv",
        "doubts": ["validation is cut from ~/texts/d.csv: see https://example.org/a/b"],
    }
    run = start(tmp_path / "run", DESCRIPTION | {"inputs": inputs, "data": data}, [FRONT])
    run.ended(Trial(5, {}, "failed", reason="no space left: '/home/anna/runs/run/students/x.pt'"))
    page = page_of(run)
    assert "anna" not in page and "texts/" not in page and str(tmp_path) not in page
    assert "<h1>bert on cpu</h1>" in page and "<dt>data</dt><dd>d.csv</dd>" in page
    assert "cut from d.csv: see https://example.org/a/b" in page
    assert "failed: no space left: &#x27;x.pt&#x27;" in page


def test_defaults_are_no_settings_of_a_model_and_are_drawn(run: Run) -> None:
    """Runs of earlier versions name all settings; newer ones leave the defaults out."""
    for number, keep in enumerate([0.25, 1.0] * 4, 10):
        candidate = {"heads.keep": keep} if number % 4 < 2 or keep != 1.0 else {}
        quality = replace(MEMBERS[0].quality, drop_validation=4 / keep + number / 100)
        score = Score(replace(MEMBERS[0].timing, speedup=2.0 + number % 3), quality)
        run.ended(Trial(number, candidate, "complete", SIZES, scores={"cpu": score}))
    [device] = script_value(page_of(run), "devices")
    settings = {setting["name"]: setting for setting in device["settings"]}
    assert settings["heads.keep"]["values"] == [0.5, 0.5, 0.5, *[0.25, 1.0] * 4]
    share, stderr = settings["heads.keep"]["influence"]["accuracy"]
    assert share > 0.7 and 0 < stderr < 0.2
    of_speed, error = settings["heads.keep"]["influence"]["speedup"]
    assert of_speed < 2 * error
    listed = {row["model"]: row["settings"] for row in table_of(page_of(run), "trials")}
    assert (listed["t010"], listed["t011"]) == ("heads.keep 0.25", "-")


def test_the_page_is_small_and_asks_nobody(run: Run) -> None:
    page = page_of(run)
    assert len(page.encode()) < 100_000
    assert not re.search(r"(src|href)=|@import|url\((?!#)|fetch\(|XMLHttpRequest|import ", page)
