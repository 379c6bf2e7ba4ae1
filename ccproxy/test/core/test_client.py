"""
Clients: frames, the order of commands and responses, and every way to leave.
"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ccproxy.interfaces import IConnection, IStreamSink
from ccproxy.wire.codes import Command, ControlCode, Dialect, FrameType, Stream
from ccproxy.wire.frames import HEADER, encodeFrame

from ..memory import (
    MemoryClient,
    World,
    command,
    errorText,
    startData,
)


def hyper(name: str) -> dict[str, str]:
    """A Hyper payload."""
    return {"hyperName": name}


class FrameTests(SynchronousTestCase):
    """P1, P2, P3: frames, good and bad."""

    def setUp(self) -> None:
        self.world = World()
        self.agent, self.client, self.tokens = self.world.register(streams=1)

    def test_interfaces(self) -> None:
        """The seams are what they say."""
        verifyObject(IStreamSink, self.client.client)
        verifyObject(IStreamSink, self.agent.control.sink)
        verifyObject(IStreamSink, self.agent.io.sink)
        verifyObject(IConnection, self.client.connection)

    @given(st.lists(st.integers(1, 40), max_size=30), st.booleans())
    def test_anySplit(self, cuts: list[int], longHeader: bool) -> None:
        """P1: frames mean the same, cut anywhere, whatever the length of their headers."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.client()
        frames = [
            command(Command.CONNECT_SHIM, {"token": tokens[0]}),
            encodeFrame(FrameType.STREAM, Stream.STDIN, b"one"),
            command(Command.SIGNAL, {"signalNumber": 9, "rows": 1}),
            encodeFrame(FrameType.STREAM, Stream.STDIN, b""),
            command(9),
        ]
        if longHeader:
            frames = [
                frame[:2] + b"\5" + frame[3:12] + b"??? ????" + frame[12:] for frame in frames
            ]
        stream = b"".join(frames)
        for cut in cuts:
            shim.connection.feed(stream[:cut])
            stream = stream[cut:]
        shim.connection.feed(stream)
        self.assertEqual([frame.error for frame in shim.frames()], [False, True, True])
        runtime.hyper("newcontainer", startData(), tokens)
        agent.ack()
        self.assertEqual(b"".join(body for _, body in agent.stdin()), b"one")

    def test_tooLong(self) -> None:
        """P2: a length over the limit is answered from the header alone, behind what came."""
        self.client.hyper("ping")
        self.client.connection.feed(HEADER.pack(2, 3, 0, 3, (1 << 20) + 1))
        self.client.connection.feed(b"whatever follows")
        self.assertEqual(self.client.frames(), [])
        self.assertFalse(self.client.connection.closed)
        self.agent.ack()
        answer, refusal = self.client.frames()
        self.assertFalse(answer.error)
        self.assertEqual(refusal.opcode, Command.HYPER)
        self.assertIn("more than the limit of 1048576", errorText(refusal))
        self.assertTrue(self.client.connection.closed)

    def test_badHeaders(self) -> None:
        """P3: a bad header closes; it is answered where the frame can be a command."""
        for header, opcode in (
            (HEADER.pack(2, 2, 0, 5, 0), 5),
            (HEADER.pack(2, 0, 0, 77, 0), 77),
            (HEADER.pack(2, 2, 2, 0, 0), None),
            (HEADER.pack(2, 3, 2, 0, 1 << 31), None),
            (HEADER.pack(1, 3, 0, 5, 0), None),
            (HEADER.pack(2, 3, 4, 5, 0), None),
        ):
            client = self.world.client()
            client.connection.feed(header)
            self.assertEqual(
                [frame.opcode for frame in client.frames()], [opcode] * (opcode is not None)
            )
            self.assertTrue(client.connection.closed)
        self.assertEqual(len(self.world.logged("bad-frame")), 6)

    def test_breachEndsWaits(self) -> None:
        """A client that broke the framing is closed soon: a start that waits is given up."""
        self.client.hyper("newcontainer", startData(), self.tokens)
        self.client.connection.feed(b"garbage, not frames")
        self.assertIn("gone", errorText(self.client.frame()))
        self.assertTrue(self.client.connection.closed)

    def test_badCommands(self) -> None:
        """P3: a bad command is an error that names the field, and the connection stays."""
        for opcode, payload, text in (
            (77, b"", "unknown command opcode 77"),
            (Command.REGISTER_VM, b"", "malformed RegisterVM command"),
            (Command.REGISTER_VM, b"{}", "`containerId`"),
            (Command.ATTACH_VM, b'{"containerId":7}', "$.containerId"),
            (Command.ATTACH_VM, b'{"containerId":"vm","numIOStreams":4097}', "$.numIOStreams"),
            (Command.ATTACH_VM, b'{"containerId":"vm","numIOStreams":-1}', "$.numIOStreams"),
            (Command.HYPER, b'{"hyperName":null}', "$.hyperName"),
            (Command.HYPER, b'{"hyperName":"ping","tokens":[null]}', "$.tokens[0]"),
            (
                Command.HYPER,
                b'{"hyperName":"ping","tokens":["t"]}',
                "ping doesn't need tokens but 1",
            ),
            (
                Command.HYPER,
                b'{"hyperName":"execcmd","tokens":["t","u"]}',
                "expected 0 or 1 token, got 2",
            ),
            (Command.HYPER, b'{"hyperName":"execcmd","tokens":["t"]}', "unknown token t"),
            (Command.CONNECT_SHIM, b'{"token":1}', "$.token"),
            (Command.CONNECT_SHIM, b'{"token":"t"}', "unknown token: t"),
            (Command.CONNECT_SHIM, b"\xff", "malformed ConnectShim command"),
            (Command.CONNECT_SHIM, b'{"token":' + b"[" * 100_000, "malformed ConnectShim"),
            (Command.SIGNAL, b'{"signalNumber":65}', "$.signalNumber"),
            (Command.SIGNAL, b'{"signalNumber":9}', "client isn't a shim"),
            (Command.DISCONNECT_SHIM, b"", "client isn't a shim"),
        ):
            self.assertIn(text, self.client.refused(opcode, payload))
        self.client.hyper("ping")
        self.agent.command()

    def test_signalPayloads(self) -> None:
        """A window size goes with SIGWINCH, and only with it."""
        shim = self.world.process(self.agent, self.client, self.tokens[0])
        for payload in (
            {"signalNumber": 28},
            {"signalNumber": 28, "columns": 80},
            {"signalNumber": 28, "columns": 0, "rows": 0},
            {"signalNumber": 2, "columns": 80, "rows": 24},
        ):
            self.assertIn("rows", shim.refused(Command.SIGNAL, payload))
        self.assertIn(
            "$.columns",
            shim.refused(Command.SIGNAL, {"signalNumber": 28, "columns": 65536, "rows": 1}),
        )
        shim.send(Command.SIGNAL, {"signalNumber": 0, "columns": None})
        self.assertEqual(shim.frames(), [])

    def test_notAllowed(self) -> None:
        """P3: streams and notifications that it may not send are dropped, and said once."""
        for _ in range(3):
            self.client.stream(Stream.STDIN, b"to whom?")
            self.client.stream(Stream.STDOUT, b"")
            self.client.connection.feed(encodeFrame(FrameType.NOTIFICATION, 0, b""))
            self.client.connection.feed(encodeFrame(FrameType.RESPONSE, 3, b""))
        self.assertEqual(self.client.frames(), [])
        self.assertEqual(len(self.world.logged("ignored")), 4)
        self.assertEqual(self.world.registry.ignoredFrames, 12)

    def test_logEntries(self) -> None:
        """A log entry enters the log; P4: a bad one is counted and reported once."""
        entry = {"source": "shim", "containerId": "c", "level": "warn", "msg": "hm"}
        self.client.stream(Stream.LOG, msgspec.json.encode(entry))
        (logged,) = self.world.logged("log-entry")
        self.assertEqual(
            (logged["text"], logged["source"], logged["container"], logged["log_level"]),
            ("hm", "shim", "c", LogLevel.warn),
        )
        self.assertIn("pid=1 uid=0", logged["client"])
        for _ in range(5):
            self.client.stream(Stream.LOG, b'{"source":"' + b"x" * 50_000 + b'"}')
        (ignored,) = self.world.logged("ignored")
        self.assertIn("malformed log", ignored["reason"])
        self.assertLess(len(ignored["reason"]), 1000)
        self.assertEqual(self.world.registry.ignoredFrames, 5)
        self.client.hyper("ping")
        self.agent.command()


