"""
What runs in the agent's pod: containers and their processes, and how their ends are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import attrs
import msgspec
from zope.interface import implementer

from ..wire.codes import ControlCode, Dialect
from ..wire.messages import IO_HEADER, encodeControl, encodeIO
from . import payloads
from .channel import Channel
from .interfaces import IMachine, IRunning, IRunningSink, Program, Root, StartError

#: The most output in one message, in bytes: cc's, and hyperstart's without the header.
CC_OUTPUT = 1024
HYPERSTART_OUTPUT = 10240 - IO_HEADER.size
#: The stdin buffer of a process in a real hyperstart, in bytes.
HYPERSTART_STDIN = 512


class AgentPort(Protocol):
    """
    The agent, as its commands and its processes know it.

    L{ccproxy.agent.agent.Agent} says what each member is.
    """

    dialect: Dialect
    strict: bool
    machine: IMachine
    control: Channel
    io: Channel
    containers: dict[str, Container]
    besideInit: Container
    podStarted: bool
    outputFlows: bool
    whenEnded: Callable[[], None] | None
    afterAnswer: list[Callable[[], None]]

    @property
    def cc(self) -> bool: ...
    @property
    def anyProcess(self) -> bool: ...
    @property
    def anyContainer(self) -> bool: ...
    def acknowledge(self, body: bytes) -> None: ...
    def refuse(self, code: int, text: str) -> None: ...
    def newContainer(self, id: str) -> Container: ...
    def startProcess(self, process: Process) -> None: ...
    def byNumber(self, number: int) -> Process | None: ...
    def processEnded(self, process: Process) -> None: ...
    def stdinDrained(self, process: Process) -> None: ...
    def fail(self, reason: str) -> None: ...
    def end(self) -> None: ...


@attrs.define(eq=False)
class Container:
    """
    A container.

    @ivar id: its name.
    @ivar number: what the machine knows it by.
    @ivar processes: those that have not ended.
    @ivar first: the process that it was made with.
    @ivar root: its file system; none for what is no container.
    """

    id: str
    number: int
    processes: list[Process] = attrs.field(factory=list)
    first: Process | None = None
    root: Root | None = None

    @property
    def running(self) -> bool:
        """Whether its first process has not ended."""
        return self.first is not None and self.first in self.processes

    def process(self, id: str) -> Process | None:
        """The process of that name that has not ended."""
        return next((process for process in self.processes if process.id == id), None)


@implementer(IRunningSink)
class Process:
    """
    A process that the host asked for.

    @ivar id: its name; C{None} where the host gave none, which cc does not allow.
    @ivar stdio: the sequence number of its standard input and output.
    @ivar stderr: that of its standard error; C{None} with a terminal.
    @ivar status: its exit status, once it has ended.
    """

    def __init__(self, agent: AgentPort, container: Container, data: payloads.Process) -> None:
        self.agent = agent
        self.container = container
        self.id: str | None = data.id or (str(data.stdio) if agent.cc else None)
        self.terminal = data.terminal
        self.stdio = data.stdio
        self.stderr = None if data.terminal else data.stderr
        self.running: IRunning | None = None
        self.status: int | None = None
        self._data = data

    @property
    def numbers(self) -> list[int]:
        """Its sequence numbers."""
        return [self.stdio] if self.stderr is None else [self.stdio, self.stderr]

    def start(self) -> None:
        """
        Start it.

        @raise StartError: it cannot be started, and the dialect says so at once (cc). For
            hyperstart it has been started then, and ends with a status that tells.
        """
        data = self._data
        program = Program(
            args=data.args,
            environment={variable.env: variable.value for variable in data.envs},
            workdir=data.workdir,
            terminal=data.terminal,
            container=self.container.number,
            root=self.container.root if self.container.first is None else None,
        )
        try:
            self.running = self.agent.machine.start(program, self)
        except StartError as error:
            if self.agent.cc:
                raise
            status = error.status
            self.agent.afterAnswer.append(lambda: self.ended(status))
            return
        if not self.agent.outputFlows:
            self.running.pauseOutput()

    def write(self, data: bytes) -> None:
        """Take a message of standard input; an empty one is its end."""
        if self.running is None:
            return
        if not data:
            if not self.terminal:
                self.running.closeStdin()
        elif self.agent.strict and not self.agent.cc:
            self.running.write(data[: max(0, HYPERSTART_STDIN - self.running.waiting)])
        else:
            self.running.write(data)

    def stdinDrained(self) -> None:
        """The program has taken all its standard input."""
        self.agent.stdinDrained(self)

    def output(self, stream: int, data: bytes) -> None:
        """The program wrote: send it in messages of the dialect's size."""
        number = self.stdio if stream == 1 or self.stderr is None else self.stderr
        most = CC_OUTPUT if self.agent.cc else HYPERSTART_OUTPUT
        self.agent.io.send(b"".join(cut(number, data, most)))

    def ended(self, returncode: int) -> None:
        """It has ended, and all its output was sent."""
        if returncode >= 0:
            self.status = returncode
        else:
            self.status = 128 - returncode if self.agent.cc else 0
        self.running = None
        if self.agent.dialect is Dialect.HYPERSTART1:
            self.agent.io.send(encodeIO(self.stdio))
            event = {
                "container": self.container.id,
                "process": self.id or "(null)",
                "event": "finished",
                "status": self.status,
            }
            self.agent.control.send(
                encodeControl(ControlCode.PROCESS_ASYNC_EVENT, msgspec.json.encode(event))
            )
        else:
            self.agent.io.send(encodeIO(self.stdio) + encodeIO(self.stdio, bytes([self.status])))
        self.agent.processEnded(self)


def cut(number: int, data: bytes, most: int) -> Iterator[bytes | memoryview]:
    """
    The pieces of the messages that carry some output.

    @param most: how many bytes of it one message holds at most.
    """
    view = memoryview(data)
    for offset in range(0, len(data), most):
        part = view[offset : offset + most]
        yield IO_HEADER.pack(number, IO_HEADER.size + len(part))
        yield part
