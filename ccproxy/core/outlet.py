"""
What is on its way to one connection, frame by frame.

Frames of a session are I{kept}: they count as delivered only when they have been written whole,
and those that were not go back to the session when the connection is lost (promise P7).
"""

from __future__ import annotations

from collections import deque

from ..interfaces import IConnection
from .flow import Budget

#: The most that is handed to a connection in one call, in bytes. AF_UNIX takes that whole or
#: not at all.
MOST_PER_SEND = 32 << 10
#: The most buffers in one call, well below the system's IOV_MAX.
MOST_BUFFERS = 64


class Outlet:
    """
    A queue of frames toward a connection.

    @ivar size: bytes that the connection has not taken yet.
    @ivar kept: how many of them belong to the session.
    """

    __slots__ = ("_budget", "_connection", "_frames", "_offset", "kept", "size")

    def __init__(self, connection: IConnection, budget: Budget) -> None:
        """
        @param budget: where the bytes of sessions are counted.
        """
        self._connection = connection
        self._budget = budget
        self._frames: deque[tuple[bytes, bool]] = deque()
        self._offset = 0
        self.size = 0
        self.kept = 0

    def push(self, frame: bytes, kept: bool = False) -> None:
        """
        Queue one whole frame. Nothing is sent before L{flush}.

        @param kept: it belongs to the session, which has counted it in its budget.
        """
        self._frames.append((frame, kept))
        self.size += len(frame)
        if kept:
            self.kept += len(frame)

    def flush(self) -> None:
        """Hand over what the connection takes now."""
        frames = self._frames
        while frames:
            buffers: list[bytes | memoryview] = []
            total = 0
            for frame, _ in frames:
                if total >= MOST_PER_SEND or len(buffers) >= MOST_BUFFERS:
                    break
                piece = frame if buffers or not self._offset else memoryview(frame)[self._offset :]
                if len(piece) > MOST_PER_SEND - total:
                    piece = memoryview(piece)[: MOST_PER_SEND - total]
                buffers.append(piece)
                total += len(piece)
            taken = self._connection.send(buffers)
            self._drop(taken)
            if taken < total:
                return

    def _drop(self, taken: int) -> None:
        """Forget C{taken} bytes that the connection has now."""
        self.size -= taken
        taken += self._offset
        frames = self._frames
        while frames and taken >= len(frames[0][0]):
            frame, kept = frames.popleft()
            taken -= len(frame)
            if kept:
                self.kept -= len(frame)
                self._budget.used -= len(frame)
        self._offset = taken

    def dropKept(self) -> None:
        """Drop the session's frames, but for one of which a part has been taken."""
        head = 1 if self._offset else 0
        kept = deque(list(self._frames)[:head])
        for frame, isKept in list(self._frames)[head:]:
            if isKept:
                self.size -= len(frame)
                self.kept -= len(frame)
                self._budget.used -= len(frame)
            else:
                kept.append((frame, isKept))
        self._frames = kept

    def takeBack(self) -> deque[bytes]:
        """
        The connection is lost: give the session's frames back, in order, and drop the others.

        A frame of which only a part was taken is among them, whole.
        """
        back = deque(frame for frame, kept in self._frames if kept)
        self._frames.clear()
        self._offset = self.size = self.kept = 0
        return back
