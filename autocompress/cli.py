"""The command line. Verbs that only read a run answer without torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autocompress import __version__, resources, verbs
from autocompress.engine.backends import BACKENDS
from autocompress.errors import AutocompressError, UserError
from autocompress.files import refused_by_the_disk
from autocompress.hardware.profile import PHASES, RUNTIMES, HardwareProfile
from autocompress.limits import CONFIDENCE
from autocompress.pareto import LATENCY_AND_QUALITY, OBJECTIVES
from autocompress.recipes import Recipe
from autocompress.search_space import SearchSpace
from autocompress.tasks import OPTIONS, TASKS

EXIT_UNMET, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 130
_MAX_DROP = "lose at most so many points, or increase the perplexity by at most so many percent"
_MAX_SIZE, _MIN_COMPRESSION = "of the model's file", "bytes of the fp32 model over the model's"


class _Once(argparse._StoreAction):
    """An option whose first value is not silently replaced by a second one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", set())
        if option_string is not None and self.dest in given:
            parser.error(f"{option_string} is given twice")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", None, _Once)

    def _get_values(self, action: argparse.Action, texts: list[str]) -> Any:
        if "" in texts and action.nargs != argparse.PARSER:
            raise argparse.ArgumentError(action, "it is empty")
        return super()._get_values(action, texts)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done; 1 no model meets the request, or a device was lost; 2 the user's mistake; 130
        stopped by Ctrl-C.
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
    except OSError as error:
        if not refused_by_the_disk(error):
            raise
        console.fail(f"{error.filename or 'a file'} cannot be used: {error.strerror}")
        return EXIT_MISTAKE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="autocompress",
        description="Search for the Pareto-optimal compressed versions of a transformer.",
    )
    parser.add_argument("--version", action="version", version=f"autocompress {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    search = commands.add_parser(
        "search", help="search, and write a run folder with the front as files"
    )
    _add_inputs(search)
    search.add_argument(
        "--space", required=True, metavar="SPACE", help="a shipped search space or a .toml file"
    )
    for option, example, phase in (
        ("--max-latency", "3ms", f"; of a language model [{'|'.join(PHASES)}=]"),
        ("--min-speedup", "2x", ""),
    ):
        search.add_argument(
            option,
            action="append",
            default=[],
            metavar=f"[PROFILE=]{example}",
            help=f"on one device, or without its name on each{phase}",
        )
    search.add_argument("--max-size", metavar="10MB", help=_MAX_SIZE)
    search.add_argument("--min-compression", metavar="8x", help=_MIN_COMPRESSION)
    search.add_argument("--max-drop", type=float, metavar="N", help=_MAX_DROP)
    _add_confidence(search)
    search.add_argument(
        "--objectives",
        metavar="A,B",
        help=(
            f"what is minimised: quality, and latency or size or both ({','.join(OBJECTIVES)}); "
            f"default: what the space says, else {','.join(LATENCY_AND_QUALITY)}"
        ),
    )
    search.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="candidates to try; 50 when there is no time limit either",
    )
    search.add_argument("--time-limit", metavar="10m", help="for everything, verification included")
    search.add_argument(
        "--sampler", default="tpe", help="tpe (default), gp, nsga2, random or local"
    )
    search.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="students that are made at the same time, each by a process with cores of its own",
    )
    search.add_argument(
        "--backend",
        metavar="|".join(BACKENDS),
        help="where students are made; default: serial for one worker, processes for several",
    )
    search.add_argument(
        "--ray-address", metavar="A", help="of a cluster of Ray; default: one on this machine"
    )
    search.add_argument(
        "--gpus-per-worker", type=float, default=0.0, metavar="X", help="that Ray gives each one"
    )
    search.set_defaults(command=verbs.search)

    evaluate = commands.add_parser(
        "evaluate", help="make one named method's model, and print its scores"
    )
    evaluate.add_argument(
        "--recipe", required=True, metavar="RECIPE", help="a shipped recipe or a .toml file"
    )
    evaluate.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="a setting in place of the recipe's",
    )
    _add_inputs(evaluate)
    evaluate.set_defaults(command=verbs.evaluate)

    demo = commands.add_parser(
        "demo", help="the search on an embedded real model and real sentences"
    )
    demo.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="default: the next free runs/demo-N; with --resume the last",
    )
    demo.add_argument("--time-limit", default="10m", metavar="10m")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--resume", action="store_true")
    demo.set_defaults(command=verbs.demo)

    front = commands.add_parser("front", help="print the front of a run")
    front.add_argument("run", type=Path, metavar="RUN")
    _add_device(front)
    front.add_argument("--json", action="store_true")
    front.set_defaults(command=verbs.front)

    pick = commands.add_parser("pick", help="choose a model of the front by budget")
    pick.add_argument("run", type=Path, metavar="RUN")
    _add_limits(pick)
    _add_device(pick)
    _add_tie(pick)
    pick.add_argument("--json", action="store_true")
    pick.set_defaults(command=verbs.pick)

    export = commands.add_parser("export", help="copy a model of the front to a folder of its own")
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("--trial", metavar="ID", help="in place of limits")
    _add_limits(export)
    _add_device(export)
    _add_tie(export)
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    export.set_defaults(command=verbs.export)

    report = commands.add_parser("report", help="write report.html into a run folder")
    report.add_argument("run", type=Path, metavar="RUN")
    report.set_defaults(command=verbs.report)

    measure = commands.add_parser(
        "measure", help="latency of an exported folder, a transformers folder or an .onnx file"
    )
    measure.add_argument("model", type=Path, metavar="DIR")
    measure.add_argument("--hardware", required=True, metavar="PROFILE")
    measure.add_argument("--json", action="store_true")
    measure.set_defaults(command=verbs.measure)

    profile = _add_resource(
        commands,
        "profile",
        "hardware profiles",
        "hw_profiles",
        lambda name: HardwareProfile.load(name).as_dict(),
    )
    new = profile.add_parser(
        "new", help="write NAME.toml for a device, with its fingerprint and what it speeds up"
    )
    new.add_argument("name", metavar="NAME")
    new.add_argument(
        "--device",
        default="local",
        metavar="LOCATION",
        help="ssh://[user@]host[:port], or cmd:COMMAND; default: this machine",
    )
    new.add_argument("--runtime", default="onnxruntime-cpu", help=", ".join(RUNTIMES))
    new.add_argument("--python", default="python3", help="on a device that is not this machine")
    new.add_argument("--ssh-config", default="", metavar="FILE")
    new.add_argument("--threads", type=int, default=1, metavar="N")
    new.add_argument("--batch-size", type=int, default=1, metavar="N")
    new.add_argument(
        "--sequence-length",
        default="task",
        metavar="N",
        help="tokens; default: the lengths of the task's own texts",
    )
    new.set_defaults(command=verbs.new_profile)
    keys = profile.add_parser(
        "settings", help="what a profile may hold: each key, what is allowed, its default"
    )
    keys.set_defaults(command=verbs.list_profile_keys)

    doctor = commands.add_parser(
        "doctor", help="whether a device can be timed well, and what int8 gains there"
    )
    doctor.add_argument("--device", default="local", metavar="LOCATION")
    doctor.add_argument("--python", default="python3")
    doctor.add_argument("--ssh-config", default="", metavar="FILE")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(command=verbs.doctor)

    space = _add_resource(
        commands,
        "space",
        "search spaces",
        "search_spaces",
        lambda name: SearchSpace.load(name).as_dict(),
    )
    validate = space.add_parser("validate", help="check a search space file")
    validate.add_argument("file")
    validate.set_defaults(command=verbs.validate_space)
    settings = space.add_parser(
        "settings", help="what a space may hold: each setting, what is allowed, its default"
    )
    settings.set_defaults(command=verbs.list_settings)

    _add_resource(
        commands,
        "recipe",
        "recipes, named methods",
        "search_spaces/recipes",
        lambda name: Recipe.load(name).as_dict(),
    )
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help=(
            "a fine-tuned classifier, or a causal language model, also as a .gguf file; with "
            "--finetune any of the families"
        ),
    )
    parser.add_argument("--task", required=True, help=", ".join(TASKS))
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE_OR_HUB_ID",
        help=(
            "csv, tsv, json, jsonl, parquet, a hub data set (NAME or NAME:CONFIGURATION); for "
            "language modeling also txt"
        ),
    )
    parser.add_argument(
        "--validation",
        metavar="FILE_OR_SPLIT",
        help="guides the search; cut from the data where not given",
    )
    parser.add_argument(
        "--test",
        metavar="FILE_OR_SPLIT",
        help="scored once, at the end; cut from the data where not given",
    )
    for option in OPTIONS.values():
        takers = [name for name, kind in TASKS.items() if option in kind.options]
        only = "" if len(takers) == len(TASKS) else f"{', '.join(takers)}: "
        parser.add_argument(
            f"--{option.name}",
            type=option.takes,
            metavar=option.metavar,
            help=f"{only}{option.help}",
        )
    parser.add_argument(
        "--finetune",
        action="store_true",
        help="train the model on the data first, then compress it",
    )
    parser.add_argument(
        "--hardware",
        required=True,
        action="append",
        metavar="PROFILE",
        help=(
            "a shipped profile or a .toml file; give it again for another device, which gets a "
            "front of its own"
        ),
    )
    parser.add_argument(
        "--train-on",
        default="auto",
        metavar="auto|cpu|cuda[:N]",
        help="where the teacher and its students are trained; auto takes a GPU where there is one",
    )
    parser.add_argument(
        "--tf32", action="store_true", help="let a GPU round the inputs of fp32 products"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, type=Path, metavar="RUN")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits", "give at least one; of several all must hold")
    group.add_argument(
        "--max-latency",
        metavar="3ms",
        help="of a language model also with its phase, as decode=3ms",
    )
    group.add_argument(
        "--min-speedup", metavar="2x", help="against the fp32 model in the same runtime"
    )
    group.add_argument("--max-size", metavar="10MB", help=_MAX_SIZE)
    group.add_argument("--min-compression", metavar="8x", help=_MIN_COMPRESSION)
    group.add_argument("--min-quality", type=float, metavar="0.86", help="the score, as a share")
    group.add_argument("--max-perplexity", type=float, metavar="25.0")
    group.add_argument("--max-drop", type=float, metavar="1.0", help=_MAX_DROP)
    _add_confidence(group)


def _add_confidence(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--confidence",
        type=float,
        default=CONFIDENCE,
        metavar=f"{CONFIDENCE}",
        help=(
            "that the chosen model truly meets its limits of quality, which are checked on the "
            "validation split with a margin for chance; 0.5 is without"
        ),
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hardware",
        metavar="PROFILE",
        help="whose front; default: the first that the search was given",
    )


def _add_tie(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-tie", action="store_true", help="also a model whose interval crosses the limit"
    )


def _add_resource(
    parsers: Any, verb: str, what: str, kind: resources.Kind, load: Callable[[str], dict[str, Any]]
) -> Any:
    commands = parsers.add_parser(verb, help=f"the {what}").add_subparsers(
        metavar="COMMAND", required=True
    )

    def show_all(options: argparse.Namespace) -> None:
        for name in resources.names(kind):
            verbs.say(
                f"{name:24} {resources.read_toml(resources.locate(kind, name))['description']}"
            )

    commands.add_parser("list", help="names and descriptions").set_defaults(command=show_all)
    show = commands.add_parser("show", help="all of one, as JSON")
    show.add_argument("name", metavar="NAME_OR_FILE")
    show.set_defaults(command=lambda options: verbs.say(json.dumps(load(options.name), indent=2)))
    return commands
