"""
The registry: names, sockets, limits, and the end of everything.
"""

from __future__ import annotations

import base64

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.registry import randomToken
from ccproxy.core.states import VMState
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream

from ..memory import MemoryVM, World, errorText, registration, startData


class TokenTests(SynchronousTestCase):
    """What a token is."""

    def test_random(self) -> None:
        """32 random bytes in URL-safe base64 with padding: cc-shim refuses anything else."""
        tokens = {randomToken() for _ in range(100)}
        self.assertEqual(len(tokens), 100)
        for token in tokens:
            self.assertEqual(len(token), 44)
            self.assertEqual(len(base64.urlsafe_b64decode(token)), 32)


class PathTests(SynchronousTestCase):
    """P3: what cannot be a socket's path is refused, and named."""

    def test_refused(self) -> None:
        """Empty, relative, with NUL, too long; a console may be empty or null."""
        world = World()
        for field in ("ctlSerial", "ioSerial", "console"):
            for path, problem in (
                ("", "is empty"),
                ("relative", "is no absolute path"),
                ("/nul\0", "has a NUL byte"),
                ("/" + "x" * 107, "is longer than 107 bytes"),
                ("/" + "é" * 54, "is longer than 107 bytes"),
            ):
                if field == "console" and not path:
                    continue
                text = world.client().refused(Command.REGISTER_VM, {**registration(), field: path})
                self.assertIn(f"{field} {problem}", text)
        self.assertEqual((world.registry.vms, world.connector.wanted), ({}, []))
        for number, console in enumerate(("", None, "/" + "x" * 106)):
            world.client().send(Command.REGISTER_VM, registration(f"vm{number}", console=console))
        self.assertEqual(len(world.connector.wanted), 3)

    def test_different(self) -> None:
        """The sockets of a VM are different ones."""
        world = World()
        for fields in (
            {"ioSerial": "/vm.ctl"},
            {"console": "/vm.ctl"},
            {"console": "/vm.io"},
        ):
            text = world.client().refused(Command.REGISTER_VM, {**registration(), **fields})
            self.assertIn("must be different", text)


class LimitTests(SynchronousTestCase):
    """P5: so many VMs, and no more."""

    def test_limit(self) -> None:
        """One too many is an error; those that register count; the others are untouched."""
        world = World(maxVMs=2)
        world.client().send(Command.REGISTER_VM, registration("one"))
        _agent, _, _ = world.register("two")
        client = world.client()
        self.assertIn(
            "no more than 2 VMs", client.refused(Command.REGISTER_VM, registration("three"))
        )
        client.call(Command.UNREGISTER_VM, {"containerId": "two"})
        world.register("three", client=client)

    def test_oldestLost(self) -> None:
        """At the limit, the VM that was lost first is forgotten."""
        world = World(maxVMs=3)
        agents = [world.register(name)[0] for name in "abc"]
        for agent in (agents[1], agents[0]):
            world.clock.advance(1)
            agent.control.end()
            agent.io.end()
        world.register("d")
        self.assertEqual(set(world.registry.vms), {"a", "c", "d"})
        self.assertIs(agents[1].vm.state, VMState.GONE)

    def test_replaceAtTheLimit(self) -> None:
        """A lost VM may be replaced by one of its name, whatever the limit."""
        world = World(maxVMs=1)
        agent, _, _ = world.register()
        agent.control.end()
        agent.io.end()
        world.register()


