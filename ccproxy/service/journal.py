"""
What outlives a crash: a journal of the control state, in memory that the service manager keeps.

Each VM is written anew whenever something of it has changed, at the end of the turn in which it
has, and so before the input that has changed it is taken from its socket. The sockets of agents and
shims are with the manager from their beginning. What is on its way is in neither: it dies with the
process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING, Optional

import attrs
import msgspec

from ..core.registry import Registry
from ..core.snapshot import BadSnapshot, Key, OutletForm, Snapshot, seal, unseal
from ..core.states import VMState
from ..core.vm import VM
from ..core.writing import writeVM
from ..interfaces import IConnection
from ..net.connecting import ChannelsForm, Connector
from ..net.listening import UNIXListener
from ..net.passed import inodeOf
from ..net.store import DescriptorStore
from ..net.transport import Kept, StreamTransport

if TYPE_CHECKING:
    from .pods import Pods

#: How the name of a journal begins under which the manager keeps it.
JOURNAL = "journal-"
#: How that of a connection does; its inode follows.
CONNECTION = "connection-"
#: A journal is not written anew before it is so long, in bytes.
LEAST_REWRITTEN = 4 << 20

#: Seconds between two looks at how much the sessions hold.
HELD_INTERVAL = 0.25

#: In front of each entry: its length, its checksum, and whether the commands that it has for an
#: agent were sent, which is written when they are.
_ENTRY = Struct(">II?")
_NOT_YET = (VMState.CONNECTING, VMState.WAITING)


@attrs.frozen
class ListeningForm:
    """
    The client socket.

    @ivar path: where it is.
    @ivar made: what tells the file there from others.
    @ivar served: of a pod, whether its VM has been registered.
    """

    key: Key
    path: str
    made: Optional[tuple[int, int]] = None
    served: bool = False


@attrs.frozen
class EntryForm:
    """
    One entry, of which most are about a VM.

    @ivar serial: the VM's.
    @ivar snapshot: what is to be known of it, or L{None} once it is gone.
    @ivar channels: what the connector knows of it.
    @ivar witness: whether what was used of the control channel's input has been taken:
        L{skipUsed <ccproxy.net.transport.skipUsed>}.
    @ivar listening: the client socket.
    @ivar pods: the sockets of pods that have joined.
    """

    serial: Optional[int] = None
    snapshot: Optional[Snapshot] = None
    channels: Optional[ChannelsForm] = None
    witness: int = 0
    listening: Optional[ListeningForm] = None
    pods: list[ListeningForm] = attrs.field(factory=list)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(EntryForm)


class Journal:
    """
    Writes the journal of one process.
    """

    def __init__(
        self, registry: Registry, connector: Connector, store: DescriptorStore, generation: int
    ) -> None:
        """
        @param generation: tells it from journals of processes before.
        """
        self._registry = registry
        self._connector = connector
        self._store = store
        self._generation = generation
        self._file = -1
        self._size = self._live = 0
        self._listening: ListeningForm | None = None
        self._connections: dict[int, set[Key]] = {}
        self._held: dict[int, int] = {}
        self._pods: Pods
        self._podForms: list[ListeningForm] = []

    @property
    def names(self) -> set[str]:
        """Under which names the manager keeps what is in use."""
        keys = set().union(*self._connections.values())
        if self._listening is not None:
            keys.add(self._listening.key)
        keys.update(pod.key for pod in self._podForms)
        return {JOURNAL + str(self._generation), *(CONNECTION + str(key) for key in keys)}

    def begin(self, listener: UNIXListener | None, pods: Pods) -> None:
        """
        Write down everything, and from now on all that changes.

        @param listener: the client socket.
        @param pods: those that have joined.
        """
        self._pods = pods
        pods.whenChanged = self._podsChanged
        if listener is not None and listener.made is not None:
            key = inodeOf(listener.fileno())
            self._listening = ListeningForm(key, listener.path, listener.made)
            self._keep(key, listener.fileno())
        self._podsChanged()
        self._registry.whenChanged = self.changed
        self._rewrite()
        self._noteHeld()

    def _noteHeld(self) -> None:
        """What a VM's sessions hold is no change that is told: look from time to time."""
        if self._registry.budget.used or self._held:
            for vm in self._vms():
                held = sum(each.output.held + each.stdin.size for each in vm.processes.sessions)
                if held != self._held.get(vm.serial, 0):
                    self.changed([vm])
                    self._held[vm.serial] = held
                if not held:
                    self._held.pop(vm.serial, None)
        self._registry.later(HELD_INTERVAL, self._noteHeld)

    def _rewrite(self) -> None:
        """Begin a new file, in which nothing is that is out of date."""
        old, name = self._file, JOURNAL + str(self._generation)
        self._generation += 1
        self._file = os.memfd_create("ccproxy-journal", os.MFD_CLOEXEC)
        os.fchmod(self._file, 0o600)
        self._size = 0
        self._write(seal(b""))
        self._entry(EntryForm(listening=self._listening, pods=self._podForms))
        self.changed(self._vms())
        self._live = self._size
        self._store.keep(JOURNAL + str(self._generation), [self._file])
        if old >= 0:
            self._store.discard(name)
            os.close(old)

    def _podsChanged(self) -> None:
        """A pod has joined, or has ended."""
        before = {pod.key for pod in self._podForms}
        self._podForms = self._pods.forms()
        listeners = self._pods.listeners
        for pod in self._podForms:
            self._keep(pod.key, listeners[pod.path].fileno())
        if self._file >= 0:
            self._entry(EntryForm(listening=self._listening, pods=self._podForms))
        for key in before - {pod.key for pod in self._podForms}:
            self._store.discard(CONNECTION + str(key))

    def _vms(self) -> set[VM]:
        registry = self._registry
        sessions = registry.tokens.values()
        return {*registry.vms.values(), *registry.leaving, *(session.vm for session in sessions)}

    def changed(self, vms: Iterable[VM]) -> None:
        """Write down VMs that have changed."""
        for vm in vms:
            at = self._size
            if vm.state not in _NOT_YET:
                self._vm(vm)
            vm.controlWritable()
            if self._size > at and not vm.unsent:
                os.pwrite(self._file, b"\1", at + _ENTRY.size - 1)
        if self._size > max(LEAST_REWRITTEN, 4 * self._live):
            self._rewrite()

    def _vm(self, vm: VM) -> None:
        now: dict[Key, StreamTransport] = {}

        def keyOf(connection: IConnection) -> Key:
            assert isinstance(connection, StreamTransport)
            key = inodeOf(connection.fileno())
            now[key] = connection
            return key

        before = self._connections.pop(vm.serial, set())
        known = vm.state is not VMState.GONE or vm in self._registry.leaving
        if known or vm.processes.sessions:
            snapshot = writeVM(vm, keyOf)
            self._connections[vm.serial] = set(now)
            for key in now.keys() - before:
                transport = now[key]
                transport.kept = Kept.WITNESSED if transport is vm.control else Kept.NOTED
                self._keep(key, transport.fileno())
            channels = self._connector.channelsOf(vm)
            witness = vm.control.witness if isinstance(vm.control, StreamTransport) else 0
            self._entry(EntryForm(vm.serial, snapshot, channels, witness))
        else:
            self._entry(EntryForm(vm.serial))
        for key in before - now.keys():
            self._store.discard(CONNECTION + str(key))

    def _keep(self, key: Key, descriptor: int) -> None:
        name = CONNECTION + str(key)
        if name not in self._store.kept:
            self._store.keep(name, [descriptor])

    def _entry(self, form: EntryForm) -> None:
        data = _encoder.encode(form)
        self._write(_ENTRY.pack(len(data), zlib.crc32(data), False) + data)

    def _write(self, data: bytes) -> None:
        # All or nothing of it counts for who reads it, so it need not be atomic.
        self._size += os.write(self._file, data)


