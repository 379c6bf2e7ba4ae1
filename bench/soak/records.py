"""
What flows: records that anybody can check who knows whose they are.

A record tells its process's seed and its own number, and the rest of it follows from these. So a
byte that is wrong, lost, twice there or another process's is seen where it arrives.
"""

from __future__ import annotations

import random
from struct import Struct

#: The seed, the record's number, its length with this header.
HEADER = Struct(">III")
LONGEST = 16 << 10
_POOL = random.Random(1).randbytes((1 << 20) + LONGEST)


class Violation(Exception):
    """Something happened that must not happen. C{str()} of it says what."""


def record(seed: int, number: int, size: int) -> bytes:
    """
    A record.

    @param size: its length, at least that of the header.
    """
    at = (seed * 7919 + number * 104729) % (1 << 20)
    return HEADER.pack(seed, number, size) + _POOL[at : at + size - HEADER.size]


class Check:
    """
    The reading end of a stream of records.

    @ivar number: how many have come, or were lost where that is allowed.
    @ivar lost: how many of them did not come.
    @ivar mayLose: whether whole records may be missing here: somebody was killed who had them.
    @ivar size: how many bytes have come.
    """

    def __init__(self, what: str, seed: int) -> None:
        self.what = what
        self.seed = seed
        self.number = 0
        self.lost = 0
        self.size = 0
        self.mayLose = False
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        """
        Take bytes as they come.

        @raise Violation: they are not those that were sent.
        """
        self._rest += data
        self.size += len(data)
        at = 0
        while len(self._rest) - at >= HEADER.size:
            seed, number, size = HEADER.unpack_from(self._rest, at)
            if seed != self.seed:
                raise Violation(f"{self.what}: record {self.number} is of stream {seed}")
            if size > len(self._rest) - at:
                break
            if number != self.number:
                if number < self.number or not self.mayLose:
                    raise Violation(f"{self.what}: record {number} instead of {self.number}")
                self.lost += number - self.number
            if self._rest[at : at + size] != record(seed, number, size):
                raise Violation(f"{self.what}: record {number} is damaged")
            self.number = number + 1
            at += size
        del self._rest[:at]

    def cut(self) -> None:
        """
        The connection that carries the stream ends here.

        @raise Violation: it ends inside a record, though records are sent whole.
        """
        if self._rest:
            raise Violation(f"{self.what}: the stream ends inside record {self.number}")

    def end(self, sent: int) -> None:
        """
        All has come.

        @param sent: how many records were sent.
        @raise Violation: some did not come.
        """
        self.cut()
        if self.number != sent and not (self.mayLose and self.number < sent):
            raise Violation(f"{self.what}: {self.number} records of {sent}")
