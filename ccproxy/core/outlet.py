"""
What is on its way to one connection, in whole frames.

Frames of a session are I{kept}: they count as delivered only when they have been written whole,
and those that were not go back to the session when the connection is lost (promise P7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import attrs

from ..interfaces import IConnection
from ..wire.translation import frameAround
from .context import Budget
from .records import Count, Reader, Writer, derived, formOf, saved, transient

#: The most that is handed to a connection in one call, in bytes. AF_UNIX takes that whole or
#: not at all, and each call ends behind a frame: so a daemon that dies has not sent a frame in
#: part, unless it is longer than that.
MOST_PER_SEND = 32 << 10
#: The most buffers in one call, well below the system's IOV_MAX.
MOST_BUFFERS = 64
#: Blocks that are not longer together become one.
SMALL_BLOCK = 512


@attrs.define(eq=False)
class Outlet:
    """
    A queue toward a connection, in blocks of one or more whole frames.

    @ivar budget: where the bytes of sessions are counted.
    @ivar size: bytes that the connection has not taken yet.
    @ivar kept: how many bytes the session's blocks have that were not taken whole.
    """

    _connection: IConnection = transient()
    _budget: Budget = transient()
    _offset: int = saved(0, type=Count, crash=False, init=False)
    _gone: bool = saved(False, crash=False, init=False)
    _blocks: list[tuple[bytes, bool]] = transient(attrs.Factory(list), init=False)
    size: int = transient(0, init=False)
    kept: int = transient(0, init=False)

    def _written(self, writer: Writer) -> list[tuple[bytes, bool]]:
        """Return the blocks; for a crash only responses of which nothing was sent."""
        if not writer.crash:
            return list(self._blocks)
        return [block for block in self._blocks[bool(self._offset) :] if not block[1]]

    def _read(self, blocks: list[tuple[bytes, bool]], reader: Reader) -> None:
        self._blocks.extend(blocks)
        self.size = sum(len(block) for block, _ in blocks) - self._offset
        self.kept = sum(len(block) for block, kept in blocks if kept)
        self._budget.used += self.kept

    DERIVED: ClassVar = (derived("blocks", list[tuple[bytes, bool]], list, _written, _read),)

    def whole(self) -> Any:
        """Return its form with all that it has, for a crash too."""
        return formOf(Outlet)(self._offset, self._gone, list(self._blocks))

    def push(self, block: bytes, kept: bool = False) -> None:
        """
        Queue whole frames. Nothing is sent before L{flush}.

        @param kept: they belong to the session, which has counted them in its budget.
        """
        if self._gone and not kept:
            return
        blocks = self._blocks
        if (
            len(blocks) > 1
            and blocks[-1][1] is kept
            and len(blocks[-1][0]) + len(block) <= SMALL_BLOCK
        ):
            # An object for every few bytes would take many times the memory that is counted.
            blocks[-1] = (blocks[-1][0] + block, kept)
        else:
            blocks.append((block, kept))
        self.size += len(block)
        if kept:
            self.kept += len(block)

    def sendSpans(self, spans: list[memoryview], total: int) -> None:
        """
        Send whole frames of the session at once if nothing is queued, and keep what is not taken.

        @param spans: where the frames stand, for the time of this call: whole frames, in pieces
            that one call takes.
        @param total: how many bytes they are.
        """
        taken = 0
        if not self._blocks:
            taken = self._connection.send(spans)
            if taken == total:
                return
        whole = 0
        while taken >= len(spans[whole]):
            taken -= len(spans[whole])
            whole += 1
        rest = spans[whole:]
        if taken:
            # A frame of which a part was taken is kept whole.
            start, _ = frameAround(rest[0], taken)
            rest[0] = rest[0][start:]
            self._offset = taken - start
            self.size = -self._offset
        for block in joined(rest):
            self._budget.used += len(block)
            self.push(block, kept=True)

    def flush(self) -> None:
        """Hand over what the connection takes now."""
        blocks = self._blocks
        while blocks:
            buffers: list[bytes | memoryview] = []
            total = 0
            for block, _ in blocks:
                piece = block if buffers or not self._offset else memoryview(block)[self._offset :]
                if buffers and (total + len(piece) > MOST_PER_SEND or len(buffers) == MOST_BUFFERS):
                    break
                if len(piece) > MOST_PER_SEND:
                    piece = memoryview(piece)[:MOST_PER_SEND]
                buffers.append(piece)
                total += len(piece)
            taken = self._connection.send(buffers)
            self.drop(taken)
            if taken < total:
                return

    @property
    def contents(self) -> bytes:
        """What the connection has not taken."""
        return b"".join(block for block, _ in self._blocks)[self._offset :]

    def drop(self, taken: int) -> None:
        """Forget C{taken} bytes that the connection has now."""
        self.size -= taken
        taken += self._offset
        through = 0
        for block, kept in self._blocks:
            if taken < len(block):
                break
            through += 1
            taken -= len(block)
            if kept:
                self.kept -= len(block)
                self._budget.used -= len(block)
        del self._blocks[:through]
        self._offset = taken

    def peerGone(self) -> None:
        """Nobody will read any more: drop what is queued, and take only what a session keeps."""
        assert not self.kept
        self._gone = True
        self._blocks.clear()
        self._offset = self.size = 0

    def dropKept(self) -> None:
        """Drop the session's frames, but for one of which a part has been taken."""
        rest = [block for block in self._blocks if not block[1]]
        if self._offset:
            head, kept = self._blocks[0]
            if kept:
                start, stop = frameAround(head, self._offset)
                if start < self._offset:
                    self._offset -= start
                    rest.insert(0, (head[start:stop], False))
                else:
                    self._offset = 0
        self._budget.used -= self.kept
        self.kept = 0
        self._blocks = rest
        self.size = sum(len(block) for block, _ in rest) - self._offset

    def takeBack(self) -> list[bytes]:
        """
        The connection is lost: give the session's blocks back, in order, and drop the others.

        A frame of which only a part was taken is among them, whole; those before it are not.
        """
        if self._offset and self._blocks and self._blocks[0][1]:
            head, _ = self._blocks[0]
            start, _ = frameAround(head, self._offset)
            self._blocks[0] = (head[start:], True)
            self._budget.used -= start
        back = [block for block, kept in self._blocks if kept]
        self._blocks.clear()
        self._offset = self.size = self.kept = 0
        return back


def joined(spans: Iterable[memoryview]) -> Iterator[bytes]:
    """
    Join frames to blocks that one call takes.

    @param spans: whole frames, in pieces that one call takes.
    """
    block: list[memoryview] = []
    size = 0
    for span in spans:
        if block and size + len(span) > MOST_PER_SEND:
            yield b"".join(block)
            block, size = [], 0
        block.append(span)
        size += len(span)
    if block:
        yield b"".join(block)
