"""What the commands do."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress import hub, resources, units
from autocompress.candidate import Setting, thaw
from autocompress.errors import RequestUnmet, UserError
from autocompress.hardware.profile import KEYS, PEAK_KEYS, PHASES, USUAL, HardwareProfile
from autocompress.journal import run_folder
from autocompress.limits import CONFIDENCE, Limits
from autocompress.pareto import (
    SCHEMA,
    Front,
    Member,
    checked_objectives,
    load_front,
    load_fronts,
)
from autocompress.recipes import Recipe
from autocompress.search_space import SearchSpace
from autocompress.searching import short_name
from autocompress.techniques import SETTINGS

if TYPE_CHECKING:
    from autocompress.engine.loop import SearchResult
    from autocompress.engine.request import Request


def search(options: argparse.Namespace) -> None:
    """``autocompress search``."""
    _take_usual(options)
    hardware = _hardware(options)
    budget, budgets = _budgets(options)
    space = SearchSpace.load(options.space)
    _run(
        _request(
            options,
            hardware,
            space,
            budget=budget,
            budgets=budgets,
            trials=options.trials,
            time_limit_s=_time_limit(options),
            sampler=options.sampler,
            objectives=_objectives(options),
            keep=options.keep,
            workers=options.workers,
            backend=options.backend,
            ray_address=options.ray_address,
            gpus_per_worker=options.gpus_per_worker,
        ),
        options,
    )


def evaluate(options: argparse.Namespace) -> None:
    """``autocompress evaluate``: a search of one trial in a space of one point."""
    recipe = Recipe.load(options.recipe, options.changes)
    _take_usual(options)
    from autocompress import console

    request = _request(options, _hardware(options), recipe.space, trials=1)
    result = _searched(request, options)
    if len(result.trials) == 1:
        raise RequestUnmet(f"recipe {recipe.name} leaves this model as it is; nothing was made")
    for line in (
        f"{recipe.name}: {recipe.paper}",
        *([f"differs from the paper: {recipe.differs}"] if recipe.differs else []),
        *console.trial_lines(result.trials, result.fronts),
    ):
        console.out.print(line)
    console.out.print(f"report: {result.run / 'report.html'}")


def _take_usual(options: argparse.Namespace) -> None:
    """What is usual, where an option is not given; and say so."""
    usual: dict[str, Any] = {}
    if options.task is None or getattr(options, "space", "") is None:
        from autocompress.engine.defaults import of_model

        usual["task"], usual["space"] = of_model(options.model)
    usual["hardware"] = [USUAL]
    usual["out"] = run_folder(short_name(options.model), options.resume)
    taken = {name: value for name, value in usual.items() if getattr(options, name, "") is None}
    vars(options).update(taken)
    if taken and not options.quiet:
        from autocompress import console

        taken |= {"hardware": USUAL} if "hardware" in taken else {}
        said = " ".join(f"--{name} {_quoted(value)}" for name, value in taken.items())
        console.err.print(console.folded(f"not given, and taken: {said}", console.err))


def _objectives(options: argparse.Namespace) -> tuple[str, ...] | None:
    if options.objectives is None:
        return None
    names = [name.strip() for name in options.objectives.split(",") if name.strip()]
    return checked_objectives(names, "--objectives")


def _hardware(options: argparse.Namespace) -> tuple[HardwareProfile, ...]:
    return tuple(
        _in_phase(HardwareProfile.load(name), getattr(options, "max_latency", ()))
        for name in options.hardware
    )


def _request(
    options: argparse.Namespace,
    hardware: tuple[HardwareProfile, ...],
    space: SearchSpace,
    **more: Any,
) -> Request:
    from autocompress.engine.request import Request
    from autocompress.tasks import OPTIONS

    given = {name: getattr(options, name.replace("-", "_")) for name in OPTIONS}
    return Request(
        options.model,
        options.task,
        options.data,
        hardware,
        space,
        options.out,
        {name: value for name, value in given.items() if value is not None},
        options.validation,
        options.test,
        options.finetune,
        train_on=options.train_on,
        tf32=options.tf32,
        seed=options.seed,
        resume=options.resume,
        **more,
    )


def _in_phase(profile: HardwareProfile, limits: Sequence[str]) -> HardwareProfile:
    """The profile, in the phase of a language model that limits such as ``decode=12ms`` name.

    Raises:
        UserError: they name two.
    """
    named = sorted({name for name, _, _ in (text.rpartition("=") for text in limits)} & set(PHASES))
    if len(named) > 1:
        raise UserError(
            f"--max-latency names {' and '.join(named)}: one of them is what latency means in a "
            f"search"
        )
    return replace(profile, phase=named[0]) if named else profile


def _budgets(options: argparse.Namespace) -> tuple[Limits, dict[str, Limits]]:
    """The limits on every device, and those of single devices in their place."""
    everywhere = _limits_of_files(options) | {
        "max_drop": options.max_drop,
        "confidence": options.confidence,
    }
    limits = {"": {name: value for name, value in everywhere.items() if value is not None}}
    for option, key, read in (
        ("max_latency", "max_latency_ms", units.latency_ms),
        ("min_speedup", "min_speedup", units.speedup),
    ):
        for text in getattr(options, option):
            name, separator, value = text.rpartition("=")
            if separator and not name:
                raise UserError(
                    f"--{option.replace('_', '-')} is {text!r}: before = belongs a hardware "
                    f"profile's name"
                )
            name = "" if key == "max_latency_ms" and name in PHASES else name
            device_limits = limits.setdefault(name, {})
            if key in device_limits:
                raise UserError(
                    f"--{option.replace('_', '-')} is given twice"
                    + (f" for {name}" if name else "")
                )
            device_limits[key] = read(value, f"--{option.replace('_', '-')}")
    if any(
        {"max_latency_ms", "min_speedup"} <= {*limits[""], *device_limits}
        for device_limits in limits.values()
    ):
        raise UserError("give --max-latency or --min-speedup, not both for one device")
    common = limits.pop("")
    return Limits(**common), {
        name: Limits(**(common | device_limits)) for name, device_limits in limits.items()
    }


def _limits_of_files(options: argparse.Namespace) -> dict[str, float | None]:
    """Which are the same on every device."""
    size, compression = options.max_size, options.min_compression
    return {
        "max_bytes": None if size is None else units.size_bytes(size, "--max-size"),
        "min_compression": None
        if compression is None
        else units.compression(compression, "--min-compression"),
    }


def demo(options: argparse.Namespace) -> None:
    """``autocompress demo``."""
    time_limit = _time_limit(options)
    out = options.out or run_folder("demo", options.resume)
    from autocompress import demo
    from autocompress.engine.request import Request
    from autocompress.files import cache_folder, own_temporary_folder

    try:
        data, unlabeled = demo.data_files(cache_folder() / "demo")
    except OSError:  # the cache is a convenience
        data, unlabeled = demo.data_files(own_temporary_folder() / "demo")
    front = _run(
        Request(
            str(demo.model_folder()),
            "text-classification",
            str(data),
            (HardwareProfile.load("cpu-1-thread"),),
            SearchSpace.load("demo"),
            out,
            {"unlabeled": str(unlabeled)},
            finetune=True,
            time_limit_s=time_limit,
            seed=options.seed,
            resume=options.resume,
        ),
        options,
    )
    if front.hint is not None:
        _choose_and_copy(front, front.hint, out)


def _choose_and_copy(front: Front, limits: Limits, run: Path) -> None:
    """The demo's last act: pick the best model within the limits, and export it."""
    from autocompress import console

    console.out.print(f"\n{_pick_command(run, limits)}")
    member = front.choose(limits)
    console.out.print(f"  {console.member_line(front, member, CONFIDENCE)}")
    target = run / "exported"
    front.export(member, target)
    console.out.print(
        f"autocompress export {_quoted(run)} --trial {member.id} --out {_quoted(target)}\n"
        f"  wrote {target}"
    )


