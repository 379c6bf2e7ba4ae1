"""
VMs and shims that stream through a real daemon, both ways, and know every byte: what they get after
restarts is compared with what was sent.

All streams are made of records of 16 bytes, each with its stream's number and its place, so that a
byte that is lost, doubled or misled is not only noticed but counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from struct import Struct

import attrs

from ccproxy.testing.client import BlockingClient, hyperPayload
from ccproxy.wire.codes import Command, ControlCode, FrameType, Notification, Stream
from ccproxy.wire.frames import FrameDecoder, encodeFrame
from ccproxy.wire.messages import (
    CONTROL_HEADER,
    IO_HEADER,
    Message,
    MessageDecoder,
    encodeControl,
    encodeIO,
)

_RECORD = Struct(">4sIII")
_MAGIC = b"\xabrec"
SIGUSR1 = 10
#: Bytes of the answers that a client leaves unread: more than a socket holds.
UNREAD = 6 * 60_000
#: What a process ends with.
STATUS = 7


def records(stream: int, first: int, count: int) -> bytes:
    """So many records of a stream."""
    return b"".join([_record(stream, at) for at in range(first, first + count)])


def _record(stream: int, place: int) -> bytes:
    return _RECORD.pack(_MAGIC, stream, place, ~place & 0xFFFFFFFF)


@attrs.define(eq=False)
class Meter:
    """
    The receiving end of a stream.

    @ivar stream: its number.
    @ivar next: the place of the record that is due.
    @ivar lost: how many bytes never came.
    @ivar doubled: how many came again.
    @ivar strange: how many were no part of a record, or of another stream's.
    """

    stream: int
    next: int = 0
    lost: int = 0
    doubled: int = 0
    strange: int = 0
    ended: bool = False
    _rest: bytes = b""

    @property
    def good(self) -> bool:
        """Whether all is as it was sent."""
        return not (self.lost or self.doubled or self.strange or self._rest)

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        data = self._rest + data
        count = len(data) // _RECORD.size
        if data[: count * _RECORD.size] == records(self.stream, self.next, count):
            self.next += count
            self._rest = data[count * _RECORD.size :]
            return
        at = 0
        while len(data) - at >= _RECORD.size:
            magic, stream, place, check = _RECORD.unpack_from(data, at)
            if magic != _MAGIC or stream != self.stream or check != ~place & 0xFFFFFFFF:
                at += 1
                self.strange += 1
                continue
            at += _RECORD.size
            if place < self.next:
                self.doubled += _RECORD.size
            else:
                self.lost += (place - self.next) * _RECORD.size
                self.next = place + 1
        self._rest = data[at:]


@attrs.define(eq=False)
class _End:
    """One of our sockets, with what is still to be written to it."""

    socket: socket.socket
    outgoing: bytearray = attrs.field(factory=bytearray)

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)

    def write(self) -> None:
        """Write what can be written."""
        with contextlib.suppress(BlockingIOError):
            while self.outgoing:
                del self.outgoing[: self.socket.send(self.outgoing)]

    def read(self) -> bytes | None:
        """What has come; L{None} if nothing has, empty at the end."""
        try:
            return self.socket.recv(4096)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""


@attrs.define(eq=False)
class Process:
    """
    A process in a VM, as its agent sees it.

    @ivar stdio: its number.
    @ivar stdin: what it has got.
    @ivar sent: how many records it has written, to stdout and to stderr.
    @ivar signals: how many it has got.
    """

    stdio: int
    session: int
    stdin: Meter
    sent: list[int] = attrs.field(factory=lambda: [0, 0])
    signals: int = 0
    ended: bool = False


class Agent:
    """The agent of one VM, which L{Agents} runs."""

    def __init__(self, directory: str, name: str) -> None:
        self.processes: dict[str, Process] = {}
        self.byNumber: dict[int, Process] = {}
        self.closed = 0
        self.listeners: dict[str, socket.socket] = {}
        self.ends: dict[str, _End] = {}
        self.decoders = {
            "ctl": MessageDecoder(CONTROL_HEADER),
            "io": MessageDecoder(IO_HEADER),
        }
        for kind in ("ctl", "io"):
            listener = self.listeners[kind] = socket.socket(socket.AF_UNIX)
            listener.bind(os.path.join(directory, f"{name}.{kind}"))
            listener.listen(5)

    def path(self, kind: str) -> str:
        """Where one of its sockets is."""
        path: str = self.listeners[kind].getsockname()
        return path

    def accept(self, kind: str) -> None:
        """The proxy connects."""
        self.ends[kind] = _End(self.listeners[kind].accept()[0])
        if kind == "ctl":
            self.ends[kind].outgoing += encodeControl(ControlCode.READY)

    def read(self, kind: str) -> None:
        """Take what the proxy has sent."""
        data = self.ends[kind].read()
        if data is None:
            return
        if not data:
            self.closed += 1
            self.ends.pop(kind).socket.close()
            return
        decoder = self.decoders[kind]
        decoder.feed(data)
        while (message := decoder.next()) is not None:
            if kind == "io":
                self._stdin(message)
            else:
                self._command(message)

    def _stdin(self, message: Message) -> None:
        meter = self.byNumber[message.number].stdin
        if message.body:
            meter.feed(message.body)
        else:
            meter.ended = True

    def _command(self, message: Message) -> None:
        body = json.loads(message.body) if message.body else {}
        if message.number == ControlCode.NEWCONTAINER:
            session = int(body["id"])
            process = Process(body["process"]["stdio"], session, Meter(session))
            self.processes[body["id"]] = self.byNumber[process.stdio] = process
        elif message.number == ControlCode.KILLCONTAINER:
            self.processes[body["container"]].signals += 1
        answer = message.body.ljust(body.get("length", 0))
        self.ends["ctl"].outgoing += encodeControl(ControlCode.ACK, answer)

    def produce(self, count: int, limit: int, finish: bool) -> None:
        """Have each process write a little, or come to its end."""
        end = self.ends.get("io")
        if end is None or len(end.outgoing) > limit:
            return
        for process in self.processes.values():
            if process.ended:
                continue
            for error in (0, 1):
                stream = process.session + error
                data = records(stream, process.sent[error], count)
                process.sent[error] += count
                end.outgoing += encodeIO(process.stdio + error, data)
            if finish and process.stdin.ended:
                process.ended = True
                end.outgoing += encodeIO(process.stdio) + encodeIO(process.stdio, bytes([STATUS]))


class Agents(threading.Thread):
    """All agents, in one thread of their own."""

    def __init__(self, directory: str, count: int, pause: float) -> None:
        """
        @param pause: seconds between two writes of all processes.
        """
        super().__init__(daemon=True)
        self.agents = [Agent(directory, f"vm{n}") for n in range(count)]
        self.finish = self.quit = False
        self._pause = pause

    def run(self) -> None:
        """Serve until L{quit}."""
        due = time.monotonic()
        while not self.quit:
            poll, found = select.poll(), {}
            for agent in self.agents:
                for kind, listener in agent.listeners.items():
                    poll.register(listener, select.POLLIN)
                    found[listener.fileno()] = (agent.accept, kind)
                for kind, end in agent.ends.items():
                    events = select.POLLIN | (select.POLLOUT if end.outgoing else 0)
                    poll.register(end.socket, events)
                    found[end.socket.fileno()] = (agent.read, kind)
            for fd, events in poll.poll(1000 * max(0.0, due - time.monotonic())):
                if events & ~select.POLLOUT:
                    act, kind = found[fd]
                    act(kind)
            if time.monotonic() >= due:
                due = time.monotonic() + self._pause
                for agent in self.agents:
                    agent.produce(1 + int(due * 997) % 60, 1 << 16, self.finish)
            for agent in self.agents:
                for end in agent.ends.values():
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        end.write()

    def close(self) -> None:
        """End the thread, and the VMs."""
        self.quit = True
        self.join(10)
        for agent in self.agents:
            for end in agent.ends.values():
                end.socket.close()
            for listener in agent.listeners.values():
                listener.close()


class Peer:
    """A client: its connection, and the commands that it waits for."""

    def __init__(self, client: BlockingClient) -> None:
        self.end = _End(client.socket)
        self.decoder = FrameDecoder(1 << 30)
        self.waiting: list[tuple[int, bytes | None]] = []
        self.answers = 0
        self.wrong: list[str] = []
        self.closed = False

    def command(self, opcode: Command, payload: object, answer: bytes) -> None:
        """Send a command whose answer is known."""
        self.end.outgoing += encodeFrame(FrameType.COMMAND, opcode, json.dumps(payload).encode())
        self.waiting.append((opcode, answer))

    def read(self) -> None:
        """Take what the proxy has sent."""
        data = self.end.read()
        if data is None:
            return
        self.closed = self.closed or not data
        self.decoder.feed(data)
        while (frame := self.decoder.next()) is not None:
            if frame.type is FrameType.RESPONSE:
                wanted = self.waiting.pop(0) if self.waiting else None
                self.answers += 1
                expected = None if wanted is None else (wanted[0], wanted[1] or frame.payload)
                if expected != (frame.opcode, frame.payload):
                    self.wrong.append(f"{frame} instead of {wanted}")
            else:
                self.other(frame.type, frame.opcode, frame.payload)

    def other(self, type: FrameType, opcode: int, payload: bytes) -> None:
        """Take a frame that is no answer."""
        self.wrong.append(f"{type} {opcode} {payload[:30]!r}")

    def act(self, finish: bool) -> None:
        """Do a little."""


class Runtime(Peer):
    """
    A client that gives commands.

    @ivar lost: how often the proxy has closed its connection.
    """

    nonce = 0
    lost = 0

    def __init__(self, client: BlockingClient, name: str) -> None:
        super().__init__(client)
        self._name = name

    def connectAgain(self, path: str) -> None:
        """The proxy has died, and its connection with it."""
        self.lost += 1
        self.end.socket.close()
        self.end = _End(BlockingClient(path).socket)
        self.decoder = FrameDecoder(1 << 30)
        self.waiting.clear()
        self.closed = False
        self.end.outgoing += encodeFrame(
            FrameType.COMMAND, Command.ATTACH_VM, json.dumps({"containerId": self._name}).encode()
        )
        self.waiting.append((Command.ATTACH_VM, None))

    def act(self, finish: bool) -> None:
        if len(self.waiting) < 2 and not finish:
            self.nonce += 1
            body = json.dumps({"nonce": self.nonce})
            payload = f'{{"hyperName":"ping","data":{body}}}'.encode()
            self.end.outgoing += encodeFrame(FrameType.COMMAND, Command.HYPER, payload)
            self.waiting.append((Command.HYPER, body.encode()))


class Shim(Peer):
    """
    A shim, which sends stdin and signals.

    @ivar sent: how many records of stdin it has sent.
    @ivar signals: how many signals.
    """

    def __init__(self, client: BlockingClient, session: int) -> None:
        super().__init__(client)
        self.session = session
        self.meters = [Meter(session), Meter(session + 1)]
        self.sent = self.signals = 0
        self.status: int | None = None
        self.finished = False

    def other(self, type: FrameType, opcode: int, payload: bytes) -> None:
        if type is FrameType.NOTIFICATION and opcode == Notification.PROCESS_EXITED:
            self.status = payload[0]
        elif self.status is None and opcode in (Stream.STDOUT, Stream.STDERR):
            self.meters[opcode - Stream.STDOUT].feed(payload)
        else:
            super().other(type, opcode, payload)

    def act(self, finish: bool) -> None:
        if len(self.end.outgoing) > 1 << 15 or self.finished:
            return
        count = 1 + (self.sent * 7 + self.session) % 50
        data = records(self.session, self.sent, count)
        self.sent += count
        self.end.outgoing += encodeFrame(FrameType.STREAM, Stream.STDIN, data)
        if not self.waiting and not finish and self.sent % 5 == 0:
            self.command(Command.SIGNAL, {"signalNumber": SIGUSR1}, b"")
            self.signals += 1
        if finish and not self.waiting:
            self.finished = True
            self.end.outgoing += encodeFrame(FrameType.STREAM, Stream.STDIN, b"")


class Leaver(Peer):
    """
    A client that sends commands, closes its sending side at once, and reads the answers later. So
    the proxy has it in the state FINISHING: with answers that do not fit into its socket, or
    waiting for the answers of the agent.

    @ivar readsAt: when it begins to read, in seconds of the monotonic clock.
    @ivar cut: whether its connection has ended without all answers.
    """

    def __init__(self, client: BlockingClient, vm: str, size: int, pause: float) -> None:
        """
        @param size: bytes of the answers, in all.
        @param pause: seconds until it reads.
        """
        super().__init__(client)
        self.vm, self.size = vm, size
        self.readsAt = time.monotonic() + pause
        self.cut = self._left = False
        attach = json.dumps({"containerId": vm}).encode()
        self.end.outgoing += encodeFrame(FrameType.COMMAND, Command.ATTACH_VM, attach)
        self.waiting.append((Command.ATTACH_VM, None))
        for nth in range(6):
            # Kills leave commands behind, so the commands themselves are short.
            body = json.dumps({"nonce": nth, "length": size // 6})
            payload = f'{{"hyperName":"ping","data":{body}}}'.encode()
            self.end.outgoing += encodeFrame(FrameType.COMMAND, Command.HYPER, payload)
            self.waiting.append((Command.HYPER, body.encode().ljust(size // 6)))

    def read(self) -> None:
        super().read()
        self.cut = self.closed and bool(self.waiting)

    def act(self, finish: bool) -> None:
        if not self.end.outgoing and not self._left:
            self._left = True
            with contextlib.suppress(OSError):
                self.end.socket.shutdown(socket.SHUT_WR)


class Load:
    """
    A number of VMs with processes that stream without end.

    @ivar agents: the VMs.
    @ivar shims: one for each process.
    @ivar runtimes: one for each VM.
    @ivar leavers: clients that are finishing. There is always one with more answers than its socket
        holds, and one with few.
    @ivar left: those that were there before.
    """

    def __init__(
        self, directory: str, path: str, vms: int, processes: int, pause: float = 0.02
    ) -> None:
        """
        @param directory: where the VMs' sockets are.
        @param path: the proxy's socket.
        @param processes: how many each VM has.
        @param pause: seconds between two writes of each process.
        """
        self.agents = Agents(directory, vms, pause)
        self.agents.start()
        self.shims: list[Shim] = []
        self.runtimes: list[Runtime] = []
        self.leavers: list[Leaver] = []
        self.left: list[Leaver] = []
        self._pause = pause
        self._path = path
        for number, agent in enumerate(self.agents.agents):
            runtime = BlockingClient(path)
            self.register(runtime, f"vm{number}", agent, processes)

    def register(self, runtime: BlockingClient, name: str, agent: Agent, processes: int) -> None:
        """Register a VM, and start its processes."""
        request = {
            "containerId": name,
            "ctlSerial": agent.path("ctl"),
            "ioSerial": agent.path("io"),
            "numIOStreams": processes,
        }
        answer = json.loads(runtime.accepted(Command.REGISTER_VM, request))
        for token in answer["io"]["tokens"] or ():
            session = 2 * len(self.shims) + 2
            client = BlockingClient(runtime.socket.getpeername())
            client.connectShim(token)
            process = {"args": ["run"], "terminal": False}
            data = {"id": str(session), "rootfs": "r", "image": "i", "process": process}
            runtime.accepted(Command.HYPER, hyperPayload("newcontainer", data, [token]))
            self.shims.append(Shim(client, session))
        self.runtimes.append(Runtime(runtime, name))

    @property
    def peers(self) -> list[Peer]:
        """All clients."""
        return [*self.shims, *self.runtimes]

    def run(self, until: Callable[[], object], timeout: float = 60.0, finish: bool = False) -> None:
        """
        Go on until something is true.

        @param finish: come to an end.
        """
        deadline = time.monotonic() + timeout
        due = 0.0
        while not until():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout} s: {self.problems()}")
            poll = select.poll()
            byDescriptor = {}
            for peer in self._replaceLeavers(finish) + self.peers:
                if not peer.closed:
                    events = select.POLLIN | (select.POLLOUT if peer.end.outgoing else 0)
                    poll.register(peer.end.socket, events)
                    byDescriptor[peer.end.socket.fileno()] = peer
            for fd, _ in poll.poll(1000 * self._pause):
                byDescriptor[fd].read()
            for runtime in self.runtimes:
                if runtime.closed:
                    runtime.connectAgain(self._path)
            now = time.monotonic()
            for peer in [*self.peers, *self.leavers]:
                if now >= due:
                    peer.act(finish)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    peer.end.write()
            if now >= due:
                due = now + self._pause

    def _replaceLeavers(self, finish: bool) -> list[Peer]:
        """
        Replace the leavers whose connections have ended.

        @param finish: by nothing.
        @return: those that read by now.
        """
        for leaver in [each for each in self.leavers if each.closed]:
            leaver.end.socket.close()
            self.leavers.remove(leaver)
            self.left.append(leaver)
        while len(self.leavers) < 2 and not finish:
            nth = len(self.left) + len(self.leavers)
            name = f"vm{nth % len(self.runtimes)}"
            size = UNREAD if not any(each.size > 6 for each in self.leavers) else 6
            self.leavers.append(Leaver(BlockingClient(self._path), name, size, nth * 7 % 10 / 10))
        now = time.monotonic()
        return [leaver for leaver in self.leavers if now >= leaver.readsAt]

    def finish(self, timeout: float = 60.0) -> None:
        """Let all processes come to their end, and everything arrive."""
        self.agents.finish = True
        self.run(self._settled, timeout, finish=True)

    def _settled(self) -> bool:
        processes = self.processes()
        return (
            all(shim.finished and shim.status is not None for shim in self.shims)
            and not any(peer.waiting and not peer.closed for peer in self.peers)
            and len(processes) == len(self.shims)
            and not self.leavers
        )

    def processes(self) -> dict[int, Process]:
        """All processes by their sessions."""
        found = [p for agent in self.agents.agents for p in agent.processes.values()]
        return {process.session: process for process in found}

    def closed(self) -> int:
        """How many connections the proxy has closed."""
        clients = sum(peer.closed for peer in self.peers) + sum(r.lost for r in self.runtimes)
        return clients + sum(agent.closed for agent in self.agents.agents)

    def problems(self) -> list[str]:
        """All that is not as it was sent."""
        found = [wrong for peer in [*self.peers, *self.left] for wrong in peer.wrong]
        found += [f"{len(each.waiting)} answers lost: {each.vm}" for each in self.left if each.cut]
        processes = self.processes()
        for shim in self.shims:
            process = processes[shim.session]
            for meter, sent in zip(shim.meters, process.sent, strict=True):
                if not meter.good or (shim.status is not None and meter.next != sent):
                    found.append(f"output of {shim.session}: {meter}, {sent} sent")
            if not process.stdin.good:
                found.append(f"stdin of {shim.session}: {process.stdin}, {shim.sent} sent")
            if shim.status not in (None, STATUS):
                found.append(f"status {shim.status} of {shim.session}")
            if process.signals > shim.signals:
                found.append(f"{process.signals} of {shim.signals} signals for {shim.session}")
        if self.closed():
            found.append(f"{self.closed()} connections closed")
        return found

    def close(self) -> None:
        """End it all."""
        for peer in [*self.peers, *self.leavers]:
            peer.end.socket.close()
        self.agents.close()
