"""
The state that one process writes down and the next takes up (docs/reliability).

That nobody notices is what L{ccproxy.test.core.test_model} shows, with restarts at random moments.
"""

from __future__ import annotations

import base64
from typing import Any

import attrs
import msgspec
from msgspec.msgpack import decode, encode
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core import snapshot
from ccproxy.core.context import Context
from ccproxy.core.registry import Registry
from ccproxy.core.requests import connect
from ccproxy.core.resuming import NoConnection, TrialConnection, resume
from ccproxy.core.salvage import Dropped, salvage
from ccproxy.core.snapshot import (
    HEADER,
    BadSnapshot,
    Snapshot,
    seal,
    unseal,
)
from ccproxy.core.states import SessionState, VMState
from ccproxy.core.writing import write, writeVM
from ccproxy.interfaces import IConnection
from ccproxy.wire.codes import Command, ControlCode, Dialect, FrameType, Stream
from ccproxy.wire.frames import encodeFrame, encodeProcessExited, encodeStream
from ccproxy.wire.messages import CONTROL_HEADER, encodeControl, encodeIO, readMessage

from ..memory import MemoryConnection, MemoryConnector, World, command, startData

#: A state as the first version wrote it, in base64: a VM with a process whose shim does not read,
#: a start that waits for its shim, and a command in flight. It is never to be written anew.
FIRST = """
Y2Nwcm94eQoAAQABAAAAAAAACgkDXg2KjKtjbGllbnRDb3VudAOnY2xpZW50c5ONp2Nsb3NlSW7AqmNvbm5lY3Rpb24A
pmV4Y2Vzc8KnaWdub3JlZJCkbmFtZa0xIHBpZD0xIHVpZD0wpm91dGxldIOmYmxvY2tzkKRnb25lwqZvZmZzZXQApnBh
dXNlZMKrcmVnaXN0ZXJpbmfAp3Nlc3Npb27ApXNsb3RzkQClc3RhdGWkb3BlbqJ2bQCnd2FzU2hpbcKNp2Nsb3NlSW7A
qmNvbm5lY3Rpb24CpmV4Y2Vzc8KnaWdub3JlZJCkbmFtZa0zIHBpZD0xIHVpZD0wpm91dGxldIOmYmxvY2tzkKRnb25l
wqZvZmZzZXQApnBhdXNlZMKrcmVnaXN0ZXJpbmfAp3Nlc3Npb27ApXNsb3RzkQGlc3RhdGWkb3BlbqJ2bQCnd2FzU2hp
bcKNp2Nsb3NlSW7AqmNvbm5lY3Rpb24BpmV4Y2Vzc8KnaWdub3JlZJCkbmFtZa0yIHBpZD0xIHVpZD0wpm91dGxldIOm
YmxvY2tzkZLEEAACAwAAAAIBAAAABGtlcHTDpGdvbmXCpm9mZnNldACmcGF1c2VkwqtyZWdpc3RlcmluZ8Cnc2Vzc2lv
bgClc2xvdHOQpXN0YXRlpG9wZW6idm3Ap3dhc1NoaW3DqGNvbW1hbmRzkoynYXJyaXZlZMsAAAAAAAAAAKRib2R5xACn
ZXhwaXJlZMKka2luZKVoeXBlcqRuYW1lpHBpbmekc2VudMsAAAAAAAAAAKZzZW50QXTLQS6EgAAAAACnc2Vzc2lvbsCm
c2lnbmFswKRzbG90AaVzdGFydMCidm0AjKdhcnJpdmVkywAAAAAAAAAApGJvZHnEAKdleHBpcmVkwqRraW5kpXN0YXJ0
pG5hbWWnZXhlY2NtZKRzZW50ywAAAAAAAAAApnNlbnRBdMsAAAAAAAAAAKdzZXNzaW9uAaZzaWduYWzApHNsb3QApXN0
YXJ0h6ljb250YWluZXKiYzGkaGVhZLx7ImNvbnRhaW5lciI6ImMxIiwicHJvY2VzcyI6p21lbWJlcnOwLCJhcmdzIjpb
InRydWUiXadwcm9jZXNzwKpzdHJhbmdlS2V5wKR0YWlsoX2odGVybWluYWzConZtAKhkcmFpbmluZ8KtaWdub3JlZEZy
YW1lcwCla25vd26BonZtAKdsZWF2aW5nkKZzZXJpYWwBqHNlc3Npb25zk94AHaVhY2tlZMOnY2xhaW1lZMOqY2xvc2VB
ZnRlcsKpY29udGFpbmVyomMxp2NyZWF0ZWTLAAAAAAAAAACnZHJvcHBlZACoZHJvcHBpbmfCpWVuZEluwKZleGl0SW7A
qmV4aXRRdWV1ZWTCpGhlbGSQpmtpbGxlZMKka2luZBGlbmFtZWTDqG51bWJlcmVkw6ZvZmZzZXQAp3BlbmRpbmeQpnBp
ZWNlc5CncHJvY2Vzc6Rpbml0pnNhd0VuZMKkc2hpbQKlc3RhcnTApXN0YXRlp3J1bm5pbmemc3RhdHVzwKpzdGRpbkVu
ZGVkwqVzdGRpbwOodGVybWluYWzCpXRva2Vu2SxBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB
QUFBPaJ2bQDeAB2lYWNrZWTCp2NsYWltZWTCqmNsb3NlQWZ0ZXLCqWNvbnRhaW5lcqCnY3JlYXRlZMsAAAAAAAAAAKdk
cm9wcGVkAKhkcm9wcGluZ8KlZW5kSW7ApmV4aXRJbsCqZXhpdFF1ZXVlZMKkaGVsZJCma2lsbGVkwqRraW5kEaVuYW1l
ZMKobnVtYmVyZWTCpm9mZnNldACncGVuZGluZ5CmcGllY2VzkKdwcm9jZXNzwKZzYXdFbmTCpHNoaW3ApXN0YXJ0AaVz
dGF0ZadjcmVhdGVkpnN0YXR1c8Cqc3RkaW5FbmRlZMKlc3RkaW8FqHRlcm1pbmFswqV0b2tlbtksQkJCQkJCQkJCQkJC
QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQj2idm0A3gAdpWFja2VkwqdjbGFpbWVkwqpjbG9zZUFmdGVywqlj
b250YWluZXKgp2NyZWF0ZWTLAAAAAAAAAACnZHJvcHBlZACoZHJvcHBpbmfCpWVuZEluwKZleGl0SW7AqmV4aXRRdWV1
ZWTCpGhlbGSQpmtpbGxlZMKka2luZBGlbmFtZWTCqG51bWJlcmVkwqZvZmZzZXQAp3BlbmRpbmeQpnBpZWNlc5CncHJv
Y2Vzc8Cmc2F3RW5kwqRzaGltwKVzdGFydMClc3RhdGWnY3JlYXRlZKZzdGF0dXPAqnN0ZGluRW5kZWTCpXN0ZGlvB6h0
ZXJtaW5hbMKldG9rZW7ZLENDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0M9onZtAKVzbG90
c5KEpWJlZ2FuywAAAAAAAAAApmNsaWVudACmb3Bjb2RlA6VyZXBsecCEpWJlZ2FuywAAAAAAAAAApmNsaWVudAGmb3Bj
b2RlA6VyZXBsecCmdG9rZW5zg9ksQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQT0A2SxC
QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCPQHZLENDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0ND
Q0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0M9AqN2bXOR3gAbpWFza2VkwqdjbGllbnRzkgABp2NvbnRyb2wDqmNvbnRyb2xPdXSD
pmJsb2Nrc5CkZ29uZcKmb2Zmc2V0AKdjcmVhdGVkywAAAAAAAAAAp2RpYWxlY3SiY2OkZmxvd4enYmxvY2tlZMsAAAAA
AAAAAKdibG9ja2VywKNkdWXApWR1ZUluywAAAAAAAAAAqXJlYWRTaW5jZcsAAAAAAAAAAKRzaGltwKVzaW5jZcsAAAAA
AAAAAKhpbkZsaWdodACiaW8EpGxvc3TLAAAAAAAAAACpbmV4dFN0ZGlvCaZub3RpZnnCqG51bGxGcmVlw6ZwYXJrZWSR
kgHLQD4AAAAAAACscmVhZHlNYXlDb21lwqhyZXBvcnRlZMCncmVxdWVzdIWnY29uc29sZcCrY29udGFpbmVySWSidm2p
Y3RsU2VyaWFspy92bS5jdGyoaW9TZXJpYWymL3ZtLmlvrG51bUlPU3RyZWFtcwOkcmVzdMQApnJlc3luY8Kmc2VyaWFs
AahzZXNzaW9uc5MCAAGkc2xvdMClc3RhdGWqcmVnaXN0ZXJlZKd0cmFmZmljhKlvdXRGcmFtZXMCqG91dEJ5dGVzIKhp
bkZyYW1lcwCnaW5CeXRlcwCldHVybnOQp3dhaXRpbmeQpXdhaXRzgA==
"""


