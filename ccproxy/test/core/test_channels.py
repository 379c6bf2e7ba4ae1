"""
What comes on the I/O channel of a VM whose READY is past (promise P20).
"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.resync import PLAUSIBLE
from ccproxy.core.vm import vmOf
from ccproxy.wire.codes import Command, ControlCode, FrameType, Stream
from ccproxy.wire.frames import encodeStream
from ccproxy.wire.messages import encodeIO

from ..memory import MemoryClient, MemoryVM, World, registration, startData, tokensOf


class Once:
    """Feeds a sink as a transport may: what was not used is offered again with more only."""

    def __init__(self, agent: MemoryVM) -> None:
        self._sink = agent.io.sink
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        """More has come."""
        self._rest += data
        del self._rest[: self._sink.received(memoryview(bytearray(self._rest)))]

    @property
    def held(self) -> int:
        """How much is offered again and again."""
        return len(self._rest)


class ResyncTests(SynchronousTestCase):
    """The channel may begin inside a message of an earlier registration."""

    def late(self) -> tuple[Once, MemoryClient, int]:
        """A VM registered late with one process, its shim, and its number."""
        world = World()
        self.clock = world.clock
        client = world.client()
        client.send(Command.REGISTER_VM, registration(streams=1))
        agent = MemoryVM(world.connector.wanted.pop())
        world.clock.advance(3)
        agent.ack()
        (token,) = tokensOf(client.frame())
        agent.commands()
        shim = world.shim(token)
        client.hyper("newcontainer", startData(), [token])
        number = msgspec.json.decode(agent.command().body)["process"]["stdio"]
        agent.say(ControlCode.ACK)
        return Once(agent), shim, number

    def test_behindForeignMessages(self) -> None:
        """Our message is found at once behind whole messages of others, in one read."""
        channel, shim, number = self.late()
        channel.feed(encodeIO(3, b"old") + encodeIO(4, b"x" * 500) + encodeIO(number, b"mine"))
        self.assertEqual([frame.payload for frame in shim.frames()], [b"mine"])
        self.assertEqual(channel.held, 0)
        channel.feed(encodeIO(7, b"foreign") + encodeIO(number, b"again"))
        self.assertEqual([frame.payload for frame in shim.frames()], [b"again"])

    def test_longMessage(self) -> None:
        """P6: a message of ours that is longer than others are believed to be is not lost."""
        channel, shim, number = self.late()
        channel.feed(encodeIO(3, b"old") + encodeIO(number, b"x" * PLAUSIBLE))
        self.assertEqual([frame.payload for frame in shim.frames()], [b"x" * PLAUSIBLE])

    def test_behindAnEndedProcess(self) -> None:
        """P6: what a process says that counts as ended takes nothing from the one that is next."""
        channel, shim, number = self.late()
        session = shim.client.session
        assert session is not None
        vm = vmOf(session)
        session.exit.tell(0)
        self.clock.advance(vm.context.limits.exitTimeout)
        (ended,) = shim.frames()
        self.assertIs(ended.type, FrameType.NOTIFICATION)
        late = encodeIO(number, b"late")
        channel.feed(late)
        self.assertEqual((channel.held, shim.frames()), (len(late), []))
        following = vm.processes.new()
        following.begin(ControlCode.NEWCONTAINER, "c2", None, False)
        channel.feed(encodeIO(following.stdio, b"mine"))
        self.assertEqual(following.output.pending, [encodeStream(Stream.STDOUT, b"mine")])
        self.assertEqual((channel.held, shim.frames()), (0, []))

    @given(
        st.binary(max_size=60),
        st.lists(st.binary(max_size=50), max_size=4),
        st.lists(st.integers(1, 50), max_size=12),
    )
    def test_insideAMessage(self, cut: bytes, foreign: list[bytes], splits: list[int]) -> None:
        """It is found behind the rest of a message and whole ones, however cut the reads are."""
        channel, shim, number = self.late()
        stream = cut + b"".join(encodeIO(9, body) for body in foreign)
        ours = [encodeIO(number, b"mine"), encodeIO(number + 1, b"too")] * 2
        stream += b"".join(ours)
        for split in splits:
            channel.feed(stream[:split])
            stream = stream[split:]
        channel.feed(stream)
        self.assertEqual([frame.payload for frame in shim.frames()], [b"mine", b"too"] * 2)
        self.assertEqual(channel.held, 0)

    def test_bounded(self) -> None:
        """P9: while nothing of ours comes, little is kept, whatever comes."""
        for piece in (b"\0" * 1000, b"\xff" * 1000, b"\0\0\0\x0c" * 250, encodeIO(3, b"x" * 988)):
            channel, shim, number = self.late()
            for _ in range(50):
                channel.feed(piece)
                self.assertLessEqual(channel.held, PLAUSIBLE + 1000)
            channel.feed(encodeIO(number, b"mine"))
            self.assertEqual([frame.payload for frame in shim.frames()], [b"mine"])

    def test_freshVMHasNoSearch(self) -> None:
        """A VM that said READY is read from its first byte: what cannot be is its end."""
        world = World()
        agent, _, _ = world.register()
        agent.io.feed(b"\0" * 12)
        self.assertTrue(agent.io.closed)
