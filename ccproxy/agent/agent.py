"""
The agent itself: its two channels, its pod, and the order of its answers.

It knows nothing of transports and reactors: messages come in through two L{Channel}s, bytes go
out through them, and programs run on an L{IMachine<ccproxy.agent.interfaces.IMachine>}.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from ..errors import RequestError
from ..wire.codes import ControlCode, Dialect
from ..wire.messages import CONTROL_HEADER, Message, encodeControl, encodeIO
from .channel import Channel
from .commands import BESIDE_INIT, COMMANDS, Crash
from .interfaces import IMachine
from .pod import Container, Process

#: How many bytes of standard input wait for one process before the I/O channel is not read.
STDIN_LIMIT = 1 << 16
#: A message on the I/O channel over this many bytes, header included, ends a real hyperstart.
HYPERSTART_MESSAGE = 4096


def _nothing() -> None:
    pass


class Agent:
    """
    The agent of one VM, from its start to its end.

    @ivar dialect: which agent it plays.
    @ivar strict: whether it also plays the real agents' weaknesses: hyperstart drops standard
        input that comes too fast and dies of a message over 4096 bytes or of a process without
        an id, cc dies of a header that comes in two reads.
    @ivar control: the control channel.
    @ivar io: the I/O channel.
    @ivar containers: by their ids.
    @ivar besideInit: what hyperstart 1.x runs outside of all containers.
    @ivar podStarted: whether containers can be started.
    @ivar whenEnded: called when all that a destroypod waits for has ended.
    @ivar off: whether the VM has ended; nothing does anything any more.
    @ivar whenOff: called when the VM ends by itself.
    @ivar outputFlows: whether the host takes output.
    @ivar afterAnswer: what to do once the command at hand is answered.
    """

    log = Logger()

    def __init__(self, dialect: Dialect, machine: IMachine, strict: bool = False) -> None:
        """
        @param dialect: cc, hyperstart0 or hyperstart1.
        """
        if not dialect.decided:
            raise ValueError(f"an agent of dialect {dialect.value!r} cannot be played")
        self.dialect = dialect
        self.machine = machine
        self.strict = strict
        self.control = Channel(self._command, _nothing, self._controlFlows)
        self.io = Channel(self._stdin, self._flush, self._outputFlows)
        self.containers: dict[str, Container] = {}
        self.podStarted = False
        self.whenEnded: Callable[[], None] | None = None
        self.off = False
        self.whenOff: Callable[[], None] = _nothing
        self.outputFlows = False
        self.afterAnswer: list[Callable[[], None]] = []
        self._numbers: dict[int, Process] = {}
        self._written: set[Process] = set()
        self._full: set[Process] = set()
        self._oddMessage = False
        self._containersMade = 0
        self.besideInit = self.newContainer(BESIDE_INIT)
        # The real one blocks in this write until somebody connects, and it writes it but once.
        self.control.send(encodeControl(ControlCode.READY))

    @property
    def cc(self) -> bool:
        """Whether it plays the cc agent, and not a hyperstart."""
        return self.dialect is Dialect.CC

    # The control channel

    def _command(self, message: Message) -> None:
        if self.off:
            return
        if not self.cc:
            for read in (CONTROL_HEADER.size, message.size - CONTROL_HEADER.size):
                if read:
                    self.control.send(encodeControl(ControlCode.NEXT, read.to_bytes(4, "big")))
        command = COMMANDS[self.dialect].get(message.number)
        try:
            if command is None:
                raise RequestError(f"unknown command {message.number}")
            result = command(self, message.body)
        except RequestError as error:
            self.refuse(message.number, str(error))
        except Crash as crash:
            self.fail(str(crash))
        else:
            if result is not None:
                self.acknowledge(result)
        actions, self.afterAnswer = self.afterAnswer, []
        for action in actions:
            action()

    def acknowledge(self, body: bytes) -> None:
        """Answer a command with its result."""
        self.control.send(encodeControl(ControlCode.ACK, body))

    def refuse(self, code: int, text: str) -> None:
        """Answer the command of that code with an error, as far as the dialect gives its text."""
        self.log.debug(
            "{dialect} agent refuses command {code}: {text}",
            dialect=self.dialect.value,
            code=code,
            text=text,
        )
        if self.cc:
            body = text.encode("utf-8", "replace")
        elif self.dialect is Dialect.HYPERSTART1 and code == ControlCode.KILLCONTAINER:
            body = text.encode("utf-8", "replace") + b"\0"
        else:
            body = b""
        self.control.send(encodeControl(ControlCode.ERROR, body))

    def _controlFlows(self, flowing: bool) -> None:
        # A host that does not read its answers gets no more of them.
        if flowing:
            self.control.resume("unread answers")
        else:
            self.control.pause("unread answers")

    # The I/O channel

    def _stdin(self, message: Message) -> None:
        if self.off:
            return
        if self.strict and not self.cc and message.size > HYPERSTART_MESSAGE:
            self.fail(f"a message of {message.size} bytes on the I/O channel")
            return
        process = self._numbers.get(message.number)
        if process is None:
            if not self.cc and self.outputFlows:
                self.io.send(encodeIO(message.number))
            return
        if message.number == process.stdio:
            process.write(message.body)
            self._written.add(process)
        if self.strict and not self.cc:
            # One turn of hyperstart's loop takes a message before it empties its buffers into
            # the processes' pipes, and only the next turn finds them writable.
            self._oddMessage = not self._oddMessage
            if not self._oddMessage:
                self._flush()

    def _flush(self) -> None:
        written, self._written = self._written, set()
        for process in written:
            if process.running is not None:
                process.running.flush()
                if process.running.waiting > STDIN_LIMIT:
                    self._full.add(process)
        if self._full:
            self.io.pause("unread stdin")

    def stdinDrained(self, process: Process) -> None:
        """A process has read its standard input: the I/O channel may go on."""
        self._full.discard(process)
        if not self._full:
            self.io.resume("unread stdin")

    def _outputFlows(self, flowing: bool) -> None:
        self.outputFlows = flowing
        for process in list(self._numbers.values()):
            if process.running is not None:
                if flowing:
                    process.running.resumeOutput()
                else:
                    process.running.pauseOutput()

    # The pod

    def newContainer(self, id: str) -> Container:
        """Make a container, empty and not yet known by its id."""
        self._containersMade += 1
        return Container(id, self._containersMade)

    def startProcess(self, process: Process) -> None:
        """
        Start a process and let the host reach it by its numbers.

        @raise RequestError: its numbers are in use.
        @raise StartError: the dialect says at once that it cannot be started.
        """
        numbers = process.numbers
        if len(set(numbers)) < len(numbers) or any(n in self._numbers for n in numbers):
            raise RequestError(f"sequence number in use: {numbers}")
        process.start()
        for number in numbers:
            self._numbers[number] = process
        process.container.processes.append(process)

    def byNumber(self, number: int) -> Process | None:
        """The process whose standard input and output have a sequence number."""
        process = self._numbers.get(number)
        return process if process is not None and process.stdio == number else None

    @property
    def anyProcess(self) -> bool:
        """Whether a process has not ended."""
        return bool(self._numbers)

    @property
    def anyContainer(self) -> bool:
        """Whether a container has not ended."""
        return any(container.running for container in self.containers.values())

    def processEnded(self, process: Process) -> None:
        """A process has ended, and the host was told of it on the I/O channel."""
        for number in process.numbers:
            del self._numbers[number]
        process.container.processes.remove(process)
        self._written.discard(process)
        self.stdinDrained(process)
        if self.cc:
            if not self._numbers and self.whenEnded is not None:
                self.whenEnded()
        elif process is process.container.first and not self.anyContainer:
            self._lastContainerEnded()

    def _lastContainerEnded(self) -> None:
        if self.whenEnded is not None:
            self.whenEnded()
        elif self.dialect is Dialect.HYPERSTART0 and self.podStarted:
            self.podStarted = False
            statuses = [
                container.first.status or 0
                for container in self.containers.values()
                if container.first is not None
            ]
            body = b"".join(status.to_bytes(4, "big") for status in statuses)
            self.control.send(encodeControl(ControlCode.POD_FINISHED, body))

    # The end

    def fail(self, reason: str) -> None:
        """The VM ends as a real one does when its agent dies."""
        self.log.warn(
            "the embedded {dialect} agent dies, as the real one would: {reason}",
            dialect=self.dialect.value,
            reason=reason,
        )
        self.end()

    def end(self) -> None:
        """The VM is powered off: both channels close."""
        if not self.off:
            self.off = True
            self.control.hangUp()
            self.io.hangUp()
            self.whenOff()
