"""
The writing half of a connected AF_UNIX stream socket.

What is sent is with the kernel at once or not taken at all, so a sender knows what is on its way,
and can learn when the peer has read it. A failed write never ends the connection: nothing more is
written then, and what the peer sent before it went is still read.
"""

from __future__ import annotations

import enum
import errno
import socket
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fcntl import ioctl
from select import EPOLLOUT
from termios import TIOCOUTQ

import attrs
from twisted.logger import Logger

from ..wire.decoder import Buffer
from .buffered import IBufferedProtocol
from .polling import Poller

#: The most that is written in one call, in bytes: AF_UNIX takes as much whole or not at all.
MOST_PER_CALL = 32 << 10
#: The most buffers in one call: the system's IOV_MAX.
MOST_BUFFERS = 1024
#: The kernel counts whole buffers, none of which is smaller than this; a moment before it has let
#: go of the last one a byte or two are left in its count.
_LEAST_COUNTED = 256
#: Where the kernel writes its count: three times faster than having bytes made for it.
_counted = array("i", [0])

_log = Logger()


class _Output(enum.Enum):
    FREE = enum.auto()
    #: A write was short; an event says when there is room.
    FULL = enum.auto()
    #: A write has failed, or the transport is closed.
    BROKEN = enum.auto()


# Found faster than through their class, on the path of every chunk.
_FREE, _FULL, _BROKEN = _Output


def _portions(data: Iterable[Buffer]) -> Iterator[tuple[list[Buffer], int]]:
    """Group buffers for one call each, with their size; only a buffer too long alone is cut."""
    portion: list[Buffer] = []
    size = 0
    for buffer in data:
        view = memoryview(buffer)
        for piece in (view[at : at + MOST_PER_CALL] for at in range(0, len(view), MOST_PER_CALL)):
            if size + len(piece) > MOST_PER_CALL or len(portion) == MOST_BUFFERS:
                yield portion, size
                portion, size = [], 0
            portion.append(piece)
            size += len(piece)
    if portion:
        yield portion, size


@attrs.define(eq=False, weakref_slot=False)
class SocketWriter:
    """
    Writes to a socket, and knows what has become of that.

    @ivar peer: who is at the other end, for logs.
    @ivar protocol: whom it serves.
    """

    _poller: Poller
    _socket: socket.socket
    peer: str
    protocol: IBufferedProtocol = attrs.field(init=False)
    _output: _Output = attrs.field(default=_FREE, init=False)
    _watchingRoom: bool = attrs.field(default=False, init=False)
    _drainWanted: bool = attrs.field(default=False, init=False)

    def fileno(self) -> int:
        """The socket's descriptor, -1 once it is closed."""
        return self._socket.fileno()

    def send(self, data: Sequence[Buffer]) -> int:
        """
        See L{IConnection.send}.

        Buffers are written as many at a time as L{MOST_PER_CALL} allows, and each of them whole or
        not at all, unless it is longer than that.
        """
        if self._output is not _FREE:
            return 0
        size = sum(map(len, data))
        if size <= MOST_PER_CALL and len(data) <= MOST_BUFFERS:
            return self._send(data, size)
        taken = 0
        for portion, size in _portions(data):
            count = self._send(portion, size)
            taken += count
            if count < size:
                break
        return taken

    def _send(self, data: Sequence[Buffer], size: int) -> int:
        try:
            count = self._socket.sendmsg(data)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._breakOutput(error)
            return 0
        if count < size:
            self._output = _FULL
            self._watchRoom(True)
        return count

    def notifyRoom(self) -> None:
        """The socket had no room for what was written past this: say when it has."""
        if self._output is _FREE:
            self._output = _FULL
            self._watchRoom(True)

    def _breakOutput(self, error: OSError) -> None:
        self._breakOff()
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            _log.error(
                "cannot write to {peer}: {error}",
                event="write-failed",
                peer=self.peer,
                error=error,
            )
            # The peer is there, and must learn that it waits in vain.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def _breakOff(self) -> None:
        """Nothing more is written."""
        self._output = _BROKEN

    def _watchRoom(self, wanted: bool) -> None:
        # Each consumed write of a watched socket is an event, but so is much else, and changing
        # what is watched costs a system call: so it stays watched until an event was for nothing.
        if self._watchingRoom is not wanted:
            self._watchingRoom = wanted
            self._poller.watchRoom(self.fileno(), wanted)

    def _roomOrDrained(self, events: int) -> None:
        if self._output is _FULL:
            self._output = _FREE
            self.protocol.writable()
        elif not self._drainWanted:
            if events == EPOLLOUT:
                self._watchRoom(False)
            return
        if self._drainWanted:
            self._checkDrained()

    @property
    def broken(self) -> bool:
        """Whether a write has failed, or the connection is closed: nothing is taken any more."""
        return self._output is _BROKEN

    def unsent(self) -> int:
        """
        See L{IConnection.unsent}.

        The kernel counts its own overhead of some hundred bytes per write too.
        """
        fd = self._socket.fileno()
        if fd < 0:
            return 0
        ioctl(fd, TIOCOUTQ, _counted)
        return _counted[0] if _counted[0] >= _LEAST_COUNTED else 0

    def _checkDrained(self) -> None:
        if self.fileno() >= 0 and not self.unsent():
            self._drainWanted = False
            self.protocol.drained()
