"""
VMs: registration, tokens, loss, and what remains.
"""

from __future__ import annotations

import gc
import secrets
import weakref
from itertools import pairwise, product

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.registry import randomBase
from ccproxy.core.states import VMState
from ccproxy.wire.codes import Command, ControlCode, Dialect, FrameType, Stream
from ccproxy.wire.frames import Frame
from ccproxy.wire.messages import encodeControl

from ..memory import (
    MemoryClient,
    MemoryVM,
    World,
    command,
    errorText,
    registration,
    startData,
    tokensOf,
)

LOST = (FrameType.NOTIFICATION, b"\xff")


def brief(frames: list[Frame]) -> list[tuple[FrameType, bytes]]:
    """Frames as pairs."""
    return [(frame.type, frame.payload) for frame in frames]


def begin(world: World, **more: object) -> tuple[MemoryVM, MemoryClient]:
    """A VM that is connected and has said nothing, and its client."""
    client = world.client()
    client.send(Command.REGISTER_VM, registration(**more))  # type: ignore[arg-type]
    return MemoryVM(world.connector.wanted.pop()), client


class RegistrationTests(SynchronousTestCase):
    """From RegisterVM to READY, or to an error with nothing left."""

    def assertNothingLeft(self, world: World) -> None:
        """P11, P13: the id is free, nothing waits."""
        self.assertEqual((world.registry.vms, world.registry.tokens), ({}, {}))
        self.assertEqual(world.clock.getDelayedCalls(), [])
        world.register()

    def test_deadline(self) -> None:
        """P11: without READY, an error that says who waited where, and how long."""
        world = World()
        client = world.client()
        client.send(Command.REGISTER_VM, registration())
        world.clock.advance(29.9)
        self.assertEqual(client.frames(), [])
        world.clock.advance(0.1)
        text = errorText(client.frame())
        self.assertEqual(text, "vm: no READY from the agent on /vm.ctl within 30 s")
        self.assertEqual(len(world.connector.abandoned), 1)
        self.assertNothingLeft(world)

    def test_connectFails(self) -> None:
        """What could not be connected is said."""
        world = World()
        client = world.client()
        client.send(Command.REGISTER_VM, registration())
        world.connector.wanted.pop().connectFailed("cannot connect to /vm.ctl: refused")
        self.assertEqual(errorText(client.frame()), "vm: cannot connect to /vm.ctl: refused")
        self.assertNothingLeft(world)

    def test_channelCloses(self) -> None:
        """Either channel's end before READY is the end of it."""
        for io in (False, True):
            world = World()
            agent, client = begin(world)
            (agent.io if io else agent.control).end()
            self.assertIn("was closed before READY", errorText(client.frame()))
            self.assertTrue(agent.io.closed and agent.control.closed)
            self.assertNothingLeft(world)

    def test_badMessage(self) -> None:
        """P2: so is a message that cannot be."""
        world = World()
        agent, client = begin(world)
        agent.control.feed(b"\0\0\0\x08\0\0\0\x07")
        self.assertIn("message length 7", errorText(client.frame()))
        self.assertNothingLeft(world)

    def test_errorInsteadOfReady(self) -> None:
        """An ERROR instead of READY is passed on."""
        world = World()
        agent, client = begin(world)
        agent.say(ControlCode.ERROR, b"no\0")
        self.assertIn("ERROR instead of READY: no", errorText(client.frame()))
        self.assertNothingLeft(world)

    def test_clientLeaves(self) -> None:
        """P11: a client that hangs up ends its registration, at each stage."""
        for connected, more in product((False, True), repeat=2):
            world = World()
            client = world.client()
            client.send(Command.REGISTER_VM, registration())
            if more:
                client.send(Command.ATTACH_VM, {"containerId": "vm"})
            self.assertIs(client.connection.paused, more)
            vm = world.connector.wanted[0]
            agent = MemoryVM(vm) if connected else None
            client.connection.end()
            self.assertIs(vm.state, VMState.GONE)
            self.assertTrue(client.connection.closed)
            if agent is not None:
                self.assertTrue(agent.control.closed and agent.io.closed)
            world.connector.wanted.clear()
            self.assertNothingLeft(world)

    def test_halfClosed(self) -> None:
        """A client that half-closes behind RegisterVM gets its answer; the VM stays."""
        world = World()
        client = world.client()
        client.send(Command.REGISTER_VM, registration())
        client.connection.end(gone=False)
        agent = MemoryVM(world.connector.wanted.pop())
        agent.say(ControlCode.READY)
        client.connection.pump()
        self.assertFalse(client.frame().error)
        self.assertTrue(client.connection.closed)
        self.assertIs(agent.vm.state, VMState.REGISTERED)
        other = world.client()
        other.call(Command.ATTACH_VM, {"containerId": "vm"})

    def test_halfClosedAndGone(self) -> None:
        """One that then closes altogether is noticed at once, whatever stands behind RegisterVM."""
        for behind in (b"", command(Command.UNREGISTER_VM, {"containerId": "vm"})):
            world = World()
            client = world.client()
            client.connection.feed(command(Command.REGISTER_VM, registration()) + behind)
            agent = MemoryVM(world.connector.wanted.pop())
            client.connection.end(gone=False)
            self.assertFalse(client.connection.closed or agent.control.closed)
            client.connection.end()
            self.assertTrue(client.connection.closed)
            self.assertTrue(agent.control.closed and agent.io.closed)
            self.assertNothingLeft(world)

    def test_holdsBack(self) -> None:
        """RegisterVM holds back what follows it, and nothing of anybody else's."""
        world = World()
        agent, client = begin(world)
        client.hyper("ping")
        other = world.client()
        text = other.refused(Command.ATTACH_VM, {"containerId": "vm"})
        self.assertEqual(text, "unknown containerID: vm")
        self.assertEqual(
            other.refused(Command.UNREGISTER_VM, {"containerId": "vm"}),
            "unknown containerID: vm",
        )
        self.assertEqual(
            other.refused(Command.REGISTER_VM, registration()),
            "vm: container already registered",
        )
        self.assertEqual(client.frames(), [])
        agent.say(ControlCode.READY)
        client.connection.pump()
        self.assertEqual(len(client.frames()), 1)
        self.assertEqual(agent.command().number, ControlCode.PING)

    def test_tokens(self) -> None:
        """The answer has the URL in both spellings, and tokens or null."""
        world = World()
        world.registry.url = "unix:///x"
        _, client = begin(world)
        agent = world.registry.vms["vm"]
        agent.registration.received(ControlCode.READY, b"")
        io = msgspec.json.decode(client.frame().payload)["io"]
        self.assertEqual(io, {"url": "unix:///x", "URL": "unix:///x", "tokens": None})
        client.send(Command.ATTACH_VM, {"containerId": "vm", "numIOStreams": 2})
        one, two = tokensOf(client.frame())
        self.assertNotEqual(one, two)
        self.assertEqual(len(one), 44)

    def test_tooManyTokens(self) -> None:
        """P5: more tokens than the limit is an error at once, and no VM."""
        world = World(maxTokens=3)
        told: list[bool] = []
        world.registry.whenUnregistered = lambda: told.append(True)
        text = world.client().refused(Command.REGISTER_VM, registration(streams=4))
        self.assertIn("no more than 3 I/O tokens", text)
        self.assertEqual((world.connector.wanted, told), ([], []))
        self.assertNothingLeft(world)


