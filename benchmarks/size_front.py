"""The demo's model in few bytes: how small a file is had for how many points of accuracy, on the
test split, and how fast it is.

Takes --minutes (20 by default), fine-tuning the teacher included. The last thing printed is one
JSON document:

    space           search space
    minutes         time limit of the search
    trials, members, seconds, teacher_test_accuracy
    ratio_within    points lost on the test split at most -> bytes of the fp32 file over those of
                    the smallest such file; null where no model loses so little
    speedup         of these files, against the fp32 teacher in ONNX Runtime (batch 1, 32 tokens,
                    one thread)
    load_ms         CPU time to load them, and the fp32 file
    int8_ratio      bytes of the fp32 file over those of the uncut model in int8
    size_hypervolume
    device          what it ran on
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from autocompress import SearchResult, demo, search
from autocompress.console import front_text, out
from autocompress.files import cache_folder
from autocompress.hardware.agent import describe
from autocompress.pareto import METRICS, OBJECTIVES, Front, Member
from autocompress.progress import Progressing

DROPS = (0.5, 1.0, 2.0)


def smallest_within(front: Front) -> dict[str, Member | None]:
    """The smallest model that loses at most so many points on the test split."""
    return {
        f"{drop:g}": min(
            (m for m in front.members if m.quality.drop_reported <= drop),
            key=lambda m: m.weight_bytes,
            default=None,
        )
        for drop in DROPS
    }


def told(found: SearchResult, seconds: float) -> dict[str, Any]:
    front, within = found.front, smallest_within(found.front)
    [int8] = [
        trial.weight_bytes
        for trial in found.trials
        if trial.candidate == {"quantization.scheme": "int8-dynamic"}
    ] or [None]
    return {
        "trials": len(found.trials) - 1,
        "members": len(front.members),
        "seconds": round(seconds),
        "teacher_test_accuracy": front.baseline.quality.test,
        "ratio_within": {k: m and round(front.compression(m), 2) for k, m in within.items()},
        "speedup": {k: m and round(m.speedup, 2) for k, m in within.items()},
        "load_ms": {k: m and m.load_ms for k, m in within.items()}
        | {"fp32": front.baseline.load_ms},
        "int8_ratio": int8 and round(front.baseline.weight_bytes / int8, 2),
        "size_hypervolume": front.size_hypervolume,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--space", default="encoder-small")
    parser.add_argument("--keep", type=Path, help="run folder; by default it is deleted")
    options = parser.parse_args()
    started = time.monotonic()
    data, unlabeled = demo.data_files(cache_folder() / "demo")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AUTOCOMPRESS_CACHE"] = scratch  # so that the search pays for its own teacher
        with Progressing(options.minutes * 60, METRICS["accuracy"]) as listener:
            found = search(
                demo.model_folder(),
                data,
                "cpu-1-thread",
                options.space,
                options.keep or Path(scratch) / "run",
                unlabeled=str(unlabeled),
                finetune=True,
                time_limit_s=options.minutes * 60,
                objectives=OBJECTIVES,
                seed=options.seed,
                listener=listener,
            )
    out.print(front_text(found.front))
    result = {"space": options.space, "minutes": options.minutes}
    result |= told(found, time.monotonic() - started) | {"device": describe()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
