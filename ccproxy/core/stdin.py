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

from collections.abc import Callable, Collection
from typing import ClassVar

import attrs

from ..interfaces import IConnection
from ..wire.codes import Dialect
from ..wire.decoder import Buffer
from ..wire.messages import IO_HEADER
from .context import Budget
from .ports import VMPort
from .records import Count, Reader, Writer, derived, saved, transient

#: The most that a session may send before it is another's turn; also the hypervisor's read size.
TURN = 4096
#: The most that may wait in the channel's socket.
WINDOW = 16 << 10
#: The most payload of a message to a hyperstart.
SMALL_PAYLOAD = 256


@attrs.define(eq=False)
class StdinQueue:
    """
    The stdin that waits for one process.

    @ivar budget: where its bytes are counted.

    @ivar number: the sequence number that it is sent with.
    @ivar taken: called when some of it was sent.
    @ivar size: how many bytes wait.
    @ivar ended: whether its end is among it, or has gone.
    @ivar scheduled: whether it has a turn in the L{StdinScheduler}.
    @ivar resting: whether the channel's socket has not taken some that was given to it.
    """

    _budget: Budget = transient()
    number: int = transient()
    taken: Callable[[], object] = transient()
    size: int = transient(0, init=False)
    ended: bool = saved(False, key="stdinEnded", init=False)
    scheduled: bool = transient(False, init=False)
    resting: bool = transient(False, init=False)
    _pieces: list[bytes] = transient(attrs.Factory(list), init=False)
    _offset: int = saved(0, type=Count, crash=False, init=False)

    def _written(self, writer: Writer) -> list[bytes]:
        """Return what is written of the pieces: for a crash their end alone."""
        if not writer.crash:
            return list(self._pieces)
        return [b""] if self.endWaits else []

    def _read(self, pieces: list[bytes], reader: Reader) -> None:
        self._pieces.extend(pieces)
        self.size = sum(map(len, pieces)) - self._offset
        self._budget.used += self.size

    DERIVED: ClassVar = (
        derived("pieces", list[bytes], list, _written, _read),
        derived("lostInput", Count, 0, lambda queue, writer: queue.size if writer.crash else 0),
    )

    @property
    def endWaits(self) -> bool:
        """Whether the end of stdin has come, and was not sent to the agent."""
        return self.ended and (bool(self) or self.resting)

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


@attrs.define(eq=False)
class StdinScheduler:
    """
    The stdin of one VM that can be sent.

    @ivar turns: the queues that have some, the next one first.
    @ivar resting: the queues of the messages that the channel's socket has not taken.
    """

    _vm: VMPort = transient()
    turns: list[StdinQueue] = transient(attrs.Factory(list), init=False)
    resting: list[StdinQueue] = transient(attrs.Factory(list), init=False)
    _rest: bytes = saved(b"", crash=False, init=False)
    #: What was written since the channel's socket was last seen empty.
    _sent: int = transient(0, init=False)
    #: It must have been emptied before more is written: nothing is known of it at the beginning.
    _mustDrain: bool = transient(True, init=False)
    _waiting: bool = transient(False, init=False)

    def add(self, queue: StdinQueue) -> None:
        """A queue has stdin to send."""
        if not queue.scheduled:
            queue.scheduled = True
            self.turns.append(queue)
        self.pump()

    def remove(self, queue: StdinQueue) -> None:
        """The process of a queue has ended."""
        if queue.resting:
            queue.resting = False
            self.resting.remove(queue)
        if queue.scheduled:
            queue.scheduled = False
            self.turns.remove(queue)

    def repair(self, queues: Collection[StdinQueue]) -> None:
        """
        Finish what a turn has begun that was cut short: see L{ccproxy.core.context}.

        @param queues: those of all sessions.
        """
        self.turns = [queue for queue in self.turns if queue]
        for queue in queues:
            queue.scheduled = queue in self.turns
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
                resting, self.resting = self.resting, []
                for queue in resting:
                    queue.resting = False
                    queue.taken()
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
        touched: set[StdinQueue] = set()
        if dialect is Dialect.CC and len(self.turns) == 1 and self.turns[0].size > TURN:
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
            self.resting = list(touched)
            for queue in touched:
                queue.resting = True
        for queue in touched:
            queue.taken()

    def _bulk(self, queue: StdinQueue, buffers: list[Buffer]) -> int:
        """
        Whole reads of a cc agent from one queue that has much to send, with none beside it.

        @param buffers: they are added here.
        @return: their size in bytes.
        """
        pieces = queue.takeRun(TURN - IO_HEADER.size, (WINDOW - self._sent) // TURN)
        header = IO_HEADER.pack(queue.number, TURN)
        for piece in pieces:
            buffers += (header, piece)
        self._vm.traffic.inFrames += len(pieces)
        return TURN * len(pieces)

    def _unit(self, buffers: list[Buffer], touched: set[StdinQueue]) -> int:
        """
        What the agent reads at once: whole messages, at most 4096 bytes, from as many queues as
        it takes.

        @param buffers: they are added here.
        @param touched: their queues are added here.
        @return: their size in bytes, at least that of one message.
        """
        turns, traffic = self.turns, self._vm.traffic
        most = TURN - IO_HEADER.size if self._vm.dialect is Dialect.CC else SMALL_PAYLOAD
        room = TURN
        while turns and room > IO_HEADER.size:
            queue = turns[0]
            payload = queue.take(min(most, room - IO_HEADER.size))
            size = IO_HEADER.size + len(payload)
            buffers += (IO_HEADER.pack(queue.number, size), payload)
            room -= size
            traffic.inFrames += 1
            touched.add(queue)
            if not queue:
                queue.scheduled = False
                turns.pop(0)
        if turns and turns[0] is queue:
            turns.append(turns.pop(0))
        return TURN - room
