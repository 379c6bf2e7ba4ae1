"""
A plain client that blocks: a runtime, or a shim, of which every byte can be chosen.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import attrs

from ..wire.codes import Command, FrameType, Notification, Stream
from ..wire.frames import Frame, FrameDecoder, encodeFrame
from .agent import ScriptedAgent


@attrs.frozen
class Output:
    """
    What a process has said.

    @ivar stdout: all its standard output.
    @ivar stderr: all its standard error.
    @ivar status: its exit status.
    """

    stdout: bytes
    stderr: bytes
    status: int


def encodePayload(payload: object) -> bytes:
    """Bytes as they are, L{None} as nothing, all else as JSON."""
    if payload is None:
        return b""
    return payload if isinstance(payload, bytes) else json.dumps(payload).encode()


def commandFrame(command: int, payload: object = None) -> bytes:
    """The bytes of a command."""
    return encodeFrame(FrameType.COMMAND, command, encodePayload(payload))


def hyperPayload(
    hyperName: str, data: object = None, tokens: list[str] | None = None
) -> dict[str, object]:
    """The payload of a Hyper; what is L{None} is left out."""
    members = {"hyperName": hyperName, "data": data, "tokens": tokens}
    return {name: value for name, value in members.items() if value is not None}


def registration(
    containerId: str, agent: ScriptedAgent, tokens: int = 0, **more: object
) -> dict[str, object]:
    """The payload of a RegisterVM for a scripted agent."""
    return {
        "containerId": containerId,
        "ctlSerial": agent.control.path,
        "ioSerial": agent.io.path,
        "numIOStreams": tokens,
        **more,
    }


class BlockingClient:
    """
    A connection to a proxy. Frames of a kind that is not asked for wait until it is.

    @ivar frames: what has come and was not asked for yet.
    @ivar closed: whether the proxy has closed the connection.
    """

    def __init__(self, path: str, timeout: float = 20.0) -> None:
        """
        @param path: the proxy's socket.
        @param timeout: seconds that anything waited for may take.
        """
        self.timeout = timeout
        self.frames: list[Frame] = []
        self.closed = False
        self._decoder = FrameDecoder(1 << 30)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(path)

    # Sending

    def send(self, data: bytes) -> None:
        """Send bytes. That the proxy has closed is left for the reading side to notice."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError:
            raise AssertionError("the proxy does not read from the client") from None

    def command(self, command: int, payload: object = None) -> None:
        """Send a command, without waiting for its response."""
        self.send(commandFrame(command, payload))

    def stdin(self, data: bytes) -> None:
        """Send a frame of stdin; an empty one is its end."""
        self.send(encodeFrame(FrameType.STREAM, Stream.STDIN, data))

    def log(self, entry: object) -> None:
        """Send a log entry."""
        self.send(encodeFrame(FrameType.STREAM, Stream.LOG, encodePayload(entry)))

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    # Receiving

    def read(self, timeout: float | None = None) -> bool:
        """Read once what there is; whether there was anything, the end included."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        if self.closed or not poll.poll(1000 * (self.timeout if timeout is None else timeout)):
            return False
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        self.closed = not data
        self._decoder.feed(data)
        self.frames += iter(self._decoder.next, None)
        return True

    def take(
        self, wanted: Callable[[Frame], bool], what: str, timeout: float | None = None
    ) -> Frame:
        """Wait for the first frame that is wanted, and take it from the others."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        seen = 0
        while True:
            for at in range(seen, len(self.frames)):
                if wanted(self.frames[at]):
                    return self.frames.pop(at)
            seen = len(self.frames)
            if not self.read(max(0.0, deadline - time.monotonic())):
                why = "the connection has ended" if self.closed else "time is up"
                raise AssertionError(f"no {what}: {why}, there are {self.frames[:5]}")

    def receive(self, timeout: float | None = None) -> Frame:
        """The next frame of any kind."""
        return self.take(lambda frame: True, "frame", timeout)

    def response(self, command: int, timeout: float | None = None) -> Frame:
        """The next response, which must be to this command."""
        frame = self.take(lambda f: f.type is FrameType.RESPONSE, "response", timeout)
        if frame.opcode != command:
            raise AssertionError(f"a response to {frame.opcode} instead of {command}: {frame}")
        return frame

    def exited(self, timeout: float | None = None) -> int:
        """The exit status in the next ProcessExited."""
        frame = self.take(
            lambda f: f.type is FrameType.NOTIFICATION and f.opcode == Notification.PROCESS_EXITED,
            "ProcessExited",
            timeout,
        )
        (status,) = frame.payload
        return status

    def output(self, stream: Stream, length: int) -> bytes:
        """Wait for so many bytes of a stream; all that came with them."""
        data = b""
        while len(data) < length:
            data += self.take(
                lambda f: f.type is FrameType.STREAM and f.opcode == stream,
                f"{length} bytes of {stream.name}, but {len(data)}",
            ).payload
        return data

    def untilExit(self, timeout: float | None = None) -> Output:
        """Everything up to ProcessExited, which no output may follow."""
        streams: dict[int, list[bytes]] = {Stream.STDOUT: [], Stream.STDERR: []}
        while True:
            frame = self.take(lambda f: f.type is not FrameType.RESPONSE, "ProcessExited", timeout)
            if frame.type is FrameType.NOTIFICATION:
                out, err = map(b"".join, streams.values())
                return Output(out, err, frame.payload[0])
            streams[frame.opcode].append(frame.payload)

    def silent(self, seconds: float = 0.2) -> None:
        """Make sure that nothing comes for a while, not the end either."""
        if self.frames or self.read(seconds):
            raise AssertionError(f"not silent: closed is {self.closed}, {self.frames[:5]}")

    def waitClosed(self, timeout: float | None = None) -> list[Frame]:
        """Wait for the end of the connection; the frames that came before it."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not self.closed:
            if not self.read(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"the connection stays open: {self.frames[:5]}")
        frames, self.frames = self.frames, []
        return frames

    # Commands and their responses

    def call(self, command: int, payload: object = None, timeout: float | None = None) -> Frame:
        """Send a command and wait for its response, whatever it is."""
        self.command(command, payload)
        return self.response(command, timeout)

    def accepted(self, command: int, payload: object = None, timeout: float | None = None) -> bytes:
        """Send a command that must succeed; the payload of its response."""
        return success(self.call(command, payload, timeout))

    def refused(self, command: int, payload: object = None, timeout: float | None = None) -> str:
        """Send a command that must fail; the text of the error."""
        return failure(self.call(command, payload, timeout))

    def registerVM(
        self, containerId: str, agent: ScriptedAgent, tokens: int = 0, **more: object
    ) -> list[str]:
        """Register a VM; its tokens."""
        payload = registration(containerId, agent, tokens, **more)
        return tokensOf(self.accepted(Command.REGISTER_VM, payload))

    def attachVM(self, containerId: str, tokens: int = 0) -> list[str]:
        """Attach to a VM; the tokens."""
        payload = {"containerId": containerId, "numIOStreams": tokens}
        return tokensOf(self.accepted(Command.ATTACH_VM, payload))

    def unregisterVM(self, containerId: str) -> None:
        """Unregister a VM."""
        self.accepted(Command.UNREGISTER_VM, {"containerId": containerId})

    def hyper(self, hyperName: str, data: object = None, tokens: list[str] | None = None) -> bytes:
        """Have the agent carry out a command; its answer."""
        return self.accepted(Command.HYPER, hyperPayload(hyperName, data, tokens))

    def hyperRefused(
        self, hyperName: str, data: object = None, tokens: list[str] | None = None
    ) -> str:
        """Send a Hyper that must fail; the text of the error."""
        return self.refused(Command.HYPER, hyperPayload(hyperName, data, tokens))

    def connectShim(self, token: str) -> None:
        """Become the shim of a token."""
        self.accepted(Command.CONNECT_SHIM, {"token": token})

    def signal(self, number: int, **size: int) -> None:
        """Send a signal, which must succeed."""
        self.accepted(Command.SIGNAL, {"signalNumber": number, **size})

    def signalRefused(self, number: int, **size: int) -> str:
        """Send a signal, which must fail; the text of the error."""
        return self.refused(Command.SIGNAL, {"signalNumber": number, **size})

    def probe(self) -> None:
        """Make sure that the connection still works, with a command that needs no VM."""
        text = self.refused(Command.ATTACH_VM, {"containerId": "there-is-none-such"})
        if text != "unknown containerID: there-is-none-such":
            raise AssertionError(f"the proxy does not serve the client: {text}")


def success(frame: Frame) -> bytes:
    """The payload of a response that is no error."""
    if frame.error:
        raise AssertionError(f"refused: {frame.payload!r}")
    return frame.payload


def failure(frame: Frame) -> str:
    """The text of a response that is an error."""
    if not frame.error:
        raise AssertionError(f"not refused: {frame.payload!r}")
    text = json.loads(frame.payload)["msg"]
    if not isinstance(text, str) or not text:
        raise AssertionError(f"an error without a text: {frame.payload!r}")
    return text


def tokensOf(payload: bytes) -> list[str]:
    """The tokens in the response to RegisterVM or AttachVM."""
    response: dict[str, Any] = json.loads(payload)
    return response["io"]["tokens"] or []