def busyWorld() -> World:
    """A world with something of everything."""
    world = World(sessionBuffer=4096)
    agent, runtime, tokens = world.register(streams=4)
    shim = world.process(agent, runtime, tokens[0])
    shim.connection.room = 30
    agent.output(3, b"x" * 500)
    shim.stream(Stream.STDIN, b"typed")
    shim.send(Command.SIGNAL, {"signalNumber": 1})
    runtime.hyper("ping")
    runtime.hyper("execcmd", startData("execcmd"), [tokens[1]])
    waiting = world.shim(tokens[2])
    waiting.send(Command.SIGNAL, {"signalNumber": 1})
    return world


def shape(snapshot: Snapshot) -> Any:
    """A snapshot without the places in its tables, whose order is that of sets."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return sorted((name, strip(each)) for name, each in value.items())
        if isinstance(value, (list, tuple)):
            return sorted(map(strip, value), key=repr)
        if isinstance(value, msgspec.Struct):
            return strip(msgspec.structs.asdict(value))
        if attrs.has(type(value)):
            return strip(attrs.asdict(value, recurse=False))
        return 0 if isinstance(value, int) else value

    return strip(snapshot)


class SealTests(SynchronousTestCase):
    """What is believed of a written state, and what is refused."""

    def test_opposite(self) -> None:
        """What was sealed is what comes out."""
        self.assertEqual(unseal(seal(b"body")), b"body")

    def test_behind(self) -> None:
        """What stands behind it is nobody's business: a memfd may be longer."""
        self.assertEqual(unseal(seal(b"body") + b"\0" * 100), b"body")

    def test_damage(self) -> None:
        """Any byte that was changed, and any that is missing, is noticed."""
        sealed = seal(b"some state")
        for at in (*range(8), *range(12, len(sealed))):
            poked = bytearray(sealed)
            poked[at] ^= 1
            self.assertRaises(BadSnapshot, unseal, bytes(poked))
            self.assertRaises(BadSnapshot, unseal, sealed[:at])

    def test_later(self) -> None:
        """A later version is read if it says that it can be, and refused by name if not."""
        header = list(HEADER.unpack_from(seal(b"body")))
        header[1] += 1
        self.assertEqual(unseal(HEADER.pack(*header) + b"body"), b"body")
        header[2] = header[1]
        error = self.assertRaises(BadSnapshot, unseal, HEADER.pack(*header) + b"body")
        self.assertIn(f"version {header[1]}", str(error))
        self.assertIn(f"this is version {snapshot.VERSION}", str(error))

    def test_strangeFields(self) -> None:
        """Fields of a later version are ignored; those that an earlier one lacks have defaults."""
        members = decode(encode(Snapshot(serial=7)))
        members["invented"] = {"later": [1, 2]}
        del members["draining"]
        self.assertEqual(decode(encode(members), type=Snapshot), Snapshot(serial=7))

    def test_otherForm(self) -> None:
        """What has another form is refused."""
        for body in (b"", b"\xc1", encode({"clients": 1})):
            self.assertRaises(msgspec.MsgspecError, decode, body, type=Snapshot)


