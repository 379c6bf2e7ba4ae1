"""
The options of C{twistd ccproxy}, and the L{Settings} that they make.

The options for limits are made from the fields of L{Limits}, so that a new limit is an option at
once. This module is imported for every C{twistd --help}: it must stay light.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.python import usage

from .. import __version__
from ..core.limits import Limits
from ..net.address import DEFAULT_ADMIN_SOCKET
from ..wire.codes import Dialect
from .file import DEFAULT_FILE, HOST_KEYS, BadConfig, KeyKind, findConfig, readConfig
from .pidfile import settlePidFile
from .settings import (
    DIALECTS,
    LOG_FORMATS,
    LOG_LEVELS,
    LOG_SINKS,
    BadSetting,
    Settings,
    optionName,
    settingsOf,
)

_BINARY = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def _isBytes(field: attrs.Attribute[Any]) -> bool:
    return "bytes" in field.metadata["help"].partition(";")[0]


def _asBytes(text: str) -> int:
    match = re.fullmatch(r"(\d+) ?([KMG]iB)?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError("is no number of bytes, such as 65536, 64KiB or 1MiB")
    return int(match[1]) * _BINARY[(match[2] or "").upper()]


def _asCount(text: str) -> int:
    if re.fullmatch(r"\d+", text, re.ASCII) is None:
        raise ValueError("is no whole number")
    return int(text)


def _asSeconds(text: str) -> float:
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text, re.ASCII) is None:
        raise ValueError("is no number of seconds, such as 5 or 0.5")
    return float(text)


def _asMode(text: str) -> int:
    if re.fullmatch(r"(0o?)?[0-7]{3}", text) is None:
        raise ValueError("is no file mode of three octal digits, such as 0660")
    return int(text[-3:], 8)


def _asDialect(text: str) -> Dialect:
    if text not in DIALECTS:
        raise ValueError(f"is no dialect: it is one of {', '.join(DIALECTS)}")
    return Dialect(text)


def _asStalledDrop(text: str) -> float:
    choice, _, seconds = text.partition("=")
    if text == "keep":
        return 0.0
    if choice != "drop-after":
        raise ValueError("is neither keep nor drop-after=SECONDS")
    value = _asSeconds(seconds)
    if value == 0:
        raise ValueError("names no time: drop-after=SECONDS takes more than 0 seconds")
    return value


def _named(option: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make the errors of C{convert} name the option and the value."""

    def coerce(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as problem:
            raise usage.UsageError(f"--{option}: {text!r} {problem}") from None

    return coerce


def _shownDefault(field: attrs.Attribute[Any]) -> str:
    value: Any = field.default
    if _isBytes(field):
        for unit in ("GiB", "MiB", "KiB"):
            if value % _BINARY[unit.upper()] == 0:
                return f"{value // _BINARY[unit.upper()]}{unit}"
    return f"{value:g}"


def _limitParameter(field: attrs.Attribute[Any]) -> list[Any]:
    option = optionName(field.name)
    convert: Callable[[str], Any] = _asCount if field.metadata["kind"] is int else _asSeconds
    if _isBytes(field):
        convert = _asBytes
    help = field.metadata["help"]
    return [option, None, _shownDefault(field), help[0].upper() + help[1:], _named(option, convert)]


def _limitFields() -> list[attrs.Attribute[Any]]:
    """The fields of L{Limits} with an option of their own name."""
    return [field for field in attrs.fields(Limits) if field.name != "stalledDrop"]


_DEFAULTS = Settings()


class Options(usage.Options):
    """
    What can be said after C{twistd ccproxy}, and in a configuration file.

    Once it has been parsed, its items are the options that were said, with their values.

    @ivar settings: what the options and the configuration file say together.
    """

    settings: Settings

    synopsis = "[options]"
    longdesc = (
        "The proxy between container runtimes and shims, and the agents inside lightweight VMs. "
        "Clients connect to one UNIX socket; whoever may open it controls every VM. "
        "Times are in seconds; numbers of bytes may end in KiB, MiB or GiB. "
        "Give twistd itself --pidfile= (and -n, to stay in the foreground)."
    )

    optFlags: list[list[Any]] = [
        ["pod", None, "Serve one VM only, and end after it, as cc-proxy -uri does"],
        ["no-admin", None, "Make no admin socket"],
        ["pprof", None, "Let the admin socket make profiles of the daemon"],
        [
            "join",
            None,
            "For cc-proxy -uri, which reads the configuration too: let the daemon of this host "
            "serve the pod, and end",
        ],
        [
            "keep-descriptors",
            None,
            "On SIGTERM, leave all connections to the service manager for the next process: for "
            "systemd units with a descriptor store; ccproxyctl supervise sets it",
        ],
    ]

    optParameters: list[list[Any]] = [
        [
            "config",
            None,
            None,
            "The configuration file; options win over it. Each option is a key in it "
            f"(without this, {DEFAULT_FILE} where it is there)",
        ],
        ["socket-path", None, _DEFAULTS.socketPath, "The UNIX socket on which clients are served"],
        [
            "socket-mode",
            None,
            f"{_DEFAULTS.socketMode:04o}",
            "Who may connect: the file mode of that socket, in octal",
            _named("socket-mode", _asMode),
        ],
        [
            "socket-group",
            None,
            None,
            "The group of that socket, by name or number (without it, the daemon's own)",
        ],
        [
            "admin-socket",
            None,
            None,
            f"The UNIX socket for ccproxyctl and scripts, of this user alone (without it "
            f"{DEFAULT_ADMIN_SOCKET}; SOCKET-PATH.admin where --socket-path is given; none with "
            "--pod)",
        ],
        [
            "metrics-address",
            None,
            None,
            "Serve /metrics and /healthz at this TCP address too, to everybody: HOST:PORT",
        ],
        [
            "max-loop-lag",
            None,
            f"{_DEFAULTS.maxLoopLag:g}",
            "By how many seconds the loop may be late and /healthz call the daemon healthy",
            _named("max-loop-lag", _asSeconds),
        ],
        [
            "orphan",
            None,
            _DEFAULTS.orphan,
            "What to do about a VM that nobody looks after, without a client and a connected shim: "
            "keep it, or keep and report it",
        ],
        [
            "orphan-after",
            None,
            f"{_DEFAULTS.orphanAfter:g}",
            "Seconds after which a VM is such an orphan",
            _named("orphan-after", _asSeconds),
        ],
        [
            "log-level",
            None,
            _DEFAULTS.logLevel,
            f"Log this and what is more severe: {', '.join(dict.fromkeys(LOG_LEVELS.values()))}",
        ],
        [
            "log-format",
            None,
            _DEFAULTS.logFormat,
            f"How a line of the log is written: {', '.join(LOG_FORMATS)}",
        ],
        [
            "log-to",
            None,
            ",".join(_DEFAULTS.logTo),
            f"Where the log goes: one or more of {', '.join(LOG_SINKS)}, with commas between them",
        ],
        [
            "log-rate",
            None,
            _DEFAULTS.logRate,
            "Log entries of a kind, such as those of clients of one VM, that are written per "
            "second; others are counted. 0 is any number",
            _named("log-rate", _asCount),
        ],
        [
            "ksm",
            None,
            _DEFAULTS.ksm,
            "What to do about the kernel's samepage merging, and to undo at the end: stop it (off),"
            " leave it alone (initial), or let it scan eagerly after each registration and ever"
            " slower then (auto); in pod mode it is left alone",
        ],
        [
            "embedded-dialect",
            None,
            _DEFAULTS.embeddedDialect.value,
            f"The dialect that embedded VMs speak: {', '.join(DIALECTS)}",
            _named("embedded-dialect", _asDialect),
        ],
        [
            "agent-dialect",
            None,
            None,
            f"The dialect of all agents: {', '.join(DIALECTS)} (without it, found out for each)",
            _named("agent-dialect", _asDialect),
        ],
        [
            "stalled-shim",
            None,
            "keep",
            "What to do when the output of a process is full because its shim is connected and "
            "does not read: keep it all, so that the whole VM waits, or drop-after=SECONDS",
            _named("stalled-shim", _asStalledDrop),
        ],
        *map(_limitParameter, _limitFields()),
    ]

    def __init__(self) -> None:
        super().__init__()
        # The texts of opt_ methods come with the line breaks and indentation of their docstrings.
        self.docs = {option: " ".join(text.split()) for option, text in self.docs.items()}
        # No default is said: Settings has them all.
        self.clear()

    def opt_embedded_vm(self, name: str) -> None:
        """
        Play a VM of this name in the daemon itself, registered from the start. Its processes run on
        this machine, as the daemon's user and without any isolation: for trying out, developing
        and testing. Can be repeated.
        """
        self.setdefault("embedded-vm", []).append(name)

    def opt_vm_socket_dir(self, path: str) -> None:
        """
        Refuse VMs with a socket outside of this folder, links resolved. Can be repeated (without
        it, sockets may be anywhere).
        """
        self.setdefault("vm-socket-dir", []).append(path)

    def opt_version(self) -> None:
        """Display the version and exit."""
        print(f"ccproxy {__version__}")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line.

        @raise usage.UsageError: it makes no sense.
        @raise SystemExit: the same, said shortly: C{twistd} would show all of the help in front of
            what is wrong.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as problem:
            if self.parent is None:
                raise
            raise SystemExit(
                f"twistd ccproxy: {problem} (twistd ccproxy --help has the options)"
            ) from None

    def parseArgs(self, *words: str) -> None:
        """
        What is left over when all options are read.

        @raise usage.UsageError: there is something.
        """
        if words:
            raise usage.UsageError(f"{words[0]!r} is no option: all of them begin with --")

    def postOptions(self) -> None:
        """
        Make L{settings} of what was said.

        @raise usage.UsageError: a value makes no sense.
        @raise SystemExit: the configuration file cannot be used.
        """
        try:
            self.settings = self.read()
        except BadConfig as problem:
            # The options are right: nobody wants to read their help now.
            raise SystemExit(str(problem)) from None
        except BadSetting as problem:
            raise usage.UsageError(f"--{problem}") from None
        if self.parent is not None:
            settlePidFile(self.parent)

    def read(self) -> Settings:
        """
        Read the configuration file, and make settings of it and of the options.

        @raise BadConfig: the file cannot be read, or not be used.
        @raise BadSetting: the options make no sense.
        """
        path = findConfig(self.get("config"))
        file = configured(path, "pod" in self) if path else {}
        return settingsOf({**file, **self}, file)


class _FileOptions(Options):
    """Options of a configuration file: none of them names another one."""

    def read(self) -> Settings:
        return settingsOf(self)


def configured(path: str, pod: bool = False) -> dict[str, Any]:
    """
    Read a configuration file.

    @param pod: whether it is for a daemon that serves one pod: L{HOST_KEYS} are not for it.
    @return: values by the names of their options.
    @raise BadConfig: it cannot be read, or not be used.
    """
    options = _FileOptions()
    kinds = dict.fromkeys(options.docs, KeyKind.LIST)
    kinds |= dict.fromkeys((row[0] for row in options.optParameters), KeyKind.VALUE)
    kinds |= dict.fromkeys((row[0] for row in options.optFlags), KeyKind.FLAG)
    for name in ("config", "help", "version"):
        del kinds[name]
    found: dict[str, Any] = {}
    for words in readConfig(path, kinds).values():
        # Each by itself, so that what is wrong is said of it.
        options = _FileOptions()
        try:
            options.parseOptions(words)
        except usage.UsageError as problem:
            raise BadConfig(path, str(problem).removeprefix("--")) from None
        found |= options
    for name in HOST_KEYS if pod else ():
        found.pop(name, None)
    return found
