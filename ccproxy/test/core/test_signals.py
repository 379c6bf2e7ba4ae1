"""
Signals and starts: what waits for what, and what ends the wait (promise P11).
"""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.wire.codes import Command, ControlCode, Dialect, FrameType, Stream
from ccproxy.wire.payloads import MAX_ID

from ..memory import MemoryClient, World, errorText, startData

KILLED = "process was killed before its start"


class KillTests(SynchronousTestCase):
    """SIGKILL or SIGTERM before the start is sent, at each stage."""

    def assertKilled(self, world: World, shim: MemoryClient, number: int) -> None:
        """ProcessExited(0), then the response."""
        shim.send(Command.SIGNAL, {"signalNumber": number})
        frames = shim.frames()
        self.assertEqual(
            [(frame.type, frame.payload) for frame in frames],
            [(FrameType.NOTIFICATION, b"\0"), (FrameType.RESPONSE, b"")],
        )
        self.assertEqual(
            shim.refused(Command.SIGNAL, {"signalNumber": number}), "process has exited"
        )
        shim.stream(Stream.STDIN, b"dropped")
        self.assertEqual(world.registry.context.budget.used, 0)

    def test_created(self) -> None:
        """Before any start: a later start is the error."""
        for number in (9, 15):
            world = World()
            agent, runtime, tokens = world.register(streams=1)
            shim = world.shim(tokens[0])
            shim.stream(Stream.STDIN, b"held")
            self.assertKilled(world, shim, number)
            payload = {"hyperName": "newcontainer", "data": startData(), "tokens": tokens}
            self.assertEqual(runtime.refused(Command.HYPER, payload), KILLED)
            self.assertEqual(agent.commands(), [])

    def test_queued(self) -> None:
        """A start behind another command is failed, and never sent."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        runtime.hyper("ping")
        runtime.hyper("newcontainer", startData(), tokens)
        self.assertKilled(world, shim, 9)
        agent.ack(b"pong")
        ping, start = runtime.frames()
        self.assertEqual((ping.payload, errorText(start)), (b"pong", KILLED))
        self.assertEqual(len(agent.commands()), 1)

    def test_parkedAgain(self) -> None:
        """A start whose shim came, went and came back while it was queued."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        runtime.hyper("ping")
        runtime.hyper("newcontainer", startData(), tokens)
        world.shim(tokens[0]).connection.end()
        shim = world.shim(tokens[0])
        world.clock.advance(40)
        self.assertKilled(world, shim, 9)
        agent.ack()
        self.assertEqual(errorText(runtime.frames()[1]), KILLED)

    def test_sent(self) -> None:
        """Once the start is sent, every signal waits for its answer, and goes in order."""
        world = World(Dialect.HYPERSTART1)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.send(Command.SIGNAL, {"signalNumber": 10})
        runtime.hyper("execcmd", startData("execcmd"), tokens)
        agent.command()
        shim.send(Command.SIGNAL, {"signalNumber": 9})
        shim.send(Command.SIGNAL, {"signalNumber": 15})
        self.assertEqual((shim.frames(), agent.commands()), ([], []))
        agent.ack()
        signals = []
        for _ in range(3):
            sent = agent.command()
            self.assertEqual(sent.number, ControlCode.SIGNALPROCESS)
            signals.append(msgspec.json.decode(sent.body)["signal"])
            agent.ack()
        self.assertEqual(signals, [10, 9, 15])
        self.assertEqual([frame.error for frame in shim.frames()], [False] * 3)

    def test_heldFailInOrder(self) -> None:
        """Held signals fail in order, before ProcessExited."""
        world = World()
        _, _, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        for number in (1, 2, 9):
            shim.send(Command.SIGNAL, {"signalNumber": number})
        frames = shim.frames()
        self.assertEqual([frame.type for frame in frames], [1, 1, 3, 1])
        self.assertEqual([errorText(frame) for frame in frames[:2]], [KILLED] * 2)
        world.clock.advance(60)
        self.assertEqual(shim.frames(), [])

    def test_statusIsKept(self) -> None:
        """The next shim of the token is told as well; the token ends with DisconnectShim."""
        world = World()
        _, _, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        self.assertKilled(world, shim, 9)
        shim.connection.end()
        again = world.client()
        again.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        self.assertEqual([frame.payload for frame in again.frames()], [b"", b"\0"])
        again.send(Command.DISCONNECT_SHIM)
        self.assertEqual(world.registry.tokens, {})


