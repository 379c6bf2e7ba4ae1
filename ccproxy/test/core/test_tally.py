"""
Tests for L{ccproxy.core.tally}.
"""

from __future__ import annotations

import sys
from types import FrameType

from twisted.trial.unittest import SynchronousTestCase

from ...core.tally import BOUNDS, Durations
from ...errors import AgentError, BadPayload, UnknownVM
from ...wire.codes import Command, ControlCode, Stream
from ...wire.messages import encodeIO
from ..memory import World


class DurationTests(SynchronousTestCase):
    """
    Tests for L{Durations}.
    """

    def test_classes(self) -> None:
        """A duration is counted where it is at most the bound."""
        durations = Durations()
        for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.1, BOUNDS[-1] * 2):
            durations.add(seconds)
        self.assertEqual(durations.classes[:2], [2, 1])
        self.assertEqual((durations.classes[-1], sum(durations.classes)), (1, 4))
        self.assertAlmostEqual(durations.total, BOUNDS[0] * 2.1 + BOUNDS[-1] * 2)


class TallyTests(SynchronousTestCase):
    """
    The core counts what it does.
    """

    def setUp(self) -> None:
        self.world = World()
        self.tally = self.world.registry.context.tally

    def test_answered(self) -> None:
        """A client's command counts once, with the time until its response."""
        agent, runtime, _ = self.world.register()
        runtime.hyper("ping")
        self.world.clock.advance(2)
        agent.ack()
        good = self.tally.answered[Command.HYPER, True]
        self.assertEqual((sum(good.classes), good.total), (1, 2))
        self.assertEqual(sum(self.tally.answered[Command.REGISTER_VM, True].classes), 1)

    def test_disconnected(self) -> None:
        """DisconnectShim counts too, though it has no response."""
        _, _, tokens = self.world.register(streams=1)
        self.world.shim(tokens[0]).send(Command.DISCONNECT_SHIM)
        self.assertEqual(sum(self.tally.answered[Command.DISCONNECT_SHIM, True].classes), 1)

    def test_failed(self) -> None:
        """One that fails counts by its error, whatever it was."""
        agent, runtime, _ = self.world.register()
        runtime.refused(Command.ATTACH_VM, {"containerId": "other"})
        runtime.refused(200, b"")
        runtime.hyper("ping")
        agent.say(ControlCode.ERROR, b"no")
        self.assertEqual(self.tally.errors, {UnknownVM: 1, BadPayload: 1, AgentError: 1})
        self.assertEqual(sum(self.tally.answered[200, False].classes), 1)

    def test_acknowledged(self) -> None:
        """An agent's answer counts with the time since its command was sent, not since it came."""
        agent, runtime, _ = self.world.register()
        runtime.hyper("ping")
        runtime.hyper("startpod", {})
        self.world.clock.advance(2)
        agent.ack()
        self.world.clock.advance(1)
        agent.say(ControlCode.ERROR)
        self.assertEqual(self.tally.acknowledged["ping", True].total, 2)
        self.assertEqual(self.tally.acknowledged["startpod", False].total, 1)


class CostTests(SynchronousTestCase):
    """
    Counting costs the data path nothing.
    """

    def calls(self, frames: int) -> dict[str, int]:
        """
        How often functions of each module are called while so many frames go each way, in a chunk.
        """
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        found: dict[str, int] = {}

        def profile(frame: FrameType, event: str, argument: object) -> None:
            if event == "call":
                module = frame.f_globals["__name__"]
                found[module] = found.get(module, 0) + 1

        output = encodeIO(3, b"x" * 500) * frames
        sys.setprofile(profile)
        try:
            agent.io.feed(output)
            shim.stream(Stream.STDIN, b"y" * 500)
        finally:
            sys.setprofile(None)
        self.assertEqual(agent.vm.traffic.outFrames, frames)
        return found

    def test_noCalls(self) -> None:
        """Whatever goes through, nothing that counts is called, and no more than for one frame."""
        few, many = self.calls(2), self.calls(50)
        for module in many:
            self.assertFalse(module.endswith((".tally", ".traffic")) or ".admin" in module, module)
        self.assertEqual(few["ccproxy.core.routing"], many["ccproxy.core.routing"])
