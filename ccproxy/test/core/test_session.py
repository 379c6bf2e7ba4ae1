"""
Sessions: a process's life, from its token to its exit status.
"""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.wire.codes import Command, ControlCode, Dialect, FrameType, Stream
from ccproxy.wire.frames import Frame

from ..memory import World, errorText, startData

STDOUT = int(Stream.STDOUT)
STDERR = int(Stream.STDERR)
EXITED = (FrameType.NOTIFICATION, 0)


def brief(frames: list[Frame]) -> list[tuple[FrameType, int, bytes]]:
    """Frames as triples."""
    return [(frame.type, frame.opcode, frame.payload) for frame in frames]


class StartTests(SynchronousTestCase):
    """A start waits for its shim, goes to the agent with its numbers, and opens the streams."""

    def test_wholeLife(self) -> None:
        """P6, P8: stdin, stdout, stderr and the exit status find their way."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.stream(Stream.STDIN, b"early")
        runtime.hyper("newcontainer", startData(), tokens)
        sent = agent.command()
        self.assertEqual(sent.number, ControlCode.NEWCONTAINER)
        self.assertEqual(sent.body, b'{"id":"c1","process":{"stdio":3,"stderr":4,"args":["true"]}}')
        self.assertEqual(agent.stdin(), [])
        agent.ack()
        self.assertEqual(brief(runtime.frames()), [(FrameType.RESPONSE, Command.HYPER, b"")])
        self.assertEqual(agent.stdin(), [(3, b"early")])
        agent.output(3, b"out")
        agent.output(4, b"err")
        agent.exit(3, 42)
        self.assertEqual(
            brief(shim.frames()),
            [
                (FrameType.STREAM, STDOUT, b"out"),
                (FrameType.STREAM, STDERR, b"err"),
                (*EXITED, b"\x2a"),
            ],
        )
        shim.send(Command.DISCONNECT_SHIM)
        self.assertTrue(shim.connection.closed)
        self.assertEqual(world.registry.tokens, {})
        self.assertEqual(agent.vm.processes.byNumber, {})
        self.assertEqual(world.registry.context.budget.used, 0)

    def test_waitsForShim(self) -> None:
        """The agent sees nothing of a start before its shim is there."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        runtime.hyper("newcontainer", startData(), tokens)
        self.assertEqual(agent.commands(), [])
        world.shim(tokens[0])
        agent.command()

    def test_shimOverdue(self) -> None:
        """P11: the wait for the shim has a deadline, and the token can be used again."""
        world = World(shimTimeout=7.0)
        agent, runtime, tokens = world.register(streams=1)
        runtime.hyper("newcontainer", startData(), tokens)
        world.clock.advance(6.9)
        self.assertEqual(runtime.frames(), [])
        world.clock.advance(0.2)
        text = errorText(runtime.frame())
        self.assertIn(f"timeout waiting for shim with token {tokens[0]}", text)
        self.assertIn("7 s", text)
        world.process(agent, runtime, tokens[0])

    def test_refusedByAgent(self) -> None:
        """An ERROR fails the start, drops what came of it, and leaves the token usable."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        runtime.hyper("newcontainer", startData(), tokens)
        agent.say(ControlCode.ERROR, b"no rootfs")
        self.assertIn("no rootfs", errorText(runtime.frame()))
        agent.output(3, b"dropped")
        self.assertEqual(shim.frames(), [])
        runtime.hyper("newcontainer", startData(), tokens)
        agent.commands()
        agent.ack()
        agent.output(3, b"kept")
        self.assertEqual(brief(shim.frames()), [(FrameType.STREAM, STDOUT, b"kept")])

    def test_exitWaitsForAnswer(self) -> None:
        """A status that overtakes the answer to the start comes after that answer."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        runtime.hyper("newcontainer", startData(), tokens)
        agent.output(3, b"quick")
        agent.exit(3, 1)
        self.assertEqual(brief(shim.frames()), [(FrameType.STREAM, STDOUT, b"quick")])
        agent.ack()
        runtime.frame()
        self.assertEqual(brief(shim.frames()), [(*EXITED, b"\x01")])

    def test_tokenUsedTwice(self) -> None:
        """A token starts one process."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        world.process(agent, runtime, tokens[0])
        text = runtime.refused(
            Command.HYPER,
            {"hyperName": "execcmd", "tokens": tokens, "data": startData("execcmd")},
        )
        self.assertIn("used by another process", text)

    def test_withoutToken(self) -> None:
        """The null session's numbers serve one process at a time; its output is dropped."""
        world = World()
        agent, runtime, _ = world.register()
        numbers = []
        for _ in range(2):
            runtime.hyper("newcontainer", startData())
            numbers.append(msgspec.json.decode(agent.command().body)["process"]["stdio"])
            agent.ack()
            runtime.frame()
        self.assertEqual(numbers, [1, 3])
        agent.output(1, b"dropped")
        agent.exit(1, 0)
        runtime.hyper("newcontainer", startData())
        self.assertEqual(msgspec.json.decode(agent.command().body)["process"]["stdio"], 1)


