"""``python -m autocompress``."""

import signal
import sys

from autocompress.cli import main


def run() -> None:
    """The command; asked to terminate, it stops as by Ctrl-C, so that nothing is left on a
    device."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


if __name__ == "__main__":
    run()
