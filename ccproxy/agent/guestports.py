"""
The agent's channels as a guest has them: virtio-serial ports, found by their names.

A port is one file for all hosts that come and go. While no host is connected, it is hung up; a
host that comes is noticed by looking, as the kernel tells of it only by a signal.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure

from .protocols import ChannelProtocol

#: The names of the two channels' ports.
CONTROL, IO = "sh.hyper.channel.0", "sh.hyper.channel.1"
#: Seconds between two looks whether a host has come, or has gone unread.
INTERVAL = 0.1
#: How much is read at once, in bytes; a port's driver keeps what comes in pages.
READ_SIZE = 1 << 16

_CLASS = Path("/sys/class/virtio-ports")


def findPort(name: str, timeout: float) -> str:
    """
    The device of a port, which may appear only after its driver was loaded.

    @param timeout: for how long to look for it, in seconds.
    @raise OSError: there is none.
    """
    deadline = time.monotonic() + timeout
    while True:
        for port in sorted(_CLASS.glob("*")):
            if (port / "name").read_text().strip() == name:
                return f"/dev/{port.name}"
        if time.monotonic() > deadline:
            found = ", ".join(sorted(p.name for p in _CLASS.glob("*"))) or "none"
            raise FileNotFoundError(f"no virtio-serial port named {name}; ports: {found}")
        time.sleep(INTERVAL / 10)


class PortTransport(FileDescriptor):
    """A port, for as long as one host is connected to it."""

    connected = 1

    def __init__(self, reactor: Any, fd: int, protocol: ChannelProtocol) -> None:
        """
        @param fd: the port, which stays open when the host goes.
        """
        super().__init__(reactor)
        self._fd = fd
        self._protocol = protocol
        protocol.makeConnection(self)
        if not protocol.channel.paused:
            self.startReading()

    def fileno(self) -> int:
        """The port's descriptor, -1 once the host has gone."""
        return self._fd

    def logPrefix(self) -> str:
        """How Twisted's log calls it."""
        return "agent"

    def doRead(self) -> Any:
        """Something has come; returns the reason once there will be no more."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self._protocol.dataReceived(data)
        return None

    def writeSomeData(self, data: bytes) -> Any:
        """Write as much as the port takes; how much that was, or the reason why none."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            return CONNECTION_LOST

    def connectionLost(self, reason: Failure) -> None:
        """The host has gone; what it has not taken is dropped."""
        if self.connected:
            super().connectionLost(reason)
            self._fd = -1
            self._protocol.connectionLost(reason)


class VirtioPort:
    """One port: its host at any time has a protocol of its own."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        build: Callable[[Callable[[], None]], ChannelProtocol],
        open: Callable[[str, int], int] = os.open,
    ) -> None:
        """
        Open it, and wait for a host.

        @param reactor: needs IReactorFDSet and IReactorTime.
        @param path: its device.
        @param build: makes the protocol of a connection; it is given what the protocol calls
            once the connection has ended.
        @raise OSError: it cannot be opened.
        """
        self.reactor = reactor
        self.path = path
        self._build = build
        self._open = open
        self._protocol: ChannelProtocol | None = None
        self._fd = -1
        self._reopen()
        self._look()

    def _reopen(self) -> None:
        # Closing it drops what the last host has left in it, perhaps half a message.
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def _look(self) -> None:
        """See whether a host has come, or has gone while its channel was not read."""
        self.reactor.callLater(INTERVAL, self._look)
        poll = select.poll()
        poll.register(self._fd, 0)
        hungUp = bool(poll.poll(0))
        if self._protocol is None and not hungUp:
            self.log.info("a host is connected to {path}", path=self.path)
            self._protocol = self._build(self._gone)
            PortTransport(self.reactor, self._fd, self._protocol)
        elif self._protocol is not None and hungUp and self._protocol.channel.paused:
            self._protocol.transport.connectionLost(Failure(CONNECTION_LOST))

    def _gone(self) -> None:
        self.log.info("the host has gone from {path}", path=self.path)
        self._protocol = None
        self._reopen()
