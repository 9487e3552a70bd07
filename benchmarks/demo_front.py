"""The demo's search at several seeds: how fast a model is had for how many points of accuracy, on
the test split.

Takes --minutes per seed (10 by default, three seeds: half an hour). The last thing printed is one
JSON document:

    space           search space
    minutes         time limit of each search, fine-tuning the teacher and verification included
    runs            per seed: seed, trials, members, seconds, teacher_test_accuracy, hypervolume (on
    the validation split),
                    hypervolume_test, and speedup_within: points lost on the test split at most ->
                    largest speedup against the fp32 teacher in ONNX Runtime (batch 1, 32 tokens,
                    one thread); null when no model loses so little; speedup_within_cold: the same
                    of single inferences after the caches were displaced
    median          speedup_within, speedup_within_cold and hypervolume_test, medians over the seeds
    device          what it ran on
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from autocompress import demo
from autocompress.console import front_text, out
from autocompress.files import cache_folder
from autocompress.hardware.agent import describe
from autocompress.pareto import METRICS, Front, Member, hypervolume
from autocompress.progress import Progressing
from autocompress.searching import search

DROPS = (0.5, 1.0, 1.5, 2.0, 3.0)


def speedups_within(front: Front, *, cold: bool = False) -> dict[str, float | None]:
    """The largest speedup among the models that lose at most so many points on the test split."""

    def speedup(member: Member) -> float:
        beside = member.timing.beside
        return beside.speedup if cold and beside else member.speedup

    return {
        str(drop): max(
            (speedup(m) for m in front.members if m.quality.drop_reported <= drop), default=None
        )
        for drop in DROPS
    }


def run(seed: int, minutes: float, space: str, folder: Path) -> dict[str, Any]:
    """One search."""
    started = time.monotonic()
    data, unlabeled = demo.data_files(cache_folder() / "demo")
    with Progressing(minutes * 60, METRICS["accuracy"]) as listener:
        outcome = search(
            demo.model_folder(),
            data,
            "cpu-1-thread",
            space,
            folder / f"seed-{seed}",
            unlabeled=str(unlabeled),
            finetune=True,
            time_limit_s=minutes * 60,
            seed=seed,
            listener=listener,
        )
    out.print(front_text(outcome.front))
    members = outcome.front.members
    return {
        "seed": seed,
        "trials": len(outcome.trials) - 1,
        "members": len(members),
        "seconds": round(time.monotonic() - started),
        "teacher_test_accuracy": outcome.front.baseline.quality.test,
        "hypervolume": outcome.front.hypervolume,
        "hypervolume_test": hypervolume(
            [(1 / m.speedup, m.quality.drop_reported) for m in members],
            outcome.front.scale.worst_drop,
        ),
        "speedup_within": speedups_within(outcome.front),
        "speedup_within_cold": speedups_within(outcome.front, cold=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--space", default="demo")
    parser.add_argument(
        "--keep", type=Path, help="folder for the run folders; by default they are deleted"
    )
    options = parser.parse_args()
    print(f"searching {options.space} for {options.minutes:g} minutes at seeds {options.seeds}")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AUTOCOMPRESS_CACHE"] = scratch  # so that every search pays for its own teacher
        runs = [
            run(seed, options.minutes, options.space, options.keep or Path(scratch))
            for seed in options.seeds
        ]
    medians = {
        regime: {
            str(drop): statistics.median(r[regime][str(drop)] or 0.0 for r in runs)
            for drop in DROPS
        }
        for regime in ("speedup_within", "speedup_within_cold")
    }
    result = {
        "minutes": options.minutes,
        "space": options.space,
        "runs": runs,
        "median": {
            **medians,
            "hypervolume_test": statistics.median(r["hypervolume_test"] for r in runs),
        },
        "device": describe(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
