"""
The control channel's queue: order, answers, deadlines, and what the agent is.
"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream
from ccproxy.wire.messages import Message, encodeControl

from ..memory import MemoryClient, MemoryVM, World, errorText, startData

WINSIZE = {"signalNumber": 28, "columns": 80, "rows": 24}


def names(messages: list[Message]) -> list[str]:
    """The names of commands that an agent got."""
    return [ControlCode(message.number).name.lower() for message in messages]


class AnswerTests(SynchronousTestCase):
    """P10: each command gets its own answer."""

    def setUp(self) -> None:
        self.world = World()
        self.agent, self.runtime, _ = self.world.register()

    def attached(self) -> MemoryClient:
        """Another client of the VM."""
        client = self.world.client()
        client.call(Command.ATTACH_VM, {"containerId": "vm"})
        return client

    def test_oneAtATime(self) -> None:
        """The next command is sent when the one before is answered, whoever it is for."""
        clients = [self.attached() for _ in range(3)]
        for number, client in enumerate(clients):
            client.hyper("readfile", number)
        for number, client in enumerate(clients):
            self.assertEqual(self.agent.command().body, str(number).encode())
            self.agent.ack(b"answer %d" % number)
            self.assertEqual(client.frame().payload, b"answer %d" % number)

    def test_clientLeaves(self) -> None:
        """A client that leaves before its answer shifts nobody's; its commands are still sent."""
        one, two = self.attached(), self.attached()
        one.hyper("ping", 1)
        one.hyper("ping", 2)
        two.hyper("ping", 3)
        one.connection.end()
        for number in (b"1", b"2", b"3"):
            self.assertEqual(self.agent.command().body, number)
            self.assertEqual(two.frames(), [])
            self.agent.ack(number)
        self.assertEqual(two.frame().payload, b"3")

    def test_errors(self) -> None:
        """An ERROR's text reaches the client, whatever its bytes; a NUL at its end does not."""
        for text, expected in ((b"no \xff such\0", "no \ufffd such"), (b"", "")):
            self.runtime.hyper("ping")
            self.agent.say(ControlCode.ERROR, text)
            self.assertEqual(
                errorText(self.runtime.frame()),
                f"ERROR received from VM agent, control msg received : {expected}",
            )

    def test_messagesThatAnswerNothing(self) -> None:
        """P19: NEXT, code 13 and events, readable or not, are nobody's answer."""
        event = msgspec.json.encode(
            {"container": "x", "process": "y", "event": "finished", "status": 1}
        )
        strays = [
            (ControlCode.NEXT, b"\0\0\0\x08"),
            (ControlCode.POD_FINISHED, b"\0\0\0\x01"),
            (ControlCode.PROCESS_ASYNC_EVENT, event),
            (ControlCode.SIGNALPROCESS, event),
            (ControlCode.PROCESS_ASYNC_EVENT, b"no event"),
            (ControlCode.PROCESS_ASYNC_EVENT, b'{"event": 5}'),
        ]
        for code, body in strays:
            self.agent.say(code, body)
        self.runtime.hyper("ping")
        for code, body in strays:
            self.agent.say(code, body)
        self.assertEqual(self.runtime.frames(), [])
        self.agent.ack(b"pong")
        self.assertEqual(self.runtime.frame().payload, b"pong")
        self.agent.ack(b"one too many")
        self.runtime.hyper("ping")
        self.assertEqual(self.runtime.frames(), [])
        self.agent.ack(b"again")
        self.assertEqual(self.runtime.frame().payload, b"again")

    def test_neitherAckNorError(self) -> None:
        """A message of any other code is taken for an answer, and is an error."""
        for code in (ControlCode.READY, ControlCode.STARTPOD, 77):
            self.runtime.hyper("ping")
            self.agent.say(code)
            self.assertIn(f"with a message of code {code}", errorText(self.runtime.frame()))
        self.runtime.hyper("ping")
        self.agent.ack(b"pong")
        self.assertEqual(self.runtime.frame().payload, b"pong")

    def test_anySize(self) -> None:
        """Messages both ways may be longer than the historic limit of 10240 bytes."""
        for size in (10_241, 500_000):
            self.runtime.hyper("writefile", "x" * size)
            sent = self.agent.command()
            self.assertEqual(sent.body, b'"%b"' % (b"x" * size))
            self.agent.ack(b"y" * size)
            self.assertEqual(self.runtime.frame().payload, b"y" * size)

    def test_longestMessages(self) -> None:
        """P2: the longest frame fits; a longer message from the agent ends the VM unread."""
        self.runtime.hyper("ping")
        self.agent.control.feed((9).to_bytes(4, "big") + ((1 << 20) + 1).to_bytes(4, "big"))
        self.assertIn("more than the limit of 1048576", errorText(self.runtime.frame()))
        self.assertTrue(self.agent.control.closed)

    def test_slowChannel(self) -> None:
        """A command that the channel takes bit by bit arrives whole."""
        self.agent.control.room = 5
        self.runtime.hyper("writefile", "x" * 50)
        for _ in range(10):
            self.agent.control.makeRoom(7)
        self.assertEqual(self.agent.command().body, b'"%b"' % (b"x" * 50))

    @given(st.lists(st.integers(1, 9), max_size=8))
    def test_anySplit(self, cuts: list[int]) -> None:
        """P1: the agent's messages mean the same, cut anywhere."""
        world = World()
        agent, runtime, _ = world.register()
        runtime.hyper("ping")
        runtime.hyper("ping")
        stream = encodeControl(14, b"\0\0\0\1") + encodeControl(9, b"a") + encodeControl(9, b"b")
        for cut in cuts:
            agent.control.feed(stream[:cut])
            stream = stream[cut:]
        agent.control.feed(stream)
        self.assertEqual([frame.payload for frame in runtime.frames()], [b"a", b"b"])

    def test_data(self) -> None:
        """Data goes as its bytes stand; absent data is an empty body."""
        payload = b'{"hyperName":"startpod","data":{ "b":1,\t"a": [1.0, null] } }'
        self.runtime.send(Command.HYPER, payload)
        self.assertEqual(self.agent.command().body, b'{ "b":1,\t"a": [1.0, null] }')
        self.agent.ack()
        self.runtime.send(Command.HYPER, b'{"hyperName":"destroypod","tokens":null}')
        self.assertEqual(self.agent.command().body, b"")


