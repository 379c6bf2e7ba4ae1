"""
Tests for L{ccproxy.service.pod}: the daemon of one VM ends when it is of no use any more.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ...service.pod import LOOK, PodService
from ...wire.codes import Command
from ..memory import World, registration


class StoppingClock(Clock):
    """A clock that counts how often it was told to stop."""

    stops = 0

    def stop(self) -> None:
        """Stop."""
        self.stops += 1


class PodTests(SynchronousTestCase):
    """When the daemon is stopped."""

    def pod(self, **limits: Any) -> None:
        """Begin, with these limits."""
        self.world = World(**limits)
        self.clock = self.world.clock = self.world.registry.context.clock = StoppingClock()
        self.service = PodService(self.world.registry, self.clock)
        self.service.startService()

    def passes(self, seconds: float) -> None:
        """Let time pass, as a loop that runs sees it."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def lost(self) -> Any:
        """A VM has come, its client has left, and the VM was lost."""
        agent, client, _ = self.world.register()
        client.connection.end()
        agent.control.end()
        agent.io.end()
        return agent

    def assertEnds(self, within: float, least: float = 0) -> None:
        """Check that it is stopped by itself, once."""
        self.passes(least)
        self.assertEqual(self.clock.stops, 0)
        self.passes(within - least)
        self.assertEqual(self.clock.stops, 1)
        self.service.stopService()
        self.passes(100)
        self.assertEqual(self.clock.stops, 1)

    def test_lost(self) -> None:
        """A VM that is lost, and nobody comes to unregister it."""
        self.pod(podIdleTimeout=10)
        self.lost()
        self.assertEnds(12, least=9)

    def test_neverRegistered(self) -> None:
        """Nobody ever came."""
        self.pod(podIdleTimeout=10)
        self.assertEnds(12, least=9)

    def test_failed(self) -> None:
        """The registration failed, and its client has left."""
        self.pod(podIdleTimeout=10)
        client = self.world.client()
        client.send(Command.REGISTER_VM, registration())
        self.passes(20)
        self.world.connector.wanted[0].connectFailed("nothing is there")
        client.connection.end()
        self.assertEnds(12, least=9)

    def test_lives(self) -> None:
        """A VM that lives keeps it, with no client at all; one that registers does too."""
        self.pod(podIdleTimeout=10)
        _, client, _ = self.world.register()
        client.connection.end()
        self.passes(100)
        self.assertEqual(self.clock.stops, 0)

    def test_client(self) -> None:
        """A client keeps it, though the VM is lost."""
        self.pod(podIdleTimeout=10)
        self.lost()
        client = self.world.client()
        self.passes(100)
        self.assertEqual(self.clock.stops, 0)
        client.connection.end()
        self.assertEnds(12, least=9)

    def test_visitors(self) -> None:
        """Clients that come and go between two looks keep it too."""
        self.pod(podIdleTimeout=10)
        self.lost()
        for _ in range(20):
            self.passes(5)
            self.world.client().connection.end()
        self.assertEqual(self.clock.stops, 0)
        self.assertEnds(12, least=9)

    def test_never(self) -> None:
        """0 is never."""
        self.pod(podIdleTimeout=0)
        self.passes(100)
        self.assertEqual(self.clock.stops, 0)

    def test_unregistered(self) -> None:
        """After UnregisterVM the end comes with that of the channels, however idle it is."""
        self.pod(podIdleTimeout=10, podTimeout=60)
        agent, client, _ = self.world.register()
        client.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        client.connection.end()
        self.passes(30)
        self.assertEqual(self.clock.stops, 0)
        agent.control.end()
        agent.io.end()
        self.assertEnds(2 * LOOK)

    def test_overdue(self) -> None:
        """It comes in any case when C{--pod-timeout} has passed."""
        self.pod(podTimeout=60)
        _, client, _ = self.world.register()
        client.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.assertEnds(60.2, least=59)
