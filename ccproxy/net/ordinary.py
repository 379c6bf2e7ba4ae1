"""
Ordinary Twisted protocols on a L{StreamTransport}.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import cast

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProducer,
    IProtocol,
    IPullProducer,
    IPushProducer,
    ITransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from .buffered import IBufferedProtocol
from .polling import Poller
from .transport import StreamTransport


def attach(
    poller: Poller,
    socket: socket.socket,
    peer: str,
    protocol: IProtocol | IBufferedProtocol,
    rest: bytes = b"",
) -> None:
    """
    Give a connected AF_UNIX stream socket to a protocol.

    @param peer: who is at the other end, for logs.
    @param protocol: one that provides L{IBufferedProtocol}, or any other.
    @param rest: what another process has taken from the socket, and not used.
    @raise OSError: the system cannot watch one more socket. The socket has been closed.
    """
    reader = cast(IBufferedProtocol, protocol)
    if not IBufferedProtocol.providedBy(protocol):
        reader = OrdinaryTransport(protocol, socket)
    try:
        transport = StreamTransport(poller, socket, peer)
        transport.rest = rest
        transport.begin(reader)
    except OSError:
        socket.close()
        raise


@implementer(ITransport, IConsumer, IPushProducer, IBufferedProtocol)
class OrdinaryTransport:
    """
    What a protocol knows as its transport: it writes whenever it likes, and all is delivered.

    What the peer does not take waits here, without a bound: a protocol that writes much registers
    a producer, as with any transport of Twisted. A failed write is not told; the end of the input
    is what ends the connection, unless the protocol is an L{IHalfCloseableProtocol}.
    """

    def __init__(self, protocol: IProtocol, socket: socket.socket) -> None:
        self.protocol = protocol
        self.disconnecting = False
        self._host = UNIXAddress(socket.getsockname() or None)
        self._peer = UNIXAddress(socket.getpeername() or None)
        self._connection: StreamTransport
        self._outgoing = bytearray()
        self._inputEnded = False
        self._producer: IPushProducer | IPullProducer | None = None
        self._streaming = False

    # What the connection calls.

    def makeConnection(self, connection: StreamTransport) -> None:
        """The connection begins."""
        self._connection = connection
        self.protocol.makeConnection(self)

    def bufferReceived(self, data: memoryview) -> int:
        """See L{IBufferedProtocol.bufferReceived}."""
        self.protocol.dataReceived(bytes(data))
        return len(data)

    def readConnectionLost(self) -> None:
        """See L{IBufferedProtocol}."""
        self._inputEnded = True
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        else:
            self._connection.close()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is closed."""
        self._outgoing.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        protocol = self.protocol
        del self.protocol
        protocol.connectionLost(reason)

    def writable(self) -> None:
        """See L{IBufferedProtocol.writable}."""
        self._flush()
        if not self._outgoing and self._streaming and self._producer is not None:
            self._producer.resumeProducing()

    def _pauseProducer(self) -> None:
        # One that is asked for each piece has no need, and no method, to be paused.
        if self._streaming:
            cast(IPushProducer, self._producer).pauseProducing()

    def drained(self) -> None:
        """The next one, for a producer that must be asked for each piece."""
        if self._producer is not None and not self._streaming:
            self._producer.resumeProducing()
            self._connection.notifyDrained()

    def peerGone(self) -> None:
        """See L{IBufferedProtocol.peerGone}: a protocol that has paused learns it later."""

    # What the protocol calls.

    def write(self, data: bytes) -> None:
        """See L{ITransport.write}."""
        paused = bool(self._outgoing)
        self._outgoing += data
        self._flush()
        if self._outgoing and not paused:
            self._pauseProducer()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """See L{ITransport.writeSequence}."""
        self.write(b"".join(iovec))

    def _flush(self) -> None:
        del self._outgoing[: self._connection.send([self._outgoing])]
        if self._connection.broken:
            self._outgoing.clear()
            if self._inputEnded or self.disconnecting:
                self._connection.close()
        elif self.disconnecting and not self._outgoing and self._producer is None:
            self._connection.close()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """See L{IConsumer.registerProducer}."""
        if self._producer is not None:
            raise RuntimeError(f"{self._producer} has been registered already")
        if self._connection.fileno() < 0:
            producer.stopProducing()
            return
        self._producer = cast(IPushProducer, producer)
        self._streaming = streaming
        if not streaming:
            self._connection.notifyDrained()
        elif self._outgoing:
            self._pauseProducer()

    def unregisterProducer(self) -> None:
        """See L{IConsumer.unregisterProducer}."""
        self._producer = None
        self._streaming = False
        if self.disconnecting:
            self._flush()

    def loseConnection(self) -> None:
        """Close when all has been written and no producer is left; nothing is read meanwhile."""
        self.disconnecting = True
        self._connection.pauseReading()
        self._flush()

    def abortConnection(self) -> None:
        """Close at once."""
        self._connection.close()

    def pauseProducing(self) -> None:
        """Read no more, until L{resumeProducing}."""
        self._connection.pauseReading()

    def resumeProducing(self) -> None:
        """Go on reading."""
        if not self.disconnecting:
            self._connection.resumeReading()

    def stopProducing(self) -> None:
        """See L{IPushProducer.stopProducing}."""
        self.loseConnection()

    def getHost(self) -> UNIXAddress:
        """Our address."""
        return self._host

    def getPeer(self) -> UNIXAddress:
        """The peer's address, which hardly ever has a name."""
        return self._peer
