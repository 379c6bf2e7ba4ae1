"""
The connections of the model: other ends that send in pieces, stop reading, or go unnoticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ccproxy.wire.decoder import Buffer
from ccproxy.wire.messages import IO_HEADER, MessageDecoder

from .memory import MemoryConnection


class Line(MemoryConnection):
    """
    A connection whose other end may send in pieces, and that knows what the core has used.

    @ivar fed: how many bytes the core has been offered.
    """

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
        super().pump()
        while self.paused and self._ended and self.gone and not (self.closed or self._told):
            self._told = True
            self.sink.peerGone()
            super().pump()

    def resumeReading(self) -> None:
        self._told = False
        super().resumeReading()

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
        self._aligned = True
        self._decoder = MessageDecoder(IO_HEADER)
        self._rest = 0
        self.messages: deque[tuple[int, bytes]] = deque()

    def send(self, data: Sequence[Buffer]) -> int:
        before, offered = self.waiting, sum(map(len, data))
        taken = super().send(data)
        assert self.waiting <= 16 << 10, "too much stdin waits in the socket"
        if self.strict and taken:
            assert offered <= 4096, "a write that the hypervisor reads in two"
            assert not before or self._aligned or self._rest, "a header can come in two reads"
            self._aligned = (not before or self._aligned) and taken == 4096
        assert not self._rest or offered == self._rest, "not the rest of a write"
        self._rest = offered - taken
        self._decoder.feed(self.take())
        while (message := self._decoder.next()) is not None:
            assert self.strict or len(message.body) <= 256, "more stdin than a hyperstart bears"
            self.messages.append((message.number, message.body))
        assert taken < offered or not self._decoder.pending, "a write that ends inside a message"
        return taken
