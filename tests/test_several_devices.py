"""One search for several devices, none of which depends on the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.artifact import facts, scheme_of
from autocompress.engine.loop import SearchResult
from autocompress.errors import CandidateFailed, RequestUnmet, SearchFailed, UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Device
from autocompress.limits import Limits
from autocompress.pareto import load_fronts, non_dominated
from autocompress.scores import Timing
from autocompress.searching import search
from autocompress.tasks.data import Columns, load_examples
from tests.conftest import SizeDevice
from tests.searching import CPU, StopAfter, scheme, space, timeless


class OldDevice(SizeDevice):
    """A millisecond for each layer and one for the rest; int8 takes half as long again. It has
    counted its calls of ``predict``."""

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
        super().__init__(profile, lengths)
        self.fingerprint |= {"cpu": "old"}
        self.asked = 0

    def milliseconds(self, model: Path) -> float:
        layers = len(facts(model)["sizes"]["layers"])
        return (1.0 + layers) * (1.5 if scheme_of(model).startswith("int8") else 1.0)

    def predict(
        self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        self.asked += 1
        return super().predict(model, batches)


class Contrary(OldDevice):
    """Answers the other label than the model gives."""

    answers_like = "contrary"

    def predict(
        self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        return -super().predict(model, batches)


class NoInt8(SizeDevice):
    """Cannot run int8."""

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        if any(scheme_of(model) == "int8-dynamic" for model in models):
            raise CandidateFailed("no int8 here")
        return super().time(baseline, models, final=final)


class LostAtTheEnd(SizeDevice):
    """Is gone when the front is verified."""

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        if final:
            raise CandidateFailed("connection lost")
        return super().time(baseline, models, final=final)


class Farm:
    """Connects, and remembers the devices by name: ``old`` is one of its own, all others are
    ``SizeDevice``s."""

    def __init__(self, old: type[SizeDevice] = OldDevice) -> None:
        self.old = old
        self.devices: dict[str, SizeDevice] = {}

    def __call__(self, profile: HardwareProfile, lengths: Sequence[int]) -> Device:
        self.devices[profile.name] = (self.old if profile.name == "old" else SizeDevice)(
            profile, lengths
        )
        return self.devices[profile.name]

    @property
    def closed(self) -> dict[str, int]:
        """How often each device was closed."""
        return {name: device.closed for name, device in self.devices.items()}


OLD = replace(HardwareProfile.load(CPU), name="old", description="an old one")
BOTH = (CPU, OLD)
DEPTH: dict[str, Any] = {
    "layers": {"keep": [1.0, 0.75, 0.5, 0.25]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
}
"""Eight models, the baseline among them; nothing is trained."""
ONE: dict[str, Any] = {"layers": {"keep": [0.5]}}


@pytest.fixture(scope="module")
def pair(
    tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchResult:
    """A search on two devices: bytes count on the first, layers on the second."""
    out = tmp_path_factory.mktemp("runs") / "pair"
    return search(tiny_model, data_file, BOTH, space(DEPTH), out, trials=3, connect=Farm())


def test_two_devices_have_a_front_each_and_the_fronts_differ(pair: SearchResult) -> None:
    assert list(pair.fronts) == [CPU, "old"] and pair.front == pair.fronts[CPU]
    assert load_fronts(pair.run) == pair.fronts
    written = json.loads((pair.run / "front.json").read_text())
    assert [front["hardware"]["name"] for front in written["fronts"]] == [CPU, "old"]
    fastest = {name: front.members[0] for name, front in pair.fronts.items()}
    assert scheme(fastest[CPU]) == "int8-dynamic" and len(fastest[CPU].sizes["layers"]) == 1
    assert scheme(fastest["old"]) == "fp32" and len(fastest["old"].sizes["layers"]) == 1
    assert fastest["old"].latency_ms.value == 2.0 and fastest["old"].speedup == 2.5
    assert {member.id for member in pair.fronts[CPU].members} != {
        member.id for member in pair.fronts["old"].members
    }


def test_each_front_is_by_the_numbers_of_its_device(pair: SearchResult) -> None:
    for name, front in pair.fronts.items():
        assert front.verified and front.baseline.id == "t000"
        points = [
            (member.latency_ms.value, 1 - member.quality.validation) for member in front.members
        ]
        assert points == sorted(points) and non_dominated(points) == list(range(len(points)))
        for member in front.members:
            old = (1 + len(member.sizes["layers"])) * (1.0 if scheme(member) == "fp32" else 1.5)
            assert member.latency_ms.value == (old if name == "old" else member.weight_bytes / 1e5)
            assert (
                facts(pair.run / member.path)["scores"][name]["timing"]["speedup"] == member.speedup
            )
    kept = {member.id for front in pair.fronts.values() for member in front.members}
    assert {folder.name for folder in (pair.run / "models").iterdir()} == {"t000", *kept}


def test_every_trial_is_scored_on_both_devices(pair: SearchResult) -> None:
    assert len(pair.trials) == 8
    for trial in pair.trials:
        assert list(trial.scores) == [CPU, "old"] and trial.weight_bytes is not None
        assert trial.scores[CPU].timing.latency_ms.value == trial.weight_bytes / 1e5
        assert trial.scores[CPU].quality == trial.scores["old"].quality
        assert trial.scores[CPU].evidence == trial.scores["old"].evidence


def test_the_report_has_both_fronts(pair: SearchResult) -> None:
    page = (pair.run / "report.html").read_text(encoding="utf-8")
    for index, front in enumerate(pair.fronts.values()):
        assert [f'id="row-{index}-{member.id}"' in page for member in front.members] == [
            True
        ] * len(front.members)
        assert page.count(f'id="row-{index}-') == len(front.members)


def test_devices_that_answer_alike_are_asked_once(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    farm = Farm()
    search(tiny_model, data_file, (OLD, CPU), space(ONE), tmp_path / "a", trials=1, connect=farm)
    assert isinstance(farm.devices["old"], OldDevice) and farm.devices["old"].asked > 0
    last = Farm()
    search(tiny_model, data_file, (CPU, OLD), space(ONE), tmp_path / "b", trials=1, connect=last)
    assert isinstance(last.devices["old"], OldDevice) and last.devices["old"].asked == 0


def test_a_device_that_answers_otherwise_has_a_quality_of_its_own(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    outcome = search(
        tiny_model,
        data_file,
        BOTH,
        space(DEPTH),
        tmp_path / "run",
        trials=1,
        connect=Farm(Contrary),
    )
    for trial in outcome.trials:
        here, there = trial.scores[CPU].quality, trial.scores["old"].quality
        assert here is not None and there is not None
        assert there.validation == pytest.approx(1 - here.validation)
        assert there.drop_validation == pytest.approx(-here.drop_validation)
        assert trial.rungs[-1] == (0, max(here.drop_validation, there.drop_validation))
    for front in outcome.fronts.values():
        for member in front.members:
            recorded = facts(outcome.run / member.path)["scores"][front.hardware["name"]]
            assert recorded["quality"]["test"] == member.quality.test
    tested = [front.baseline.quality.test for front in outcome.fronts.values()]
    assert tested[0] is not None and tested[1] == pytest.approx(1 - tested[0])


def test_two_devices_stopped_and_resumed_end_the_same(
    pair: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out, farm = tmp_path / "run", Farm()
    with pytest.raises(KeyboardInterrupt):
        search(
            tiny_model,
            data_file,
            BOTH,
            space(DEPTH),
            out,
            trials=3,
            connect=farm,
            listener=StopAfter(4),
        )
    assert farm.closed == {CPU: 1, "old": 1}
    so_far = load_fronts(out)
    assert list(so_far) == [CPU, "old"] and not any(front.verified for front in so_far.values())
    assert all(
        (out / member.path / "model.onnx").is_file()
        for front in so_far.values()
        for member in front.members
    )
    resumed = search(
        tiny_model, data_file, BOTH, space(DEPTH), out, trials=3, connect=Farm(), resume=True
    )
    assert timeless(resumed.trials) == timeless(pair.trials)
    assert resumed.fronts == pair.fronts
    with pytest.raises(UserError, match="--resume: hardware differs"):
        search(
            tiny_model,
            data_file,
            BOTH[::-1],
            space(DEPTH),
            out,
            trials=3,
            connect=Farm(),
            resume=True,
        )


def test_a_budget_of_one_device_is_that_devices_alone(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """Twice as fast on the old device is a single layer in fp32 alone; where bytes count, int8 is
    faster than that."""
    budgets = {"old": Limits(min_speedup=2)}
    outcome = search(
        tiny_model,
        data_file,
        BOTH,
        space(DEPTH),
        tmp_path / "run",
        trials=3,
        connect=Farm(),
        sampler="random",
        budgets=budgets,
    )
    assert [front.budget for front in outcome.fronts.values()] == [{}, {"min_speedup": 2}]
    recorded = json.loads((outcome.run / "run.json").read_text())["inputs"]["budgets"]
    assert recorded == {CPU: {}, "old": {"min_speedup": 2}}
    assert [m.speedup for m in outcome.fronts["old"].members] == [2.5]
    beyond = [
        m
        for m in outcome.front.members
        if outcome.trials[int(m.id[1:])].scores["old"].timing.speedup < 2
    ]
    assert beyond, "a model that misses the old device's budget is still one for the other device"
    assert {trial.state for trial in outcome.trials} == {"complete"}


def test_over_budget_is_what_misses_the_limits_of_every_device(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """int8 meets the first one, up to two layers in fp32 the second; three and four in fp32 meet
    neither."""
    budgets = {CPU: Limits(max_latency_ms=20.0), "old": Limits(max_latency_ms=3.0)}
    outcome = search(
        tiny_model,
        data_file,
        BOTH,
        space(DEPTH),
        tmp_path / "run",
        trials=3,
        connect=Farm(),
        sampler="random",
        budgets=budgets,
    )
    states = {(scheme(t), len(t.sizes["layers"])): t.state for t in outcome.trials[1:] if t.sizes}
    assert states == {
        **{("int8-dynamic", layers): "complete" for layers in (1, 2, 3, 4)},
        **{("fp32", layers): "complete" for layers in (1, 2)},
        ("fp32", 3): "over-budget",
    }
    assert {scheme(m) for m in outcome.front.members} == {"int8-dynamic"}
    assert all(member.latency_ms.value <= 3.0 for member in outcome.fronts["old"].members)
    [trial] = [trial for trial in outcome.trials if trial.state == "over-budget"]
    assert trial.reason is not None and CPU in trial.reason and "on old" in trial.reason
    predicted, baseline = trial.predicted, outcome.trials[0].scores
    assert predicted[CPU] * baseline[CPU].timing.latency_ms.value > 20 and predicted["old"] * 5 > 3


def test_a_common_budget_holds_on_devices_without_one_of_their_own(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    outcome = search(
        tiny_model,
        data_file,
        BOTH,
        space(DEPTH),
        tmp_path / "run",
        trials=3,
        connect=Farm(),
        budget=Limits(max_drop=100),
        budgets={"old": Limits(max_drop=99, max_latency_ms=99.0)},
    )
    assert [front.budget for front in outcome.fronts.values()] == [
        {"max_drop": 100, "confidence": 0.9},
        {"max_latency_ms": 99.0, "max_drop": 99, "confidence": 0.9},
    ]


def test_no_model_within_the_budget_of_any_device(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    budgets = {CPU: Limits(max_latency_ms=1e-3), "old": Limits(min_speedup=2.6)}
    with pytest.raises(
        RequestUnmet, match="none of 7 candidates meets the budget; the nearest is "
    ):
        search(
            tiny_model,
            data_file,
            BOTH,
            space(DEPTH),
            tmp_path / "run",
            trials=3,
            connect=Farm(),
            sampler="random",
            budgets=budgets,
        )
    assert [front.members for front in load_fronts(tmp_path / "run").values()] == [(), ()]


def test_of_two_devices_one_may_have_no_model(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    budgets = {CPU: Limits(max_latency_ms=1e-3)}
    outcome = search(
        tiny_model,
        data_file,
        BOTH,
        space(DEPTH),
        tmp_path / "run",
        trials=3,
        connect=Farm(),
        sampler="random",
        budgets=budgets,
    )
    assert outcome.front.members == () and outcome.fronts["old"].members


def test_what_a_device_cannot_run_fails_the_trial_and_the_search_goes_on(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    farm = Farm(NoInt8)
    outcome = search(
        tiny_model,
        data_file,
        BOTH,
        space(DEPTH),
        tmp_path / "run",
        trials=3,
        connect=farm,
        sampler="random",
    )
    states = {
        (scheme(t), len(t.sizes["layers"])): (t.state, t.reason) for t in outcome.trials if t.sizes
    }
    assert states == {
        **{("fp32", layers): ("complete", None) for layers in (1, 2, 3, 4)},
        **{("int8-dynamic", layers): ("failed", "no int8 here") for layers in (1, 2, 3, 4)},
    }
    assert all(
        scheme(member) == "fp32" for front in outcome.fronts.values() for member in front.members
    )
    assert all(front.members for front in outcome.fronts.values())
    assert farm.closed == {CPU: 1, "old": 1}


def test_a_device_lost_at_the_end_leaves_a_front_and_a_run_that_goes_on(
    pair: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    class Lost(LostAtTheEnd, OldDevice):
        pass

    out, farm = tmp_path / "run", Farm(Lost)
    with pytest.raises(CandidateFailed, match="connection lost"):
        search(tiny_model, data_file, BOTH, space(DEPTH), out, trials=3, connect=farm)
    assert farm.closed == {CPU: 1, "old": 1}
    assert [(name, front.verified) for name, front in load_fronts(out).items()] == [
        (CPU, False),
        ("old", False),
    ]
    resumed = search(
        tiny_model, data_file, BOTH, space(DEPTH), out, trials=3, connect=Farm(), resume=True
    )
    assert timeless(resumed.trials) == timeless(pair.trials)
    assert resumed.fronts == pair.fronts


def test_every_device_is_closed_however_the_search_ends(
    pair: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    def closed(error: type[BaseException] | None, out: Path, **changes: Any) -> dict[str, int]:
        farm = Farm()
        arguments: dict[str, Any] = {
            "space": space(ONE),
            "trials": 1,
            "connect": farm,
            "out": out,
        } | changes
        if error is None:
            search(tiny_model, data_file, BOTH, **arguments)
        else:
            with pytest.raises(error):
                search(tiny_model, data_file, BOTH, **arguments)
        return farm.closed

    once = {CPU: 1, "old": 1}
    assert closed(None, tmp_path / "done") == once
    assert (
        closed(SearchFailed, tmp_path / "failed", space=space({"layers": {"keep": [[0, 9]]}}))
        == once
    )
    assert (
        closed(RequestUnmet, tmp_path / "unmet", budget=Limits(max_drop=0, min_quality=1.0)) == once
    )
    assert closed(UserError, pair.run, resume=True, seed=3) == once
    assert closed(UserError, tmp_path / "done" / "front.json" / "no") == once
    assert closed(KeyboardInterrupt, tmp_path / "stopped", listener=StopAfter(1)) == once


def test_a_device_that_cannot_be_reached_leaves_nothing(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    class Away(SizeDevice):
        def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
            raise UserError("no such board")

    farm = Farm(Away)
    with pytest.raises(UserError, match="no such board"):
        search(tiny_model, data_file, BOTH, space(DEPTH), tmp_path / "run", trials=3, connect=farm)
    assert farm.closed == {CPU: 1}
    assert not (tmp_path / "run").exists()


def test_the_same_device_twice_or_a_limit_of_another_is_refused(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    for hardware, budgets, message in (
        ((CPU, CPU), {}, "hardware profile cpu-1-thread is given twice"),
        ((), {}, "no hardware profile is given"),
        (
            BOTH,
            {"phone": Limits(max_drop=1)},
            "a limit is set for phone, which is not among the hardware profiles cpu-1-thread, old",
        ),
    ):
        with pytest.raises(UserError, match=f"^{message}$"):
            search(
                tiny_model,
                data_file,
                hardware,
                space(DEPTH),
                tmp_path / "run",
                trials=3,
                connect=Farm(),
                sampler="random",
                budgets=budgets,
            )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hardware", "tried"),
    [
        ({"precisions": ("fp32", "fp16")}, ["fp16", "fp32"]),
        ({"precisions": ("int8-static",)}, ["fp32", "int8-static"]),
        ({}, ["fp32", "int8-static"]),
    ],
)
def test_number_formats_without_gain_on_any_device_are_not_searched(
    hardware: dict[str, Any], tried: list[str], tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    told: list[str] = []

    class Hearing(StopAfter):
        def said(self, line: str) -> None:
            told.append(line)

    values = {"quantization": {"scheme": ["fp32", "fp16", "int8-static"]}}
    profile = replace(HardwareProfile.load(CPU), **hardware)
    outcome = search(
        tiny_model,
        data_file,
        profile,
        space(values),
        tmp_path / "run",
        connect=SizeDevice,
        listener=Hearing(99),
    )
    assert sorted({scheme(trial) for trial in outcome.trials}) == tried
    [gone] = {"fp16", "int8-static"} - set(tried)
    assert f"{gone} not searched: no gain on cpu-1-thread by its profile" in told


def test_at_the_tasks_own_lengths(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """Eight lengths, as the validation split has them; a measurement of an exported folder takes
    them from there."""
    profile = HardwareProfile.load("cpu-1-thread-task")
    outcome = search(
        tiny_model, data_file, profile, space(ONE), tmp_path / "run", trials=1, connect=SizeDevice
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = [text for text, _, _ in load_examples(str(data_file), Columns()).validation]
    ordered = sorted(
        len(tokenizer(text, truncation=True, max_length=64)["input_ids"]) for text in texts
    )
    expected = [ordered[int((i + 0.5) * len(ordered) / 8)] for i in range(8)]
    assert outcome.front.hardware["lengths"] == expected
    assert facts(outcome.run / "models/t000")["scores"]["cpu-1-thread-task"]["lengths"] == expected


def test_a_device_that_does_not_say_how_busy_it_is(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """As ``agent.busy_cores`` has it where there is no /proc/stat."""

    def silent(profile: HardwareProfile, lengths: Sequence[int]) -> Device:
        device = SizeDevice(profile, lengths)
        device.fingerprint["busy_cores"] = None
        return device

    outcome = search(
        tiny_model, data_file, CPU, space(ONE), tmp_path / "run", trials=1, connect=silent
    )
    assert len(outcome.trials) == 2


def test_other_processes_on_a_device_are_named(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    told: list[str] = []

    class Hearing(StopAfter):
        def said(self, line: str) -> None:
            told.append(line)

    def busy(profile: HardwareProfile, lengths: Sequence[int]) -> Device:
        device = SizeDevice(profile, lengths)
        device.fingerprint |= {"busy_cores": 1.1 if profile.name == "old" else 1.0, "cores": 4}
        return device

    search(
        tiny_model,
        data_file,
        BOTH,
        space(ONE),
        tmp_path / "run",
        trials=1,
        connect=busy,
        listener=Hearing(99),
    )
    said = (
        "other processes keep 1.1 of 4 cores busy; training will be slow and latencies less certain"
    )
    assert [line for line in told if "busy" in line] == [f"old: {said}"]
