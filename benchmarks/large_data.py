"""A search on data of real size: the 25,000 reviews of IMDB, cut at 256 tokens.

The demo's encoder is fine-tuned on some of the training reviews once, in a process of its own
(a quarter of an hour), and kept; then it is compressed for --minutes (20 by default). The last
thing printed is one JSON document:

    scored_artifacts            models that were made, timed and scored, the uncut one apart
    seconds_before_first_trial  from the start of the search until a first candidate is trained
    share_of_time_training      of the search's seconds, those in which candidates were trained
    peak_memory_gb              most that the searching process had in memory
    disk_gb                     most that the run folder had on disk, looked at every second
    speedup_within              points lost on the test split at most -> largest speedup against the
                                fp32 teacher in ONNX Runtime; null when no model loses so little
    teacher_test_accuracy, members, seconds, minutes, seed
    device                      what it ran on
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from autocompress import demo
from autocompress.console import front_text, out
from autocompress.files import cache_folder, folder_aside
from autocompress.hardware.agent import describe
from autocompress.interfaces import TaskInputs
from autocompress.pareto import METRICS, Front
from autocompress.progress import Progressing
from autocompress.searching import search
from autocompress.tasks import text_classification
from autocompress.training.recovery import Recovery
from autocompress.training.teacher import finetuned, load_config, load_teacher, load_tokenizer

LONGEST = 256
"""Tokens of a review that are read."""
HELD_OUT = 1500
"""Reviews for validation, and as many for the test."""
TEACHING = 4000
"""Training reviews that the teacher is fine-tuned on."""
DROPS = (0.5, 1.0, 2.0)


def splits(folder: Path) -> dict[str, Path]:
    """The reviews as csv files, written once: ``train``, ``validation``, ``test``, and
    ``teaching``, which is part of train."""
    files = {name: folder / f"{name}.csv" for name in ("train", "validation", "test", "teaching")}
    if folder.is_dir():
        return files
    with demo.reviews_file().open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "imdb"]
    unique = list({row["text"]: row["label"] for row in rows}.items())
    shuffled = [unique[i] for i in np.random.default_rng(0).permutation(len(unique))]
    train = shuffled[2 * HELD_OUT :]
    parts = {
        "test": shuffled[:HELD_OUT],
        "validation": shuffled[HELD_OUT : 2 * HELD_OUT],
        "train": train,
        "teaching": train[:TEACHING],
    }
    with folder_aside(folder) as aside:
        for name, part in parts.items():
            with (aside / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                writer.writerows(part)
    return files


def teach(files: dict[str, Path], folder: Path) -> None:
    """Fine-tune the demo's encoder and keep it, with a tokenizer that cuts what is too long."""
    source = str(demo.model_folder())
    config = load_config(source)
    tokenizer = load_tokenizer(source, config.vocab_size)
    tokenizer.model_max_length = LONGEST
    task = text_classification.KIND.load(
        TaskInputs(
            source,
            config,
            tokenizer,
            LONGEST,
            causal=False,
            data=str(files["teaching"]),
            validation=str(files["validation"]),
            test=str(files["test"]),
            fresh=True,
        )
    )

    def told(done: int, of: int) -> None:
        if done % 50 == 0 or done == of:
            print(f"fine-tuning the teacher: {done} of {of} steps", flush=True)

    model = finetuned(load_teacher(source, task, fresh=True), task, 0, told)
    with folder_aside(folder) as aside:
        model.save_pretrained(aside)  # type: ignore[operator]
        tokenizer.save_pretrained(aside)


class Watch:
    """What a search takes.

    Args:
        folder: of its run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = time.monotonic()
        self.first_training_s: float | None = None
        self.training_s = 0.0
        self.most_bytes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Recovery is timed, and the run folder weighed every second."""
        own, over = Recovery.advance, threading.Event()

        def timed(recovery: Recovery, *given: Any, **named: Any) -> Any:
            begun = time.monotonic()
            if self.first_training_s is None:
                self.first_training_s = begun - self.started
            try:
                return own(recovery, *given, **named)
            finally:
                self.training_s += time.monotonic() - begun

        def weigh() -> None:
            while not over.wait(1):
                self.most_bytes = max(self.most_bytes, _on_disk(self.folder))

        weighing = threading.Thread(target=weigh)
        weighing.start()
        Recovery.advance = timed  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            Recovery.advance = own  # type: ignore[method-assign]
            over.set()
            weighing.join()


def _on_disk(folder: Path) -> int:
    """Bytes; files that go away meanwhile count nothing, one with two names counts once."""
    blocks = {}
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        blocks[status.st_ino] = status.st_blocks
    return 512 * sum(blocks.values())


def speedup_within(front: Front, drop: float) -> float | None:
    """The largest speedup among the models that lose at most so many points on the test split."""
    return max((m.speedup for m in front.members if m.quality.drop_reported <= drop), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--space", default="encoder")
    parser.add_argument("--hardware", default="cpu-1-thread-task")
    parser.add_argument("--teacher", type=Path, help="a folder, in place of the one that is kept")
    parser.add_argument("--keep", type=Path, help="the run folder; by default it is deleted")
    options = parser.parse_args()
    kept = cache_folder() / "large-data"
    files, teacher = splits(kept / "reviews"), options.teacher or kept / "teacher"
    if not teacher.is_dir():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            apart.submit(teach, files, teacher).result()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "run"
        watch = Watch(folder)
        with watch.watching(), Progressing(options.minutes * 60, METRICS["accuracy"]) as listener:
            outcome = search(
                teacher,
                files["train"],
                options.hardware,
                options.space,
                folder,
                validation=str(files["validation"]),
                test=str(files["test"]),
                time_limit_s=options.minutes * 60,
                seed=options.seed,
                listener=listener,
            )
        seconds = time.monotonic() - watch.started
    out.print(front_text(outcome.front))
    peak_memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = watch.first_training_s
    result = {
        "scored_artifacts": sum(trial.state == "complete" for trial in outcome.trials[1:]),
        "seconds_before_first_trial": None if first is None else round(first),
        "share_of_time_training": round(watch.training_s / seconds, 3),
        "peak_memory_gb": round(peak_memory / 1e9, 2),
        "disk_gb": round(watch.most_bytes / 1e9, 2),
        "speedup_within": {f"{drop:g}": speedup_within(outcome.front, drop) for drop in DROPS},
        "teacher_test_accuracy": outcome.front.baseline.quality.test,
        "members": len(outcome.front.members),
        "seconds": round(seconds),
        "minutes": options.minutes,
        "seed": options.seed,
        "device": describe(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
