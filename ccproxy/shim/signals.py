"""
Which signals go on to the process in the VM, and how they are caught.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import Any

from twisted.internet.abstract import FileDescriptor

#: A fault of our own repeats for ever if a Python function catches it; SIGCHLD and SIGPIPE are
#: about our own children and pipes; a terminal that is read or written from the background stops
#: who does it.
_OURS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGKILL,
    signal.SIGSTOP,
}


def forShims() -> set[int]:
    """All that can be forwarded."""
    return {int(number) for number in signal.valid_signals() - _OURS}


def forCommands() -> set[int]:
    """
    Those of a command that people start from a shell: without what its starter has it ignore,
    as C{nohup} does, and without SIGTSTP, so that Ctrl-Z gives the shell back.
    """
    ignored = {each for each in forShims() if signal.getsignal(each) is signal.SIG_IGN}
    return forShims() - ignored - {signal.SIGTSTP}


def nameOf(number: int) -> str:
    """A signal's name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Wakeup(FileDescriptor):
    """
    Wakes the reactor when a signal has come, for as long as the context lasts.

    A signal may interrupt any thread, but Python runs its handler in the main thread, and only once
    that thread does something. Waiting for events is nothing.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: the reactor of the main thread (IReactorFDSet).
        """
        super().__init__(reactor)
        self._ours, self._kernels = socket.socketpair()
        self._ours.setblocking(False)
        self._kernels.setblocking(False)

    def __enter__(self) -> Wakeup:
        signal.set_wakeup_fd(self._kernels.fileno(), warn_on_full_buffer=False)
        self.startReading()
        return self

    def __exit__(self, *unused: object) -> None:
        signal.set_wakeup_fd(-1)
        self.stopReading()
        self._ours.close()
        self._kernels.close()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._ours.fileno()

    def doRead(self) -> None:
        """Discard the bytes: handlers have run by now."""
        with suppress(BlockingIOError):
            self._ours.recv(4096)


class Catching:
    """Calls a function for each signal, for as long as the context lasts."""

    def __init__(self, numbers: Iterable[int], caught: Callable[[int], object]) -> None:
        """
        @param numbers: the signals.
        @param caught: called with the number, in the main thread, wherever that is just then.
        """
        self._numbers = numbers
        self._caught = caught
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Catching:
        for number in self._numbers:
            before = signal.signal(number, self._handle)
            if before is not None:
                # What is not Python's, such as faulthandler's, can't be put back.
                self._before[number] = before
        return self

    def __exit__(self, *unused: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._caught(number)
