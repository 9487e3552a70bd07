"""What several workers gain, and what the search itself costs beside them.

First the demo's encoder is searched twice for so many students, with one worker and with two, each
on one core: a machine of two quiet cores is needed, and some half an hour. Then the same search is
driven with simulated workers, which are as long at work as the real ones were, while the search's
own time counts as it is; nothing is made or scored there.
The last thing printed is one JSON document:

    efficiency_2      students per hour of two workers over twice those of one
    students_per_hour  of one worker, and of two
    idle_share_64     of the time of so many simulated workers, that they had nothing to do
    idle_share_256    likewise
    ask_ms_2000       median time to propose something, from the 2,000th trial on
    durations_s       median time at work on a student, recorded with one worker
    device            what it ran on
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from autocompress import demo
from autocompress.engine import session
from autocompress.engine.proposing import Proposal, Proposer
from autocompress.engine.workshop import Made, Order
from autocompress.hardware.agent import describe
from autocompress.search_space import SearchSpace
from autocompress.searching import search
from tests.conftest import SizeDevice
from tests.pretended import pretended
from tests.searching import CPU

SPACE: dict[str, Any] = {
    "heads": {"keep": {"low": 0.1, "high": 1.0}, "importance": ["magnitude"]},
    "ffn": {"keep": {"low": 0.1, "high": 1.0}, "importance": ["magnitude"]},
    "layers": {"keep": [1.0, 0.84, 0.67, 0.5, 0.34]},
    "recovery": {"steps": [512], "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
}


class Simulated:
    """A ``Backend`` whose time goes on by what the search takes itself, and by its workers'.

    Args:
        durations_s: of which each order takes one, by chance.
    """

    def __init__(self, workers: int, durations_s: Sequence[float]) -> None:
        self.workers, self.durations_s = workers, durations_s
        self.now_s = self.idle_s = 0.0
        self.since = time.monotonic()
        self.free_since_s = [0.0] * workers
        self.open: list[tuple[float, int, Order]] = []
        self.random = random.Random(0)

    @property
    def idle_share(self) -> float:
        return self.idle_s / (self.workers * self.now_s)

    def submit(self, order: Order) -> None:
        self._go_on()
        self.idle_s += self.now_s - self.free_since_s.pop(0)
        done_s = self.now_s + self.random.choice(self.durations_s)
        heapq.heappush(self.open, (done_s, order.number, order))

    def done(self) -> tuple[Order, Made]:
        self._go_on()
        done_s, _, order = heapq.heappop(self.open)
        self.now_s = max(self.now_s, done_s)
        self.free_since_s.append(done_s)
        self.since = time.monotonic()
        return order, Made(sealed=True, steps=1, training_s=1.0, seconds=1.0)

    def close(self) -> None:
        self.open.clear()

    def _go_on(self) -> None:
        now = time.monotonic()
        self.now_s, self.since = self.now_s + now - self.since, now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", type=int, default=12)
    parser.add_argument("--trials", type=int, default=2100, help="of simulated workers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data, _ = demo.data_files(folder / "demo")
        per_hour, durations_s = [], list[float]()
        for workers in (1, 2):
            students, hours, seconds = _searched(folder, data, options.students, workers)
            per_hour.append(students / hours)
            durations_s = durations_s or seconds
        simulated = {n: _simulated(folder, data, options.trials, n, durations_s) for n in (64, 256)}
    answer = {
        "efficiency_2": per_hour[1] / (2 * per_hour[0]),
        "students_per_hour": per_hour,
        "idle_share_64": simulated[64][0],
        "idle_share_256": simulated[256][0],
        "ask_ms_2000": simulated[256][1],
        "durations_s": statistics.median(durations_s),
        "device": describe(),
    }
    print(json.dumps(answer, indent=2))


def _searched(
    folder: Path, data: Path, students: int, workers: int
) -> tuple[int, float, list[float]]:
    """How many were made, in how many hours, and what each took."""
    started, out = time.monotonic(), folder / f"workers-{workers}"
    space = SearchSpace.from_mapping("scaling", SPACE)
    options: dict[str, Any] = {"finetune": True, "trials": students, "backend": "processes"}
    result = search(demo.model_folder(), data, CPU, space, out, workers=workers, **options)
    hours = (time.monotonic() - started - result.trials[0].seconds) / 3600
    seconds = [trial.seconds for trial in result.trials[1:] if trial.asked is None]
    return len(seconds), hours, seconds


def _simulated(
    folder: Path, data: Path, trials: int, workers: int, durations_s: Sequence[float]
) -> tuple[float, float]:
    """The idle share, and milliseconds of an ask from the 2,000th trial on."""
    asks_ms, backend, ask = list[float](), Simulated(workers, durations_s), Proposer.next

    def timed(proposer: Proposer) -> Proposal | None:
        started = time.monotonic()
        proposal = ask(proposer)
        if proposal and proposal.trials[0].number >= min(2000, trials - 100):
            asks_ms.append(1000 * (time.monotonic() - started))
        return proposal

    with (
        pretended(lambda order: Made(sealed=True)),
        patch.object(Proposer, "next", timed),
        patch.object(session, "backend", lambda *_: backend),
    ):
        search(
            demo.model_folder(),
            data,
            CPU,
            SearchSpace.from_mapping("scaling", SPACE),
            folder / f"simulated-{workers}",
            trials=trials,
            finetune=True,
            connect=SizeDevice,
        )
    return backend.idle_share, statistics.median(asks_ms)


if __name__ == "__main__":
    main()
