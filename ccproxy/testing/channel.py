"""
One socket of a scripted agent: accepting, reading and writing, one connection after the other.
"""

from __future__ import annotations

import os
import socket
import threading
from fcntl import ioctl
from struct import Struct, unpack
from termios import FIONREAD, TIOCOUTQ

from ..wire.messages import Message, MessageDecoder
from .daemon import eventually

#: How many bytes a hypervisor reads from a channel's socket at a time.
READ_SIZE = 4096


class Channel:
    """
    One of the agent's two sockets. It serves one connection after the other.

    @ivar path: where the socket is.
    @ivar messages: what has come, on all connections.
    @ivar connections: how many connections have been served.
    @ivar paused: whether nothing is read.
    """

    def __init__(self, path: str, header: Struct) -> None:
        self.path = path
        self.messages: list[Message] = []
        self.connections = 0
        self.paused = False
        self.connection: socket.socket | None = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        self._header = header
        self._decoder = MessageDecoder(header, 1 << 30)
        self._writing = threading.Lock()

    def accept(self, timeout: float) -> None:
        """Take the next connection, on which a write may take so many seconds."""
        connection = self.listener.accept()[0]
        connection.settimeout(timeout)
        self._decoder = MessageDecoder(self._header, 1 << 30)
        self.connections += 1
        self.connection = connection

    def read(self) -> list[Message] | None:
        """Read once; the messages that are whole with it, or L{None} at the end."""
        assert self.connection is not None
        try:
            data = self.connection.recv(READ_SIZE)
        except ConnectionResetError:
            data = b""
        if not data:
            return None
        self._decoder.feed(data)
        messages = list(iter(self._decoder.next, None))
        self.messages += messages
        return messages

    def headerIsCut(self) -> bool:
        """Whether the last read has ended inside a header."""
        return 0 < self._decoder.pending < self._header.size

    def write(self, data: bytes) -> None:
        """Write, from any thread."""
        connection = self.connection
        if connection is None:
            raise AssertionError(f"the proxy is not connected to {os.path.basename(self.path)}")
        with self._writing:
            try:
                connection.sendall(data)
            except TimeoutError:
                raise AssertionError("the proxy does not read from the agent") from None
            except OSError as failure:
                raise AssertionError(f"the proxy has closed the channel: {failure}") from None

    def unread(self) -> int:
        """How many bytes of what was written the proxy has not taken yet."""
        if self.connection is None:
            return 0
        count: int = unpack("i", ioctl(self.connection, TIOCOUTQ, bytes(4)))[0]
        return count

    def waitRead(self) -> None:
        """Wait until the proxy has taken all that was written."""
        eventually(lambda: not self.unread(), "the proxy reads")

    def waiting(self) -> int:
        """How many bytes are in the socket, not read yet."""
        if self.connection is None:
            return 0
        count: int = unpack("i", ioctl(self.connection, FIONREAD, bytes(4)))[0]
        return count
