"""
Whether a state that another process has written contradicts itself, before anything is made of it.

Its checksum says that it is as it was written, and its form that every member is one; this says
that they belong together, so that nothing is taken up which would fail later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .commands import StartCommand
from .records import Place, formOf
from .snapshot import BadSnapshot, OutletForm, SessionForm, Snapshot, VMForm
from .states import ClientState, SessionState, VMState

_START = formOf(StartCommand)
#: Those of a VM that clients know.
_KNOWN = (VMState.CONNECTING, VMState.WAITING, VMState.REGISTERED, VMState.LOST)


def check(snapshots: Sequence[Snapshot]) -> None:
    """
    Look whether states can be taken up together.

    @raise BadSnapshot: they cannot; the text says what is wrong.
    @raise LookupError: one names what is not in it.
    """
    for snapshot in snapshots:
        _checkSnapshot(snapshot)
    for snapshot in snapshots:
        of = [place for vm in snapshot.vms for place in _commandsOf(vm)]
        _unlike("command of VMs", of)
    _unlike("VM number", (vm.serial for snapshot in snapshots for vm in snapshot.vms))


def _checkSnapshot(snapshot: Snapshot) -> None:
    vms, sessions, clients = snapshot.vms, snapshot.sessions, snapshot.clients
    for name, place in snapshot.known.items():
        vm = vms[place]
        if vm.request.containerId != name or vm.state not in _KNOWN:
            raise BadSnapshot(f"{name} is known, and is {vm.request.containerId}, {vm.state.value}")
    for token, place in snapshot.tokens.items():
        session = sessions[place]
        if session.token != token or place not in vms[session.vm].sessions:
            raise BadSnapshot("a token leads to the session of another")
    for client in clients:
        if client.connection is not None and client.state is ClientState.CLOSED:
            raise BadSnapshot(f"client {client.name} is closed and has a connection")
        _checkOutlet(client.outlet)
    for place, session in enumerate(sessions):
        if session.shim is not None and clients[session.shim].session != place:
            raise BadSnapshot(f"the shim of session {session.stdio} is that of another")
        _checkOffset(session.offset, session.pieces)
        if session.start is not None:
            _checkStart(snapshot, session.start)
    for place, vm in enumerate(vms):
        _checkVM(snapshot, place, vm)
    # A connection that was just closed has the key 0.
    channels = [key for vm in vms for key in (vm.control, vm.io) if key]
    keys = [client.connection for client in clients if client.connection]
    _unlike("connection", [*channels, *keys])
    for place, client in enumerate(clients):
        if any(snapshot.slots[slot].client != place for slot in client.slots):
            raise BadSnapshot(f"client {client.name} waits for what another has asked")


def _checkVM(snapshot: Snapshot, place: Place, vm: VMForm) -> None:
    name = vm.request.containerId
    _checkOutlet(vm.controlOut)
    mine = [snapshot.sessions[each] for each in vm.sessions]
    _unlike(f"session of {name}", vm.sessions)
    for session in mine:
        if session.vm != place or session.state is SessionState.ENDED:
            raise BadSnapshot(f"session {session.stdio} is not one of {name}, or has ended")
    _unlike(f"number in {name}", _numbers(mine))
    commands = _commandsOf(vm)
    if vm.inFlight is not None:
        flying = snapshot.commands[vm.inFlight]
        if isinstance(flying, _START):
            # Earlier versions have written the place of the session.
            old = [] if flying.session is None else [snapshot.sessions[flying.session]]
            started = old or [each for each in mine if each.stdio == flying.stdio]
            if any(each.state is SessionState.CREATED for each in started):
                raise BadSnapshot(f"a start in {name} is under way whose session was not started")
    for start, _ in vm.parked:
        _checkStart(snapshot, start)
    for each in commands:
        snapshot.commands[each]


def _commandsOf(vm: VMForm) -> list[Place]:
    inFlight = [] if vm.inFlight is None else [vm.inFlight]
    return [*inFlight, *vm.waiting, *(start for start, _ in vm.parked)]


def _checkStart(snapshot: Snapshot, place: Place) -> None:
    command = snapshot.commands[place]
    if not isinstance(command, _START):
        raise BadSnapshot(f"{command.name} is no start")


def _numbers(sessions: Iterable[SessionForm]) -> Iterable[int]:
    for session in sessions:
        if session.numbered:
            yield from (session.stdio, session.stdio + 1)


def _checkOutlet(outlet: OutletForm) -> None:
    _checkOffset(outlet.offset, [block for block, _ in outlet.blocks])


def _checkOffset(offset: int, pieces: Sequence[bytes]) -> None:
    if offset > (len(pieces[0]) if pieces else 0):
        raise BadSnapshot(f"{offset} bytes have gone of what is shorter")


def _unlike(what: str, things: Iterable[object]) -> None:
    seen = set()
    for thing in things:
        if thing in seen:
            raise BadSnapshot(f"twice the same {what}: {thing}")
        seen.add(thing)
