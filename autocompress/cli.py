"""The command line. Verbs that only read a run answer without torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from autocompress import __version__, resources, units
from autocompress.errors import AutocompressError, UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.pareto import Budget, Front, Member, load_front
from autocompress.search_space import SearchSpace

EXIT_UNMET, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done; 1 no model meets the request; 2 the user's mistake; 130 stopped by Ctrl-C.
    """
    from autocompress import console

    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], None] = options.command
        command(options)
    except UserError as error:
        console.fail(str(error))
        return EXIT_MISTAKE
    except AutocompressError as error:
        console.fail(str(error))
        return EXIT_UNMET
    except KeyboardInterrupt as stop:
        console.fail(str(stop) or "stopped")
        return EXIT_STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="autocompress", description="Search for the Pareto-optimal compressed versions of a transformer.")
    parser.add_argument("--version", action="version", version=f"autocompress {__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)

    search = verbs.add_parser("search", help="search, and write a run folder with the front as files")
    search.add_argument(
        "--model", required=True, metavar="DIR_OR_HUB_ID", help="a fine-tuned classifier; with --finetune any encoder"
    )
    search.add_argument("--task", required=True, help="text-classification")
    search.add_argument("--data", required=True, metavar="FILE_OR_HUB_ID", help="csv, tsv, json, jsonl, parquet, or a hub data set")
    for name in ("text", "text-pair", "label"):
        search.add_argument(f"--{name}-column", metavar="C")
    search.add_argument("--validation", metavar="FILE_OR_SPLIT", help="guides the search; cut from the data where not given")
    search.add_argument("--test", metavar="FILE_OR_SPLIT", help="scored once, at the end; cut from the data where not given")
    search.add_argument("--unlabeled", metavar="FILE", help="text for the teacher to label, a line each")
    search.add_argument("--finetune", action="store_true", help="train the model on the data first, then compress it")
    search.add_argument("--hardware", required=True, metavar="PROFILE", help="a shipped profile or a .toml file")
    search.add_argument("--space", required=True, metavar="SPACE", help="a shipped search space or a .toml file")
    _add_latency_limits(search.add_mutually_exclusive_group())
    search.add_argument("--max-drop", type=float, metavar="POINTS", help="lose at most so many points of a hundred")
    search.add_argument("--trials", type=int, metavar="N", help="candidates to try; 50 when there is no time limit either")
    search.add_argument("--time-limit", metavar="10m", help="for everything, verification included")
    search.add_argument("--sampler", default="tpe", help="tpe (default) or random")
    search.add_argument("--seed", type=int, default=0)
    search.add_argument("--out", required=True, type=Path, metavar="RUN")
    search.add_argument("--resume", action="store_true", help="go on with the run in --out")
    search.set_defaults(command=_search)

    demo = verbs.add_parser("demo", help="the search on an embedded real model and real sentences")
    demo.add_argument("--out", type=Path, metavar="RUN", help="default: the next free runs/demo-N; with --resume the last")
    demo.add_argument("--time-limit", default="10m", metavar="10m")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--resume", action="store_true")
    demo.set_defaults(command=_demo)

    front = verbs.add_parser("front", help="print the front of a run")
    front.add_argument("run", type=Path, metavar="RUN")
    front.add_argument("--json", action="store_true")
    front.set_defaults(command=_front)

    pick = verbs.add_parser("pick", help="choose a model of the front by budget")
    pick.add_argument("run", type=Path, metavar="RUN")
    _add_limits(pick.add_mutually_exclusive_group(required=True))
    pick.add_argument("--json", action="store_true")
    pick.set_defaults(command=_pick)

    export = verbs.add_parser("export", help="copy a model of the front to a folder of its own")
    export.add_argument("run", type=Path, metavar="RUN")
    choice = export.add_mutually_exclusive_group(required=True)
    choice.add_argument("--trial", metavar="ID")
    _add_limits(choice)
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    export.set_defaults(command=_export)

    report = verbs.add_parser("report", help="write report.html into a run folder")
    report.add_argument("run", type=Path, metavar="RUN")
    report.set_defaults(command=_report)

    measure = verbs.add_parser("measure", help="latency of an exported folder, a transformers folder or an .onnx file")
    measure.add_argument("model", type=Path, metavar="DIR")
    measure.add_argument("--hardware", required=True, metavar="PROFILE")
    measure.add_argument("--json", action="store_true")
    measure.set_defaults(command=_measure)

    _add_resource(verbs, "profile", "hardware profiles", "hw_profiles", lambda name: asdict(HardwareProfile.load(name)))
    space = _add_resource(verbs, "space", "search spaces", "search_spaces", lambda name: SearchSpace.load(name).as_dict())
    validate = space.add_parser("validate", help="check a search space file")
    validate.add_argument("file")
    validate.set_defaults(command=_validate_space)
    return parser


def _add_latency_limits(group: Any) -> None:
    group.add_argument("--max-latency", metavar="3ms")
    group.add_argument("--min-speedup", metavar="2x", help="against the fp32 model in the same runtime")


def _add_limits(group: Any) -> None:
    _add_latency_limits(group)
    group.add_argument("--min-quality", type=float, metavar="0.86")
    group.add_argument("--max-drop", type=float, metavar="1.0", help="points of a hundred against the baseline")


def _add_resource(verbs: Any, verb: str, what: str, kind: resources.Kind, load: Callable[[str], dict[str, Any]]) -> Any:
    commands = verbs.add_parser(verb, help=f"the {what}").add_subparsers(metavar="COMMAND", required=True)

    def show_all(options: argparse.Namespace) -> None:
        for name in resources.names(kind):
            _print(f"{name:24} {resources.read_toml(resources.locate(kind, name))['description']}")

    commands.add_parser("list", help="names and descriptions").set_defaults(command=show_all)
    show = commands.add_parser("show", help="all of one, as JSON")
    show.add_argument("name", metavar="NAME_OR_FILE")
    show.set_defaults(command=lambda options: _print(json.dumps(load(options.name), indent=2)))
    return commands


def _limits(options: argparse.Namespace) -> dict[str, float | None]:
    return {
        "max_latency_ms": None if options.max_latency is None else units.latency_ms(options.max_latency, "--max-latency"),
        "min_speedup": None if options.min_speedup is None else units.speedup(options.min_speedup, "--min-speedup"),
        "max_drop": options.max_drop,
        "min_quality": getattr(options, "min_quality", None),
    }


def _search(options: argparse.Namespace) -> None:
    budget, hardware, space = Budget(**_limits(options)), HardwareProfile.load(options.hardware), SearchSpace.load(options.space)
    from autocompress.request import Request
    from autocompress.tasks.data import Columns

    _run(
        Request(
            options.model,
            options.task,
            options.data,
            hardware,
            space,
            options.out,
            Columns(options.text_column, options.text_pair_column, options.label_column),
            options.validation,
            options.test,
            options.unlabeled,
            options.finetune,
            budget,
            options.trials,
            _time_limit(options),
            options.sampler,
            options.seed,
            options.resume,
        )
    )


def _demo(options: argparse.Namespace) -> None:
    time_limit = _time_limit(options)
    runs = [Path(f"runs/demo-{n}") for n in range(1, 10_000)]
    free = next(i for i, path in enumerate(runs) if not path.exists())
    out = options.out or runs[max(0, free - 1) if options.resume else free]
    from autocompress import demo
    from autocompress.request import Request
    from autocompress.teacher import cache_folder

    data, unlabeled = demo.data_files(cache_folder() / "demo")
    run = _run(
        Request(
            str(demo.model_folder()),
            "text-classification",
            str(data),
            HardwareProfile.load("cpu-1-thread"),
            SearchSpace.load("demo"),
            out,
            unlabeled=str(unlabeled),
            finetune=True,
            time_limit_s=time_limit,
            seed=options.seed,
            resume=options.resume,
        )
    )
    _choose_and_copy(run, out)


def _choose_and_copy(front: Front, run: Path) -> None:
    """The demo's last act: pick the most accurate model that is at least 4 times faster, and export it."""
    from autocompress import console

    try:
        member = front.pick(min_speedup=4)
    except AutocompressError as error:
        console.out.print(f"\nautocompress pick {run} --min-speedup 4x\n  {error}")
        return
    console.out.print(f"\nautocompress pick {run} --min-speedup 4x\n  {console.member_line(member, front.metric)}")
    target = run / "exported"
    _copy(front, run, member, target)
    console.out.print(f"autocompress export {run} --trial {member.id} --out {target}\n  wrote {target}")


def _time_limit(options: argparse.Namespace) -> float | None:
    return None if options.time_limit is None else units.duration_s(options.time_limit, "--time-limit")


def _run(request: Any) -> Front:
    from autocompress import console
    from autocompress.engine import search_for

    try:
        with console.Progressing(request.time_limit_s) as listener:
            result = search_for(request, listener)
    except KeyboardInterrupt:
        if not (request.out / "run.json").is_file():
            raise
        raise KeyboardInterrupt("stopped; what was tried is kept, and the same command with --resume goes on") from None
    console.out.print(console.front_table(result.front))
    console.out.print(f"report: {result.run / 'report.html'}")
    console.out.print(f"choose: autocompress pick {result.run} --min-speedup 4x")
    return result.front


def _front(options: argparse.Namespace) -> None:
    from autocompress import console

    front = load_front(options.run)
    if options.json:
        _print(json.dumps(front.as_dict(), indent=2))
    else:
        console.out.print(console.front_table(front))


def _chosen(options: argparse.Namespace) -> tuple[Front, Member]:
    front = load_front(options.run)
    if getattr(options, "trial", None) is not None:
        return front, front.member(options.trial)
    return front, front.pick(**_limits(options))


def _pick(options: argparse.Namespace) -> None:
    from autocompress import console

    front, member = _chosen(options)
    if options.json:
        _print(json.dumps(asdict(member), indent=2))
    else:
        console.out.print(console.member_line(member, front.metric))
        console.out.print(f"export: autocompress export {options.run} --trial {member.id} --out my-model")


def _export(options: argparse.Namespace) -> None:
    front, member = _chosen(options)
    if options.out.exists():
        raise UserError(f"--out {options.out} exists already; give a new folder")
    _copy(front, options.run, member, options.out)
    from autocompress import console

    console.out.print(f"{console.member_line(member, front.metric)}\nwrote {options.out}")


def _copy(front: Front, run: Path, member: Member, target: Path) -> None:
    import shutil

    from autocompress.files import folder_aside

    source = run / member.path
    if not (source / "model.onnx").is_file():
        raise UserError(f"{run} no longer holds the files of {member.id} ({source})")
    try:
        with folder_aside(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {target} cannot be written: {error.strerror}") from error


def _report(options: argparse.Namespace) -> None:
    from autocompress.report import write_report

    _print(str(write_report(options.run)))


def _measure(options: argparse.Namespace) -> None:
    from autocompress.measure import measure_latency

    profile = HardwareProfile.load(options.hardware)
    latency = measure_latency(options.model, profile)
    if options.json:
        _print(json.dumps({"model": str(options.model), "hardware": profile.as_dict(), "latency_ms": asdict(latency)}, indent=2))
    else:
        low, high = latency.ci95
        _print(
            f"{options.model} on {profile.name}: {latency.median:.3g} ms median (95 % {low:.3g} to {high:.3g}), "
            f"p90 {latency.p90:.3g} ms, {latency.n} runs, {latency.basis}"
        )


def _validate_space(options: argparse.Namespace) -> None:
    name = (
        options.file
        if options.file.endswith(".toml") or options.file in resources.names("search_spaces")
        else f"{options.file}.toml"
    )
    space = SearchSpace.load(name)
    _print(f"{space.name}: valid, {len(space.parameters)} settings, {len(space.corners)} corners")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
