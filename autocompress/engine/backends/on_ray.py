"""Actors of Ray, on the machines of its cluster, which all see the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.engine.backends.crew import Crew, WorkerLost
from autocompress.engine.materials import Materials
from autocompress.engine.workshop import Made, Order, Workshop
from autocompress.errors import UserError


@dataclass(eq=False)
class _Hand:
    actor: Any
    future: Any = None


class OnRay(Crew[_Hand]):
    """A ``Backend`` of Ray's actors. What goes to them and back are orders and what came of them:
    students stay in their folders.

    Args:
        address: of a cluster; without one, the one that ``RAY_ADDRESS`` names, or one that is begun
            on this machine.
        gpus: of each worker, also a part of one.
        scratch: each worker gets a folder of its own in it.

    Raises:
        UserError: there is no Ray, no such cluster, or not so many cores or GPUs in it.
    """

    def __init__(
        self, workers: int, materials: Materials, scratch: Path, address: str | None, gpus: float
    ) -> None:
        super().__init__(workers)
        self.ray, self.materials, self.scratch = _ray(), materials, scratch
        self.gpus, self._hired = gpus, 0
        self._began = not self.ray.is_initialized()
        if self._began:
            try:
                self.ray.init(address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = address or "this machine"
                raise UserError(f"--ray-address: no cluster of Ray at {where}: {error}") from error
        there = self.ray.cluster_resources()
        for kind, needed in (("CPU", workers), ("GPU", workers * gpus)):
            if needed > there.get(kind, 0):
                self.close()
                raise UserError(
                    f"--workers is {workers}: they take {needed:g} {kind}s, the cluster of Ray has "
                    f"{there.get(kind, 0):g}"
                )

    def hired(self) -> _Hand:
        self._hired += 1
        kind = self.ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0)(_Actor)
        return _Hand(kind.remote(self.materials, self.scratch / f"worker-{self._hired}"))

    def give(self, worker: _Hand, order: Order) -> None:
        worker.future = worker.actor.make.remote(order)

    def heard_of(self, workers: Sequence[_Hand], timeout_s: float) -> Sequence[_Hand]:
        done, _ = self.ray.wait([worker.future for worker in workers], timeout=timeout_s)
        return [worker for worker in workers if worker.future in done]

    def result(self, worker: _Hand) -> Made:
        try:
            told: Made | Exception = self.ray.get(worker.future)
        except self.ray.exceptions.RayActorError as error:
            raise WorkerLost(f"the last one: {error}".splitlines()[0]) from None
        if isinstance(told, Exception):
            raise told
        return told

    def dismiss(self, worker: _Hand) -> None:
        self.ray.kill(worker.actor)

    def close(self) -> None:
        super().close()
        if self._began:
            self.ray.shutdown()


class _Actor:
    """The life of a worker."""

    def __init__(self, materials: Materials, scratch: Path) -> None:
        self.materials, self.scratch = materials, scratch
        self.workshop: Workshop | None = None

    def make(self, order: Order) -> Made | Exception:
        try:
            workshop = self.workshop or self.materials.workshop(self.scratch)
            self.workshop = workshop
            return workshop.make(order)
        except (UserError, OSError) as error:
            return error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--backend ray needs the package ray: pip install 'autocompress[ray]'"
        ) from error
    return ray
