"""
P1, P6, P8: what is done for speed gives what one message after the other would, on every input.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core import channels
from ccproxy.core.client import Client
from ccproxy.core.resync import PLAUSIBLE, findBeginning
from ccproxy.core.stdin import TURN, StdinScheduler
from ccproxy.core.vm import VM
from ccproxy.wire.codes import Command, Dialect, FrameType, Stream
from ccproxy.wire.frames import encodeFrame
from ccproxy.wire.messages import IO_HEADER, MessageDecoder, encodeIO, readMessage

from ..memory import MemoryClient, MemoryVM, World, command

NUMBERS = (3, 4, 5, 6)
#: The most bytes of a session, soon reached.
OUTPUT_BUFFER = 2000
STDIN_BUFFER = 20_000
#: The longest body of a message and of a frame.
LONG_OUTPUT = b"y" * 2500
LONG_STDIN = b"z" * (3 * (TURN - IO_HEADER.size))


def plainRoute(vm: VM, data: memoryview, offset: int) -> int:
    """What L{ccproxy.core.routing.route} does, message by message."""
    limit = vm.registry.context.limits.maxMessage
    while vm.io is not None:
        message = readMessage(IO_HEADER, data, offset, limit)
        if message is None:
            break
        session = vm.processes.numbers.get(message.number)
        if session is not None:
            if session.output.full:
                vm.flow.block(session)
                break
            session.received(message.number, message.body)
        offset += message.size
    return offset


def cast(dialect: Dialect, buffer: int) -> tuple[World, MemoryVM, list[MemoryClient], list[str]]:
    """A VM with two processes, their shims, and their tokens."""
    world = World(dialect, sessionBuffer=buffer)
    agent, runtime, tokens = world.register(streams=2)
    shims = [
        world.process(agent, runtime, token, container=f"c{at}") for at, token in enumerate(tokens)
    ]
    return world, agent, shims, tokens


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The pieces of C{data}, of sizes that come again and again."""
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            break
        yield data[at : at + size]
        at += size


dialects = st.sampled_from([Dialect.CC, Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1])
cuts = st.lists(st.one_of(st.integers(1, 4000), st.just(1 << 20)), min_size=1, max_size=5)
bodies = st.sampled_from([b"", b"", b"a", b"b", b"cd", b"ef", b"x" * 300, LONG_OUTPUT])
output = st.tuples(
    st.sampled_from([*NUMBERS, 3, 4, 1, 99]), bodies, st.sampled_from([1, 1, 1, 2, 3, 40])
)
outputActions = st.lists(
    st.one_of(
        st.tuples(st.just("output"), st.lists(output, min_size=1, max_size=8)),
        st.tuples(st.just("room"), st.tuples(st.integers(0, 1), st.integers(0, 3000))),
        st.tuples(st.just("gone"), st.integers(0, 1)),
        st.tuples(st.just("back"), st.integers(0, 1)),
    ),
    max_size=12,
)


