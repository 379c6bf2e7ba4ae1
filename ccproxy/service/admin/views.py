"""
What the admin socket shows of the daemon: plain values, made of the registry by pure functions.

The classes are the JSON that is sent, field by field, and their docstrings are its documentation:
openapi.json is made of them. Times are seconds; ages count from now.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum
from operator import attrgetter
from typing import Literal

import attrs

from twisted import __version__ as twistedVersion

from ... import __version__
from ...core.client import Client
from ...core.commands import ControlCommand
from ...core.limits import Limits
from ...core.registry import Registry
from ...core.session import Session
from ...core.states import ClientState, SessionState, VMState
from ...core.vm import VM
from ...wire.codes import ControlCode, Dialect


@attrs.frozen(slots=False)
class Counts:
    """
    How many there are.

    @ivar vms: VMs by state.
    @ivar sessions: sessions by state.
    @ivar clients: client connections by state, shims included.
    @ivar shims: client connections that are shims.
    @ivar commands: commands that wait for something.
    """

    vms: dict[str, int]
    sessions: dict[str, int]
    clients: dict[str, int]
    shims: int
    commands: int


@attrs.frozen(slots=False)
class Status:
    """
    The daemon.

    @ivar version: its version.
    @ivar python: the version of Python that it runs on.
    @ivar twisted: the version of Twisted that it runs on.
    @ivar pid: its process id.
    @ivar startedAt: when it began to listen.
    @ivar uptime: seconds since then.
    @ivar socket: the URL of the client socket.
    @ivar draining: whether it takes no new VMs.
    @ivar logLevel: the least severe level that is logged, or null where the log is twistd's own.
    @ivar bufferedBytes: bytes kept for all sessions, both directions.
    @ivar ignoredFrames: frames of clients that were dropped because they may not send them.
    @ivar counts: how many of everything there are.
    """

    version: str
    python: str
    twisted: str
    pid: int
    startedAt: datetime
    uptime: float
    socket: str
    draining: bool
    logLevel: str | None
    bufferedBytes: int
    ignoredFrames: int
    counts: Counts


@attrs.frozen(slots=False)
class Blocked:
    """
    Why the output of a VM waits.

    @ivar session: the full session that it waits for.
    @ivar seconds: for how long it has.
    """

    session: str
    seconds: float


@attrs.frozen(slots=False)
class VMView:
    """
    A VM.

    @ivar containerId: its name.
    @ivar serial: its number, which no other VM has.
    @ivar state: where it is in its life.
    @ivar age: seconds since RegisterVM.
    @ivar lostFor: seconds since it was lost, or null.
    @ivar dialect: what is known of its agent.
    @ivar ctlSerial: the path of its control channel's socket.
    @ivar ioSerial: the path of its I/O channel's socket.
    @ivar console: the path of its console's socket, or null.
    @ivar clients: how many clients are attached to it.
    @ivar shims: how many of its sessions have a connected shim.
    @ivar sessions: how many sessions it has.
    @ivar commands: how many commands for its agent are in flight or queued.
    @ivar bufferedOutput: bytes of output kept for its shims.
    @ivar bufferedInput: bytes of stdin kept for its processes.
    @ivar blocked: what its output waits for, or null where it flows.
    @ivar blockedSeconds: for how long its output has waited so far, in all.
    @ivar outFrames: messages with output that came from it.
    @ivar outBytes: their bytes, headers included.
    @ivar inFrames: messages with stdin that went to it.
    @ivar inBytes: their bytes, headers included.
    """

    containerId: str
    serial: int
    state: VMState
    age: float
    lostFor: float | None
    dialect: Dialect
    ctlSerial: str
    ioSerial: str
    console: str | None
    clients: int
    shims: int
    sessions: int
    commands: int
    bufferedOutput: int
    bufferedInput: int
    blocked: Blocked | None
    blockedSeconds: float
    outFrames: int
    outBytes: int
    inFrames: int
    inBytes: int


@attrs.frozen(slots=False)
class SessionView:
    """
    A session: one process, from its token to its end.

    @ivar vm: the name of its VM.
    @ivar serial: the number of its VM.
    @ivar session: what the log calls it: its token, shortened, or its number.
    @ivar stdio: the number of its stdin and stdout on the I/O channel.
    @ivar state: where it is in its life.
    @ivar age: seconds since its token was made.
    @ivar container: the id of its container, empty before the start.
    @ivar process: the id of its process, where it has one.
    @ivar first: whether it is its container's first process; null before the start.
    @ivar terminal: whether it has a terminal.
    @ivar shim: the number of the client that is its shim, or null.
    @ivar status: the exit status, once it is known.
    @ivar bufferedOutput: bytes of output kept for the shim.
    @ivar bufferedInput: bytes of stdin kept for the process.
    @ivar heldSignals: signals that wait for the start.
    @ivar dropping: whether its output is dropped because nobody has read it for too long.
    @ivar dropped: how many bytes were.
    """

    vm: str
    serial: int
    session: str
    stdio: int
    state: SessionState
    age: float
    container: str
    process: str | None
    first: bool | None
    terminal: bool
    shim: int | None
    status: int | None
    bufferedOutput: int
    bufferedInput: int
    heldSignals: int
    dropping: bool
    dropped: int


@attrs.frozen(slots=False)
class ClientView:
    """
    A connection of a runtime or a shim.

    @ivar number: its number, which no other client has.
    @ivar peer: the process and user at its other end.
    @ivar state: where it is in its life.
    @ivar vm: the name of the VM that it is attached to, or of its session, or null.
    @ivar serial: the number of that VM, or null.
    @ivar session: the session whose shim it is, or null.
    @ivar unanswered: how many of its commands are not answered.
    @ivar unsent: bytes that its socket has not taken.
    """

    number: int
    peer: str
    state: ClientState
    vm: str | None
    serial: int | None
    session: str | None
    unanswered: int
    unsent: int


class Awaited(Enum):
    """What a command waits for."""

    #: The READY of the VM that it registers.
    READY = "ready"
    #: The agent's answer: it is the one in flight.
    ANSWER = "answer"
    #: Its turn: another command is in flight.
    TURN = "turn"
    #: The shim of the process that it starts.
    SHIM = "shim"
    #: The start of the process that it is a signal for.
    START = "start"


@attrs.frozen(slots=False)
class CommandView:
    """
    A command that is not answered.

    @ivar vm: the name of the VM that it is for.
    @ivar serial: the number of that VM.
    @ivar command: what it is: C{RegisterVM}, or the name of a command for agents.
    @ivar awaits: what it waits for.
    @ivar age: seconds since it came.
    @ivar client: the number of its client, or null where the proxy itself asks.
    @ivar expired: whether its client was told that its deadline has passed.
    """

    vm: str
    serial: int
    command: str
    awaits: Awaited
    age: float
    client: int | None
    expired: bool


@attrs.frozen(slots=False)
class LogLevel:
    """
    The log level.

    @ivar level: it and what is more severe is logged.
    """

    level: str


@attrs.frozen(slots=False)
class LogLevelWanted:
    """
    The log level that is wanted.

    @ivar level: under every name that the option takes.
    """

    level: Literal["debug", "info", "warn", "warning", "error", "fatal", "panic"]


@attrs.frozen(slots=False)
class Draining:
    """
    Whether the daemon drains.

    @ivar draining: whether it takes no new VMs.
    """

    draining: bool


@attrs.frozen(slots=False)
class Stopping:
    """
    The daemon stops.

    @ivar stopping: always true.
    """

    stopping: bool = True


@attrs.frozen(slots=False)
class Restarting:
    """
    The daemon hands over to its successor.

    @ivar restarting: always true.
    """

    restarting: bool = True


@attrs.frozen(slots=False)
class Health:
    """
    Whether the daemon works.

    @ivar healthy: whether it does.
    @ivar listening: whether it takes clients.
    @ivar loopLag: by how many seconds its loop was late, at worst in the last ten seconds.
    @ivar maxLoopLag: by how many it may be.
    """

    healthy: bool
    listening: bool
    loopLag: float
    maxLoopLag: float


@attrs.frozen(slots=False)
class Dump:
    """
    All that the daemon knows.

    @ivar status: the daemon.
    @ivar limits: its bounds and deadlines.
    @ivar vms: its VMs.
    @ivar sessions: their sessions.
    @ivar clients: its clients.
    @ivar commands: the commands that are not answered, the oldest first.
    """

    status: Status
    limits: Limits
    vms: list[VMView]
    sessions: list[SessionView]
    clients: list[ClientView]
    commands: list[CommandView]


def allVMs(registry: Registry) -> list[VM]:
    """Every VM of which something is left, the oldest first."""
    vms = {*registry.vms.values(), *registry.leaving}
    vms.update(session.vm for session in registry.tokens.values())
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


def status(registry: Registry, startedAt: float, logLevel: str | None) -> Status:
    """
    The daemon.

    @param startedAt: when it began to listen, in seconds since the epoch.
    """
    return Status(
        version=__version__,
        python=platform.python_version(),
        twisted=twistedVersion,
        pid=os.getpid(),
        startedAt=datetime.fromtimestamp(startedAt, UTC),
        uptime=registry.wallClock() - startedAt,
        socket=registry.url,
        draining=registry.draining,
        logLevel=logLevel,
        bufferedBytes=registry.budget.used,
        ignoredFrames=registry.ignoredFrames,
        counts=counts(registry),
    )


def vmView(vm: VM) -> VMView:
    """A VM."""
    now = vm.registry.clock.seconds()
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
    vm, started = session.vm, bool(session.container)
    return SessionView(
        vm=vm.containerId,
        serial=vm.serial,
        session=session.name,
        stdio=session.stdio,
        state=session.state,
        age=vm.registry.clock.seconds() - session.created,
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
    )


def clientView(client: Client) -> ClientView:
    """A client."""
    session = client.session
    vm = session.vm if session is not None else client.vm or client.registering
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


def clientNumber(client: Client) -> int:
    """The number that C{client}'s name begins with."""
    return int(client.name.partition(" ")[0])


