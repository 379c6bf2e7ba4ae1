"""
A VM's console: read always, so that a guest never blocks on it.

What it says is kept in the VM's L{ConsoleRing <ccproxy.core.console.ConsoleRing>}; at level debug
it goes to the log as well, line by line.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.python.failure import Failure
from zope.interface import implementer

from ..core.vm import VM
from .buffered import IBufferedProtocol
from .transport import StreamTransport

#: The longest piece of a line that is logged at once, in bytes; a longer line comes in pieces.
LONGEST_LINE = 4096


def _nobody() -> None:
    pass


@implementer(IBufferedProtocol)
class Console:
    """
    The connection to a console.
    """

    def __init__(self, vm: VM, whenLost: Callable[[], None]) -> None:
        """
        @param vm: whose console it is.
        @param whenLost: called when the connection has ended.
        """
        self._vm = vm
        self._whenLost = whenLost
        self._line = bytearray()
        self._connection: StreamTransport

    def makeConnection(self, transport: StreamTransport) -> None:
        """The connection begins."""
        self._connection = transport

    def bufferReceived(self, data: memoryview) -> int:
        """The console has said something."""
        self._vm.console.add(data)
        if self._vm.registry.verbose:
            *lines, rest = (self._line + data).split(b"\n")
            for line in lines:
                self._note(line)
            whole = len(rest) // LONGEST_LINE * LONGEST_LINE
            if whole:
                self._note(rest[:whole])
            self._line = rest[whole:]
        elif self._line:
            self._line.clear()
        return len(data)

    def _note(self, line: bytearray) -> None:
        for at in range(0, max(1, len(line)), LONGEST_LINE):
            piece = line[at : at + LONGEST_LINE].rstrip(b"\r")
            self._vm.log.debug(
                "console",
                event="console",
                source="console",
                text=piece.decode("utf-8", "backslashreplace"),
                **self._vm.fields,
            )

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._connection.fileno()

    def close(self) -> None:
        """Take what has come, read no more, and tell nobody."""
        self._whenLost = _nobody
        self._connection.readNow()
        self._connection.close()

    def readConnectionLost(self) -> None:
        """See L{IBufferedProtocol.readConnectionLost}."""
        self._connection.close()

    def connectionLost(self, reason: Failure) -> None:
        """The console has gone: what it said last is logged too."""
        if self._line:
            self._note(self._line)
            self._line.clear()
        self._whenLost()

    def writable(self) -> None:
        """Nothing is ever sent."""

    def drained(self) -> None:
        """Nothing is ever sent."""

    def peerGone(self) -> None:
        """Reading is never paused."""
