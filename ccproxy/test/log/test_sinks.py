"""
Tests for L{ccproxy.log.sinks} and L{ccproxy.log.rate}, and for what sinks are told.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from ...config.settings import Settings
from ...log import sinks as logsinks
from ...log.daemonlog import DaemonLog
from ...log.formats import (
    LONGEST_SYSLOG,
    Entry,
    asJournal,
    asSyslog,
    formatJSON,
    formatText,
)
from ...log.rate import MOST_KINDS, PERIOD, RateLimit
from ...log.sinks import (
    FileWriter,
    JournalWriter,
    Sink,
    SocketWriter,
    SyslogWriter,
    sinksOf,
)
from ...testing.daemon import eventually

texts = st.text(st.characters(exclude_categories=["Cs"]))


def parseJournal(data: bytes) -> dict[str, str]:
    """The fields of an entry, as journald reads them."""
    found = {}
    while data:
        name, mark, rest = data.partition(b"\n")
        if b"=" in name:
            name, _, value = name.partition(b"=")
            data = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            value, end = rest[8 : 8 + size], rest[8 + size : 9 + size]
            if end != b"\n":
                raise AssertionError(f"{name!r} does not end where it says")
            data = rest[9 + size :]
        if not mark or not re.fullmatch(b"[A-Z][A-Z0-9_]{0,63}", name):
            raise AssertionError(f"no field: {name!r}")
        found[name.decode()] = value.decode()
    return found


class FormatTests(SynchronousTestCase):
    """What syslog and the journal are told."""

    @given(texts, texts)
    def test_journal(self, message: str, container: str) -> None:
        """Each field arrives as it is, whatever is in it, and nothing else does."""
        fields = {"container": container, "exitStatus": "7"}
        found = parseJournal(asJournal(Entry(1.5, "warn", message, fields, {"section": "core"})))
        told = found.pop("MESSAGE")
        self.assertEqual(
            found,
            {
                "PRIORITY": "4",
                "SYSLOG_FACILITY": "3",
                "SYSLOG_IDENTIFIER": "ccproxy",
                "CCPROXY_CONTAINER": container,
                "CCPROXY_EXIT_STATUS": "7",
                "CCPROXY_SECTION": "core",
            },
        )
        self.assertTrue(told.isprintable())
        self.assertTrue(told.endswith("  exitStatus=7") or "exitStatus=7" in told)

    @given(texts)
    def test_syslog(self, message: str) -> None:
        """One line with a header, of a length that syslog takes."""
        self.patch(os, "getpid", lambda: 77)
        told = asSyslog(formatText)(Entry(0, "error", message, {"vm": "a b"})).decode()
        self.assertRegex(told, r"^<27>[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d ccproxy\[77\]: ")
        self.assertTrue(told.isprintable())

    def test_syslogLevels(self) -> None:
        """The severity is the level's."""
        for level, priority in (("debug", 31), ("info", 30), ("warn", 28), ("error", 27)):
            told = asSyslog(formatText)(Entry(0, level, "x"))
            self.assertTrue(told.startswith(b"<%d>" % priority), told)
            self.assertTrue(told.endswith(b": x"))

    def test_syslogFormat(self) -> None:
        """Programs get all of what they can parse."""
        told = asSyslog(formatJSON)(Entry(0, "info", "x", {"vm": "v"})).partition(b": ")[2]
        self.assertEqual(json.loads(told)["vm"], "v")

    def test_syslogLength(self) -> None:
        """A long message is cut between two characters."""
        told = asSyslog(formatText)(Entry(0, "info", "é" * LONGEST_SYSLOG))
        self.assertIn(len(told), (LONGEST_SYSLOG, LONGEST_SYSLOG - 1))
        self.assertTrue(told.decode().endswith("é"))


