"""One user of a device at a time: no timing runs while another search trains on the same cores, or
times on the same board."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from autocompress.errors import UserError
from autocompress.files import cache_folder, lock, own_temporary_folder

PATIENCE_S = 10.0
"""Of waiting in silence: longer than a search waits for its own workers."""


@contextmanager
def reserved(location: str = "local", *, alone: bool = True) -> Iterator[None]:
    """Waits until no other autocompress process of this user on this machine holds the device, and
    keeps the others waiting; a long wait for a device alone is logged once, as a warning.

    Args:
        location: as in a hardware profile.
        alone: if not, it is held together with others that hold it so, such as workers of one
            search; whoever wants it alone comes before those that come later.

    Raises:
        UserError: there is no folder of the user's own for the lock.
    """
    what = "this machine" if location == "local" else location
    # homes are shared among machines
    digest = hashlib.sha256(f"{platform.node()} {location}".encode()).hexdigest()[:16]
    with ExitStack() as held:
        gate = held.enter_context(open(_opened(f"{digest}.gate"), "rb"))
        file = held.enter_context(open(_opened(f"{digest}.lock"), "rb"))
        told = threading.Timer(PATIENCE_S, _say, [what])
        told.daemon = True
        if alone:
            told.start()
        try:
            lock(gate)
            lock(file, alone=alone)
        finally:
            told.cancel()
        gate.close()
        yield


def _say(what: str) -> None:
    logging.getLogger(__name__).warning(
        "waiting until another autocompress process is done with %s", what
    )


def _opened(name: str) -> int:
    """Descriptor of a file that is left as it is, and made where there is none; no link."""
    for place in (cache_folder, own_temporary_folder):
        try:
            folder = place()
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            continue
    raise UserError(
        "no lock can be written: set AUTOCOMPRESS_CACHE to a folder of your own that can be written"
    )
