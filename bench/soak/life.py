"""
The lives of VMs: what happens to them, by chance.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ccproxy.errors import ConnectionClosed, ProxyError
from ccproxy.net.client import ProxyClient, connectUNIX
from ccproxy.wire.codes import Dialect
from ccproxy.wire.messages import IO_HEADER

from .programs import Task
from .records import Violation
from .shims import PATIENCE, Shim
from .tally import Tally
from .vms import ScriptedVM

DIALECTS = [Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1]
SIGTERM = 15
#: The status of a process whose VM has gone.
LOST = 255


class Life:
    """
    A place for one VM after the other, all of the same name.

    @ivar name: the name.
    """

    def __init__(
        self, reactor: Any, path: str, folder: str, name: str, tally: Tally, seed: int
    ) -> None:
        """
        @param path: the daemon's socket.
        @param folder: where the VMs' sockets shall be.
        @param seed: what happens follows from it.
        """
        self.name = name
        self.random = random.Random(seed)
        self._reactor = reactor
        self._path = path
        self._folder = folder
        self._tally = tally
        self._nextSeed = (seed & 0xFFF) << 20
        self._serial = 0

    async def go(self, until: float) -> None:
        """
        Live.

        @param until: when no other VM begins any more, in seconds of the reactor's clock.
        """
        await self._sleep(3)
        while self._reactor.seconds() < until:
            self._serial += 1
            try:
                if self.random.random() < 0.15:
                    await self._abandon()
                else:
                    await self._vm()
            except Exception as problem:
                self._tally.failed(problem, f"{self.name}.{self._serial}")
            await self._sleep(1)
        # One that has died may still be known.
        client = await self._connect()
        with suppress(ProxyError):
            await client.unregisterVM(self.name, PATIENCE)
        await client.close()

    def _sleep(self, most: float) -> Deferred[None]:
        return deferLater(self._reactor, most * self.random.random(), lambda: None)

    def _connect(self) -> Deferred[ProxyClient]:
        return connectUNIX(self._reactor, self._path, timeout=PATIENCE)

    def _begin(self, what: Coroutine[Any, Any, None]) -> Deferred[None]:
        """Do something at the same time."""
        return Deferred.fromCoroutine(self._guard(what))

    async def _guard(self, what: Coroutine[Any, Any, None]) -> None:
        try:
            await what
        except Exception as problem:
            self._tally.failed(problem, f"{self.name}.{self._serial}")

    def _chance(self, probability: float) -> bool:
        return self.random.random() < probability

    # A VM

    async def _vm(self) -> None:
        """A VM from its registration to its end."""
        dialect = self.random.choice(DIALECTS)
        vm = ScriptedVM(self._reactor, self._folder, self.name, self._serial, dialect)
        try:
            await self._inhabit(vm)
        finally:
            death = vm.ended and not vm.killed
            await vm.end()
        if death:
            raise Violation(f"the {dialect.value} agent has died of what the proxy did")

    async def _inhabit(self, vm: ScriptedVM) -> None:
        """Run processes in a VM; then it can be ended."""
        client = await self._connect()
        paths = vm.controlPath, vm.ioPath
        io = await client.registerVM(self.name, *paths, numIOStreams=2, timeout=PATIENCE)
        self._tally.vms += 1
        self._tally.tokens += io.tokens
        await client.hyper("startpod", {"hostname": "h", "shareDir": "s"}, timeout=PATIENCE)
        await client.close()
        dying = None
        if self._chance(0.15):
            dying = self._reactor.callLater(4 * self.random.random(), self._die, vm)
        # It outlives the others: a hyperstart 0.x whose last container has ended has no pod.
        init = self._task(vm, init=True)
        shim = Shim(self._reactor, self._path, io.tokens[0], init)
        ends = [self._begin(self._run(vm, shim, "newcontainer", "first"))]
        if self._chance(0.15):
            ends.append(self._begin(self._unregister(vm, 3)))
        while not (shim.started or shim.done):
            await self._sleep(0.2)
        count = self.random.choice([0, 1, 1, 2, 2, 3, 5])
        others = [self._begin(self._process(vm, nth)) for nth in range(count)]
        await gatherResults(others)
        if dying is not None and dying.active():
            dying.cancel()
        if not vm.ended:
            await self._terminate(shim)
        await gatherResults(ends)
        if not vm.unregistered and self._chance(0.8):
            await self._unregister(vm, 0)

    def _die(self, vm: ScriptedVM) -> None:
        self._tally.deaths += 1
        vm.end()

    async def _unregister(self, vm: ScriptedVM, most: float) -> None:
        await self._sleep(most)
        vm.unregistered = True
        client = await self._connect()
        try:
            await client.unregisterVM(self.name, PATIENCE)
        finally:
            await client.close()

    # A process

    def _task(self, vm: ScriptedVM, init: bool = False) -> Task:
        """
        What a process shall do.

        @param init: it waits to be killed.
        """
        chance, cc = self.random, vm.dialect is Dialect.CC
        longest = 1024 if cc else 10240 - IO_HEADER.size
        bulk = self._chance(0.2)
        most = 4000 if bulk else 300
        self._nextSeed += 3
        task = Task(
            seed=self._nextSeed,
            outputs=(0, 0) if init else (int(most ** chance.random()), chance.randrange(30)),
            longest=longest,
            recordSize=longest if bulk else 0,
            perTurn=chance.choice([16, 64]) if bulk else 1,
            stdin=0 if init or self._chance(0.6) else int(5 ** (4 * chance.random())),
            status=None if init else chance.randrange(200),
            slow=cc and self._chance(0.3),
            failed=self._tally.failed,
        )
        vm.machine.tasks[task.seed] = task
        return task

    async def _process(self, vm: ScriptedVM, nth: int) -> None:
        """Attach, start a process, and be its shim."""
        await self._sleep(3)
        client = await self._connect()
        try:
            io = await client.attachVM(self.name, 1, PATIENCE)
        except ProxyError:
            if vm.over:
                return
            raise
        finally:
            await client.close()
        self._tally.tokens += io.tokens
        shim = Shim(self._reactor, self._path, io.tokens[0], self._task(vm))
        if self._chance(0.7):
            await self._run(vm, shim, "newcontainer", f"c{nth}")
        else:
            await self._run(vm, shim, "execcmd", "first")

    async def _run(self, vm: ScriptedVM, shim: Shim, kind: str, container: str) -> None:
        """
        Start a process, and be its shim until it has ended.

        @raise Violation: it was not as it must be.
        """
        task = shim.task
        kills = self.random.choice([0, 0, 0, 1, 1, 2, 4]) if task.status is not None else 0
        attending = Deferred.fromCoroutine(shim.attend(vm, kills, self._chance(0.2)))
        try:
            shim.started = await self._start(vm, task, shim, kind, container)
        finally:
            if not shim.started:
                await self._terminate(shim)
            await attending
        self._tally.reconnects += shim.reconnects
        self._tally.output += sum(output.size for output in shim.outputs)
        self._tally.stdin += task.input.size
        allowed = {task.status if shim.started else 0}
        if shim.started and task.status is None:
            allowed = {128 + SIGTERM if vm.dialect is Dialect.CC else 0}
        if vm.ended:
            allowed |= {LOST, None}
        elif not shim.connected:
            allowed |= {None}
        if shim.status not in allowed:
            raise Violation(f"process {task.seed} ended with {shim.status}, expected {allowed}")
        if shim.started and not vm.ended:
            for output, written in zip(shim.outputs, task.written, strict=True):
                output.end(written)
            if task.stdin:
                task.input.end(shim.sent)

    async def _start(
        self, vm: ScriptedVM, task: Task, shim: Shim, kind: str, container: str
    ) -> bool:
        """
        Send the start, before or after its shim.

        @return: whether the process was started; it may not be where the VM is over.
        """
        await self._sleep(0.5)
        envs = [{"env": "LONG", "value": "x" * (1 << 16)}] if self._chance(0.05) else []
        process = {"args": ["task", str(task.seed)], "envs": envs}
        if kind == "newcontainer":
            data = {"id": container, "rootfs": "r", "image": "i", "process": process}
        else:
            data = {"container": container, "process": process}
        client = await self._connect()
        try:
            await client.attachVM(self.name, 0, PATIENCE)
            await client.hyper(kind, data, [shim.token], PATIENCE)
        except ProxyError as error:
            # A process of a container that is not there yet, or no more.
            if not vm.over and kind != "execcmd":
                raise Violation(f"process {task.seed}: {error}") from None
            return False
        finally:
            await client.close()
        self._tally.processes += 1
        return True

    async def _terminate(self, shim: Shim) -> None:
        """End a process, or what waits to become one."""
        while not shim.done:
            with suppress(ProxyError, ConnectionClosed):
                await shim.signal(SIGTERM)
            await self._sleep(0.5)

    # Registrations that come to nothing

    async def _abandon(self) -> None:
        """Ask for a registration that cannot be, or leave before it is."""
        self._tally.abandoned += 1
        control, io = (
            os.path.join(self._folder, f"{self.name}.{self._serial}.{kind}") for kind in "ci"
        )
        client = await self._connect()
        if self._chance(0.3):
            try:
                await client.registerVM(self.name, control, io, timeout=PATIENCE)
            except ProxyError:
                return
            finally:
                await client.close()
            raise Violation("a VM without sockets was registered")
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for listening, path in ((first, control), (second, io)):
                listening.bind(path)
                listening.listen(1)
            answer = client.registerVM(self.name, control, io, numIOStreams=3)
            answer.addErrback(self._refused)
            await self._sleep(2)
            transport: Any = client.transport
            transport.abortConnection()
            await client.whenClosed()
            # The proxy still has to notice, or the name would be taken.
            await deferLater(self._reactor, 0.5)
        os.unlink(control)
        os.unlink(io)

    def _refused(self, reason: Failure) -> None:
        """The answer to a registration that was abandoned: there should be none."""
        if not reason.check(ConnectionClosed):
            self._tally.failed(Violation(reason.getErrorMessage()), self.name)