def _time_limit(options: argparse.Namespace) -> float | None:
    return (
        None if options.time_limit is None else units.duration_s(options.time_limit, "--time-limit")
    )


def _searched(request: Request, options: argparse.Namespace) -> SearchResult:
    from autocompress.engine.session import search_for
    from autocompress.progress import Progressing

    try:
        with Progressing(
            request.time_limit_s,
            request.metric,
            shown=not options.quiet,
            verbose=options.verbose,
        ) as listener:
            return search_for(request, listener)
    except KeyboardInterrupt:
        if not (request.out / "run.json").is_file():
            raise
        raise KeyboardInterrupt(
            "stopped; what was tried is kept, and the same command with --resume goes on"
        ) from None


def _run(request: Request, options: argparse.Namespace) -> Front:
    from autocompress import console

    result = _searched(request, options)
    for front in result.fronts.values():
        console.out.print(console.front_text(front))
    for line in console.foresight_lines(result.run):
        console.out.print(line)
    console.out.print(f"report: {result.run / 'report.html'}")
    console.out.print(f"choose: {_hint(result.front, result.run)}")
    return result.front


def _hint(front: Front, run: Path) -> str:
    """A command that chooses a model worth having, where the front has one."""
    if front.hint is not None:
        return _pick_command(run, front.hint)
    worst = f"{front.scale.worst_drop:g} {front.scale.unit}"
    return f"no model of the front gains anything within {worst} of the baseline"


