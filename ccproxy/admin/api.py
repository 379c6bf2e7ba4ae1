"""
What the admin socket does: each method answers one route of L{ccproxy.admin.routes}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any, Protocol

import attrs
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from ..config.settings import canonicalLevel
from ..core.context import run
from ..core.limits import Limits
from ..core.registry import Registry
from ..core.states import VMState
from ..core.vm import VM
from ..errors import CCProxyError
from ..persist.listeners import JoinedPods
from . import looking, views
from .calls import OCTETS, Call, Refused, Reply
from .console import ConsoleFollower
from .events import Events, Listener
from .gradual import LongAnswer, answer, array, members
from .health import Health
from .metrics import Metrics
from .profiling import Profiler, ProfileRequest, ProfileState

#: Seconds from the answer to the end, in which the answer can be read.
STOP_DELAY = 0.05


class LevelSwitch(Protocol):
    """
    A log whose level can be set.

    @ivar level: the least severe level that is logged.
    """

    level: str


@attrs.define(eq=False)
class Api:
    """
    What the routes need of the daemon.

    @ivar registry: all that it knows.
    @ivar health: whether it works.
    @ivar started: when it began to listen, in seconds since the epoch and of the clock.
    @ivar reactor: what it runs on.
    @ivar events: what happens.
    @ivar metrics: the page for Prometheus.
    @ivar profiler: makes profiles, or L{None} where none are wanted.
    @ivar log: its log, or L{None} where that is not its own.
    @ivar pods: those that have joined, or L{None} where none can.
    @ivar advice: says how to start the daemon so that somebody keeps the connections over a
        restart; empty if somebody does.
    @ivar check: raises what would keep a successor from starting.
    @ivar restart: hands over to a successor.
    """

    registry: Registry
    reactor: Any
    health: Health
    started: tuple[float, float]
    events: Events
    metrics: Metrics
    profiler: Profiler | None = None
    log: LevelSwitch | None = None
    pods: JoinedPods | None = None
    advice: Callable[[], str] = str
    check: Callable[[], object] = bool
    restart: Callable[[], object] = bool
    _log = Logger()

    def status(self, call: Call) -> views.Status:
        """The daemon."""
        level = self.log.level if self.log is not None else None
        return looking.status(self.registry, self.started, level)

    def limits(self, call: Call) -> Limits:
        """Its bounds and deadlines."""
        return self.registry.context.limits

    def dump(self, call: Call) -> Reply | LongAnswer:
        """Everything, as L{views.Dump}."""
        registry = self.registry
        everything = {
            "status": self.status(call),
            "limits": registry.context.limits,
            "vms": looking.vms(registry),
            "sessions": looking.sessions(registry),
            "clients": looking.clients(registry),
            "commands": looking.commands(registry),
        }
        return answer(members(everything), self.reactor)

    def _list(self, things: Iterable[object]) -> Reply | LongAnswer:
        return answer(array(things), self.reactor)

    def vms(self, call: Call) -> Reply | LongAnswer:
        """All VMs."""
        return self._list(looking.vms(self.registry))

    def vm(self, call: Call) -> views.VMView:
        """One VM."""
        return looking.vmView(self._vm(call))

    def _vm(self, call: Call) -> VM:
        """
        @raise Refused: there is none of that serial.
        """
        serial = call.number("serial")
        for vm in looking.allVMs(self.registry):
            if vm.serial == serial:
                return vm
        raise Refused(404, f"there is no VM with the serial {serial}; GET /v1/vms has all")

    def forget(self, call: Call) -> views.VMView:
        """
        Forget a lost VM, as UnregisterVM would.

        @raise Refused: it is not lost.
        """
        vm = self._vm(call)
        if vm.state is not VMState.LOST:
            raise Refused(
                409,
                f"VM {vm.containerId} (serial {vm.serial}) is {vm.state.value}, and only a lost one"
                " can be forgotten; its runtime ends it with UnregisterVM",
            )
        self._log.info("forgotten by the admin socket", event="admin-forget", **vm.fields)
        run(self.registry.context, vm.unregister)
        self.registry.context.flush()
        return looking.vmView(vm)

    def sessions(self, call: Call) -> Reply | LongAnswer:
        """All sessions, or those of the VMs of one name."""
        return self._list(looking.sessions(self.registry, call.query.get("vm")))

    def clients(self, call: Call) -> Reply | LongAnswer:
        """All clients."""
        return self._list(looking.clients(self.registry))

    def drop(self, call: Call) -> views.ClientView:
        """
        Close a client's connection. A shim's token can be claimed again.

        @raise Refused: there is none of that number.
        """
        number = call.number("number")
        for client in self.registry.clients:
            if looking.clientNumber(client) == number:
                break
        else:
            raise Refused(404, f"there is no client {number}; GET /v1/clients has all")
        view = looking.clientView(client)
        self._log.warn(
            "closed by the admin socket", event="admin-drop", client=client.name, vm=view.vm
        )
        run(self.registry.context, client.close)
        self.registry.context.flush()
        return view

    def commands(self, call: Call) -> Reply | LongAnswer:
        """The commands that are not answered."""
        return self._list(looking.commands(self.registry))

    def logLevel(self, call: Call) -> views.LogLevel:
        """The log level."""
        return views.LogLevel(self._levels().level)

    def setLogLevel(self, call: Call) -> views.LogLevel:
        """
        Set the log level.

        @raise Refused: there is no such level.
        """
        log = self._levels()
        try:
            wanted = canonicalLevel(call.json(views.LogLevelWanted).level)
        except ValueError as problem:
            raise Refused(400, str(problem)) from None
        self._log.info(
            "the log has level {wanted} from now on",
            event="log-level",
            wanted=wanted,
            log_always=True,
        )
        log.level = wanted
        return views.LogLevel(log.level)

    def _levels(self) -> LevelSwitch:
        """
        @raise Refused: the log is not ours.
        """
        if self.log is None:
            raise Refused(409, "the log is twistd's own, which has no level; leave out --syslog")
        return self.log

    def healthz(self, call: Call) -> Reply:
        """Whether the daemon works."""
        found = self.health.look()
        return Reply.json(found, 200 if found.healthy else 503)

    def page(self, call: Call) -> Reply:
        """The metrics."""
        return self.metrics.page()

    def openAPI(self, call: Call) -> Reply:
        """What can be asked."""
        return Reply((files(__package__) / "openapi.json").read_bytes())

    def listen(self, call: Call) -> Listener:
        """
        What happens, as it happens.

        @raise Refused: there are too many listeners, or an event's name is none.
        """
        return self.events.listen(call.query.get("event", ""), call.query.get("vm", ""))

    def console(self, call: Call) -> Reply | ConsoleFollower:
        """
        What a VM's console has said last.

        @raise Refused: there is no such VM.
        """
        ring = self._vm(call).console
        if call.flag("follow"):
            return ConsoleFollower(ring)
        return Reply(ring.wholeSince(0)[0], OCTETS)

    def drain(self, call: Call) -> views.Draining:
        """
        Take no new VMs, or take them again.

        @raise Refused: the body says neither.
        """
        wanted = call.json(views.Draining)
        if wanted.draining != self.registry.draining:
            self.registry.drain(wanted.draining)
            self._log.info(
                "no new VMs are taken" if wanted.draining else "new VMs are taken again",
                event="draining" if wanted.draining else "undrained",
            )
        return wanted

    def stop(self, call: Call) -> Reply:
        """End the daemon, in order, once this was answered."""
        self._log.info("stopping, as the admin socket says", event="admin-stop")
        self.reactor.callLater(STOP_DELAY, self._stop)
        return Reply.json(views.Stopping(), 202)

    def restartDaemon(self, call: Call) -> Reply:
        """
        Hand over to a successor, once this was answered.

        @raise Refused: there is nobody to keep the connections meanwhile, or the configuration
            would keep the successor from starting.
        """
        advice = self.advice()
        if advice:
            raise Refused(409, f"the daemon has nobody to keep its connections: {advice}")
        try:
            self.check()
        except CCProxyError as problem:
            raise Refused(
                409,
                "nothing is handed over, since the next daemon could not start with its"
                f" configuration: {problem}",
            ) from None
        self._log.info("restarting, as the admin socket says", event="admin-restart")
        self.reactor.callLater(STOP_DELAY, self.restart)
        return Reply.json(views.Restarting(), 202)

    def join(self, call: Call) -> views.Joining:
        """
        Serve a pod on a socket whose descriptor comes with the request (SCM_RIGHTS).

        @raise Refused: none came, or none that can be used.
        """
        wanted = call.json(views.Joining)
        if self.pods is None:
            raise Refused(409, "this daemon serves one pod only, its own")
        try:
            self.pods.join(wanted.path, wanted.inode, wanted.until)
        except CCProxyError as problem:
            raise Refused(409, str(problem)) from None
        return wanted

    def _stop(self) -> None:
        try:
            self.reactor.stop()
        except ReactorNotRunning:
            self._log.info("stopping already", event="admin-stop")

    def startProfile(self, call: Call) -> ProfileState:
        """
        Begin a profile.

        @raise Refused: it cannot be made.
        """
        request = call.json(ProfileRequest) if call.body else ProfileRequest()
        return self._profiler().start(request)

    def stopProfile(self, call: Call) -> ProfileState:
        """
        End it.

        @raise Refused: there is none.
        """
        return self._profiler().stop()

    def profile(self, call: Call) -> Reply:
        """
        The profile.

        @raise Refused: there is none.
        """
        return self._profiler().result()

    def _profiler(self) -> Profiler:
        """
        @raise Refused: none was wanted.
        """
        if self.profiler is None:
            raise Refused(409, "profiles are off; start the daemon with --pprof (cc-proxy: -pprof)")
        return self.profiler
