"""
The world of the model: the core, what is known of it, and the passing of time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ccproxy.core.client import Client
from ccproxy.core.vm import vmOf
from ccproxy.interfaces import IStreamSink
from ccproxy.wire.codes import Dialect

from ..memory import World
from .model import Peer, Track
from .modelguest import Guest
from .modellines import Line


class Model:
    """
    The world, and what is known of it.

    @ivar names: the VMs that clients can know, by name; registering and lost ones too.
    @ivar tokens: the sessions by their tokens, as long as these are good.
    """

    def __init__(self, dialect: Dialect | None, journal: bool = False, **limits: Any) -> None:
        self.world = World(
            dialect,
            journal,
            readyTimeout=10.0,
            commandTimeout=60.0,
            processTimeout=20.0,
            undeliveredTimeout=12.0,
            absentTimeout=15.0,
            lostTimeout=200.0,
            maxCommands=6,
            maxUnanswered=12,
            clientBuffer=2048,
            **limits,
        )
        self.limits = self.world.registry.context.limits
        self.world.registry.makeToken = self._makeToken
        self.world.registry.makeBase = self._makeBase
        self.names: dict[str, Guest] = {}
        self.guests: list[Guest] = []
        self.peers: list[Peer] = []
        self.tokens: dict[str | None, Track] = {}
        self.base = 0
        self._made = self._predicted = self._nonce = self._events = 0

    @property
    def now(self) -> float:
        """Now."""
        return self.world.clock.seconds()

    def _makeBase(self) -> int:
        self.base += 1 << 33
        return self.base

    def _makeToken(self) -> str:
        self._made += 1
        return f"{self._made:06d}" + "A" * 37 + "="

    def nextToken(self) -> str:
        """The token that is made next."""
        self._predicted += 1
        return f"{self._predicted:06d}" + "A" * 37 + "="

    def nonce(self) -> int:
        """A number that nothing else has."""
        self._nonce += 1
        return self._nonce

    def peer(self) -> Peer:
        """A new client."""
        peer = Peer(self)
        self.peers.append(peer)
        return peer

    def restart(self) -> None:
        """Another process goes on: nobody must notice."""
        self._taken(self.world.restart())

    def crash(
        self, deaths: Sequence[str], when: str = "", step: Callable[[], object] | None = None
    ) -> None:
        """
        The process dies, and the next one goes on with its journal: only runtimes notice, and shims
        that are owed what was in its memory.

        @param deaths: the steps before which the next ones die too: see L{World.crash}.
        @param when: see L{World.dies}.
        @param step: what happens meanwhile.
        """
        self._wholeFrames()
        alive = [peer for peer in self.peers if peer.track is not None]
        rooms = [peer.line.room for peer in alive]
        for peer in alive:
            peer.line.room = None if peer.line.room is None else 0
        if step is not None:
            self._dieWithin(when, step, alive)
        self._died(set(alive))
        for death in deaths:
            self.world.crash(death)
            for peer in alive:
                peer.again += peer.observe()
        for peer, room in zip(alive, rooms, strict=True):
            peer.line.room = room
        sinks = self.world.crash()
        assert {id(peer.line) for peer in alive} <= sinks.keys(), "a shim that is forgotten"
        self._taken(sinks)
        for guest in self.guests:
            for track in guest.tracks.values():
                if track.state != "ended":
                    track.dropping = track.core.output.dropping
        self.settle()
        for peer in self.peers:
            peer.again.clear()

    def _dieWithin(self, when: str, step: Callable[[], object], alive: Sequence[Peer]) -> None:
        guests = [guest for guest in self.guests if guest.state != "connecting"]
        rooms = [guest.lineIO.room for guest in guests]
        for guest in guests:
            guest.lineIO.room = None
        self.world.dies = when
        step()
        self.world.dies = ""
        Line.dead = False
        self.world.skipUsed()
        for peer in self.peers:
            peer.account()
        for guest, room in zip(guests, rooms, strict=True):
            guest.lineIO.room = room
            guest.account()
            for track in guest.tracks.values():
                track.endAgain = track.gotEnd
        for peer in alive:
            peer.again += peer.observe()

    def _wholeFrames(self) -> None:
        """A real socket takes a frame whole or not at all: nobody is in the middle of one."""
        for peer in list(self.peers):
            if peer.decoder.pending and not peer.closed:
                peer.line.end()
                peer.account()
        for guest in self.guests:
            if guest.state != "connecting" and not guest.closed and guest.lineIO.rest:
                guest.lineIO.makeRoom(guest.lineIO.rest)
        self.settle()

    def _died(self, alive: set[Peer]) -> None:
        """The model of a crash: what was in memory is lost, and whoever is no shim."""
        for peer in self.peers:
            if peer not in alive and not peer.closed:
                peer.left()
                peer.line.closed = True
            for call in peer.calls:
                call.behind = None  # the response was kept, and the exit status is sent again
        for guest in self.guests:
            guest.lineIO.died()
            for track in guest.tracks.values():
                track.died()

    def _taken(self, sinks: Mapping[int, IStreamSink]) -> None:
        """Another process has the connections."""
        for peer in self.peers:
            if not peer.closed:
                client = sinks[id(peer.line)]
                assert isinstance(client, Client)
                peer.core = client
        registry = self.world.registry
        sessions = registry.tokens.values()
        vms = [*registry.vms.values(), *registry.leaving, *map(vmOf, sessions)]
        bySerial = {vm.serial: vm for vm in vms}
        for guest in self.guests:
            guest.vm = bySerial.get(guest.vm.serial, guest.vm)
        self.world.connector.wanted.clear()

    # -- turns

    def _lines(self) -> list[tuple[Line, Any]]:
        lines: list[tuple[Line, Any]] = [
            (peer.line, peer) for peer in self.peers if not peer.closed
        ]
        for guest in self.guests:
            if guest.state != "connecting" and not guest.closed:
                lines += [(guest.lineControl, guest), (guest.lineIO, guest)]
        return lines

    def settle(self) -> None:
        """Let the core go on until nothing moves."""
        moved = True
        while moved:
            moved = False
            for line, owner in self._lines():
                before = line.used, line.endSeen, line.closed
                if not line.quiet:
                    line.pump()
                owner.account()
                moved = moved or before != (line.used, line.endSeen, line.closed)
            for guest in self.guests:
                while guest.reading and guest.lineIO.waiting and not guest.lineIO.closed:
                    guest.lineIO.drain()
                    guest.account()
                    moved = True
        for peer in self.peers:
            peer.account()
            peer.observe()

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        clock, end = self.world.clock, self.now + seconds
        while True:
            calls = [call.getTime() for call in clock.getDelayedCalls()]
            if not calls or min(calls) > end:
                break
            clock.advance(max(0.0, min(calls) - self.now))
            self._tick()
        clock.advance(end - self.now)
        self._tick()

    def _tick(self) -> None:
        for entry in self.world.events[self._events :]:
            if entry.get("event") == "output-dropped":
                self._dropped(entry)
        self._events = len(self.world.events)
        for guest in self.guests:
            guest.tick(self.now)
            guest.account()
        for peer in self.peers:
            peer.account()
        self.settle()

    def _dropped(self, entry: dict[str, Any]) -> None:
        """The core gives up output: it may, and says so."""
        (track,) = [
            track
            for guest in self.guests
            for track in guest.tracks.values()
            if track.token is not None and entry["session"] == track.token[:6] + "..."
        ]
        guest = track.guest
        assert track.shim is None, "output dropped under the eyes of its shim"
        held = sum(map(len, track.frames))
        assert held >= self.world.registry.context.budget.share, "dropped too early"
        assert guest.blockedSince is not None
        assert self.now >= guest.blockedSince + self.limits.absentTimeout, "dropped too early"
        track.dropping = True

    # -- what always holds

    def check(self) -> None:
        """Compare the core with the model, after a step."""
        registry = self.world.registry
        for peer in self.peers:
            peer.check()
        used = 0
        for guest in self.guests:
            guest.check()
            sessions = {session.stdio: session for session in guest.vm.processes.sessions}
            alive = {stdio for stdio, track in guest.tracks.items() if track.state != "ended"}
            assert set(sessions) == alive, f"sessions {set(sessions)}, not {alive}"
            for stdio, session in sessions.items():
                track = guest.tracks[stdio]
                used += session.output.held + session.stdin.size
                assert session.output.held >= sum(map(len, track.frames))
                assert sum(map(len, session.output.pending)) == session.output.pendingSize
                assert session.output.held <= self.limits.sessionBuffer + 10100, "too much output"
                assert session.stdin.size <= self.limits.sessionBuffer + 10100, "too much stdin"
                held = max(0, len(track.stdin) - track.got)
                assert session.stdin.size <= held, "stdin from nowhere"
        counted = registry.context.budget.used
        assert counted == used, f"{counted} counted, {used} held"
        assert set(registry.tokens) == set(self.tokens), "other tokens"
        assert set(registry.vms) == set(self.names), "other VMs"
        assert registry.clients == {peer.core for peer in self.peers if not peer.closed}
        self.peers = [peer for peer in self.peers if not peer.closed]
        self.guests = [
            guest
            for guest in self.guests
            if not (guest.closed and guest.state == "gone")
            or any(track.state != "ended" for track in guest.tracks.values())
        ]

    def finish(self) -> None:
        """Everybody goes: all that is owed is paid, and nothing is left."""
        for peer in self.peers:
            peer.line.put(b"")
            if not peer.closed:
                peer.line.makeRoom()
        for guest in self.guests:
            if guest.state != "connecting" and not guest.closed:
                guest.reading = True
                guest.lineIO.makeRoom()
        self.settle()
        self.check()
        for guest in self.guests:
            for line in (guest.lineControl, guest.lineIO):
                if guest.state != "connecting":
                    line.end()
                    guest.account()
        self.settle()
        self.check()
        self.advance(600.0)
        self.check()
        for peer in self.peers:
            assert peer.line.gone or not peer.calls, "commands that were never answered"
            peer.line.end()
            peer.account()
        self.settle()
        self.check()
        self.advance(1000.0)
        self.check()
        registry = self.world.registry
        assert not self.peers and not self.guests
        assert not registry.tokens and not registry.vms and not registry.leaving
        assert registry.context.budget.used == 0
        left = self.world.clock.getDelayedCalls()
        assert not left, f"timers are left: {left}"
