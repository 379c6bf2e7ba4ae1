"""
QEMU's monitor: questions and orders in JSON, one line each, over a UNIX socket.
"""

from __future__ import annotations

import json
import socket
from typing import Any

#: Seconds for an answer.
TIMEOUT = 10.0


class Monitor:
    """
    A connection to the monitor of a running VM, as a context.

    Whatever is wrong with it is an L{OSError}: then the VM is not to be reached.
    """

    def __init__(self, path: str) -> None:
        """
        @param path: the monitor's socket.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(TIMEOUT)
            self._socket.connect(path)
            self._lines = self._socket.makefile("rb")
            self._next("QMP")
            self.ask("qmp_capabilities")
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *unused: object) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, command: str) -> Any:
        """
        Give an order.

        @return: the answer.
        """
        self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
        return self._next("return")

    def opened(self, device: str) -> bool:
        """Whether the guest has opened a character device."""
        return any(
            one["label"] == device and one["frontend-open"] for one in self.ask("query-chardev")
        )

    def _next(self, key: str) -> Any:
        """The next message of a kind; events of the VM may come between."""
        while True:
            line = self._lines.readline()
            message = json.loads(line) if line else {"error": {"desc": "it has gone"}}
            if "error" in message:
                raise ConnectionError(message["error"]["desc"])
            if key in message:
                return message[key]
