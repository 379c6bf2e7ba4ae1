"""
The daemon's end, its socket, and the socket that it may be given: P16 and P17.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import time

from ccproxy.test.adminhttp import UNIXConnection
from ccproxy.test.processes import DaemonTestCase, runProxy
from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.client import BlockingClient, hyperPayload, success
from ccproxy.testing.daemon import Daemon, eventually, script
from ccproxy.wire.codes import Command, ControlCode


class StoppingTests(DaemonTestCase):
    """P16: an end in order."""

    def test_signals(self) -> None:
        """P16: SIGTERM and SIGINT remove the socket and exit with 0; SIGHUP ends nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            for daemon in self.daemons():
                daemon.start()
                daemon.process.send_signal(signal.SIGHUP)
                self.client(daemon).probe()
                self.assertEqual(daemon.stop(number), 0, daemon.log())
                self.assertFalse(os.path.exists(daemon.path))
                self.assertNotIn("Traceback", daemon.log())

    def test_underWay(self) -> None:
        """P16: what is under way is delivered; no new clients are accepted meanwhile."""
        daemon = self.cleared(Daemon.byTwistd("--stop-timeout=60")).start()
        vm = self.vm(daemon)
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING)
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: not os.path.exists(daemon.path), "the socket is removed")
        self.assertFalse(daemon.isListening())
        time.sleep(0.2)
        self.assertTrue(daemon.isAlive())
        vm.agent.sendControl(ControlCode.ACK, b"just in time")
        self.assertEqual(success(vm.client.response(Command.HYPER)), b"just in time")
        self.assertEqual(daemon.wait(), 0)

    def test_notForEver(self) -> None:
        """P16: what does not end in time is cut off; the exit is 0 all the same."""
        # By default it would be 5 s.
        daemon = self.cleared(Daemon.byTwistd("--stop-timeout=0.5")).start()
        vm = self.vm(daemon)
        vm.agent.answers[ControlCode.PING] = None
        vm.client.command(Command.HYPER, hyperPayload("ping"))
        vm.agent.command(ControlCode.PING)
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        daemon.process.send_signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - began, 5)

    def test_idleSessions(self) -> None:
        """P16: processes that run do not hold up the end."""
        daemon = self.cleared(Daemon.byTwistd("--stop-timeout=60")).start()
        process = self.vm(daemon).start()
        began = time.monotonic()
        self.assertEqual(daemon.stop(), 0)
        self.assertLess(time.monotonic() - began, 30)
        process.shim.waitClosed()

    def test_output(self) -> None:
        """P16: output that a shim reads slowly is delivered before the end."""
        daemon = self.cleared(Daemon.byTwistd("--stop-timeout=60")).start()
        vm = self.vm(daemon)
        process = vm.start()
        for _ in range(150):
            process.say(b"x" * 4096)
        process.exit(4)
        vm.usable()
        daemon.process.send_signal(signal.SIGTERM)
        output = process.shim.untilExit()
        self.assertEqual((len(output.stdout), output.status), (150 * 4096, 4))
        self.assertEqual(daemon.wait(), 0)


