"""
Restarts of the real daemon that nobody notices: docs/reliability.
"""

from __future__ import annotations

import os
import signal
import time

from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.client import BlockingClient
from ccproxy.testing.daemon import Daemon, environment, eventually, script
from ccproxy.wire.codes import Command, ControlCode, Stream

from .processes import DaemonTestCase
from .restartload import Load

#: How often the load test restarts: make restart-test does it more often.
RESTARTS = int(os.environ.get("CCPROXY_RESTARTS", "5"))
#: Processes in its VMs.
SESSIONS = int(os.environ.get("CCPROXY_RESTART_SESSIONS", "20"))


def supervised(*options: str) -> Daemon:
    """A daemon with a supervisor: its process is the supervisor's."""
    twistd = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
    begin = [*script("ccproxyctl"), "supervise", "--", *twistd]
    return Daemon("--no-admin", *options, command=begin)


class RestartCase(DaemonTestCase):
    """A test with a supervised daemon."""

    def setUp(self) -> None:
        """Start it."""
        self.daemon = self.cleared(supervised()).start()
        self.addCleanup(self.end)

    def end(self) -> None:
        """End it in order."""
        if self.daemon.isAlive():
            self.assertEqual(self.daemon.stop(), 0)

    def count(self, event: str) -> int:
        """How often the log has an event."""
        return self.daemon.log().count(f"event={event}")

    def restart(self) -> None:
        """Ask for a restart."""
        self.daemon.process.send_signal(signal.SIGUSR2)

    def restarted(self, times: int = 1) -> None:
        """Wait until the daemon has restarted so often."""
        eventually(lambda: self.count("started") > times, "a restart", 20)


class PlannedRestartTests(RestartCase):
    """Planned restarts."""

    def test_load(self) -> None:
        """Streams both ways, commands and signals go on as if nothing had happened."""
        vms = max(1, SESSIONS // 5)
        load = Load(self.daemon.directory, self.daemon.path, vms, SESSIONS // vms)
        self.addCleanup(load.close)
        for nth in range(RESTARTS):
            began = time.monotonic()
            load.run(lambda: time.monotonic() > began + 0.3)  # noqa: B023
            self.restart()
            load.run(lambda: self.count("started") > nth + 1)  # noqa: B023
        load.run(lambda: all(peer.answers > RESTARTS for peer in load.peers))
        load.finish()
        self.assertEqual(load.problems(), [])
        processes = load.processes()
        for shim in load.shims:
            self.assertEqual(processes[shim.session].stdin.next, shim.sent)
            self.assertTrue(processes[shim.session].stdin.ended)
            self.assertEqual(processes[shim.session].signals, shim.signals)
        self.assertEqual(self.count("resumed"), RESTARTS)
