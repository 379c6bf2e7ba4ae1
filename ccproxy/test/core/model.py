"""
What each client, shim and agent must see: a model of the core that is simple enough to be believed.

The world feeds bytes to the core and tells the model what the core has consumed; the model then
knows which answers are due, which frames a shim must get next, and what stdin an agent may see.
Everything that the core writes is compared with that as it is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from ccproxy.core.requests import connect
from ccproxy.core.session import RECONNECT_TIME
from ccproxy.core.states import VMState
from ccproxy.wire.codes import Command, Dialect, FrameType, Stream
from ccproxy.wire.frames import Frame, FrameDecoder, encodeFrame, encodeProcessExited, encodeStream

from .modellines import Line

if TYPE_CHECKING:
    from .modelguest import Entry, Guest

#: What a process has written when it is killed with its VM.
LOST_STATUS = 255


@attrs.define(eq=False)
class Call:
    """
    A command of a client, and the answer that is due.

    @ivar ok: whether it succeeds, or L{None} while nobody can know.
    @ivar payload: what the answer says, where the model knows.
    @ivar maybe: a text of an error that is right at any time.
    @ivar behind: whose frames must all be there before the answer.
    """

    peer: Peer
    opcode: int
    ok: bool | None = None
    payload: bytes | None = None
    tokens: list[str] | None = None
    maybe: str | None = None
    behind: Track | None = None

    def resolve(self, ok: bool, payload: bytes | None = None) -> None:
        """The answer is known; the first one counts."""
        if self.ok is None:
            self.ok, self.payload = ok, payload


class Peer:
    """
    A client and what it must see.

    @ivar calls: its commands that were begun, in order, and not answered.
    @ivar track: the session whose shim it is.
    @ivar deaf: the core reads it no more, and will close it.
    @ivar tail: the frame of which it had a part when the rest was given up.
    @ivar again: frames that it may get once more, as processes died that had sent them.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.line = Line()
        self.core = connect(model.world.registry, self.line)
        self.line.sink = self.core
        self.calls: deque[Call] = deque()
        self.track: Track | None = None
        self.guest: Guest | None = None
        self.registering: Guest | None = None
        self.wasShim = self.deaf = self.closed = self.half = False
        self.tail = b""
        self.again: list[bytes] = []
        self.decoder = FrameDecoder()
        self._sent: deque[tuple[int, Callable[[], None]]] = deque()

    def send(self, frame: bytes, begin: Callable[[], None], hold: int = 0) -> None:
        """Send a frame; C{begin} is called once the core has used it."""
        end = self.line.fed + len(self.line._later) + len(frame)
        self._sent.append((end, begin))
        self.line.put(frame, hold)
        self.account()

    def command(self, opcode: Command, payload: Any, begin: Callable[[Call], None]) -> None:
        """Send a command."""

        def begun() -> None:
            call = Call(self, opcode)
            self.calls.append(call)
            begin(call)

        body = msgspec.json.encode(payload)
        self.send(encodeFrame(FrameType.COMMAND, opcode, body), begun)

    def account(self) -> None:
        """Tell the model what the core has used."""
        while self._sent and self._sent[0][0] <= self.line.used and not self.deaf:
            self._abandoned()
            self._sent.popleft()[1]()
        self._abandoned()
        if self.line.endSeen and not self.half and not self.closed:
            self.half = self.deaf = True
            self.giveUp()
        if self.line.closed and not self.closed:
            assert self.deaf or self.line.gone, "closed for no reason"
            self.left()

    def _abandoned(self) -> None:
        """The VM that it registers is given up where it has gone itself."""
        registering = self.registering
        if self.line.gone and registering and registering.vm.state is VMState.GONE:
            registering.fail()

    def giveUp(self) -> None:
        """It sends no more: its starts that wait for a shim are given up."""
        for guest in self.model.guests:
            for track in guest.parked(self):
                track.startFailed()

    def left(self) -> None:
        """Its connection is closed."""
        self.giveUp()
        if self.registering is not None:
            self.registering.fail()
        self.observe()
        self.closed = self.deaf = True
        if self.track is not None:
            self.track.shimGone()
        self.track = None

    # -- what it sees

    def observe(self) -> list[bytes]:
        """
        Compare what was written to it with what it must see.

        @return: that.
        """
        seen = []
        self.decoder.feed(self.line.take())
        while (frame := self.decoder.next()) is not None:
            raw = encodeFrame(frame.type, frame.opcode, frame.payload, error=frame.error)
            seen.append(raw)
            if raw in self.again and not self._due(frame, raw):
                self.again.remove(raw)
                continue
            if frame.type is FrameType.RESPONSE:
                self._answered(frame.opcode, frame.payload, frame.error)
                continue
            tail, self.tail = self.tail, b""
            if raw == tail:
                continue
            assert self.track is not None, f"{frame} for no shim"
            assert self.track.frames, f"{frame}: nothing is due"
            due = self.track.frames.popleft()
            assert raw == due, f"{raw[:40]!r} instead of {due[:40]!r}"
        return seen

    def _due(self, frame: Frame, raw: bytes) -> bool:
        if frame.type is FrameType.RESPONSE:
            return bool(self.calls) and self.calls[0].ok is not None
        return self.track is not None and bool(self.track.frames) and self.track.frames[0] == raw

    def _answered(self, opcode: int, payload: bytes, error: bool) -> None:
        assert self.calls, "an answer to no command"
        call = self.calls.popleft()
        assert call.opcode == opcode, "the answer to another command"
        if error:
            text = msgspec.json.decode(payload)["msg"]
            if call.ok is None and call.maybe is not None and call.maybe in text:
                call.ok = False
        assert call.ok is not None, f"an answer too early: {payload!r}"
        assert call.ok is not error, f"{call.opcode.__repr__()}: {payload!r}"
        if call.payload is not None:
            assert payload == call.payload, "another command's answer"
        if call.tokens is not None:
            assert (msgspec.json.decode(payload)["io"]["tokens"] or []) == call.tokens
        if call.behind is not None:
            assert not call.behind.frames, "the answer came before ProcessExited"

    def check(self) -> None:
        """At the end of a step: what is due and can be written has been written."""
        if self.closed:
            return
        if self.line.room is None and not self.line.gone:
            assert not self.calls or self.calls[0].ok is None, f"no answer: {self.calls[0]}"
            assert self.track is None or not self.track.frames, "output that is not delivered"
            assert not self.decoder.pending, "a frame that is not whole"
            assert not self.deaf or self.calls, "not closed"
        limits = self.model.limits
        assert len(self.core.slots) <= limits.maxUnanswered, "too many unanswered commands"
        kept = self.core.outlet.kept
        most = limits.clientBuffer + 4096 + len(self.tail)
        assert self.core.outlet.size - kept <= most, "too much unsent"
        if self.line.paused and not self.deaf:
            stdin = self.track is not None and self.track.core.stdin.room < 0
            unsent = self.core.outlet.size - kept >= limits.clientBuffer
            full = len(self.core.slots) >= limits.maxUnanswered
            assert stdin or unsent or full or self.registering, "paused for no reason"


