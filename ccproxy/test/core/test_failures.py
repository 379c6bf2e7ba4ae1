"""
An unexpected exception at any step of the core: promise P22.

Each scenario runs once for each place in it where the core calls one of its own functions, in each
distinct situation. There an exception is raised, once. Whatever the place: each command has its
response, or its connection is closed and the log has the exception; nothing is left in the end; and
the other VM goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import attrs
import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core import registry as _registry
from ccproxy.core.client import Client
from ccproxy.core.consistency import check
from ccproxy.core.context import Context, run, turn
from ccproxy.core.registry import Registry
from ccproxy.core.writing import write
from ccproxy.wire.codes import Command, ControlCode, Dialect, Stream
from ccproxy.wire.codes import FrameType as Type
from ccproxy.wire.frames import Frame

from ..memory import (
    MemoryClient,
    MemoryConnection,
    MemoryVM,
    World,
    errorText,
    registration,
    startData,
)
from .test_snapshot import busyWorld

_CORE = _registry.__file__.rsplit("/", 1)[0]
#: The guard itself cannot be guarded.
_GUARDS = {
    function.__code__
    for function in (
        run, turn(Client.close), Context.timed, Context.attempt, Context.failed, Context.repair,
        Registry._repairs,
    )
}  # fmt: skip
#: How much of the stack tells situations apart: the function, and three callers with their lines.
_DEPTH = 7
_SIGKILL, _SIGWINCH = 9, 28


class Surprise(Exception):
    """An unexpected exception."""


class Surprising:
    """
    Raises L{Surprise} at one of the calls between functions of the core.

    @ivar calls: where each call came from.
    """

    def __init__(self, at: int = -1) -> None:
        self.calls: list[int] = []
        self._at = at

    def __enter__(self) -> None:
        sys.setprofile(self._profile)

    def __exit__(self, *reason: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(_CORE) or code in _GUARDS:
            return
        place: list[object] = [code]
        outer = frame.f_back
        while outer is not None and len(place) < _DEPTH:
            if outer.f_code.co_filename.startswith(_CORE):
                place += (outer.f_code, outer.f_lineno)
            outer = outer.f_back
        self.calls.append(hash(tuple(place)))
        if len(self.calls) - 1 == self._at:
            raise Surprise(code.co_qualname)


class GuardedConnection(MemoryConnection):
    """A connection whose transport does as the poller's: an exception ends it, and is logged."""

    registry: Registry

    def pump(self) -> None:
        try:
            super().pump()
        except Exception:
            self._failed()

    def drain(self) -> None:
        try:
            super().drain()
        except Exception:
            self._failed()

    def makeRoom(self, room: int | None = None) -> None:
        try:
            super().makeRoom(room)
        except Exception:
            self._failed()

    def _failed(self) -> None:
        self.registry.context.log.failure("connection closed")
        self.gone = True
        if not self.closed:
            self.closed = True
            self.sink.ended()


@attrs.define(eq=False)
class Peer:
    """A client, and how many responses it has had."""

    client: MemoryClient
    asked: int = 0
    answered: int = 0
    got: list[Frame] = attrs.field(factory=list)

    def send(self, opcode: int, payload: Any = None) -> None:
        """Send a command, if there is a connection."""
        if not self.client.connection.closed:
            self.asked += opcode != Command.DISCONNECT_SHIM
            self.client.send(opcode, payload)

    def frames(self) -> list[Frame]:
        """Frames that came since the last time."""
        frames = self.client.frames()
        self.answered += sum(frame.type is Type.RESPONSE for frame in frames)
        self.got += frames
        return frames

    def tokens(self) -> list[str]:
        """The tokens in the last response."""
        return msgspec.json.decode(self.frames()[-1].payload)["io"]["tokens"] or []