class LateReadyTests(SynchronousTestCase):
    """P20: a VM whose READY is past."""

    def setUp(self) -> None:
        self.world = World()
        self.agent, self.client = begin(self.world, streams=1)

    def test_ping(self) -> None:
        """A silent VM is asked once; its answer is READY; the numbers are new."""
        self.world.clock.advance(2.9)
        self.assertEqual(self.agent.commands(), [])
        self.world.clock.pump([0.1, 3, 3, 3])
        self.assertEqual(self.agent.command().number, ControlCode.PING)
        self.agent.ack()
        (token,) = tokensOf(self.client.frame())
        shim = self.world.shim(token)
        self.client.hyper("newcontainer", startData(), [token])
        number = msgspec.json.decode(self.agent.command().body)["process"]["stdio"]
        self.assertGreater(number, 1 << 33)
        self.agent.ack()
        self.client.frame()
        self.agent.output(number, b"out")
        self.assertEqual(brief(shim.frames()), [(FrameType.STREAM, b"out")])
        self.assertEqual(self.world.logged("vm-registered")[0]["vm"], "vm")

    def numbers(self) -> list[tuple[int, str]]:
        """The numbers and ids of a process with a token and of two without, registered late."""
        self.world = World(Dialect.HYPERSTART1)
        self.agent, self.client = begin(self.world, streams=1)
        self.world.clock.advance(3)
        self.agent.ack()
        self.agent.commands()
        (token,) = tokensOf(self.client.frame())
        self.world.shim(token)
        numbers = []
        for tokens in ([token], [], []):
            self.client.hyper("execcmd", startData("execcmd"), tokens)
            process = msgspec.json.decode(self.agent.command().body)["process"]
            numbers.append((process["stdio"], process["id"]))
            self.assertEqual(process["stderr"], process["stdio"] + 1)
            self.agent.ack()
            self.client.frame()
            self.world.restart()
        return numbers

    def test_base(self) -> None:
        """
        Numbers and ids begin at a random even base: registrations at the same time by the same
        clock have other numbers, and none is so large that JSON does not carry it.
        """
        bases = []
        for _ in range(50):
            numbers = self.numbers()
            base = numbers[0][0] - 3
            expected = [(number, str(number)) for number in (base + 3, base + 1, base + 5)]
            self.assertEqual(numbers, expected)
            self.assertTrue(1 << 33 <= base <= 1 << 52 and base % 2 == 0, base)
            bases.append(base)
        self.assertEqual(len(set(bases)), 50)
        # None is a neighbour of another, as those of a counter or a clock would be.
        bases.sort()
        gaps = (after - before for before, after in pairwise(bases))
        self.assertGreater(min(gaps), 1 << 20)

    def test_bounds(self) -> None:
        """The least and the largest base."""
        for below, base in ((lambda n: 0, 1 << 33), (lambda n: n - 1, 1 << 52)):
            self.patch(secrets, "randbelow", below)
            self.assertEqual(randomBase(), base)

    def test_staleAnswers(self) -> None:
        """Answers of an earlier connection that come first are nobody's."""
        self.agent.say(ControlCode.NEXT)
        self.agent.ack(b"stale")
        self.agent.say(23, b'{"event":"finished"}')
        self.assertEqual(self.client.frames(), [])
        self.world.clock.advance(3)
        self.agent.ack()
        self.assertFalse(self.client.frame().error)
        self.assertIs(self.agent.vm.dialect, Dialect.HYPERSTART1)

    def test_errorToPing(self) -> None:
        """An agent that refuses ping is alive as well."""
        self.world.clock.advance(3)
        self.agent.say(ControlCode.ERROR)
        self.assertFalse(self.client.frame().error)

    def test_readyAfterPing(self) -> None:
        """READY may come after all: then the ping is a command in flight like others."""
        self.world.clock.advance(3)
        self.agent.commands()
        self.agent.say(ControlCode.READY)
        (_token,) = tokensOf(self.client.frame())
        self.client.hyper("version")
        self.assertEqual(self.agent.commands(), [])
        self.agent.ack()
        self.assertEqual(self.agent.command().number, ControlCode.VERSION)
        self.assertEqual(self.client.frames(), [])
        self.assertIs(self.agent.vm.dialect, Dialect.UNKNOWN)
        self.agent.ack(b"mine")
        self.assertEqual(self.client.frame().payload, b"mine")
        self.assertFalse(self.agent.vm.resync)

    def test_readyAfterAnswer(self) -> None:
        """A READY that comes later still is no answer to anything."""
        self.world.clock.advance(3)
        self.agent.ack()
        self.client.frame()
        self.client.hyper("ping")
        self.agent.say(ControlCode.READY)
        self.assertEqual(self.client.frames(), [])
        self.agent.ack(b"pong")
        self.assertEqual(self.client.frame().payload, b"pong")

    def test_pingUnanswered(self) -> None:
        """P11: READY's deadline holds all the same."""
        self.world.clock.pump([3, 27])
        self.assertIn("within 30 s", errorText(self.client.frame()))
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_pingDoesNotTellTheDialect(self) -> None:
        """The ping's answer may be a stale one: it tells nothing."""
        self.world.clock.advance(3)
        self.agent.ack()
        self.assertIs(self.agent.vm.dialect, Dialect.UNKNOWN)


