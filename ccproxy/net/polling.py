"""
One edge-triggered epoll for all sockets of the proxy, itself watched by the Twisted reactor.

Level-triggered polling, which is what a reactor does, would spin on a socket whose reading is
paused, and cannot tell when a peer has read all that was written. An edge can. The reactor sees
only the epoll's own descriptor, so any reactor will do; one that can be led waits in it.

The work is shared out evenly: a socket is read once, one buffer at most, and goes to the end of
a queue if it has more. Between the steps of that queue new events are taken, so that a keystroke
waits for a buffer or two of each flood and not for its end. After some steps the reactor has its
turn, for its timers and everything else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, epoll
from typing import Any, Protocol

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from .deadlines import Deadlines
from .monotonic import useMonotonicTime

#: Bits of an event that say that the peer has closed its end, wholly or for writing.
HANGUP = EPOLLRDHUP | EPOLLHUP | EPOLLERR
#: Bytes read from a socket at a time, and so the most between two looks at the others.
READ_SIZE = 256 << 10
#: Seconds for which the beginning of a unit waits in its socket for its end.
REST_TIMEOUT = 0.02
#: Events taken at a time.
MOST_EVENTS = 32
#: Steps of the queue in one turn of the reactor.
STEPS = 16
#: The connections that can wait to be accepted, by Linux's default for somaxconn.
MAX_BACKLOG = 4096

_READING = EPOLLIN | EPOLLRDHUP | EPOLLET


class ILedReactor(Interface):
    """A reactor that can wait for its events in a poller."""

    def follow(leader: Poller | None) -> int:
        """
        Call C{leader.turn} to wait from now on, or nobody's.

        @return: a descriptor that can be read when C{turn} has to return L{True}.
        """


class Reactor(Protocol):
    """What is needed of a reactor."""

    def addReader(self, reader: IReadDescriptor) -> None:
        """Watch a descriptor."""

    def removeReader(self, reader: IReadDescriptor) -> None:
        """Watch it no more."""

    def seconds(self) -> float:
        """Now."""

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object
    ) -> IDelayedCall:
        """Call C{callable(*args)} in C{delay} seconds."""


class Pollable(Protocol):
    """
    A transport, as the poller knows it.

    @ivar queued: whether it waits for its step in the queue; set by the poller alone.
    @ivar peer: the other end, for the log.
    """

    queued: bool

    @property
    def peer(self) -> str: ...

    def fileno(self) -> int:
        """Return the descriptor of its socket."""

    def happened(self, events: int) -> None:
        """
        React to a change of the socket.

        @param events: what C{epoll} says about it.
        """

    def proceed(self) -> None:
        """Do what was put off until this step."""

    def restOverdue(self) -> None:
        """React to a unit whose end has not come within L{REST_TIMEOUT}."""

    def fail(self, reason: Failure) -> None:
        """Close for a reason that its protocol is told."""


@implementer(IReadDescriptor)
class Poller:
    """
    Tells transports when there is something to do for their sockets.

    @ivar reactor: the reactor that watches the epoll.
    @ivar deadlines: calls at deadlines, after all input that came before them has been read.
    @ivar scratch: the buffer that all transports read into, or L{None} while one is using it.
    @ivar whenRest: called when a transport whose socket is kept is about to take so many bytes of
        input, and keeps the beginning of a unit itself, or no longer.
    """

    _log = Logger()

    def __init__(self, reactor: Reactor) -> None:
        useMonotonicTime(reactor)
        self.reactor = reactor
        self.deadlines = Deadlines(reactor, self)
        self.scratch: memoryview | None = memoryview(bytearray(READ_SIZE))
        self._epoll = epoll()
        self._transports: dict[int, Pollable] = {}
        self._queue: deque[Pollable] = deque()
        self._removed: set[int] = set()
        self._working = False
        self._nextTurn: IDelayedCall | None = None
        self.whenRest: Callable[[Any, int], object] | None = None
        self._cut: set[Pollable] = set()
        self._readable: dict[int, Callable[[], None]] = {}
        self._followerReady = False
        self._quiet = True
        self._leads = ILedReactor.providedBy(reactor)
        if ILedReactor.providedBy(reactor):
            self.watch(reactor.follow(self), self._callFollower)
        else:
            reactor.addReader(self)

    def add(self, transport: Pollable) -> None:
        """
        Watch a transport's socket for input and hang-up.

        @raise OSError: the system allows no more of them.
        """
        self._epoll.register(transport.fileno(), _READING)
        self._transports[transport.fileno()] = transport

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        """
        Watch another descriptor, until L{unwatch}: call C{readable} as long as it can be read.
        """
        self._epoll.register(fd, EPOLLIN)
        self._readable[fd] = readable

    def unwatch(self, fd: int) -> None:
        """Forget what L{watch} was told. It must be open still."""
        if self._readable.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)
            self._removed.add(fd)

    def _callFollower(self) -> None:
        self._followerReady = True

    def watchRoom(self, fd: int, wanted: bool) -> None:
        """
        Watch a transport's socket for room and for what the peer reads as well, or no more.

        If there is room now, that is an event too.
        """
        self._epoll.modify(fd, _READING | EPOLLOUT if wanted else _READING)

    def remove(self, transport: Pollable) -> None:
        """Forget a transport. Its socket must be open still, and be closed next."""
        fd = transport.fileno()
        if self._transports.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            # The descriptor may be another socket's before the events at hand are through.
            self._removed.add(fd)

    def enqueue(self, transport: Pollable) -> None:
        """Call C{transport.proceed()} soon, and never from within this call."""
        if not transport.queued:
            transport.queued = True
            self._queue.append(transport)
            if not self._working:
                self._continueSoon()

    def waitForRest(self, transport: Pollable) -> None:
        """Call C{transport.restOverdue()} in a while."""
        if not self._cut:
            self.reactor.callLater(REST_TIMEOUT, self._restsOverdue)
        self._cut.add(transport)

    def _restsOverdue(self) -> None:
        cut, self._cut = self._cut, set()
        for transport in cut:
            transport.restOverdue()

    def fileno(self) -> int:
        """The epoll's descriptor, for the reactor."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def doRead(self) -> None:
        """Do a turn's work."""
        self.turn(0)
        if self._queue:
            self._continueSoon()

    def turn(self, timeout: float | None) -> bool:
        """
        Wait for events, and do a turn's work.

        @param timeout: how many seconds to wait at most, or L{None} for as long as it takes.
        @return: whether there is something to do for the reactor that is led.
        """
        wait = 0 if self._queue else timeout
        self._working = True
        self._followerReady = False
        for _ in range(STEPS):
            self._takeEvents(wait)
            if not self._queue:
                break
            self._step()
            wait = 0
        self._working = False
        return self._followerReady

    def quiet(self) -> bool:
        """Return whether there was nothing to do since the last call."""
        quiet, self._quiet = self._quiet and not self._queue, True
        return quiet

    def maxRounds(self) -> int:
        """Return after how many turns all sockets and waiting connections have had one step."""
        return (len(self._transports) + MAX_BACKLOG) // STEPS

    def _takeEvents(self, timeout: float | None) -> None:
        if self._epoll.closed:
            return
        self._removed.clear()
        for fd, events in self._epoll.poll(timeout, MOST_EVENTS):
            self._quiet = False
            if fd in self._removed:
                continue
            transport = self._transports.get(fd)
            if transport is None:
                self._callReadable(fd)
                continue
            try:
                transport.happened(events)
            except Exception:
                self.failed(transport)

    def _callReadable(self, fd: int) -> None:
        try:
            self._readable[fd]()
        except Exception:
            self._log.failure("descriptor {fd} could not be served", fd=fd)

    def _step(self) -> None:
        transport = self._queue.popleft()
        transport.queued = False
        try:
            transport.proceed()
        except Exception:
            self.failed(transport)

    def failed(self, transport: Pollable) -> None:
        """A protocol has raised an exception: that costs it its connection, and nobody else."""
        reason = Failure()
        self._log.failure(
            "connection of {peer} closed", reason, event="connection-failed", peer=transport.peer
        )
        transport.fail(reason)

    def _continueSoon(self) -> None:
        if self._nextTurn is None and not self._leads:
            self._nextTurn = self.reactor.callLater(0, self._continue)

    def _continue(self) -> None:
        self._nextTurn = None
        self.doRead()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, and with it all connections end."""
        self.close()

    def logPrefix(self) -> str:
        """A name for the reactor's log."""
        return "ccproxy"

    def close(self) -> None:
        """End all connections, tell their protocols so, and stop for good."""
        if self._epoll.closed:
            return
        if ILedReactor.providedBy(self.reactor):
            self.reactor.follow(None)
        else:
            self.reactor.removeReader(self)
        if self._nextTurn is not None:
            self._nextTurn.cancel()
        self._working = True
        for transport in list(self._transports.values()):
            transport.fail(Failure(ConnectionLost("the proxy is stopping")))
        while self._queue:
            self._step()
        self._epoll.close()
