"""
The real daemon's log: entries of clients, consoles, and what must never be in it: P4 and P18.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest

from ccproxy import __version__
from ccproxy.log.sinks import JOURNAL
from ccproxy.test.adminhttp import UNIXConnection
from ccproxy.test.log.test_daemonlog import parseLogfmt
from ccproxy.test.processes import ProcessTestCase
from ccproxy.testing.client import BlockingClient
from ccproxy.testing.daemon import Daemon, eventually, script
from ccproxy.wire.codes import Command
from twisted import __version__ as twistedVersion


def entry(msg: object, **more: object) -> dict[str, object]:
    """The payload of a log frame."""
    return {"source": "shim", "level": "warn", "msg": msg, **more}


class EntriesTests(ProcessTestCase):
    """Log frames."""

    def test_sources(self) -> None:
        """Entries of runtimes and shims are in the log, with their source and container."""
        client = self.client()
        for source in ("runtime", "shim"):
            text = f"words-of-a-{source}"
            client.log(entry(text, source=source, containerId="container-77"))
            line = self.waitLog(text)
            self.assertIn(source, line)
            self.assertIn("container-77", line)
        client.probe()
        client.silent(0.05)

    def test_levels(self) -> None:
        """All four levels are accepted."""
        client = self.client()
        for level in ("debug", "info", "warn", "error"):
            client.log(entry(f"at-level-{level}", level=level))
            self.assertIn(level, self.waitLog(f"at-level-{level}").lower())

    def test_ofAShim(self) -> None:
        """A shim may log before and after it claims its token, and the process goes on."""
        vm = self.vm(1)
        shim = self.client()
        shim.log(entry("before the claim"))
        shim.connectShim(vm.tokens[0])
        shim.log(entry("after the claim"))
        process = vm.start(shim=shim)
        shim.log(entry("after the start"))
        self.assertSays(process)
        for text in ("before the claim", "after the claim", "after the start"):
            self.waitLog(text)

    def test_invalid(self) -> None:
        """P4: what is no entry is reported, the same wrong once; its sender stays."""
        client = self.client()
        payloads: list[object] = [
            entry("x", source="proxy"), entry("x", source="qemu"), entry(""), entry(5),
            entry("x", level="fatal"), entry("x", level="panic"), [], None,
            b"nonsense", b"\xff\xfe", b"[" * 100_000,
        ]  # fmt: skip
        for payload in payloads * 20:
            client.log(payload)
        client.probe()
        client.log(entry("a-good-one-at-last"))
        self.waitLog("a-good-one-at-last")
        reports = [line for line in self.newLog().splitlines() if "malformed log" in line]
        self.assertGreater(len(reports), 0)
        self.assertLess(len(reports), len(payloads))
        self.assertEqual(len({line.partition("malformed")[2] for line in reports}), len(reports))

    def test_forging(self) -> None:
        """P18: no entry makes a line of its own choice, by whatever line break or escape."""
        client = self.client()
        for nth, mark in enumerate(
            ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\x1b[2J")
        ):
            client.log(entry(f"first{mark}forged-{nth} end", containerId=f"c{mark}forged-{nth}"))
        client.log(entry("the-last-one"))
        self.waitLog("the-last-one")
        for line in self.newLog().splitlines():
            self.assertFalse(line.startswith("forged-"), line)
            self.assertFalse(set(line) & set("\x1b\x0b\x0c\x85\u2028\r"), line)

    def test_flood(self) -> None:
        """P18: a flood of long entries neither stops nor fills the daemon."""
        client = self.client()
        memory = self.daemon.memory()
        for _ in range(40):
            client.log(entry("x" * 200_000))
        client.probe()
        self.assertLess(self.daemon.memory() - memory, 24 << 20)


class OwnLinesTests(ProcessTestCase):
    """P18: what the daemon says of itself."""

    def test_tokens(self) -> None:
        """P18: a token is never whole in the log; its first six characters are."""
        vm = self.vm(2)
        process = vm.start()
        self.client().refused(Command.CONNECT_SHIM, {"token": process.token})
        self.client().refused(Command.CONNECT_SHIM, {"token": "Z" * 43 + "="})
        vm.client.hyperRefused(
            "newcontainer", {"id": "c", "process": {"args": ["a"]}}, ["Q" * 43 + "="]
        )
        process.exit(0)
        process.shim.untilExit()
        process.shim.command(Command.DISCONNECT_SHIM)
        process.shim.waitClosed()
        vm.client.unregisterVM(vm.id)
        self.waitLog(process.token[:6])
        time.sleep(0.1)
        for token in (*vm.tokens, "Z" * 43, "Q" * 43):
            self.assertNotIn(token, self.newLog())

    def test_who(self) -> None:
        """P18: events name the VM, the container, the command and the client's pid and uid."""
        vm = self.vm(1)
        vm.start(container="my-container")
        vm.client.hyperRefused("none-such")
        self.waitLog("none-such")
        log = self.newLog()
        self.assertIn(vm.id, log)
        self.assertIn("my-container", log)
        self.assertIn(str(os.getpid()), log)
        self.assertIn(f"uid={os.getuid()}", log)

    def test_noPayloads(self) -> None:
        """P18: what goes through the proxy is not in the log."""
        process = self.process(envs=[{"env": "PASSWORD", "value": "secret-in-the-env"}])
        process.say(b"secret-in-the-output")
        process.shim.stdin(b"secret-in-the-input")
        process.vm.agent.stdin(process.number, 10)
        process.exit(0)
        process.shim.untilExit()
        self.assertNotIn("secret-in", self.newLog())


