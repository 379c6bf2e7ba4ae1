"""
The admin service: the admin socket and the address for metrics, while the daemon runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from ..config.settings import Settings, hostAndPort
from ..core.registry import Registry
from ..net.binding import CannotListen
from ..net.polling import Poller
from ..net.rights import Received
from .events import Events
from .listening import AdminListener, LazyFactory
from .looplag import LoopLag

if TYPE_CHECKING:
    from ..log.daemonlog import DaemonLog
    from ..persist.listeners import JoinedPods
    from ..persist.restart import Restart
    from .api import Api
    from .profiling import Profiler

#: What can be asked at the address for metrics, which has no idea of who asks.
PUBLIC = ("/metrics", "/healthz")


class AdminService(Service):
    """
    Serves the admin socket, and the address for metrics where there is one.
    """

    _log = Logger()

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        poller: Poller,
        listening: Callable[[], bool],
        log: Callable[[], DaemonLog | None],
        orphans: Callable[[], int] | None = None,
        restart: Restart | None = None,
        pods: JoinedPods | None = None,
    ) -> None:
        """
        @param poller: what watches its connections.
        @param listening: whether clients can connect.
        @param log: the daemon's log, or L{None} where that is not its own.
        @param orphans: counts orphaned VMs, or L{None} if none are looked for.
        @param restart: how the daemon restarts.
        @param pods: those that have joined.
        """
        self._settings = settings
        self._registry = registry
        self._poller = poller
        self._reactor: Any = poller.reactor
        self._daemonLog = log
        self._orphans = orphans
        self._restart = restart
        self._pods = pods
        self._started = 0.0, 0.0
        self._lag = LoopLag(self._reactor)
        self._listening = listening
        self._events = Events(self._reactor)
        self._ports: list[IListeningPort] = []
        self._made: Api | None = None
        self._profiler: Profiler | None = None

    def privilegedStartService(self) -> None:
        """
        Listen, while there are privileges.

        @raise CannotListen: what was asked for cannot be had. Without the default admin socket the
            daemon goes on.
        """
        settings = self._settings
        if settings.metricsAddress is not None:
            self._listenTCP(settings.metricsAddress)
        client = self._registry.url.removeprefix("unix://") or settings.socketPath
        # If the daemon may not make a socket beside one that was passed, use the default path.
        for path in dict.fromkeys([settings.adminPathBeside(client), settings.adminPath]):
            if path is None:
                break
            try:
                self._listen(path)
                break
            except CannotListen as problem:
                if settings.adminSocket is not None:
                    raise
                self._log.warn(
                    "no admin socket: {problem}", event="admin-unavailable", problem=problem
                )

    def _listen(self, path: str) -> None:
        received = Received() if self._pods is None else self._pods.received
        settings = self._settings
        shared = os.path.dirname(path) == os.path.dirname(settings.socketPath)
        group = settings.socketGroup if shared else None
        listener = AdminListener(self._poller, path, LazyFactory(self._site), received, group)
        listener.startListening()
        self._ports.append(listener)
        self._log.info("admin socket: {path}", event="admin-socket", path=path)

    def _listenTCP(self, address: str) -> None:
        host, port = hostAndPort(address)
        factory = LazyFactory(lambda: self._site(PUBLIC))
        try:
            listening = self._reactor.listenTCP(port, factory, interface=host)
        except CannotListenError as problem:
            raise CannotListen(
                f"cannot serve metrics on {address}: {problem.socketError}; choose another"
                " --metrics-address"
            ) from problem
        self._ports.append(listening)
        actual = listening.getHost()
        # The port that was asked for may be 0, for any that is free.
        address = f"{f'[{actual.host}]' if ':' in actual.host else actual.host}:{actual.port}"
        self._log.info("metrics: http://{address}/metrics", event="metrics", address=address)

    def give(self, uid: int, gid: int) -> None:
        """Give the admin socket to another user. See L{ListeningSocket.give}."""
        for port in self._ports:
            if isinstance(port, AdminListener):
                port.give(uid, gid)

    def startService(self) -> None:
        """Serve."""
        super().startService()
        self._started = self._registry.context.wallClock(), self._registry.context.clock.seconds()
        self._lag.start()
        self._events.start()

    def stopService(self) -> Deferred[None]:
        """
        Serve no more. Connections end with those of clients.

        @return: fires when nothing listens any more.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        super().stopService()
        self._lag.stop()
        self._events.stop()
        if self._profiler is not None:
            self._profiler.close()
        await self.close()

    def close(self) -> Deferred[None]:
        """
        Listen no more.

        @return: fires when nothing listens any more.
        """
        ports, self._ports = self._ports, []
        ends = [maybeDeferred(port.stopListening) for port in ports]
        return gatherResults(ends, consumeErrors=True).addCallback(lambda _: None)

    def _site(self, only: tuple[str, ...] = ()) -> ServerFactory:
        """
        What serves connections, made for the first one.

        @param only: the paths that are served, if not all.
        """
        from .routes import responder
        from .web import AdminSite

        return AdminSite(responder(self._api(), only), self._poller.deadlines)

    def _api(self) -> Api:
        if self._made is None:
            from .api import Api
            from .health import Health
            from .metrics import DaemonCollector, Metrics
            from .profiling import Profiler

            if self._settings.pprof:
                self._profiler = Profiler(self._reactor)
            health = Health(self._lag, self._settings.maxLoopLag, self._listening)
            collector = DaemonCollector(
                self._registry,
                health,
                self._events,
                self._orphans,
                self._daemonLog(),
            )
            self._made = Api(
                self._registry,
                self._reactor,
                health,
                self._started,
                self._events,
                Metrics(collector),
                self._profiler,
                self._daemonLog(),
            )
            self._made.pods = self._pods
            restart = self._restart
            if restart is not None:
                self._made.advice = lambda: restart.advice
                self._made.check = restart.check
                self._made.restart = lambda: restart.begin(insist=False)
        return self._made
