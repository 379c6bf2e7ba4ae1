"""
What outlives a crash: a journal of the control state, in memory that the service manager keeps.

Each VM is written anew whenever something of it has changed, at the end of the turn in which it
has, and so before the input that has changed it is taken from its socket. The sockets of agents and
shims are with the manager from their beginning. What is on its way is in neither: it dies with the
process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

import attrs
from twisted.logger import Logger

from ..core.context import Wait, cancel
from ..core.registry import Registry
from ..core.snapshot import Key, seal
from ..core.states import VMState
from ..core.vm import VM
from ..core.writing import writeCounters, writeVM
from ..interfaces import IConnection
from ..net.connecting import Connector
from ..net.listening import UNIXListener
from ..net.passed import inodeOf
from ..net.polling import Poller
from ..net.transport import StreamTransport
from .entries import MOST_STAGED, EntryForm, encoded
from .listeners import JoinedPods, ListeningForm, listeningForm
from .store import DescriptorStore

#: How the name of a journal begins under which the manager keeps it.
JOURNAL = "journal-"
#: How that of the pipe does by which commands go to agents.
STAGING = "staging-"
#: A journal is not written anew before it is so long, in bytes.
LEAST_REWRITTEN = 4 << 20

#: Seconds between two looks at how much the sessions hold.
HELD_INTERVAL = 0.25

#: Seconds until a failed journal is started again; each failure soon after doubles them.
MIN_RETRY = 1.0
MAX_RETRY = 60.0

_NOT_YET = (VMState.CONNECTING, VMState.WAITING)


@attrs.frozen
class _Pipe:
    """
    By way of which commands go to agents.

    @ivar name: under which the manager keeps it.
    """

    name: str
    reading: int
    writing: int


class Journal:
    """
    Writes the journal of one process.

    @ivar generation: the number of the file, which tells it from all before.
    """

    _log = Logger()

    def __init__(
        self,
        registry: Registry,
        connector: Connector,
        poller: Poller,
        store: DescriptorStore,
        generation: int,
    ) -> None:
        """
        @param generation: that of the last journal of the processes before.
        """
        self._registry = registry
        self._connector = connector
        self._poller = poller
        self._store = store
        self.generation = generation
        self._outdated = True
        self._file = -1
        self._size = self._live = 0
        self._listening: ListeningForm | None = None
        self._connections: dict[int, set[Key]] = {}
        self._held: dict[int, int] = {}
        self._rests: dict[Key, bytes] = {}
        self._counters = (False, 0)
        self._unkept: dict[Key, StreamTransport] = {}
        # In turn: an entry speaks of the one, while in the other is what has no entry yet.
        self._pipes: list[_Pipe] = []
        self._wait: Wait | None = None
        self._delay = MIN_RETRY
        self._since = -MAX_RETRY
        self._listener: UNIXListener | None = None
        self._pods: JoinedPods
        self._podForms: list[ListeningForm] = []

    @property
    def names(self) -> set[str]:
        """Under which names the manager keeps what is in use."""
        files = {JOURNAL + str(self.generation), *(pipe.name for pipe in self._pipes)}
        sockets = self._store.sockets
        return {*files, *(sockets[key] for key in self._keys & sockets.keys())}

    @property
    def _keys(self) -> set[Key]:
        keys = set().union(*self._connections.values())
        if self._listening is not None:
            keys.add(self._listening.key)
        keys.update(pod.key for pod in self._podForms)
        return keys

    def _pipe(self, name: str) -> _Pipe:
        made = _Pipe(name, *os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        self._store.discard(name)  # that of a process which died before it had a journal
        self._store.keep(name, [made.reading])
        return made

    def begin(self, listener: UNIXListener | None, pods: JoinedPods) -> None:
        """
        Write down everything, and from now on all that changes.

        @param listener: the client socket.
        @param pods: those that have joined.
        """
        self._listener, self._pods = listener, pods
        pods.whenChanged = self._podsChanged
        self._try(self._open)

    def _open(self) -> None:
        """Write down everything in a new file, and from now on all that changes."""
        listener, self._listening = self._listener, listeningForm(self._listener)
        if listener is not None and self._listening is not None:
            self._store.keepSocket(self._listening.key, listener.fileno())
        while len(self._pipes) < 2:
            self._pipes.append(self._pipe(f"{STAGING}{self.generation}-{len(self._pipes)}"))
        self._notePods()
        self._outdated = True
        self._rewrite()
        self._since = self._registry.context.clock.seconds()
        self._registry.context.whenChanged = self.changed
        self._poller.whenRest = self._restChanged
        self._wait = self._registry.context.later(HELD_INTERVAL, self._noteHeld)

    def _try(self, step: Callable[..., object], *args: object) -> bool:
        """
        Run a step that writes. If it fails, write nothing until the journal is started again.

        @return: whether it succeeded.
        """
        try:
            step(*args)
        except Exception:
            self._fail()
            return False
        return True

    def _fail(self) -> None:
        """
        Discard the journal, which is out of date now, and start it again later. Until then a crash
        ends all connections, and the manager keeps none of them.
        """
        registry, store = self._registry, self._store
        working = registry.context.whenChanged is not None
        registry.context.whenChanged = self._poller.whenRest = None
        soon = registry.context.clock.seconds() - self._since < MAX_RETRY
        self._delay = min(2 * self._delay, MAX_RETRY) if soon or not working else MIN_RETRY
        if working or self._wait is None:
            self._log.failure(
                "the journal cannot be written: a crash now ends all connections; trying again in"
                " {seconds:g} s",
                event="journal-failed",
                seconds=self._delay,
            )
        cancel(self._wait)
        self._wait = registry.context.later(self._delay, self._recover)
        for key in self._keys:
            store.discardSocket(key)
        for name in [*store.kept]:
            if name.startswith((JOURNAL, STAGING)):
                store.discard(name)
        for pipe in self._pipes:
            os.close(pipe.reading)
            os.close(pipe.writing)
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        for known in (self._pipes, self._connections, self._rests, self._held, self._unkept):
            known.clear()
        for vm in self._registry.allVMs:
            vm.agent.sendNow()

    def _recover(self) -> None:
        """Start the journal again."""
        if self._try(self._open):
            self._log.info("the journal is written again", event="journal-recovered")

    def _noteHeld(self) -> None:
        """What a VM's sessions hold is no change that is told: look from time to time."""
        self._wait = self._registry.context.later(HELD_INTERVAL, self._noteHeld)
        if self._registry.context.budget.used or self._held:
            before, self._held = self._held, {}
            for vm in self._registry.allVMs:
                held = sum(each.output.held + each.stdin.size for each in vm.processes.sessions)
                if held:
                    self._held[vm.serial] = held
                if held != before.get(vm.serial, 0):
                    self.changed([vm])
        for key, transport in list(self._unkept.items()):
            if transport.fileno() < 0 or self._store.keepSocket(key, transport.fileno()):
                del self._unkept[key]

    def renew(self) -> None:
        """Go on in a new file, by which a state is told that was written and is out of date."""
        self._outdated = True
        self.changed(())

    def _rewrite(self) -> None:
        """Begin a new file, in which nothing is that is out of date."""
        old, name, size = self._file, JOURNAL + str(self.generation), self._size
        outdated, self._outdated = self._outdated, False
        self._file = os.memfd_create("ccproxy-journal", os.MFD_CLOEXEC)
        self.generation += 1
        try:
            self._fill(old, name, size, outdated)
        except Exception:
            if old >= 0:
                os.close(old)
            raise

    def _fill(self, old: int, name: str, size: int, outdated: bool) -> None:
        """
        Write a new file.

        @param old: the file before, or -1. It is closed, or goes on.
        @param name: its name.
        @param size: its size in bytes.
        @param outdated: the old file must not go on.
        """
        os.fchmod(self._file, 0o600)
        self._size = 0
        self._write(seal(b""))
        self._entry(EntryForm(listening=self._listening, pods=self._podForms))
        self._entry(EntryForm(rests=self._rests))
        self._noteCounters()
        for vm in self._registry.allVMs:
            if vm.state not in _NOT_YET:
                # Nothing is sent that only a journal knows of which is not kept yet.
                self._vm(vm, send=False)
        self._live = self._size
        made = JOURNAL + str(self.generation)
        kept = self._store.keep(made, [self._file])
        if kept and (outdated or self._store.sent(made)):
            if old >= 0:
                self._store.discard(name)
                os.close(old)
        elif old < 0:
            raise OSError("the service manager does not take it")
        else:
            # The old one is good still, and longer than it might be.
            self._store.discard(made)
            os.close(self._file)
            self._file, self.generation, self._size = old, self.generation - 1, size
            self._live = size

    def _podsChanged(self) -> None:
        """A pod has joined, or has ended."""
        if self._file >= 0:
            self._try(self._notePods)

    def _notePods(self) -> None:
        before = {pod.key for pod in self._podForms}
        self._podForms = self._pods.forms()
        listeners = self._pods.listeners
        for pod in self._podForms:
            self._store.keepSocket(pod.key, listeners[pod.path].fileno())
        if self._file >= 0:
            self._entry(EntryForm(listening=self._listening, pods=self._podForms))
        for key in before - {pod.key for pod in self._podForms}:
            self._store.discardSocket(key)

    def _send(self, vm: VM, form: EntryForm) -> None:
        """
        Write an entry, and send the commands that it has for the agent: by way of a pipe, from
        which they go to the socket in one step that either happens or does not. What finds no room
        there follows when there is.
        """
        done = 0
        while (unsent := vm.agent.unsent) is not None:
            piece = unsent.contents[:MOST_STAGED]
            self._pipes.reverse()
            pipe = self._pipes[0]
            piece = piece[: os.write(pipe.writing, piece)]
            form.staged, form.stagedSize = pipe.name, len(piece)
            self._entry(form)
            sent, control, gone = 0, vm.control, False
            if isinstance(control, StreamTransport) and not control.broken:
                try:
                    sent = os.splice(
                        pipe.reading, control.fileno(), len(piece), flags=os.SPLICE_F_NONBLOCK
                    )
                except OSError as error:
                    gone = error.errno in (errno.EPIPE, errno.ECONNRESET)
                    if not gone and error.errno != errno.EAGAIN:
                        raise
            unsent.drop(sent)
            done += sent
            form = EntryForm(sent=(vm.serial, done))
            if sent < len(piece):
                # First said, then done: nobody knows what was in an empty pipe.
                self._entry(form)
                os.read(pipe.reading, len(piece) - sent)
                if gone:
                    vm.agent.sendNow()  # the transport notes that the peer has left
                elif isinstance(control, StreamTransport):
                    control.notifyRoom()
                return

    def changed(self, things: Iterable[VM | Registry]) -> None:
        """Write down what has changed."""
        if self._file >= 0:
            self._try(self._changed, things)

    def _changed(self, things: Iterable[VM | Registry]) -> None:
        for thing in things:
            if isinstance(thing, Registry):
                continue  # its counters are compared below
            if thing.state in _NOT_YET:
                thing.agent.sendNow()
            else:
                self._vm(thing)
        if self._outdated or self._size > max(LEAST_REWRITTEN, 4 * self._live):
            self._rewrite()
        elif self._counters != (self._registry.draining, self._registry.ignoredFrames):
            self._noteCounters()

    def _noteCounters(self) -> None:
        self._counters = self._registry.draining, self._registry.ignoredFrames
        self._entry(EntryForm(snapshot=writeCounters(self._registry)))

    def _restChanged(self, transport: StreamTransport, taken: int) -> None:
        """A transport keeps the beginning of a unit, or no longer, and is about to take input."""
        self._try(self._noteTaken, transport, taken)

    def _noteTaken(self, transport: StreamTransport, taken: int) -> None:
        key = inodeOf(transport.fileno())
        form = EntryForm(used={key: (transport.mark(), taken)})
        self._noteRest(form, key, transport.rest)
        self._entry(form)

    def _noteRest(self, form: EntryForm, key: Key, rest: bytes) -> None:
        if rest or key in self._rests:
            form.rests[key] = rest
        self._rests.pop(key, None)
        if rest:
            self._rests[key] = rest

    def _vm(self, vm: VM, send: bool = True) -> None:
        now: dict[Key, StreamTransport] = {}
        before = self._connections.pop(vm.serial, set())
        known = vm.state is not VMState.GONE or vm in self._registry.leaving
        if known or vm.processes.sessions:
            snapshot = writeVM(vm, keysInto(now))
            self._connections[vm.serial] = set(now)
            form = EntryForm(vm.serial, snapshot, self._connector.channelsOf(vm))
            handled = {each.connection: each.handled for each in snapshot.clients}
            handled.update((each.control, each.handled) for each in snapshot.vms)
            for key, transport in now.items():
                new = key not in before
                if new:
                    transport.kept = True
                    if not self._store.keepSocket(key, transport.fileno()):
                        self._unkept[key] = transport
                if new or key in handled:
                    size, rest = transport.used(handled.get(key, 0))
                    self._noteRest(form, key, rest)
                    if mark := transport.mark():
                        form.used[key] = mark, size
            if send and vm.agent.unsent is not None:
                self._send(vm, form)
            else:
                self._entry(form)
        else:
            self._entry(EntryForm(vm.serial))
        for key in before - now.keys():
            self._rests.pop(key, None)
            self._store.discardSocket(key)

    def _entry(self, form: EntryForm) -> None:
        self._write(encoded(form))

    def _write(self, data: bytes) -> None:
        # All or nothing of it counts for who reads it, so it need not be atomic.
        left = memoryview(data)
        while left:
            count = os.write(self._file, left)
            self._size += count
            left = left[count:]


def keysInto(found: dict[Key, StreamTransport]) -> Callable[[IConnection], Key]:
    """
    What names connections by their sockets' inodes.

    @param found: gets those that were named and are open.
    """

    def keyOf(connection: IConnection) -> Key:
        assert isinstance(connection, StreamTransport)
        key = inodeOf(connection.fileno())
        if key:
            found[key] = connection
        return key

    return keyOf
