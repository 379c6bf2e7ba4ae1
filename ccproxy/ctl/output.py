"""
The output of the commands.

If stdout is full or closed, a command reports one line and fails. If the reader of stdout has
left, the command only ends with the status L{NO_READER}. If stderr cannot be written, the command
goes on.
"""

from __future__ import annotations

import os
import signal
import sys

from ..errors import CCProxyError
from ..shim.stdio import secureDescriptors

#: The exit status of who would have died of SIGPIPE.
NO_READER = 128 + signal.SIGPIPE


class OutputError(CCProxyError):
    """
    Stdout cannot be written.

    @cvar status: the exit status that says so.
    """

    status = 1

    def report(self, program: str) -> int:
        """
        Say so on stderr.

        @param program: who says it.
        @return: the exit status.
        """
        say(f"{program}: {self}")
        return self.status


class NoReader(OutputError):
    """The reader of stdout has left. That needs no message."""

    status = NO_READER

    def report(self, program: str) -> int:
        """Say nothing."""
        return self.status


def secureStreams() -> None:
    """
    Give Python its standard streams where they are closed, so that using them is an error.

    Stdout has a buffer whatever PYTHONUNBUFFERED says: argparse ignores errors of its writes.
    """
    secureDescriptors()
    encoding, errors = getattr(sys.stdout, "encoding", None), getattr(sys.stdout, "errors", None)
    sys.stdout = open(1, "w", encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def write(text: str) -> None:
    """
    Print a text at once; what the encoding of stdout does not have is escaped.

    @raise OutputError: it cannot be written.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        raise _failed(error) from None


def writeBytes(data: bytes) -> None:
    """
    Print bytes as they are, at once.

    @raise OutputError: they cannot be written.
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except OSError as error:
        raise _failed(error) from None


def say(text: str) -> None:
    """Print a line on stderr, if that can be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(2)


def flush() -> None:
    """
    Write what others, such as argparse, have printed.

    @raise OutputError: it cannot be written.
    """
    try:
        sys.stderr.flush()
    except OSError:
        _discard(2)
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _failed(error) from None


def _failed(error: OSError) -> OutputError:
    _discard(1)
    if isinstance(error, BrokenPipeError):
        return NoReader("what reads the output has left")
    return OutputError(f"the output cannot be written: {error.strerror}")


def _discard(fd: int) -> None:
    """Let what is still in a stream's buffer go nowhere: Python would try again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)