class ShutdownTests(SynchronousTestCase):
    """The proxy stops."""

    def test_everyStage(self) -> None:
        """P13: whatever is under way, nothing is left, and nobody waits."""
        world = World(Dialect.HYPERSTART1, maxClients=30)
        world.client().send(Command.REGISTER_VM, registration("connecting"))
        world.client().send(Command.REGISTER_VM, registration("waiting"))
        MemoryVM(world.connector.wanted.pop())
        agent, runtime, tokens = world.register("registered", streams=6)
        running = world.process(agent, runtime, tokens[0])
        running.connection.room = 0
        agent.output(3, b"kept")
        world.process(agent, runtime, tokens[1], kind="execcmd").connection.end()
        agent.output(5, b"kept as well")
        agent.say(23, b'{"event":"finished","container":"c1","process":"5","status":1}')
        world.shim(tokens[2]).send(Command.SIGNAL, {"signalNumber": 2})
        runtime.hyper("newcontainer", startData(), [tokens[3]])
        runtime.hyper("ping")
        agent, runtime, tokens = world.register("lost", streams=1)
        world.process(agent, runtime, tokens[0]).connection.end()
        agent.output(3, b"undelivered")
        agent.control.end()
        agent.io.end()
        runtime.call(Command.UNREGISTER_VM, {"containerId": "lost"})
        agent, runtime, _ = world.register("leaving", streams=1)
        runtime.call(Command.UNREGISTER_VM, {"containerId": "leaving"})
        agent, runtime, _ = world.register("lost again", streams=1)
        agent.io.end()
        self.assertFalse(world.registry.quiet)
        while len(world.registry.clients) <= 30:
            world.client()
        registry = world.registry
        registry.shutDown()
        self.assertEqual(
            (registry.vms, registry.tokens, registry.clients, registry.leaving),
            ({}, {}, set(), set()),
        )
        self.assertEqual(registry.context.budget.used, 0)
        self.assertEqual(world.clock.getDelayedCalls(), [])

    def test_quiet(self) -> None:
        """Nothing is under way when all is answered and written."""
        world = World()
        agent, runtime, _ = world.register()
        self.assertTrue(world.registry.quiet)
        runtime.hyper("ping")
        self.assertFalse(world.registry.quiet)
        runtime.connection.room = 0
        agent.ack()
        self.assertFalse(world.registry.quiet)
        runtime.connection.makeRoom()
        self.assertTrue(world.registry.quiet)


class AttachTests(SynchronousTestCase):
    """A client chooses its VM."""

    def test_lastOne(self) -> None:
        """The last AttachVM counts; the VM that was left forgets the client."""
        world = World()
        one, client, _ = world.register("one")
        two, _, _ = world.register("two")
        client.call(Command.ATTACH_VM, {"containerId": "two"})
        client.hyper("ping")
        self.assertEqual(two.command().number, ControlCode.PING)
        self.assertEqual(one.commands(), [])
        self.assertEqual(one.vm.clients, set())
        other = world.client()
        other.call(Command.UNREGISTER_VM, {"containerId": "one"})
        two.ack(b"pong")
        self.assertEqual(client.frame().payload, b"pong")

    def test_none(self) -> None:
        """Without one, Hyper is an error, whatever its name."""
        world = World()
        text = world.client().refused(Command.HYPER, {"hyperName": "nonsense"})
        self.assertEqual(text, "client not attached to a vm")

    def test_manyCycles(self) -> None:
        """P13: registrations that come and go, and fail, leave nothing."""
        world = World()
        client = world.client()
        for number in range(200):
            client.send(Command.REGISTER_VM, registration(f"vm{number % 3}", 4))
            vm = world.connector.wanted.pop()
            if number % 4 == 3:
                vm.connectFailed("no such socket")
                errorText(client.frame())
                continue
            agent = MemoryVM(vm)
            agent.say(ControlCode.READY)
            client.frame()
            client.call(Command.UNREGISTER_VM, {"containerId": f"vm{number % 3}"})
            agent.io.end()
            agent.control.end()
        registry = world.registry
        self.assertEqual(
            (registry.vms, registry.tokens, registry.leaving, registry.clients),
            ({}, {}, set(), {client.client}),
        )
        self.assertEqual(world.clock.getDelayedCalls(), [])


class VerboseTests(SynchronousTestCase):
    """What is noted of every command, and what that costs where nobody wants to know."""

    def noted(self, verbose: bool) -> list[str]:
        """The events of a registration, a round trip, and an end."""
        world = World(Dialect.CC)
        world.registry.context.verbose = verbose
        agent, _, _ = world.register()
        world.events.clear()
        client = world.client()
        client.call(Command.ATTACH_VM, {"containerId": "vm"})
        client.hyper("ping")
        agent.ack()
        client.connection.end()
        return [str(entry.get("event")) for entry in world.events]

    def test_quiet(self) -> None:
        """The steps of a round trip make no event at all, or all of theirs."""
        self.assertEqual(self.noted(False), [])
        steps = ["client-connected", "command", "attached", "command", "client-gone"]
        self.assertEqual(self.noted(True), steps)

    def test_whoLogs(self) -> None:
        """An entry of a client has the VM that the client is attached to, or whose shim it is."""
        world = World()
        agent, runtime, tokens = world.register("pod", 1)
        shim = world.process(agent, runtime, tokens[0])
        entry = {"source": "shim", "level": "warn", "msg": "x"}
        for client in (runtime, shim, world.client()):
            client.stream(Stream.LOG, msgspec.json.encode(entry))
        vms = [entry.get("vm") for entry in world.logged("log-entry")]
        self.assertEqual(vms, ["pod", "pod", None])
