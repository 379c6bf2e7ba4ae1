"""
What C{cc-proxy -uri} with C{join} makes of a daemon that does not answer as it should.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import threading
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccproxy.net.binding import ListeningSocket, bind
from ccproxy.net.passed import inodeOf
from ccproxy.service import join as joining
from ccproxy.service import pods
from ccproxy.service.join import CannotJoin, join
from ccproxy.service.pods import Pods

FLOOD = b"x" * (1 << 12)


class JoinTests(SynchronousTestCase):
    """The process's side."""

    def setUp(self) -> None:
        """Make the pod's socket, and somebody who takes the daemon's place."""
        folder = tempfile.mkdtemp()  # a short path
        self.addCleanup(shutil.rmtree, folder)
        self.listening = self.bound(os.path.join(folder, "pod"))
        self.folder = folder
        self.newAdmin()
        self.patch(joining, "TIMEOUT", 0.3)
        self.patch(joining, "MARGIN", 0.0)

    def newAdmin(self) -> None:
        """Make the daemon's admin socket, without connections."""
        self.admin = self.bound(os.path.join(self.folder, f"admin{time.monotonic_ns()}"))
        self.admin.socket.setblocking(True)

    def bound(self, path: str) -> ListeningSocket:
        """A listening socket."""
        listening = bind(path)
        self.addCleanup(listening.close)
        return listening

    def refused(self, *answer: bytes, again: bytes = b"", pause: float = 0.0) -> str:
        """
        Why the pod could not join.

        @param answer: what is answered at once, or nothing at all to close at once.
        @param again: what is answered again and again.
        @param pause: seconds between two of these.
        """
        done = threading.Event()
        self.newAdmin()

        def serve() -> None:
            connection = self.admin.socket.accept()[0]
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(b"".join(answer))
                while again and not done.wait(pause):
                    connection.sendall(again)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        overdue = threading.Timer(20.0, done.set)
        overdue.start()
        try:
            self.problem = self.assertRaises(CannotJoin, join, self.listening, self.admin.path)
            return str(self.problem)
        finally:
            overdue.cancel()
            done.set()
            server.join(20)

    def test_dribbles(self) -> None:
        """The time for the answer counts in all, not for each byte of it."""
        self.assertIn("has not answered within 0.3 s", self.refused(again=b"H", pause=0.02))

    def test_floods(self) -> None:
        """An answer without end is none."""
        self.assertIn("has not answered", self.refused(again=FLOOD))

    def test_hangs(self) -> None:
        """A daemon that accepts nothing is waited for no longer."""
        error = self.assertRaises(CannotJoin, join, self.listening, self.admin.path)
        self.assertIn("has not answered", str(error))

    def test_closes(self) -> None:
        """
        A daemon that dies before the first line of its answer is whole may have taken the pod: the
        next one is asked. Else what that line says counts.
        """
        line = b"HTTP/1.1 409 Conflict\r\n"
        whole = line + b"A: b\r\n\r\nfull"
        for cut in range(0, len(whole) + 1, 5):
            said = "has not answered" if cut < len(line) else "does not take it"
            self.assertIn(said, self.refused(whole[:cut]))
        self.assertTrue(self.refused(whole).endswith("full"))

    def test_nextDaemon(self) -> None:
        """The daemon that follows one that has died is asked, with the same socket."""
        self.patch(joining, "TIMEOUT", 30.0)
        inodes: list[int] = []

        def serve() -> None:
            for answer in (b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\n\r\n"):
                with self.admin.socket.accept()[0] as connection:
                    _, (descriptor,), _, _ = socket.recv_fds(connection, 1 << 16, 1)
                    inodes.append(inodeOf(descriptor))
                    os.close(descriptor)
                    connection.sendall(answer)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        join(self.listening, self.admin.path)
        server.join(20)
        self.assertEqual(inodes, [inodeOf(self.listening.socket.fileno())] * 3)

    def test_revoked(self) -> None:
        """A socket that a daemon may have taken can be revoked: then no process serves it."""
        for answer, given in ((b"", True), (b"HTTP/1.1 409 Conflict\r\n\r\n", False)):
            self.refused(answer)
            self.assertIs(self.problem.given, given)
        with (
            socket.socket(fileno=os.dup(self.listening.socket.fileno())) as daemons,
            socket.socket(socket.AF_UNIX) as early,
        ):
            daemons.setblocking(False)
            early.connect(self.listening.path)
            self.listening.revoke()
            daemons.accept()[0].close()  # one who has connected before
            self.assertRaises(BlockingIOError, daemons.accept)
            with socket.socket(socket.AF_UNIX) as late:
                self.assertEqual(late.connect_ex(self.listening.path), errno.ECONNREFUSED)
            self.bound(self.listening.path)


class LateTests(SynchronousTestCase):
    """The daemon's side."""

    def test_late(self) -> None:
        """
        A socket is not taken once its process serves the pod alone, or there would be two who
        answer on it.
        """
        nothing: Any = None
        made = Pods(nothing, nothing, nothing)
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        made.received.add(theirs.detach())
        (inode,) = made.received._held
        late = time.monotonic() - 1
        error = self.assertRaises(pods.CannotJoin, made.join, "/pod", inode, late)
        self.assertIn("too late", str(error))
        self.assertEqual(ours.recv(1), b"")
