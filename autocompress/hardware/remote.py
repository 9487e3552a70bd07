"""A device reached through a command that hands one line to a shell there: ssh, ``docker exec``,
``adb shell``."""

from __future__ import annotations

import atexit
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Self

from autocompress.errors import CandidateFailed, DeviceLost, UserError
from autocompress.hardware.host import AGENT, AGENT_ENVIRONMENT
from autocompress.hardware.patience import time_left

PAUSES = (1.0, 3.0)
"""Seconds before the second and the third attempt after a lost connection."""
_PATIENCE, _LEAST_PATIENCE = 60.0, 15.0
"""Seconds that a command on the device may take beyond its work, while there is time left and at
any rate."""
_SLOWEST, _USUAL = 100_000, 1_000_000
"""Bytes per second of the slowest line that is waited for, likewise."""
_GONE = 75
"""Exit status of our own lines when the folder is not there."""

_SSH_OPTIONS = (
    "-T -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=10 -o "
    "ServerAliveInterval=5 -o ServerAliveCountMax=3"
)
_SSH = re.compile(
    r"ssh://(?P<user>[A-Za-z0-9_][\w.+-]*@)?(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::(?P<port>\d{1,5}))?",
    re.ASCII,
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_UNREACHABLE = re.compile(
    "Could not resolve hostname|Connection refused|No route to host|Network is unreachable|timed "
    "out|[Bb]ad configuration"
)
"""What ssh says when the address or its settings are wrong, or, of a device that has answered
before, when it is away."""
_UNFIT = re.compile("^(ModuleNotFoundError|ImportError|SyntaxError)", re.MULTILINE)

_BASE = 'd=${TMPDIR:-/tmp}; [ -w "$d" ] || [ ! -w /data/local/tmp ] || d=/data/local/tmp'
_STOP = 'for p in /proc/[0-9]*; do [ "$p/cwd" -ef "$f" ] && kill -9 "${p#/proc/}"; done 2>/dev/null'
"""Ends agents that outlived their connection: they work in our folder, and would disturb the next
measurement."""
_ABANDONED_MINUTES = 10
"""Since a folder changed in which nothing runs, after which its client counts as gone."""
_CLEAN = (
    '[ ! -e /proc/self ] || for g in "${f%/*}"/autocompress-' + 32 * "?" + "; do "
    '[ -O "$g" ] && [ ! -L "$g" ] && '
    f'[ -n "$(find "$g" -prune -mmin +{_ABANDONED_MINUTES})" ] || continue; '
    'used=; for p in /proc/[0-9]*; do [ "$p/cwd" -ef "$g" ] && used=1; done; '
    '[ "$used" ] || rm -rf "$g"; done 2>/dev/null'
)
"""Removes what clients left behind whose end nobody there saw."""
_WATCH = (
    'cd "$f" && { while read -r _; do :; done; [ . -ef "$f" ] || exit; cd /; '
    + _STOP
    + '; rm -rf "$f"; }'
)
"""Stays until its client is gone, then ends what runs in the folder and removes it."""
_MAKE = (
    f"{_STOP}; {_CLEAN}"
    '; { [ -d "$f" ] || mkdir -m 700 "$f"; } && [ -O "$f" ] && [ ! -L "$f" ] && cd "$f" || exit 1'
)


class _Lost(Exception):
    """The connection broke or the folder is gone: worth another attempt."""


class _Silent(_Lost):
    """No answer in time."""


class Board:
    """A device with a shell, Python, numpy and onnxruntime, asked one thing at a time. Also a
    context manager; what it placed is removed at the end of the process at the latest: a line that
    waits there sees to it when the process is killed, the next contact when the device was off.

    Every line that runs there ends by printing its exit status: an answer without one came over a
    connection that was lost.
    """

    def __init__(
        self, location: str, python: str = "python3", ssh_config: str | None = None
    ) -> None:
        """Nothing is contacted before the first use.

        Args:
            location: ``ssh://[user@]host[:port]``, or ``cmd:WRAPPER`` where WRAPPER is a command
                that passes its last argument to a shell on the device: ``cmd:docker exec -i board
                    sh -c``, ``cmd:adb shell``.
            python: a name on the device's PATH or a path from the root.
            ssh_config: a file for ssh to read in place of the user's own.

        Raises:
            UserError: malformed location, relative path of Python, no such ssh_config.
        """
        if "/" in python and not python.startswith("/"):
            raise UserError(
                f"python of {location} is {python!r}; allowed is a name such as python3 or a path "
                f"from the root"
            )
        words = _words(location, ssh_config)
        self.location, self.python = location, python
        self._by_hand = shlex.join(words)
        self._command = (
            words
            if location.startswith("cmd:")
            else [*words[:1], *_SSH_OPTIONS.split(), *words[1:]]
        )
        self._where = f"{_BASE}; f=$d/autocompress-{secrets.token_hex(16)}"
        self._folder = ""
        self._answered = self._served = False
        self._connected = False
        self._watcher: subprocess.Popen[bytes] | None = None
        self._to_remove = False
        self._files: dict[str, Path] = {}
        self._there: set[str] = set()

    def place(self, file: Path, name: str) -> str:
        """See ``Host``.

        Raises:
            UserError: a name with odd characters, or a device that cannot be reached as given.
            CandidateFailed: no room on the device.
            DeviceLost: connection lost three times, or nothing can be written there.
        """
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot be a file's name on a device; allowed are letters, digits, '.', "
                f"'_' and '-'"
            )
        self._files[name] = file

        def step() -> str:
            self._connect()
            self._send(name)
            return f"{self._folder}/{name}"

        return self._persist(step)

    def forget(self, names: Collection[str]) -> None:
        """See ``Host``."""
        self._there.difference_update(names)

    def run_agent(self, request: str, limit_s: float) -> str:
        """See ``Host``; what the request names is sent again if the device lost it.

        Raises:
            UserError: a device that cannot be reached as given, or that lacks Python, numpy or
                onnxruntime.
            CandidateFailed: the process died.
            DeviceLost: connection lost three times.
            TimeoutError: no answer in time.
        """
        needed = [name for name in self._files if name in request]

        def step() -> str:
            self._connect()
            for name in needed:
                self._send(name, keep=needed)
            settings = " ".join(f"{name}={value}" for name, value in AGENT_ENVIRONMENT.items())
            line = f'cd "$f" || exit {_GONE}; {settings} exec {shlex.quote(self.python)} agent.py'
            try:
                status, output, complaints = self._shell(line, limit_s, request.encode())
            except _Silent:
                self._connected = False
                raise TimeoutError from None
            reason = _last_line(complaints)
            if status in (126, 127) or (status != 0 and _UNFIT.search(complaints)):
                needs = "it needs Python 3.9 or newer with onnxruntime and numpy; run there:"
                raise UserError(
                    f"{self.location}: {reason}; {needs} {self.python} -m pip install onnxruntime "
                    f"numpy"
                )
            if status > 128:
                died = f"the process there was killed by signal {status - 128}"
                raise CandidateFailed(
                    f"{self.location}: {died}" + (" (out of memory?)" if status == 137 else "")
                )
            if status != 0:
                raise CandidateFailed(
                    f"{self.location}: {reason or f'the process there ended with {status}'}"
                )
            self._served = True
            return output

        return self._persist(step)

    def close(self) -> None:
        """Remove the folder and end what still runs in it; quiet when the device is gone or was
        never used."""
        atexit.unregister(self.close)
        if self._to_remove:
            self._to_remove = self._connected = False
            with suppress(_Lost, UserError):
                self._shell(f'{_STOP}; rm -rf "$f"', _LEAST_PATIENCE)
            self._unwatch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _persist(self, step: Callable[[], str]) -> str:
        """The step's result, tried again after each pause when the connection is lost.

        Raises:
            DeviceLost: it stays lost, or what served before cannot be reached any more.
        """
        pauses = iter(PAUSES)
        while True:
            try:
                return step()
            except _Lost as lost:
                self._connected = False
                pause = next(pauses, None)
                if pause is None or pause > time_left():
                    raise DeviceLost(f"{self.location}: {lost}") from None
                time.sleep(pause)
            except UserError as error:
                if not self._served:
                    raise
                raise DeviceLost(str(error)) from error

    def _connect(self) -> None:
        """Make the folder unless it is there, with the agent in it and watched, and see which other
        files it holds."""
        if self._connected and self._watcher and self._watcher.poll() is None:
            return
        if not self._to_remove:
            self._to_remove = True
            atexit.register(self.close)
        agent = AGENT.read_bytes()
        try:
            status, output, complaints = self._shell(
                f"{_MAKE}; {_receive(AGENT.name, len(agent))}; ls && pwd",
                _patience(len(agent)),
                agent,
            )
        except UserError:
            self._to_remove = self._answered
            raise
        if status != 0:
            raise DeviceLost(
                f"{self.location}: no folder with the agent can be made there: "
                f"{_reason(complaints)}"
            )
        *files, self._folder = output.splitlines()
        self._where = f"f={shlex.quote(self._folder)}"
        self._there = set(files) & self._files.keys()
        self._watch()
        self._connected = True

    def _watch(self) -> None:
        """Have somebody there who sees it when this process is gone, whatever ended it."""
        self._unwatch()
        self._watcher = subprocess.Popen(
            self._reaching(_WATCH),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which closes
        )

    def _unwatch(self) -> None:
        if self._watcher and self._watcher.stdin:
            self._watcher.stdin.close()
            self._watcher.kill()
            self._watcher.wait()
            self._watcher = None

    def _send(self, name: str, keep: Collection[str] = ()) -> None:
        """Copy a file unless it is there; it appears under its name only when whole.

        A board that is full first loses all but ``keep``; ``run_agent`` sends again what it needs.
        """
        if name in self._there:
            return
        file = self._files[name]
        size = file.stat().st_size
        with file.open("rb") as content:
            line = f'cd "$f" || exit {_GONE}; {_receive(name, size)}'
            status, _, complaints = self._shell(line, _patience(size), content)
        spare = self._there.difference(keep)
        if status == 0:
            self._there.add(name)
        elif spare:
            self._shell(f'cd "$f" && rm -f {shlex.join(spare)}', _patience())
            self._there -= spare
            self._send(name, keep)
        else:
            raise CandidateFailed(
                f"{self.location}: {name} cannot be written there: {_reason(complaints)}"
            )

    def _shell(
        self, line: str, limit: float, given: bytes | IO[bytes] = b""
    ) -> tuple[int, str, str]:
        """Run a line on the device, which finds its folder in ``$f``.

        The output goes to files: a pipe would stay open as long as any process that a dead wrapper
        left behind.

        Returns:
            Exit status, standard output, standard error.

        Raises:
            _Lost: no exit status came back, or the folder is gone.
            UserError: the device cannot be reached as given.
        """
        command = self._reaching(line)
        data, stream = (given, None) if isinstance(given, bytes) else (None, given)
        with TemporaryFile() as output_file, TemporaryFile() as complaints_file:
            try:
                done = subprocess.run(
                    command,
                    input=data,
                    stdin=stream,
                    stdout=output_file,
                    stderr=complaints_file,
                    timeout=limit,
                )
            except subprocess.TimeoutExpired:
                raise _Silent(f"connection lost: no answer within {limit:.0f} s") from None
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self.location}: {command[0]} cannot be started: {error}"
                ) from error
            output, complaints = _text(output_file), _text(complaints_file)
        end = re.search(r"\nautocompress (\d+)\s*\Z", output)
        if not end:
            raise self._lost(
                complaints, _last_line(complaints) or f"{command[0]} ended with {done.returncode}"
            )
        self._answered = True
        if int(end[1]) == _GONE:
            raise _Lost("its folder is gone")
        return int(end[1]), output[: end.start()], complaints

    def _reaching(self, line: str) -> list[str]:
        """What runs a line on the device and prints its exit status."""
        script = f"( {self._where}; {line} ); printf '\\nautocompress %d\\n' $?"
        return [*self._command, f"exec sh -c {shlex.quote(script)}"]

    def _lost(self, complaints: str, reason: str) -> Exception:
        """What a connection that ended early means: a mistake in how the device is reached, or a
        loss."""
        if "IDENTIFICATION HAS CHANGED" in complaints:
            changed = (
                "its host key is another than before; if it is the same device, set up "
                "anew, remove the old key"
            )
            return UserError(
                f"{self.location}: {changed} with ssh-keygen -R, then run {self._by_hand!r} once "
                f"by hand"
            )
        if "Host key verification failed" in complaints:
            return UserError(
                f"{self.location}: its host key is not known; run {self._by_hand!r} once by hand "
                f"to accept it"
            )
        if "Permission denied (" in complaints:
            return UserError(
                f"{self.location}: {reason} {self._by_hand!r} must log in without a password"
            )
        if not self._answered and _UNREACHABLE.search(complaints):
            return UserError(f"{self.location}: {reason}")
        return _Lost(f"connection lost: {reason}")


