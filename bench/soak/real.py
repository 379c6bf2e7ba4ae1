"""
A few VMs that run real programs of this machine.
"""

from __future__ import annotations

import os
import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer

from ccproxy.agent.service import EmbeddedAgent
from ccproxy.net.client import IProcessOutput, connectUNIX

from .life import DIALECTS
from .records import Violation
from .shims import PATIENCE
from .tally import Tally


@implementer(IProcessOutput)
class Echo:
    """Takes what comes back."""

    def __init__(self) -> None:
        self.got = [b"", b""]
        self.status: Deferred[int] = Deferred()

    def stdout(self, data: bytes) -> None:
        self.got[0] += data

    def stderr(self, data: bytes) -> None:
        self.got[1] += data

    def exited(self, status: int) -> None:
        self.status.callback(status)


class RealLife:
    """One VM after the other in which C{cat} runs."""

    def __init__(
        self, reactor: Any, path: str, folder: str, name: str, tally: Tally, seed: int
    ) -> None:
        """
        @param path: the daemon's socket.
        @param folder: where the VMs' sockets shall be.
        """
        self.name = name
        self._random = random.Random(seed)
        self._reactor = reactor
        self._path = path
        self._tally = tally
        self._control = os.path.join(folder, f"{name}.ctl")
        self._io = os.path.join(folder, f"{name}.io")

    async def go(self, until: float) -> None:
        """
        Live.

        @param until: when no other VM begins any more, in seconds of the reactor's clock.
        """
        while self._reactor.seconds() < until:
            dialect = self._random.choice(DIALECTS)
            vm = EmbeddedAgent(self._reactor, self._control, self._io, dialect)
            vm.startService()
            try:
                await self._vm()
            except Exception as problem:
                self._tally.failed(problem, self.name)
            await vm.stopService()
            await deferLater(self._reactor, self._random.random(), lambda: None)

    async def _vm(self) -> None:
        """Send something through C{cat}."""
        runtime = await connectUNIX(self._reactor, self._path, timeout=PATIENCE)
        io = await runtime.registerVM(self.name, self._control, self._io, None, 1, PATIENCE)
        self._tally.vms += 1
        self._tally.tokens += io.tokens
        await runtime.hyper("startpod", {"hostname": "h", "shareDir": "s"}, timeout=PATIENCE)
        echo, status = Echo(), self._random.randrange(200)
        shim = await connectUNIX(self._reactor, self._path, echo, PATIENCE)
        await shim.connectShim(io.tokens[0], PATIENCE)
        args = ["sh", "-c", f"echo begun >&2; cat; exit {status}"]
        data = {"id": "c", "rootfs": "r", "image": "i", "process": {"args": args}}
        await runtime.hyper("newcontainer", data, io.tokens, PATIENCE)
        sent = self._random.randbytes(int(2 ** (18 * self._random.random())))
        shim.sendStdin(sent)
        shim.closeStdin()
        found = await echo.status.addTimeout(PATIENCE, self._reactor)
        await shim.disconnectShim(PATIENCE)
        await runtime.unregisterVM(self.name, PATIENCE)
        await runtime.close()
        self._tally.processes += 1
        self._tally.real += 1
        self._tally.stdin += len(sent)
        self._tally.output += sum(map(len, echo.got))
        if (found, echo.got) != (status, [sent, b"begun\n"]):
            raise Violation(f"cat gave {found} and {len(echo.got[0])} bytes of {len(sent)}")