class Stage:
    """
    A world with a VM that something happens to, and another one.

    @ivar peers: the clients of the former.
    """

    def __init__(self, dialect: Dialect | None = None, **limits: Any) -> None:
        self.world = World(dialect, **limits)
        self.registry = self.world.registry
        GuardedConnection.registry = self.registry
        self.peers: list[Peer] = []
        self.agents: list[MemoryVM] = []
        self.agent: MemoryVM
        self.tokens: list[str]
        self._other, runtime, (token,) = self.world.register("other", 1)
        self._shim = self.world.process(self._other, runtime, token)
        self._runtime = runtime

    def peer(self) -> Peer:
        """A new client."""
        try:
            client = MemoryClient(self.world, GuardedConnection)
        except Surprise:
            self.registry.context.log.failure("connection closed")
            raise
        self.peers.append(Peer(client))
        return self.peers[-1]

    def connect(self) -> MemoryVM | None:
        """Connect the VM that wants to be, as the connector does."""
        if not self.world.connector.wanted:
            return None
        vm = self.world.connector.wanted.pop()
        if vm in self.world.connector.abandoned:
            return None
        try:
            agent = MemoryVM(vm, GuardedConnection)
        except Surprise:
            self.registry.context.failed()
            run(self.registry.context, vm.connectFailed, "it failed")
            return None
        self.agents.append(agent)
        return agent

    def register(self, streams: int = 2) -> Peer:
        """Register the VM."""
        peer = self.peer()
        peer.send(Command.REGISTER_VM, registration("vm", streams))
        agent = self.connect()
        assert agent is not None
        agent.say(ControlCode.READY)
        self.agent, self.tokens = agent, peer.tokens()
        return peer

    def connectingVM(self) -> MemoryVM:
        """A VM whose agent says nothing."""
        self.peer().send(Command.REGISTER_VM, registration("silent"))
        agent = self.connect()
        assert agent is not None
        return agent

    def shim(self, nth: int = 0) -> Peer:
        """A shim of one of the tokens."""
        shim = self.peer()
        shim.send(Command.CONNECT_SHIM, {"token": self.tokens[nth]})
        return shim

    def hyper(self, peer: Peer, name: str, nth: int | None = None, **data: Any) -> None:
        """Send a Hyper command."""
        starts = name in ("newcontainer", "execcmd")
        body = startData(name, **data) if starts else {}
        tokens = None if nth is None else [self.tokens[nth]]
        peer.send(Command.HYPER, {"hyperName": name, "data": body, "tokens": tokens})

    def process(self, runtime: Peer, nth: int = 0) -> Peer:
        """A process, and its shim."""
        shim = self.shim(nth)
        self.hyper(runtime, "newcontainer", nth, container=f"c{nth}")
        self.ack()
        return shim

    def ack(self) -> None:
        """Acknowledge all commands."""
        for agent in self.agents:
            while not agent.control.closed and agent.commands():
                agent.ack()

    # Check the state at the end.

    def verify(self, surprised: bool) -> None:
        """Check all that must hold after the scenario."""
        world, registry = self.world, self.registry
        self.ack()
        world.clock.advance(31)  # what waits for something else that has failed has a deadline
        for peer in self.peers:
            peer.frames()
            connection = peer.client.connection
            assert connection.closed or peer.asked <= peer.answered, "no response"
            assert not peer.client.client.slots, "a command is still unanswered"
        if surprised:
            assert [e for e in world.events if "log_failure" in e], "nothing was logged"
        assert not registry.context.depth and not registry.context.damaged
        check([write(registry, id)])
        used = registry.context.budget.used
        registry.recount()
        assert registry.context.budget.used == used, "the budget is wrong"
        for agent in self.agents:
            state = agent.vm.state.value
            if registry.vms.get("vm") is agent.vm:
                assert state in ("registered", "lost"), state
                if state == "registered" and not agent.vm.commands.inFlight:
                    assert not agent.vm.commands.waiting, "a command is not sent"
        self.otherGoesOn()
        everyone = [(peer.client, peer) for peer in self.peers]
        for client, _ in everyone:
            if not client.connection.closed:
                client.connection.makeRoom()
                client.connection.end()
        for agent in self.agents:
            for line in (agent.io, agent.control):
                if not line.closed:
                    line.end()
        for _ in range(3):
            world.clock.advance(600)
        self.otherGoesOn()
        assert {"other"} >= set(registry.vms) - {"vm"} and len(registry.tokens) == 1, "leaked"
        world.clock.advance(3600)
        assert list(registry.vms) == ["other"] and not registry.leaving, "a VM has leaked"
        clients = {self._shim.client, self._runtime.client}
        assert registry.clients == clients, "a client has leaked"
        assert not registry.context.budget.used, "the budget has leaked"

    def otherGoesOn(self) -> None:
        """Everything works with the other VM, and for a new client."""
        self._runtime.hyper("ping")
        self._other.ack()
        assert not self._runtime.frame().error
        self._other.output(3, b"output")
        assert self._shim.frame().payload == b"output"
        self._shim.stream(Stream.STDIN, b"input")
        self._other.io.drain()
        assert self._other.stdin() == [(3, b"input")]
        new = self.world.client()
        new.call(Command.ATTACH_VM, {"containerId": "other"})
        new.connection.end()


