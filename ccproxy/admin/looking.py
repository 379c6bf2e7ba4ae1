"""
Looking at the registry: pure functions that make L{ccproxy.admin.views} of it.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum
from operator import attrgetter
from typing import Protocol

from twisted import __version__ as twistedVersion

from .. import __version__
from ..core.commands import ControlCommand
from ..core.registry import KnownClient, Registry
from ..core.session import Session
from ..core.states import ClientState, SessionState, VMState
from ..core.vm import VM, vmOf
from ..wire.codes import ControlCode
from .views import (
    Awaited,
    Blocked,
    ClientView,
    CommandView,
    Counts,
    CrashLoss,
    SessionView,
    Status,
    VMView,
)


class Named(Protocol):
    """A client, as far as its name is concerned."""

    @property
    def name(self) -> str: ...


def allVMs(registry: Registry) -> list[VM]:
    """Every VM of which something is left, the oldest first."""
    vms = {*registry.vms.values(), *registry.leaving}
    vms.update(map(vmOf, registry.tokens.values()))
    return sorted(vms, key=lambda vm: vm.serial)


def counts(registry: Registry) -> Counts:
    """Count."""
    vms, clients = allVMs(registry), registry.clients
    sessions = [session for vm in vms for session in vm.processes.sessions]
    return Counts(
        _byState(VMState, vms),
        _byState(SessionState, sessions),
        _byState(ClientState, clients),
        sum(client.session is not None for client in clients),
        sum(map(_commandsOf, vms)) + sum(map(len, map(_heldOf, sessions))),
    )


def _byState(states: type[Enum], things: Iterable[object]) -> dict[str, int]:
    """How many of C{things} are in each of C{states}; those that nobody sees are not shown."""
    # There may be a hundred thousand of them, and all else waits: no line of Python for each.
    counter = Counter(map(_stateOf, things))
    names = [state.value for state in states]
    return {name: counter[name] for name in names if name not in ("ended", "closed")}


_stateOf = attrgetter("state._value_")
_heldOf = attrgetter("held")


def _commandsOf(vm: VM) -> int:
    """How many commands of C{vm} wait, without the signals that its sessions hold."""
    registering = vm.state in (VMState.CONNECTING, VMState.WAITING)
    return registering + _queued(vm) + len(vm.starts.parked)


def _queued(vm: VM) -> int:
    """How many commands for its agent are in flight or queued."""
    return len(vm.commands.waiting) + (vm.commands.inFlight is not None)


def status(registry: Registry, started: tuple[float, float], logLevel: str | None) -> Status:
    """
    The daemon.

    @param started: when it began to listen, in seconds since the epoch and of the clock.
    """
    return Status(
        version=__version__,
        python=platform.python_version(),
        twisted=twistedVersion,
        pid=os.getpid(),
        startedAt=datetime.fromtimestamp(started[0], UTC),
        uptime=registry.context.clock.seconds() - started[1],
        socket=registry.url,
        draining=registry.draining,
        logLevel=logLevel,
        bufferedBytes=registry.context.budget.used,
        ignoredFrames=registry.ignoredFrames,
        counts=counts(registry),
    )


def vmView(vm: VM) -> VMView:
    """A VM."""
    now = vm.context.clock.seconds()
    sessions, blocker = vm.processes.sessions, vm.flow.blocker
    outputs = [session.output for session in sessions]
    lost = vm.state is VMState.LOST
    waits = now - vm.flow.since if blocker is not None else 0.0
    return VMView(
        containerId=vm.containerId,
        serial=vm.serial,
        state=vm.state,
        age=now - vm.created,
        lostFor=now - vm.lostAt if lost else None,
        dialect=vm.dialect,
        ctlSerial=vm.request.ctlSerial,
        ioSerial=vm.request.ioSerial,
        console=vm.request.console or None,
        clients=len(vm.clients),
        shims=sum(output.shim is not None for output in outputs),
        sessions=len(sessions),
        commands=_queued(vm),
        bufferedOutput=sum(output.held for output in outputs),
        bufferedInput=sum(session.stdin.size for session in sessions),
        blocked=Blocked(blocker.name, waits) if blocker is not None else None,
        blockedSeconds=vm.flow.blocked + waits,
        outFrames=vm.traffic.outFrames,
        outBytes=vm.traffic.outBytes,
        inFrames=vm.traffic.inFrames,
        inBytes=vm.traffic.inBytes,
    )


def sessionView(session: Session) -> SessionView:
    """A session."""
    vm, started = vmOf(session), bool(session.container)
    return SessionView(
        vm=vm.containerId,
        serial=vm.serial,
        session=session.name,
        stdio=session.stdio,
        state=session.state,
        age=vm.context.clock.seconds() - session.created,
        container=session.container,
        process=session.process,
        first=session.kind is ControlCode.NEWCONTAINER if started else None,
        terminal=session.terminal,
        shim=_number(session.shim),
        status=session.status,
        bufferedOutput=session.output.held,
        bufferedInput=session.stdin.size,
        heldSignals=len(session.held),
        dropping=session.output.dropping,
        dropped=session.output.dropped,
        lost=CrashLoss(*session.crashLoss),
    )


def clientView(client: KnownClient) -> ClientView:
    """A client."""
    session = client.session
    vm = vmOf(session) if session is not None else client.vm or client.registering
    return ClientView(
        number=clientNumber(client),
        peer=client.name.partition(" ")[2],
        state=client.state,
        vm=vm.containerId if vm is not None else None,
        serial=vm.serial if vm is not None else None,
        session=session.name if session is not None else None,
        unanswered=len(client.slots),
        unsent=client.outlet.size,
    )


def clientNumber(client: Named) -> int:
    """The number that C{client}'s name begins with."""
    return int(client.name.partition(" ")[0])


