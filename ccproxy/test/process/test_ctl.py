"""
C{ccproxyctl} and the real daemon.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Any
from unittest import SkipTest

from ...testing.agent import ScriptedAgent
from ...testing.daemon import Daemon, environment, eventually, script
from ..adminhttp import Admin
from ..processes import DaemonTestCase

TIMEOUT = 60.0


class CtlTests(DaemonTestCase):
    """What an operator asks, and tells."""

    def setUp(self) -> None:
        self.daemon = self.cleared(Daemon.byTwistd("--log-level", "info")).start()

    def spawn(self, *words: str) -> Any:
        """Start a command."""
        process = subprocess.Popen(
            [*script("ccproxyctl"), *words], env=environment(CCPROXY_SOCKET=self.daemon.path),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def ctl(self, *words: str, status: int = 0) -> str:
        """Run a command to its end; what it prints."""
        process = self.spawn(*words)
        out, err = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, status, err)
        return str(out or err)

    def rows(self, *words: str) -> list[dict[str, str]]:
        """The rows of a table, by its headings, none of whose cells has a space."""
        heading, *lines = self.ctl(*words).splitlines()
        return [dict(zip(heading.split(), line.split(), strict=False)) for line in lines]

    def test_lists(self) -> None:
        """Each list shows what there is."""
        machine = self.vm(self.daemon, 2)
        shim = machine.shim(0)
        running = machine.start(0, shim=shim)
        running.say(b"x" * 5000)
        machine.startLater(1)
        eventually(lambda: "WAITS" in self.ctl("commands"), "the start that waits for its shim")
        status = self.ctl("status")
        self.assertIn(f"Process           {self.daemon.pid}\n", status)
        self.assertIn("VMs               1 (1 registered)\n", status)
        [row] = self.rows("vms")
        self.assertEqual((row["VM"], row["STATE"], row["SESSIONS"]), ("vm", "registered", "2"))
        first, second = self.rows("sessions", "vm")
        self.assertEqual((first["STATE"], first["CONTAINER"]), ("running", "container0"))
        self.assertEqual(second["STATE"], "created")
        peers = self.ctl("clients")
        self.assertIn("pid=", peers)
        [row] = self.rows("commands")
        self.assertEqual((row["COMMAND"], row["WAITS"]), ("newcontainer", "shim"))
        self.assertEqual(self.ctl("vms", "-q"), "vm\n")
        dump = json.loads(self.ctl("dump"))
        self.assertEqual(dump["status"]["pid"], self.daemon.pid)
        self.assertEqual(len(dump["sessions"]), 2)
        self.assertNotIn(machine.tokens[0], json.dumps(dump))
        self.assertIn("there is no VM 'other'", self.ctl("sessions", "other", status=5))

    def test_console(self) -> None:
        """The console is shown, escaped, and followed until the VM is gone."""
        path = os.path.join(self.daemon.directory, "console")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            agent, client = ScriptedAgent(self.daemon.directory), self.client(self.daemon)
            self.addCleanup(agent.close)
            client.registerVM("vm", agent, console=path)
            console = listener.accept()[0]
        with console:
            console.sendall(b"\x1b[2Jboot\r\n")
            eventually(lambda: self.ctl("console", "vm") == "\\x1b[2Jboot\n", "the console")
            following = self.spawn("console", "-f", "vm")
            self.assertEqual(following.stdout.readline(), "\\x1b[2Jboot\n")
            console.sendall(b"more\r\n")
            self.assertEqual(following.stdout.readline(), "more\n")
            client.unregisterVM("vm")
            agent.close()
            self.assertEqual(following.communicate(timeout=TIMEOUT), ("", ""))
        self.assertEqual(following.returncode, 0)

    def test_events(self) -> None:
        """Events are told as they happen, to the end of the daemon."""
        everything, one = self.spawn("events", "-f"), self.spawn("events", "-n", "1", "--vm", "vm")
        admin = Admin(f"{self.daemon.path}.admin")
        wanted = b"ccproxy_event_listeners 2.0\n"
        eventually(lambda: wanted in admin.ask("GET", "/metrics").body, "two listeners", TIMEOUT)
        self.ctl("loglevel", "warn")
        self.vm(self.daemon, 0)
        self.assertIn(" vm=vm", one.communicate(timeout=TIMEOUT)[0])
        self.assertEqual(one.returncode, 0)
        self.assertEqual(self.daemon.stop(), 0)
        events = everything.communicate(timeout=TIMEOUT)[0]
        self.assertIn(" info  vm-registered      VM registered  ", events)
        self.assertIn(" stopping ", events.splitlines()[-1])
        self.assertEqual(everything.returncode, 0)

    def test_levels(self) -> None:
        self.assertEqual(self.ctl("loglevel"), "info\n")
        self.assertEqual(self.ctl("loglevel", "debug"), "debug\n")
        self.client(self.daemon)
        self.daemon.waitLog("client-connected")

    def test_drain(self) -> None:
        """No new VMs, and those that there are go on."""
        machine = self.vm(self.daemon)
        self.assertEqual(self.ctl("drain"), "The daemon takes no new VMs; it has 1.\n")
        agent, client = ScriptedAgent(self.daemon.directory, "new"), self.client(self.daemon)
        self.addCleanup(agent.close)
        self.assertRaises(AssertionError, client.registerVM, "new", agent, 0)
        machine.usable()
        self.ctl("drain", "--off")
        client.registerVM("new", agent, 0)

    def test_stop(self) -> None:
        self.assertEqual(self.ctl("stop"), "The daemon has ended.\n")
        self.assertEqual(self.daemon.wait(), 0)
        self.assertIn("no daemon answers at the admin socket", self.ctl("status", status=3))

    def test_stopInContainer(self) -> None:
        """A daemon in a PID namespace of its own is waited for, and no process that has its id."""
        unshare = ["unshare", "--pid", "--fork", "--kill-child"]
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
            raise SkipTest("this machine gives no PID namespaces")
        twistd = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
        self.daemon = self.cleared(Daemon(command=[*unshare, *twistd])).start()
        self.assertIn("Process           1\n", self.ctl("status"))
        self.assertEqual(self.ctl("stop"), "The daemon has ended.\n")
        self.assertEqual(self.daemon.wait(), 0)
