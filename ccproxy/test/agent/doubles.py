"""
Doubles for the tests of the embedded agent: a host of its channels, and a machine on which
programs do what a test says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from zope.interface import implementer

from ccproxy.agent.agent import Agent
from ccproxy.agent.channel import Channel
from ccproxy.agent.interfaces import IMachine, IRunning, IRunningSink, Program, StartError
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import CONTROL_HEADER, IO_HEADER, Message, MessageDecoder

Pair = tuple[int, bytes]


def jsonOf(data: object) -> bytes:
    """What a command carries: bytes as they are, anything else as JSON."""
    return data if isinstance(data, bytes) else msgspec.json.encode(data)


@implementer(IRunning)
class FakeRunning:
    """A program that does what a test says."""

    def __init__(self, program: Program, sink: IRunningSink) -> None:
        self.program = program
        self.sink = sink
        self.stdin: list[bytes] = []
        self.closed = False
        self.reads = True
        self.waiting = 0
        self.flowing = True
        self.signals: list[int] = []
        self.size: tuple[int, int] | None = None
        self.gone = False

    def write(self, data: bytes) -> None:
        self.stdin.append(data)
        self.waiting += len(data)

    def flush(self) -> None:
        if self.reads:
            self.waiting = 0
            self.sink.stdinDrained()

    def closeStdin(self) -> None:
        self.closed = True

    def signal(self, number: int) -> None:
        if self.gone or number > 64:
            raise ProcessLookupError(3, "no such process")
        self.signals.append(number)

    def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)

    def pauseOutput(self) -> None:
        self.flowing = False

    def resumeOutput(self) -> None:
        self.flowing = True

    def end(self, returncode: int) -> None:
        """The program ends."""
        self.gone = True
        self.sink.ended(returncode)


@implementer(IMachine)
class FakeMachine:
    """
    A machine on which everything starts, but for what is in C{missing}.

    @ivar signals: what was sent to whole containers.
    @ivar pods: what was asked of it as a whole.
    @ivar shares: whether it has what the host shares.
    """

    def __init__(self) -> None:
        self.pods: list[tuple[str, ...]] = []
        self.shares = True
        self.running: list[FakeRunning] = []
        self.missing: dict[str, int] = {}
        self.signals: list[tuple[int | None, int]] = []
        self.files: dict[str, bytes] = {}
        self.psAsked: list[tuple[Sequence[str], Callable[[bytes | None], None]]] = []

    def startPod(self, hostname: str, shareDir: str) -> None:
        if not self.shares:
            raise FileNotFoundError("no such tag")
        self.pods.append(("start", hostname, shareDir))

    def endPod(self) -> None:
        self.pods.append(("end",))

    def start(self, program: Program, sink: IRunningSink) -> FakeRunning:
        status = self.missing.get(program.args[0])
        if status is not None:
            raise StartError(f"cannot start {program.args[0]!r}", status)
        self.running.append(FakeRunning(program, sink))
        return self.running[-1]

    def members(self, container: int | None) -> list[int]:
        return [
            100 + index
            for index, running in enumerate(self.running)
            if not running.gone and container in (None, running.program.container)
        ]

    def signal(self, container: int | None, number: int) -> None:
        self.signals.append((container, number))

    def ps(self, args: Sequence[str], done: Callable[[bytes | None], None]) -> None:
        self.psAsked.append((args, done))

    def readFile(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def writeFile(self, path: str, content: bytes) -> None:
        self.files[path] = content


class FakeHost:
    """The host of one channel, which keeps what the agent sends until a test takes it."""

    def __init__(self, channel: Channel, header: Any) -> None:
        self.channel = channel
        self.decoder = MessageDecoder(header)
        self.reading = True
        self.hungUp = False
        channel.attach(self)

    def send(self, data: bytes) -> None:
        self.decoder.feed(data)

    def pauseReading(self) -> None:
        self.reading = False

    def resumeReading(self) -> None:
        self.reading = True

    def hangUp(self) -> None:
        self.hungUp = True

    def take(self) -> list[Pair]:
        """The messages that have come since."""
        taken = []
        while (message := self.decoder.next()) is not None:
            taken.append((message.number, message.body))
        return taken


class Bench:
    """An agent on a fake machine, with hosts on both channels."""

    def __init__(self, dialect: Dialect, strict: bool = False, podStarted: bool = True) -> None:
        self.machine = FakeMachine()
        self.agent = Agent(dialect, self.machine, strict)
        self.control = FakeHost(self.agent.control, CONTROL_HEADER)
        self.io = FakeHost(self.agent.io, IO_HEADER)
        assert self.control.take() == [(ControlCode.READY, b"")]
        if podStarted:
            self.agree(ControlCode.STARTPOD, {"hostname": "h", "shareDir": "share"})

    def send(self, code: int, data: object = b"") -> list[Pair]:
        """Send a command; what comes on the control channel, less NEXT."""
        body = jsonOf(data)
        self.agent.control.received(Message(code, body, CONTROL_HEADER.size + len(body)))
        self.agent.control.turn()
        return [pair for pair in self.control.take() if pair[0] != ControlCode.NEXT]

    def agree(self, code: int, data: object = b"") -> bytes:
        """Send a command that is answered with an ACK; its body."""
        answers = self.send(code, data)
        assert [code for code, _ in answers] == [ControlCode.ACK], answers
        return answers[0][1]

    def refuse(self, code: int, data: object = b"") -> bytes:
        """Send a command that is answered with an ERROR; its body."""
        answers = self.send(code, data)
        assert [code for code, _ in answers] == [ControlCode.ERROR], answers
        return answers[0][1]

    def stdin(self, number: int, *bodies: bytes) -> None:
        """Send messages on the I/O channel, all at hand at once."""
        for body in bodies:
            self.agent.io.received(Message(number, body, IO_HEADER.size + len(body)))
        self.agent.io.turn()

    def newcontainer(self, name: str = "c", /, **process: object) -> FakeRunning:
        """Start a container; its running program."""
        self.agree(ControlCode.NEWCONTAINER, newcontainer(name, **process))
        return self.machine.running[-1]

    def execcmd(self, container: str = "c", /, **process: object) -> FakeRunning:
        """Start a process in a container; its running program."""
        self.agree(ControlCode.EXECCMD, execcmd(container, **process))
        return self.machine.running[-1]


def newcontainer(name: str = "c", /, **process: object) -> dict[str, object]:
    """The data of a newcontainer, its process on 3 and 4 unless told otherwise."""
    return {"id": name, "rootfs": "r", "image": "i", "process": processOf(3, process)}


def execcmd(container: str = "c", /, **process: object) -> dict[str, object]:
    """The data of an execcmd, its process on 5 and 6 unless told otherwise."""
    return {"container": container, "process": processOf(5, process)}


def processOf(number: int, process: dict[str, object]) -> dict[str, object]:
    """A process's object."""
    return {"stdio": number, "stderr": number + 1, "args": ["sh"], **process}
