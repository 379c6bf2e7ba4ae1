"""
Tests for L{ccproxy.core.console} and L{ccproxy.net.console}.
"""

from __future__ import annotations

import attrs
import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ...core.console import ConsoleRing
from ...net.buffered import IBufferedProtocol
from ...net.console import LONGEST_LINE, MOST_LINES, Console
from ...net.ordinary import attach
from ...persist import consoles
from ...persist.consoles import ConsoleForm, resumeConsoles, writeConsoles
from ...persist.state import HandoverForm
from ..memory import World
from ..sockets import SocketCase


class RingTests(SynchronousTestCase):
    """Tests for L{ConsoleRing}."""

    @given(st.lists(st.binary(max_size=40)), st.integers(1, 50), st.integers(0, 300))
    def test_keepsTheLast(self, pieces: list[bytes], limit: int, position: int) -> None:
        """The last bytes are kept, never more than the limit, each at its position."""
        ring, said = ConsoleRing(limit), b""
        for piece in pieces:
            ring.add(memoryview(piece))
            said += piece
            self.assertEqual(ring.since(0), said[-limit:])
            self.assertEqual((ring.start, ring.end), (max(0, len(said) - limit), len(said)))
            self.assertEqual(ring.since(position), said[max(ring.start, position) :])

    @given(
        st.lists(st.text("aé€𝄞\n", min_size=1, max_size=9), max_size=9),
        st.integers(4, 40),
        st.data(),
    )
    def test_wholeCharacters(self, pieces: list[str], limit: int, data: st.DataObject) -> None:
        """A reader is given whole characters, however they came and whatever it has missed."""
        ring, said, at, last = ConsoleRing(limit), b"", 0, b""
        rest = "".join(pieces).encode()
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            ring.add(memoryview(rest[:size]))
            said, rest = said + rest[:size], rest[size:]
            if data.draw(st.booleans()):
                last, at = ring.wholeSince(at)
                last.decode()
                self.assertTrue(said[:at].endswith(last))
                self.assertLess(len(said) - at, 4)
                self.assertLessEqual(len(said[-limit:]) - len(ring.wholeSince(0)[0]), 6)
        self.assertEqual(ring.wholeSince(0)[1], len(said))

    def test_noCharacters(self) -> None:
        """Bytes that are not UTF-8 count as whole; at the end, a part of a character does, too."""
        for said in (b"\x80" * 9, b"\xff" * 9, b"caf\xe9 x", b"\xc3\xa9\x80\x80\x80"):
            ring = ConsoleRing(20)
            ring.add(memoryview(said))
            self.assertEqual(ring.wholeSince(0), (said, len(said)))
        ring = ConsoleRing(20)
        ring.add(memoryview(b"caf\xe2\x82"))
        self.assertEqual(ring.wholeSince(0), (b"caf", 3))
        ring.close()
        self.assertEqual(ring.wholeSince(3), (b"\xe2\x82", 5))

    def test_followers(self) -> None:
        """Each is told of what comes and of the end, until it has heard enough."""
        ring = ConsoleRing(4)
        told: list[tuple[str, bytes, bool]] = []
        stop = ring.follow(lambda: told.append(("a", ring.since(0), ring.closed)))
        ring.add(memoryview(b"one"))
        ring.follow(lambda: told.append(("b", b"", ring.closed)))
        ring.follow(stop)
        ring.add(memoryview(b"two"))
        ring.close()
        self.assertEqual(
            told, [("a", b"one", False), ("a", b"etwo", False), ("b", b"", False), ("b", b"", True)]
        )


class RestartTests(SynchronousTestCase):
    """What consoles have said, over a planned restart."""

    def world(self, *said: bytes) -> World:
        """A world with VMs whose consoles have said this."""
        world = World(consoleBuffer=4096)
        for nth, words in enumerate(said):
            agent, _, _ = world.register(f"vm{nth}")
            agent.vm.console.add(memoryview(words))
        return world

    def restarted(self, world: World) -> dict[str, ConsoleRing]:
        """The consoles as the next process has them."""
        form = HandoverForm("me", consoles=writeConsoles(world.registry.vms.values()))
        form = msgspec.msgpack.decode(msgspec.msgpack.encode(form), type=HandoverForm)
        world.restart()
        resumeConsoles(world.registry.vms.values(), form.consoles)
        return {name: vm.console for name, vm in world.registry.vms.items()}

    def test_stay(self) -> None:
        """Each goes on where it was: with its last words, at their position."""
        long = b"0123456789" * 1000
        consoles = self.restarted(self.world(b"panic", b"", long))
        said = [(ring.start, ring.end, ring.since(0)) for ring in consoles.values()]
        self.assertEqual(said, [(0, 5, b"panic"), (0, 0, b""), (5904, 10000, long[-4096:])])
        consoles["vm0"].add(memoryview(b" on"))
        self.assertEqual((consoles["vm0"].since(3), consoles["vm0"].end), (b"ic on", 8))

    def test_bounded(self) -> None:
        """Where it is too much together, the last of each is kept; who is silent has no share."""
        self.patch(consoles, "MOST_WRITTEN", 3000)
        rings = self.restarted(self.world(b"a" * 4000, b"b" * 10, b"", b"c" * 1500 + b"end"))
        sizes = {name: ring.end - ring.start for name, ring in rings.items()}
        self.assertEqual(sizes, {"vm0": 1000, "vm1": 10, "vm2": 0, "vm3": 1000})
        self.assertTrue(rings["vm3"].since(0).endswith(b"cend"))

    def test_smaller(self) -> None:
        """A next process that keeps less takes less up."""
        ring = ConsoleRing(4)
        ring.goOn(10, b"456789")
        self.assertEqual((ring.start, ring.end, ring.since(0)), (6, 10, b"6789"))

    def test_closed(self) -> None:
        """The console of a VM that was lost before is at its end, so nobody follows it."""
        world = self.world(b"panic", b"fine")
        world.registry.vms["vm0"].channelEnded(True, "was closed")
        world.clock.advance(60.0)
        consoles = self.restarted(world)
        self.assertEqual([ring.closed for ring in consoles.values()], [True, False])
        self.assertEqual(consoles["vm0"].since(0), b"panic")

    def test_versions(self) -> None:
        """A state without consoles is read; who does not know them reads one that has them."""

        @attrs.frozen
        class Before:
            """What an earlier version knows."""

            writer: str

        form = HandoverForm("me", consoles={1: ConsoleForm(5, b"panic")})
        encoded = msgspec.msgpack.encode(form)
        self.assertEqual(msgspec.msgpack.decode(encoded, type=Before), Before("me"))
        encoded = msgspec.msgpack.encode(Before("you"))
        self.assertEqual(msgspec.msgpack.decode(encoded, type=HandoverForm), HandoverForm("you"))


