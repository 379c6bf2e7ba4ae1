"""
Pod mode: one VM, and the end of the daemon after it.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from ..core.context import Wait, cancel
from ..core.registry import Registry
from ..core.states import VMState

#: Seconds between two looks whether all is delivered.
LOOK = 0.1

#: In how many looks C{--pod-idle-timeout} passes.
IDLE_LOOKS = 10


class PodService(Service):
    """
    Stops the daemon when its VM was unregistered, its channels have closed, and nothing is left
    to deliver; in any case C{--pod-timeout} after UnregisterVM.

    It stops it too when there was neither a VM that lives nor a client for C{--pod-idle-timeout}:
    the runtime has died, or forgotten the pod, and nobody else would ever stop it.
    """

    log = Logger()

    def __init__(self, registry: Registry, reactor: Any) -> None:
        self._registry = registry
        self._reactor = reactor
        self._look: Wait | None = None
        self._end: Wait | None = None
        self._idleLook: Wait | None = None

    def startService(self) -> None:
        """Watch for UnregisterVM, and for nothing going on."""
        super().startService()
        self._registry.whenUnregistered = self._unregistered
        if self._registry.context.limits.podIdleTimeout:
            self._lookIdle(-1, 0)

    def stopService(self) -> None:
        """Watch no more."""
        super().stopService()
        cancel(self._look)
        cancel(self._end)
        cancel(self._idleLook)

    def _unregistered(self) -> None:
        if self._end is None and self.running:
            cancel(self._idleLook)
            timeout = self._registry.context.limits.podTimeout
            self._end = self._registry.context.clock.callLater(timeout, self._overdue)
            self._look = self._reactor.callLater(LOOK, self._check)

    def _check(self) -> None:
        registry = self._registry
        if registry.vms or registry.leaving or registry.tokens or not registry.quiet:
            self._look = self._reactor.callLater(LOOK, self._check)
        else:
            self._stop("the pod has ended")

    def _overdue(self) -> None:
        cancel(self._look)
        self._stop("the pod was unregistered, and has not ended since")

    def _lookIdle(self, clients: int, looks: int) -> None:
        """
        See whether the daemon is of use.

        @param clients: how many had connected at the last look.
        @param looks: how many times in a row it was of no use.
        """
        registry = self._registry
        lives = any(vm.state is not VMState.LOST for vm in registry.vms.values())
        if lives or registry.clients or registry.clientCount != clients:
            looks = 0
        if looks == IDLE_LOOKS:
            self._stop("the pod has no VM that lives, and no client came")
            return
        timeout = registry.context.limits.podIdleTimeout
        self._idleLook = registry.context.clock.callLater(
            timeout / IDLE_LOOKS, self._lookIdle, registry.clientCount, looks + 1
        )

    def _stop(self, why: str) -> None:
        self.log.info("{why}: stopping", event="pod-ended", why=why)
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            self.log.debug("stopping already", event="pod-ended")