class SocketTests(DaemonTestCase):
    """P17: the socket of a dead daemon, and that of a living one."""

    def test_leftBehind(self) -> None:
        """P17: after a kill, the next start replaces the socket, in the same folder."""
        for daemon in self.daemons():
            daemon.start()
            daemon.process.kill()
            daemon.process.wait()
            self.assertTrue(os.path.exists(daemon.path))
            daemon.start()
            self.client(daemon).probe()
            self.assertEqual(daemon.stop(), 0)

    def test_renamedAndRemoved(self) -> None:
        """P17: the daemon knows the path that it really listens on, or that there is none."""
        daemon = self.cleared(Daemon.byTwistd("--log-level=info")).start()
        admin = UNIXConnection(f"{daemon.path}.admin")
        self.addCleanup(admin.close)

        def ask(path: str) -> tuple[int, dict[str, object]]:
            admin.request("GET", path)
            response = admin.getresponse()
            return response.status, json.loads(response.read())

        before = self.client(daemon)
        moved = os.path.join(daemon.directory, "renamed.sock")
        os.rename(daemon.path, moved)
        daemon.waitLog("event=socket-moved")
        self.assertEqual(ask("/v1/status")[1]["socket"], f"unix://{moved}")
        agent = ScriptedAgent(daemon.directory)
        self.addCleanup(agent.close)
        names = {"containerId": "x", "ctlSerial": agent.control.path, "ioSerial": agent.io.path}
        self.assertIn(f"unix://{moved}".encode(), before.accepted(Command.REGISTER_VM, names))
        os.unlink(moved)
        daemon.waitLog("event=socket-lost")
        status, health = ask("/healthz")
        self.assertEqual((status, health["listening"]), (503, False))
        before.probe()
        self.assertEqual(daemon.stop(), 0)

    def test_inUse(self) -> None:
        """P17: a second start is refused with a clear message, and the first is unharmed."""
        first = self.cleared(Daemon()).start()
        for begin in (
            [*script("cc-proxy"), "-socket-path", first.path],
            [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", first.path],
        ):
            second = self.cleared(Daemon(command=begin))
            second.spawn()
            self.assertEqual(second.wait(), 1, second.log())
            second.waitLog(first.path)
            self.assertNotIn("Traceback", second.log())
        self.client(first).probe()

    def test_atOnce(self) -> None:
        """P17: of several that start at once, exactly one serves."""
        first = self.cleared(Daemon())
        begin = [*script("cc-proxy"), "-socket-path", first.path]
        daemons = [first, *(self.cleared(Daemon(command=begin)) for _ in range(3))]
        for daemon in daemons:
            daemon.spawn()
        eventually(lambda: sum(daemon.isAlive() for daemon in daemons) == 1, "one remains", 60)
        eventually(first.isListening, "the one serves")
        self.client(first).probe()

    def test_notASocket(self) -> None:
        """P17: a file that is no socket is never removed."""
        daemon = self.cleared(Daemon())
        with open(daemon.path, "w") as file:
            file.write("precious")
        daemon.spawn()
        self.assertEqual(daemon.wait(), 1)
        with open(daemon.path) as file:
            self.assertEqual(file.read(), "precious")
        daemon.waitLog(daemon.path)

    def test_foreign(self) -> None:
        """P17: on the way out, a socket that has become another's is left alone."""
        daemon = self.cleared(Daemon()).start()
        os.unlink(daemon.path)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(daemon.path)
            self.assertEqual(daemon.stop(), 0)
            self.assertTrue(os.path.exists(daemon.path))

    def test_modes(self) -> None:
        """The socket is 0660, its folder is made 0750."""
        home = self.cleared(Daemon())
        path = os.path.join(home.directory, "a", "b", "proxy.sock")
        daemon = self.cleared(Daemon(command=[*script("cc-proxy"), "-socket-path", path]))
        daemon.path = path
        daemon.start()
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o660)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o750)
        self.assertEqual(daemon.stop(), 0)

    def test_tooLong(self) -> None:
        """A path over 107 bytes is refused, with a text that says so."""
        ran = runProxy("-socket-path", "/tmp/" + "x" * 103)
        self.assertNotEqual(ran.returncode, 0)
        self.assertIn("107", ran.stderr)


