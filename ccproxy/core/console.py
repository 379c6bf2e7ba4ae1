"""
What a VM's console has said last.
"""

from __future__ import annotations

from collections.abc import Callable


def characterEnd(data: bytes | bytearray) -> int:
    """
    Return the position behind the last whole UTF-8 character. This is the end, unless C{data} ends
    inside a character. Bytes that are not UTF-8 count as whole.
    """
    size = len(data)
    for back in range(1, min(4, size + 1)):
        byte = data[size - back]
        if 0xC0 <= byte < 0xF8:
            length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return size - back if length > back else size
        if byte & 0xC0 != 0x80:
            break
    return size


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

    def goOn(self, end: int, data: bytes) -> None:
        """Go on, with nothing said yet, behind a console's first C{end} bytes, which end so."""
        self.end = end - len(data)
        self.add(memoryview(data))

    def close(self) -> None:
        """Nothing more will come."""
        if not self.closed:
            self.closed = True
            self._tell()

    def since(self, position: int) -> bytes:
        """What has come from C{position} on, as far as it is kept; L{end} is behind it."""
        return bytes(self._data[max(0, position - self.start) :])

    def wholeSince(self, position: int) -> tuple[bytes, int]:
        """
        Return the kept bytes from C{position} on, and the position behind them.

        The bytes contain no part of a character: neither the end of one whose beginning has left
        the ring, nor the beginning of one that has not come whole.
        """
        data, cut = self.since(position), 0
        if position < self.start:
            while cut < min(3, len(data)) and data[cut] & 0xC0 == 0x80:
                cut += 1
        end = len(data) if self.closed else characterEnd(data)
        return data[cut:end], self.end - len(data) + end

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
