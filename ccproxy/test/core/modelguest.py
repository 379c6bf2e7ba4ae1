"""
The VMs of the model: agents of every dialect, their processes, and the commands they must get.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import attrs

from ccproxy.core.channels import ControlSink, IOSink
from ccproxy.core.vm import VM
from ccproxy.wire.codes import ControlCode, Dialect, Stream
from ccproxy.wire.messages import (
    CONTROL_HEADER,
    Message,
    MessageDecoder,
    encodeControl,
    encodeIO,
)

from .model import Call, Peer, Track
from .modellines import Channel, Line

STARTS = {ControlCode.NEWCONTAINER: "id", ControlCode.EXECCMD: "container"}
SIGWINCH = 28


@attrs.define(eq=False)
class Proc:
    """
    A process, as the agent knows it.

    @ivar tries: which try of its session it is.
    @ivar id: its id, if the agent was told one.
    @ivar ended: it writes no more.
    @ivar told: the event with its exit status was sent.
    """

    track: Track
    tries: int
    container: str
    id: str | None
    first: bool
    terminal: bool
    acked: bool = False
    ended: bool = False
    told: bool = False


@attrs.define(eq=False)
class Entry:
    """
    A command on its way to the agent.

    @ivar nonce: what tells it from all others.
    @ivar signal: the number and size of a signal.
    """

    peer: Peer
    call: Call
    nonce: int = 0
    name: str = ""
    track: Track | None = None
    signal: tuple[int, dict[str, int]] | None = None
    container: str = ""
    id: str | None = None
    terminal: bool = False
    deadline: float = 0.0
    proc: Proc | None = None

    def fail(self) -> None:
        """It cannot be carried out."""
        self.call.resolve(False)


class Guest:
    """
    A VM and its agent.

    @ivar dialect: what the agent speaks.
    @ivar known: what the proxy can know of that.
    @ivar past: the agent said READY to somebody else, long ago.
    @ivar queue: the commands that the agent did not get yet, in the order of their arrival.
    @ivar inFlight: the one that it did not answer.
    @ivar messages: what its processes have written and the core has not used.
    """

    def __init__(self, model: Any, vm: VM, dialect: Dialect, call: Call, past: bool) -> None:
        self.model = model
        self.vm = vm
        self.dialect = dialect
        self.known = model.world.registry.agentDialect or Dialect.UNKNOWN
        self.call = call
        self.past = past
        self.name = vm.containerId
        self.state = "connecting"
        self.lineControl = Line()
        self.lineIO = Channel(dialect is Dialect.CC)
        self.since = model.now
        self.lostAt: float | None = None
        self.readSince = model.now
        self.blockedSince: float | None = None
        self.reading = True
        self.notify = False
        self.asked = self.closed = self.controlEnded = self.ioEnded = False
        self.nextStdio = 3
        self.base = 0
        self.tracks: dict[int, Track] = {}
        self.procs: list[Proc] = []
        self.queue: list[Entry] = []
        self.inFlight: Entry | str | None = None
        self.messages: deque[tuple[int, Proc, Stream, bytes]] = deque()
        self._commands = MessageDecoder(CONTROL_HEADER)

    @property
    def hyperstart(self) -> bool:
        """Whether the agent is a hyperstart."""
        return self.dialect is not Dialect.CC

    @property
    def open(self) -> bool:
        """Whether the agent can still write output."""
        return self.state not in ("connecting", "waiting") and not self.lineIO._ended

    def session(self, stdio: int) -> Any:
        """The core's session."""
        return next(session for session in self.vm.processes.sessions if session.stdio == stdio)

    # -- registration

    def connect(self) -> None:
        """Its sockets are connected."""
        self.vm.connected(self.lineControl, self.lineIO)
        self.lineControl.sink, self.lineIO.sink = ControlSink(self.vm), IOSink(self.vm)
        self.state = "waiting"

    def fail(self) -> None:
        """It cannot be registered."""
        self.state = "gone"
        self.closed = True
        self.call.peer.registering = None
        self.call.resolve(False)
        del self.model.names[self.name]

    def ready(self, late: bool = False) -> None:
        """The agent is READY."""
        self.state = "registered"
        if late:
            self.base = self.model.base
            self.nextStdio += self.base
        peer = self.call.peer
        peer.registering = None
        peer.guest = self
        self.call.tokens = self.tokens(self.vm.request.numIOStreams or 0)
        self.call.resolve(True)

    def tokens(self, count: int) -> list[str]:
        """The tokens that are handed out next."""
        tokens = []
        for _ in range(count):
            track = self.newTrack(self.model.nextToken())
            self.model.tokens[track.token] = track
            tokens.append(track.token or "")
        return tokens

    def newTrack(self, token: str | None = None) -> Track:
        """A session with the next numbers."""
        track = self.tracks[self.nextStdio] = Track(self, self.nextStdio, token)
        self.nextStdio += 2
        return track

    # -- commands

    def parked(self, peer: Peer | None = None) -> list[Track]:
        """The sessions whose start waits for the shim."""
        return [
            track
            for track in self.tracks.values()
            if track.start is not None
            and track.parkedUntil is not None
            and (peer is None or track.start.peer is peer)
        ]

    def add(self, entry: Entry) -> None:
        """A command is queued."""
        limits = self.model.limits
        if len(self.queue) >= limits.maxCommands or self.lineControl.closed:
            self._drop(entry)
            return
        entry.deadline = self.model.now + limits.commandTimeout
        self.queue.append(entry)
        self.receive()

    def withdraw(self, entry: Entry) -> None:
        """A command is taken back."""
        if entry in self.queue:
            self.queue.remove(entry)

    def _drop(self, entry: Entry) -> None:
        """A command is not sent."""
        entry.fail()
        self.withdraw(entry)
        if entry.track is not None and entry.signal is None:
            entry.track.startFailed()

    def start(self, entry: Entry) -> None:
        """A start is given."""
        track = entry.track
        if track is not None:
            if track.start is not None or track.state != "created":
                entry.fail()
                return
            track.start = entry
            if track.shim is None:
                track.parkedUntil = self.model.now + self.model.limits.shimTimeout
                return
        self.add(entry)

    def signal(self, call: Call, track: Track, number: int, size: dict[str, int]) -> None:
        """A signal for a running process."""
        entry = Entry(call.peer, call, track=track, signal=(number, size))
        if track.state != "running" or self.signalMessage(track, number, size) is None:
            call.resolve(False)
        else:
            self.add(entry)

    def signalMessage(
        self, track: Track, number: int, size: dict[str, int]
    ) -> tuple[int, dict[str, Any]] | None:
        """What the agent is sent for a signal, if it can be sent one."""
        proc = next(proc for proc in self.procs if proc.track is track and proc.acked)
        one = self.known is Dialect.HYPERSTART1
        which = {"container": proc.container, "process": proc.id or "init"}
        if one and not proc.first and proc.id is None:
            return None
        if number == SIGWINCH:
            size = {"row": size["rows"], "column": size["columns"]}
            return ControlCode.WINSIZE, {**(which if one else {"seq": track.stdio}), **size}
        if proc.first:
            return ControlCode.KILLCONTAINER, {"container": proc.container, "signal": number}
        return (ControlCode.SIGNALPROCESS, {**which, "signal": number}) if one else None

    # -- the control channel, from the agent's side

    def receive(self) -> None:
        """Look at the commands that came."""
        self._commands.feed(self.lineControl.take())
        while (message := self._commands.next()) is not None:
            assert self.inFlight is None, "a command before the answer to the last one"
            data = json.loads(message.body) if message.body else {}
            if not data and message.number in (ControlCode.PING, ControlCode.VERSION):
                self.asked = self.asked or message.number == ControlCode.VERSION
                self.inFlight = "ping" if message.number == ControlCode.PING else "version"
                continue
            entry = self._entry(message, data)
            self._inOrder(entry)
            self.queue.remove(entry)
            self.inFlight = entry
            if message.number in STARTS:
                self._begin(entry, message, data)
        if self.inFlight is None and not self.lineControl.closed:
            for entry in [entry for entry in self.queue if self._unsendable(entry)]:
                self._skip(entry)

    def _entry(self, message: Message, data: dict[str, Any]) -> Entry:
        """Which command a message is."""
        for entry in self.queue:
            if entry.signal is not None:
                assert entry.track is not None
                if self.signalMessage(entry.track, *entry.signal) == (message.number, data):
                    return entry
            else:
                nonce = (
                    data["process"]["args"][1] if message.number in STARTS else data.get("nonce")
                )
                if nonce == str(entry.nonce):
                    return entry
        raise AssertionError(f"a command that nobody gave: {message}")

    def _inOrder(self, entry: Entry) -> None:
        """Check that it is the turn of C{entry}, and fail those before it that cannot be sent."""
        before = []
        for other in self.queue[: self.queue.index(entry)]:
            if self._unsendable(other):
                self._skip(other)
            else:
                before.append(other)
        assert all(other.peer is not entry.peer for other in before), "a client's order"
        if entry.signal is None:
            assert not before, "the order of commands"
            firsts: dict[Peer, Entry] = {}
            for other in list(self.queue):
                if firsts.setdefault(other.peer, other) is other and other.signal is not None:
                    assert self._unsendable(other), "a signal goes before others' commands"
                    self._skip(other)
                    del firsts[other.peer]

    def _unsendable(self, entry: Entry) -> bool:
        """Whether a signal comes too late, or the process of a start is running already."""
        if entry.signal is not None:
            return entry.track is not None and entry.track.state in ("exited", "ended")
        live = {
            (proc.container, proc.id)
            for proc in self.procs
            if proc.track.state in ("starting", "running", "detached")
            and proc.tries == proc.track.tries
        }
        one = self.known is Dialect.HYPERSTART1 and entry.name in ("newcontainer", "execcmd")
        return one and entry.id is not None and (entry.container, entry.id) in live

    def _begin(self, entry: Entry, message: Message, data: dict[str, Any]) -> None:
        """A start has come."""
        track, process = entry.track, data["process"]
        if track is None:
            track = self._ownTrack()
            track.state = "detached"
            entry.track = track
        else:
            track.state = "starting"
        track.tries += 1
        assert self.known is not Dialect.HYPERSTART or self.asked, "version was not asked"
        assert not self._unsendable(entry), "two processes of one name"
        id = str(track.stdio) if self.known is Dialect.HYPERSTART1 else None
        expected = {"stdio": track.stdio, "args": ["run", str(entry.nonce)]}
        if not entry.terminal:
            expected["stderr"] = track.stdio + 1
        else:
            expected["terminal"] = True
        if entry.id or id:
            expected["id"] = entry.id or id
        assert process == expected, f"{process} instead of {expected}"
        assert data[STARTS[ControlCode(message.number)]] == entry.container
        first = message.number == ControlCode.NEWCONTAINER
        entry.proc = Proc(
            track, track.tries, entry.container, entry.id or id, first, entry.terminal
        )
        self.procs.append(entry.proc)

    def _ownTrack(self) -> Track:
        """The session of a process without a token."""
        number = self.base + 1
        null = self.tracks.get(number)
        if null is not None and null.state != "ended":
            return self.newTrack()
        track = self.tracks[number] = Track(self, number)
        return track

    def _skip(self, entry: Entry) -> None:
        """It is a command's turn that cannot be sent; its numbers, if it needed some, are gone."""
        if entry.track is None and entry.signal is None:
            self._ownTrack().state = "ended"
        self._drop(entry)

    def next(self) -> None:
        """A hyperstart says NEXT."""
        self.lineControl.put(encodeControl(ControlCode.NEXT, bytes(4)))
        if self.known in (Dialect.UNKNOWN, Dialect.CC):
            self.known = Dialect.HYPERSTART

    def answer(self, ok: bool, body: bytes) -> None:
        """Answer the command in flight."""
        entry, self.inFlight = self.inFlight, None
        assert entry is not None
        if self.hyperstart:
            self.next()
        if entry == "version":
            body = (4244 if self.dialect is Dialect.HYPERSTART1 else 4242).to_bytes(4, "big")
            ok = True
        configured = self.model.world.registry.agentDialect
        if self.known is Dialect.UNKNOWN and entry != "ping":
            self.known = Dialect.CC
        if entry == "version" and configured is None:
            self.known = self.dialect
        self.lineControl.put(encodeControl(ControlCode.ACK if ok else ControlCode.ERROR, body))
        if isinstance(entry, Entry):
            self._answered(entry, ok, body)
        elif entry == "ping" and self.state == "waiting":
            self.ready(late=True)
        self.receive()

    def _answered(self, entry: Entry, ok: bool, body: bytes) -> None:
        """The effects of an answer."""
        proc = entry.proc
        entry.call.resolve(ok, None if not ok else b"" if entry.signal else body)
        if proc is None:
            return
        proc.acked = ok
        if ok:
            proc.track.started()
        else:
            proc.ended = True
            proc.track.startFailed(refused=True)

    def event(self, proc: Proc, status: int) -> None:
        """hyperstart 1.x tells the end of a process."""
        event = {
            "container": proc.container,
            "process": proc.id or "(null)",
            "event": "finished",
            "status": status,
        }
        self.lineControl.put(encodeControl(23, json.dumps(event).encode()))
        proc.told = True
        if self.known.isHyperstart and self.model.world.registry.agentDialect is None:
            self.known = Dialect.HYPERSTART1
        if not self.controlEnded and proc.track.state in ("starting", "running", "detached"):
            proc.track.event(status)

    # -- the I/O channel

    def write(
        self, proc: Proc, stream: Stream, body: bytes, hold: int = 0, gather: bool = False
    ) -> None:
        """A process writes."""
        number = proc.track.stdio + (stream is Stream.STDERR)
        end = self.lineIO.put(encodeIO(number, body), hold, gather)
        self.messages.append((end, proc, stream, body))
        self.account()

    def account(self) -> None:
        """Tell the model what the core has used, and what it has done."""
        while self.messages and self.messages[0][0] <= self.lineIO.used:
            _, proc, stream, body = self.messages.popleft()
            proc.track.output(proc.tries, stream, body)
        self._notePause()
        while self.lineIO.messages:
            number, body = self.lineIO.messages.popleft()
            self.tracks[number].given(body)
        self.receive()
        for line, io in ((self.lineControl, False), (self.lineIO, True)):
            if line.endSeen and not (self.ioEnded if io else self.controlEnded):
                self._channelEnded(io)
        if self.lineControl.closed and self.lineIO.closed and not self.closed:
            self.gone()

    def _notePause(self) -> None:
        if self.lineIO.paused and self.blockedSince is None:
            self.blockedSince = self.model.now
        elif not self.lineIO.paused and self.blockedSince is not None:
            self.blockedSince, self.readSince = None, self.model.now

    def _channelEnded(self, io: bool) -> None:
        if io:
            self.ioEnded = True
        else:
            self.controlEnded = True
        if self.state == "waiting":
            self.fail()
            return
        entry = self.inFlight
        poweringOff = (
            isinstance(entry, Entry) and entry.name == "destroypod" and self.known.isHyperstart
        )
        if self.lostAt is None:
            self.lostAt = self.model.now
            self.notify = self.state == "registered"
            self.state = "lost" if self.notify else "gone"
            self._endWaits()
            if not poweringOff:
                self._failInFlight()
        if poweringOff and self.ioEnded and self.controlEnded:
            assert isinstance(entry, Entry)
            entry.call.resolve(True, b"")

    def _failInFlight(self) -> None:
        entry, self.inFlight = self.inFlight, None
        if isinstance(entry, Entry):
            self._drop(entry)

    def _endWaits(self) -> None:
        """Nothing more is started, and nothing more is sent."""
        for track in self.parked():
            track.startFailed()
        for entry in list(self.queue):
            self._drop(entry)
        for track in self.tracks.values():
            if track.state == "created":
                track.failWaits()

    def unregister(self) -> None:
        """Clients know it no longer."""
        del self.model.names[self.name]
        for peer in self.model.peers:
            if peer.guest is self:
                peer.guest = None
        self.state = "gone" if self.state == "lost" else "unregistered"
        self._endWaits()
        for track in self.tracks.values():
            if track.state == "created" and not track.claimed:
                track.state = "ended"
                self.model.tokens.pop(track.token, None)

    def gone(self, replaced: bool = False) -> None:
        """Its channels are closed."""
        assert self.lineControl.closed and self.lineIO.closed
        if not replaced and not (self.controlEnded and self.ioEnded):
            assert self.lostAt is not None, "closed for no reason"
            assert self.model.now >= self.lostAt + 1.0, "closed too early"
        self.closed = True
        self._endWaits()
        self._failInFlight()
        for track in list(self.tracks.values()):
            track.vmGone()

    def tick(self, now: float) -> None:
        """Time has passed."""
        limits = self.model.limits
        self._notePause()
        if self.state in ("connecting", "waiting") and now >= self.since + limits.readyTimeout:
            self.fail()
        if self.state == "lost" and now >= (self.lostAt or 0.0) + limits.lostTimeout:
            self.unregister()
        entry = self.inFlight
        if isinstance(entry, Entry) and now >= entry.deadline:
            entry.fail()
        for waiting in [entry for entry in self.queue if now >= entry.deadline]:
            self._drop(waiting)
        for track in list(self.tracks.values()):
            track.tick(now)

    def check(self) -> None:
        """At the end of a step."""
        if self.state == "connecting":
            return
        io = self.lineIO
        if self.inFlight is None and not self.lineControl.closed:
            assert not self.queue, "a command waits for nothing"
        if not io.closed:
            if io.paused:
                assert self.messages, "paused for nothing"
                assert self.messages[0][1].track.core.output.full, "paused for no full session"
            elif self.messages and self.messages[0][0] <= io.fed:
                # Before the first message of ours, a number that is not in use is junk: that of a
                # process that has ended, or whose start has failed.
                unused = self.messages[0][1].track.state in ("created", "exited", "ended")
                assert self.vm.resync and unused, "output is not read"
        if self.lostAt is not None and not self.closed and not io.paused:
            since = max(self.lostAt, self.readSince) + 1.0
            assert self.model.now < since, "the channels are open for too long"
        if self.reading and io.room is None and not io.closed:
            for track in self.tracks.values():
                if track.acked and track.state in ("running", "detached"):
                    assert track.got == len(track.stdin), "stdin that is not sent"
                    assert track.gotEnd is track.stdinEnded, "no end of stdin"
