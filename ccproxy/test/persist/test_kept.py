"""
What outlives the process: sockets that remember what of their input was used, the journal, the
supervisor's store, descriptors that come with bytes, and those that are passed at the start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import resource
import socket
import time
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, DeferredList, TimeoutError, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.config.settings import Settings
from ccproxy.core.resuming import Resumed
from ccproxy.core.snapshot import (
    BadSnapshot,
    OutletForm,
    Snapshot,
    VMForm,
    seal,
)
from ccproxy.core.states import VMState
from ccproxy.core.vm import VM
from ccproxy.core.writing import write
from ccproxy.ctl import supervise
from ccproxy.ctl.supervise import MOST_DELAY, STEADY, Store, Supervisor
from ccproxy.errors import CCProxyError
from ccproxy.net.notify import Notifier
from ccproxy.net.passed import FIRST, PREFIX, Passed, inodeOf, takePassed
from ccproxy.net.rights import MOST_HELD, Received, RightsSocket
from ccproxy.net.sockets import skipUsed
from ccproxy.persist import restart as _restart
from ccproxy.persist.entries import MOST_STAGED, EntryForm, encoded, readJournal
from ccproxy.persist.handover import STATE, Handover
from ccproxy.persist.journal import JOURNAL, Journal
from ccproxy.persist.outliving import waitingIn
from ccproxy.persist.restart import STOP_TIMEOUT, Restart
from ccproxy.persist.restarting import HANDED_OVER
from ccproxy.persist.state import HandoverForm
from ccproxy.persist.store import MOST_NAMES, DescriptorStore
from ccproxy.wire.codes import Command, ControlCode
from ccproxy.wire.payloads import RegisterVM

from ..memory import MemoryClient, World
from ..sockets import SocketCase, closeJournal

SO_PEEK_OFF = 42


class SkipTests(SocketCase):
    """What the next process does not use again."""

    def offered(self, transport: Any) -> tuple[socket.socket, Any]:
        """A socket that lives on, and what is noted in it now."""
        ours = socket.socket(fileno=os.dup(transport.fileno()))
        self.addCleanup(ours.close)
        return ours, lambda: ours.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)

    def died(self, before: bool, marked: bool = True) -> tuple[socket.socket, int]:
        """
        A socket whose process has died while it used the input.

        @param before: before it noted what it has used, or else after that, and before it took it.
        @param marked: a journal was written meanwhile.
        @return: our end, and the mark.
        """
        offsets: list[int] = []
        marks = [0]

        def use(data: memoryview) -> int:
            if marked:
                marks.append(transport.mark())
                self.assertEqual(transport.mark(), marks[-1])
                self.assertEqual(transport.used(2), (2, b""))
            offsets.append(noted())
            return 6

        _, transport, theirs = self.connected(use)
        ours, noted = self.offered(transport)
        transport.kept = True
        for _ in range(3):
            theirs.send(b"used..")
            self.turn()
            self.assertEqual(noted(), -1)
        self.assertEqual((transport.mark(), transport.used(2)), (0, (0, b"")))
        self.assertEqual(marks[-1] != marks[-2] if marked else marks, marked or [0])
        # The same once more, up to the moment of death.
        theirs.send(b"used..rest")
        self.turn()
        ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offsets[-1] if before else 4)
        return ours, marks[-1]

    def test_notNoted(self) -> None:
        """What was not noted is used again."""
        ours, _ = self.died(before=True, marked=False)
        self.assertEqual(skipUsed(ours), 0)

    def test_noted(self) -> None:
        """What was noted and not taken is skipped, whatever the journal says."""
        for marked in (False, True):
            ours, mark = self.died(before=False, marked=marked)
            self.assertEqual(skipUsed(ours, mark, 2), 4)
            self.assertEqual(ours.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF), -1)

    def test_journalled(self) -> None:
        """What the journal says was used is skipped if it speaks of the input at hand."""
        for other, skipped in ((0, 2), (1, 0)):
            ours, mark = self.died(before=True)
            self.assertEqual(skipUsed(ours, mark + other, 2), skipped)

    def test_rest(self) -> None:
        """
        Of input whose beginning is kept in memory, a journal can say at any moment what is in the
        socket still, and what was kept and not used.
        """
        told: list[Any] = []

        def use(data: memoryview) -> int:
            told.append([transport.used(size) for size in (0, 3, len(data))])
            return 0 if len(data) < 12 else 12

        def taking(transport: Any, taken: int) -> None:
            told.append((taken, transport.mark() == noted(), transport.rest))

        _, transport, theirs = self.connected(use)
        _, noted = self.offered(transport)
        transport.kept = True
        self.poller.whenRest = taking
        theirs.send(b"begun")
        self.turn()
        del told[:]
        self.assertEqual(transport.rest, b"")
        transport.restOverdue()
        self.turn()
        self.assertEqual(told, [[(0, b""), (3, b""), (5, b"")], (5, True, b"begun")])
        self.assertEqual(transport.used(3), (0, b"begun"))
        del told[:]
        theirs.send(b"and ended")
        self.turn()
        # 5 bytes were kept, 9 are in the socket; 12 are used, 7 of those from the socket.
        self.assertEqual(
            told[:2], [[(0, b"begun"), (0, b"un"), (9, b"")], (7, True, b"")],
        )  # fmt: skip
        self.assertEqual(noted(), -1)

    def test_taken(self) -> None:
        """What has been taken is not skipped twice: the kernel lowers the note itself."""
        ours, theirs = self.pair()
        theirs.send(b"0123456789")
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 6)
        self.assertEqual(ours.recv(6), b"012345")
        self.assertEqual(skipUsed(ours), 0)
        self.assertEqual(ours.recv(10), b"6789")


class JournalTests(SynchronousTestCase):
    """Reading a journal."""

    def entry(self, serial: int, waiting: bytes = b"", staged: str = "") -> EntryForm:
        """An entry about a VM that has a command for its agent."""
        request = RegisterVM("vm", "/c", "/i")
        out = OutletForm(blocks=[(waiting, False)] if waiting else [])
        vm = VMForm(request=request, serial=serial, state=VMState.REGISTERED, controlOut=out)
        return EntryForm(serial, Snapshot(vms=[vm]), staged=staged)

    def read(self, *entries: EntryForm, cut: int = 0, **staged: bytes) -> Any:
        """What a journal with these entries says."""
        data = seal(b"") + b"".join(map(encoded, entries))
        return readJournal(data[: len(data) - cut], staged)

    def waiting(self, found: Any, serial: int) -> bytes:
        """The commands that are to be sent to a VM's agent."""
        blocks = found.vms[serial].snapshot.vms[0].controlOut.blocks
        return b"".join(block for block, _ in blocks)

    def test_lastWord(self) -> None:
        """The last entry of each VM counts, and a VM that is gone is gone."""
        found = self.read(self.entry(1), self.entry(2, b"old"), self.entry(2, b"new"), EntryForm(1))
        self.assertEqual((list(found.vms), self.waiting(found, 2)), ([2], b"new"))

    def test_torn(self) -> None:
        """An entry that was not written whole was not written."""
        for cut in range(1, len(encoded(self.entry(2, b"new"))) + 1):
            found = self.read(self.entry(2, b"old"), self.entry(2, b"new"), cut=cut)
            self.assertEqual(self.waiting(found, 2), b"old")

    def test_staged(self) -> None:
        """A command that is still in the pipe is sent, any other that was there has been."""
        entries = self.entry(1, b"one", "a"), self.entry(2, b"two", "b")
        # In the first pipe is the next command, perhaps the same: nothing was written of it yet.
        for next in (b"", b"one", b"two"):
            found = self.read(*entries, a=next, b=b"two")
            self.assertEqual((self.waiting(found, 1), self.waiting(found, 2)), (b"", b"two"))
            found = self.read(*entries, a=next, b=b"")
            self.assertEqual((self.waiting(found, 1), self.waiting(found, 2)), (b"", b""))

    def test_sentInParts(self) -> None:
        """Of commands that were sent in parts, what was not sent is known."""
        long = bytes(range(250)) * 400
        first, rest = long[:MOST_STAGED], long[MOST_STAGED:]
        second = rest[:MOST_STAGED]
        entries = [self.entry(1, long, "a"), EntryForm(sent=(1, len(first)), staged="b")]
        for count, staged, waiting in [
            (1, first, long),
            (1, first[100:], long[100:]),
            (1, b"", rest),
            (2, second, rest),
            (2, second[7:], rest[7:]),
            (2, b"", rest[MOST_STAGED:]),
        ]:
            found = self.read(*entries[:count], cut=0, **{"ab"[count - 1]: staged})
            self.assertEqual(self.waiting(found, 1), waiting)
        # The agent had no room for the rest of it, which is about to be taken from the pipe.
        entries.append(EntryForm(sent=(1, len(first) + 10)))
        self.assertEqual(self.waiting(self.read(*entries, b=second[10:]), 1), rest[10:])
        entries += [self.entry(1, b"next", "a"), EntryForm(sent=(1, 4))]
        self.assertEqual(self.waiting(self.read(*entries), 1), b"")

    def test_stagedStays(self) -> None:
        """What is in a pipe is there for another process, too."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        os.write(writing, b"command")
        os.close(writing)
        for _ in range(2):
            self.assertEqual(waitingIn(reading), b"command")
        os.read(reading, 100)
        self.assertEqual(waitingIn(reading), b"")

    def test_order(self) -> None:
        """
        Who could not be told again is told nothing before it is written down: neither a runtime nor
        who becomes a shim. Then it is written down that the shim has been told.
        """
        world = World()
        told: list[bool] = []
        watched: list[MemoryClient] = []

        def changed(vms: set[VM]) -> None:
            told.append(bool(watched[0].connection.written))
            for vm in vms:
                vm.agent.sendNow()

        world.registry.context.whenChanged = changed
        watched[:] = [world.client()]
        _, runtime, (token,) = world.register(streams=1, client=watched[0])
        self.assertEqual((told[-1], any(told)), (False, False))
        runtime.call(Command.ATTACH_VM, {"containerId": "vm", "numIOStreams": 1})
        self.assertFalse(any(told))
        told.clear()
        watched[:] = [world.client()]
        watched[0].call(Command.CONNECT_SHIM, {"token": token})
        self.assertEqual(told, [False, True])

    def test_closed(self) -> None:
        """A VM is written down once more when its last channel has closed."""
        world = World()
        agent, runtime, _ = world.register()
        runtime.call(Command.UNREGISTER_VM, {"containerId": "vm"})
        seen: list[bool] = []
        world.registry.context.whenChanged = lambda vms: seen.extend(vm.io is None for vm in vms)
        agent.control.end()
        self.assertEqual(seen, [False])
        agent.io.end()
        self.assertEqual(seen, [False, True])

    def test_rests(self) -> None:
        """What was taken from a socket and not used is known until it is used."""
        found = self.read(EntryForm(rests={5: b"half", 6: b"a"}), EntryForm(rests={6: b""}))
        self.assertEqual(found.rests[5], b"half")
        self.assertFalse(found.rests.get(6))

    def test_pipesInTurn(self) -> None:
        """A command goes into a pipe of which the last entry does not speak."""
        around: Any = SimpleNamespace(context=SimpleNamespace())
        store = DescriptorStore(Notifier({}, Clock()), {})
        journal = Journal(around, around, around, store, 0)
        self.addCleanup(closeJournal, journal)
        journal._pipes = [journal._pipe(f"staging-0-{nth}") for nth in range(2)]
        written: list[EntryForm] = []
        self.patch(journal, "_entry", lambda form: written.append(attrs.evolve(form)))
        unsent = SimpleNamespace(contents=b"ping", drop=lambda taken: None)
        for serial in (1, 2, 3):
            agent = SimpleNamespace(unsent=unsent)
            vm: Any = SimpleNamespace(serial=serial, control=None, agent=agent)
            journal._send(vm, EntryForm(serial))
        first, second, third = (form.staged for form in written if form.staged)
        self.assertEqual((first, {first, second}), (third, {"staging-0-0", "staging-0-1"}))

    def test_busyManager(self) -> None:
        """What the manager could not be told is told later; until then the old file is good."""
        world = World()
        around: Any = SimpleNamespace(whenRest=None, whenChanged=None, forms=list, listeners={})
        store = DescriptorStore(Notifier({}, world.clock), {})
        takes = [True]
        store.notifier = SimpleNamespace(  # type: ignore[assignment]
            present=True, flush=lambda: takes[0] and store._send(), offer=lambda *_: True,
            clock=world.clock,
        )  # fmt: skip
        journal = Journal(world.registry, around, around, store, 0)
        self.addCleanup(closeJournal, journal)
        journal.begin(None, around)
        first, takes[0] = os.fstat(journal._file).st_ino, False
        journal._rewrite()
        store.capacity = store.size
        journal._unkept[5] = SimpleNamespace(fileno=lambda: 0)  # type: ignore[assignment]
        journal._unkept[6] = SimpleNamespace(fileno=lambda: -1)  # type: ignore[assignment]
        world.clock.advance(1)
        self.assertEqual(os.fstat(journal._file).st_ino, first)
        self.assertEqual((journal.generation, list(journal._unkept)), (1, [5]))
        self.assertIn(f"{JOURNAL}1", store.kept)
        takes[0], store.capacity = True, None
        world.clock.advance(1)
        self.assertEqual((list(journal._unkept), list(store.sockets)), ([], [5]))
        journal.renew()
        self.assertIn(f"{JOURNAL}2", store.kept)
        self.assertNotIn(f"{JOURNAL}1", store.kept)

    def test_cannotWrite(self) -> None:
        """A journal that cannot be written costs nobody anything but the journal."""
        world = World()
        agent, runtime, _ = world.register()
        around: Any = SimpleNamespace(
            whenRest=None, whenChanged=None, forms=list, listeners={}, channelsOf=lambda vm: None
        )
        store = DescriptorStore(Notifier({}, world.clock), {})
        # Connections in memory have no descriptors, which a journal is all about.
        journal = Journal(world.registry, around, around, store, 0)
        self.addCleanup(closeJournal, journal)
        journal.begin(None, around)
        self.assertEqual(len(self.flushLoggedErrors(AssertionError)), 1)
        self.assertIs(world.registry.context.whenChanged, None)
        runtime.hyper("ping")
        self.assertEqual(agent.command().number, ControlCode.PING)
        agent.ack()
        self.assertFalse(runtime.frame().error)

    def test_strange(self) -> None:
        """What is no journal is refused."""
        self.assertRaises(BadSnapshot, readJournal, b"", b"")
        self.assertRaises(BadSnapshot, readJournal, b"x" * 100, b"")


class RestartTests(SynchronousTestCase):
    """Handing over when that goes wrong."""

    def handover(self, world: World, store: DescriptorStore, around: Any) -> Handover:
        """
        A handover of what a world has.

        @param around: stands for the connector, the poller and the pods.
        """
        around.registry, around.poller = world.registry, around
        return Handover(around, store, around)

    def test_outdated(self) -> None:
        """A state counts only until the process that wrote it, or took it up, has gone on."""
        world = World()
        around: Any = SimpleNamespace()
        form = HandoverForm("0.1.0", [Snapshot()], generation=3)
        for journals, crashed in (((), False), ((3,), False), ((3, 4), True)):
            store = DescriptorStore(Notifier({}, world.clock), {})
            handover = self.handover(world, store, around)
            contents = {STATE: seal(msgspec.msgpack.encode(form))}
            contents.update((f"{JOURNAL}{number}", seal(b"")) for number in journals)
            files = []
            for name, data in contents.items():
                files.append(Passed(os.memfd_create(name), name, 0))
                os.write(files[-1].descriptor, data)
            self.assertEqual(len(handover._read(files).snapshots), not crashed)  # type: ignore[union-attr]
            self.assertIs(handover._crashed, crashed)

    def test_onlyTheTrial(self) -> None:
        """A state that fails after a good trial is refused: the start goes on, and so do others."""
        world = World()
        world.register(streams=1)
        around: Any = SimpleNamespace(adopt=None, whenChanged=None)
        store = DescriptorStore(Notifier({}, world.clock), {})
        store.notifier = SimpleNamespace(discard=len, flush=lambda: True)  # type: ignore[assignment]
        store.passed(STATE, 0)
        handover = self.handover(world, store, around)
        state = HandoverForm("0.1.0", [write(world.registry, world.keyOf)])
        world.registry.forgetAll()
        handover._form = handover._salvaged(state)
        self.assertEqual(len(handover._form.snapshots[0].vms), 1)
        handover.resume(None, keep=False)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertEqual((world.registry.vms, world.registry.tokens), ({}, {}))
        self.assertIn(STATE, store._removals)

    def test_unreadable(self) -> None:
        """A VM whose entry has another form is dropped; what a pipe has for another one counts."""
        good, bad = (JournalTests().entry(serial, b"two", "a") for serial in (1, 2))
        bad.snapshot = Snapshot(serial=-1)
        data = seal(b"") + encoded(bad) + encoded(good)
        found = readJournal(data, {"a": b"two"})
        self.assertEqual((list(found.vms), list(found.damaged)), ([1], [2]))
        self.assertEqual(JournalTests().waiting(found, 1), b"two")

    def test_early(self) -> None:
        """A process that died before it had a journal has left pipes, and nothing to take up."""
        world = World()
        around: Any = SimpleNamespace()
        store = DescriptorStore(Notifier({}, world.clock), {})
        handover = self.handover(world, store, around)
        reading, writing = os.pipe()
        os.close(writing)
        self.assertIs(handover._read([Passed(reading, "staging-0-0", 0)]), None)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_renewed(self) -> None:
        """A handover that has failed leaves a journal by which its state is out of date."""
        world = World()
        around: Any = SimpleNamespace(
            whenRest=None, whenChanged=None, forms=list, listeners={}, written=list, consoles=list
        )
        store = DescriptorStore(Notifier({}, world.clock), {})
        store.notifier = SimpleNamespace(  # type: ignore[assignment]
            present=True, flush=store._send, offer=lambda *_: True, clock=world.clock
        )
        self.patch(store, "settle", lambda timeout: False)
        handover = self.handover(world, store, around)
        handover.resume(None, keep=True)
        self.assertIn(f"{JOURNAL}1", store.kept)
        self.assertFalse(handover.handOver(None))
        self.assertIn(f"{JOURNAL}2", store.kept)
        self.assertFalse(store.kept.keys() & {STATE, f"{JOURNAL}1"})

    def test_keptFirst(self) -> None:
        """
        No client is served before the manager has this process's journal: if the process died
        earlier, the state of the process before would count.
        """
        world = World()
        around: Any = SimpleNamespace(
            whenRest=None, forms=list, listeners={}, adopt=lambda *_: None
        )
        store = DescriptorStore(Notifier({}, world.clock), {})
        happened: list[str] = []
        store.notifier = SimpleNamespace(  # type: ignore[assignment]
            present=True, flush=store._send, clock=world.clock,
            offer=lambda text, *_: not happened.append(text.rpartition("=")[2]),  # type: ignore[func-returns-value]
        )  # fmt: skip
        self.patch(store, "settle", lambda timeout: happened.append("settled"))
        self.patch(Resumed, "begin", lambda resumed: happened.append("begun"))
        handover = self.handover(world, store, around)
        handover._form = HandoverForm("0.1.0", [Snapshot()])
        handover.resume(None, keep=True)
        self.assertEqual(happened[-3:], [f"/{JOURNAL}1", "settled", "begun"])

    def test_joined(self) -> None:
        """A second restart joins the one under way. If one of them insists, failing is the end."""
        for insists in ((False, True), (True, False)):
            stopping: Deferred[None] = Deferred()
            restart, _, happened = self.restart(lambda: stopping)  # noqa: B023
            for insist in insists:
                self.assertTrue(restart.begin(insist))
            stopping.callback(None)
            self.assertEqual(happened, ["tried", "stopped"])
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_attempt(self) -> None:
        """SIGUSR2 is no restart where the next daemon could not start, and never the end."""

        def unreadable() -> Any:
            raise CCProxyError("the configuration makes no sense")

        restart, _, happened = self.restart(lambda: None)
        restart._read = unreadable
        self.assertFalse(restart.attempt())
        self.assertEqual(happened, [])
        restart._read = Settings
        self.assertTrue(restart.attempt())
        self.assertEqual(happened, ["tried", "started"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_advice(self) -> None:
        """A daemon that cannot restart names what it lacks, and nothing that it has."""
        for wanted, managed, expected in (
            (False, False, "start .* ccproxyctl supervise, or .* unit with --keep-descriptors"),
            (False, True, "start the daemon with --keep-descriptors"),
            (True, False, "--keep-descriptors needs .*; start .* ccproxyctl supervise"),
            (True, True, ""),
        ):
            settings: Any = SimpleNamespace(keepDescriptors=wanted)
            around: Any = SimpleNamespace(present=managed, poller=SimpleNamespace(reactor=None))
            parts = around, around, around, around, around, bool
            advice = Restart(settings, Settings, {}, *parts).advice
            self.assertRegex(advice, f"^{expected}$")

    def restart(self, stopEmbedded: Callable[[], object]) -> tuple[Restart, Any, list[str]]:
        """
        A restart that is wanted, its reactor, and what has happened, in order.

        @param stopEmbedded: stops the embedded VMs.
        """
        happened: list[str] = []
        reactor: Any = Clock()
        around: Any = SimpleNamespace(
            poller=SimpleNamespace(reactor=reactor, deadlines=reactor),
            present=True,
            listener=None,
            stopService=stopEmbedded,
            startService=lambda: happened.append("started"),
        )
        settings: Any = SimpleNamespace(keepDescriptors=True)
        reactor.stop = lambda: happened.append("stopped")
        parts = around, around, around, around, around, bool
        restart = Restart(settings, lambda: settings, {}, *parts)
        self.patch(_restart, "RESERVE", 0)

        def handOver(listener: object) -> bool:
            happened.append("tried")
            raise ValueError("handing over has failed")

        restart._handover = SimpleNamespace(handOver=handOver)  # type: ignore[assignment]
        return restart, reactor, happened

    def test_failure(self) -> None:
        """A handover that fails in any way prevents no later restart and no later stop."""
        restart, _, happened = self.restart(lambda: None)
        for insist in (False, True):
            self.assertTrue(restart.begin(insist))
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(happened, ["tried", "started", "tried", "stopped"])

    def test_embeddedFails(self) -> None:
        """Embedded VMs that cannot be stopped do not keep the daemon from handing over."""

        def stop() -> None:
            raise OSError("the stop has failed")

        for stopping in (stop, lambda: fail(OSError("the stop has failed"))):
            restart, _, happened = self.restart(stopping)
            for _ in range(2):
                restart.begin()
                self.assertEqual(len(self.flushLoggedErrors(OSError, ValueError)), 2)
            self.assertEqual(happened, ["tried", "stopped"] * 2)

    def test_embeddedHangs(self) -> None:
        """Nor do those whose stop takes for ever, longer than until its deadline."""
        stopping: list[Callable[[], object]] = [Deferred]
        stopping.append(lambda: DeferredList([Deferred()], consumeErrors=True))
        for stop in stopping:
            restart, clock, happened = self.restart(stop)
            for nth in range(2):
                restart.begin()
                restart.begin()
                clock.advance(STOP_TIMEOUT - 1)
                self.assertEqual(happened, ["tried", "stopped"] * nth)
                clock.advance(1)
                self.assertEqual(happened, ["tried", "stopped"] * (nth + 1))
                self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
            self.flushLoggedErrors(TimeoutError)


class StoreTests(SynchronousTestCase):
    """What a supervisor keeps."""

    def descriptor(self) -> int:
        """Something to keep."""
        reading, writing = os.pipe()
        os.close(writing)
        return reading

    def test_names(self) -> None:
        """No more is kept than can be passed: the names have to go into one variable."""
        store = DescriptorStore(Notifier({}, Clock()), {})
        store.notifier = SimpleNamespace(  # type: ignore[assignment]
            present=True, flush=store._send, offer=lambda *_: True, clock=Clock()
        )
        for nth in range(MOST_NAMES // len("/connection-12345678:")):
            store.passed(f"connection-{nth:08}", nth)
        self.assertFalse(store.keep("connection-99999999", [0]))
        store.discard("connection-00000000")
        self.assertTrue(store.keep("connection-99999999", [0]))

    def test_same(self) -> None:
        """The same thing is kept once, and those that do not fit are counted."""
        store, first = Store(2), self.descriptor()
        again, other, third = os.dup(first), self.descriptor(), self.descriptor()
        self.assertEqual(store.add("a", [first, again, other]), 0)
        self.assertEqual(store.add("a", [third]), 1)
        self.assertEqual([name for name, _ in store.kept], ["a", "a"])
        for closed in (again, third):
            self.assertRaises(OSError, os.fstat, closed)
        store.remove("b")
        self.assertEqual(len(store.kept), 2)
        store.remove("a")
        self.assertRaises(OSError, os.fstat, first)

    def test_end(self) -> None:
        """At the end, who is at the other ends learns it, though others have the sockets too."""
        store = Store(2)
        ours, theirs = socket.socketpair()
        with theirs, socket.socket(fileno=os.dup(ours.fileno())):
            store.add("a", [ours.detach()])
            store.end()
            theirs.settimeout(5)
            self.assertEqual(theirs.recv(1), b"")


class ArrangeTests(SynchronousTestCase):
    """How a supervisor moves descriptors to where the daemon expects them."""

    def test_anyOrder(self) -> None:
        """Whatever their numbers are, they end up in order, and inheritable."""
        chance = random.Random(1)
        for _ in range(50):
            count = chance.randrange(1, 12)
            pid = os.fork()
            if not pid:
                status = 1
                with contextlib.suppress(BaseException):
                    status = self.misplaced(chance.sample(range(FIRST, FIRST + 2 * count), count))
                os._exit(status)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def misplaced(self, numbers: list[int]) -> int:
        """How many of such descriptors are not where they should be; in a process of its own."""
        os.closerange(FIRST, 100)
        above = [fcntl.fcntl(os.memfd_create(str(n)), fcntl.F_DUPFD, 100) for n in numbers]
        names = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in above]
        os.closerange(FIRST, 100)
        for made, number in zip(above, numbers, strict=True):
            os.dup2(made, number, inheritable=False)
        os.closerange(100, 200)
        # One more than there are, beside stdin, stdout and stderr.
        limit = max(*numbers, FIRST + len(numbers)) + 2
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        supervise.arrange(numbers)
        return sum(
            os.readlink(f"/proc/self/fd/{FIRST + nth}") != name
            or not os.get_inheritable(FIRST + nth)
            for nth, name in enumerate(names)
        )


class DelayTests(SynchronousTestCase):
    """When a supervisor starts the next daemon."""

    def test_delays(self) -> None:
        """Ever later, but soon after one that has served: its agents have no reader meanwhile."""
        supervisor: Any = Supervisor(["daemon"])
        said: list[str] = []
        self.patch(supervise, "_say", said.append)
        supervisor._started, supervisor._ready = time.monotonic(), True
        self.assertEqual(supervisor._delay(HANDED_OVER), 0)
        delays = [supervisor._delay(-9) for _ in range(9)]
        self.assertEqual((delays[0], delays[-1]), (0, MOST_DELAY))
        self.assertEqual(delays, sorted(delays))
        self.assertIn("was killed by signal 9", said[-1])
        supervisor._ready = False
        self.assertGreater(supervisor._delay(1), MOST_DELAY)
        supervisor._started, supervisor._ready = time.monotonic() - STEADY, True
        self.assertEqual(supervisor._delay(-11), 0)


class PassedTests(SynchronousTestCase):
    """What is passed at the start."""

    def test_others(self) -> None:
        """Those of a unit are left to who asks next; those of another process are none of ours."""
        environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": f"{PREFIX}state"}
        self.assertEqual(takePassed(environment), [])
        self.assertEqual(len(environment), 3)
        environment = {
            "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x.socket",
        }  # fmt: skip
        self.assertEqual(takePassed(environment), [])
        self.assertEqual(environment["LISTEN_FDS"], "1")


class RightsTests(SynchronousTestCase):
    """Descriptors that come with bytes."""

    def test_looked(self) -> None:
        """They come when the bytes are looked at, once however often that is."""
        received = Received()
        self.addCleanup(received.close)
        plain, theirs = socket.socketpair()
        with theirs, RightsSocket.make(plain, received) as ours:
            sent, other = socket.socketpair()
            inode = inodeOf(sent.fileno())
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [sent.fileno()]))
            theirs.sendmsg([b"hello"], [rights])
            sent.close()
            buffer = bytearray(10)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                self.assertEqual(ours.recv_into(buffer, 0, socket.MSG_PEEK), 5)
            self.assertEqual(len(os.listdir("/proc/self/fd")), before + 1)
            self.assertEqual(ours.recv_into(buffer), 5)
            taken = received.take(inode)
            assert taken is not None
            with other, socket.socket(fileno=taken) as came:
                came.send(b"x")
                self.assertEqual(other.recv(1), b"x")
            self.assertIs(received.take(inode), None)

    def test_bounded(self) -> None:
        """Nobody fills the daemon with descriptors."""
        received = Received()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3 * MOST_HELD):
            reading, writing = os.pipe()
            os.close(writing)
            received.add(reading)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + MOST_HELD)
        received.close()
        with contextlib.suppress(OSError):
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)
