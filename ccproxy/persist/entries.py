"""
The entries of a journal: their form, and what a journal says.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from struct import Struct
from typing import Optional

import attrs
import msgspec

from ..core.snapshot import BadSnapshot, Key, OutletForm, Snapshot, seal, unseal
from ..net.connecting import ChannelsForm
from .listeners import ListeningForm

#: The most bytes of commands that are sent by way of the pipe at a time. It may hold fewer: the
#: system gives a user who has many pipes a page for each.
MOST_STAGED = 32 << 10

#: In front of each entry: its length and its checksum.
ENTRY = Struct(">II")


@attrs.define
class EntryForm:
    """
    One entry, of which most are about a VM.

    @ivar serial: the VM's.
    @ivar snapshot: what is to be known of it, or L{None} once it is gone. Without a serial: what
        belongs to no VM.
    @ivar channels: what the connector knows of it.
    @ivar staged: in which pipe the commands are that it has for the agent, or as many of their
        bytes as a pipe is given at a time, unless they were sent since then.
    @ivar stagedSize: how many bytes the pipe was given; 0 stands for L{MOST_STAGED}.
    @ivar sent: a VM's serial, in an entry that says only that so many bytes of the commands in the
        last one about it were sent, besides whether the next are C{staged}.
    @ivar rests: what was taken from sockets and is not used, of those where it has changed.
    @ivar used: how much of the input at hand has been used, behind the mark that says which input
        that is: L{skipUsed <ccproxy.net.sockets.skipUsed>}.
    @ivar listening: the client socket, in an entry that has C{pods}.
    @ivar pods: the sockets of pods that have joined.
    """

    serial: Optional[int] = None
    snapshot: Optional[Snapshot] = None
    channels: Optional[ChannelsForm] = None
    staged: str = ""
    stagedSize: int = 0
    sent: Optional[tuple[int, int]] = None
    rests: dict[Key, bytes] = attrs.field(factory=dict)
    used: dict[Key, tuple[int, int]] = attrs.field(factory=dict)
    listening: Optional[ListeningForm] = None
    pods: Optional[list[ListeningForm]] = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(EntryForm)


def encoded(form: EntryForm) -> bytes:
    """Return an entry as it stands in a journal."""
    data = _encoder.encode(form)
    return ENTRY.pack(len(data), zlib.crc32(data)) + data


@attrs.define
class Journalled:
    """
    What a journal says.

    @ivar vms: its last word of each VM that is not gone.
    @ivar counters: its last word of what belongs to no VM.
    @ivar damaged: VMs with an entry that cannot be read, and why. They cannot be restored.
    @ivar rests: what was taken from sockets and not used.
    @ivar used: what was used of their input: see L{EntryForm}.
    @ivar listening: the client socket.
    @ivar pods: the sockets of pods that have joined.
    """

    vms: dict[int, EntryForm] = attrs.field(factory=dict)
    counters: Snapshot | None = None
    damaged: dict[int, str] = attrs.field(factory=dict)
    rests: dict[Key, bytes] = attrs.field(factory=dict)
    used: dict[Key, tuple[int, int]] = attrs.field(factory=dict)
    listening: ListeningForm | None = None
    pods: list[ListeningForm] = attrs.field(factory=list)


def readJournal(data: bytes, staged: Mapping[str, bytes]) -> Journalled:
    """
    Read what a process has written until it died, perhaps in the middle of an entry.

    @param staged: what is in each pipe.
    @raise BadSnapshot: it is no journal that this version can read.
    """
    unseal(data)
    found = Journalled()
    # How much of each VM's commands was sent before its last entry, and where that has staged more;
    # what is in a pipe still is of the last entry of all, if it is of any.
    sent: dict[int, int] = {}
    stagedIn: dict[int, tuple[str, int]] = {}
    last = None
    at = len(seal(b""))
    while at + ENTRY.size <= len(data):
        length, checksum = ENTRY.unpack_from(data, at)
        body = data[at + ENTRY.size : at + ENTRY.size + length]
        if not length or zlib.crc32(body) != checksum:
            break
        at += ENTRY.size + length
        try:
            entry = _decoder.decode(body)
        except msgspec.MsgspecError as error:
            raw = msgspec.msgpack.decode(body)
            last = raw.get("serial") if isinstance(raw, dict) else None
            if not isinstance(last, int):
                raise BadSnapshot(f"the journal has another form: {error}") from None
            found.damaged[last] = str(error)
            continue
        found.rests.update(entry.rests)
        found.used.update(entry.used)
        if entry.pods is not None:
            found.listening, found.pods = entry.listening, entry.pods
        if entry.sent is not None:
            last, sent[last] = entry.sent[0], entry.sent[1]
        elif entry.serial is None:
            found.counters = entry.snapshot or found.counters
            continue
        elif entry.snapshot is None:
            found.vms.pop(entry.serial, None)
            found.damaged.pop(entry.serial, None)
            continue
        else:
            last = entry.serial
            found.vms[last], sent[last] = entry, 0
        stagedIn[last] = entry.staged, entry.stagedSize or MOST_STAGED
    for serial in found.damaged:
        found.vms.pop(serial, None)
    for serial, entry in found.vms.items():
        pipe, size = stagedIn[serial]
        if entry.snapshot is None or not (pipe or sent[serial]):
            continue
        vms = []
        for vm in entry.snapshot.vms:
            out = vm.controlOut
            left = b"".join(block for block, _ in out.blocks)[out.offset + sent[serial] :]
            if pipe:
                # What was staged has been sent, but for what was last and is still in the pipe.
                left = left[size:]
                if serial == last:
                    left = staged.get(pipe, b"") + left
            blocks = [(left, False)] if left else []
            vms.append(msgspec.structs.replace(vm, controlOut=OutletForm(blocks=blocks)))
        snapshot = attrs.evolve(entry.snapshot, vms=vms)
        found.vms[serial] = attrs.evolve(entry, snapshot=snapshot)
    return found
