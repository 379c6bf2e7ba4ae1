"""
A VM's console: read always, so that a guest never blocks on it.

What it says is kept in the VM's L{ConsoleRing <ccproxy.core.console.ConsoleRing>}; at level debug
it goes to the log as well, line by line.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.python.failure import Failure
from zope.interface import implementer

from ..core.console import characterEnd
from ..core.vm import VM
from .buffered import IBufferedProtocol
from .transport import StreamTransport

#: The longest piece of a line that is logged at once, in bytes; a longer line comes in pieces of
#: whole characters.
LONGEST_LINE = 4096
#: The most lines that are logged at once: a guest that floods its console shall not keep the loop.
MOST_LINES = 200


def _nobody() -> None:
    pass


def _cut(line: bytearray) -> tuple[list[bytearray], bytearray]:
    """Divide a line into pieces of whole characters and a rest shorter than L{LONGEST_LINE}."""
    pieces, at = [], 0
    while len(line) - at >= LONGEST_LINE:
        piece = line[at : at + LONGEST_LINE]
        pieces.append(piece[: characterEnd(piece)])
        at += len(pieces[-1])
    return pieces, line[at:]


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
        if self._vm.registry.context.verbose:
            *lines, rest = (self._line + data).split(b"\n")
            pieces = list[bytearray]()
            for line in lines:
                begun, end = _cut(line)
                pieces += [*begun, end] if end or not begun else begun
            begun, self._line = _cut(rest)
            pieces += begun
            for piece in pieces[:MOST_LINES]:
                self._note(piece)
            if len(pieces) > MOST_LINES:
                self._note(b"[%d more lines at once]" % (len(pieces) - MOST_LINES))
        elif self._line:
            self._line.clear()
        return len(data)

    def _note(self, line: bytes | bytearray) -> None:
        self._vm.log.debug(
            "console",
            event="console",
            source="console",
            text=line.rstrip(b"\r").decode("utf-8", "backslashreplace"),
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
