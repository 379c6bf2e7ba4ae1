"""
What comes on an agent's two channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from ..errors import RemoteProtocolError
from ..interfaces import IStreamSink
from ..wire.messages import CONTROL_HEADER, IO_HEADER, readMessage
from .routing import route

if TYPE_CHECKING:
    from .vm import VM

#: The longest message that is believed while the beginning of one is searched for.
PLAUSIBLE = 10240


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
                vm.registry.changed(vm)
                vm.commands.message(message.number, message.body)
        except RemoteProtocolError as error:
            vm.channelEnded(False, f"sent a {error}")
        vm.handled = offset
        vm.registry.flush()
        vm.handled = 0
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
                offset = route(vm, data, offset)
        except RemoteProtocolError as error:
            vm.channelEnded(True, f"sent a {error}")
        vm.registry.flush()
        return offset if vm.io is not None else len(data)

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
            if number in vm.processes.numbers and size <= length <= vm.registry.limits.maxMessage:
                vm.resync = False
                return offset
            if not size <= length <= PLAUSIBLE:
                continue
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