class FileTests(SynchronousTestCase):
    """Tests for L{FileWriter}."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "log"
        self.patch(logsinks, "ROTATE_SIZE", 10)

    def files(self) -> dict[str, str]:
        """The contents of the files."""
        return {path.name: path.read_text() for path in sorted(self.folder.glob("log*"))}

    def test_rotation(self) -> None:
        """A file that is long enough becomes the first of the old ones, with the same mode."""
        (self.folder / "log.other").write_text("not ours")
        self.path.touch(0o640)
        self.path.chmod(0o640)
        write = FileWriter(str(self.path))
        for letter in "abcdefghijkl":
            write(f"{letter}{letter}{letter}\n".encode())
        self.assertEqual(
            self.files(),
            {
                "log": "jjj\nkkk\nlll\n", "log.1": "ggg\nhhh\niii\n", "log.2": "ddd\neee\nfff\n",
                "log.3": "aaa\nbbb\nccc\n", "log.other": "not ours",
            },
        )  # fmt: skip
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o640)

    def test_moved(self) -> None:
        """If the file is moved, as by logrotate, a new one is started."""
        write = FileWriter(str(self.path))
        write(b"one\n")
        self.path.rename(self.folder / "log-old")
        write(b"two\n")
        self.assertEqual(self.files(), {"log": "two\n", "log-old": "one\n"})

    def test_cannotRotate(self) -> None:
        """While no new file can be made, nothing is lost; then it is."""
        write = FileWriter(str(self.path))
        write(b"0123456789\n")
        self.path.rename(self.folder / "log.1")
        self.path.mkdir()
        write(b"more\n")
        write(b"and more\n")
        self.path.rmdir()
        write(b"new\n")
        self.assertEqual(
            self.files(), {"log": "new\n", "log.1": "0123456789\nmore\nand more\n"}
        )

    def test_unfinished(self) -> None:
        """A line that an earlier process has not finished is joined with none of ours."""
        self.path.write_text("half a li")
        FileWriter(str(self.path))(b"one\n")
        self.assertEqual(self.path.read_text(), "half a li\none\n")

    def test_noFile(self) -> None:
        """A device is a file too, and is never renamed; a file that cannot be made is an error."""
        FileWriter("/dev/null")(b"x" * 100)
        self.assertTrue(Path("/dev/null").is_char_device())
        self.assertRaises(OSError, FileWriter("/dev/full"), b"x")
        self.assertRaises(OSError, FileWriter, str(self.folder / "none" / "log"))


class SocketCase(SynchronousTestCase):
    """A folder with a socket."""

    def setUp(self) -> None:
        """Make it."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "log")

    def listen(self, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """Play the one who reads the log."""
        listening = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(listening.close)
        listening.bind(self.path)
        listening.settimeout(5)
        return listening


class WriterTests(SocketCase):
    """Tests for L{SocketWriter} and its kinds."""

    def test_comesAndGoes(self) -> None:
        """It is found when it is there, and found again after it was started anew."""
        write = SocketWriter(self.path)
        self.assertRaises(OSError, write, b"nobody")
        first = self.listen()
        write(b"one")
        self.assertEqual(first.recv(100), b"one")
        first.close()
        os.unlink(self.path)
        self.assertRaises(OSError, write, b"nobody")
        second = self.listen()
        write(b"two")
        write(b"three")
        self.assertEqual([second.recv(100), second.recv(100)], [b"two", b"three"])

    def test_startedAnew(self) -> None:
        """Nothing is lost while somebody is there."""
        write = SocketWriter(self.path)
        first = self.listen()
        write(b"one")
        first.close()
        os.unlink(self.path)
        second = self.listen()
        write(b"two")
        self.assertEqual(second.recv(100), b"two")

    def test_tooLong(self) -> None:
        """What is too long for a datagram is an error, and what follows is sent."""
        write, reader = SocketWriter(self.path), self.listen()
        self.assertRaises(OSError, write, b"x" * (4 << 20))
        write(b"short")
        self.assertEqual(reader.recv(100), b"short")

    def test_stream(self) -> None:
        """A syslog that listens for a stream gets lines."""
        listening = self.listen(socket.SOCK_STREAM)
        listening.listen()
        write = SyslogWriter(self.path)
        write(b"one")
        connection = listening.accept()[0]
        self.addCleanup(connection.close)
        write(b"two")
        connection.settimeout(5)
        self.assertEqual(connection.recv(8, socket.MSG_WAITALL), b"one\ntwo\n")

    def test_largeEntry(self) -> None:
        """The journal gets what is too long for a datagram as a file that cannot change."""
        write, reader = JournalWriter(self.path), self.listen()
        data = os.urandom(3 << 20)
        write(b"short")
        write(data)
        self.assertEqual(reader.recv(100), b"short")
        text, descriptors, _, _ = socket.recv_fds(reader, 100, 1)
        (descriptor,) = descriptors
        self.addCleanup(os.close, descriptor)
        self.assertEqual(text, b"")
        self.assertEqual(os.pread(descriptor, 4 << 20, 0), data)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        self.assertEqual(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS), seals)


