"""
What goes to the agent on the I/O channel, cut and paced so that the agent can bear it.

docs/protocol, "What the agents can bear" (promise P19):

 - Sessions take turns by 4096 bytes, and at most 16 KiB wait in the channel's socket, so that a
   keystroke is never behind another session's bulk.
 - A hyperstart gets at most 256 bytes of payload in a message: it has 512 bytes of buffer per
   process, and silently drops what does not fit.
 - A cc agent ends, and its VM with it, when a header reaches it in two reads, and the hypervisor
   reads 4096 bytes at a time. So it gets whole messages in units of at most 4096 bytes. One of
   exactly 4096 may be followed by another, in the same call, since a stream shows a reader no
   borders of writes; after a shorter one the socket must have been drained first. Whether it has
   been is asked when there is more to send, not before: a keystroke costs no second event.
 - An agent that nobody knows yet gets what suits both.

What the socket does not take stays with the sessions, and a shim whose session is full is not
read (L{ccproxy.core.flow}).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..interfaces import IConnection
from ..wire.codes import Dialect
from ..wire.decoder import Buffer
from ..wire.messages import IO_HEADER
from .context import Budget

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
    @ivar scheduled: whether its session has a turn in the L{StdinScheduler}.
    """

    __slots__ = ("_budget", "_offset", "_pieces", "ended", "scheduled", "size")

    def __init__(self, budget: Budget) -> None:
        """
        @param budget: where its bytes are counted.
        """
        self._budget = budget
        self._pieces: list[bytes] = []
        self._offset = 0
        self.size = 0
        self.ended = False
        self.scheduled = False

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def room(self) -> int:
        """How many more bytes can be kept."""
        return self._budget.share - self.size

    @property
    def hasRoom(self) -> bool:
        """Whether there is so much room that it is worth while to read a shim again."""
        return 2 * self.size <= self._budget.share

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

    def take(self, most: int) -> Buffer:
        """
        The next piece, empty for the end of stdin. There must be one.

        @param most: its longest length.
        """
        piece: Buffer = self._pieces[0]
        start, size = self._offset, len(piece) - self._offset
        if size > most:
            size = most
            self._offset += size
            piece = memoryview(piece)[start : start + size]
        else:
            self._pieces.pop(0)
            if start:
                self._offset = 0
                piece = memoryview(piece)[start:]
        self.size -= size
        self._budget.used -= size
        return piece

    def takeRun(self, size: int, most: int) -> list[memoryview]:
        """
        The next pieces of one length, as far as they stand together; perhaps none.

        @param size: their length.
        @param most: their largest number.
        """
        piece, start = self._pieces[0], self._offset
        count = min(most, (len(piece) - start - 1) // size)
        if count <= 0:
            return []
        stop = self._offset = start + count * size
        self.size -= stop - start
        self._budget.used -= stop - start
        view = memoryview(piece)
        return [view[at : at + size] for at in range(start, stop, size)]

    def clear(self) -> None:
        """Drop all of it."""
        self._budget.used -= self.size
        self._pieces.clear()
        self.size = self._offset = 0


class StdinScheduler:
    """
    The sessions of one VM that have stdin to send.

    @ivar turns: those sessions, the next one first.
    @ivar resting: the sessions of the messages that the channel's socket has not taken.
    """

    __slots__ = ("_mustDrain", "_rest", "_sent", "_vm", "_waiting", "resting", "turns")

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._rest = b""
        self.resting: set[Session] = set()
        #: What was written since the channel's socket was last seen empty.
        self._sent = 0
        #: It must have been emptied before more is written.
        self._mustDrain = False
        self._waiting = False
        self.turns: list[Session] = []

    def add(self, session: Session) -> None:
        """C{session} has stdin to send."""
        if not session.stdin.scheduled:
            session.stdin.scheduled = True
            self.turns.append(session)
        self.pump()

    def remove(self, session: Session) -> None:
        """C{session} has ended."""
        if session.stdin.scheduled:
            session.stdin.scheduled = False
            self.turns.remove(session)

    def repair(self) -> None:
        """Finish what a turn has begun that was cut short: see L{ccproxy.core.context}."""
        self.turns = [session for session in self.turns if session.stdin]
        for session in self._vm.processes.sessions:
            session.stdin.scheduled = session in self.turns
        self.pump()

    def drained(self) -> None:
        """The agent has read all that was sent."""
        self._waiting = False
        self.pump()

    def pump(self) -> None:
        """Send what the agent can bear now."""
        try:
            self._pump()
        except Exception:
            self._vm.context.failed()
            self._vm.channelBroken(True)  # some of it may be lost

    def _pump(self) -> None:
        io = self._vm.io
        while (self._rest or self.turns) and io is not None and not self._waiting:
            if self._rest:
                self._rest = self._rest[io.send([self._rest]) :]
                if self._rest:
                    return
                resting, self.resting = self.resting, set()
                for session in resting:
                    session.stdinTaken()
            elif not self._mustDrain and self._sent + TURN <= WINDOW:
                self._send(io)
            elif io.unsent():
                self._waiting = True
                io.notifyDrained()
            else:
                self._mustDrain = False
                self._sent = 0

    def _send(self, io: IConnection) -> None:
        """
        Write as much as may wait in the socket, or less where the agent must have read it first.
        """
        dialect = self._vm.dialect
        buffers: list[Buffer] = []
        total = 0
        touched: set[Session] = set()
        if dialect is Dialect.CC and len(self.turns) == 1 and self.turns[0].stdin.size > TURN:
            total = self._bulk(self.turns[0], buffers)
            touched.add(self.turns[0])
        while self.turns and not self._mustDrain and self._sent + total + TURN <= WINDOW:
            size = self._unit(buffers, touched)
            total += size
            if dialect is Dialect.UNKNOWN or (dialect is Dialect.CC and size < TURN):
                self._mustDrain = True
        taken = io.send(buffers)
        self._sent += total
        self._vm.traffic.inBytes += total
        if taken < total:
            self._rest = b"".join(buffers)[taken:]
            self.resting = set(touched)
        for session in touched:
            session.stdinTaken()

    def _bulk(self, session: Session, buffers: list[Buffer]) -> int:
        """
        Whole reads of a cc agent from one session that has much to send, and nobody beside it.

        @param buffers: they are added here.
        @return: their size in bytes.
        """
        pieces = session.stdin.takeRun(TURN - IO_HEADER.size, (WINDOW - self._sent) // TURN)
        header = IO_HEADER.pack(session.stdio, TURN)
        for piece in pieces:
            buffers += (header, piece)
        self._vm.traffic.inFrames += len(pieces)
        return TURN * len(pieces)

    def _unit(self, buffers: list[Buffer], touched: set[Session]) -> int:
        """
        What the agent reads at once: whole messages, at most 4096 bytes, from as many sessions as
        it takes.

        @param buffers: they are added here.
        @param touched: the sessions whose they are are added here.
        @return: their size in bytes, at least that of one message.
        """
        turns, traffic = self.turns, self._vm.traffic
        most = TURN - IO_HEADER.size if self._vm.dialect is Dialect.CC else SMALL_PAYLOAD
        room = TURN
        while turns and room > IO_HEADER.size:
            session = turns[0]
            stdin = session.stdin
            payload = stdin.take(min(most, room - IO_HEADER.size))
            size = IO_HEADER.size + len(payload)
            buffers += (IO_HEADER.pack(session.stdio, size), payload)
            room -= size
            traffic.inFrames += 1
            touched.add(session)
            if not stdin:
                stdin.scheduled = False
                turns.pop(0)
        if turns and turns[0] is session:
            turns.append(turns.pop(0))
        return TURN - room
