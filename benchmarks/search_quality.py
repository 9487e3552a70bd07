"""How good a front a search has after how long, against what people would use instead.

The ladder with each sampler; Optuna's TPE, NSGA-II and random search with every candidate trained
in full; and the usual sequence: prune, then distil, then quantize, over a grid of depths and
widths, every one in full. All begin with the corners of the space, but for the sequence. The
hypervolume is of the test split, of the members that the validation split chose.

--replay searches the learning curves that ``record_curves.py`` recorded, in simulated time, at 30
seeds, each with the examples dealt anew to the two splits; what is simpler than in a search stands
in ``replay.py``. --live runs whole searches of the embedded default at the same time limit.
The last thing printed is one JSON document:

    replay
        students, seeds, minutes    what was replayed
        hypervolume                 per policy and minutes: median, quartiles, seeds, and artifacts,
                                    the median of those scored
        time_ratio_to_tpe           the time that the ladder (tpe) took to the median hypervolume
                                    that TPE in full had in the end, over TPE's: median over seeds;
                                    null where half of the seeds did not reach it
        limit_ratio_to_tpe          the least time limit with which the ladder's median is no less
                                    than that, over the longest; null where none is enough
        hypervolume_ratio_to_sequential     of the ladder's median to the sequence's, per minutes
        calibration                 of the ladder's fronts at the longest limit, points: optimism,
                                    the drop on test less that on validation, mean over members and
                                    seeds, and its standard error; error, the root of the mean
                                    square, over seeds, of what the estimate of the members' mean
                                    drop is off by on test: as_is; halves, where what repeated
                                    halves of the validation split show is added; half_of_halves,
                                    where that is taken over the root of 2, as it would be for all
                                    examples
        own_s                       seconds that the replay itself took
    live
        minutes                     time limit of each, all included
        runs                        policy, seed, hypervolume_test, members, artifacts, seconds
    device                          what it ran on
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from learning_curves import Curves
from replay import Outcome, dealt, replayed, without_ladder

from autocompress import demo
from autocompress.candidate import Value
from autocompress.engine.samplers import sampler
from autocompress.files import cache_folder
from autocompress.hardware.agent import describe
from autocompress.interfaces import Sampler
from autocompress.pareto import METRICS
from autocompress.progress import Progressing
from autocompress.search_space import Choices, Parameter, SearchSpace
from autocompress.searching import search

CURVES = Path(__file__).parent / "curves" / "demo.jsonl.xz"
WIDTHS = (1.0, 0.75, 0.5, 0.25)
"""Of the sequence's grid: the share of heads and of FFN neurons."""
GRID = "grid"


@dataclass(frozen=True)
class Policy:
    """A way to search.

    Args:
        sampler: by name, or ``GRID``.
    """

    sampler: str
    on_ladder: bool = True

    def of(self, space: SearchSpace, seed: int) -> Sampler:
        """Its sampler, for latency and quality."""
        if self.sampler == GRID:
            return Grid(space, seed)
        return sampler(self.sampler, space, seed, 2)


POLICIES = {
    "ladder": Policy("tpe"),
    "ladder, gp": Policy("gp"),
    "ladder, local": Policy("local"),
    "ladder, nsga2": Policy("nsga2"),
    "ladder, random": Policy("random"),
    "tpe in full": Policy("tpe", on_ladder=False),
    "nsga2 in full": Policy("nsga2", on_ladder=False),
    "random in full": Policy("random", on_ladder=False),
    "sequence": Policy(GRID, on_ladder=False),
}
LADDER, TPE, SEQUENCE = "ladder", "tpe in full", "sequence"