Scenario = Callable[[Stage], None]


def registers(stage: Stage) -> None:
    stage.register()


def registersLate(stage: Stage) -> None:
    peer = stage.peer()
    peer.send(Command.REGISTER_VM, registration("vm", 2))
    agent = stage.connect()
    stage.world.clock.advance(5)
    assert agent is not None
    stage.ack()
    peer.frames()


def cannotConnect(stage: Stage) -> None:
    peer = stage.peer()
    peer.send(Command.REGISTER_VM, registration("vm", 2))
    vm = stage.world.connector.wanted.pop()
    run(stage.registry.context, vm.connectFailed, "refused")


def refusesReady(stage: Stage) -> None:
    peer = stage.peer()
    peer.send(Command.REGISTER_VM, registration("vm", 2))
    agent = stage.connect()
    assert agent is not None
    agent.say(ControlCode.ERROR, b"no")


def closesBeforeReady(stage: Stage) -> None:
    peer = stage.peer()
    peer.send(Command.REGISTER_VM, registration("vm", 2))
    agent = stage.connect()
    assert agent is not None
    agent.io.end()


def neverReady(stage: Stage) -> None:
    peer = stage.peer()
    peer.send(Command.REGISTER_VM, registration("vm", 2))
    stage.connect()
    stage.world.clock.advance(3)
    stage.world.clock.advance(30)


def leavesBeforeReady(stage: Stage) -> None:
    peer = stage.peer()
    peer.send(Command.REGISTER_VM, registration("vm", 2))
    stage.connect()
    peer.send(Command.REGISTER_VM, registration("again"))
    peer.client.connection.end()


def attaches(stage: Stage) -> None:
    stage.register()
    peer = stage.peer()
    peer.send(Command.ATTACH_VM, {"containerId": "vm", "numIOStreams": 2})
    peer.send(Command.ATTACH_VM, {"containerId": "nobody"})
    peer.send(99, {})


def makeBusy(stage: Stage) -> None:
    """Register a VM with a process, a held signal, a parked start and commands in flight."""
    runtime = stage.register(3)
    stage.process(runtime, 0)
    stage.shim(1).send(Command.SIGNAL, {"signalNumber": 1})
    stage.hyper(runtime, "newcontainer", 2, container="c2")  # parked
    stage.hyper(runtime, "ping")
    stage.hyper(runtime, "ping")


def unregisters(stage: Stage) -> None:
    makeBusy(stage)
    peer = stage.peer()
    peer.send(Command.UNREGISTER_VM, {"containerId": "vm"})


def commands(stage: Stage) -> None:
    runtime, other = stage.register(), stage.peer()
    other.send(Command.ATTACH_VM, {"containerId": "vm"})
    for peer in (runtime, other, runtime):
        stage.hyper(peer, "ping")
    stage.agent.say(ControlCode.NEXT)
    stage.agent.ack(b"answer")
    stage.agent.say(ControlCode.ERROR, b"no")
    stage.agent.say(99)
    stage.hyper(runtime, "nosuch")
    stage.hyper(runtime, "version")
    stage.agent.ack(b"\0\0\x10\x68")


def commandDeadlines(stage: Stage) -> None:
    runtime = stage.register()
    stage.hyper(runtime, "ping")
    stage.world.clock.advance(40)
    stage.hyper(runtime, "ping")
    stage.world.clock.advance(600)
    stage.world.clock.advance(100)


