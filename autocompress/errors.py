"""The errors that autocompress raises on purpose.

    AutocompressError
    ├── UserError           the request is wrong: one clear line, exit code 2
    ├── RequestUnmet        no model of the front meets the request: exit code 1
    ├── SearchFailed        every trial failed: exit code 1
    ├── DeviceLost          a device went away and did not come back: nothing is recorded, the
    │                       search stops and can be resumed: exit code 1
    └── CandidateFailed     one candidate cannot be built or scored: the trial is recorded as
    failed, the search goes on

Anything else that escapes is a bug.
"""

from __future__ import annotations


class AutocompressError(Exception):
    """Base of all errors raised on purpose."""


class UserError(AutocompressError):
    """A mistake in what the user gave: names the file, the key, what was found and what is
    allowed."""


class RequestUnmet(AutocompressError):
    """No model meets the request; the message names the nearest one and what limits it."""


class SearchFailed(AutocompressError):
    """Every trial of a search failed; the message gives the reasons."""


class DeviceLost(AutocompressError):
    """A device that does not answer, whatever it is asked; no fault of any candidate."""


class CandidateFailed(AutocompressError):
    """A candidate that cannot be built, trained, exported or scored."""


NOT_FINITE = "its answers are not finite"
"""Why a candidate fails whose arithmetic overflows, as that of fp16 may."""