class ResumeTests(SynchronousTestCase):
    """Taking a state up."""

    def written(self, world: World) -> tuple[Snapshot, dict[int, IConnection]]:
        """The world's state, and its connections."""
        connections: dict[int, IConnection] = {}

        def keyOf(connection: IConnection) -> int:
            connections[id(connection)] = connection
            return id(connection)

        return write(world.registry, keyOf), connections

    def empty(self, world: World) -> Registry:
        """A registry to take it up in."""
        old = world.registry.context
        context = Context(world.clock, old.wallClock, old.limits, old.log)
        return Registry(context, world.connector)

    def test_same(self) -> None:
        """What was taken up is written down as it was."""
        world = busyWorld()
        before, connections = self.written(world)
        world.registry = self.empty(world)
        resume(world.registry, [decode(encode(before), type=Snapshot)], connections)
        after, _ = self.written(world)
        self.assertEqual(shape(before), shape(after))

    def test_firstVersion(self) -> None:
        """What the first version wrote down is taken up, and goes on."""
        world = World()
        lines = {key: MemoryConnection() for key in range(5)}
        snapshot = decode(unseal(base64.b64decode(FIRST)), type=Snapshot)
        resumed = resume(world.registry, [snapshot], lines)
        for key, sink in resumed.sinks.items():
            lines[key].sink = sink
        resumed.begin()
        runtime, shim, other, control, io = lines.values()
        self.assertEqual(shim.take(), encodeStream(Stream.STDOUT, b"kept"))
        io.feed(encodeIO(3, b"more"))
        self.assertEqual(shim.take(), encodeStream(Stream.STDOUT, b"more"))
        control.feed(encodeControl(ControlCode.ACK, b"pong"))
        self.assertEqual(other.take(), encodeFrame(FrameType.RESPONSE, Command.HYPER, b"pong"))
        late = MemoryConnection()
        late.sink = connect(world.registry, late)
        self.assertTrue(late.sink.name.startswith("4 "))
        late.feed(command(Command.CONNECT_SHIM, {"token": "B" * 43 + "="}))
        message = readMessage(CONTROL_HEADER, control.take())
        assert message is not None
        self.assertEqual(message.number, ControlCode.EXECCMD)
        control.feed(encodeControl(ControlCode.ACK))
        self.assertEqual(runtime.take(), encodeFrame(FrameType.RESPONSE, Command.HYPER))

    def test_lostConnections(self) -> None:
        """Who has lost its connection is gone, and a VM that has is lost."""
        world = busyWorld()
        before, _ = self.written(world)
        for call in list(world.clock.getDelayedCalls()):
            call.cancel()
        registry = self.empty(world)
        resume(registry, [before], {}).begin()
        self.assertEqual(registry.clients, set())
        self.assertIs(registry.vms["vm"].state, VMState.LOST)
        self.assertEqual(len(registry.tokens), 2)
        world.clock.advance(10000.0)
        self.assertEqual((registry.vms, registry.tokens, registry.context.budget.used), ({}, {}, 0))
        self.assertEqual(world.clock.getDelayedCalls(), [])

    def test_contradiction(self) -> None:
        """A state that names what is not in it is refused."""
        before, connections = self.written(busyWorld())
        for name in ("clients", "vms", "sessions", "slots", "commands"):
            world = World()
            nothing: Any = {name: []}
            broken = attrs.evolve(before, **nothing)
            self.assertRaises(BadSnapshot, resume, world.registry, [broken], connections)

    def test_blocked(self) -> None:
        """A channel that waits for a full session is not read, and waits no longer than before."""
        world = World(sessionBuffer=4096, absentTimeout=10.0)
        agent, runtime, tokens = world.register(streams=1)
        world.process(agent, runtime, tokens[0]).connection.end()
        for _ in range(50):
            agent.output(3, b"x" * 100)
        for _ in range(3):
            self.assertTrue(agent.io.paused)
            world.clock.advance(3.0)
            world.restart()
            agent.io.pump()
        session = world.registry.tokens[tokens[0]]
        self.assertEqual(session.output.dropped, 0)
        world.clock.advance(1.1)
        self.assertTrue(session.output.dropping)

    def test_noConnection(self) -> None:
        """It takes nothing and its peer is gone."""
        gone = NoConnection()
        self.assertEqual((gone.send([b"x"]), gone.unsent(), gone.hungUp()), (0, 0, True))

    def test_responses(self) -> None:
        """A response that waits for room in its shim's socket is not lost with the process."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 0
        agent.output(3, b"lost")
        shim.send(Command.SIGNAL, {"signalNumber": 1})
        agent.commands()
        agent.ack()
        connections: dict[int, IConnection] = {}

        def keyOf(connection: IConnection) -> int:
            connections[id(connection)] = connection
            return id(connection)

        written = writeVM(agent.vm, keyOf)
        shim.connection.room = None
        resumed = resume(self.empty(world), [written], connections)
        resumed.recover()
        resumed.begin()
        self.assertEqual(shim.connection.take(), encodeFrame(FrameType.RESPONSE, Command.SIGNAL))

    def crashed(self, world: World) -> None:
        """Another process takes the place of the world's, which has died."""
        written = [writeVM(vm, id) for vm in world.registry.vms.values()]
        world.registry = self.empty(world)
        resume(world.registry, written, {}).recover()

    def test_crashLoss(self) -> None:
        """
        What crashes have cost is known of each session and in all, said once, and known to all
        processes that follow.
        """
        world = World()
        for name in ("a", "b"):
            agent, runtime, tokens = world.register(name, streams=2)
            shim = world.process(agent, runtime, tokens[0])
            shim.connection.room = 0
            agent.output(3, b"x" * 88)
            shim.stream(Stream.STDIN, b"x" * 32000)
        stdin = agent.vm.processes.numbers[3].stdin.size
        self.assertGreater(stdin, 0)
        self.crashed(world)
        losses = {each.token: each.crashLoss for each in world.registry.tokens.values()}
        self.assertEqual(sorted(losses.values()), [(0, 0), (0, 0), (100, stdin), (100, stdin)])
        self.assertEqual(world.registry.crashLoss, (200, 2 * stdin))
        reports = [event for event in world.events if event.get("event") == "crash-loss"]
        self.assertEqual([(each["output"], each["stdin"]) for each in reports], [(100, stdin)] * 2)
        world.events.clear()
        (written, _), world.registry = self.written(world), self.empty(world)
        resume(world.registry, [decode(encode(written), type=Snapshot)], {})
        self.assertEqual(world.registry.crashLoss, (200, 2 * stdin))
        world.registry.vms["a"].processes.numbers[3].stdin.add(b"more")
        self.crashed(world)
        self.assertEqual(world.registry.crashLoss, (200, 2 * stdin + 4))
        self.assertEqual(
            {vm.processes.numbers[3].crashLoss for vm in world.registry.vms.values()},
            {(100, stdin + 4), (100, stdin)},
        )
        self.assertEqual([event["event"] for event in world.events], ["crash-loss"])

    def test_times(self) -> None:
        """Waits go on where they were, on whatever clock."""
        world = World(processTimeout=20.0)
        _, _, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.send(Command.SIGNAL, {"signalNumber": 1})
        world.clock.advance(19.0)
        world.restart()
        world.clock.advance(0.9)
        self.assertEqual(shim.frames(), [])
        world.clock.advance(0.2)
        self.assertTrue(shim.frame().error)

    def test_parkedStart(self) -> None:
        """So does the wait of a start for its shim."""
        world = World(shimTimeout=20.0)
        _, runtime, tokens = world.register(streams=1)
        runtime.hyper("newcontainer", startData(), tokens)
        world.clock.advance(19.0)
        world.restart()
        world.clock.advance(0.9)
        self.assertEqual(runtime.frames(), [])
        world.clock.advance(0.2)
        self.assertTrue(runtime.frame().error)

    def test_stdin(self) -> None:
        """
        Stdin goes on in the middle of a piece, and not before the agent has read what was sent.
        """
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        sent = b"".join(b"%08d" % n for n in range(4000))
        shim.stream(Stream.STDIN, sent)
        got = b"".join(body for _, body in agent.stdin())
        self.assertLess(len(got), len(sent))
        world.restart()
        self.assertEqual(agent.stdin(), [])
        while len(got) < len(sent):
            before = len(got)
            agent.io.drain()
            got += b"".join(body for _, body in agent.stdin())
            self.assertGreater(len(got), before)
        self.assertEqual(got, sent)