class OutputTests(SynchronousTestCase):
    """From the agent to the shims."""

    @settings(max_examples=100)
    @given(dialects, outputActions, cuts)
    def test_agrees(
        self, dialect: Dialect, actions: list[tuple[str, object]], cuts: list[int]
    ) -> None:
        """Any messages, cut anyhow, and any shims: they get the same frames in the same order."""
        fast = self.play(dialect, actions, cuts)
        with patch.object(channels, "route", plainRoute):
            self.assertEqual(fast, self.play(dialect, actions, cuts))

    @given(
        dialects,
        st.lists(
            st.tuples(st.sampled_from([3, 4]), st.sampled_from([b"", b"a", b"bc"])), max_size=12
        ),
    )
    @example(Dialect.CC, [(3, b""), (4, b"x"), (3, b"bc"), (3, b"a")])
    def test_together(self, dialect: Dialect, given: list[tuple[int, bytes]]) -> None:
        """Messages that come together mean what they do when each comes alone."""
        came = []
        messages = [encodeIO(*each) for each in given]
        for pieces in (messages, [b"".join(messages)]):
            _, agent, shims, _ = cast(dialect, OUTPUT_BUFFER)
            for piece in pieces:
                agent.io.feed(piece)
            came.append([shim.frames() for shim in shims])
        self.assertEqual(*came)

    def successor(self, world: World, shim: MemoryClient, token: str) -> MemoryClient:
        """A shim that comes for the token of another; what that one got is counted as its own."""
        successor = world.client()
        successor.connection.written += shim.connection.take()
        successor.send(Command.CONNECT_SHIM, {"token": token})
        return successor

    def play(
        self, dialect: Dialect, actions: list[tuple[str, object]], cuts: list[int]
    ) -> list[object]:
        """
        Do it all.

        @return: what came of it.
        """
        world, agent, shims, tokens = cast(dialect, OUTPUT_BUFFER)
        whole = [True, True]
        for shim in shims:
            shim.connection.room = 0
        for action, value in actions:
            if action == "output":
                assert isinstance(value, list)
                data = b"".join(encodeIO(to, body) * count for to, body, count in value)
                for piece in cut(data, cuts):
                    agent.io.feed(piece)
                    for session in agent.vm.processes.sessions:
                        self.assertLess(session.output.held, OUTPUT_BUFFER + len(LONG_OUTPUT) + 12)
            elif action == "room":
                assert isinstance(value, tuple)
                number, room = value
                if whole[number]:
                    shims[number].connection.makeRoom(room)
                    agent.io.pump()
            elif action == "gone":
                assert isinstance(value, int)
                # What it had taken is not asked for: it depends on when it was offered.
                shims[value].connection.makeRoom()
                agent.io.pump()
                if whole[value]:
                    shims[value].connection.end()
                whole[value] = False
            else:
                assert isinstance(value, int)
                if not whole[value]:
                    shims[value] = self.successor(world, shims[value], tokens[value])
                    agent.io.pump()
                whole[value] = True
        for at, shim in enumerate(shims):
            if whole[at]:
                shim.connection.makeRoom()
        for _ in range(3):
            agent.io.pump()
        for at, shim in enumerate(shims):
            if not whole[at]:
                shims[at] = self.successor(world, shim, tokens[at])
        agent.io.pump()
        sessions = sorted(agent.vm.processes.sessions, key=lambda session: session.stdio)
        return [
            agent.io.paused,
            world.registry.context.budget.used,
            *[bytes(shim.connection.written) for shim in shims],
            *[(session.stdio, session.state, session.status) for session in sessions],
            agent.vm.traffic.outFrames if agent.io.paused else 0,
        ]


stdin = st.tuples(
    st.sampled_from([b"a", b"bc", b"de", b"x" * 500, b"y" * (TURN - IO_HEADER.size), LONG_STDIN]),
    st.sampled_from([1, 2, 3, 40]),
).map(lambda run: encodeFrame(FrameType.STREAM, Stream.STDIN, run[0]) * run[1])
others = st.sampled_from(
    [
        encodeFrame(FrameType.STREAM, Stream.STDIN),
        encodeFrame(FrameType.STREAM, Stream.STDOUT, b"not from a shim"),
        encodeFrame(FrameType.STREAM, Stream.STDIN, b"flagged", error=True),
        encodeFrame(FrameType.STREAM, Stream.LOG, b"{}"),
        # A longer header, and reserved bytes that are not zero.
        b"\0\2\4\0\0\0\2\0\0\0\0\2more" + b"qq",
        b"\0\2\3\1\0\0\2\0\0\0\0\2rr" * 3,
        command(Command.SIGNAL, {"signalNumber": 10}),
        command(Command.SIGNAL, {"signalNumber": 1000}),
        command(Command.DISCONNECT_SHIM),
        b"\0\2\3\0\0\0\2\0\xff\xff\xff\xff",
        b"\0\1\3\0\0\0\2\0\0\0\0\0",
    ]
)
inputActions = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 1), st.lists(stdin, min_size=1, max_size=4).map(b"".join)),
        st.tuples(st.integers(0, 1), others),
        st.tuples(st.just("room"), st.integers(0, 6000)),
        st.tuples(st.just("drain"), st.just(0)),
    ),
    max_size=15,
)


