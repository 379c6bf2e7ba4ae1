"""
One running program: how it is started, its pipes or its terminal, its end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from zope.interface import implementer

from ..wire.messages import LOST_STATUS
from . import reaping
from .descriptors import Reader, Signpost, Writer
from .interfaces import IRunning, IRunningSink, Program, StartError

#: Exit statuses of a program that does not exist, that cannot be executed, and that cannot be
#: started for another reason, as shells and chroot give them.
NOT_FOUND, NOT_EXECUTABLE, NOT_STARTED = 127, 126, 125
#: The signals that a terminal sends to a whole process group, by Ctrl-C, by Ctrl-\, and when it is
#: hung up; and the one that each writer gets whose reader has left. A shell that waits for the
#: programs that it has started does not pass them on.
_FOR_GROUPS = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE}
#: Of termios(3), which Python's module does not have: erasing takes away a whole UTF-8 character.
_IUTF8 = 0o40000


class Place(Protocol):
    """Where a program runs, if not beside the agent."""

    def around(self) -> AbstractContextManager[None]:
        """What is done around the fork of the child that becomes the program."""

    def enter(self, workdir: str) -> None:
        """What that child does first; it ends in the program's working directory."""


@implementer(IRunning)
class RunningProgram:
    """
    A program that runs in a session of its own.

    @ivar program: what was asked for.
    @ivar pid: its process id, also that of its session; it means nothing once C{exited}.
    @ivar exited: whether it has exited and was reaped.
    """

    def __init__(
        self,
        reactor: Any,
        program: Program,
        environment: Mapping[str, str],
        workdir: str,
        sink: IRunningSink,
        reaped: Callable[[RunningProgram], None],
        place: Place | None = None,
    ) -> None:
        """
        Start the program.

        @param environment: all its variables.
        @param workdir: where it starts.
        @param reaped: called once it has exited.
        @param place: where it runs, beside the agent by default.
        @raise StartError: it cannot be started.
        """
        opened: list[int] = []
        try:
            theirs, ours = (_terminal if program.terminal else _pipes)(opened)
            self._popen = _popen(program, environment, workdir, theirs, place)
            reaping.own.add(self._popen.pid)
            exit = _pidfd(self._popen)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            for fd in opened:
                os.close(fd)
            raise _startError(program, workdir, error) from None
        for fd in {*theirs}:
            os.close(fd)
        self.program = program
        self.pid = self._popen.pid
        self.exited = False
        self._sink = sink
        self._reaped = reaped
        stdin, *outputs = ours
        self._stdin = Writer(reactor, stdin, sink.stdinDrained)
        self._outputs: dict[int, Reader] = {}
        for stream, fd in enumerate(outputs, 1):
            self._outputs[stream] = self._reader(reactor, stream, fd)
        self._exit = Signpost(reactor, exit, self._exitReached)

    def _reader(self, reactor: Any, stream: int, fd: int) -> Reader:
        def received(data: bytes) -> None:
            self._sink.output(stream, data)

        def ended() -> None:
            del self._outputs[stream]
            self._end()

        return Reader(reactor, fd, received, ended)

    @property
    def waiting(self) -> int:
        """How many bytes of standard input wait to be read by the program."""
        return self._stdin.waiting

    def write(self, data: bytes) -> None:
        """Take standard input; it goes out with the next L{flush}."""
        self._stdin.write(data)

    def flush(self) -> None:
        """Write the standard input that waits."""
        self._stdin.flush()

    def closeStdin(self) -> None:
        """End the standard input after what waits."""
        self._stdin.end()

    def signal(self, number: int) -> None:
        """Send a signal to the program itself, or to its whole process group."""
        if self.exited:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        (os.killpg if number in _FOR_GROUPS else os.kill)(self.pid, number)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal; the kernel then sends SIGWINCH to its foreground group."""
        terminal = self._outputs.get(1)
        if self.program.terminal and terminal is not None:
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(terminal.fileno(), termios.TIOCSWINSZ, size)

    def pauseOutput(self) -> None:
        """Read no output."""
        for reader in self._outputs.values():
            reader.pause()

    def resumeOutput(self) -> None:
        """Read output again."""
        for reader in self._outputs.values():
            reader.resume()

    def discard(self) -> None:
        """Close all that it is connected to, for it is going to be killed."""
        self._stdin.close()
        for reader in list(self._outputs.values()):
            reader.close()
        self._outputs.clear()

    def _exitReached(self) -> None:
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            # Another part of the program has reaped it. Popen would take that for success.
            self._popen.returncode = LOST_STATUS
        self._popen.wait()
        reaping.own.discard(self.pid)
        self.exited = True
        self._reaped(self)
        self._end()

    def _end(self) -> None:
        if self.exited and not self._outputs:
            self._stdin.close()
            self._sink.ended(self._popen.returncode)


def _terminal(opened: list[int]) -> tuple[list[int], list[int]]:
    """The program's three descriptors, and ours: its standard input, then its outputs."""
    master, slave = os.openpty()
    opened += master, slave
    modes = termios.tcgetattr(slave)
    modes[0] |= _IUTF8
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    # Two descriptors, as the reactor sees a hang-up on one that it only writes to as its end,
    # while there may be output left to read.
    writing = os.dup(master)
    opened.append(writing)
    return [slave, slave, slave], [writing, master]


def _pipes(opened: list[int]) -> tuple[list[int], list[int]]:
    """The same without a terminal."""
    for _ in range(3):
        opened += os.pipe()
    stdin, writing, stdout, output, stderr, errors = opened
    return [stdin, output, errors], [writing, stdout, stderr]


def _popen(
    program: Program,
    environment: Mapping[str, str],
    workdir: str,
    fds: list[int],
    place: Place | None,
) -> subprocess.Popen[bytes]:
    ignored = [n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]

    def prepare() -> None:
        # The daemon may have been started with signals ignored, by nohup or as a background
        # job; its programs would keep that and be deaf to Ctrl-C.
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        # Nor shall they hold back what the daemon holds back, or was started with.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if program.terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if place is not None:
            place.enter(workdir)

    stdin, stdout, stderr = fds
    with nullcontext() if place is None else place.around():
        return subprocess.Popen(
            program.args,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=workdir if place is None else None,
            env=environment,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - it takes no lock, so threads do no harm
        )


def _pidfd(popen: subprocess.Popen[bytes]) -> int:
    try:
        return os.pidfd_open(popen.pid)
    except OSError:
        popen.kill()
        popen.wait()
        reaping.own.discard(popen.pid)
        raise


def _startError(program: Program, workdir: str, error: Exception) -> StartError:
    reason = str(error)
    status = NOT_STARTED
    if isinstance(error, OSError):
        reason = error.strerror or reason
        if error.filename == workdir:
            return StartError(f"cannot start in workdir {workdir!r}: {reason}", status)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            status = NOT_FOUND
        elif error.errno == errno.EACCES:
            status = NOT_EXECUTABLE
    return StartError(f"cannot start {program.args[0]!r}: {reason}", status)
