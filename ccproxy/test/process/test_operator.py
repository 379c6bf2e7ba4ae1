"""
What an operator does to the real daemon in the wrong moment, or after a crash.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

from ccproxy.admin.listening import MAX_CONNECTIONS
from ccproxy.testing.daemon import Daemon, eventually, script

from ..adminhttp import Admin
from ..processes import DaemonTestCase


class KeptTests(DaemonTestCase):
    """A daemon under a supervisor, with a configuration file and an admin socket."""

    def setUp(self) -> None:
        """Start it."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.config = Path(folder, "ccproxy.toml")
        self.config.write_text("")
        twistd = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
        begin = [*script("ccproxyctl"), "supervise", "--", *twistd, "--config", str(self.config)]
        self.daemon = self.cleared(Daemon(command=begin))
        self.daemon.start()
        self.addCleanup(self.end)
        self.daemon.waitLog("event=started")
        self.admin = Admin(f"{self.daemon.path}.admin")

    def end(self) -> None:
        """End it in order."""
        if self.daemon.isAlive():
            self.assertEqual(self.daemon.stop(), 0)

    def started(self, times: int) -> None:
        """Wait until so many daemons have started."""
        eventually(lambda: self.daemon.log().count("event=started") == times, "a restart")

    def test_embeddedVM(self) -> None:
        """A daemon with an embedded VM restarts like any other; the VM ends, and is made anew."""
        self.config.write_text('embedded-vm = ["inside"]')
        for times in (2, 3):
            self.assertEqual(self.admin.ask("POST", "/v1/restart").status, 202)
            self.started(times)
            eventually(self.isRegistered, "the VM is registered")

    def isRegistered(self) -> bool:
        """Whether the newest VM is."""
        vms = self.admin.get("/v1/vms")
        return bool(vms) and vms[-1]["state"] == "registered"

    def test_badConfiguration(self) -> None:
        """Nothing is handed over to a daemon that could not start, and it is said why."""
        before = self.admin.get("/v1/status")["pid"]
        for text, problem in (
            ("max-vms = 0", f"{self.config}: max-vms: 0 is less than 1"),
            ('socket-group = "no such"', "socket-group: there is no group 'no such'"),
        ):
            self.config.write_text(text)
            answer = self.admin.ask("POST", "/v1/restart")
            self.assertEqual(answer.status, 409)
            self.assertIn(problem, answer.json["error"])
        self.assertNotIn("event=restarting", self.daemon.log())
        self.assertEqual(self.admin.get("/v1/status")["pid"], before)
        self.config.write_text("max-vms = 3")
        self.assertEqual(self.admin.ask("POST", "/v1/restart").status, 202)
        self.started(2)
        self.assertEqual(self.admin.get("/v1/limits")["maxVMs"], 3)

    def test_crashLoss(self) -> None:
        """
        What a kill has cost a session is told with the session and in the metrics, also by the
        daemon after that.
        """
        vm = self.vm(self.daemon)
        process = vm.start()
        for _ in range(900):
            process.say(b"x" * 1000)
        eventually(lambda: self.session()["bufferedOutput"] > 100_000, "output waits")
        vm.usable()  # which is journalled, with all that waits
        os.kill(self.admin.get("/v1/status")["pid"], signal.SIGKILL)
        self.started(2)
        lost = self.session()["lost"]
        self.assertGreater(lost["output"], 100_000)
        said = self.daemon.waitLog("event=crash-loss")
        self.assertIn(f"about {lost['output']} bytes of output", said)
        total = f'ccproxy_crash_lost_bytes_total{{direction="out"}} {lost["output"]}.0\n'
        self.assertIn(total, self.metrics())
        self.admin.ask("POST", "/v1/restart")
        self.started(3)
        self.assertEqual(self.session()["lost"], lost)
        self.assertIn(total, self.metrics())
        self.assertEqual(self.daemon.log().count("event=crash-loss"), 1)

    def metrics(self) -> str:
        """All of them."""
        return self.admin.ask("GET", "/metrics").body.decode()

    def session(self) -> Any:
        """The one that there is."""
        (session,) = self.admin.get("/v1/sessions")
        return session


class CrowdTests(DaemonTestCase):
    """Too many connections to the admin socket."""

    def test_crowd(self) -> None:
        """One too many is told so, and another is served once there is room."""
        daemon = self.cleared(Daemon.byTwistd()).start()
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CONNECTIONS)]
        for connection in crowd:
            self.addCleanup(connection.close)
            connection.connect(f"{daemon.path}.admin")
        with socket.socket(socket.AF_UNIX) as late:
            late.settimeout(30)
            late.connect(f"{daemon.path}.admin")
            head, _, body = late.makefile("rb").read().partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"), head)
        self.assertIn(f"Content-Length: {len(body)}", head.decode())
        self.assertIn("128 connections", json.loads(body)["error"])
        crowd.pop().close()
        admin = Admin(f"{daemon.path}.admin")
        eventually(lambda: admin.ask("GET", "/healthz").status == 200, "there is room")
