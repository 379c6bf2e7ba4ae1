"""
C{ccproxyctl demo}: the whole path at once, and nothing left of it afterwards.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from twisted.trial.unittest import SynchronousTestCase

DEADLINE = 30.0


def _ccproxyctl() -> str:
    return os.path.join(os.path.dirname(sys.executable), "ccproxyctl")


def _mentioning(*texts: str) -> list[int]:
    """The processes with one of these texts in their command line or environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if any(text.encode() in said for text in texts) and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


class DemoTests(SynchronousTestCase):
    """The demo as a person runs it, with pipes."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)
        # What the demo makes is in a folder of its own, and what it starts has a name of its own.
        self.sleep = f"sleep 600.{os.getpid()}{random.randrange(10**9)}"
        self.environment = {**os.environ, "TMPDIR": str(self.folder.resolve())}

    def _start(
        self, *command: str, stdin: int | IO[bytes] = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [_ccproxyctl(), "demo", "--", *command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the command has said that it runs."""
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"running\n")

    def _assertNothingLeft(self) -> None:
        deadline = time.monotonic() + DEADLINE
        marks = str(self.folder.resolve()), self.sleep.replace(" ", "\0")
        while (left := _mentioning(*marks)) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(left, [])

    def test_streamsAndStatus(self) -> None:
        """stdout and stderr are apart, the status is the command's, and all is gone."""
        process = self._start("sh", "-c", "echo hello; echo oops >&2; exit 7")
        output, errors = process.communicate(timeout=DEADLINE)
        self.assertEqual((process.returncode, output), (7, b"hello\n"), errors)
        self.assertIn(b"oops\n", errors)
        self._assertNothingLeft()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_bytes(self) -> None:
        """Any bytes come back as they went."""
        data = random.Random(7).randbytes(3 << 20)
        process = self._start("cat", stdin=subprocess.PIPE)
        output, errors = process.communicate(data, timeout=DEADLINE)
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(hashlib.sha256(output).digest(), hashlib.sha256(data).digest())

    def test_killedBySignal(self) -> None:
        """The status of a killed process is that of a shell."""
        process = self._start("sh", "-c", "kill -9 $$")
        process.communicate(timeout=DEADLINE)
        self.assertEqual(process.returncode, 128 + signal.SIGKILL)

    def test_background(self) -> None:
        """What the command leaves running is gone after it, a session of its own or not."""
        process = self._start("sh", "-c", f"setsid {self.sleep} > /dev/null 2>&1 & sleep 0.2")
        process.communicate(timeout=DEADLINE)
        self.assertEqual(process.returncode, 0)
        self._assertNothingLeft()

    def test_terminated(self) -> None:
        """SIGTERM ends it, and all that it has started."""
        process = self._start("sh", "-c", f"echo running; exec {self.sleep}")
        self._started(process)
        process.terminate()
        process.communicate(timeout=DEADLINE)
        self.assertEqual(process.returncode, 128 + signal.SIGTERM)
        self._assertNothingLeft()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_killed(self) -> None:
        """Even SIGKILL leaves no process behind."""
        process = self._start("sh", "-c", f"echo running; exec {self.sleep}")
        self._started(process)
        process.kill()
        process.communicate(timeout=DEADLINE)
        self._assertNothingLeft()