def _pick_command(run: Path, limits: Limits) -> str:
    options = " ".join(
        f"--{name.replace('_', '-')} {value:g}x" for name, value in limits.as_dict().items()
    )
    return f"autocompress pick {_quoted(run)} {options}"


def init(options: argparse.Namespace) -> None:
    """``autocompress init``."""
    from autocompress import console, drafting
    from autocompress.engine.defaults import of_model

    _, space = of_model(options.model)
    own_space, profile = drafting.write(options.out, options.model, space, USUAL)
    console.out.print(f"wrote {own_space} and {profile}: change them, then")
    console.out.print(
        f"autocompress search --model {_quoted(options.model)} --data FILE "
        f"--space {_quoted(own_space)} --hardware {_quoted(profile)}"
    )


def completion(options: argparse.Namespace) -> None:
    """``autocompress completion``."""
    from autocompress.arguments import parser
    from autocompress.completing import script

    say(script(parser()))


def front(options: argparse.Namespace) -> None:
    """``autocompress front``."""
    from autocompress import console

    fronts = load_fronts(options.run)
    chosen = (
        list(fronts.values())
        if options.hardware is None
        else [load_front(options.run, options.hardware)]
    )
    if options.json:
        say(
            json.dumps(
                {"schema": SCHEMA, "fronts": [device_front.as_dict() for device_front in chosen]},
                indent=2,
            )
        )
        return
    for device_front in chosen:
        console.out.print(console.front_text(device_front))


def _limits(options: argparse.Namespace, front: Front) -> dict[str, float | None]:
    return {
        "max_latency_ms": None
        if options.max_latency is None
        else _latency_ms(options.max_latency, front),
        "min_speedup": None
        if options.min_speedup is None
        else units.speedup(options.min_speedup, "--min-speedup"),
        "max_drop": options.max_drop,
        "min_quality": options.min_quality,
        "max_perplexity": options.max_perplexity,
        **_limits_of_files(options),
    }


def _latency_ms(text: str, front: Front) -> float:
    phase, _, value = text.rpartition("=")
    searched = front.baseline.timing.phase
    if phase and phase != searched:
        raise UserError(
            f"--max-latency {text}: the latencies of this front are "
            f"{f'of {searched}' if searched else 'of no phase'}"
        )
    return units.latency_ms(value, "--max-latency")


_LIMITS = (
    "max_latency",
    "min_speedup",
    "max_size",
    "min_compression",
    "min_quality",
    "max_perplexity",
    "max_drop",
)


def _chosen(options: argparse.Namespace) -> tuple[Front, Member]:
    trial = getattr(options, "trial", None)
    options_of = {name: f"--{name.replace('_', '-')}" for name in _LIMITS}
    given = [text for name, text in options_of.items() if vars(options)[name] is not None]
    given += ["--smallest"] if options.smallest else []
    if trial is None and not given:
        raise UserError(
            f"give at least one limit of {', '.join(options_of.values())}, or --smallest"
        )
    if trial is not None and given:
        raise UserError(f"--trial {trial} and {given[0]} are given: give a trial or limits")
    device_front = load_front(options.run, options.hardware)
    if trial is not None:
        return device_front, device_front.member(trial)
    limits = _limits(options, device_front)
    return device_front, device_front.pick(
        **limits,
        smallest=options.smallest,
        allow_tie=options.allow_tie,
        confidence=options.confidence,
    )


def pick(options: argparse.Namespace) -> None:
    """``autocompress pick``."""
    from autocompress import console

    device_front, member = _chosen(options)
    if options.json:
        say(json.dumps(asdict(member), indent=2))
    else:
        console.out.print(
            console.member_line(
                device_front,
                member,
                options.confidence,
                _limits(options, device_front)["max_latency_ms"],
            )
        )
        there = f" --hardware {_quoted(device_front.hardware['name'])}" if options.hardware else ""
        console.out.print(
            f"export: autocompress export {_quoted(options.run)}{there} --trial {member.id} "
            f"--out my-model"
        )


