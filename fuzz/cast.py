"""
Who takes part in a play: clients and agents that check all that the core sends them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ccproxy.core.channels import ControlSink, IOSink
from ccproxy.core.requests import connect
from ccproxy.core.vm import VM
from ccproxy.errors import RemoteProtocolError
from ccproxy.test.memory import MemoryClient, MemoryConnection, MemoryVM, World
from ccproxy.wire.codes import Command, Dialect, FrameType, Stream
from ccproxy.wire.decoder import Buffer
from ccproxy.wire.frames import FrameDecoder
from ccproxy.wire.messages import CONTROL_HEADER, IO_HEADER, MessageDecoder

#: The longest message on the I/O channel for a hyperstart, and for an agent that nobody knows yet.
SMALL_MESSAGE = 256 + IO_HEADER.size
#: The longest write to a channel of the cc agent.
TURN = 4096
#: The most stdin that may wait in the channel's socket. How a cc agent reads it is the model's
#: matter (ccproxy.test.core.modellines).
WINDOW = 16 << 10


class Line(MemoryConnection):
    """
    A connection whose peer, once it has gone, takes nothing more.

    @ivar largest: the longest write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def send(self, data: Sequence[Buffer]) -> int:
        if self.gone:
            assert not self.closed, "sent on a closed connection"
            return 0
        taken = super().send(data)
        self.largest = max(self.largest, taken)
        return taken

    def poll(self) -> None:
        """A peer that has gone is noticed though nothing is read."""
        if self.gone and self.paused and not self.closed:
            self.sink.peerGone()
            self.pump()


class Guest(MemoryClient):
    """
    A client.

    @ivar number: the number of stdin and stdout of the process whose shim it is, where it has been
        one for longer than a moment.
    """

    def __init__(self, world: World) -> None:
        self.connection: Line = Line()
        self.client = connect(world.registry, self.connection)
        self.connection.sink = self.client
        self.number: int | None = None
        self._limit = world.registry.context.limits.maxFrame
        self._decoder = FrameDecoder(1 << 24)
        self._asked = FrameDecoder(self._limit)
        self._opcodes: list[int] = []
        self._answered = 0
        self._exited = False

    def feed(self, data: bytes) -> None:
        """Bytes from the client; the commands in them are noted."""
        self.connection.feed(data)
        self._asked.feed(data)
        try:
            while (frame := self._asked.next()) is not None:
                if frame.type is FrameType.COMMAND:
                    self._opcodes.append(frame.opcode)
        except RemoteProtocolError as error:
            if error.opcode is not None:
                self._opcodes.append(error.opcode)

    def check(self, pure: bool) -> None:
        """
        Look at all that has come: what it may be, in which order, and for whom.

        @param pure: whether all output tells its number.
        """
        if self.client.session is not None:
            self.number = self.client.session.stdio
        for frame in self.frames():
            if frame.type is FrameType.RESPONSE:
                self._answered += 1
                asked = self._opcodes[: self._answered]
                assert len(asked) == self._answered, "a response to no command"
                assert asked[-1] == frame.opcode, "a response out of order"
                assert frame.opcode != Command.DISCONNECT_SHIM or frame.error
            elif frame.type is FrameType.NOTIFICATION:
                assert self.client.wasShim, "an exit status for a client that is no shim"
                assert frame.opcode == 0 and len(frame.payload) == 1
                assert not self._exited, "a second exit status"
                self._exited = True
            else:
                assert frame.type is FrameType.STREAM and self.client.wasShim
                assert frame.opcode in (Stream.STDOUT, Stream.STDERR) and frame.payload
                assert not self._exited, "output after the exit status"
                if pure and self.number is not None:
                    number = self.number + (frame.opcode == Stream.STDERR)
                    assert set(frame.payload) == {number & 0xFF}, "output of another process"


class Host(MemoryVM):
    """A VM's agent."""

    def __init__(self, vm: VM) -> None:
        self.vm = vm
        self.control: Line = Line()
        self.io: Line = Line()
        vm.connected(self.control, self.io)
        self.control.sink, self.io.sink = ControlSink(vm), IOSink(vm)
        self._commands = MessageDecoder(CONTROL_HEADER)
        self._stdin = MessageDecoder(IO_HEADER)
        self._wasCC = False

    def check(self) -> None:
        """Look at all that has come: whether the agent could have borne it (promise P19)."""
        self.commands()
        self._wasCC = self._wasCC or self.vm.dialect is Dialect.CC
        most = TURN if self._wasCC else SMALL_MESSAGE
        for _, body in self.stdin():
            assert len(body) + IO_HEADER.size <= most, "a message that a hyperstart does not bear"
        assert self.io.largest <= WINDOW, "more than may wait in the channel's socket"
