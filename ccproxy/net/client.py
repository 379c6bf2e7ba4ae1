"""
The client library: the client protocol's other end, for runtimes, shims and tools.

Example::

    async def start(reactor):
        client = await connectUNIX(reactor, "unix:///run/cc/proxy.sock")
        io = await client.attachVM("pod", numIOStreams=1)
        await client.hyper("newcontainer", data, io.tokens)
        await client.close()

An L{IProcessOutput} given to the connection gets what the process writes, and its exit status.
Its backpressure is C{client.pauseProducing()} and C{client.resumeProducing()}; that of stdin is
the transport's, as everywhere in Twisted: C{client.registerProducer()}.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import attrs
from msgspec import UNSET, Raw
from twisted.internet import interfaces
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ..errors import (
    ConnectionClosed,
    DeadlineExceeded,
    LocalProtocolError,
    ProxyError,
    RemoteProtocolError,
    RequestError,
)
from ..wire import payloads
from ..wire.codes import Command, FrameType, Stream
from ..wire.frames import Frame, FrameDecoder, encodeFrame, encodeStream
from ..wire.messages import LOST_STATUS
from .address import DEFAULT_SOCKET, socketPath
from .deadlines import Deadlines
from .monotonic import useMonotonicTime

#: The longest payload of a stdin frame that we send, in bytes; the agents' own pace is slower.
STDIN_FRAME = 8192
_READ_SIZE = 65536
_log = Logger()


class IProcessOutput(Interface):
    """What comes out of the process whose shim a connection is."""

    def stdout(data: bytes) -> None:
        """The process has written to its stdout, or to its terminal."""

    def stderr(data: bytes) -> None:
        """The process has written to its stderr."""

    def exited(status: int) -> None:
        """
        The process has ended and all that it wrote has come.

        @param status: 0 to 255.
        """


@attrs.frozen
class IOStreams:
    """
    The result of RegisterVM and AttachVM.

    @ivar url: where shims connect; empty if the proxy did not say.
    @ivar tokens: the I/O tokens that were asked for.
    """

    url: str
    tokens: list[str]


@attrs.define(eq=False)
class _Pending:
    """A command without its answer."""

    command: Command
    answer: Deferred[bytes]


@implementer(interfaces.IPushProducer)
class ProxyClient(Protocol):
    """
    A connection to the proxy.

    Each command is sent at once and gives a Deferred. It fails with L{ProxyError} if the proxy
    answers with an error, with L{ConnectionClosed} if the connection ends before, and with
    L{DeadlineExceeded} after its C{timeout}, in seconds. Cancelling it, as a timeout does, does
    not take the command back: its answer is discarded.

    @ivar output: gets streams and notifications, if there is one.
    """

    def __init__(
        self,
        output: object | None = None,
        clock: interfaces.IReactorTime | None = None,
    ) -> None:
        """
        @param output: an L{IProcessOutput}, for a connection that becomes a shim.
        @param clock: measures timeouts; without one no command can have a C{timeout}.
        """
        self.output = None if output is None else IProcessOutput(output)
        self._deadlines = None if clock is None else Deadlines(clock)
        self._decoder = FrameDecoder()
        self._pending: deque[_Pending] = deque()
        self._waiters: list[Deferred[None]] = []
        self._ended = False
        self._spare: socket.socket | None = None

    # Twisted's side

    def connectionMade(self) -> None:
        """Keep a way to what the proxy sent last: see L{connectionLost}."""
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if isinstance(handle, socket.socket):
            self._spare = handle.dup()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the proxy."""
        if self._ended:
            return
        self._decoder.feed(data)
        try:
            while (frame := self._decoder.next()) is not None:
                self._received(frame)
        except RemoteProtocolError as error:
            self._end(f"the proxy sent what is not its protocol: {error}")
            self._transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection has ended.

        Twisted drops a connection when a write fails, with all that was not read yet; but what
        a proxy sends before it closes is what matters most, such as an exit status. So it is
        read from a duplicate of the socket.
        """
        if self._spare is not None:
            with suppress(OSError), self._spare:
                while not self._ended and (data := self._spare.recv(_READ_SIZE)):
                    self.dataReceived(data)
        last = self._pending and self._pending[0]
        if last and last.command is Command.DISCONNECT_SHIM and reason.check(ConnectionDone):
            # It has no response: the end of the connection is what acknowledges it.
            self._pending.popleft().answer.callback(b"")
        self._end(f"the connection to the proxy has ended: {reason.getErrorMessage()}")
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    @property
    def _transport(self) -> interfaces.ITCPTransport:
        assert self.transport is not None
        return self.transport  # type: ignore[return-value]

    def _end(self, why: str) -> None:
        """Nothing more can be answered."""
        self._ended = True
        pending, self._pending = self._pending, deque()
        for each in pending:
            each.answer.errback(ConnectionClosed(f"{each.command.title} was not answered: {why}"))

    # Frames from the proxy

    def _received(self, frame: Frame) -> None:
        if frame.type is FrameType.RESPONSE:
            self._answered(frame)
        elif self.output is None or frame.type is FrameType.COMMAND:
            raise RemoteProtocolError(f"unexpected {frame.type.name.lower()} frame")
        elif frame.type is FrameType.NOTIFICATION:
            # ProcessExited is the only one; a later version's others can be passed over.
            if frame.opcode == 0:
                status = frame.payload[0] if len(frame.payload) == 1 else LOST_STATUS
                if len(frame.payload) != 1:
                    _log.warn(
                        "the proxy told an exit status of {size} bytes instead of one: the process"
                        " counts as exited with {status}",
                        event="bad-status",
                        size=len(frame.payload),
                        status=status,
                    )
                self.output.exited(status)
        elif frame.opcode == Stream.STDOUT:
            self.output.stdout(frame.payload)
        elif frame.opcode == Stream.STDERR:
            self.output.stderr(frame.payload)

    def _answered(self, frame: Frame) -> None:
        if not self._pending or self._pending[0].command != frame.opcode:
            raise RemoteProtocolError(f"response to opcode {frame.opcode}, which was not asked")
        answer = self._pending.popleft().answer
        if not frame.error:
            answer.callback(frame.payload)
            return
        try:
            text = payloads.decode(payloads.ErrorResponse, frame.payload).msg
        except RequestError:
            text = frame.payload.decode(errors="replace")
        answer.errback(ProxyError(text))

    # Commands

    def _command(
        self, command: Command, payload: object = None, timeout: float | None = None
    ) -> Deferred[bytes]:
        if self._ended or self.transport is None:
            return fail(ConnectionClosed(f"{command.title} was not sent: there is no connection"))
        if timeout is not None and self._deadlines is None:
            raise LocalProtocolError("a timeout needs a clock")
        answer: Deferred[bytes] = Deferred()
        body = b"" if payload is None else payloads.encode(payload)
        self._pending.append(_Pending(command, answer))
        self._transport.write(encodeFrame(FrameType.COMMAND, command, body))
        if timeout is not None and self._deadlines is not None:

            def late(result: object, seconds: float) -> None:
                raise DeadlineExceeded(f"no answer to {command.title} within {seconds:g} s")

            answer.addTimeout(timeout, self._deadlines, late)
        return answer

    def registerVM(
        self,
        containerId: str,
        ctlSerial: str,
        ioSerial: str,
        console: str | None = None,
        numIOStreams: int = 0,
        timeout: float | None = None,
    ) -> Deferred[IOStreams]:
        """
        Make a VM known to the proxy, and attach to it.

        @param containerId: the VM's name.
        @param ctlSerial: the path of its control channel's socket.
        @param ioSerial: the path of its I/O channel's socket.
        @param console: the path of its console's socket.
        @param numIOStreams: how many tokens are wanted.
        """
        request = payloads.RegisterVM(containerId, ctlSerial, ioSerial, console, numIOStreams)
        answer = self._command(Command.REGISTER_VM, request, timeout)
        return answer.addCallback(_ioStreams, Command.REGISTER_VM)

    def attachVM(
        self, containerId: str, numIOStreams: int = 0, timeout: float | None = None
    ) -> Deferred[IOStreams]:
        """
        Choose a registered VM for the commands that follow.

        @param containerId: the VM's name.
        @param numIOStreams: how many tokens are wanted.
        """
        request = payloads.AttachVM(containerId, numIOStreams)
        answer = self._command(Command.ATTACH_VM, request, timeout)
        return answer.addCallback(_ioStreams, Command.ATTACH_VM)

    def unregisterVM(self, containerId: str, timeout: float | None = None) -> Deferred[None]:
        """
        Make the proxy forget a VM.

        @param containerId: the VM's name.
        """
        request = payloads.UnregisterVM(containerId)
        return _done(self._command(Command.UNREGISTER_VM, request, timeout))

    def hyper(
        self,
        hyperName: str,
        data: object = UNSET,
        tokens: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Deferred[bytes]:
        """
        Send a control command to the agent of the attached VM.

        @param hyperName: the command's name.
        @param data: its data: bytes that are JSON already, or anything that can become JSON.
        @param tokens: the token of the process that the command starts, if it starts one.
        @return: what the agent answered.
        """
        raw = data if data is UNSET else Raw(_json(data))
        request = payloads.Hyper(hyperName, list(tokens) or None, raw)
        return self._command(Command.HYPER, request, timeout)

    def connectShim(self, token: str, timeout: float | None = None) -> Deferred[None]:
        """
        Become the shim of a token's process. L{output} gets what the process writes from now on.

        @param token: from L{registerVM} or L{attachVM}.
        """
        if self.output is None:
            raise LocalProtocolError("a shim needs an IProcessOutput")
        return _done(self._command(Command.CONNECT_SHIM, payloads.ConnectShim(token), timeout))

    def disconnectShim(self, timeout: float | None = None) -> Deferred[None]:
        """
        Be the shim no more. This gives up the token, and the proxy closes the connection; that is
        when the Deferred fires.
        """
        return _done(self._command(Command.DISCONNECT_SHIM, None, timeout))

    def signal(
        self,
        signalNumber: int,
        columns: int | None = None,
        rows: int | None = None,
        timeout: float | None = None,
    ) -> Deferred[None]:
        """
        Send a signal to the shim's process.

        @param signalNumber: as Linux counts them.
        @param columns: for SIGWINCH, the width of the terminal in cells.
        @param rows: for SIGWINCH, the height of the terminal in cells.
        """
        request = payloads.Signal(signalNumber, columns, rows)
        return _done(self._command(Command.SIGNAL, request, timeout))

    # Streams to the proxy

    def sendStdin(self, data: bytes) -> None:
        """
        Send bytes to the stdin of the shim's process. No bytes are no end: see L{closeStdin}.
        """
        for start in range(0, len(data), STDIN_FRAME):
            self._stream(Stream.STDIN, data[start : start + STDIN_FRAME])

    def closeStdin(self) -> None:
        """Send the end of stdin to the shim's process."""
        self._stream(Stream.STDIN, b"")

    def log(
        self,
        level: Literal["debug", "info", "warn", "error"],
        message: str,
        source: Literal["shim", "runtime"] = "runtime",
        containerId: str | None = None,
    ) -> None:
        """
        Write to the proxy's log.

        @param message: not empty.
        @param source: who speaks.
        @param containerId: what it is about.
        """
        entry = payloads.LogEntry(source, level, message, containerId)
        self._stream(Stream.LOG, payloads.encode(entry))

    def _stream(self, stream: Stream, payload: bytes) -> None:
        if not self._ended:
            self._transport.write(encodeStream(stream, payload))

    # Flow and end

    def pauseProducing(self) -> None:
        """Take nothing more from the proxy, once what has been read already is handed over."""
        if not self._ended:
            self._transport.pauseProducing()  # type: ignore[attr-defined]

    def resumeProducing(self) -> None:
        """Go on."""
        if not self._ended:
            self._transport.resumeProducing()  # type: ignore[attr-defined]

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """
        Let the connection say when it can take more, of stdin above all.

        @param producer: an L{interfaces.IPushProducer}, or an L{interfaces.IPullProducer}, which
            is asked for more only when all that was sent has reached the socket.
        @param streaming: whether it is the former.
        """
        self._transport.registerProducer(producer, streaming)  # type: ignore[attr-defined]

    def unregisterProducer(self) -> None:
        """The producer has no more."""
        self._transport.unregisterProducer()  # type: ignore[attr-defined]

    def stopProducing(self) -> None:
        """Close the connection, after all that was sent."""
        if not self._ended:
            self._transport.loseConnection()

    def close(self) -> Deferred[None]:
        """
        Close the connection, after all that was sent.

        @return: fires when it is closed.
        """
        self.stopProducing()
        return self.whenClosed()

    def whenClosed(self) -> Deferred[None]:
        """
        @return: fires when the connection has ended, at whichever end. Never fails.
        """
        if self._ended:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter


