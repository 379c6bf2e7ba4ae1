"""
Client frames: docs/protocol, "Frame".

L{encodeFrame} makes the bytes of one frame, L{readFrame} reads one where it stands in a buffer,
and L{FrameDecoder} reads them from a stream that is cut anywhere.
"""

from __future__ import annotations

from struct import Struct

import attrs

from ..errors import RemoteProtocolError
from .codes import FrameType, Notification, Stream
from .decoder import Buffer, StreamDecoder

VERSION = 2
#: The length of the header that we send, in 32-bit words.
HEADER_WORDS = 3
#: version, header words, three reserved bytes, flags and type, opcode, payload length.
HEADER = Struct(">HB3xBBI")
ERROR_FLAG = 0x10
TYPE_MASK = 0x0F
#: The default limit of a payload, in bytes.
MAX_PAYLOAD = 1 << 20
#: Found faster than by calling the class, on the path of every frame.
_TYPES = tuple(FrameType)


@attrs.frozen
class Frame:
    """
    One frame of the client protocol.

    @ivar type: what kind of frame it is.
    @ivar opcode: its opcode, which may be unknown to us.
    @ivar payload: its payload.
    @ivar error: whether the error flag is set, which only means something in a response.
    @ivar size: how many bytes it took on the wire, header included.
    """

    type: FrameType
    opcode: int
    payload: bytes = b""
    error: bool = False
    size: int = attrs.field(default=0, eq=False)


def encodeFrame(type: FrameType, opcode: int, payload: Buffer = b"", error: bool = False) -> bytes:
    """
    The bytes of one frame.

    @param error: set the error flag; for responses only.
    """
    flags = type | ERROR_FLAG if error else type
    return HEADER.pack(VERSION, HEADER_WORDS, flags, opcode, len(payload)) + payload


def readFrame(
    buffer: Buffer, offset: int = 0, maxPayload: int = MAX_PAYLOAD, end: int | None = None
) -> Frame | None:
    """
    Read the frame that begins at C{offset}.

    @param maxPayload: the longest payload allowed, in bytes.
    @param end: where the buffer's valid bytes end, its length by default.
    @return: the frame, or L{None} while it is not all there.
    @raise RemoteProtocolError: the header is bad, or announces more than C{maxPayload} bytes.
    """
    available = (len(buffer) if end is None else end) - offset
    if available < HEADER.size:
        return None
    version, words, flags, opcode, length = HEADER.unpack_from(buffer, offset)
    if version != VERSION:
        raise RemoteProtocolError(f"unsupported protocol version {version}, expected {VERSION}")
    kind = flags & TYPE_MASK
    if kind > FrameType.NOTIFICATION:
        raise RemoteProtocolError(f"unknown frame type {kind}")
    answerTo = opcode if kind == FrameType.COMMAND else None
    if words < HEADER_WORDS:
        raise RemoteProtocolError(
            f"header length of {words} words, expected at least {HEADER_WORDS}", answerTo
        )
    if length > maxPayload:
        raise RemoteProtocolError(
            f"payload of {length} bytes, more than the limit of {maxPayload}", answerTo
        )
    start = 4 * words
    size = start + length
    if available < size:
        return None
    payload = bytes(buffer[offset + start : offset + size])
    return Frame(_TYPES[kind], opcode, payload, bool(flags & ERROR_FLAG), size)


class FrameDecoder(StreamDecoder[Frame]):
    """Reads frames from a stream of bytes."""

    def __init__(self, maxPayload: int = MAX_PAYLOAD) -> None:
        """
        @param maxPayload: the longest payload allowed, in bytes.
        """
        super().__init__()
        self.maxPayload = maxPayload

    def _read(self, buffer: Buffer, offset: int) -> Frame | None:
        return readFrame(buffer, offset, self.maxPayload)


def encodeStream(stream: Stream, data: Buffer) -> bytes:
    """The bytes of a stream frame."""
    return encodeFrame(FrameType.STREAM, stream, data)


def encodeProcessExited(status: int) -> bytes:
    """
    The bytes of a ProcessExited notification.

    @param status: the exit status, 0 to 255.
    """
    return encodeFrame(
        FrameType.NOTIFICATION, Notification.PROCESS_EXITED, status.to_bytes(1, "big")
    )
