"""
Tests of L{ccproxy.net.adapter}.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer, ITransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyClass, verifyObject

from ...interfaces import IConnection
from ...net import adapter
from ...net.adapter import HANGUP_INTERVAL, SinkProtocol, TwistedConnection
from ...net.buffered import IBufferedProtocol
from ..sockets import RecordingProtocol, RecordingSink


class AdapterTests(SynchronousTestCase):
    """Sinks on Twisted's transports."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.protocol = RecordingProtocol()
        self.protocol.clock = self.clock
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)
        self.sink = self.protocol.sink
        self.connection: Any = self.protocol.connection

    def lose(self) -> None:
        """The connection ends."""
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def test_interfaces(self) -> None:
        """All are what they claim to be."""
        verifyObject(IConnection, self.connection)
        verifyObject(IPushProducer, self.connection)
        verifyClass(IBufferedProtocol, SinkProtocol)
        verifyClass(IHalfCloseableProtocol, SinkProtocol)
        self.assertIsInstance(self.connection, TwistedConnection)
        self.assertIn("192.168.1.1", self.connection.peer)

    def test_needsASink(self) -> None:
        """A subclass has to say what its sink is."""
        self.assertRaises(AssertionError, SinkProtocol().makeSink, self.connection)

    def test_receives(self) -> None:
        """What is not used is offered with what comes next."""
        self.sink.use = lambda data: len(data) // 2 * 2
        self.protocol.dataReceived(b"abc")
        self.assertEqual(self.sink.data, b"ab")
        self.protocol.dataReceived(b"d")
        self.assertEqual(self.sink.data, b"abcd")

    def test_paused(self) -> None:
        """A paused sink is offered nothing, whatever the transport does, and its rest later."""
        self.sink.use = lambda data: 1
        self.protocol.dataReceived(b"ab")
        self.connection.pauseReading()
        self.connection.pauseReading()
        self.assertEqual(self.transport.producerState, "paused")
        self.protocol.dataReceived(b"c")
        self.assertEqual(self.sink.data, b"a")
        self.sink.use = len
        self.connection.resumeReading()
        self.connection.resumeReading()
        self.assertEqual(self.sink.data, b"a")
        self.clock.advance(0)
        self.assertEqual(self.sink.data, b"abc")
        self.assertEqual(self.transport.producerState, "producing")

    def test_send(self) -> None:
        """All is taken, and the buffers are free again."""
        buffer = bytearray(b"two")
        self.assertEqual(self.connection.send([b"one", memoryview(buffer)]), 6)
        buffer[:] = b"xxx"
        self.assertEqual(self.transport.value(), b"onetwo")
        self.assertEqual(self.connection.unsent(), 0)

    def test_full(self) -> None:
        """A full transport takes nothing; when it has room that is told, if it matters."""
        producer: Any = self.transport.producer
        producer.pauseProducing()
        producer.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(self.sink.calls, [])
        producer.pauseProducing()
        self.assertEqual(self.connection.send([b"x"]), 0)
        self.connection.notifyDrained()
        self.clock.advance(0)
        self.assertEqual(self.sink.calls, [])
        producer.resumeProducing()
        self.assertEqual(self.sink.calls, [])
        self.clock.advance(0)
        self.assertEqual(self.sink.calls, ["writable", "drained"])
        self.assertEqual(self.connection.send([b"x"]), 1)

    def test_drained(self) -> None:
        """Nobody can tell what the peer has read, so drained comes soon."""
        self.connection.notifyDrained()
        self.assertEqual(self.sink.calls, [])
        self.clock.advance(0)
        self.assertEqual(self.sink.calls, ["drained"])

    def test_ended(self) -> None:
        """The end is told once, and a half-closed connection can still be written to."""
        self.protocol.readConnectionLost()
        self.assertEqual(self.connection.send([b"x"]), 1)
        self.connection.notifyDrained()
        self.lose()
        self.assertEqual(self.sink.calls, ["ended", "peerGone"])
        self.assertEqual(self.connection.send([b"x"]), 0)
        self.assertTrue(self.connection.hungUp())
        self.clock.advance(0)
        self.assertEqual(self.sink.calls, ["ended", "peerGone"])

    def test_hangsUpAfterEnd(self) -> None:
        """A hang-up after the end of the input is noticed within a second."""
        gone: list[int] = []
        self.patch(adapter, "hungUp", gone.count)
        self.transport.fileno = lambda: 7  # type: ignore[attr-defined]
        self.connection.pauseReading()
        self.protocol.readConnectionLost()
        self.connection.resumeReading()
        self.clock.advance(0)
        self.clock.advance(HANGUP_INTERVAL)
        self.assertEqual(self.sink.calls, ["ended"])
        gone.append(7)
        self.clock.advance(HANGUP_INTERVAL)
        self.assertEqual(self.sink.calls, ["ended", "peerGone"])
        self.connection.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_endWhilePaused(self) -> None:
        """A sink that has paused learns of a hang-up, and of the end after its rest."""
        self.connection.pauseReading()
        self.protocol.dataReceived(b"rest")
        self.lose()
        self.clock.advance(HANGUP_INTERVAL)
        self.clock.advance(HANGUP_INTERVAL)
        self.assertEqual(self.sink.calls, ["peerGone"])
        self.connection.resumeReading()
        self.clock.advance(0)
        self.assertEqual(self.sink.calls, ["peerGone", "received", "ended"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close(self) -> None:
        """After closing the sink hears nothing."""
        self.connection.pauseReading()
        self.connection.resumeReading()
        self.connection.notifyDrained()
        self.connection.close()
        self.connection.close()
        self.protocol.dataReceived(b"x")
        self.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.sink.calls, [])
        self.assertTrue(self.transport.disconnecting)
        self.assertIsNone(self.transport.producer)
        self.assertEqual(self.connection.send([b"x"]), 0)

    def test_closeWithin(self) -> None:
        """A sink may close while it receives."""
        self.sink.use = lambda data: self.connection.close() or 1
        self.protocol.dataReceived(b"abc")
        self.protocol.dataReceived(b"d")
        self.assertEqual(self.sink.calls, ["received"])

    def test_readNow(self) -> None:
        """Nothing can be read ahead of the reactor."""
        self.connection.readNow()
        self.assertEqual(self.sink.calls, [])


class TCPTests(TestCase):
    """A real connection of Twisted's."""

    async def test_tcp(self) -> None:
        """Much goes both ways, and the ends are told."""
        reactor: Any = globalReactor
        size = 1 << 20
        done: Deferred[RecordingSink] = Deferred()

        class Server(RecordingProtocol):
            clock = reactor
            left = memoryview(bytes(size))

            def connectionMade(self) -> None:
                super().connectionMade()
                self.sink.writable = self.go  # type: ignore[method-assign]
                self.sink.ended = lambda: done.callback(self.sink)  # type: ignore[method-assign]
                self.go()

            def go(self) -> None:
                while self.left:
                    taken = self.connection.send([self.left[:50_000]])
                    self.left = self.left[taken:]
                    if not taken:
                        break

        class Client(Protocol):
            transport: ITransport
            received = 0

            def dataReceived(self, data: bytes) -> None:
                self.received += len(data)
                if self.received == size:
                    self.transport.write(b"thanks")
                    self.transport.loseConnection()

        listening = reactor.listenTCP(0, Factory.forProtocol(Server), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", listening.getHost().port)
        await connectProtocol(endpoint, Client())
        sink = await done.addTimeout(20, reactor)
        self.assertEqual(sink.data, b"thanks")
        sink.connection.close()