class TokenTests(SynchronousTestCase):
    """P5, P13: how many tokens there are, and whose."""

    def test_recycled(self) -> None:
        """At the limit the oldest unclaimed, unnamed, old token goes; younger ones do not."""
        world = World(maxTokens=4)
        _agent, client, tokens = world.register(streams=2)
        world.clock.advance(60)
        client.send(Command.ATTACH_VM, {"containerId": "vm", "numIOStreams": 2})
        younger = tokensOf(client.frame())
        attach = {"containerId": "vm", "numIOStreams": 1}
        self.assertIn("no more than 4 I/O tokens", client.refused(Command.ATTACH_VM, attach))
        world.shim(tokens[0]).connection.end()
        world.clock.advance(61)
        client.send(Command.ATTACH_VM, attach)
        (new,) = tokensOf(client.frame())
        self.assertEqual(set(world.registry.tokens), {tokens[0], *younger, new})
        self.assertIn("no more than", client.refused(Command.ATTACH_VM, attach))

    def test_allOrNothing(self) -> None:
        """An AttachVM that fails costs nobody a token."""
        world = World(maxTokens=4)
        _agent, client, tokens = world.register(streams=4)
        world.shim(tokens[3])
        world.clock.advance(200)
        attach = {"containerId": "vm", "numIOStreams": 4}
        client.refused(Command.ATTACH_VM, attach)
        self.assertEqual(set(world.registry.tokens), set(tokens))

    def test_namedByAStart(self) -> None:
        """A token that a waiting start names is not freed."""
        world = World(maxTokens=1, shimTimeout=500.0)
        agent, client, tokens = world.register(streams=1)
        client.hyper("newcontainer", startData(), tokens)
        world.clock.advance(200)
        other = world.client()
        other.refused(Command.ATTACH_VM, {"containerId": "vm", "numIOStreams": 1})
        world.shim(tokens[0])
        agent.command()

    def test_detachedSessionsCount(self) -> None:
        """A start without a token needs a session: beyond the limit it is refused, unsent."""
        world = World(maxTokens=1)
        agent, client, _ = world.register()
        client.hyper("newcontainer", startData())
        agent.ack()
        client.frame()
        agent.commands()
        client.hyper("execcmd", startData("execcmd"))
        self.assertIn("no more than 1 I/O tokens", errorText(client.frame()))
        self.assertEqual(agent.commands(), [])
        client.hyper("ping")
        agent.command()

    def test_detachedSessionRecyclesToken(self) -> None:
        """It may take the place of a token that nobody wanted."""
        world = World(maxTokens=1)
        agent, client, _ = world.register(streams=1)
        world.clock.advance(121)
        client.hyper("newcontainer", startData())
        agent.command()
        self.assertEqual(world.registry.tokens, {})

    def test_ofAnotherVM(self) -> None:
        """A token belongs to its VM."""
        world = World()
        _, _one, tokens = world.register("one", streams=1)
        _, two, _ = world.register("two")
        two.hyper("newcontainer", startData(), tokens)
        self.assertEqual(errorText(two.frame()), f"unknown token {tokens[0]}")

    def test_numbersAreNotReused(self) -> None:
        """A token's numbers are never given to another."""
        world = World(Dialect.CC)
        agent, client, tokens = world.register(streams=1)
        shim = world.process(agent, client, tokens[0])
        agent.exit(3, 0)
        shim.send(Command.DISCONNECT_SHIM)
        client.send(Command.ATTACH_VM, {"containerId": "vm", "numIOStreams": 1})
        world.process(agent, client, tokensOf(client.frame())[0])
        self.assertIn(b'"stdio":5', agent.commands()[-1].body)


