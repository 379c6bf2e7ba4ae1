"""
The connections of the model: other ends that send in pieces, stop reading, or go unnoticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ccproxy.interfaces import IStreamSink
from ccproxy.wire.decoder import Buffer
from ccproxy.wire.messages import IO_HEADER, MessageDecoder

from ..memory import Died, MemoryConnection

#: How much a hypervisor reads at a time.
READ = 4096


class Line(MemoryConnection):
    """
    A connection whose other end may send in pieces, and that knows what the core has used.

    @ivar fed: how many bytes the core has been offered.
    @cvar dead: the process has died, and reads nothing.
    """

    dead = False

    def __init__(self) -> None:
        super().__init__()
        self.fed = 0
        self._later = b""
        self._silent = self._told = False

    @property
    def used(self) -> int:
        """How many bytes the core has used."""
        return self.fed - len(self._coming)

    @property
    def backlog(self) -> bytes:
        """What the core was offered and did not use."""
        return bytes(self._coming)

    @property
    def quiet(self) -> bool:
        """Whether the core has not noticed that the other end has gone."""
        return self._silent

    def hangUp(self) -> None:
        """The other end goes, and the core does not notice before it asks."""
        self.gone = self._ended = self._silent = True

    def readNow(self) -> None:
        self._silent = False
        super().readNow()

    def takeAtMost(self, room: int) -> None:
        """The other end stops reading after C{room} bytes, if it has not stopped before."""
        self.room = room if self.room is None else min(room, self.room)

    def end(self, gone: bool = True) -> None:
        self._ended = True
        self._silent = False
        self.gone = self.gone or gone
        self.pump()

    def pump(self) -> None:
        try:
            self._pump()
        except Died:
            Line.dead = True

    def _pump(self) -> None:
        if Line.dead:
            return
        super().pump()
        while self.paused and self._ended and self.gone and not (self.closed or self._told):
            self._told = True
            self.sink.peerGone()
            super().pump()

    def resumeReading(self) -> None:
        self._told = False
        super().resumeReading()

    def taken(self, sink: IStreamSink) -> None:
        super().taken(sink)
        self._told = self.endSeen = False

    def put(self, data: bytes, hold: int = 0, gather: bool = False) -> int:
        """
        Send C{data}, but for its last C{hold} bytes, which go before what is sent next.

        @param gather: all of it goes with what is sent next.

        @return: where it ends in the stream.
        """
        data = self._later + data
        hold = len(data) if gather else hold
        self._later = data[len(data) - hold :] if hold else b""
        data = data[: len(data) - hold]
        self.fed += len(data)
        self.feed(data)
        return self.fed + len(self._later)


class Channel(Line):
    """
    The I/O channel of a VM, watched for what its agent can bear (promise P19).

    @ivar strict: the agent is a cc agent.
    """

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self._decoder = MessageDecoder(IO_HEADER)
        self._rest = 0
        #: How much was written since the socket was empty, and where in it a message begins next.
        self._position = self._next = 0
        self.messages: deque[tuple[int, bytes]] = deque()

    @property
    def rest(self) -> int:
        """How much of a write is still to come."""
        return self._rest

    def died(self) -> None:
        """The process has died: what it has not written does not come."""
        self._rest = 0

    def send(self, data: Sequence[Buffer]) -> int:
        before, offered = self.waiting, sum(map(len, data))
        taken = super().send(data)
        assert self.waiting <= 16 << 10, "too much stdin waits in the socket"
        if not before:
            self._next -= self._position
            self._position = 0
        if self.strict and taken:
            assert self._rest or not self._position % READ, "behind a read that was short"
        self._position += taken
        assert not self._rest or offered == self._rest, "not the rest of a write"
        self._rest = offered - taken
        self._decoder.feed(self.take())
        while (message := self._decoder.next()) is not None:
            if self.strict:
                assert self._next % READ <= READ - IO_HEADER.size, "a header comes in two reads"
            else:
                assert len(message.body) <= 256, "more stdin than a hyperstart bears"
            self._next += IO_HEADER.size + len(message.body)
            self.messages.append((message.number, message.body))
        assert taken < offered or not self._decoder.pending, "a write that ends inside a message"
        return taken
