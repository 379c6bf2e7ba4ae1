"""
The way of output: from the I/O channel of a VM to the shims of its sessions.

Messages are translated where they stand in the data at hand, gathered by session, and sent with
one call for each session when the data is through, or when a message comes that means more than
output. This is the path of every byte that a container writes: it is written for speed.
"""

from __future__ import annotations

from typing import Protocol

from ..wire.codes import Stream
from ..wire.messages import IO_HEADER, readMessage
from ..wire.translation import SIZE, runLength, translate
from .flow import Flow, FlowVM
from .outlet import MOST_PER_SEND
from .session import Session


class RoutedVM(FlowVM, Protocol):
    """A VM, as far as the way of its output is concerned."""

    flow: Flow


class _Gathered:
    """
    Frames of one session that stand in the data at hand.

    @ivar spans: where they begin and end, but for the last span.
    @ivar start: where the last span begins.
    @ivar stop: where it ends.
    @ivar room: how many more bytes the session has room for.
    @ivar total: how many bytes they all are.
    """

    __slots__ = ("room", "spans", "start", "stop", "total")

    def __init__(self, start: int, room: int) -> None:
        self.spans: list[tuple[int, int]] = []
        self.start = self.stop = start
        self.room = room
        self.total = 0

    def divide(self, size: int, stop: int) -> None:
        """
        Make spans that one call takes of a run that is too long for that, but for the last one.

        @param size: the length of each of its frames.
        @param stop: where the run ends.
        """
        step = max(1, MOST_PER_SEND // size) * size
        while stop - self.start > step:
            self.spans.append((self.start, self.start + step))
            self.start += step


def route(vm: RoutedVM, data: memoryview, offset: int) -> int:
    """
    Give each message to its session.

    @param data: what came on the I/O channel; headers are overwritten.
    @param offset: where a message begins in it.
    @return: where the first message begins that was not used: it is not whole, or its session is
        full.
    @raise ccproxy.errors.RemoteProtocolError: a header is bad.
    """
    end, most, sessionOf = len(data), vm.context.limits.maxMessage, vm.processes.numbers.get
    longest = min(most, MOST_PER_SEND)  # a longer one becomes several frames
    gathered: dict[Session, _Gathered] = {}
    before, begin, frames = None, offset, 0
    while vm.io is not None and end - offset >= SIZE:
        number, size = header = IO_HEADER.unpack_from(data, offset)
        session, stop = sessionOf(number), offset + size
        if session is not None and SIZE < size <= longest and stop <= end:
            held = gathered.get(session)
            room = session.roomFor(number, size) if held is None else held.room
            if room > 0:
                count = 1
                if header == before:
                    count = min(runLength(data, offset, end, size), -(-room // size))
                    stop = offset + count * size
                stream = Stream.STDOUT if number == session.stdio else Stream.STDERR
                translate(data, offset, size, count, stream)
                if held is None:
                    held = gathered[session] = _Gathered(offset, room)
                elif held.stop != offset or stop - held.start > MOST_PER_SEND:
                    held.spans.append((held.start, held.stop))
                    held.start = offset
                if stop - offset > MOST_PER_SEND:
                    held.divide(size, stop)
                held.stop = stop
                held.total += stop - offset
                held.room = room - stop + offset
                frames += count
                offset, before = stop, header
                continue
        _deliver(gathered, data)
        message = readMessage(IO_HEADER, data, offset, most)
        if message is None:
            break
        if session is not None:
            if session.output.full:
                vm.flow.block(session)
                break
            session.received(number, message.body)
        frames += 1
        offset, before = stop, None
    _deliver(gathered, data)
    vm.traffic.outFrames += frames
    vm.traffic.outBytes += offset - begin
    return offset


def _deliver(gathered: dict[Session, _Gathered], data: memoryview) -> None:
    """Give the sessions what was gathered for them."""
    for session, held in gathered.items():
        spans = [data[start:stop] for start, stop in held.spans]
        spans.append(data[held.start : held.stop])
        session.output.deliver(spans, held.total)
    gathered.clear()
