"""
Tests of L{ccproxy.net.notify}.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections import deque
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ...net.notify import (
    BUSY_INTERVAL,
    GONE_INTERVAL,
    MOST_WAITING,
    PATIENCE,
    RETRY_INTERVAL,
    Notifier,
)


class NotifierTests(SynchronousTestCase):
    """
    What reaches a service manager.
    """

    def setUp(self) -> None:
        """A manager's socket, and a notifier for it."""
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.clock = Clock()
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.manager, self.notifier = self.both(os.path.join(self.folder, "notify"))

    def both(self, name: str) -> tuple[socket.socket, Notifier]:
        """A socket, named as systemd names it, and a notifier for it."""
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.bind(name.replace("@", "\0"))
        manager.setblocking(False)
        return manager, self.notifierFor(NOTIFY_SOCKET=name)

    def notifierFor(self, **environment: str) -> Notifier:
        """A notifier in this environment."""
        notifier = Notifier(environment, self.clock)
        self.addCleanup(notifier.close)
        return notifier

    def received(self) -> list[str]:
        """All that the manager has been sent."""
        texts = []
        with contextlib.suppress(BlockingIOError):
            while True:
                texts.append(self.manager.recv(4096).decode())
        return texts

    def fill(self) -> int:
        """Send until the manager's queue is full; how many datagrams it has."""
        count, before = 0, -1
        # Each sender has a bound of its own, too.
        while count > before:
            before = count
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.connect(self.manager.getsockname())
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sender.send(b"x")
                        count += 1
        return count

    def reports(self) -> list[str]:
        """The reasons that were logged for what did not reach the manager."""
        return [str(e["reason"]) for e in self.events if e.get("event") == "notify-failed"]

    def test_life(self) -> None:
        """The daemon's life, as the manager hears it."""
        self.assertTrue(self.notifier.present)
        self.notifier.ready("listening\non unix:///x")
        self.notifier.alive("3 VMs")
        self.notifier.reloading()
        self.notifier.stopping()
        ready, alive, reloading, stopping = self.received()
        self.assertEqual(ready, "READY=1\nSTATUS=listening on unix:///x")
        self.assertEqual(alive, "WATCHDOG=1\nSTATUS=3 VMs")
        self.assertRegex(reloading, r"\ARELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\Z")
        self.assertTrue(stopping.startswith("STOPPING=1\n"))

    def test_longStatus(self) -> None:
        """However long a status is, what comes with it arrives."""
        self.notifier.ready("x" * 1000000)
        self.assertTrue(self.received()[0].startswith("READY=1\nSTATUS=xxx"))

    def test_abstract(self) -> None:
        """An abstract socket is named with an @."""
        self.manager, notifier = self.both(f"@ccproxy-test-{os.getpid()}")
        notifier.ready("")
        self.assertEqual(len(self.received()), 1)

    def test_environment(self) -> None:
        """What is for the daemon alone is not left to the processes that it starts."""
        environment = {
            "NOTIFY_SOCKET": "/x",
            "WATCHDOG_USEC": "3000000",
            "WATCHDOG_PID": str(os.getpid()),
            "HOME": "/",
        }
        notifier = Notifier(environment, self.clock)
        self.addCleanup(notifier.close)
        self.assertEqual(environment, {"HOME": "/"})
        self.assertEqual(notifier.watchdog, 3.0)

    def test_noWatchdog(self) -> None:
        """There is none, or another process's, or one that makes no sense."""
        for environment in (
            {},
            {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
            {"WATCHDOG_USEC": "0"},
            {"WATCHDOG_USEC": "-1"},
            {"WATCHDOG_USEC": "soon"},
        ):
            self.assertIsNone(self.notifierFor(**environment).watchdog)

    def test_noManager(self) -> None:
        """Without a manager, nothing happens; a socket of another kind is reported."""
        notifier = self.notifierFor()
        self.assertFalse(notifier.present)
        notifier.ready("")
        self.assertFalse(notifier.offer("x", [0]))
        self.assertEqual((self.events, self.clock.getDelayedCalls()), ([], []))
        self.assertFalse(self.notifierFor(NOTIFY_SOCKET="vsock:2:1234").present)
        self.assertIn("vsock:2:1234", [event.get("address") for event in self.events])

    def test_gone(self) -> None:
        """A manager that is gone is reported once, and told again when it is back."""
        path = os.path.join(self.folder, "notify")
        os.unlink(path)
        self.notifier.ready("one")
        self.notifier.ready("two")
        self.assertEqual(self.reports(), ["No such file or directory"])
        self.manager.close()
        self.manager, _ = self.both(path)
        self.clock.advance(GONE_INTERVAL)
        self.assertEqual(self.received(), ["READY=1\nSTATUS=one", "READY=1\nSTATUS=two"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_busy(self) -> None:
        """What a busy manager does not take goes to it later, in order."""
        count = self.fill()
        self.notifier.ready("one")
        self.notifier.ready("two")
        # Another sign of life says no more than what waits.
        self.notifier.alive("")
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.received(), ["x"] * count)
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.received(), ["READY=1\nSTATUS=one", "READY=1\nSTATUS=two"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.reports(), [])

    def test_slow(self) -> None:
        """A manager that takes little at a time loses nothing, and is given the next soon."""
        count = self.fill()
        self.patch(self.notifier, "_waiting", deque())
        for nth in range(3 * count):
            self.notifier.ready(str(nth))
        found = self.received()
        intervals = []
        while len(found) < 4 * count:
            self.clock.advance(RETRY_INTERVAL)
            [*calls] = self.clock.getDelayedCalls()
            intervals += [call.getTime() - self.clock.seconds() for call in calls]
            found += self.received()
        self.assertGreater(len(intervals), 1)
        self.assertAlmostEqual(max(intervals), BUSY_INTERVAL)
        self.assertEqual(found[count:], [f"READY=1\nSTATUS={nth}" for nth in range(3 * count)])
        self.assertEqual(self.reports(), [])

    def test_stuck(self) -> None:
        """If a manager takes nothing for long, that is said once; the last words wait on."""
        count = self.fill()
        for nth in range(MOST_WAITING + 5):
            self.notifier.ready(str(nth))
        self.clock.pump([RETRY_INTERVAL] * int(3 * PATIENCE / RETRY_INTERVAL))
        self.assertEqual(
            self.reports(), ["it has taken nothing for 30 s; what is to be told waits"]
        )
        found = self.received()
        while len(found) < count + MOST_WAITING:
            self.clock.advance(RETRY_INTERVAL)
            found += self.received()
        self.assertEqual(
            found[count:], [f"READY=1\nSTATUS={nth}" for nth in range(5, MOST_WAITING + 5)]
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close(self) -> None:
        """What waits at the end is tried once more."""
        self.fill()
        self.notifier.ready("")
        self.received()
        self.notifier.close()
        self.assertEqual(len(self.received()), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_room(self) -> None:
        """After a refusal, offers go on as soon as the manager reads, after the texts."""
        sent: list[bool] = []

        def send() -> bool:
            sent.append(self.notifier.offer("FDSTORE=1", [0]))
            return sent[-1]

        self.notifier.whenRoom = send
        self.fill()
        self.notifier.ready("")
        self.assertEqual(sent, [])
        self.received()
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual((sent, self.received()), ([True], ["READY=1\nSTATUS=", "FDSTORE=1"]))
