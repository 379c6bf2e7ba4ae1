"""
KSM, the kernel's merging of memory pages that are the same: paced by the VMs that come.

VMs that have just started hold the same pages many times over, and running ones less and less. So
a registration makes the kernel scan eagerly; then it slows down in steps, to what was set before.

The kernel takes its time with these files: while it scans, a write to them waits. So a thread of
its own reads and writes them. Nothing waits for that, but for a while the end of the daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..core.context import Clock, Wait, cancel

#: A folder in this variable stands for the root of the file system, in all that is done here.
ROOT_VARIABLE = "CCPROXY_KSM_ROOT"

#: The files of KSM that are changed, C{run} first: it is set last.
KSM_FILES = ("run", "pages_to_scan", "sleep_millisecs")

#: Seconds that the end of the daemon waits for the kernel to take what was set before.
STOP_TIMEOUT = 5.0
#: Seconds before the files are written again for another VM in the same state: for many VMs that
#: come together, once is enough.
AGAIN = 1.0


class KSMState(Enum):
    """How eagerly KSM scans."""

    INITIAL = "initial"
    AGGRESSIVE = "aggressive"
    STANDARD = "standard"
    SLOW = "slow"


@attrs.frozen
class Pace:
    """
    What a state means.

    @ivar share: the anonymous pages divided by it are scanned at a time.
    @ivar sleep: milliseconds between one time and the next.
    @ivar lasts: seconds until the next state.
    @ivar then: that state.
    """

    share: int
    sleep: int
    lasts: float
    then: KSMState


PACES = {
    KSMState.AGGRESSIVE: Pace(10, 1, 30.0, KSMState.STANDARD),
    KSMState.STANDARD: Pace(100, 10, 120.0, KSMState.SLOW),
    KSMState.SLOW: Pace(500, 100, 120.0, KSMState.INITIAL),
}


class Throttle:
    """
    The state that KSM is to be in.

    @ivar state: that state.
    """

    def __init__(self, clock: Clock, enter: Callable[[KSMState], object]) -> None:
        """
        @param enter: called with each state that is entered, the same one again included.
        """
        self.state = KSMState.INITIAL
        self._clock = clock
        self._entered = enter
        self._wait: Wait | None = None

    def registered(self) -> None:
        """A VM has been registered."""
        self._enter(KSMState.AGGRESSIVE)

    def stop(self) -> None:
        """Stay in this state."""
        cancel(self._wait)

    def _enter(self, state: KSMState) -> None:
        cancel(self._wait)
        self.state = state
        pace = PACES.get(state)
        if pace is not None:
            self._wait = self._clock.callLater(pace.lasts, self._enter, pace.then)
        self._entered(state)


class KSMFiles:
    """
    KSM's settings in the kernel. All calls may block, and raise L{OSError} or L{ValueError}.

    What was set before the first change is kept for L{restore}, in a file too: should this process
    be killed, the next one finds it there.
    """

    def __init__(self, root: str = "/") -> None:
        """
        @param root: the folder under which everything is.
        """
        self._directory = os.path.join(root, "sys/kernel/mm/ksm")
        self._meminfo = os.path.join(root, "proc/meminfo")
        self._kept = os.path.join(root, "run/ccproxy/ksm.json")
        self._before: dict[str, str] = {}
        self._lock: int | None = None

    def take(self) -> None:
        """
        Be the one who sees to KSM, until L{release} or the end of the process, and set back what
        one that was killed has left.

        @raise OSError: there is no KSM, it may not be changed, or somebody else sees to it.
        """
        self._lock = self._open("run")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError("another daemon sees to it") from None
        with contextlib.suppress(OSError, TypeError, ValueError), open(self._kept) as file:
            kept = json.load(file)
            self._before = {name: str(int(kept[name])) for name in KSM_FILES if name in kept}
        self.restore()

    def release(self) -> None:
        """Let another daemon see to it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def halt(self) -> None:
        """Let it not run. Pages that are merged stay so."""
        self._keep("run")
        self._write("run", "0")

    def pace(self, pace: Pace) -> None:
        """Let it run at this pace."""
        pages = max(1, self._anonymousPages() // pace.share)
        self._keep(*KSM_FILES)
        self._write("run", "0")
        self._write("pages_to_scan", str(pages))
        self._write("sleep_millisecs", str(pace.sleep))
        self._write("run", "1")

    def restore(self) -> None:
        """Set what was set before the first change; nothing where nothing was changed."""
        before, self._before = self._before, {}
        if not before:
            return
        self._write("run", "0")
        for name, value in reversed(before.items()):
            self._write(name, value)
        with contextlib.suppress(OSError):
            os.unlink(self._kept)

    def _keep(self, *names: str) -> None:
        if self._before:
            return
        self._before = {name: self._read(name) for name in names}
        # Without the file, it is lost only if this process is killed.
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._kept), 0o755, exist_ok=True)
            with open(self._kept, "w") as file:
                json.dump(self._before, file)

    def _read(self, name: str) -> str:
        with open(os.path.join(self._directory, name)) as file:
            return file.read().strip()

    def _open(self, name: str, more: int = 0) -> int:
        return os.open(os.path.join(self._directory, name), os.O_WRONLY | more)

    def _write(self, name: str, value: str) -> None:
        descriptor = self._open(name, os.O_TRUNC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)

    def _anonymousPages(self) -> int:
        with open(self._meminfo) as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name == "AnonPages":
                    return int(rest.split()[0]) * 1024 // os.sysconf("SC_PAGE_SIZE")
        raise ValueError(f"{self._meminfo} has no line AnonPages")