def _json(data: object) -> bytes:
    if isinstance(data, Raw | bytes):
        return bytes(data)
    return payloads.encode(data)


def _ioStreams(payload: bytes, command: Command) -> IOStreams:
    try:
        io = payloads.decode(payloads.IOResponse, payload or b"{}").io
    except RequestError as error:
        raise RemoteProtocolError(f"response to {command.title}: {error}") from None
    url = next((each for each in (io.url, io.URL) if isinstance(each, str)), "")
    return IOStreams(url, io.tokens or [])


def _done(answer: Deferred[bytes]) -> Deferred[None]:
    return answer.addCallback(lambda payload: None)


def connect(
    endpoint: interfaces.IStreamClientEndpoint,
    clock: interfaces.IReactorTime | None = None,
    output: object | None = None,
) -> Deferred[ProxyClient]:
    """
    Connect to a proxy.

    @param endpoint: where it listens.
    @param clock: measures timeouts of commands.
    @param output: an L{IProcessOutput}, for a connection that becomes a shim.
    """
    connecting: Deferred[ProxyClient] = connectProtocol(endpoint, ProxyClient(output, clock))
    return connecting


def connectUNIX(
    reactor: interfaces.IReactorTime,
    url: str = DEFAULT_SOCKET,
    output: object | None = None,
    timeout: float = 5.0,
) -> Deferred[ProxyClient]:
    """
    Connect to the proxy at a UNIX socket. The reactor keeps monotonic time from then on, so that no
    step of the wall clock ends a wait early.

    @param url: C{unix://PATH}, or just the path.
    @param output: an L{IProcessOutput}, for a connection that becomes a shim.
    @param timeout: how long to try, in seconds.
    @raise ValueError: the address is none.
    """
    useMonotonicTime(reactor)
    endpoint = UNIXClientEndpoint(reactor, socketPath(url), timeout)
    return connect(endpoint, reactor, output)
