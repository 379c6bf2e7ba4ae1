"""
Asking the admin socket, for tests that block.
"""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import attrs

from ccproxy.testing.daemon import eventually


class UNIXConnection(HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float = 20.0) -> None:
        """
        @param path: the socket.
        """
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket, which a daemon that starts has just after that for clients."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        eventually(lambda: self.sock.connect_ex(self._path) == 0, f"{self._path} is served")


@attrs.frozen
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@attrs.frozen
class Admin:
    """
    The admin socket of a daemon.

    @ivar path: where it is.
    """

    path: str

    def ask(self, method: str, url: str, body: Any = None) -> Answer:
        """Ask something; a body that is no bytes is made JSON."""
        connection = UNIXConnection(self.path)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, url, data)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, url: str) -> Any:
        """Ask for JSON, which there must be."""
        answer = self.ask("GET", url)
        if answer.status != 200:
            raise AssertionError(f"{answer.status} {answer.body!r}")
        return answer.json

    def follow(self, url: str) -> Following:
        """Ask for an answer without an end."""
        connection = UNIXConnection(self.path)
        connection.request("GET", url)
        return Following(connection, connection.getresponse())


@attrs.frozen
class Following:
    """
    An answer without an end.
    """

    connection: UNIXConnection
    response: HTTPResponse

    def line(self) -> bytes:
        """The next line."""
        return self.response.readline()

    def event(self) -> tuple[str, Any]:
        """The next event: its name and its data."""
        name = ""
        while True:
            line = self.line()
            if not line:
                raise EOFError("no more events")
            kind, _, value = line.decode().rstrip("\n").partition(": ")
            if kind == "event":
                name = value
            elif kind == "data":
                return name, json.loads(value)

    def until(self, wanted: str) -> Any:
        """The data of the next event of a name."""
        while True:
            name, data = self.event()
            if name == wanted:
                return data

    def close(self) -> None:
        """Ask no more."""
        self.response.close()
        self.connection.close()