class KSMService(Service):
    """
    Halts or paces KSM while the daemon runs, and sets at its end what was set before.

    Where there is no KSM, or none that may be changed, or another daemon sees to it, that is said
    once and nothing is done.

    @ivar throttle: the state that KSM is to be in.
    """

    log = Logger()

    def __init__(self, mode: str, reactor: Any, files: KSMFiles | None = None) -> None:
        """
        @param mode: C{off} or C{auto}.
        @param files: the kernel's by default.
        """
        self._files = files or KSMFiles(os.environ.get(ROOT_VARIABLE) or "/")
        self._mode = mode
        self._reactor = reactor
        self.throttle = Throttle(reactor, self._enter)
        # What the thread has still to do: only the latest state matters.
        self._wanted = KSMState.INITIAL
        self._entered = 0.0
        self._ending = False
        self._changed = threading.Event()
        self._done: Deferred[None] = Deferred()

    def startService(self) -> None:
        """Begin."""
        super().startService()
        threading.Thread(target=self._run, name="KSM", daemon=True).start()

    def registered(self) -> None:
        """A VM has been registered."""
        if self.running and self._mode == "auto" and not self._done.called:
            self.throttle.registered()

    def stopService(self) -> Deferred[None]:
        """
        Set what was set before.

        @return: fires when that is done, or was waited for long enough.
        """
        super().stopService()
        self.throttle.stop()
        self._ending = True
        self._changed.set()
        return self._done.addTimeout(STOP_TIMEOUT, self._reactor).addErrback(self._overdue)

    def _overdue(self, failure: object) -> None:
        self.log.warn("KSM is busy, and not set back to what it was", event="ksm-overdue")

    def _enter(self, state: KSMState) -> None:
        now = self._reactor.seconds()
        if state is not self._wanted:
            self.log.info("KSM goes to {state}", event="ksm", state=state.value)
        elif now < self._entered + AGAIN:
            return
        self._wanted, self._entered = state, now
        self._changed.set()

    # -- in the thread

    def _run(self) -> None:
        try:
            self._work()
        except (OSError, ValueError) as problem:
            self._reactor.callFromThread(self._failed, problem)
        finally:
            self._files.release()
            self._reactor.callFromThread(self._finished)

    def _work(self) -> None:
        self._files.take()
        try:
            if self._mode == "off":
                self._files.halt()
            while not self._ending:
                self._changed.wait()
                self._changed.clear()
                pace = PACES.get(self._wanted)
                if self._ending:
                    break
                if pace is None:
                    self._files.restore()
                else:
                    self._files.pace(pace)
        finally:
            self._files.restore()

    # -- and back

    def _failed(self, problem: Exception) -> None:
        self.log.info("KSM is left alone: {problem}", event="ksm-unused", problem=problem)

    def _finished(self) -> None:
        self.throttle.stop()
        if not self._done.called:
            self._done.callback(None)
