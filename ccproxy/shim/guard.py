"""
What remains to be done when a shim is killed with SIGKILL, which it can't notice itself.

A child process waits for the end of a pipe. If its parent did not say that it ends in order, it
puts the terminal back, takes over the token and kills the process in the VM, so that killing the
shim kills the process that it stands for.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress

from ..wire import payloads
from ..wire.codes import Command, FrameType
from ..wire.frames import FrameDecoder, encodeFrame
from .signals import forShims
from .terminal import Terminal

#: How long to wait for the killed process to end, in seconds.
KILL_TIMEOUT = 10.0
#: Bytes to look at that may have come in time: more than a socket holds.
MAX_LATE = 1 << 20
#: Seconds in which a socket gives what has come already.
_AT_ONCE = 0.001
_DISMISSED = b"\n"


class Guard:
    """
    The child, seen from its parent.

    It is forked, so it has to be made before there are threads, and before a reactor is imported.
    """

    def __init__(self) -> None:
        reading, self._pipe = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                os.close(self._pipe)
                _guard(reading)
            finally:
                os._exit(0)
        os.close(reading)

    def watch(self, path: str, token: str) -> None:
        """
        From now on, the process has to be killed.

        @param path: the proxy's socket.
        @param token: the token of the process.
        """
        self._say(payloads.encode([path, token]))

    def dismiss(self) -> None:
        """This process ends in order."""
        self._say(_DISMISSED)
        os.close(self._pipe)
        os.waitpid(self._pid, 0)

    def _say(self, data: bytes) -> None:
        # If somebody has killed the guard, the process can do without.
        with suppress(BrokenPipeError):
            os.write(self._pipe, data)


def _guard(pipe: int) -> None:
    """The child: wait, then do what is to be done."""
    os.setsid()
    for number in forShims():
        signal.signal(number, signal.SIG_IGN)
    terminal = Terminal(os.dup(0)) if os.isatty(0) else None
    if terminal is not None:
        terminal.save()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        # Who reads them waits for their end, and that must not be ours.
        os.dup2(null, fd)
    said = b""
    while data := os.read(pipe, 4096):
        said += data
    if said.endswith(_DISMISSED):
        return
    # If the terminal is not raw, it never was, or a shell has taken it back.
    if terminal is not None and terminal.isRaw():
        terminal.restore()
    if said:
        path, token = payloads.decode(list, said)
        _kill(path, token)


def _kill(path: str, token: str) -> None:
    """Kill a process, and see it end so that nothing waits for us in the proxy."""
    deadline = time.monotonic() + KILL_TIMEOUT
    decoder = FrameDecoder()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(KILL_TIMEOUT)
        connection.connect(path)
        for command, payload in (
            (Command.CONNECT_SHIM, payloads.ConnectShim(token)),
            (Command.SIGNAL, payloads.Signal(signal.SIGKILL)),
        ):
            connection.sendall(encodeFrame(FrameType.COMMAND, command, payloads.encode(payload)))
        late = 0
        while late < MAX_LATE:
            left = deadline - time.monotonic()
            connection.settimeout(max(_AT_ONCE, left))
            data = connection.recv(65536)
            if not data:
                return
            if left <= 0:
                late += len(data)
            decoder.feed(data)
            while (frame := decoder.next()) is not None:
                if frame.type is FrameType.NOTIFICATION:
                    connection.sendall(encodeFrame(FrameType.COMMAND, Command.DISCONNECT_SHIM))
                    return
