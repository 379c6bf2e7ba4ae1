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


def descriptorWriter(descriptor: int) -> Callable[[bytes], None]:
    """
    A function that writes all of its argument to a descriptor, however long that takes.

    A disk that gets full may take a part of a line only; then what comes next begins a new one.

    @param descriptor: it may be non-blocking, if somebody else has made it so.
    """
    cut = False

    def write(data: bytes) -> None:
        nonlocal cut
        rest = memoryview(b"\n" + data if cut else data)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
                cut = bool(rest)
            except BlockingIOError:
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()

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
        @param write: writes all of the bytes given, or raises L{OSError}.
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
            written = True
        except OSError:
            # Whoever read the log is gone, or the disk is full. There is nobody to tell.
            written = False
        with self._changed:
            self._writing = False
            if not written:
                for tells in taken:
                    if tells:
                        self._lost += tells
                    else:
                        self._lose()
            elif self._lost and not self._lines:
                self._appendReport()
            self._changed.notify_all()

    def _take(self) -> tuple[bytes, list[int]]:
        """Take the first line, and those after it that can be written with it; what each tells."""
        batch, taken = bytearray(), list[int]()
        while self._lines and (not batch or len(batch) + len(self._lines[0][0]) <= self._atomic):
            line, tells = self._lines.popleft()
            batch += line
            taken.append(tells)
        self._size -= len(batch)
        return bytes(batch), taken
