"""
C{ccproxyctl demo}: the whole path at once, and nothing left of it afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import pexpect
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ccproxy
from ccproxy.testing.daemon import environment, script

from ...ctl.demo import Demo
from ..terminals import expectRunning, interactiveShell

DEADLINE = 60.0


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


class DemoTestCase(SynchronousTestCase):
    """A place for a demo, and the proof that nothing is left of it."""

    def setUp(self) -> None:
        # Short, since sockets are in it, and without links.
        self.folder = Path(tempfile.mkdtemp(prefix="demo-")).resolve()
        self.addCleanup(shutil.rmtree, self.folder)
        # What the demo makes is in a folder of its own, and what it starts has a name of its own.
        self.sleep = f"sleep 600.{os.getpid()}{random.randrange(10**9)}"
        self.environment = environment(TMPDIR=str(self.folder))

    def assertNothingLeft(self) -> None:
        deadline = time.monotonic() + DEADLINE
        marks = str(self.folder), self.sleep.replace(" ", "\0")
        while (left := _mentioning(*marks)) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(left, [])


class PipeTests(DemoTestCase):
    """With pipes, or with files."""

    def _start(
        self, *command: str, stdin: int | IO[bytes] = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        return self._spawn(*script("ccproxyctl"), "demo", "--", *command, stdin=stdin)

    def _spawn(
        self, *command: str, stdin: int | IO[bytes] = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command,
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

    def test_streamsAndStatus(self) -> None:
        """stdout and stderr are apart, the status is the command's, and all is gone."""
        process = self._start("sh", "-c", "echo hello; echo oops >&2; exit 7")
        output, errors = process.communicate(timeout=DEADLINE)
        self.assertEqual((process.returncode, output), (7, b"hello\n"), errors)
        self.assertIn(b"oops\n", errors)
        self.assertNothingLeft()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_bytes(self) -> None:
        """Any bytes come back as they went."""
        data = random.Random(7).randbytes(3 << 20)
        process = self._start("cat", stdin=subprocess.PIPE)
        output, errors = process.communicate(data, timeout=DEADLINE)
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(hashlib.sha256(output).digest(), hashlib.sha256(data).digest())

    def test_noLog(self) -> None:
        """A log that cannot be written ends it with a word, and nothing is left."""
        process = self._spawn(*script("ccproxyctl"), "demo", "--log", "/nowhere/log", "--", "true")
        output, errors = process.communicate(timeout=DEADLINE)
        self.assertEqual((process.returncode, output), (1, b""), errors)
        self.assertIn(b"No such file or directory: '/nowhere/log'", errors)
        self.assertEqual(list(self.folder.iterdir()), [])

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
        self.assertNothingLeft()

    def test_terminated(self) -> None:
        """SIGTERM ends it, and all that it has started."""
        process = self._start("sh", "-c", f"echo running; exec {self.sleep}")
        self._started(process)
        process.terminate()
        process.communicate(timeout=DEADLINE)
        self.assertEqual(process.returncode, 128 + signal.SIGTERM)
        self.assertNothingLeft()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_starterKilled(self) -> None:
        """When who started it is killed, all ends too."""
        demo = shlex.join([*script("ccproxyctl"), "demo"])
        shell = f"{demo} -- sh -c 'echo running; exec {self.sleep}'; true"
        process = self._spawn("sh", "-c", shell)
        self._started(process)
        process.kill()
        process.communicate(timeout=DEADLINE)
        self.assertNothingLeft()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_killed(self) -> None:
        """Even SIGKILL leaves no process behind."""
        process = self._start("sh", "-c", f"echo running; exec {self.sleep}")
        self._started(process)
        process.kill()
        process.communicate(timeout=DEADLINE)
        self.assertNothingLeft()


class SignalTests(SynchronousTestCase):
    """Signals for the demo itself."""

    def test_dropped(self) -> None:
        """A signal counts even if Python drops the exception by which its handler tells of it."""
        stage = Demo()
        self.addCleanup(shutil.rmtree, stage._folder)
        with contextlib.suppress(SystemExit):
            stage._interrupted(signal.SIGINT, None)
        end = self.assertRaises(SystemExit, stage.run, ["true"], False)
        self.assertEqual(end.code, 130)


class TerminalTests(DemoTestCase):
    """In a terminal, with an interactive shell."""

    def setUp(self) -> None:
        super().setUp()
        command, *words = [*script("ccproxyctl"), "demo"]
        self.shell = pexpect.spawn(
            command,
            words,
            env=self.environment,
            dimensions=(31, 97),
            timeout=DEADLINE,
            encoding="utf-8",
        )
        self.addCleanup(self.shell.close, force=True)
        # The prompt is put together from two, so that the echo of what is typed is none.
        self.say("bind 'set enable-bracketed-paste off'; stty -echo; PROMPT_COMMAND= PS1=rea''dy")
        self.shell.expect_exact("ready")

    def say(self, line: str) -> None:
        """Type a line."""
        self.shell.sendline(line)

    def answer(self, line: str) -> str:
        """Type a line, and read what it says until the next prompt."""
        self.say(line)
        self.shell.expect_exact("ready")
        return str(self.shell.before).strip()

    def test_size(self) -> None:
        """The process's terminal has the size of ours, from the start and after each change."""
        self.assertEqual(self.answer("stty size"), "31 97")
        self.shell.setwinsize(40, 120)
        deadline = time.monotonic() + DEADLINE
        while (size := self.answer("stty size")) != "40 120" and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(size, "40 120")

    def test_interrupt(self) -> None:
        """Ctrl-C reaches the process and nothing else."""
        self.say(f"sh -c 'echo begins; exec {self.sleep}'")
        self.shell.expect_exact("begins")
        self.shell.sendintr()
        self.shell.expect_exact("ready")
        self.assertEqual(self.answer("echo still here"), "still here")

    def test_jobControl(self) -> None:
        """Ctrl-Z stops a process, and the shell can go on with it or end it."""
        self.say(f"sh -c 'echo begins; exec {self.sleep}'")
        self.shell.expect_exact("begins")
        self.shell.sendcontrol("z")
        self.shell.expect_exact("ready")
        self.assertRegex(self.answer("jobs"), "(?i)stopped.*sleep 600")
        self.answer("kill %1; fg")
        self.assertEqual(self.answer("jobs"), "")

    def test_status(self) -> None:
        """The shell's status is the demo's, and the terminal is as it was."""
        self.say("exit 5")
        self.shell.expect(pexpect.EOF)
        self.shell.wait()
        self.assertEqual(self.shell.exitstatus, 5)
        self.assertNothingLeft()