class SignalTests(SynchronousTestCase):
    """Signals before, during and after a process's life."""

    def test_killBeforeStart(self) -> None:
        """ProcessExited(0), then the response; what waits fails, and so does a later start."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.stream(Stream.STDIN, b"typed ahead")
        shim.send(Command.SIGNAL, {"signalNumber": 10})
        shim.send(Command.SIGNAL, {"signalNumber": 9})
        frames = shim.frames()
        self.assertEqual([frame.type for frame in frames], [1, 3, 1])
        self.assertIn("killed before its start", errorText(frames[0]))
        self.assertEqual(frames[1].payload, b"\0")
        self.assertFalse(frames[2].error)
        runtime.hyper("newcontainer", startData(), tokens)
        self.assertEqual(errorText(runtime.frame()), "process was killed before its start")
        self.assertEqual(agent.commands(), [])

    def test_heldUntilStart(self) -> None:
        """Another signal waits for the start, and then goes to the container."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.send(Command.SIGNAL, {"signalNumber": 10})
        runtime.hyper("newcontainer", startData(), tokens)
        agent.commands()
        agent.ack()
        sent = agent.command()
        self.assertEqual(sent.number, ControlCode.KILLCONTAINER)
        self.assertEqual(msgspec.json.decode(sent.body), {"container": "c1", "signal": 10})
        self.assertEqual(shim.frames(), [])
        agent.ack(b"ignored")
        self.assertEqual(shim.frame().payload, b"")

    def test_heldTooLong(self) -> None:
        """P11: a signal does not wait for ever for its process."""
        world = World()
        _, _, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.send(Command.SIGNAL, {"signalNumber": 10})
        world.clock.advance(31)
        self.assertIn("timeout waiting for process with token", errorText(shim.frame()))

    def test_dialects(self) -> None:
        """P14: each agent gets what reaches the process, or nothing and a clear error."""
        cases = [
            (Dialect.CC, "execcmd", 10, None),
            (Dialect.CC, "execcmd", 28, (ControlCode.WINSIZE, {"seq": 3})),
            (Dialect.HYPERSTART0, "newcontainer", 10, (ControlCode.KILLCONTAINER, {})),
            (Dialect.HYPERSTART1, "newcontainer", 10, (ControlCode.KILLCONTAINER, {})),
            (Dialect.HYPERSTART1, "execcmd", 10, (ControlCode.SIGNALPROCESS, {"process": "3"})),
            (Dialect.HYPERSTART1, "execcmd", 28, (ControlCode.WINSIZE, {"process": "3"})),
        ]
        for dialect, kind, number, expected in cases:
            world = World(dialect)
            agent, runtime, tokens = world.register(streams=1)
            shim = world.process(agent, runtime, tokens[0], kind=kind)
            agent.commands()
            size = {"columns": 80, "rows": 24} if number == 28 else {}
            shim.send(Command.SIGNAL, {"signalNumber": number, **size})
            if expected is None:
                self.assertIn("not supported by this agent", errorText(shim.frame()))
                self.assertEqual(agent.commands(), [])
            else:
                sent = agent.command()
                self.assertEqual(sent.number, expected[0])
                data = msgspec.json.decode(sent.body)
                self.assertEqual(data, {**data, **expected[1]})


class AbsenceTests(SynchronousTestCase):
    """P7: a shim that goes and comes back."""

    def test_keptWhileAway(self) -> None:
        """Output and status wait for the next shim, and the status for each one after it."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.end()
        agent.output(3, b"while away")
        agent.exit(3, 7)
        for expected in ([b"", b"while away", b"\x07"], [b"", b"\x07"]):
            shim = world.client()
            shim.send(Command.CONNECT_SHIM, {"token": tokens[0]})
            self.assertEqual([frame.payload for frame in shim.frames()], expected)
            shim.connection.end()
        shim = world.client()
        shim.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        shim.send(Command.DISCONNECT_SHIM)
        self.assertIn(
            "unknown token: ", world.client().refused(Command.CONNECT_SHIM, {"token": tokens[0]})
        )

    def test_cutFrameIsSentAgain(self) -> None:
        """A frame that the lost connection had taken in part goes whole to the next one."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 20
        agent.output(3, b"first")
        agent.output(3, b"second")
        shim.connection.end()
        again = world.client()
        again.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        self.assertEqual([frame.payload for frame in again.frames()], [b"", b"second"])

    def test_heldTokenIsPolled(self) -> None:
        """A claim is refused while the holder lives, and succeeds once it has hung up."""
        world = World()
        _, _, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        other = world.client()
        self.assertIn(
            "token already claimed", other.refused(Command.CONNECT_SHIM, {"token": tokens[0]})
        )
        shim.connection.gone = True
        other.call(Command.CONNECT_SHIM, {"token": tokens[0]})
        self.assertTrue(shim.connection.closed)


class FlowTests(SynchronousTestCase):
    """P9: a shim that does not read holds up its own VM, and only when its session is full."""

    def test_fullSessionPausesChannel(self) -> None:
        """The channel is paused when the session is full, and read again when it has room."""
        world = World(sessionBuffer=4096)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 0
        sent = [bytes([n]) * 1000 for n in range(10)]
        for body in sent:
            agent.output(3, body)
        self.assertTrue(agent.io.paused)
        self.assertLess(world.registry.context.budget.used, 4096 + 1012)
        shim.connection.makeRoom()
        agent.io.pump()
        self.assertEqual([frame.payload for frame in shim.frames()], sent)
        self.assertEqual(world.registry.context.budget.used, 0)

    def test_absentShimDropsAtLast(self) -> None:
        """Without a shim the pause ends after a while; the status is kept."""
        world = World(sessionBuffer=4096)
        agent, runtime, tokens = world.register(streams=1)
        world.process(agent, runtime, tokens[0]).connection.end()
        for n in range(10):
            agent.output(3, bytes([n]) * 1000)
        agent.exit(3, 9)
        self.assertTrue(agent.io.paused)
        world.clock.advance(30)
        agent.io.pump()
        shim = world.client()
        shim.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        payloads = [frame.payload for frame in shim.frames()]
        self.assertEqual(payloads[-1], b"\x09")
        self.assertEqual(len(payloads), 1 + 5 + 1)
        self.assertEqual(world.logged("process-exited")[0]["dropped"], 5000)