def _patience(size: int = 0) -> float:
    """Seconds that a short command may take, which is given so many bytes."""
    most, least = _PATIENCE + size / _SLOWEST, _LEAST_PATIENCE + size / _USUAL
    return min(most, max(least, time_left()))


def _receive(name: str, size: int) -> str:
    """A line that writes standard input to a file, which appears under its name only when whole."""
    part, whole = shlex.quote(f"{name}.part"), shlex.quote(name)
    arrived = f"[ $(wc -c < {part}) -eq {size} ]"
    return f"cat > {part} && {arrived} && mv {part} {whole} || {{ rm -f {part}; exit 1; }}"


def _reason(complaints: str) -> str:
    return (
        _last_line(complaints) or "it arrived incomplete (the wrapper must pass on standard input)"
    )


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()


def _words(location: str, ssh_config: str | None) -> list[str]:
    """The command as the user would type it, without the line for the device.

    Raises:
        UserError: malformed location, or no such ssh_config.
    """
    kind, _, wrapper = location.partition(":")
    match = _SSH.fullmatch(location)
    try:
        words = shlex.split(wrapper) if kind == "cmd" else []
    except ValueError as error:
        raise UserError(f"device location {location!r}: {error}") from None
    if not words and not (match and 1 <= int(match["port"] or 22) <= 65535):
        shown = re.sub(r"(//[^:@]*):.*@", r"\1:...@", location)
        raise UserError(
            f"device location {shown!r} is malformed; allowed is ssh://[user@]host[:port] or "
            f"cmd:WRAPPER"
        )
    if ssh_config is not None and not (match and Path(ssh_config).is_file()):
        raise UserError(
            f"device location {location!r}: "
            + (f"no file {ssh_config}" if match else "ssh_config is for ssh:// only")
        )
    if not match:
        return words
    config = ["-F", ssh_config] if ssh_config is not None else []
    port = ["-p", match["port"]] if match["port"] else []
    return ["ssh", *config, *port, (match["user"] or "") + match["host"].strip("[]")]
