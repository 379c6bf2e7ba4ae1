"""
C{ccproxyctl run} and C{exec} through the real daemon into its embedded VM.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess

import pexpect
from twisted.trial.unittest import SynchronousTestCase

from ...testing.daemon import Daemon, environment, eventually, script
from ..terminals import TIMEOUT, expectRunning, interactiveShell, pgrep


class EmbeddedTestCase(SynchronousTestCase):
    """A daemon with an embedded VM."""

    dialect = "cc"

    def setUp(self) -> None:
        options = ("--embedded-vm", "demo", "--embedded-dialect", self.dialect)
        self.daemon = Daemon.byTwistd(*options).start()
        self.addCleanup(self.daemon.clear)
        self.environment = environment(CCPROXY_SOCKET=self.daemon.path)


class CCTests(EmbeddedTestCase):
    """With the cc dialect."""

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

    def test_notUTF8(self) -> None:
        """Words that are not UTF-8, which JSON cannot carry, are refused by one line each."""
        token = ["shim", "-c", "id", "-t"]
        for words in (
            *(["run", option, "\udcff", "--", "true"] for option in ("--id", "--vm", "-w")),
            *(["run", option, "\udcff", "--", "true"] for option in ("--image", "--rootfs")),
            ["run", "-e", "NAME=\udcff", "--", "true"],
            ["run", "-e", "STRANGE", "--", "true"],
            ["run", "--", "echo", "\udcff"],
            ["exec", "\udcff", "--", "true"],
            ["exec", "id", "--", "\udcff"],
            ["demo", "--", "\udcff"],
            ["vm", "start", "\udcff"],
            ["vm", "stop", "\udcff"],
            [*token, "\udcff"],
            ["shim", "-t", "token", "-c", "\udcff"],
        ):
            self.environment["STRANGE"] = "\udcff"
            result = self.ctl(*words)
            (error,) = result.stderr.decode().splitlines()
            self.assertEqual((result.returncode, result.stdout), (2, b""), (words, error))
            self.assertRegex(error, rf"^ccproxyctl {words[0]}: '.*\\udcff' is not UTF-8")
        for words in (
            ["console", "\udcff"],
            ["sessions", "\udcff"],
            ["events", "-n1", "--vm", "\udcff"],
            ["events", "-n1", "--event", "\udcff"],
        ):
            result = self.ctl(*words)
            self.assertEqual((result.returncode > 0, len(result.stderr.splitlines())), (True, 1))

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

    def shell(self) -> pexpect.spawn[str]:
        """An interactive shell, with job control, whose prompt is the last status."""
        shell = interactiveShell(self, self.environment)
        shell.sendline("ctl() { " + shlex.join(script("ccproxyctl")) + ' "$@"; }')
        shell.expect_exact("[0]")
        return shell

    def test_interrupted(self) -> None:
        """Ctrl-C and Ctrl-\\ at a cooked terminal end what a shell has started, too."""
        shell, sleep = self.shell(), f"sleep 1000.{os.getpid()}"
        for key, status in (("\x03", 130), ("\x1c", 131)):
            shell.sendline(f"ctl run -- sh -c 'echo up; {sleep}; true'")
            expectRunning(shell, sleep)
            shell.send(key)
            # hyperstart 1.x reports 0 for whatever a signal has killed.
            shell.expect_exact(f"[{status if self.dialect == 'cc' else 0}]")
        shell.sendline(f"ctl run -- sh -c 'trap \"echo trapped\" INT; echo up; {sleep}; cat'")
        expectRunning(shell, sleep)
        shell.send("\x03")
        shell.expect_exact("trapped\r\n")
        shell.send("\x03")
        shell.expect_exact("ended by a second Ctrl-C")
        shell.expect_exact("[130]")

    def test_background(self) -> None:
        """A job in the background leaves the terminal to the shell until it is in front."""
        shell = self.shell()
        shell.sendline("ctl run --id box -- sh -c 'echo up; cat; exit 5' & true")
        shell.expect_exact("up\r\n")
        shell.sendline("ctl exec box -- echo beside")
        shell.expect_exact("beside\r\n")
        shell.expect_exact("[0]")
        # It is brought to the front as a running job, then as a stopped one.
        for stop in (True, False):
            shell.sendline("jobs; fg")
            shell.expect_exact("Running")
            shell.expect_exact("cat; exit 5'\r\n")
            shell.sendline("typed")
            shell.expect_exact("typed\r\n")
            if stop:
                shell.sendcontrol("z")
                shell.expect_exact("[148]")
                shell.sendline("bg")
                shell.expect_exact("[0]")
        shell.sendcontrol("d")
        shell.expect_exact("[5]")

    def test_backgroundTerminal(self) -> None:
        """With C{--tty} the terminal becomes raw in front only, and is put back there only."""
        shell = self.shell()
        shell.sendline("before=$(stty -g); ctl run -t -e PS1='<$?>' -- sh -i & true")
        shell.expect_exact("<0>")
        shell.sendline('test "$before" = "$(stty -g)"; echo same-$?')
        shell.expect_exact("same-0")
        shell.sendline("fg")
        shell.sendline("echo in''side; (exit 7)")
        shell.expect_exact("inside\r\n<7>")
        # Typed text is not echoed twice: the terminal in front is raw.
        shell.sendline("exit 3")
        shell.expect_exact("[3]")
        shell.sendline('test "$before" = "$(stty -g)"; echo same-$?')
        shell.expect_exact("same-0")
        shell.sendline("ctl run -t -- sh -c 'echo up; exec sleep 1000' & true")
        shell.expect("up\r+\n")
        shell.sendline("kill $!; wait $!; echo en''ded")
        shell.expect_exact("ended")
        shell.sendline('test "$before" = "$(stty -g)"; echo same-$?')
        shell.expect_exact("same-0")

    def test_hangUp(self) -> None:
        """When a terminal is closed, what ran in it ends, a shell's children included."""
        mark = f"1000.{os.getpid()}"
        shell = self.shell()
        shell.sendline(f"ctl run -- sh -c 'echo up; sleep {mark}; true'")
        shell.expect_exact("up\r\n")
        shell.close(force=True)
        eventually(lambda: not pgrep(f"sleep {mark}"), "the end of the process")

    def test_wideCharacters(self) -> None:
        """A shell knows the encoding, and its line editor and its terminal erase characters."""
        command, *words = [*script("ccproxyctl"), "run", "--tty", "-e", "PS1=[$?]", "--", "bash"]
        terminal = pexpect.spawn(
            command,
            [*words, "--norc", "--noprofile", "-i"],
            env={**self.environment, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
            timeout=TIMEOUT,
            encoding="utf-8",
        )
        self.addCleanup(terminal.close, force=True)
        terminal.expect_exact("[0]")
        terminal.sendline("echo '<a世\x7fb>'")
        terminal.expect_exact("<ab>\r\n")
        terminal.sendline("read -rp 'li''ne? ' line; echo \"<$line>\"")
        terminal.expect_exact("line? ")
        terminal.sendline("a世\x7fb")
        terminal.expect_exact("<ab>\r\n")

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
