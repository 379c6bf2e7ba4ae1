"""
The daemon as systemd sees it: ready, alive, reloading, stopping.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from twisted.application.service import Service

from ..core.context import Wait, cancel
from ..core.registry import Registry
from ..net.notify import Notifier

#: How many signs of life the watchdog gets in the time that it allows between two.
BEATS = 3


class SystemdService(Service):
    """
    Tells systemd how the daemon is; without systemd, it does nothing.

    It must start after all that makes the daemon ready, and stop after all that may take long.

    @ivar notifier: what tells it.
    """

    def __init__(
        self, registry: Registry, reactor: Any, environment: MutableMapping[str, str]
    ) -> None:
        """
        @param environment: that of the process; what is systemd's is taken from it.
        """
        self._registry = registry
        self._reactor = reactor
        self.notifier = Notifier(environment, reactor)
        self._beat: Wait | None = None

    @property
    def status(self) -> str:
        """What C{systemctl status} shows."""
        vms, clients = len(self._registry.vms), len(self._registry.clients)
        return f"{vms} VMs, {clients} clients on {self._registry.url}"

    def startService(self) -> None:
        """Be ready, as soon as the loop turns."""
        super().startService()
        self._reactor.callWhenRunning(self._ready)

    def stopping(self) -> None:
        """The daemon begins to stop."""
        self.notifier.stopping()

    def stopService(self) -> None:
        """Tell systemd nothing more."""
        super().stopService()
        cancel(self._beat)
        self.notifier.close()

    def _ready(self) -> None:
        if self.running:
            self.notifier.ready(self.status)
            self._live()

    def _live(self) -> None:
        """The watchdog is fed by a timer of the reactor: it starves when the loop does not turn."""
        if self.notifier.watchdog is not None:
            self.notifier.alive(self.status)
            self._beat = self._reactor.callLater(self.notifier.watchdog / BEATS, self._live)
