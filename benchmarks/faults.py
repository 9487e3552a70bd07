"""Kills of a search at random moments, and mistaken requests and damaged files, all from
``tests/faults.py``.

Each kill takes some seconds. The last thing printed is one JSON document:

    kills           processes killed while they searched; each was gone on with
    lost            trials that had come to an end before a kill and were gone after it
    changed         trials and fronts that came out otherwise than without a kill
    orphans         processes that went on after the one that began them was killed
    litter_bytes    in files that a search without a kill does not leave
    cases           mistaken requests and damaged files
    tracebacks      of the cases, how many ended in one
    unclear         of the others, how many were not one line that names the mistake, had another
                    exit code than they should, or left something behind
    named           the cases counted in tracebacks and unclear
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from autocompress import demo
from autocompress.searching import search
from tests.conftest import SizeDevice, read_reviews, write_reviews, write_tiny_model
from tests.faults import CASES, WITHOUT_GPU, Attended, Ground, answer, killed
from tests.searching import CPU


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["AUTOCOMPRESS_CACHE"] = str(folder / "cache")
        labelled, _ = demo.data_files(folder / "demo")
        data = write_reviews(read_reviews(labelled), folder / "reviews.csv")
        model, run = write_tiny_model(folder / "tiny", data), folder / "run"
        search(model, data, CPU, "quantization-only", run, connect=SizeDevice)
        tracebacks, unclear = _cases(Ground(model, data, run), folder / "cases")
        (folder / "kills").mkdir()
        toll = killed(options.kills, model, data, folder / "kills", Attended, options.seed)
    cases = {"tracebacks": len(tracebacks), "unclear": len(unclear), "named": tracebacks + unclear}
    print(json.dumps({**asdict(toll), "cases": len(CASES), **cases}, indent=2))


def _cases(ground: Ground, folder: Path) -> tuple[list[str], list[str]]:
    """The names of those that end in a traceback, and of the others that are not answered
    clearly."""
    tracebacks, unclear = [], []
    for number, (name, case) in enumerate(CASES.items()):
        if name in WITHOUT_GPU and torch.cuda.is_available():
            continue
        own = folder / str(number)
        own.mkdir(parents=True)
        given = answer(case, ground, own)
        if given.code is None:
            tracebacks.append(name)
        elif not given.is_clear(case):
            unclear.append(name)
    return tracebacks, unclear


if __name__ == "__main__":
    main()
