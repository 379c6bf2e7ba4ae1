"""
Tests for L{ccproxy.admin.health}, its L{LoopLag} and L{ccproxy.service.orphans}.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from ...admin.health import Health
from ...admin.looplag import INTERVAL, REMEMBERED, LoopLag
from ...service.orphans import OrphanService
from ...wire.codes import Command
from ..memory import World


class HealthTests(SynchronousTestCase):
    """
    A daemon is healthy while it listens and its loop is not late.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.lag = LoopLag(self.clock)
        self.lag.start()
        self.listening = True
        self.health = Health(self.lag, 0.5, lambda: self.listening)

    def test_healthy(self) -> None:
        """A loop in time, and a socket that listens."""
        self.clock.pump([INTERVAL] * 20)
        found = self.health.look()
        self.assertEqual((found.healthy, found.loopLag, found.maxLoopLag), (True, 0, 0.5))

    def test_late(self) -> None:
        """A loop that was late is remembered for ten looks."""
        self.clock.advance(INTERVAL + 0.7)
        self.assertAlmostEqual(self.health.look().loopLag, 0.7)
        self.assertFalse(self.health.look().healthy)
        self.clock.pump([INTERVAL] * (REMEMBERED - 1))
        self.assertFalse(self.health.look().healthy)
        self.clock.advance(INTERVAL)
        self.assertTrue(self.health.look().healthy)

    def test_stillLate(self) -> None:
        """Who asks first after the loop has hung learns it, though the timer has not run yet."""
        self.clock.rightNow += INTERVAL + 2
        self.assertAlmostEqual(self.health.look().loopLag, 2)

    def test_notListening(self) -> None:
        """Without its socket it is of no use."""
        self.listening = False
        self.assertFalse(self.health.look().healthy)

    def test_stop(self) -> None:
        """Nothing is left of it."""
        self.lag.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class OrphanTests(SynchronousTestCase):
    """
    A VM that nobody looks after is reported once.
    """

    def setUp(self) -> None:
        self.world = World()
        self.service = OrphanService(self.world.registry, 100)
        self.logged: list[object] = []
        self.service.log = Logger(observer=self.logged.append)  # type: ignore[arg-type]
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def advance(self, seconds: int) -> None:
        """Let time pass."""
        self.world.clock.pump([1.0] * seconds)

    def test_orphan(self) -> None:
        """It is one without a client and a shim, for long enough."""
        _, client, _ = self.world.register()
        self.advance(300)
        self.assertEqual(self.logged, [])
        client.connection.end()
        self.advance(90)
        self.assertEqual(self.logged, [])
        self.advance(300)
        (event,) = self.logged
        assert isinstance(event, dict)
        self.assertEqual((event["event"], event["vm"], event["serial"]), ("vm-orphaned", "vm", 1))
        self.assertGreaterEqual(event["seconds"], 100)
        self.assertEqual(self.service.orphans, {1})

    def test_shim(self) -> None:
        """A connected shim looks after it."""
        agent, client, tokens = self.world.register(streams=1)
        shim = self.world.process(agent, client, tokens[0])
        client.connection.end()
        self.advance(300)
        self.assertEqual(self.logged, [])
        shim.connection.end()
        self.advance(120)
        self.assertEqual(len(self.logged), 1)

    def test_adopted(self) -> None:
        """Time counts anew when somebody has looked after it meanwhile."""
        _, client, _ = self.world.register()
        client.connection.end()
        for _ in range(5):
            self.advance(80)
            other = self.world.client()
            other.call(Command.ATTACH_VM, {"containerId": "vm"})
            self.advance(20)
            other.connection.end()
        self.assertEqual(self.logged, [])
        self.advance(120)
        self.assertEqual(self.service.orphans, {1})
        self.world.client().call(Command.ATTACH_VM, {"containerId": "vm"})
        self.advance(20)
        self.assertEqual(self.service.orphans, set())

    def test_lost(self) -> None:
        """A lost VM, or one that is unregistered, is none."""
        agent, client, _ = self.world.register("a")
        self.world.register("b", client=client)
        client.call(Command.UNREGISTER_VM, {"containerId": "b"})
        agent.control.end()
        agent.io.end()
        client.connection.end()
        self.advance(300)
        self.assertEqual(self.logged, [])
