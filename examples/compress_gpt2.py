"""Compress a GPT-2 (or Llama) in Python, and choose by the latency of a token.

python examples/compress_gpt2.py MODEL DATA RUN [SPACE [TRIALS]]

MODEL is a folder, a hub id such as gpt2, or a .gguf file; DATA holds texts. Goes on where RUN was
stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autocompress import RequestUnmet, search


def main(model: str, data: str, run: str, space: str = "decoder-depth", trials: str = "12") -> None:
    result = search(
        model,
        data,
        task="language-modeling",
        # latency is of decoding one token; a profile's `phase` names another
        hardware="cpu-1-thread",
        space=space,
        out=run,
        trials=int(trials),
        resume=Path(run).exists(),
    )
    baseline = result.front.baseline
    for member in result.front.members:
        print(
            f"{member.id}: {member.latency_ms.value:.2f} ms a token, {member.speedup:.2f}x, "
            f"perplexity {member.quality.reported:.2f} ({member.quality.drop_reported:+.2f} "
            f"percent)"
        )
    try:
        best = result.front.pick(max_latency_ms=baseline.latency_ms.value / 2)
    except RequestUnmet as reason:
        print(reason)
        return
    print(
        f"twice as fast: python examples/generate.py {Path(run) / best.path} 'Once upon a time' 40"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
