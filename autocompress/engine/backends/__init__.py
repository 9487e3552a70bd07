"""Backends: who makes the students that a search asks for. A backend is one file here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from autocompress.engine.making import Maker
    from autocompress.engine.request import Request
    from autocompress.engine.workshop import Made, Order
    from autocompress.interfaces import Task

BACKENDS = ("serial", "processes", "ray")


class Backend(Protocol):
    """Makes students, as many at a time as it has workers."""

    @property
    def workers(self) -> int: ...

    def submit(self, order: Order) -> None:
        """Have it made; no more orders are open at a time than there are workers."""
        ...

    def done(self) -> tuple[Order, Made]:
        """The next one that is done, waited for; some must be open.

        Raises:
            OSError: the disk is full, or cannot be written.
            UserError: there is nobody to make it.
        """
        ...

    def close(self) -> None:
        """What is open is dropped, and nothing goes on."""
        ...


def backend(request: Request, maker: Maker, task: Task) -> Backend:
    """The one that a search asks for; raises as its class.

    Args:
        maker: of the search itself.
    """
    import torch

    from autocompress.engine.backends.on_ray import OnRay
    from autocompress.engine.backends.processes import Processes
    from autocompress.engine.backends.serial import Serial
    from autocompress.engine.materials import Materials
    from autocompress.engine.workshop import Workshop

    workers, scratch = request.workers, maker.folder.absolute().parent / "scratch"
    if request.backend == "ray":
        materials = Materials.of(request, maker)
        address, gpus = request.ray_address, request.gpus_per_worker
        return OnRay(workers, materials, scratch, address, gpus)
    if request.backend == "processes" or workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        return Processes(workers, Materials.of(request, maker, threads), scratch)
    return Serial(Workshop(maker, task))
