"""
What the decoders of both protocols have in common: a stream, cut anywhere, becomes units.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar, Union

Buffer = Union[bytes, bytearray, memoryview]


class Unit(Protocol):
    """A frame or a message: something that took C{size} bytes on the wire."""

    @property
    def size(self) -> int:
        """Bytes on the wire, header included."""


U = TypeVar("U", bound=Unit)


class StreamDecoder(Generic[U]):
    """
    Reads units from a stream of bytes: L{feed} it, then call L{next} until it gives L{None}.

    It never holds more than one unit that is not whole, and what was fed since.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0

    def _read(self, buffer: Buffer, offset: int) -> U | None:
        """Read the unit that begins at C{offset}, if it is all there."""
        raise AssertionError("a decoder says how its units are read")

    @property
    def pending(self) -> int:
        """How many bytes are held that no unit was made of yet."""
        return len(self._buffer) - self._offset

    def feed(self, data: Buffer) -> None:
        """Take bytes as they come."""
        del self._buffer[: self._offset]
        self._offset = 0
        self._buffer += data

    def next(self) -> U | None:
        """
        The next whole unit, or L{None}.

        @raise ccproxy.errors.RemoteProtocolError: the next header is bad; the stream cannot be
            read further.
        """
        unit = self._read(self._buffer, self._offset)
        if unit is not None:
            self._offset += unit.size
        return unit
