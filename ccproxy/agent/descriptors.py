"""
The ends of pipes and terminals, as the reactor polls them.

Twisted's own process transports are not used, because they start programs in the daemon's own
session, where a Ctrl-C at its terminal reaches them, cannot tell that a program does not exist,
and write a traceback into its standard error then.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

#: How much is read at once, in bytes: all that a pipe holds.
READ_SIZE = 1 << 16


class _Descriptor:
    """A file descriptor of ours that the reactor polls."""

    def __init__(self, reactor: Any, fd: int) -> None:
        self.reactor = reactor
        self.fd = fd
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        """The descriptor's number, -1 once it is closed."""
        return self.fd

    def logPrefix(self) -> str:
        """How Twisted's log calls it."""
        return "embedded agent"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is done with it."""
        self.close()

    def close(self) -> None:
        """Close it, once and for all."""
        if self.fd >= 0:
            self.reactor.removeReader(self)
            self.reactor.removeWriter(self)
            os.close(self.fd)
            self.fd = -1


@implementer(IReadDescriptor)
class Reader(_Descriptor):
    """
    Where a program's output comes from.

    @ivar received: called with what has come.
    @ivar ended: called once, when nobody holds the other end any more.
    """

    def __init__(
        self, reactor: Any, fd: int, received: Callable[[bytes], None], ended: Callable[[], None]
    ) -> None:
        super().__init__(reactor, fd)
        self.received = received
        self.ended = ended
        self.resume()

    def pause(self) -> None:
        """Read nothing. Doing it twice is no harm."""
        self.reactor.removeReader(self)

    def resume(self) -> None:
        """Read again. Doing it twice is no harm."""
        if self.fd >= 0:
            self.reactor.addReader(self)

    def doRead(self) -> Any:
        """There is something to read; returns the reason once there will be no more."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            # What a terminal says when its last holder has gone.
            return CONNECTION_DONE if error.errno == errno.EIO else CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.received(data)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """The end has come."""
        if self.fd >= 0:
            self.close()
            self.ended()


@implementer(IWriteDescriptor)
class Writer(_Descriptor):
    """
    Where a program's input goes.

    @ivar waiting: how many bytes the program has not taken.
    @ivar drained: called whenever a L{flush}, at once or later, leaves nothing.
    """

    def __init__(self, reactor: Any, fd: int, drained: Callable[[], None]) -> None:
        super().__init__(reactor, fd)
        self.drained = drained
        self.waiting = 0
        self._pieces: list[bytes] = []
        self._ending = False

    def write(self, data: bytes) -> None:
        """Take bytes for the next flush; they are dropped after an end."""
        if self.fd >= 0 and not self._ending:
            self._pieces.append(data)
            self.waiting += len(data)

    def end(self) -> None:
        """Close it after what waits."""
        self._ending = True

    def flush(self) -> None:
        """Write what waits, as far as it goes now; the rest follows by itself."""
        if self.fd >= 0 and self.doWrite() is not None:
            self.close()

    def doWrite(self) -> Any:
        """There is room; returns the reason once nothing more will be written."""
        data = b"".join(self._pieces)
        if data:
            try:
                written = os.write(self.fd, data)
            except BlockingIOError:
                written = 0
            except OSError:
                return CONNECTION_LOST
            data = data[written:]
        self._pieces = [data] if data else []
        self.waiting = len(data)
        if data:
            self.reactor.addWriter(self)
            return None
        if self._ending:
            return CONNECTION_DONE
        self.reactor.removeWriter(self)
        self.drained()
        return None

    def close(self) -> None:
        """Close it; what waits is dropped."""
        if self.fd >= 0:
            super().close()
            self._pieces = []
            self.waiting = 0
            self.drained()


@implementer(IReadDescriptor)
class Signpost(_Descriptor):
    """
    A descriptor that only becomes readable, such as that of a process that exits.

    @ivar reached: called once, when it does.
    """

    def __init__(self, reactor: Any, fd: int, reached: Callable[[], None]) -> None:
        super().__init__(reactor, fd)
        self.reached = reached
        reactor.addReader(self)

    def doRead(self) -> None:
        """It has become readable."""
        self.close()
        self.reached()
