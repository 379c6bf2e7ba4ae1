"""
A client: one connection of a runtime or a shim.

Its commands begin in order, and their responses leave in order; what is finished early waits in
its L{Slot}. docs/protocol, "Order", says what may overtake what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Optional

import attrs
from twisted.logger import LogLevel
from zope.interface import implementer

from ..errors import BadPayload, LimitReached, RemoteProtocolError, RequestError
from ..interfaces import IConnection, IStreamSink
from ..wire.codes import Command, FrameType, Stream
from ..wire.frames import HEADER, HEADER_WORDS, VERSION, Frame, readFrame
from ..wire.payloads import LogEntry, decode
from ..wire.translation import runLength
from .commands import GiveUp, Slot, StartCommand
from .context import Context, Wait, cancel, turn
from .outlet import Outlet
from .records import (
    Count,
    Writer,
    custom,
    derived,
    nested,
    reference,
    references,
    saved,
    timer,
    transient,
)
from .registry import Registry
from .session import Session
from .states import CLIENT_TABLE, ClientInput, ClientState, advance
from .vm import VM

#: How the header of a stdin frame begins, in front of the payload's length.
_STDIN = HEADER.pack(VERSION, HEADER_WORDS, FrameType.STREAM, Stream.STDIN, 0)[:8]

#: Carries out a command: the client, the place of its response, and the payload.
Perform = Callable[["Client", Slot, bytes], None]

#: The most characters of a reason that is remembered, so as not to be said twice.
MAX_REASON = 256


@implementer(IStreamSink)
@attrs.define(eq=False)
class Client:
    """
    A connection of a runtime or a shim.

    @ivar context: what it shares with all others.
    @ivar perform: carries out the command of a slot.
    @ivar excess: whether there are too many clients: its first command is refused, and it is closed
        soon if it sends none.
    @ivar name: what logs call it: a number, and its peer's pid and uid.
    @ivar state: where it is in its life.
    @ivar handled: how many bytes at the beginning of its input have been used and are still there.
    @ivar url: the URL of the socket that it has connected to, if it is not the registry's.
    @ivar vm: the VM that it is attached to.
    @ivar session: the session whose shim it is.
    @ivar wasShim: whether it has ever been a shim: a connection is the shim of one token, ever.
    @ivar registering: the VM whose registration holds back what follows.
    @ivar slots: its commands that are not answered, in order.
    @ivar parked: its starts that wait for their shims, and what fails each of them.
    @ivar outlet: what is on its way to it.
    """

    registry: Registry = transient()
    _connection: IConnection = transient()
    name: str = saved()
    _perform: Perform = transient()
    _excess: bool = saved(False)
    state: ClientState = saved(ClientState.OPEN, init=False)
    url: str = saved("", init=False)
    context: Context = transient(init=False)
    handled: int = saved(0, type=Count, init=False)
    vm: VM | None = reference("vms", None, init=False)
    session: Session | None = reference("sessions", None, init=False)
    wasShim: bool = saved(False, init=False)
    registering: VM | None = reference("vms", None, init=False)
    slots: list[Slot] = references("slots")
    parked: dict[StartCommand, GiveUp] = transient(attrs.Factory(dict), init=False)
    outlet: Outlet = nested()
    _paused: bool = saved(False, init=False)
    _ignored: set[str] = custom(
        "ignored",
        list[str],
        list,
        lambda ignored, _: sorted(ignored),
        lambda ignored, written, _: ignored.update(written),
    )
    _wait: Wait | None = timer("close", key="closeIn")

    def _key(self, writer: Writer) -> int | None:
        return writer.key(self._connection)

    DERIVED: ClassVar = (derived("connection", Optional[Count], None, _key),)

    def __attrs_post_init__(self) -> None:
        self.context = self.registry.context
        self.outlet = Outlet(self._connection, self.context.budget)
        self._ignored = set()
        if self._excess:
            self._wait = self.context.later(self.context.limits.stopTimeout, self.close)

    @property
    def fields(self) -> dict[str, Any]:
        """What every log line about its commands says: a shim's are about its process."""
        subject = self.session or self.vm
        return {"client": self.name, **(subject.fields if subject is not None else {})}

    # -- what comes

    @turn
    def received(self, data: memoryview) -> int:
        offset, end, limit = 0, len(data), self.context.limits.maxFrame
        try:
            while offset < end and self.state is ClientState.OPEN:
                if self._blocked():
                    self._paused = True
                    self._connection.pauseReading()
                    break
                used = self._stdin(data, offset)
                if not used:
                    frame = readFrame(data, offset, limit)
                    if frame is None:
                        break
                    used = frame.size
                    self._dispatch(frame)
                offset += used
        except RemoteProtocolError as error:
            self._breach(error)
        self.handled = offset
        self.context.flush()
        self.handled = 0
        return offset if self.state is ClientState.OPEN else end

    def _stdin(self, data: memoryview, offset: int) -> int:
        """
        Take a stdin frame, or a run of them of one length as far as the session has room: bulk
        input comes so.

        @return: how many bytes they were; 0 if something else stands there, or less than a frame.
        """
        session, body = self.session, offset + HEADER.size
        if session is None or data[offset : offset + 8] != _STDIN:
            return 0
        size = HEADER.size + int.from_bytes(data[offset + 8 : body], "big")
        stop, end = offset + size, len(data)
        if stop > end or size - HEADER.size > self.context.limits.maxFrame:
            return 0
        if data[offset:body] != data[stop : stop + HEADER.size]:
            session.takeInput(bytes(data[body:stop]))
            return size
        count = min(runLength(data, offset, end, size), 1 + session.stdin.room // size)
        stop = offset + count * size
        session.takeInput(
            b"".join([data[at + HEADER.size : at + size] for at in range(offset, stop, size)])
        )
        return stop - offset

    def _blocked(self) -> bool:
        """Whether the next frame has to wait."""
        session, limits = self.session, self.context.limits
        return (
            self.registering is not None
            or len(self.slots) >= limits.maxUnanswered
            or self.outlet.size - self.outlet.kept >= limits.clientBuffer
            or (session is not None and session.stdin.room < 0)
        )

    def wake(self) -> None:
        """Something that may have blocked it has changed."""
        if self._paused and self.state is not ClientState.CLOSED and not self._blocked():
            self._paused = False
            self._connection.resumeReading()

    def _dispatch(self, frame: Frame) -> None:
        if frame.type is FrameType.COMMAND:
            slot = Slot(self, frame.opcode)
            self.slots.append(slot)
            try:
                try:
                    self._command(slot, frame)
                except RequestError as error:
                    slot.fail(error)
            except Exception:
                self.context.failed()
                if slot.reply is None and slot not in self.slots:
                    self.broken()  # the command has no response; the end of the connection is one
        elif frame.type is FrameType.STREAM and frame.opcode == Stream.LOG:
            self._log(frame.payload)
        elif frame.type is FrameType.STREAM and frame.opcode == Stream.STDIN and self.session:
            self.session.takeInput(frame.payload)
        else:
            kind = frame.type.name.lower()
            self._ignore(f"{kind} {frame.opcode}, which this client may not send")

    def _command(self, slot: Slot, frame: Frame) -> None:
        """
        Begin a command.

        @raise RequestError: it cannot be carried out.
        """
        if self._excess:
            self._advance(ClientInput.FINISH)
            raise LimitReached(
                f"too many clients: no more than {self.context.limits.maxClients} at a time;"
                " close some, or raise --max-clients"
            )
        try:
            title = Command(frame.opcode).title
        except ValueError:
            raise BadPayload(f"unknown command opcode {frame.opcode}") from None
        if self.context.verbose:
            self.context.log.debug("{command}", event="command", command=title, **self.fields)
        self._perform(self, slot, frame.payload)
        self._changed()

    def _changed(self) -> None:
        """It, or the VM that its commands go to, is not as it was."""
        if self.vm is not None:
            self.context.changed(self.vm)
        if self.session is not None:
            self.context.changed(self.session.vm)

    def _breach(self, error: RemoteProtocolError) -> None:
        """The peer broke the framing: it is told where it can be, and nothing more is read."""
        self.context.log.warn(
            "closing: {reason}", event="bad-frame", reason=str(error), **self.fields
        )
        if error.opcode is not None:
            slot = Slot(self, error.opcode)
            self.slots.append(slot)
            slot.fail(RequestError(str(error)))
        self._giveUpWaits()
        self.finish()

    def _ignore(self, what: str) -> None:
        """Drop a frame; said once per connection and kind."""
        self.registry.frameIgnored()
        what = what[:MAX_REASON]
        if what not in self._ignored and len(self._ignored) < 8:
            self._ignored.add(what)
            self.context.log.warn(
                "dropped a frame: {reason}", event="ignored", reason=what, **self.fields
            )

    def _log(self, payload: bytes) -> None:
        """An entry for our log (promise P4)."""
        try:
            entry = decode(LogEntry, payload, "log")
        except BadPayload as error:
            self._ignore(str(error))
            return
        fields = self.fields
        if entry.containerId is not None:
            fields["container"] = entry.containerId
        self.context.log.emit(
            LogLevel.levelWithName(entry.level),
            "{text}",
            event="log-entry",
            text=entry.msg,
            source=entry.source,
            **fields,
        )

    def failed(self, opcode: int, error: RequestError) -> None:
        """Note that a command of its has failed."""
        try:
            command = Command(opcode).title
        except ValueError:
            command = str(opcode)
        self.context.log.info(
            "{command} failed: {reason}",
            event="command-failed",
            command=command,
            reason=str(error),
            **self.fields,
        )

    # -- what goes

    def sendReplies(self) -> None:
        """Send the responses whose turn it is."""
        if self.state is ClientState.CLOSED:
            return
        slots = self.slots
        self._changed()
        # A crash ends the connection of everybody but shims: nobody could be told again.
        late = self.session is None
        while slots and slots[0].reply is not None:
            late = late or slots[0].opcode == Command.CONNECT_SHIM
            self.outlet.push(slots[0].reply or b"")
            slots.pop(0)
        if late and self.context.whenChanged is not None:
            self.context.answered(self)
        else:
            self.flush()
        self.wake()

    def flush(self) -> None:
        """Send what can be sent now."""
        if self.state is ClientState.CLOSED:
            return
        try:
            self._flush()
        except Exception:
            self.context.failed()
            self.broken()

    def flushAnswers(self) -> None:
        """Send responses, now that what they are about is written down."""
        self.flush()
        self.wake()
        if self.session is not None:
            self.context.changed(self.session.vm)  # it is a shim now, and knows it

    def _flush(self) -> None:
        self.outlet.flush()
        session = self.session
        if session is not None:
            session.vm.recheck(session)
        if self.state is ClientState.FINISHING and not self.slots:
            if not self.outlet.size:
                self.close()
            elif self._wait is None:
                self._wait = self.context.later(
                    self.context.limits.undeliveredTimeout, self.close
                )

    @turn
    def writable(self) -> None:
        if self.outlet.size > self.outlet.kept:
            self._changed()  # responses go
        self.flush()
        self.wake()
        self.context.flush()

    def drained(self) -> None:
        """Nothing waits for that."""

    # -- ends

    @turn
    def ended(self) -> None:
        if self.state is ClientState.CLOSED:
            return
        if self.session is not None or self._connection.hungUp():
            self.close()
        else:
            self.finish()
            self._giveUpWaits()
        self.context.flush()

    @turn
    def peerGone(self) -> None:
        if self.session is not None or self.state is ClientState.FINISHING:
            self.close()
        else:
            self._abandonRegistration()
            self.outlet.peerGone()
            self.wake()
        self.context.flush()

    def finish(self) -> None:
        """Read no more; close once all is answered and written."""
        self._advance(ClientInput.FINISH)
        self.flush()

    def finishAfterOutput(self) -> None:
        """Its session's VM is gone: what it is owed is written, then it is closed."""
        if self.state is not ClientState.CLOSED:
            self.finish()

    def leaveSession(self) -> None:
        """Be its shim no longer."""
        self.session = None

    def leaveVM(self) -> None:
        """Be attached to a VM no longer."""
        self.vm = None

    def registrationOver(self) -> None:
        """Register a VM no longer."""
        self.registering = None

    def _giveUpWaits(self) -> None:
        """It is gone, or will send no more: what waits for others on its behalf is given up."""
        if self.vm is not None:
            self.vm.clients.discard(self)
        for start, giveUp in list(self.parked.items()):
            giveUp(start, RequestError("the client that asked for the start has gone"))

    def _abandonRegistration(self) -> None:
        """It is gone: the VM that it registers is not registered."""
        vm = self.registering
        if vm is not None:
            vm.failRegistration(RequestError(f"{vm.containerId}: the registering client has gone"))

    def close(self) -> None:
        """Close the connection, and take leave of VM and session."""
        if self.state is ClientState.CLOSED:
            return
        self._advance(ClientInput.CLOSE)
        self._leave()

    broken = close

    def _leave(self) -> None:
        cancel(self._wait)
        self._giveUpWaits()
        self._abandonRegistration()
        session = self.session
        if session is not None:
            session.shimGone()
            self.session = None
        self.outlet.takeBack()
        self.slots.clear()
        self._connection.close()
        self.registry.clients.discard(self)
        self.context.forget(self)
        if self.context.verbose:
            self.context.log.debug("client gone", event="client-gone", client=self.name)

    def repair(self) -> None:
        """Finish what a turn has begun that was cut short: see L{ccproxy.core.context}."""
        if self.state is ClientState.CLOSED:
            self._leave()
        elif (self.session is not None and self.session.shim is not self) or (
            self._wait is not None and not self._wait.active()
        ):
            self.close()
        else:
            if self.registering is not None and self.registering.registrant is not self:
                self.registering = None
            self.sendReplies()

    def pollHolder(self) -> None:
        """Another client wants its token: notice now if it has gone."""
        self._connection.readNow()
        if self.state is not ClientState.CLOSED and self._connection.hungUp():
            self.close()

    def _advance(self, input: ClientInput) -> None:
        self.state = advance(CLIENT_TABLE, self.state, input)