class Grid:
    """A ``Sampler`` of every depth of the space with every width, the same in all layers, in an
    order drawn by the seed; it learns nothing, and begins again at the end. All other settings
    stand at the middle of what the space has."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        depths = next(p.values for p in space.parameters if p.name == "layers.keep")
        assert isinstance(depths, Choices)
        cuts = list(itertools.product(depths.values, WIDTHS))
        random.Random(seed).shuffle(cuts)
        self.points = [self._point(space, depth, width) for depth, width in cuts]
        self.asked = 0

    @staticmethod
    def _point(space: SearchSpace, depth: Value, width: float) -> dict[str, Value]:
        given = {"layers.keep": depth, "heads.keep": width, "ffn.keep": width}
        given |= {"heads.allocation": "uniform", "ffn.allocation": "uniform"}
        return space.assembled(lambda p: given[p.name] if p.name in given else _middle(p))

    def ask(self) -> tuple[int, dict[str, Value]]:
        self.asked += 1
        return self.asked, self.points[(self.asked - 1) % len(self.points)]

    def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
        pass

    def learn(
        self, chosen: Mapping[str, Value], losses: Sequence[float], violation: float = 0.0
    ) -> None:
        pass


def _middle(parameter: Parameter) -> Value:
    values = parameter.values
    if isinstance(values, Choices):
        return values.values[len(values.values) // 2]
    mean = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
    return round(mean) if values.integer else mean


def one_replay(curves: Curves, job: tuple[str, float, int]) -> Outcome:
    """A policy at so many minutes and a seed."""
    name, minutes, seed = job
    policy = POLICIES[name]
    making = partial(policy.of, seed=seed)
    return replayed(dealt(curves, seed), making, 60 * minutes, on_ladder=policy.on_ladder)


def quartiles(values: Sequence[float]) -> dict[str, Any]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": middle, "quartiles": [low, high], "seeds": [round(v, 4) for v in values]}


def calibration(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """See above; of seeds whose front has a member beside the uncut model."""
    some = [outcome for outcome in outcomes if outcome.members]
    lost = np.array([np.mean(outcome.members, axis=0)[1:] for outcome in some])
    optimism, halves = lost[:, 1] - lost[:, 0], np.array([outcome.halved for outcome in some])

    def error(added: Any) -> float:
        return float(np.sqrt(np.mean((optimism - added) ** 2)))

    return {
        "optimism": float(optimism.mean()),
        "stderr": float(optimism.std(ddof=1) / math.sqrt(len(some))) if some[1:] else None,
        "foretold_by_halves": float(halves.mean()),
        "error": {
            "as_is": error(0.0),
            "halves": error(halves),
            "half_of_halves": error(halves / math.sqrt(2)),
        },
    }


def replay(file: Path, seeds: int, minutes: Sequence[float], jobs: int) -> dict[str, Any]:
    """All policies."""
    curves, started = Curves.load(file), time.monotonic()
    keys = list(itertools.product(POLICIES, minutes, range(seeds)))
    with ProcessPoolExecutor(jobs) as pool:
        outcomes = dict(zip(keys, pool.map(partial(one_replay, curves), keys), strict=True))

    def of(name: str, limit: float) -> list[Outcome]:
        return [outcomes[name, limit, seed] for seed in range(seeds)]

    areas = {
        name: {
            f"{limit:g}": {
                **quartiles([one.at(60 * limit) for one in of(name, limit)]),
                "artifacts": statistics.median(one.artifacts for one in of(name, limit)),
            }
            for limit in minutes
        }
        for name in POLICIES
    }
    longest = max(minutes)
    wanted = areas[TPE][f"{longest:g}"]["median"]
    taken = statistics.median(one.reached(wanted) for one in of(LADDER, longest))
    return {
        "students": len(curves.students),
        "seeds": seeds,
        "minutes": list(minutes),
        "hypervolume": areas,
        "time_ratio_to_tpe": taken / (60 * longest) if taken < math.inf else None,
        "limit_ratio_to_tpe": min(
            (x / longest for x in minutes if areas[LADDER][f"{x:g}"]["median"] >= wanted),
            default=None,
        ),
        "hypervolume_ratio_to_sequential": {
            limit: area["median"] / max(areas[SEQUENCE][limit]["median"], 1e-9)
            for limit, area in areas[LADDER].items()
        },
        "calibration": calibration(of(LADDER, longest)),
        "own_s": round(time.monotonic() - started),
    }


def live(
    names: Sequence[str], seeds: Sequence[int], minutes: float, space: str
) -> list[dict[str, Any]]:
    """Whole searches, one after the other; each pays for its own teacher."""
    data, unlabeled = demo.data_files(cache_folder() / "demo")
    runs = []
    for seed, name in itertools.product(seeds, names):
        policy, loaded, started = POLICIES[name], SearchSpace.load(space), time.monotonic()
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(_cache_in(scratch))
            if not policy.on_ladder:
                stack.enter_context(without_ladder())
            outcome = search(
                demo.model_folder(),
                data,
                "cpu-1-thread",
                loaded,
                Path(scratch) / "run",
                unlabeled=str(unlabeled),
                finetune=True,
                time_limit_s=60 * minutes,
                seed=seed,
                sampler=Grid(loaded, seed) if policy.sampler == GRID else policy.sampler,
                listener=stack.enter_context(Progressing(60 * minutes, METRICS["accuracy"])),
            )
        run = {
            "policy": name,
            "seed": seed,
            "hypervolume_test": outcome.front.hypervolume_test,
            "members": len(outcome.front.members),
            "artifacts": sum(trial.state == "complete" for trial in outcome.trials[1:]),
            "seconds": round(time.monotonic() - started),
        }
        print(json.dumps(run), flush=True)
        runs.append(run)
    return runs


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """All that is kept between searches, the teacher with it, stands there."""
    before = os.environ.get("AUTOCOMPRESS_CACHE")
    os.environ["AUTOCOMPRESS_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["AUTOCOMPRESS_CACHE"]
        else:
            os.environ["AUTOCOMPRESS_CACHE"] = before


def table(areas: Mapping[str, Mapping[str, Any]]) -> str:
    """Medians, and quartiles beside them."""
    limits = list(next(iter(areas.values())))
    lines = [f"| hypervolume (test) | {' | '.join(f'{limit} min' for limit in limits)} |"]
    lines.append("|---" * (1 + len(limits)) + "|")
    for name, by_limit in areas.items():
        cells = [
            "{:.3f} ({:.3f} to {:.3f})".format(
                by_limit[limit]["median"], *by_limit[limit]["quartiles"]
            )
            for limit in limits
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(areas: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Medians over minutes, with bars from quartile to quartile."""
    figure = go.Figure(layout={"template": "plotly_white"})
    for name, by_limit in areas.items():
        medians = [one["median"] for one in by_limit.values()]
        low, high = zip(*(one["quartiles"] for one in by_limit.values()), strict=True)
        figure.add_scatter(
            x=[float(limit) for limit in by_limit],
            y=medians,
            name=name,
            error_y={
                "array": [h - m for h, m in zip(high, medians, strict=True)],
                "arrayminus": [m - l for m, l in zip(medians, low, strict=True)],
            },
        )
    figure.update_xaxes(type="log", title="minutes")
    figure.update_yaxes(title="hypervolume (test)")
    figure.write_html(file, include_plotlyjs="cdn")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--replays", type=int, default=30, help="seeds of --replay")
    parser.add_argument(
        "--at", type=float, nargs="+", default=[5, 10, 20, 40], help="minutes of --replay"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--plot", type=Path, default=Path("search-quality.html"))
    parser.add_argument("--minutes", type=float, default=10, help="of --live")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --live")
    parser.add_argument(
        "--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="of --live"
    )
    parser.add_argument("--space", default="demo", help="of --live")
    options = parser.parse_args()
    if not options.replay and not options.live:
        parser.error("give --replay, --live, or both")
    result: dict[str, Any] = {}
    if options.replay:
        result["replay"] = replay(options.curves, options.replays, options.at, options.jobs)
        areas = result["replay"]["hypervolume"]
        print(table(areas))
        plot(areas, options.plot)
    if options.live:
        runs = live(options.policies, options.seeds, options.minutes, options.space)
        result["live"] = {"minutes": options.minutes, "runs": runs}
    print(json.dumps({**result, "device": describe()}, indent=2))


if __name__ == "__main__":
    main()
