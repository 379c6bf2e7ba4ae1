"""
A daemon's admin socket as a test plays it: canned answers, and what was asked.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

#: What answers a request: sends all of the response to the connection.
Answer = Callable[[BaseHTTPRequestHandler], None]


def answering(value: object, code: int = 200) -> Answer:
    """An answer in JSON."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        request.send_response(code)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def refusing(code: int, error: str) -> Answer:
    """A refusal, with its reason."""
    return answering({"error": error}, code)


def streaming(*pieces: bytes, cut: bool = False) -> Answer:
    """
    An answer in pieces, without a length.

    @param cut: break off before the end.
    """

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for piece in pieces:
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            request.wfile.flush()
        if not cut:
            request.wfile.write(b"0\r\n\r\n")

    return answer


class AdminServer:
    """
    Serves canned answers on a UNIX socket, each connection in a thread of its own.

    @ivar path: the socket.
    @ivar answers: an answer for each method and path with query, such as C{GET /v1/vms}.
    @ivar asked: those that were asked, with their bodies out of JSON.
    @ivar connections: those that there have been.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, Any]] = []
        self.connections: list[socket.socket] = []
        outer = self

        class Request(BaseHTTPRequestHandler):
            """One request, on a connection of its own."""

            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                """There is no log."""

            def handle_one_request(self) -> None:
                """Answer it."""
                self.close_connection = True
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    outer._answer(self)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            """The listener."""

            daemon_threads = True
            block_on_close = False
            request_queue_size = 16

            def process_request(self, request: Any, client_address: object) -> None:
                """Know the connection before any later one is answered."""
                outer.connections.append(request)
                super().process_request(request, client_address)

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that leaves early is none of our business."""

        self._server = Server(path, Request)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _answer(self, request: Any) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        asked = f"{request.command} {request.path}"
        self.asked.append((asked, json.loads(body) if body else None))
        missing = refusing(404, f"there is no {request.path}")
        self.answers.get(asked, missing)(request)

    def close(self) -> None:
        """Stop it, remove the socket, and end all connections."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            os.unlink(self.path)
            self.drop()

    def drop(self) -> None:
        """End all connections."""
        while self.connections:
            # One that is closed already has no other end.
            with suppress(OSError):
                self.connections.pop().shutdown(socket.SHUT_RDWR)
