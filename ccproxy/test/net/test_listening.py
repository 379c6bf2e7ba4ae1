"""
Tests of L{ccproxy.net.listening}, L{ccproxy.net.binding} and L{ccproxy.net.connectunix}.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock, skipIf

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher
from zope.interface.verify import verifyObject

from ...net import binding
from ...net.binding import CannotListen, bind, passedSocket
from ...net.connectunix import RETRY_INTERVAL, CannotConnect, connectUNIX
from ...net.listening import STARVED_INTERVAL, UNIXListener
from ..sockets import RecordingProtocol, SocketCase

US = f"pid={os.getpid()} uid={os.getuid()}"


class PathCase(SocketCase):
    """A test with a path of its own for a socket."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "proxy.sock")

    def client(self, path: str | None = None) -> socket.socket:
        """Connect."""
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.settimeout(5)
        client.connect(path or self.path)
        return client

    def mode(self, path: str) -> int:
        """Permissions."""
        return stat.S_IMODE(os.lstat(path).st_mode)


class BindTests(PathCase):
    """Taking a path."""

    def bind(self, *args: Any, **options: Any) -> binding.ListeningSocket:
        """Listen on the path."""
        bound = bind(self.path, *args, **options)
        self.addCleanup(bound.close)
        return bound

    def refusal(self, path: str | None = None, **options: Any) -> str:
        """Why the path cannot be had."""
        return str(self.assertRaises(CannotListen, bind, path or self.path, **options))

    def test_bind(self) -> None:
        """The socket listens, has its mode whatever the umask is, and goes with its owner."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        bound = self.bind()
        self.assertEqual(self.mode(self.path), 0o660)
        self.client()
        bound.close()
        bound.close()
        self.assertEqual(os.listdir(self.folder), [])

    def test_mode(self) -> None:
        """The mode can be chosen."""
        self.bind(0o600)
        self.assertEqual(self.mode(self.path), 0o600)

    def test_neverMoreOpen(self) -> None:
        """Until mode and group are right nobody may connect."""
        seen: list[int] = []
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        chown = os.chown

        def look(path: str, uid: int, gid: int) -> None:
            seen.append(self.mode(path))
            chown(path, uid, gid)

        self.patch(os, "chown", look)
        self.bind(group=os.getgid())
        self.assertEqual(seen, [0])

    def test_directory(self) -> None:
        """The directory is made, with its mode and group."""
        self.path = os.path.join(self.folder, "run", "cc", "proxy.sock")
        before = os.umask(0o027)
        self.addCleanup(os.umask, before)
        self.bind(group=os.getgid())
        self.assertEqual(self.mode(os.path.dirname(self.path)), 0o750)

    @skipIf(os.getuid() != 0, "only root may give files to any group")
    def test_group(self) -> None:
        """Socket and new directory belong to the group, by number or name."""
        self.path = os.path.join(self.folder, "cc", "proxy.sock")
        self.bind(group=12345)
        self.assertEqual(os.lstat(self.path).st_gid, 12345)
        self.assertEqual(os.lstat(os.path.dirname(self.path)).st_gid, 12345)
        for name, group in (("root", 0), ("12345", 12345)):
            self.path = os.path.join(self.folder, f"{name}.sock")
            self.bind(group=name)
            self.assertEqual(os.lstat(self.path).st_gid, group)

    def test_noSuchGroup(self) -> None:
        """A group that is not there is named."""
        for group in ("nosuchgroup", "4294967295", "99999999999", "9" * 5000):
            self.assertIn(f"there is no group {group}", self.refusal(group=group))

    def test_longPath(self) -> None:
        """107 bytes are enough for a path, 108 are too many."""
        room = 107 - len(self.folder) - 1
        self.path = os.path.join(self.folder, "p" * room)
        self.bind()
        self.client()
        self.assertIn("longer than the 107 bytes", self.refusal(self.path + "p"))

    def test_stale(self) -> None:
        """The socket of a dead daemon is replaced."""
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(self.path)
        dead.listen()
        dead.close()
        self.bind()
        self.client()

    def test_living(self) -> None:
        """That of a living one is not; the text names path and pid."""
        bound = self.bind()
        text = self.refusal()
        self.assertIn(self.path, text)
        self.assertIn(US, text)
        self.client()
        bound.close()
        self.bind()

    def test_livingButBusy(self) -> None:
        """A daemon whose queue is full is living too."""
        busy = socket.socket(socket.AF_UNIX)
        self.addCleanup(busy.close)
        busy.bind(self.path)
        busy.listen(0)
        self.client()
        self.assertIn("another daemon (Resource temporarily unavailable)", self.refusal())
        self.assertTrue(os.path.exists(self.path))

    def test_noSocket(self) -> None:
        """Another file is never removed."""
        with open(self.path, "w") as file:
            file.write("precious")
        self.assertIn("a file that is no socket", self.refusal())
        with open(self.path) as file:
            self.assertEqual(file.read(), "precious")
        os.unlink(self.path)
        os.symlink("/nowhere", self.path)
        self.assertIn("a file that is no socket", self.refusal())

    def test_systemRefuses(self) -> None:
        """What the system says is passed on."""
        with open(os.path.join(self.folder, "file"), "w"):
            pass
        text = self.refusal(os.path.join(self.folder, "file", "proxy.sock"))
        self.assertIn("Not a directory", text)

    def test_failureLeavesNothing(self) -> None:
        """If the socket cannot be made as asked, it is not there."""

        def refuse(*args: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        self.patch(os, "chown", refuse)
        self.assertIn("may not give it to group", self.refusal(group=os.getgid()))
        self.assertEqual(os.listdir(self.folder), [])

    def test_failureLeavesNoDirectory(self) -> None:
        """Nor is the directory that was made for it, which nobody else could enter."""

        def refuse(*args: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        self.patch(os, "chown", refuse)
        path = os.path.join(self.folder, "cc", "proxy.sock")
        self.assertIn("may not give it to group", self.refusal(path, group=os.getgid()))
        self.assertEqual(os.listdir(self.folder), [])

    @skipIf(os.getuid() == 0, "root may open any socket")
    def test_notOurs(self) -> None:
        """Of a socket that we may not open nobody says that it lives."""
        bound = self.bind()
        os.chmod(self.path, 0)
        self.assertIn("a socket that this user may not open", self.refusal())
        self.assertTrue(os.path.exists(bound.path))

    def test_replacedMeanwhile(self) -> None:
        """A path that is another's by now is left alone."""
        bound = self.bind()
        os.unlink(self.path)
        successor = self.bind()
        bound.close()
        self.client()
        os.unlink(self.path)
        successor.close()

    def test_lockHeld(self) -> None:
        """Who can't get the lock says so, after a while."""
        self.patch(binding, "LOCK_TIMEOUT", 0.01)
        self.patch(binding, "_LOCK_INTERVAL", 0.01)
        holder = os.open(self.folder, os.O_RDONLY)
        self.addCleanup(os.close, holder)
        fcntl.flock(holder, fcntl.LOCK_EX)
        self.assertIn("has held the lock", self.refusal())

    def test_race(self) -> None:
        """Of several daemons that start at once, over a dead one's socket, one gets the path."""
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(self.path)
        dead.close()
        starter = (
            "import sys\n"
            "from ccproxy.net.binding import CannotListen, bind\n"
            "print('ready', flush=True)\n"
            "sys.stdin.readline()\n"
            "try:\n"
            "    bound = bind(sys.argv[1])\n"
            "except CannotListen as error:\n"
            "    print(error, flush=True)\n"
            "else:\n"
            "    print('bound', flush=True)\n"
            "sys.stdin.readline()\n"
        )
        starters = [
            subprocess.Popen(
                [sys.executable, "-c", starter, self.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            for _ in range(4)
        ]
        pipes: list[Any] = [(process.stdin, process.stdout) for process in starters]
        for _, output in pipes:
            self.assertEqual(output.readline(), "ready\n")
        for given, _ in pipes:
            given.write("go\n")
            given.flush()
        answers = [output.readline() for _, output in pipes]
        for process in starters:
            process.communicate("stop\n", timeout=20)
        self.assertEqual(answers.count("bound\n"), 1)
        self.assertEqual(sum("another daemon" in answer for answer in answers), 3)


class PassedTests(PathCase):
    """Sockets from systemd. They are passed at descriptor 3, so in a process of their own."""

    def passed(self, kind: str, variables: str = "LISTEN_PID={pid} LISTEN_FDS=1") -> str:
        """
        What comes of a passed descriptor.

        @param kind: the expression that makes it.
        """
        script = (
            "import os, socket, sys\n"
            "from ccproxy.net.binding import CannotListen, passedSocket\n"
            "path = sys.argv[1]\n"
            "def listening(family=socket.AF_UNIX, address=path, kind=socket.SOCK_STREAM):\n"
            "    made = socket.socket(family, kind)\n"
            "    made.bind(address)\n"
            "    if kind == socket.SOCK_STREAM: made.listen()\n"
            "    return made\n"
            f"passed = {kind}\n"
            "if passed is None: os.close(3) if os.path.exists('/proc/self/fd/3') else None\n"
            "else: os.dup2(passed.fileno(), 3)\n"
            "variables = sys.argv[2].format(pid=os.getpid()).split()\n"
            "environment = dict(variable.split('=') for variable in variables)\n"
            "try:\n"
            "    bound = passedSocket(environment)\n"
            "except CannotListen as error:\n"
            "    print(error)\n"
            "else:\n"
            "    print(bound and bound.path, os.get_inheritable(3) if bound else '', environment)\n"
            "    if bound: bound.close()\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script, self.path, variables],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        return result.stdout.strip()

    def test_passed(self) -> None:
        """It is used as it is, and never removed; children inherit nothing of it."""
        self.assertEqual(self.passed("listening()"), f"{self.path} False {{}}")
        self.assertTrue(os.path.exists(self.path))

    def test_relative(self) -> None:
        """Clients are told an absolute path, whatever the socket was bound to."""
        made = "(os.chdir(os.path.dirname(path)), listening(address=os.path.basename(path)))[1]"
        self.assertEqual(self.passed(made), f"{self.path} False {{}}")

    def test_notForUs(self) -> None:
        """One for another process is none of ours."""
        self.assertEqual(self.passed("listening()", "LISTEN_PID=1 LISTEN_FDS=1"), "None  {}")

    def test_none(self) -> None:
        """None is none, whatever else is said."""
        self.assertIsNone(passedSocket({}))
        self.assertIsNone(passedSocket({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}))

    def test_several(self) -> None:
        """More than one is an error."""
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
        error = self.assertRaises(CannotListen, passedSocket, environment)
        self.assertIn("expected one socket from systemd (LISTEN_FDS), got 2", str(error))

    def test_unusable(self) -> None:
        """What is no listening UNIX stream socket is refused."""
        for kind in (
            "socket.socket(socket.AF_UNIX)",
            "listening(socket.AF_INET, ('127.0.0.1', 0))",
            "listening(kind=socket.SOCK_DGRAM)",
        ):
            self.assertIn("is no listening UNIX stream socket", self.passed(kind))
            if os.path.exists(self.path):
                os.unlink(self.path)
        self.assertIn("cannot be used: Bad file descriptor", self.passed("None"))
        self.assertIn("cannot be used", self.passed("open('/dev/null')"))


class Recording(Factory):
    """
    Makes protocols that remember.

    @ivar made: all of them.
    """

    refuse = False
    noisy = False

    def __init__(self) -> None:
        self.made: list[RecordingProtocol] = []

    def buildProtocol(self, addr: Any) -> Any:
        if self.refuse:
            return None
        self.made.append(RecordingProtocol())
        return self.made[-1]


class Starved:
    """While this lasts, the process can open nothing more."""

    def __enter__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        probe = os.open("/dev/null", os.O_RDONLY)
        self._taken = [probe]
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 20, self._limits[1]))
        try:
            while True:
                self._taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass

    def __exit__(self, *args: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
        for fd in self._taken:
            os.close(fd)


class ListenerTests(PathCase):
    """Accepting."""

    def setUp(self) -> None:
        super().setUp()
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.factory = Recording()
        self.listener = UNIXListener(self.poller, self.path, self.factory)
        self.listener.startListening()
        self.addCleanup(self.listener.stopListening)

    def test_interfaces(self) -> None:
        """It is a port of Twisted's."""
        verifyObject(IListeningPort, self.listener)
        self.assertEqual(self.listener.getHost().name, self.path.encode())

    def test_whereabouts(self) -> None:
        """It knows where its file is, and says that of no file that it cannot see."""
        self.assertEqual(self.listener.whereabouts(), self.path)
        moved = f"{self.path}-moved"
        os.rename(self.path, moved)
        Path(self.path).touch()
        self.assertEqual(self.listener.whereabouts(), moved)
        bad = os.fsencode(moved) + b"\xff"
        os.rename(moved, bad)
        self.assertIsNone(self.listener.whereabouts())
        with mock.patch.object(os, "scandir", side_effect=PermissionError):
            self.assertEqual(self.listener.whereabouts(), self.path)
        with mock.patch.object(self.listener, "_root", (0, 0)):
            self.assertEqual(self.listener.whereabouts(), self.path)
        os.unlink(bad)
        self.assertIsNone(self.listener.whereabouts())

    def test_accepts(self) -> None:
        """A connection gets a protocol, and its peer is known."""
        client = self.client()
        self.turn()
        (protocol,) = self.factory.made
        self.assertEqual(protocol.connection.peer, US)
        client.send(b"hello")
        self.turn()
        self.assertEqual(protocol.sink.data, b"hello")
        protocol.connection.send([b"hi"])
        self.assertEqual(client.recv(10), b"hi")

    def test_refused(self) -> None:
        """A factory may make no protocol: the client is closed."""
        self.factory.refuse = True
        client = self.client()
        self.turn()
        self.assertEqual(client.recv(1), b"")

    def test_factoryFails(self) -> None:
        """An error of the factory is logged, costs that client its connection, and no more."""
        client = self.client()
        self.patch(self.factory, "buildProtocol", lambda addr: 1 // 0)
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(client.recv(1), b"")
        del self.factory.buildProtocol
        self.client()
        self.turn()
        self.assertEqual(len(self.factory.made), 1)

    def test_aborted(self) -> None:
        """A connection that was aborted before it was accepted is passed over."""

        class Aborting(socket.socket):
            aborted = 2

            def accept(self) -> Any:
                if self.aborted:
                    self.aborted -= 1
                    raise ConnectionAbortedError(errno.ECONNABORTED, "aborted")
                return super().accept()

        listening: Any = self.listener._listening
        listening.socket = Aborting(fileno=listening.socket.detach())
        self.client()
        self.turn(3)
        self.assertEqual(len(self.factory.made), 1)

    def test_stop(self) -> None:
        """Stopping removes the path and leaves the connections."""
        client = self.client()
        self.turn()
        self.successResultOf(self.listener.stopListening())
        self.successResultOf(self.listener.stopListening())
        self.assertFalse(os.path.exists(self.path))
        self.assertEqual(self.listener.fileno(), -1)
        client.send(b"x")
        self.turn()
        self.assertEqual(self.factory.made[0].sink.data, b"x")
        self.assertEqual(self.factory.numPorts, 0)
        self.listener.startListening()
        self.client()

    def test_stopWithin(self) -> None:
        """A factory may stop the listening."""

        def stop(addr: Any) -> None:
            self.listener.stopListening()

        self.patch(self.factory, "buildProtocol", stop)
        for _ in range(3):
            self.client()
        self.turn()
        self.assertEqual(self.listener.fileno(), -1)

    def test_noDescriptors(self) -> None:
        """Out of descriptors, clients are turned away at once, which is logged once."""
        clients = [self.client() for _ in range(5)]
        with Starved():
            for _ in range(5):
                self.turn()
        self.assertEqual(self.factory.made, [])
        self.assertEqual([client.recv(1) for client in clients], [b""] * 5)
        self.assertEqual(self.reports(), 1)
        self.client()
        self.turn()
        self.assertEqual(len(self.factory.made), 1)
        self.client()
        with Starved():
            self.turn()
        self.assertEqual(self.reports(), 2)

    def test_noReserve(self) -> None:
        """With not even the reserve, nothing spins: another try is made later."""
        client = self.client()
        reserve = self.listener._reserve
        assert reserve is not None
        with Starved():
            self.listener._reserve = None
            self.turn()
            self.assertNotIn(self.listener.fileno(), self.poller._readable)
        os.close(reserve)
        self.reactor.advance(STARVED_INTERVAL)
        self.assertIn(self.listener.fileno(), self.poller._readable)
        self.turn()
        client.send(b"patience")
        self.turn()
        self.assertEqual(self.factory.made[0].sink.data, b"patience")

    def test_stopWhileStarved(self) -> None:
        """It can be stopped before that other try."""
        self.client()
        reserve = self.listener._reserve
        assert reserve is not None
        with Starved():
            self.listener._reserve = None
            self.turn()
        os.close(reserve)
        self.listener.stopListening()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def reports(self) -> int:
        """How many times it was logged that clients are turned away."""
        return sum("turned away" in (event.get("log_format") or "") for event in self.events)


class ConnectTests(PathCase):
    """Connecting to a socket."""

    def listen(self, backlog: int = 5) -> socket.socket:
        """Listen at the path."""
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.settimeout(5)
        listening.bind(self.path)
        listening.listen(backlog)
        return listening

    def descriptors(self) -> int:
        """How many descriptors are open."""
        return len(os.listdir("/proc/self/fd"))

    def test_connects(self) -> None:
        """At once, where that is possible."""
        listening = self.listen()
        protocol = RecordingProtocol()
        self.successResultOf(connectUNIX(self.poller, self.path, protocol, 5))
        self.assertEqual(protocol.connection.peer, self.path)
        accepted, _ = listening.accept()
        self.addCleanup(accepted.close)
        accepted.send(b"READY")
        self.turn()
        self.assertEqual(protocol.sink.data, b"READY")

    def test_ordinaryProtocol(self) -> None:
        """Any protocol can be connected."""
        self.listen()
        protocol = Protocol()
        self.successResultOf(connectUNIX(self.poller, self.path, protocol, 5))
        self.assertEqual(protocol.connected, 1)

    def test_refused(self) -> None:
        """The error names path and reason, and no descriptor is left."""
        before = self.descriptors()
        for reason in ("No such file or directory", "Connection refused"):
            failure = self.failureResultOf(
                connectUNIX(self.poller, self.path, Protocol(), 5), CannotConnect
            )
            self.assertEqual(str(failure.value), f"cannot connect to {self.path}: {reason}")
            stale = socket.socket(socket.AF_UNIX)
            stale.bind(self.path + "x")
            os.rename(self.path + "x", self.path)
            stale.close()
        failure = self.failureResultOf(
            connectUNIX(self.poller, "/" * 200, Protocol(), 5), CannotConnect
        )
        self.assertIn("AF_UNIX path too long", str(failure.value))
        self.assertEqual(self.descriptors(), before)

    def test_fullQueue(self) -> None:
        """A full queue is waited for."""
        listening = self.listen(0)
        self.client()
        protocol = RecordingProtocol()
        connecting = Deferred.fromCoroutine(connectUNIX(self.poller, self.path, protocol, 5))
        self.reactor.advance(RETRY_INTERVAL)
        self.assertNoResult(connecting)
        listening.accept()[0].close()
        self.reactor.advance(RETRY_INTERVAL)
        self.successResultOf(connecting)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_deadline(self) -> None:
        """But not for ever."""
        self.listen(0)
        self.client()
        before = self.descriptors()
        connecting = Deferred.fromCoroutine(connectUNIX(self.poller, self.path, Protocol(), 0.2))
        self.reactor.pump([RETRY_INTERVAL] * 5)
        failure = self.failureResultOf(connecting, CannotConnect)
        self.assertIn(f"{self.path}: its queue of waiting connections", str(failure.value))
        self.assertIn("0.2 s", str(failure.value))
        self.assertEqual(self.descriptors(), before)

    def test_cancelled(self) -> None:
        """Cancelling leaves nothing."""
        self.listen(0)
        self.client()
        before = self.descriptors()
        connecting = Deferred.fromCoroutine(connectUNIX(self.poller, self.path, Protocol(), 5))
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertEqual(self.descriptors(), before)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_cannotBeWatched(self) -> None:
        """A socket that the system does not want to watch is closed."""
        self.listen()
        before = self.descriptors()

        def refuse(transport: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(self.poller, "add", refuse)
        failure = self.failureResultOf(
            connectUNIX(self.poller, self.path, Protocol(), 5), CannotConnect
        )
        self.assertIn("No space left on device", str(failure.value))
        self.assertEqual(self.descriptors(), before)
