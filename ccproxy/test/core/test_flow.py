"""
Backpressure: who waits for whom, and for how long (promise P9).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.context import Budget
from ccproxy.core.limits import Limits
from ccproxy.wire.codes import Command, Dialect, Stream
from ccproxy.wire.messages import encodeIO

from ..memory import MemoryClient, MemoryConnection, MemoryVM, World, startData

KILOBYTE = b"k" * 1000


def _readOn(connection: MemoryConnection) -> None:
    connection.paused = False
    connection.pump()


class StuckCase(SynchronousTestCase):
    """A test with a full session whose shim does not read."""

    def world(self, **limits: float) -> None:
        """A VM with a stuck shim and a second one."""
        self.world_ = World(Dialect.CC, **{"sessionBuffer": 4096, **limits})
        self.agent, runtime, self.tokens = self.world_.register(streams=2)
        self.stuck, self.other = (
            self.world_.process(self.agent, runtime, token, container=token)
            for token in self.tokens
        )
        self.stuck.connection.room = 0
        for _ in range(6):
            self.agent.output(3, KILOBYTE)
        self.agent.output(5, b"behind it")
        self.assertTrue(self.agent.io.paused)


class StuckTests(StuckCase):
    """A full session with a shim that does not read."""

    def test_nothingIsLost(self) -> None:
        """The channel stays paused for as long as it takes; then all comes, in order."""
        self.world()
        self.world_.clock.pump([100.0] * 50)
        self.assertTrue(self.agent.io.paused)
        self.assertEqual(self.other.frames(), [])
        self.stuck.connection.makeRoom()
        self.agent.io.pump()
        self.assertEqual([frame.payload for frame in self.stuck.frames()], [KILOBYTE] * 6)
        self.assertEqual(self.other.frame().payload, b"behind it")
        self.assertEqual(self.world_.registry.context.budget.used, 0)
        self.assertEqual(len(self.world_.logged("backpressure-on")), 1)
        self.assertEqual(len(self.world_.logged("backpressure-off")), 1)

    def test_otherVM(self) -> None:
        """Another VM notices nothing."""
        self.world()
        agent, runtime, tokens = self.world_.register("other", streams=1)
        shim = self.world_.process(agent, runtime, tokens[0])
        agent.output(3, KILOBYTE)
        self.assertEqual(shim.frame().payload, KILOBYTE)

    def test_warning(self) -> None:
        """After 10 s it is an event, once, though the shim sends signals all the time."""
        self.world()
        for _ in range(6):
            self.world_.clock.advance(2)
            self.stuck.send(Command.SIGNAL, {"signalNumber": 2, "rows": 1})
        (entry,) = self.world_.logged("shim-stalled")
        self.assertEqual((entry["vm"], entry["session"]), ("vm", self.tokens[0][:6] + "..."))
        self.assertEqual(entry["seconds"], 10.0)
        self.world_.clock.pump([10.0] * 5)
        self.assertEqual(len(self.world_.logged("shim-stalled")), 1)

    def test_dropAfter(self) -> None:
        """Where the operator chose so, its output is dropped after a while, but for its end."""
        for seconds in (25.0, 5.0):
            self.world(stalledDrop=seconds)
            self.world_.clock.pump([1.0] * (int(seconds) - 1))
            self.assertTrue(self.agent.io.paused)
            self.world_.clock.pump([1.0, 0.1])
            self.agent.io.pump()
            self.assertEqual(self.other.frame().payload, b"behind it")
            self.agent.exit(3, 5)
            self.stuck.connection.makeRoom()
            payloads = [frame.payload for frame in self.stuck.frames()]
            self.assertEqual(payloads, [KILOBYTE] * 5 + [b"\x05"])
            self.assertEqual(self.world_.logged("process-exited")[0]["dropped"], 1000)

    def test_becomesAbsent(self) -> None:
        """If the stuck shim goes, the shorter patience for the absent begins."""
        self.world()
        self.world_.clock.advance(20)
        self.stuck.connection.end()
        self.world_.clock.advance(29)
        self.assertTrue(self.agent.io.paused)
        self.world_.clock.advance(1)
        self.agent.io.pump()
        self.assertEqual(self.other.frame().payload, b"behind it")

    def test_comesBack(self) -> None:
        """If a shim comes in time and reads, nothing is lost."""
        self.world()
        self.stuck.connection.end()
        self.world_.clock.advance(29)
        again = self.world_.client()
        again.send(Command.CONNECT_SHIM, {"token": self.tokens[0]})
        self.agent.io.pump()
        payloads = [frame.payload for frame in again.frames()]
        self.assertEqual(payloads, [b"", *[KILOBYTE] * 6])
        self.assertEqual(self.other.frame().payload, b"behind it")

    def test_disconnects(self) -> None:
        """If the stuck shim disconnects, its output is not waited for any more."""
        self.world()
        self.stuck.send(Command.DISCONNECT_SHIM)
        self.agent.io.pump()
        self.assertEqual(self.other.frame().payload, b"behind it")
        self.assertEqual(self.world_.registry.context.budget.used, 0)

    def test_vmGone(self) -> None:
        """The end of the VM ends the wait for it."""
        self.world()
        self.world_.registry.shutDown()
        self.assertEqual(self.world_.registry.context.budget.used, 0)
        self.assertEqual(self.world_.clock.getDelayedCalls(), [])


class ChangedLimitsTests(StuckCase):
    """Other limits, while the old ones already hold something up."""

    def change(self, **limits: Any) -> None:
        """Have other limits."""
        registry = self.world_.registry
        registry.context.setLimits(attrs.evolve(registry.context.limits, **limits))
        self.agent.io.pump()

    def test_moreRoom(self) -> None:
        """More room lets what waits go on, and less takes nothing away."""
        self.world()
        self.change(sessionBuffer=8192)
        self.assertFalse(self.agent.io.paused)
        self.assertEqual(self.other.frame().payload, b"behind it")
        self.change(sessionBuffer=4096)
        self.agent.output(3, KILOBYTE)
        self.assertTrue(self.agent.io.paused)
        self.stuck.connection.makeRoom()
        self.agent.io.pump()
        self.assertEqual([frame.payload for frame in self.stuck.frames()], [KILOBYTE] * 7)

    def test_ends(self) -> None:
        """A client whose end comes to light when it is read again leaves the others as they are."""
        self.world(maxUnanswered=1)
        clients = [self.world_.client() for _ in range(3)]
        for client in clients:
            client.call(Command.ATTACH_VM, {"containerId": "vm"})
            client.hyper("ping")
            client.hyper("ping")
            client.connection.end()
            # This connection reads as soon as it may.
            client.connection.resumeReading = partial(_readOn, client.connection)  # type: ignore[method-assign]
        self.change(maxUnanswered=5)
        self.assertTrue(all(client.connection.endSeen for client in clients))

    def test_moreCommands(self) -> None:
        """A client that may have more commands unanswered is read again."""
        self.world(maxUnanswered=1)
        client = self.world_.client()
        client.send(Command.ATTACH_VM, {"containerId": "vm"})
        client.frame()
        client.send(Command.HYPER, {"hyperName": "ping"})
        client.send(Command.HYPER, {"hyperName": "ping"})
        self.assertTrue(client.connection.paused)
        self.change(maxUnanswered=3)
        self.assertFalse(client.connection.paused)


class BudgetTests(SynchronousTestCase):
    """What all sessions hold together."""

    def test_share(self) -> None:
        """Beyond the total, each session's share is smaller."""
        budget = Budget(Limits(totalBuffer=1000, sessionBuffer=500, crowdedBuffer=50))
        self.assertEqual(budget.share, 500)
        budget.used = 1000
        self.assertEqual(budget.share, 500)
        budget.used = 1001
        self.assertEqual(budget.share, 50)
        small = Budget(Limits(totalBuffer=1000, sessionBuffer=10, crowdedBuffer=50))
        small.used = 2000
        self.assertEqual(small.share, 10)

    def crowded(self) -> tuple[World, list[tuple[MemoryVM, MemoryClient]]]:
        """Three VMs with a stuck shim each, that hold more than the total together."""
        world = World(Dialect.CC, totalBuffer=10_000, sessionBuffer=8192, crowdedBuffer=2048)
        pairs = []
        for name in "abc":
            agent, runtime, tokens = world.register(name, streams=1)
            shim = world.process(agent, runtime, tokens[0])
            shim.connection.room = 0
            pairs.append((agent, shim))
            for _ in range(6):
                agent.io.feed(encodeIO(3, KILOBYTE))
        return world, pairs

    def test_crowded(self) -> None:
        """In a crowd a session that holds its small share is full; when it is over, it is not."""
        world, pairs = self.crowded()
        self.assertEqual([agent.io.paused for agent, _ in pairs], [False, True, True])
        self.assertLess(world.registry.context.budget.used, 10_000 + 3 * 2048)
        pairs[0][1].connection.makeRoom()
        for agent, _ in pairs:
            agent.io.pump()
        self.assertEqual([agent.io.paused for agent, _ in pairs[1:]], [False, False])
        for _, shim in pairs:
            shim.connection.makeRoom()
            self.assertEqual(len(shim.frames()), 6)
        self.assertEqual(world.registry.context.budget.used, 0)

    def test_stdinCounts(self) -> None:
        """Held stdin is counted as well, and a shim paused for the crowd is read again after."""
        world = World(Dialect.CC, totalBuffer=10_000, sessionBuffer=8192, crowdedBuffer=2048)
        agent, runtime, tokens = world.register(streams=2)
        one, two = (world.shim(token) for token in tokens)
        for _ in range(6):
            one.stream(Stream.STDIN, KILOBYTE)
        for _ in range(6):
            two.stream(Stream.STDIN, KILOBYTE)
        self.assertTrue(two.connection.paused)
        runtime.hyper("newcontainer", startData(), [tokens[0]])
        agent.ack()
        while agent.io.drainWanted:
            agent.io.drain()
        self.assertFalse(two.connection.paused)
        two.connection.pump()
        self.assertEqual(world.registry.context.budget.used, 6000)
