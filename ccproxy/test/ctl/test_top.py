"""
C{ccproxyctl top} on a terminal, with the test as the daemon.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import termios
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any
from unittest import skipIf

import pexpect

from ...testing.daemon import environment, eventually, script
from .adminserver import AdminServer, answering
from .test_asking import SHOWN_EVIL, AskingTestCase
from .test_text import EVIL, vm

TIMEOUT = 60.0
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?25h\x1b[?1049l"


class TopTests(AskingTestCase):
    """The screen, and that the terminal is as it was after it."""

    def setUp(self) -> None:
        super().setUp()
        self.answer("GET /v1/status", {"version": "1.2", "bufferedBytes": 2048})
        self.sent = 0
        self.server.answers["GET /v1/vms"] = self.traffic

    def traffic(self, request: BaseHTTPRequestHandler) -> None:
        """Two VMs, one of which says more each time."""
        self.sent += 1 << 20
        answering([vm(1, containerId="quiet"), vm(2, self.sent, containerId="busy")])(request)

    def top(self, interval: str = "0.2") -> Any:
        """Start it on a terminal of its own."""
        return self.onTerminal(*script("ccproxyctl"), "top", "--interval", interval)

    def onTerminal(self, *words: str) -> Any:
        """Start a program there."""
        env = environment(CCPROXY_ADMIN_SOCKET=self.path, TERM="xterm")
        process = pexpect.spawn(
            words[0], list(words[1:]), env=env, encoding="utf-8", timeout=TIMEOUT,
            dimensions=(12, 120),
        )  # fmt: skip
        self.addCleanup(process.close, force=True)
        self.before = termios.tcgetattr(process.child_fd)
        return process

    def assertLeft(self, process: Any) -> None:
        """The terminal is as it was, its screen and cursor too."""
        process.expect_exact(LEAVE)
        process.expect(pexpect.EOF)
        self.assertEqual(process.before, "")
        process.wait()

    def test_screen(self) -> None:
        process = self.top()
        process.expect_exact(ENTER)
        process.expect("ccproxy 1.2")
        process.expect(r"VM +SERIAL +STATE")
        # The first look has no rates yet; then the busy one is on top.
        process.expect(r"out [\d.]+M/s.*buffered 2.0K.*by throughput")
        process.expect(r"\nbusy +2 +registered +[\d.]+M .*\nquiet +1 +registered +0 ")
        process.send("n")
        process.expect("by name")
        process.expect(r"\nbusy .*\nquiet ")
        process.send("\x1b[B")
        process.expect(r"STATE[^\n]*\n[^\n]*quiet ")
        process.send("\x1b[At")
        process.expect("by throughput")
        process.expect(r"STATE[^\n]*\n[^\n]*busy ")
        process.send("nq")
        self.assertLeft(process)
        self.assertEqual(process.exitstatus, 0)

    def test_unechoed(self) -> None:
        """What is typed is not seen, and the terminal is put back."""
        process = self.top()
        process.expect_exact(ENTER)
        self.assertFalse(termios.tcgetattr(process.child_fd)[3] & termios.ECHO)
        process.send("q")
        process.expect_exact(LEAVE)
        eventually(lambda: termios.tcgetattr(process.child_fd) == self.before, "the terminal back")

    def test_signals(self) -> None:
        """Whatever ends it, the terminal is put back, and who waits sees the signal."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            process = self.top()
            process.expect_exact(ENTER)
            process.expect("busy")
            if number == signal.SIGINT:
                process.sendintr()
            else:
                process.kill(number)
            process.expect_exact(LEAVE)
            process.expect(pexpect.EOF)
            process.wait()
            self.assertEqual(process.signalstatus, number)

    @skipIf(shutil.which("bash") is None, "there is no bash")
    def test_stopped(self) -> None:
        """Ctrl-Z gives the terminal back to the shell, and it goes on afterwards."""
        top = shlex.join([*script("ccproxyctl"), "top", "--interval", "0.2"])
        process = self.onTerminal("bash", "-mc", f"{top}; echo stopped; read; fg; echo end $?")
        process.expect_exact(ENTER)
        process.expect("busy")
        process.send("\x1a")
        process.expect_exact(LEAVE)
        process.expect("stopped\r\n")
        self.assertEqual(termios.tcgetattr(process.child_fd), self.before)
        process.send("\r")
        process.expect_exact(ENTER)
        process.expect("busy")
        process.send("q")
        process.expect_exact(f"{LEAVE}end 0\r\n")

    def test_size(self) -> None:
        """It fits, also when the terminal gets smaller; names cannot steer it."""
        self.vms([vm(number, containerId=EVIL) for number in range(30)])
        process = self.top("3600")
        process.expect_exact(ENTER)
        process.expect_exact("\x1b[H")
        process.expect_exact("\x1b[J")
        lines = process.before.split("\r\n")
        self.assertEqual(len(lines), 12)
        self.assertIn(SHOWN_EVIL, lines[3])
        process.setwinsize(5, 20)
        process.expect(r"\x1b\[H((?:[^\n]*\r\n){4}[^\n]*)\x1b\[J")
        for line in process.match[1].split("\r\n"):
            bare = (
                line.rstrip("\r").replace("\x1b[K", "").replace("\x1b[7m", "").replace("\x1b[m", "")
            )
            self.assertLessEqual(len(bare), 20)
            self.assertTrue(bare.isprintable(), repr(bare))
        process.send("q")
        self.assertLeft(process)

    def test_restart(self) -> None:
        """It says that the daemon is away, and goes on when it is back."""
        process = self.top()
        process.expect("busy")
        self.server.close()
        process.expect("no daemon answers at the admin socket")
        again = AdminServer(self.path)
        self.addCleanup(again.close)
        again.answers = self.server.answers
        process.expect("by throughput")
        process.send("q")
        self.assertLeft(process)

    def test_error(self) -> None:
        """An error of ours puts the terminal back before it is shown."""
        gone = threading.Event()

        def nonsense(request: BaseHTTPRequestHandler) -> None:
            answering("nonsense" if gone.is_set() else [])(request)

        self.server.answers["GET /v1/vms"] = nonsense
        process = self.top()
        process.expect_exact(ENTER)
        gone.set()
        process.expect_exact(LEAVE)
        process.expect("Traceback")
        process.expect(pexpect.EOF)
        process.wait()
        self.assertEqual(process.exitstatus, 125)

    def test_notThere(self) -> None:
        """Without a daemon it ends before it touches the terminal."""
        self.server.close()
        process = self.top()
        process.expect(pexpect.EOF)
        self.assertIn("no daemon answers", process.before)
        self.assertNotIn("\x1b", process.before)
        process.wait()
        self.assertEqual(process.exitstatus, 3)

    def test_noTerminal(self) -> None:
        self.assertIn("there is ccproxyctl vms", self.ctl("top", status=2, TERM="xterm")[1])
        self.assertIn("'0' is not from 0.1 to 3600", self.ctl("top", "-i", "0", status=2)[1])
        self.assertIn("'x' is not from", self.ctl("top", "-i", "x", status=2)[1])