class LossTests(SynchronousTestCase):
    """P12: a channel closes."""

    def setUp(self) -> None:
        self.world = World(Dialect.CC)
        self.agent, self.runtime, self.tokens = self.world.register(streams=4)

    def lose(self, first: str = "control") -> None:
        """Both channels close, one behind the other."""
        getattr(self.agent, first).end()
        (self.agent.io if first == "control" else self.agent.control).end()

    def test_atEachStage(self) -> None:
        """255 after the output for every claimed session, whatever its stage; then the end."""
        running = self.world.process(self.agent, self.runtime, self.tokens[0])
        created = self.world.shim(self.tokens[1])
        starting = self.world.shim(self.tokens[2])
        exited = self.world.process(self.agent, self.runtime, self.tokens[3], kind="execcmd")
        self.agent.exit(9, 4)
        self.assertEqual(exited.frame().payload, b"\x04")
        self.runtime.hyper("execcmd", startData("execcmd"), [self.tokens[2]])
        self.runtime.hyper("ping")
        self.agent.output(3, b"last")
        self.agent.output(7, b"words")
        self.lose()
        self.assertEqual(brief(running.frames()), [(FrameType.STREAM, b"last"), LOST])
        self.assertEqual(brief(created.frames()), [LOST])
        self.assertEqual(brief(starting.frames()), [(FrameType.STREAM, b"words"), LOST])
        self.assertEqual(exited.frames(), [])
        for shim in (running, created, starting, exited):
            self.assertTrue(shim.connection.closed)
        for frame in self.runtime.frames():
            self.assertIn("vm: VM is lost: the control channel was closed", errorText(frame))
        self.assertEqual(self.world.registry.tokens, {})
        self.assertEqual(self.world.registry.context.budget.used, 0)

    def test_knownAsLost(self) -> None:
        """Hyper and new tokens are refused at once; UnregisterVM succeeds, once."""
        self.lose("io")
        text = self.runtime.refused(Command.HYPER, {"hyperName": "ping"})
        self.assertIn("vm: VM is lost", text)
        client = self.world.client()
        client.call(Command.ATTACH_VM, {"containerId": "vm"})
        self.assertIn("VM is lost", client.refused(Command.HYPER, {"hyperName": "ping"}))
        attach = {"containerId": "vm", "numIOStreams": 1}
        self.assertIn("VM is lost", client.refused(Command.ATTACH_VM, attach))
        client.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.assertEqual(
            client.refused(Command.UNREGISTER_VM, {"containerId": "vm"}),
            "unknown containerID: vm",
        )
        self.assertEqual(
            client.refused(Command.HYPER, {"hyperName": "ping"}),
            "client not attached to a vm",
        )
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_replaced(self) -> None:
        """RegisterVM replaces a lost VM by another one, with another serial number."""
        told: list[bool] = []
        self.world.registry.whenUnregistered = lambda: told.append(True)
        self.lose()
        agent, client, _ = self.world.register()
        self.assertIsNot(agent.vm, self.agent.vm)
        self.assertGreater(agent.vm.serial, self.agent.vm.serial)
        self.assertEqual(told, [])
        client.hyper("ping")
        agent.command()

    def test_forgotten(self) -> None:
        """A lost VM that nobody unregisters is forgotten after an hour."""
        self.lose()
        self.world.clock.advance(3599)
        self.assertIn("vm", self.world.registry.vms)
        self.world.clock.advance(1)
        self.assertEqual(self.world.registry.vms, {})
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_lastWords(self) -> None:
        """What the other channel still holds is read, for so long (P12)."""
        shim = self.world.process(self.agent, self.runtime, self.tokens[0])
        self.agent.control.end()
        self.agent.output(3, b"still")
        self.assertEqual(brief(shim.frames()), [(FrameType.STREAM, b"still")])
        self.assertIn("VM is lost", shim.refused(Command.SIGNAL, {"signalNumber": 2}))
        self.world.clock.advance(0.5)
        self.agent.output(3, b"more")
        self.agent.exit(3, 5)
        self.assertEqual(
            brief(shim.frames()),
            [(FrameType.STREAM, b"more"), (FrameType.NOTIFICATION, b"\x05")],
        )
        self.world.clock.advance(0.5)
        self.assertTrue(self.agent.io.closed)
        self.assertTrue(shim.connection.closed)

    def test_unregisteredDuringLastWords(self) -> None:
        """P6: UnregisterVM does not cut what the I/O channel still holds."""
        shim = self.world.process(self.agent, self.runtime, self.tokens[0])
        self.agent.control.end()
        self.runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.assertEqual(self.world.registry.leaving, {self.agent.vm})
        self.agent.output(3, b"still")
        self.agent.io.end()
        self.assertEqual(brief(shim.frames()), [(FrameType.STREAM, b"still"), LOST])
        self.assertTrue(shim.connection.closed)
        self.assertEqual(self.world.registry.leaving, set())
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_lastWordsHeldUp(self) -> None:
        """They are not cut while a full session holds up the channel."""
        world = World(Dialect.CC, sessionBuffer=4096)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 0
        sent = [bytes([n]) * 1000 for n in range(10)]
        for body in sent:
            agent.output(3, body)
        agent.io.end()
        agent.control.end()
        world.clock.pump([1.0] * 9)
        self.assertFalse(agent.io.closed)
        shim.connection.makeRoom()
        agent.io.pump()
        self.assertEqual(brief(shim.frames()), [*((FrameType.STREAM, body) for body in sent), LOST])
        self.assertTrue(shim.connection.closed)
        self.assertEqual(world.registry.context.budget.used, 0)

    def test_lastWordsHeldUpUntilNow(self) -> None:
        """P6: a channel that was held up until a moment ago has its time to be read."""
        world = World(Dialect.CC, sessionBuffer=4096)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 0
        agent.control.end()
        for _ in range(6):
            agent.output(3, b"x" * 1000)
        world.clock.advance(1.9)
        self.assertTrue(agent.io.paused)
        shim.connection.makeRoom()
        agent.io.pump()
        world.clock.advance(0.1)
        self.assertFalse(agent.io.closed)
        agent.output(3, b"last")
        self.assertEqual(shim.frames()[-1].payload, b"last")
        world.clock.advance(2)
        self.assertTrue(agent.io.closed)
        self.assertEqual(brief(shim.frames()), [LOST])

    def test_lastWordsOfMonths(self) -> None:
        """P9: a shim that never reads holds up what is left of its VM, and costs no memory."""
        world = World(Dialect.CC, sessionBuffer=4096)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 0
        for _ in range(6):
            agent.output(3, b"x" * 1000)
        agent.control.end()
        world.clock.pump([2.0] * 1000)
        self.assertFalse(agent.io.closed)
        self.assertLess(len(world.clock.getDelayedCalls()), 10)

    def test_undelivered(self) -> None:
        """P7: what was not delivered outlives the VM, and its token with it, for 30 s."""
        shim = self.world.process(self.agent, self.runtime, self.tokens[0])
        shim.connection.end()
        self.agent.output(3, b"kept")
        self.lose()
        self.runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.world.clock.advance(29)
        again = self.world.client()
        again.send(Command.CONNECT_SHIM, {"token": self.tokens[0]})
        self.assertEqual(
            brief(again.frames()), [(FrameType.RESPONSE, b""), (FrameType.STREAM, b"kept"), LOST]
        )
        self.assertTrue(again.connection.closed)
        self.assertEqual(self.world.registry.tokens, {})

    def test_undeliveredGivenUp(self) -> None:
        """After that, the log says how much was dropped."""
        shim = self.world.process(self.agent, self.runtime, self.tokens[0])
        shim.connection.room = 0
        self.agent.output(3, b"kept")
        self.lose()
        self.assertFalse(shim.connection.closed)
        shim.connection.end()
        self.assertTrue(shim.connection.closed)
        self.world.clock.advance(30)
        (entry,) = self.world.logged("undelivered")
        self.assertEqual((entry["dropped"], entry["vm"]), (16, "vm"))
        self.assertEqual(self.world.registry.tokens, {})
        self.assertEqual(self.world.registry.context.budget.used, 0)

    def test_shimThatDoesNotRead(self) -> None:
        """A shim that reads no more does not hold a lost VM's output for ever."""
        shim = self.world.process(self.agent, self.runtime, self.tokens[0])
        shim.connection.room = 0
        self.agent.output(3, b"kept")
        self.lose()
        self.world.clock.advance(30)
        self.assertTrue(shim.connection.closed)
        self.world.clock.advance(30)
        self.assertEqual(self.world.registry.tokens, {})
        self.assertEqual(self.world.registry.context.budget.used, 0)

    def test_refusedOutputIsDropped(self) -> None:
        """A VM lost while a start waits keeps the output that came; an ERROR drops it."""
        for lost in (True, False):
            world = World(Dialect.CC)
            agent, runtime, tokens = world.register(streams=1)
            shim = world.shim(tokens[0])
            shim.connection.room = 0
            runtime.hyper("newcontainer", startData(), tokens)
            agent.output(3, b"early")
            if lost:
                agent.control.end()
                agent.io.end()
            else:
                agent.say(ControlCode.ERROR)
            shim.connection.makeRoom()
            self.assertEqual(
                [frame.payload for frame in shim.frames()], [b"early", b"\xff"] if lost else []
            )
            self.assertEqual(world.registry.context.budget.used, 0)

    def test_parkedStart(self) -> None:
        """P11: a start that waits for its shim is told at once."""
        self.runtime.hyper("newcontainer", startData(), [self.tokens[0]])
        self.agent.io.end()
        self.assertIn("VM is lost: the I/O channel was closed", errorText(self.runtime.frame()))

    def test_heldSignal(self) -> None:
        """So is a signal that waits for its process."""
        shim = self.world.shim(self.tokens[0])
        shim.send(Command.SIGNAL, {"signalNumber": 2})
        self.lose()
        refused, lost = shim.frames()
        self.assertIn("VM is lost", errorText(refused))
        self.assertEqual(brief([lost]), [LOST])

    def test_badMessage(self) -> None:
        """P2, P3: a message that cannot be is the end of its VM alone."""
        other, client, _ = self.world.register("other")
        self.agent.io.feed(b"\0\0\0\0\0\0\0\3\0\0\0\x0b")
        self.assertIs(self.agent.vm.state, VMState.LOST)
        self.assertIn("shorter than its header", self.world.logged("vm-lost")[0]["reason"])
        client.hyper("ping")
        other.command()


