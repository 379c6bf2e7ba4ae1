"""
Reading the configuration again while the daemon runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
from twisted.logger import Logger

from ..core.context import run
from ..errors import CCProxyError

if TYPE_CHECKING:
    from ..config.settings import Settings
    from .proxy import ProxyService


class Reload:
    """
    Gives a running daemon the level and rate of the log, and the limits, that the configuration has
    by now.

    Keys of the file that cannot have their way, because options, flags or the environment win over
    them, are named: who has changed one shall not wonder.

    A configuration that cannot be used changes nothing. Other settings cannot change while the
    daemon runs: that is said.
    """

    log = Logger()

    def __init__(
        self, proxy: ProxyService, settings: Settings, read: Callable[[], Settings]
    ) -> None:
        """
        @param proxy: the daemon.
        @param settings: those that it was started with.
        @param read: reads the configuration.
        """
        self._proxy = proxy
        self._settings = settings
        self._read = read

    def __call__(self) -> None:
        """Do it."""
        systemd = self._proxy.systemd
        systemd.notifier.reloading()
        status = systemd.status
        try:
            self._use(self._read())
        except CCProxyError as problem:
            self.log.error(
                "the configuration cannot be used, and nothing has changed: {problem}",
                event="reload-failed",
                problem=str(problem),
            )
            status = f"reload failed: {problem}"
        systemd.notifier.ready(status)

    def _use(self, wanted: Settings) -> None:
        before = self._settings
        settings = attrs.evolve(
            before, limits=wanted.limits, logLevel=wanted.logLevel, logRate=wanted.logRate
        )
        self._settings = settings
        registry = self._proxy.registry.registry
        run(registry.context, registry.context.setLimits, settings.limits)
        if self._proxy.daemonLog is not None:
            self._proxy.daemonLog.level = settings.logLevel
            self._proxy.daemonLog.rate = settings.logRate
        changed = settings.differences(before)
        self.log.info(
            "the configuration was read again",
            event="reloaded",
            changed=" ".join(f"{name}={value}" for name, value in changed.items()) or None,
            overridden=" ".join(wanted.overridden) or None,
        )
        waiting = wanted.differences(settings)
        if waiting:
            self.log.warn(
                "{waiting}: what the configuration says is used when the daemon starts again",
                event="restart-needed",
                waiting=", ".join(waiting),
            )
