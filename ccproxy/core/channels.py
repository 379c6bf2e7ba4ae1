"""
What comes on an agent's two channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from ..errors import RemoteProtocolError
from ..interfaces import IStreamSink
from ..wire.codes import Stream
from ..wire.messages import CONTROL_HEADER, IO_HEADER, readMessage
from ..wire.translation import SIZE, runLength, translate

if TYPE_CHECKING:
    from .session import Session
    from .vm import VM

#: The longest message that is believed while the beginning of one is searched for.
PLAUSIBLE = 10240


class _Gathered:
    """
    Frames of one session that stand in the data at hand.

    @ivar spans: where they begin and end, but for the last span.
    @ivar start: where the last span begins.
    @ivar stop: where it ends.
    @ivar total: how many bytes they all are.
    """

    __slots__ = ("spans", "start", "stop", "total")

    def __init__(self, start: int) -> None:
        self.spans: list[tuple[int, int]] = []
        self.start = self.stop = start
        self.total = 0

    def add(self, start: int, stop: int) -> None:
        """More frames."""
        if start != self.stop:
            self.spans.append((self.start, self.stop))
            self.start = start
        self.stop = stop
        self.total += stop - start


def _translate(
    data: memoryview,
    offset: int,
    end: int,
    number: int,
    size: int,
    session: Session,
    gathered: dict[Session, _Gathered],
) -> int:
    """
    Translate the run of messages that begins at C{offset}, as far as the session has room.

    @return: how many there were; 0 if the first one has to be looked at.
    """
    held = gathered.get(session)
    room = session.roomFor(number, size)
    if held is not None:
        room -= held.total
    if room <= 0:
        return 0
    count, stop = 1, offset + size
    if data[stop : stop + SIZE] == data[offset : offset + SIZE]:
        count = min(runLength(data, offset, end, size), -(-room // size))
        stop = offset + count * size
    stream = Stream.STDOUT if number == session.stdio else Stream.STDERR
    translate(data, offset, size, count, stream)
    if held is None:
        held = gathered[session] = _Gathered(offset)
    held.add(offset, stop)
    return count


def _deliver(gathered: dict[Session, _Gathered], data: memoryview) -> None:
    """Give the sessions what was gathered for them."""
    for session, held in gathered.items():
        spans = [data[start:stop] for start, stop in held.spans]
        spans.append(data[held.start : held.stop])
        session.deliver(spans, held.total)
    gathered.clear()


@implementer(IStreamSink)
class ControlSink:
    """The control channel of a VM: answers, READY, NEXT and events."""

    __slots__ = ("_vm",)

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    def received(self, data: memoryview) -> int:
        vm, offset = self._vm, 0
        try:
            while vm.control is not None:
                message = readMessage(CONTROL_HEADER, data, offset, vm.registry.limits.maxMessage)
                if message is None:
                    break
                offset += message.size
                vm.commands.message(message.number, message.body)
        except RemoteProtocolError as error:
            vm.channelEnded(False, f"sent a {error}")
        vm.registry.flush()
        return offset if vm.control is not None else len(data)

    def ended(self) -> None:
        self._vm.channelEnded(False, "was closed")
        self._vm.registry.flush()

    def peerGone(self) -> None:
        """The control channel is never paused."""

    def writable(self) -> None:
        self._vm.controlWritable()

    def drained(self) -> None:
        """Nothing waits for that: the next command waits for an answer."""


@implementer(IStreamSink)
class IOSink:
    """The I/O channel of a VM: the output of all its processes."""

    __slots__ = ("_vm",)

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    def received(self, data: memoryview) -> int:
        vm, offset = self._vm, 0
        try:
            while vm.resync:
                start, offset = offset, self._resync(data, offset)
                if offset == start:
                    break
            if not vm.resync:
                offset = self._route(data, offset)
        except RemoteProtocolError as error:
            vm.channelEnded(True, f"sent a {error}")
        vm.registry.flush()
        return offset if vm.io is not None else len(data)

    def _route(self, data: memoryview, offset: int) -> int:
        """
        Give each message to its session.

        Output is translated in place, gathered by session, and sent when the data is through, or
        when a message comes that has to be looked at.

        @return: where the first message begins that was not used.
        """
        vm, end = self._vm, len(data)
        most = vm.registry.limits.maxMessage
        gathered: dict[Session, _Gathered] = {}
        while vm.io is not None and end - offset >= SIZE:
            number, size = IO_HEADER.unpack_from(data, offset)
            session = vm.numbers.get(number)
            if session is not None and SIZE < size <= most and offset + size <= end:
                count = _translate(data, offset, end, number, size, session, gathered)
                if count:
                    offset += count * size
                    continue
            _deliver(gathered, data)
            message = readMessage(IO_HEADER, data, offset, most)
            if message is None:
                break
            if session is not None:
                if session.full:
                    vm.flow.block(session)
                    break
                session.received(number, message.body)
            offset += size
        _deliver(gathered, data)
        return offset

    def _resync(self, data: memoryview, start: int) -> int:
        """
        Search for the beginning of a message: that of one of our own processes, or that behind a
        header whose length is plausible and that another plausible one follows.

        @param start: where the search begins.
        @return: where it is, or how much is of no use: C{start} if more must come to tell.
        """
        vm, size = self._vm, IO_HEADER.size
        undecided = None
        for offset in range(start, len(data) - size + 1):
            number, length = IO_HEADER.unpack_from(data, offset)
            assert isinstance(length, int)
            if not size <= length <= PLAUSIBLE:
                continue
            if number in vm.numbers:
                vm.resync = False
                return offset
            after = offset + length
            if after + size > len(data):
                undecided = offset if undecided is None else undecided
            elif undecided is None and size <= IO_HEADER.unpack_from(data, after)[1] <= PLAUSIBLE:
                return after
        return max(start, len(data) - size + 1) if undecided is None else undecided

    def ended(self) -> None:
        self._vm.channelEnded(True, "was closed")
        self._vm.registry.flush()

    def peerGone(self) -> None:
        """What the agent has sent is still read, once there is room for it."""

    def writable(self) -> None:
        self._vm.stdin.pump()
        self._vm.registry.flush()

    def drained(self) -> None:
        self._vm.stdin.drained()
        self._vm.registry.flush()
