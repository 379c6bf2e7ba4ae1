"""
What is on its way to a connection.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.context import Budget
from ccproxy.core.limits import Limits
from ccproxy.core.outlet import MOST_BUFFERS, MOST_PER_SEND, Outlet
from ccproxy.core.output import Output
from ccproxy.core.session import MOST_PER_FRAME
from ccproxy.wire.codes import Dialect, FrameType, Stream
from ccproxy.wire.frames import FrameDecoder, encodeFrame, encodeStream
from ccproxy.wire.messages import IO_HEADER, encodeIO

from ..memory import MemoryConnection, World


class Wire:
    """An outlet, its connection, and what should come of it."""

    def __init__(self) -> None:
        self.connection = MemoryConnection()
        self.budget = Budget(Limits())
        self.outlet = Outlet(self.connection, self.budget)

    def keep(self, body: bytes) -> bytes:
        """Push a frame of the session."""
        frame = encodeStream(Stream.STDOUT, body)
        self.budget.used += len(frame)
        self.outlet.push(frame, kept=True)
        return frame

    def reply(self, body: bytes) -> bytes:
        """Push a response."""
        frame = encodeFrame(FrameType.RESPONSE, 3, body)
        self.outlet.push(frame)
        return frame

    def span(self, bodies: list[bytes]) -> bytes:
        """Send frames of the session from where they stand."""
        frames = [encodeStream(Stream.STDERR, body) for body in bodies]
        data = bytearray(b"".join(frames))
        spans, at = [], 0
        for frame in frames:
            spans.append(memoryview(data)[at : at + len(frame)])
            at += len(frame)
        self.outlet.sendSpans(spans, len(data))
        sent = bytes(data)
        data[:] = bytes(len(data))
        return sent

    def read(self, room: int) -> None:
        """The connection takes C{room} more bytes."""
        self.connection.room = room
        self.outlet.flush()


ACTIONS = st.one_of(
    st.tuples(st.just("keep"), st.binary(max_size=30)),
    st.tuples(st.just("reply"), st.binary(max_size=30)),
    st.tuples(st.just("span"), st.lists(st.binary(max_size=20), min_size=1, max_size=3)),
    st.tuples(st.just("read"), st.integers(0, 60)),
)


class PropertyTests(SynchronousTestCase):
    """Random frames, sent with random room."""

    def play(self, actions: list[tuple[str, object]]) -> tuple[Wire, bytes, list[bytes]]:
        """
        Carry out C{actions}.

        @return: all that was pushed, and the session's frames in it.
        """
        wire, pushed, kept = Wire(), b"", []
        wire.connection.room = 0
        for action, value in actions:
            if action == "read":
                assert isinstance(value, int)
                wire.read(value)
                continue
            sent: bytes = getattr(wire, action)(value)
            pushed += sent
            if action != "reply":
                decoder = FrameDecoder()
                decoder.feed(sent)
                while (frame := decoder.next()) is not None:
                    kept.append(encodeFrame(frame.type, frame.opcode, frame.payload))
        written = bytes(wire.connection.written)
        self.assertEqual(written, pushed[: len(written)])
        self.assertEqual(wire.outlet.size, len(pushed) - len(written))
        self.assertEqual(wire.budget.used, wire.outlet.kept)
        return wire, pushed, kept

    @given(st.lists(ACTIONS, max_size=20))
    def test_order(self, actions: list[tuple[str, object]]) -> None:
        """P6: all that is pushed is written, in order, however little is taken at a time."""
        wire, pushed, _ = self.play(actions)
        wire.connection.room = None
        wire.outlet.flush()
        self.assertEqual(bytes(wire.connection.written), pushed)
        self.assertEqual((wire.outlet.size, wire.outlet.kept, wire.budget.used), (0, 0, 0))

    @given(st.lists(ACTIONS, max_size=20))
    def test_takeBack(self, actions: list[tuple[str, object]]) -> None:
        """P7: the session gets back just those of its frames that were not written whole."""
        wire, _pushed, kept = self.play(actions)
        decoder = FrameDecoder()
        decoder.feed(bytes(wire.connection.written))
        whole = 0
        while (frame := decoder.next()) is not None:
            whole += frame.type is FrameType.STREAM
        back = wire.outlet.takeBack()
        self.assertEqual(b"".join(back), b"".join(kept[whole:]))
        self.assertEqual(wire.budget.used, sum(map(len, back)))
        self.assertEqual((wire.outlet.size, wire.outlet.kept), (0, 0))

    @given(st.lists(ACTIONS, max_size=20))
    def test_dropKept(self, actions: list[tuple[str, object]]) -> None:
        """A frame begun is ended; the session's others are dropped, the responses are not."""
        wire, pushed, _ = self.play(actions)
        written = len(wire.connection.written)
        expected, at = b"", 0
        decoder = FrameDecoder()
        decoder.feed(pushed)
        while (frame := decoder.next()) is not None:
            begun = at < written
            if begun or frame.type is FrameType.RESPONSE:
                expected += pushed[at : at + frame.size]
            at += frame.size
        wire.outlet.dropKept()
        self.assertEqual((wire.outlet.kept, wire.budget.used), (0, 0))
        self.assertEqual(wire.outlet.size, len(expected) - written)
        wire.connection.room = None
        wire.outlet.flush()
        self.assertEqual(bytes(wire.connection.written), expected)
        self.assertEqual(wire.outlet.size, 0)


