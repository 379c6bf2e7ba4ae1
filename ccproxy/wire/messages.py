"""
Messages of the agent's two channels: docs/protocol, "Control channel" and "I/O channel".

Both have a header of an identifier (a control code, or an I/O sequence number) and the length
of the whole message, header included; only the width of the identifier differs.
"""

from __future__ import annotations

from struct import Struct
from typing import Optional

import attrs
import msgspec
from msgspec import Raw

from ..errors import RemoteProtocolError
from .decoder import Buffer, StreamDecoder

#: code, length.
CONTROL_HEADER = Struct(">II")
#: sequence number, length.
IO_HEADER = Struct(">QI")
#: The exit status of a process whose own one is unknown: its VM was lost, or the agent told a value
#: that is no integer from 0 to 255. It is the largest exit status, too.
LOST_STATUS = 255
#: The default limit of a message from an agent, in bytes, header included.
MAX_MESSAGE = 1 << 20


@attrs.frozen
class Message:
    """
    One message of either channel.

    @ivar number: the control code, or the sequence number of the process's stream.
    @ivar body: what follows the header.
    @ivar size: how many bytes it took on the wire, header included.
    """

    number: int
    body: bytes = b""
    size: int = attrs.field(default=0, eq=False)


def encodeControl(code: int, body: Buffer = b"") -> bytes:
    """The bytes of a message on the control channel."""
    return CONTROL_HEADER.pack(code, CONTROL_HEADER.size + len(body)) + body


def encodeIO(sequence: int, body: Buffer = b"") -> bytes:
    """The bytes of a message on the I/O channel; an empty body is an end of file."""
    return IO_HEADER.pack(sequence, IO_HEADER.size + len(body)) + body


def readMessage(
    header: Struct,
    buffer: Buffer,
    offset: int = 0,
    maxSize: int = MAX_MESSAGE,
    end: int | None = None,
) -> Message | None:
    """
    Read the message that begins at C{offset}.

    @param header: L{CONTROL_HEADER} or L{IO_HEADER}.
    @param maxSize: the longest message allowed, in bytes, header included.
    @param end: where the buffer's valid bytes end, its length by default.
    @return: the message, or L{None} while it is not all there.
    @raise RemoteProtocolError: the length is shorter than the header or over C{maxSize}.
    """
    available = (len(buffer) if end is None else end) - offset
    if available < header.size:
        return None
    number, size = header.unpack_from(buffer, offset)
    if size < header.size:
        raise RemoteProtocolError(f"message length {size}, shorter than its header")
    if size > maxSize:
        raise RemoteProtocolError(f"message of {size} bytes, more than the limit of {maxSize}")
    if available < size:
        return None
    return Message(number, bytes(buffer[offset + header.size : offset + size]), size)


class MessageDecoder(StreamDecoder[Message]):
    """Reads the messages of one channel from a stream of bytes."""

    def __init__(self, header: Struct, maxSize: int = MAX_MESSAGE) -> None:
        """
        @param header: L{CONTROL_HEADER} or L{IO_HEADER}.
        @param maxSize: the longest message allowed, in bytes, header included.
        """
        super().__init__()
        self.header = header
        self.maxSize = maxSize

    def _read(self, buffer: Buffer, offset: int) -> Message | None:
        return readMessage(self.header, buffer, offset, self.maxSize)


@attrs.frozen
class AsyncEvent:
    """
    What hyperstart 1.x says when a process has ended: docs/protocol, "Messages that answer
    nothing".

    @ivar event: what has happened; C{finished} is the only one known.
    @ivar container: the process's container.
    @ivar process: the process's id, or the text C{(null)} where it had none.
    @ivar status: the exit status as the agent wrote it; empty if it is absent.
    """

    event: str
    container: Optional[str] = None
    process: Optional[str] = None
    status: Raw = Raw()

    @property
    def exitStatus(self) -> int | None:
        """
        The exit status, or L{None} if it is no integer from 0 to 255. Neither C{true} nor C{1.0}
        is an integer.
        """
        text = bytes(self.status)
        # JSON has no leading zeros, so a longer text is a larger number.
        status = int(text) if len(text) <= 3 and text.isdigit() else LOST_STATUS + 1
        return status if status <= LOST_STATUS else None


_eventDecoder = msgspec.json.Decoder(AsyncEvent)


def readEvent(body: bytes) -> AsyncEvent | None:
    """The event in a message of code 23 or 24, or L{None} where there is none in it."""
    try:
        return _eventDecoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
