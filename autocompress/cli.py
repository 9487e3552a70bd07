"""The command line. Verbs that only read a run answer without torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from autocompress.arguments import parser
from autocompress.errors import AutocompressError, UserError
from autocompress.files import refused_by_the_disk

EXIT_UNMET, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done; 1 no model meets the request, or a device was lost; 2 the user's mistake; 130
        stopped by Ctrl-C.
    """
    try:
        options = parser().parse_args(words)
        from autocompress import verbs

        command: Callable[[argparse.Namespace], None] = getattr(verbs, options.command)
        command(options)
    except UserError as error:
        _fail(str(error))
        return EXIT_MISTAKE
    except AutocompressError as error:
        _fail(str(error))
        return EXIT_UNMET
    except KeyboardInterrupt as stop:
        _fail(str(stop) or "stopped")
        return EXIT_STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not refused_by_the_disk(error):
            raise
        _fail(f"{error.filename or 'a file'} cannot be used: {error.strerror}")
        return EXIT_MISTAKE
    return 0


def _fail(message: str) -> None:
    from autocompress import console

    console.fail(message)
