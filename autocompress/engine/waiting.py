"""A device that goes away is waited for; then the search stops, and can go on later."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import DeviceLost
from autocompress.hardware.patience import time_left
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Device, Question
from autocompress.scores import Timing

WAIT_S = 600.0
"""That a lost device is waited for."""
PAUSE_S = 15.0
"""Between two tries."""
_Answer = TypeVar("_Answer")


class WaitedFor:
    """A ``Device``, asked again while it is away.

    Args:
        stage: hears how long it has been waited for, of how many seconds.
    """

    def __init__(self, device: Device, stage: Callable[[str, int, int], None]) -> None:
        self.device, self.stage = device, stage

    @property
    def profile(self) -> HardwareProfile:
        return self.device.profile

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return self.device.fingerprint

    @property
    def lengths(self) -> Sequence[int]:
        return self.device.lengths

    @property
    def answers_like(self) -> str:
        return self.device.answers_like

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        return self._answer(lambda: self.device.time(baseline, models, final=final))

    def predict(self, model: Path, batches: Sequence[Question]) -> NDArray[np.floating[Any]]:
        return self._answer(lambda: self.device.predict(model, batches))

    def close(self) -> None:
        self.device.close()

    def _answer(self, ask: Callable[[], _Answer]) -> _Answer:
        try:
            return ask()
        except DeviceLost as lost:
            return self._answer_after(lost, ask)

    def _answer_after(self, lost: DeviceLost, ask: Callable[[], _Answer]) -> _Answer:
        """Raises:
        DeviceLost: it did not come back in time.
        """
        name, started = self.profile.name, time.monotonic()
        while (waited := time.monotonic() - started) < WAIT_S and time_left() > PAUSE_S:
            self.stage(f"waiting for {name}: {lost}", int(waited), int(WAIT_S))
            time.sleep(PAUSE_S)
            with suppress(DeviceLost):
                answer = ask()
                self.stage(f"{name} is back", 0, 0)
                return answer
        raise DeviceLost(
            f"{name}: {lost}; what was tried is kept, and the same command with --resume goes on"
        ) from lost
