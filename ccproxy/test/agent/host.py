"""
A test case that runs an embedded agent and is its host, over real sockets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from struct import Struct
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from ccproxy.agent.service import EmbeddedAgent
from ccproxy.test.agent.doubles import Pair, jsonOf, newcontainer
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import (
    CONTROL_HEADER,
    IO_HEADER,
    MessageDecoder,
    encodeControl,
    encodeIO,
)

reactor: Any = _reactor
CC = Dialect.CC
Code = ControlCode
TIMEOUT = 40.0


class Host(Protocol):
    """
    The host's end of a channel.

    @ivar got: the messages that have come.
    @ivar closed: whether the connection has ended.
    """

    def __init__(self, header: Struct) -> None:
        self.decoder = MessageDecoder(header)
        self.transport: Any
        self.got: list[Pair] = []
        self.closed = False
        self._waiter: tuple[Callable[[], object], Deferred[None]] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.decoder.feed(data)
        while (message := self.decoder.next()) is not None:
            self.got.append((message.number, message.body))
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self._look()

    def _look(self) -> None:
        if self._waiter is not None and self._waiter[0]():
            _, deferred = self._waiter
            self._waiter = None
            deferred.callback(None)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds of what has come."""
        if not condition():
            deferred: Deferred[None] = Deferred()
            self._waiter = condition, deferred
            deferred.addTimeout(TIMEOUT, reactor)
            await deferred

    def read(self, number: int) -> bytes:
        """What came for a number, joined."""
        return b"".join(body for n, body in self.got if n == number)


class AgentTestCase(TestCase):
    """Runs an embedded agent and is its host."""

    timeout = 120
    control: Host
    io: Host

    def setUp(self) -> None:
        # Socket paths are short, and trial's folders are not.
        self.folder = f"/tmp/ccproxy-{os.getpid()}-{id(self):x}"
        os.mkdir(self.folder)
        self.controlPath = os.path.join(self.folder, "ctl")
        self.ioPath = os.path.join(self.folder, "io")

        def removeFolder() -> None:
            os.rmdir(self.folder)  # which fails if a socket has stayed

        self.addCleanup(removeFolder)

    async def boot(self, dialect: Dialect = CC, strict: bool = False) -> None:
        """Start a VM, connect to it and start its pod."""
        self.service = EmbeddedAgent(reactor, self.controlPath, self.ioPath, dialect, strict)
        self.service.startService()
        self.addCleanup(self.stop)
        self.control = await self.connect(self.controlPath, CONTROL_HEADER)
        self.io = await self.connect(self.ioPath, IO_HEADER)
        await self.control.until(lambda: self.control.got)
        self.assertEqual(self.control.got, [(Code.READY, b"")])
        self.control.got.clear()
        await self.agree(Code.STARTPOD, {"hostname": "h", "shareDir": "s"})

    async def connect(self, path: str, header: Struct) -> Host:
        """Connect to a channel."""
        host: Host = await connectProtocol(UNIXClientEndpoint(reactor, path), Host(header))
        self.addCleanup(host.transport.abortConnection)
        return host

    def stop(self) -> Deferred[None]:
        """Stop the service, which leaves nothing."""

        def check(_: object) -> None:
            for path in (self.controlPath, self.ioPath):
                self.assertFalse(os.path.exists(path))

        return self.service.stopService().addCallback(check)

    async def send(self, code: int, data: object = b"") -> Pair:
        """Send a command; its answer."""
        self.control.transport.write(encodeControl(code, jsonOf(data)))

        def answers() -> list[Pair]:
            return [pair for pair in self.control.got if pair[0] in (Code.ACK, Code.ERROR)]

        await self.control.until(answers)
        answer = answers()[0]
        self.control.got.remove(answer)
        return answer

    async def agree(self, code: int, data: object = b"") -> bytes:
        """Send a command that is answered with an ACK; its body."""
        answer, body = await self.send(code, data)
        self.assertEqual(answer, Code.ACK, body)
        return body

    async def run_(self, script: str, **process: object) -> None:
        """Run a shell script as container C{c} on 3 and 4."""
        args = ["/bin/sh", "-c", script]
        await self.agree(Code.NEWCONTAINER, newcontainer(args=args, **process))

    def stdin(self, *bodies: bytes, number: int = 3) -> None:
        """Send standard input."""
        self.io.transport.write(b"".join(encodeIO(number, body) for body in bodies))

    async def ended(self, number: int = 3) -> int:
        """Wait for the end of a process; its exit status."""
        at = (number, b"")
        got = self.io.got
        await self.io.until(lambda: at in got and got[-1] != at and got[-1][0] == number)
        self.assertEqual(got[-2], at)
        return got[-1][1][0]

    async def printed(self, text: bytes, number: int = 3) -> None:
        """Wait until something was written."""
        await self.io.until(lambda: text in self.io.read(number))
