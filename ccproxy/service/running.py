"""
How the daemon's process starts and ends, under C{twistd} and as C{cc-proxy}.
"""

from __future__ import annotations

import faulthandler
import getopt
import os
import pwd
import resource
import signal
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import attrs
from twisted.application.service import IProcess, IService, MultiService
from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, Logger, LogLevel, globalLogBeginner
from twisted.python.components import Componentized
from twisted.python.util import gidFromString, uidFromString

from ..errors import CCProxyError
from ..log.daemonlog import DaemonLog, laterOn
from ..log.sinks import FileWriter, Write, sinksOf, standardErrorWriter
from ..log.writer import descriptorWriter

if TYPE_CHECKING:
    from ..config.settings import Settings

_log = Logger()


def prepareProcess() -> None:
    """
    Allow this process as many open files as it may allow itself, and let it say where it was if it
    is aborted, as the watchdog does with one that hangs.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Where even that is refused, the kernel's own bound (fs.nr_open) is lower by now.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)


def handleSignals(
    reactor: Any,
    reload: Callable[[], object],
    dump: Callable[[], object],
    handOver: Callable[[bool], bool] = lambda insist: False,
) -> None:
    """
    Let SIGTERM and SIGINT end the daemon in order, with exit status 0, however often they come,
    SIGHUP make it read its configuration again, SIGUSR1 write its state to the log, and SIGUSR2
    restart it.

    The signals are held back from now on, and handled once the reactor runs: it brings handlers of
    its own then, after which C{twistd} would die of the signal that stopped it. Threads must be
    started after this, so that they leave signals to the main thread.

    @param handOver: called with C{True} at SIGTERM: return whether the daemon hands over instead of
        ending. Called with C{False} at SIGUSR2: hand over, or go on if that cannot be done.
    """

    def stop(name: str) -> None:
        if name == "SIGTERM" and handOver(True):
            return
        try:
            reactor.stop()
        except ReactorNotRunning:
            _log.info("{signal}: stopping already", signal=name)
        else:
            _log.info("{signal}: stopping", signal=name)

    def onSignal(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(stop, signal.Signals(number).name)

    def onHangUp(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(reload)

    def onUser(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(dump)

    def onRestart(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(handOver, False)

    handlers = {
        signal.SIGTERM: onSignal,
        signal.SIGINT: onSignal,
        signal.SIGHUP: onHangUp,
        signal.SIGUSR1: onUser,
        signal.SIGUSR2: onRestart,
    }

    def install() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if os.getpid() == 1:  # of a container
            from ..agent.reaping import beProcess1

            beProcess1(reactor.callFromThread)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)

    signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    reactor.callWhenRunning(install)


@contextmanager
def failingClearly(foreground: bool = True) -> Iterator[None]:
    """
    Turn what goes wrong while the daemon starts into a line of the log and exit status 1.

    @param foreground: whether this is the process that was started. In the background the exception
        goes on to C{twistd}, which has another process waiting to be told of it. Its traceback,
        which C{twistd} would log line by line, is shown nowhere.
    @raise SystemExit: something went wrong in the foreground.
    """
    try:
        yield
    except Exception as problem:
        if isinstance(problem, (CCProxyError, OSError)):
            _log.error("cannot start: {problem}", problem=problem)
        else:
            _log.failure("cannot start")
        if not foreground:
            sys.excepthook = lambda *unused: None
            raise
        raise SystemExit(1) from None


class TwistdService(MultiService):
    """
    What C{twistd} runs: the daemon, with its own log and signals instead of those of C{twistd}.

    @ivar daemonLog: the log, or L{None} where it is C{twistd}'s.
    """

    def __init__(
        self,
        service: IService,
        settings: Settings,
        twistd: MutableMapping[str, Any],
        reactor: Any,
        reload: Callable[[], object],
        dump: Callable[[], object],
        handOver: Callable[[bool], bool] = lambda insist: False,
        give: Callable[[int, int], object] = lambda uid, gid: None,
    ) -> None:
        """
        @param service: the daemon.
        @param settings: what was said behind C{twistd ccproxy}.
        @param twistd: the options of C{twistd} itself, as of L{runnerOptions}.
        @param reactor: what C{twistd} runs.
        @param reload: called for SIGHUP.
        @param dump: called for SIGUSR1.
        @param handOver: see L{handleSignals}.
        @param give: called with the user and the group that C{twistd} is about to become.
        """
        super().__init__()
        service.setServiceParent(self)
        self._reactor = reactor
        self._reload = reload
        self._dump = dump
        self._handOver = handOver
        self._give = give
        self._twistd = twistd
        self._process: Any = None
        self._foreground = bool(twistd.get("nodaemon"))
        self._prepared = False
        self.daemonLog = _twistdLog(settings, twistd, reactor)
        # twist makes its log of this, and begins to log after it has started the service.
        self._logsLate = "fileLogObserverFactory" in twistd
        if self._logsLate:
            twistd["fileLogObserverFactory"] = lambda file: self.daemonLog
            twistd["logLevel"] = LogLevel.debug

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, and set its log: C{twistd} looks for it there before it starts."""
        super().setServiceParent(parent)
        self._process = IProcess(parent, None)
        if self.daemonLog is not None and isinstance(parent, Componentized):
            self.daemonLog.flushAtExit()
            parent.setComponent(ILogObserver, self.daemonLog)

    def privilegedStartService(self) -> None:
        """Start, after the last fork and before privileges are given up."""
        self._prepared = True
        prepareProcess()
        handleSignals(self._reactor, self._reload, self._dump, self._handOver)
        if self.daemonLog is not None:
            self.daemonLog.start()
        with self._failingClearly():
            super().privilegedStartService()
            self._giveFiles()

    def _giveFiles(self) -> None:
        """Give what was made with privileges to the user that C{twistd} becomes without them."""
        uid, gid = self._twistd.get("uid"), self._twistd.get("gid")
        if self._process is not None:
            uid = self._process.uid if uid is None else uid
            gid = self._process.gid if gid is None else gid
        if uid is not None and gid is None:
            gid = pwd.getpwuid(uid).pw_gid
        if os.geteuid() or (uid, gid) == (None, None):
            return
        uid, gid = (-1 if number is None else number for number in (uid, gid))
        self._give(uid, gid)
        if self._twistd.get("pidfile"):
            os.chown(self._twistd["pidfile"], uid, gid)

    def startService(self) -> None:
        """Start. C{twist} calls this alone."""
        if not self._prepared:
            self.privilegedStartService()
        with self._failingClearly():
            super().startService()

    @contextmanager
    def _failingClearly(self) -> Iterator[None]:
        try:
            with failingClearly(self._foreground):
                yield
        except BaseException:
            if self._foreground and self._twistd.get("pidfile"):
                with suppress(OSError):  # twistd does so itself in the background
                    os.unlink(self._twistd["pidfile"])
            if self._logsLate and self.daemonLog is not None:
                globalLogBeginner.beginLoggingTo([self.daemonLog], redirectStandardIO=False)
            raise


