"""
A scriptable agent: the two sockets of a VM, as a hypervisor offers them, with what is behind.

It answers what the test tells it to answer, records all that it gets, and has the weaknesses of
the real agents: it reads at most 4096 bytes at a time, serves one connection after the other, and
dies of what the real ones die of. It has one thread and nothing of Twisted, so that it serves
tests which block.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Union

import attrs

from ..errors import RemoteProtocolError
from ..wire.codes import HYPERSTART1_API, ControlCode, Dialect
from ..wire.messages import CONTROL_HEADER, IO_HEADER, Message, encodeControl, encodeIO
from .channel import Channel

#: The longest I/O message that hyperstart survives, in bytes.
HYPERSTART_MESSAGE = 4096
#: Seconds between the pieces of a READY that is sent in pieces.
PIECE_DELAY = 0.01

READY = encodeControl(ControlCode.READY)


@attrs.frozen
class Answer:
    """
    How a command is answered.

    @ivar body: the body of the answer.
    @ivar code: its code, ACK or ERROR as a rule.
    @ivar before: messages that are sent ahead of it, as their bytes.
    @ivar delay: seconds that it takes.
    """

    body: bytes = b""
    code: int = ControlCode.ACK
    before: Sequence[bytes] = ()
    delay: float = 0.0


def error(text: str) -> Answer:
    """The answer of an agent that refuses."""
    return Answer(text.encode(), ControlCode.ERROR)


def echo(message: Message) -> Answer:
    """The answer that has the command's own body."""
    return Answer(message.body)


#: What a command is answered with: L{None} is silence.
Script = Union[Answer, None, Callable[[Message], Union[Answer, None]]]

#: What each dialect refuses whatever the data.
_REFUSED = {
    Dialect.CC: {
        ControlCode.VERSION, ControlCode.READFILE, ControlCode.WRITEFILE,
        ControlCode.ONLINECPUMEM, ControlCode.SETUPINTERFACE, ControlCode.SETUPROUTE,
    },
    Dialect.HYPERSTART0: {ControlCode.PSCONTAINER, ControlCode.SIGNALPROCESS},
    Dialect.HYPERSTART1: {ControlCode.PSCONTAINER},
}  # fmt: skip