class MakeTests(DemoTestCase):
    """C{make run} at a terminal, in the foreground process group of make."""

    def setUp(self) -> None:
        super().setUp()
        self.source = os.environ.get("CCPROXY_SOURCE") or str(Path(ccproxy.__file__).parent.parent)
        if not os.path.exists(f"{self.source}/make/foreground.py"):
            raise SkipTest(f"there is no Makefile in {self.source}")
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CMD"):
            self.environment.pop(name, None)

    def spawn(self, line: str) -> pexpect.spawn[str]:
        """Run a line of shell that ends with its status, as an interactive shell runs a job."""
        shell = interactiveShell(self, self.environment, self.source)
        shell.sendline(line)
        return shell

    def leave(self, shell: pexpect.spawn[str]) -> None:
        """End the shell, after which nothing is left, nor has make said anything."""
        self.assertNotIn("make", str(shell.before))
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
        self.assertNothingLeft()

    def test_keys(self) -> None:
        """Ctrl-C and Ctrl-\\ end the command with its own status, and make says nothing."""
        for key, status in (("\x03", 130), ("\x1c", 131)):
            for command in (self.sleep, f"{self.sleep}; true"):
                shell = self.spawn(f"make run CMD='echo up; {command}'")
                expectRunning(shell, self.sleep)
                shell.send(key)
                shell.expect_exact(f"[{status}]")
                self.leave(shell)

    def test_handled(self) -> None:
        """A command that survives Ctrl-C goes on; the second one in a row ends everything."""
        command = f'trap "echo got it" INT; echo up; {self.sleep}'
        shell = self.spawn(f"make run CMD='{command}; cat'")
        expectRunning(shell, self.sleep)
        shell.sendintr()
        shell.expect_exact("got it\r\n")
        shell.sendline("hello")
        shell.expect_exact("hello\r\n")
        shell.sendeof()
        shell.expect_exact("[0]")
        shell.sendline(f"make run CMD='{command}; {self.sleep}'")
        expectRunning(shell, self.sleep)
        shell.sendintr()
        shell.expect_exact("got it\r\n")
        shell.sendintr()
        shell.expect_exact("ended by a second Ctrl-C")
        shell.expect_exact("[130]")
        self.leave(shell)

    def test_starting(self) -> None:
        """Ctrl-C ends what has not begun yet, and make says nothing."""
        shell = self.spawn(f"make run CMD='{self.sleep}'")
        shell.expect_exact("starting the proxy")
        shell.sendintr()
        shell.expect_exact("[130]")
        self.leave(shell)

    def test_jobControl(self) -> None:
        """Ctrl-Z gives the shell back, C{bg} goes on without the terminal, C{fg} with it."""
        shell = self.spawn("make run CMD='echo up; cat; exit 5'")
        shell.expect_exact("up\r\n")
        shell.sendcontrol("z")
        shell.expect_exact("[148]")
        for command in ("bg", "fg"):
            shell.sendline(command)
            shell.expect_exact("make run")
        shell.sendline("typed")
        shell.expect_exact("typed\r\n")
        shell.sendeof()
        shell.expect_exact("[5]")

    def test_ended(self) -> None:
        """SIGTERM and SIGHUP for the shim are for the command alone, and make says nothing."""
        for name, status in (("TERM", 143), ("HUP", 129)):
            shell = self.spawn(f"make run CMD='echo up; exec {self.sleep}'")
            expectRunning(shell, self.sleep)
            [shim] = [
                pid
                for pid in _mentioning("ccproxyctl\0run\0")
                if os.getsid(pid) != pid and self.sleep in _words(pid)
            ]
            os.kill(shim, getattr(signal, f"SIG{name}"))
            shell.expect_exact(f"[{status}]")
            self.leave(shell)

    def test_pipe(self) -> None:
        """A reader that has seen enough ends it without a word, Ctrl-C reaches a whole pipeline."""
        shell = self.spawn("make run CMD=yes | head -n 1; echo ${PIPESTATUS[0]}")
        shell.expect_exact("y\r\n141\r\n")
        shell.sendline(f"make run CMD='echo up; {self.sleep}; true' | cat")
        expectRunning(shell, self.sleep)
        shell.sendintr()
        shell.expect_exact("[130]")
        self.leave(shell)


def _words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