class SendTests(SynchronousTestCase):
    """How much goes in one call."""

    def test_bounded(self) -> None:
        """No call has more than the system takes whole, in bytes or in buffers."""
        wire = Wire()
        sizes = []
        send = wire.connection.send

        def watch(data: list[bytes]) -> int:
            sizes.append((sum(map(len, data)), len(data)))
            return send(data)

        wire.connection.send = watch  # type: ignore[method-assign,assignment]
        expected = b"".join(wire.keep(b"x" * n) for n in (100_000, 20_000, 20_000))
        expected += b"".join(wire.reply(b"") for _ in range(3 * MOST_BUFFERS))
        wire.outlet.flush()
        self.assertEqual(bytes(wire.connection.written), expected)
        self.assertLessEqual(max(size for size, _ in sizes), MOST_PER_SEND)
        self.assertLessEqual(max(count for _, count in sizes), MOST_BUFFERS)

    def test_smallFrames(self) -> None:
        """P9: what waits in the smallest frames takes about the memory that is counted."""
        wire = Wire()
        wire.connection.room = 0
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        expected = [wire.keep(b"x") for _ in range(5000)]
        size = sum(map(len, expected))
        del expected
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 2 * size)
        wire.read(size)
        self.assertEqual(bytes(wire.connection.written), encodeStream(Stream.STDOUT, b"x") * 5000)
        self.assertEqual((wire.outlet.size, wire.budget.used), (0, 0))

    def test_wholeFrames(self) -> None:
        """A call ends behind a frame, so that a daemon which dies after it has cut none."""
        output = encodeIO(3, b"x" * 1024) * 100 + encodeIO(3, b"y" * 500) * 100
        long = b"".join(b"%d." % n for n in range(15_000))
        output += encodeIO(4, long) + encodeIO(3, b"!")
        cuts = len(long) // MOST_PER_FRAME
        for queued in (True, False):
            world = World(Dialect.CC)
            agent, runtime, (token,) = world.register(streams=1)
            connection = world.process(agent, runtime, token).connection
            connection.take()
            connection.room = 0 if queued else None
            if queued:
                agent.io.feed(output)
            pieces: list[bytes] = []

            def watch(data: list[bytes], send: Any = connection.send, to: Any = pieces) -> Any:
                to += map(bytes, data)
                return send(data)

            connection.send = watch  # type: ignore[method-assign,assignment]
            if queued:
                connection.makeRoom()
            else:
                agent.io.feed(output)
            self.assertEqual(sum(map(len, pieces)), len(output) + cuts * IO_HEADER.size)
            self.assertGreater(len(pieces), len(output) // MOST_PER_SEND)
            stderr = b""
            for piece in pieces:
                self.assertLessEqual(len(piece), MOST_PER_SEND)
                decoder = FrameDecoder()
                decoder.feed(piece)
                while (frame := decoder.next()) is not None:
                    stderr += frame.payload if frame.opcode == Stream.STDERR else b""
                self.assertEqual(decoder.pending, 0)
            self.assertEqual(stderr, long)


class PeerGoneTests(SynchronousTestCase):
    """A connection that nobody will read any more: P9, P13."""

    def test_dropped(self) -> None:
        """Responses are dropped, those to come too; what a session keeps is given back."""
        wire = Wire()
        wire.connection.room = 5
        wire.reply(b"cut")
        wire.outlet.flush()
        wire.outlet.peerGone()
        self.assertEqual(wire.outlet.size, 0)
        wire.reply(b"late")
        self.assertEqual(wire.outlet.size, 0)
        wire.connection.room = 0
        frame = wire.keep(b"output")
        wire.outlet.flush()
        self.assertEqual(list(wire.outlet.takeBack()), [frame])


class AbsentTests(SynchronousTestCase):
    """What is kept while there is no shim: P7, P9."""

    @given(
        st.lists(
            st.tuples(
                st.booleans(),
                st.lists(st.sampled_from([1, 1, 30, 250, 500, 9000]), min_size=1, max_size=8),
            )
        )
    )
    def test_kept(self, parts: list[tuple[bool, list[int]]]) -> None:
        """All of it, in order, in blocks of whole frames that one call takes."""
        output, expected = Output(Budget(Limits())), b""
        for number, (queued, sizes) in enumerate(parts):
            frames = [encodeStream(Stream.STDOUT, bytes([number % 256]) * n) for n in sizes]
            expected += b"".join(frames)
            if queued:
                for frame in frames:
                    output.queue(frame)
            else:
                output.deliver([memoryview(frame) for frame in frames], sum(map(len, frames)))
        self.assertEqual(b"".join(output.pending), expected)
        self.assertEqual((output.held, output._budget.used), (len(expected), len(expected)))
        for block in output.pending:
            self.assertLessEqual(len(block), MOST_PER_SEND)
            decoder = FrameDecoder()
            decoder.feed(block)
            while decoder.next() is not None:
                pass
            self.assertEqual(decoder.pending, 0)

    def test_smallFrames(self) -> None:
        """What waits in the smallest frames takes about the memory that is counted."""
        output, frame = Output(Budget(Limits())), encodeStream(Stream.STDOUT, b"x")
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(2500):
            output.queue(frame)
            output.deliver([memoryview(frame)], len(frame))
        self.assertEqual(output.held, 5000 * len(frame))
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 1.3 * output.held)
