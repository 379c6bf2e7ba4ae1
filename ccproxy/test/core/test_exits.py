"""
Exit statuses: after all output, in every dialect, and once (promise P6).
"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.states import SessionState
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream
from ccproxy.wire.messages import encodeIO

from ..memory import MemoryClient, World, errorText, startData

INLINE = (Dialect.CC, Dialect.HYPERSTART0)


def event(process: str, status: int = 0, container: str = "c1", **more: object) -> bytes:
    """The body of an event."""
    fields = {"container": container, "process": process, "event": "finished", "status": status}
    return msgspec.json.encode({**fields, **more})


#: Any JSON value, and an absent one.
STATUSES = st.one_of(
    st.integers().map(lambda number: b"%d" % number),
    st.integers(0, 300).map(lambda number: b"%d" % number),
    st.recursive(
        st.none() | st.booleans() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
        lambda children: st.lists(children) | st.dictionaries(st.text(), children),
        max_leaves=3,
    ).map(msgspec.json.encode),
    st.sampled_from(
        [b"", b"256", b"-1", b"1.0", b"0.0", b"0e0", b"true", b"1e400", b"9" * 5000, b'"\xff"']
    ),
)


def payloads(client: MemoryClient) -> list[bytes]:
    """The payloads of the frames that came."""
    return [frame.payload for frame in client.frames()]


class InlineTests(SynchronousTestCase):
    """cc and hyperstart 0.x: an empty message, then one byte, on the stdin/stdout number."""

    def test_outputThatLooksLikeIt(self) -> None:
        """One byte alone is output; so it is on the stderr number; an empty message is no exit."""
        for dialect in INLINE:
            world = World(dialect)
            agent, runtime, tokens = world.register(streams=1)
            shim = world.process(agent, runtime, tokens[0])
            agent.output(3, b"a")
            agent.output(4)
            agent.output(4, b"b")
            agent.output(3)
            agent.output(3, b"more")
            agent.output(3, b"c")
            self.assertEqual(payloads(shim), [b"a", b"b", b"more", b"c"])
            agent.output(3)
            agent.output(4, b"d")
            agent.output(3, b"\x07")
            frames = shim.frames()
            self.assertEqual([frame.type for frame in frames], [2, 3])
            self.assertEqual(frames[1].payload, b"\x07")
            agent.output(3, b"nobody's")
            self.assertEqual(shim.frames(), [])

    @given(st.lists(st.integers(1, 30), max_size=20))
    def test_anySplit(self, cuts: list[int]) -> None:
        """P1: the end means the same, cut anywhere."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        stream = b"".join(
            encodeIO(number, body)
            for number, body in ((3, b"x"), (4, b"yy"), (3, b""), (4, b"z"), (3, b"\x05"))
        )
        for cut in cuts:
            agent.io.feed(stream[:cut])
            stream = stream[cut:]
        agent.io.feed(stream)
        self.assertEqual(payloads(shim), [b"x", b"yy", b"z", b"\x05"])

    def test_once(self) -> None:
        """A number whose process has ended is nobody's, until a start is sent with it."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=2)
        shim = world.process(agent, runtime, tokens[0])
        agent.exit(3, 1)
        agent.exit(3, 2)
        agent.output(5, b"too early")
        agent.exit(5, 9)
        self.assertEqual(payloads(shim), [b"\x01"])
        other = world.process(agent, runtime, tokens[1], container="c2")
        self.assertEqual(other.frames(), [])

    def test_overtakesTheAnswer(self) -> None:
        """Without a token too, the end may come before the start's answer."""
        world = World(Dialect.CC)
        agent, runtime, _ = world.register()
        runtime.hyper("newcontainer", startData())
        agent.exit(1, 0)
        agent.ack()
        self.assertFalse(runtime.frame().error)
        self.assertEqual(agent.vm.processes.byNumber, {})
        runtime.hyper("newcontainer", startData())
        agent.exit(1, 0)
        agent.say(ControlCode.ERROR, b"no")
        self.assertEqual(errorText(runtime.frame())[-4:], ": no")
        self.assertEqual((agent.vm.processes.byNumber, agent.vm.processes.numbers), ({}, {}))

    def test_overtakesTheAnswerOfTheReleased(self) -> None:
        """So it may when the shim has disconnected meanwhile."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        runtime.hyper("newcontainer", startData(), tokens)
        shim.send(Command.DISCONNECT_SHIM)
        agent.exit(3, 0)
        agent.ack()
        self.assertFalse(runtime.frame().error)
        self.assertEqual(agent.vm.processes.byNumber, {})

    def test_signalsHeldForAProcessThatHasEnded(self) -> None:
        """A signal held for a process that ends at once is not sent."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.shim(tokens[0])
        shim.send(Command.SIGNAL, {"signalNumber": 2})
        runtime.hyper("newcontainer", startData(), tokens)
        agent.exit(3, 4)
        agent.commands()
        agent.ack()
        self.assertEqual(agent.commands(), [])
        refused, exited = shim.frames()
        self.assertEqual(errorText(refused), "process has exited")
        self.assertEqual(exited.payload, b"\x04")
        self.assertEqual(shim.refused(Command.SIGNAL, {"signalNumber": 2}), "process has exited")


