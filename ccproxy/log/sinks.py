"""
Where the log goes: stderr, a file, syslog and the journal.

Each sink has a queue and a thread of its own (L{ccproxy.log.writer}), so that one that takes
nothing holds up neither the daemon nor the others. Everything here may block, and runs in those
threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress

import attrs

from ..config.settings import Settings
from .formats import FORMATS, Entry, asJournal, asLine, asSyslog
from .writer import descriptorWriter

SYSLOG = "/dev/log"
JOURNAL = "/run/systemd/journal/socket"
#: How long a file gets, in bytes, before another one is begun: the value of C{twistd --logfile}.
ROTATE_SIZE = 1_000_000

Write = Callable[[bytes], object]


@attrs.frozen
class Sink:
    """
    A place that the log goes to.

    @ivar render: what is written of an entry.
    @ivar write: writes bytes, all of them. It may block, and it may raise
        L{PartlyWritten <ccproxy.log.writer.PartlyWritten>} or another exception.
    @ivar joins: whether entries that wait may be written together.
    """

    render: Callable[[Entry], bytes]
    write: Write
    joins: bool = True


class FileWriter:
    """
    Appends to a file, and rotates it as C{twistd --logfile} does.

    When the file has L{ROTATE_SIZE}, it becomes FILE.1, FILE.1 becomes FILE.2, and so on. Then the
    writer starts a new file. It also does so when another program has moved the file. While no new
    file can be made, the writer goes on with the old one.
    """

    def __init__(self, path: str) -> None:
        """
        @param path: the file's; it is made if it is not there.
        @raise OSError: the file cannot be written.
        """
        self._path = os.path.abspath(path)
        self._descriptor = -1
        self._open(0o666)

    def __call__(self, data: bytes) -> None:
        """
        Append.

        @raise OSError: not all could be written.
        """
        with suppress(OSError):
            self._rotate()
        self._write(data)

    def _open(self, mode: int) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, mode)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        size = os.fstat(descriptor).st_size
        # The process before may have died, or found the disk full, inside a line.
        cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        self._write = descriptorWriter(descriptor, cut)
        self._descriptor = descriptor

    def _rotate(self) -> None:
        """
        Begin a new file if it is time.

        @raise OSError: that is not possible.
        """
        state = os.fstat(self._descriptor)
        try:
            moved = not os.path.samestat(state, os.stat(self._path))
        except FileNotFoundError:
            moved = True
        if not moved and (state.st_size < ROTATE_SIZE or not stat.S_ISREG(state.st_mode)):
            return
        if not moved:
            for number in sorted(self._numbers(), reverse=True):
                os.rename(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.rename(self._path, f"{self._path}.1")
        self._open(0o600)
        os.fchmod(self._descriptor, stat.S_IMODE(state.st_mode))

    def _numbers(self) -> Iterator[int]:
        """The numbers of the files that were begun before this one."""
        folder, name = os.path.split(self._path)
        for each in os.listdir(folder):
            number = each.removeprefix(f"{name}.")
            if number != each and number.isascii() and number.isdigit() and number[0] != "0":
                yield int(number)


class SocketWriter:
    """
    Sends each entry to a local socket, as a datagram. It connects when there is something to send,
    and anew when whoever listens there was started anew.
    """

    def __init__(self, path: str) -> None:
        """
        @param path: the socket's.
        """
        self._path = path
        self._socket: socket.socket | None = None

    def __call__(self, data: bytes) -> None:
        """
        Send.

        @raise OSError: nobody takes it.
        """
        fresh = self._socket is None
        try:
            self._sendOn(self._socket or self._connect(), data)
        except OSError as error:
            self._forget()
            if fresh or error.errno == errno.EMSGSIZE:
                raise
            self._sendOn(self._connect(), data)

    def _connect(self) -> socket.socket:
        self._socket = connecting = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        connecting.connect(self._path)
        return connecting

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _sendOn(self, connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)


class SyslogWriter(SocketWriter):
    """
    Sends to syslog, which may listen for a stream instead.
    """

    def _connect(self) -> socket.socket:
        try:
            return super()._connect()
        except OSError as error:
            self._forget()
            if error.errno != errno.EPROTOTYPE:
                raise
        self._socket = connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connecting.connect(self._path)
        return connecting

    def _sendOn(self, connection: socket.socket, data: bytes) -> None:
        connection.sendall(data if connection.type is socket.SOCK_DGRAM else data + b"\n")


class JournalWriter(SocketWriter):
    """
    Sends to the journal: what is too long for a datagram in a file without a name, sealed.
    """

    def _sendOn(self, connection: socket.socket, data: bytes) -> None:
        try:
            super()._sendOn(connection, data)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._sendFile(connection, data)

    def _sendFile(self, connection: socket.socket, data: bytes) -> None:
        descriptor = os.memfd_create("ccproxy-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            descriptorWriter(descriptor)(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))
            connection.sendmsg([], [rights])
        finally:
            os.close(descriptor)


def standardErrorWriter() -> Write:
    """
    A function that writes to stderr, or nowhere if there was none when the process began: its
    descriptor may be a socket by now.
    """
    return descriptorWriter(2) if sys.__stderr__ is not None else len


def sinksOf(
    settings: Settings, standardError: Callable[[], Write] = standardErrorWriter
) -> list[Sink]:
    """
    The sinks that are asked for. One that is not there may come later; if none is, the log goes to
    stderr.

    @param standardError: gives what writes to stderr, or to what stands for it.
    """
    format = FORMATS[settings.logFormat]
    make = {
        "stderr": lambda: Sink(asLine(format), standardError()),
        "syslog": lambda: Sink(asSyslog(format), SyslogWriter(SYSLOG), joins=False),
        "journal": lambda: Sink(asJournal, JournalWriter(JOURNAL), joins=False),
    }
    names = list(settings.logTo)
    if missingSinks(settings) == names:
        names.append("stderr")
    return [make[name]() for name in names]


def missingSinks(settings: Settings) -> list[str]:
    """Those that are asked for, and of which nothing is there now."""
    paths = {"syslog": SYSLOG, "journal": JOURNAL}
    return [name for name in settings.logTo if name in paths and not os.path.exists(paths[name])]
