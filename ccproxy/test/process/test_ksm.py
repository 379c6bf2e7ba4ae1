"""
The daemon and the kernel's samepage merging, for which a folder stands in.
"""

from __future__ import annotations

import os
import time

from ccproxy.test.processes import DaemonTestCase
from ccproxy.test.service.test_ksm import BEFORE, makeKSM
from ccproxy.testing.daemon import Daemon, eventually, script


class KSMTests(DaemonTestCase):
    """C{-ksm} and C{--ksm}."""

    def setUp(self) -> None:
        """Files as the kernel has them."""
        root = os.path.abspath(self.mktemp())
        self.directory = makeKSM(root)
        self.extra = {"CCPROXY_KSM_ROOT": root}

    def values(self) -> dict[str, str]:
        """What the files say."""
        return {path.name: path.read_text().strip() for path in self.directory.iterdir()}

    def test_auto(self) -> None:
        """C{cc-proxy} paces it after the first registration, and restores it at its end."""
        daemon = self.cleared(Daemon(extra=self.extra)).start()
        time.sleep(0.2)
        self.assertEqual(self.values(), BEFORE)
        self.vm(daemon)
        eventually(lambda: self.values()["run"] == "1", "KSM runs")
        self.assertEqual(self.values()["sleep_millisecs"], "1")
        self.assertGreater(int(self.values()["pages_to_scan"]), 100)
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(self.values(), BEFORE)

    def test_killed(self) -> None:
        """The next daemon restores what one that was killed has left; a second one leaves it."""
        daemon = self.cleared(Daemon(extra=self.extra)).start()
        self.vm(daemon)
        eventually(lambda: self.values()["run"] == "1", "KSM runs")
        second = self.cleared(Daemon("-log", "info", extra=self.extra)).start()
        second.waitLog("KSM is left alone: another daemon sees to it")
        daemon.process.kill()
        daemon.process.wait()
        self.assertNotEqual(self.values(), BEFORE)
        daemon.start()
        eventually(lambda: self.values() == BEFORE, "KSM is as it was")

    def test_off(self) -> None:
        """C{off} stops it while the daemon runs."""
        (self.directory / "run").write_text("1\n")
        begin = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
        daemon = Daemon("--ksm=off", command=begin, extra=self.extra)
        self.cleared(daemon).start()
        eventually(lambda: self.values() == BEFORE, "KSM is stopped")
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(self.values(), {**BEFORE, "run": "1"})

    def test_untouched(self) -> None:
        """By default C{twistd ccproxy} leaves it alone, and pod mode always."""
        twistd = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
        pod = [*script("cc-proxy"), "-ksm", "auto", "-uri", "unix://{socket}"]
        for begin in (twistd, pod):
            daemon = self.cleared(Daemon(command=begin, extra=self.extra)).start()
            self.vm(daemon)
            time.sleep(0.3)
            self.assertEqual(self.values(), BEFORE)
            self.assertEqual(daemon.stop(), 0)
            self.assertEqual(self.values(), BEFORE)

    def test_missing(self) -> None:
        """A machine without KSM is said once, at level info, and changes nothing else."""
        self.extra["CCPROXY_KSM_ROOT"] = "/nonexistent"
        daemon = self.cleared(Daemon("-log", "info", extra=self.extra)).start()
        self.assertIn("/nonexistent/sys/kernel/mm/ksm/run", daemon.waitLog("KSM is left alone"))
        vm = self.vm(daemon)
        vm.usable()
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(daemon.log().count("KSM is"), 1, daemon.log())

    def test_busy(self) -> None:
        """A kernel that does not take a value holds up no VM, and the end by some seconds only."""
        (self.directory / "run").unlink()
        os.mkfifo(self.directory / "run")
        daemon = self.cleared(Daemon(extra=self.extra)).start()
        self.vm(daemon).usable()
        began = time.monotonic()
        self.assertEqual(daemon.stop(), 0)
        self.assertLess(time.monotonic() - began, 30)
        daemon.waitLog("KSM is busy")