class OrderTests(SynchronousTestCase):
    """P10: responses leave in the order of the commands."""

    def setUp(self) -> None:
        self.world = World()
        self.agent, self.client, self.tokens = self.world.register(streams=1)

    def test_finishedOnesWait(self) -> None:
        """What is answered early waits; what follows begins all the same."""
        self.client.hyper("ping")
        self.client.send(Command.ATTACH_VM, {"containerId": "vm", "numIOStreams": 1})
        self.client.send(77)
        self.client.hyper("newcontainer", startData(), self.tokens)
        self.client.hyper("version")
        self.assertEqual(self.client.frames(), [])
        self.agent.ack(b"one")
        self.assertEqual(
            [(frame.opcode, frame.error) for frame in self.client.frames()],
            [(3, False), (2, False), (77, True)],
        )
        self.assertEqual(len(self.agent.commands()), 2)
        self.agent.ack(b"version")
        self.assertEqual(self.client.frames(), [])
        self.world.shim(self.tokens[0])
        self.agent.ack(b"started")
        self.assertEqual(
            [frame.payload for frame in self.client.frames()], [b"started", b"version"]
        )

    def test_unanswered(self) -> None:
        """At most 128 commands are unanswered; then the client is not read."""
        for _ in range(130):
            self.client.hyper("ping")
        self.assertTrue(self.client.connection.paused)
        self.assertEqual(len(self.client.client.slots), 128)
        self.assertEqual(len(self.agent.vm.commands.waiting), 127)
        self.agent.ack()
        self.client.connection.pump()
        self.assertTrue(self.client.connection.paused)
        self.assertEqual(len(self.client.client.slots), 128)
        for _ in range(129):
            self.agent.ack()
            self.client.connection.pump()
        self.assertEqual(len(self.client.frames()), 130)
        self.assertFalse(self.client.connection.paused)

    def test_unsent(self) -> None:
        """P9: a client that does not read its answers is not read beyond the limit."""
        for shim in (False, True):
            world = World(clientBuffer=1000)
            _, client, tokens = world.register(streams=1)
            if shim:
                client = world.shim(tokens[0])
            client.connection.room = 0
            for _ in range(200):
                client.send(77)
            self.assertTrue(client.connection.paused)
            self.assertLess(client.client.outlet.size, 1200)
            for _ in range(40):
                client.connection.makeRoom(500)
                client.connection.pump()
            self.assertEqual(len(client.frames()), 200)
            self.assertFalse(client.connection.paused)

    def test_unsentThenGone(self) -> None:
        """It may hang up without reading: what it sent is carried out, and it is closed."""
        world = World(clientBuffer=1000)
        agent, client, _ = world.register()
        client.connection.room = 0
        for _ in range(100):
            client.send(77)
        client.hyper("ping")
        client.connection.end()
        self.assertEqual(agent.command().number, ControlCode.PING)
        self.assertTrue(client.connection.closed)
        self.assertEqual(len(world.registry.clients), 0)


