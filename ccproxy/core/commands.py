"""
The commands that go to an agent, each knowing what its answer means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from ..errors import AgentError, RequestError
from ..wire.codes import HYPERSTART1_API, ControlCode, Dialect, FrameType, hyperCode
from ..wire.frames import encodeFrame
from ..wire.payloads import SIGWINCH, ErrorResponse, Signal, encode
from ..wire.relocation import StartData

if TYPE_CHECKING:
    from ..wire.relocation import StartData
    from .client import Client
    from .session import Session
    from .vm import VM


@attrs.define(eq=False)
class Slot:
    """
    The place of one command's response.

    @ivar client: whose command it is.
    @ivar opcode: the command's opcode.
    @ivar reply: the response frame, once there is one. The first one counts.
    @ivar began: when the command came, in seconds of the clock.
    """

    client: Client
    opcode: int
    reply: bytes | None = None
    began: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.began = self.client.context.clock.seconds()

    def answer(self, payload: bytes = b"") -> None:
        """Send a response."""
        self._set(encodeFrame(FrameType.RESPONSE, self.opcode, payload), None)

    def fail(self, error: RequestError) -> None:
        """Send an error response."""
        if self.reply is None:
            self.client.failed(self.opcode, error)
            payload = encode(ErrorResponse(str(error)))
            self._set(encodeFrame(FrameType.RESPONSE, self.opcode, payload, error=True), error)

    def settled(self, error: RequestError | None = None) -> None:
        """Note what became of the command, and how long it took."""
        context = self.client.context
        context.tally.command(self.opcode, context.clock.seconds() - self.began, error)

    def _set(self, frame: bytes, error: RequestError | None) -> None:
        if self.reply is None:
            self.settled(error)
            self.reply = frame
            self.client.sendReplies()


class ControlCommand:
    """
    A command on its way to an agent.

    @ivar name: its hyperName.
    @ivar client: who it is for, or L{None} where the proxy itself wants to know.
    @ivar urgent: it goes before the waiting commands of other clients.
    @ivar needsDialect: what is sent depends on the hyperstart's version.
    @ivar countsForDialect: that its answer came without a NEXT tells a cc agent.
    @ivar arrived: when it was queued, in seconds of the clock.
    @ivar sent: when it was sent, likewise.
    @ivar sentAt: the same, in seconds since the epoch.
    @ivar expired: its deadline has passed while it was in flight.
    @ivar slot: the place of its client's response, if it has one.
    """

    __slots__ = ("arrived", "client", "expired", "name", "sent", "sentAt", "slot")

    slot: Slot | None
    urgent = False
    needsDialect = False
    countsForDialect = True

    def __init__(self, name: str, client: Client | None) -> None:
        self.name = name
        self.client = client
        self.slot = None
        self.arrived = self.sent = self.sentAt = 0.0
        self.expired = False

    def message(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        """
        What is sent.

        @param dialect: what is known of the agent now.
        @raise RequestError: this agent cannot be sent the command.
        """
        raise AssertionError("a command says what is sent")

    def acked(self, body: bytes) -> None:
        """The agent said ACK."""

    def refused(self, error: RequestError) -> None:
        """The agent said ERROR, or the command was not sent, or no answer can come any more."""

    def timedOut(self, error: RequestError) -> None:
        """The deadline has passed; the answer may still come."""
        self.refused(error)


class SlotCommand(ControlCommand):
    """A command whose answer is a client's answer."""

    __slots__ = ()

    slot: Slot

    def __init__(self, name: str, slot: Slot) -> None:
        super().__init__(name, slot.client)
        self.slot = slot

    def acked(self, body: bytes) -> None:
        self.slot.answer(body)

    def refused(self, error: RequestError) -> None:
        self.slot.fail(error)


