"""
The state that one process leaves to the next: what is known, and which sockets it is about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

import attrs
import msgspec

from ..core.snapshot import Key, Snapshot, seal, unseal
from ..net.connecting import ChannelsForm
from .consoles import ConsoleForm
from .listeners import ListeningForm


@attrs.frozen
class HandoverForm:
    """
    All that the next process is told, in the form of L{ccproxy.core.snapshot.VERSION}.

    @ivar writer: the version of ccproxy that wrote it, for the log.
    @ivar snapshots: what the core knows: all at once, or VM by VM.
    @ivar rests: what was taken from sockets and not used.
    @ivar channels: what the connector knows of the VMs.
    @ivar generation: which journal it goes on from: with a later one, it is out of date.
    @ivar consoles: what their consoles have said last.
    @ivar listening: the client socket.
    @ivar pods: the sockets of pods that have joined.
    @ivar used: after a crash, what was used of the input of connections: see
        L{EntryForm <ccproxy.persist.journal.EntryForm>}.
    """

    writer: str
    snapshots: list[Snapshot] = attrs.field(factory=list)
    rests: dict[Key, bytes] = attrs.field(factory=dict)
    channels: list[ChannelsForm] = attrs.field(factory=list)
    listening: Optional[ListeningForm] = None
    pods: list[ListeningForm] = attrs.field(factory=list)
    used: dict[Key, tuple[int, int]] = attrs.field(factory=dict)
    generation: int = 0
    consoles: dict[int, ConsoleForm] = attrs.field(factory=dict)

    @property
    def sockets(self) -> set[Key]:
        """All sockets that this is about."""
        listening = self.pods if self.listening is None else [*self.pods, self.listening]
        consoles = {each.console for each in self.channels if each.console is not None}
        return {*peersOf(self.snapshots), *(each.key for each in listening), *consoles}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(HandoverForm)


def encoded(form: HandoverForm) -> bytes:
    """Return a state as it is handed over."""
    return seal(_encoder.encode(form))


def decoded(data: bytes) -> HandoverForm:
    """
    Read a state.

    @raise BadSnapshot: it is of another version, or no state.
    @raise msgspec.MsgspecError: it is damaged.
    """
    return _decoder.decode(unseal(data))


def peersOf(snapshots: Iterable[Snapshot]) -> dict[Key, str]:
    """All connections of the core, and what they are called in logs, if not by who is there."""
    peers: dict[Key, str] = {}
    for snapshot in snapshots:
        for client in snapshot.clients:
            if client.connection is not None:
                peers[client.connection] = ""
        for vm in snapshot.vms:
            for key, path in ((vm.control, vm.request.ctlSerial), (vm.io, vm.request.ioSerial)):
                if key is not None:
                    peers[key] = path
    return peers
