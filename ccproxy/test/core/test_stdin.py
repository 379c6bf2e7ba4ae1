"""
What goes to the agent's I/O channel: P8, and P19's sizes and pauses.
"""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.agent import Agent
from ccproxy.core.stdin import SMALL_PAYLOAD, TURN, WINDOW
from ccproxy.wire.codes import Command, ControlCode, Dialect, FrameType, Stream
from ccproxy.wire.frames import encodeFrame
from ccproxy.wire.messages import IO_HEADER

from ..memory import MemoryClient, MemoryVM, World, startData

HYPERSTARTS = (Dialect.HYPERSTART0, Dialect.HYPERSTART1)


def started(
    dialect: Dialect | None, count: int = 1, **limits: int
) -> tuple[World, MemoryVM, list[MemoryClient]]:
    """A VM with so many processes, and their shims."""
    world = World(dialect, **limits)
    agent, runtime, tokens = world.register(streams=count)
    shims = [
        world.process(agent, runtime, token, container=f"c{number}")
        for number, token in enumerate(tokens)
    ]
    return world, agent, shims


def reads(agent: MemoryVM) -> list[bytes]:
    """Have noted how a hypervisor reads the I/O channel: 4096 bytes at a time."""
    noted: list[bytes] = []
    send = agent.io.send

    def note(data: list[bytes]) -> int:
        taken = send(data)
        written = b"".join(data)[:taken]
        noted.extend(written[at : at + TURN] for at in range(0, taken, TURN))
        return taken

    agent.io.send = note  # type: ignore[method-assign,assignment]
    return noted


def joined(messages: list[tuple[int, bytes]], number: int) -> bytes:
    """What one process gets."""
    return b"".join(body for to, body in messages if to == number)


