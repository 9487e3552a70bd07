"""Compressed torch models on an NVIDIA GPU: low precision, CUDA graphs, CUDA events.

A captured graph takes away the cost of launching hundreds of small kernels, which is most of an
eager call at small batch; with ``cuda_graphs = false`` the same profile times plain eager calls.
The baseline runs in the same way in fp32, never in TF32, so a speedup is the model's own.

Run as a program it answers one request in a fresh process, as ``agent.py`` does for onnxruntime.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.artifact import bytes_in_torch, load_model, scheme_of
from autocompress.cores import reserved
from autocompress.errors import AutocompressError, CandidateFailed, DeviceLost, UserError
from autocompress.graphs.decoding import generates
from autocompress.hardware.agent import FEWEST_PROCESSES, SHARES, describe, is_precise, kept
from autocompress.hardware.host import save_batches
from autocompress.hardware.patience import Patience, time_left
from autocompress.hardware.profile import HardwareProfile, precision_of
from autocompress.hardware.timing import grouped, timings
from autocompress.interfaces import Question
from autocompress.scores import Timing

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BLOCK_MS = 5.0
_FEWEST_ROUNDS = 30
"""In each process."""
_PATIENCE = Patience(model_s=120.0, batch_s=10.0)


class TorchCudaDevice:
    """A ``Device``.

    Raises:
        UserError: no CUDA device, or a torch without CUDA.
    """

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
        if not torch.cuda.is_available():
            lacks = (
                "this torch is built without CUDA"
                if torch.version.cuda is None
                else "no CUDA device is visible"
            )
            raise UserError(
                f"hardware profile {profile.name}: torch-cuda needs an NVIDIA GPU, {lacks} (torch "
                f"{torch.__version__})"
            )
        self.profile, self.lengths = profile, tuple(lengths)
        self.fingerprint = describe() | {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
        }

    @property
    def answers_like(self) -> str:
        return f"torch-cuda {' '.join(self.profile.precisions)}"

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        groups = grouped(models, baseline, torch.cuda.get_device_properties(0).total_memory)
        firsts, rests = zip(*(self._timed(baseline, group, final) for group in groups), strict=True)
        return firsts[0], [timing for rest in rests for timing in rest]

    def _timed(
        self, baseline: Path, models: Sequence[Path], final: bool
    ) -> tuple[Timing, list[Timing]]:
        profile = self.profile
        profile.check_not_generating()
        alone = "fp32" if models else precision_of(scheme_of(baseline), profile)
        precisions = [alone, *(precision_of(scheme_of(path), profile) for path in models)]
        folders = [baseline, *models]
        answer = _timed_in_processes(
            {
                "action": "time",
                "models": [str(path) for path in folders],
                "precisions": precisions,
                "lengths": self.lengths,
                "batch_size": profile.batch_size,
                "cuda_graphs": profile.cuda_graphs,
                "statistic": profile.statistic,
                "confidence": profile.confidence,
                "target_precision": profile.target_precision,
                "seconds": (profile.final_seconds if final else profile.trial_seconds)
                * max(1, len(models)),
            }
        )
        first, *rest = [
            replace(timing, weight_bytes=bytes_in_torch(path, timing.precision))
            for path, timing in zip(folders, timings(answer, profile, precisions), strict=True)
        ]
        return first, rest

    def predict(self, model: Path, batches: Sequence[Question]) -> NDArray[np.floating[Any]]:
        with tempfile.TemporaryDirectory() as folder:
            file, target = Path(folder) / "batches.npz", Path(folder) / "outputs.npy"
            save_batches(file, batches)
            request = {
                "action": "score",
                "models": [str(model)],
                "precisions": [precision_of(scheme_of(model), self.profile)],
            }
            _ask(request | {"batches": str(file), "count": len(batches), "target": str(target)})
            outputs: NDArray[np.floating[Any]] = np.load(target)
        return outputs

    def close(self) -> None: ...


def _timed_in_processes(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answers of fresh processes, one after the other, as one: until precise enough or out of
    time, as in ``agent.time_models``."""
    rounds: list[Any] = []
    end = time.perf_counter() + request["seconds"]
    while True:
        answer = _ask({**request, "seconds": request["seconds"] / SHARES})
        rounds += answer["wall_ms"]
        if len(rounds) >= FEWEST_PROCESSES:
            precise = is_precise(
                [np.array(one) for one in rounds],
                request["statistic"],
                request["confidence"],
                request["target_precision"],
            )
            if precise or time.perf_counter() > end:
                return answer | {"wall_ms": rounds, "cpu_ms": rounds}


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "autocompress.hardware.torch_cuda"]
    with reserved() if request["action"] == "time" else nullcontext():
        limit_s = _PATIENCE.limit_s(request)
        try:
            done = subprocess.run(
                command, input=json.dumps(request), capture_output=True, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            silent = f"torch-cuda: no answer within {limit_s:.0f} s"
            if time_left() <= 0:
                raise DeviceLost(f"{silent}, and the time is up") from None
            raise CandidateFailed(silent) from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CandidateFailed(
            f"torch-cuda: the process ended with {done.returncode}: {last}"
        ) from None
    if "refused" in answer:
        raise CandidateFailed(f"torch-cuda: {answer['refused']}")
    return answer


def _inputs(model: torch.nn.Module, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    config: Any = model.config
    shape = (batch_size, length)
    tokens = torch.from_numpy(
        np.random.default_rng(0).integers(2, min(20, config.vocab_size), shape)
    )
    return {
        "input_ids": tokens.cuda(),
        "attention_mask": torch.ones(shape, dtype=torch.int64, device="cuda"),
    }


def _logits(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs).logits
    return logits


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph; warmed up on a stream of its own, as capture demands."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _runner(
    folder: str, precision: str, request: Mapping[str, Any]
) -> tuple[Callable[[], None], int]:
    """A function that runs the model once at each length, and the peak bytes on the device that the
    model added."""
    torch.ones(64, 64, device="cuda") @ torch.ones(
        64, 64, device="cuda"
    )  # cuBLAS's workspace is no model's memory
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = load_model(folder).to(device="cuda", dtype=_DTYPES[precision])
    if generates(model):
        raise CandidateFailed(
            "torch-cuda times no language models yet; onnxruntime-cpu and onnxruntime-cuda do"
        )
    calls: list[Callable[[], object]] = []
    for length in request["lengths"]:
        inputs = _inputs(model, request["batch_size"], length)
        calls.append(partial(_logits, model, inputs))
    for call in calls:
        call()
    if request["cuda_graphs"]:
        calls = [_captured(call) for call in calls]
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before

    def run() -> None:
        for call in calls:
            call()

    return run, peak


def _block(run: Callable[[], None], lengths: int) -> float:
    """Median milliseconds per inference by CUDA events, after as long a time of untimed runs."""
    milliseconds: list[float] = []
    for timed in (False, True):
        total = 0.0
        while total < _BLOCK_MS:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            end.synchronize()
            elapsed = start.elapsed_time(end)
            total += elapsed
            if timed:
                milliseconds.append(elapsed / lengths)
    return float(np.median(milliseconds))


def _time(request: Mapping[str, Any]) -> dict[str, Any]:
    """In this process."""
    pairs = zip(request["models"], request["precisions"], strict=True)
    runs, memory = zip(
        *(_runner(folder, precision, request) for folder, precision in pairs), strict=True
    )
    rounds: list[list[float]] = []
    end = time.perf_counter() + request["seconds"]
    while len(rounds) < _FEWEST_ROUNDS or time.perf_counter() < end:
        rounds.append([_block(run, len(request["lengths"])) for run in runs])
    return {
        "wall_ms": [rounds],
        "cpu_ms": [rounds],
        "clock": "wall",
        "energy_mj": [None] * len(runs),
        "memory_bytes": list(memory),
    }


def _score(request: Mapping[str, Any]) -> dict[str, Any]:
    model = load_model(request["models"][0]).to(
        device="cuda", dtype=_DTYPES[request["precisions"][0]]
    )
    batches = np.load(request["batches"])
    names = {key.partition(".")[2] for key in batches.files}
    outputs = []
    for index in range(request["count"]):
        question = {name: batches[f"{index}.{name}"] for name in names}
        inputs = {
            name: torch.from_numpy(array).cuda()
            for name, array in question.items()
            if name != "scored"
        }
        outputs.append(kept(model(**inputs).logits.float().cpu().numpy(), question))
    np.save(request["target"], np.concatenate(outputs))
    return {}


def _serve() -> None:
    request = json.loads(sys.stdin.read())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode():
            answer = {"time": _time, "score": _score}[request["action"]](request)
    except torch.OutOfMemoryError:
        answer = {"refused": "the device ran out of memory"}
    except AutocompressError as error:
        answer = {"refused": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    _serve()
