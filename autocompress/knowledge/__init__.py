"""Criteria for how much heads, FFN neurons and hidden dimensions matter.

A criterion is one file here with a function ``measure``, one name in ``CRITERIA``, one line where a
search wants it (``engine/making.py``) and one row in the conformance test. What matrices feel is in
``sensitivity``.
"""

CRITERIA: tuple[str, ...] = ("fisher", "gradient", "magnitude")