class InheritedSocketTests(DaemonTestCase):
    """A socket that systemd has opened."""

    def launched(
        self,
        count: int,
        mine: bool = True,
        daemon: Daemon | None = None,
        name: str = "inherited.sock",
    ) -> tuple[Daemon, str]:
        """
        Start a daemon that gets listening sockets.

        @param count: how many it gets.
        @param mine: whether they are meant for it.
        @param name: the name of the file where they listen.
        @return: the daemon, and where the sockets listen.
        """
        daemon = self.cleared(daemon or Daemon())
        path = os.path.join(daemon.directory, name)
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(path)
        listener.listen(8)
        # The descriptors begin at 3 and the process id is the daemon's own: only a program that
        # becomes the daemon can arrange that.
        program = (
            "import os, sys\n"
            "listener, count, other = map(int, sys.argv[1:4])\n"
            "listener = os.dup2(listener, 100)\n"
            "for n in range(count): os.dup2(listener, 3 + n)\n"
            "pid = os.getpid() + other\n"
            "os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(pid))\n"
            "os.execv(sys.argv[4], sys.argv[4:])\n"
        )
        numbers = [str(listener.fileno()), str(count), str(int(not mine))]
        daemon.arguments = [sys.executable, "-c", program, *numbers, *daemon.arguments]
        daemon.spawn(inherited=[listener.fileno()])
        return daemon, path

    def test_used(self) -> None:
        """LISTEN_FDS=1: it is used instead; answers have its own address; it is not removed."""
        daemon, path = self.launched(1)
        client = BlockingClient(path, 60)  # the daemon starts meanwhile
        self.addCleanup(client.close)
        agent = ScriptedAgent(daemon.directory)
        self.addCleanup(agent.close)
        payload = client.accepted(
            Command.REGISTER_VM,
            {"containerId": "x", "ctlSerial": agent.control.path, "ioSerial": agent.io.path},
        )
        self.assertIn(f"unix://{path}".encode(), payload)
        self.assertFalse(os.path.exists(daemon.path))
        self.assertEqual(daemon.stop(), 0)
        self.assertTrue(os.path.exists(path))

    def test_noOtherPath(self) -> None:
        """P17: the configured path, where another process may listen, is used for nothing."""
        daemon = Daemon.byTwistd("--embedded-vm=inside", "--log-level=debug")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(daemon.path)
            other.listen()
            other.setblocking(False)
            _, path = self.launched(1, daemon=daemon)
            client = BlockingClient(path, 60)
            self.addCleanup(client.close)
            client.attachVM("inside")
            connection = UNIXConnection(f"{path}.admin")
            self.addCleanup(connection.close)
            connection.request("GET", "/v1/status")
            status = json.loads(connection.getresponse().read())
            self.assertEqual(status["socket"], f"unix://{path}")
            self.assertFalse(os.path.exists(f"{daemon.path}.admin"))
            self.assertEqual(daemon.stop(), 0, daemon.log())
            self.assertRaises(BlockingIOError, other.accept)
        daemon.waitLog(f"listening on unix://{path}")

    def test_noAdminBeside(self) -> None:
        """If no admin socket can be made beside the passed one, the default path is used."""
        daemon = Daemon()
        name = "x" * (105 - len(daemon.directory))
        self.launched(1, daemon=daemon, name=name)
        eventually(lambda: os.path.exists(f"{daemon.path}.admin"), "the usual admin socket")
        self.assertEqual(daemon.stop(), 0)

    def test_join(self) -> None:
        """A pod that joins has no use for a socket that is the manager's: it is served alone."""
        daemon = Daemon(
            command=[*script("cc-proxy"), "-log", "info", "-uri", "{socket}"],
            extra={"CC_PROXY_JOIN": "1"},
        )
        _, path = self.launched(1, daemon=daemon)
        client = BlockingClient(path, 60)
        self.addCleanup(client.close)
        client.probe()
        self.assertFalse(os.path.exists(daemon.path))
        daemon.waitLog("the service manager has passed the socket")
        self.assertEqual(daemon.stop(), 0)

    def test_anothers(self) -> None:
        """LISTEN_PID of another process: it is not for us."""
        daemon, _ = self.launched(1, mine=False)
        eventually(daemon.isListening, "the daemon's own socket", 60)
        self.assertEqual(daemon.stop(), 0)

    def test_tooMany(self) -> None:
        """More than one socket is an error."""
        daemon, _ = self.launched(2)
        self.assertNotEqual(daemon.wait(), 0)
        self.assertNotIn("Traceback", daemon.log())