class ConsoleTests(ProcessTestCase):
    """P18: the VM's console."""

    @contextmanager
    def console(self) -> Iterator[tuple[socket.socket, BlockingClient, str]]:
        """The hypervisor's end of a console, the client that registered its VM, and the VM's id."""
        path = os.path.join(self.daemon.directory, self.unique("con"))
        agent, client, name = self.agent(), self.client(), self.unique()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(10)
            client.registerVM(name, agent, console=path)
            connection = listener.accept()[0]
            with connection:
                connection.settimeout(10)
                yield connection, client, name
        client.hyper("ping")

    def test_lines(self) -> None:
        """Its lines are in the log of a verbose daemon, with the VM's name."""
        with self.console() as (end, _, name):
            end.sendall(b"[    0.0] Linux version 4.9\r\n[    0.1] conso")
            end.sendall(b"le-is-ready\r\n")
            self.assertIn(name, self.waitLog("Linux version 4.9"))
            self.waitLog("console-is-ready")

    def test_forging(self) -> None:
        """P18: it cannot forge a line, nor control a terminal."""
        with self.console() as (end, _, _):
            end.sendall(
                b"ok\rforged-line\x1b[31m\x00\xff\xfe\x85 \xe2\x80\xa8forged-too\n the-end\n"
            )
            self.waitLog("the-end")
            for line in self.newLog().splitlines():
                self.assertFalse(line.startswith("forged"), line)
                self.assertFalse(set(line) & set("\x1b\0\x85\u2028\r"), line)

    def test_longLine(self) -> None:
        """P9, P18: a line of 1 MB neither ends the console's log nor fills the daemon."""
        with self.console() as (end, client, _):
            memory = self.daemon.memory()
            for _ in range(10):
                end.sendall(b"x" * 100_000)
            end.sendall(b"\r\nthe-next-line\r\n")
            self.waitLog("the-next-line")
            self.assertLess(self.daemon.memory() - memory, 8 << 20)
            client.hyper("ping")

    def test_unreachable(self) -> None:
        """A console that is not there is a warning, no failure."""
        client, agent, name = self.client(), self.agent(), self.unique()
        client.registerVM(name, agent, console="/nonexistent/console")
        client.hyper("ping")
        self.waitLog("/nonexistent/console")


class StalledSinkTests(ProcessTestCase):
    """P18: a sink that stalls cannot stall the daemon."""

    def test_stalled(self) -> None:
        """P18: nobody reads the daemon's standard error, and all goes on."""
        daemon = Daemon.byTwistd("--log-level=debug")
        self.addCleanup(daemon.clear)
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        daemon.start(output=writer)
        os.close(writer)
        client = BlockingClient(daemon.path)
        self.addCleanup(client.close)
        for _ in range(2000):
            client.log(entry("x" * 500))
        client.probe()
        self.assertLess(daemon.memory(), 200 << 20)
        os.set_blocking(reader, False)
        self.assertEqual(daemon.stop(), 0)


class FullDiskTests(ProcessTestCase):
    """P18: a sink that takes only a part, or nothing."""

    def test_full(self) -> None:
        """P18: in any file, a full disk joins no lines, and all losses are counted."""
        for twistd in ((), ("--logfile=twistd.log",), ("--logfile=-",)):
            with self.subTest(twistd=twistd):
                self.checkFull(*twistd)

    def checkFull(self, *twistd: str) -> None:
        """Let the disk be full for a while; C{twistd} has these options."""
        begin = [*script("twistd"), "-n", "--pidfile=", *twistd, "ccproxy", "--log-level=warn"]
        daemon = Daemon(command=[*begin, "--log-rate=0", "--socket-path={socket}"])
        self.addCleanup(daemon.clear)
        daemon.start()
        client = BlockingClient(daemon.path)
        self.addCleanup(client.close)
        name = "twistd.log" if "--logfile=twistd.log" in twistd else "log"
        path = Path(daemon.directory) / name
        client.log(entry("entry-begin-"))
        eventually(lambda: "entry-begin-" in path.read_text(), "the first entry")
        limit = path.stat().st_size + 1000
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for nth in range(100):
            client.log(entry(f"entry-{nth}-" + "x" * (nth % 7)))
        client.probe()
        eventually(lambda: path.stat().st_size == limit and daemon.isIdle(), "a full disk")
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, infinite)
        client.log(entry("entry-last-"))
        eventually(lambda: "are missing here" in path.read_text(), "what is missing")
        lines = path.read_text().splitlines()
        self.assertLessEqual(max(line.count("entry-") for line in lines), 1)
        shown = sum(bool(re.search(r"entry-\w+-.*  .*client=\"[^\"]*\"$", line)) for line in lines)
        missing = sum(map(int, re.findall(r"(\d+) log entries are missing", "\n".join(lines))))
        self.assertEqual(shown + missing, 102)
        self.assertGreater(missing, 50)
        self.assertEqual(daemon.stop(), 0)


