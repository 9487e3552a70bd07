"""Several processes on this machine, each with cores of its own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from autocompress.engine.backends.crew import Crew, WorkerLost
from autocompress.engine.materials import Materials
from autocompress.engine.workshop import Made, Order
from autocompress.errors import UserError
from autocompress.hardware.agent import usable_cores


@dataclass(eq=False)
class _Hand:
    place: int
    process: BaseProcess
    line: Connection


class Processes(Crew[_Hand]):
    """A ``Backend`` of processes that divide the cores among themselves; they end when the search
    does, or when its process is killed.

    Args:
        scratch: each process gets a folder of its own in it.

    Raises:
        UserError: there are fewer cores than workers.
    """

    def __init__(self, workers: int, materials: Materials, scratch: Path) -> None:
        if workers > usable_cores():
            raise UserError(
                f"--workers is {workers}: this machine has {usable_cores()} cores, and each worker "
                f"takes one at least"
            )
        super().__init__(workers)
        self.materials, self.scratch = materials, scratch
        self._places = list(range(workers))

    def hired(self) -> _Hand:
        context, place = multiprocessing.get_context("spawn"), self._places.pop()
        line, other = context.Pipe()
        told = self.materials, self.scratch / f"worker-{place}", _share(place, self.workers), other
        process = context.Process(target=_work, args=told, daemon=True)
        try:
            process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"--workers: what is searched cannot be sent to another process: {error}"
            ) from error
        other.close()
        return _Hand(place, process, line)

    def give(self, worker: _Hand, order: Order) -> None:
        with suppress(OSError):  # it is lost, which will be heard
            worker.line.send(order)

    def heard_of(self, workers: Sequence[_Hand], timeout_s: float) -> Sequence[_Hand]:
        lines = wait([worker.line for worker in workers], timeout_s)
        return [worker for worker in workers if worker.line in lines]

    def result(self, worker: _Hand) -> Made:
        try:
            told: Made | Exception = worker.line.recv()
        except (EOFError, OSError):
            worker.process.join()
            raise WorkerLost(_how_ended(worker.process.exitcode or 0)) from None
        if isinstance(told, Exception):
            raise told
        return told

    def dismiss(self, worker: _Hand) -> None:
        worker.process.kill()
        worker.process.join()
        worker.line.close()
        self._places.append(worker.place)


def _share(place: int, workers: int) -> Collection[int]:
    """The cores of one worker; none where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    cores = sorted(os.sched_getaffinity(0))
    return cores[place * len(cores) // workers : (place + 1) * len(cores) // workers]


def _how_ended(code: int) -> str:
    if code >= 0:
        return f"the last one with exit code {code}"
    name = signal.Signals(-code).name
    return f"the last one by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _work(materials: Materials, scratch: Path, cores: Collection[int], line: Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the search hears it, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        workshop = materials.workshop(scratch)
    except (UserError, OSError) as error:
        line.send(error)
        return
    while True:
        try:
            order: Order = line.recv()
        except EOFError:
            return
        try:
            line.send(workshop.make(order))
        except OSError as error:
            line.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