def _number(client: Client | None) -> int | None:
    return None if client is None else clientNumber(client)


def _awaiting(vm: VM) -> Iterator[tuple[str, Awaited, float, Client | None, bool]]:
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
    now = registry.clock.seconds()
    found = [
        CommandView(vm.containerId, vm.serial, name, awaited, now - since, _number(client), expired)
        for vm in allVMs(registry)
        for name, awaited, since, client, expired in _awaiting(vm)
    ]
    return sorted(found, key=lambda view: -view.age)


def vms(registry: Registry) -> list[VMView]:
    """All VMs, the oldest first."""
    return [vmView(vm) for vm in allVMs(registry)]


def sessions(registry: Registry, vm: str | None = None) -> list[SessionView]:
    """
    All sessions, by VM and number.

    @param vm: of VMs of this name only.
    """
    return [
        sessionView(session)
        for found in allVMs(registry)
        if vm is None or found.containerId == vm
        for session in sorted(found.processes.sessions, key=lambda session: session.stdio)
    ]


def clients(registry: Registry) -> list[ClientView]:
    """All clients, the oldest first."""
    return sorted(map(clientView, registry.clients), key=lambda view: view.number)


def dump(registry: Registry, now: Status) -> Dump:
    """
    Everything.

    @param now: the daemon, from L{status}.
    """
    return Dump(
        now, registry.limits, vms(registry), sessions(registry), clients(registry),
        commands(registry),
    )  # fmt: skip