class HyperCommand(SlotCommand):
    """A Hyper payload that is forwarded as it came."""

    __slots__ = ("_body", "_vm")

    def __init__(self, name: str, slot: Slot, vm: VM, body: bytes) -> None:
        super().__init__(name, slot)
        self._vm = vm
        self._body = body

    def message(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        # What the agent lacks may have come to light since the command came.
        return hyperCode(self.name, dialect), self._body

    def acked(self, body: bytes) -> None:
        if self.name == "version":
            self._vm.learnVersion(body)
        super().acked(body)


class StartCommand(SlotCommand):
    """
    A C{newcontainer} or C{execcmd}.

    @ivar session: the session of its token, or L{None} where it has no token; then it gets a
        session of its own when it is sent.
    @ivar data: what the client gave, ready for its numbers.
    @ivar acknowledged: the agent has acknowledged it.
    """

    __slots__ = ("_vm", "acknowledged", "data", "session")

    needsDialect = True

    def __init__(
        self, name: str, slot: Slot, vm: VM, session: Session | None, data: StartData
    ) -> None:
        super().__init__(name, slot)
        self._vm = vm
        self.session = session
        self.data = data
        self.acknowledged = False

    def message(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        data, vm = self.data, self._vm
        code = ControlCode.NEWCONTAINER if self.name == "newcontainer" else ControlCode.EXECCMD
        if dialect is Dialect.HYPERSTART0:
            data.checkHyperstart0()
        session = self.session or vm.processes.detached()
        added = str(session.stdio) if dialect is Dialect.HYPERSTART1 and not data.process else None
        self.session = session
        session.begin(code, data.container, data.process or added, data.terminal)
        return code, data.render(session.stdio, session.stderr, added)

    def giveUp(self, error: RequestError) -> None:
        """Fail it, which was not sent."""
        self._vm.starts.giveUp(self, error)

    def acked(self, body: bytes) -> None:
        self.acknowledged = True
        super().acked(body)
        if self.session is not None:
            self.session.started()

    def refused(self, error: RequestError) -> None:
        super().refused(error)
        if self.session is not None:
            self.session.notStarted(self, error)

    def timedOut(self, error: RequestError) -> None:
        self.slot.fail(error)


class SignalCommand(SlotCommand):
    """A shim's Signal, as the agent's dialect has it."""

    __slots__ = ("_session", "_signal")

    urgent = True

    def __init__(self, slot: Slot, session: Session, signal: Signal) -> None:
        super().__init__("winsize" if signal.signalNumber == SIGWINCH else "signal", slot)
        self._session = session
        self._signal = signal

    def message(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        self._session.checkAlive()
        code, data = signalMessage(self._session, self._signal, dialect)
        return code, msgspec.json.encode(data)

    def acked(self, body: bytes) -> None:
        self.slot.answer()


def signalMessage(
    session: Session, signal: Signal, dialect: Dialect
) -> tuple[ControlCode, dict[str, Any]]:
    """
    The command that carries a signal: docs/protocol, "Signals".

    @raise RequestError: the agent has none that reaches this process.
    """
    first = session.kind is ControlCode.NEWCONTAINER
    ofProcess = {"container": session.container, "process": session.process}
    if dialect is Dialect.HYPERSTART1 and session.process is None:
        raise RequestError("process has no id")
    if signal.signalNumber == SIGWINCH:
        size = {"row": signal.rows, "column": signal.columns}
        if dialect is Dialect.HYPERSTART1:
            return ControlCode.WINSIZE, {**ofProcess, **size}
        return ControlCode.WINSIZE, {"seq": session.stdio, **size}
    number = {"signal": signal.signalNumber}
    if first:
        return ControlCode.KILLCONTAINER, {"container": session.container, **number}
    if dialect is Dialect.HYPERSTART1:
        return ControlCode.SIGNALPROCESS, {**ofProcess, **number}
    raise RequestError("signals to a process started by execcmd are not supported by this agent")


class PingCommand(ControlCommand):
    """Asked of a VM that has not said READY: it may have said it long ago (promise P20)."""

    __slots__ = ("_vm",)

    countsForDialect = False

    def __init__(self, vm: VM) -> None:
        super().__init__("ping", None)
        self._vm = vm

    def message(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        return ControlCode.PING, b""

    def acked(self, body: bytes) -> None:
        self._vm.readyIsPast()

    def refused(self, error: RequestError) -> None:
        if isinstance(error, AgentError):
            self._vm.readyIsPast()


class VersionCommand(ControlCommand):
    """Asked of a hyperstart before its first start, to tell 0.x from 1.x."""

    __slots__ = ("_vm",)

    def __init__(self, vm: VM) -> None:
        super().__init__("version", None)
        self._vm = vm

    def message(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        return ControlCode.VERSION, b""

    def acked(self, body: bytes) -> None:
        self._vm.learnVersion(body)


def dialectOfVersion(body: bytes) -> Dialect | None:
    """
    The hyperstart that answers C{version} with C{body}.

    @return: L{None} where it is no such answer.
    """
    if len(body) != 4:
        return None
    api = int.from_bytes(body, "big")
    return Dialect.HYPERSTART1 if api >= HYPERSTART1_API else Dialect.HYPERSTART0
