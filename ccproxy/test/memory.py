"""
A core without a world: connections in memory, a clock that is turned by hand, and a small cast
of clients and agents that speak through them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.msgpack import decode, encode
from twisted.internet.task import Clock
from twisted.logger import Logger
from zope.interface import implementer

from ccproxy.core.channels import ControlSink, IOSink
from ccproxy.core.client import Client
from ccproxy.core.context import Context
from ccproxy.core.limits import Limits
from ccproxy.core.registry import Registry
from ccproxy.core.requests import connect
from ccproxy.core.resuming import Resumed, resume
from ccproxy.core.snapshot import Snapshot, seal, unseal
from ccproxy.core.states import VMState
from ccproxy.core.vm import VM, vmOf
from ccproxy.core.writing import write, writeCounters, writeVM
from ccproxy.interfaces import IConnection, IConnector, IStreamSink
from ccproxy.wire.codes import Command, ControlCode, Dialect, FrameType, Stream
from ccproxy.wire.decoder import Buffer
from ccproxy.wire.frames import Frame, FrameDecoder, encodeFrame
from ccproxy.wire.messages import (
    CONTROL_HEADER,
    IO_HEADER,
    Message,
    MessageDecoder,
    encodeControl,
    encodeIO,
)


@implementer(IConnection)
class MemoryConnection:
    """
    One end of a connection: what the core writes is kept, what a test feeds goes to the sink.

    @ivar room: how many more bytes are taken, or L{None} for any number.
    @ivar written: what was taken since it was last looked at.
    @ivar offers: how often the core was offered what has come.
    @ivar offered: that is so now, or was so when the process died.
    """

    peer = "pid=1 uid=0"

    def __init__(self) -> None:
        self.sink: IStreamSink
        self.room: int | None = None
        self.written = bytearray()
        self.paused = False
        self.closed = False
        self.gone = False
        self.endSeen = False
        self.waiting = 0
        self.drainWanted = False
        self.sends = 0
        self.offers = 0
        self.offered = False
        self._coming = bytearray()
        self._ended = False

    # what the core calls

    def send(self, data: Sequence[Buffer]) -> int:
        assert not self.closed, "sent on a closed connection"
        self.sends += 1
        taken = b"".join(bytes(piece) for piece in data)
        if self.room is not None:
            taken = taken[: self.room]
            self.room -= len(taken)
        self.written += taken
        self.waiting += len(taken)
        return len(taken)

    def unsent(self) -> int:
        return self.waiting

    def notifyDrained(self) -> None:
        self.drainWanted = True

    def pauseReading(self) -> None:
        self.paused = True

    def resumeReading(self) -> None:
        self.paused = False

    def hungUp(self) -> bool:
        return self.gone

    def readNow(self) -> None:
        self.pump()

    def close(self) -> None:
        self.closed = True

    # what a test calls

    def feed(self, data: bytes) -> None:
        """Bytes come from the peer."""
        self._coming += data
        self.pump()

    def end(self, gone: bool = True) -> None:
        """The peer ends its sending, or closes altogether."""
        ended, self._ended = self._ended, True
        self.gone = self.gone or gone
        self.pump()
        if (self.paused or ended) and gone and not self.closed:
            self.sink.peerGone()
            self.pump()

    def pump(self) -> None:
        """Offer what has come, as a transport does."""
        while self._coming and not self.paused and not self.closed:
            self.offers += 1
            self.offered = True
            used = self.sink.received(memoryview(bytearray(self._coming)))
            self.offered = False
            if not used:
                break
            del self._coming[:used]
        if self._ended and not self.paused and not self.closed and not self.endSeen:
            self.endSeen = True
            self.sink.ended()

    def skip(self, used: int) -> None:
        """The process has died after it had used so much of what it was offered."""
        del self._coming[:used]
        self.offered = False

    def taken(self, sink: IStreamSink) -> None:
        """Another process has it now, and begins to read."""
        self.sink = sink
        self.offered = False
        self.paused = self.drainWanted = False

    def take(self) -> bytes:
        """What was written since the last time."""
        data = bytes(self.written)
        self.written.clear()
        return data

    def drain(self) -> None:
        """The peer reads all that was written."""
        self.waiting = 0
        if self.drainWanted and not self.closed:
            self.drainWanted = False
            self.sink.drained()

    def makeRoom(self, room: int | None = None) -> None:
        """The peer has read: C{room} more bytes are taken."""
        self.room = room
        if not self.closed:
            self.sink.writable()


@implementer(IConnector)
class MemoryConnector:
    """Remembers which VMs want to be connected, and lets the test do it."""

    def __init__(self) -> None:
        self.wanted: list[VM] = []
        self.abandoned: list[VM] = []

    def connect(self, vm: VM) -> None:
        self.wanted.append(vm)

    def abandon(self, vm: VM) -> None:
        self.abandoned.append(vm)


class MemoryClient:
    """A runtime or a shim."""

    def __init__(self, world: World, line: type[MemoryConnection] = MemoryConnection) -> None:
        """
        @param line: makes its connection.
        """
        self.connection = line()
        self.client: Client = connect(world.registry, self.connection)
        self.connection.sink = self.client
        self._decoder = FrameDecoder()

    def send(self, opcode: int, payload: Any = None) -> None:
        """Send a command; a payload that is no bytes is made JSON."""
        self.connection.feed(command(opcode, payload))

    def stream(self, stream: Stream, data: bytes) -> None:
        """Send a stream frame."""
        self.connection.feed(encodeFrame(FrameType.STREAM, stream, data))

    def frames(self) -> list[Frame]:
        """The frames that came since the last time."""
        self._decoder.feed(self.connection.take())
        found = []
        while (frame := self._decoder.next()) is not None:
            found.append(frame)
        return found

    def frame(self) -> Frame:
        """The only frame that came since the last time."""
        (frame,) = self.frames()
        return frame

    def call(self, opcode: int, payload: Any = None) -> bytes:
        """Send a command that succeeds at once; gives its response's payload."""
        self.send(opcode, payload)
        frame = self.frame()
        assert frame.type is FrameType.RESPONSE and frame.opcode == opcode, frame
        assert not frame.error, frame
        return frame.payload

    def refused(self, opcode: int, payload: Any = None) -> str:
        """Send a command that fails at once; gives the error's text."""
        self.send(opcode, payload)
        return errorText(self.frame())

    def hyper(self, name: str, data: Any = msgspec.UNSET, tokens: Any = None) -> None:
        """Send a Hyper command."""
        payload = {"hyperName": name, "tokens": tokens}
        if data is not msgspec.UNSET:
            payload["data"] = data
        self.send(Command.HYPER, payload)


