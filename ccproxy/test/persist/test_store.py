"""
What goes to the service manager for the next process: the state's memfd, descriptors and their
count, and the ends of those that are of no use.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import stat
import tempfile
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.net.notify import PATIENCE, Notifier
from ccproxy.net.passed import Passed, inodeOf
from ccproxy.persist.handover import CONNECTIONS
from ccproxy.persist.outliving import sealedFile
from ccproxy.persist.store import CONFIRM_INTERVAL, SPARE, DescriptorStore


class MemfdTests(SynchronousTestCase):
    """The state is for the next process alone, and as it was written."""

    def setUp(self) -> None:
        self.file = sealedFile(b"state")
        self.addCleanup(os.close, self.file)

    def refused(self, number: int, call: Any, *arguments: Any) -> None:
        """It fails with this C{errno}."""
        error = self.assertRaises(OSError, call, *arguments)
        self.assertEqual(error.errno, number)

    def test_mode(self) -> None:
        """Nobody else can open it, by /proc for example."""
        self.assertEqual(stat.S_IMODE(os.fstat(self.file).st_mode), 0o600)

    def test_sealed(self) -> None:
        """Nobody who has it can change it, nor keep others from relying on that."""
        self.refused(errno.EPERM, os.pwrite, self.file, b"S", 0)
        self.refused(errno.EPERM, os.ftruncate, self.file, 4)
        self.refused(errno.EPERM, os.ftruncate, self.file, 6)
        self.refused(errno.EPERM, fcntl.fcntl, self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        self.assertEqual(os.pread(self.file, 10, 0), b"state")

    def test_notInherited(self) -> None:
        """Programs that the daemon starts do not get it."""
        self.assertFalse(os.get_inheritable(self.file))


class StoreTests(SynchronousTestCase):
    """Tests for L{DescriptorStore}, against a manager's socket."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(os.path.join(folder.name, "notify"))
        self.manager.setblocking(False)
        self.clock = Clock()
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def store(self, **environment: str) -> DescriptorStore:
        """A store with this manager."""
        notifier = Notifier({"NOTIFY_SOCKET": self.manager.getsockname()}, self.clock)
        self.addCleanup(notifier.close)
        return DescriptorStore(notifier, environment)

    def told(self) -> list[tuple[str, int]]:
        """What the manager was told, and with how many descriptors."""
        found: list[tuple[str, int]] = []
        while True:
            try:
                data, rights, _, _ = self.manager.recvmsg(4096, socket.CMSG_SPACE(400))
            except BlockingIOError:
                return found
            descriptors = array.array("i", b"".join(content for _, _, content in rights))
            for descriptor in descriptors:
                os.close(descriptor)
            found.append((data.decode(), len(descriptors)))

    def full(self) -> list[dict[str, Any]]:
        """How often it was said that it is full."""
        return [event for event in self.events if event.get("event") == "store-full"]

    def test_count(self) -> None:
        """What is kept is counted by name, with what was passed, and what is discarded is not."""
        store = self.store()
        store.passed("a", 1)
        store.passed("a", 2)
        self.assertTrue(store.keep("a", [0]))
        self.assertTrue(store.keep("b", [0, 0]))
        self.assertEqual((store.kept, store.size), ({"a": 3, "b": 2}, 5))
        store.discard("a")
        store.discard("a")
        store.discard("never")
        self.assertEqual((store.kept, store.size), ({"b": 2}, 2))
        self.assertEqual(
            self.told(),
            [
                ("FDSTORE=1\nFDPOLL=0\nFDNAME=/a", 1),
                ("FDSTORE=1\nFDPOLL=0\nFDNAME=/b", 2),
                ("FDSTOREREMOVE=1\nFDNAME=/a", 0),
            ],
        )

    def test_full(self) -> None:
        """What does not fit is not sent, and said once until there is room again."""
        store = self.store(FDSTORE="3")
        store.passed("old", 1)
        self.assertTrue(store.keep("a", [0, 0]))
        self.told()
        for _ in range(2):
            self.assertFalse(store.keep("b", [0]))
        self.assertEqual((store.size, self.told()), (3, []))
        [event] = self.full()
        self.assertEqual((event["capacity"], event["wanted"]), (3, 4))
        store.discard("a")
        self.assertTrue(store.keep("b", [0]))
        self.assertFalse(store.keep("c", [0, 0]))
        self.assertEqual((store.size, len(self.full())), (2, 2))

    def test_sockets(self) -> None:
        """Each socket has one short name, whichever process has given it."""
        store = self.store(FDSTORE=str(SPARE + 4))
        store.passed("AAE", 101)
        self.assertTrue(all(store.keepSocket(inode, 0) for inode in (101, 102, 103, 102)))
        self.assertEqual(sorted(store.sockets), [101, 102, 103])
        self.assertEqual(set(store.sockets.values()), set(store.kept))
        self.assertEqual({len(name) for name in store.kept}, {3})
        first = store.sockets[102]
        store.discardSocket(102)
        store.discardSocket(102)
        self.assertEqual(self.told()[-1], (f"FDSTOREREMOVE=1\nFDNAME=/{first}", 0))
        self.assertEqual((store.size, len(store.sockets)), (2, 2))
        # There is room for a journal when there is none for sockets.
        self.assertTrue(store.keepSocket(104, 0) and store.keepSocket(105, 0))
        self.assertFalse(store.keepSocket(106, 0))
        self.assertTrue(store.keep("journal-2", [0]))
        self.assertEqual(set(store.sockets), {101, 103, 104, 105})

    def test_manySockets(self) -> None:
        """As many as the daemon serves by default: two thousand VMs, and 16384 clients."""
        store = DescriptorStore(Notifier({}, Clock()), {})
        store.notifier = SimpleNamespace(present=True, flush=list)  # type: ignore[assignment]
        for inode in range(2 * 2048 + 16384):
            self.assertTrue(store.keepSocket(inode, 0))
        self.assertEqual(len({*store.sockets.values()}), store.size)
        self.assertTrue(store.keep(CONNECTIONS, [0] * 2048))

    def test_notSent(self) -> None:
        """What could not be sent is not counted."""
        store = self.store()
        self.assertFalse(store.keep("a", [12345]))
        self.assertEqual(store.kept, {})

    def test_capacity(self) -> None:
        """A manager that does not say how many it keeps is believed to keep all."""
        for said in ("", "0", "many"):
            self.assertIs(self.store(FDSTORE=said).capacity, None)

    def test_settle(self) -> None:
        """It has settled when the manager has read all, and not before."""
        store = self.store()
        store.keep("a", [0])
        before = len(os.listdir("/proc/self/fd"))
        self.assertFalse(store.settle(0.01))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        texts = [text for text, _ in self.told()]
        self.assertEqual(texts, ["FDSTORE=1\nFDPOLL=0\nFDNAME=/a", "BARRIER=1"])
        # The manager reads it at once, as another process would.
        sendBarrier = store._sendBarrier
        self.patch(store, "_sendBarrier", lambda: (sendBarrier(), self.told())[0])
        self.assertTrue(store.settle(30.0))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_stalled(self) -> None:
        """
        However long the manager takes nothing, and whatever comes and goes meanwhile: afterwards it
        keeps what it shall keep. That costs no descriptors.
        """
        store = self.store()
        self.assertTrue(store.keep("journal-1", [0]))
        before = len(os.listdir("/proc/self/fd"))
        for inode in range(500):
            self.assertTrue(store.keepSocket(inode, 0))
        for inode in range(0, 500, 2):
            store.discardSocket(inode)
        for nth in (2, 3):
            self.assertTrue(store.keep(f"journal-{nth}", [0]))
            store.discard(f"journal-{nth - 1}")
        self.assertFalse(store.sent("journal-3"))
        self.clock.pump([0.05] * 720)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        held: list[str] = []
        while told := self.told():
            for text, count in told:
                kind, name = text.splitlines()[0], text.rpartition("=/")[2]
                if kind == "FDSTORE=1":
                    held += [name] * count
                elif kind == "FDSTOREREMOVE=1":
                    held = [each for each in held if each != name]
                # Whenever this process dies, there is a journal.
                self.assertTrue([each for each in held if each.startswith("journal-")])
            self.clock.advance(0.05)
        self.assertTrue(store.sent("journal-3"))
        self.assertEqual(sorted(held), sorted(["journal-3", *store.sockets.values()]))
        self.assertEqual((set(held), store.size), (set(store.kept), 251))

    def test_confirmed(self) -> None:
        """The store offers descriptors again unless the manager has confirmed them."""
        store = self.store()
        store.keep("a", [0])
        first = self.manager.recv(100)  # with its descriptor, which so is lost
        self.clock.pump([CONFIRM_INTERVAL] * 2)
        barrier, rights, _, _ = self.manager.recvmsg(100, socket.CMSG_SPACE(4))
        self.assertEqual(barrier, b"BARRIER=1")
        self.clock.pump([CONFIRM_INTERVAL] * int(PATIENCE + 3))
        self.assertEqual(self.told(), [(first.decode(), 1), ("BARRIER=1", 1)])
        self.clock.pump([CONFIRM_INTERVAL] * int(2 * PATIENCE))
        self.assertEqual((self.told(), self.clock.getDelayedCalls()), ([], []))
        os.close(array.array("i", rights[0][2])[0])

    def test_closed(self) -> None:
        """A descriptor that was closed before the manager took it is not mistaken for another."""
        store = self.store()
        fill = [self.store() for _ in range(20)]
        for nth, each in enumerate(fill):
            each.notifier.send(str(nth))
        while store.sent("a"):
            store.notifier.send("x")
            closed, other = os.open("/dev/null", os.O_RDONLY), os.open("/", os.O_RDONLY)
            store.keep("a", [closed])
        os.dup2(other, closed)
        os.close(other)
        while told := self.told():
            self.assertNotIn("FDSTORE=1", told[-1][0])
            self.clock.advance(0.05)
        os.close(closed)

    def test_noManager(self) -> None:
        """Without a manager nothing is kept, and nothing settles."""
        store = DescriptorStore(Notifier({}, Clock()), {})
        self.assertFalse(store.keep("a", [0]))
        self.assertFalse(store.settle(30.0))
        self.assertEqual(store.kept, {})


class PassedTests(SynchronousTestCase):
    """The end of a passed descriptor while the manager still has the same socket."""

    def closed(self, ofUse: bool) -> socket.socket:
        """The other end of a socket that was closed here, and is kept elsewhere."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        theirs.setblocking(False)
        descriptor = os.dup(ours.fileno())
        Passed(descriptor, "connections", inodeOf(descriptor)).close(ofUse)
        self.assertRaises(OSError, os.fstat, descriptor)
        return theirs

    def test_end(self) -> None:
        """The peer of one that is of no use learns that this is the end."""
        self.assertEqual(self.closed(False).recv(1), b"")

    def test_ofUse(self) -> None:
        """The peer of one that is in use learns nothing."""
        self.assertRaises(BlockingIOError, self.closed(True).recv, 1)

    def test_noSocket(self) -> None:
        """What is no socket is just closed."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        Passed(reading, "staging-1", inodeOf(reading)).close()
        self.assertRaises(OSError, os.fstat, reading)
