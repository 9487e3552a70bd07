"""The agent's functions by value, and its answers from a process of its own."""

from __future__ import annotations

import ast
import base64
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertForSequenceClassification

from autocompress.errors import CandidateFailed
from autocompress.files import sha256
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.hardware import agent
from autocompress.hardware.host import AGENT, LocalHost, ask
from autocompress.hardware.patience import Patience
from autocompress.interfaces import Batch

BASE = {"runtime": "onnxruntime-cpu", "threads": 1}
SHAPE = {"batch_size": 2, "lengths": [4, 8]}
PRECISION = {"statistic": "median", "confidence": 0.95, "target_precision": 0.02, "seconds": 0.0}
POSITIONS = 16


def graph(path: Path, hidden: int = 32) -> Path:
    """A BERT classifier of one layer, 16 positions."""
    torch.manual_seed(hidden)
    config = BertConfig(
        vocab_size=100,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        max_position_embeddings=POSITIONS,
    )
    ones = np.ones((1, 4), np.int64)
    to_onnx(
        BertForSequenceClassification(config),
        path,
        Batch({"input_ids": ones, "attention_mask": ones}),
    )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("agent") / "model.onnx")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph at all")
    return path


def batches(*lengths: int) -> list[dict[str, NDArray[np.int64]]]:
    rng = np.random.default_rng(0)
    return [
        {
            "input_ids": rng.integers(2, 90, (3, length)),
            "attention_mask": np.ones((3, length), np.int64),
        }
        for length in lengths
    ]


def answered(action: str, *models: Path, **request: Any) -> dict[str, Any]:
    """The agent's answer, in this process."""
    asked = (
        BASE
        | SHAPE
        | {"action": action, "nonce": "n", "models": [{"path": str(path)} for path in models]}
    )
    return agent.answer(asked | request)


@pytest.mark.parametrize(
    ("statistic", "expected"), [("median", 30.0), ("mean", 40.0), ("p10", 14.0)]
)
def test_statistics_by_hand(statistic: str, expected: float) -> None:
    rounds = np.array([100.0, 10.0, 40.0, 20.0, 30.0])
    assert agent.statistic_of(rounds, statistic) == pytest.approx(expected)
    assert agent.statistic_of(np.stack([rounds, 2 * rounds], axis=1), statistic) == pytest.approx(
        [expected, 2 * expected]
    )
    assert agent.statistic_of(np.stack([rounds, 2 * rounds]), statistic, axis=1) == pytest.approx(
        [expected, 2 * expected]
    )


def test_the_estimate_is_the_median_over_processes_however_many_rounds_each_has() -> None:
    processes = [np.array([[1.0, 5.0], [2.0, 6.0], [90.0, 7.0]]), np.array([[4.0, 8.0]])]
    assert agent.estimate(processes, "median") == pytest.approx([3.0, 7.0])
    spoiled = [*processes, np.array([[3.5, 90.0]])]
    assert agent.estimate(spoiled, "median") == pytest.approx([3.5, 8.0])


def test_a_process_that_other_work_slowed_down_widens_no_interval_among_seven() -> None:
    quick = [np.tile([4.0, ms], (8, 1)) for ms in (0.98, 0.99, 1.0, 1.0, 1.01, 1.02)]
    spoiled = [*quick, np.tile([5.0, 2.0], (8, 1))]
    assert agent.is_precise(spoiled, "p10", 0.95, 0.05)
    assert not agent.is_precise([*quick[1:3], spoiled[-1]], "p10", 0.95, 0.05)


@pytest.mark.parametrize("statistic", ["median", "mean", "p10"])
def test_rounds_are_drawn_whole_and_the_same_however_many_fit(statistic: str) -> None:
    rounds = np.random.default_rng(1).random((1200, 3))
    picks = np.random.default_rng(0).integers(0, len(rounds), (400, len(rounds)))
    expected = agent.statistic_of(rounds[picks], statistic, axis=1)
    np.testing.assert_allclose(agent.resampled([rounds], statistic, 0.95), expected, rtol=1e-12)