class EventTests(SynchronousTestCase):
    """hyperstart 1.x: an empty message, and an event that may come before it."""

    def setUp(self) -> None:
        self.world = World(Dialect.HYPERSTART1)
        self.agent, self.runtime, self.tokens = self.world.register(streams=2)
        self.shim = self.world.process(self.agent, self.runtime, self.tokens[0])

    def event(self, *arguments: object, **more: object) -> None:
        """An event comes."""
        self.agent.say(ControlCode.PROCESS_ASYNC_EVENT, event(*arguments, **more))  # type: ignore[arg-type]

    def test_eventFirst(self) -> None:
        """The status waits for the end of the output."""
        self.event("3", 6)
        self.agent.output(3, b"last words")
        self.assertEqual(payloads(self.shim), [b"last words"])
        self.agent.output(3)
        self.assertEqual(payloads(self.shim), [b"\x06"])

    def test_eventLast(self) -> None:
        """An end of the output alone is no exit; one byte after it is no status."""
        self.agent.output(3)
        self.agent.output(3, b"1")
        self.agent.output(3)
        self.assertEqual(payloads(self.shim), [b"1"])
        self.event("3", 6)
        self.assertEqual(payloads(self.shim), [b"\x06"])

    @given(STATUSES)
    def test_noStatus(self, status: bytes) -> None:
        """A status other than an integer from 0 to 255 becomes 255 and ends the wait."""
        for process in (b'"3"', b"null", b'"(null)"'):
            self.setUp()
            told = b"" if status == b"" else b',"status":' + status
            body = b'{"container":"c1","process":%s,"event":"finished"%s}' % (process, told)
            if process != b'"3"':
                (session,) = (s for s in self.agent.vm.processes.sessions if s.container)
                self.agent.vm.processes.end(session)
                session.vm.processes.begin(session, "c1", None)
            self.agent.output(3, b"out")
            self.agent.say(ControlCode.PROCESS_ASYNC_EVENT, body)
            self.agent.output(3)
            right = status.isdigit() and int(status[:9]) <= 255
            self.assertEqual(payloads(self.shim), [b"out", bytes([int(status) if right else 255])])
            self.assertEqual(len(self.world.logged("bad-status")), not right)

    def test_overdue(self) -> None:
        """The end of the output is waited for so long, and no longer."""
        self.event("3", 6)
        self.world.clock.advance(4.9)
        self.assertEqual(self.shim.frames(), [])
        self.world.clock.advance(0.2)
        self.assertEqual(payloads(self.shim), [b"\x06"])

    def test_countedWhileRead(self) -> None:
        """The time counts only while the I/O channel is read."""
        world = World(Dialect.HYPERSTART1, sessionBuffer=4096, absentTimeout=1000.0)
        agent, runtime, tokens = world.register(streams=2)
        shim = world.process(agent, runtime, tokens[0])
        full = world.process(agent, runtime, tokens[1], container="c2")
        full.connection.room = 0
        for _ in range(5):
            agent.output(5, bytes(1024))
        agent.output(3, b"behind it")
        self.assertTrue(agent.io.paused)
        agent.say(23, event("3", 6))
        for _ in range(3):
            world.clock.advance(4)
            self.assertEqual(shim.frames(), [])
        # The channel is free when the wait would be over, and its data comes a turn later.
        world.clock.advance(2.9)
        full.connection.makeRoom()
        world.clock.advance(0.2)
        self.assertEqual(shim.frames(), [])
        agent.io.pump()
        agent.output(3)
        self.assertEqual(payloads(shim), [b"behind it", b"\x06"])

    def test_twice(self) -> None:
        """A second event for the same process is dropped."""
        self.event("3", 6)
        self.event("3", 7)
        self.world.clock.advance(20)
        self.event("3", 8)
        self.assertEqual(payloads(self.shim), [b"\x06"])

    def test_beforeTheAnswer(self) -> None:
        """An event that overtakes the start's answer still waits for the output."""
        shim = self.world.shim(self.tokens[1])
        self.runtime.hyper("execcmd", startData("execcmd"), [self.tokens[1]])
        self.event("5", 3)
        self.world.clock.advance(1)
        self.agent.ack()
        self.assertFalse(self.runtime.frame().error)
        self.assertEqual(shim.frames(), [])
        self.agent.output(5, b"out")
        self.agent.output(5)
        self.assertEqual(payloads(shim), [b"out", b"\x03"])

    def test_allBeforeTheAnswer(self) -> None:
        """So may the end of the output, and the time for it."""
        for late in (False, True):
            world = World(Dialect.HYPERSTART1)
            agent, runtime, tokens = world.register(streams=1)
            shim = world.shim(tokens[0])
            runtime.hyper("newcontainer", startData(), tokens)
            agent.say(23, event("3", 3))
            if late:
                world.clock.advance(6)
            else:
                agent.output(3)
            self.assertEqual(shim.frames(), [])
            agent.ack()
            self.assertEqual(payloads(shim), [b"\x03"])

    def test_refusedAfterEvent(self) -> None:
        """An ERROR drops the status, and its wait does not cut the next try's output short."""
        shim = self.world.shim(self.tokens[1])
        self.runtime.hyper("execcmd", startData("execcmd"), [self.tokens[1]])
        self.event("5", 3)
        self.agent.say(ControlCode.ERROR)
        self.runtime.frame()
        self.world.clock.advance(4)
        self.runtime.hyper("execcmd", startData("execcmd"), [self.tokens[1]])
        self.agent.ack()
        self.event("5", 4)
        self.world.clock.advance(2)
        self.assertEqual(shim.frames(), [])
        self.agent.output(5)
        self.assertEqual(payloads(shim), [b"\x04"])

    def test_thenVMLost(self) -> None:
        """A status that waited for the output is the one that is told when the VM is lost."""
        self.event("3", 6)
        self.shim.connection.end()
        self.agent.output(3, b"kept")
        self.agent.io.end()
        self.agent.control.end()
        self.world.clock.advance(10)
        shim = self.world.client()
        shim.send(Command.CONNECT_SHIM, {"token": self.tokens[0]})
        self.assertEqual(payloads(shim), [b"", b"kept", b"\x06"])

    def test_detached(self) -> None:
        """A process without a shim ends as well."""
        self.shim.send(Command.DISCONNECT_SHIM)
        (session,) = [session for session in self.agent.vm.processes.sessions if session.stdio == 3]
        self.event("3", 6)
        self.agent.output(3)
        self.assertIs(session.state, SessionState.ENDED)
        self.assertNotIn(session, self.agent.vm.processes.sessions)

    def test_ofOthers(self) -> None:
        """An event belongs to the live process of its container and id, and to no other."""
        self.event("4", 1)
        self.event("3", 1, container="c2")
        self.event("init", 1)
        self.event("(null)", 1)
        self.agent.output(3)
        self.assertEqual(self.shim.frames(), [])
        self.event("3", 1, event="started")
        self.assertEqual(self.shim.frames(), [])
        self.assertEqual(len(self.world.logged("stray-event")), 5)

    def test_names(self) -> None:
        """A client's own id is used; a live one cannot be used twice, a dead one can."""
        data = startData("execcmd", id="mine")
        self.runtime.hyper("execcmd", data)
        self.agent.ack()
        self.runtime.frame()
        payload = {"hyperName": "execcmd", "data": data}
        text = self.runtime.refused(Command.HYPER, payload)
        self.assertIn("process mine of container c1 is running", text)
        self.event("mine", 0)
        self.agent.output(1)
        self.runtime.hyper("execcmd", data)
        self.agent.ack()
        self.assertFalse(self.runtime.frame().error)

    def test_statusIsAByte(self) -> None:
        """Whatever number the agent says, a byte of it counts."""
        self.event("3", -1)
        self.agent.output(3)
        self.assertEqual(payloads(self.shim), [b"\xff"])


