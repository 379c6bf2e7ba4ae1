"""
The terminal that a command was started on.
"""

from __future__ import annotations

import os
import termios
import tty
from contextlib import suppress


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
        self._before = termios.tcgetattr(fd)

    def makeRaw(self) -> None:
        """Hand over each key as it is pressed; the process's own terminal makes sense of it."""
        tty.setraw(self.fd, termios.TCSANOW)

    def makeKeyed(self) -> None:
        """Hand over each key as it is pressed, unseen; those that send signals still do."""
        tty.setcbreak(self.fd, termios.TCSANOW)

    def restore(self) -> None:
        """
        Put it back as it was. Calling it twice is no harm.

        At once: waiting until the output is read could take for ever.
        """
        # If it was hung up, there is nobody left to use it.
        with suppress(termios.error):
            termios.tcsetattr(self.fd, termios.TCSANOW, self._before)

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
