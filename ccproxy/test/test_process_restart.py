"""
Restarts of the real daemon that nobody notices: docs/reliability.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.client import BlockingClient
from ccproxy.testing.daemon import Daemon, environment, eventually, script
from ccproxy.wire.codes import Command, ControlCode, Stream

from .processes import DaemonTestCase
from .restartload import Load

#: How often the load test restarts: make restart-test does it more often.
KILLS = int(os.environ.get("CCPROXY_KILLS", "5"))
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


    def kill(self) -> int:
        """Kill the daemon, whose parent is the supervisor."""
        supervisor = self.daemon.pid
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        return int(children[0])


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


class CrashTests(RestartCase):
    """The daemon is killed."""

    def test_load(self) -> None:
        """
        Every VM and every session lives on, no stream is out of step, and what is lost or comes
        twice is no more than what was on its way.
        """
        vms = max(1, SESSIONS // 5)
        load = Load(self.daemon.directory, self.daemon.path, vms, SESSIONS // vms)
        self.addCleanup(load.close)
        chance = random.Random(KILLS)
        for nth in range(KILLS):
            moment = time.monotonic() + chance.uniform(0.1, 0.5)
            load.run(lambda: time.monotonic() > moment)  # noqa: B023
            self.kill()
            load.run(lambda: self.count("started") > nth + 1)  # noqa: B023
        answers = [peer.answers for peer in load.peers]
        load.run(lambda: all(p.answers > a for p, a in zip(load.peers, answers, strict=True)))
        load.finish()
        self.assertEqual(self.count("recovered"), KILLS)
        self.report(load)
        self.assertEqual([shim for shim in load.shims if shim.closed], [])
        self.assertEqual([agent for agent in load.agents.agents if agent.closed], [])

    def report(self, load: Load) -> None:
        """Say what was lost."""
        processes = load.processes()
        meters = [m for shim in load.shims for m in (*shim.meters, processes[shim.session].stdin)]
        print(f"{KILLS} kills, {len(load.shims)} sessions:", end=" ")
        for what in ("lost", "doubled", "strange"):
            counts = [getattr(meter, what) for meter in meters]
            print(f"{sum(map(bool, counts))} streams with {sum(counts)} bytes {what}", end="; ")
        print([wrong for peer in load.peers for wrong in peer.wrong][:20])
