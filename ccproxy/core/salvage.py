"""
Restore a damaged state in part.

A snapshot falls into units that do not refer to each other: a VM with its sessions, its commands
and its clients, or a client without a VM. A unit that cannot be restored loses the clients that are
to blame. If that does not help, the whole unit is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import attrs
from msgspec import Struct, structs

from ..wire.translation import frameAround
from .commands import (
    HyperCommand,
    PingCommand,
    SignalCommand,
    StartCommand,
    VersionCommand,
)
from .flow import Flow
from .records import Place, formOf
from .signals import HeldForm
from .snapshot import (
    TABLES,
    ClientForm,
    SessionForm,
    SlotForm,
    Snapshot,
    VMForm,
)
from .states import ClientState

T = TypeVar("T")

#: The attributes of each form that hold places, and in which table.
_REFERENCES: dict[type, dict[str, str]] = {
    ClientForm: {"vm": "vms", "session": "sessions", "registering": "vms", "slots": "slots"},
    SlotForm: {"client": "clients"},
    formOf(HyperCommand): {"slot": "slots"},
    formOf(StartCommand): {"slot": "slots", "session": "sessions"},
    formOf(SignalCommand): {"slot": "slots", "session": "sessions"},
    formOf(PingCommand): {},
    formOf(VersionCommand): {},
    SessionForm: {"vm": "vms", "start": "commands", "shim": "clients", "held": ""},
    HeldForm: {"slot": "slots"},
    formOf(Flow): {"blocker": "sessions", "shim": "clients"},
    VMForm: {
        "slot": "slots",
        "clients": "clients",
        "sessions": "sessions",
        "waiting": "commands",
        "inFlight": "commands",
        "reported": "commands",
        "parked": "commands",
        "turns": "sessions",
        "flow": "",
    },
}
#: A place that no table has.
_NOWHERE = 1 << 60

_Node = tuple[str, Place]


@attrs.frozen
class Dropped:
    """
    VMs and clients that could not be restored.

    @ivar vms: the ids of VMs.
    @ivar clients: the names of clients.
    """

    vms: list[str]
    clients: list[str]
    error: Exception


def salvage(
    snapshots: Sequence[Snapshot], restore: Callable[[Sequence[Snapshot]], object]
) -> tuple[list[Snapshot], list[Dropped]]:
    """
    Find out how much of a state can be restored.

    @param restore: tries to restore snapshots, without effect; raises if that cannot be done.
    @return: what can be restored, and what cannot.
    """
    if _error(restore, snapshots) is None:
        return list(snapshots), []
    units: list[Snapshot] = []
    dropped: list[Dropped] = []
    for unit in (unit for snapshot in snapshots for unit in _split(snapshot)):
        error = _error(restore, [unit])
        if error is None:
            units.append(unit)
        else:
            rest, bad = _withoutBadClients(unit, restore)
            if rest is None:
                dropped.append(_dropped(unit, error))
            else:
                units.append(rest)
                dropped.append(Dropped([], [unit.clients[place].name for place in bad], error))
    kept = _sift(units, lambda some: _error(restore, some) is None)
    found = {id(unit) for unit in kept}
    for unit in units:
        if id(unit) not in found and (error := _error(restore, [*kept, unit])) is not None:
            dropped.append(_dropped(unit, error))
    return kept, dropped


def _dropped(unit: Snapshot, error: Exception) -> Dropped:
    clients = [client.name for client in unit.clients if client.connection is not None]
    return Dropped([vm.request.containerId for vm in unit.vms], clients, error)


def _error(action: Callable[[T], object], argument: T) -> Exception | None:
    try:
        action(argument)
    except Exception as error:
        return error
    return None


def _sift(things: Sequence[T], good: Callable[[list[T]], bool], kept: Sequence[T] = ()) -> list[T]:
    """Return C{kept} and as many of C{things} as are good together with it, by halving."""
    if good([*kept, *things]):
        return [*kept, *things]
    if len(things) <= 1:
        return [*kept]
    half = len(things) // 2
    return _sift(things[half:], good, _sift(things[:half], good, kept))


def _withoutBadClients(
    unit: Snapshot, restore: Callable[[Sequence[Snapshot]], object]
) -> tuple[Snapshot | None, list[Place]]:
    """
    Look for clients without which a unit can be restored.

    @return: the unit without them, and their places; or L{None} if they are not to blame.
    """

    def good(clients: list[Place]) -> bool:
        return _error(lambda kept: restore([_only(unit, kept)]), set(clients)) is None

    free: list[Place] = []
    bound: list[Place] = []
    for place, client in enumerate(unit.clients):
        if client.connection is not None:
            # Without its client, a VM that is being registered would stay unknown for ever.
            (free if client.registering is None else bound).append(place)
    if not unit.vms or not free or not good(bound):
        return None, []
    kept = set(_sift(free, good, bound))
    return _only(unit, kept), [place for place in free if place not in kept]


def _only(unit: Snapshot, kept: Collection[Place]) -> Snapshot:
    """Return a unit in which all clients but C{kept} have gone, as after L{Client.close}."""
    clients = unit.clients

    def there(place: Place | None) -> Place | None:
        return place if place in kept else None

    return attrs.evolve(
        unit,
        clients=[
            client if place in kept else ClientForm(name=client.name, state=ClientState.CLOSED)
            for place, client in enumerate(clients)
        ],
        vms=[
            _evolved(
                vm,
                clients=[place for place in vm.clients if place in kept],
                flow=_evolved(vm.flow, shim=there(vm.flow.shim)),
            )
            for vm in unit.vms
        ],
        sessions=[
            session
            if session.shim is None or session.shim in kept
            else _evolved(session, shim=None, pending=_undelivered(clients[session.shim]))
            for session in unit.sessions
        ],
    )


def _undelivered(shim: ClientForm) -> list[bytes]:
    """Return the session's frames that a shim has not got whole."""
    blocks, offset = shim.outlet.blocks, shim.outlet.offset
    if offset and blocks[0][1]:
        start, _ = frameAround(blocks[0][0], offset)
        blocks = [(blocks[0][0][start:], True), *blocks[1:]]
    return [block for block, kept in blocks if kept]


