"""
Commands for an agent, as values: what is sent, and who waits for the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Optional, Protocol

import attrs
import msgspec
from msgspec import Meta, Struct, structs

from ..errors import RequestError
from ..wire.codes import HYPERSTART1_API, ControlCode, Dialect, FrameType, hyperCode
from ..wire.frames import encodeFrame
from ..wire.payloads import SIGWINCH, ErrorResponse, Signal, encode
from ..wire.relocation import StartData
from .context import Context
from .records import Ago, Place, Reader, converted, derived, moment, reference, saved

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

    client: Requester = reference("clients")
    opcode: int = saved(type=Annotated[int, Meta(ge=0, le=255)])
    reply: bytes | None = saved(None, init=False)
    began: float = moment(0.0, init=False)

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

    @cvar TAG: the kind of command that its form tells.
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

    TAG: ClassVar[str]
    urgent: ClassVar[bool] = False
    needsDialect: ClassVar[bool] = False
    countsForDialect: ClassVar[bool] = True

    name: str = saved()
    slot: Slot | None = reference("slots")
    arrived: float = moment(0.0, init=False)
    sent: float = moment(0.0, init=False)
    sentAt: float = saved(0.0, type=Ago, init=False)
    expired: bool = saved(False, init=False)

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


def _readSession(command: Any, place: Place | None, reader: Reader) -> None:
    session = reader.thing("sessions", place)
    if session is not None:
        command.stdio = session.stdio
        if isinstance(command, SignalCommand):
            command.startedBy, command.container = session.kind, session.container
            command.process = session.process


#: Earlier versions have written the place of the session instead of its number.
_SESSION = derived("session", Optional[Place], None, lambda *_: None, _readSession)


@attrs.define(eq=False)
class HyperCommand(ControlCommand):
    """A Hyper payload that is forwarded as it came."""

    TAG: ClassVar[str] = "hyper"

    slot: Slot = reference("slots")
    body: bytes = saved()

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        # What the agent lacks may have come to light since the command came.
        return hyperCode(self.name, dialect), self.body


class StartForm(Struct):
    """What is written of a L{StartData}."""

    container: str
    process: Optional[str]
    terminal: bool
    head: str
    members: str
    tail: str
    strangeKey: Optional[str]

    @classmethod
    def of(cls, data: StartData) -> StartForm:
        """Return the form of some data."""
        return cls(**data.parts())

    def data(self) -> StartData:
        """Return the data of a form."""
        return StartData(**structs.asdict(self))


@attrs.define(eq=False)
class StartCommand(ControlCommand):
    """
    A C{newcontainer} or C{execcmd}.

    @ivar data: what the client gave, ready for its numbers.
    @ivar stdio: the number of its session. A start without a token has L{None} until it is sent.
    @ivar acknowledged: whether the agent has acknowledged it.
    """

    TAG: ClassVar[str] = "start"
    needsDialect: ClassVar[bool] = True

    slot: Slot = reference("slots")
    data: StartData = converted("start", StartForm, StartForm.of, StartForm.data)
    stdio: int | None = saved(None)
    acknowledged: bool = saved(False, init=False)

    DERIVED: ClassVar = (_SESSION,)

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
    @ivar startedBy: the command that has started the process.
    @ivar container: the container's id.
    @ivar process: the process's id, where it has one.
    """

    TAG: ClassVar[str] = "signal"
    urgent: ClassVar[bool] = True

    slot: Slot = reference("slots")
    signal: Signal = saved()
    stdio: int | None = saved(None)
    startedBy: ControlCode = saved(ControlCode.NEWCONTAINER)
    container: str = saved("")
    process: str | None = saved(None)

    DERIVED: ClassVar = (_SESSION,)

    def code(self, dialect: Dialect) -> ControlCode:
        """
        Return the command that carries the signal.

        @raise RequestError: the agent has none that reaches this process.
        """
        if dialect is Dialect.HYPERSTART1 and self.process is None:
            raise RequestError("process has no id")
        if self.signal.signalNumber == SIGWINCH:
            return ControlCode.WINSIZE
        if self.startedBy is ControlCode.NEWCONTAINER:
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

    TAG: ClassVar[str] = "ping"
    countsForDialect: ClassVar[bool] = False

    name: str = saved("ping")
    slot: None = reference("slots", None)

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        return ControlCode.PING, b""


@attrs.define(eq=False)
class VersionCommand(ControlCommand):
    """Asked of a hyperstart before its first start, to tell 0.x from 1.x."""

    TAG: ClassVar[str] = "version"

    name: str = saved("version")
    slot: None = reference("slots", None)

    def encode(self, dialect: Dialect) -> tuple[ControlCode, bytes]:
        return ControlCode.VERSION, b""


#: The kinds of commands, by the tags of their forms.
_KINDS: tuple[type[ControlCommand], ...] = (
    HyperCommand, StartCommand, SignalCommand, PingCommand, VersionCommand,
)  # fmt: skip
COMMANDS = {each.TAG: each for each in _KINDS}


def dialectOfVersion(body: bytes) -> Dialect | None:
    """
    The hyperstart that answers C{version} with C{body}.

    @return: L{None} where it is no such answer.
    """
    if len(body) != 4:
        return None
    api = int.from_bytes(body, "big")
    return Dialect.HYPERSTART1 if api >= HYPERSTART1_API else Dialect.HYPERSTART0