class OrderTests(SynchronousTestCase):
    """What may go before what."""

    def setUp(self) -> None:
        self.world = World(Dialect.CC)
        self.agent, self.runtime, tokens = self.world.register(streams=3)
        self.shims = [
            self.world.process(self.agent, self.runtime, token, container=f"c{number}")
            for number, token in enumerate(tokens)
        ]
        self.agent.commands()

    def sent(self) -> list[str]:
        """The names of all commands in the order in which they come, each answered."""
        found = []
        while messages := self.agent.commands():
            found += names(messages)
            self.agent.ack()
        return found

    def test_urgent(self) -> None:
        """Signals and winsize go before waiting commands of other connections, in order."""
        for _ in range(3):
            self.runtime.hyper("ping")
        self.shims[0].send(Command.SIGNAL, WINSIZE)
        self.shims[1].send(Command.SIGNAL, {"signalNumber": 2})
        self.assertEqual(self.sent(), ["ping", "winsize", "killcontainer", "ping", "ping"])

    def test_sameClientKeepsOrder(self) -> None:
        """A signal stays behind its own client's commands, but before those behind them."""
        shim = self.shims[0]
        shim.call(Command.ATTACH_VM, {"containerId": "vm"})
        self.runtime.hyper("ping")
        self.runtime.hyper("ping")
        shim.hyper("version")
        self.runtime.hyper("readfile")
        shim.send(Command.SIGNAL, {"signalNumber": 2})
        shim.send(Command.SIGNAL, WINSIZE)
        self.assertEqual(
            self.sent(), ["ping", "ping", "version", "killcontainer", "winsize", "readfile"]
        )

    def test_notHeldUpByAnothers(self) -> None:
        """A signal that must wait for its own client's commands holds up no other signal."""
        self.runtime.hyper("ping")
        self.runtime.hyper("ping")
        slow = self.shims[0]
        slow.call(Command.ATTACH_VM, {"containerId": "vm"})
        slow.hyper("readfile")
        slow.send(Command.SIGNAL, {"signalNumber": 2})
        self.shims[1].send(Command.SIGNAL, WINSIZE)
        self.assertEqual(self.sent(), ["ping", "winsize", "ping", "readfile", "killcontainer"])

    def test_signalOfTheDead(self) -> None:
        """A signal whose process has ended before it could be sent goes to nobody."""
        self.runtime.hyper("ping")
        self.shims[0].send(Command.SIGNAL, {"signalNumber": 15})
        self.agent.exit(3, 0)
        self.assertEqual(self.sent(), ["ping"])
        self.assertEqual(errorText(self.shims[0].frames()[-1]), "process has exited")

    def test_signalThenDisconnect(self) -> None:
        """A signal is carried out though its shim disconnects behind it, and is answered."""
        self.runtime.hyper("ping")
        shim = self.shims[0]
        shim.send(Command.SIGNAL, {"signalNumber": 15})
        shim.send(Command.DISCONNECT_SHIM)
        self.assertFalse(shim.connection.closed)
        self.assertEqual(self.sent(), ["ping", "killcontainer"])
        self.assertFalse(shim.frame().error)
        self.assertTrue(shim.connection.closed)

    def test_signalThenGone(self) -> None:
        """The monitor of a killed shim sends Signal 9 and is gone: it is carried out."""
        self.runtime.hyper("ping")
        self.shims[0].send(Command.SIGNAL, {"signalNumber": 9})
        self.shims[0].connection.end()
        self.assertEqual(self.sent(), ["ping", "killcontainer"])

    def test_limit(self) -> None:
        """P9: so many commands wait and no more."""
        world = World(maxCommands=2)
        agent, runtime, _ = world.register("small")
        for _ in range(3):
            runtime.hyper("ping")
        runtime.hyper("ping")
        self.assertEqual(runtime.frames(), [])
        agent.ack()
        agent.ack()
        agent.ack()
        frames = runtime.frames()
        self.assertEqual([frame.error for frame in frames], [False, False, False, True])
        self.assertIn("2 control commands are waiting", errorText(frames[-1]))


