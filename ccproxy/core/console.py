"""
What a VM's console has said last.
"""

from __future__ import annotations

from collections.abc import Callable


class ConsoleRing:
    """
    The last bytes of a console, each at its position: how many came before it.

    Followers are told that there is more, and take it with L{since} when they can. So one that is
    slow needs no buffer of its own and holds up nobody: it misses what has left the ring meanwhile.

    @ivar end: how many bytes have come, kept ones and others.
    @ivar closed: whether nothing more will come, because the VM's channels are closed.
    """

    __slots__ = ("_data", "_followers", "_limit", "closed", "end")

    def __init__(self, limit: int) -> None:
        """
        @param limit: how many bytes are kept.
        """
        self._data = bytearray()
        self._followers: list[Callable[[], object]] = []
        self._limit = limit
        self.end = 0
        self.closed = False

    @property
    def start(self) -> int:
        """The position of the first byte that is kept."""
        return self.end - len(self._data)

    def add(self, data: memoryview) -> None:
        """The console has said C{data}."""
        self.end += len(data)
        self._data += data[-self._limit :]
        # The front of a bytearray is dropped without moving the rest.
        del self._data[: -self._limit]
        self._tell()

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True
        self._tell()

    def since(self, position: int) -> bytes:
        """What has come from C{position} on, as far as it is kept; L{end} is behind it."""
        return bytes(self._data[max(0, position - self.start) :])

    def follow(self, more: Callable[[], object]) -> Callable[[], None]:
        """
        Have C{more} called whenever something has come, and when nothing more will.

        @return: ends that. Calling it twice is no harm.
        """

        def stop() -> None:
            if more in self._followers:
                self._followers.remove(more)

        self._followers.append(more)
        return stop

    def _tell(self) -> None:
        for more in list(self._followers):
            more()
