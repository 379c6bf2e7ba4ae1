"""
Tests of L{ccproxy.net.ordinary}.
"""

from __future__ import annotations

import socket
from io import BytesIO
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IPullProducer,
    IPushProducer,
    ITransport,
)
from twisted.internet.protocol import Protocol
from twisted.protocols.basic import FileSender, LineReceiver
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ...net.buffered import IBufferedProtocol
from ...net.ordinary import OrdinaryTransport, attach
from ..sockets import SocketCase


class Remembering(Protocol):
    """Remembers what it is told."""

    transport: OrdinaryTransport

    def __init__(self) -> None:
        self.data = b""
        self.lost: list[Any] = []

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.append(reason.type)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Remembering):
    """Goes on after the end of its input."""

    def readConnectionLost(self) -> None:
        self.data += b"|"

    def writeConnectionLost(self) -> None:
        pass


@implementer(IPushProducer, IPullProducer)
class Producer:
    """Remembers what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class OrdinaryTransportTests(SocketCase):
    """Protocols that know nothing of us."""

    def serve(self, protocol: Any) -> tuple[OrdinaryTransport, socket.socket]:
        """Connect a protocol."""
        ours, theirs = self.pair()
        attach(self.poller, ours, "the peer", protocol)
        return protocol.transport, theirs

    def readAll(self, peer: socket.socket) -> bytes:
        """Read as the peer until the end."""
        peer.setblocking(False)
        received = b""
        while True:
            try:
                data = peer.recv(1 << 20)
            except BlockingIOError:
                self.turn()
                continue
            if not data:
                return received
            received += data

    def test_interfaces(self) -> None:
        """It is what Twisted expects of a transport."""
        transport, _ = self.serve(Remembering())
        for interface in (ITransport, IConsumer, IPushProducer, IBufferedProtocol):
            verifyObject(interface, transport)

    def test_bothWays(self) -> None:
        """Bytes go both ways; the end of the input is the end."""
        protocol = Remembering()
        transport, peer = self.serve(protocol)
        transport.write(b"hel")
        transport.writeSequence([b"l", b"o"])
        self.assertEqual(peer.recv(100), b"hello")
        peer.send(b"good")
        self.turn()
        peer.send(b"bye")
        peer.close()
        self.turn(2)
        self.assertEqual((protocol.data, protocol.lost), (b"goodbye", [ConnectionDone]))

    def test_lines(self) -> None:
        """Twisted's own protocols run on it."""

        class Lines(LineReceiver):
            transport: ITransport

            def lineReceived(self, line: bytes) -> None:
                self.sendLine(line.upper())
                if line == b"quit":
                    self.transport.loseConnection()

        _, peer = self.serve(Lines())
        peer.send(b"one\r\ntwo\r\nquit\r\nnot this\r\n")
        self.turn()
        self.assertEqual(self.readAll(peer), b"ONE\r\nTWO\r\nQUIT\r\n")

    def test_loseConnectionDelivers(self) -> None:
        """All that was written is delivered before the connection closes."""
        protocol = Remembering()
        transport, peer = self.serve(protocol)
        data = bytes(range(256)) * 8192
        transport.write(data)
        transport.write(b"the end")
        transport.loseConnection()
        peer.send(b"too late")
        self.assertEqual(self.readAll(peer), data + b"the end")
        self.turn()
        self.assertEqual((protocol.data, protocol.lost), (b"", [ConnectionDone]))

    def test_loseConnectionToOneWhoIsGone(self) -> None:
        """What can't be delivered any more does not keep the connection."""
        protocol = Remembering()
        transport, peer = self.serve(protocol)
        transport.write(bytes(1 << 20))
        transport.loseConnection()
        peer.close()
        self.turn(2)
        self.assertEqual(protocol.lost, [ConnectionDone])

    def test_abortConnection(self) -> None:
        """An abort waits for nothing."""
        protocol = Remembering()
        transport, _ = self.serve(protocol)
        transport.write(bytes(1 << 20))
        transport.abortConnection()
        transport.write(b"more")
        self.turn()
        self.assertEqual(protocol.lost, [ConnectionDone])

    def test_failedWriteReadsOn(self) -> None:
        """A failed write ends nothing before the input has been read."""
        protocol = Remembering()
        transport, peer = self.serve(protocol)
        peer.send(b"last words")
        peer.close()
        transport.write(b"hello?")
        transport.write(b"hello?")
        self.assertEqual(protocol.lost, [])
        self.turn(2)
        self.assertEqual((protocol.data, protocol.lost), (b"last words", [ConnectionDone]))

    def test_halfCloseable(self) -> None:
        """A protocol that wants to can answer after the end of its input."""
        protocol = HalfCloseable()
        transport, peer = self.serve(protocol)
        peer.send(b"question")
        peer.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((protocol.data, protocol.lost), (b"question|", []))
        transport.write(b"answer")
        transport.loseConnection()
        self.assertEqual(self.readAll(peer), b"answer")

    def test_halfCloseableAndGone(self) -> None:
        """If then the peer goes as well, a write is the end."""
        protocol = HalfCloseable()
        transport, peer = self.serve(protocol)
        peer.shutdown(socket.SHUT_WR)
        self.turn()
        peer.close()
        transport.write(b"answer")
        self.turn()
        self.assertEqual(protocol.lost, [ConnectionDone])

    def test_pauseProducing(self) -> None:
        """A protocol can pause its input."""
        protocol = Remembering()
        transport, peer = self.serve(protocol)
        transport.pauseProducing()
        peer.send(b"x")
        self.turn()
        self.assertEqual(protocol.data, b"")
        transport.resumeProducing()
        self.turn()
        self.assertEqual(protocol.data, b"x")
        transport.stopProducing()
        self.turn()
        self.assertEqual(protocol.lost, [ConnectionDone])

    def test_pushProducer(self) -> None:
        """A producer is paused once while something waits, and resumed when nothing does."""
        transport, peer = self.serve(Remembering())
        producer = Producer()
        transport.registerProducer(producer, True)
        self.assertRaises(RuntimeError, transport.registerProducer, producer, True)
        transport.write(b"little")
        self.assertEqual(producer.calls, [])
        transport.write(bytes(1 << 20))
        transport.write(bytes(1 << 20))
        self.assertEqual(producer.calls, ["pause"])
        received = 0
        while received < 6 + (2 << 20):
            if received < 1 << 20:
                self.assertEqual(producer.calls, ["pause"])
            received += len(peer.recv(1 << 20))
            self.turn()
        self.assertEqual(producer.calls, ["pause", "resume"])
        transport.abortConnection()
        self.turn()
        self.assertEqual(producer.calls, ["pause", "resume", "stop"])
        late = Producer()
        transport.registerProducer(late, True)
        self.assertEqual(late.calls, ["stop"])

    def test_producerRegisteredLate(self) -> None:
        """A producer that comes when something waits is paused at once."""
        transport, _ = self.serve(Remembering())
        transport.write(bytes(1 << 20))
        producer = Producer()
        transport.registerProducer(producer, True)
        self.assertEqual(producer.calls, ["pause"])

    def test_pullProducer(self) -> None:
        """A producer that is to be asked for each piece is asked until it has no more."""
        data = bytes(range(256)) * 4096
        transport, peer = self.serve(Remembering())
        done = FileSender().beginFileTransfer(BytesIO(data), transport)
        transport.loseConnection()
        self.assertEqual(self.readAll(peer), data)
        self.successResultOf(done)