@attrs.define
class Journalled:
    """
    What a journal says.

    @ivar vms: its last word of each VM that is not gone.
    @ivar listening: the client socket.
    @ivar pods: the sockets of pods that have joined.
    """

    vms: dict[int, EntryForm] = attrs.field(factory=dict)
    listening: ListeningForm | None = None
    pods: list[ListeningForm] = attrs.field(factory=list)


def readJournal(data: bytes) -> Journalled:
    """
    Read what a process has written until it died, perhaps in the middle of an entry.

    @raise BadSnapshot: it is no journal that this version can read.
    """
    unseal(data)
    found = Journalled()
    at = len(seal(b""))
    while at + _ENTRY.size <= len(data):
        length, checksum, sent = _ENTRY.unpack_from(data, at)
        body = data[at + _ENTRY.size : at + _ENTRY.size + length]
        if len(body) < length or zlib.crc32(body) != checksum:
            break
        at += _ENTRY.size + length
        try:
            entry = _decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise BadSnapshot(f"the journal has another form: {error}") from None
        if entry.serial is None:
            found.listening, found.pods = entry.listening, entry.pods
        elif entry.snapshot is None:
            found.vms.pop(entry.serial, None)
        else:
            found.vms[entry.serial] = _withoutSent(entry, entry.snapshot) if sent else entry
    return found


def _withoutSent(entry: EntryForm, snapshot: Snapshot) -> EntryForm:
    """The entry, without the commands that were sent after it was written."""
    vms = [attrs.evolve(vm, controlOut=OutletForm()) for vm in snapshot.vms]
    return attrs.evolve(entry, snapshot=attrs.evolve(snapshot, vms=vms))