def noisy(
    noise: float, models: int, shared: float = 0.0, process: float = 0.0
) -> list[NDArray[np.float64]]:
    """Five processes of 60 rounds: noise of each model's rounds, noise that all models share, noise
    of models per process."""
    rng = np.random.default_rng(0)

    def of(deviation: float, *shape: int) -> NDArray[np.float64]:
        return np.exp(deviation * rng.standard_normal(shape))

    latencies = np.arange(4.0, 4 + models)
    return [
        latencies * of(noise, 60, models) * of(shared, 60, 1) * of(process, 1, models)
        for _ in range(5)
    ]


def columns(*parts: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    return [np.column_stack(process) for process in zip(*parts, strict=True)]


@pytest.mark.parametrize(
    ("processes", "precise"),
    [
        (noisy(0.002, 3), True),
        (noisy(0.6, 3), False),
        (noisy(0.002, 1), True),
        (noisy(0.6, 1), False),
        (noisy(0.002, 2, shared=0.6), True),
        (noisy(0.0, 1, shared=0.6), False),
        (columns(noisy(0.002, 2), noisy(0.6, 1)), False),
        (noisy(0.002, 2, process=0.1), False),
    ],
    ids=[
        "narrow",
        "wide",
        "narrow alone",
        "wide alone",
        "the machine wavers",
        "the machine wavers, alone",
        "one of three wide",
        "processes differ",
    ],
)
@pytest.mark.parametrize("statistic", ["median", "mean", "p10"])
def test_rounds_are_precise_when_every_speedup_is(
    processes: list[NDArray[np.float64]], precise: bool, statistic: str
) -> None:
    assert agent.is_precise(processes, statistic, 0.95, 0.02) == precise


def test_more_confidence_takes_more_rounds() -> None:
    precise = [
        agent.is_precise(noisy(0.05, 1), "mean", confidence, 0.01) for confidence in (0.5, 0.999)
    ]
    assert precise == [True, False]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that moves only when ``advance`` is called."""
    now = 0

    def advance(milliseconds: float) -> None:
        nonlocal now
        now += round(milliseconds * 1e6)

    names = ("perf_counter_ns", "thread_time_ns", "process_time_ns")
    fake: dict[str, Any] = {name: lambda: now for name in names} | {
        "perf_counter": lambda: now / 1e9
    }
    monkeypatch.setattr(agent, "time", SimpleNamespace(**fake))
    monkeypatch.setattr(agent, "_microjoules", lambda: now / 1e3)
    monkeypatch.setattr(agent, "gc", SimpleNamespace(disable=lambda: None))
    return SimpleNamespace(advance=advance, nanoseconds=lambda: now)


def test_a_run_longer_than_the_block_is_timed_once(clock: SimpleNamespace) -> None:
    durations = iter([27.0, 900.0])
    runs = [lambda: clock.advance(next(durations))]
    assert agent._block(runs, clock.nanoseconds, 1) == (900.0, 900.0, 900.0)
    assert next(durations, None) is None


def test_a_round_is_the_median_of_its_runs_and_the_mean_of_their_energy(
    clock: SimpleNamespace,
) -> None:
    """Two inferences a run; it is timed when 20 ms of untimed runs have gone by, for 5 ms."""
    durations = iter([5.0, 5.0, 5.0, 4.9, 1.0, 0.5, 0.5, 0.25, 0.25, 0.5, 8.5])
    run = lambda: clock.advance(next(durations))  # noqa: E731
    wall, cpu, energy = agent._block([run, run], clock.nanoseconds, 4)
    assert (wall, cpu) == (0.5, 0.125) and energy == pytest.approx(1.75)
    assert next(durations, None) is None


def test_a_cold_round_is_one_run_of_each_inference_after_its_caches_were_displaced(
    clock: SimpleNamespace,
) -> None:
    """What displaces them is not timed, and what energy it takes is not the model's."""
    done: list[str] = []

    def runs(name: str, milliseconds: float) -> Any:
        def run() -> None:
            done.append(name)
            clock.advance(milliseconds)

        return run

    cold = runs("displaced", 50.0)
    times = agent._block([runs("short", 1.0), runs("long", 4.0)], clock.nanoseconds, 2, cold)
    assert times[:2] == (2.5, 1.25) and np.isnan(times[2])
    assert done == ["displaced", "short", "displaced", "long"]


def test_twice_the_largest_cache_is_displaced(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(np, "add", lambda memory, *_, **__: sizes.append(memory.nbytes))
    for known in ({2: 2**20, 3: 48 * 2**20}, {2: 2**20}, {3: 2**40}):
        monkeypatch.setattr(agent, "_cache_bytes", lambda level, known=known: known.get(level, 0))
        agent.displacer()()
    assert sizes == [96 * 2**20, 64 * 2**20, 512 * 2**20]


def test_rounds_that_take_long_are_fewer(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight lengths of 40 ms: one round of untimed runs, and one run before each timed round."""
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1
        clock.advance(40.0)

    monkeypatch.setattr(agent, "runners", lambda path, request: [run] * 8)
    request = BASE | SHAPE | PRECISION | {"models": [{"path": "a"}, {"path": "b"}]}
    times = agent.rounds_of_one_process(request)
    assert times["wall"] == [[40.0, 40.0]] * agent.FEWEST_LONG_ROUNDS
    assert calls == 2 * (8 + 3 * (1 + 8))


def test_no_round_is_dropped(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both inferences of a model take 5 ms, one in a single round 200 times as long: it is in
    the answer."""
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1
        clock.advance(1000.0 if calls == 2 * (3 + 3 * 7 + 2) + 1 else 5.0)

    monkeypatch.setattr(agent, "runners", lambda path, request: [run, run])
    times = agent.rounds_of_one_process(BASE | SHAPE | PRECISION | {"models": [{"path": "unread"}]})
    assert (
        times["wall"]
        == times["cpu"]
        == [[5.0]] * 7 + [[502.5]] + [[5.0]] * (agent.FEWEST_ROUNDS - 8)
    )


@pytest.mark.parametrize(
    ("seconds", "processes"),
    [(1e6, 7), (1.0, 3), (2.1, 5), (2.3, 6)],
    ids=["precise", "out of time", "nearest before", "nearest after"],
)
def test_processes_go_on_until_precise_or_out_of_time(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, seconds: float, processes: int
) -> None:
    def one_process(work: Any, request: dict[str, Any]) -> dict[str, Any]:
        clock.advance(400.0)
        return {"wall": [[2.0]] * 4, "cpu": [[1.0]] * 4, "energy": [3.0]}

    monkeypatch.setattr(agent, "_in_child", one_process)
    monkeypatch.setattr(agent, "is_precise", lambda timed, *_: len(timed) == 7)
    request = (
        BASE
        | SHAPE
        | PRECISION
        | {"models": [{"path": "unread"}], "memory": [False], "seconds": seconds}
    )
    assert agent.time_models(request) == {
        "wall_ms": [[[2.0]] * 4] * processes,
        "cpu_ms": [[[1.0]] * 4] * processes,
        "clock": "cpu",
        "energy_mj": [3.0],
        "memory_bytes": [None],
    }


def test_what_is_precise_leaves_the_rounds_and_the_others_go_on(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second model is steady; the third differs by process, and is precise never."""
    asked: list[tuple[str, float]] = []
    paces = {"a": [4.0], "b": [2.0], "c": [1.0, 1.5, 0.5]}

    def one_process(work: Any, request: dict[str, Any]) -> dict[str, Any]:
        names = [model["path"] for model in request["models"]]
        of_process = [paces[name][len(asked) % len(paces[name])] for name in names]
        asked.append(("".join(names), request["seconds"]))
        clock.advance(1000.0)
        rounds = [of_process] * 8
        return {"wall": rounds, "cpu": rounds, "energy": of_process}

    monkeypatch.setattr(agent, "_in_child", one_process)
    models = {"models": [{"path": name} for name in paces], "memory": [False] * 3}
    timed = agent.time_models(BASE | SHAPE | PRECISION | models | {"seconds": 6.0})
    assert asked == [("abc", 6.0)] * 3 + [("ac", pytest.approx(4.0))] * 3
    assert [rounds[0] for rounds in timed["cpu_ms"]] == [
        [4.0, 2.0, 1.0],
        [4.0, 2.0, 1.5],
        [4.0, 2.0, 0.5],
        [4.0, None, 1.0],
        [4.0, None, 1.5],
        [4.0, None, 0.5],
    ]
    assert timed["energy_mj"] == [4.0, 2.0, 1.0]


@pytest.mark.parametrize("threads", [1, 2])
def test_times_of_real_models(model: Path, threads: int) -> None:
    request = (
        BASE | SHAPE | PRECISION | {"action": "time", "threads": threads, "memory": [False, False]}
    )
    answer = ask(LocalHost(), request, [model, model])
    assert (
        np.shape(answer["wall_ms"])
        == np.shape(answer["cpu_ms"])
        == (agent.FEWEST_PROCESSES, agent.FEWEST_ROUNDS, 2)
    )
    assert np.min(answer["wall_ms"]) > 0 and np.min(answer["cpu_ms"]) > 0
    assert answer["clock"] == ("cpu" if threads == 1 else "wall")


def test_larger_models_take_more_memory(model: Path, tmp_path: Path) -> None:
    request = BASE | SHAPE | PRECISION | {"action": "time", "memory": [True, True, False]}
    small, large, unasked = ask(
        LocalHost(), request, [model, graph(tmp_path / "large.onnx", 512), model]
    )["memory_bytes"]
    assert 0 < small < large and unasked is None
    assert large > (tmp_path / "large.onnx").stat().st_size


def test_scores_are_those_of_onnxruntime(model: Path) -> None:
    given = batches(4, 7)
    answer = ask(LocalHost(), BASE | {"action": "score"}, [model], given)
    scores = np.load(io.BytesIO(base64.b64decode(answer["npy"])))
    assert scores.dtype == np.float32 and scores.shape == (6, 2)
    np.testing.assert_array_equal(
        scores, np.concatenate([predict(model, [batch]) for batch in given])
    )


def test_an_answer_repeats_nonce_and_hashes(model: Path, broken: Path) -> None:
    answer = answered("describe", model, broken)
    assert answer["nonce"] == "n" and answer["sha256"] == [sha256(model), sha256(broken)]


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "onnxruntime-cuda"])
def test_what_cannot_be_met_is_refused_in_one_line(
    broken: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    answer = answered("score", broken, runtime=runtime)
    reason = {
        "onnxruntime-cpu": "onnxruntime cannot load it: ",
        "onnxruntime-cuda": f"onnxruntime {onnxruntime.__version__} here has no CUDAExecutionProvider: {runtime} needs it",  # noqa: E501
    }
    assert answer.keys() == {"nonce", "sha256", "refused"} and answer["nonce"] == "n"
    assert answer["refused"].startswith(reason[runtime]) and "\n" not in answer["refused"]


def test_more_tokens_than_positions_are_refused_in_one_line(model: Path) -> None:
    with pytest.raises(CandidateFailed, match=r"^onnxruntime cannot run it: [^\n]+$"):
        ask(LocalHost(), BASE | {"action": "score"}, [model], batches(4, POSITIONS + 1))
    with pytest.raises(CandidateFailed, match=r"^onnxruntime cannot run it: [^\n]+$"):
        ask(
            LocalHost(),
            BASE
            | SHAPE
            | PRECISION
            | {"action": "time", "memory": [False], "lengths": [POSITIONS + 1]},
            [model],
        )


@pytest.mark.parametrize("memory", [True, False])
def test_a_refusal_of_a_child_is_passed_on(broken: Path, memory: bool) -> None:
    with pytest.raises(CandidateFailed, match=r"^onnxruntime cannot load it: [^\n]+$"):
        ask(
            LocalHost(), BASE | SHAPE | PRECISION | {"action": "time", "memory": [memory]}, [broken]
        )


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (
            lambda request: os.kill(os.getpid(), 9),
            "the process ended with signal 9, as when memory runs out",
        ),
        (lambda request: os._exit(3), "the process ended with code 3, as when memory runs out"),
        (lambda request: {"size": len(bytes(1 << 62))}, "out of memory"),
    ],
    ids=["killed", "ended", "no memory"],
)
def test_a_child_that_dies_is_a_refusal(work: Any, reason: str) -> None:
    with pytest.raises(agent.Refusal, match=f"^{reason}$"):
        agent._in_child(work, {})


def test_a_child_answers_for_itself() -> None:
    assert agent._in_child(lambda request: {"twice": 2 * request["x"]}, {"x": 21}) == {"twice": 42}
    assert agent._in_child(lambda request: {"pid": os.getpid()}, {})["pid"] != os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="no Linux here")
def test_a_child_ends_with_the_agent(tmp_path: Path) -> None:
    """An agent that took too long is killed, and its child must not disturb the next."""
    code = (
        "import os, time; from autocompress.hardware import agent;"
        f"hang = lambda request: (open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid())), "
        "time.sleep(600)); agent._in_child(hang, {})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        assert process.stdout is not None
        assert process.stdout.read() == b""  # ends when the last that holds it does


def test_a_local_timing_that_takes_too_long_fails_the_candidate(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "limit_s", lambda self, asked: 0.4 if asked["models"] else 30.0)
    timing = {"action": "time", "seconds": 60.0, "memory": [False]}
    with pytest.raises(CandidateFailed, match=r"^local: no answer within 0 s$"):
        ask(LocalHost(), BASE | SHAPE | PRECISION | timing, [model])


def test_no_memory_is_a_refusal(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: dict[str, Any]) -> dict[str, Any]:
        raise MemoryError

    monkeypatch.setattr(agent, "score", fail)
    assert answered("score", model)["refused"] == "out of memory"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat here")
def test_busy_cores_are_counted() -> None:
    busy = agent.busy_cores(0.02)
    assert busy is not None and 0 <= busy < 1000


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 6),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 6),
        ({"/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "900000 100000\n"}, 6),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
    ],
)
def test_all_cores_are_those_of_the_affinity_and_of_the_container(
    files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of eight, of which a container may grant fewer."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(agent, "_read", lambda path: files.get(path, ""))
    assert agent.usable_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")
    assert agent.usable_cores() == 8


def test_busy_cores_are_unknown_where_the_machine_does_not_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent, "_read", lambda path: "")
    assert agent.busy_cores(0.0) is None


def test_other_work_counts_as_busy_and_the_agents_own_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    counts = iter([[0] * 10, [2 * ticks, 0, ticks, 5 * ticks, 7 * ticks, 0, 0, 0, 9, 9]])
    monkeypatch.setattr(
        agent, "_read", lambda path: "cpu  " + " ".join(map(str, next(counts))) + "\ncpu0 1 2 3"
    )
    wall, cpu = iter([10.0, 12.0]), iter([5.0, 6.0])
    fake = SimpleNamespace(
        perf_counter=lambda: next(wall), process_time=lambda: next(cpu), sleep=lambda seconds: None
    )
    monkeypatch.setattr(agent, "time", fake)
    assert agent.busy_cores() == pytest.approx(1.0)


def test_the_file_is_python_3_9_with_numpy_and_onnxruntime_alone() -> None:
    tree = ast.parse(AGENT.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    beside = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert beside == {"numpy", "onnxruntime"}