class UnregisterTests(SynchronousTestCase):
    """UnregisterVM cuts nothing."""

    def setUp(self) -> None:
        self.world = World(Dialect.CC)
        self.agent, self.runtime, self.tokens = self.world.register(streams=3)
        self.shim = self.world.process(self.agent, self.runtime, self.tokens[0])
        self.agent.commands()

    def test_sessionsGoOn(self) -> None:
        """stdin, output and signals of claimed sessions go on; the rest ends."""
        self.runtime.hyper("execcmd", startData("execcmd"), [self.tokens[1]])
        other = self.world.client()
        other.call(Command.ATTACH_VM, {"containerId": "vm"})
        other.hyper("ping", 1)
        other.hyper("ping", 2)
        self.world.client().call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.assertIn("VM has been unregistered", errorText(self.runtime.frame()))
        self.assertEqual(other.frames(), [])
        self.assertEqual(len(self.agent.commands()), 1)
        self.agent.ack(b"one")
        answered, refused = other.frames()
        self.assertEqual(answered.payload, b"one")
        self.assertIn("VM has been unregistered", errorText(refused))
        self.assertEqual(set(self.world.registry.tokens), {self.tokens[0]})

    def test_channelsClose(self) -> None:
        """Its shims get the output that came, and are just closed, when its channels are."""
        self.runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.shim.stream(Stream.STDIN, b"in")
        self.assertEqual(self.agent.stdin(), [(3, b"in")])
        self.shim.send(Command.SIGNAL, {"signalNumber": 2})
        self.assertEqual(self.agent.command().number, ControlCode.KILLCONTAINER)
        self.agent.ack()
        self.agent.output(3, b"out")
        self.assertEqual(
            brief(self.shim.frames()), [(FrameType.RESPONSE, b""), (FrameType.STREAM, b"out")]
        )
        self.assertEqual(self.world.registry.leaving, {self.agent.vm})
        self.agent.control.end()
        self.agent.output(3, b"end")
        self.agent.io.end()
        self.assertEqual(brief(self.shim.frames()), [(FrameType.STREAM, b"end")])
        self.assertTrue(self.shim.connection.closed)
        self.assertEqual(self.world.registry.leaving, set())
        self.assertEqual(self.world.registry.tokens, {})
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_sameIdAgain(self) -> None:
        """The id is free at once, for another VM; the old one is left alone."""
        self.runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        agent, _client, _ = self.world.register()
        self.agent.output(3, b"old")
        self.assertEqual(brief(self.shim.frames()), [(FrameType.STREAM, b"old")])
        self.agent.control.end()
        self.agent.io.end()
        self.assertIs(agent.vm.state, VMState.REGISTERED)

    def test_startInFlight(self) -> None:
        """A start that was sent is answered, and its session goes on."""
        shim = self.world.shim(self.tokens[1])
        self.runtime.hyper("execcmd", startData("execcmd"), [self.tokens[1]])
        self.agent.command()
        other = self.world.client()
        other.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.assertEqual(self.runtime.frames(), [])
        self.agent.ack()
        self.assertFalse(self.runtime.frame().error)
        self.agent.output(5, b"out")
        self.assertEqual(brief(shim.frames()), [(FrameType.STREAM, b"out")])

    def test_notStarted(self) -> None:
        """P11: a shim whose process cannot be started any more waits for nothing."""
        world = World(Dialect.CC)
        _, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.send(Command.SIGNAL, {"signalNumber": 2})
        runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.assertIn("VM has been unregistered", errorText(shim.frame()))
        text = shim.refused(Command.SIGNAL, {"signalNumber": 2})
        self.assertIn("starts no process", text)
        shim.send(Command.SIGNAL, {"signalNumber": 9})
        self.assertEqual(brief(shim.frames())[0], (FrameType.NOTIFICATION, b"\0"))

    def test_stdinOfNoProcess(self) -> None:
        """P11: stdin that no process will ever read does not stand before a shim's signal."""
        for refused in (False, True):
            world = World(Dialect.CC)
            agent, runtime, tokens = world.register(streams=1)
            shim = world.shim(tokens[0])
            if refused:
                runtime.hyper("newcontainer", startData(), tokens)
                agent.commands()
            for _ in range(3):
                shim.stream(Stream.STDIN, bytes(600 << 10))
            shim.send(Command.SIGNAL, {"signalNumber": 15})
            world.client().call(Command.UNREGISTER_VM, {"containerId": "vm"})
            if refused:
                agent.say(ControlCode.ERROR, b"no")
            self.assertFalse(shim.connection.paused)
            shim.connection.pump()
            self.assertEqual(
                brief(shim.frames()),
                [(FrameType.NOTIFICATION, b"\0"), (FrameType.RESPONSE, b"")],
            )
            self.assertEqual(world.registry.context.budget.used, 0)

    def test_told(self) -> None:
        """Pod mode is told."""
        told: list[bool] = []
        self.world.registry.whenUnregistered = lambda: told.append(True)
        self.runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.assertEqual(told, [True])

    def test_replacedWhileOpen(self) -> None:
        """A VM that takes its sockets ends what is left of it."""
        self.runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.agent.vm.replace()
        self.assertTrue(self.agent.control.closed and self.agent.io.closed)
        self.assertTrue(self.shim.connection.closed)
        self.assertEqual(self.world.registry.leaving, set())
        self.assertEqual(self.world.registry.tokens, {})


