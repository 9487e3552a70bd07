"""A technique whose students do what no student should; workers of other processes import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from autocompress.candidate import OneOf, Setting
from autocompress.interfaces import Lesson, Modifier, Technique
from autocompress.plan import Part

DEEDS = ("none", "raise", "nan", "exit", "hang", "memory", "killed-once")


class Poison(Technique):
    """At the first step of a training.

    Args:
        once: a file that tells whether a worker was killed before.
    """

    name = "poison"
    settings = (Setting("poison.deed", OneOf(DEEDS), "none", "what the student does"),)

    def __init__(self, once: Path) -> None:
        self.once = once

    def modifier(self, lesson: Lesson) -> Modifier | None:
        deed = lesson.candidate.text("poison.deed", "none")
        return None if deed == "none" else _Deed(deed, lesson, self.once)


class _Deed(Modifier):
    def __init__(self, deed: str, lesson: Lesson, once: Path) -> None:
        self.deed, self.lesson, self.once = deed, lesson, once

    def before_step(self) -> None:
        match self.deed:
            case "raise":
                raise ValueError("poisoned")
            case "memory":
                raise MemoryError
            case "exit":
                os._exit(7)
            case "hang":
                time.sleep(3600)
            case "killed-once" if not self.once.exists():
                self.once.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def penalty(self) -> Tensor | None:
        logits: Any = next(self.lesson.student.parameters()).sum()
        return logits * float("nan") if self.deed == "nan" else None

    def remove(self) -> Part | None:
        return None
