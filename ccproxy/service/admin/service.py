"""
The admin service: the admin socket while the daemon runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from ...core.registry import Registry
from ...net.binding import CannotListen
from ...net.polling import Poller
from ..settings import Settings
from .health import Health, LoopLag
from .listening import AdminListener, LazyFactory

if TYPE_CHECKING:
    from .api import LevelSwitch


class AdminService(Service):
    """
    Serves the admin socket.
    """

    _log = Logger()

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        poller: Poller,
        listening: Callable[[], bool],
        log: Callable[[], LevelSwitch | None],
    ) -> None:
        """
        @param poller: what watches its connections.
        @param listening: whether clients can connect.
        @param log: the daemon's log, or L{None} where that is not its own.
        """
        self._settings = settings
        self._registry = registry
        self._poller = poller
        self._reactor: Any = poller.reactor
        self._listening = listening
        self._daemonLog = log
        self._listener: AdminListener | None = None
        self._startedAt = 0.0
        self._lag = LoopLag(self._reactor)

    def privilegedStartService(self) -> None:
        """
        Listen.

        @raise CannotListen: a path that was asked for cannot be had. Without the default one the
            daemon goes on.
        """
        path = self._settings.adminPath
        if path is None:
            return
        listener = AdminListener(self._poller, path, LazyFactory(self._site))
        try:
            listener.startListening()
        except CannotListen as problem:
            if self._settings.adminSocket is not None:
                raise
            self._log.warn("no admin socket: {problem}", event="admin-unavailable", problem=problem)
        else:
            self._listener = listener

    def startService(self) -> None:
        """Serve."""
        super().startService()
        self._startedAt = self._registry.wallClock()
        self._lag.start()

    def stopService(self) -> Deferred[None] | None:
        """Remove the socket. Its connections end with all others."""
        super().stopService()
        self._lag.stop()
        return self._listener.stopListening() if self._listener is not None else None

    def _site(self) -> ServerFactory:
        """What serves the connections, made for the first one."""
        from functools import partial

        from .api import Api
        from .routes import respond
        from .web import AdminSite

        health = Health(self._lag, 1.0, self._listening)
        api = Api(self._registry, health, self._startedAt, self._daemonLog())
        return AdminSite(partial(respond, api), self._reactor)
