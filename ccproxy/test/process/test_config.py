"""
The daemon's configuration file, and what the daemon makes of a new one.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile

from ccproxy.test.processes import DaemonTestCase, runProxy
from ccproxy.testing.daemon import Daemon, eventually
from ccproxy.wire.codes import Command


class ConfigTests(DaemonTestCase):
    """A daemon of each command line, with a configuration file."""

    def setUp(self) -> None:
        """The file."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = os.path.join(folder, "ccproxy.toml")

    def write(self, text: str) -> None:
        """Write the file."""
        with open(self.path, "w") as file:
            file.write(text)

    def test_reload(self) -> None:
        """
        SIGHUP puts new limits and a new log level into force; clients stay. A bad file changes
        nothing, and neither does a setting that only a start can change.
        """
        for daemon in (Daemon("-config", self.path), Daemon.byTwistd("--config", self.path)):
            self.write("max-frame = 8192\nlog-level = 'warn'")
            self.cleared(daemon).start()
            client = self.client(daemon)
            # A frame whose length is over the limit is refused before its payload has come.
            self.assertIn("8192", self.refusal(daemon))
            self.write("max-frame = 4096\nlog-level = 'info'\nsocket-mode = '0600'")
            daemon.process.send_signal(signal.SIGHUP)
            self.assertIn("max-frame=4096", daemon.waitLog("the configuration was read again"))
            self.assertIn("socket-mode", daemon.waitLog("restart-needed"))
            self.assertIn("4096", self.refusal(daemon))
            self.write("max-frame = 1")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.waitLog(f"{self.path}: max-frame: 1 is less than 4096")
            self.assertIn("4096", self.refusal(daemon))
            client.probe()
            self.assertEqual(daemon.stop(), 0)

    def refusal(self, daemon: Daemon) -> str:
        """What the daemon says to a frame of 8193 bytes."""
        return self.client(daemon).refused(Command.ATTACH_VM, {"containerId": "x" * 8193})

    def test_bad(self) -> None:
        """A daemon does not start with a file that it cannot use, and says what is wrong."""
        self.write("max-vm = 3")
        problem = f"{self.path}: unknown key 'max-vm'; did you mean max-vms?"
        result = runProxy("-config", self.path)
        self.assertEqual((result.returncode, result.stderr), (1, f"cc-proxy: {problem}\n"))
        daemon = self.cleared(Daemon.byTwistd("--config", self.path))
        daemon.spawn()
        self.assertEqual(daemon.wait(), 1)
        self.assertEqual(daemon.log(), f"{problem}\n")

    def test_descriptors(self) -> None:
        """The daemon may open as many files as it is allowed to be allowed."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        for daemon in self.daemons():
            daemon.start()
            limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
            self.assertEqual(limits, (hard, hard))

    def test_aborted(self) -> None:
        """A daemon that is aborted says where it was."""
        for daemon in self.daemons():
            daemon.start()
            # Its socket is there before its loop runs.
            self.client(daemon).call(Command.ATTACH_VM, {"containerId": "none"})
            eventually(daemon.isIdle, "it waits for more")
            self.assertEqual(daemon.stop(signal.SIGABRT), -signal.SIGABRT)
            daemon.waitLog("Fatal Python error: Aborted")
            daemon.waitLog("in doPoll")
