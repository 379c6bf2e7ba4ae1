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
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeAlias

import attrs
import msgspec

from ..errors import CCProxyError
from ..wire.codes import Dialect
from ..wire.payloads import RegisterVM, Signal
from .records import Ago, Count, Left, Place, formOf
from .session import Session
from .states import ClientState, VMState

#: The version of the form that is written.
VERSION = 1
#: The oldest version whose reader understands what is written.
OLDEST = 1
#: What a written state begins with: a name, both versions, and the length and checksum of the rest.
HEADER = Struct(">8sHHQI")
_NAME = b"ccproxy\n"

#: What names a connection outside of the core.
Key = Count
if TYPE_CHECKING:
    SessionForm: TypeAlias = Any
else:
    SessionForm = formOf(Session)


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