class ScriptedAgent:
    """
    The agent of one VM. Its sockets are there once it is made; L{close} removes them.

    @ivar answers: what each command is answered with; an ACK if it is not in here, or the ERROR
        that the dialect has for it.
    @ivar ready: the pieces that are sent, one by one, to whoever connects to the control channel.
        None of them, and READY is past.
    @ivar readyDelay: seconds before the first of them.
    @ivar readPause: seconds between two reads.
    @ivar strict: whether it dies of what the real agent of its dialect dies of.
    @ivar causeOfDeath: what it has died of, or C{""}.
    @ivar control: the control channel.
    @ivar io: the I/O channel.
    """

    def __init__(
        self,
        directory: str,
        name: str = "vm",
        dialect: Dialect = Dialect.CC,
        ready: Sequence[bytes] = (READY,),
        readyDelay: float = 0.0,
        readPause: float = 0.0,
        strict: bool = True,
        timeout: float = 20.0,
    ) -> None:
        """
        @param directory: where its sockets shall be.
        @param name: how their names begin.
        @param timeout: seconds that anything waited for may take.
        """
        self.dialect = dialect
        self.ready = ready
        self.readyDelay = readyDelay
        self.readPause = readPause
        self.strict = strict
        self.timeout = timeout
        self.answers: dict[int, Script] = {}
        self.causeOfDeath = ""
        self.control = Channel(os.path.join(directory, name + ".ctl"), CONTROL_HEADER)
        self.io = Channel(os.path.join(directory, name + ".io"), IO_HEADER)
        self._channels = (self.control, self.io)
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, bytes]] = []
        self._scheduled = 0
        self._closing = False
        self._wakeReader, self._wakeWriter = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # What the agent does by itself, in its thread.

    def _run(self) -> None:
        while not self._closing:
            poll = select.poll()
            poll.register(self._wakeReader, select.POLLIN)
            for channel in self._channels:
                if channel.connection is None:
                    poll.register(channel.listener, select.POLLIN)
                elif not channel.paused:
                    poll.register(channel.connection, select.POLLIN)
            until = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            found = {number for number, _ in poll.poll(until and until * 1000 + 1)}
            if self._wakeReader.fileno() in found:
                self._wakeReader.recv(4096)
            for channel in self._channels:
                if channel.listener.fileno() in found:
                    self._accept(channel)
                elif channel.connection is not None and channel.connection.fileno() in found:
                    self._read(channel)
            self._sendDue()

    def _accept(self, channel: Channel) -> None:
        channel.accept(self.timeout)
        self._notify()
        if channel is self.control:
            for nth, piece in enumerate(self.ready):
                self._schedule(self.readyDelay + nth * PIECE_DELAY, piece)

    def _read(self, channel: Channel) -> None:
        try:
            messages = channel.read()
        except RemoteProtocolError as failure:
            return self._die(f"a message that cannot be read: {failure}")
        if messages is None:
            self._drop(channel)
            return
        if self.strict:
            self._suffer(channel, messages)
        if channel is self.control:
            for message in messages:
                self._answer(message)
        self._notify()
        time.sleep(self.readPause)

    def _suffer(self, channel: Channel, messages: list[Message]) -> None:
        """Die of what the real agent of the dialect cannot bear."""
        if self.dialect is Dialect.CC:
            if channel.headerIsCut():
                self._die("a header that came in two reads")
        elif channel is self.io and any(m.size > HYPERSTART_MESSAGE for m in messages):
            self._die("an I/O message over 4096 bytes")

    def _die(self, cause: str) -> None:
        self.causeOfDeath = self.causeOfDeath or cause
        for channel in self._channels:
            self._drop(channel)

    def _answer(self, message: Message) -> None:
        script = self.answers.get(message.number, self._usual)
        answer = script(message) if callable(script) else script
        before = []
        if self.dialect.isHyperstart:
            reads = [CONTROL_HEADER.size, len(message.body)]
            before = [
                encodeControl(ControlCode.NEXT, size.to_bytes(4, "big")) for size in reads if size
            ]
        if answer is None:
            self._schedule(0, b"".join(before))
        else:
            own = encodeControl(answer.code, answer.body)
            self._schedule(answer.delay, b"".join([*before, *answer.before, own]))

    def _usual(self, message: Message) -> Answer:
        if message.number in _REFUSED[self.dialect]:
            return error("refused" if self.dialect is Dialect.CC else "")
        if message.number == ControlCode.VERSION:
            api = HYPERSTART1_API if self.dialect is Dialect.HYPERSTART1 else HYPERSTART1_API - 2
            return Answer(api.to_bytes(4, "big"))
        return Answer()

    def _schedule(self, delay: float, data: bytes) -> None:
        """Write to the control channel later; what is due at the same time keeps its order."""
        self._scheduled += 1
        heapq.heappush(self._due, (time.monotonic() + delay, self._scheduled, data))

    def _sendDue(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            data = heapq.heappop(self._due)[2]
            # That the proxy has gone is something that the test sees by other signs.
            with suppress(AssertionError):
                self.control.write(data)

    def _drop(self, channel: Channel) -> None:
        connection, channel.connection = channel.connection, None
        if connection is not None:
            connection.close()
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # What a test makes it do.

    def sendControl(self, code: int, body: bytes = b"") -> None:
        """Send a control message that nobody asked for."""
        self.control.write(encodeControl(code, body))

    def sendIO(self, number: int, body: bytes = b"") -> None:
        """Send an I/O message; an empty one is the end of a stream."""
        self.io.write(encodeIO(number, body))

    def sendEvent(self, container: str, process: str, status: int) -> None:
        """Send hyperstart 1.x's event for the end of a process."""
        event = {"container": container, "process": process, "event": "finished",
                 "status": status}  # fmt: skip
        self.sendControl(ControlCode.PROCESS_ASYNC_EVENT, json.dumps(event).encode())

    def exit(self, number: int, status: int, container: str = "", process: str = "init") -> None:
        """
        End a process, as the dialect does.

        @param number: the number of its stdin and stdout.
        @param container: its container, which only hyperstart 1.x tells.
        @param process: its process id, which only hyperstart 1.x tells.
        """
        if self.dialect is Dialect.HYPERSTART1:
            self.sendIO(number)
            self.sendEvent(container, process, status)
        else:
            self.io.write(encodeIO(number) + encodeIO(number, bytes([status])))

    def pause(self) -> None:
        """Read no more stdin, until L{resume}."""
        self._pause(True)

    def resume(self) -> None:
        """Read stdin again."""
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        self.io.paused = paused
        self._wake()

    def _wake(self) -> None:
        self._wakeWriter.send(b"\0")

    def hangUp(self, *channels: Channel) -> None:
        """
        The VM is gone, or some of its channels are. The sockets go on listening.

        @param channels: those that end, all by default. Each must have been connected.
        """
        for channel in channels or self._channels:
            self._hangUp(channel)
            self.waitDisconnected(channel)

    def _hangUp(self, channel: Channel) -> None:
        self.wait(lambda: channel.connections, "a connection")
        connection = channel.connection
        if connection is not None:
            # An error means that the proxy was quicker.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            channel.paused = False
            self._wake()

    def close(self) -> None:
        """The VM is gone, and its sockets too."""
        if self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join(self.timeout)
        for channel in self._channels:
            self._drop(channel)
            channel.listener.close()
            os.unlink(channel.path)
        self._wakeReader.close()
        self._wakeWriter.close()

    # What a test learns.

    def wait(self, probe: Callable[[], Any], what: str) -> None:
        """Wait until the probe is true; it is asked again with all that comes."""
        with self._changed:
            if not self._changed.wait_for(probe, self.timeout):
                dead = f" (it died of {self.causeOfDeath})" if self.causeOfDeath else ""
                raise AssertionError(f"the agent has not seen {what}{dead}")

    def waitConnected(self) -> None:
        """Wait until both channels are connected."""
        self.wait(lambda: self.control.connection and self.io.connection, "both connections")

    def waitDisconnected(self, channel: Channel) -> None:
        """Wait until the channel's connection has ended."""
        self.wait(lambda: channel.connection is None, "the end of the connection")

    def commands(self, code: int | None = None) -> list[Message]:
        """The commands that came so far, of one code or of all."""
        return [m for m in list(self.control.messages) if code is None or m.number == code]

    def command(self, code: int, nth: int = 0) -> Message:
        """Wait for the nth command of a code."""
        self.wait(lambda: len(self.commands(code)) > nth, f"command {code}, no. {nth}")
        return self.commands(code)[nth]

    def data(self, code: int, nth: int = 0) -> Any:
        """Wait for the nth command of a code; the JSON that it has."""
        return json.loads(self.command(code, nth).body)

    def pieces(self, number: int | None = None) -> list[bytes]:
        """The bodies of the I/O messages that came so far, of one number or of all."""
        return [m.body for m in list(self.io.messages) if number is None or m.number == number]

    def stdin(self, number: int, length: int) -> bytes:
        """Wait for so many bytes of stdin; all that came for the number."""
        self.wait(
            lambda: sum(map(len, self.pieces(number))) >= length,
            f"{length} bytes of stdin for {number}",
        )
        return b"".join(self.pieces(number))

    def waitEOF(self, number: int) -> None:
        """Wait for the end of stdin of a process."""
        self.wait(lambda: b"" in self.pieces(number), f"an end of stdin for {number}")
