"""
Writing the whole state down: L{write} makes a L{Snapshot} of a L{Registry}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from ..interfaces import IConnection
from . import records
from .client import Client
from .context import Wait
from .records import Place
from .registry import Registry
from .snapshot import TABLES, ClientForm, Key, Snapshot
from .states import ClientState
from .vm import VM


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
        serial=registry.serial,
        clientCount=registry.clientCount,
        ignoredFrames=registry.ignoredFrames,
        draining=registry.draining,
        crashLoss=registry.crashLoss,
        written=registry.context.clock.seconds(),
    )


class _Writer:
    """See L{records.Writer}."""

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
        self._places: dict[str, dict[int, Place]] = {table: {} for table in TABLES}
        self._met: list[tuple[str, Any]] = []
        self.crash = only is not None

    def write(self) -> Snapshot:
        """Write down all that was asked for, and all that it refers to."""
        registry, only = self._registry, self._only
        snapshot = writeCounters(registry)
        if only is None:
            snapshot.written = None
            for client in registry.clients:
                self.place("clients", client)
            known, leaving, tokens = registry.vms, registry.leaving, registry.tokens
        else:
            mine = only.processes.sessions
            known = {only.containerId: only} if registry.vms.get(only.containerId) is only else {}
            leaving = {only} & registry.leaving
            tokens = {each.token: each for each in mine if each.token in registry.tokens}
            self._place("vms", only)
        snapshot.known = {name: self._place("vms", vm) for name, vm in known.items()}
        snapshot.leaving = [self._place("vms", vm) for vm in leaving]
        snapshot.tokens = {token: self._place("sessions", each) for token, each in tokens.items()}
        for table, thing in self._met:  # which becomes longer meanwhile
            write = self._client if table == "clients" else self._record
            getattr(snapshot, table).append(write(thing))
        return snapshot

    def _client(self, client: Client) -> ClientForm:
        gone = client.state is ClientState.CLOSED
        if gone or (self.crash and (client.session is None or client.session.vm is not self._only)):
            return ClientForm(name=client.name, state=ClientState.CLOSED)
        return self._record(client)

    def _record(self, thing: Any) -> Any:
        return records.write(thing, self)

    def _place(self, table: str, thing: Any) -> Place:
        places = self._places[table]
        place = places.get(id(thing))
        if place is None:
            place = places[id(thing)] = len(places)
            self._met.append((table, thing))
        return place

    def place(self, table: str, thing: Any) -> Place | None:
        if thing is None or (table == "vms" and self.crash and thing is not self._only):
            return None
        return self._place(table, thing)

    def key(self, connection: Any) -> Key | None:
        return None if connection is None else self._keyOf(connection)

    def ago(self, moment: float) -> float:
        return self._now - moment

    def left(self, wait: Wait | None) -> float | None:
        if wait is None or not wait.active():
            return None
        return max(0.0, wait.getTime() - self._now)
