"""What runs on the device: one file that needs Python, numpy and onnxruntime, read by itself or
copied to a board.

One JSON request on standard input, one JSON answer as the last line of standard output:

    describe   what the device is
    time       models in turn with the first one, the baseline
    memory     peak memory that one model adds to a fresh process (asked by ``time`` of a child
    process) score      first output of a model for batches of inputs, or what is kept of it

A ``time`` request is answered from several processes, one after the other, because the pages of
memory that a process happens to get, and what else the machine does meanwhile, make it faster or
slower than the next: some per cent as a rule, now and then half. So there are many short ones, and
the estimate is their median. In each all models run round-robin with the baseline, so that a slow
spell hits all of them alike; one whose speedup is precise enough runs in no further process, and
what it took goes to the others. No round is ever dropped. What a round is depends on the regime:

    warm   inferences back to back: a model first runs untimed for 20 ms, so that caches are as in
    service and not as the model before left them, then timed for 5 ms, at least once; the round's
    time is the median of its runs
    cold   a request now and then: one inference, right after the caches were displaced by writing
    over twice as much memory as the largest of them holds

The runtime reports its use to Microsoft unless ``ORT_DISABLE_TELEMETRY`` is in the environment when
it is imported; importing this file puts 1 there where there is no value yet.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import hashlib
import io
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime

PROVIDERS = {"onnxruntime-cpu": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}
FEWEST_PROCESSES = 3
FEWEST_ROUNDS = 8
"""In each process; 25 tell no more of it than these, since processes differ more than rounds."""
FEWEST_LONG_ROUNDS = 3
"""Where a round takes long, as end to end: the beginning of one counts for nothing there."""
_LONG_ROUND_S = 0.5
SHARES = 10
"""Processes that a request's time is meant for."""
_WARM_UP_ROUNDS = 3
_PAST = "past_key_values."
"""Of the names of the inputs that hold a language model's cache."""
_WARM_SECONDS = 0.020
"""Of untimed runs; models of 1 to 4 ms are slower until then."""
_BLOCK_SECONDS = 0.005
_LEAST_DISPLACED, _MOST_DISPLACED = 64 * 2**20, 512 * 2**20
"""Bytes."""
_RESAMPLES = 400
_TOKENS_AT_ONCE = 16
"""Rows of the vocabulary, about 3 MB for GPT-2's, that the log-softmax works on at a time: they
stay in the cache."""
_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)


class Refusal(Exception):
    """The request cannot be met; the message says why."""


def statistic_of(rounds: Any, statistic: str, axis: int = 0) -> Any:
    """``median``, ``mean`` or ``p10`` along an axis."""
    if statistic == "mean":
        return np.mean(rounds, axis=axis)
    return np.percentile(rounds, 10 if statistic == "p10" else 50, axis=axis)


def estimate(processes: Any, statistic: str) -> Any:
    """Median over processes of the statistic of their rounds, by model.

    Args:
        processes: rounds of each, shape (rounds, models).
    """
    return np.median([statistic_of(rounds, statistic) for rounds in processes], axis=0)


def paired(processes: Any, model: int) -> Any:
    """Rounds of the baseline and of one model, shape (rounds, 2), of each process that it ran in;
    of shape (rounds, 1) for the baseline, which is model 0.

    Args:
        processes: rounds of each, shape (rounds, models), NaN for models that did not run.
    """
    columns = sorted({0, model})
    return [rounds[:, columns] for rounds in processes if not np.isnan(rounds[0, model])]


def resampled(processes: Any, statistic: str, confidence: float) -> Any:
    """The estimate of 400 bootstrap samples of the processes and of the rounds in each, shape (400,
    models).

    Few processes tell little of how much processes differ, so the samples are spread out until
    their percentiles at this confidence are as wide as Student's distribution wants.
    """
    count, rng = len(processes), np.random.default_rng(0)
    by_process = np.array([_resampled_rounds(rounds, statistic, rng) for rounds in processes])
    picks = rng.integers(0, count, (_RESAMPLES, count))
    samples = np.median(by_process[picks, np.arange(_RESAMPLES)[:, None]], axis=1)
    middle = estimate(processes, statistic)
    return middle * (samples / middle) ** _spread(count - 1, confidence) if count > 1 else samples


