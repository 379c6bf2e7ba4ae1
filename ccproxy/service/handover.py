"""
A restart that nobody notices: what this process knows and holds goes to the next one.

The descriptors go to the service manager, which keeps them (L{ccproxy.net.store}); what they are,
and all else, is written into a memfd that goes the same way. Sockets are known by their inodes,
which are the same in every process. docs/reliability has the whole story.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Optional

import attrs
import msgspec
from twisted.internet.task import Clock
from twisted.logger import Logger

from .. import __version__
from ..core.registry import Registry
from ..core.resuming import resume
from ..core.snapshot import BadSnapshot, Key, Snapshot, seal, unseal
from ..core.writing import write
from ..interfaces import IConnection
from ..net.binding import ListeningSocket, credentials
from ..net.connecting import ChannelsForm, Connector
from ..net.listening import UNIXListener
from ..net.ordinary import attach
from ..net.passed import Passed, inodeOf, takePassed
from ..net.polling import Poller
from ..net.protocols import AgentChannel
from ..net.store import DescriptorStore
from ..net.transport import StreamTransport

if TYPE_CHECKING:
    from socket import socket

#: Under which names the manager keeps what is handed over.
STATE, LISTENING, CONNECTIONS = "state", "listening", "connections"
#: Seconds that the manager may take to read all that it is told: it looks for each new descriptor
#: among all that it has.
SETTLE_TIMEOUT = 15.0


@attrs.frozen
class HandoverForm:
    """
    All that the next process is told, in the form of L{ccproxy.core.snapshot.VERSION}.

    @ivar writer: the version of ccproxy that wrote it, for the log.
    @ivar snapshot: what the core knows.
    @ivar rests: what was taken from sockets and not used.
    @ivar channels: what the connector knows of the VMs.
    @ivar listening: the client socket.
    @ivar path: the path of that.
    @ivar made: what tells the file there from others.
    """

    writer: str
    snapshot: Snapshot
    rests: dict[Key, bytes] = attrs.field(factory=dict)
    channels: list[ChannelsForm] = attrs.field(factory=list)
    listening: Optional[Key] = None
    path: str = ""
    made: Optional[tuple[int, int]] = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(HandoverForm)


class Handover:
    """
    Takes up what an earlier process has left, and leaves everything to the next one.

    @ivar store: what the manager keeps.
    @ivar listening: the client socket that was taken up, until somebody listens on it.
    """

    _log = Logger()

    def __init__(
        self,
        registry: Registry,
        connector: Connector,
        poller: Poller,
        store: DescriptorStore,
    ) -> None:
        self.store = store
        self.listening: ListeningSocket | None = None
        self._registry = registry
        self._connector = connector
        self._poller = poller
        self._form: HandoverForm | None = None
        self._sockets: dict[Key, socket] = {}

    # -- taking up

    def take(self, environment: MutableMapping[str, str]) -> None:
        """
        Look at what was passed to this process, and at whether it makes sense. What does not is
        dropped, with a line in the log.

        @param environment: that of the process.
        """
        passed = takePassed(environment)
        if not passed:
            return
        for each in passed:
            self.store.passed(each.name)
        states = [each for each in passed if each.name == STATE]
        others = [each for each in passed if each.name != STATE]
        form = self._form = self._read(states)
        wanted = set() if form is None else _wanted(form)
        for each in others:
            made = None
            known = each.inode in self._sockets
            if each.inode in wanted and not known:
                made = each.asSocket()
            if made is not None:
                self._sockets[each.inode] = made
            else:
                if not known:
                    self._log.warn(
                        "dropped a descriptor that was kept as {name}: it is no socket that the"
                        " state knows",
                        event="descriptor-dropped",
                        name=each.name,
                    )
                each.close(ofUse=known)
        if form is not None:
            self._takeListening(form)

    def _read(self, states: list[Passed]) -> HandoverForm | None:
        try:
            if len(states) != 1:
                raise BadSnapshot(f"{len(states)} states were kept instead of one")
            form = _decoder.decode(unseal(_contents(states[0].descriptor)))
            # Once without effect: what contradicts itself must not be taken up by half.
            trial = Registry(self._connector, Clock(), self._registry.wallClock)
            resume(trial, form.snapshot, {})
        except (BadSnapshot, OSError, msgspec.MsgspecError) as error:
            self._log.error(
                "the state of the process before cannot be taken up, all its connections are"
                " closed: {reason}",
                event="state-refused",
                reason=str(error),
            )
        except Exception:
            self._log.failure(
                "the state of the process before cannot be taken up, all its connections are"
                " closed",
                event="state-refused",
            )
        else:
            return form
        finally:
            for state in states:
                os.close(state.descriptor)
        return None

    def _takeListening(self, form: HandoverForm) -> None:
        made = None if form.listening is None else self._sockets.pop(form.listening, None)
        if made is not None:
            self.listening = ListeningSocket(made, form.path, form.made)

    def resume(self) -> None:
        """Go on with what was taken up."""
        form, self._form = self._form, None
        if form is not None:
            self._resume(form)
        for name in list(self.store.kept):
            self.store.discard(name)

    def _resume(self, form: HandoverForm) -> None:
        protocols: dict[Key, AgentChannel] = {}
        connections: dict[Key, IConnection] = {}
        peers = _peers(form.snapshot)
        for key, made in self._sockets.items():
            if key not in peers:
                continue
            protocol = protocols[key] = AgentChannel(self._registry)
            attach(
                self._poller, made, peers[key] or credentials(made), protocol,
                form.rests.get(key, b""),
            )  # fmt: skip
            connections[key] = protocol.connection
        resumed = resume(self._registry, form.snapshot, connections)
        self._connector.adopt(form.channels, self._sockets)
        for key, sink in resumed.sinks.items():
            protocols[key].begin(sink)
        resumed.begin()
        missing = len(peers) - len(connections)
        self._log.info(
            "resumed {vms} VMs, {sessions} sessions and {clients} clients of version {writer}",
            event="resumed",
            vms=len(self._registry.vms),
            sessions=len(self._registry.tokens),
            clients=len(self._registry.clients),
            writer=form.writer,
            missing=missing or None,
        )
        self._sockets.clear()

    # -- handing over

    def handOver(self, listener: UNIXListener | None) -> bool:
        """
        Leave everything to the next process. Nothing else happens in this one meanwhile, and
        nothing is changed: if it fails, this process can just go on.

        @param listener: the client socket.
        @return: whether the manager has it all. This process must end at once then, and close
            nothing in a way that its peers would notice.
        """
        self._registry.flush()
        transports: dict[Key, StreamTransport] = {}

        def keyOf(connection: IConnection) -> Key:
            assert isinstance(connection, StreamTransport)
            key = inodeOf(connection.fileno())
            transports[key] = connection
            return key

        snapshot = write(self._registry, keyOf)
        form = HandoverForm(
            writer=__version__,
            snapshot=snapshot,
            rests={key: each.rest for key, each in transports.items() if each.rest},
            channels=self._connector.written(),
        )
        descriptors = [each.fileno() for each in transports.values()]
        descriptors += self._connector.consoles()
        if listener is not None and listener.made is not None:
            form = attrs.evolve(
                form,
                listening=inodeOf(listener.fileno()),
                path=listener.path,
                made=listener.made,
            )
            self.store.keep(LISTENING, [listener.fileno()])
        data = seal(_encoder.encode(form))
        state = _memfd(data)
        try:
            done = (
                self.store.keep(STATE, [state])
                and self.store.keep(CONNECTIONS, descriptors)
                and self.store.settle(SETTLE_TIMEOUT)
            )
        finally:
            os.close(state)
        if not done:
            for name in (STATE, LISTENING, CONNECTIONS):
                self.store.discard(name)
            self._log.error(
                "cannot hand over: the service manager does not take it all",
                event="handover-failed",
            )
            return False
        self._log.info(
            "handed over {vms} VMs, {sessions} sessions and {clients} clients",
            event="handed-over",
            vms=len(self._registry.vms),
            sessions=len(self._registry.tokens),
            clients=len(self._registry.clients),
            bytes=len(data),
        )
        return True


def _peers(snapshot: Snapshot) -> dict[Key, str]:
    """All connections of the core, and what they are called in logs, if not by who is there."""
    peers = {form.connection: "" for form in snapshot.clients if form.connection is not None}
    for vm in snapshot.vms:
        for key, path in ((vm.control, vm.request.ctlSerial), (vm.io, vm.request.ioSerial)):
            if key is not None:
                peers[key] = path
    return peers


def _wanted(form: HandoverForm) -> set[Key]:
    """All sockets that a state is about."""
    maybe = [form.listening, *(channels.console for channels in form.channels)]
    return {*_peers(form.snapshot), *(key for key in maybe if key is not None)}


def _memfd(data: bytes) -> int:
    """A file in memory that nobody can change any more, and that only descriptors lead to."""
    made = os.memfd_create("ccproxy-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(made, 0o600)
        with open(made, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(made)
        raise
    return made


def _contents(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()
