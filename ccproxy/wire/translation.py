"""
Translation in place: a message of the I/O channel becomes a stream frame where it stands.

Both headers are 12 bytes long and the bodies are the same, so only headers change. Processes that
write much send messages of one length for one number, one behind another: such a run is found and
rewritten column by column, a byte of all headers at a time, at a small part of the cost of doing
it message by message.
"""

from __future__ import annotations

from .codes import FrameType, Stream
from .frames import HEADER, HEADER_WORDS, VERSION
from .messages import IO_HEADER

#: The length of both headers.
SIZE = HEADER.size
assert IO_HEADER.size == SIZE

# The bytes of a header that differ first where two of them differ: the low ones of the length and
# of the number.
_COLUMNS = (11, 10, 7, 6, 9, 5, 4, 3, 2, 1, 0, 8)

# A run is followed in steps: looking at all that follows would cost that much for each short run.
_FIRST_STEP = 64
_STEP_GROWTH = 16

# The first 8 bytes of a stream frame's header as one number, and its last 4, the length, are laid
# out like the header of an I/O message.
_BEGINNINGS = [
    int.from_bytes(HEADER.pack(VERSION, HEADER_WORDS, FrameType.STREAM, stream, 0)[:8], "big")
    for stream in Stream
]


def runLength(data: memoryview, offset: int, end: int, size: int) -> int:
    """
    How many messages with the same header stand one behind another.

    @param offset: where the first one begins.
    @param end: where what may be looked at ends; the first one is whole.
    @param size: its length, header included.
    @return: their number, at least 1; all are whole.
    """
    most, count, step = (end - offset) // size, 1, _FIRST_STEP
    while count < most:
        # One more than is new, to compare with.
        start, looked = offset + (count - 1) * size, 1 + min(step, most - count)
        same = looked
        for column in _COLUMNS:
            if same == 1:
                break
            values = bytes(data[start + column : start + same * size : size])
            same -= len(values.lstrip(values[:1]))
        count += same - 1
        if same < looked:
            break
        step *= _STEP_GROWTH
    return count


def translate(data: memoryview, offset: int, size: int, count: int, stream: Stream) -> None:
    """
    Turn a run of messages into stream frames, in place.

    @param offset: where the first one begins.
    @param size: the length of each, header included.
    @param count: how many there are.
    @param stream: what they are for the shim.
    """
    if count == 1:
        IO_HEADER.pack_into(data, offset, _BEGINNINGS[stream], size - SIZE)
        return
    header = HEADER.pack(VERSION, HEADER_WORDS, FrameType.STREAM, stream, size - SIZE)
    end = offset + count * size
    for column in range(SIZE):
        data[offset + column : end : size] = header[column : column + 1] * count


def frameAround(frames: bytes | memoryview, position: int) -> tuple[int, int]:
    """
    Which of several whole frames a position lies in.

    @param frames: frames of ours, one behind another.
    @param position: less than their length.
    @return: where the frame begins and where the next one does.
    """
    start = 0
    while True:
        stop = start + SIZE + int.from_bytes(frames[start + 8 : start + SIZE], "big")
        if stop > position:
            return start, stop
        start = stop