class MemoryVM:
    """A VM's agent, from the VM's side of its channels."""

    def __init__(self, vm: VM, line: type[MemoryConnection] = MemoryConnection) -> None:
        """
        @param line: makes its connections.
        """
        self.vm = vm
        self.control = line()
        self.io = line()
        vm.connected(self.control, self.io)
        self.control.sink, self.io.sink = ControlSink(vm), IOSink(vm)
        self._commands = MessageDecoder(CONTROL_HEADER)
        self._stdin = MessageDecoder(IO_HEADER)

    def say(self, code: int, body: bytes = b"") -> None:
        """Send a message on the control channel."""
        self.control.feed(encodeControl(code, body))

    def ack(self, body: bytes = b"") -> None:
        """Answer the command at hand."""
        self.say(ControlCode.ACK, body)

    def output(self, number: int, body: bytes = b"") -> None:
        """Send a message on the I/O channel."""
        self.io.feed(encodeIO(number, body))

    def exit(self, number: int, status: int) -> None:
        """The end of a process, as cc and hyperstart 0.x tell it."""
        self.output(number)
        self.output(number, bytes([status]))

    def commands(self) -> list[Message]:
        """The commands that came since the last time."""
        return _all(self._commands, self.control)

    def command(self) -> Message:
        """The only command that came since the last time."""
        (message,) = self.commands()
        return message

    def stdin(self) -> list[tuple[int, bytes]]:
        """The stdin that came since the last time: numbers and bodies."""
        return [(message.number, message.body) for message in _all(self._stdin, self.io)]


