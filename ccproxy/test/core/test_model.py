"""
The promises about data, waits and ends, tried by a machine (promises P6 to P15, P19 and P20).

Random interleavings of everything that clients, shims, agents and time can do, over the pure
core; L{ccproxy.test.core.model} says what each of them must see. In CI the interleavings are the
same each time; C{CCPROXY_MODEL_SECONDS=600} tries new ones for that long.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.wire.codes import Command, Dialect, FrameType, Stream
from ccproxy.wire.frames import encodeStream
from ccproxy.wire.messages import encodeIO

from ..memory import command, registration, startData
from .model import Call, Held, Peer
from .modelguest import SIGWINCH, Entry, Guest, Proc
from .modelworld import Model

NAMES = ("alpha", "beta")
CONTAINERS = ("c1", "c2", "c3")
HYPERS = ("ping", "readfile", "startpod", "removecontainer", "onlinecpumem", "destroypod")
SIZES = (1, 1, 2, 40, 700, 1012, 4084, 10000)
PICK = st.integers(0, 1000)
FEW = st.integers(0, 3)
MANY = st.integers(0, 7)
BOOL = st.booleans()


class CoreMachine(RuleBasedStateMachine):
    """What can happen."""

    model: Model

    @initialize(
        dialect=st.sampled_from([Dialect.CC, Dialect.HYPERSTART0, Dialect.HYPERSTART1]),
        configured=BOOL,
        crowded=BOOL,
        journal=BOOL,
        past=st.sampled_from([False, False, True]),
        running=FEW,
    )
    def begin(
        self,
        dialect: Dialect,
        configured: bool,
        crowded: bool,
        journal: bool,
        past: bool,
        running: int,
    ) -> None:
        """A world with one VM, and some processes in it."""
        self.dialect = dialect
        limits = {"totalBuffer": 6000, "crowdedBuffer": 2048} if crowded else {}
        configuredDialect = dialect if configured else None
        self.model = Model(configuredDialect, journal, sessionBuffer=8192, **limits)
        self.journal = journal
        self._register(self.model.peer(), "alpha", 3, past)
        guest = self.model.guests[0]
        guest.connect()
        if not past:
            self._ready(guest)
        else:
            self.model.advance(3.0)
            guest.answer(True, b"")
        for pick in range(running):
            self._launch(pick, None, parked=False, acked=True)
        self._end()

    def _end(self) -> None:
        self.model.settle()
        self.model.check()

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.model.finish()

    # -- choices

    def _peers(self) -> list[Peer]:
        return [peer for peer in self.model.peers if not peer.deaf and not peer.line._ended]

    def _shims(self) -> list[Peer]:
        return [peer for peer in self._peers() if peer.track is not None]

    def _runtimes(self) -> list[Peer]:
        return [peer for peer in self._peers() if peer.track is None and not peer.wasShim]

    def _runtime(self, pick: int) -> Peer:
        """A client that is no shim; a new one from time to time."""
        found = self._runtimes()
        if not found or (pick % 5 == 0 and len(found) < 6):
            return self.model.peer()
        return found[pick % len(found)]

    def _connected(self) -> list[Guest]:
        return [
            guest for guest in self.model.guests if guest.state != "connecting" and not guest.closed
        ]

    def _talking(self) -> list[Guest]:
        return [guest for guest in self._connected() if not guest.lineControl._ended]

    def _procs(self) -> list[Proc]:
        return [
            proc
            for guest in self.model.guests
            if guest.open and not guest.closed
            for proc in guest.procs
            if not proc.ended
        ]

    # -- VMs

    def _register(self, peer: Peer, name: str, streams: int, past: bool) -> None:
        model = self.model

        def begun(call: Call) -> None:
            old = model.names.get(name)
            if old is not None and old.state != "lost":
                call.resolve(False)
                return
            if old is not None:
                old.unregister()
                if not old.closed:
                    old.gone(replaced=True)
            vm = model.world.connector.wanted.pop(0)
            guest = model.names[name] = Guest(model, vm, self.dialect, call, past)
            model.guests.append(guest)
            peer.registering = guest

        peer.command(Command.REGISTER_VM, registration(name, streams), begun)

    def _ready(self, guest: Guest) -> None:
        guest.lineControl.put(b"\0\0\0\x08\0\0\0\x08")
        guest.ready()

    @rule(pick=PICK, name=st.sampled_from(NAMES), streams=FEW, past=BOOL)
    def registers(self, pick: int, name: str, streams: int, past: bool) -> None:
        """A client registers a VM."""
        self._register(self._runtime(pick), name, streams, past)
        self._end()

    @precondition(lambda self: any(g.state == "connecting" for g in self.model.guests))
    @rule(fails=st.sampled_from([False, False, False, True]))
    def connects(self, fails: bool) -> None:
        """A VM's sockets are connected, or not."""
        guest = next(guest for guest in self.model.guests if guest.state == "connecting")
        if fails:
            guest.vm.connectFailed("no such socket")
            guest.fail()
            self.model.advance(0.0)
        else:
            guest.connect()
        self._end()

    @precondition(lambda self: any(g.state == "waiting" for g in self.model.guests))
    @rule(stale=FEW, cut=st.integers(0, 40))
    def becomesReady(self, stale: int, cut: int) -> None:
        """The agent says READY, or, where that is past, sends what was left of earlier days."""
        guest = next(guest for guest in self.model.guests if guest.state == "waiting")
        if not guest.past:
            self._ready(guest)
        elif not guest.lineIO._ended and not guest.lineControl._ended:
            old = b"".join(encodeIO(5 + n, b"\xff" * 30) for n in range(stale))
            guest.lineIO.put(b"\xff" * cut + old)
            if guest.inFlight is None:
                guest.lineControl.put(b"\0\0\0\x09\0\0\0\x0aok" * stale)
            else:
                guest.answer(True, b"")
        self._end()

    @rule(pick=PICK, name=st.sampled_from(NAMES), streams=FEW)
    def attaches(self, pick: int, name: str, streams: int) -> None:
        """A client attaches to a VM."""
        peer, model = self._runtime(pick), self.model

        def begun(call: Call) -> None:
            guest = model.names.get(name)
            if (
                guest is None
                or guest.state not in ("registered", "lost")
                or (guest.state == "lost" and streams)
            ):
                call.resolve(False)
            else:
                peer.guest = guest
                call.tokens = guest.tokens(streams)
                call.resolve(True)

        peer.command(Command.ATTACH_VM, {"containerId": name, "numIOStreams": streams}, begun)
        self._end()

    @rule(pick=PICK, name=st.sampled_from(NAMES), sure=MANY)
    def unregisters(self, pick: int, name: str, sure: int) -> None:
        """A client unregisters a VM, now and then."""
        if sure != 1:
            return
        peer, model = self._runtime(pick), self.model

        def begun(call: Call) -> None:
            guest = model.names.get(name)
            known = guest is not None and guest.state in ("registered", "lost")
            if guest is not None and known:
                guest.unregister()
            call.resolve(known)

        peer.command(Command.UNREGISTER_VM, {"containerId": name}, begun)
        self._end()

    @precondition(lambda self: self._connected())
    @rule(pick=PICK, io=BOOL, both=BOOL, sure=MANY)
    def loses(self, pick: int, io: bool, both: bool, sure: int) -> None:
        """A channel ends, or both do, now and then."""
        if sure != 1:
            return
        guests = self._connected()
        guest = guests[pick % len(guests)]
        for line in (guest.lineIO, guest.lineControl)[:: 1 if io else -1][: 1 + both]:
            line.end()
            guest.account()
        self._end()

    # -- commands

    @rule(
        pick=PICK,
        name=st.sampled_from(HYPERS),
        length=st.sampled_from([0, 10, 5000]),
        count=st.integers(1, 3),
    )
    def hypers(self, pick: int, name: str, length: int, count: int) -> None:
        """A client gives a command that the agent shall answer, or several."""
        found = [peer for peer in self._peers() if peer.guest is not None]
        peer = found[pick % len(found)] if found else self._runtime(pick)
        for _ in range(count):
            self._hyper(peer, name, length)
        self._end()

    def _hyper(self, peer: Peer, name: str, length: int) -> None:
        nonce = self.model.nonce()

        def begun(call: Call) -> None:
            guest = peer.guest
            if guest is None or guest.state == "lost":
                call.resolve(False)
            else:
                guest.add(Entry(peer, call, nonce, name))

        data = {"nonce": str(nonce), "filler": "x" * length}
        peer.command(Command.HYPER, {"hyperName": name, "data": data}, begun)

    def _start(self, peer: Peer, token: str | None, pick: int, id: str | None) -> None:
        name = "execcmd" if pick % 3 == 0 else "newcontainer"
        nonce, terminal = self.model.nonce(), pick % 7 == 0
        container = CONTAINERS[pick % len(CONTAINERS)] if name == "execcmd" else f"n{nonce}"
        if pick % 11 == 0:
            container = CONTAINERS[0]

        def begun(call: Call) -> None:
            guest = peer.guest
            if guest is None or guest.state == "lost":
                call.resolve(False)
                return
            track = self.model.tokens.get(token)
            if token is not None and (track is None or track.guest is not guest):
                call.resolve(False)
                return
            call.maybe = "is running"
            entry = Entry(peer, call, nonce, name, track)
            entry.container, entry.id, entry.terminal = container, id, terminal
            guest.start(entry)

        more: dict[str, Any] = {} if id is None else {"id": id}
        if terminal:
            more["terminal"] = True
        data = startData(name, container, **more)
        data["process"]["args"] = ["run", str(nonce)]
        tokens = [] if token is None else [token]
        payload = {"hyperName": name, "data": data, "tokens": tokens}
        peer.command(Command.HYPER, payload, begun)

    @rule(pick=PICK, which=PICK, id=st.sampled_from([None, None, "p1"]))
    def starts(self, pick: int, which: int, id: str | None) -> None:
        """A client starts a process, with a token or without."""
        tokens = [*self.model.tokens]
        token = tokens[which % len(tokens)] if tokens and which % 5 else None
        track = self.model.tokens.get(token)
        found = [peer for peer in self._peers() if peer.guest is not None]
        if track is not None and pick % 8:
            found = [peer for peer in found if peer.guest is track.guest]
        peer = found[pick % len(found)] if found else self._runtime(pick)
        self._start(peer, token, pick, id)
        self._end()

    @precondition(lambda self: any(g.inFlight for g in self._talking()))
    @rule(pick=PICK, ok=st.sampled_from([True, True, True, False]), again=FEW)
    def answers(self, pick: int, ok: bool, again: int) -> None:
        """An agent answers."""
        guests = [guest for guest in self._talking() if guest.inFlight]
        guest = guests[pick % len(guests)]
        if guest.inFlight == "ping" and guest.lineIO._ended:
            return
        for _ in range(again if guest.hyperstart else 0):
            guest.next()
        entry = guest.inFlight
        proc = entry.proc if isinstance(entry, Entry) else None
        if proc is not None:
            ok = ok or proc.told or any(other is proc for _, other, _, _ in guest.messages)
        guest.answer(ok, f"answer {self.model.nonce()}".encode())
        self._end()

    # -- shims

    def _connect(self, peer: Peer, token: str) -> None:
        def begun(call: Call) -> None:
            track = self.model.tokens.get(token)
            if track is not None and track.shim is not None and track.shim is not peer:
                track.shim.account()
            if track is None or track.shim is not None or peer.wasShim or track.state == "ended":
                call.resolve(False)
            else:
                call.resolve(True)
                track.claim(peer)

        peer.command(Command.CONNECT_SHIM, {"token": token}, begun)

    @precondition(lambda self: self.model.tokens)
    @rule(which=PICK, again=st.sampled_from([False, False, False, True]), room=st.booleans())
    def connectsShim(self, which: int, again: bool, room: bool) -> None:
        """A shim connects, or connects once more, perhaps one that reads little."""
        tokens = [*self.model.tokens]
        shims = self._shims()
        peer = shims[which % len(shims)] if again and shims else self.model.peer()
        if not again and not room:
            peer.line.room = 50 + which
        self._connect(peer, tokens[which % len(tokens)] or "")
        self._end()

    @precondition(lambda self: any(t.frames and not t.shim for t in self.model.tokens.values()))
    @rule(pick=PICK, room=st.sampled_from([None, None, 20, 3000]), delay=st.sampled_from([0, 0, 6]))
    def comesBack(self, pick: int, room: int | None, delay: float) -> None:
        """A shim comes back, perhaps after a while, for what its predecessor did not get."""
        self.model.advance(delay)
        tokens = self.model.tokens
        owed = [token for token in tokens if tokens[token].frames and not tokens[token].shim]
        if not owed:
            return
        peer = self.model.peer()
        peer.line.room = room
        self._connect(peer, owed[pick % len(owed)] or "")
        self._end()

    @rule(pick=PICK, id=st.sampled_from([None, None, "p1"]), parked=BOOL, acked=BOOL, second=BOOL)
    def launches(self, pick: int, id: str | None, parked: bool, acked: bool, second: bool) -> None:
        """
        All that it takes to have a process, at once, or all but the agent's answer; perhaps a
        first shim has been there and gone.
        """
        self._launch(pick, id, parked, acked, second)
        self._end()

    def _launch(
        self, pick: int, id: str | None, parked: bool, acked: bool, second: bool = False
    ) -> None:
        free = [
            track
            for track in self.model.tokens.values()
            if track.state == "created" and track.start is None
            and track.guest.state == "registered"
        ]  # fmt: skip
        if not free:
            return
        track = free[pick % len(free)]
        if second and track.shim is None:
            first = self.model.peer()
            self._connect(first, track.token or "")
            first.line.end()
            first.account()
        if not parked and track.shim is None:
            self._connect(self.model.peer(), track.token or "")
        found = [peer for peer in self._peers() if peer.guest is track.guest]
        if found:
            self._start(found[pick % len(found)], track.token, pick, id)
            self.model.settle()
        if parked and track.shim is None:
            self._connect(self.model.peer(), track.token or "")
            self.model.settle()
        shim = track.shim
        if shim is not None and shim in self._shims() and pick % 4 == 0:
            self._type(shim, b"typed ahead")
            self._type(shim, b"")
        guest = track.guest
        while track.state == "created" or (acked and track.state == "starting"):
            if not guest.inFlight or guest.lineControl._ended:
                break
            guest.answer(True, b"")
            self.model.settle()

    @precondition(lambda self: self._shims())
    @rule(pick=PICK, size=st.sampled_from(SIZES), count=st.integers(1, 4), hold=FEW, end=FEW)
    def types(self, pick: int, size: int, count: int, hold: int, end: int) -> None:
        """
        A shim sends stdin, perhaps to its end, perhaps with a frame that is cut, before the agent
        has time to read any of it.
        """
        shims = self._shims()
        peer = shims[pick % len(shims)]
        pieces = [(b"%d." % self.model.nonce() * size)[:size] for _ in range(count)]
        for data in [*pieces, b""] if end == 1 else pieces:
            self._type(peer, data, hold)
        self._end()

    def _type(self, peer: Peer, data: bytes, hold: int = 0) -> None:
        def begun() -> None:
            if peer.track is not None:
                peer.track.takeInput(data)

        peer.send(encodeStream(Stream.STDIN, data), begun, hold)

    @precondition(lambda self: self._shims())
    @rule(pick=PICK, number=st.sampled_from([1, 2, 9, 10, 15, 28, 28, 64]), good=FEW)
    def signals(self, pick: int, number: int, good: int) -> None:
        """A shim sends a signal; a bad one now and then."""
        shims = self._shims()
        early = [peer for peer in shims if peer.track and peer.track.state != "running"]
        shims = early if early and pick % 2 else shims
        peer, model = shims[pick % len(shims)], self.model
        valid = bool(good) or pick % 2 == 0
        size = {"columns": 80 + good, "rows": 25} if (number == SIGWINCH) is valid else {}

        def begun(call: Call) -> None:
            track = peer.track
            if track is None or not valid:
                call.resolve(False)
            elif track.state == "created" and number in (9, 15):
                track.kill()
                call.behind = track
                call.resolve(True, b"")
            elif track.state == "starting" or (
                track.state == "created" and track.guest.state == "registered"
            ):
                deadline = model.now + model.limits.processTimeout
                track.held.append(Held(call, number, size, deadline))
            else:
                track.guest.signal(call, track, number, size)

        peer.command(Command.SIGNAL, {"signalNumber": number, **size}, begun)
        self._end()

    @precondition(lambda self: self._shims())
    @rule(pick=PICK)
    def disconnects(self, pick: int) -> None:
        """A shim disconnects."""
        shims = self._shims()
        self._disconnect(shims[pick % len(shims)])
        self._end()

    def _disconnect(self, peer: Peer) -> None:
        def begun() -> None:
            if peer.track is not None:
                peer.track.release()

        peer.send(encodeStream(Stream.LOG, b"no JSON"), lambda: None)
        peer.send(command(Command.DISCONNECT_SHIM), begun)

    # -- clients come and go

    @precondition(lambda self: self._peers())
    @rule(pick=PICK, how=st.sampled_from(["gone", "gone", "half", "unnoticed"]))
    def goes(self, pick: int, how: str) -> None:
        """A client or shim goes."""
        peers = self._shims() if pick % 3 and self._shims() else self._peers()
        peer = peers[pick % len(peers)]
        if how == "unnoticed":
            peer.line.hangUp()
        else:
            peer.line.end(how == "gone")
            peer.account()
        self._end()

    @precondition(lambda self: self._peers())
    @rule(pick=PICK, words=st.booleans())
    def breaks(self, pick: int, words: bool) -> None:
        """A client breaks the framing."""
        peers = self._peers()
        peer = peers[pick % len(peers)]
        if pick % 3:
            return

        def begun() -> None:
            peer.deaf = True
            call = Call(peer, Command.HYPER)
            peer.calls.append(call)
            call.resolve(False)
            peer.giveUp()

        header = bytes([0, 2, 2 if words else 3, 0, 0, 0, FrameType.COMMAND, Command.HYPER])
        peer.send(header + b"\xff\xff\xff\xff", begun)
        self._end()

    @precondition(lambda self: self._peers())
    @rule(pick=PICK, room=st.sampled_from([0, 1, 11, 13, 20, 500, 5000]))
    def stopsReading(self, pick: int, room: int) -> None:
        """A client's socket takes only so much."""
        shims = self._shims() or self._peers()
        shims[pick % len(shims)].line.takeAtMost(room)

    @rule(room=st.sampled_from([None, None, 3, 700, 3000]))
    def readsAgain(self, room: int | None) -> None:
        """All clients read."""
        for peer in self.model.peers:
            if peer.line.room is not None:
                peer.line.makeRoom(room)
                peer.account()
        self._end()

    # -- agents

    @precondition(lambda self: self._procs())
    @rule(pick=PICK, size=st.sampled_from(SIZES), count=st.integers(1, 5), kind=PICK)
    def writes(self, pick: int, size: int, count: int, kind: int) -> None:
        """A process writes, perhaps a message that is cut."""
        procs = self._procs()
        proc = procs[pick % len(procs)]
        guest = proc.track.guest
        stderr = kind % 3 == 0 and not proc.terminal
        if not guest.hyperstart and kind % 13 == 0:
            guest.write(proc, Stream.STDOUT, b"")
            size = max(size, 2)
        for _ in range(count):
            body = (b"%d;" % self.model.nonce() * size)[:size]
            hold = 3 if kind % 4 == 0 else 0
            guest.write(proc, Stream.STDERR if stderr else Stream.STDOUT, body, hold)
            if kind % 5 == 0:
                guest.write(proc, Stream.STDERR, b"")
        self._end()

    @precondition(lambda self: self._procs())
    @rule(pick=PICK, status=st.sampled_from([0, 1, 42, 137, 255]), event=BOOL, late=BOOL)
    def exits(self, pick: int, status: int, event: bool, late: bool) -> None:
        """A process ends; in hyperstart 1.x in two steps, in any order."""
        procs = self._procs()
        proc = procs[pick % len(procs)]
        guest = proc.track.guest
        if guest.dialect is Dialect.HYPERSTART1:
            if event and not guest.lineControl._ended:
                guest.event(proc, status)
            else:
                guest.write(proc, Stream.STDOUT, b"")
                proc.ended = True
        else:
            guest.write(proc, Stream.STDOUT, b"")
            if late and not proc.terminal:
                guest.write(proc, Stream.STDERR, b"!")
            guest.write(proc, Stream.STDOUT, bytes([status]))
            proc.ended = True
        self._end()

    @precondition(lambda self: self._procs())
    @rule(
        pick=PICK,
        room=st.sampled_from([0, 20, 500, 3000]),
        more=st.sampled_from([0, 900, 2500]),
        size=st.sampled_from([500, 700, 3000]),
        whole=BOOL,
        event=BOOL,
        then=st.sampled_from(["stays", "goes", "disconnects"]),
    )
    def floods(
        self, pick: int, room: int, more: int, size: int, whole: bool, event: bool, then: str
    ) -> None:
        """A process writes a lot, perhaps at once; its shim reads little of it, and may go."""
        procs = self._procs()
        proc = procs[pick % len(procs)]
        guest, shim = proc.track.guest, proc.track.shim
        if shim is not None:
            shim.line.takeAtMost(room)
        for n in range(12):
            body = (b"%d:" % self.model.nonce() * size)[:size]
            guest.write(proc, Stream.STDOUT, body, gather=whole and n < 11)
        if shim is not None and more and not shim.closed:
            shim.line.makeRoom(more)
        if event and guest.dialect is Dialect.HYPERSTART1 and not guest.lineControl._ended:
            guest.event(proc, pick % 256)
        if then == "goes" and shim in self._shims():
            shim.line.end()
            shim.account()
        elif then == "disconnects" and shim in self._shims():
            self._disconnect(shim)
        self._end()

    @rule(pick=PICK, order=st.permutations(["answer", "event", "output"]))
    def overtakes(self, pick: int, order: list[str]) -> None:
        """The end of a short process overtakes its output, or the answer to its start."""
        self._launch(pick, None, parked=False, acked=False)
        for guest in self._talking():
            entry = guest.inFlight
            if not isinstance(entry, Entry) or entry.proc is None or not guest.open:
                continue
            proc = entry.proc
            for step in order:
                if step == "answer":
                    guest.answer(True, b"")
                elif step == "output" and not proc.ended:
                    guest.write(proc, Stream.STDOUT, b"short")
                    guest.write(proc, Stream.STDOUT, b"")
                    if guest.dialect is not Dialect.HYPERSTART1:
                        guest.write(proc, Stream.STDOUT, bytes([pick % 256]))
                    proc.ended = True
                elif step == "event" and guest.dialect is Dialect.HYPERSTART1:
                    guest.event(proc, pick % 256)
            break
        self._end()

    @precondition(
        lambda self: any(p.ended and not p.told for g in self._talking() for p in g.procs)
    )
    @rule(pick=PICK)
    def tells(self, pick: int) -> None:
        """hyperstart 1.x tells the status of a process whose output has ended."""
        procs = [
            proc
            for guest in self._talking()
            for proc in guest.procs
            if proc.ended and not proc.told
        ]
        proc = procs[pick % len(procs)]
        guest = proc.track.guest
        if guest.dialect is Dialect.HYPERSTART1 and proc.tries == proc.track.tries:
            guest.event(proc, pick % 256)
        else:
            proc.told = True
        self._end()

    @precondition(lambda self: self._connected())
    @rule(pick=PICK, room=st.sampled_from([None, None, 0, 5, 3000]))
    def agentStalls(self, pick: int, room: int | None) -> None:
        """An agent does not read its I/O channel."""
        guests = self._connected()
        guest = guests[pick % len(guests)]
        guest.reading = False
        if room is not None:
            guest.lineIO.takeAtMost(room)

    @rule()
    def agentsRead(self) -> None:
        """All agents read."""
        for guest in self._connected():
            guest.reading = True
            if guest.lineIO.room is not None and not guest.lineIO.closed:
                guest.lineIO.makeRoom()
                guest.account()
        self._end()

    # -- restarts

    @rule()
    def restarts(self) -> None:
        """Another process takes everything up, and goes on."""
        self.model.restart()
        self._end()

    @precondition(lambda self: self.journal)
    @rule(deaths=st.lists(st.sampled_from(["journal", "recover", "begin"]), max_size=3))
    def crashes(self, deaths: list[str]) -> None:
        """The process dies, and perhaps the next ones too, while they restore the state."""
        self.model.crash(deaths)
        self._end()

    @precondition(lambda self: self.journal)
    @rule(pick=PICK, when=st.sampled_from(["before", "after"]), answers=BOOL, ok=BOOL)
    def crashesWithin(self, pick: int, when: str, answers: bool, ok: bool) -> None:
        """The process dies while it uses a command or an answer."""
        guests = [guest for guest in self._talking() if isinstance(guest.inFlight, Entry)]
        found = [peer for peer in self._peers() if peer.guest is not None]

        def step() -> None:
            if answers and guests:
                guest = guests[pick % len(guests)]
                entry = guest.inFlight
                proc = entry.proc if isinstance(entry, Entry) else None
                told = proc is not None and (
                    proc.told or any(other is proc for _, other, _, _ in guest.messages)
                )
                guest.answer(ok or told, f"answer {self.model.nonce()}".encode())
            elif found:
                self._hyper(found[pick % len(found)], "ping", pick)

        self.model.crash([], when, step)
        self._end()

    # -- time

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0, 16.0, 31.0, 61.0]))
    def passes(self, seconds: float) -> None:
        """Time passes."""
        self.model.advance(seconds)
        self._end()


class ModelTests(SynchronousTestCase):
    """The core does what the model says."""

    def test_machine(self) -> None:
        """P6 to P15, P19, P20: nothing is lost, misrouted, reordered, kept or left waiting."""
        seconds = float(os.environ.get("CCPROXY_MODEL_SECONDS", "0"))
        end = time.monotonic() + seconds
        while True:
            run_state_machine_as_test(
                CoreMachine,
                settings=hypothesis.settings(
                    max_examples=1200,
                    stateful_step_count=60,
                    derandomize=not seconds,
                    database=None,
                    print_blob=False,
                    suppress_health_check=list(hypothesis.HealthCheck),
                ),
            )
            if time.monotonic() >= end:
                break