class DialectTests(SynchronousTestCase):
    """P19: what each agent can bear."""

    def test_hyperstart(self) -> None:
        """At most 256 bytes of payload in a message; no pause before 16 KiB wait."""
        for dialect in HYPERSTARTS:
            _, agent, (shim,) = started(dialect)
            data = bytes(range(256)) * 30
            shim.stream(Stream.STDIN, data)
            got = agent.stdin()
            self.assertEqual(joined(got, 3), data)
            self.assertEqual(max(len(body) for _, body in got), SMALL_PAYLOAD)
            self.assertFalse(agent.io.drainWanted)

    def test_ccFullWrites(self) -> None:
        """Writes of exactly 4096 bytes follow each other at once; behind a shorter one, none."""
        _, agent, (shim,) = started(Dialect.CC)
        noted = reads(agent)
        shim.stream(Stream.STDIN, bytes(2 * (TURN - IO_HEADER.size) + 100))
        shim.stream(Stream.STDIN, b"waits")
        self.assertEqual([len(read) for read in noted], [TURN, TURN, 112])
        self.assertTrue(agent.io.drainWanted)
        agent.io.drain()
        self.assertEqual(len(noted), 4)
        self.assertEqual(agent.stdin()[-1], (3, b"waits"))

    def test_unknownDialect(self) -> None:
        """P19: an agent that nobody knows yet gets what suits both, one write at a time."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.stream(Stream.STDIN, bytes(10_000))
        runtime.hyper("newcontainer", startData(), tokens)
        noted = reads(agent)
        # A start that is answered tells the dialect; until then nothing may go.
        self.assertEqual(noted, [])
        self.patch(Agent, "learn", lambda agent, dialect: None)
        agent.ack()
        self.assertEqual(len(noted), 1)
        for _ in range(5):
            agent.io.drain()
        got = agent.stdin()
        self.assertEqual(joined(got, 3), bytes(10_000))
        self.assertLessEqual(max(len(body) for _, body in got), SMALL_PAYLOAD)

    @settings(max_examples=60)
    @given(
        st.sampled_from([Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1]),
        st.lists(
            st.one_of(
                st.tuples(st.integers(0, 2), st.integers(1, 9000)),
                st.just("drain"),
                st.tuples(st.just("room"), st.integers(0, 6000)),
            ),
            max_size=25,
        ),
    )
    def test_always(self, dialect: Dialect, actions: list[object]) -> None:
        """P8, P19: any frames, any room, any time: each process gets its bytes, in order."""
        world, agent, shims = started(dialect, 3)
        sent = [b"", b"", b""]
        got: list[tuple[int, bytes]] = []
        for count, action in enumerate(actions):
            if action == "drain":
                agent.io.drain()
            elif isinstance(action, tuple) and action[0] == "room":
                agent.io.makeRoom(action[1])
            elif isinstance(action, tuple):
                number, size = action
                data = bytes([count]) * size
                sent[number] += data
                shims[number].stream(Stream.STDIN, data)
            self.assertLessEqual(agent.io.unsent(), WINDOW)
        agent.io.makeRoom()
        for shim in shims:
            shim.stream(Stream.STDIN, b"")
        for _ in range(200):
            agent.io.drain()
            for shim in shims:
                shim.connection.pump()
        got += agent.stdin()
        for number in range(3):
            self.assertEqual(joined(got, 3 + 2 * number), sent[number])
        ends = [to for to, body in got if not body]
        self.assertEqual(sorted(ends), [3, 5, 7])
        self.assertEqual(world.registry.context.budget.used, 0)
        if dialect is not Dialect.CC:
            self.assertLessEqual(max(len(body) for _, body in got), SMALL_PAYLOAD)


class PacingTests(SynchronousTestCase):
    """Turns, and what waits where."""

    def test_turns(self) -> None:
        """Sessions take turns by 4096 bytes, so that a keystroke is not behind another's bulk."""
        _, agent, (bulk, typist) = started(Dialect.CC, 2)
        bulk.stream(Stream.STDIN, bytes(100_000))
        first = agent.stdin()
        self.assertLessEqual(len(joined(first, 3)), WINDOW)
        typist.stream(Stream.STDIN, b"x")
        agent.io.drain()
        before = []
        for to, body in agent.stdin():
            if to == 5:
                break
            before.append(len(body))
        self.assertLessEqual(sum(before), TURN)

    def test_window(self) -> None:
        """At most 16 KiB of stdin wait in the channel's socket."""
        for dialect in (Dialect.CC, *HYPERSTARTS):
            _, agent, (shim,) = started(dialect)
            shim.stream(Stream.STDIN, bytes(100_000))
            while agent.io.drainWanted:
                self.assertLessEqual(agent.io.unsent(), WINDOW)
                self.assertGreater(agent.io.unsent(), 0)
                agent.io.drain()
            self.assertEqual(joined(agent.stdin(), 3), bytes(100_000))

    def test_partialWrite(self) -> None:
        """A write that the socket took in part is ended before anything else, and counts whole."""
        _, agent, (shim, other) = started(Dialect.CC, 2)
        agent.io.room = 10
        shim.stream(Stream.STDIN, b"typed")
        other.stream(Stream.STDIN, b"more")
        agent.io.room = None
        noted = reads(agent)
        agent.io.sink.writable()
        self.assertEqual(len(noted), 1)
        agent.io.drain()
        self.assertEqual(agent.stdin(), [(3, b"typed"), (5, b"more")])

    def test_fullSession(self) -> None:
        """P9: a shim whose process takes no stdin is not read beyond the limit; others are."""
        world, agent, (stuck, other) = started(Dialect.HYPERSTART0, 2, sessionBuffer=8192)
        agent.io.room = 0
        for number in range(20):
            stuck.stream(Stream.STDIN, bytes([number]) * 1000)
        self.assertTrue(stuck.connection.paused)
        self.assertFalse(other.connection.paused)
        self.assertLess(world.registry.context.budget.used, 8192 + 1000)
        agent.io.makeRoom()
        for _ in range(20):
            agent.io.drain()
            stuck.connection.pump()
        got = joined(agent.stdin(), 3)
        self.assertEqual(got, b"".join(bytes([number]) * 1000 for number in range(20)))
        self.assertFalse(stuck.connection.paused)
        self.assertEqual(world.registry.context.budget.used, 0)

    def test_signalBehindStdin(self) -> None:
        """P8: a signal is seen though the stdin before it is held up."""
        _, agent, (shim,) = started(Dialect.CC)
        agent.commands()
        agent.io.room = 0
        shim.stream(Stream.STDIN, bytes(500_000))
        shim.send(Command.SIGNAL, {"signalNumber": 9})
        self.assertEqual(agent.command().number, ControlCode.KILLCONTAINER)

    def test_signalBehindAllOfIt(self) -> None:
        """P8: a signal is seen behind stdin as long as the session's limit, not behind more."""
        limit = 1 << 20
        for sizes, frames in (([limit], 2), ([8192] * (limit // 8192), 2), ([1, limit], 0)):
            world = World(Dialect.CC)
            shim = world.shim(world.register(streams=1)[2][0])
            for size in sizes:
                shim.stream(Stream.STDIN, bytes(size))
            shim.send(Command.SIGNAL, {"signalNumber": 9})
            self.assertEqual(len(shim.frames()), frames)

    def test_ofTheDead(self) -> None:
        """Stdin of a process that has ended is dropped, whatever of it waits."""
        for exited in (True, False):
            world, agent, (shim, other) = started(Dialect.CC, 2)
            agent.io.room = 0
            shim.stream(Stream.STDIN, bytes(50_000))
            if exited:
                agent.exit(3, 0)
                shim.stream(Stream.STDIN, b"after its end")
            else:
                shim.connection.end()
                agent.exit(3, 0)
            agent.io.makeRoom()
            agent.io.drain()
            agent.stdin()
            other.stream(Stream.STDIN, b"mine")
            agent.io.drain()
            self.assertEqual(world.registry.context.budget.used, 0 if exited else 13)
            self.assertEqual(agent.stdin(), [(5, b"mine")])

    def test_afterEOF(self) -> None:
        """Stdin after the EOF is dropped; the EOF comes once."""
        _, agent, (shim,) = started(Dialect.CC)
        for data in (b"a", b"", b"b", b""):
            shim.stream(Stream.STDIN, data)
        agent.io.drain()
        self.assertEqual(agent.stdin(), [(3, b"a"), (3, b"")])

    def test_heldUntilStart(self) -> None:
        """P8: stdin and its EOF are held for the start, however often that is tried."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        for data in (b"one", b"two", b""):
            shim.stream(Stream.STDIN, data)
        runtime.hyper("newcontainer", startData(), tokens)
        agent.say(ControlCode.ERROR)
        world.clock.advance(10_000)
        self.assertEqual(agent.stdin(), [])
        runtime.hyper("newcontainer", startData(), tokens)
        agent.ack()
        for _ in range(3):
            agent.io.drain()
        self.assertEqual(agent.stdin(), [(3, b"one"), (3, b"two"), (3, b"")])

    def test_smallFrames(self) -> None:
        """P9: stdin in the smallest frames takes about the memory that is counted, and is kept."""
        world, agent, (shim,) = started(Dialect.CC, sessionBuffer=1 << 17)
        agent.io.room = 0
        frames = [encodeFrame(FrameType.STREAM, Stream.STDIN, data) for data in (b"ab", b"cde")]
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        while not shim.connection.paused:
            shim.connection.feed(b"".join(frames) * 100)
        used = world.registry.context.budget.used
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 4 * used)
        shim.connection.resumeReading()
        agent.io.makeRoom()
        received = b""
        while messages := agent.stdin():
            received += joined(messages, 3)
            agent.io.drain()
        self.assertEqual(received[: used - used % 5], b"abcde" * (used // 5))

    def test_channelGone(self) -> None:
        """Nothing is sent on a channel that has closed."""
        _, agent, (shim,) = started(Dialect.CC)
        agent.io.end()
        shim.stream(Stream.STDIN, b"too late")
        self.assertEqual(agent.stdin(), [])