def _all(decoder: MessageDecoder, connection: MemoryConnection) -> list[Message]:
    decoder.feed(connection.take())
    found = []
    while (message := decoder.next()) is not None:
        found.append(message)
    return found


class Died(BaseException):
    """The process has died, in the middle of a turn."""


class World:
    """
    A registry with nothing around it but what a test puts there.

    @ivar connections: those that were written down, by their keys.
    @ivar dies: C{before} or C{after} the process writes its journal the next time, it dies.
    """

    def __init__(
        self, dialect: Dialect | None = None, journal: Any = False, **limits: Any
    ) -> None:
        """
        @param journal: keep a journal, so that the process can L{crash}.
        """
        self.connections: dict[int, MemoryConnection] = {}
        self._journal: dict[int, Snapshot] = {}
        self._keeps = bool(journal)
        self._used: dict[int, tuple[int, int]] = {}
        self.dies = ""
        self.clock = Clock()
        self.connector = MemoryConnector()
        self.events: list[dict[str, Any]] = []
        self.registry = Registry(
            Context(
                clock=self.clock,
                wallClock=lambda: 1_000_000.0 + self.clock.seconds(),
                limits=Limits(**limits),
                log=Logger(observer=self.events.append),  # type: ignore[arg-type]
            ),
            self.connector,
            agentDialect=dialect,
        )
        if journal:
            self._keepJournal()

    def client(self) -> MemoryClient:
        """A new client."""
        return MemoryClient(self)

    def register(
        self, name: str = "vm", streams: int = 0, client: MemoryClient | None = None
    ) -> tuple[MemoryVM, MemoryClient, list[str]]:
        """A VM whose agent is READY, the client that registered it, and its tokens."""
        client = client or self.client()
        client.send(Command.REGISTER_VM, registration(name, streams))
        agent = MemoryVM(self.connector.wanted.pop())
        agent.say(ControlCode.READY)
        return agent, client, tokensOf(client.frame())

    def shim(self, token: str) -> MemoryClient:
        """A client that is the token's shim."""
        shim = self.client()
        shim.call(Command.CONNECT_SHIM, {"token": token})
        return shim

    def process(
        self, agent: MemoryVM, runtime: MemoryClient, token: str, **options: Any
    ) -> MemoryClient:
        """Start a process with the token; gives its shim."""
        shim = self.shim(token)
        kind = options.pop("kind", "newcontainer")
        runtime.hyper(kind, startData(kind, **options), [token])
        agent.ack()
        frame = runtime.frame()
        assert not frame.error, frame
        return shim

    def restart(self) -> dict[int, IStreamSink]:
        """
        Write everything down and go on with it in a new registry, as the next process does.

        @return: the new sinks of the connections, by the ids of these.
        """
        resumed = self._resume([write(self.registry, self.keyOf)])
        resumed.begin()
        return dict(resumed.sinks)

    def crash(self, until: str = "") -> dict[int, IStreamSink]:
        """
        The process dies, and the next one goes on with the journal, as the daemon does.

        @param until: the step before which the next one dies too, C{journal}, C{recover} or
            C{begin}: L{crash} must be called again then.
        @return: see L{restart}.
        """
        resumed = self._resume([*self._journal.values()], until != "journal")
        if until not in ("journal", "recover"):
            resumed.recover()
            if until != "begin":
                resumed.begin()
        return dict(resumed.sinks)

    def keyOf(self, connection: IConnection) -> int:
        """What names a connection."""
        assert isinstance(connection, MemoryConnection)
        if connection.closed:
            return 0
        self.connections[id(connection)] = connection
        return id(connection)

    def _resume(self, snapshots: Sequence[Snapshot], journal: bool = True) -> Resumed:
        old = self.registry
        bodies = [unseal(seal(encode(snapshot))) for snapshot in snapshots]
        for call in list(self.clock.getDelayedCalls()):
            call.cancel()
        self.connector.wanted.clear()
        self.registry = Registry(
            Context(
                clock=self.clock,
                wallClock=old.context.wallClock,
                limits=old.context.limits,
                log=old.context.log,
            ),
            self.connector,
            agentDialect=old.agentDialect,
            makeToken=old.makeToken,
            makeBase=old.makeBase,
        )
        found = [decode(body, type=Snapshot) for body in bodies]
        resumed = resume(self.registry, found, self.connections)
        if journal and self._keeps:
            self._keepJournal()
        for key, sink in resumed.sinks.items():
            self.connections[key].taken(sink)
        return resumed

    def _keepJournal(self) -> None:
        registry = self.registry
        self._journal.clear()
        registry.context.whenChanged = self._note
        sessions = registry.tokens.values()
        self._note({*registry.vms.values(), *registry.leaving, *map(vmOf, sessions)})

    def _note(self, things: Iterable[VM | Registry]) -> None:
        """Keep a journal as the daemon's: the last word on each VM, and on what belongs to none."""
        if self.dies == "before":
            raise Died
        for vm in things:
            if isinstance(vm, Registry):
                continue
            if vm.state in (VMState.CONNECTING, VMState.WAITING):
                vm.agent.sendNow()
                continue
            known = vm.state is not VMState.GONE or vm in self.registry.leaving
            self._journal.pop(vm.serial, None)
            vm.agent.sendNow()  # in one step with the entry
            if known or vm.processes.sessions:
                form = self._journal[vm.serial] = writeVM(vm, self.keyOf)
                used = [(client.connection, client.handled) for client in form.clients]
                for key, size in [*used, *((each.control, each.handled) for each in form.vms)]:
                    if key:
                        self._used[key] = self.connections[key].offers, size
        self._journal.pop(-1, None)
        self._journal[-1] = writeCounters(self.registry)
        if self.dies:
            # The journal has the commands of runtimes, too, but not the runtimes.
            for client in self.registry.clients:
                assert isinstance(client, Client)
                if key := self.keyOf(client._connection):
                    self._used[key] = self.connections[key].offers, client.handled
            raise Died

    def skipUsed(self) -> None:
        """After the death in the middle of a turn: skip what the journal says was used."""
        for key, (offers, size) in self._used.items():
            connection = self.connections[key]
            if connection.offered and connection.offers == offers:
                connection.skip(size)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log entries of that event."""
        return [entry for entry in self.events if entry.get("event") == event]


def command(opcode: int, payload: Any = None) -> bytes:
    """The bytes of a command; a payload that is no bytes is made JSON."""
    if payload is None:
        payload = b""
    elif not isinstance(payload, bytes):
        payload = msgspec.json.encode(payload)
    return encodeFrame(FrameType.COMMAND, opcode, payload)


def registration(name: str = "vm", streams: int = 0, **more: Any) -> dict[str, Any]:
    """A RegisterVM payload."""
    paths = {"ctlSerial": f"/{name}.ctl", "ioSerial": f"/{name}.io"}
    return {"containerId": name, **paths, "numIOStreams": streams, **more}


def startData(kind: str = "newcontainer", container: str = "c1", **process: Any) -> dict[str, Any]:
    """The data of a newcontainer or execcmd."""
    process = {"args": ["true"], **process}
    key = "id" if kind == "newcontainer" else "container"
    return {key: container, "process": process}


def tokensOf(frame: Frame) -> list[str]:
    """The tokens in a response to RegisterVM or AttachVM."""
    assert not frame.error, frame
    return msgspec.json.decode(frame.payload)["io"]["tokens"] or []


def errorText(frame: Frame) -> str:
    """The text of an error response."""
    assert frame.error, frame
    text = msgspec.json.decode(frame.payload)["msg"]
    assert isinstance(text, str)
    return text