class FreedTests(SynchronousTestCase):
    """P13: what is gone leaves nothing."""

    def test_garbage(self) -> None:
        """A VM that is gone is no object any more, nor are its sessions and clients."""
        world = World(Dialect.CC)

        def live() -> list[weakref.ref[object]]:
            agent, runtime, tokens = world.register(streams=3)
            shim = world.process(agent, runtime, tokens[0])
            agent.output(3, b"out")
            agent.exit(3, 0)
            shim.send(Command.DISCONNECT_SHIM)
            world.shim(tokens[1]).connection.end()
            runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
            agent.control.end()
            agent.io.end()
            runtime.connection.end()
            world.clock.advance(30)
            world.connector.abandoned.clear()
            return [weakref.ref(agent.vm), weakref.ref(runtime.client), weakref.ref(shim.client)]

        references = live()
        world.events.clear()
        gc.collect()
        self.assertEqual([reference() for reference in references], [None] * 3)
        registry = world.registry
        self.assertEqual(
            (registry.vms, registry.tokens, registry.clients, registry.leaving),
            ({}, {}, set(), set()),
        )
        self.assertEqual(world.clock.getDelayedCalls(), [])

    def test_messageBehindTheLast(self) -> None:
        """What comes in the same read behind the end of a registration is not looked at."""
        world = World()
        agent, client = begin(world)
        agent.control.feed(encodeControl(ControlCode.ERROR) + encodeControl(ControlCode.READY))
        self.assertIn("ERROR instead", errorText(client.frame()))
        self.assertEqual(world.registry.vms, {})
