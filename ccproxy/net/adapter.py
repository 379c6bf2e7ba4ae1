"""
Between the core's sinks and connections, and Twisted's protocols and transports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..core.context import Clock, Wait, cancel
from ..interfaces import IConnection, IStreamSink
from ..wire.decoder import Buffer
from .buffered import IBufferedProtocol
from .sockets import hungUp
from .transport import StreamTransport

#: Seconds between two checks whether the peer of a connection that is not read has hung up.
HANGUP_INTERVAL = 1.0


@implementer(IBufferedProtocol, IHalfCloseableProtocol)
class SinkProtocol(Protocol):
    """
    A protocol whose bytes a sink takes, over a L{StreamTransport} or any other transport.

    @ivar clock: what a L{TwistedConnection} puts things off with.
    @ivar connection: the connection, as the core knows it.
    @ivar sink: the sink.
    """

    clock: Clock
    connection: StreamTransport | TwistedConnection
    sink: IStreamSink
    _ended = False

    def makeSink(self, connection: IConnection) -> IStreamSink:
        """
        Make the sink of a connection that begins.

        @param connection: the connection; nothing is received before this returns.
        """
        raise AssertionError("a subclass says what its sink is")

    def connectionMade(self) -> None:
        """The connection begins."""
        if IConnection.providedBy(self.transport):
            self.connection = cast(StreamTransport, self.transport)
        else:
            self.connection = TwistedConnection(self, self.transport, self.clock)
        self.sink = self.makeSink(self.connection)

    def bufferReceived(self, data: memoryview) -> int:
        """See L{IBufferedProtocol.bufferReceived}."""
        return self.sink.received(data)

    def dataReceived(self, data: bytes) -> None:
        """Bytes have come, from an ordinary transport."""
        cast(TwistedConnection, self.connection).dataReceived(data)

    def writable(self) -> None:
        """See L{IBufferedProtocol.writable}."""
        self.sink.writable()

    def drained(self) -> None:
        """See L{IBufferedProtocol.drained}."""
        self.sink.drained()

    def peerGone(self) -> None:
        """See L{IBufferedProtocol.peerGone}."""
        self.sink.peerGone()

    def readConnectionLost(self) -> None:
        """The input has ended; the peer may read on."""
        self._inputEnded(False)

    def writeConnectionLost(self) -> None:
        """Never called, as we never close our half alone."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is closed.

        @param reason: why.
        """
        self._inputEnded(True)

    def _inputEnded(self, closed: bool) -> None:
        connection = self.connection
        if self._ended and closed and not connection.disconnecting:
            self.sink.peerGone()
        if not (isinstance(connection, TwistedConnection) and connection.holdEnd(closed)):
            self.tellEnd()

    def tellEnd(self) -> None:
        """Tell the sink of the end, unless it knows it or has closed the connection."""
        connection = self.connection
        if not (self._ended or connection.disconnecting):
            self._ended = True
            self.sink.ended()
            if isinstance(connection, TwistedConnection):
                connection.lookForHangup()


@implementer(IConnection, IPushProducer)
class TwistedConnection:
    """
    Any connection of Twisted's, as the core wants it: a TCP or TLS one, or a test's.

    Less is known about it than about a L{StreamTransport}: nobody can tell what the peer has
    read, and a failed write ends the connection.

    @ivar disconnecting: whether the sink has closed it.
    """

    def __init__(self, protocol: SinkProtocol, transport: Any, clock: Clock) -> None:
        """
        @param protocol: whose sink takes the bytes.
        @param transport: an C{ITransport} that is an C{IConsumer} and an C{IPushProducer} too.
        """
        self.peer = str(transport.getPeer())
        self.disconnecting = False
        self._protocol = protocol
        self._transport = transport
        self._clock = clock
        self._rest = bytearray()
        self._paused = False
        self._closed = False
        self._endHeld = False
        self._full = False
        self._roomWanted = False
        self._drainWanted = False
        self._soon: Wait | None = None
        self._look: Wait | None = None
        transport.registerProducer(self, True)

    # Reading.

    def dataReceived(self, data: bytes) -> None:
        """Bytes have come."""
        self._rest += data
        self._offer()

    def _offer(self) -> None:
        if self._rest and not self._paused and not self.disconnecting:
            used = self._protocol.sink.received(memoryview(self._rest))
            del self._rest[:used]

    def holdEnd(self, closed: bool) -> bool:
        """
        The input has ended, which the sink is not told while it has paused reading.

        @param closed: whether the whole connection has ended.
        @return: whether it is told later.
        """
        self._closed = closed
        self._endHeld = self._paused and not self.disconnecting
        return self._endHeld

    def pauseReading(self) -> None:
        """See L{IConnection.pauseReading}."""
        if not self._paused:
            self._paused = True
            self._transport.pauseProducing()
            self.lookForHangup()

    def lookForHangup(self) -> None:
        """Tell the sink if the peer hangs up while nothing is read."""
        cancel(self._look)
        if not (self._closed or self.disconnecting):
            self._look = self._clock.callLater(HANGUP_INTERVAL, self._lookForHangup)

    def _lookForHangup(self) -> None:
        if self.hungUp():
            self._protocol.sink.peerGone()
        else:
            self._look = self._clock.callLater(HANGUP_INTERVAL, self._lookForHangup)

    def resumeReading(self) -> None:
        """See L{IConnection.resumeReading}."""
        if self._paused:
            self._paused = False
            cancel(self._look)
            if not self._closed:
                self._transport.resumeProducing()
            self._callSoon()

    def hungUp(self) -> bool:
        """See L{IConnection.hungUp}."""
        fileno = getattr(self._transport, "fileno", None)
        return self._closed or (fileno is not None and hungUp(fileno()))

    def readNow(self) -> None:
        """See L{IConnection.readNow}. Only the reactor can read, and does so soon."""

    # Writing.

    def send(self, data: Sequence[Buffer]) -> int:
        """See L{IConnection.send}."""
        if self._full or self._closed or self.disconnecting:
            self._roomWanted = True
            return 0
        # Twisted may keep what it gets, and the buffers are not ours.
        self._transport.writeSequence([bytes(buffer) for buffer in data])
        return sum(map(len, data))

    def unsent(self) -> int:
        """See L{IConnection.unsent}."""
        return 0

    def notifyDrained(self) -> None:
        """See L{IConnection.notifyDrained}."""
        self._drainWanted = True
        self._callSoon()

    def pauseProducing(self) -> None:
        """The transport has enough for now."""
        self._full = True

    def resumeProducing(self) -> None:
        """The transport has room again."""
        self._full = False
        self._callSoon()

    def stopProducing(self) -> None:
        """The transport takes no more."""
        self._full = True

    # Both.

    def _callSoon(self) -> None:
        if self._soon is None and not self.disconnecting:
            self._soon = self._clock.callLater(0, self._continue)

    def _continue(self) -> None:
        self._soon = None
        sink = self._protocol.sink
        if not (self._full or self._closed):
            if self._roomWanted:
                self._roomWanted = False
                sink.writable()
            if self._drainWanted and not self.disconnecting:
                self._drainWanted = False
                sink.drained()
        self._offer()
        if self._endHeld and not self._paused:
            self._protocol.tellEnd()

    def close(self) -> None:
        """See L{IConnection.close}."""
        if not self.disconnecting:
            self.disconnecting = True
            cancel(self._soon)
            cancel(self._look)
            self._transport.unregisterProducer()
            self._transport.loseConnection()
