"""A search of a decoder's compressed versions against DistilGPT2's recipe, and the study of Li et
al. 2021, on one language model.

    python benchmarks/decoder_front.py MODEL DATA --minutes 20 --steps 400 [--space decoder-depth]
    python benchmarks/decoder_front.py MODEL DATA --study --steps 400

The recipe (pseudo-uniform half of the layers, soft labels, labels, cosine of the last hidden
states) is made as published, in fp32, and in int8 besides; it gets as many recovery steps, of 1,024
tokens each, as any candidate of the search may have. Latency is of decoding one token; all figures
are of the test split and of latencies measured in turn with the uncut model. The last thing printed
is one JSON document:

    perplexity_ratio_at_latency     least perplexity of the front among models no slower than the
    recipe's, over its own latency_ratio_at_perplexity     latency of the recipe's model over that
    of the fastest one of the front that is no worse decode_speedup_within_3_percent largest speedup
    over fp32 among models whose perplexity is at most 3 percent more recipes
    of both: speedup, perplexity, increase in percent, the two ratios; the ones above are fp32's
    baseline_perplexity, hypervolume, trials, seconds front                           speedup and
    increase in percent of each model study                           with --study, instead: layers,
    teacher, cleaned, perplexity and its increase on validation device                          what
    it ran on

Ratios that no model of the front gives are null.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress import resources
from autocompress.console import front_text, out
from autocompress.engine.loop import SearchResult
from autocompress.hardware.agent import describe
from autocompress.pareto import METRICS, Front, Member
from autocompress.progress import Progressing
from autocompress.recipes import Recipe
from autocompress.search_space import SearchSpace
from autocompress.searching import search

HARDWARE = "cpu-1-thread"
RECIPES = {"fp32": (), "int8-weights": ("quantization.block_size=128",)}


def space_with(name: str, steps: int) -> SearchSpace:
    """A shipped space in which recovery takes so many steps, or none where it may take none."""
    values = resources.read_toml(resources.locate("search_spaces", name))
    for part in (values, *values.get("corners", ())):
        chosen = part.get("recovery", {}).get("steps")
        if isinstance(chosen, list):
            part["recovery"]["steps"] = [0, steps] if 0 in chosen else steps
        elif chosen:
            part["recovery"]["steps"] = steps
    return SearchSpace.from_mapping(name, values)


def searched(
    options: argparse.Namespace, space: SearchSpace, folder: Path, **more: Any
) -> SearchResult:
    with Progressing(more.get("time_limit_s"), METRICS["perplexity"]) as listener:
        outcome = search(
            options.model,
            options.data,
            HARDWARE,
            space,
            folder,
            task="language-modeling",
            listener=listener,
            **more,
        )
    out.print(front_text(outcome.front))
    return outcome


def against(recipe: Member, front: Front) -> dict[str, float | None]:
    """The two ratios; by speedups, which were measured in turn with the same uncut model."""
    assert recipe.quality.test is not None
    no_slower = [m.quality.reported for m in front.members if m.speedup >= recipe.speedup]
    no_worse = [m.speedup for m in front.members if m.quality.reported <= recipe.quality.test]
    return {
        "perplexity_ratio_at_latency": min(no_slower) / recipe.quality.test if no_slower else None,
        "latency_ratio_at_perplexity": max(no_worse) / recipe.speedup if no_worse else None,
    }


def compared(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The search and both recipes."""
    recipes: dict[str, Member] = {}
    for scheme, more in RECIPES.items():
        recipe = Recipe.load(
            "distilgpt2",
            [f"recovery.steps={options.steps}", f"quantization.scheme={scheme}", *more],
        )
        outcome = searched(options, recipe.space, folder / f"distilgpt2-{scheme}", trials=1)
        recipes[scheme] = outcome.front.member("t001")
    started = time.monotonic()
    outcome = searched(
        options,
        space_with(options.space, options.steps),
        folder / "search",
        time_limit_s=60 * options.minutes,
    )
    front = outcome.front
    within = [m.speedup for m in front.members if m.quality.drop_reported <= 3]
    shown = {
        scheme: {
            "speedup": member.speedup,
            "perplexity": member.quality.test,
            "increase_percent": member.quality.drop_test,
            **against(member, front),
        }
        for scheme, member in recipes.items()
    }
    return {
        **against(recipes["fp32"], front),
        "decode_speedup_within_3_percent": max(within, default=None),
        "recipes": shown,
        "baseline_perplexity": front.baseline.quality.test,
        "front": [
            {"speedup": m.speedup, "increase_percent": m.quality.drop_reported}
            for m in front.members
        ],
        "hypervolume": front.hypervolume,
        "trials": len(outcome.trials) - 1,
        "seconds": round(time.monotonic() - started),
    }


def study(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every corner of the study's space, each in a search of its own, so that none is stopped
    because another is better."""
    space = space_with("decoder-truncation", options.steps)
    rows: list[Mapping[str, Any]] = []
    for number, corner in enumerate(space.corners, 1):
        settings = dict(space.candidate(corner).settings)
        point = Recipe(space.name, space.description, "", "", settings).space
        _, trial = searched(options, point, folder / f"study-{number}", trials=1).trials
        quality = trial.scores[HARDWARE].quality
        assert quality is not None
        rows.append(
            {
                "layers": (trial.sizes or {})["layers"],
                "rule": settings["layers.rule"],
                "start": settings["weights.start"],
                "teacher": corner["recovery.hard_label_weight"] != 1,
                "cleaned": settings["recovery.cleaned"],
                "perplexity": quality.validation,
                "increase_percent": trial.rungs[-1][1],
            }
        )
    return {"study": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--space", default="decoder")
    parser.add_argument("--minutes", type=float, default=20, help="of the search")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--study", action="store_true")
    parser.add_argument(
        "--keep", type=Path, help="folder for the run folders; by default they are deleted"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = (study if options.study else compared)(options, options.keep or Path(scratch))
    print(
        json.dumps(
            {"model": options.model, "steps": options.steps, **figures, "device": describe()},
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
