"""
The machine that the embedded agent runs on: programs, files and C{ps}, without any isolation.

What a container runs is found again by a variable in its environment, C{CCPROXY_CONTAINER},
and by its session: children in the background, other process groups and other sessions included.
Only a program that both leaves its session and hides its environment escapes.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from ..net.deadlines import Deadlines
from .interfaces import IMachine, IRunningSink, Program, StartError
from .programs import NOT_STARTED, Place, RunningProgram

MARK = "CCPROXY_CONTAINER"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The longest file that readfile gives, and the longest output of ps, in bytes.
MAX_RESULT = (1 << 20) - 64
PS_TIMEOUT = 10.0
#: Seconds that programs have between SIGTERM and SIGKILL when the machine stops.
GRACE = 0.5
#: Seconds after which the machine stops, whatever still runs.
STOP_TIMEOUT = 10.0
STOP_INTERVAL = 0.02


@implementer(IMachine)
class Machine:
    """Runs programs as the daemon's own user, on the daemon's own machine."""

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: polls the programs' descriptors (IReactorFDSet) and keeps the time
            (IReactorTime).
        """
        self.reactor = reactor
        self._mark = os.urandom(8).hex()
        self._programs: set[RunningProgram] = set()
        self._stopping = False

    def start(self, program: Program, sink: IRunningSink) -> RunningProgram:
        """
        Start a program.

        Its environment is what was asked for, C{PATH} and C{HOME}, with a terminal C{TERM}, and
        the variable that it is found by. It starts in the user's home by default.

        @raise StartError: it cannot be started.
        """
        if self._stopping:
            raise StartError("the machine is being stopped", NOT_STARTED)
        home = os.path.expanduser("~")
        # It is root's folder if twistd has given up root's privileges.
        if not os.access(home, os.X_OK, effective_ids=True):
            home = "/"
        environment = {"PATH": PATH, "HOME": home}
        if program.terminal:
            environment["TERM"] = "xterm"
        environment.update(program.environment)
        environment[MARK] = f"{self._mark}.{program.container}"
        workdir = os.path.join("/", program.workdir or home)
        place = self.place(program)
        running = RunningProgram(
            self.reactor, program, environment, workdir, sink, self._programs.remove, place
        )
        self._programs.add(running)
        return running

    def place(self, program: Program) -> Place | None:
        """
        Where a program shall run; C{None} is beside the agent.

        @raise StartError: there is no such place.
        """
        return None

    def startPod(self, hostname: str, shareDir: str) -> None:
        """Do nothing: the machine keeps its name, and shares nothing."""

    def endPod(self) -> None:
        """Do nothing: the machine goes on."""

    def members(self, container: int | None) -> list[int]:
        """The pids of a container's processes, or of all; their children included."""
        sessions = {
            running.pid
            for running in self._programs
            if container is None or running.program.container == container
        }
        mark = f"\0{MARK}={self._mark}.".encode()
        if container is not None:
            mark += b"%d\0" % container
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
        return [pid for pid in pids if _isIn(pid, sessions, mark)]

    def signal(self, container: int | None, number: int) -> None:
        """Send a signal to all L{members}."""
        for pid in self.members(container):
            try:
                os.kill(pid, number)
            except OSError:
                continue  # It has just ended, or has become another user's.

    def ps(self, args: Sequence[str], done: Callable[[bytes | None], None]) -> None:
        """Run C{ps}, for at most L{PS_TIMEOUT} seconds."""
        output = _PsOutput(self.reactor, done)
        try:
            output.running = self.start(Program(["ps", *args]), output)
        except StartError:
            output.ended(NOT_STARTED)
            return
        output.running.closeStdin()
        output.running.flush()

    def readFile(self, path: str) -> bytes:
        """
        @return: what is in a regular file.
        @raise OSError: it is none, or longer than L{MAX_RESULT}, or cannot be read.
        """
        with open(_openRegular(path, os.O_RDONLY), "rb") as file:
            content = file.read(MAX_RESULT + 1)
        if len(content) > MAX_RESULT:
            raise OSError(f"{path!r} is longer than {MAX_RESULT} bytes")
        return content

    def writeFile(self, path: str, content: bytes) -> None:
        """
        Put something into a regular file, which is made if need be.

        @raise OSError: it cannot be written.
        """
        with open(_openRegular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(content)

    async def stop(self) -> None:
        """
        End all programs, by SIGTERM and then by SIGKILL, and start no more.

        It returns when all have been reaped and none of their children is left.
        """
        self._stopping = True
        deadlines = Deadlines(self.reactor)
        now = begun = deadlines.seconds()
        for running in list(self._programs):
            running.discard()
        self.signal(None, signal.SIGTERM)
        while self._programs or self.members(None):
            # As of the time before the last wait: what had ended by then has been noticed.
            if now - begun > STOP_TIMEOUT:
                left = self.members(None)
                self.log.error("processes that could not be killed: {pids}", pids=left)
                return
            if now - begun > GRACE:
                self.signal(None, signal.SIGKILL)
            now = deadlines.seconds()
            await deferLater(deadlines, STOP_INTERVAL)


def _isIn(pid: int, sessions: set[int], mark: bytes) -> bool:
    try:
        if os.getsid(pid) in sessions:
            return True
        return mark in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # It has just ended, or is another user's.


def _openRegular(path: str, flags: int) -> int:
    """Open a file, but nothing that could block the daemon."""
    fd = os.open(os.path.join("/", path), flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path!r} is no regular file")
    return fd


@implementer(IRunningSink)
class _PsOutput:
    """Collects the output of ps."""

    def __init__(self, reactor: Any, done: Callable[[bytes | None], None]) -> None:
        self.running: RunningProgram | None = None
        self._done = done
        self._pieces: list[bytes] = []
        self._size = 0
        self._deadline = Deadlines(reactor).callLater(PS_TIMEOUT, self._kill)

    def output(self, stream: int, data: bytes) -> None:
        if stream == 1:
            self._pieces.append(data)
            self._size += len(data)
            if self._size > MAX_RESULT:
                self._pieces.clear()
                self._kill()

    def stdinDrained(self) -> None:
        pass

    def ended(self, returncode: int) -> None:
        if self._deadline.active():
            self._deadline.cancel()
        self._done(None if returncode else b"".join(self._pieces))

    def _kill(self) -> None:
        if self.running is not None and not self.running.exited:
            self.running.signal(signal.SIGKILL)
