"""
Pod mode: one VM, and the end of the daemon after it.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from ..core.clock import cancel
from ..core.registry import Registry

#: Seconds between two looks whether all is delivered.
LOOK = 0.1


class PodService(Service):
    """
    Stops the daemon when its VM was unregistered, its channels have closed, and nothing is left
    to deliver; in any case C{--pod-timeout} after UnregisterVM.
    """

    log = Logger()

    def __init__(self, registry: Registry, reactor: Any) -> None:
        self._registry = registry
        self._reactor = reactor
        self._look = self._end = None

    def startService(self) -> None:
        """Watch for UnregisterVM."""
        super().startService()
        self._registry.whenUnregistered = self._unregistered

    def stopService(self) -> None:
        """Watch no more."""
        super().stopService()
        cancel(self._look)
        cancel(self._end)

    def _unregistered(self) -> None:
        if self._end is None and self.running:
            timeout = self._registry.limits.podTimeout
            self._end = self._reactor.callLater(timeout, self._overdue)
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

    def _stop(self, why: str) -> None:
        self.log.info("{why}: stopping", event="pod-ended", why=why)
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            self.log.debug("stopping already", event="pod-ended")
