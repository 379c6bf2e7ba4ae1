"""
Reading the input of a fuzz target as choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Input:
    """
    Bytes, read from front to end. Past their end everything is 0.

    @ivar more: whether there is something left.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """A number from 0 to 255."""
        value = self._data[self._at] if self.more else 0
        self._at += 1
        return value

    def word(self) -> int:
        """A number from 0 to 65535."""
        return self.byte() << 8 | self.byte()

    def choice(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.byte() % len(values)]

    def take(self, count: int) -> bytes:
        """So many bytes, or less at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def short(self) -> bytes:
        """Up to 255 bytes, behind their number."""
        return self.take(self.byte())

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))


def pieces(data: bytes, cuts: bytes) -> list[bytes]:
    """
    The bytes as they may arrive.

    @param cuts: the lengths of the first pieces.
    """
    found, at = [], 0
    for size in cuts:
        if at + size >= len(data):
            break
        if size:
            found.append(data[at : at + size])
            at += size
    return [*found, data[at:]]
