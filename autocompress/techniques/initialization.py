"""What the weights of the kept layers begin as; the families do it as they cut
(``families.starts``).

Li et al. 2021, released code: students of GPT-2 as copies of its layers, with averaged units, or
with its embeddings only.
"""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.candidate import Flag, OneOf, Setting, Value

STARTS: tuple[str, ...] = ("copied", "pooled", "embeddings")


def _is_cut(settings: Mapping[str, Value]) -> bool:
    shares = ("layers.keep", "width.latency", "heads.keep", "ffn.keep")
    return any(settings[name] != 1 for name in shares)


INITIALIZATION_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "weights.start",
        OneOf(STARTS),
        "copied",
        "copies of the kept units, averages of neighbours (pooled), or new layers on the "
        "embeddings",
        when=_is_cut,
    ),
    Setting(
        "weights.repair",
        Flag(),
        False,
        "output projections fitted to what the teacher's layers give, before any training",
        when=_is_cut,
    ),
)
