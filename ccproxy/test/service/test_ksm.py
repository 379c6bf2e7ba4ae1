"""
Tests for L{ccproxy.service.ksm}.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ...config.settings import Settings
from ...service.ksm import PACES, STOP_TIMEOUT, KSMFiles, KSMService, KSMState, Pace, Throttle
from ...service.proxy import ProxyService

BEFORE = {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20"}

#: Long enough for a thread on a busy machine.
PATIENCE = 20.0


def makeKSM(root: str) -> Path:
    """Make the files of a kernel, under a folder that is made too; where those of KSM are."""
    path = Path(root, "sys/kernel/mm/ksm")
    path.mkdir(parents=True)
    for name, value in BEFORE.items():
        (path / name).write_text(f"{value}\n")
    Path(root, "proc").mkdir()
    Path(root, "proc/meminfo").write_text(Path("/proc/meminfo").read_text())
    return path


class FakeKernel(KSMFiles):
    """Files in a folder of a test, which note in which order they are written."""

    def __init__(self, root: str, pages: int = 50_000) -> None:
        self.path = makeKSM(root)
        kilobytes = pages * os.sysconf("SC_PAGE_SIZE") // 1024
        meminfo = Path(root, "proc/meminfo")
        meminfo.write_text(f"MemTotal: 9 kB\nAnonPages:   {kilobytes} kB\nInactive: 1 kB\n")
        self.kept = Path(root, "run/ccproxy/ksm.json")
        super().__init__(root)
        self.written: list[tuple[str, str]] = []
        self.done: queue.SimpleQueue[str] = queue.SimpleQueue()

    def values(self) -> dict[str, str]:
        """What the files say."""
        return {path.name: path.read_text().strip() for path in self.path.iterdir()}

    def _write(self, name: str, value: str) -> None:
        super()._write(name, value)
        self.written.append((name, value))

    def pace(self, pace: Pace) -> None:
        super().pace(pace)
        self.done.put(f"every {pace.sleep} ms")

    def halt(self) -> None:
        super().halt()
        self.done.put("halted")

    def restore(self) -> None:
        changed = bool(self._before)
        super().restore()
        if changed:
            self.done.put("restored")


class ThrottleTests(SynchronousTestCase):
    """The state machine."""

    def setUp(self) -> None:
        """A throttle, and what it has entered."""
        self.clock = Clock()
        self.entered: list[str] = []
        self.throttle = Throttle(self.clock, lambda state: self.entered.append(state.value))

    def test_untouched(self) -> None:
        """Nothing happens before the first registration."""
        self.clock.advance(10_000)
        self.assertEqual((self.entered, self.throttle.state), ([], KSMState.INITIAL))

    def test_course(self) -> None:
        """Aggressive for 30 s, standard and slow for 120 s each, then as it was, for good."""
        self.throttle.registered()
        for lasts, then in ((30, "standard"), (120, "slow"), (120, "initial")):
            count = len(self.entered)
            self.clock.advance(lasts - 0.001)
            self.assertEqual(len(self.entered), count)
            self.clock.advance(0.001)
            self.assertEqual(self.entered[count:], [then])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.throttle.registered()
        self.assertEqual(self.throttle.state, KSMState.AGGRESSIVE)

    def test_again(self) -> None:
        """A registration begins it anew, wherever it is; one while it is aggressive too."""
        for passed in (0, 29, 31, 200, 300):
            self.throttle.registered()
            self.clock.advance(passed)
            self.throttle.registered()
            self.assertEqual(self.entered[-1], "aggressive")
            self.clock.advance(29.9)
            self.assertEqual(self.throttle.state, KSMState.AGGRESSIVE)
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_stop(self) -> None:
        """Stopped, it waits for nothing; twice is no harm."""
        self.throttle.stop()
        self.throttle.registered()
        self.throttle.stop()
        self.throttle.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @given(st.lists(st.none() | st.integers(0, 400)))
    def test_anyCourse(self, events: list[int | None]) -> None:
        """Whenever VMs come, the state is that of the time since the last one."""
        clock = Clock()
        throttle = Throttle(clock, lambda state: None)
        since: float | None = None
        for event in events:
            if event is None:
                throttle.registered()
                since = clock.seconds()
                continue
            clock.pump([1] * event)
            passed = 10_000 if since is None else clock.seconds() - since
            expected = (
                "aggressive" if passed < 30
                else "standard" if passed < 150
                else "slow" if passed < 270
                else "initial"
            )  # fmt: skip
            self.assertEqual(throttle.state.value, expected)


class FilesTests(SynchronousTestCase):
    """What is written, and in which order."""

    def setUp(self) -> None:
        """Files with what was set before."""
        self.root = self.mktemp()
        self.kernel = FakeKernel(self.root)

    def test_paces(self) -> None:
        """It is stopped, set and started; pages are a share of the anonymous ones."""
        for state, pages, sleep in (
            (KSMState.AGGRESSIVE, "5000", "1"),
            (KSMState.STANDARD, "500", "10"),
            (KSMState.SLOW, "100", "100"),
        ):
            self.kernel.written.clear()
            self.kernel.pace(PACES[state])
            self.assertEqual(
                self.kernel.written,
                [("run", "0"), ("pages_to_scan", pages), ("sleep_millisecs", sleep), ("run", "1")],
            )

    def test_restore(self) -> None:
        """What was set before the first change comes back, C{run} last, and once."""
        (self.kernel.path / "run").write_text("2\n")
        self.kernel.pace(PACES[KSMState.AGGRESSIVE])
        self.kernel.pace(PACES[KSMState.SLOW])
        self.kernel.written.clear()
        self.kernel.restore()
        self.assertEqual(self.kernel.values(), {**BEFORE, "run": "2"})
        self.assertEqual(
            (self.kernel.written[0], self.kernel.written[-1]), (("run", "0"), ("run", "2"))
        )
        self.kernel.written.clear()
        self.kernel.restore()
        self.assertEqual(self.kernel.written, [])

    def test_halt(self) -> None:
        """Off writes C{run} alone, there and back."""
        (self.kernel.path / "run").write_text("1\n")
        self.kernel.halt()
        self.kernel.restore()
        self.assertEqual([name for name, _ in self.kernel.written], ["run"] * 3)
        self.assertEqual(self.kernel.values(), {**BEFORE, "run": "1"})

    def test_changedByHand(self) -> None:
        """What somebody sets while nothing is paced is what comes back after the next time."""
        self.kernel.pace(PACES[KSMState.SLOW])
        self.kernel.restore()
        (self.kernel.path / "pages_to_scan").write_text("77\n")
        self.kernel.pace(PACES[KSMState.SLOW])
        self.kernel.restore()
        self.assertEqual(self.kernel.values()["pages_to_scan"], "77")

    def test_little(self) -> None:
        """However few anonymous pages there are, one is scanned."""
        kernel = FakeKernel(self.mktemp(), pages=3)
        kernel.pace(PACES[KSMState.SLOW])
        self.assertEqual(kernel.values()["pages_to_scan"], "1")

    def test_nothingMade(self) -> None:
        """A file that is missing is not made."""
        (self.kernel.path / "run").unlink()
        self.assertRaises(FileNotFoundError, self.kernel.take)
        self.assertRaises(FileNotFoundError, self.kernel.halt)
        self.assertFalse((self.kernel.path / "run").exists())

    def test_kernels(self) -> None:
        """The kernel of this machine tells of its anonymous pages."""
        root = self.mktemp()
        path = makeKSM(root)
        KSMFiles(root).pace(PACES[KSMState.AGGRESSIVE])
        self.assertGreater(int((path / "pages_to_scan").read_text()), 1)

    def test_killed(self) -> None:
        """What a daemon that was killed has left, the next one sets back as it begins."""
        (self.kernel.path / "run").write_text("1\n")
        for mode in ("off", "auto"):
            killed, following = KSMFiles(self.root), KSMFiles(self.root)
            if mode == "off":
                killed.halt()
            else:
                killed.pace(PACES[KSMState.SLOW])
            following.take()
            following.release()
            self.assertEqual(self.kernel.values(), {**BEFORE, "run": "1"})
            self.assertFalse(self.kernel.kept.exists())

    def test_unreadable(self) -> None:
        """What was kept and cannot be read is nothing: it was written before any change."""
        self.kernel.kept.parent.mkdir(parents=True)
        for text in ("", '{"run": "0", "pages_to', "[]", "7", '{"run": null}', '{"run": "x"}'):
            self.kernel.kept.write_text(text)
            self.kernel.take()
            self.kernel.release()
            self.assertEqual(self.kernel.written, [])

    def test_notKept(self) -> None:
        """Where the file cannot be written, all else is as ever."""
        self.kernel.kept.parent.parent.write_text("no folder")
        self.kernel.pace(PACES[KSMState.SLOW])
        self.kernel.restore()
        self.assertEqual(self.kernel.values(), BEFORE)

    def test_anotherDaemon(self) -> None:
        """One daemon at a time sees to it."""
        self.kernel.take()
        other = KSMFiles(self.root)
        self.assertIn("another daemon", str(self.assertRaises(OSError, other.take)))
        other.release()
        self.kernel.release()
        other.take()
        other.release()


class ThreadedClock(Clock):
    """A clock that takes calls from threads, and makes them when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], Any]] = queue.SimpleQueue()

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        """Keep a call."""
        self._calls.put((call, arguments))

    def turn(self) -> None:
        """Wait for a call, and make it."""
        call, arguments = self._calls.get(timeout=PATIENCE)
        call(*arguments)


