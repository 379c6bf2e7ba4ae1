"""
Writing the whole state down: L{write} makes a L{Snapshot} of a L{Registry}.

This and L{ccproxy.core.resuming} are the two places that look into all other objects of the core,
since all that these remember has to go through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast

import attrs

from ..interfaces import IConnection
from ..wire.relocation import StartData
from . import records
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
from .context import Wait
from .flow import Flow
from .outlet import Outlet
from .records import Place
from .registry import Registry
from .session import Session
from .snapshot import (
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
from .states import ClientState
from .stdin import StdinQueue
from .tally import Traffic
from .vm import VM, vmOf

T = TypeVar("T")
F = TypeVar("F")

#: What the kinds of commands are called.
KINDS: dict[type[ControlCommand], Any] = {
    HyperCommand: "hyper",
    StartCommand: "start",
    SignalCommand: "signal",
    PingCommand: "ping",
    VersionCommand: "version",
}


_TRAFFIC = [field.name for field in attrs.fields(Traffic)]


def write(registry: Registry, keyOf: Callable[[IConnection], Key]) -> Snapshot:
    """
    Write everything down, between two turns. Nothing is changed by it.

    @param keyOf: names a connection.
    """
    return _Writer(registry, keyOf).write()


def writeVM(vm: VM, keyOf: Callable[[IConnection], Key]) -> Snapshot:
    """
    Write down what is to be known of one VM if this process dies: not what is on its way, which
    dies with it, and of clients only the shims, which are all that is kept of them.

    @param keyOf: names a connection.
    """
    return _Writer(cast(Registry, vm.registry), keyOf, vm).write()


def writeCounters(registry: Registry) -> Snapshot:
    """Write what belongs to no VM, for the journal: the drain, and the counters."""
    return Snapshot(
        serial=registry._serial,
        clientCount=registry.clientCount,
        ignoredFrames=registry.ignoredFrames,
        draining=registry.draining,
        crashLoss=registry.crashLoss,
        written=registry.context.clock.seconds(),
    )


class _Table(Generic[T, F]):
    """
    All things of one kind that were met, in the order in which they were.

    @ivar forms: what was written of them.
    """

    def __init__(self, form: Callable[[T], F], toWrite: list[tuple[_Table[Any, Any], Any]]) -> None:
        """
        @param form: writes one.
        @param toWrite: all things that were met, of all kinds, with their tables.
        """
        self.forms: list[F] = []
        self._form = form
        self._toWrite = toWrite
        self._places: dict[int, Place] = {}

    def place(self, thing: T) -> Place:
        """Where a thing is."""
        place = self._places.get(id(thing))
        if place is None:
            place = self._places[id(thing)] = len(self._places)
            self._toWrite.append((self, thing))
        return place

    def maybe(self, thing: T | None) -> Place | None:
        """Where a thing is, if there is one."""
        return None if thing is None else self.place(thing)

    def all(self, things: Any) -> list[Place]:
        """Where several are."""
        return [self.place(thing) for thing in things]

    def write(self, thing: T) -> None:
        """Write one down; those that it knows are met so."""
        self.forms.append(self._form(thing))


class _Writer:
    def __init__(
        self,
        registry: Registry,
        keyOf: Callable[[IConnection], Key],
        only: VM | None = None,
    ) -> None:
        """
        @param only: write only what L{writeVM} says of this VM.
        """
        self._registry = registry
        self._only = only
        self._keyOf = keyOf
        self._now = registry.context.clock.seconds()
        self._toWrite: list[tuple[_Table[Any, Any], Any]] = []
        # Others know a client by parts of it.
        self._clients: _Table[Any, ClientForm] = _Table(self._client, self._toWrite)
        self._vms = _Table(self._vm, self._toWrite)
        self._sessions = _Table(self._session, self._toWrite)
        self._slots = _Table(self._slot, self._toWrite)
        self._commands = _Table(self._command, self._toWrite)
        self._vmOf: dict[ControlCommand, VM] = {}
        self._tables: dict[str, _Table[Any, Any]] = {
            "clients": self._clients,
            "vms": self._vms,
            "sessions": self._sessions,
            "slots": self._slots,
            "commands": self._commands,
        }
        self.crash = only is not None

    def write(self) -> Snapshot:
        registry, only = self._registry, self._only
        if only is None:
            self._clients.all(registry.clients)
            known, leaving, tokens = registry.vms, registry.leaving, registry.tokens
        else:
            mine = only.processes.sessions
            known = {only.containerId: only} if registry.vms.get(only.containerId) is only else {}
            leaving = {only} & registry.leaving
            tokens = {each.token: each for each in mine if each.token in registry.tokens}
            self._vms.place(only)
        knownPlaces = {name: self._vms.place(vm) for name, vm in known.items()}
        leavingPlaces = self._vms.all(leaving)
        tokenPlaces = {token: self._sessions.place(each) for token, each in tokens.items()}
        for table, thing in self._toWrite:  # which becomes longer meanwhile
            table.write(thing)
        snapshot = writeCounters(registry)
        snapshot.clients, snapshot.vms = self._clients.forms, self._vms.forms
        snapshot.sessions, snapshot.slots = self._sessions.forms, self._slots.forms
        snapshot.commands = self._commands.forms
        snapshot.known, snapshot.leaving = knownPlaces, leavingPlaces
        snapshot.tokens = tokenPlaces
        if only is None:
            snapshot.written = None
        return snapshot

    def _is(self, vm: VM | None) -> bool:
        """Whether a VM is to be written down."""
        return self._only is None or vm is self._only

    def _key(self, connection: IConnection | None) -> Key | None:
        return None if connection is None else self._keyOf(connection)

    def _client(self, client: Client) -> ClientForm:
        only, session = self._only, client.session
        if only is not None and (session is None or session.vm is not only):
            return ClientForm(client.name, ClientState.CLOSED)
        if client.state is ClientState.CLOSED:
            return ClientForm(client.name, client.state, vm=self._vms.maybe(client.vm))
        return ClientForm(
            name=client.name,
            state=client.state,
            connection=self._keyOf(client._connection),
            vm=self._vms.maybe(client.vm if self._is(client.vm) else None),
            session=self._sessions.maybe(session),
            wasShim=client.wasShim,
            registering=self._vms.maybe(
                client.registering if self._is(client.registering) else None
            ),
            slots=self._slots.all(client.slots),
            outlet=_outlet(client.outlet) if only is None else _responses(client.outlet),
            excess=client._excess,
            paused=client._paused,
            ignored=sorted(client._ignored),
            url=client.url,
            handled=client.handled,
            closeIn=self.left(client._wait),
        )

    def _slot(self, slot: Slot) -> SlotForm:
        client, began = self._clients.place(slot.client), self._now - slot.began
        return SlotForm(client, slot.opcode, slot.reply, began)

    def _command(self, command: ControlCommand) -> CommandForm:
        vm = self._vmOf[command]
        form = CommandForm(
            kind=KINDS[type(command)],
            name=command.name,
            vm=self._vms.place(vm),
            slot=self._slots.maybe(command.slot),
            arrived=self._now - command.arrived,
            sent=self._now - command.sent,
            sentAt=command.sentAt,
            expired=command.expired,
        )
        if isinstance(command, HyperCommand):
            form.body = command.body
        elif isinstance(command, (SignalCommand, StartCommand)):
            # The session of a signal may have ended: the signal fails then.
            stdio = command.stdio
            session = None if stdio is None else vm.processes.byNumber.get(stdio)
            form.session = self._sessions.maybe(session)
        if isinstance(command, SignalCommand):
            form.signal = command.signal
        elif isinstance(command, StartCommand):
            form.start = _start(command.data)
        return form

    def _commandsOf(self, vm: VM, commands: Iterable[ControlCommand]) -> list[Place]:
        places = [self._placed(vm, command) for command in commands]
        return [place for place in places if place is not None]

    def _placed(self, vm: VM, command: ControlCommand | None) -> Place | None:
        """Where a command of a VM is, if there is one."""
        if command is not None:
            self._vmOf[command] = vm
        return self._commands.maybe(command)

    def _session(self, session: Session) -> SessionForm:
        self._placed(vmOf(session), session.start)
        return records.write(session, self)

    # See L{records.Writer}.

    def place(self, table: str, thing: Any) -> Place | None:
        return None if thing is None else self._tables[table].place(thing)

    def ago(self, moment: float) -> float:
        return self._now - moment

    def left(self, wait: Wait | None) -> float | None:
        if wait is None or not wait.active():
            return None
        return max(0.0, wait.getTime() - self._now)

    def _vm(self, vm: VM) -> VMForm:
        commands, stdin, processes = vm.commands, vm.stdin, vm.processes
        waits = {name: (self.left(wait), args) for name, (wait, args) in vm._waits.items()}
        return VMForm(
            request=vm.request,
            serial=vm.serial,
            state=vm.state,
            dialect=vm.dialect,
            control=self._key(vm.control),
            io=self._key(vm.io),
            created=self._now - vm.created,
            resync=vm.resync,
            lost=self._now - vm.lostAt,
            handled=vm.handled,
            slot=self._slots.maybe(vm.registration.slot),
            controlOut=_outlet(vm.agent._out) if vm.agent._out else OutletForm(),
            readyMayCome=vm.registration._readyMayCome,
            notify=vm._notify,
            waits={
                name: (left, "".join(map(str, args)))
                for name, (left, args) in waits.items()
                if left is not None
            },
            clients=self._clients.all(
                client
                for client in vm.clients
                if self._only is None or cast(Client, client).session is not None
            ),
            sessions=self._sessions.all(processes.sessions),
            nextStdio=processes._nextStdio,
            nullFree=processes._nullFree,
            base=processes.base,
            waiting=self._commandsOf(vm, commands.waiting),
            inFlight=self._placed(vm, commands.inFlight),
            asked=commands._asked,
            reported=self._placed(vm, commands._reported),
            parked=[
                (place, self.left(wait) or 0.0)
                for (start, wait) in vm.starts._parked.items()
                if (place := self._placed(vm, start)) is not None
            ],
            turns=self._sessions.all(
                processes.byNumber[queue.number] for queue in self._turns(vm)
            ),
            rest=stdin._rest if self._only is None else b"",
            flow=self._flow(vm.flow),
            url=vm.url,
            traffic={name: getattr(vm.traffic, name) for name in _TRAFFIC},
        )

    def _turns(self, vm: VM) -> list[StdinQueue]:
        stdin = vm.stdin
        if self._only is None:
            return stdin.turns
        waiting = dict.fromkeys([*stdin.turns, *stdin.resting])
        return [each for each in waiting if each.endWaits]

    def _flow(self, flow: Flow) -> FlowForm:
        if self._only is not None:
            # A crash loses the bytes that have filled a session, so the channel is read again.
            blocked = flow.blocker is not None
            return FlowForm(readSince=self._now - flow._readSince, unread=blocked)
        left = self.left(flow._wait)
        due = "warn" if flow._due == flow._warn else "drop"
        return FlowForm(
            blocker=self._sessions.maybe(flow.blocker),
            since=self._now - flow.since,
            readSince=self._now - flow._readSince,
            blocked=flow.blocked,
            shim=self._clients.maybe(flow._shim),
            due=None if left is None else due,  # type: ignore[arg-type]
            dueIn=left or 0.0,
        )


def _outlet(outlet: Outlet) -> OutletForm:
    return OutletForm(list(outlet._blocks), outlet._offset, outlet._gone)


def _responses(outlet: Outlet) -> OutletForm:
    """What is no session's, and waits for room: a response that is lost, nobody gives again."""
    begun = 1 if outlet._offset else 0
    return OutletForm([block for block in outlet._blocks[begun:] if not block[1]])


def _start(data: StartData) -> StartForm:
    return StartForm(
        container=data.container,
        process=data.process,
        terminal=data.terminal,
        head=data._head,
        members=data._members,
        tail=data._tail,
        strangeKey=data._strangeKey,
    )
