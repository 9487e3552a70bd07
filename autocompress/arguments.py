"""The options of every command. None is carried out here, and little is imported: ``--help`` must
come at once."""

from __future__ import annotations

import argparse
import re
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from autocompress import __version__, resources
from autocompress.engine.backends import BACKENDS
from autocompress.errors import UserError
from autocompress.hardware.profile import PHASES, RUNTIMES, USUAL
from autocompress.journal import KEEP
from autocompress.limits import CONFIDENCE
from autocompress.names import did_you_mean
from autocompress.pareto import LATENCY_AND_QUALITY, OBJECTIVES
from autocompress.tasks import OPTIONS, TASKS

_MAX_DROP = "lose at most so many points, or increase the perplexity by at most so many percent"
_NO_LIMIT = "default: no limit"
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


class _Help(argparse.HelpFormatter):
    """Ends with an option's default, where the text has not named it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said, default = action.help or "", action.default
        if action.nargs == 0 or default in (None, [], "") or "default: " in said:
            return said
        return f"{said} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, and names that are nearly right are guessed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)
        self.register("action", None, _Once)

    def _get_values(self, action: argparse.Action, texts: list[str]) -> Any:
        if "" in texts and action.nargs != argparse.PARSER:
            raise argparse.ArgumentError(action, "it is empty")
        return super()._get_values(action, texts)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(value, list(action.choices))
            listed = ", ".join(action.choices)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{hint} (choose from {listed})"
            )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Tells of unknown options before those that are missing."""
        known = self._option_string_actions
        for text in [] if self._subparsers else takewhile("--".__ne__, args):
            name = text.partition("=")[0]
            if re.fullmatch("--[a-z-]+", name) and not any(one.startswith(name) for one in known):
                self.error(f"unrecognized arguments: {text}{did_you_mean(name, known)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """Of all commands; ``command`` of what it gives is the name of one in ``verbs``."""
    whole = _Parser(
        prog="autocompress",
        description="Search for the Pareto-optimal compressed versions of a transformer.",
    )
    whole.add_argument("--version", action="version", version=f"autocompress {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_search, _add_evaluate, _add_demo, _add_init, _add_reading, _add_measuring):
        add(commands)
    _add_resources(commands)
    commands.add_parser(
        "completion",
        help="a script that completes commands and options in bash and zsh",
        description='In ~/.bashrc or ~/.zshrc: eval "$(autocompress completion)"',
    ).set_defaults(command="completion")
    return whole


def _add_search(commands: Any) -> None:
    search = commands.add_parser(
        "search",
        help="search, and write a run folder with the front as files",
        description="autocompress search --model X --data Y is enough; what it takes is printed.",
    )
    _add_inputs(search)
    search.add_argument(
        "--space",
        metavar="SPACE",
        help="a shipped search space or a .toml file; default: by the model's family and size",
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
            help=f"on one device, or without its name on each{phase}; {_NO_LIMIT}",
        )
    search.add_argument("--max-size", metavar="10MB", help=f"{_MAX_SIZE}; {_NO_LIMIT}")
    search.add_argument("--min-compression", metavar="8x", help=f"{_MIN_COMPRESSION}; {_NO_LIMIT}")
    search.add_argument("--max-drop", type=float, metavar="N", help=f"{_MAX_DROP}; {_NO_LIMIT}")
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
        help="candidates to try; default: as many as the time allows, 50 without --time-limit",
    )
    search.add_argument(
        "--time-limit",
        metavar="10m",
        help=f"for everything, verification included; {_NO_LIMIT}",
    )
    search.add_argument(
        "--sampler", default="tpe", metavar="NAME", help="tpe, gp, nsga2, random or local"
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
        choices=BACKENDS,
        help="where students are made; default: serial for one worker, processes for several",
    )
    search.add_argument(
        "--ray-address", metavar="A", help="of a cluster of Ray; default: one on this machine"
    )
    search.add_argument(
        "--gpus-per-worker", type=float, default=0.0, metavar="X", help="that Ray gives each one"
    )
    search.add_argument(
        "--keep",
        choices=KEEP,
        default=KEEP[0],
        help="models whose files stay: the front's, or all completed ones",
    )
    _add_talking(search)
    search.set_defaults(command="search")


def _add_evaluate(commands: Any) -> None:
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
        help="a setting in place of the recipe's; default: all as the recipe says",
    )
    _add_inputs(evaluate)
    _add_talking(evaluate)
    evaluate.set_defaults(command="evaluate")


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", help="the search on an embedded real model and real sentences"
    )
    demo.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="default: the next free runs/demo-N; with --resume the last",
    )
    demo.add_argument(
        "--time-limit", default="10m", metavar="10m", help="for everything, verification included"
    )
    _add_repeating(demo)
    _add_talking(demo)
    demo.set_defaults(command="demo")


def _add_init(commands: Any) -> None:
    init = commands.add_parser(
        "init", help="write a commented search space and profile for a model, to be changed"
    )
    init.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="to be compressed")
    init.add_argument(
        "--out",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="for space.toml and profile.toml; default: this folder",
    )
    init.set_defaults(command="init")


def _add_reading(commands: Any) -> None:
    """What reads a run."""
    front = commands.add_parser("front", help="print the front of a run")
    pick = commands.add_parser("pick", help="choose a model of the front by budget")
    export = commands.add_parser(
        "export", help="write a model as a folder that ONNX Runtime and Optimum open"
    )
    report = commands.add_parser("report", help="write report.html into a run folder")
    for name, command in (("front", front), ("pick", pick), ("export", export), ("report", report)):
        command.add_argument("run", type=Path, metavar="RUN")
        command.set_defaults(command=name)
    export.add_argument(
        "--trial",
        metavar="ID",
        help="any completed one whose files are kept; default: the best within the limits",
    )
    for command in (pick, export):
        _add_limits(command)
        command.add_argument(
            "--allow-tie", action="store_true", help="also a model whose interval crosses the limit"
        )
    for command in (front, pick, export):
        command.add_argument(
            "--hardware",
            metavar="PROFILE",
            help="whose front; default: the first that the search was given",
        )
    for command in (front, pick):
        _add_json(command)
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    export.add_argument(
        "--with-weights",
        action="store_true",
        help="also those of torch, in a folder aside, for autocompress.load_model",
    )
    export.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="also to the Hugging Face hub, as NAME or OWNER/NAME; default: not at all",
    )


def _add_measuring(commands: Any) -> None:
    """What times a device."""
    measure = commands.add_parser(
        "measure", help="latency of an exported folder, a transformers folder or an .onnx file"
    )
    measure.add_argument("model", type=Path, metavar="DIR")
    measure.add_argument(
        "--hardware", required=True, metavar="PROFILE", help="a shipped profile or a .toml file"
    )
    _add_json(measure)
    measure.set_defaults(command="measure")
    doctor = commands.add_parser(
        "doctor", help="whether a device can be timed well, and what int8 gains there"
    )
    _add_location(doctor)
    _add_json(doctor)
    doctor.set_defaults(command="doctor")


def _add_resources(commands: Any) -> None:
    """What ships as a file, and what such files may hold."""
    profile = _add_resource(commands, "profile", "hardware profiles", "hw_profiles")
    new = profile.add_parser(
        "new", help="write NAME.toml for a device, with its fingerprint and what it speeds up"
    )
    new.add_argument("name", metavar="NAME")
    _add_location(new)
    new.add_argument(
        "--runtime", default="onnxruntime-cpu", metavar="NAME", help=", ".join(RUNTIMES)
    )
    new.add_argument("--threads", type=int, default=1, metavar="N", help="0: all cores")
    new.add_argument("--batch-size", type=int, default=1, metavar="N", help="texts at a time")
    new.add_argument(
        "--sequence-length",
        default="task",
        metavar="N",
        help="tokens; task stands for the lengths of the task's own texts",
    )
    new.set_defaults(command="new_profile")
    profile.add_parser(
        "settings", help="what a profile may hold: each key, what is allowed, its default"
    ).set_defaults(command="list_profile_keys")
    space = _add_resource(commands, "space", "search spaces", "search_spaces")
    validate = space.add_parser("validate", help="check a search space file")
    validate.add_argument("file")
    validate.set_defaults(command="validate_space")
    space.add_parser(
        "settings", help="what a space may hold: each setting, what is allowed, its default"
    ).set_defaults(command="list_settings")
    _add_resource(commands, "recipe", "recipes, named methods", "search_spaces/recipes")


def _add_resource(commands: Any, verb: str, what: str, kind: resources.Kind) -> Any:
    verbs = commands.add_parser(verb, help=f"the {what}").add_subparsers(
        metavar="COMMAND", required=True
    )
    listed = verbs.add_parser("list", help="names and descriptions")
    listed.set_defaults(command="list_shipped", kind=kind)
    shown = verbs.add_parser("show", help="all of one, as JSON")
    shown.add_argument("name", metavar="NAME_OR_FILE")
    shown.set_defaults(command="show_shipped", kind=kind)
    return verbs


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
        "--task", metavar="NAME", help=f"{', '.join(TASKS)}; default: that of the model's head"
    )
    for split, purpose in (
        ("validation", "guides the search"),
        ("test", "scored once, at the end"),
    ):
        parser.add_argument(
            f"--{split}",
            metavar="FILE_OR_SPLIT",
            help=f"{purpose}; default: the data's own, else cut from it",
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
        action="append",
        metavar="PROFILE",
        help=(
            "a shipped profile or a .toml file; give it again for another device, which gets a "
            f"front of its own; default: {USUAL}"
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
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="default: the next free runs/MODEL-N; with --resume the last",
    )
    _add_repeating(parser)


def _add_repeating(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same one, the same candidates"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")


def _add_talking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="no progress, the result alone")
    group.add_argument(
        "--verbose",
        action="store_true",
        help="every candidate with all its settings, every reason in full",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "limits", "give at least one; of several all must hold; each is without by default"
    )
    group.add_argument(
        "--max-latency",
        metavar="3ms",
        help=f"of a language model also with its phase, as decode=3ms; {_NO_LIMIT}",
    )
    group.add_argument(
        "--min-speedup",
        metavar="2x",
        help=f"against the fp32 model in the same runtime; {_NO_LIMIT}",
    )
    group.add_argument("--max-size", metavar="10MB", help=f"{_MAX_SIZE}; {_NO_LIMIT}")
    group.add_argument("--min-compression", metavar="8x", help=f"{_MIN_COMPRESSION}; {_NO_LIMIT}")
    group.add_argument(
        "--smallest", action="store_true", help="the smallest file within the limits, or of all"
    )
    group.add_argument(
        "--min-quality", type=float, metavar="0.86", help=f"the score, as a share; {_NO_LIMIT}"
    )
    group.add_argument(
        "--max-perplexity", type=float, metavar="25.0", help=f"of a language model; {_NO_LIMIT}"
    )
    group.add_argument("--max-drop", type=float, metavar="1.0", help=f"{_MAX_DROP}; {_NO_LIMIT}")
    _add_confidence(group)


def _add_confidence(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--confidence",
        type=float,
        default=CONFIDENCE,
        metavar="SHARE",
        help=(
            "that the chosen model truly meets its limits of quality, which are checked on the "
            "validation split with a margin for chance; 0.5 is without"
        ),
    )


def _add_location(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="local",
        metavar="LOCATION",
        help="local is this machine; else ssh://[user@]host[:port], or cmd:COMMAND",
    )
    parser.add_argument(
        "--python",
        default="python3",
        metavar="COMMAND",
        help="on a device that is not this machine",
    )
    parser.add_argument("--ssh-config", default="", metavar="FILE", help="default: ssh's own")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