class FormatsTests(ProcessTestCase):
    """P18: one line per event that log parsers read."""

    def test_json(self) -> None:
        """P18: in JSON, each line is an object, whatever is logged."""
        daemon = Daemon.byTwistd("--log-level=debug", "--log-format=json")
        self.addCleanup(daemon.clear)
        daemon.start()
        client = BlockingClient(daemon.path)
        self.addCleanup(client.close)
        client.log(entry('odd "text"\nwith\u2028breaks \U0001f600 and {braces}'))
        client.probe()
        daemon.waitLog("braces")
        self.assertEqual(daemon.stop(), 0)
        lines = [json.loads(line) for line in daemon.log().split("\n") if line]
        self.assertTrue(any("{braces}" in str(line) for line in lines))


class OperatorTests(ProcessTestCase):
    """What an operator does with the log of a running daemon."""

    def start(self, *flags: str) -> Daemon:
        """A C{cc-proxy}, started."""
        daemon = Daemon(*flags)
        self.addCleanup(daemon.clear)
        return daemon.start()

    def entries(self, daemon: Daemon) -> list[dict[str, str]]:
        """The log, as the parsers of the historic daemon's log read it."""
        return [parseLogfmt(line) for line in daemon.log().splitlines()]

    def connect(self, daemon: Daemon) -> BlockingClient:
        """A client of that daemon."""
        client = BlockingClient(daemon.path)
        self.addCleanup(client.close)
        return client

    def test_firstLine(self) -> None:
        """The first line, at any level, names what runs, and what is set otherwise."""
        daemon = self.start("-log", "error")
        first = eventually(lambda: self.entries(daemon), "the first line")[0]
        for part in (f"ccproxy {__version__}", sys.version.split()[0], f"Twisted {twistedVersion}"):
            self.assertIn(part, first["msg"])
        self.assertIn(f"socket-path={daemon.path}", first["settings"])
        self.assertIn("log-level=error", first["settings"])
        self.assertEqual((first["name"], first["source"]), ("ccproxy", "proxy"))
        self.assertEqual(first["pid"], str(daemon.pid))

    def test_dump(self) -> None:
        """SIGUSR1 logs the state and what is waited for, at any level; the daemon goes on."""
        daemon = self.start()
        client = self.connect(daemon)
        client.probe()
        for nth in range(2):
            daemon.process.send_signal(signal.SIGUSR1)
            eventually(lambda: daemon.log().count("dump-end") > nth, "a dump")  # noqa: B023
            client.probe()
        events = [entry.get("event") for entry in self.entries(daemon)]
        self.assertIn("dump-client", events)
        self.assertIn("dump-wait", events)
        self.assertIn("dump-limits", events)

    def test_level(self) -> None:
        """The level can be changed while the daemon runs, and what it hides is back at once."""
        daemon = self.start()
        client = self.connect(daemon)
        connection = UNIXConnection(f"{daemon.path}.admin")
        self.addCleanup(connection.close)

        def commands() -> int:
            return [entry.get("event") for entry in self.entries(daemon)].count("command")

        for level, shown in (("warn", 0), ("debug", 1), ("warn", 1), ("debug", 2)):
            connection.request("PUT", "/v1/loglevel", json.dumps({"level": level}))
            response = connection.getresponse()
            self.assertEqual((response.status, response.read()[:9]), (200, b'{"level":'))
            client.probe()
            eventually(lambda: commands() >= shown, level)  # noqa: B023
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(commands(), shown)

    def test_noSink(self) -> None:
        """A log that has nowhere else to go goes to stderr, and says why."""
        if os.path.exists(JOURNAL):
            raise SkipTest("there is a journal here, and it would get this")
        daemon = Daemon.byTwistd("--log-to=journal")
        self.addCleanup(daemon.clear)
        daemon.start()
        self.assertIn(" warn  journal is not there", daemon.waitLog("log-sink-missing"))

    def test_rate(self) -> None:
        """A flood of entries is cut, and counted."""
        daemon = Daemon.byTwistd("--log-rate=10", "--log-format=logfmt")
        self.addCleanup(daemon.clear)
        daemon.start()
        client = self.connect(daemon)
        for nth in range(500):
            client.log(entry(f"noise {nth}"))
        client.probe()
        self.assertEqual(daemon.stop(), 0)
        entries = self.entries(daemon)
        shown = sum(entry["msg"].startswith("noise") for entry in entries)
        reports = [entry for entry in entries if entry.get("event") == "log-rate"]
        self.assertEqual({report["of"] for report in reports}, {"log-entry"})
        # 50 in a period of five seconds, of which a slow machine may see a second one.
        self.assertTrue(50 <= shown <= 100, shown)
        self.assertEqual(sum(int(report["count"]) for report in reports), 500 - shown)
        self.assertEqual(entries[-1]["event"], "log-rate")
