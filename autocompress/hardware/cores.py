"""One user of the cores at a time: a search's timings on this machine never run while another search recovers a candidate."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reserved() -> Iterator[None]:
    """Waits until no other autocompress process of this user holds this, and keeps the others waiting."""
    path = Path(tempfile.gettempdir()) / f"autocompress-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
