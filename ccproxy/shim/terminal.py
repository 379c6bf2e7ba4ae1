"""
The terminal that a command was started on.
"""

from __future__ import annotations

import os
import termios
import tty
from contextlib import suppress
from typing import Any


def inBackground(fd: int) -> bool:
    """
    True if a descriptor is our controlling terminal, and another process group has the foreground.

    Reading from the terminal and changing its modes is then the business of that group alone.
    """
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False


class Terminal:
    """
    A terminal that can be made raw, and be put back.

    @ivar fd: its descriptor.
    """

    def __init__(self, fd: int) -> None:
        """
        @param fd: its descriptor.
        """
        self.fd = fd
        self._before: list[Any] | None = None

    def save(self) -> None:
        """Remember how it is, for L{restore}. Only the first call counts."""
        if self._before is None:
            self._before = termios.tcgetattr(self.fd)

    def makeRaw(self) -> None:
        """Hand over each key as it is pressed; the process's own terminal makes sense of it."""
        self.save()
        tty.setraw(self.fd, termios.TCSANOW)

    def makeKeyed(self) -> None:
        """Hand over each key as it is pressed, unseen; those that send signals still do."""
        self.save()
        tty.setcbreak(self.fd, termios.TCSANOW)

    def restore(self) -> None:
        """
        Put it back as it was saved, unless others have the foreground. Calling it twice is no harm.

        At once: waiting until the output is read could take for ever.
        """
        # If it was hung up, there is nobody left to use it.
        with suppress(termios.error):
            if self._before is not None and not inBackground(self.fd):
                termios.tcsetattr(self.fd, termios.TCSANOW, self._before)

    def isRaw(self) -> bool:
        """Return whether no key sends a signal, as L{makeRaw} leaves the terminal."""
        with suppress(termios.error):
            return not termios.tcgetattr(self.fd)[3] & termios.ISIG
        return False

    def size(self) -> tuple[int, int] | None:
        """
        @return: its columns and rows, or L{None} if it does not know them.
        """
        try:
            columns, rows = os.get_terminal_size(self.fd)
        except OSError:
            return None
        return (columns, rows) if columns and rows else None


def terminalOf(*fds: int) -> Terminal | None:
    """The terminal of the first descriptor that has one."""
    return next((Terminal(fd) for fd in fds if os.isatty(fd)), None)