class CrashTests(SynchronousTestCase):
    """Going on with a journal, after the process has died."""

    def test_finishing(self) -> None:
        """A shim that gets its last word as soon as there is a daemon does not end all others."""
        world = World(journal=True)
        agent, runtime, tokens = world.register("a", streams=1)
        stalled = world.process(agent, runtime, tokens[0])
        agent2, runtime, tokens = world.register("b", streams=1)
        other = world.process(agent2, runtime, tokens[0])
        stalled.connection.room = 0
        agent.output(3, b"lost")
        agent.io.end()
        agent.control.end()
        stalled.connection.room = None
        world.crash()
        self.assertEqual(stalled.connection.take(), encodeProcessExited(255))
        self.assertTrue(stalled.connection.closed)
        agent2.output(3, b"more")
        self.assertEqual(other.frame().payload, b"more")

    def test_endOfStdin(self) -> None:
        """An end of stdin that was journalled while it waited, and sent later, is sent once."""
        world = World(Dialect.CC, journal=True)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.stream(Stream.STDIN, b"x")
        shim.stream(Stream.STDIN, b"")
        runtime.hyper("ping")
        self.assertEqual(agent.stdin(), [(3, b"x")])
        agent.io.drain()
        world.crash()
        agent.io.drain()
        self.assertEqual(agent.stdin(), [(3, b"")])

    def test_endNotTaken(self) -> None:
        """An end of stdin that the channel's socket had not taken is sent after a crash."""
        world = World(Dialect.HYPERSTART0, journal=True)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        agent.io.room = 0
        shim.stream(Stream.STDIN, b"")
        world.crash()
        agent.io.makeRoom()
        agent.io.drain()
        self.assertEqual(agent.stdin(), [(3, b"")])
        world.crash()
        agent.io.drain()
        self.assertEqual(agent.stdin(), [])

    def test_deadlines(self) -> None:
        """Deadlines go on over crashes: they do not restart with each process."""

        def lost(world: World) -> Any:
            agent, _, _ = world.register()
            agent.io.end()
            return lambda: not world.registry.vms

        def signal(world: World) -> Any:
            _, _, tokens = world.register(streams=1)
            shim = world.shim(tokens[0])
            shim.send(Command.SIGNAL, {"signalNumber": 1})
            return lambda: any(frame.error for frame in shim.frames())

        def start(world: World) -> Any:
            _, _, tokens = world.register(streams=2)
            shim = world.shim(tokens[0])
            shim.call(Command.ATTACH_VM, {"containerId": "vm"})
            shim.hyper("newcontainer", startData(), tokens[1:])
            return lambda: any(frame.error for frame in shim.frames())

        def command(world: World) -> Any:
            agent, runtime, tokens = world.register(streams=1)
            shim = world.process(agent, runtime, tokens[0])
            shim.send(Command.SIGNAL, {"signalNumber": 1})
            return lambda: any(frame.error for frame in shim.frames())

        def undelivered(world: World) -> Any:
            agent, runtime, tokens = world.register(streams=1)
            world.process(agent, runtime, tokens[0]).connection.end()
            agent.io.end()
            agent.control.end()
            return lambda: not world.registry.tokens

        def exited(world: World) -> Any:
            agent, runtime, tokens = world.register(streams=1)
            shim = world.process(agent, runtime, tokens[0])
            event = {"container": "c1", "process": "3", "event": "finished", "status": 4}
            agent.say(ControlCode.PROCESS_ASYNC_EVENT, msgspec.json.encode(event))
            return lambda: encodeProcessExited(4) in shim.connection.take()

        timeouts = "lostTimeout processTimeout shimTimeout commandTimeout undeliveredTimeout"
        limits = dict.fromkeys([*timeouts.split(), "exitTimeout"], 30.0)
        for begin in (lost, signal, start, command, undelivered, exited):
            world = World(Dialect.HYPERSTART1, journal=True, **limits)
            due = begin(world)
            for _ in range(3):
                world.clock.advance(8.0)
                world.crash()
                self.assertFalse(due(), begin.__name__)
            world.clock.advance(5.9)
            self.assertFalse(due(), begin.__name__)
            world.clock.advance(0.2)
            self.assertTrue(due(), begin.__name__)

    def test_comesBack(self) -> None:
        """A shim has time to come back though its deadline has passed without a daemon."""
        world = World(journal=True)
        agent, runtime, tokens = world.register(streams=1)
        world.process(agent, runtime, tokens[0]).connection.end()
        agent.io.end()
        agent.control.end()
        world.clock.rightNow += 1000.0
        world.crash()
        world.clock.advance(0.5)
        shim = world.client()
        shim.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        self.assertIn(encodeProcessExited(255), shim.connection.take())

    def test_waitedFor(self) -> None:
        """How long a signal has waited is known to the next process."""
        for keeps, again in ((False, World.restart), (True, World.crash)):
            world = World(journal=keeps)
            _, _, tokens = world.register(streams=1)
            world.shim(tokens[0]).send(Command.SIGNAL, {"signalNumber": 1})
            world.clock.advance(7.0)
            again(world)
            (held,) = world.registry.tokens[tokens[0]].held
            self.assertEqual(world.clock.seconds() - held.since, 7.0)

    def test_counters(self) -> None:
        """A drain and the count of ignored frames are the last ones, whatever VMs there are."""
        world = World(journal=True)
        for register in (False, True):
            if register:
                world.register()
            for draining in (True, False):
                before = world.registry.ignoredFrames
                world.registry.drain(draining)
                world.client().stream(Stream.STDIN, b"none of its")
                world.crash()
                found = world.registry.draining, world.registry.ignoredFrames
                self.assertEqual(found, (draining, before + 1))

    def test_exitIsNoLoss(self) -> None:
        """An exit status that waits is no lost output: it is told again."""
        world = World(journal=True)
        agent, runtime, tokens = world.register(streams=1)
        world.process(agent, runtime, tokens[0]).connection.end()
        agent.exit(3, 4)
        for _ in range(3):
            world.registry.context.changed(world.registry.vms["vm"])
            world.registry.context.flush()
            world.crash()
        self.assertEqual((world.registry.crashLoss, world.logged("crash-loss")), ((0, 0), []))
        shim = world.client()
        shim.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        self.assertIn(encodeProcessExited(4), shim.connection.take())

    def test_exitBeforeAnswer(self) -> None:
        """An exit status that came before the answer to its start is not lost."""
        world = World(Dialect.CC, journal=True)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        runtime.hyper("newcontainer", startData(), tokens)
        agent.exit(3, 4)
        world.crash()
        agent.ack()
        self.assertEqual(shim.connection.take(), encodeProcessExited(4))

    def test_readOn(self) -> None:
        """A client that is not read until its answers have gone is read on with a journal too."""
        world = World(journal=True, clientBuffer=100)
        client = world.client()
        client.connection.feed(command(Command.ATTACH_VM, {"containerId": "none"}) * 30)
        self.assertEqual(len(client.frames()), 30)

    def test_noEnd(self) -> None:
        """A byte of output is no exit status because an empty message came long before."""
        world = World(Dialect.CC, journal=True)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        for body in (b"", b"two"):
            agent.output(3, body)
        shim.frames()
        world.crash()
        agent.output(3, b"3")
        self.assertEqual(shim.connection.take(), encodeStream(Stream.STDOUT, b"3"))


