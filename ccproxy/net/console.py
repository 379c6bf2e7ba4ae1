"""
A VM's console: read always, so that a guest never blocks on it, and noted in the log.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

#: The longest piece of a line that is noted at once, in bytes; a longer line comes in pieces.
LONGEST_LINE = 4096


def _nobody() -> None:
    pass


class Console(Protocol):
    """
    Notes the lines of a console at debug level.
    """

    def __init__(
        self, log: Logger, fields: dict[str, object], whenLost: Callable[[], None]
    ) -> None:
        """
        @param fields: what every line of the log says about the VM.
        @param whenLost: called when the connection has ended.
        """
        self._log = log
        self._fields = fields
        self._whenLost = whenLost
        self._line = bytearray()

    def dataReceived(self, data: bytes) -> None:
        """Bytes have come; whole lines are noted."""
        self._line += data
        *lines, rest = self._line.split(b"\n")
        for line in lines:
            self._note(bytes(line))
        while len(rest) > LONGEST_LINE:
            self._note(bytes(rest[:LONGEST_LINE]))
            rest = rest[LONGEST_LINE:]
        self._line = rest

    def _note(self, line: bytes) -> None:
        for at in range(0, max(1, len(line)), LONGEST_LINE):
            piece = line[at : at + LONGEST_LINE].rstrip(b"\r")
            self._log.debug(
                "{text}",
                event="console",
                text=piece.decode("utf-8", "backslashreplace"),
                source="console",
                **self._fields,
            )

    def close(self) -> None:
        """Read no more, and tell nobody."""
        self._whenLost = _nobody
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The console has gone: what it said last is noted too."""
        if self._line:
            self._note(bytes(self._line))
            self._line.clear()
        self._whenLost()