class DeadlineTests(SynchronousTestCase):
    """P11: deadlines of commands."""

    def setUp(self) -> None:
        self.world = World()
        self.agent, self.runtime, self.tokens = self.world.register(streams=1)

    def client(self) -> MemoryClient:
        """Another attached client."""
        client = self.world.client()
        client.call(Command.ATTACH_VM, {"containerId": "vm"})
        return client

    def test_inFlight(self) -> None:
        """The error comes in time, the late answer is discarded, the next command goes."""
        other = self.client()
        self.runtime.hyper("ping", 1)
        self.world.clock.advance(10)
        other.hyper("ping", 2)
        self.world.clock.advance(589)
        self.assertEqual(self.runtime.frames(), [])
        self.world.clock.advance(1)
        self.assertEqual(
            errorText(self.runtime.frame()), "vm: agent has not answered ping within 600 s"
        )
        self.assertEqual(other.frames(), [])
        self.agent.commands()
        self.agent.ack(b"late")
        self.assertEqual(self.runtime.frames(), [])
        self.assertEqual(self.agent.command().body, b"2")
        self.agent.ack(b"two")
        self.assertEqual(other.frame().payload, b"two")

    def test_behind(self) -> None:
        """Those behind it are told at their own deadline what they waited for, and since when."""
        one, two = self.client(), self.client()
        self.runtime.hyper("ping")
        self.world.clock.advance(100)
        one.hyper("version")
        self.world.clock.advance(100)
        two.hyper("version")
        self.world.clock.advance(500)
        # The clock of day began at 1,000,000 s after the epoch.
        text = "vm: agent has not answered ping since 1970-01-12T13:46:40Z"
        self.assertEqual(errorText(one.frame()), text)
        self.assertEqual(two.frames(), [])
        self.world.clock.advance(100)
        self.assertEqual(errorText(two.frame()), text)
        self.assertEqual(len(self.agent.commands()), 1)

    def test_lateStart(self) -> None:
        """A late ACK of a start starts the session all the same."""
        shim = self.world.shim(self.tokens[0])
        shim.stream(Stream.STDIN, b"typed")
        self.runtime.hyper("newcontainer", startData(), self.tokens)
        self.world.clock.advance(600)
        self.assertIn("has not answered newcontainer", errorText(self.runtime.frame()))
        self.assertEqual(self.agent.stdin(), [])
        self.agent.ack()
        self.assertEqual(self.agent.stdin(), [(3, b"typed")])
        self.assertEqual(self.runtime.frames(), [])

    def test_lateRefusal(self) -> None:
        """A late ERROR to a start leaves the token for another try."""
        self.world.shim(self.tokens[0])
        self.runtime.hyper("newcontainer", startData(), self.tokens)
        self.world.clock.advance(600)
        self.runtime.frame()
        self.agent.commands()
        self.agent.say(ControlCode.ERROR)
        self.runtime.hyper("newcontainer", startData(), self.tokens)
        self.agent.command()

    def test_none(self) -> None:
        """A deadline of 0 is none; what is slow is reported all the same."""
        world = World(commandTimeout=0.0)
        agent, runtime, _ = world.register()
        runtime.hyper("ping")
        world.clock.advance(10_000)
        self.assertEqual(runtime.frames(), [])
        self.assertEqual(len(world.logged("slow-answer")), 1)
        agent.ack()
        runtime.frame()

    def test_warning(self) -> None:
        """Each command that is not answered for 30 s is reported once, when it is."""
        self.runtime.hyper("ping")
        self.world.clock.pump([10.0] * 5)
        (entry,) = self.world.logged("slow-answer")
        self.assertEqual((entry["command"], entry["seconds"], entry["vm"]), ("ping", 30.0, "vm"))
        self.agent.ack()
        self.runtime.hyper("version")
        self.world.clock.pump([10.0] * 2)
        self.assertEqual(len(self.world.logged("slow-answer")), 1)
        self.world.clock.pump([10.0] * 2)
        self.assertEqual(self.world.logged("slow-answer")[1]["command"], "version")

    def test_warningOfTheNext(self) -> None:
        """The time counts from when a command was sent, not from its arrival."""
        self.runtime.hyper("ping")
        self.runtime.hyper("version")
        self.world.clock.pump([5.0] * 8)
        self.agent.ack()
        self.world.clock.pump([5.0] * 5)
        self.assertEqual(len(self.world.logged("slow-answer")), 1)
        self.world.clock.pump([5.0] * 2)
        self.assertEqual(len(self.world.logged("slow-answer")), 2)

    def test_nothingIsLeft(self) -> None:
        """P13: when all is answered and the VM is gone, no wait is left."""
        self.runtime.hyper("ping")
        self.agent.ack()
        self.runtime.hyper("ping")
        self.agent.ack()
        self.runtime.frames()
        self.runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.agent.control.end()
        self.agent.io.end()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])