def lives(stage: Stage) -> None:
    runtime = stage.register()
    stage.hyper(runtime, "newcontainer", 0)
    shim = stage.shim()
    stage.ack()
    stage.agent.output(3, b"output")
    shim.client.stream(Stream.STDIN, b"input")
    stage.agent.io.drain()
    shim.send(Command.SIGNAL, {"signalNumber": _SIGWINCH, "columns": 80, "rows": 24})
    stage.ack()
    shim.client.stream(Stream.STDIN, b"")
    stage.agent.exit(3, 7)
    shim.frames()
    shim.send(Command.DISCONNECT_SHIM)


def startRefused(stage: Stage) -> None:
    runtime = stage.register()
    shim = stage.shim()
    stage.hyper(runtime, "newcontainer", 0)
    shim.send(Command.SIGNAL, {"signalNumber": 1})
    shim.client.stream(Stream.STDIN, b"input")
    stage.agent.output(3, b"output")
    stage.agent.say(ControlCode.ERROR, b"no")
    shim.send(Command.DISCONNECT_SHIM)


def startsDetached(stage: Stage) -> None:
    runtime = stage.register()
    stage.hyper(runtime, "newcontainer")
    stage.ack()
    stage.agent.exit(1, 0)


def heldSignals(stage: Stage) -> None:
    runtime = stage.register()
    shim = stage.shim()
    shim.send(Command.SIGNAL, {"signalNumber": 1})
    shim.send(Command.SIGNAL, {"signalNumber": 2})
    stage.hyper(runtime, "newcontainer", 0)
    stage.ack()


def killedBeforeStart(stage: Stage) -> None:
    runtime = stage.register()
    shim = stage.shim()
    shim.send(Command.SIGNAL, {"signalNumber": 1})
    shim.send(Command.SIGNAL, {"signalNumber": _SIGKILL})
    stage.hyper(runtime, "newcontainer", 0)


def waitsInVain(stage: Stage) -> None:
    runtime = stage.register()
    stage.hyper(runtime, "newcontainer", 1)
    shim = stage.shim(0)
    shim.send(Command.SIGNAL, {"signalNumber": 1})
    stage.world.clock.advance(31)


def losesVM(stage: Stage) -> None:
    makeBusy(stage)
    stage.agent.output(3, b"output")
    stage.agent.control.end()
    stage.world.clock.advance(2)


def replaced(stage: Stage) -> None:
    runtime = stage.register()
    stage.process(runtime, 0)
    stage.agent.io.end()
    stage.agent.control.end()
    stage.register()


def shimComesBack(stage: Stage) -> None:
    runtime = stage.register()
    shim = stage.process(runtime)
    shim.client.connection.room = 5
    stage.agent.output(3, b"lost?" * 100)
    stage.agent.output(3, b"output" * 100)
    shim.client.connection.end()
    stage.agent.output(3, b"more" * 200)
    again = stage.shim()
    again.frames()
    stage.agent.exit(3, 0)
    again.frames()
    again.client.connection.end()


def full(stage: Stage) -> None:
    runtime = stage.register()
    shim = stage.process(runtime)
    shim.client.connection.room = 5
    for _ in range(6):
        stage.agent.output(3, b"output" * 100)
    stage.world.clock.advance(11)
    shim.client.connection.makeRoom()
    shim.client.connection.end()
    for _ in range(6):
        stage.agent.output(3, b"output" * 100)
    stage.world.clock.advance(31)
    stage.agent.exit(3, 0)


def clientLeaves(stage: Stage) -> None:
    runtime = stage.register()
    stage.hyper(runtime, "newcontainer", 0)  # parked
    stage.hyper(runtime, "ping")
    runtime.client.connection.end(gone=False)
    stage.ack()


def breaksFraming(stage: Stage) -> None:
    runtime = stage.register()
    stage.hyper(runtime, "ping")
    runtime.asked += 1
    runtime.client.connection.feed(b"\0\7\3\0" + bytes(8))
    stage.ack()


def lateStatus(stage: Stage) -> None:
    runtime = stage.register()
    shim = stage.process(runtime)
    event = b'{"event": "finished", "container": "c0", "process": "init", "status": 3}'
    stage.agent.say(ControlCode.PROCESS_ASYNC_EVENT, event)
    stage.world.clock.advance(6)
    shim.frames()


