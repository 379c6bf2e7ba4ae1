"""
How the daemon restarts: the process before, this one, and the next.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..config.machine import checkMachine
from ..errors import CCProxyError
from ..net.binding import ListeningSocket, isPassed
from .listeners import JoinedPods
from .restarting import HANDED_OVER, KEEP_VARIABLE, WORKING_DESCRIPTORS
from .store import DescriptorStore

if TYPE_CHECKING:
    from ..config.settings import Settings
    from ..net.connecting import Connector
    from ..net.listening import UNIXListener
    from ..net.notify import Notifier
    from .handover import Handover

#: Seconds that a service may take to stop. A machine of processes gives up after 10 of them.
STOP_TIMEOUT = 15.0
#: Descriptors that clients cannot take, so that a restart always has those that it opens. With
#: the 10 or more that the daemon has open besides and does not hand over, they exceed
#: WORKING_DESCRIPTORS: all connections together fit into the store.
RESERVE = WORKING_DESCRIPTORS - 8


async def stopInTime(service: Any, name: str, deadlines: IReactorTime) -> None:
    """
    Stop a service. If that fails or takes more than L{STOP_TIMEOUT}, log it and go on.

    @param name: what the log calls the service.
    @param deadlines: measures the time.
    """
    overdue = False

    def late(result: object, timeout: float) -> None:
        nonlocal overdue
        overdue = True

    try:
        stopping = service.stopService()
        if isinstance(stopping, Deferred):
            await stopping.addTimeout(STOP_TIMEOUT, deadlines, late)
    except Exception:
        Restart.log.failure("{service}: the stop has failed", event="stop-failed", service=name)
    if overdue:
        Restart.log.error(
            "{service}: not stopped within {seconds:g} s; going on without waiting",
            event="stop-failed",
            service=name,
            seconds=STOP_TIMEOUT,
        )


class Listening(Protocol):
    """
    The client socket.

    @ivar taken: the listening socket to use, instead of a new one.
    """

    taken: ListeningSocket | None

    @property
    def listener(self) -> UNIXListener | None:
        """What accepts clients, once it has started."""


def _advice(wanted: bool, managed: bool) -> str:
    if managed:
        return "start the daemon with --keep-descriptors"
    if wanted:
        return (
            "--keep-descriptors needs a service manager; start the daemon from its systemd unit or"
            " with ccproxyctl supervise"
        )
    return (
        "start the daemon with ccproxyctl supervise, or from its systemd unit with"
        " --keep-descriptors"
    )


class Restart:
    """
    @ivar keeps: whether SIGTERM hands over, where there is somebody to keep what is handed over.
    @ivar advice: how to start the daemon so that it can restart, if it cannot.
    """

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        environment: MutableMapping[str, str],
        notifier: Notifier,
        connector: Connector,
        listening: Listening,
        pods: JoinedPods,
        embedded: IService,
        flushLog: Callable[[], object],
    ) -> None:
        """
        @param read: reads the configuration, as the next process will.
        @param environment: that of the process; what is not for its children is removed.
        @param embedded: the embedded VMs, which no restart keeps.
        @param flushLog: writes the last lines of the log.
        """
        self._read = read
        self._environment = environment
        self._connector = connector
        self._reactor: Any = connector.poller.reactor
        self._listening = listening
        self._pods = pods
        self._embedded = embedded
        self._flushLog = flushLog
        self._underWay = self._insists = False
        self._reserve: list[int] = []
        wanted = settings.keepDescriptors or environment.pop(KEEP_VARIABLE, "") == "1"
        self.keeps = wanted and notifier.present
        self._useless = wanted and not notifier.present
        self.advice = "" if self.keeps else _advice(wanted, notifier.present)
        self._store = DescriptorStore(notifier, environment)
        self._handover: Handover | None = None

    def take(self) -> None:
        """Look at what the process before has left."""
        if self._useless:
            self.log.warn(
                "--keep-descriptors: no service manager is there to keep them, so SIGTERM ends"
                " all connections; start the daemon from a unit with NotifyAccess= and"
                " FileDescriptorStoreMax=, or with ccproxyctl supervise",
                event="store-missing",
            )
        if not (self.keeps or isPassed(self._environment)):
            return  # and a daemon without either has no use for what this imports
        from .handover import Handover

        self._handover = Handover(self._connector, self._store, self._pods)
        self._handover.take(self._environment)
        if self._handover.listening is not None:
            self._listening.taken = self._handover.listening

    def resume(self) -> None:
        """Go on with it."""
        if self._handover is not None:
            self._handover.resume(self._listening.listener, self.keeps)
        self._fillReserve()

    def _fillReserve(self) -> None:
        if self.keeps:
            wanted = min(RESERVE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 5)
            with suppress(OSError):
                while len(self._reserve) < wanted:
                    self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @contextmanager
    def _usingReserve(self) -> Iterator[None]:
        """Free the reserved descriptors for a while."""
        while self._reserve:
            os.close(self._reserve.pop())
        try:
            yield
        finally:
            self._fillReserve()

    def check(self) -> None:
        """
        Look whether the next process could use the configuration.

        @raise CCProxyError: it could not, and nothing must be handed over to it.
        """
        with self._usingReserve():
            checkMachine(self._read())

    def attempt(self) -> bool:
        """
        Hand over to the next process, and go on if that cannot be done.

        @return: whether it is tried.
        """
        try:
            self.check()
        except CCProxyError as problem:
            self.log.error(
                "nothing is handed over, since the next daemon could not start with its"
                " configuration: {problem}",
                event="handover-failed",
                problem=problem,
            )
            return False
        if not self.keeps:
            self.log.warn(
                "SIGUSR2 restarts nothing, as nobody keeps the connections meanwhile: {advice}",
                event="store-missing",
                advice=self.advice,
            )
        return self.begin(insist=False)

    def begin(self, insist: bool = True) -> bool:
        """
        Hand over to the next process, if that can be; the daemon ends then.

        @param insist: end in order if handing over fails.
        @return: whether it is tried, or is under way already.
        """
        self._insists = self._insists or insist
        if self.keeps and not self._underWay:
            self._underWay = True
            self.log.info("restarting", event="restarting")
            trying = Deferred.fromCoroutine(self._handOver())
            trying.addErrback(lambda failure: self.log.failure("cannot hand over", failure))
        return self.keeps

    async def _handOver(self) -> None:
        deadlines = self._connector.poller.deadlines
        await stopInTime(self._embedded, "embedded VMs", deadlines)
        listener, handover = self._listening.listener, self._handover
        done = False
        try:
            with self._usingReserve():
                done = handover is not None and handover.handOver(listener)
        except Exception:
            # Even so: who asked for an end shall not have to kill this process.
            self.log.failure("cannot hand over", event="handover-failed")
        if done:
            self._end()
        insists = self._insists
        self._underWay = self._insists = False
        if not insists:
            self._embedded.startService()
            return
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            self.log.debug("stopping already", event="stopping")

    def _end(self) -> None:
        """
        End this process at once: its sockets are not its own any more, and an ordinary end would
        close them in the eyes of their peers.
        """
        self._flushLog()
        for stream in (sys.stdout, sys.stderr):
            # One that was closed when the process began is None.
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(HANDED_OVER)
