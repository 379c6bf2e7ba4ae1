"""
Going on with a state that another process has written: the opposite of L{ccproxy.core.writing}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import attrs
from zope.interface import implementer

from ..errors import RequestError
from ..interfaces import IConnection, IStreamSink
from ..wire.decoder import Buffer
from . import records
from .channels import ControlSink, IOSink
from .client import Client
from .commands import COMMANDS, Slot
from .consistency import check
from .context import Wait, run
from .records import Place
from .registry import KnownClient, Registry
from .requests import perform
from .session import Session
from .snapshot import (
    TABLES,
    BadSnapshot,
    ClientForm,
    Key,
    SessionForm,
    Snapshot,
    VMForm,
)
from .states import ClientState, VMState
from .vm import VM


@implementer(IConnection)
class NoConnection:
    """What a client or a channel has whose connection is no longer there."""

    peer = "gone"

    def send(self, data: Sequence[Buffer]) -> int:
        """See L{IConnection.send}."""
        return 0

    def unsent(self) -> int:
        """See L{IConnection.unsent}."""
        return 0

    def notifyDrained(self) -> None:
        """See L{IConnection.notifyDrained}."""

    def pauseReading(self) -> None:
        """See L{IConnection.pauseReading}."""

    def resumeReading(self) -> None:
        """See L{IConnection.resumeReading}."""

    def hungUp(self) -> bool:
        """See L{IConnection.hungUp}."""
        return True

    def readNow(self) -> None:
        """See L{IConnection.readNow}."""

    def close(self) -> None:
        """See L{IConnection.close}."""


class TrialConnection(NoConnection):
    """Stands for a connection in a trial: it takes everything, and nothing comes from it."""

    def send(self, data: Sequence[Buffer]) -> int:
        """See L{IConnection.send}."""
        return sum(map(len, data))

    def hungUp(self) -> bool:
        """See L{IConnection.hungUp}."""
        return False


@attrs.frozen
class Resumed:
    """
    A state that was taken up.

    @ivar registry: all that is known.
    @ivar sinks: who takes what comes on each connection.
    @ivar lost: those whose connection is not there any more.
    @ivar losses: sessions, and what was on its way for them and is not written: output and stdin,
        in bytes.
    """

    registry: Registry
    sinks: dict[Key, IStreamSink]
    lost: list[IStreamSink]
    losses: list[tuple[Session, int, int]]

    def recover(self) -> None:
        """
        The process that has written the state has died since then: whom it served is gone, but for
        shims, and whether it has delivered an exit status nobody knows. Comes before L{begin}.
        """
        registry = self.registry
        for session in registry.allSessions:
            run(registry.context, session.exitAgain)
        for session, output, stdin in self.losses:
            registry.context.log.warn(
                "lost with the process before: about {output} bytes of output, {stdin} of stdin",
                event="crash-loss",
                output=output,
                stdin=stdin,
                **session.fields,
            )
        for client in list(registry.clients):
            run(registry.context, client.sendReplies)

    def begin(self) -> None:
        """
        Go on, once each connection has its sink and is read. An exception costs one object: each
        step is a turn of its own (L{ccproxy.core.context}).

        What the connections have taken meanwhile is sent, and those whose connection is no longer
        there learn that it has ended.
        """
        registry = self.registry
        vms = [*registry.vms.values(), *registry.leaving]
        for vm in vms:
            run(registry.context, _beginVM, vm)
        for client in list(registry.clients):
            run(registry.context, _beginClient, client)
        for vm in vms:
            run(registry.context, _endPause, vm)
        for sink in self.lost:
            sink.ended()
        run(registry.context, registry.context.flush)


def _beginVM(vm: VM) -> None:
    for start in list(vm.starts.parked):
        if cast(Client, start.slot.client).state is ClientState.CLOSED:
            vm.starts.giveUp(start, RequestError("the client that asked for the start has gone"))
    if vm.flow.blocker is not None and vm.io is not None:
        vm.io.pauseReading()
    vm.agent.writable()
    vm.agent.pump()
    vm.stdin.pump()


def _beginClient(client: KnownClient) -> None:
    client.flush()
    client.wake()


def _endPause(vm: VM) -> None:
    if vm.flow.blocker is not None:
        vm.flow.recheck(vm.flow.blocker)
    if vm.state is VMState.CONNECTING:
        vm.registry.connector.connect(vm)


def resume(
    registry: Registry, snapshots: Iterable[Snapshot], connections: Mapping[Key, IConnection]
) -> Resumed:
    """
    Take a state up. L{Resumed.begin} must follow; nothing is sent and nobody is called before.

    @param registry: a new one, in which everything is put.
    @param snapshots: one of everything, or one for each VM.
    @param connections: by their keys. Whose is missing has lost it.
    @raise BadSnapshot: the state contradicts itself. The registry is of no use then.
    """
    resumed = Resumed(registry, {}, [], [])
    output = stdin = 0
    snapshots = list(snapshots)
    try:
        check(snapshots)
        for snapshot in snapshots:
            _Reader(resumed, snapshot, connections).read()
            # One process has written them all, so each has the same, or none.
            output, stdin = max((output, stdin), snapshot.crashLoss)
    except LookupError as error:
        raise BadSnapshot(f"the state names what is not in it: {error!r}") from error
    for _, lostOutput, lostInput in resumed.losses:
        output, stdin = output + lostOutput, stdin + lostInput
    registry.crashLoss = output, stdin
    return resumed


class _Reader:
    def __init__(
        self, resumed: Resumed, snapshot: Snapshot, connections: Mapping[Key, IConnection]
    ) -> None:
        registry = self._registry = resumed.registry
        self._snapshot = snapshot
        self._connections = connections
        now = self._now = registry.context.clock.seconds()
        written = now if snapshot.written is None else snapshot.written
        #: Seconds since the snapshot was written; 0 if the clock has started again since.
        self._age = max(0.0, now - written)
        self._then = now - self._age
        self._things: dict[str, list[Any]] = {}
        self._sinks = resumed.sinks
        self._lost = resumed.lost
        self._losses = resumed.losses

    def read(self) -> None:
        registry, snapshot = self._registry, self._snapshot
        # The registry may have taken up other VMs before.
        registry.serial = max(registry.serial, snapshot.serial)
        registry.clientCount = max(registry.clientCount, snapshot.clientCount)
        registry.ignoredFrames = snapshot.ignoredFrames
        registry.draining = snapshot.draining
        # First all things, bare, each of those that its maker asks for; then what they remember.
        things = self._things
        things["clients"] = [self._client(form) for form in snapshot.clients]
        things["vms"] = [VM(registry, form.request, form.serial) for form in snapshot.vms]
        things["sessions"] = [
            Session(things["vms"][form.vm], form.stdio, self.moment(form.created), form.token)
            for form in snapshot.sessions
        ]
        things["slots"] = [records.make(Slot, form, self) for form in snapshot.slots]
        things["commands"] = [
            records.make(COMMANDS[form.__struct_config__.tag], form, self)
            for form in snapshot.commands
        ]
        fills: dict[str, Callable[[Any, Any], None]] = {
            "clients": self._fillClient,
            "vms": self._fillVM,
            "sessions": self._fillSession,
        }
        for table in TABLES:
            for thing, form in zip(things[table], getattr(snapshot, table), strict=True):
                fills.get(table, self._fill)(thing, form)
        registry.vms.update(self._named("vms", snapshot.known))
        registry.leaving.update(self.thing("vms", place) for place in snapshot.leaving)
        registry.tokens.update(self._named("sessions", snapshot.tokens))

    def _named(self, table: str, places: Mapping[str, Place]) -> dict[str, Any]:
        return {name: self.thing(table, place) for name, place in places.items()}

    def _fill(self, thing: Any, form: Any) -> None:
        records.read(thing, form, self)

    def _connect(self, key: Key, sink: IStreamSink) -> None:
        if key in self._connections:
            self._sinks[key] = sink
        else:
            self._lost.append(sink)

    def _client(self, form: ClientForm) -> Client:
        connection: IConnection = NoConnection()
        if form.connection is not None:
            connection = self._connections.get(form.connection, connection)
        client = Client(self._registry, connection, form.name, perform)
        client.state = form.state
        if form.connection is not None:
            self._connect(form.connection, client)
            self._registry.clients.add(client)
        else:
            client.state = ClientState.CLOSED
        return client

    def _fillSession(self, session: Session, form: SessionForm) -> None:
        self._fill(session, form)
        lost, before = (form.lostOutput, form.lostInput), session.crashLoss
        session.crashLoss = before[0] + lost[0], before[1] + lost[1]
        if any(lost):
            self._losses.append((session, *lost))

    # See L{records.Reader}.

    @property
    def now(self) -> float:
        return self._now

    def thing(self, table: str, place: Place | None) -> Any:
        return None if place is None else self._things[table][place]

    def moment(self, ago: float) -> float:
        return self._then - ago

    def left(self, left: float, grace: float = 0.0) -> float:
        grace = grace if self._snapshot.written is not None else 0.0
        return max(grace, left - self._age)

    def later(self, delay: float, action: Callable[[], object]) -> Wait:
        return self._registry.context.later(delay, action)

    def _fillClient(self, client: Client, form: ClientForm) -> None:
        if form.connection is not None:
            self._fill(client, form)

    def _fillVM(self, vm: VM, form: VMForm) -> None:
        if form.control is not None:
            vm.agent.connect(self._connections.get(form.control, NoConnection()))
            self._connect(form.control, ControlSink(vm))
        if form.io is not None:
            vm.io = self._connections.get(form.io, NoConnection())
            self._connect(form.io, IOSink(vm))
        self._fill(vm, form)
        self._registry.urls.add(vm.url)
        if form.control is form.io is None and vm.state is not VMState.CONNECTING:
            vm.console.close()