class HeldTests(SynchronousTestCase):
    """Signals that wait for the start."""

    def setUp(self) -> None:
        self.world = World(Dialect.CC)
        self.agent, self.runtime, self.tokens = self.world.register(streams=2)
        self.shim = self.world.shim(self.tokens[0])

    def test_startRefused(self) -> None:
        """A signal whose process was not started fails at once; held stdin waits on."""
        self.runtime.hyper("newcontainer", startData(), [self.tokens[0]])
        self.agent.commands()
        self.shim.stream(Stream.STDIN, b"typed")
        self.shim.send(Command.SIGNAL, {"signalNumber": 9})
        self.agent.say(ControlCode.ERROR, b"no rootfs")
        text = errorText(self.shim.frame())
        self.assertIn("not started", text)
        self.assertIn("no rootfs", text)
        self.runtime.frame()
        self.runtime.hyper("newcontainer", startData(), [self.tokens[0]])
        self.agent.ack()
        self.assertEqual(self.agent.stdin(), [(3, b"typed")])

    def test_shimOverdueOfAnother(self) -> None:
        """The failure of another start is nothing to it."""
        self.shim.send(Command.SIGNAL, {"signalNumber": 2})
        self.runtime.hyper("newcontainer", startData(), [self.tokens[1]])
        self.world.clock.advance(29.9)
        self.assertEqual(self.shim.frames(), [])

    def test_deadline(self) -> None:
        """Each waits for its own 30 s, and says for what, how long and where."""
        self.shim.send(Command.SIGNAL, {"signalNumber": 2})
        self.world.clock.advance(10)
        self.shim.send(Command.SIGNAL, {"signalNumber": 1})
        self.world.clock.advance(20)
        text = errorText(self.shim.frame())
        self.assertEqual(
            text,
            f"timeout waiting for process with token {self.tokens[0]}: not started within 30 s"
            " in VM vm",
        )
        self.runtime.hyper("newcontainer", startData(), [self.tokens[0]])
        self.agent.commands()
        self.agent.ack()
        self.assertEqual(msgspec.json.decode(self.agent.command().body)["signal"], 1)

    def test_ofAShimThatIsGone(self) -> None:
        """The signal of a shim's monitor is carried out though its connection is gone."""
        self.runtime.hyper("newcontainer", startData(), [self.tokens[0]])
        self.agent.commands()
        self.shim.send(Command.SIGNAL, {"signalNumber": 9})
        self.shim.connection.end()
        self.agent.ack()
        self.assertEqual(self.agent.command().number, ControlCode.KILLCONTAINER)

    def test_execOnCc(self) -> None:
        """P14: held for an execcmd that turns out to be out of reach: the error says so."""
        self.shim.send(Command.SIGNAL, {"signalNumber": 2})
        self.runtime.hyper("execcmd", startData("execcmd"), [self.tokens[0]])
        self.agent.commands()
        self.agent.ack()
        self.assertIn("not supported by this agent", errorText(self.shim.frame()))
        self.assertEqual(self.agent.commands(), [])

    def test_errorFromTheAgent(self) -> None:
        """The agent's ERROR reaches the shim; its other answers' bodies do not."""
        self.runtime.hyper("newcontainer", startData(), [self.tokens[0]])
        self.agent.ack()
        self.shim.send(Command.SIGNAL, {"signalNumber": 2})
        self.agent.say(ControlCode.ERROR, b"no such container\0")
        self.assertIn("no such container", errorText(self.shim.frame()))


class StartTests(SynchronousTestCase):
    """Starts that cannot be sent."""

    def test_queueFull(self) -> None:
        """P9: a start that finds the queue full fails, at once or when its shim comes."""
        world = World(Dialect.CC, maxCommands=1)
        agent, runtime, tokens = world.register(streams=2)
        runtime.hyper("newcontainer", startData(), [tokens[0]])
        other = world.client()
        other.call(Command.ATTACH_VM, {"containerId": "vm"})
        other.hyper("ping")
        other.hyper("ping")
        shim = world.shim(tokens[0])
        self.assertIn("control commands are waiting", errorText(runtime.frame()))
        payload = {"hyperName": "newcontainer", "data": startData(), "tokens": [tokens[0]]}
        shim.send(Command.SIGNAL, {"signalNumber": 2})
        self.assertIn("are waiting", runtime.refused(Command.HYPER, payload))
        self.assertIn("not started", errorText(shim.frame()))
        payload = {"hyperName": "newcontainer", "data": startData()}
        self.assertIn("are waiting", runtime.refused(Command.HYPER, payload))
        agent.ack()
        agent.ack()
        runtime.hyper("newcontainer", startData(), [tokens[0]])
        agent.ack()
        self.assertFalse(runtime.frame().error)
        agent.output(3, b"out")
        self.assertEqual(shim.frame().payload, b"out")

    def test_badData(self) -> None:
        """Data that is refused costs no token."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        payload = {"hyperName": "newcontainer", "data": {}, "tokens": tokens}
        self.assertIn("needs a process", runtime.refused(Command.HYPER, payload))
        world.process(agent, runtime, tokens[0])
        self.assertEqual(len(agent.commands()), 1)

    def test_liveProcess(self) -> None:
        """hyperstart 1.x has such a process already: refused, with texts of bounded length."""
        world = World(Dialect.HYPERSTART1)
        agent, runtime, tokens = world.register(streams=2)
        name = "p" * MAX_ID
        world.process(agent, runtime, tokens[0], kind="execcmd", id=name)
        shim = world.shim(tokens[1])
        shim.send(Command.SIGNAL, {"signalNumber": 2})
        runtime.hyper("execcmd", startData("execcmd", id=name), [tokens[1]])
        text = errorText(runtime.frame())
        self.assertIn("is running", text)
        self.assertLess(len(text), 1000)
        runtime.hyper("execcmd", startData("execcmd", id="other"), [tokens[1]])
        self.assertEqual(len(agent.commands()), 2)

    def test_terminal(self) -> None:
        """With a terminal there is no stderr number in the start."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0], terminal=True)
        self.assertNotIn(b"stderr", agent.command().body)
        agent.output(3, b"out")
        self.assertEqual(shim.frame().payload, b"out")