class LeavingTests(SynchronousTestCase):
    """A client goes."""

    def setUp(self) -> None:
        self.world = World(Dialect.CC)
        self.agent, self.runtime, self.tokens = self.world.register(streams=2)

    def attached(self) -> MemoryClient:
        """A client of the VM."""
        client = self.world.client()
        client.call(Command.ATTACH_VM, {"containerId": "vm"})
        return client

    def test_halfClosed(self) -> None:
        """Complete frames are carried out and answered; a cut one is dropped; then it closes."""
        client = self.attached()
        client.connection.feed(
            command(Command.HYPER, hyper("ping"))
            + command(Command.HYPER, hyper("version"))
            + command(Command.HYPER, hyper("ping"))[:-1]
        )
        client.connection.end(gone=False)
        self.agent.ack(b"1")
        self.assertFalse(client.connection.closed)
        self.agent.ack(b"2")
        self.assertEqual([frame.payload for frame in client.frames()], [b"1", b"2"])
        self.assertTrue(client.connection.closed)
        self.assertEqual(len(self.agent.commands()), 2)

    def test_halfClosedAndGone(self) -> None:
        """One that then closes altogether is closed at once; its commands go on."""
        client = self.attached()
        client.hyper("ping")
        client.hyper("version")
        client.connection.end(gone=False)
        self.assertFalse(client.connection.closed)
        client.connection.end()
        self.assertTrue(client.connection.closed)
        self.agent.ack(b"1")
        self.agent.ack(b"2")
        self.assertEqual(len(self.agent.commands()), 2)

    def test_halfClosedAndSlow(self) -> None:
        """It is closed when it has read all, or after a while."""
        for reads in (True, False):
            client = self.attached()
            client.connection.room = 5
            client.send(77)
            client.connection.end(gone=False)
            self.assertFalse(client.connection.closed)
            self.world.clock.advance(29)
            if reads:
                client.connection.makeRoom()
                self.assertEqual(client.frame().opcode, 77)
            else:
                self.world.clock.advance(1)
            self.assertTrue(client.connection.closed)

    def test_startGivenUp(self) -> None:
        """P11: a start that waits for its shim is given up when its client half-closes or goes."""
        for gone in (False, True):
            client = self.attached()
            client.hyper("newcontainer", startData(), [self.tokens[0]])
            client.connection.end(gone)
            self.assertTrue(client.connection.closed)
            self.assertEqual(len(client.frames()), 0 if gone else 1)
            shim = self.world.shim(self.tokens[0])
            self.assertEqual(self.agent.commands(), [])
            shim.connection.end()
        self.world.process(self.agent, self.runtime, self.tokens[0])

    def test_startGivenUpAfterAttaching(self) -> None:
        """So it is when the client has attached to another VM meanwhile."""
        other, _, _ = self.world.register("other")
        client = self.attached()
        client.hyper("newcontainer", startData(), [self.tokens[0]])
        client.send(Command.ATTACH_VM, {"containerId": "other"})
        client.connection.end()
        self.world.shim(self.tokens[0])
        self.assertEqual(self.agent.commands(), [])
        self.assertEqual(other.commands(), [])

    def test_unsentCommandIsSent(self) -> None:
        """A start that only waits for its turn is sent, though its client is gone."""
        self.runtime.hyper("ping")
        client = self.attached()
        client.hyper("newcontainer", startData(), [self.tokens[0]])
        shim = self.world.shim(self.tokens[0])
        client.connection.end()
        self.agent.ack()
        self.assertEqual(self.agent.commands()[-1].number, ControlCode.NEWCONTAINER)
        self.agent.ack()
        self.agent.output(3, b"out")
        self.assertEqual(shim.frame().payload, b"out")

    def test_twice(self) -> None:
        """The end of a connection that is closed already is nothing."""
        client = self.attached()
        sink = client.client
        sink.close()
        sink.close()
        sink.ended()
        sink.writable()
        sink.drained()
        sink.finishAfterOutput()
        self.assertEqual(client.frames(), [])