class DialectTests(SynchronousTestCase):
    """P15: the agent's dialect is learnt from what it says."""

    def learn(self, world: World, agent: MemoryVM, runtime: MemoryClient) -> None:
        """The agent answers a command without a NEXT."""
        runtime.hyper("startpod", {})
        agent.commands()
        agent.ack()
        runtime.frame()

    def test_next(self) -> None:
        """A NEXT is any hyperstart's, at any time, for good."""
        world = World()
        agent, runtime, _ = world.register()
        self.learn(world, agent, runtime)
        self.assertIs(agent.vm.dialect, Dialect.CC)
        agent.say(ControlCode.NEXT, b"\0\0\0\x08")
        self.assertIs(agent.vm.dialect, Dialect.HYPERSTART)
        self.learn(world, agent, runtime)
        self.assertIs(agent.vm.dialect, Dialect.HYPERSTART)

    def test_unknownBeforeAnAnswer(self) -> None:
        """READY and what came before it say nothing."""
        world = World()
        agent, _, _ = world.register()
        self.assertIs(agent.vm.dialect, Dialect.UNKNOWN)
        agent.ack()
        self.assertIs(agent.vm.dialect, Dialect.UNKNOWN)

    def test_versionBeforeTheFirstStart(self) -> None:
        """A hyperstart is asked version once, before its first start; the start follows."""
        for api, dialect in ((4242, Dialect.HYPERSTART0), (4244, Dialect.HYPERSTART1)):
            world = World()
            agent, runtime, _ = world.register()
            agent.say(ControlCode.NEXT, b"\0\0\0\x08")
            runtime.hyper("newcontainer", startData())
            runtime.hyper("execcmd", startData("execcmd"))
            self.assertEqual(names(agent.commands()), ["version"])
            agent.ack(api.to_bytes(4, "big"))
            self.assertIs(agent.vm.dialect, dialect)
            self.assertEqual(runtime.frames(), [])
            self.assertEqual(names(agent.commands()), ["newcontainer"])
            agent.ack()
            self.assertEqual(names(agent.commands()), ["execcmd"])
            agent.say(ControlCode.NEXT, b"\0\0\0\x08")
            self.assertIs(agent.vm.dialect, dialect)

    def test_versionWithoutResult(self) -> None:
        """A hyperstart that does not tell its version is not asked again; the start follows."""
        for code, body in (
            (ControlCode.ERROR, b""),
            (ControlCode.ACK, b"x"),
            (ControlCode.ACK, b"longer"),
        ):
            world = World()
            agent, runtime, _ = world.register()
            agent.say(ControlCode.NEXT)
            for _ in range(2):
                runtime.hyper("newcontainer", startData())
            agent.commands()
            agent.say(code, body)
            self.assertEqual(names(agent.commands()), ["newcontainer"])
            agent.ack()
            self.assertEqual(names(agent.commands()), ["newcontainer"])
            self.assertIs(agent.vm.dialect, Dialect.HYPERSTART)

    def test_versionOfAClient(self) -> None:
        """The answer to a client's version counts as much, and the last one counts."""
        world = World()
        agent, runtime, _ = world.register()
        agent.say(ControlCode.NEXT)
        for api, dialect in ((4242, Dialect.HYPERSTART0), (4244, Dialect.HYPERSTART1)):
            runtime.hyper("version")
            agent.ack(api.to_bytes(4, "big"))
            self.assertEqual(runtime.frame().payload, api.to_bytes(4, "big"))
            self.assertIs(agent.vm.dialect, dialect)
        agent.commands()
        runtime.hyper("newcontainer", startData())
        self.assertEqual(names(agent.commands()), ["newcontainer"])

    def test_event(self) -> None:
        """An event is hyperstart 1.x's."""
        world = World()
        agent, _, _ = world.register()
        agent.say(ControlCode.NEXT)
        agent.say(23, b'{"container":"a","process":"b","event":"finished","status":0}')
        self.assertIs(agent.vm.dialect, Dialect.HYPERSTART1)

    def test_configured(self) -> None:
        """A configured dialect wins over all that the agent shows."""
        world = World(Dialect.HYPERSTART0)
        agent, runtime, _ = world.register()
        self.learn(world, agent, runtime)
        agent.say(ControlCode.NEXT)
        agent.say(23, b'{"container":"a","process":"b","event":"finished","status":0}')
        runtime.hyper("version")
        agent.ack((4244).to_bytes(4, "big"))
        self.assertIs(agent.vm.dialect, Dialect.HYPERSTART0)

    def test_lackedCommands(self) -> None:
        """A command that the dialect lacks is an error before anything is sent."""
        for dialect, name in (
            (Dialect.CC, "signalprocess"),
            (Dialect.HYPERSTART0, "deleteinterface"),
            (Dialect.HYPERSTART1, "pscontainer"),
        ):
            world = World(dialect)
            agent, runtime, _ = world.register()
            text = runtime.refused(Command.HYPER, {"hyperName": name})
            self.assertIn("not supported by this agent", text)
            text = runtime.refused(Command.HYPER, {"hyperName": "reboot"})
            self.assertIn("unknown hyperName: 'reboot'", text)
            self.assertEqual(agent.commands(), [])

    def test_lackedCommandBehindAnother(self) -> None:
        """So is one whose agent shows its dialect while the command waits."""
        world = World()
        agent, runtime, _ = world.register()
        runtime.hyper("startpod", {})
        runtime.hyper("pscontainer", {})
        agent.commands()
        agent.say(ControlCode.NEXT)
        agent.ack()
        self.assertEqual(agent.commands(), [])
        self.assertIn("not supported", errorText(runtime.frames()[-1]))

    def test_hyperstart0Keys(self) -> None:
        """A start that hyperstart 0.x would misread is refused, and its token can be used."""
        world = World(Dialect.HYPERSTART0)
        agent, runtime, tokens = world.register(streams=1)
        world.shim(tokens[0])
        data = {"id": "c", "process": {"noNewPrivileges": True, "args": ["a"]}}
        runtime.hyper("newcontainer", data, tokens)
        self.assertIn("process.noNewPrivileges", errorText(runtime.frame()))
        self.assertEqual(agent.commands(), [])
        runtime.hyper("newcontainer", startData(), tokens)
        agent.command()


