"""
Shims: each stands for one process, and checks all that comes from it.

A shim is killed in one of two ways. I{Cleanly}: it stops in both directions, and all that its
socket has taken is still looked at; then nothing may be lost. I{Abruptly}: what its socket holds is
gone with it, and only whole records may be missing.
"""

from __future__ import annotations

import random
import socket
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import deferLater
from zope.interface import implementer

from ccproxy.errors import ConnectionClosed, ProxyError
from ccproxy.net.client import IProcessOutput, ProxyClient, connectUNIX

from .programs import Task
from .records import HEADER, Check, Violation, record
from .vms import ScriptedVM

#: Seconds after which something counts as never happening.
PATIENCE = 120.0
MOST_STDIN = 8192


@implementer(IPushProducer)
class Feeder:
    """Sends records to stdin, as fast as the connection takes them."""

    def __init__(self, shim: Shim, client: ProxyClient) -> None:
        self._shim = shim
        self._client = client
        self._paused = False

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        shim = self._shim
        while not self._paused and shim.sent < shim.task.stdin:
            size = shim.random.randint(HEADER.size, MOST_STDIN)
            self._client.sendStdin(record(shim.task.seed + 2, shim.sent, size))
            shim.sent += 1
        if shim.sent == shim.task.stdin:
            self._client.closeStdin()
            self._client.unregisterProducer()

    def stopProducing(self) -> None:
        self._paused = True


@implementer(IProcessOutput)
class Shim:
    """
    The shim of one process, over all of its connections.

    @ivar task: what the process does.
    @ivar status: the exit status, once it has come.
    @ivar sent: how many records it has sent to stdin.
    @ivar reconnects: how often it has come back.
    @ivar lossy: whether it was killed abruptly.
    @ivar farewell: whether it acknowledges the exit status.
    @ivar connected: whether it has ever been connected.
    @ivar started: whether the process was started, as its runtime was told.
    @ivar done: whether it will do nothing more.
    @ivar token: its token.
    """

    def __init__(self, reactor: Any, path: str, token: str, task: Task) -> None:
        self.token = token
        self.task = task
        self.random = random.Random(task.seed)
        self.status: int | None = None
        self.sent = 0
        self.reconnects = 0
        self.lossy = False
        self.farewell = self.random.random() < 0.8
        self.connected = False
        self.started = False
        self.done = False
        self.outputs = [
            Check(f"stdout of process {task.seed}", task.seed),
            Check(f"stderr of process {task.seed}", task.seed + 1),
        ]
        self._reactor = reactor
        self._path = path
        self._client: ProxyClient | None = None
        self._killed = False

    # What comes.

    def stdout(self, data: bytes) -> None:
        self._output(0, data)

    def stderr(self, data: bytes) -> None:
        self._output(1, data)

    def _output(self, stream: int, data: bytes) -> None:
        try:
            if self.status is not None:
                raise Violation(f"output of process {self.task.seed} after its exit status")
            self.outputs[stream].feed(data)
        except Violation as problem:
            self.task.failed(problem)

    def exited(self, status: int) -> None:
        if self.status not in (None, status):
            self.task.failed(Violation(f"two exit statuses: {self.status}, {status}"))
        self.status = status
        client = self._client
        if client is not None and self.farewell:
            client.disconnectShim().addErrback(lambda reason: reason.trap(ConnectionClosed))
        elif client is not None:
            client.stopProducing()

    # What it does.

    async def attend(self, vm: ScriptedVM, kills: int, slow: bool) -> None:
        """
        Be the shim until the process has ended.

        @param kills: how often it is killed at most.
        @param slow: whether it takes its time to read.
        @raise Violation: the proxy did not do what it promises.
        """
        try:
            while self.status is None and await self._connection(vm, kills > 0, slow):
                kills -= 1
                await deferLater(self._reactor, self.random.choice([0, 0, 0.1, 1]))
        finally:
            self.done = True

    async def _connection(self, vm: ScriptedVM, kill: bool, slow: bool) -> bool:
        """
        Be the shim for the time of one connection.

        @return: whether it has to come back.
        """
        self._killed = False
        client = self._client = await connectUNIX(self._reactor, self._path, self, PATIENCE)
        try:
            await client.connectShim(self.token, PATIENCE)
        except (ProxyError, ConnectionClosed) as error:
            await client.close()
            forgotten = vm.ended and (self.lossy or vm.unregistered)
            gone = forgotten or (vm.over and not self.connected)
            if self.status is None and not gone:
                raise Violation(f"shim of process {self.task.seed}: {error}") from None
            return False
        self.connected = True
        calls = []
        if kill:
            calls.append(self._reactor.callLater(2 * self.random.random(), self._kill, client))
        if slow:
            calls.append(self._reactor.callLater(self.random.random(), self._doze, client))
        if self.task.stdin:
            feeder = Feeder(self, client)
            client.registerProducer(feeder, True)
            feeder.resumeProducing()
        await client.whenClosed().addTimeout(PATIENCE, self._reactor)
        for call in calls:
            if call.active():
                call.cancel()
        for output in self.outputs:
            output.cut()
        if self.status is not None:
            return False
        if vm.ended and vm.unregistered:
            # What nobody asks for any more ends without a status.
            return False
        if not self._killed:
            raise Violation(f"the shim of process {self.task.seed} was hung up on")
        self.reconnects += 1
        return True

    async def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self._client is not None:
            await self._client.signal(number, timeout=PATIENCE)

    def _kill(self, client: ProxyClient) -> None:
        if self.status is not None:
            return
        transport: Any = client.transport
        self._killed = True
        self.task.input.mayLose = True
        if self.random.random() < 0.6:
            transport.resumeProducing()
            transport.getHandle().shutdown(socket.SHUT_RDWR)
        else:
            self.lossy = True
            for output in self.outputs:
                output.mayLose = True
            transport.abortConnection()

    def _doze(self, client: ProxyClient) -> None:
        client.pauseProducing()
        self._reactor.callLater(2 * self.random.random(), client.resumeProducing)