class ShimTests(SynchronousTestCase):
    """ConnectShim and DisconnectShim."""

    def setUp(self) -> None:
        self.world = World(Dialect.CC)
        self.agent, self.runtime, self.tokens = self.world.register(streams=2)

    def test_refusedThenStdin(self) -> None:
        """A refused shim reads its error; what it sent behind ConnectShim is discarded."""
        self.world.shim(self.tokens[0])
        for token, text in (("x" * 44, "unknown token: x"), (self.tokens[0], "already claimed")):
            shim = self.world.client()
            shim.connection.feed(
                command(Command.CONNECT_SHIM, {"token": token})
                + encodeFrame(FrameType.STREAM, Stream.STDIN, b"typed ahead" * 99)
            )
            self.assertIn(text, errorText(shim.frame()))
            self.assertFalse(shim.connection.closed)
        self.assertEqual(self.world.registry.context.budget.used, 0)

    def test_oneTokenEver(self) -> None:
        """A connection is the shim of one token; a refused one may try again."""
        shim = self.world.client()
        shim.refused(Command.CONNECT_SHIM, {"token": "nonsense"})
        shim.call(Command.CONNECT_SHIM, {"token": self.tokens[0]})
        for token, text in (
            (self.tokens[1], "one token only"),
            (self.tokens[0], "token already claimed"),
        ):
            self.assertIn(text, shim.refused(Command.CONNECT_SHIM, {"token": token}))
        self.world.shim(self.tokens[1])

    def test_otherCommands(self) -> None:
        """A shim may use the other commands too."""
        shim = self.world.shim(self.tokens[0])
        shim.call(Command.ATTACH_VM, {"containerId": "vm"})
        shim.hyper("newcontainer", startData(), [self.tokens[0]])
        self.agent.command()
        self.agent.ack(b"ok")
        self.assertEqual(shim.frame().payload, b"ok")

    def test_disconnectBehindUnanswered(self) -> None:
        """Responses to earlier commands are still sent; then it is closed, without one more."""
        shim = self.world.shim(self.tokens[0])
        shim.call(Command.ATTACH_VM, {"containerId": "vm"})
        shim.hyper("ping")
        shim.send(Command.DISCONNECT_SHIM)
        shim.connection.end(gone=False)
        self.assertFalse(shim.connection.closed)
        self.assertNotIn(self.tokens[0], self.world.registry.tokens)
        self.agent.ack(b"pong")
        self.assertEqual(shim.frame().payload, b"pong")
        self.assertTrue(shim.connection.closed)

    def test_disconnectWithPartialFrame(self) -> None:
        """A frame written in part is finished; the rest of the output is dropped."""
        for finished in (True, False):
            shim = self.world.process(
                self.agent, self.runtime, self.tokens[finished], container=f"c{finished}"
            )
            number = 5 if finished else 3
            shim.connection.room = 15
            self.agent.output(number, b"first")
            self.agent.output(number, b"second")
            shim.send(Command.DISCONNECT_SHIM)
            self.assertFalse(shim.connection.closed)
            if finished:
                shim.connection.makeRoom()
                self.assertEqual(shim.frame().payload, b"first")
            else:
                shim.connection.end()
            self.assertTrue(shim.connection.closed)
            self.assertEqual(self.world.registry.context.budget.used, 0)

    def test_disconnectStages(self) -> None:
        """The token is void at every stage; a process that runs gets an EOF and runs on."""
        for stage in ("created", "parked", "queued", "starting", "running", "exited"):
            world = World(Dialect.CC)
            agent, runtime, tokens = world.register(streams=1)
            shim = world.client() if stage == "parked" else world.shim(tokens[0])
            if stage == "queued":
                runtime.hyper("ping")
            if stage != "created":
                runtime.hyper("newcontainer", startData(), tokens)
            if stage == "parked":
                shim.call(Command.CONNECT_SHIM, {"token": tokens[0]})
            if stage in ("running", "exited"):
                agent.ack()
                runtime.frames()
            if stage == "exited":
                agent.exit(3, 1)
                shim.frames()
            agent.commands()
            shim.send(Command.DISCONNECT_SHIM)
            self.assertTrue(shim.connection.closed, stage)
            self.assertEqual(world.registry.tokens, {})
            self.assertEqual(agent.stdin(), [(3, b"")] if stage == "running" else [])
            text = world.client().refused(Command.CONNECT_SHIM, {"token": tokens[0]})
            self.assertEqual(text, f"unknown token: {tokens[0]}")
            if stage == "queued":
                agent.ack()
                self.assertEqual(agent.commands(), [])
                _ping, start = runtime.frames()
                self.assertIn("shim disconnected", errorText(start))
            if stage in ("parked", "starting"):
                agent.ack()
                self.assertFalse(runtime.frame().error)
                self.assertEqual(agent.stdin(), [(3, b"")])
            if stage in ("parked", "starting", "running"):
                agent.output(3, b"dropped")
                agent.exit(3, 0)
            self.assertEqual(agent.vm.processes.byNumber, {}, stage)
            self.assertEqual(world.registry.context.budget.used, 0)

    def test_holderWithFrames(self) -> None:
        """A holder that has hung up: its frames are taken first, then the claim succeeds."""
        shim = self.world.process(self.agent, self.runtime, self.tokens[0])
        self.agent.commands()
        shim.connection.gone = True
        shim.connection.paused = True
        shim.connection.feed(command(Command.SIGNAL, {"signalNumber": 9}))
        shim.connection.paused = False
        again = self.world.client()
        again.call(Command.CONNECT_SHIM, {"token": self.tokens[0]})
        self.assertEqual(self.agent.command().number, ControlCode.KILLCONTAINER)
        self.assertTrue(shim.connection.closed)

    def test_holderDisconnects(self) -> None:
        """A holder whose last frame is DisconnectShim: the token is void, the claim fails."""
        shim = self.world.shim(self.tokens[0])
        shim.connection.paused = True
        shim.connection.feed(command(Command.DISCONNECT_SHIM))
        shim.connection.paused = False
        again = self.world.client()
        text = again.refused(Command.CONNECT_SHIM, {"token": self.tokens[0]})
        self.assertEqual(text, f"unknown token: {self.tokens[0]}")

    def test_gone(self) -> None:
        """EOF from a shim means gone: its process keeps its stdin open, its output waits."""
        shim = self.world.process(self.agent, self.runtime, self.tokens[0])
        shim.stream(Stream.STDIN, b"in")
        shim.connection.end(gone=False)
        self.assertTrue(shim.connection.closed)
        self.assertEqual(self.agent.stdin(), [(3, b"in")])
        again = self.world.shim(self.tokens[0])
        again.stream(Stream.STDIN, b"more")
        self.agent.io.drain()
        self.assertEqual(self.agent.stdin(), [(3, b"more")])

    def test_goneWhilePaused(self) -> None:
        """A shim that is not read, because its process takes no stdin, is noticed all the same."""
        world = World(Dialect.CC, sessionBuffer=4096)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        for _ in range(8):
            shim.stream(Stream.STDIN, bytes(4000))
        self.assertTrue(shim.connection.paused)
        shim.connection.end()
        self.assertTrue(shim.connection.closed)
        world.shim(tokens[0])


