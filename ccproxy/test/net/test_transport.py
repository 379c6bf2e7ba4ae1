"""
Tests of L{ccproxy.net.transport}.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyClass, verifyObject

from ...interfaces import IConnection, IStreamSink
from ...net.adapter import SinkProtocol
from ...net.buffered import IBufferedProtocol
from ...net.ordinary import attach
from ...net.polling import REST_TIMEOUT
from ...net.sending import MOST_PER_CALL
from ...net.transport import MOST_AT_ONCE
from ..sockets import READ_SIZE, RecordingProtocol, SocketCase

LENGTH = struct.Struct(">I")


def unit(body: bytes) -> bytes:
    """A unit of the tests' own format."""
    return LENGTH.pack(len(body)) + body


def wholeUnits(data: memoryview) -> int:
    """How many bytes the whole units take."""
    used = 0
    while len(data) - used >= LENGTH.size:
        end = used + LENGTH.size + LENGTH.unpack_from(data, used)[0]
        if end > len(data):
            break
        used = end
    return used


def nothing(data: memoryview) -> int:
    """Use nothing."""
    return 0


class ReadingTests(SocketCase):
    """What comes in, and how it ends."""

    def test_interfaces(self) -> None:
        """A transport is a connection; sinks and protocols are what they say."""
        sink, connection, _ = self.connected()
        verifyObject(IConnection, connection)
        verifyObject(IStreamSink, sink)
        verifyClass(IBufferedProtocol, SinkProtocol)
        self.assertEqual(connection.peer, "the peer")

    def test_receives(self) -> None:
        """Bytes reach the sink, in order."""
        sink, _, peer = self.connected()
        peer.send(b"one")
        self.turn()
        peer.send(b"two")
        self.turn()
        self.assertEqual(sink.data, b"onetwo")

    def test_restIsOfferedWithMore(self) -> None:
        """What is not used is offered again in front of what comes next, and not before."""
        offers: list[bytes] = []

        def pairs(data: memoryview) -> int:
            offers.append(bytes(data))
            return len(data) // 2 * 2

        _, _, peer = self.connected(pairs)
        peer.send(b"abc")
        self.turn(3)
        peer.send(b"d")
        self.turn()
        self.assertEqual(offers, [b"abc", b"cd"])

    @given(
        bodies=st.lists(st.binary(max_size=40), max_size=8),
        cuts=st.lists(st.integers(1, 50), min_size=1, max_size=10),
        pauses=st.lists(st.booleans(), min_size=1, max_size=5),
    )
    def test_anySplit(self, bodies: list[bytes], cuts: list[int], pauses: list[bool]) -> None:
        """However a stream is cut, and whenever the sink pauses, it gets the same units."""
        count = 0

        def use(data: memoryview) -> int:
            nonlocal count
            count += 1
            used = wholeUnits(data)
            if used and pauses[count % len(pauses)]:
                # Pause after one unit: the others are to be offered again.
                sink.connection.pauseReading()
                return LENGTH.size + int(LENGTH.unpack_from(data)[0])
            return used

        sink, connection, peer = self.connected(use)
        stream = b"".join(map(unit, bodies))
        at = step = 0
        while at < len(stream):
            size = cuts[step % len(cuts)]
            peer.send(stream[at : at + size])
            at, step = at + size, step + 1
            self.turn()
            connection.resumeReading()
        peer.close()
        while "ended" not in sink.calls:
            self.turn()
            connection.resumeReading()
        self.assertEqual(sink.data, stream)
        self.assertEqual(sink.calls.count("ended"), 1)
        connection.close()

    def test_longUnit(self) -> None:
        """A unit longer than all buffers arrives whole, with what follows it."""
        sink, _, peer = self.connected(wholeUnits)
        peer.setblocking(False)
        left = memoryview(unit(b"x" * (1 << 20)) + unit(b"next"))
        expected = bytes(left)
        while left:
            left = left[peer.send(left[:MOST_PER_CALL]) :]
            self.turn()
        self.turn()
        self.assertEqual(sink.data, expected)

    def test_takesWholeUnits(self) -> None:
        """A cut unit waits in the socket, where another process would find its beginning."""
        sink, connection, peer = self.connected(wholeUnits)
        waiting = socket.socket(fileno=os.dup(connection.fileno()))
        self.addCleanup(waiting.close)
        peer.send(unit(b"one") + unit(b"two")[:5])
        self.turn(3)
        self.assertEqual(sink.data, unit(b"one"))
        self.assertEqual(waiting.recv(100, socket.MSG_PEEK), unit(b"two")[:5])
        peer.send(unit(b"two")[5:] + b"\0")
        self.turn()
        self.assertEqual(sink.data, unit(b"one") + unit(b"two"))
        self.assertEqual(waiting.recv(100, socket.MSG_PEEK), b"\0")

    def test_pausedTakesNoMore(self) -> None:
        """What a sink that pauses has not used stays in the socket."""
        sink, connection, peer = self.connected()

        def one(data: memoryview) -> int:
            connection.pauseReading()
            return 1

        sink.use = one
        waiting = socket.socket(fileno=os.dup(connection.fileno()))
        self.addCleanup(waiting.close)
        peer.send(b"abc")
        self.turn(2)
        self.assertEqual(waiting.recv(100, socket.MSG_PEEK), b"bc")

    def test_takenByAnother(self) -> None:
        """P3: what was looked at and is gone, with the peer, is not waited for."""
        sink, connection, peer = self.connected()
        other = socket.socket(fileno=os.dup(connection.fileno()))
        self.addCleanup(other.close)

        def use(data: memoryview) -> int:
            other.recv(1)
            peer.close()
            return len(data)

        sink.use = use
        peer.send(b"abc")
        signal.alarm(10)
        self.addCleanup(signal.alarm, 0)
        self.turn(3)
        self.assertEqual((sink.data, sink.calls[-1]), (b"abc", "ended"))

    def test_overdueOnce(self) -> None:
        """That a unit's end was late is forgotten once it has come: the next one waits its time."""
        sink, connection, peer = self.connected(wholeUnits)
        waiting = socket.socket(fileno=os.dup(connection.fileno()))
        self.addCleanup(waiting.close)
        data = unit(b"one")
        peer.send(data[:5])
        self.turn()
        peer.send(data[5:])
        self.turn()
        self.reactor.advance(REST_TIMEOUT)
        self.turn()
        peer.send(data[:5])
        self.turn()
        self.assertEqual(sink.data, data)
        self.assertEqual(waiting.recv(100, socket.MSG_PEEK), data[:5])

    def test_overdueRest(self) -> None:
        """A unit that comes in more pieces than the peer's socket holds arrives whole."""
        sink, _, peer = self.connected(wholeUnits)
        peer.setblocking(False)
        data = unit(bytes(range(250)) * 8) + unit(b"next")
        at = waits = 0
        while at < len(data):
            try:
                at += peer.send(data[at : at + 1])
            except BlockingIOError:
                waits += 1
                self.assertLess(waits, 3)
                self.turn()
                self.reactor.advance(REST_TIMEOUT)
            else:
                self.turn(at % 50 == 0)
        self.turn()
        self.assertEqual(sink.data, data)
        self.assertGreater(waits, 0)

    def test_restOfPausedSink(self) -> None:
        """What has been taken of a long unit is offered again to a sink that has paused."""
        sink, connection, peer = self.connected(wholeUnits)
        data = unit(b"x" * READ_SIZE) + unit(b"n")
        peer.send(data[:READ_SIZE])
        self.turn(2)

        def pause(data: memoryview) -> int:
            connection.pauseReading()
            return 0

        sink.use = pause
        peer.send(data[READ_SIZE:])
        self.turn(2)
        sink.use = wholeUnits
        connection.resumeReading()
        self.turn(2)
        self.assertEqual(sink.data, data)

    def test_partOfRest(self) -> None:
        """A sink may use a part of what has been taken for it: it looks for a beginning."""
        sink, _, peer = self.connected(nothing)
        peer.send(b"abcd")
        self.turn(2)
        self.reactor.advance(REST_TIMEOUT)
        self.turn(2)
        sink.use = lambda data: 2
        peer.send(b"ef")
        self.turn()
        sink.use = len
        peer.send(b"g")
        self.turn()
        self.assertEqual(sink.data, b"abcdefg")

    def test_peerClosesAfterSending(self) -> None:
        """All that was sent is read before the end is told, however much it is."""
        sink, connection, peer = self.connected()
        sent = 0
        peer.setblocking(False)
        try:
            while True:
                sent += peer.send(b"y" * MOST_PER_CALL)
        except BlockingIOError:
            pass
        self.assertGreater(sent, READ_SIZE)
        peer.close()
        self.turn(2)
        self.assertEqual(len(sink.data), sent)
        self.assertEqual(sink.calls[-1], "ended")
        self.assertEqual(sink.calls.count("ended"), 1)
        connection.close()

    def test_endDropsCutUnit(self) -> None:
        """A cut unit is dropped when the input ends."""
        sink, _, peer = self.connected(wholeUnits)
        peer.send(unit(b"whole") + b"\0\0")
        peer.close()
        self.turn()
        self.assertEqual(sink.data, unit(b"whole"))
        self.assertEqual(sink.calls[-1], "ended")

    def test_closedAfterCutUnit(self) -> None:
        """A peer that has sent a cut unit and no more gets the end of the stream, and no error."""
        _, connection, peer = self.connected(wholeUnits)
        peer.send(unit(b"all")[:5])
        peer.shutdown(socket.SHUT_WR)
        self.turn()
        connection.close()
        self.assertEqual(peer.recv(10), b"")

    def test_endAfterRestOfPausedSink(self) -> None:
        """A sink that has paused is offered its rest before it learns of the end."""
        sink, connection, peer = self.connected()

        def one(data: memoryview) -> int:
            connection.pauseReading()
            return 1

        sink.use = one
        peer.send(b"abc")
        peer.close()
        self.turn(3)
        self.assertEqual(sink.data, b"a")
        connection.resumeReading()
        self.turn(3)
        self.assertEqual(sink.data, b"ab")
        self.assertNotIn("ended", sink.calls)
        sink.use = len
        connection.resumeReading()
        self.turn(3)
        self.assertEqual((sink.data, sink.calls[-1]), (b"abc", "ended"))

    def test_resetIsAnEnd(self) -> None:
        """A peer that closes without reading what we sent is at its end like any other."""
        sink, connection, peer = self.connected()
        connection.send([b"never read"])
        peer.send(b"last words")
        peer.close()
        self.turn(2)
        self.assertEqual((sink.data, sink.calls[-1]), (b"last words", "ended"))

    def test_halfClose(self) -> None:
        """The end of the input leaves the output open."""
        sink, connection, peer = self.connected()
        peer.send(b"question")
        peer.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((sink.data, sink.calls[-1]), (b"question", "ended"))
        self.assertEqual(connection.send([b"answer"]), 6)
        self.assertEqual(peer.recv(100), b"answer")
        self.assertFalse(connection.hungUp())
        peer.close()
        self.assertTrue(connection.hungUp())
        self.turn(2)
        self.assertEqual(sink.calls[-2:], ["ended", "peerGone"])
        self.assertEqual(connection.send([b"more"]), 0)
        self.assertEqual(sink.calls.count("ended"), 1)

    def test_passedDescriptor(self) -> None:
        """A descriptor that a peer sends along stays with nobody, and harms nothing."""
        sink, _, peer = self.connected()
        socket.send_fds(peer, [b"a"], [0])
        peer.send(b"b")
        self.turn()
        peer.send(b"c")
        self.turn()
        self.assertEqual(sink.data, b"abc")