SCENARIOS: list[tuple[Scenario, dict[str, Any]]] = [
    *((scenario, {}) for scenario in (
        registers, registersLate, cannotConnect, refusesReady, closesBeforeReady, neverReady,
        leavesBeforeReady, attaches, unregisters, commands, commandDeadlines, lives, startRefused,
        startsDetached, heldSignals, killedBeforeStart, waitsInVain, losesVM, replaced,
        shimComesBack, clientLeaves, breaksFraming,
    )),
    (lives, {"dialect": Dialect.HYPERSTART1}),
    (lateStatus, {"dialect": Dialect.HYPERSTART1}),
    (full, {"sessionBuffer": 2000}),
]  # fmt: skip


class FailureTests(SynchronousTestCase):
    """Scenarios, with an exception at every step."""

    def stage(self, scenario: Scenario, options: dict[str, Any], at: int = -1) -> list[int]:
        """
        Play a scenario.

        @param at: at which call there is an exception.
        @return: the places of all calls.
        """
        stage, surprise = Stage(**options), Surprising(at)
        with surprise:
            try:
                scenario(stage)
            except (AssertionError, LookupError, AttributeError, ValueError, Surprise):
                if at < 0:
                    raise  # else the exception has kept the scenario from going on
        stage.verify(at >= 0)
        return surprise.calls

    def play(self, scenario: Scenario, options: dict[str, Any]) -> None:
        """Play a scenario once for each place."""
        places: dict[int, int] = {}
        for at, place in enumerate(self.stage(scenario, options)):
            places.setdefault(place, at)
        for at in places.values():
            try:
                self.stage(scenario, options, at)
            except Exception as error:
                raise AssertionError(f"{scenario.__name__}, call {at}: {error!r}") from error

    def test_limitLowered(self) -> None:
        """A limit that is lowered during a registration makes it fail, and nothing else."""
        stage = Stage()
        peer = stage.peer()
        peer.send(Command.REGISTER_VM, registration("vm", 5))
        agent = stage.connect()
        assert agent is not None
        stage.registry.context.setLimits(attrs.evolve(stage.registry.context.limits, maxTokens=3))
        agent.say(ControlCode.READY)
        (frame,) = peer.frames()
        self.assertIn("no more than 3 I/O tokens", errorText(frame))
        self.assertEqual((agent.control.closed, agent.io.closed), (True, True))
        stage.register(3)
        stage.verify(False)

    def test_strangeUrl(self) -> None:
        """A URL that no response can carry fails commands; VMs and tokens stay as they were."""
        stage = Stage()
        url, stage.registry.url = stage.registry.url, "unix:///\udcff"
        peer = stage.peer()
        peer.send(Command.REGISTER_VM, registration("vm", 2))
        agent = stage.connect()
        assert agent is not None
        agent.say(ControlCode.READY)
        peer.send(Command.ATTACH_VM, {"containerId": "other", "numIOStreams": 2})
        for frame in peer.frames():
            self.assertIn("internal error", errorText(frame))
        stage.registry.url = url
        stage.verify(True)

    def test_shutDown(self) -> None:
        """The daemon closes everything when it stops."""
        for at in count(1):
            stage, surprise = Stage(), Surprising(at)
            losesVM(stage)
            runtime = stage.register()
            stage.process(runtime, 0)
            stage.hyper(runtime, "newcontainer", 1, container="c1")
            begun = stage.connectingVM()
            with surprise:
                stage.registry.shutDown()
            open = [peer for peer in stage.peers if not peer.client.connection.closed]
            self.assertEqual(open, [], f"call {at}")
            for agent in [*stage.agents, begun]:
                self.assertTrue(agent.control.closed and agent.io.closed, f"call {at}")
            self.assertEqual((stage.registry.vms, stage.registry.tokens), ({}, {}))
            if len(surprise.calls) <= at:
                break

    def test_sane(self) -> None:
        """A repair changes nothing if nothing is wrong."""
        world = busyWorld()
        before = write(world.registry, id)
        world.registry.context.repair()
        self.assertEqual(write(world.registry, id), before)


def _test(scenario: Scenario, options: dict[str, Any]) -> Callable[[FailureTests], None]:
    return lambda self: self.play(scenario, options)


for _scenario, _options in SCENARIOS:
    _name = "".join(["test_", _scenario.__name__, *("_" + str(each) for each in _options)])
    setattr(FailureTests, _name, _test(_scenario, _options))