class ExcessTests(SynchronousTestCase):
    """P5: too many clients."""

    def test_refused(self) -> None:
        """The first command of a client too many is refused; then it is closed."""
        world = World(maxClients=1)
        world.client()
        text = world.client()
        self.assertIn(
            "no more than 1 at a time", text.refused(Command.ATTACH_VM, {"containerId": "x"})
        )
        self.assertTrue(text.connection.closed)
        self.assertEqual(len(world.logged("too-many-clients")), 1)
        self.assertEqual(len(world.registry.clients), 1)

    def test_silent(self) -> None:
        """One that says nothing is closed as well."""
        world = World(maxClients=1)
        first, second = world.client(), world.client()
        world.clock.advance(5)
        self.assertTrue(second.connection.closed)
        self.assertFalse(first.connection.closed)
        first.connection.end()
        third = world.client()
        third.refused(77)
        self.assertFalse(third.connection.closed)


class LogTests(SynchronousTestCase):
    """P18: what the log says of commands."""

    def test_failed(self) -> None:
        """A failed command is noted with its client's pid and uid, its name and its VM."""
        world = World()
        _, client, _ = world.register()
        client.refused(Command.HYPER, hyper("nonsense"))
        client.refused(99)
        one, two = world.logged("command-failed")
        self.assertIn("pid=1 uid=0", one["client"])
        self.assertEqual((one["command"], one["vm"], two["command"]), ("Hyper", "vm", "99"))

    def test_ofAShim(self) -> None:
        """P18: what a shim does names its VM and container, though a shim is attached to none."""
        world = World()
        agent, client, tokens = world.register(streams=1)
        shim = world.process(agent, client, tokens[0])
        shim.refused(Command.SIGNAL, {"signalNumber": 28})
        shim.stream(Stream.STDOUT, b"from a shim?")
        shim.stream(Stream.LOG, b'{"source": "shim", "level": "info", "msg": "hm"}')
        shim.connection.feed(HEADER.pack(3, 3, 0, 0, 0))
        events = [world.logged(name)[-1] for name in ("command", "command-failed", "ignored")]
        for event in (*events, *world.logged("log-entry"), *world.logged("bad-frame")):
            self.assertEqual((event["vm"], event["container"]), ("vm", "c1"), event)
            self.assertIn("pid=1 uid=0", event["client"])

    def test_wholeLife(self) -> None:
        """Every event of a process's life names its VM; its session's token is shortened."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        agent.exit(3, 1)
        shim.send(Command.DISCONNECT_SHIM)
        for event in ("shim-connected", "process-started", "process-exited", "shim-disconnected"):
            (entry,) = world.logged(event)
            self.assertEqual((entry["vm"], entry["session"]), ("vm", f"{tokens[0][:6]}..."))
        self.assertEqual(world.logged("process-started")[0]["container"], "c1")


class UnknownFrames(SynchronousTestCase):
    """P3: no bytes of a client can raise an error in the core."""

    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=40),
                st.builds(
                    encodeFrame,
                    st.sampled_from(FrameType),
                    st.integers(0, 9),
                    st.binary(max_size=20)
                    | st.sampled_from(
                        [
                            b"{}",
                            b'{"containerId":"vm"}',
                            b'{"containerId":"vm","numIOStreams":2}',
                            b'{"containerId":"a","ctlSerial":"/a","ioSerial":"/b"}',
                            b'{"token":"T1"}',
                            b'{"signalNumber":9}',
                            b'{"signalNumber":28,"rows":1,"columns":1}',
                            b'{"hyperName":"ping","data":[1]}',
                            b'{"hyperName":"newcontainer","tokens":["T1"],'
                            b'"data":{"id":"c","process":{"args":["a"]}}}',
                        ]
                    ),
                ),
            ),
            max_size=12,
        ),
        st.booleans(),
    )
    def test_anything(self, pieces: list[bytes], gone: bool) -> None:
        """Whatever a client sends, it is answered, or closed, and nothing of it is left."""
        world = World()
        tokens = iter(f"T{n}" for n in range(1, 10_000))
        world.registry.makeToken = lambda: next(tokens)
        agent, runtime, _ = world.register(streams=1)
        client = world.client()
        for piece in pieces:
            client.connection.feed(piece)
        client.connection.end(gone)
        client.connection.pump()
        while agent.commands():
            agent.ack()
        for _ in pieces or [b""]:  # each may be a registration that waits for its READY
            world.clock.advance(30)
            client.connection.pump()
        self.assertTrue(client.connection.closed)
        self.assertEqual(world.registry.clients, {runtime.client})
