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
from ..wire.codes import ControlCode
from ..wire.decoder import Buffer
from ..wire.payloads import Signal
from ..wire.relocation import StartData
from . import records
from .channels import ControlSink, IOSink
from .client import Client
from .commands import (
    ControlCommand,
    HyperCommand,
    PingCommand,
    SignalCommand,
    Slot,
    StartCommand,
    VersionCommand,
)
from .consistency import check
from .context import Wait, run
from .outlet import Outlet
from .records import Place
from .registry import KnownClient, Registry
from .requests import perform
from .session import Session
from .snapshot import (
    BadSnapshot,
    ClientForm,
    CommandForm,
    FlowForm,
    Key,
    OutletForm,
    SessionForm,
    SlotForm,
    Snapshot,
    StartForm,
    VMForm,
)
from .states import ClientState, VMState
from .tally import Traffic
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
        self._sinks = resumed.sinks
        self._lost = resumed.lost
        self._losses = resumed.losses

    def read(self) -> None:
        registry, snapshot = self._registry, self._snapshot
        # The registry may have taken up other VMs before.
        registry._serial = max(registry._serial, snapshot.serial)
        registry.clientCount = max(registry.clientCount, snapshot.clientCount)
        registry.ignoredFrames = snapshot.ignoredFrames
        registry.draining = snapshot.draining
        # First all things, bare, each of those that its maker asks for; then what they remember.
        self._clients = [self._client(form) for form in snapshot.clients]
        self._vms = [VM(registry, form.request, form.serial, None) for form in snapshot.vms]
        self._sessions = [
            Session(self._vms[form.vm], form.stdio, self._then - form.created, form.token)
            for form in snapshot.sessions
        ]
        self._slots = [self._slot(form) for form in snapshot.slots]
        self._commands = [self._command(form) for form in snapshot.commands]
        for client, clientForm in zip(self._clients, snapshot.clients, strict=True):
            self._fillClient(client, clientForm)
        for vm, vmForm in zip(self._vms, snapshot.vms, strict=True):
            self._fillVM(vm, vmForm)
        for session, sessionForm in zip(self._sessions, snapshot.sessions, strict=True):
            self._fillSession(session, sessionForm)
        registry.vms.update((name, self._vms[place]) for name, place in snapshot.known.items())
        registry.leaving.update(self._vms[place] for place in snapshot.leaving)
        registry.tokens.update(
            (token, self._sessions[place]) for token, place in snapshot.tokens.items()
        )

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

    def _fillClient(self, client: Client, form: ClientForm) -> None:
        if form.vm is not None:
            client.vm = self._vms[form.vm]
        if form.session is not None:
            client.session = self._sessions[form.session]
        client.wasShim = form.wasShim
        if form.registering is not None:
            client.registering = self._vms[form.registering]
        client.slots.extend(self._slots[place] for place in form.slots)
        self._fillOutlet(client.outlet, form.outlet)
        client._excess, client._paused = form.excess, form.paused
        client._ignored.update(form.ignored)
        client.url = form.url
        if form.closeIn is not None:
            client._wait = self._registry.context.later(self.left(form.closeIn), client.close)

    def _slot(self, form: SlotForm) -> Slot:
        slot = Slot(self._clients[form.client], form.opcode, form.reply)
        slot.began = self._then - form.began
        return slot

    def _fillOutlet(self, outlet: Outlet, form: OutletForm) -> None:
        outlet._blocks.extend(form.blocks)
        outlet._offset = form.offset
        outlet._gone = form.gone
        outlet.size = sum(len(block) for block, _ in form.blocks) - form.offset
        outlet.kept = sum(len(block) for block, kept in form.blocks if kept)
        self._registry.context.budget.used += outlet.kept

    def _command(self, form: CommandForm) -> ControlCommand:
        slot = None if form.slot is None else self._slots[form.slot]
        session = None if form.session is None else self._sessions[form.session]
        stdio = None if session is None else session.stdio
        command: ControlCommand
        if form.kind == "ping":
            command = PingCommand()
        elif form.kind == "version":
            command = VersionCommand()
        elif slot is None:
            raise BadSnapshot(f"a {form.kind} that nobody waits for")
        elif form.kind == "hyper":
            command = HyperCommand(form.name, slot, form.body)
        elif form.kind == "start" and form.start is not None:
            command = StartCommand(form.name, slot, _startData(form.start), stdio)
        elif form.kind == "signal" and form.signal is not None:
            command = self._signal(form.name, slot, form.signal, form.session)
        else:
            raise BadSnapshot(f"a {form.kind} that lacks something")
        command.arrived, command.sent = self._then - form.arrived, self._then - form.sent
        command.sentAt, command.expired = form.sentAt, form.expired
        return command

    def _signal(
        self, name: str, slot: Slot, signal: Signal, place: Place | None
    ) -> SignalCommand:
        if place is None:  # the process has exited, which the client is still to be told
            return SignalCommand(name, slot, signal, -1, ControlCode.NEWCONTAINER, "", None)
        form = self._snapshot.sessions[place]
        return SignalCommand(
            name, slot, signal, form.stdio, form.kind, form.container, form.process
        )

    def _start(self, place: int) -> StartCommand:
        command = self._commands[place]
        if not isinstance(command, StartCommand):
            raise BadSnapshot(f"{command.name} is no start")
        return command

    def _fillSession(self, session: Session, form: SessionForm) -> None:
        records.read(session, form, self)
        lost, before = (form.lostOutput, form.lostInput), session.crashLoss
        session.crashLoss = before[0] + lost[0], before[1] + lost[1]
        if any(lost):
            self._losses.append((session, *lost))

    # See L{records.Reader}.

    def thing(self, table: str, place: Place | None) -> Any:
        if place is None:
            return None
        if table == "commands":
            return self._start(place)
        tables: dict[str, Sequence[Any]] = {
            "clients": self._clients,
            "vms": self._vms,
            "sessions": self._sessions,
            "slots": self._slots,
        }
        return tables[table][place]

    def moment(self, ago: float) -> float:
        return self._then - ago

    def left(self, left: float, grace: float = 0.0) -> float:
        grace = grace if self._snapshot.written is not None else 0.0
        return max(grace, left - self._age)

    def later(self, delay: float, action: Callable[[], object]) -> Wait:
        return self._registry.context.later(delay, action)

    def _fillVM(self, vm: VM, form: VMForm) -> None:
        vm.state, vm.agent.dialect = form.state, form.dialect
        vm.created, vm.lostAt = self._then - form.created, self._then - form.lost
        vm.resync, vm.url = form.resync, form.url
        self._registry.urls.add(vm.url)
        vm.registration.slot = None if form.slot is None else self._slots[form.slot]
        vm.registration._readyMayCome, vm._notify = form.readyMayCome, form.notify
        if form.control is not None:
            vm.agent.connect(self._connections.get(form.control, NoConnection()))
            if vm.agent._out is not None:
                self._fillOutlet(vm.agent._out, form.controlOut)
            self._connect(form.control, ControlSink(vm))
        if form.io is not None:
            vm.io = self._connections.get(form.io, NoConnection())
            self._connect(form.io, IOSink(vm))
        if form.control is form.io is None and vm.state is not VMState.CONNECTING:
            vm.console.close()
        for name, (left, text) in form.waits.items():
            vm.goOnWaiting(name, self.left(left), text)
        vm.clients.update(self._clients[place] for place in form.clients)
        processes, commands = vm.processes, vm.commands
        for place in form.sessions:
            processes.byNumber[self._sessions[place].stdio] = self._sessions[place]
        processes._nextStdio, processes._nullFree = form.nextStdio, form.nullFree
        processes.base = form.base
        commands.waiting.extend(self._commands[place] for place in form.waiting)
        if form.inFlight is not None:
            commands.inFlight = self._commands[form.inFlight]
        if form.reported is not None:
            commands._reported = self._commands[form.reported]
        commands._asked = form.asked
        for place, left in form.parked:
            vm.starts.park(self._start(place), self.left(left))
        for place in form.turns:
            self._sessions[place].stdin.scheduled = True
            vm.stdin.turns.append(self._sessions[place].stdin)
        vm.stdin._rest = form.rest
        # Whether what was written has been read must be asked: that is always right.
        vm.stdin._mustDrain = True
        self._fillFlow(vm, form.flow)
        vm.traffic = Traffic(**form.traffic)

    def _fillFlow(self, vm: VM, form: FlowForm) -> None:
        flow = vm.flow
        flow.since = self._then - form.since
        flow._readSince = self._now if form.unread else self._then - form.readSince
        flow.blocked = form.blocked
        if form.shim is not None:
            flow._shim = self._clients[form.shim]
        if form.blocker is not None:
            flow.blocker = self._sessions[form.blocker]
            if form.due is not None:
                due = flow._warn if form.due == "warn" else flow._drop
                flow._after(self.left(form.dueIn), due, flow.blocker)


def _startData(form: StartForm) -> StartData:
    return StartData(**attrs.asdict(form))
