"""
Writing the whole state down: L{write} makes a L{Snapshot} of a L{Registry}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

from ..interfaces import IConnection
from . import records
from .client import Client
from .context import Wait
from .records import Place
from .registry import Registry
from .snapshot import (
    ClientForm,
    Key,
    Snapshot,
)
from .states import ClientState
from .vm import VM

T = TypeVar("T")
F = TypeVar("F")

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
        self._tables: dict[str, _Table[Any, Any]] = {
            name: _Table(self._client if name == "clients" else self._record, self._toWrite)
            for name in ("clients", "vms", "sessions", "slots", "commands")
        }
        self.crash = only is not None

    def write(self) -> Snapshot:
        registry, only = self._registry, self._only
        if only is None:
            for client in registry.clients:
                self.place("clients", client)
            known, leaving, tokens = registry.vms, registry.leaving, registry.tokens
        else:
            mine = only.processes.sessions
            known = {only.containerId: only} if registry.vms.get(only.containerId) is only else {}
            leaving = {only} & registry.leaving
            tokens = {each.token: each for each in mine if each.token in registry.tokens}
            self.place("vms", only)
        snapshot = writeCounters(registry)
        snapshot.known = self._places("vms", known)
        snapshot.leaving = [self._tables["vms"].place(vm) for vm in leaving]
        snapshot.tokens = self._places("sessions", tokens)
        for table, thing in self._toWrite:  # which becomes longer meanwhile
            table.write(thing)
        for name, table in self._tables.items():
            setattr(snapshot, name, table.forms)
        if only is None:
            snapshot.written = None
        return snapshot

    def _places(self, table: str, things: Mapping[str, object]) -> dict[str, Place]:
        return {name: self._tables[table].place(thing) for name, thing in things.items()}

    def _client(self, client: Client) -> ClientForm:
        gone = client.state is ClientState.CLOSED
        if gone or (self.crash and (client.session is None or client.session.vm is not self._only)):
            return ClientForm(name=client.name, state=ClientState.CLOSED)
        return records.write(client, self)

    # See L{records.Writer}.

    def place(self, table: str, thing: Any) -> Place | None:
        if thing is None or (table == "vms" and self.crash and thing is not self._only):
            return None
        return self._tables[table].place(thing)

    def key(self, connection: Any) -> Key | None:
        return None if connection is None else self._keyOf(connection)

    def ago(self, moment: float) -> float:
        return self._now - moment

    def left(self, wait: Wait | None) -> float | None:
        if wait is None or not wait.active():
            return None
        return max(0.0, wait.getTime() - self._now)

    def _record(self, thing: Any) -> Any:
        return records.write(thing, self)
