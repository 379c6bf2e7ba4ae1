"""
Finding a message in a stream that was joined late: promise P20.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from struct import Struct

from ..wire.decoder import Buffer
from ..wire.messages import IO_HEADER

#: The longest message that is believed while the beginning of one is searched for.
PLAUSIBLE = 10240
# A length from 12 to PLAUSIBLE. Its first byte alone is matched: another may begin behind that.
_LENGTH = re.compile(rb"\0(?=\0(?:\0[\x0c-\xff]|[\x01-\x27].|\x28\0))", re.DOTALL)
# Where it stands in a header.
_LENGTH_AT = 8
_ONLY_LENGTH = Struct(">8xI")


def findBeginning(data: Buffer, numbers: Collection[int], most: int) -> tuple[int, bool]:
    """
    Search for the beginning of a message: that of one of our own processes, or that behind a
    header whose length is plausible and that another plausible one follows.

    An agent can send what has to be searched for long. So only lengths that are plausible and
    numbers that may be ours are looked at, each of them once.

    @param data: what came on an I/O channel.
    @param numbers: those of our own processes.
    @param most: the longest message of theirs.
    @return: how much is of no use, and whether a message of ours begins behind that; if not, more
        must come to tell.
    """
    junk, lengthIn = bytes(data), _ONLY_LENGTH.unpack_from
    end = max(0, len(junk) - IO_HEADER.size + 1)
    headers = _headers(junk, numbers, most)
    start, ours = 0, -1
    while True:
        while ours < start:
            ours = next(headers, end)
        for match in _LENGTH.finditer(junk, start + _LENGTH_AT, ours + IO_HEADER.size - 1):
            offset = match.start() - _LENGTH_AT
            after = offset + lengthIn(junk, offset)[0]
            if after >= end:
                return (ours, True) if ours < end else (offset, False)
            if IO_HEADER.size <= lengthIn(junk, after)[0] <= PLAUSIBLE:
                start = after
                break
        else:
            return ours, ours < end


def _headers(junk: bytes, numbers: Collection[int], most: int) -> Iterator[int]:
    """Where headers of messages with our own numbers stand."""
    if not numbers:
        return
    least = min(numbers)
    different = ((least ^ max(numbers)).bit_length() + 7) // 8
    prefix = IO_HEADER.pack(least, 0)[: _LENGTH_AT - different]
    offset = junk.find(prefix)
    while 0 <= offset <= len(junk) - IO_HEADER.size:
        number, length = IO_HEADER.unpack_from(junk, offset)
        if number in numbers and IO_HEADER.size <= length <= most:
            yield offset
        offset = junk.find(prefix, offset + 1)
