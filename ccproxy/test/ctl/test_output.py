"""
Each command of C{ccproxyctl} whose standard streams are full, closed, or without a reader.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from ...ctl.ccproxyctl import COMMANDS
from ...testing.daemon import environment, script
from .adminserver import answering, streaming
from .test_asking import AskingTestCase
from .test_embedded import EmbeddedTestCase

TIMEOUT = 60.0
_HELP = ["--help"]
#: Arguments with which each command prints: --help for those that print nothing or need a terminal.
PRINTING = {
    "run": ["--", "echo", "hello"],
    "exec": _HELP,
    "shim": _HELP,
    "demo": _HELP,
    "vm": ["list"],
    "status": [],
    "vms": [],
    "sessions": [],
    "clients": [],
    "commands": [],
    "top": _HELP,
    "events": [],
    "console": ["demo"],
    "dump": [],
    "loglevel": [],
    "drain": [],
    "stop": ["--timeout", "0"],
    "restart": ["--timeout", "0"],
    "supervise": _HELP,
    "check-config": [],
    "completion": ["bash"],
}


def redirected(words: list[str], redirection: str) -> list[str]:
    """A command line with which a shell starts a program with this redirection."""
    return ["sh", "-c", f'"$@" {redirection}', "sh", *words]


def runRedirected(
    words: list[str], how: str, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """Run C{ccproxyctl} to its end with a redirection of a shell."""
    return subprocess.run(
        redirected([*script("ccproxyctl"), *words], how),
        env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip


class OutputTests(AskingTestCase):
    """All commands beside a played daemon, which answers each of their questions."""

    def setUp(self) -> None:
        super().setUp()
        self.runFolder = os.path.join(self.folder, "vms")
        row = {"containerId": "demo", "serial": 7, "console": "/c"}
        for asked, answer in (
            ("GET /v1/status", {"pid": 1, "version": "1"}),
            ("GET /v1/vms", [row]),
            ("GET /v1/sessions", [{"vm": "demo"}]),
            ("GET /v1/clients", [{"number": 1}]),
            ("GET /v1/commands", [{"command": "Hyper"}]),
            ("GET /v1/dump", {"vms": [row]}),
            ("GET /v1/loglevel", {"level": "info"}),
            ("POST /v1/drain", {"draining": True}),
            ("POST /v1/stop", {}),
            ("POST /v1/restart", {}),
        ):
            self.answer(asked, answer)
        self.server.answers["GET /v1/events"] = streaming(b'event: a\ndata: {"msg": "b"}\n\n')
        self.server.answers["GET /v1/vms/7/console"] = answering("boot")

    def lines(self) -> list[list[str]]:
        """Each command with something to print that needs no VM, and the program's own help."""
        self.assertEqual(PRINTING.keys(), COMMANDS.keys())
        alone = [[name, *words] for name, words in PRINTING.items() if name != "run"]
        return [*alone, ["--help"]]

    def run_(self, words: list[str], redirection: str) -> tuple[int, str, str]:
        variables = environment(CCPROXY_ADMIN_SOCKET=self.path, CCPROXY_VM_RUN=self.runFolder)
        ran = runRedirected(words, redirection, variables)
        return ran.returncode, ran.stdout.decode(), ran.stderr.decode()

    def test_notWritten(self) -> None:
        """A full and a closed stdout are an error of one line, which names the reason."""
        for words in self.lines():
            for how, why in ((">/dev/full", "No space left"), (">&-", "Bad file descriptor")):
                status, _, err = self.run_(words, how)
                self.assertIn(status, (1, 125), (words, err))
                self.assertRegex(err, f"^ccproxyctl[a-z -]*: .*{why}.*\n$", words)

    def test_noReader(self) -> None:
        """A stdout whose reader has left ends a command with the status of SIGPIPE, and quietly."""
        for words in self.lines():
            reading, writing = os.pipe()
            os.close(reading)
            process = self.spawn(*words, stdout=writing, env={"CCPROXY_VM_RUN": self.runFolder})
            os.close(writing)
            err = process.communicate(timeout=TIMEOUT)[1]
            self.assertEqual((process.returncode, err), (141, b""), words)

    def test_otherStreams(self) -> None:
        """A closed stdin, and a stderr that cannot be written, change nothing."""
        for words in self.lines():
            for how in ("<&-", "2>&-", "2>/dev/full"):
                status, out, err = self.run_(words, how)
                self.assertEqual((status, bool(out), err), (0, True, ""), (words, how))

    def test_errorNotWritten(self) -> None:
        """Nor does a stderr that cannot be written change an error, or go elsewhere."""
        self.answer("GET /v1/clients", [])
        for words, wanted in (
            (["clients"], 0),
            (["console", "other"], 5),
            (["nosuch"], 2),
            (["run"], 2),
            (["run", "-u", "/nonexistent", "true"], 125),
            (["vm", "stop", "other"], 125),
            (["check-config", "/nonexistent"], 1),
        ):
            for how in ("2>&-", "2>/dev/full"):
                status, out, _ = self.run_(words, how)
                self.assertEqual((status, out), (wanted, ""), (words, how))


class ProcessOutputTests(EmbeddedTestCase):
    """The output of a process."""

    def test_notWritten(self) -> None:
        """It is lost, which is an error of ccproxyctl unless the process has failed itself."""
        for how, why in ((">/dev/full", b"No space left"), (">&-", b"Bad file descriptor")):
            for command, status in (("echo hello", 125), ("echo hello; exit 3", 3)):
                words = ["run", "--", "sh", "-c", command]
                ran = runRedirected(words, how, self.environment)
                self.assertEqual(ran.returncode, status, ran.stderr)
                self.assertRegex(ran.stderr, b"^ccproxyctl: the process's output .*%b.*\n$" % why)

    def test_otherStreams(self) -> None:
        """A closed stdin is an empty one, and what is not written to stderr is not missing."""
        for how in ("<&-", "2>&-", "2>/dev/full"):
            words = ["run", "--", "sh", "-c", "cat; echo hello"]
            ran = runRedirected(words, how, self.environment)
            self.assertEqual((ran.returncode, ran.stdout, ran.stderr), (0, b"hello\n", b""))
