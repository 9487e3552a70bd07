"""Latency: the statistics by hand, and devices that run real graphs. No time is asserted, only
ratios far apart."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertForSequenceClassification

from autocompress.errors import CandidateFailed, UserError
from autocompress.files import sha256
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.hardware.agent import FEWEST_PROCESSES, FEWEST_ROUNDS
from autocompress.hardware.devices import connect, lengths_of, typical_lengths
from autocompress.hardware.host import LocalHost
from autocompress.hardware.onnx_device import OnnxDevice
from autocompress.hardware.profile import FINGERPRINT, HardwareProfile
from autocompress.hardware.timing import grouped, summarise, timings
from autocompress.interfaces import Batch
from autocompress.measure import measure_latency
from autocompress.scores import Latency, Timing

PROFILE = HardwareProfile(
    "test",
    "",
    "cpu",
    "onnxruntime-cpu",
    1,
    32,
    statistic="median",
    trial_seconds=0.1,
    final_seconds=0.1,
)
POSITIONS = 64
FEWEST = FEWEST_PROCESSES * FEWEST_ROUNDS


def graph(path: Path, layers: int = 1, vocabulary: int = 1000, positions: int = POSITIONS) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=positions,
    )
    ones = np.ones((1, 4), np.int64)
    to_onnx(
        BertForSequenceClassification(config),
        path,
        Batch({"input_ids": ones, "attention_mask": ones}),
    )
    return path


def device(profile: HardwareProfile = PROFILE, *lengths: int) -> OnnxDevice:
    return OnnxDevice(profile, lengths or (32,), LocalHost())


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("shallow") / "model.onnx")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("deep") / "model.onnx", layers=4)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph at all")
    return path


def test_steady_times_by_hand() -> None:
    baseline, *others = summarise([np.tile([6.0, 2.0, 12.0], (5, 1))], PROFILE)
    assert baseline == Timing(
        Latency(6.0, 6.0, 6.0, (6.0, 6.0), 5, "median", 0.95, "measured"), 1.0, (1.0, 1.0)
    )
    assert others == [
        Timing(Latency(2.0, 2.0, 2.0, (2.0, 2.0), 5, "median"), 3.0, (3.0, 3.0)),
        Timing(Latency(12.0, 12.0, 12.0, (12.0, 12.0), 5, "median"), 0.5, (0.5, 0.5)),
    ]


TIMES = np.array([14.0, 20.0, 10.0, 17.0, 12.0, 19.0, 11.0, 15.0, 18.0, 13.0, 16.0])
"""10 to 20 ms, median and mean 15."""


def test_a_machine_that_wavers_hits_all_models_alike() -> None:
    """The latency is uncertain, the ratio is not: rounds are drawn whole."""
    baseline, timing = summarise([np.stack([TIMES, TIMES / 2], axis=1)], PROFILE)
    latency = baseline.latency_ms
    assert (latency.value, latency.p90, latency.slowest, latency.n) == (15.0, 19.0, 20.0, 11)
    assert (timing.latency_ms.value, timing.latency_ms.p90, timing.latency_ms.slowest) == (
        7.5,
        9.5,
        10.0,
    )
    assert timing.speedup == 2.0 and timing.speedup_interval == (2.0, 2.0)
    low, high = latency.interval
    assert 10 < low < 15 < high < 20


@pytest.mark.parametrize(("statistic", "value"), [("median", 15.0), ("mean", 17.0), ("p10", 11.0)])
def test_the_statistic_is_the_profiles(statistic: str, value: float) -> None:
    """With 42 in place of 20 the mean is 17."""
    times = np.where(TIMES == 20, 42.0, TIMES)
    baseline, timing = summarise(
        [np.stack([times, 4 * times], axis=1)], replace(PROFILE, statistic=statistic)
    )
    assert baseline.latency_ms.value == pytest.approx(
        value
    ) and timing.latency_ms.value == pytest.approx(4 * value)
    assert baseline.latency_ms.statistic == timing.latency_ms.statistic == statistic
    assert timing.speedup == pytest.approx(0.25) and timing.speedup_interval == pytest.approx(
        (0.25, 0.25)
    )
    low, high = baseline.latency_ms.interval
    assert low <= value <= high and low < high


def test_more_confidence_is_a_wider_interval() -> None:
    intervals = []
    for confidence in (0.5, 0.8, 0.99):
        [baseline] = summarise([TIMES[:, None]], replace(PROFILE, confidence=confidence))
        assert baseline.latency_ms.confidence == confidence
        intervals.append(baseline.latency_ms.interval)
    assert (
        intervals[2][0]
        < intervals[1][0]
        < intervals[0][0]
        <= 15
        <= intervals[0][1]
        < intervals[1][1]
        < intervals[2][1]
    )


def test_a_single_slow_run_moves_neither_median_nor_speedup() -> None:
    rounds = np.tile([6.0, 2.0], (31, 1))
    rounds[4] = [6000.0, 1.0]
    baseline, timing = summarise([rounds], PROFILE)
    assert baseline.latency_ms.value == 6.0 and baseline.latency_ms.slowest == 6000.0
    assert timing.speedup == 3.0 and timing.speedup_interval == (3.0, 3.0)


def test_independent_noise_widens_the_interval_of_the_ratio() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for noise in (0.01, 0.1):
        _, timing = summarise(
            [np.array([4.0, 2.0]) * (1 + noise * rng.standard_normal((60, 2)))], PROFILE
        )
        low, high = timing.speedup_interval
        assert low < timing.speedup < high and low < 2.0 < high
        widths.append(high - low)
    assert 5 * widths[0] < widths[1]


def test_alone_a_model_has_a_latency_and_no_ratio() -> None:
    assert summarise([np.full((3, 1), 4.0)], PROFILE) == [
        Timing(Latency(4.0, 4.0, 4.0, (4.0, 4.0), 3, "median"), 1.0, (1.0, 1.0))
    ]


def test_over_several_processes_the_estimate_is_their_median() -> None:
    """Of 6, 7.5 and 12 ms it is uncertain by their ratios to the power of 2.6, after Student; what
    models share cancels in the speedup."""
    processes = [
        np.tile([6.0, 2.0], (5, 1)),
        np.tile([12.0, 4.0], (9, 1)),
        np.tile([7.5, 2.5], (4, 1)),
    ]
    baseline, timing = summarise(processes, PROFILE)
    assert (baseline.latency_ms.value, timing.latency_ms.value, timing.speedup) == (7.5, 2.5, 3.0)
    assert (baseline.latency_ms.n, baseline.latency_ms.slowest, baseline.latency_ms.p90) == (
        18,
        12.0,
        12.0,
    )
    power = 2.606
    expected = (7.5 * (6 / 7.5) ** power, 7.5 * (12 / 7.5) ** power)
    assert baseline.latency_ms.interval == pytest.approx(expected, rel=0.002)
    assert timing.speedup_interval == pytest.approx((3.0, 3.0))


def test_where_processes_differ_widely_intervals_are_still_of_times() -> None:
    """A process that other work slowed down to a quarter of its speed."""
    processes = [
        np.tile([1.0, 0.5], (5, 1)),
        np.tile([1.0, 0.5], (5, 1)),
        np.tile([4.0, 1.0], (5, 1)),
    ]
    baseline, timing = summarise(processes, PROFILE)
    assert (baseline.latency_ms.value, timing.latency_ms.value, timing.speedup) == (1.0, 0.5, 2.0)
    for model_timing in (baseline, timing):
        low, high = model_timing.latency_ms.interval
        assert 0 < low == model_timing.latency_ms.value < high
        low, high = model_timing.speedup_interval
        assert 0 < low <= model_timing.speedup <= high < 20


def test_milliseconds_compare_though_a_model_was_precise_early() -> None:
    """It ran in the first two processes, in which the machine was half as fast as in the others."""
    slow, fast = np.array([8.0, 4.0, 2.0]), np.array([4.0, np.nan, 1.0])
    processes = [np.tile(row, (5, 1)) for row in (slow, slow, fast, fast, fast)]
    baseline, early, late = summarise(processes, PROFILE)
    assert (baseline.latency_ms.value, baseline.latency_ms.n) == (4.0, 25)
    assert (early.latency_ms.value, early.latency_ms.n, early.speedup) == (2.0, 10, 2.0)
    assert early.latency_ms.interval == (2.0, 2.0) and early.latency_ms.slowest == 4.0
    assert (late.latency_ms.value, late.latency_ms.n, late.speedup) == (1.0, 25, 4.0)


def test_only_what_ran_tells_of_disturbance() -> None:
    rounds = [[[4.0, 3.0]] * 5, [[4.0, None]] * 5]
    measured = {"memory_bytes": [None] * 2, "energy_mj": [None] * 2, "clock": "cpu"}
    _, timing = timings({"wall_ms": rounds, "cpu_ms": rounds, **measured}, PROFILE, ["fp32"] * 2)
    assert (timing.wall_ms, timing.cpu_ms, timing.disturbed) == (3.0, 3.0, False)


def answer(wall: list[list[float]], cpu: list[list[float]], clock: str) -> dict[str, Any]:
    """As the agent gives it, from two processes."""
    parts = {"wall_ms": [wall[:2], wall[2:]], "cpu_ms": [cpu[:2], cpu[2:]]}
    return {**parts, "clock": clock, "memory_bytes": [None, 5_000_000], "energy_mj": [2.5, None]}


def test_on_one_thread_the_time_is_that_of_the_processor() -> None:
    first, second = timings(
        answer([[4.0, 3.3]] * 5, [[4.0, 3.0]] * 5, "cpu"), PROFILE, ["fp32", "int8-dynamic"]
    )
    assert (first.latency_ms.value, second.latency_ms.value, second.speedup) == (4.0, 3.0, 4 / 3)
    assert [(t.wall_ms, t.cpu_ms, t.precision) for t in (first, second)] == [
        (4.0, 4.0, "fp32"),
        (3.3, 3.0, "int8-dynamic"),
    ]
    assert [(t.memory_bytes, t.energy_mj) for t in (first, second)] == [
        (None, 2.5),
        (5_000_000, None),
    ]


def test_on_more_threads_it_is_the_walls_and_the_processors_tells_of_disturbance() -> None:
    first, second = timings(
        answer([[4.0, 2.0]] * 5, [[1.0, 1.9]] * 5, "wall"), PROFILE, ["fp32", "fp16"]
    )
    assert (first.latency_ms.value, second.latency_ms.value, second.speedup) == (4.0, 2.0, 2.0)
    assert [(t.wall_ms, t.cpu_ms, t.disturbed) for t in (first, second)] == [
        (4.0, 1.0, True),
        (2.0, 1.9, False),
    ]


def test_on_a_gpu_the_processors_time_tells_nothing() -> None:
    gpu = HardwareProfile.load("gpu-cuda")
    first, second = timings(
        answer([[4.0, 2.0]] * 5, [[1.0, 3.0]] * 5, "wall"), gpu, ["fp32", "fp16"]
    )
    assert [(t.wall_ms, t.cpu_ms, t.disturbed) for t in (first, second)] == [
        (4.0, None, False),
        (2.0, None, False),
    ]


def test_a_timing_is_disturbed_when_the_wall_takes_a_tenth_more_than_the_processor() -> None:
    """In sum: a single long wait counts, though no median shows it."""
    wall = [[1.0, 1.09], *[[1.0, 1.0]] * 8, [2.1, 1.0]]
    first, second = timings(answer(wall, [[1.0, 1.0]] * 10, "cpu"), PROFILE, ["fp32", "fp32"])
    assert [(t.wall_ms, t.cpu_ms, t.disturbed) for t in (first, second)] == [
        (1.0, 1.0, True),
        (1.0, 1.0, False),
    ]


def test_enough_rounds_even_without_time(shallow: Path, deep: Path) -> None:
    """A tenth of a second is not enough for the precision that is asked for."""
    profile = replace(PROFILE, target_precision=0.001, batch_size=8)
    first, rest = device(profile).time(deep, [shallow, shallow], final=False)
    assert len(rest) == 2
    assert {timing.latency_ms.n for timing in (first, *rest)} == {FEWEST}
    assert all(timing.latency_ms.value > 0 for timing in (first, *rest))


class Recorded:
    """A host that answers in the regime asked for: warm in 4 and 1 ms, cold in 6 and 3."""

    location = "local"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def place(self, file: Path, name: str) -> str:
        return str(file)

    def forget(self, names: Collection[str]) -> None: ...

    def run_agent(self, request: str, limit_s: float) -> str:
        asked = json.loads(request)
        hashes = [sha256(Path(model["path"])) for model in asked["models"]]
        known = {"nonce": asked["nonce"], "sha256": hashes}
        if asked["action"] == "describe":
            return json.dumps(
                known | {"providers": ["CPUExecutionProvider"], "memory_bytes": 2**30}
            )
        self.asked.append(asked)
        rounds = [[[6.0, 3.0] if asked["regime"] == "cold" else [4.0, 1.0]] * 10] * 3
        memory = [5 if wanted else None for wanted in asked["memory"]]
        measured = {"wall_ms": rounds, "cpu_ms": rounds, "clock": "cpu", "energy_mj": [None] * 2}
        return json.dumps(known | measured | {"memory_bytes": memory})

    def close(self) -> None: ...


@pytest.mark.parametrize(("regime", "speedups"), [("warm", (4.0, 2.0)), ("cold", (2.0, 4.0))])
def test_final_models_are_timed_in_both_regimes_and_the_profiles_comes_first(
    regime: str, speedups: tuple[float, float], shallow: Path
) -> None:
    host = Recorded()
    timed = OnnxDevice(replace(PROFILE, regime=regime), (32,), host)
    other = {"warm": "cold", "cold": "warm"}[regime]
    _, [timing] = timed.time(shallow, [shallow], final=False)
    assert (timing.regime, timing.speedup, timing.beside) == (regime, speedups[0], None)
    baseline, [timing] = timed.time(shallow, [shallow], final=True)
    assert (timing.regime, timing.speedup, timing.memory_bytes) == (regime, speedups[0], 5)
    assert timing.beside and timing.beside.regime == other
    assert (timing.beside.speedup, timing.beside.memory_bytes) == (speedups[1], None)
    assert baseline.beside and baseline.beside.speedup == 1.0
    assert [asked["regime"] for asked in host.asked] == [regime, regime, other]
    assert [asked["seconds"] for asked in host.asked] == [0.1, 0.1, 0.05]
    stored = json.loads(json.dumps(asdict(timing)))
    assert Timing.from_json(stored) == timing


def test_a_model_that_fits_no_cache_any_more_is_slower_cold(tmp_path: Path) -> None:
    """Its embedding apart it has 3 MB, which takes a few hundred microseconds to read from memory;
    no time is compared but with itself."""
    model = graph(tmp_path / "model.onnx", layers=4)
    timed = device(replace(PROFILE, trial_seconds=0.3, final_seconds=0.3))
    baseline, _ = timed.time(model, [], final=True)
    assert baseline.beside and baseline.beside.latency_ms.value > baseline.latency_ms.value
    assert baseline.latency_ms.n >= FEWEST and baseline.beside.latency_ms.n >= FEWEST


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("final", [False, True], ids=["trial", "final"])
def test_four_times_the_depth_is_slower(
    shallow: Path, deep: Path, threads: int, final: bool
) -> None:
    """With two threads in batches of 16: shorter runs measure whatever else the cores are busy
    with."""
    profile = replace(PROFILE, threads=threads, batch_size=16 if threads == 2 else 1)
    baseline, [faster, same] = device(profile).time(deep, [shallow, deep], final=final)
    assert faster.speedup > 1.5 and faster.latency_ms.value < baseline.latency_ms.value
    assert faster.speedup == pytest.approx(baseline.latency_ms.value / faster.latency_ms.value)
    assert 0.5 < same.speedup < 2
    assert baseline.latency_ms.n >= FEWEST and faster.latency_ms.n == baseline.latency_ms.n
    low, high = faster.speedup_interval
    assert low <= faster.speedup <= high
    assert (baseline.memory_bytes is None) == (not final)
    assert faster.memory_bytes and same.memory_bytes
    assert faster.cpu_ms and baseline.cpu_ms
    assert {timing.latency_ms.basis for timing in (baseline, faster, same)} == {"measured"}


def test_larger_batches_take_longer(shallow: Path) -> None:
    small, large = (
        device(replace(PROFILE, batch_size=size))
        .time(shallow, [shallow], final=False)[0]
        .latency_ms.value
        for size in (1, 16)
    )
    assert large > 3 * small


def test_longer_texts_take_longer_and_lengths_count_alike(shallow: Path) -> None:
    short, both, long = (
        device(replace(PROFILE, batch_size=4), *lengths)
        .time(shallow, [shallow], final=False)[0]
        .latency_ms.value
        for lengths in ((4,), (4, 64), (64,))
    )
    assert long > 3 * short
    assert 0.5 * (short + long) / 1.5 < both < 0.5 * (short + long) * 1.5


def test_a_model_of_few_tokens_can_be_timed(shallow: Path, tmp_path: Path) -> None:
    """Models of proteins and of characters have some 30 tokens."""
    _, [timing] = device().time(
        shallow, [graph(tmp_path / "model.onnx", vocabulary=30)], final=False
    )
    assert timing.latency_ms.n >= FEWEST


@pytest.mark.parametrize("final", [False, True], ids=["trial", "final"])
def test_a_profile_longer_than_the_model_allows_is_a_clear_error(
    tmp_path: Path, final: bool
) -> None:
    model = graph(tmp_path / "model.onnx", positions=16)
    with pytest.raises(CandidateFailed, match=r"^onnxruntime cannot run it: [^\n]+$"):
        device().time(model, [], final=final)
    with pytest.raises(
        UserError, match=rf"^{model} cannot be timed: onnxruntime cannot run it: [^\n]+$"
    ):
        measure_latency(model, PROFILE)


def test_a_broken_file_is_a_clear_error(shallow: Path, broken: Path) -> None:
    with pytest.raises(
        CandidateFailed, match=rf"^onnxruntime cannot load it: [^\n]*{broken}[^\n]*$"
    ):
        device().time(shallow, [broken], final=False)


def test_a_broken_file_is_a_clear_error_of_the_users_too(broken: Path) -> None:
    """The file may be what a user gave to ``autocompress measure``."""
    with pytest.raises(
        UserError, match=rf"^(?!.*\['){broken} cannot be timed: onnxruntime cannot load it: [^\n]*$"
    ):
        measure_latency(broken, PROFILE)


class Elsewhere:
    """This machine as if it were another one; counts what is asked."""

    location = "ssh://elsewhere"

    def __init__(self) -> None:
        self.here, self.asked, self.closed = LocalHost(), list[str](), 0

    def place(self, file: Path, name: str) -> str:
        return self.here.place(file, name)

    def forget(self, names: Collection[str]) -> None: ...

    def run_agent(self, request: str, limit_s: float) -> str:
        self.asked.append(json.loads(request)["action"])
        return self.here.run_agent(request, limit_s)

    def close(self) -> None:
        self.closed += 1


def test_a_device_elsewhere_answers_as_this_one_does_in_requests_of_64_batches(
    shallow: Path,
) -> None:
    rng = np.random.default_rng(0)
    lengths = [int(length) for length in rng.integers(2, POSITIONS, 130)]
    batches: list[dict[str, NDArray[np.int64]]] = [
        {
            "input_ids": rng.integers(2, 900, (2, length)),
            "attention_mask": np.ones((2, length), np.int64),
        }
        for length in lengths
    ]
    host = Elsewhere()
    board = OnnxDevice(PROFILE, (32,), host)
    np.testing.assert_array_equal(board.predict(shallow, batches), predict(shallow, batches))
    np.testing.assert_array_equal(device().predict(shallow, batches), predict(shallow, batches))
    assert host.asked == ["describe", "score", "score", "score"]
    board.close()
    assert host.closed == 1


def test_weights_in_a_file_beside_the_model_are_refused_by_a_board(tmp_path: Path) -> None:
    """Of which it would be sent the one file alone; here they are read."""
    file = graph(tmp_path / "model.onnx")
    onnx.save(
        onnx.load(file), file, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    message = f"{file} keeps weights in weights.bin: a board is sent one file; save it whole, "
    host = Elsewhere()
    board = OnnxDevice(PROFILE, (8,), host)
    for act in (lambda: board.time(file, [], final=False), lambda: board.predict(file, [])):
        with pytest.raises(UserError, match="^" + re.escape(message)):
            act()
    assert host.asked == ["describe"]


def test_devices_of_one_place_and_runtime_answer_alike() -> None:
    slower = device(replace(PROFILE, threads=2, batch_size=9, sequence_length=8))
    assert device().answers_like == slower.answers_like
    board = replace(PROFILE, device_class="edge", location="ssh://board")
    assert OnnxDevice(board, (32,), Elsewhere()).answers_like != device().answers_like


def test_a_device_that_cannot_be_asked_or_lacks_the_provider_is_the_users_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = HardwareProfile("gpu", "", "gpu", "onnxruntime-cuda", 1, 32)
    message = (
        "hardware profile gpu: onnxruntime there has no CUDAExecutionProvider; "
        "onnxruntime-gpu has it"
    )
    with pytest.raises(UserError, match="^" + re.escape(message) + "$"):
        OnnxDevice(gpu, (32,), LocalHost())
    monkeypatch.setattr(Elsewhere, "run_agent", lambda self, request, limit_s: "no answer")
    with pytest.raises(
        UserError,
        match=r"^hardware profile test: the device answered what is no answer: 'no answer'$",
    ):
        OnnxDevice(PROFILE, (32,), Elsewhere())


@pytest.mark.parametrize(
    ("given", "typical"),
    [
        (range(1, 9), (1, 2, 3, 4, 5, 6, 7, 8)),
        (range(16, 0, -1), (2, 4, 6, 8, 10, 12, 14, 16)),
        ([5], (5,) * 8),
        ([3] * 15 + [99], (3,) * 7 + (99,)),
        ([4, 9], (4, 4, 4, 4, 9, 9, 9, 9)),
    ],
    ids=str,
)
def test_eight_lengths_stand_for_all(given: Any, typical: tuple[int, ...]) -> None:
    assert typical_lengths(list(given)) == typical


def test_the_lengths_that_a_profile_wants() -> None:
    assert lengths_of(PROFILE, [4, 9]) == (32,)
    by_task = replace(PROFILE, sequence_length="task")
    assert lengths_of(by_task, [4, 9]) == (4, 4, 4, 4, 9, 9, 9, 9)
    message = (
        "hardware profile test: sequence_length is 'task', and there is no task here; "
        "extend the profile with a number"
    )
    nothing: list[int] | None
    for nothing in ([], None):
        with pytest.raises(UserError, match="^" + re.escape(message) + "$"):
            lengths_of(by_task, nothing)


def test_a_profile_of_another_device_is_refused() -> None:
    fingerprint = connect(PROFILE, (32,)).fingerprint
    here = {key: value for key, value in fingerprint.items() if key in FINGERPRINT}
    same = replace(PROFILE, fingerprint={**here, "python": "2.7", "memory_bytes": 1})
    assert connect(same, (32,)).lengths == (32,)
    for key, value in (
        ("cpu", "a cpu of old"),
        ("cores", 999),
        ("features", ["none"]),
        ("gpu", "another"),
    ):
        message = (
            f"hardware profile test is of another device: its {key} is {value!r}, here it "
            f"is {here[key]!r}; make a profile "
        )
        with pytest.raises(UserError, match="^" + re.escape(message)):
            connect(replace(PROFILE, fingerprint={**here, key: value}), (32,))


@pytest.mark.parametrize(
    ("memory", "groups"),
    [
        (0, [[1, 2, 3, 4]]),  # the device does not say
        (6 * (10 + 1 + 2 + 3 + 4), [[1, 2, 3, 4]]),
        (6 * (10 + 1 + 2 + 3 + 4) - 6, [[1, 2, 3], [4]]),
        (6 * (10 + 5), [[1, 2], [3], [4]]),
        (6, [[1], [2], [3], [4]]),
    ],
)
def test_models_that_do_not_fit_the_memory_together_are_timed_in_groups(
    memory: int, groups: list[list[int]], tmp_path: Path
) -> None:
    """A loaded model counts three times its file, and half the memory is left free."""
    files = {size: tmp_path / f"{size}.onnx" for size in (1, 2, 3, 4, 10)}
    for size, file in files.items():
        file.write_bytes(bytes(size))
    grouped_files = grouped([files[size] for size in (1, 2, 3, 4)], files[10], memory)
    assert grouped_files == [[files[size] for size in group] for group in groups]


def test_without_models_the_baseline_is_a_group_alone(tmp_path: Path) -> None:
    (tmp_path / "10.onnx").write_bytes(bytes(10))
    assert grouped([], tmp_path / "10.onnx", 1) == [[]]


def test_every_group_is_timed_in_turn_with_the_baseline(tmp_path: Path) -> None:
    files = [graph(tmp_path / f"{layers}.onnx", layers) for layers in (4, 1, 2)]
    device = OnnxDevice(PROFILE, [8], LocalHost())
    device.fingerprint["memory_bytes"] = 1
    asked: list[int] = []
    timed = device._timed

    def counted(baseline: Path, models: Any, final: bool) -> Any:
        asked.append(len(models))
        return timed(baseline, models, final)

    device._timed = counted  # type: ignore[method-assign]
    baseline, model_timings = device.time(files[0], files[1:], final=False)
    assert asked == [1, 1]
    assert baseline.speedup == 1.0 and len(model_timings) == 2
    assert model_timings[0].speedup > model_timings[1].speedup > 1