def _split(snapshot: Snapshot) -> Iterator[Snapshot]:
    """Yield what belongs to no object, then the units."""
    tables: dict[str, list[Any]] = {name: list(getattr(snapshot, name)) for name in TABLES}
    # Closed clients are names that commands still refer to. Each unit gets its own copy.
    closed = {
        ("clients", place)
        for place, client in enumerate(snapshot.clients)
        if client.connection is None
    }
    for name, place in closed:
        tables[name][place] = ClientForm(name=tables[name][place].name, state=ClientState.CLOSED)
    near: dict[_Node, list[_Node]] = {
        (name, place): [] for name, forms in tables.items() for place in range(len(forms))
    }
    for node in list(near):

        def meet(name: str, place: Place, node: _Node = node) -> Place:
            near[node].append((name, place))
            if (name, place) not in closed:
                near.setdefault((name, place), []).append(node)
            return place

        _mapped(tables[node[0]][node[1]], meet)
    for place in [*snapshot.known.values(), *snapshot.leaving]:
        near.setdefault(("vms", place), [])
    for place in snapshot.tokens.values():
        near.setdefault(("sessions", place), [])
    nothing: dict[str, Any] = {name: [] for name in TABLES}
    yield attrs.evolve(snapshot, **nothing, known={}, leaving=[], tokens={})
    met: set[_Node] = set()
    for node in near:
        if node not in met and node not in closed:
            yield _unit(snapshot, tables, _reached(node, near, closed, met))


def _reached(
    start: _Node, near: dict[_Node, list[_Node]], closed: set[_Node], met: set[_Node]
) -> list[_Node]:
    """Return all that belongs together with C{start}, and note that it was met."""
    found, todo = {start: None}, [start]
    while todo:
        node = todo.pop()
        met.add(node)
        for other in near[node] if node not in closed else ():
            if other not in found:
                found[other] = None
                todo.append(other)
    return sorted(found)


def _unit(snapshot: Snapshot, tables: dict[str, list[Any]], nodes: list[_Node]) -> Snapshot:
    """Return a snapshot of these nodes alone. What refers to nothing still does so."""
    places: dict[_Node, Place] = {}
    forms: dict[str, list[Any]] = {name: [] for name in TABLES}
    for name, place in nodes:
        if place < len(tables[name]):
            places[name, place] = len(forms[name])
            forms[name].append(tables[name][place])

    def to(name: str, old: Place) -> Place:
        return places.get((name, old), _NOWHERE)

    mine = set(nodes)
    known, tokens = snapshot.known.items(), snapshot.tokens.items()
    changes: dict[str, Any] = {
        name: [_mapped(form, to) for form in forms[name]] for name in TABLES
    }
    return attrs.evolve(
        snapshot,
        **changes,
        known={name: to("vms", old) for name, old in known if ("vms", old) in mine},
        leaving=[to("vms", old) for old in snapshot.leaving if ("vms", old) in mine],
        tokens={token: to("sessions", old) for token, old in tokens if ("sessions", old) in mine},
    )


def _evolved(form: Any, **changes: Any) -> Any:
    """Return a form with other values of some attributes."""
    evolve = structs.replace if isinstance(form, Struct) else attrs.evolve
    return evolve(form, **changes)


def _mapped(form: Any, to: Callable[[str, Place], Place]) -> Any:
    """Return a form whose places are those that C{to} says."""
    references = _REFERENCES[type(form)].items()
    changes = {name: _mappedValue(getattr(form, name), table, to) for name, table in references}
    return _evolved(form, **changes)


def _mappedValue(value: Any, table: str, to: Callable[[str, Place], Place]) -> Any:
    if isinstance(value, list):
        return [_mappedValue(each, table, to) for each in value]
    if isinstance(value, tuple):  # a place, and something about it
        return (to(table, value[0]), *value[1:])
    if value is None or isinstance(value, int):
        return None if value is None else to(table, value)
    return _mapped(value, to)