class InputTests(SynchronousTestCase):
    """From the shims to the agent."""

    @settings(max_examples=60)
    @given(dialects, inputActions, cuts)
    def test_agrees(
        self, dialect: Dialect, actions: list[tuple[object, object]], cuts: list[int]
    ) -> None:
        """Any frames, cut anyhow, and any pauses: processes and clients get the same."""
        fast = self.play(dialect, actions, cuts)
        with patch.object(Client, "_stdin", lambda self, data, offset: 0):
            self.assertEqual(fast, self.play(dialect, actions, cuts))
        with patch.object(StdinScheduler, "_bulk", lambda self, session, buffers: 0):
            self.assertEqual(fast, self.play(dialect, actions, cuts))

    def play(
        self, dialect: Dialect, actions: list[tuple[object, object]], cuts: list[int]
    ) -> list[object]:
        """
        Do it all.

        @return: what came of it.
        """
        world, agent, shims, _ = cast(dialect, STDIN_BUFFER)
        decoder, got = MessageDecoder(IO_HEADER), dict.fromkeys(NUMBERS, b"")
        ends: list[int] = []
        commands: list[object] = []

        def read() -> None:
            decoder.feed(agent.io.take())
            while (message := decoder.next()) is not None:
                got[message.number] += message.body
                if not message.body:
                    ends.append(message.number)
            for sent in agent.commands():
                commands.append((sent.number, sent.body))
                agent.ack()

        def settle() -> None:
            agent.io.drain()
            for shim in shims:
                shim.connection.pump()
            read()

        for action, value in actions:
            if action == "room":
                assert isinstance(value, int)
                agent.io.makeRoom(value)
            elif action == "drain":
                settle()
            else:
                assert isinstance(value, bytes) and isinstance(action, int)
                connection = shims[action].connection
                for piece in cut(value, cuts):
                    if not connection.closed:
                        connection.feed(piece)
                    for session in agent.vm.processes.sessions:
                        self.assertLess(session.stdin.size, STDIN_BUFFER + len(LONG_STDIN))
        agent.io.makeRoom()
        for _ in range(3000):
            settle()
            if not agent.io.drainWanted and not any(shim.connection.paused for shim in shims):
                break
        return [
            got,
            sorted(ends),
            sorted(commands, key=str),
            *[bytes(shim.connection.written) for shim in shims],
            *[shim.connection.closed for shim in shims],
            world.registry.context.budget.used,
            world.registry.ignoredFrames,
        ]


def plainBeginning(data: bytes, numbers: set[int], most: int) -> tuple[int, bool]:
    """What L{findBeginning} does, byte by byte."""
    size = IO_HEADER.size
    start, undecided = 0, None
    at = start
    while at <= len(data) - size:
        number, length = IO_HEADER.unpack_from(data, at)
        after = at + length
        if number in numbers and size <= length <= most:
            return at, True
        if undecided is None and size <= length <= PLAUSIBLE:
            if after + size > len(data):
                undecided = at
            elif size <= IO_HEADER.unpack_from(data, after)[1] <= PLAUSIBLE:
                at = start = after
                continue
        at += 1
    return max(start, len(data) - size + 1, 0) if undecided is None else undecided, False


LATE = (1 << 32) + 0xD5FE
lateNumbers = st.sampled_from([set(), {LATE, LATE + 1}, {LATE, LATE + 2, LATE + 3}, {3, LATE}])
shortLengths = st.sampled_from([0, 5, 11, 12, 13, 14, 20, 27, 40, 256, 0x27FF, 0x2800, 0x2801])
junk = st.one_of(
    st.builds(IO_HEADER.pack, st.sampled_from([0, 3, 9, *range(LATE, LATE + 4)]), shortLengths),
    st.sampled_from([b"\0", b"\0\0", b"\0" * 12, b"\x0c", b"\x01", b"\xff" * 9, b"\0\0\0\1"]),
    st.sampled_from([b"\0" * PLAUSIBLE, b"\xff" * PLAUSIBLE, b"\0\0\0\x0d" * 3000]),
    st.lists(st.sampled_from(b"\0\0\0\x0c\x0d\x28"), max_size=60).map(bytes),
    st.binary(max_size=20),
)


class SearchTests(SynchronousTestCase):
    """P20: the search for the beginning of a message."""

    @settings(max_examples=500)
    @given(st.lists(junk, max_size=12).map(b"".join), lateNumbers, st.sampled_from([30, 1 << 20]))
    def test_asByteByByte(self, data: bytes, numbers: set[int], most: int) -> None:
        """It finds what looking at each byte would find."""
        expected = plainBeginning(data, numbers, most)
        self.assertEqual(findBeginning(memoryview(data), numbers, most), expected)

    def test_cost(self) -> None:
        """P9: junk costs nothing for each byte, and nothing can cost more than some of them."""
        bad = IO_HEADER.pack(LATE, 5)
        size = 1 << 16
        for piece, bound in (
            (b"\0", 20),
            (b"\xff", 20),
            (b"text", 20),
            (random.Random(1).randbytes(size), 20),
            (b"\0\0\x11", size),
            (bad, size),
            (b"\0\0\0\x0c", size),
        ):
            calls = 0

            def count(frame: object, event: str, argument: object) -> None:
                nonlocal calls
                calls += event.endswith("call")

            data = piece * (size // len(piece))
            sys.setprofile(count)
            try:
                findBeginning(data, {LATE, LATE + 1}, 1 << 20)
            finally:
                sys.setprofile(None)
            self.assertLess(calls, bound, piece[:12])
