"""
A connected AF_UNIX stream socket, as the core wants it.

What it does otherwise than Twisted's own transport:

 - A failed write or a hang-up never ends the connection. Nothing more is written, what the peer
   sent before it went is read to its end, and only that end is told (L{ccproxy.net.sending}).
 - Input is looked at where it waits, in the socket, and only what the protocol has used is taken
   from there: whole units. So a process that takes the socket over finds the beginning of one.
   Only of a unit that is longer than the buffer, or whose end stays away, the beginning is taken
   and kept here; the protocol bounds that rest: it closes when a unit announces too great a
   length. All transports of a poller read into one buffer.
 - A hang-up is noticed while reading is paused, and after the end of the input.

Protocols that use it provide L{IBufferedProtocol}. For all others there is
L{ccproxy.net.ordinary.OrdinaryTransport}.
"""

from __future__ import annotations

import enum
import select
import socket
from contextlib import suppress
from select import EPOLLOUT, EPOLLRDHUP
from socket import MSG_PEEK, SOL_SOCKET

import attrs
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import IConnection
from .buffered import IBufferedProtocol
from .polling import HANGUP, READ_SIZE
from .sending import SocketWriter
from .sockets import MARKS, NO_OFFSET, SO_PEEK_OFF, hungUp, polled

#: A unit of which so many bytes have come, and not its end, is taken in parts: a socket may not
#: hold more of it.
LONG_UNIT = 64 << 10
#: Reads for one L{StreamTransport.readNow} of a peer that is there, which may never stop sending:
#: far more than a socket holds.
MOST_AT_ONCE = 32


class _Life(enum.Enum):
    OPEN = enum.auto()
    #: The input has ended; output may go on.
    ENDED = enum.auto()
    CLOSED = enum.auto()


# Found faster than through their class, on the path of every chunk.
_OPEN, _ENDED, _CLOSED = _Life