class PausingTests(SocketCase):
    """Pausing, resuming, and hang-ups meanwhile."""

    def test_paused(self) -> None:
        """Nothing is offered while reading is paused, and all of it afterwards."""
        sink, connection, peer = self.connected()
        connection.pauseReading()
        connection.pauseReading()
        peer.send(b"later")
        self.turn(2)
        self.assertEqual(sink.calls, [])
        connection.resumeReading()
        connection.resumeReading()
        self.assertEqual(sink.calls, [])
        self.turn()
        self.assertEqual(sink.data, b"later")

    def test_pausedWithin(self) -> None:
        """A sink that pauses keeps its rest until it resumes, though nothing new comes."""
        sink, connection, peer = self.connected()

        def first(data: memoryview) -> int:
            connection.pauseReading()
            return 1

        sink.use = first
        peer.send(b"xyz")
        self.turn(3)
        self.assertEqual((sink.data, len(sink.calls)), (b"x", 1))
        sink.use = len
        connection.resumeReading()
        self.turn()
        self.assertEqual(sink.data, b"xyz")

    def test_pausedAndResumedWithin(self) -> None:
        """Pausing and resuming within one call has the rest offered again."""
        sink, connection, peer = self.connected()

        def one(data: memoryview) -> int:
            connection.pauseReading()
            connection.resumeReading()
            return 1

        sink.use = one
        peer.send(b"xyz")
        self.turn()
        self.assertEqual(sink.data, b"xyz")
        self.assertEqual(len(sink.calls), 3)

    def test_resumedOnly(self) -> None:
        """Resuming what was not paused does nothing."""
        sink, connection, peer = self.connected(nothing)
        peer.send(b"x")
        self.turn()
        connection.resumeReading()
        self.turn()
        self.assertEqual(len(sink.calls), 1)

    def test_storm(self) -> None:
        """Any number of pauses and resumptions loses and repeats nothing."""
        sink, connection, peer = self.connected(wholeUnits)
        expected = b""
        for number in range(300):
            data = unit(b"%d" % number)
            peer.send(data)
            expected += data
            for _ in range(number % 5):
                connection.pauseReading()
                connection.resumeReading()
            if number % 3:
                connection.pauseReading()
            if number % 7 == 0:
                self.turn()
            connection.resumeReading()
        self.turn()
        self.assertEqual(sink.data, expected)

    def test_peerGone(self) -> None:
        """A hang-up is told while reading is paused, once, and what was sent is still there."""
        sink, connection, peer = self.connected()
        connection.pauseReading()
        peer.send(b"last")
        peer.close()
        self.turn(3)
        self.assertEqual(sink.calls, ["peerGone"])
        self.assertTrue(connection.hungUp())
        connection.notifyDrained()
        self.turn()
        self.assertEqual(sink.calls, ["peerGone", "drained"])
        connection.resumeReading()
        self.turn()
        self.assertEqual((sink.data, sink.calls[-1]), (b"last", "ended"))

    def test_peerGoneBeforePause(self) -> None:
        """A hang-up that was known when the sink paused is told too."""
        sink, connection, peer = self.connected()

        def pause(data: memoryview) -> int:
            connection.pauseReading()
            return len(data)

        sink.use = pause
        peer.send(b"last")
        peer.close()
        self.turn()
        self.assertEqual(sink.calls, ["received", "peerGone"])

    def test_halfClosedIsNotGone(self) -> None:
        """A peer that still reads has not gone."""
        sink, connection, peer = self.connected()
        connection.pauseReading()
        peer.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((sink.calls, connection.hungUp()), ([], False))
        peer.close()
        self.turn()
        self.assertEqual((sink.calls, connection.hungUp()), (["peerGone"], True))

    def test_readNow(self) -> None:
        """What a peer sent before it hung up can be had at once."""
        sink, connection, peer = self.connected()
        peer.send(b"z" * 100_000)
        peer.close()
        connection.readNow()
        self.assertEqual((len(sink.data), sink.calls[-1]), (100_000, "ended"))
        self.turn()
        self.assertEqual(sink.calls.count("ended"), 1)

    def test_readNowOfTheLiving(self) -> None:
        """Reading at once does not end a connection whose peer is there."""
        sink, connection, peer = self.connected()
        peer.send(b"a")
        connection.readNow()
        connection.readNow()
        self.assertEqual(sink.calls, ["received"])
        peer.send(b"b")
        self.turn()
        self.assertEqual(sink.data, b"ab")

    def test_readNowOfAFlood(self) -> None:
        """P3: a peer that sends as fast as it is read holds up nobody, and is read on later."""
        sink, connection, peer = self.connected()

        flood = b"z" * 1000
        self.poller.scratch = memoryview(bytearray(len(flood)))

        def use(data: memoryview) -> int:
            if len(sink.data) < 100 * len(flood):
                peer.send(flood)
            else:
                peer.close()
            return len(data)

        sink.use = use
        peer.send(flood)
        peer.send(flood)
        connection.readNow()
        self.assertEqual(len(sink.data), MOST_AT_ONCE * len(flood))
        self.turn(100)
        self.assertEqual((sink.data, sink.calls[-1]), (flood * 102, "ended"))

    def test_readNowWhilePaused(self) -> None:
        """Nothing is read while reading is paused."""
        sink, connection, peer = self.connected()
        connection.pauseReading()
        peer.send(b"a")
        connection.readNow()
        self.assertEqual(sink.calls, [])

    def test_readNowFromAnother(self) -> None:
        """Reading from one while another is reading mixes nothing up."""
        other, otherConnection, otherPeer = self.connected()
        otherPeer.send(b"other")
        scratch = self.poller.scratch

        def use(data: memoryview) -> int:
            otherConnection.readNow()
            return len(data)

        sink, connection, peer = self.connected(use)
        peer.send(b"first")
        # The other's event must not come first.
        otherConnection.pauseReading()
        self.poller.doRead()
        self.assertEqual((sink.data, other.data), (b"first", b""))
        otherConnection.resumeReading()
        peer.send(b"again")
        connection.happened(select.EPOLLIN)
        self.assertEqual((sink.data, other.data), (b"firstagain", b"other"))
        self.assertIs(self.poller.scratch, scratch)

    def test_readNowWithin(self) -> None:
        """A sink that is receiving cannot be made to receive."""
        sink, connection, peer = self.connected()

        def use(data: memoryview) -> int:
            if not sink.data:
                peer.send(b"second")
                connection.readNow()
            return len(data)

        sink.use = use
        peer.send(b"first ")
        self.turn(2)
        self.assertEqual((sink.data, len(sink.calls)), (b"first second", 2))

    def test_readNowFails(self) -> None:
        """An error of the protocol costs it its own connection, and not the caller's."""
        sink, connection, peer = self.connected(lambda data: 1 // 0)
        peer.send(b"a")
        connection.readNow()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.turn()
        self.assertEqual(sink.calls, ["received", "ended"])


class SendingTests(SocketCase):
    """What goes out."""

    def test_send(self) -> None:
        """Buffers of every kind are sent in order, and are free again afterwards."""
        _, connection, peer = self.connected()
        reused = bytearray(b"two")
        self.assertEqual(connection.send([b"one", memoryview(reused), bytearray(b"3")]), 7)
        reused[:] = b"xxx"
        reused += b"longer"
        self.assertEqual(peer.recv(100), b"onetwo3")
        self.assertEqual(connection.send([]), 0)

    def test_short(self) -> None:
        """What is not taken is the sender's, who learns when there is room."""
        sink, connection, peer = self.connected()
        data = bytes(range(256)) * 4096
        sent = connection.send([data])
        self.assertTrue(0 < sent < len(data))
        self.assertEqual(connection.send([b"more"]), 0)
        self.turn()
        self.assertEqual(sink.calls, [])
        received = b""
        while len(received) < len(data):
            received += peer.recv(1 << 20)
            self.turn()
            if sink.calls and sent < len(data):
                self.assertEqual(sink.calls, ["writable"])
                sink.calls.clear()
                sent += connection.send([data[sent:]])
        self.assertEqual(received, data)

    def test_manyBuffers(self) -> None:
        """More buffers than the system takes at once are taken all the same."""
        _, connection, peer = self.connected()
        buffers = [b"%d," % number for number in range(3000)]
        self.assertEqual(connection.send(buffers), len(b"".join(buffers)))
        self.assertEqual(peer.recv(1 << 20), b"".join(buffers))

    def test_wholeBuffers(self) -> None:
        """A buffer that is not too long is taken whole or not at all."""
        _, connection, _ = self.connected()
        sizes = [1000, 30_000, 5000, 32_000, 20_000] * 10
        taken = connection.send([bytes(size) for size in sizes])
        while taken > 0:
            taken -= sizes.pop(0)
        self.assertEqual(taken, 0)
        self.assertTrue(sizes)

    def test_failedWriteReadsOn(self) -> None:
        """A write that fails ends nothing: what the peer sent is read, then its end is told."""
        sink, connection, peer = self.connected()
        connection.pauseReading()
        peer.send(b"status 7")
        peer.close()
        self.assertEqual(connection.send([b"x"]), 0)
        self.assertEqual(connection.send([b"x"]), 0)
        self.assertTrue(connection.broken)
        connection.resumeReading()
        self.turn(2)
        self.assertEqual((sink.data, sink.calls[-1]), (b"status 7", "ended"))
        self.assertNotIn("writable", sink.calls)

    def test_peerThatReadsNoMore(self) -> None:
        """A peer that only stopped reading is read on until it closes."""
        sink, connection, peer = self.connected()
        peer.shutdown(socket.SHUT_RD)
        self.assertEqual(connection.send([b"x"]), 0)
        peer.send(b"still here")
        self.turn()
        self.assertEqual(sink.calls, ["received"])
        peer.close()
        self.turn()
        self.assertEqual(sink.calls, ["received", "ended"])

    def test_closedWithUnsent(self) -> None:
        """A peer that closes while much is unsent is at its end, and there is nothing unsent."""
        sink, connection, peer = self.connected()
        connection.send([bytes(1 << 20)])
        peer.send(b"bye")
        peer.close()
        self.turn(2)
        self.assertEqual(sink.data, b"bye")
        self.assertEqual(sink.calls.count("ended"), 1)
        self.assertEqual((connection.unsent(), connection.send([b"x"])), (0, 0))

    def test_unexpectedError(self) -> None:
        """After an error that is not the peer's doing, the peer is told that nothing comes."""

        class NoMemory(socket.socket):
            def sendmsg(self, *args: Any) -> int:
                raise OSError(errno.ENOBUFS, "No buffer space available")

        ours, peer = self.pair()
        protocol = RecordingProtocol()
        attach(self.poller, NoMemory(fileno=ours.detach()), "the peer", protocol)
        self.assertEqual(protocol.connection.send([b"x"]), 0)
        self.assertEqual(peer.recv(10), b"")
        peer.send(b"then I go")
        peer.close()
        self.turn()
        self.assertEqual(protocol.sink.calls, ["received", "ended"])

    def test_drained(self) -> None:
        """It is told once that the peer has read all."""
        sink, connection, peer = self.connected()
        connection.send([b"one"])
        connection.send([b"two"])
        self.assertGreaterEqual(connection.unsent(), 6)
        connection.notifyDrained()
        self.turn(2)
        peer.recv(3)
        self.turn(2)
        self.assertEqual(sink.calls, [])
        peer.recv(3)
        self.assertEqual(connection.unsent(), 0)
        self.turn(2)
        self.assertEqual(sink.calls, ["drained"])

    def test_drainedAlready(self) -> None:
        """If nothing is unsent that is told soon, and not from within the call."""
        sink, connection, _ = self.connected()
        connection.notifyDrained()
        self.assertEqual(sink.calls, [])
        self.turn()
        self.assertEqual(sink.calls, ["drained"])

    def test_drainedAgainAndAgain(self) -> None:
        """Writes and their drains may follow each other, with input and idle times between."""
        sink, connection, peer = self.connected()
        for number in range(1, 20):
            connection.send([b"key"])
            if number % 3:
                connection.notifyDrained()
            peer.recv(3)
            if number % 2:
                peer.send(b"echo")
            self.turn()
            if number % 3 == 0:
                connection.notifyDrained()
                self.turn()
            self.assertEqual(sink.calls.count("drained"), number)

    def test_idleAfterDrain(self) -> None:
        """Room that nobody waits for is looked at once, and not for every write."""
        sink, connection, peer = self.connected()
        connection.notifyDrained()
        connection.send([b"x"])
        connection.notifyDrained()
        peer.recv(1)
        self.turn(2)
        happened = []
        for _ in range(5):
            connection.send([b"x"])
            peer.recv(1)
            happened.append(bool(select.select([self.poller], [], [], 0)[0]))
            self.turn()
        self.assertEqual(happened, [True, False, False, False, False])
        self.assertEqual(sink.calls, ["drained"])


class ClosingTests(SocketCase):
    """The end that we make."""

    def test_close(self) -> None:
        """After closing the sink hears nothing, the protocol its end, and nothing is left."""
        sink, connection, peer = self.connected()
        protocol = connection.protocol
        peer.send(b"unread")
        connection.send([b"last"])
        connection.notifyDrained()
        connection.close()
        self.assertEqual(protocol.lost, 0)
        self.turn()
        connection.close()
        connection.resumeReading()
        connection.notifyDrained()
        connection.readNow()
        self.turn()
        self.assertEqual((sink.calls, protocol.lost), ([], 1))
        self.assertEqual((connection.fileno(), connection.unsent()), (-1, 0))
        self.assertEqual(connection.send([b"x"]), 0)
        self.assertTrue(connection.hungUp())

    def test_closeDelivers(self) -> None:
        """What was taken is delivered, and then a clean end, though there was unread input."""
        _, connection, peer = self.connected()
        peer.send(b"unread" * 10_000)
        connection.send([b"all", b"this"])
        connection.close()
        self.assertEqual(peer.recv(100), b"allthis")
        self.assertEqual(peer.recv(100), b"")

    def test_closeWithin(self) -> None:
        """A sink may close while it receives; it gets nothing more."""
        sink, connection, peer = self.connected()

        def close(data: memoryview) -> int:
            connection.close()
            return 1

        sink.use = close
        peer.send(b"abc")
        self.turn(3)
        self.assertEqual(sink.calls, ["received"])

    def test_closeAtTheEnd(self) -> None:
        """A sink may close when it hears of the end."""
        sink, connection, peer = self.connected()
        sink.ended = connection.close  # type: ignore[method-assign]
        protocol = connection.protocol
        peer.close()
        self.turn()
        self.assertEqual((protocol.lost, connection.fileno()), (1, -1))

    def test_errorInProtocol(self) -> None:
        """An error while receiving is logged and ends the connection; the sink learns that."""
        sink, connection, peer = self.connected(lambda data: 1 // 0)
        protocol = connection.protocol
        peer.send(b"abc")
        self.turn(2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((sink.calls, protocol.lost), (["received", "ended"], 1))
        self.assertEqual(peer.recv(1), b"")

    def test_errorAtTheStart(self) -> None:
        """An error while connecting is logged and ends the connection."""

        class Failing(RecordingProtocol):
            def connectionMade(self) -> None:
                super().connectionMade()
                raise ZeroDivisionError

        ours, _ = self.pair()
        protocol = Failing()
        attach(self.poller, ours, "the peer", protocol)
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((protocol.sink.calls, protocol.lost), (["ended"], 1))

    def test_errorsInOtherCalls(self) -> None:
        """An error in any call of the sink ends its connection and no other's."""
        for name in ("writable", "drained", "peerGone", "ended"):
            sink, connection, peer = self.connected()
            bystander, _, other = self.connected()
            setattr(sink, name, lambda: 1 // 0)
            connection.pauseReading()
            connection.send([bytes(1 << 20)])
            connection.notifyDrained()
            peer.setblocking(False)
            with self.assertRaises(BlockingIOError):
                while True:
                    peer.recv(1 << 20)
            other.send(b"hello")
            self.turn()
            peer.close()
            self.turn()
            connection.resumeReading()
            self.turn(2)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, name)
            self.assertEqual(bystander.data, b"hello")
            self.assertTrue(name == "ended" or sink.calls[-1] == "ended")
