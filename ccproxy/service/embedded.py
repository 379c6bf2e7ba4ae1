"""
Embedded VMs: an agent in the daemon's own process, registered like any other VM.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..agent.service import EmbeddedAgent
from ..config.settings import Settings
from ..errors import CCProxyError
from ..net.binding import credentials
from ..net.client import ProxyClient
from ..net.ordinary import attach
from ..net.polling import Poller

#: Seconds until the proxy has answered each command of the registration.
PATIENCE = 10.0


class EmbeddedVM(MultiService):
    """
    A VM without a hypervisor, for trying out and for tests. B{It gives no isolation.}

    It plays the runtime's part too: it registers the VM as a client, and starts the pod. It does
    not connect by a path, where another daemon may listen: whoever registers the VM may start
    processes on this machine.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        settings: Settings,
        poller: Poller,
        serve: Callable[[socket.socket], None],
        allow: Callable[[str], None],
    ) -> None:
        """
        @param name: the VM's containerId.
        @param poller: what watches its connection to the daemon.
        @param serve: called with the daemon's end of that.
        @param allow: called with the folder of its sockets, which nobody else can confine.
        """
        super().__init__()
        self._name = name
        self._settings = settings
        self._poller = poller
        self._reactor: Any = poller.reactor
        self._serve = serve
        self._allow = allow
        self._directory: str | None = None
        self.registering: Deferred[None] = succeed(None)

    def startService(self) -> None:
        """Start the agent, and register it."""
        self._directory = tempfile.mkdtemp(prefix="ccproxy-")
        self._allow(self._directory)
        control, io = (os.path.join(self._directory, name) for name in ("control", "io"))
        agent = EmbeddedAgent(self._reactor, control, io, self._settings.embeddedDialect)
        agent.setName(self._name)
        agent.setServiceParent(self)
        super().startService()
        self.registering = Deferred.fromCoroutine(self._register(control, io))
        self.registering.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if self.running:  # else it is the stop that has cancelled the registration
            self.log.failure("embedded VM {vm}", failure, vm=self._name)

    def _connect(self) -> ProxyClient:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        client = ProxyClient(None, self._reactor)
        attach(self._poller, ours, credentials(ours), client)
        self._serve(theirs)
        return client

    async def _register(self, control: str, io: str) -> None:
        try:
            # First the daemon notices the end of this VM as it was before a restart.
            await deferLater(self._poller.deadlines, 0)
            client = self._connect()
            await client.registerVM(self._name, control, io, timeout=PATIENCE)
            pod = {"hostname": self._name, "shareDir": "share"}
            await client.hyper("startpod", pod, timeout=PATIENCE)
            await client.close()
        except CCProxyError as error:
            if self.running:
                self.log.error(
                    "embedded VM {vm} cannot be used: {reason}",
                    event="embedded-failed",
                    vm=self._name,
                    reason=str(error),
                )

    def stopService(self) -> Deferred[None]:
        """
        End the VM, and all processes in it.

        @return: fires when they have been reaped.
        """
        return Deferred.fromCoroutine(self._stop(super().stopService()))

    async def _stop(self, agent: Deferred[None]) -> None:
        self.registering.cancel()
        try:
            await agent
        finally:
            for service in list(self):
                service.disownServiceParent()  # the next start has an agent of its own
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)


