"""
Tests of L{ccproxy.net.polling}.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ...net.ordinary import attach
from ...net.polling import MOST_EVENTS, STEPS, Poller
from ..sockets import READ_SIZE, RecordingProtocol, SocketCase


class PollerTests(SocketCase):
    """Fair turns, and what must not disturb them."""

    def test_interface(self) -> None:
        """A reactor can watch it."""
        verifyObject(IReadDescriptor, self.poller)
        self.assertEqual(self.reactor.getReaders(), [self.poller])
        self.assertEqual(self.poller.logPrefix(), "ccproxy")

    def test_watch(self) -> None:
        """Another descriptor's function is called as long as it can be read; it may fail."""
        ours, theirs = self.pair()
        calls: list[bytes] = []

        def readable() -> None:
            calls.append(ours.recv(1))
            if calls[-1] == b"!":
                raise ZeroDivisionError

        self.poller.watch(ours.fileno(), readable)
        theirs.send(b"a!b")
        sink, _, peer = self.connected()
        peer.send(b"c")
        self.turn(3)
        self.assertEqual((calls, sink.data), ([b"a", b"!", b"b"], b"c"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        theirs.send(b"d")
        self.poller.unwatch(ours.fileno())
        self.poller.unwatch(ours.fileno())
        self.turn()
        self.assertEqual(len(calls), 3)
        ours.close()

    def test_unwatchedMeanwhile(self) -> None:
        """What is no longer watched is not called for an event that is at hand."""
        pairs = [self.pair() for _ in range(2)]
        calls: list[int] = []

        def readable() -> None:
            calls.append(1)
            for ours, _ in pairs:
                self.poller.unwatch(ours.fileno())

        for ours, theirs in pairs:
            self.poller.watch(ours.fileno(), readable)
            theirs.send(b"x")
        self.turn()
        self.assertEqual(calls, [1])
        for ours, _ in pairs:
            ours.close()

    def flooded(self) -> tuple[Any, socket.socket]:
        """A connection whose peer sends all that it can."""
        sink, _, peer = self.connected()
        peer.setblocking(False)
        self.fill(peer)
        return sink, peer

    def fill(self, peer: socket.socket) -> None:
        """Send all that can be sent."""
        try:
            while True:
                peer.send(bytes(16384))
        except BlockingIOError:
            pass

    def test_oneBufferAtATime(self) -> None:
        """A flood is read in pieces, and events of others are taken between them."""
        order: list[str] = []
        flood, _ = self.flooded()
        keys, _, keyboard = self.connected()

        def useFlood(data: memoryview) -> int:
            self.assertLessEqual(len(data), READ_SIZE)
            order.append("flood")
            if len(order) == 1:
                keyboard.send(b"k")
            return len(data)

        def useKeys(data: memoryview) -> int:
            order.append("key")
            return len(data)

        flood.use, keys.use = useFlood, useKeys
        self.poller.doRead()
        self.assertEqual(order[:4], ["flood", "flood", "key", "flood"])

    def test_turnsAreBounded(self) -> None:
        """A flood without end leaves the reactor its turn, and then goes on by itself."""
        flood, peer = self.flooded()

        endless = True

        def refill(data: memoryview) -> int:
            if endless:
                self.fill(peer)
            return len(data)

        flood.use = refill
        self.poller.doRead()
        self.assertLessEqual(len(flood.data), (2 * STEPS + 1) * READ_SIZE)
        soFar = len(flood.data)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        endless = False
        self.reactor.advance(0)
        self.assertGreater(len(flood.data), soFar)

    def test_floodsTakeTurns(self) -> None:
        """Of several floods each has its turn."""
        order: list[int] = []
        for number in range(3):

            def use(data: memoryview, number: int = number) -> int:
                order.append(number)
                return len(data)

            flood, _ = self.flooded()
            flood.use = use
        self.turn()
        for at in range(0, 6, 3):
            self.assertEqual(set(order[at : at + 3]), {0, 1, 2})

    def test_manyEvents(self) -> None:
        """More events than are taken at a time are all taken."""
        connections = [self.connected() for _ in range(MOST_EVENTS * 2 + 5)]
        for _, _, peer in connections:
            peer.send(b"x")
        self.turn(3)
        self.assertEqual([sink.data for sink, _, _ in connections], [b"x"] * len(connections))

    def test_reusedDescriptor(self) -> None:
        """An event of a socket that was closed meanwhile is not taken for its successor's."""
        made: list[Any] = []

        def replaceOther(data: memoryview) -> int:
            other = second[1] if bytes(data) == b"first" else first[1]
            fd = other.fileno()
            other.close()
            made.append(self.connected())
            self.assertEqual(made[0][1].fileno(), fd)
            made[0][1].pauseReading()
            return len(data)

        first = self.connected(replaceOther)
        second = self.connected(replaceOther)
        first[2].send(b"first")
        second[2].send(b"second")
        highest = second[2].fileno()
        first[2].close()
        second[2].close()
        # All lower descriptors are taken, so that the next one is the one closed.
        while True:
            filler = socket.socket()
            self.addCleanup(filler.close)
            if filler.fileno() > highest:
                break
        self.turn()
        self.assertEqual(len(made), 1)
        self.assertEqual(made[0][0].calls, [])

    def test_close(self) -> None:
        """At the end all connections end and their protocols learn it; nothing is left."""
        sink, connection, _ = self.connected()
        protocol = connection.protocol
        self.flooded()
        self.poller.doRead()
        self.poller.close()
        self.poller.close()
        self.assertEqual((sink.calls[-1], protocol.lost), ("ended", 1))
        self.assertEqual(self.poller.fileno(), -1)
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_closeWithin(self) -> None:
        """It can be closed by what it calls."""

        def close(data: memoryview) -> int:
            self.poller.close()
            return len(data)

        sinks = [self.connected(close) for _ in range(3)]
        for _, _, peer in sinks:
            peer.send(b"x")
        self.turn()
        self.assertEqual([sink.calls[-1] for sink, _, _ in sinks], ["ended"] * 3)

    def test_reactorStops(self) -> None:
        """A reactor that stops ends all connections."""
        sink, _, _ = self.connected()
        self.poller.connectionLost(None)  # type: ignore[arg-type]
        self.assertEqual(sink.calls, ["ended"])


class ReactorTests(SynchronousTestCase):
    """The same on reactors of all kinds."""

    def check(self, makeReactor: Callable[[], Any]) -> None:
        """Two connections talk to each other, from a first byte to a flood's end."""
        reactor = makeReactor()
        poller = Poller(reactor)
        ours, theirs = socket.socketpair()
        size = 3 << 20
        left = memoryview(bytes(size))
        received = 0

        class Sending(RecordingProtocol):
            def writable(self) -> None:
                nonlocal left
                left = left[self.connection.send([left]) :]
                if not left:
                    self.connection.notifyDrained()

            def drained(self) -> None:
                self.connection.close()

        def use(data: memoryview) -> int:
            nonlocal received
            received += len(data)
            return len(data)

        class Receiving(RecordingProtocol):
            def readConnectionLost(self) -> None:
                reactor.stop()

        sending, receiving = Sending(), Receiving(use)

        def start() -> None:
            attach(poller, ours, "ours", sending)
            attach(poller, theirs, "theirs", receiving)
            sending.writable()

        reactor.callWhenRunning(start)
        late = reactor.callLater(60, reactor.stop)
        reactor.run(installSignalHandlers=False)
        self.assertTrue(late.active())
        late.cancel()
        self.assertEqual(received, size)
        self.assertEqual(poller.fileno(), -1)

    def test_select(self) -> None:
        """On select."""
        self.check(SelectReactor)

    def test_poll(self) -> None:
        """On poll."""
        self.check(PollReactor)

    def test_epoll(self) -> None:
        """On epoll."""
        self.check(EPollReactor)

    def test_asyncio(self) -> None:
        """On asyncio's loop."""
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        self.check(lambda: AsyncioSelectorReactor(loop))


class DescriptorTests(SynchronousTestCase):
    """What a connection holds of the system's."""

    def test_nothingIsLeft(self) -> None:
        """Many connections come and go, and leave no descriptor behind."""
        reactor = MemoryReactorClock()
        poller = Poller(reactor)
        self.addCleanup(poller.close)
        lowest = socket.socket()
        expected = lowest.fileno()
        lowest.close()
        for _ in range(200):
            ours, theirs = socket.socketpair()
            attach(poller, ours, "the peer", protocol := RecordingProtocol())
            theirs.send(b"x")
            theirs.close()
            poller.doRead()
            self.assertEqual(protocol.sink.calls, ["received", "ended"])
            protocol.connection.close()
            reactor.advance(0)
        lowest = socket.socket()
        self.addCleanup(lowest.close)
        self.assertEqual(lowest.fileno(), expected)