def _number(client: Named | None) -> int | None:
    return None if client is None else clientNumber(client)


def _awaiting(vm: VM) -> Iterator[tuple[str, Awaited, float, Named | None, bool]]:
    """Each command of C{vm} that waits: its name, what for, since when, and whose it is."""
    if vm.state in (VMState.CONNECTING, VMState.WAITING):
        yield "RegisterVM", Awaited.READY, vm.created, vm.registrant, False
    inFlight = vm.commands.inFlight
    commands: list[ControlCommand] = list(vm.commands.waiting)
    for command in [inFlight, *commands] if inFlight else commands:
        awaited = Awaited.ANSWER if command is inFlight else Awaited.TURN
        yield command.name, awaited, command.arrived, command.client, command.expired
    for start in vm.starts.parked:
        yield start.name, Awaited.SHIM, start.arrived, start.client, False
    for session in vm.processes.sessions:
        for held in session.held:
            yield "signal", Awaited.START, held.since, held.slot.client, False


def commands(registry: Registry) -> list[CommandView]:
    """All commands that wait for something, the oldest first."""
    now = registry.context.clock.seconds()
    found = [
        CommandView(vm.containerId, vm.serial, name, awaited, now - since, _number(client), expired)
        for vm in allVMs(registry)
        for name, awaited, since, client, expired in _awaiting(vm)
    ]
    return sorted(found, key=lambda view: -view.age)


def vms(registry: Registry) -> Iterator[VMView]:
    """All VMs, the oldest first."""
    return map(vmView, allVMs(registry))


def sessions(registry: Registry, vm: str | None = None) -> Iterator[SessionView]:
    """
    All sessions, by VM and number.

    @param vm: of VMs of this name only.
    """
    for found in allVMs(registry):
        if vm is None or found.containerId == vm:
            mine = sorted(found.processes.sessions, key=lambda session: session.stdio)
            yield from map(sessionView, mine)


def clients(registry: Registry) -> Iterator[ClientView]:
    """All clients, the oldest first."""
    return map(clientView, sorted(registry.clients, key=clientNumber))
