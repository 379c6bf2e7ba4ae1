"""
What comes on an agent's two channels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from struct import Struct
from typing import TYPE_CHECKING

from zope.interface import implementer

from ..errors import RemoteProtocolError
from ..interfaces import IStreamSink
from ..wire.decoder import Buffer
from ..wire.messages import CONTROL_HEADER, IO_HEADER, readMessage
from .repair import turn
from .routing import route

if TYPE_CHECKING:
    from .vm import VM

#: The longest message that is believed while the beginning of one is searched for.
PLAUSIBLE = 10240
# A length from 12 to PLAUSIBLE. Its first byte alone is matched: another may begin behind that.
_LENGTH = re.compile(rb"\0(?=\0(?:\0[\x0c-\xff]|[\x01-\x27].|\x28\0))", re.DOTALL)
# Where it stands in a header.
_LENGTH_AT = 8
_ONLY_LENGTH = Struct(">8xI")


@implementer(IStreamSink)
class ControlSink:
    """The control channel of a VM: answers, READY, NEXT and events."""

    __slots__ = ("_vm", "registry")

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self.registry = vm.registry

    def broken(self) -> None:
        """See L{ccproxy.core.repair.Breakable.broken}."""
        self._vm.channelBroken(False)

    @turn
    def received(self, data: memoryview) -> int:
        vm, offset = self._vm, 0
        try:
            while vm.control is not None:
                message = readMessage(CONTROL_HEADER, data, offset, vm.registry.limits.maxMessage)
                if message is None:
                    break
                offset += message.size
                vm.registry.changed(vm)
                vm.commands.message(message.number, message.body)
        except RemoteProtocolError as error:
            vm.channelEnded(False, f"sent a {error}")
        vm.handled = offset
        vm.registry.flush()
        vm.handled = 0
        return offset if vm.control is not None else len(data)

    @turn
    def ended(self) -> None:
        self._vm.channelEnded(False, "was closed")
        self._vm.registry.flush()

    def peerGone(self) -> None:
        """The control channel is never paused."""

    @turn
    def writable(self) -> None:
        self._vm.controlWritable()
        self._vm.registry.flush()

    def drained(self) -> None:
        """Nothing waits for that: the next command waits for an answer."""


@implementer(IStreamSink)
class IOSink:
    """The I/O channel of a VM: the output of all its processes."""

    __slots__ = ("_vm", "registry")

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self.registry = vm.registry

    def broken(self) -> None:
        """See L{ccproxy.core.repair.Breakable.broken}."""
        self._vm.channelBroken(True)

    @turn
    def received(self, data: memoryview) -> int:
        vm, offset = self._vm, 0
        try:
            if vm.resync:
                most = vm.registry.limits.maxMessage
                offset, found = findBeginning(data, vm.processes.numbers, most)
                vm.resync = not found
            if not vm.resync:
                offset = route(vm, data, offset)
        except RemoteProtocolError as error:
            vm.channelEnded(True, f"sent a {error}")
        vm.registry.flush()
        return offset if vm.io is not None else len(data)

    @turn
    def ended(self) -> None:
        self._vm.channelEnded(True, "was closed")
        self._vm.registry.flush()

    def peerGone(self) -> None:
        """What the agent has sent is still read, once there is room for it."""

    @turn
    def writable(self) -> None:
        self._vm.stdin.pump()
        self._vm.registry.flush()

    @turn
    def drained(self) -> None:
        self._vm.stdin.drained()
        self._vm.registry.flush()


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
