"""
L{ccproxy.persist.journal}: a journal that a process has left when it died, and one that cannot be
written.
"""

from __future__ import annotations

import errno
import os
import zlib
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.channels import ControlSink, IOSink
from ccproxy.core.registry import Registry
from ccproxy.core.snapshot import HEADER, VERSION, BadSnapshot, Snapshot, VMForm, seal
from ccproxy.core.states import VMState
from ccproxy.net.notify import Notifier
from ccproxy.net.ordinary import attach
from ccproxy.net.protocols import ClientProtocol, ControlChannel, IOChannel
from ccproxy.persist import journal as _journal
from ccproxy.persist.entries import ENTRY, EntryForm, encoded, readJournal
from ccproxy.persist.journal import MAX_RETRY, MIN_RETRY, Journal
from ccproxy.persist.store import DescriptorStore
from ccproxy.wire.codes import Command, ControlCode, Dialect
from ccproxy.wire.frames import FrameDecoder
from ccproxy.wire.messages import encodeControl
from ccproxy.wire.payloads import RegisterVM

from ..memory import World, command, registration
from ..sockets import SocketCase, closeJournal

_BEGINNING = seal(b"")


def entry(serial: int, name: str) -> EntryForm:
    """An entry about a VM of that name."""
    request = RegisterVM(name, "/c", "/i")
    vm = VMForm(request=request, serial=serial, state=VMState.REGISTERED, dialect=Dialect.CC)
    return EntryForm(serial, Snapshot(vms=[vm]))


def read(data: bytes) -> dict[int, str]:
    """The names of the VMs of a journal, by their serials."""
    vms = readJournal(data, {}).vms
    return {
        serial: form.snapshot.vms[0].request.containerId
        for serial, form in vms.items()
        if form.snapshot is not None
    }


#: Two VMs, one that is written twice, and one that is gone at the end.
ENTRIES = [entry(1, "one"), entry(2, "two"), entry(1, "one again"), EntryForm(2)]
PIECES = [encoded(form) for form in ENTRIES]
JOURNAL = _BEGINNING + b"".join(PIECES)
#: Where each entry ends, and what is known then.
ENDS = list(accumulate(map(len, PIECES), initial=len(_BEGINNING)))
KNOWN = [{}, {1: "one"}, {1: "one", 2: "two"}, {1: "one again", 2: "two"}, {1: "one again"}]


class DamageTests(SynchronousTestCase):
    """Journals that are not whole."""

    def test_whole(self) -> None:
        """What was written is read, up to each entry."""
        self.assertEqual([read(JOURNAL[:end]) for end in ENDS], KNOWN)

    def test_empty(self) -> None:
        """One with no entry knows nothing; one without its beginning is none."""
        self.assertEqual(read(_BEGINNING), {})
        for length in range(len(_BEGINNING)):
            self.assertRaises(BadSnapshot, read, _BEGINNING[:length])

    def test_cut(self) -> None:
        """An entry of which the end is missing does not count; those before do."""
        for length in range(ENDS[1], ENDS[2]):
            self.assertEqual(read(JOURNAL[:length]), KNOWN[1])

    def test_damaged(self) -> None:
        """Reading ends at an entry that is damaged, also where its form is still right."""
        at = JOURNAL.index(b"two")
        self.assertEqual(read(JOURNAL[:at] + b"too" + JOURNAL[at + 3 :]), KNOWN[1])

    def test_garbage(self) -> None:
        """What stands behind the last entry is nobody's business."""
        for garbage in (b"\0" * 7, b"\xff" * 100, b"x", PIECES[0][: ENTRY.size + 5]):
            self.assertEqual(read(JOURNAL + garbage), KNOWN[-1])

    def test_otherForm(self) -> None:
        """An entry that was written whole, and makes no sense, is refused."""
        body = b"\xa3new"
        strange = ENTRY.pack(len(body), zlib.crc32(body)) + body
        error = self.assertRaises(BadSnapshot, read, JOURNAL + strange)
        self.assertIn("the journal has another form", str(error))

    def test_otherVersion(self) -> None:
        """A journal of a version that is too new is refused, and says which can read it."""
        header = list(HEADER.unpack_from(_BEGINNING))
        header[1:3] = VERSION + 2, VERSION + 1
        error = self.assertRaises(BadSnapshot, read, HEADER.pack(*header) + JOURNAL[HEADER.size :])
        self.assertIn(f"version {VERSION + 2}, which versions from {VERSION + 1} on", str(error))
        self.assertIn(f"this is version {VERSION}", str(error))

    @given(
        st.integers(0, len(JOURNAL)), st.integers(0, len(JOURNAL) - 1), st.integers(0, 255)
    )
    @example(len(JOURNAL), ENDS[1], 255)  # a length
    @example(len(JOURNAL), ENDS[1] + 4, 255)  # a checksum
    def test_anything(self, length: int, at: int, flip: int) -> None:
        """However a journal is cut, and whichever byte is wrong: no VM is invented."""
        data = bytearray(JOURNAL)
        data[at] ^= flip
        whole = sum(end <= min(length, at if flip else length) for end in ENDS)
        try:
            known = read(bytes(data[:length]))
        except BadSnapshot:
            self.assertEqual(whole, 0)
        else:
            # The versions at its beginning may be wrong and still be such as can be read.
            if 8 <= at < len(_BEGINNING):
                whole = sum(end <= length for end in ENDS)
            self.assertEqual(known, KNOWN[whole - 1])


