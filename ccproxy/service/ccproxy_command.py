"""
C{cc-proxy}: the daemon under the name and with the flags of the historic proxy.

Runtimes start one for each pod and wait for its socket, so this imports no more than it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..net.address import DEFAULT_SOCKET
from .goflags import Flag, FlagError, HelpWanted, boolFlag, parseFlags, usage
from .settings import BadSetting, Settings

#: A log level in this variable wins over C{-log}.
LOG_LEVEL_VARIABLE = "CC_PROXY_LOG_LEVEL"


def _parseURI(text: str) -> str:
    """The path of the socket in a URI, or in a bare path."""
    path = text.removeprefix("unix:")
    if path != text and path.startswith("//"):
        path = path[2:]
    if text and not path.startswith("/"):
        raise ValueError("it is no unix:///absolute/path, nor an absolute path")
    return path


def _parseKSM(text: str) -> str:
    if text not in ("off", "initial", "auto"):
        raise ValueError("it is none of off, initial, auto")
    return text


def _parsePort(text: str) -> int:
    try:
        port = int(text, 0)
    except ValueError:
        raise ValueError("parse error") from None
    if not 0 <= port <= 0xFFFF:
        raise ValueError("value out of range")
    return port


FLAGS = (
    Flag(
        "uri",
        "serve one VM on this socket (unix:///path or /path), and end after it: pod mode",
        parse=_parseURI,
    ),
    Flag(
        "socket-path",
        f"serve on this socket instead of the one of -uri, or of {DEFAULT_SOCKET}",
    ),
    Flag(
        "log",
        "log this and what is more severe: debug, info, warn, error, fatal or panic; "
        f"${LOG_LEVEL_VARIABLE} wins",
        default="warn",
    ),
    Flag(
        "ksm",
        "accepted and checked: this version does not touch the kernel's samepage merging",
        default="auto",
        kind="off|initial|auto",
        parse=_parseKSM,
    ),
    boolFlag("pprof", "accepted: this version has no profile server"),
    Flag("pprof-host", "accepted: see -pprof", default="localhost"),
    Flag(
        "pprof-port",
        "accepted and checked: see -pprof",
        default=6060,
        kind="uint",
        parse=_parsePort,
    ),
    boolFlag("version", "print the version and exit"),
)


def settingsFrom(values: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """
    Make settings of flags.

    @param values: the value of every one of L{FLAGS}.
    @param environment: that of the process.
    @raise BadSetting: a value makes no sense.
    """
    level = environment.get(LOG_LEVEL_VARIABLE) or values["log"]
    path = values["socket-path"] or values["uri"] or DEFAULT_SOCKET
    return Settings(socketPath=path, logLevel=level, pod=bool(values["uri"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the daemon until it is stopped.

    @param arguments: those of the command line, or L{None} for those of the process.
    @return: the exit status: 0, 1 if the daemon cannot start, 2 for a bad flag.
    """
    try:
        values, rest = parseFlags(FLAGS, sys.argv[1:] if arguments is None else arguments)
    except HelpWanted:
        print(usage("cc-proxy", FLAGS), end="", file=sys.stderr)
        return 0
    except FlagError as problem:
        print(f"{problem}\n{usage('cc-proxy', FLAGS)}", end="", file=sys.stderr)
        return 2
    if values["version"]:
        print(f"Version: {__version__}")
        return 0
    try:
        settings = settingsFrom(values, os.environ)
    except BadSetting as problem:
        print(f"cc-proxy: {problem}", file=sys.stderr)
        return 1
    if rest:
        print(f"cc-proxy: ignored, for it is no flag: {' '.join(rest)}", file=sys.stderr)
    _run(settings)
    return 0


def _run(settings: Settings) -> None:
    from twisted.internet import reactor

    from .logging import beginLogging
    from .proxy import ProxyService
    from .running import failingClearly, handleSignals

    handleSignals(reactor)
    beginLogging(settings)
    with failingClearly():
        service = ProxyService(settings, reactor)
        service.privilegedStartService()
        service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