class SinksTests(SocketCase):
    """Tests for L{sinksOf}, and for a log with several sinks."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(logsinks, "SYSLOG", self.path)
        self.patch(logsinks, "JOURNAL", self.path + ".journal")
        self.lines: list[bytes] = []

    def sinks(self, *names: str) -> list[str]:
        """What writes to the sinks of that name."""
        sinks = sinksOf(Settings(logTo=names), lambda: self.lines.append)
        return [type(sink.write).__name__.removesuffix("Writer") for sink in sinks]

    def test_names(self) -> None:
        """Those that are asked for."""
        self.listen()
        stderr = type(self.lines.append).__name__
        self.assertEqual(self.sinks("stderr"), [stderr])
        self.assertEqual(self.sinks("syslog", "stderr"), ["Syslog", stderr])
        self.assertEqual(self.sinks("journal", "syslog"), ["Journal", "Syslog"])

    def test_nothingThere(self) -> None:
        """A log that nobody would see goes to stderr too."""
        stderr = type(self.lines.append).__name__
        self.assertEqual(self.sinks("syslog"), ["Syslog", stderr])
        self.assertEqual(self.sinks("journal", "syslog"), ["Journal", "Syslog", stderr])
        self.assertEqual(self.sinks("syslog", "stderr"), ["Syslog", stderr])

    def test_datagrams(self) -> None:
        """Each entry is a message of its own, however many wait."""
        reader = self.listen()
        log = DaemonLog(Settings(), sinksOf(Settings(logTo="syslog")))
        logger = Logger("ccproxy", observer=log)
        for text in ("one", "two", "three"):
            logger.info(text)
        log.flush(0)
        told = [reader.recv(1000).rpartition(b": ")[2] for _ in range(3)]
        self.assertEqual(told, [b"one", b"two", b"three"])

    def test_stalled(self) -> None:
        """P18: a sink that takes nothing holds up neither the caller nor the other sinks."""
        reader = self.listen()
        sinks = sinksOf(Settings(logTo=("syslog", "stderr")), lambda: self.lines.append)
        log = DaemonLog(Settings(logRate=0), sinks)
        logger = Logger("ccproxy", observer=log)
        log.start()
        text = "x" * 5000
        for nth in range(2000):
            logger.info("{nth} {text}", nth=nth, text=text)
            if nth % 100 == 99:  # less than what may wait for a sink
                eventually(lambda: len(self.lines) == nth + 1, "all is on stderr")  # noqa: B023
        log.flush(0.2)
        self.assertGreater(log.lost, 100)
        self.assertEqual(len(self.lines), 2000)
        # It is read again: what waited comes, and how many are missing.
        told: list[bytes] = []
        while not told or b"are missing here" not in told[-1]:
            told.append(reader.recv(10_000))
            if len(told) == 50:
                logger.info("alive")
        missing = re.search(rb": (\d+) log entries are missing", told[-1])
        assert missing is not None
        self.assertEqual(int(missing[1]) + len(told) - 1, 2000 + (len(told) > 50))


class RateTests(SynchronousTestCase):
    """Tests for L{RateLimit}, and for the log with one."""

    def setUp(self) -> None:
        """A limit of two entries per second, and a log with it."""
        self.clock = Clock()
        self.reports: list[dict[Any, int]] = []
        self.limit = self.make(2)
        self.allowed = int(2 * PERIOD)

    def make(self, rate: int) -> RateLimit:
        """A limit on the test's clock."""
        return RateLimit(
            rate,
            lambda counts: self.reports.append(dict(counts)),
            self.clock.callLater,
            self.clock.seconds,
        )

    def admitted(self, kind: object, count: int) -> int:
        """How many of so many entries are admitted."""
        return sum(self.limit.admits(kind) for _ in range(count))

    def test_kinds(self) -> None:
        """Each kind has its own allowance, and those left out are reported when it is renewed."""
        self.assertEqual(self.admitted("a", 100), self.allowed)
        self.assertEqual(self.admitted("b", 5), 5)
        self.assertEqual(self.admitted("c", 11), self.allowed)
        self.assertEqual(self.reports, [])
        self.clock.advance(PERIOD)
        self.assertEqual(self.reports, [{"a": 90, "c": 1}])
        self.assertEqual(self.limit.refused, 91)
        self.assertEqual(self.admitted("a", 100), self.allowed)

    def test_quiet(self) -> None:
        """Where nothing was left out, nothing is reported, and no timer runs."""
        self.admitted("a", self.allowed)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(PERIOD)
        self.assertEqual((self.admitted("a", 100), self.reports), (self.allowed, []))

    def test_off(self) -> None:
        """Without a rate everything is admitted; it can be set at any time."""
        self.limit = self.make(0)
        self.assertEqual(self.admitted("a", 10_000), 10_000)
        self.limit.rate = 2
        self.assertEqual(self.admitted("a", 10_000), self.allowed)

    def test_manyKinds(self) -> None:
        """Kinds without number share one allowance, in bounded memory."""
        total = sum(self.limit.admits(nth) for nth in range(10 * MOST_KINDS))
        self.assertEqual(total, MOST_KINDS + self.allowed)
        self.assertLessEqual(len(self.limit._counts), MOST_KINDS + 1)

    def log(self, lines: list[bytes], **settings: Any) -> tuple[DaemonLog, Logger]:
        """A log, and what logs to it."""
        sink = Sink(asSyslog(formatText), lines.append, joins=False)
        log = DaemonLog(Settings(**settings), [sink], self.clock.callLater)
        return log, Logger("ccproxy", observer=log)

    def test_flood(self) -> None:
        """One VM's flood leaves another's entries and other events alone, and is counted."""
        lines: list[bytes] = []
        log, logger = self.log(lines, logRate=2)
        for _ in range(100):
            logger.warn("noise", event="log-entry", vm="loud")
        logger.warn("speech", event="log-entry", vm="quiet")
        logger.warn("news", event="vm-lost", vm="loud")
        self.assertEqual(log.refused, 90)
        self.clock.advance(PERIOD)
        log.flush(0)
        told = b"\n".join(lines).decode()
        self.assertEqual(told.count("noise"), 10)
        self.assertIn("speech", told)
        self.assertIn("news", told)
        self.assertRegex(
            lines[-1].decode(),
            r"90 log entries left out: .*  event=log-rate of=log-entry count=90 vm=loud$",
        )

    def test_lastWords(self) -> None:
        """At the end of the process, what was left out is told, too."""
        lines: list[bytes] = []
        log, logger = self.log(lines, logRate=2)
        for _ in range(11):
            logger.warn("noise")
        log.flush(0)
        self.assertIn(b"1 log entries left out", lines[-1])

    def test_always(self) -> None:
        """What somebody has asked for is logged whatever the level and the rate."""
        lines: list[bytes] = []
        log, logger = self.log(lines, logRate=1, logLevel="error")
        for _ in range(20):
            logger.info("state", log_always=True)
            logger.info("no state")
        log.flush(0)
        self.assertEqual(len(lines), 20)

    def test_threads(self) -> None:
        """A period may end in one thread while another one logs."""
        log, logger = self.log([], logRate=1)

        def flood() -> None:
            for _ in range(500):
                logger.info("x")

        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            log._limit.endPeriod()
        for thread in threads:
            thread.join()
        log.flush(0)
