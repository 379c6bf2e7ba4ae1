"""
This process's own stdin, stdout and stderr, read and written by threads.

They are shared with others, who would see it if they were made non-blocking, also after we were
killed; and epoll refuses regular files. A thread for each can block without harm.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import Attribute, Interface, implementer

from .terminal import inBackground

#: The most that one read takes, in bytes.
READ_SIZE = 65536
#: With more than this not written yet, an output is full, in bytes.
FULL = 65536
#: Seconds between two looks whether the terminal can be read: a shell's C{fg} may tell nothing.
FOREGROUND_INTERVAL = 0.2


class IInput(Interface):
    """Where stdin comes from."""

    def read() -> Deferred[bytes]:
        """
        Wait for some bytes. One call at a time.

        @return: fires with them, or with none at all at the end.
        """


class IOutput(Interface):
    """Where stdout or stderr goes."""

    full: bool = Attribute("Whether more should wait until L{flushed}.")

    def write(data: bytes) -> None:
        """Take bytes, which are written as soon as the reader lets them."""

    def flushed() -> Deferred[None]:
        """
        @return: fires when all is written, or nothing can be any more.
        """


@implementer(IInput)
class InputReader:
    """
    Reads a descriptor in a thread, only when asked to.

    A terminal is read in the foreground only: in the background that would stop the whole process
    by SIGTTIN, or fail if SIGTTIN is ignored, which the process should do.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        fd: int,
        returned: Callable[[], None] = lambda: None,
    ) -> None:
        """
        @param fd: the descriptor.
        @param returned: called in the reactor's thread when a read has waited for the foreground.
        """
        self._reactor = reactor
        self._fd = fd
        self._returned = returned
        self._wanted = threading.Semaphore(0)
        self._waiting: Deferred[bytes] | None = None
        threading.Thread(target=self._run, daemon=True, name=f"read {fd}").start()

    def read(self) -> Deferred[bytes]:
        """Ask the thread for one read."""
        assert self._waiting is None, "one read at a time"
        self._waiting = Deferred()
        self._wanted.release()
        return self._waiting

    def _run(self) -> None:
        data = b"?"
        while data:
            self._wanted.acquire()
            data = self._read()
            self._reactor.callFromThread(self._deliver, data)

    def _read(self) -> bytes:
        while True:
            if inBackground(self._fd):
                while inBackground(self._fd):
                    time.sleep(FOREGROUND_INTERVAL)
                self._reactor.callFromThread(self._returned)
            try:
                return os.read(self._fd, READ_SIZE)
            except OSError:
                # Such as a terminal that was hung up, or a folder: there is no more to be had.
                if not os.isatty(self._fd):
                    return b""
                # It went to the background meanwhile.
                time.sleep(FOREGROUND_INTERVAL)

    def _deliver(self, data: bytes) -> None:
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        waiting.callback(data)


@implementer(IOutput)
class OutputWriter:
    """
    Writes to a descriptor in a thread.

    After a write has failed, everything is taken and dropped, as the process itself would see to
    its output going nowhere.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        fd: int,
        failed: Callable[[OSError], None],
    ) -> None:
        """
        @param fd: the descriptor.
        @param failed: called once if it can't be written to any more.
        """
        self._reactor = reactor
        self._fd = fd
        self._failed = failed
        self._broken = False
        self._unwritten = 0
        self._flushing: list[Deferred[None]] = []
        self._changed = threading.Condition()
        self._queue: list[bytes] = []
        threading.Thread(target=self._run, daemon=True, name=f"write {fd}").start()

    @property
    def full(self) -> bool:
        """Whether more should wait until L{flushed}."""
        return self._unwritten > FULL

    def write(self, data: bytes) -> None:
        """Hand bytes to the thread."""
        if self._broken or not data:
            return
        self._unwritten += len(data)
        with self._changed:
            self._queue.append(data)
            self._changed.notify()

    def flushed(self) -> Deferred[None]:
        """
        @return: fires when the thread has written all, or nothing can be written any more.
        """
        if not self._unwritten:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._flushing.append(waiter)
        return waiter

    def _run(self) -> None:
        error: OSError | None = None
        while error is None:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                queue, self._queue = self._queue, []
            data = memoryview(b"".join(queue))
            size = len(data)
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError as failure:
                error = failure
            self._reactor.callFromThread(self._written, size, error)

    def _written(self, size: int, error: OSError | None) -> None:
        self._unwritten -= size
        if error is not None:
            self._broken = True
            self._unwritten = 0
            self._failed(error)
        if not self._unwritten:
            flushing, self._flushing = self._flushing, []
            for waiter in flushing:
                waiter.callback(None)


def secureDescriptors() -> None:
    """
    Open C{/dev/null} the wrong way round where stdin, stdout or stderr is closed.

    Else the next thing opened, such as a socket, would take its number and get the output. That
    holds for the programs that this process starts, too, so they inherit it. Reading and writing
    still fail, as with a closed descriptor.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY if fd else os.O_WRONLY), True)
