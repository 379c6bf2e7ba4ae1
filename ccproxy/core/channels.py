"""
What comes on an agent's two channels.
"""

from __future__ import annotations

from zope.interface import implementer

from ..errors import RemoteProtocolError
from ..interfaces import IStreamSink
from ..wire.codes import ControlCode, Dialect
from ..wire.messages import CONTROL_HEADER, readEvent, readMessage
from .context import turn
from .resync import findBeginning
from .routing import route
from .vm import VM

#: Messages that may carry an event of hyperstart 1.x.
_EVENT_CODES = (ControlCode.PROCESS_ASYNC_EVENT, ControlCode.SIGNALPROCESS)


@implementer(IStreamSink)
class ControlSink:
    """The control channel of a VM: answers, READY, NEXT and events."""

    __slots__ = ("_vm", "context")

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self.context = vm.context

    def broken(self) -> None:
        """See L{ccproxy.core.context.Breakable.broken}."""
        self._vm.channelBroken(False)

    @turn
    def received(self, data: memoryview) -> int:
        vm, offset = self._vm, 0
        try:
            while vm.control is not None:
                message = readMessage(CONTROL_HEADER, data, offset, vm.context.limits.maxMessage)
                if message is None:
                    break
                offset += message.size
                vm.context.changed(vm)
                self._message(message.number, message.body)
        except RemoteProtocolError as error:
            vm.channelEnded(False, f"sent a {error}")
        vm.handled = offset
        self.context.flush()
        vm.handled = 0
        return offset if vm.control is not None else len(data)

    def _message(self, number: int, body: bytes) -> None:
        """Act on one message: docs/protocol, "Messages that answer nothing"."""
        vm = self._vm
        if number == ControlCode.NEXT:
            vm.learn(Dialect.HYPERSTART)
        elif number in _EVENT_CODES:
            event = readEvent(body)
            if event is not None:
                vm.processes.event(event)
            else:
                vm.log.info(
                    "dropped an event that cannot be read", event="stray-event", **vm.fields
                )
        elif number == ControlCode.POD_FINISHED:
            vm.log.info("all containers of the pod have ended", event="pod-finished", **vm.fields)
        elif not vm.registration.received(number, body):
            vm.agent.answered(number, body)

    @turn
    def ended(self) -> None:
        self._vm.channelEnded(False, "was closed")
        self.context.flush()

    def peerGone(self) -> None:
        """The control channel is never paused."""

    @turn
    def writable(self) -> None:
        self._vm.agent.writable()
        self.context.flush()

    def drained(self) -> None:
        """Nothing waits for that: the next command waits for an answer."""


@implementer(IStreamSink)
class IOSink:
    """The I/O channel of a VM: the output of all its processes."""

    __slots__ = ("_vm", "context")

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self.context = vm.context

    def broken(self) -> None:
        """See L{ccproxy.core.context.Breakable.broken}."""
        self._vm.channelBroken(True)

    @turn
    def received(self, data: memoryview) -> int:
        vm, offset = self._vm, 0
        try:
            if vm.resync:
                most = vm.context.limits.maxMessage
                offset, found = findBeginning(data, vm.processes.numbers, most)
                vm.resync = not found
            if not vm.resync:
                offset = route(vm, data, offset)
        except RemoteProtocolError as error:
            vm.channelEnded(True, f"sent a {error}")
        self.context.flush()
        return offset if vm.io is not None else len(data)

    @turn
    def ended(self) -> None:
        self._vm.channelEnded(True, "was closed")
        self.context.flush()

    def peerGone(self) -> None:
        """What the agent has sent is still read, once there is room for it."""

    @turn
    def writable(self) -> None:
        self._vm.stdin.pump()
        self.context.flush()

    @turn
    def drained(self) -> None:
        self._vm.stdin.drained()
        self.context.flush()
