"""
How the daemon's process starts and ends, under C{twistd} and as C{cc-proxy}.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from ..errors import CCProxyError
from .logging import DaemonLog, laterOn
from .logsinks import FileWriter, Write, sinksOf, standardErrorWriter
from .logwriter import descriptorWriter

if TYPE_CHECKING:
    from .settings import Settings

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

    @param handOver: called with C{True} at SIGTERM: return whether the daemon hands over instead of
        ending. Called with C{False} at SIGUSR2: hand over, or go on if that cannot be done.

    The signals are held back from now on, and handled once the reactor runs: it brings handlers of
    its own then, after which C{twistd} would die of the signal that stopped it. Threads must be
    started after this, so that they leave signals to the main thread.
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)

    signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    reactor.callWhenRunning(install)


@contextmanager
def failingClearly(foreground: bool = True) -> Iterator[None]:
    """
    Turn what goes wrong while the daemon starts into a line of the log and exit status 1.

    @param foreground: whether this is the process that was started. In the background the exception
        goes on to C{twistd}, which has another process waiting to be told of it.
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
    ) -> None:
        """
        @param service: the daemon.
        @param settings: what was said behind C{twistd ccproxy}.
        @param twistd: the options of C{twistd} itself.
        @param reactor: what C{twistd} runs.
        @param reload: called for SIGHUP.
        @param dump: called for SIGUSR1.
        @param handOver: see L{handleSignals}.
        """
        super().__init__()
        service.setServiceParent(self)
        self._reactor = reactor
        self._reload = reload
        self._dump = dump
        self._handOver = handOver
        self._foreground = bool(twistd.get("nodaemon"))
        self.daemonLog = _twistdLog(settings, twistd, reactor)
        if self._foreground and twistd.get("pidfile") == os.path.abspath("twistd.pid"):
            # In the foreground a pid file serves nobody, and one that another daemon has left in
            # the same folder would stand in the way.
            twistd["pidfile"] = ""

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, and set its log: C{twistd} looks for it there before it starts."""
        super().setServiceParent(parent)
        if self.daemonLog is not None and isinstance(parent, Componentized):
            self.daemonLog.flushAtExit()
            parent.setComponent(ILogObserver, self.daemonLog)

    def privilegedStartService(self) -> None:
        """Start, after the last fork and before privileges are given up."""
        prepareProcess()
        handleSignals(self._reactor, self._reload, self._dump, self._handOver)
        if self.daemonLog is not None:
            self.daemonLog.start()
        with failingClearly(self._foreground):
            super().privilegedStartService()

    def startService(self) -> None:
        """Start."""
        with failingClearly(self._foreground):
            super().startService()


def _twistdLog(
    settings: Settings, twistd: MutableMapping[str, Any], reactor: Any
) -> DaemonLog | None:
    """The log, with what C{twistd} was told for stderr, or L{None} if that is beyond us."""
    name, foreground = twistd.get("logfile"), twistd.get("nodaemon")
    syslog = bool(twistd.get("syslog"))
    if twistd.get("logger") or (name == "-" and not foreground and not syslog):
        # A daemon in the background has no stdout: twistd says so itself.
        return None

    def standardError() -> Write:
        if name == "-":
            return descriptorWriter(1)
        if name or not foreground:
            return FileWriter(name or "twistd.log")
        return standardErrorWriter()

    if syslog:
        names = ["syslog" if each == "stderr" else each for each in settings.logTo]
        settings = attrs.evolve(settings, logTo=tuple(dict.fromkeys(names)))
    return DaemonLog(settings, sinksOf(settings, standardError), laterOn(reactor))
