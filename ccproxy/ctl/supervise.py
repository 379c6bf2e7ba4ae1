"""
C{ccproxyctl supervise}: run the daemon, keep its descriptors, and start it again when it has ended.

What systemd does for a service with a descriptor store, for machines without systemd and for tests:
the daemon speaks sd_notify to both. No reactor runs here, so that as little as possible is in
memory, and as little as possible can go wrong.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from struct import Struct

import attrs

from ..agent import reaping
from ..errors import CCProxyError
from ..log.writer import LogWriter, descriptorWriter
from ..net.passed import FIRST, Passed
from ..persist.restarting import HANDED_OVER, KEEP_VARIABLE, WORKING_DESCRIPTORS
from ..service.earlysignals import hold, release
from .arguments import whole

#: Seconds until a daemon that has died is started again: at once the first time, then ever later.
DELAYS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
#: The most of them after one that has served: agents bear some seconds without a reader.
MOST_DELAY = 1.0
#: Seconds after which a daemon that serves counts as one that works: the next one is started at
#: once.
STEADY = 1.0
#: Seconds that the daemon may take to end in order; then it is killed.
STOP_TIMEOUT = 20.0
#: How many descriptors are kept by default: as many as the VMs and clients of a daemon with the
#: default limits can have together. RLIMIT_NOFILE may allow less.
CAPACITY = 24576
#: Seconds that stderr may take for the last lines.
FLUSH_TIMEOUT = 2.0
#: Seconds between two tries when the system allows no more processes.
FORK_INTERVAL = 1.0

_FORWARDED = (signal.SIGHUP, signal.SIGUSR1)
_ENDING = (signal.SIGTERM, signal.SIGINT)
_CREDENTIALS = Struct("3i")
_MOST_TEXT = 4096
_MOST_DESCRIPTORS = 253


@attrs.define(eq=False)
class Store:
    """
    The descriptors that the daemon has left here.

    @ivar capacity: how many there may be.
    """

    capacity: int
    _kept: dict[tuple[int, int], tuple[str, int]] = attrs.field(factory=dict)
    _named: dict[str, list[tuple[int, int]]] = attrs.field(factory=dict)

    @property
    def kept(self) -> list[tuple[str, int]]:
        """Each with its name, in the order of their arrival."""
        return list(self._kept.values())

    def add(self, name: str, descriptors: Sequence[int]) -> int:
        """
        Keep descriptors; those that are kept already are closed.

        @return: how many had no room, and were closed too.
        """
        refused = 0
        for descriptor in descriptors:
            identity = _identity(descriptor)
            if identity in self._kept:
                os.close(descriptor)
            elif len(self._kept) >= self.capacity:
                os.close(descriptor)
                refused += 1
            else:
                self._kept[identity] = name, descriptor
                self._named.setdefault(name, []).append(identity)
        return refused

    def remove(self, name: str) -> None:
        """Close all of a name."""
        for identity in self._named.pop(name, ()):
            os.close(self._kept.pop(identity)[1])

    def end(self) -> None:
        """Close all, so that everybody at the other ends learns it."""
        for name, descriptor in self.kept:
            Passed(descriptor, name, 0).close()
        self._kept.clear()
        self._named.clear()


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


class Supervisor:
    """
    Runs one daemon after the other.
    """

    def __init__(self, command: Sequence[str], capacity: int = CAPACITY) -> None:
        """
        @param command: the daemon's command line.
        @param capacity: how many descriptors are kept.
        """
        self._command = list(command)
        self._store = Store(capacity)
        self._pid = 0
        self._started = 0.0
        self._failures = 0
        self._ready = self._everReady = False
        self._ending = False
        self._untold: set[int] = set()
        self._killAt: float | None = None
        self._runtime = os.environ.get("XDG_RUNTIME_DIR") or None

    def run(self) -> int:
        """
        Run daemons until there shall be none.

        @return: the exit status of the last one.
        """
        self._folder = tempfile.mkdtemp(prefix="ccproxy-", dir=self._runtime)
        self._address = os.path.join(self._folder, "notify")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as self._socket:
                self._socket.bind(self._address)
                self._socket.setblocking(False)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                return self._run()
        finally:
            self._store.end()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> int:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (*_FORWARDED, *_ENDING, signal.SIGUSR2, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        release()
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        startAt: float | None = time.monotonic()
        while True:
            if startAt is not None and time.monotonic() >= startAt:
                startAt = None if self._start() else time.monotonic() + FORK_INTERVAL
            due = startAt if startAt is not None else self._killAt
            poll.poll(None if due is None else 1000 * max(0.0, due - time.monotonic()))
            self._listen()
            with suppress(BlockingIOError):
                for byte in os.read(reading, 4096):
                    self._signalled(byte)
            if not self._pid:
                if self._ending:
                    return 0
                continue
            overdue = self._killAt is not None and time.monotonic() >= self._killAt
            pid, result = os.waitpid(self._pid, os.WNOHANG)
            if os.getpid() == 1:
                reaping.own = {self._pid} - {pid}
                reaping.reapOrphans()
            if pid:
                self._listen()  # what it has said last
                self._pid = 0
                status = os.waitstatus_to_exitcode(result)
                if self._isEnd(status):
                    return status if status >= 0 else 128 - status
                startAt = time.monotonic() + self._delay(status)
            elif overdue:
                _say(f"the daemon has not ended in {STOP_TIMEOUT:g} s: killing it")
                self._killAt = None
                self._kill(signal.SIGKILL)

    def _isEnd(self, status: int) -> bool:
        """Whether no other daemon follows one that has ended so."""
        if status == HANDED_OVER:
            return False  # not even when there shall be none: the next one can end in order
        if self._ending or status == 0:
            return True
        if not (self._ready or self._everReady):
            _say(f"the daemon could not start: it ended with {status}")
            return True
        return False

    def _delay(self, status: int) -> float:
        """In how many seconds the next daemon is started."""
        if self._ready and status == HANDED_OVER:
            return 0.0
        if self._ready and time.monotonic() - self._started >= STEADY:
            self._failures = 0
        delay = DELAYS[min(self._failures, len(DELAYS) - 1)]
        if self._ready:
            delay = min(delay, MOST_DELAY)
        self._failures += 1
        if status != HANDED_OVER:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
            _say(
                f"the daemon {how}, with {len(self._store.kept)} descriptors kept;"
                f" starting it again in {delay:g} s"
            )
        return delay

    def _start(self) -> bool:
        """
        Start a daemon.

        @return: whether the system allows another process.
        """
        self._started = time.monotonic()
        self._everReady, self._ready = self._everReady or self._ready, False
        self._untold.clear()
        names = [name for name, _ in self._store.kept]
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": self._address,
            KEEP_VARIABLE: "1",
            "FDSTORE": str(self._store.capacity),
        }
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS"):
            environment.pop(name, None)
        # The daemon starts with the signals held back, and releases them once it has handlers.
        hold()
        try:
            self._pid = os.fork()
        except OSError as error:
            release()
            _say(f"cannot start the daemon, will try again: {error.strerror}")
            return False
        if self._pid:
            release()
            return True
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if names:
                environment["LISTEN_PID"] = str(os.getpid())
                environment["LISTEN_FDS"] = str(len(names))
                environment["LISTEN_FDNAMES"] = ":".join(names)
                arrange([descriptor for _, descriptor in self._store.kept])
            os.execvpe(self._command[0], self._command, environment)
        except OSError as error:
            # stderr may block, and the thread that writes to it is not in this process.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
                telling.sendto(f"ERRNO={error.errno}".encode(), self._address)
        finally:
            os._exit(127)

    def _signalled(self, number: int) -> None:
        """A signal has come to us."""
        if number in _ENDING:
            # One that is only starting ends when it serves, or when we are told so once more.
            if self._ready or self._ending:
                self._kill(signal.SIGINT)
            if not self._ending:
                self._ending, self._killAt = True, time.monotonic() + STOP_TIMEOUT
        else:
            # One that is only starting would die of it: it is told once it serves.
            if self._ready:
                self._kill(number)
            elif self._pid:
                self._untold.add(number)

    def _kill(self, number: int) -> None:
        if self._pid:
            os.kill(self._pid, number)

    def _listen(self) -> None:
        """Read what the daemon says."""
        while True:
            rights = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
            space = rights + socket.CMSG_SPACE(_CREDENTIALS.size)
            try:
                text, messages, flags, _ = self._socket.recvmsg(
                    _MOST_TEXT, space, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            if flags & socket.MSG_CTRUNC:
                _say("descriptors were lost: this process may not open more (ulimit -n)")
            sender, descriptors = 0, array("i")
            for _, kind, data in messages:
                if kind == socket.SCM_RIGHTS:
                    descriptors.frombytes(data[: len(data) - len(data) % 4])
                elif kind == socket.SCM_CREDENTIALS:
                    sender = _CREDENTIALS.unpack(data)[0]
            self._heard(sender, text, descriptors)

    def _heard(self, sender: int, text: bytes, descriptors: Sequence[int]) -> None:
        lines = text.decode(errors="replace").splitlines()
        said = dict(line.partition("=")[::2] for line in lines)
        name = said.get("FDNAME", "stored")
        if sender == self._pid and said.get("FDSTORE") == "1":
            refused = self._store.add(name, descriptors)
            if refused:
                _say(f"no room for {refused} more descriptors: see --capacity")
            return
        # That of a barrier is closed like those that nobody wanted.
        for descriptor in descriptors:
            os.close(descriptor)
        if sender == self._pid:
            if said.get("READY") == "1" and not self._ready:
                self._ready = True
                for number in {signal.SIGINT} if self._ending else self._untold:
                    self._kill(number)
            if said.get("FDSTOREREMOVE") == "1":
                self._store.remove(name)
            if "ERRNO" in said:
                _say(f"cannot run {self._command[0]}: {os.strerror(int(said['ERRNO']))}")


def arrange(descriptors: Sequence[int]) -> None:
    """
    Move descriptors, in a process that is about to run another program, to L{FIRST} and the
    numbers behind it. Whatever else has these numbers is closed.

    At no moment does this take more than one descriptor in addition.
    """
    places = list(descriptors)
    indices = {place: index for index, place in enumerate(places)}
    for index in range(len(places)):
        target, place = FIRST + index, places[index]
        if place == target:
            os.set_inheritable(target, True)
            continue
        other = indices.pop(target, None)
        if other is not None:
            places[other] = os.dup(target)
            indices[places[other]] = other
        os.dup2(place, target)
        os.close(place)
        del indices[place]


def _line(text: str) -> bytes:
    return os.fsencode(f"ccproxyctl supervise: {text}\n")


#: Waits for stderr in a thread of its own: whoever reads it must not hold up a restart.
_log = LogWriter(
    descriptorWriter(2) if sys.__stderr__ is not None else len,
    lambda count: _line(f"{count} lines were lost here"),
)


def _say(text: str) -> None:
    _log.put(_line(text))


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = argparse.ArgumentParser(
        prog="ccproxyctl supervise",
        usage="%(prog)s [OPTION...] -- COMMAND [ARGUMENT...]",
        description="Run the daemon in the foreground, keep its connections while it is started"
        " again, and start it again when it dies. SIGTERM and SIGINT end it in order, SIGUSR2"
        " restarts it, SIGHUP and SIGUSR1 are passed on.",
        epilog="For example: ccproxyctl supervise -- twistd -n --pidfile= ccproxy",
    )
    parser.add_argument(
        "--capacity",
        type=whole(1, 1 << 20),
        default=CAPACITY,
        metavar="N",
        help="how many descriptors are kept at most (%(default)s, or fewer: as many as the limit"
        " of open files allows)",
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the daemon to run")
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{supervise}.
    @return: the exit status.
    """
    options = makeParser().parse_args(arguments)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    allowed = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - WORKING_DESCRIPTORS)
    _log.start()
    try:
        return Supervisor(options.command, min(options.capacity, allowed)).run()
    except (CCProxyError, OSError) as problem:
        _say(str(problem))
        return 1
    finally:
        _log.flush(FLUSH_TIMEOUT)
