"""
A restart that nobody notices: what this process knows and holds goes to the next one.

The descriptors go to the service manager, which keeps them (L{ccproxy.persist.store}). All else,
and what each descriptor is, goes the same way in a memfd. Sockets are known by their inodes, which
are the same in every process. docs/reliability has the whole story.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING

import attrs
import msgspec
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from .. import __version__
from ..core.resuming import Resumed, resume
from ..core.salvage import salvage
from ..core.snapshot import BadSnapshot, Key, Snapshot
from ..core.writing import write
from ..interfaces import IConnection
from ..net.binding import ListeningSocket, credentials
from ..net.connecting import Connector
from ..net.listening import UNIXListener
from ..net.ordinary import attach
from ..net.passed import Passed, endAndClose, takePassed
from ..net.protocols import AgentChannel
from ..net.sockets import skipUsed
from ..net.transport import StreamTransport
from .consoles import resumeConsoles, writeConsoles
from .entries import readJournal
from .journal import JOURNAL, STAGING, Journal, keysInto
from .listeners import JoinedPods, ListeningForm, listeningForm
from .outliving import contentsOf, sealedFile, waitingIn
from .state import HandoverForm, decoded, encoded, peersOf
from .store import DescriptorStore
from .trial import tryRestore

if TYPE_CHECKING:
    from socket import socket

#: Under which names the manager keeps what is handed over: the state, and all connections that it
#: does not have already. There may be thousands of these, whose names share one variable.
STATE, CONNECTIONS = "state", "-"
#: Seconds that the manager may take to read all that it is told: it looks for each new descriptor
#: among all that it has.
SETTLE_TIMEOUT = 30.0
#: Seconds that the manager may take to accept the new journal. No client is served meanwhile.
RESUME_TIMEOUT = 5.0


class Handover:
    """
    Takes up what an earlier process has left, and leaves everything to the next one.

    @ivar store: what the manager keeps.
    @ivar listening: the client socket that was taken up, until somebody listens on it.
    """

    _log = Logger()

    def __init__(self, connector: Connector, store: DescriptorStore, pods: JoinedPods) -> None:
        self.store = store
        self.listening: ListeningSocket | None = None
        self._registry = connector.registry
        self._connector = connector
        self._poller = connector.poller
        self._pods = pods
        self._form: HandoverForm | None = None
        self._crashed = False
        self._generation = 0
        self._journal: Journal | None = None
        self._sockets: dict[Key, socket] = {}

    # -- taking up

    def take(self, environment: MutableMapping[str, str]) -> None:
        """
        Look at what was passed to this process, and at whether it makes sense. What does not is
        dropped, with a line in the log.

        @param environment: that of the process.
        """
        passed = takePassed(environment)
        for each in passed:
            self.store.passed(each.name, each.inode)
        files = [each for each in passed if each.name.startswith((STATE, JOURNAL, STAGING))]
        if files:
            self._form = self._read(files)
        wanted = set() if self._form is None else self._form.sockets
        for each in passed:
            if each not in files:
                self._takeSocket(each, wanted)
        form = self._form = None if self._form is None else self._salvaged(self._form)
        if form is not None and form.listening is not None:
            made = self._sockets.pop(form.listening.key, None)
            if made is not None:
                self.listening = ListeningSocket(made, form.listening.path, form.listening.made)

    def _takeSocket(self, passed: Passed, wanted: set[Key]) -> None:
        known = passed.inode in self._sockets
        made = passed.asSocket() if passed.inode in wanted and not known else None
        if made is not None:
            self._sockets[passed.inode] = made
            return
        if not known:
            self._log.warn(
                "dropped a descriptor that was kept as {name}: nothing is known of it",
                event="descriptor-dropped",
                name=passed.name,
            )
        passed.close(ofUse=known)

    def _read(self, files: list[Passed]) -> HandoverForm | None:
        names = [each.name.removeprefix(JOURNAL) for each in files]
        self._generation = max((int(name) for name in names if name.isdecimal()), default=0)
        try:
            contents = {
                each.name: contentsOf(each.descriptor)
                for each in files
                if not each.name.startswith(STAGING)
            }
            form = decoded(contents[STATE]) if STATE in contents else None
            if form is None or form.generation < self._generation:
                # There is none, or the process that wrote it, or took it up, has gone on since.
                self._crashed = True
                form = self._readJournals(contents, files)
        except (BadSnapshot, OSError, msgspec.MsgspecError) as error:
            self._log.error(
                "the state of the process before cannot be taken up, all its connections are"
                " closed: {reason}",
                event="state-refused",
                reason=str(error),
            )
        except Exception:
            self._refused()
        else:
            return form
        finally:
            for each in files:
                os.close(each.descriptor)
        return None

    def _refused(self) -> None:
        self._log.failure(
            "the state of the process before cannot be taken up, all its connections are closed",
            event="state-refused",
        )

    def _salvaged(self, form: HandoverForm) -> HandoverForm:
        """Drop what cannot be restored, with its sockets: nothing may be restored by half."""

        def attempt(some: Sequence[Snapshot]) -> None:
            connected = peersOf(some).keys() & self._sockets.keys()
            tryRestore(
                self._connector, some, connected, form.channels, form.consoles, self._crashed
            )

        snapshots, dropped = salvage(form.snapshots, attempt)
        for each in dropped:
            self._log.failure(
                "dropped, as it cannot be restored; its connections are closed",
                Failure(each.error),
                event="restore-dropped",
                vm=", ".join(each.vms) or None,
                client=", ".join(each.clients) or None,
            )
        gone = peersOf(form.snapshots).keys() - peersOf(snapshots).keys()
        for key in gone & self._sockets.keys():
            endAndClose(self._sockets.pop(key))
        return attrs.evolve(form, snapshots=snapshots)

    def _readJournals(self, contents: dict[str, bytes], files: list[Passed]) -> HandoverForm:
        """
        The process before has died.

        @raise BadSnapshot: its journal cannot be read.
        """
        # It may have died while it began a new one, which is kept as soon as it is whole.
        journal = contents.get(JOURNAL + str(self._generation))
        if journal is None:
            raise BadSnapshot("it died before it had a journal")
        pipes = (each for each in files if each.name.startswith(STAGING))
        journalled = readJournal(journal, {each.name: waitingIn(each.descriptor) for each in pipes})
        for serial, reason in journalled.damaged.items():
            self._log.error(
                "dropped a VM, as its journal cannot be read; its connections are closed: {reason}",
                event="restore-dropped",
                serial=serial,
                reason=reason,
            )
        entries = journalled.vms.values()
        # The entry about no VM is last: it is the most recent word on what all have.
        snapshots = [*(entry.snapshot for entry in entries), journalled.counters]
        return HandoverForm(
            writer=__version__,
            snapshots=[snapshot for snapshot in snapshots if snapshot is not None],
            channels=[entry.channels for entry in entries if entry.channels is not None],
            listening=journalled.listening,
            pods=journalled.pods,
            rests=journalled.rests,
            used=journalled.used,
        )

    def resume(self, listener: UNIXListener | None, keep: bool) -> None:
        """
        Go on with what was taken up.

        @param listener: the client socket.
        @param keep: keep what survives a crash of this process, too.
        """
        form, self._form = self._form, None
        passed = set(self.store.kept)
        resumed: Resumed | None = None
        protocols: dict[Key, AgentChannel] = {}
        if form is not None:
            connections = self._connect(form, protocols)
            try:
                resumed = resume(self._registry, form.snapshots, connections)
                resumeConsoles(self._registry.vms.values(), form.consoles)
                self._connector.adopt(form.channels, self._sockets)
            except Exception:
                # The trial went well. Whatever this is, the next start must not meet it again.
                self._refused()
                resumed = None
                self._registry.forgetAll()
                for protocol in protocols.values():
                    protocol.connection.close()
            for pod in form.pods:
                self._resumePod(pod)
            self._sockets.clear()
        if keep:
            journal = self._journal = Journal(
                self._registry, self._connector, self._poller, self.store, self._generation
            )
            journal.begin(listener, self._pods)
            passed -= journal.names
            if form is not None and not self._isKept():
                self._log.warn(
                    "the service manager has not taken the journal of this process within"
                    " {seconds:g} s: a crash before it does costs what was delivered since",
                    event="notify-failed",
                    seconds=RESUME_TIMEOUT,
                )
        # From here on the state of the process before is out of date.
        for name in passed:
            self.store.discard(name)
        if form is not None and resumed is not None:
            for key, sink in resumed.sinks.items():
                protocols[key].begin(sink)
            if self._crashed:
                resumed.recover()
            resumed.begin()
            self._report(form, len(protocols))

    def _resumePod(self, pod: ListeningForm) -> None:
        made = self._sockets.get(pod.key)
        if made is None:
            return
        try:
            self._pods.serve(ListeningSocket(made, pod.path, pod.made), pod.served)
        except Exception:
            self._log.failure(
                "the pod's socket {path} cannot be restored: it takes no new clients",
                event="restore-dropped",
                path=pod.path,
            )

    def _connect(
        self, form: HandoverForm, protocols: dict[Key, AgentChannel]
    ) -> dict[Key, IConnection]:
        """Make connections of the sockets that are the core's."""
        connections: dict[Key, IConnection] = {}
        peers = peersOf(form.snapshots)
        for key in peers.keys() & self._sockets.keys():
            made = self._sockets.pop(key)
            protocol = AgentChannel(self._registry)
            try:
                if self._crashed:
                    skipUsed(made, *form.used.get(key, (0, 0)))
                attach(
                    self._poller, made, peers[key] or credentials(made), protocol,
                    form.rests.get(key, b""),
                )  # fmt: skip
            except OSError as error:
                self._log.error(
                    "the connection to {peer} cannot be restored, and is closed: {reason}",
                    event="restore-dropped",
                    peer=peers[key] or "a client",
                    reason=str(error),
                )
                endAndClose(made)
            else:
                protocols[key], connections[key] = protocol, protocol.connection
        return connections

    def _report(self, form: HandoverForm, connections: int) -> None:
        registry = self._registry
        self._log.emit(
            LogLevel.warn if self._crashed else LogLevel.info,
            "the process before has died: {vms} VMs with {sessions} sessions go on, as far as its"
            " journal and its sockets have survived"
            if self._crashed
            else "resumed {vms} VMs, {sessions} sessions and {clients} clients of version {writer}",
            event="recovered" if self._crashed else "resumed",
            vms=len(registry.vms),
            sessions=len(registry.tokens),
            clients=len(registry.clients),
            writer=form.writer,
            missing=len(peersOf(form.snapshots)) - connections or None,
        )

    # -- handing over

    def _isKept(self) -> bool:
        """
        Wait until the manager has the journal. If this process died earlier, the next one would
        take the state of the process before for the last word, and lose what has been used of the
        connections' input since.
        """
        try:
            return self.store.settle(RESUME_TIMEOUT)
        except OSError:  # too many open files
            return False

    def handOver(self, listener: UNIXListener | None) -> bool:
        """
        Leave everything to the next process. Nothing else happens in this one meanwhile, and
        nothing is changed: if it fails, this process can just go on.

        @param listener: the client socket.
        @return: whether the manager has it all. This process must end at once then, and close
            nothing in a way that its peers would notice.
        """
        self._registry.context.flush()
        form, descriptors = self._written(listener)
        data = encoded(form)
        state = sealedFile(data)
        reason = "the service manager does not take it all"
        try:
            done = (
                self.store.keep(STATE, [state])
                and self.store.keep(CONNECTIONS, descriptors)
                and self.store.settle(SETTLE_TIMEOUT)
            )
        except OSError as error:
            done, reason = False, str(error)
        finally:
            os.close(state)
        if not done:
            for name in (STATE, CONNECTIONS):
                self.store.discard(name)
            if self._journal is not None:
                self._journal.renew()
            self._log.error(
                "cannot hand over: {reason}", event="handover-failed", reason=reason
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

    def _written(self, listener: UNIXListener | None) -> tuple[HandoverForm, list[int]]:
        """What is handed over, and the descriptors that go with it and are not kept already."""
        transports: dict[Key, StreamTransport] = {}
        pods, listeners = self._pods.forms(), self._pods.listeners
        form = HandoverForm(
            writer=__version__,
            snapshots=[write(self._registry, keysInto(transports))],
            rests={key: each.rest for key, each in transports.items() if each.rest},
            channels=self._connector.written(),
            listening=listeningForm(listener),
            pods=pods,
            generation=0 if self._journal is None else self._journal.generation,
            consoles=writeConsoles(self._registry.vms.values()),
        )
        sockets = {key: each.fileno() for key, each in transports.items()}
        sockets.update((pod.key, listeners[pod.path].fileno()) for pod in pods)
        if listener is not None and form.listening is not None:
            sockets[form.listening.key] = listener.fileno()
        kept = self.store.sockets
        descriptors = [each for key, each in sockets.items() if key not in kept]
        return form, descriptors + self._connector.consoles()
