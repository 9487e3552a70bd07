"""What the weights of the kept layers begin as; the families do it as they cut
(``families.starts``).

Li et al. 2021, released code: students of GPT-2 as copies of its layers, with averaged units, or
with its embeddings only.
"""

from __future__ import annotations

from autocompress.candidate import OneOf, Setting

STARTS: tuple[str, ...] = ("copied", "pooled", "embeddings")

INITIALIZATION_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "weights.start",
        OneOf(STARTS),
        "copied",
        "copies of the kept units, averages of neighbours (pooled), or new layers on the "
        "embeddings",
        when=lambda s: any(
            s[name] != 1 for name in ("layers.keep", "width.latency", "heads.keep", "ffn.keep")
        ),
    ),
)