class SalvageTests(SynchronousTestCase):
    """A state that can be restored only in part."""

    def poisoned(self, poison: Any) -> tuple[World, list[Any]]:
        """
        A world with three VMs, one of them spoiled.

        @param poison: does so, given its agent, the session of its process and the process's shim.
        @return: it, and agent, runtime, shim and token of each VM.
        """
        world = World(journal=True)
        cast = []
        for name in "abc":
            agent, runtime, tokens = world.register(name, streams=2)
            shim = world.process(agent, runtime, tokens[0])
            runtime.hyper("ping")
            agent.commands()
            cast.append((agent, runtime, shim, tokens[0]))
        agent, _, shim, token = cast[1]
        poison(agent, world.registry.tokens[token], shim)
        world.registry.context.changed(agent.vm)
        world.registry.context.flush()
        return world, cast

    def salvaged(self, world: World, crash: bool) -> list[Dropped]:
        """Go on with what can be restored of it."""
        journal = [*world._journal.values()]
        found = journal if crash else [write(world.registry, world.keyOf)]
        lines = dict.fromkeys(world.connections, TrialConnection())

        def restore(snapshots: Any) -> None:
            trial = Registry(Context(Clock(), float), MemoryConnector())
            resume(trial, snapshots, lines).begin()

        kept, dropped = salvage(found, restore)
        resumed = world._resume(kept)
        if crash:
            resumed.recover()
        resumed.begin()
        self.assertFalse([event for event in world.events if "log_failure" in event])
        return dropped

    def alive(self, world: World, agent: Any, runtime: Any, shim: Any, crash: bool) -> None:
        """Check that a VM goes on, and its process, and in a planned restart its runtime."""
        agent.output(3, b"alive")
        self.assertEqual(shim.frame().payload, b"alive")
        agent.ack(b"pong")
        if not crash:
            self.assertEqual(runtime.frame().payload, b"pong")

    def test_vm(self) -> None:
        """A VM that cannot be restored is dropped with what is its own; the others go on."""

        def ended(agent: Any, session: Any, shim: Any) -> None:
            session.state = SessionState.ENDED

        def otherToken(agent: Any, session: Any, shim: Any) -> None:
            session.token = "another"

        def gone(agent: Any, session: Any, shim: Any) -> None:
            agent.vm.state = VMState.GONE

        for poison, crash in ((ended, False), (ended, True), (otherToken, False), (gone, False)):
            world, cast = self.poisoned(poison)
            (dropped,) = self.salvaged(world, crash)
            self.assertEqual(dropped.vms, ["b"])
            self.assertEqual(set(world.registry.vms), {"a", "c"})
            for agent, runtime, shim, _ in (cast[0], cast[2]):
                self.alive(world, agent, runtime, shim, crash)

    def test_client(self) -> None:
        """A client that cannot be restored is dropped alone; a shim's session keeps its output."""

        def poison(agent: Any, session: Any, shim: Any) -> None:
            shim.connection.room = 14
            for body in (b"1", b"22", b"333"):
                agent.output(3, body)
            (client,) = agent.vm.clients
            shim.client.slots += client.slots

        for crash in (False, True):
            world, cast = self.poisoned(poison)
            (dropped,) = self.salvaged(world, crash)
            agent, runtime, shim, token = cast[1]
            self.assertEqual((dropped.vms, dropped.clients), ([], [shim.client.name]))
            again = world.client()
            again.send(Command.CONNECT_SHIM, {"token": token})
            kept = [] if crash else [b"22", b"333"]
            self.assertEqual([frame.payload for frame in again.frames()[1:]], kept)
            self.alive(world, agent, runtime, again, crash)
            for agent, runtime, shim, _ in (cast[0], cast[2]):
                self.alive(world, agent, runtime, shim, crash)

    def test_together(self) -> None:
        """Of VMs that cannot be restored together, one goes on."""
        world, _ = self.poisoned(lambda *_: None)
        one = world._journal[2]
        kept, dropped = salvage([one, one, world._journal[1]], self.restored)
        self.assertEqual([vm.request.containerId for each in kept for vm in each.vms], ["b", "a"])
        self.assertEqual([each.vms for each in dropped], [["b"]])

    def restored(self, snapshots: Any) -> None:
        """Restore snapshots whose connections are all lost."""
        resume(Registry(Context(Clock(), float), MemoryConnector()), snapshots, {})

    def test_brokenLine(self) -> None:
        """A shim and a VM that fail only when restored for real do not take others along."""
        world, cast = self.poisoned(lambda *_: None)
        for agent, _, shim, _ in cast:
            shim.connection.room = 0
            agent.output(3, b"waits")
        cast[0][2].connection.send = None
        cast[1][0].io.room = 0
        cast[1][2].stream(Stream.STDIN, b"typed")
        cast[1][0].io.send = None
        for _, _, shim, _ in cast:
            shim.connection.room = None
        world.restart()
        self.assertEqual(len(world.logged("internal-error")), 2)
        self.assertIs(world.registry.vms["b"].state, VMState.LOST)
        self.assertTrue(cast[0][2].connection.closed)
        world.clock.advance(2.0)
        self.assertIn(encodeProcessExited(255), cast[1][2].connection.take())
        self.assertEqual(cast[2][2].frame().payload, b"waits")