@implementer(IConnection)
@attrs.define(eq=False, weakref_slot=False)
class StreamTransport(SocketWriter):
    """
    A connection, from its socket's point of view. L{begin} starts it.

    @ivar queued: whether it waits for its step in the poller's queue; the poller's own note.
    @ivar disconnecting: whether the protocol has asked for the end.
    @ivar kept: whether its socket survives this process, and so remembers what of its input has
        been used. The kernel has an offset for peeking in each socket, and lowers it by what is
        taken from the socket: it is a note that changes in one step with the input itself.
        L{skipUsed <ccproxy.net.sockets.skipUsed>} reads it.
    """

    queued: bool = attrs.field(default=False, init=False)
    disconnecting: bool = attrs.field(default=False, init=False)
    kept: bool = attrs.field(default=False, init=False)
    _life: _Life = attrs.field(default=_OPEN, init=False)
    _reason: Failure | None = attrs.field(default=None, init=False)

    # Reading.
    _paused: bool = attrs.field(default=False, init=False)
    #: There may be something to read: bytes, or the end.
    _readable: bool = attrs.field(default=False, init=False)
    #: The end of the input is there, behind what is still to be read.
    _hungUp: bool = attrs.field(default=False, init=False)
    #: The peer has closed both directions.
    _gone: bool = attrs.field(default=False, init=False)
    _goneTold: bool = attrs.field(default=False, init=False)
    _receiving: bool = attrs.field(default=False, init=False)
    _rest: bytearray | None = attrs.field(default=None, init=False)
    _overdue: bool = attrs.field(default=False, init=False)
    #: How much of what the protocol was offered had been kept in C{_rest}.
    _before: int = attrs.field(default=0, init=False)
    _mark: int = attrs.field(default=0, init=False)
    _marked: bool = attrs.field(default=False, init=False)

    def begin(self, protocol: IBufferedProtocol) -> None:
        """
        Connect a protocol and start reading.

        @raise OSError: the system cannot watch one more socket. The caller closes it.
        """
        self.protocol = protocol
        self._socket.setblocking(False)
        self._poller.add(self)
        try:
            protocol.makeConnection(self)
        except Exception:
            self._poller.failed(self)

    @property
    def rest(self) -> bytes:
        """What was read and is not used yet: for the process that goes on with the socket."""
        return bytes(self._rest or b"")

    @rest.setter
    def rest(self, data: bytes) -> None:
        self._rest = bytearray(data) or None

    # What the poller calls.

    def happened(self, events: int) -> None:
        """
        The socket has changed.

        @param events: what C{epoll} says about it.
        """
        if events & EPOLLOUT and self._watchingRoom:
            self._roomOrDrained(events)
        if events == EPOLLOUT:
            return
        gone = events & HANGUP not in (0, EPOLLRDHUP)
        if self._life is _OPEN:
            self._readable = True
            if events & HANGUP:
                self._hungUp = True
                self._gone = gone
            if not self.queued:
                self._readOn()
        elif gone and self._life is _ENDED and not self._goneTold:
            self._goneTold = True
            self.protocol.peerGone()

    def proceed(self) -> None:
        """Do what has been put off."""
        if self._life is _CLOSED:
            if self._reason is not None:
                self._tellLost(self._reason)
            return
        if self._drainWanted:
            self._checkDrained()
        self._readOn()

    def fail(self, reason: Failure) -> None:
        """Close for a reason that is not the protocol's, and tell it C{reason}."""
        self._close(reason)

    # Reading.

    def _readOn(self) -> None:
        """Read and offer, one buffer at most: the rest is for another step."""
        while self._life is _OPEN and not self._paused and self._readable:
            if not self._read():
                break
        if self._life is _OPEN:
            if not self._paused:
                if self._readable:
                    self._poller.enqueue(self)
            elif self._gone and not self._goneTold:
                self._goneTold = True
                self.protocol.peerGone()

    def _read(self) -> bool:
        """
        Look at what has come, offer it, and take what was used.

        @return: whether to go on in the same step.
        """
        poller = self._poller
        scratch = poller.scratch
        if scratch is None:
            # A protocol that is reading has made us read too: readNow.
            scratch = memoryview(bytearray(READ_SIZE))
        poller.scratch = None
        try:
            return self._readInto(scratch)
        finally:
            poller.scratch = scratch

    def _readInto(self, scratch: memoryview) -> bool:
        try:
            count = self._socket.recv_into(scratch, 0, MSG_PEEK)
        except BlockingIOError:
            self._readable = self._hungUp = self._overdue = False
            return False
        except OSError:
            # The peer closed before it had read all that we sent; what it sent has been read.
            count = 0
        if count == 0:
            self._end()
            return False
        full, ending = count == len(scratch), self._hungUp
        # If there was no more, there will be an edge for what comes.
        self._readable = full or ending
        taken = self._offer(scratch, count)
        if self._life is not _OPEN or self._paused:
            return False
        if taken < count and not full:
            if ending:
                # What is left is a unit whose end will not come. It goes, as what is unread would
                # be an error to the peer when this is closed.
                self._take(scratch, count - taken)
                self._end()
                return False
            self._poller.waitForRest(self)
        return self._readable and not full

    def _offer(self, scratch: memoryview, count: int) -> int:
        """
        Let the protocol use what it can, and take that from the socket.

        @param count: how much of C{scratch} has been filled.
        @return: how much of that was taken.
        """
        rest, before = self._rest, 0
        data = scratch[:count]
        if rest is not None:
            before = len(rest)
            rest += data
            data = memoryview(rest)
        self._before = before
        self._receiving = True
        try:
            used = self.protocol.bufferReceived(data)
            if self._life is not _OPEN:
                return count
            taken = used
            if rest is not None or not used:
                taken = self._keepRest(data, count, used)
        finally:
            self._receiving = False
        self._overdue = False
        self._take(scratch, taken)
        return taken

    def _keepRest(self, data: memoryview, count: int, used: int) -> int:
        """
        Keep the beginning of a unit, where that must be.

        @param data: what the protocol was offered.
        @param count: how much of it is in the socket.
        @param used: how much of it has been used.
        @return: how much is to be taken from the socket.
        """
        rest, before = self._rest, self._before
        overdue = self._overdue or count >= LONG_UNIT
        if used < before or (not used and overdue and not self._paused):
            taken = 0 if self._paused else count
            if rest is None:
                self._rest = bytearray(data)
            else:
                data.release()
                del rest[before + taken :], rest[:used]
        else:
            taken = used - before
            self._rest = None
        if self.kept and (before or self._rest) and self._poller.whenRest is not None:
            self._poller.whenRest(self, taken)
        return taken

    def _take(self, scratch: memoryview, size: int) -> None:
        """Take from the socket what has been looked at there."""
        kept = self.kept and (size or self._marked)
        if kept:
            self._note(size)
        while size and (count := self._socket.recv_into(scratch, size)):
            size -= count
        if kept:
            self._note(NO_OFFSET)
            self._marked = False

    def _note(self, offset: int) -> None:
        self._socket.setsockopt(SOL_SOCKET, SO_PEEK_OFF, offset)

    def mark(self) -> int:
        """
        Have the socket remember which input is at hand, for a journal that is about to say how much
        of that has been used.

        @return: what it remembers, which is not what it did before; 0 if no input is at hand.
        """
        if not self._receiving:
            return 0
        if not self._marked:
            self._marked = True
            self._mark = MARKS[self._mark == MARKS[0]]
            self._note(self._mark)
        return self._mark

    def used(self, size: int) -> tuple[int, bytes]:
        """
        What it means for the socket if the protocol says that it has used so much.

        @param size: how much, of what it was offered.
        @return: how much of that is in the socket, and what is kept here and was not used.
        """
        if not self._receiving:
            return 0, self.rest
        before = self._before
        return max(0, size - before), bytes((self._rest or b"")[size:before])

    def restOverdue(self) -> None:
        """The end of a unit has not come: its beginning shall not stand in the peer's way."""
        if self._life is _OPEN and not self._paused and self._rest is None:
            self._overdue = self._readable = True
            self._poller.enqueue(self)

    def _end(self) -> None:
        self._life = _ENDED
        self._rest = None
        self.protocol.readConnectionLost()

    def pauseReading(self) -> None:
        """See L{IConnection.pauseReading}."""
        self._paused = True

    def resumeReading(self) -> None:
        """See L{IConnection.resumeReading}."""
        if self._paused:
            self._paused = self._goneTold = False
            self._readable = True
            self._poller.enqueue(self)

    def hungUp(self) -> bool:
        """See L{IConnection.hungUp}."""
        return self._life is _CLOSED or hungUp(self.fileno())

    def readNow(self) -> None:
        """See L{IConnection.readNow}."""
        if self._receiving or self._life is not _OPEN:
            return
        self._readable = True
        self._hungUp = bool(polled(self.fileno(), select.POLLRDHUP))
        reads = 0
        try:
            while self._life is _OPEN and not self._paused and self._readable:
                if reads == MOST_AT_ONCE and not self.hungUp():
                    self._poller.enqueue(self)
                    break
                reads += 1
                self._read()
        except Exception:
            self._poller.failed(self)

    def notifyDrained(self) -> None:
        """See L{IConnection.notifyDrained}."""
        self._drainWanted = True
        if self.unsent():
            self._watchRoom(True)
        else:
            self._poller.enqueue(self)

    # The end.

    def close(self) -> None:
        """
        See L{IConnection.close}.

        C{connectionLost} is called soon, as Twisted does for every end.
        """
        self.disconnecting = True
        self._close(Failure(ConnectionDone()))

    loseConnection = abortConnection = close

    def _close(self, reason: Failure) -> None:
        if self._life is _CLOSED:
            return
        if self._life is _OPEN:
            self._discardInput()
        self._life = _CLOSED
        self._breakOff()
        self._rest = None
        self._reason = reason
        self._poller.remove(self)
        self._socket.close()
        self._poller.enqueue(self)

    def _discardInput(self) -> None:
        # Closed with unread input, the socket would reach the peer as ECONNRESET and not as the
        # end of the stream. It can send no more, so this ends.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
            while self._socket.recv(READ_SIZE):
                pass

    def _tellLost(self, reason: Failure) -> None:
        protocol = self.protocol
        # The two refer to each other; they are to go without waiting for the garbage collector.
        del self.protocol
        self._reason = None
        protocol.connectionLost(reason)
