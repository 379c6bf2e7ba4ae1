"""
Getting at a VM's sockets: its two channels and its console, with clean-up on every path.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from zope.interface import implementer

from ..core.channels import ControlSink, IOSink
from ..core.context import Wait, cancel, run
from ..core.registry import Registry
from ..core.states import VMState
from ..core.vm import VM
from ..errors import CCProxyError, InternalError, RegistryError
from ..interfaces import IConnector
from .connectunix import connectUNIX
from .console import Console
from .ordinary import attach
from .passed import inodeOf
from .polling import Poller
from .protocols import AgentChannel, ControlChannel, IOChannel

#: Seconds between two tries to reach a console.
CONSOLE_RETRY = 1.0
#: What tells a socket from another: device, inode, and when it was made, for the inode of one that
#: was removed is soon another's, while its connections still have something to say.
_Identity = tuple[int, int, int]
_HOLDING = (VMState.CONNECTING, VMState.WAITING, VMState.REGISTERED)


@attrs.define(eq=False)
class _Sockets:
    """
    What is open, or being opened, for one VM.

    @ivar identities: those of its channels' sockets.
    @ivar attempt: the connecting, while it goes on.
    @ivar channels: those connected and not handed over.
    """

    identities: list[_Identity] = attrs.field(factory=list)
    attempt: Deferred[None] | None = None
    channels: list[AgentChannel] = attrs.field(factory=list)
    console: Console | None = None
    consoleAttempt: Deferred[None] | None = None
    consoleRetry: Wait | None = None
    consoleWarned: bool = False


@attrs.frozen
class ChannelsForm:
    """
    What the connector knows of one VM, as it is written down.

    @ivar serial: the VM's.
    @ivar identities: those of its channels' sockets.
    @ivar console: the inode of the connection to its console, if it is connected.
    """

    serial: int
    identities: list[tuple[int, int, int]] = attrs.field(factory=list)
    console: Optional[int] = None


@implementer(IConnector)
class Connector:
    """
    Connects VMs' sockets.

    @ivar poller: watches the sockets.
    @ivar registry: whose VMs they are; set once it exists.
    @ivar directories: where the sockets must be, links resolved; anywhere if there are none.
    """

    log = Logger()
    registry: Registry

    def __init__(self, poller: Poller, directories: Sequence[str] = ()) -> None:
        self.poller = poller
        self.directories = [os.path.realpath(directory) for directory in directories]
        self._sockets: dict[VM, _Sockets] = {}
        self._holders: dict[_Identity, VM] = {}

    def allow(self, directory: str) -> None:
        """Sockets in C{directory} are where they must be, too."""
        if self.directories:
            self.directories.append(os.path.realpath(directory))

    def connect(self, vm: VM) -> None:
        """See L{IConnector.connect}."""
        sockets = self._sockets[vm] = _Sockets()
        sockets.attempt = Deferred.fromCoroutine(self._connect(vm, sockets))
        sockets.attempt.addErrback(
            lambda failure: self.log.failure("connecting {vm}", failure, vm=vm.containerId)
        )

    async def _connect(self, vm: VM, sockets: _Sockets) -> None:
        request, timeout = vm.request, vm.context.limits.readyTimeout
        try:
            self._claim(vm, sockets)
            # The I/O channel first: the agent says READY, once, to whoever connects the other.
            for channel, path in (
                (IOChannel(self.registry), request.ioSerial),
                (ControlChannel(self.registry), request.ctlSerial),
            ):
                await connectUNIX(self.poller, path, channel, timeout)
                sockets.channels.append(channel)
            io, control = sockets.channels
            vm.connected(control.connection, io.connection)
        except CancelledError:
            return
        except Exception as error:
            if not isinstance(error, (CCProxyError, OSError)):
                self.registry.context.failed()
                error = InternalError()
            run(self.registry.context, vm.connectFailed, str(error))
            return
        sockets.channels = []
        control.begin(ControlSink(vm))
        io.begin(IOSink(vm))
        if request.console:
            self._openConsole(vm, sockets)

    def _claim(self, vm: VM, sockets: _Sockets) -> None:
        """
        Check the channels' sockets, and note that they are the VM's.

        @raise RegistryError: they are not where they must be, or another VM's.
        """
        for path in (vm.request.ctlSerial, vm.request.ioSerial):
            identity = self._identify(path)
            holder = self._holders.get(identity)
            if holder is vm:
                raise RegistryError(f"{path} is both the control and the I/O channel")
            if holder is not None:
                if holder.state in _HOLDING:
                    raise RegistryError(f"{path} is a channel of VM {holder.containerId} already")
                holder.replace()
            self._holders[identity] = vm
            sockets.identities.append(identity)
        if vm.request.console:
            self._confine(vm.request.console)

    def _identify(self, path: str) -> _Identity:
        self._confine(path)
        try:
            found = os.stat(path)
        except OSError as error:
            raise RegistryError(f"cannot connect to {path}: {error.strerror}") from None
        if not stat.S_ISSOCK(found.st_mode):
            raise RegistryError(f"cannot connect to {path}: it is no socket")
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def _confine(self, path: str) -> None:
        if not self.directories:
            return
        real = os.path.realpath(path)
        if not any(
            os.path.commonpath((real, directory)) == directory for directory in self.directories
        ):
            raise RegistryError(
                f"{path} is outside of {', '.join(self.directories)}; see --vm-socket-dir"
            )

    def abandon(self, vm: VM) -> None:
        """See L{IConnector.abandon}."""
        sockets = self._sockets.pop(vm, None)
        if sockets is None:
            return
        for identity in sockets.identities:
            del self._holders[identity]
        if sockets.attempt is not None:
            sockets.attempt.cancel()
        for channel in sockets.channels:
            channel.connection.close()
        cancel(sockets.consoleRetry)
        if sockets.consoleAttempt is not None:
            sockets.consoleAttempt.cancel()
        if sockets.console is not None:
            sockets.console.close()

    def written(self) -> list[ChannelsForm]:
        """All that is known, for another process. VMs that are being connected begin anew there."""
        forms = map(self.channelsOf, self._sockets)
        return [form for form in forms if form is not None]

    def channelsOf(self, vm: VM) -> ChannelsForm | None:
        """What is known of one VM, or L{None} where that is nothing."""
        sockets = self._sockets.get(vm)
        if sockets is None or not (sockets.attempt is None or sockets.attempt.called):
            return None
        # A console that has just ended is there without a descriptor for the rest of this turn.
        console = -1 if sockets.console is None else sockets.console.fileno()
        return ChannelsForm(
            vm.serial, sockets.identities, inodeOf(console) if console >= 0 else None
        )

    def consoles(self) -> list[int]:
        """The descriptors of all connections to consoles."""
        consoles = [sockets.console for sockets in self._sockets.values()]
        descriptors = [console.fileno() for console in consoles if console is not None]
        return [descriptor for descriptor in descriptors if descriptor >= 0]

    def adopt(self, forms: Iterable[ChannelsForm], made: Mapping[int, socket.socket]) -> None:
        """
        Go on with what another process has L{written}. If a console cannot be watched,
        connect to it again later.

        @param made: the connections to consoles, by their inodes, among others.
        """
        vms = [*self.registry.vms.values(), *self.registry.leaving]
        bySerial = {vm.serial: vm for vm in vms}
        for form in forms:
            vm = bySerial.get(form.serial)
            if vm is None or (vm.control is None and vm.io is None):
                continue
            sockets = self._sockets[vm] = _Sockets(form.identities)
            self._holders.update(dict.fromkeys(form.identities, vm))
            connection = made.get(form.console) if form.console is not None else None
            try:
                if connection is not None:
                    console = self._console(vm, sockets)
                    attach(self.poller, connection, vm.request.console or "", console)
                    sockets.console = console
                elif vm.request.console:
                    self._openConsole(vm, sockets)
            except Exception:
                fields: Any = vm.fields
                self.log.failure(
                    "the console cannot be restored, will connect to it again",
                    event="restore-dropped",
                    **fields,
                )
                self._retryConsole(vm, sockets)

    def _openConsole(self, vm: VM, sockets: _Sockets) -> None:
        """Connect to the console; where that fails, again later."""
        sockets.consoleAttempt = Deferred.fromCoroutine(self._readConsole(vm, sockets))
        sockets.consoleAttempt.addErrback(
            lambda failure: self.log.failure("console of {vm}", failure, vm=vm.containerId)
        )

    async def _readConsole(self, vm: VM, sockets: _Sockets) -> None:
        path = vm.request.console or ""
        console = self._console(vm, sockets)
        try:
            # Each time anew: what stands there may have changed since the last try.
            holder = self._holders.get(self._identify(path))
            if holder is not None:
                raise RegistryError(f"{path} is a channel of VM {holder.containerId}")
            await connectUNIX(self.poller, path, console, CONSOLE_RETRY)
            sockets.console = console
        except CancelledError:
            return
        except (CCProxyError, OSError) as error:
            if not sockets.consoleWarned:
                sockets.consoleWarned = True
                vm.log.warn(
                    "cannot read the console, will try on: {reason}",
                    event="console-unreachable",
                    reason=str(error),
                    **vm.fields,
                )
            self._retryConsole(vm, sockets)

    def _console(self, vm: VM, sockets: _Sockets) -> Console:
        return Console(vm, lambda: self._retryConsole(vm, sockets))

    def _retryConsole(self, vm: VM, sockets: _Sockets) -> None:
        sockets.console = None
        if self._sockets.get(vm) is sockets:
            sockets.consoleRetry = self.registry.context.later(
                CONSOLE_RETRY, self._openConsole, vm, sockets
            )
