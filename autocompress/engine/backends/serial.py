"""One student after the other, in the process of the search."""

from __future__ import annotations

from autocompress.engine.workshop import Made, Order, Workshop


class Serial:
    """A ``Backend`` of the search itself."""

    workers = 1

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self._open: list[Order] = []

    def submit(self, order: Order) -> None:
        self._open.append(order)

    def done(self) -> tuple[Order, Made]:
        order = self._open.pop(0)
        return order, self.workshop.make(order)

    def close(self) -> None:
        self._open.clear()