def export(options: argparse.Namespace) -> None:
    """``autocompress export``."""
    front, member = _chosen(options)
    if options.push_to_hub is not None:
        hub.check_token()
    front.export(member, options.out, with_weights=options.with_weights)
    from autocompress import console

    confidence = None if options.trial else options.confidence
    line = console.member_line(front, member, confidence)
    console.out.print(f"{line}\nwrote {options.out}")
    if options.push_to_hub is not None:
        console.out.print(f"pushed: {hub.push(options.out, options.push_to_hub)}")


def report(options: argparse.Namespace) -> None:
    """``autocompress report``."""
    from autocompress.report import write_report

    say(str(write_report(options.run)))


def measure(options: argparse.Namespace) -> None:
    """``autocompress measure``."""
    from autocompress import console
    from autocompress.measure import measure_latency

    profile = HardwareProfile.load(options.hardware)
    timing = measure_latency(options.model, profile)
    if options.json:
        say(
            json.dumps(
                {
                    "model": str(options.model),
                    "hardware": profile.as_dict(),
                    "timing": asdict(timing),
                },
                indent=2,
            )
        )
    else:
        say(f"{options.model} on {profile.name}: {console.timing_text(timing)}")


def new_profile(options: argparse.Namespace) -> None:
    """``autocompress profile new``."""
    from autocompress import console
    from autocompress.hardware.authoring import new_profile

    target = Path(f"{options.name.removesuffix('.toml')}.toml")
    length = options.sequence_length
    values = {
        "runtime": options.runtime,
        "location": options.device,
        "python": options.python,
        "ssh_config": options.ssh_config,
        "threads": options.threads,
        "batch_size": options.batch_size,
        "sequence_length": int(length) if length.isdecimal() and length.isascii() else length,
    }
    profile = new_profile(target, values)
    console.out.print(f"wrote {target}: {profile.description}")
    console.out.print(f"use it: autocompress search ... --hardware {_quoted(target)}")


def doctor(options: argparse.Namespace) -> None:
    """``autocompress doctor``."""
    from autocompress import console
    from autocompress.errors import CandidateFailed, DeviceLost
    from autocompress.hardware.devices import host_of
    from autocompress.hardware.doctor import examine

    host = host_of(options.device, options.python, options.ssh_config)
    try:
        diagnosis = examine(host, told=console.stage)
    except (CandidateFailed, DeviceLost) as error:
        raise UserError(f"--device {options.device}: {error}") from error
    finally:
        host.close()
    if options.json:
        say(json.dumps({**asdict(diagnosis), "times_well": diagnosis.times_well}, indent=2))
    else:
        console.out.print(console.diagnosis(diagnosis))
    if not diagnosis.times_well:
        raise RequestUnmet(
            "this device cannot be timed well as it is now; see the lines marked above"
        )


_READ: dict[resources.Kind, Callable[[str], Any]] = {
    "search_spaces": SearchSpace.load,
    "search_spaces/recipes": Recipe.load,
    "hw_profiles": HardwareProfile.load,
}


def list_shipped(options: argparse.Namespace) -> None:
    """``autocompress space list`` and its like."""
    for name in resources.names(options.kind):
        values = resources.read_toml(resources.locate(options.kind, name))
        say(f"{name:24} {values['description']}")


def show_shipped(options: argparse.Namespace) -> None:
    """``autocompress space show`` and its like."""
    say(json.dumps(_READ[options.kind](options.name).as_dict(), indent=2))


def validate_space(options: argparse.Namespace) -> None:
    """``autocompress space validate``."""
    name = (
        options.file
        if options.file.endswith(".toml") or options.file in resources.names("search_spaces")
        else f"{options.file}.toml"
    )
    space = SearchSpace.load(name)
    say(f"{space.name}: valid, {len(space.parameters)} settings, {len(space.corners)} corners")


def list_settings(options: argparse.Namespace) -> None:
    """``autocompress space settings``."""
    for setting in SETTINGS:
        _say_setting(setting, f" = {json.dumps(thaw(setting.default))}")


def list_profile_keys(options: argparse.Namespace) -> None:
    """``autocompress profile settings``."""
    peaks = [replace(key, name=f"peaks.{key.name}") for key in PEAK_KEYS.values()]
    for key in (*KEYS.values(), *peaks):
        if key.required:
            default = ", required"
        else:
            default = f" = {json.dumps(key.default)}" if key.has_default else ""
        _say_setting(key, default)


def _say_setting(setting: Setting, default: str) -> None:
    say(f"{setting.name}{default}\n    {setting.summary}\n    {setting.domain}")


def _quoted(value: object) -> str:
    """For a shell."""
    return shlex.quote(str(value))


def say(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(text + "\n")
