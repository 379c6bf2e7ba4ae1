"""
P21 on real processes: a step of the wall clock neither ends a wait early nor holds one up.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import ccproxy

from ...testing.agent import ScriptedAgent
from ...testing.client import registration, success
from ...testing.daemon import Daemon, environment, eventually, isIdle, script
from ...wire.codes import Command, ControlCode, FrameType, Notification, Stream
from ...wire.frames import encodeFrame
from ..processes import DaemonTestCase

#: A step of the wall clock, in seconds: more than any deadline here.
STEP = 3600
#: The wall clock of a process, and no other clock of it, is off by the number in a file.
SITE = """
import os, time
real, path = time.time, os.environ["WALL_CLOCK_OFFSET"]
time.time = lambda: real() + float(open(path).read())
"""
#: Ways to start the daemon, up to its own options.
COMMANDS = [
    [*script("cc-proxy"), "-socket-path", "{socket}"],
    [*script("twist"), "ccproxy", "--socket-path", "{socket}"],
    *(
        [*script("twistd"), "-n", "--pidfile=", *reactor, "ccproxy", "--socket-path", "{socket}"]
        for reactor in (
            [], *([f"--reactor={name}"] for name in ("ccproxy", "select", "poll", "asyncio"))
        )
    ),
]  # fmt: skip


class StepTests(DaemonTestCase):
    """The wall clock steps while something is waited for."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        (self.folder / "sitecustomize.py").write_text(SITE)
        self.step(0)
        package = str(Path(ccproxy.__file__).parent.parent)
        self.variables = {
            "PYTHONPATH": f"{self.folder}:{package}",
            "WALL_CLOCK_OFFSET": str(self.folder / "offset"),
        }

    def step(self, seconds: float) -> None:
        """Set the processes' wall clock."""
        (self.folder / "new").write_text(str(seconds))
        os.replace(self.folder / "new", self.folder / "offset")

    def listener(self, name: str, kind: int) -> socket.socket:
        """A socket that waits for a process to talk to it."""
        listening = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(listening.close)
        listening.bind(str(self.folder / name))
        listening.settimeout(60)
        return listening

    def test_daemon(self) -> None:
        """Deadlines, the watchdog and the drain of the daemon, whichever way it is started."""
        config = self.folder / "config"
        config.write_text("shim-timeout = 1\nstop-timeout = 1\n")
        manager = self.listener("manager", socket.SOCK_DGRAM)
        variables = {
            **self.variables,
            "NOTIFY_SOCKET": str(self.folder / "manager"),
            "WATCHDOG_USEC": "300000",
        }

        def told(text: bytes) -> None:
            while text not in manager.recv(4096):
                pass

        for command in COMMANDS:
            self.step(0)
            option = "-config" if "cc-proxy" in command[0] else "--config"
            daemon = self.cleared(Daemon(option, str(config), command=command, extra=variables))
            daemon.start()
            vm = self.vm(daemon)

            late = ScriptedAgent(daemon.directory, "late", ready=())
            self.addCleanup(late.close)
            late.answers[ControlCode.PING] = None
            client = self.client(daemon)
            client.command(Command.REGISTER_VM, registration("late", late))
            late.waitConnected()
            self.step(STEP)
            for _ in range(4):  # more than one may have been on its way before
                told(b"WATCHDOG=1")
            client.silent()
            late.sendControl(ControlCode.READY)
            success(client.response(Command.REGISTER_VM))

            vm.startLater()
            self.step(-STEP)
            self.assertIn("not connected within 1 s", vm.client.take(
                lambda frame: frame.error, "the missing shim"
            ).payload.decode())  # fmt: skip
            for _ in range(4):
                told(b"WATCHDOG=1")

            vm.agent.answers[ControlCode.PING] = None
            vm.client.command(Command.HYPER, {"hyperName": "ping"})
            vm.agent.command(ControlCode.PING)
            daemon.process.terminate()
            told(b"STOPPING=1")
            self.step(-2 * STEP)
            self.assertEqual(daemon.wait(), 0, command)

    def test_ccproxyctl(self) -> None:
        """The deadlines of C{ccproxyctl}."""
        proxy = self.listener("proxy", socket.SOCK_STREAM)
        proxy.listen()
        shim = subprocess.Popen(
            [*script("ccproxyctl"), "shim", "-c", "c", "-t", "token"],
            env=environment(CCPROXY_SOCKET=str(self.folder / "proxy"), **self.variables),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(shim.communicate)
        self.addCleanup(shim.kill)
        connection = proxy.accept()[0]
        self.addCleanup(connection.close)
        connection.recv(4096)
        self.step(STEP)
        connection.send(encodeFrame(FrameType.STREAM, Stream.STDOUT, b"x"))
        assert shim.stdout is not None
        self.assertEqual(shim.stdout.read(1), b"x")
        eventually(lambda: isIdle(shim.pid), "the shim waits")
        connection.send(encodeFrame(FrameType.RESPONSE, Command.CONNECT_SHIM))
        connection.send(encodeFrame(FrameType.NOTIFICATION, Notification.PROCESS_EXITED, b"\7"))
        self.step(-STEP)
        # It waits for the end of the connection after DisconnectShim, but not for ever.
        self.assertEqual(shim.wait(60), 7)