class UndecidedTests(SynchronousTestCase):
    """A hyperstart that turned out to be a 1.x only after a start."""

    def test_processesWithoutId(self) -> None:
        """The container's first process is C{init} or C{(null)}; an execcmd is C{(null)}."""
        for name in ("init", "(null)"):
            world = World()
            agent, runtime, tokens = world.register(streams=2)
            first = world.process(agent, runtime, tokens[0])
            self.assertNotIn(b'"id":"3"', agent.command().body)
            agent.say(ControlCode.NEXT)
            agent.say(23, event(name, 5))
            agent.output(3)
            self.assertIs(agent.vm.dialect, Dialect.HYPERSTART1)
            self.assertEqual(payloads(first), [b"\x05"])

    def test_firstAndExec(self) -> None:
        """An execcmd without an id does not hide the first process of its container."""
        world = World()
        agent, runtime, tokens = world.register(streams=2)
        agent.say(ControlCode.NEXT)
        first = world.shim(tokens[0])
        runtime.hyper("newcontainer", startData(), [tokens[0]])
        agent.say(ControlCode.ERROR)
        agent.ack()
        self.assertFalse(runtime.frame().error)
        second = world.process(agent, runtime, tokens[1], kind="execcmd")
        agent.commands()
        agent.say(23, event("init", 5))
        agent.output(3)
        self.assertEqual(payloads(first), [b"\x05"])
        self.assertEqual(second.refused(Command.SIGNAL, {"signalNumber": 2}), "process has no id")
        agent.say(23, event("(null)", 6))
        agent.output(5)
        self.assertEqual(payloads(second), [b"\x06"])

    def test_winsizeOfTheFirst(self) -> None:
        """The first process without an id is C{init} to hyperstart 1.x."""
        world = World()
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0], terminal=True)
        agent.commands()
        agent.say(ControlCode.NEXT)
        runtime.hyper("version")
        agent.commands()
        agent.ack((4244).to_bytes(4, "big"))
        shim.send(Command.SIGNAL, {"signalNumber": 28, "columns": 9, "rows": 8})
        self.assertEqual(
            msgspec.json.decode(agent.command().body),
            {"container": "c1", "process": "init", "row": 8, "column": 9},
        )