@attrs.define(eq=False)
class Held:
    """A signal that waits for its process."""

    call: Call
    number: int
    size: dict[str, int]
    deadline: float


@attrs.define(eq=False)
class Track:
    """
    A session: what its shim must see next, and what its process may.

    @ivar frames: the frames that were not delivered, in order, ProcessExited last.
    @ivar state: C{created}, C{starting}, C{running}, C{exited}, C{detached} or C{ended}.
    @ivar tries: how many starts were sent: output of an earlier one is not its own.
    @ivar status: the exit status, once the process told it.
    @ivar endAgain: a process that died has sent the end of stdin, which may come again.
    """

    guest: Guest
    stdio: int
    token: str | None = None
    state: str = "created"
    shim: Peer | None = None
    claimed: bool = False
    killed: bool = False
    start: Entry | None = None
    parkedUntil: float | None = None
    frames: deque[bytes] = attrs.field(factory=deque)
    exitFrame: bytes = b""
    dropping: bool = False
    lost: int = 0
    tries: int = 0
    sawEnd: bool = False
    status: int | None = None
    eventAt: float | None = None
    overdue: bool = False
    held: list[Held] = attrs.field(factory=list)
    stdin: bytearray = attrs.field(factory=bytearray)
    stdinEnded: bool = False
    got: int = 0
    gotEnd: bool = False
    endAgain: bool = False
    acked: bool = False
    closing: bool = False
    endAt: float | None = None

    @property
    def model(self) -> Any:
        """The whole."""
        return self.guest.model

    @property
    def core(self) -> Any:
        """The core's session."""
        return self.guest.session(self.stdio)

    # -- the shim

    def claim(self, shim: Peer) -> None:
        """A shim has connected."""
        self.shim, self.claimed, self.endAt = shim, True, None
        shim.track, shim.wasShim = self, True
        if self.state == "exited" and self.exitFrame not in self.frames:
            self.frames.append(self.exitFrame)
        if self.start is not None and self.parkedUntil is not None:
            self.parkedUntil = None
            self.guest.add(self.start)
        if self.closing:
            shim.deaf = True

    def shimGone(self) -> None:
        """The shim's connection was lost."""
        self.shim = None
        if self.closing:
            self._endSoon()

    def release(self) -> None:
        """The shim has disconnected."""
        shim = self.shim
        assert shim is not None
        self.failWaits()
        self.forgetFrames()
        shim.track = self.shim = None
        shim.deaf = True
        self.model.tokens.pop(self.token, None)
        if self.state in ("starting", "running"):
            self.state = "detached"
            self.stdinEnded = True
        else:
            self.state = "ended"

    def forgetFrames(self) -> None:
        """What was not delivered is given up, but for a frame of which a part was written."""
        shim = self.shim
        if shim is not None:
            shim.observe()
            if self.frames and shim.decoder.pending:
                shim.tail = self.frames[0]
        self.frames.clear()

    # -- starts

    def failWaits(self) -> None:
        """What waits for the process cannot come true."""
        if self.start is not None and self.state == "created":
            self.guest.withdraw(self.start)
            self.start.fail()
        self.start = self.parkedUntil = None
        for held in self.held:
            held.call.resolve(False)
        self.held.clear()

    def startFailed(self, refused: bool = False) -> None:
        """Its start was not sent, or refused by the agent, which drops what came of it."""
        self.failWaits()
        if self.state == "starting":
            self.state = "created"
            if refused:
                self.forgetFrames()
            self.status, self.sawEnd, self.eventAt, self.overdue = None, False, None, False
            self.dropping, self.lost = False, 0
        elif self.state == "detached":
            self.state = "ended"

    def started(self) -> None:
        """The agent has acknowledged the start."""
        self.start = None
        self.acked = True
        if self.state == "starting":
            self.state = "running"
        self.maybeExited()
        held, self.held = self.held, []
        for signal in held:
            self.guest.signal(signal.call, self, signal.number, signal.size)

    # -- what the process does

    def output(self, tries: int, stream: Stream, body: bytes) -> None:
        """The core has used a message of the process."""
        if tries != self.tries or self.state in ("created", "exited", "ended"):
            return
        if stream is Stream.STDOUT:
            if not body:
                self.sawEnd = True
                self.maybeExited()
                return
            if self.sawEnd and len(body) == 1 and self.guest.dialect is not Dialect.HYPERSTART1:
                self.status, self.eventAt = body[0], None
                self.maybeExited()
                return
            self.sawEnd = False
        elif not body:
            return
        if self.state == "detached":
            return
        if self.dropping:
            self.lost += len(body)
        else:
            self.frames.append(encodeStream(stream, body))

    def event(self, status: int) -> None:
        """hyperstart 1.x has told the exit status."""
        if self.status is not None:
            return
        self.status, self.eventAt = status, self.model.now
        self.maybeExited()

    def maybeExited(self, overdue: bool = False) -> None:
        """The process has ended, if all its output has come and its start was answered."""
        if self.status is None or self.state not in ("starting", "running", "detached"):
            return
        if (self.sawEnd or overdue or self.overdue) and self.acked:
            self.exited(self.status)
        self.overdue = self.overdue or overdue

    def exited(self, status: int) -> None:
        """Nothing more will come."""
        self.failWaits()
        if self.state == "detached":
            self.state = "ended"
            return
        self.state = "exited"
        self.exitFrame = encodeProcessExited(status)
        self.frames.append(self.exitFrame)

    def kill(self) -> None:
        """A signal has ended it before its start."""
        self.killed = True
        self.exited(0)

    # -- ends

    def vmGone(self) -> None:
        """The channels of its VM are closed."""
        if self.closing or self.state == "ended":
            return
        self.eventAt = None
        self.failWaits()
        if self.state == "detached" or (self.state == "created" and not self.claimed):
            self._end()
            return
        if self.state != "exited" and (self.guest.notify or self.status is not None):
            self.exited(LOST_STATUS if self.status is None else self.status)
        self.closing = True
        if self.shim is not None:
            self.shim.deaf = True
        else:
            self._endSoon()

    def _endSoon(self) -> None:
        if self.frames:
            self.endAt = self.model.now + self.model.limits.undeliveredTimeout
        else:
            self._end()

    def _end(self) -> None:
        self.state = "ended"
        self.frames.clear()
        self.model.tokens.pop(self.token, None)

    def died(self) -> None:
        """The proxy has died: what it had in memory is lost, and an exit status is told again."""
        self.frames.clear()
        if self.state == "exited":
            self.frames.append(self.exitFrame)
        del self.stdin[self.got :]
        if self.endAt is not None:
            self.endAt = max(self.endAt, self.model.now + RECONNECT_TIME)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.parkedUntil is not None and now >= self.parkedUntil:
            self.startFailed()
        for held in [held for held in self.held if now >= held.deadline]:
            held.call.resolve(False)
            self.held.remove(held)
        if self.endAt is not None and now >= self.endAt and self.state != "ended":
            self._end()
        if self.eventAt is not None and not self.guest.lineIO.paused:
            limits = self.model.limits
            if now >= max(self.eventAt, self.guest.readSince) + limits.exitTimeout:
                self.maybeExited(overdue=True)

    # -- stdin

    def takeInput(self, data: bytes) -> None:
        """The core has used a stdin frame of the shim."""
        if self.stdinEnded or self.state in ("exited", "ended"):
            return
        self.stdin += data
        self.stdinEnded = not data

    def given(self, body: bytes) -> None:
        """The agent got stdin of the process."""
        assert self.acked, "stdin before the process was started"
        assert not self.gotEnd or (self.endAgain and not body), "stdin after its end"
        if body:
            assert self.stdin[self.got : self.got + len(body)] == body, "not the stdin that came"
            self.got += len(body)
        else:
            assert self.stdinEnded and self.got == len(self.stdin), "an end before the end"
            self.gotEnd = True
