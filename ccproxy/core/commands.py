"""
Commands for an agent, as values: what is sent, and who waits for the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import attrs
import msgspec

from ..errors import RequestError
from ..wire.codes import HYPERSTART1_API, ControlCode, Dialect, FrameType, hyperCode
from ..wire.frames import encodeFrame
from ..wire.payloads import SIGWINCH, ErrorResponse, Signal, encode
from ..wire.relocation import StartData
from .context import Context

#: Fails a start that was not sent.
GiveUp = Callable[["StartCommand", RequestError], None]


class Requester(Protocol):
    """
    A client, as its commands know it.

    @ivar parked: its starts that wait for their shims, and what fails each of them.
    """

    context: Context
    name: str
    parked: dict[StartCommand, GiveUp]

    def failed(self, opcode: int, error: RequestError) -> None:
        """Note that a command has failed."""

    def sendReplies(self) -> None:
        """Send the responses whose turn it is."""


@attrs.define(eq=False)
class Slot:
    """
    The place of one command's response.

    @ivar client: whose command it is.
    @ivar opcode: the command's opcode.
    @ivar reply: the response frame, once there is one. The first one counts.
    @ivar began: when the command came, in seconds of the clock.
    """

    client: Requester
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

    def settle(self, answer: bytes | RequestError) -> None:
        """Send the response that an agent's answer is."""
        if isinstance(answer, RequestError):
            self.fail(answer)
        else:
            self.answer(answer)

    def settled(self, error: RequestError | None = None) -> None:
        """Note what became of the command, and how long it took."""
        context = self.client.context
        context.tally.command(self.opcode, context.clock.seconds() - self.began, error)

    def _set(self, frame: bytes, error: RequestError | None) -> None:
        if self.reply is None:
            self.settled(error)
            self.reply = frame
            self.client.sendReplies()


@attrs.define(eq=False)
class ControlCommand:
    """
    A command for an agent.

    @cvar urgent: it goes before the waiting commands of other clients.
    @cvar needsDialect: what is sent depends on the hyperstart's version.
    @cvar countsForDialect: that its answer came without a NEXT tells a cc agent.
    @ivar name: its hyperName.
    @ivar slot: the place of its client's response, or L{None} for a command of the proxy itself.
    @ivar arrived: when it was queued, in seconds of the clock.
    @ivar sent: when it was sent, in seconds of the clock.
    @ivar sentAt: when it was sent, in seconds since the epoch.
    @ivar expired: whether its deadline has passed while it was in flight.
    """

    urgent: ClassVar[bool] = False
    needsDialect: ClassVar[bool] = False
    countsForDialect: ClassVar[bool] = True

    name: str
    slot: Slot | None
    arrived: float = attrs.field(default=0.0, init=False)
    sent: float = attrs.field(default=0.0, init=False)
    sentAt: float = attrs.field(default=0.0, init=False)
    expired: bool = attrs.field(default=False, init=False)

    @property
    def client(self) -> Requester | None:
        """Whose command it is, or L{None} for one of the proxy itself."""
        return self.slot.client if self.slot is not None else None

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        """
        What is sent.

        @param dialect: what is known of the agent now.
        @raise RequestError: this agent cannot be sent the command.
        """
        raise NotImplementedError


@attrs.define(eq=False)
class HyperCommand(ControlCommand):
    """A Hyper payload that is forwarded as it came."""

    slot: Slot
    body: bytes

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        # What the agent lacks may have come to light since the command came.
        return hyperCode(self.name, dialect), self.body


@attrs.define(eq=False)
class StartCommand(ControlCommand):
    """
    A C{newcontainer} or C{execcmd}.

    @ivar data: what the client gave, ready for its numbers.
    @ivar stdio: the number of its session. A start without a token has L{None} until it is sent.
    @ivar acknowledged: whether the agent has acknowledged it.
    """

    needsDialect: ClassVar[bool] = True

    slot: Slot
    data: StartData
    stdio: int | None = None
    acknowledged: bool = attrs.field(default=False, init=False)

    @property
    def kind(self) -> ControlCode:
        """The command's code."""
        return ControlCode.NEWCONTAINER if self.name == "newcontainer" else ControlCode.EXECCMD

    def _added(self, dialect: Dialect) -> str | None:
        """The id that the proxy gives a process without one, where the agent needs it."""
        needed = dialect is Dialect.HYPERSTART1 and not self.data.process
        return str(self.stdio) if needed else None

    def process(self, dialect: Dialect) -> str | None:
        """The id of the process, if it has one."""
        return self.data.process or self._added(dialect)

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        assert self.stdio is not None
        body = self.data.render(self.stdio, self.stdio + 1, self._added(dialect))
        return self.kind, body


@attrs.define(eq=False)
class SignalCommand(ControlCommand):
    """
    A shim's Signal: docs/protocol, "Signals".

    @ivar stdio: the number of the session.
    @ivar kind: the command that has started the process.
    @ivar container: the container's id.
    @ivar process: the process's id, where it has one.
    """

    urgent: ClassVar[bool] = True

    slot: Slot
    signal: Signal
    stdio: int
    kind: ControlCode
    container: str
    process: str | None

    def code(self, dialect: Dialect) -> ControlCode:
        """
        Return the command that carries the signal.

        @raise RequestError: the agent has none that reaches this process.
        """
        if dialect is Dialect.HYPERSTART1 and self.process is None:
            raise RequestError("process has no id")
        if self.signal.signalNumber == SIGWINCH:
            return ControlCode.WINSIZE
        if self.kind is ControlCode.NEWCONTAINER:
            return ControlCode.KILLCONTAINER
        if dialect is Dialect.HYPERSTART1:
            return ControlCode.SIGNALPROCESS
        raise RequestError(
            "signals to a process started by execcmd are not supported by this agent"
        )

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        code, signal = self.code(dialect), self.signal
        ofProcess = {"container": self.container, "process": self.process}
        data: dict[str, object]
        if code is ControlCode.WINSIZE:
            named = dialect is Dialect.HYPERSTART1
            which = ofProcess if named else {"seq": self.stdio}
            data = {**which, "row": signal.rows, "column": signal.columns}
        elif code is ControlCode.KILLCONTAINER:
            data = {"container": self.container, "signal": signal.signalNumber}
        else:
            data = {**ofProcess, "signal": signal.signalNumber}
        return code, msgspec.json.encode(data)


def signalName(signal: Signal) -> str:
    """Return the hyperName of the command that carries a signal."""
    return "winsize" if signal.signalNumber == SIGWINCH else "signal"


@attrs.define(eq=False)
class PingCommand(ControlCommand):
    """Asked of a VM that has not said READY: it may have said it long ago (promise P20)."""

    countsForDialect: ClassVar[bool] = False

    name: str = "ping"
    slot: None = None

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        return ControlCode.PING, b""


@attrs.define(eq=False)
class VersionCommand(ControlCommand):
    """Asked of a hyperstart before its first start, to tell 0.x from 1.x."""

    name: str = "version"
    slot: None = None

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        return ControlCode.VERSION, b""


def dialectOfVersion(body: bytes) -> Dialect | None:
    """
    The hyperstart that answers C{version} with C{body}.

    @return: L{None} where it is no such answer.
    """
    if len(body) != 4:
        return None
    api = int.from_bytes(body, "big")
    return Dialect.HYPERSTART1 if api >= HYPERSTART1_API else Dialect.HYPERSTART0
