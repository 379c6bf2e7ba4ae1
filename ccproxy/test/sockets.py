"""
For tests of the connection layer: real sockets, a poller that is turned by hand, and a sink that
remembers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ..interfaces import IConnection, IStreamSink
from ..net.adapter import SinkProtocol
from ..net.ordinary import attach
from ..net.polling import Poller
from ..persist.journal import Journal

#: The size of the poller's buffer: less than a socket holds.
READ_SIZE = 64 << 10


def closeJournal(journal: Journal) -> None:
    """Stop a journal, and close the files that it leaves for the next process."""
    journal._registry.context.whenChanged = journal._poller.whenRest = None
    for pipe in journal._pipes:
        os.close(pipe.reading)
        os.close(pipe.writing)
    if journal._file >= 0:
        os.close(journal._file)


@implementer(IStreamSink)
class RecordingSink:
    """
    Uses what it gets and remembers it.

    @ivar data: all bytes used.
    @ivar calls: the names of the other calls, C{received} included.
    @ivar use: says how many bytes of an offer are used.
    """

    def __init__(self, connection: IConnection, use: Callable[[memoryview], int] = len) -> None:
        self.connection: Any = connection
        self.use = use
        self.data = b""
        self.calls: list[str] = []

    def received(self, data: memoryview) -> int:
        self.calls.append("received")
        used = self.use(data)
        self.data += data[:used]
        return used

    def ended(self) -> None:
        self.calls.append("ended")

    def writable(self) -> None:
        self.calls.append("writable")

    def drained(self) -> None:
        self.calls.append("drained")

    def peerGone(self) -> None:
        self.calls.append("peerGone")


class RecordingProtocol(SinkProtocol):
    """
    A protocol whose sink remembers.

    @ivar lost: how often C{connectionLost} was called.
    """

    sink: RecordingSink
    lost = 0

    def __init__(self, use: Callable[[memoryview], int] = len) -> None:
        self._use = use

    def makeSink(self, connection: IConnection) -> RecordingSink:
        return RecordingSink(connection, self._use)

    def connectionLost(self, *reason: Any) -> None:
        self.lost += 1
        super().connectionLost(*reason)


class SocketCase(SynchronousTestCase):
    """A test with a poller whose turns it takes itself."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.poller = Poller(self.reactor)
        self.poller.scratch = memoryview(bytearray(READ_SIZE))
        self.addCleanup(self.poller.close)

    def turn(self, times: int = 1) -> None:
        """What a reactor does in a turn."""
        for _ in range(times):
            self.poller.doRead()
            self.reactor.advance(0)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two connected sockets; ours first."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(5)
        self.addCleanup(theirs.close)
        return ours, theirs

    def connected(
        self, use: Callable[[memoryview], int] = len
    ) -> tuple[RecordingSink, Any, socket.socket]:
        """
        A transport with a sink that remembers.

        @param use: see L{RecordingSink.use}.
        @return: the sink, its connection, and the peer's socket.
        """
        ours, theirs = self.pair()
        protocol = RecordingProtocol(use)
        attach(self.poller, ours, "the peer", protocol)
        return protocol.sink, protocol.connection, theirs