class ConsoleTests(SocketCase):
    """Tests for L{Console}."""

    def setUp(self) -> None:
        """A VM, and its console's two ends."""
        super().setUp()
        self.world = World(consoleBuffer=10_000)
        self.world.register()
        self.vm = self.world.registry.vms["vm"]
        self.lost: list[None] = []
        ours, self.guest = self.pair()
        self.console = Console(self.vm, lambda: self.lost.append(None))
        verifyObject(IBufferedProtocol, self.console)
        attach(self.poller, ours, "console", self.console)

    def say(self, *pieces: bytes) -> None:
        """Let the guest write."""
        for piece in pieces:
            self.guest.sendall(piece)
            self.turn(3)

    def lines(self) -> list[str]:
        """What was logged."""
        return [str(entry["text"]) for entry in self.world.logged("console")]

    def test_ring(self) -> None:
        """What it says is kept, whether it is logged or not."""
        self.world.registry.context.verbose = False
        self.say(b"one\ntw", b"o\n")
        self.assertEqual(self.vm.console.since(0), b"one\ntwo\n")
        self.assertEqual(self.lines(), [])
        self.assertEqual(self.lost, [])

    @given(st.text("ab\n", max_size=30), st.lists(st.integers(0, 30), max_size=4))
    def test_lines(self, said: str, cuts: list[int]) -> None:
        """Each line is logged once, however it came."""
        self.world.events.clear()
        data, places = said.encode() + b"\n", sorted(cuts)
        for start, stop in zip([0, *places], [*places, len(data)], strict=True):
            if data[start:stop]:
                self.console.bufferReceived(memoryview(data[start:stop]))
        self.assertEqual(self.lines(), (said + "\n").split("\n")[:-1])

    def test_longLine(self) -> None:
        """A long line comes in pieces, at once, and little of it waits for its end."""
        for nth in range(10):
            self.say(bytes([ord("a") + nth]) * 5000)
            self.assertLess(len(self.console._line), LONGEST_LINE)
        self.say(b"\r\nnext\r\n")
        *pieces, last = self.lines()
        self.assertEqual(last, "next")
        self.assertEqual(len("".join(pieces)), 50_000)
        self.assertLessEqual(max(map(len, pieces)), LONGEST_LINE)
        self.assertEqual(len(self.vm.console.since(0)), 10_000)

    @given(st.integers(0, 4), st.text("é€𝄞", min_size=1, max_size=4), st.integers(1, 9000))
    def test_longLineOfCharacters(self, before: int, characters: str, size: int) -> None:
        """The pieces of a long line are whole characters, however they came."""
        self.world.events.clear()
        line = "x" * before + characters * (10_000 // len(characters.encode()))
        data = line.encode() + b"\n"
        for at in range(0, len(data), size):
            self.console.bufferReceived(memoryview(data[at : at + size]))
        pieces = self.lines()
        self.assertEqual("".join(pieces), line)
        self.assertEqual(len(pieces), 3)
        self.assertLessEqual(max(len(piece.encode()) for piece in pieces), LONGEST_LINE)

    def test_flood(self) -> None:
        """Of very many lines at once, the first are logged, and how many more there were."""
        self.console.bufferReceived(memoryview(b"x\n" * (MOST_LINES + 5000) + b"y"))
        self.assertEqual(self.lines(), ["x"] * MOST_LINES + ["[5000 more lines at once]"])
        self.say(b"z\n")
        self.assertEqual(self.lines()[-1], "yz")

    def test_levelChanges(self) -> None:
        """A line that began unheard is logged from where the log listens again."""
        self.say(b"heard ")
        self.world.registry.context.verbose = False
        self.say(b"unheard")
        self.world.registry.context.verbose = True
        self.say(b" again\n")
        self.assertEqual(self.lines(), [" again"])

    def test_end(self) -> None:
        """At its end the rest of a line is logged, and somebody is told."""
        self.say(b"panic")
        self.guest.close()
        self.turn(3)
        self.assertEqual(self.lines(), ["panic"])
        self.assertEqual(len(self.lost), 1)

    def test_lastWords(self) -> None:
        """What a guest said right before its VM ended is not lost: it tells why."""
        self.guest.sendall(b"Kernel panic - not syncing\n")
        self.console.close()
        self.turn(3)
        self.assertEqual(self.lines(), ["Kernel panic - not syncing"])
        self.assertIn(b"panic", self.vm.console.since(0))
        self.assertEqual(self.lost, [])

    def test_closed(self) -> None:
        """With the VM's channels its console ends, and followers learn it."""
        told: list[bool] = []
        self.vm.console.follow(lambda: told.append(self.vm.console.closed))
        self.world.registry.shutDown()
        self.assertEqual(told, [True])
