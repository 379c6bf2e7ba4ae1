"""
C{cc-proxy}: the daemon under the name and with the flags of the historic proxy.

Runtimes start one for each pod and wait for its socket, so this imports no more than it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..config.file import DEFAULT_FILE, findConfig
from ..config.goflags import Flag, FlagError, HelpWanted, boolFlag, parseFlags, usage
from ..config.settings import KSM_MODES, Settings, settingsOf
from ..errors import CCProxyError
from ..net.address import DEFAULT_ADMIN_SOCKET, DEFAULT_SOCKET

if TYPE_CHECKING:
    from ..net.binding import ListeningSocket

#: A log level in this variable wins over C{-log}.
LOG_LEVEL_VARIABLE = "CC_PROXY_LOG_LEVEL"
#: Set to 1, it says C{join}, whatever the configuration says.
JOIN_VARIABLE = "CC_PROXY_JOIN"


def _parseURI(text: str) -> str:
    """The path of the socket in a URI, or in a bare path."""
    path = text.removeprefix("unix:")
    if path != text and path.startswith("//"):
        path = path[2:]
    if text and not path.startswith("/"):
        raise ValueError("it is no unix:///absolute/path, nor an absolute path")
    return path


def _parseKSM(text: str) -> str:
    if text not in KSM_MODES:
        raise ValueError(f"it is none of {', '.join(KSM_MODES)}")
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
        "config",
        "the configuration file, whose keys are the options of twistd ccproxy; flags win over it "
        f"(without this, {DEFAULT_FILE} where it is there)",
    ),
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
        "what to do about the kernel's samepage merging, and to undo at the end: stop it (off), "
        "leave it alone (initial), or let it scan eagerly after each registration and ever slower "
        "then (auto); in pod mode it is left alone",
        default="auto",
        kind="off|initial|auto",
        parse=_parseKSM,
    ),
    boolFlag("pprof", "let the admin socket make profiles of the daemon: /v1/profile"),
    Flag("pprof-host", "accepted: profiles are on the admin socket alone", default="localhost"),
    Flag(
        "pprof-port",
        "accepted and checked: see -pprof-host",
        default=6060,
        kind="uint",
        parse=_parsePort,
    ),
    Flag(
        "admin-socket",
        f"serve ccproxyctl and scripts on this socket instead of {DEFAULT_ADMIN_SOCKET}, or of the "
        "socket-path with .admin; in pod mode, serve them at all",
    ),
    boolFlag("no-admin", "make no admin socket"),
    boolFlag("version", "print the version and exit"),
)


def settingsFrom(given: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """
    Make settings of flags and of the configuration file.

    @param given: values by the names of L{FLAGS}; where one is missing, the file has its say.
    @param environment: that of the process.
    @raise BadConfig: the configuration file cannot be read, or not be used.
    @raise BadSetting: a value makes no sense.
    """
    values = {"log-format": "logfmt", **_options({flag.name: flag.default for flag in FLAGS})}
    path, file = findConfig(given.get("config")), {}
    if path is not None:
        from ..config.options import configured

        file = configured(path, pod=bool(given.get("uri")))
        values |= file
    values |= _options(given)
    if environment.get(LOG_LEVEL_VARIABLE):
        values["log-level"] = environment[LOG_LEVEL_VARIABLE]
    if environment.get(JOIN_VARIABLE):
        values["join"] = environment[JOIN_VARIABLE] not in ("0", "")
    if given.get("uri"):
        path = given.get("socket-path") or given["uri"]
        values |= {"pod": True, "ksm": "initial", "socket-path": path}
        values.setdefault("log-to", "stderr,syslog")
    return settingsOf(values, file)


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of the options that set the same. An empty path is none, as it was."""
    paths = ("uri", "socket-path", "admin-socket", "config")
    return {
        "log-level" if name == "log" else name: value
        for name, value in values.items()
        if value or name not in paths
    }


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
    given = values.maps[0]
    if values["version"]:
        print(f"Version: {__version__}")
        return 0
    try:
        settings = settingsFrom(given, os.environ)
    except CCProxyError as problem:
        print(f"cc-proxy: {problem}", file=sys.stderr)
        return 1
    if rest:
        print(f"cc-proxy: ignored, for it is no flag: {' '.join(rest)}", file=sys.stderr)
    joined: tuple[Any, ...] = ()
    if settings.pod and settings.join:
        from ..net.binding import bind, isPassed
        from .join import CannotJoin, join

        listening: ListeningSocket | None = None
        try:
            if isPassed(os.environ):
                raise CannotJoin("the service manager has passed the socket, and keeps it")
            listening = bind(settings.socketPath, settings.socketMode, settings.socketGroup)
            join(listening)
        except CannotJoin as problem:
            if listening is not None and problem.given:
                # Or a daemon that has taken it could serve it, too.
                listening.revoke()
            joined = listening, str(problem)
        except CCProxyError as problem:
            print(f"cc-proxy: {problem}", file=sys.stderr)
            return 1
        else:
            return 0
    _run(settings, lambda: settingsFrom(given, os.environ), *joined)
    return 0


def _run(
    settings: Settings,
    read: Callable[[], Settings],
    listening: ListeningSocket | None = None,
    alone: str = "",
) -> None:
    if "twisted.internet.reactor" not in sys.modules:
        from ..net.reactor import install

        install()
    from twisted.internet import reactor

    from ..log.daemonlog import beginLogging
    from .proxy import ProxyService
    from .reload import Reload
    from .running import failingClearly, handleSignals, prepareProcess

    def onHangUp() -> None:
        reload()

    def onUser() -> None:
        service.dump()

    def onTerminate(insist: bool) -> bool:
        return service.handOver(insist)

    prepareProcess()
    handleSignals(reactor, onHangUp, onUser, onTerminate)
    log = beginLogging(settings, reactor)
    with failingClearly():
        service = ProxyService(settings, reactor, read)
        service.useLog(log)
        service.listeningService.taken = listening
        if alone:
            service.log.info("serving alone: {reason}", event="not-joined", reason=alone)
        reload = Reload(service, settings, read)
        service.privilegedStartService()
        service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
