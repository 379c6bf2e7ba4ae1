"""
What goes to the agent on the I/O channel, cut and paced so that the agent can bear it.

docs/protocol, "What the agents can bear" (promise P19):

 - Sessions take turns by 4096 bytes, and at most 16 KiB wait in the channel's socket, so that a
   keystroke is never behind another session's bulk.
 - A hyperstart gets at most 256 bytes of payload in a message: it has 512 bytes of buffer per
   process, and silently drops what does not fit.
 - A cc agent ends, and its VM with it, when a header reaches it in two reads, and the hypervisor
   reads 4096 bytes at a time. So it gets whole messages in writes of at most 4096 bytes. A write
   of exactly 4096 may be followed by another; after a shorter one the socket must have been
   drained first.
 - An agent that nobody knows yet gets what suits both.

What the socket does not take stays with the sessions, and a shim whose session is full is not
read (L{ccproxy.core.flow}).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..wire.codes import Dialect
from ..wire.messages import IO_HEADER, encodeIO
from .flow import Budget

if TYPE_CHECKING:
    from .session import Session
    from .vm import VM

#: The most that a session may send before it is another's turn; also the hypervisor's read size.
TURN = 4096
#: The most that may wait in the channel's socket.
WINDOW = 16 << 10
#: The most payload of a message to a hyperstart.
SMALL_PAYLOAD = 256


class StdinQueue:
    """
    The stdin that waits for one process.

    @ivar size: how many bytes wait.
    @ivar ended: whether its end is among it, or has gone.
    """

    __slots__ = ("_budget", "_offset", "_pieces", "ended", "size")

    def __init__(self, budget: Budget) -> None:
        """
        @param budget: where its bytes are counted.
        """
        self._budget = budget
        self._pieces: deque[bytes] = deque()
        self._offset = 0
        self.size = 0
        self.ended = False

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def room(self) -> int:
        """How many more bytes can be kept."""
        return self._budget.share - self.size

    def add(self, data: bytes) -> None:
        """Add input; empty is its end."""
        self.ended = not data
        if data and self.size > TURN and len(self._pieces[-1]) < SMALL_PAYLOAD:
            # An object for every few bytes would take many times the memory that is counted.
            self._pieces[-1] += data
        else:
            self._pieces.append(data)
        self.size += len(data)
        self._budget.used += len(data)

    def take(self, most: int) -> bytes:
        """
        The next piece, empty for the end of stdin. There must be one.

        @param most: its longest length.
        """
        piece, start = self._pieces[0], self._offset
        data = piece[start : start + most]
        if start + len(data) < len(piece):
            self._offset += len(data)
        else:
            self._pieces.popleft()
            self._offset = 0
        self.size -= len(data)
        self._budget.used -= len(data)
        return data

    def clear(self) -> None:
        """Drop all of it."""
        self._budget.used -= self.size
        self._pieces.clear()
        self.size = self._offset = 0


class StdinScheduler:
    """
    The sessions of one VM that have stdin to send.

    @ivar turns: those sessions, the next one first.
    """

    __slots__ = ("_rest", "_vm", "_waiting", "turns")

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._rest = b""
        self._waiting = False
        self.turns: deque[Session] = deque()

    def add(self, session: Session) -> None:
        """C{session} has stdin to send."""
        if session not in self.turns:
            self.turns.append(session)
        self.pump()

    def remove(self, session: Session) -> None:
        """C{session} has ended."""
        if session in self.turns:
            self.turns.remove(session)

    def drained(self) -> None:
        """The agent has read all that was sent."""
        self._waiting = False
        self.pump()

    def pump(self) -> None:
        """Send what the agent can bear now."""
        io = self._vm.io
        if io is None or self._waiting:
            return
        while self._rest or self.turns:
            write = self._rest or self._next()
            if not write:
                return
            self._rest = write[io.send([write]) :]
            if self._rest:
                return
            if self._mustDrain(len(write)) or io.unsent() + TURN > WINDOW:
                self._waiting = True
                io.notifyDrained()
                return

    def _mustDrain(self, size: int) -> bool:
        """Whether the agent must have read a write of C{size} bytes before the next one."""
        dialect = self._vm.dialect
        return dialect is Dialect.UNKNOWN or (dialect is Dialect.CC and size < TURN)

    def _next(self) -> bytes:
        """
        The next write: whole messages, at most 4096 bytes, from as many sessions as it takes.
        """
        most = TURN - IO_HEADER.size if self._vm.dialect is Dialect.CC else SMALL_PAYLOAD
        pieces = []
        room = TURN
        touched = []
        while self.turns and room > IO_HEADER.size:
            session = self.turns[0]
            if not session.stdin:
                self.turns.popleft()
                continue
            payload = session.stdin.take(min(most, room - IO_HEADER.size))
            pieces.append(encodeIO(session.stdio, payload))
            room -= len(pieces[-1])
            touched.append(session)
        if self.turns:
            self.turns.rotate(-1)
        for session in touched:
            session.stdinTaken()
        return b"".join(pieces)
