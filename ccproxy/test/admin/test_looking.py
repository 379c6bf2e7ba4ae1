"""
Tests for L{ccproxy.admin.looking}.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ...admin import looking
from ...admin.views import Awaited
from ...core.states import SessionState, VMState
from ...wire.codes import Command, Stream
from ..memory import World, registration, startData


class LookingTests(SynchronousTestCase):
    """
    What is shown is what there is.
    """

    def setUp(self) -> None:
        self.world = World()
        self.registry = self.world.registry

    def awaited(self) -> list[tuple[str, Awaited, float, int | None]]:
        """The commands that wait."""
        return [
            (view.command, view.awaits, view.age, view.client)
            for view in looking.commands(self.registry)
        ]

    def test_nothing(self) -> None:
        """A daemon with nothing to do shows zeros."""
        counts = looking.counts(self.registry)
        self.assertEqual(
            {*counts.vms.values(), *counts.sessions.values(), *counts.clients.values()}, {0}
        )
        self.assertEqual(self.awaited(), [])

    def test_registering(self) -> None:
        """A VM is shown while it registers, and so is the command that waits for it."""
        client = self.world.client()
        client.send(Command.REGISTER_VM, registration("vm", console="/c"))
        self.world.clock.advance(2)
        (vm,) = looking.vms(self.registry)
        self.assertEqual((vm.state, vm.age, vm.console), (VMState.CONNECTING, 2, "/c"))
        self.assertEqual(self.awaited(), [("RegisterVM", Awaited.READY, 2, 1)])
        (shown,) = looking.clients(self.registry)
        self.assertEqual((shown.vm, shown.unanswered, shown.peer), ("vm", 1, "pid=1 uid=0"))

    def test_waiting(self) -> None:
        """A command waits for its answer, its turn, its shim or its process's start."""
        agent, runtime, tokens = self.world.register(streams=3)
        runtime.hyper("ping")
        self.world.clock.advance(1)
        runtime.hyper("ping")
        other = self.world.client()
        other.call(Command.ATTACH_VM, {"containerId": "vm"})
        other.hyper("newcontainer", startData(), [tokens[0]])
        self.world.clock.advance(1)
        shim = self.world.shim(tokens[1])
        shim.send(Command.SIGNAL, {"signalNumber": 10})
        self.world.clock.advance(1)
        self.assertEqual(
            self.awaited(),
            [
                ("ping", Awaited.ANSWER, 3, 1),
                ("ping", Awaited.TURN, 2, 1),
                ("newcontainer", Awaited.SHIM, 2, 2),
                ("signal", Awaited.START, 1, 3),
            ],
        )
        self.assertEqual(looking.counts(self.registry).commands, 4)
        agent.ack()
        self.assertEqual(self.awaited()[0], ("ping", Awaited.ANSWER, 2, 1))

    def test_process(self) -> None:
        """A session is shown with its process, its shim and what is kept for them."""
        agent, runtime, tokens = self.world.register(streams=2)
        shim = self.world.process(agent, runtime, tokens[0], container="c1", terminal=True)
        shim.connection.room = 0
        agent.output(3, b"x" * 100)
        agent.io.room = 0
        shim.stream(Stream.STDIN, b"y" * 50)
        first, second = looking.sessions(self.registry, "vm")
        self.assertEqual((first.state, first.container), (SessionState.RUNNING, "c1"))
        self.assertEqual((first.first, first.terminal, first.shim), (True, True, 2))
        self.assertEqual(first.bufferedOutput, 112)
        self.assertEqual(
            (second.state, second.first, second.shim), (SessionState.CREATED, None, None)
        )
        self.assertEqual([*looking.sessions(self.registry, "other")], [])
        (vm,) = looking.vms(self.registry)
        self.assertEqual((vm.shims, vm.sessions, vm.bufferedOutput), (1, 2, 112))
        self.assertEqual((vm.outFrames, vm.outBytes), (1, 112))
        _, client = looking.clients(self.registry)
        self.assertEqual((client.session, client.unsent), (first.session, 112))

    def test_crashLoss(self) -> None:
        """A session is shown with what crashes have cost it."""
        _, _, tokens = self.world.register(streams=1)
        self.registry.tokens[tokens[0]].crashLoss = (3, 4)
        (session,) = looking.sessions(self.registry)
        self.assertEqual((session.lost.output, session.lost.input), (3, 4))

    def test_tokens(self) -> None:
        """No token is shown whole."""
        _, _, tokens = self.world.register(streams=1)
        text = msgspec.json.encode([*looking.sessions(self.registry)]).decode()
        self.assertNotIn(tokens[0], text)
        self.assertIn(tokens[0][:6], text)

    def test_blocked(self) -> None:
        """A VM whose output waits says for what, and for how long."""
        world = self.world = World(sessionBuffer=4096)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 0
        for _ in range(6):
            agent.output(3, b"x" * 1000)
        world.clock.advance(3)
        (vm,) = looking.vms(world.registry)
        assert vm.blocked is not None
        self.assertEqual((vm.blocked.seconds, vm.blockedSeconds), (3, 3))
        shim.connection.makeRoom()
        world.clock.advance(5)
        (vm,) = looking.vms(world.registry)
        self.assertEqual((vm.blocked, vm.blockedSeconds), (None, 3))
        self.assertEqual(world.registry.context.tally.blocked, 3)

    def test_leaving(self) -> None:
        """Lost VMs are shown, unregistered ones until nothing is left of them."""
        agent, runtime, tokens = self.world.register("a", streams=1)
        shim = self.world.process(agent, runtime, tokens[0])
        lost, *_ = self.world.register("b")
        lost.control.end()
        lost.io.end()
        self.world.clock.advance(4)
        runtime.call(Command.UNREGISTER_VM, {"containerId": "a"})
        a, b = looking.vms(self.registry)
        self.assertEqual((a.state, a.lostFor), (VMState.UNREGISTERED, None))
        self.assertEqual((b.state, b.lostFor), (VMState.LOST, 4))
        self.assertEqual((a.serial, b.serial), (1, 2))
        agent.exit(3, 0)
        shim.send(Command.DISCONNECT_SHIM)
        agent.control.end()
        agent.io.end()
        self.assertEqual([vm.containerId for vm in looking.vms(self.registry)], ["b"])

    def test_traffic(self) -> None:
        """What VMs had is not forgotten with them, and not counted twice."""
        agent, runtime, tokens = self.world.register(streams=1)
        self.world.process(agent, runtime, tokens[0])
        agent.output(3, b"x" * 88)
        self.assertEqual(self.total(), (1, 100))
        agent.control.end()
        agent.io.end()
        self.assertEqual(self.total(), (1, 100))
        # The next one of that name closes again what is left of it.
        self.world.register(client=runtime)
        self.assertEqual(self.total(), (1, 100))

    def total(self) -> Any:
        """Messages and bytes of output, in all."""
        total = self.registry.context.tally.total(looking.allVMs(self.registry))
        return total.outFrames, total.outBytes
