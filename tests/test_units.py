from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from autocompress import units
from autocompress.errors import UserError


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.latency_ms, "3ms", 3.0),
        (units.latency_ms, "900us", 0.9),
        (units.latency_ms, "0.2s", 200.0),
        (units.latency_ms, "1e3us", 1.0),
        (units.latency_ms, " .5 MS ", 0.5),
        (units.speedup, "2x", 2.0),
        (units.speedup, "1.5X", 1.5),
        (units.size_bytes, "10MB", 10e6),
        (units.size_bytes, "1.5 GB", 1.5e9),
        (units.size_bytes, "500kB", 500e3),
        (units.size_bytes, "2048B", 2048.0),
        (units.size_bytes, "10mb", 10e6),
        (units.compression, "8x", 8.0),
        (units.duration_s, "90s", 90.0),
        (units.duration_s, "10m", 600.0),
        (units.duration_s, "1.5h", 5400.0),
    ],
)
def test_quantities(read: Callable[[str], float], text: str, value: float) -> None:
    assert read(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *(
            (units.latency_ms, text)
            for text in ("", "3", "ms", "3m", "3 x", "3,5ms", "3ms 4ms", "٣ms", "nanms", "infms")
        ),
        *((units.latency_ms, text) for text in ("-3ms", "0ms", "0.0s", "1e-999ms", "1e999ms")),
        *((units.speedup, text) for text in ("2", "x", "2ms", "0x", "-2x", "50%")),
        *((units.size_bytes, t) for t in ("10", "MB", "10M", "10MiB", "0MB", "-1MB", "1TB")),
        *((units.compression, text) for text in ("8", "0x", "8MB")),
        *((units.duration_s, text) for text in ("10", "10ms", "10min", "0h", "1h30m")),
    ],
)
def test_what_is_no_quantity_is_refused_by_name(
    read: Callable[[str, str], float], text: str
) -> None:
    with pytest.raises(UserError, match=re.escape(f"--limit is {text!r}: ")):
        read(text, "--limit")


def test_the_message_names_the_units_allowed() -> None:
    with pytest.raises(
        UserError, match=re.escape("give a number with its unit (s, m, h), such as 10m")
    ):
        units.duration_s("20")
    with pytest.raises(UserError, match=re.escape("its unit (B, kB, MB, GB), such as 10MB")):
        units.size_bytes("20")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0:00"),
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3599.7, "1:00:00"),
        (3661, "1:01:01"),
        (36000, "10:00:00"),
    ],
)
def test_clock(seconds: float, shown: str) -> None:
    assert units.clock(seconds) == shown
