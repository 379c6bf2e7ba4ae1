"""
The commands of C{ccproxyctl} that ask the daemon, as people start them; the test is the daemon.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any
from unittest import skipIf

from twisted.trial.unittest import SynchronousTestCase

from ...ctl import adminclient
from ...testing.daemon import environment, script
from .adminserver import AdminServer, answering, refusing, streaming
from .test_text import EVIL

TIMEOUT = 20.0
SHOWN_EVIL = "a\\x1b]0;owned\\x07\\x9b31m\\u202eb\\n\\ud800"


class AskingTestCase(SynchronousTestCase):
    """Starts C{ccproxyctl} beside a played admin socket."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ccp")
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "admin")
        self.server = AdminServer(self.path)
        self.addCleanup(self.server.close)
        self.vms([{"containerId": "demo", "serial": 1}, {"containerId": "demo", "serial": 7}])

    def answer(self, asked: str, value: object) -> None:
        """Have the server answer so."""
        self.server.answers[asked] = answering(value)

    def vms(self, rows: list[dict[str, Any]]) -> None:
        """Have the server know these VMs."""
        self.answer("GET /v1/vms", rows)

    def spawn(self, *words: str, env: dict[str, str] | None = None, **more: Any) -> Any:
        """Start a command."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*script("ccproxyctl"), *words],
            env=environment(**{"CCPROXY_ADMIN_SOCKET": self.path, **(env or {})}),
            **{**pipes, **more},
        )
        self.addCleanup(self.reap, process)
        return process

    def reap(self, process: subprocess.Popen[bytes]) -> None:
        """Leave nothing of it."""
        process.kill()
        process.communicate()

    def ctl(self, *words: str, status: int = 0, **env: str) -> tuple[str, str]:
        """Run a command to its end; what it has printed and what it has complained of."""
        process = self.spawn(*words, env=env)
        out, err = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, status, err.decode())
        return out.decode(), err.decode()


class ListTests(AskingTestCase):
    """Tables and JSON."""

    def test_status(self) -> None:
        counts = {"vms": {"registered": 2, "lost": 1}, "sessions": {}, "shims": 4}
        self.answer("GET /v1/status", {"version": "1.2", "draining": True, "counts": counts})
        out, err = self.ctl("status")
        rows = dict(line.split("  ", 1) for line in out.splitlines())
        self.assertEqual(rows["Version"].strip(), "1.2")
        self.assertEqual(rows["Draining"].strip(), "yes")
        self.assertEqual(rows["VMs"].strip(), "3 (2 registered, 1 lost)")
        self.assertEqual(rows["Shims"].strip(), "4")
        self.assertEqual(err, "")

    def test_hostileNames(self) -> None:
        """Names are escaped in tables, in JSON, and where they stand alone."""
        self.vms([{"containerId": EVIL, "serial": 3, "state": "lost"}])
        table = self.ctl("vms")[0].splitlines()
        self.assertEqual(table[1].split()[:3], [SHOWN_EVIL, "3", "lost"])
        self.assertEqual(self.ctl("vms", "-q")[0], f"{SHOWN_EVIL}\n")
        shown = self.ctl("vms", "--json")[0]
        self.assertTrue(shown.isascii() and shown.replace("\n", "").isprintable())
        self.assertEqual(json.loads(shown)[0]["containerId"], EVIL)

    def test_poorEncoding(self) -> None:
        """What the terminal cannot show is escaped too."""
        self.vms([{"containerId": "żółw", "serial": 3}])
        out, _ = self.ctl("vms", "-q", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        self.assertEqual(out, "\\u017c\\xf3\\u0142w\n")

    def test_sessions(self) -> None:
        """Those of a VM are asked by its name, whatever is in it."""
        lost = {"output": 2000, "input": 48}
        self.answer("GET /v1/sessions", [{"vm": "a", "session": "number 7", "lost": lost}])
        self.answer("GET /v1/sessions?vm=a%26b%3D+%C5%BC", [{"vm": "x", "session": "s"}])
        self.vms([{"containerId": "a&b= ż", "serial": 3}])
        heading, row = self.ctl("sessions")[0].splitlines()
        self.assertIn("number 7", row)
        self.assertEqual((heading.split()[-1], row.split()[-1]), ("LOST", "2.0K"))
        self.assertIn("\nx ", self.ctl("sessions", "a&b= ż")[0])

    def test_none(self) -> None:
        """An empty list is a word on stderr, and an empty list in JSON."""
        for name in ("vms", "sessions", "clients", "commands"):
            self.answer(f"GET /v1/{name}", [])
            out, err = self.ctl(name)
            self.assertEqual(out, "")
            self.assertRegex(err, f"(?i)^There are no {name}")
        self.assertEqual(self.ctl("clients", "--json"), ("[]\n", ""))

    def test_dump(self) -> None:
        self.answer("GET /v1/dump", {"vms": [EVIL]})
        self.assertEqual(json.loads(self.ctl("dump")[0]), {"vms": [EVIL]})

    def test_noReader(self) -> None:
        """A reader that goes ends it quietly."""
        self.answer("GET /v1/dump", ["x" * 1000] * 1000)
        process = self.spawn("dump")
        process.stdout.close()
        process.stdout = None
        self.assertEqual(process.communicate(timeout=TIMEOUT)[1], b"")
        self.assertEqual(process.returncode, 141)


class ChangeTests(AskingTestCase):
    """Commands that change something."""

    def test_logLevel(self) -> None:
        self.answer("GET /v1/loglevel", {"level": "debug"})
        self.answer("PUT /v1/loglevel", {"level": "debug"})
        self.assertEqual(self.ctl("loglevel")[0], "debug\n")
        self.assertEqual(self.ctl("loglevel", "debug")[0], "debug\n")
        self.assertIn(("PUT /v1/loglevel", {"level": "debug"}), self.server.asked)
        self.assertIn("invalid choice: 'loud'", self.ctl("loglevel", "loud", status=2)[1])

    def test_drain(self) -> None:
        self.answer("POST /v1/drain", None)
        self.assertEqual(self.ctl("drain")[0], "The daemon takes no new VMs; it has 2.\n")
        self.assertEqual(self.ctl("drain", "--off")[0], "The daemon takes new VMs; it has 2.\n")
        asked = [body for what, body in self.server.asked if what == "POST /v1/drain"]
        self.assertEqual(asked, [{"draining": True}, {"draining": False}])

    def test_stop(self) -> None:
        """The command ends when the daemon has, whatever process here has the id that it tells."""
        other = subprocess.Popen(["sleep", "60"])
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)

        def stopped(request: BaseHTTPRequestHandler) -> None:
            answering(None)(request)
            # First the connections that are idle for long, then all.
            threading.Timer(0.1, self.server.drop).start()
            threading.Timer(0.3, self.server.close).start()

        self.answer("GET /v1/status", {"pid": other.pid, "startedAt": "2026-12-01T00:00:00Z"})
        self.server.answers["POST /v1/stop"] = answering(None)
        _, err = self.ctl("stop", "--timeout", "0.2", status=1)
        self.assertIn("has not ended within 0.2 s: its log says", err)
        self.assertEqual(self.ctl("stop", "--timeout", "0")[0], "The daemon is stopping.\n")
        self.assertIn("'-1' is not from 0 to", self.ctl("stop", "--timeout", "-1", status=2)[1])
        self.server.answers["POST /v1/stop"] = stopped
        self.assertEqual(self.ctl("stop")[0], "The daemon has ended.\n")
        self.assertIsNone(other.poll())

    def test_stopAndSuccessor(self) -> None:
        """A daemon that follows at once, with the same id in its container, is another one."""
        times = iter(["2026-12-01T00:00:00Z", "2026-12-01T00:00:01Z"])

        def status(request: BaseHTTPRequestHandler) -> None:
            answering({"pid": 1, "startedAt": next(times)})(request)

        def stopped(request: BaseHTTPRequestHandler) -> None:
            answering(None)(request)
            threading.Timer(0.1, self.server.drop).start()

        self.server.answers["GET /v1/status"] = status
        self.server.answers["POST /v1/stop"] = stopped
        self.assertEqual(self.ctl("stop")[0], "The daemon has ended.\n")

    def test_restartInContainer(self) -> None:
        """A successor that has the same process id as the daemon before is another one."""
        times = iter(["2026-12-01T00:00:00Z"] * 2 + ["2026-12-01T00:00:01Z"])

        def status(request: BaseHTTPRequestHandler) -> None:
            answering({"pid": 1, "startedAt": next(times), "version": "2"})(request)

        self.server.answers["GET /v1/status"] = status
        self.answer("POST /v1/restart", None)
        self.assertEqual(
            self.ctl("restart")[0], "The daemon has restarted: pid 1, version 2, before 2.\n"
        )


class StreamTests(AskingTestCase):
    """Answers that come as things happen."""

    def test_events(self) -> None:
        self.server.answers["GET /v1/events"] = streaming(
            b'event: vm-lost\ndata: {"vm": "a\\u001b", "time": "T"}\n',
            b"\nevent: second\ndata: {}\n\n",
        )
        self.assertEqual(
            self.ctl("events", "-f")[0],
            "T -     vm-lost            -  vm=a\\x1b\n- -     second             -\n",
        )
        found = self.ctl("events", "--json")[0].splitlines()
        data = {"vm": "a\x1b", "time": "T"}
        self.assertEqual(json.loads(found[0]), {"event": "vm-lost", "data": data})
        self.assertEqual(len(self.ctl("events", "-n", "1")[0].splitlines()), 1)

    def test_following(self) -> None:
        """An event is shown when it comes, and Ctrl-C ends the command as it should."""
        waiting = threading.Event()
        self.addCleanup(waiting.set)

        def begin(request: BaseHTTPRequestHandler) -> None:
            streaming(b"event: first\ndata: {}\n\n", cut=True)(request)
            waiting.wait(TIMEOUT)

        self.server.answers["GET /v1/events"] = begin
        process = self.spawn("events", "-f")
        self.assertEqual(process.stdout.readline(), b"- -     first              -\n")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(TIMEOUT), -signal.SIGINT)
        self.assertEqual(process.stderr.read(), b"")

    def test_broken(self) -> None:
        """A stream that breaks off is no end."""
        self.server.answers["GET /v1/events"] = streaming(b"event: x\ndata: 1\n\n", cut=True)
        out, err = self.ctl("events", status=1)
        self.assertEqual(out, "- -     x                  -  data=1\n")
        self.assertIn("was lost before the end of the answer to /v1/events", err)

    def test_console(self) -> None:
        """The newest VM of the name; what could steer a terminal is escaped."""
        self.server.answers["GET /v1/vms/7/console"] = streaming(
            b"\x1b[2Jboot\r", b"\n\xc5", b"\xbc"
        )
        self.server.answers["GET /v1/vms/7/console?follow=1"] = streaming(b"more\n")
        self.assertEqual(self.ctl("console", "demo")[0], "\\x1b[2Jboot\nż")
        self.assertEqual(self.ctl("console", "-f", "demo")[0], "more\n")

    def test_noConsole(self) -> None:
        """A console that there is not, or that has said nothing, is reported."""
        self.server.answers["GET /v1/vms/7/console"] = streaming(b"")
        said = "The console of the VM 'demo' has said nothing yet.\n"
        self.assertEqual(self.ctl("console", "demo"), ("", said))
        self.vms([{"containerId": "demo", "serial": 7, "console": None}])
        said = "ccproxyctl console: the VM 'demo' was registered without a console\n"
        self.assertEqual(self.ctl("console", "demo", status=5), ("", said))

    def test_rawConsole(self) -> None:
        """Raw bytes go into a pipe, and not to a terminal."""
        self.server.answers["GET /v1/vms/7/console"] = streaming(b"\x1b[2J\xff")
        process = self.spawn("console", "--raw", "demo")
        self.assertEqual(process.communicate(timeout=TIMEOUT)[0], b"\x1b[2J\xff")
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        process = self.spawn("console", "--raw", "demo", stdout=theirs)
        self.assertIn(b"send it into a file or a pipe", process.communicate(timeout=TIMEOUT)[1])
        self.assertEqual(process.returncode, 2)


class FailureTests(AskingTestCase):
    """What goes wrong is said, with what to do, and with an exit status of its own."""

    def test_noDaemon(self) -> None:
        self.server.close()
        for text in ("No such file or directory", "Connection refused"):
            out, err = self.ctl("vms", "--json", status=3)
            self.assertEqual(out, "")
            self.assertIn(f"no daemon answers at the admin socket {self.path} ({text})", err)
            self.assertIn("name its socket with --admin-socket or in CCPROXY_ADMIN_SOCKET", err)
            with socket.socket(socket.AF_UNIX) as left:
                if not os.path.exists(self.path):
                    left.bind(self.path)

    @skipIf(os.getuid() != 0 or shutil.which("setpriv") is None, "needs root and setpriv")
    def test_notPermitted(self) -> None:
        os.chmod(self.folder, 0o755)
        os.chmod(self.path, 0o600)
        code = "import sys; from ccproxy.ctl.ccproxyctl import main; sys.exit(main())"
        words = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code, "vms"]
        result = subprocess.run(
            words, env=environment(CCPROXY_ADMIN_SOCKET=self.path), check=False, cwd="/",
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        # setpriv ends with these where it may not start Python.
        if result.returncode in (126, 127) or "No module named" in result.stderr:
            self.skipTest("another user cannot read ccproxy here")
        self.assertEqual(result.returncode, 4, result.stderr)
        self.assertIn("only root and the daemon's own user may; try sudo", result.stderr)

    def test_refused(self) -> None:
        self.server.answers["GET /v1/dump"] = refusing(403, "not\x1b you")
        self.assertEqual(self.ctl("dump", status=4)[1], "ccproxyctl dump: not\\x1b you\n")
        self.server.answers["GET /v1/dump"] = refusing(409, "not now")
        self.assertEqual(self.ctl("dump", status=1)[1], "ccproxyctl dump: not now\n")
        self.server.answers["GET /v1/dump"] = answering(b"<html>", 500)
        self.assertIn("answered with 500 Internal Server Error", self.ctl("dump", status=1)[1])

    def test_unknownVM(self) -> None:
        for words in (("console", "a\x1b"), ("sessions", "a\x1b")):
            out, err = self.ctl(*words, status=5)
            self.assertEqual(out, "")
            self.assertIn("there is no VM 'a\\\\x1b': ccproxyctl vms shows which there are", err)

    def test_noCCProxy(self) -> None:
        """Something else listens there."""

        def garbage(request: BaseHTTPRequestHandler) -> None:
            request.wfile.write(b"\0\0\x1b!\r\n")

        self.server.answers["GET /v1/dump"] = answering(b"{")
        self.assertIn("what listens there is no ccproxy", self.ctl("dump", status=1)[1])
        self.server.answers["GET /v1/dump"] = garbage
        self.assertIn("what listens there is no ccproxy", self.ctl("dump", status=1)[1])

    def test_socketOfTheProxy(self) -> None:
        """The admin socket is beside the client socket that was named."""
        os.symlink(self.path, os.path.join(self.folder, "p.sock.admin"))
        path = os.path.join(self.folder, "p.sock")
        for url in (path, f"unix://{path}"):
            self.ctl("vms", CCPROXY_ADMIN_SOCKET="", CCPROXY_SOCKET=url)
        self.ctl("vms", "--admin-socket", self.path, CCPROXY_ADMIN_SOCKET="/nowhere")
        self.assertIn("give unix://PATH or a path",
                      self.ctl("vms", "--admin-socket", "tcp://x", status=2)[1])  # fmt: skip


class DeadlineTests(SynchronousTestCase):
    """A daemon that hangs is told of, in time."""

    def test_silence(self) -> None:
        folder = tempfile.mkdtemp(prefix="ccp")
        self.addCleanup(shutil.rmtree, folder)
        server = AdminServer(os.path.join(folder, "s"))
        self.addCleanup(server.close)
        hanging = threading.Event()
        self.addCleanup(hanging.set)

        def part(request: BaseHTTPRequestHandler) -> None:
            streaming(b"[", cut=True)(request)
            hanging.wait(TIMEOUT)

        def nothing(request: BaseHTTPRequestHandler) -> None:
            hanging.wait(TIMEOUT)

        server.answers["GET /v1/vms"] = nothing
        server.answers["GET /v1/dump"] = part
        code = (
            "import sys; from ccproxy.ctl import adminclient, ccproxyctl;"
            "adminclient.ANSWER_TIMEOUT = 0.5; sys.exit(ccproxyctl.main())"
        )
        for word in ("vms", "dump"):
            result = subprocess.run(
                [sys.executable, "-c", code, word], check=False, capture_output=True, text=True,
                env=environment(CCPROXY_ADMIN_SOCKET=server.path), timeout=TIMEOUT,
            )  # fmt: skip
            self.assertEqual(result.returncode, 1)
            self.assertIn(f"has not answered /v1/{word} within 0.5 s", result.stderr)

    def test_tooLong(self) -> None:
        """An answer without an end takes no memory without an end."""
        folder = tempfile.mkdtemp(prefix="ccp")
        self.addCleanup(shutil.rmtree, folder)
        server = AdminServer(os.path.join(folder, "s"))
        self.addCleanup(server.close)
        server.answers["GET /v1/dump"] = streaming(*[b" " * 1000] * 30)
        code = (
            "import sys; from ccproxy.ctl import adminclient, ccproxyctl;"
            "adminclient.LONGEST_ANSWER = 20000; sys.exit(ccproxyctl.main())"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, "dump"], check=False, capture_output=True, text=True,
            env=environment(CCPROXY_ADMIN_SOCKET=server.path), timeout=TIMEOUT,
        )  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn("has more than 20000 bytes", result.stderr)
        self.assertGreater(adminclient.LONGEST_ANSWER, 1 << 20)
