"""
The daemon as Twisted services: the registry with its connections, the client socket, the
embedded VMs, and their ordered stop.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel

from twisted import __version__ as twistedVersion

from .. import __version__
from ..config.settings import Settings
from ..core.context import Context, Wait, cancel
from ..core.registry import Registry
from ..errors import CCProxyError
from ..log.daemonlog import DaemonLog
from ..log.sinks import missingSinks
from ..net.binding import ListeningSocket, isPassed, isStale
from ..net.connecting import Connector
from ..net.listening import UNIXListener
from ..net.monotonic import useMonotonicTime
from ..net.polling import Poller
from ..net.protocols import ProxyFactory
from ..persist.restart import Restart, stopInTime
from ..wire.text import checkUTF8
from .dumping import StateDump
from .pod import PodService
from .pods import Pods
from .systemd import SystemdService

if TYPE_CHECKING:
    from ..admin.service import AdminService

#: Seconds between two looks whether anything is under way, while the daemon stops.
LOOK = 0.02
#: Seconds between two looks at the file of the client socket.
FILE_INTERVAL = 1.0
#: Seconds that the log may take for its last lines before a restart.
FLUSH_TIMEOUT = 2.0


class RegistryService(Service):
    """
    The VM registry, with all connections of clients and agents.

    @ivar poller: what watches the connections' sockets.
    @ivar connector: what connects the agents' channels.
    @ivar registry: all that the proxy knows.
    """

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any) -> None:
        self.poller = Poller(reactor)
        self.connector = Connector(self.poller, settings.vmSocketDirs)
        self.registry = self.connector.registry = Registry(
            Context(
                clock=self.poller.deadlines,
                wallClock=time.time,
                limits=settings.limits,
                log=Logger("ccproxy"),
                verbose=settings.logLevel == "debug",
            ),
            self.connector,
            url=settings.url,
            agentDialect=settings.agentDialect,
        )

    async def drain(self) -> None:
        """Wait until nothing is under way, for so long as the limits say."""
        deadlines, overdue = self.poller.deadlines, False
        deadline = deadlines.seconds() + self.registry.context.limits.stopTimeout
        while not self.registry.quiet:
            if overdue:
                self.log.warn("stopping with something under way", event="stop-overdue")
                return
            overdue = deadlines.seconds() >= deadline  # give up after one more look
            await deferLater(deadlines, LOOK)

    def stopService(self) -> None:
        """Close all connections."""
        super().stopService()
        self.registry.shutDown()
        self.poller.close()


class ListeningService(Service):
    """
    The client socket.

    @ivar taken: that of the process whose place this one takes, before this starts.
    """

    log = Logger()

    def __init__(self, settings: Settings, registry: RegistryService) -> None:
        self._settings = settings
        self._registry = registry
        self._listener: UNIXListener | None = None
        self._lost = False
        self._wait: Wait | None = None
        self.taken: ListeningSocket | None = None

    def prepare(self) -> None:
        """
        Take the socket that this process was given, since that listens already. Without one, check
        that no other daemon serves clients.

        @raise ccproxy.errors.CCProxyError: the socket is another daemon's, or cannot be used.
        """
        if self.taken is not None or isPassed(os.environ):
            self._listen()
        else:
            with suppress(OSError):  # Listening says it with the path.
                isStale(self._settings.socketPath)

    def privilegedStartService(self) -> None:
        """
        Listen, while there are privileges.

        @raise ccproxy.errors.CCProxyError: the socket is another daemon's, or cannot be made.
        """
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        settings = self._settings
        registry = self._registry.registry
        self._listener = UNIXListener(
            self._registry.poller,
            settings.socketPath,
            ProxyFactory(registry),
            mode=settings.socketMode,
            group=settings.socketGroup,
            taken=self.taken,
        )
        self._listener.startListening()
        path = self._listener.path
        try:
            checkUTF8(path)  # that of a passed socket is no setting
        except ValueError as problem:
            raise CCProxyError(f"cannot listen on {path}: {problem}") from None
        registry.url = f"unix://{path}"

    @property
    def listener(self) -> UNIXListener | None:
        """What accepts connections, once this has started."""
        return self._listener

    def serve(self, connection: socket.socket) -> None:
        """Serve a client that is connected otherwise than by the client socket."""
        assert self._listener is not None
        self._listener.serve(connection)

    @property
    def listening(self) -> bool:
        """Whether clients can connect."""
        return self._listener is not None and self._listener.fileno() >= 0 and not self._lost

    def startService(self) -> None:
        """Watch where the file of the socket is."""
        super().startService()
        self._look()

    def _look(self) -> None:
        self._wait = self._registry.poller.reactor.callLater(FILE_INTERVAL, self._look)
        listener, registry = self._listener, self._registry.registry
        if listener is None or listener.fileno() < 0:
            return
        path, old = listener.whereabouts(), registry.url.removeprefix("unix://")
        if path is None and not self._lost:
            self.log.error(
                "no new client can connect: the socket {path} was removed or moved away; restart"
                " the daemon, and it makes the socket again",
                event="socket-lost",
                path=old,
            )
        elif path is not None and (path != old or self._lost):
            registry.url = f"unix://{path}"
            self.log.warn("listening on {path} now", event="socket-moved", path=path, old=old)
        self._lost = path is None

    def stopService(self) -> Deferred[None] | None:
        """Accept no more connections, and remove the socket."""
        super().stopService()
        cancel(self._wait)
        return self._listener.stopListening() if self._listener is not None else None


class ProxyService(MultiService):
    """
    The daemon.

    @ivar registry: the service that holds all connections.
    @ivar systemd: what tells systemd of the daemon.
    @ivar daemonLog: the log, once there is one, or L{None} where it is not ours.
    @ivar dump: writes all that the daemon knows to the log.
    @ivar listeningService: the client socket.
    @ivar admin: the admin service, if one was asked for.
    @ivar embedded: the embedded VMs.
    @ivar pods: pods of other processes that have joined.
    @ivar restart: hands over to the next process, and takes over from the one before.
    """

    log = Logger()
    daemonLog: DaemonLog | None = None
    admin: AdminService | None = None

    def __init__(
        self, settings: Settings, reactor: Any, read: Callable[[], Settings] | None = None
    ) -> None:
        """
        @param settings: all that can be set.
        @param reactor: what it runs on.
        @param read: reads the configuration anew, where there is one.
        """
        super().__init__()
        useMonotonicTime(reactor)
        self._settings = settings
        self._reactor = reactor
        self._prepared = False
        self.registry = RegistryService(settings, reactor)
        self.dump = StateDump(self.registry.registry, reactor, self.registry.poller.deadlines)
        self.listeningService = ListeningService(settings, self.registry)
        self.embedded = MultiService()
        services: list[IService] = [self.registry, self.embedded]
        if settings.pod:
            services.append(PodService(self.registry.registry, reactor))
        elif settings.ksm != "initial":
            services.append(self._ksm(settings.ksm))
        self.systemd = SystemdService(self.registry.registry, reactor, os.environ)
        self.pods = Pods(self.registry.registry, self.registry.poller, reactor)
        self.restart = Restart(
            settings,
            read or (lambda: settings),
            os.environ,
            self.systemd.notifier,
            self.registry.connector,
            self.listeningService,
            self.pods,
            self.embedded,
            self._flushLog,
        )
        # The client socket comes after all else that may fail to listen, so that no client connects
        # to a daemon that does not start.
        services += [self.pods, *self._admin(), self.listeningService, self.systemd]
        for service in services:
            service.setServiceParent(self)

    def _ksm(self, mode: str) -> IService:
        from .ksm import KSMService

        ksm = KSMService(mode, self._reactor)
        self.registry.registry.whenRegistered = ksm.registered
        return ksm

    def _admin(self) -> list[IService]:
        """What watches the daemon, and what it is shown to, as far as they are wanted."""
        settings, registry, listening = self._settings, self.registry, self.listeningService
        services: list[IService] = []
        orphans = None
        if settings.orphan == "report":
            from .orphans import OrphanService

            looking = OrphanService(registry.registry, settings.orphanAfter)
            services.append(looking)
            orphans = looking.count
        if settings.adminPath is not None or settings.metricsAddress is not None:
            from ..admin.service import AdminService

            self.admin = AdminService(
                settings,
                registry.registry,
                registry.poller,
                lambda: listening.listening,
                lambda: self.daemonLog,
                orphans,
                self.restart,
                None if settings.pod else self.pods,
            )
            services.append(self.admin)
        return services

    def useLog(self, log: DaemonLog | None) -> None:
        """
        Have the level of C{log} decide what is noted.

        @param log: L{None} is a log that is not ours.
        """
        self.daemonLog = log
        if log is not None:
            log.whenLevelSet = self._levelSet

    def _flushLog(self) -> None:
        if self.daemonLog is not None:
            self.daemonLog.flush(FLUSH_TIMEOUT)

    def _levelSet(self, level: str) -> None:
        self.registry.registry.context.verbose = level == "debug"

    def privilegedStartService(self) -> None:
        """
        Log who starts here, and listen. C{twistd} calls this while it has privileges.

        @raise ccproxy.errors.CCProxyError: a socket cannot be listened on. None of them is then.
        """
        self._prepared = True
        differing = self._settings.differences()
        self.log.info(
            "ccproxy {version} on Python {python} and Twisted {twisted}",
            event="starting",
            log_always=True,
            version=__version__,
            python=sys.version.split()[0],
            twisted=twistedVersion,
            settings=" ".join(f"{name}={value}" for name, value in differing.items()) or None,
        )
        if self.daemonLog is not None:
            # A pod's daemon tries syslog without having been told to.
            level = LogLevel.info if self._settings.pod else LogLevel.warn
            for sink in missingSinks(self._settings):
                text = "{sink} is not there: it gets no more than what is logged once it is"
                self.log.emit(level, text, event="log-sink-missing", sink=sink)
        self.restart.take()
        self.listeningService.prepare()
        try:
            super().privilegedStartService()
        except Exception:
            if self.admin is not None:
                self.admin.close()
            raise
        self._embed()

    def give(self, uid: int, gid: int) -> None:
        """
        Give the sockets to the user that this process is about to become.

        @param uid: the user.
        @param gid: the group. A C{--socket-group} stays that of the client socket.
        @raise OSError: this user may not do so.
        """
        if self.listeningService.listener is not None:
            group = gid if self._settings.socketGroup is None else -1
            self.listeningService.listener.give(uid, group)
        if self.admin is not None:
            self.admin.give(uid, gid)

    def _embed(self) -> None:
        """Make the embedded VMs."""
        settings = self._settings
        if settings.embeddedVMs:
            # What this imports of Twisted removes LISTEN_FDS from the environment: not before all
            # that is passed to us has been taken.
            from .embedded import EmbeddedVM

            for name in settings.embeddedVMs:
                registry, serve = self.registry, self.listeningService.serve
                vm = EmbeddedVM(name, settings, registry.poller, serve, registry.connector.allow)
                vm.setServiceParent(self.embedded)

    def startService(self) -> None:
        """
        Serve. If L{privilegedStartService} was not called, as under C{twist}, listen first.

        @raise ccproxy.errors.CCProxyError: as L{privilegedStartService}.
        """
        if not self._prepared:
            self.privilegedStartService()
        self.restart.resume()
        super().startService()
        listener = self.listeningService.listener
        if listener is not None and self.embedded.services:
            # Whoever finds a daemon that accepts finds its VMs.
            listener.hold()
            registering = DeferredList([vm.registering for vm in self.embedded])
            registering.addCallback(lambda _: listener.goOn())
        self.log.info("listening on {path}", event="started", path=self.registry.registry.url)

    def handOver(self, insist: bool) -> bool:
        """
        SIGTERM or SIGUSR2 has come: return whether it is a restart.

        @param insist: end in order if handing over fails; else go on.
        """
        return self.restart.begin() if insist else self.restart.attempt()

    def stopService(self) -> Deferred[None]:
        """
        Accept no more clients, deliver what is under way, and close.

        @return: fires when all is closed.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        deadlines = self.registry.poller.deadlines
        self.systemd.stopping()
        await stopInTime(self.listeningService, "client socket", deadlines)
        await self.registry.drain()
        await stopInTime(self.embedded, "embedded VMs", deadlines)
        Service.stopService(self)
        # The connections end last, so that the others can still say what there is to say.
        for service in reversed(list(self)):
            if service not in (self.listeningService, self.embedded):
                await stopInTime(service, type(service).__name__, deadlines)
        self.log.info("stopped", event="stopped")
