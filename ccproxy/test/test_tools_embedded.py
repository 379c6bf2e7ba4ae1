"""
C{ccproxyctl run} and C{exec} through the real daemon into its embedded VM.
"""

from __future__ import annotations

import hashlib
import os
import subprocess

import pexpect
from twisted.trial.unittest import SynchronousTestCase

from ..testing.daemon import Daemon, environment, eventually, script

TIMEOUT = 60


class CCTests(SynchronousTestCase):
    """A daemon with an embedded VM of the cc dialect."""

    dialect = "cc"

    def setUp(self) -> None:
        options = ("--embedded-vm", "demo", "--embedded-dialect", self.dialect)
        self.daemon = Daemon.byTwistd(*options).start()
        self.addCleanup(self.daemon.clear)
        self.environment = environment(CCPROXY_SOCKET=self.daemon.path)

    def ctl(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*script("ccproxyctl"), *words],
            check=False,
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT,
            env=self.environment,
        )

    def test_streamsAndStatus(self) -> None:
        result = self.ctl("run", "--", "sh", "-c", "echo hello; echo oops >&2; exit 7")
        self.assertEqual(
            (result.returncode, result.stdout, result.stderr), (7, b"hello\n", b"oops\n")
        )

    def test_bulk(self) -> None:
        """Many bytes there and back."""
        data = os.urandom(3_000_000)
        result = self.ctl("run", "--", "cat", stdin=data)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertEqual(hashlib.sha256(result.stdout).digest(), hashlib.sha256(data).digest())

    def test_terminal(self) -> None:
        """A session at a terminal: its size, job control, and Ctrl-C for the process alone."""
        command, *words = [*script("ccproxyctl"), "run", "--tty", "-e", "PS1=[$?]", "--"]
        terminal = pexpect.spawn(
            command,
            [*words, "sh", "-i"],
            env=self.environment,
            timeout=TIMEOUT,
            dimensions=(30, 100),
        )
        self.addCleanup(terminal.close, force=True)
        terminal.expect_exact("[0]")
        terminal.sendline("stty size")
        terminal.expect_exact("30 100\r\n")
        terminal.setwinsize(41, 123)
        terminal.sendline("until [ \"$(stty size)\" = '41 123' ]; do :; done; echo resi''zed")
        terminal.expect_exact("resized\r\n[0]")
        # What it says itself shows that it is in the foreground.
        sleep = "sh -c 'echo go\"\"ing; exec sleep 1000'"
        terminal.sendline(sleep)
        terminal.expect_exact("going\r\n")
        terminal.sendintr()
        terminal.expect_exact("[130]")
        terminal.sendline(sleep)
        terminal.expect_exact("going\r\n")
        terminal.send(b"\x1a")
        terminal.expect_exact("[148]")
        terminal.sendline("kill -KILL %1; exit 9")
        if terminal.expect([pexpect.EOF, "stopped jobs.*0]"]):
            # The shell has not noticed yet that there are none.
            terminal.sendline("exit 9")
            terminal.expect(pexpect.EOF)
        terminal.wait()
        self.assertEqual(terminal.exitstatus, 9)
        self.assertTrue(self.daemon.isAlive())

    def test_exec(self) -> None:
        """A second process in a container; the container goes with its first one."""
        words = [*script("ccproxyctl"), "run", "--id", "box", "--", "sh", "-c", "echo up; cat"]
        with subprocess.Popen(
            words, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as first:
            assert first.stdin is not None and first.stdout is not None
            self.assertEqual(first.stdout.readline(), b"up\n")
            second = self.ctl("exec", "box", "sh", "-c", "cat; exit 3", stdin=b"hello")
            self.assertEqual((second.returncode, second.stdout), (3, b"hello"))
            first.stdin.close()
            self.assertEqual(first.wait(TIMEOUT), 0)
        if self.dialect == "cc":
            self.assertEqual(self.ctl("exec", "box", "true").returncode, 125)

    def test_killed(self) -> None:
        """Who is killed takes the process along."""
        words = [*script("ccproxyctl"), "run", "--", "sh", "-c", "echo $$; exec sleep 1000"]
        with subprocess.Popen(words, env=self.environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            pid = process.stdout.readline().strip().decode()
            self.assertTrue(os.path.exists(f"/proc/{pid}"))
            process.kill()
        eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the process")


class Hyperstart1Tests(CCTests):
    """The same with hyperstart 1.x."""

    dialect = "hyperstart1"
