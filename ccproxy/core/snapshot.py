"""
The whole state as it is written down, for the process that goes on with it (docs/reliability).

Things that refer to each other are in tables, and refer to each other by their place there.
Connections are written as keys that whoever holds the sockets has chosen. Times are seconds
before the moment of writing, or after it. A planned restart ignores how long ago that was. A
journal entry may be old, so L{Snapshot.written} says when it was written, on the monotonic clock,
which all processes since the last boot share.

A new field has a default, and a reader ignores what it does not know: so a version of this form is
read by the version before it and by the one after it. What cannot be read so raises C{OLDEST}, and
is then refused by those who would misread it.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Annotated, Literal, Optional

import attrs
import msgspec

from ..errors import CCProxyError
from ..wire.codes import ControlCode, Dialect
from ..wire.payloads import RegisterVM, Signal
from .states import ClientState, SessionState, VMState

#: The version of the form that is written.
VERSION = 1
#: The oldest version whose reader understands what is written.
OLDEST = 1
#: What a written state begins with: a name, both versions, and the length and checksum of the rest.
HEADER = Struct(">8sHHQI")
_NAME = b"ccproxy\n"

#: How many of something.
Count = Annotated[int, msgspec.Meta(ge=0)]
#: A place in the table of clients, VMs, sessions, slots or commands.
Place = Count
#: What names a connection outside of the core.
Key = Count
#: In how many seconds something is due. What is no number would stop all clocks.
Left = Annotated[float, msgspec.Meta(ge=0, le=1e300)]
#: How many seconds ago something was; less than none if the clock was put back.
Ago = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]


# Nothing of what is below changes once it is written; that the classes are not frozen is for the
# journal's sake, which makes some for every command: it takes half as long.


class BadSnapshot(CCProxyError):
    """A written state cannot be taken up; the text says why."""


@attrs.define
class OutletForm:
    """
    An L{Outlet <ccproxy.core.outlet.Outlet>}.

    @ivar blocks: frames, and whether they are the session's.
    """

    blocks: list[tuple[bytes, bool]] = attrs.field(factory=list)
    offset: Count = 0
    gone: bool = False


@attrs.define
class SlotForm:
    """A L{Slot <ccproxy.core.commands.Slot>}; it began so many seconds ago."""

    client: Place
    opcode: Annotated[int, msgspec.Meta(ge=0, le=255)]
    reply: Optional[bytes] = None
    began: Ago = 0.0


@attrs.define
class StartForm:
    """A L{StartData <ccproxy.wire.relocation.StartData>}."""

    container: str
    process: Optional[str]
    terminal: bool
    head: str
    members: str
    tail: str
    strangeKey: Optional[str]


@attrs.define
class CommandForm:
    """
    A L{ControlCommand <ccproxy.core.commands.ControlCommand>}.

    @ivar body: the data of a C{hyper}.
    @ivar start: that of a C{start}.
    @ivar signal: that of a C{signal}.
    @ivar arrived: how many seconds ago.
    @ivar sent: likewise.
    @ivar sentAt: seconds since the epoch.
    """

    kind: Literal["hyper", "start", "signal", "ping", "version"]
    name: str
    vm: Place
    slot: Optional[Place] = None
    session: Optional[Place] = None
    body: bytes = b""
    start: Optional[StartForm] = None
    signal: Optional[Signal] = None
    arrived: Ago = 0.0
    sent: Ago = 0.0
    sentAt: Ago = 0.0
    expired: bool = False


@attrs.define
class ClientForm:
    """
    A L{Client <ccproxy.core.client.Client>}; one without a connection is closed, and only the
    commands that it has left behind know it.

    @ivar handled: how many bytes of its input have been used and not taken yet.
    @ivar closeIn: in how many seconds it is closed, if that is so.
    """

    name: str
    state: ClientState
    connection: Optional[Key] = None
    vm: Optional[Place] = None
    session: Optional[Place] = None
    wasShim: bool = False
    registering: Optional[Place] = None
    slots: list[Place] = attrs.field(factory=list)
    outlet: OutletForm = attrs.field(factory=OutletForm)
    excess: bool = False
    paused: bool = False
    ignored: list[str] = attrs.field(factory=list)
    url: str = ""
    handled: Count = 0
    closeIn: Optional[Left] = None


@attrs.define
class HeldForm:
    """
    A signal that waits for its process; it fails in C{failIn} seconds.

    @ivar since: how many seconds it has waited.
    """

    slot: Place
    signal: Signal
    failIn: Left
    since: Ago = 0.0


@attrs.define
class SessionForm:
    """
    A L{Session <ccproxy.core.session.Session>}.

    @ivar created: how many seconds ago.
    @ivar start: a command.
    @ivar shim: a client.
    @ivar pending: its output, while it has no shim.
    @ivar pieces: its stdin.
    @ivar offset: what is gone of the first piece.
    @ivar numbered: whether the agent's numbers lead to it.
    @ivar named: whether the agent's names do.
    @ivar lostOutput: how many bytes of output were kept for its shim, and are not written here.
    @ivar lostInput: the same of its stdin.
    @ivar crashLoss: what it has lost so in crashes before.
    @ivar exitIn: in how many seconds its exit waits no more for output, if that is so.
    @ivar endIn: in how many seconds it is given up, if that is so.
    """

    vm: Place
    stdio: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    created: Ago
    token: Optional[str] = None
    state: SessionState = SessionState.CREATED
    start: Optional[Place] = None
    kind: ControlCode = ControlCode.NEWCONTAINER
    container: str = ""
    process: Optional[str] = None
    terminal: bool = False
    status: Optional[Annotated[int, msgspec.Meta(ge=0, le=255)]] = None
    killed: bool = False
    shim: Optional[Place] = None
    pending: list[bytes] = attrs.field(factory=list)
    dropping: bool = False
    dropped: Count = 0
    pieces: list[bytes] = attrs.field(factory=list)
    offset: Count = 0
    stdinEnded: bool = False
    held: list[HeldForm] = attrs.field(factory=list)
    numbered: bool = False
    named: bool = False
    claimed: bool = False
    acked: bool = False
    sawEnd: bool = False
    exitQueued: bool = False
    closeAfter: bool = False
    lostOutput: Count = 0
    lostInput: Count = 0
    crashLoss: tuple[Count, Count] = (0, 0)
    exitIn: Optional[Left] = None
    endIn: Optional[Left] = None


@attrs.define
class FlowForm:
    """
    A L{Flow <ccproxy.core.flow.Flow>}.

    @ivar blocker: a session.
    @ivar since: how many seconds ago.
    @ivar readSince: likewise.
    @ivar unread: the channel was not read; who reads it again counts from then on.
    @ivar blocked: for how many seconds in all.
    @ivar shim: a client.
    @ivar due: what happens in C{dueIn} seconds, if anything does.
    """

    blocker: Optional[Place] = None
    since: Ago = 0.0
    readSince: Ago = 0.0
    unread: bool = False
    blocked: Ago = 0.0
    shim: Optional[Place] = None
    due: Optional[Literal["warn", "drop"]] = None
    dueIn: Left = 0.0


@attrs.define
class VMForm:
    """
    A L{VM <ccproxy.core.vm.VM>}.

    @ivar control: its control channel, if it is open.
    @ivar io: its I/O channel, if it is open.
    @ivar created: how many seconds ago.
    @ivar lost: likewise.
    @ivar handled: how many bytes of the control channel's input have been used and not taken yet.
    @ivar slot: the answer to its registration.
    @ivar waits: what happens in how many seconds: a wait's name, and its argument.
    @ivar clients: those attached to it.
    @ivar sessions: those that have not ended.
    @ivar base: what is added to the sequence numbers of its sessions.
    @ivar waiting: commands that were not sent.
    @ivar inFlight: the command that was not answered.
    @ivar parked: starts that wait for their shims, and for how many seconds more.
    @ivar turns: sessions with stdin to send.
    @ivar rest: the rest of a write to the I/O channel.
    @ivar traffic: the counters of its traffic.
    """

    request: RegisterVM
    serial: Count
    state: VMState
    dialect: Dialect
    control: Optional[Key] = None
    io: Optional[Key] = None
    created: Ago = 0.0
    resync: bool = True
    lost: Ago = 0.0
    handled: Count = 0
    slot: Optional[Place] = None
    controlOut: OutletForm = attrs.field(factory=OutletForm)
    readyMayCome: bool = True
    notify: bool = False
    waits: dict[str, tuple[Left, str]] = attrs.field(factory=dict)
    clients: list[Place] = attrs.field(factory=list)
    sessions: list[Place] = attrs.field(factory=list)
    nextStdio: Count = 0
    nullFree: bool = True
    base: Count = 0
    waiting: list[Place] = attrs.field(factory=list)
    inFlight: Optional[Place] = None
    asked: bool = False
    reported: Optional[Place] = None
    parked: list[tuple[Place, Left]] = attrs.field(factory=list)
    turns: list[Place] = attrs.field(factory=list)
    rest: bytes = b""
    flow: FlowForm = attrs.field(factory=FlowForm)
    url: str = ""
    traffic: dict[str, Count] = attrs.field(factory=dict)


@attrs.define
class Snapshot:
    """
    A L{Registry <ccproxy.core.registry.Registry>}, and all that it leads to.

    @ivar known: the VMs by their names.
    @ivar tokens: the sessions by their tokens.
    @ivar crashLoss: what crashes before have cost all sessions.
    @ivar written: the moment of writing, in seconds of the monotonic clock, in a journal entry.
    """

    serial: Count = 0
    clientCount: Count = 0
    ignoredFrames: Count = 0
    draining: bool = False
    clients: list[ClientForm] = attrs.field(factory=list)
    vms: list[VMForm] = attrs.field(factory=list)
    sessions: list[SessionForm] = attrs.field(factory=list)
    slots: list[SlotForm] = attrs.field(factory=list)
    commands: list[CommandForm] = attrs.field(factory=list)
    known: dict[str, Place] = attrs.field(factory=dict)
    leaving: list[Place] = attrs.field(factory=list)
    tokens: dict[str, Place] = attrs.field(factory=dict)
    crashLoss: tuple[Count, Count] = (0, 0)
    written: Optional[Ago] = None


def seal(body: bytes) -> bytes:
    """
    The bytes of a state, as they are handed to the next process.

    @param body: what was written, in any form that L{VERSION} counts.
    """
    return HEADER.pack(_NAME, VERSION, OLDEST, len(body), zlib.crc32(body)) + body


def unseal(data: bytes) -> bytes:
    """
    The opposite of L{seal}.

    @raise BadSnapshot: it was not written by a version that this one can read, or is damaged.
    """
    if len(data) < HEADER.size:
        raise BadSnapshot(f"the state has only {len(data)} bytes")
    name, version, oldest, length, checksum = HEADER.unpack_from(data)
    if name != _NAME:
        raise BadSnapshot("it is no state of ccproxy")
    if oldest > VERSION:
        raise BadSnapshot(
            f"the state has version {version}, which versions from {oldest} on can read;"
            f" this is version {VERSION}"
        )
    body = data[HEADER.size : HEADER.size + length]
    if len(body) < length or zlib.crc32(body) != checksum:
        raise BadSnapshot("the state is damaged: its checksum is wrong")
    return body