class ServiceTests(SynchronousTestCase):
    """The service and its thread."""

    def setUp(self) -> None:
        """Files with what was set before."""
        self.clock = ThreadedClock()
        self.kernel = FakeKernel(self.mktemp())

    def begun(self, mode: str = "auto") -> KSMService:
        """A service that has been started, and is stopped in the end."""
        service = KSMService(mode, self.clock, self.kernel)
        service.startService()
        return service

    def assertDone(self, *what: str) -> None:
        """Wait for what the thread does next."""
        self.assertEqual([self.kernel.done.get(timeout=PATIENCE) for _ in what], list(what))

    def ended(self, service: KSMService) -> None:
        """Stop it, and wait for its thread."""
        stopped = service.stopService()
        self.assertNoResult(stopped)
        self.clock.turn()
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_auto(self) -> None:
        """It is paced from the first registration on, and set back after the last step."""
        service = self.begun()
        service.registered()
        self.assertDone("every 1 ms")
        for wait, what in ((30, "every 10 ms"), (120, "every 100 ms"), (120, "restored")):
            self.clock.advance(wait)
            self.assertDone(what)
        self.assertEqual(self.kernel.values(), BEFORE)
        self.ended(service)

    def test_together(self) -> None:
        """VMs that come together have it paced once, and once more when a second has passed."""
        service = self.begun()
        for _ in range(10):
            service.registered()
        self.assertDone("every 1 ms")
        self.clock.advance(0.9)
        service.registered()
        self.clock.advance(0.2)
        with self.assertRaises(queue.Empty):
            self.kernel.done.get(timeout=0.1)
        service.registered()
        self.assertDone("every 1 ms")
        self.ended(service)

    def test_end(self) -> None:
        """The end of the daemon sets it back at once."""
        service = self.begun()
        service.registered()
        self.assertDone("every 1 ms")
        self.ended(service)
        self.assertEqual(self.kernel.values(), BEFORE)
        service.registered()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_unused(self) -> None:
        """Without a registration nothing is ever written."""
        self.ended(self.begun())
        self.assertEqual(self.kernel.written, [])

    def test_off(self) -> None:
        """Off stops it, whatever comes, and starts it again in the end where it ran."""
        (self.kernel.path / "run").write_text("1\n")
        service = self.begun("off")
        self.assertDone("halted")
        self.assertEqual(self.kernel.values(), BEFORE)
        service.registered()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.ended(service)
        self.assertEqual(self.kernel.values(), {**BEFORE, "run": "1"})

    def unusable(self) -> None:
        """A service that finds no KSM: no error, nothing under way, and an end at once."""
        service = self.begun()
        self.clock.turn()
        self.clock.turn()
        service.registered()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(service.stopService())
        self.assertEqual(self.kernel.written, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_missing(self) -> None:
        """No KSM is no error."""
        for path in self.kernel.path.iterdir():
            path.unlink()
        self.unusable()

    def test_readOnly(self) -> None:
        """KSM that may not be changed is no error."""

        def refuse(name: str, more: int = 0) -> int:
            raise OSError(30, "Read-only file system", name)

        self.kernel._open = refuse  # type: ignore[method-assign]
        self.unusable()

    def test_refused(self) -> None:
        """A value that the kernel does not take ends the pacing, and all is set back."""
        write = self.kernel._write

        def refuse(name: str, value: str) -> None:
            if (name, value) == ("sleep_millisecs", "1"):
                raise OSError(22, "Invalid argument", name)
            write(name, value)

        self.kernel._write = refuse  # type: ignore[method-assign]
        service = self.begun()
        service.registered()
        self.assertDone("restored")
        self.assertEqual(self.kernel.values(), BEFORE)
        self.clock.turn()
        self.clock.turn()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(service.stopService())

    def test_busy(self) -> None:
        """A write that takes for ever holds up nothing, and the end of the daemon not for long."""
        (self.kernel.path / "run").unlink()
        fifo = self.kernel.path / "run"
        os.mkfifo(fifo)
        service = self.begun()
        for _ in range(100):
            service.registered()
        stopped = service.stopService()
        self.clock.advance(STOP_TIMEOUT - 0.1)
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        # Let the thread go on to its end.
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        self.clock.turn()

    def test_burst(self) -> None:
        """Of many registrations the kernel is told as often as it takes, and the last counts."""
        service = self.begun()
        for _ in range(1000):
            service.registered()
        self.ended(service)
        self.assertEqual(self.kernel.values(), BEFORE)


class JoiningTests(SynchronousTestCase):
    """When the daemon has the service."""

    def service(self, **settings: Any) -> KSMService | None:
        """That of a daemon with these settings."""
        from twisted.internet import reactor

        daemon = ProxyService(Settings(**settings), reactor)
        found = [service for service in daemon if isinstance(service, KSMService)]
        registered = daemon.registry.registry.whenRegistered
        self.assertEqual(registered, found[0].registered if found else None)
        daemon.registry.poller.close()
        return found[0] if found else None

    def test_modes(self) -> None:
        """In the modes off and auto, but never in pod mode."""
        self.assertIsNone(self.service())
        for mode in ("off", "auto"):
            self.assertIsNotNone(self.service(ksm=mode))
            self.assertIsNone(self.service(ksm=mode, pod=True))