def runnerOptions(parent: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
    """
    Return the options of the program that runs the service, by the names that C{twistd} has.

    @param parent: the options of C{twistd} or C{twist}, or L{None} if the service is made by a
        C{.tac} file or another program.
    """
    if parent is None:
        return _ofTwistd(sys.argv)
    if "fileLogObserverFactory" in parent:
        parent["nodaemon"] = True
    return parent


def _ofTwistd(words: Sequence[str]) -> dict[str, Any]:
    """Options on the command line of C{twistd}, which does not show them to a C{.tac} file."""
    from twisted.scripts._twistd_unix import ServerOptions

    if os.path.basename(words[0]) != "twistd":
        return {"nodaemon": True}
    known = ServerOptions()
    given = getopt.getopt(list(words[1:]), known.shortOpt, known.longOpt)[0]
    found: dict[str, Any] = {known.synonyms[name.lstrip("-")]: value for name, value in given}
    coerce = {"uid": uidFromString, "gid": gidFromString}
    for name, value in found.items():
        # An option without a value is one that was given.
        found[name] = coerce.get(name, str)(value) if f"{name}=" in known.longOpt else True
    return found


def _twistdLog(
    settings: Settings, twistd: MutableMapping[str, Any], reactor: Any
) -> DaemonLog | None:
    """The log, with what the runner was told for stderr, or L{None} if that is beyond us."""
    name, foreground = twistd.get("logfile"), twistd.get("nodaemon")
    file, syslog = twistd.get("logFile"), bool(twistd.get("syslog"))
    if twistd.get("logger") or (name == "-" and not foreground and not syslog):
        # A daemon in the background has no stdout: twistd says so itself.
        return None

    def standardError() -> Write:
        if file is not None:
            return descriptorWriter(file.fileno())
        if name == "-":
            return descriptorWriter(1)
        if name or not foreground:
            return FileWriter(name or "twistd.log")
        return standardErrorWriter()

    if syslog:
        names = ["syslog" if each == "stderr" else each for each in settings.logTo]
        settings = attrs.evolve(settings, logTo=tuple(dict.fromkeys(names)))
    return DaemonLog(settings, sinksOf(settings, standardError), laterOn(reactor))
