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
from typing import TYPE_CHECKING, Any, Optional, TypeAlias, Union

import attrs

from ..errors import CCProxyError
from .client import Client
from .commands import COMMANDS, Slot
from .outlet import Outlet
from .records import Ago, Count, Place, formOf
from .session import Session
from .vm import VM

#: The version of the form that is written. Since 2 commands have the numbers of their sessions.
VERSION = 2
#: The oldest version whose reader understands what is written.
OLDEST = 2
#: What a written state begins with: a name, both versions, and the length and checksum of the rest.
HEADER = Struct(">8sHHQI")
_NAME = b"ccproxy\n"

#: What names a connection outside of the core.
Key = Count
#: The tables of a L{Snapshot}.
TABLES = ("clients", "vms", "sessions", "slots", "commands")
if TYPE_CHECKING:
    ClientForm: TypeAlias = Any
    CommandForm: TypeAlias = Any
    OutletForm: TypeAlias = Any
    SessionForm: TypeAlias = Any
    SlotForm: TypeAlias = Any
    VMForm: TypeAlias = Any
else:
    ClientForm = formOf(Client)
    CommandForm = Union[tuple(map(formOf, COMMANDS.values()))]
    OutletForm = formOf(Outlet)
    SessionForm = formOf(Session)
    SlotForm = formOf(Slot)
    VMForm = formOf(VM)


# Nothing of what is below changes once it is written; that the classes are not frozen is for the
# journal's sake, which makes some for every command: it takes half as long.


class BadSnapshot(CCProxyError):
    """A written state cannot be taken up; the text says why."""


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