class FaultTests(SocketCase):
    """If a system call fails, clients and agents go on and the journal starts again."""

    def setUp(self) -> None:
        super().setUp()
        self.world = World()
        registry = self.registry = self.world.registry
        around: Any = SimpleNamespace(
            forms=list, listeners={}, channelsOf=lambda vm: None, abandon=lambda vm: None
        )
        self.pods = around
        self.store = DescriptorStore(Notifier({}, self.world.clock), {})
        self.store.notifier = SimpleNamespace(  # type: ignore[assignment]
            present=True, flush=self.store._send, offer=lambda *_: True, clock=self.world.clock
        )
        self.journal = Journal(registry, around, self.poller, self.store, 0)
        self.addCleanup(closeJournal, self.journal)
        self.journal.begin(None, around)
        self.client, client = self.pair()
        attach(self.poller, client, "the client", ClientProtocol(registry))

    def agree(self) -> None:
        """Register a VM, and have a command carried out, with an answer that comes in two parts."""
        control, io = ControlChannel(self.registry), IOChannel(self.registry)
        (ours, agent), (ourIO, _) = self.pair(), self.pair()
        attach(self.poller, ours, "control", control)
        attach(self.poller, ourIO, "I/O", io)
        self.client.send(command(Command.REGISTER_VM, registration()))
        self.turn()
        vm = self.world.connector.wanted.pop()
        vm.connected(control.connection, io.connection)
        control.begin(ControlSink(vm))
        io.begin(IOSink(vm))
        agent.send(encodeControl(ControlCode.READY))
        self.turn(2)
        self.client.send(command(Command.HYPER, {"hyperName": "ping", "data": "x" * 50_000}))
        asked = b""
        while len(asked) < 50_010:
            self.turn(2)
            asked += agent.recv(8192)
        self.assertEqual(asked, encodeControl(ControlCode.PING, b'"' + b"x" * 50_000 + b'"'))
        answer = encodeControl(ControlCode.ACK, b"pong")
        agent.send(answer[:5])
        self.turn()
        self.reactor.advance(1)  # the first part is kept, and noted
        self.turn()
        self.pods.whenChanged()
        agent.send(answer[5:])
        self.turn(2)
        decoder = FrameDecoder()
        decoder.feed(self.client.recv(65536))
        frames = list(iter(decoder.next, None))
        self.assertEqual([(frame.error, frame.payload) for frame in frames[1:]], [(False, b"pong")])
        self.assertFalse(frames[0].error or vm.control is None)

    def written(self) -> list[str]:
        """The VMs of the journal that the manager keeps, if it keeps one."""
        if f"{_journal.JOURNAL}{self.journal.generation}" not in self.store.kept:
            return []
        size = os.fstat(self.journal._file).st_size
        return [*read(os.pread(self.journal._file, size, 0)).values()]

    def events(self) -> list[str]:
        """Log events about the journal."""
        return [e["event"] for e in self.logged if str(e.get("event")).startswith("journal-")]

    def watch(self) -> None:
        """Keep what the journal logs."""
        self.logged: list[dict[str, Any]] = []
        self.patch(Journal, "_log", Logger(observer=self.logged.append))  # type: ignore[arg-type]

    def test_shortWrites(self) -> None:
        """A pipe and a file may take less than they are given."""
        write = os.write
        self.watch()
        self.patch(os, "write", lambda fd, data: write(fd, data[:4096]))
        self.agree()
        self.assertEqual((self.written(), self.events()), (["vm"], []))

    def test_writeFails(self) -> None:
        """Whichever write fails, the daemon goes on and the journal starts again."""
        for at in range(1000):
            write, calls = os.write, [0]

            def fails(fd: int, data: bytes, at: int = at) -> int:
                calls[0] += 1  # noqa: B023
                if calls[0] - 1 == at:  # noqa: B023
                    raise OSError(errno.ENOSPC, "there is no room")
                return write(fd, data)  # noqa: B023

            self.setUp()
            self.watch()
            self.patch(os, "write", fails)
            self.agree()
            os.write = write
            if calls[0] <= at:
                self.assertGreater(at, 5)
                break
            self.assertEqual(self.events(), ["journal-failed"])
            self.assertEqual(self.written(), [])
            self.world.clock.advance(2 * MIN_RETRY)
            self.assertEqual(self.events(), ["journal-failed", "journal-recovered"])
            self.assertEqual(self.written(), ["vm"])

    def test_failsForLong(self) -> None:
        """It is tried again ever more seldom, and not logged again."""
        self.watch()
        write, calls = os.write, [0]

        def fails(fd: int, data: bytes) -> int:
            calls[0] += 1
            raise OSError(errno.EFBIG, "the file is too long")

        self.patch(os, "write", fails)
        self.agree()
        for _ in range(600):
            self.world.clock.advance(1)
        self.assertLess(calls[0], 20)
        os.write = write
        self.assertEqual((self.events(), self.store.size), (["journal-failed"], 0))
        for _ in range(int(MAX_RETRY)):
            self.world.clock.advance(1)
        self.assertEqual(self.events(), ["journal-failed", "journal-recovered"])
        self.assertEqual(self.written(), ["vm"])

    def test_spliceFails(self) -> None:
        """A splice that fails for another reason than room is such a failure; the command goes."""
        self.watch()

        def fails(*_: object, **__: object) -> int:
            raise OSError(errno.EINVAL, "invalid argument")

        splice = os.splice
        self.patch(os, "splice", fails)
        self.agree()
        os.splice = splice
        self.world.clock.advance(2 * MIN_RETRY)
        self.assertEqual(self.events(), ["journal-failed", "journal-recovered"])
        self.assertEqual(self.written(), ["vm"])

    def test_heldForgotten(self) -> None:
        """The journal forgets the held bytes of a VM that is gone."""
        session = SimpleNamespace(output=SimpleNamespace(held=5), stdin=SimpleNamespace(size=0))
        vms = [SimpleNamespace(serial=7, processes=SimpleNamespace(sessions=[session]))]
        self.patch(Registry, "allVMs", property(lambda registry: vms))
        self.patch(self.journal, "_changed", lambda vms: None)
        self.registry.context.budget.used = 5
        self.world.clock.advance(1)
        self.assertEqual(self.journal._held, {7: 5})
        vms.clear()
        self.world.clock.advance(1)
        self.assertEqual(self.journal._held, {})
