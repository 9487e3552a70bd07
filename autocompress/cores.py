"""One user of a device at a time: no timing runs while another search trains on the same cores, or
times on the same board."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reserved(location: str = "local") -> Iterator[None]:
    """Waits until no other autocompress process of this user holds the device, and keeps the others
    waiting.

    Args:
        location: as in a hardware profile.
    """
    digest = hashlib.sha256(location.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"autocompress-{os.getuid()}-{digest}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