class DeliveryTests(SynchronousTestCase):
    """Who gets the status, and when."""

    def test_untilAcknowledged(self) -> None:
        """P7: while the VM lives, each shim that claims the token is told, once each."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        agent.exit(3, 3)
        for _ in range(3):
            self.assertEqual(payloads(shim)[-1:], [b"\x03"])
            shim.connection.end()
            shim = world.client()
            shim.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        self.assertEqual(payloads(shim), [b"", b"\x03"])
        self.assertEqual(world.registry.context.budget.used, 0)

    def test_notTwiceToOne(self) -> None:
        """A status that a shim has not read is kept, and not doubled, when the shim goes."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=1)
        shim = world.process(agent, runtime, tokens[0])
        shim.connection.room = 0
        agent.output(3, b"out")
        agent.exit(3, 3)
        shim.connection.end()
        again = world.client()
        again.connection.room = 12
        again.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        again.connection.end()
        third = world.client()
        third.send(Command.CONNECT_SHIM, {"token": tokens[0]})
        self.assertEqual(payloads(third), [b"", b"out", b"\x03"])

    def test_streamsToTheRightShims(self) -> None:
        """P6: what many processes write at once reaches each one's shim, in order."""
        world = World(Dialect.CC)
        agent, runtime, tokens = world.register(streams=3)
        shims = [world.process(agent, runtime, token, container=token[:5]) for token in tokens]
        chunk = b"".join(
            encodeIO(3 + 2 * (n % 3) + n % 2, b"%d" % n * (n % 7 + 1)) for n in range(120)
        )
        agent.io.feed(chunk)
        for number, shim in enumerate(shims):
            expected = [
                (int(Stream.STDERR if n % 2 else Stream.STDOUT), b"%d" % n * (n % 7 + 1))
                for n in range(number, 120, 3)
            ]
            self.assertEqual([(frame.opcode, frame.payload) for frame in shim.frames()], expected)
