"""
A bounded queue of lines, and the thread that writes them out.

The reactor must never wait for whoever reads the log: it only appends to the queue. Only the
thread blocks, in C{write}, and it may do so for ever. What does not fit into the queue, and what
cannot be written, is counted, and the count is written as a line of its own as soon as that works
again. Once lines have been refused, all are until half of the queue is free: the log has one gap
with its size, rather than many small ones.

The descriptor itself is never made non-blocking: stderr is shared with other processes.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable

#: How many bytes may wait.
CAPACITY = 1 << 20

#: Lines are joined up to this size (PIPE_BUF), which a pipe takes as a whole, so that other writers
#: of the same pipe do not get in between.
_ATOMIC = 4096


class PartlyWritten(OSError):
    """
    Not all could be written.

    @ivar written: how many bytes could.
    """

    def __init__(self, error: OSError, written: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.written = written


def descriptorWriter(descriptor: int, cut: bool = False) -> Callable[[bytes], None]:
    """
    A function that writes all of its argument to a descriptor, however long that takes.

    A disk that gets full may take a part of a line only; then what comes next begins a new one. The
    function raises L{PartlyWritten} if not all can be written.

    @param descriptor: it may be non-blocking, if somebody else has made it so.
    @param cut: whether what was written there before ends inside a line.
    """

    def write(data: bytes) -> None:
        nonlocal cut
        rest = memoryview(b"\n" + data if cut else data)
        while rest:
            try:
                size = os.write(descriptor, rest)
            except BlockingIOError:
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()
            except OSError as error:
                raise PartlyWritten(error, max(0, len(data) - len(rest))) from error
            else:
                end = len(data) - len(rest) + size
                cut = end > 0 and not data.endswith(b"\n", 0, end)
                rest = rest[size:]

    return write


class LogWriter:
    """
    Lines go in with L{put}, from any thread, and out through a function that may block.

    The thread is not started by the constructor: it would not survive the fork of a process that
    goes to the background.

    @ivar lost: how many lines could not be written so far.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        reportLost: Callable[[int], bytes],
        capacity: int = CAPACITY,
        joins: bool = True,
    ) -> None:
        """
        @param write: writes all of the bytes given, or raises an exception, which may be
            L{PartlyWritten}.
        @param reportLost: makes the line that says how many lines are missing.
        @param capacity: how many bytes may wait.
        @param joins: whether lines may be written together.
        """
        self.lost = 0
        self._write = write
        self._reportLost = reportLost
        self._capacity = capacity
        self._atomic = _ATOMIC if joins else 0
        # Its lock can be taken again by the thread that holds it: a garbage collection in the
        # middle of put() may log, too.
        self._changed = threading.Condition(threading.RLock())
        # Each line with the number of log entries that it tells the loss of; 0 is an entry itself.
        self._lines: deque[tuple[bytes, int]] = deque()
        self._size = 0
        # Those of which no line has told yet.
        self._lost = 0
        self._writing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write. Call this once, after the process's last fork."""
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """
        Append a line. Never blocks.

        @param line: with its line feed.
        """
        with self._changed:
            room = self._capacity // 2 if self._lost else self._capacity
            if self._size + len(line) > room:
                self._lose()
                return
            if self._lost:
                self._appendReport()
            self._append(line)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """
        Wait until everything has been written. Where L{start} was never called, write it now.

        @param timeout: how many seconds to wait at most.
        @return: whether everything has been written.
        """
        if self._thread is None:
            while self._lines:
                self._writeSome()
            return True
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, timeout)

    def _lose(self) -> None:
        self._lost += 1
        self.lost += 1

    def _append(self, line: bytes, tells: int = 0) -> None:
        self._lines.append((line, tells))
        self._size += len(line)

    def _appendReport(self) -> None:
        lost, self._lost = self._lost, 0
        self._append(self._reportLost(lost), lost)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
            self._writeSome()

    def _writeSome(self) -> None:
        with self._changed:
            batch, taken = self._take()
            self._writing = True
        try:
            self._write(batch)
            written = len(batch)
        except Exception as error:
            # Whoever read the log is gone, or the disk is full. There is nobody to tell, and
            # whatever else it is must not end this thread.
            written = error.written if isinstance(error, PartlyWritten) else 0
        with self._changed:
            self._writing = False
            failed = written < len(batch)
            for size, tells in taken:
                written -= size
                if written < 0 and tells:
                    self._lost += tells
                elif written < 0:
                    self._lose()
            if not failed and self._lost and not self._lines:
                self._appendReport()
            self._changed.notify_all()

    def _take(self) -> tuple[bytes, list[tuple[int, int]]]:
        """
        Take the first line, and those after it that can be written with it; the size of each, and
        what it tells.
        """
        batch, taken = bytearray(), list[tuple[int, int]]()
        while self._lines and (not batch or len(batch) + len(self._lines[0][0]) <= self._atomic):
            line, tells = self._lines.popleft()
            batch += line
            taken.append((len(line), tells))
        self._size -= len(batch)
        return bytes(batch), taken
