"""Samplers: what proposes the next candidate. A sampler is one file here, one line in ``SAMPLERS``
and one row in the conformance test; the algorithms of one library share a file."""

SAMPLERS: tuple[str, ...] = ("tpe", "nsga2", "random")
"""All are algorithms of Optuna."""