def _spread(freedom: int, confidence: float) -> float:
    """Student's quantile over the normal one (Cornish and Fisher's series), and Bessel's
    correction."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    series = (
        (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return float((1 + series / z) * ((freedom + 1) / freedom) ** 0.5)


def _resampled_rounds(rounds: Any, statistic: str, rng: Any) -> Any:
    """400 samples of one process, some at a time, to fit a board's memory."""
    at_once = max(1, 1_000_000 // rounds.size)
    sizes = [min(at_once, _RESAMPLES - done) for done in range(0, _RESAMPLES, at_once)]
    return np.concatenate(
        [
            statistic_of(rounds[rng.integers(0, len(rounds), (n, len(rounds)))], statistic, axis=1)
            for n in sizes
        ]
    )


def is_precise(processes: Any, statistic: str, confidence: float, target: float) -> bool:
    """Whether every speedup (of a model alone: its latency) has an interval within ``target`` on
    either side."""
    samples, middle = resampled(processes, statistic, confidence), estimate(processes, statistic)
    ratios, of = (
        (samples[:, :1] / samples[:, 1:], middle[:1] / middle[1:])
        if len(middle) > 1
        else (samples, middle)
    )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(ratios, [tail, 100 - tail], axis=0)
    return bool(np.all((high - low) / 2 <= target * of))


def session(path: str, request: dict[str, Any]) -> Any:
    """A model ready to run.

    Raises:
        Refusal: no such provider here, or not a model that onnxruntime can load.
    """
    provider = PROVIDERS[request["runtime"]]
    if provider not in onnxruntime.get_available_providers():
        raise Refusal(
            f"onnxruntime {onnxruntime.__version__} here has no {provider}: {request['runtime']} "
            f"needs it"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"] or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        made = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # onnxruntime's own errors share no base class
        raise Refusal(f"onnxruntime cannot load it: {_first_line(error)}") from error
    if provider not in made.get_providers():
        raise Refusal(
            f"{provider} did not start here; onnxruntime fell back to {made.get_providers()[0]}"
        )
    return made


def runners(path: str, request: dict[str, Any]) -> list[Any]:
    """Functions that run the model once on random tokens: one for each of the request's lengths, or
    one for a language model in the request's phase."""
    made = session(path, request)
    runs = [generation(made, request)] if request.get("phase") else inferences(made, request)
    try:
        for run in runs:
            run()
    except Exception as error:
        raise Refusal(f"onnxruntime cannot run it: {_first_line(error)}") from error
    return runs


def cache(made: Any, rows: int, length: int) -> dict[str, Any]:
    """What a language model holds of so many random tokens, by name of the input; empty for any
    other model."""
    rng = np.random.default_rng(0)
    items = [item for item in made.get_inputs() if item.name.startswith(_PAST)]
    return {
        item.name: rng.standard_normal((rows, item.shape[1], length, item.shape[3]), np.float32)
        for item in items
    }


def inferences(made: Any, request: dict[str, Any]) -> list[Any]:
    """See ``runners``."""
    names = [item.name for item in made.get_inputs()]
    feeds = []
    for length in request["lengths"]:
        shape = (request["batch_size"], length)
        feed = {name: np.ones(shape, np.int64) for name in names}
        if "token_type_ids" in feed:
            feed["token_type_ids"][:] = 0
        feed["input_ids"] = np.random.default_rng(0).integers(2, 20, shape)
        feeds.append(feed)
    return [partial(made.run, None, feed) for feed in feeds]


def generation(made: Any, request: dict[str, Any]) -> Any:
    """See ``runners``; tokens are chosen greedily, and the cache that comes out goes in again, on a
    GPU by way of this process."""
    rows, phase = request["batch_size"], request["phase"]
    held = request["context_length"] if phase == "decode" else 0
    read = 1 if phase == "decode" else request["prompt_length"]
    more = request["generated_tokens"] - 1 if phase == "end-to-end" else 0
    first = {
        "input_ids": np.random.default_rng(0).integers(2, 20, (rows, read)),
        **cache(made, rows, held),
    }
    mask = np.ones((rows, held + read + more), np.int64)
    past = [item.name.replace("present.", _PAST) for item in made.get_outputs()[1:]]

    def run() -> None:
        logits, *present = made.run(None, {**first, "attention_mask": mask[:, : held + read]})
        for total in range(held + read + 1, held + read + more + 1):
            chosen = {
                "input_ids": logits[:, -1:].argmax(axis=-1),
                "attention_mask": mask[:, :total],
            }
            logits, *present = made.run(None, {**chosen, **dict(zip(past, present))})  # noqa: B905 Python 3.9 has no strict

    return run


def time_models(request: dict[str, Any]) -> dict[str, Any]:
    """Wall and CPU milliseconds per inference, per process of shape (rounds, models), until precise
    enough or as near as processes come to the end of the time; None where a model had been precise
    enough before."""
    asked = zip(request["models"], request["memory"])  # noqa: B905 Python 3.9 has no strict
    memory = [
        _in_child(added_memory, {**request, "models": [model]})["bytes"] if wanted else None
        for model, wanted in asked
    ]
    threads = request["threads"] or usable_cores()
    clock = "cpu" if threads == 1 and request["runtime"] == "onnxruntime-cpu" else "wall"
    precision = [request[key] for key in ("statistic", "confidence", "target_precision")]
    wide = list(range(1, len(request["models"]))) or [0]
    by_process: list[dict[str, Any]] = []
    end = time.perf_counter() + request["seconds"]
    while True:
        began = time.perf_counter()
        by_process.append(_process_of_some(sorted({0, *wide}), request))
        now = time.perf_counter()
        if len(by_process) >= FEWEST_PROCESSES:
            processes = [one[clock] for one in by_process]
            wide = [i for i in wide if not is_precise(paired(processes, i), *precision)]
            if not wide or now + (now - began) / 2 > end:
                break
    joules = np.array([one["energy"] for one in by_process]).T
    known = [of_model[~np.isnan(of_model)] for of_model in joules]
    return {
        "wall_ms": [_with_none(one["wall"]) for one in by_process],
        "cpu_ms": [_with_none(one["cpu"]) for one in by_process],
        "clock": clock,
        "energy_mj": [float(of_model.mean()) if of_model.size else None for of_model in known],
        "memory_bytes": memory,
    }


def _process_of_some(chosen: list[int], request: dict[str, Any]) -> dict[str, Any]:
    """Answer of a process that runs the chosen ones of the request's models, as arrays in which the
    others are NaN."""
    models, seconds = request["models"], request["seconds"]
    own = {
        "models": [models[i] for i in chosen],
        "seconds": seconds * len(chosen) / len(models),
    }
    answered = _in_child(rounds_of_one_process, {**request, **own})
    full = {}
    for name, readings in answered.items():
        full[name] = np.full((*np.shape(readings)[:-1], len(models)), np.nan)
        full[name][..., chosen] = readings
    return full


def _with_none(readings: Any) -> Any:
    """As lists; JSON knows no NaN."""
    return [[None if np.isnan(value) else value for value in row] for row in readings.tolist()]


def rounds_of_one_process(request: dict[str, Any]) -> dict[str, Any]:
    """Wall and CPU milliseconds of each round and model, and mean millijoules by model."""
    models = [runners(model["path"], request) for model in request["models"]]
    texts = request.get("phase") == "end-to-end"
    fewest, warm_up_end = FEWEST_ROUNDS, time.perf_counter() + _LONG_ROUND_S
    for _ in range(_WARM_UP_ROUNDS):
        for runs in models:
            _once(runs)
        if texts or time.perf_counter() > warm_up_end:
            fewest = FEWEST_LONG_ROUNDS
            break
    threads = request["threads"] or usable_cores()
    cpu_clock = time.thread_time_ns if threads == 1 else time.process_time_ns
    displace = displacer() if request.get("regime") == "cold" else None
    rounds: list[list[tuple[float, float, float]]] = []
    end = time.perf_counter() + request["seconds"] / SHARES
    gc.disable()
    while len(rounds) < fewest or time.perf_counter() < end:
        rounds.append([_block(runs, cpu_clock, threads, displace) for runs in models])
    readings = np.array(rounds)
    return {
        "wall": readings[:, :, 0].tolist(),
        "cpu": readings[:, :, 1].tolist(),
        "energy": readings[:, :, 2].mean(axis=0).tolist(),
    }


def _in_child(work: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What the function returns in a forked process, whose sessions get memory of their own.

    Raises:
        Refusal: raised there, or the process died.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _end_with_parent()
        try:
            try:
                reply = work(request)
            except Refusal as refusal:
                reply = {"refused": str(refusal)}
            except MemoryError:
                reply = {"refused": "out of memory"}
            with os.fdopen(writing, "w") as file:
                file.write(json.dumps(reply))
        finally:  # never back into the caller's code
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    status = os.waitpid(child, 0)[1]
    if not text:
        ended = (
            f"signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"code {os.WEXITSTATUS(status)}"
        )
        raise Refusal(f"the process ended with {ended}, as when memory runs out")
    answered: dict[str, Any] = json.loads(text)
    if "refused" in answered:
        raise Refusal(answered["refused"])
    return answered


def _end_with_parent() -> None:
    """A process that is asked no more must not go on and disturb the next."""
    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _block(
    runs: list[Any], cpu_clock: Any, threads: int, displace: Any = None
) -> tuple[float, float, float]:
    """Medians of wall and CPU milliseconds per inference, and mean millijoules (NaN where the
    machine exposes no energy, and of cold runs, among which other work is done).

    Args:
        runs: of one model, an inference each.
        displace: for a cold round, what is called before each run.
    """
    if displace:
        singles = []
        for run in runs:
            displace()
            singles.append(_timed([run], cpu_clock, threads))
        wall, cpu = np.mean(singles, axis=0)
        return float(wall), float(cpu), float("nan")
    end = time.perf_counter() + _WARM_SECONDS
    for run in itertools.cycle(runs):
        run()
        if time.perf_counter() >= end:
            break
    times: list[tuple[float, float]] = []
    before = _microjoules()
    end = time.perf_counter() + _BLOCK_SECONDS
    while not times or time.perf_counter() < end:
        times.append(_timed(runs, cpu_clock, threads))
    used = (_microjoules() - before) / 1e3 / (len(times) * len(runs))
    wall, cpu = np.median(times, axis=0)
    return float(wall), float(cpu), used if used >= 0 else float("nan")


def _timed(runs: list[Any], cpu_clock: Any, threads: int) -> tuple[float, float]:
    """Wall and CPU milliseconds per run."""
    wall_start, cpu_start = time.perf_counter_ns(), cpu_clock()
    _once(runs)
    cpu_end, wall_end = cpu_clock(), time.perf_counter_ns()
    each = len(runs) * 1e6
    return (wall_end - wall_start) / each, (cpu_end - cpu_start) / each / threads


def _once(runs: list[Any]) -> None:
    for run in runs:
        run()


def displacer() -> Any:
    """A function that leaves nothing in the caches but its own memory."""
    largest = max(_cache_bytes(level) for level in (2, 3, 4))
    size = min(max(2 * largest, _LEAST_DISPLACED), _MOST_DISPLACED)
    memory = np.zeros(size // 8)

    def displace() -> None:
        np.add(memory, 1.0, out=memory)

    return displace


def _microjoules() -> float:
    """RAPL's counter of the first package; NaN where it cannot be read."""
    try:
        return float(Path("/sys/class/powercap/intel-rapl:0/energy_uj").read_text())
    except (OSError, ValueError):
        return float("nan")


def added_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Peak resident bytes that loading a model and running it three times add."""
    with contextlib.suppress(OSError, AttributeError):  # huge pages would count as a whole
        ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
    before = _peak_bytes()
    runs = runners(request["models"][0]["path"], request)
    for _ in range(2):
        _once(runs)
    return {"bytes": max(0, _peak_bytes() - before)}


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def log_probabilities(logits: Any, targets: Any) -> Any:
    """Of the targets, in nats, float64 of shape (tokens,).

    Args:
        logits: (tokens, vocabulary), of any runtime.
        targets: (tokens,).
    """
    logprobs = np.empty(len(targets))
    for start in range(0, len(targets), _TOKENS_AT_ONCE):
        here = slice(start, start + _TOKENS_AT_ONCE)
        shifted = logits[here] - logits[here].max(axis=1, keepdims=True)
        chosen = np.take_along_axis(shifted, targets[here, None], axis=1)[:, 0]
        logprobs[here] = chosen - np.log(np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64))
    return logprobs


def negative_log_likelihood(logits: Any, ids: Any, scored: Any) -> Any:
    """Of the scored tokens of each row, in nats, float64 of shape (batch,).

    Args:
        logits: (batch, length, vocabulary).
        ids: (batch, length), the ``input_ids`` that gave the logits.
        scored: (batch,), how many tokens at the end of each row are scored.
    """
    each = zip(logits, ids, scored)  # noqa: B905 Python 3.9 has no strict
    return np.array(
        [-log_probabilities(of[-count - 1 : -1], row[-count:]).sum() for of, row, count in each]
    )


def kept(output: Any, question: Any) -> Any:
    """What a question of ``interfaces.Question`` is answered by: the output, or of scored tokens
    their negative log-likelihood."""
    return (
        negative_log_likelihood(output, question["input_ids"], question["scored"])
        if "scored" in question
        else output
    )


def score(request: dict[str, Any]) -> dict[str, Any]:
    """What is kept of all batches, one below the other, as the bytes of an .npy file in base64."""
    made = session(request["models"][0]["path"], request)
    batches = np.load(request["batches"]["path"])
    outputs = []
    first = made.get_outputs()[0].name
    for index in range(request["count"]):
        question = {
            key.partition(".")[2]: batches[key]
            for key in batches.files
            if key.startswith(f"{index}.")
        }
        past = cache(made, len(question["input_ids"]), 0)
        feed = {
            item.name: question[item.name] for item in made.get_inputs() if item.name not in past
        }
        try:
            output = made.run([first], {**feed, **past})[0]
        except Exception as error:
            raise Refusal(f"onnxruntime cannot run it: {_first_line(error)}") from error
        outputs.append(kept(output, question))
    file = io.BytesIO()
    np.save(file, np.concatenate(outputs))
    return {"npy": base64.b64encode(file.getvalue()).decode()}


def describe() -> dict[str, Any]:
    """The device's fingerprint and state."""
    fields = _cpuinfo()
    present = set(fields.get("flags", fields.get("Features", "")).split())
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory = 0
    name = _read("/proc/device-tree/model").strip("\0 \n")
    smi = _output(
        "nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"
    ).partition(",")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": name or fields.get("model name") or platform.processor() or "unknown",
        "cores": os.cpu_count() or 1,
        "features": [flag for flag in _FEATURES if flag in present],
        "l2_bytes": _cache_bytes(2),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
        or "not exposed",
        "threads_per_core": 2 if _read("/sys/devices/system/cpu/smt/active").strip() == "1" else 1,
        "memory_bytes": memory,
        "gpu": smi[0].strip(),
        "driver": smi[2].strip(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
        "busy_cores": busy_cores(),
    }


def _cache_bytes(level: int) -> int:
    """Size of a core's cache; 0 where the machine does not say."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if _read(str(index / "level")).strip() == str(level):
            size = _read(str(index / "size")).strip()
            return int(size.rstrip("KM") or 0) * {"K": 2**10, "M": 2**20}.get(size[-1:], 1)
    return 0


def usable_cores() -> int:
    """Cores that this process may use: of its affinity, and of what a container grants."""
    with contextlib.suppress(AttributeError):  # no Linux
        allowed = len(os.sched_getaffinity(0))
        granted = [_read("/sys/fs/cgroup/cpu.max").split()]
        old = "/sys/fs/cgroup/cpu/cpu.cfs_"
        granted.append((_read(f"{old}quota_us") + " " + _read(f"{old}period_us")).split())
        for numbers in granted:
            if len(numbers) == 2 and all(number.isdigit() for number in numbers):
                allowed = min(allowed, max(1, int(numbers[0]) // int(numbers[1])))
        return allowed
    return os.cpu_count() or 1


def busy_cores(seconds: float = 0.5) -> float | None:
    """Cores kept busy by other processes just now; None where the machine does not say."""

    def busy() -> float:
        counts = [int(field) for field in _read("/proc/stat").split("\n", 1)[0].split()[1:9]]
        return (sum(counts) - counts[3] - counts[4]) / os.sysconf("SC_CLK_TCK")

    try:
        before, started, own = busy(), time.perf_counter(), time.process_time()
        time.sleep(seconds)
        elapsed = time.perf_counter() - started
        return max(0.0, (busy() - before - (time.process_time() - own)) / elapsed)
    except (IndexError, ValueError, OSError):
        return None


def _cpuinfo() -> dict[str, str]:
    pairs = [line.split(":", 1) for line in _read("/proc/cpuinfo").splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in reversed(pairs)}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _sha256(path: str) -> str:
    """Empty of a file that cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError:
        return ""
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, with its nonce and the hashes of the files that were really read."""
    read = [*request.get("models", ()), *([request["batches"]] if "batches" in request else [])]
    hashes = [_sha256(file["path"]) for file in read]
    try:
        if hashes != [file.get("sha256", own) for file, own in zip(read, hashes)]:  # noqa: B905 Python 3.9 has no strict
            raise Refusal("a file is damaged")
        actions = {"describe": lambda _: describe(), "time": time_models, "score": score}
        reply = actions[request["action"]](request)
    except Refusal as refusal:
        reply = {"refused": str(refusal)}
    except MemoryError:
        reply = {"refused": "out of memory"}
    return {"nonce": request["nonce"], "sha256": hashes, **reply}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(answer(json.loads(sys.stdin.read()))) + "\n")
