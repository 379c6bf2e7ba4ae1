"""
Tests for L{ccproxy.agent.service} and L{ccproxy.agent.listening}: the two sockets.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ccproxy.agent import listening
from ccproxy.agent.service import EmbeddedAgent
from ccproxy.config.settings import Settings
from ccproxy.net.polling import Poller
from ccproxy.service.embedded import EmbeddedVM
from ccproxy.test.agent.doubles import execcmd
from ccproxy.test.agent.host import AgentTestCase, reactor
from ccproxy.wire.codes import ControlCode, Dialect
from ccproxy.wire.messages import CONTROL_HEADER, IO_HEADER, encodeControl

CC, H0 = Dialect.CC, Dialect.HYPERSTART0
Code = ControlCode


class SocketTests(AgentTestCase):
    """The two sockets."""

    async def test_mode(self) -> None:
        """Only their owner may use them."""
        await self.boot()
        for path in (self.controlPath, self.ioPath):
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    async def test_oneAtATime(self) -> None:
        """A second connection waits, with what it sends, until the first closes."""
        await self.boot()
        first = self.control
        self.control = await self.connect(self.controlPath, CONTROL_HEADER)
        self.control.transport.write(encodeControl(Code.PING))
        first.transport.write(encodeControl(Code.PING))
        await first.until(lambda: first.got)
        self.assertEqual(self.control.got, [])
        first.transport.loseConnection()
        await self.control.until(lambda: self.control.got)
        self.assertEqual(self.control.got, [(Code.ACK, b"")])

    async def test_goneWhilePaused(self) -> None:
        """A host that goes while its channel is not read makes room for the next one."""
        await self.boot()
        await self.run_("exec sleep 60")
        self.stdin(*[b"x" * 4084] * 200)
        agent = self.service.agent
        while agent is None or not agent.io.paused:
            await deferLater(reactor, 0.01)
        served: Deferred[None] = Deferred()
        flowing = agent.io.flowing

        def flows(now: bool) -> None:
            flowing(now)
            if now:
                served.callback(None)

        self.patch(agent.io, "flowing", flows)
        self.io.transport.abortConnection()
        self.io = await self.connect(self.ioPath, IO_HEADER)
        await served
        await self.agree(Code.EXECCMD, execcmd(args=["echo", "out"]))
        await self.printed(b"out", 5)

    async def test_outputWaits(self) -> None:
        """Output waits while nobody is connected."""
        await self.boot()
        self.io.transport.loseConnection()
        await self.io.until(lambda: self.io.closed)
        await self.run_("echo waited; exit 4")
        self.io = await self.connect(self.ioPath, IO_HEADER)
        self.assertEqual(await self.ended(), 4)
        self.assertEqual(self.io.read(3), b"waited\n\x04")

    async def test_garbage(self) -> None:
        """Garbage closes its connection, and the next one is served."""
        await self.boot()
        self.control.transport.write(b"\0" * 100)
        await self.control.until(lambda: self.control.closed)
        self.control = await self.connect(self.controlPath, CONTROL_HEADER)
        await self.agree(Code.PING)

    async def test_unreadAtStop(self) -> None:
        """A stop waits a moment for a host that does not read, and not longer."""
        self.patch(listening, "LINGER", 0.2)
        await self.boot()
        self.io.transport.pauseProducing()
        await self.run_("exec cat /dev/zero")
        agent = self.service.agent
        while agent is None or agent.outputFlows:
            await deferLater(reactor, 0.01)
        await self.stop()

    async def test_powerOff(self) -> None:
        """hyperstart's destroypod ends the processes, answers, and closes all."""
        await self.boot(H0)
        await self.run_("trap 'exit 2' TERM; echo up; while :; do sleep .05; done")
        await self.printed(b"up")
        await self.agree(Code.DESTROYPOD)
        await self.control.until(lambda: self.control.closed)
        await self.io.until(lambda: self.io.closed)
        self.assertFalse(os.path.exists(self.controlPath))

    async def test_restart(self) -> None:
        """Started again, the service is another VM."""
        await self.boot()
        await self.stop()
        await self.boot()

    async def test_restartEmbedded(self) -> None:
        """So is an embedded VM, in a folder of its own each time."""
        folders: list[str] = []
        poller = Poller(reactor)
        self.addCleanup(poller.close)
        service = EmbeddedVM("vm", Settings(), poller, socket.socket.close, folders.append)
        for nth in range(2):
            service.startService()
            self.assertEqual(sorted(os.listdir(folders[nth])), ["control", "io"])
            await service.stopService()
            self.assertFalse(os.path.exists(folders[nth]))

    def test_pathTaken(self) -> None:
        """A path that cannot be listened on is a clear error, and nothing stays."""
        Path(self.ioPath).write_text("not a socket")
        service = EmbeddedAgent(reactor, self.controlPath, self.ioPath)
        error = self.assertRaises(OSError, service.startService)
        self.assertIn(self.ioPath, str(error))
        self.assertFalse(os.path.exists(self.controlPath))
        os.unlink(self.ioPath)
        service = EmbeddedAgent(reactor, "/tmp/" + "x" * 110, self.ioPath)
        self.assertRaises(OSError, service.startService)

    async def test_deadSocket(self) -> None:
        """A socket left behind is replaced, a living one is not."""
        await self.boot()
        other = EmbeddedAgent(reactor, self.controlPath, self.ioPath)
        self.assertRaises(OSError, other.startService)
        await self.agree(Code.PING)
        await self.stop()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(self.controlPath)
        await self.boot()