class DestroyPodTests(SynchronousTestCase):
    """A hyperstart that is told to power its VM off."""

    def setUp(self) -> None:
        self.world = World()
        self.agent, self.runtime, _ = self.world.register()
        self.agent.say(ControlCode.NEXT)

    def test_success(self) -> None:
        """Nothing is sent behind it, and the end of both channels is its success."""
        self.runtime.hyper("destroypod")
        self.runtime.hyper("newcontainer", startData())
        self.world.clock.advance(300)
        self.assertEqual(names(self.agent.commands()), ["destroypod"])
        self.agent.io.end()
        self.assertEqual(self.runtime.frames(), [])
        self.agent.control.end()
        done, behind = self.runtime.frames()
        self.assertEqual((done.error, done.payload), (False, b""))
        self.assertIn("VM is lost", errorText(behind))

    def test_oneChannelOnly(self) -> None:
        """The end of one channel alone is a failure."""
        self.runtime.hyper("destroypod")
        self.agent.control.end()
        self.assertEqual(self.runtime.frames(), [])
        self.world.clock.advance(3)
        self.assertIn("VM is lost", errorText(self.runtime.frame()))
        self.assertTrue(self.agent.io.closed)

    def test_answered(self) -> None:
        """An answer is an answer."""
        self.runtime.hyper("destroypod")
        self.agent.ack()
        self.assertFalse(self.runtime.frame().error)

    def test_afterUnregister(self) -> None:
        """UnregisterVM does not change what its end means."""
        self.runtime.hyper("destroypod")
        other = self.world.client()
        other.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        self.agent.control.end()
        self.agent.io.end()
        self.assertFalse(self.runtime.frame().error)

    def test_cc(self) -> None:
        """A cc agent lives on after destroypod: the end of its channels is a loss."""
        world = World(Dialect.CC)
        agent, runtime, _ = world.register()
        runtime.hyper("destroypod")
        agent.control.end()
        agent.io.end()
        self.assertIn("VM is lost", errorText(runtime.frame()))
