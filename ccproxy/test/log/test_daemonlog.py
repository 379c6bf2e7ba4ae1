"""
Tests for L{ccproxy.log.daemonlog} and L{ccproxy.log.writer}.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import random
import re
import resource
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.python.log import LogPublisher as OldLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ...config.settings import LOG_FORMATS, Settings
from ...core.session import shortToken
from ...errors import BadPayload
from ...log.daemonlog import FIELDS, LONGEST_VALUE, DaemonLog
from ...log.formats import FORMATS, asLine
from ...log.sinks import Sink
from ...log.writer import LogWriter, PartlyWritten, descriptorWriter

TOKEN = "Ab3-_9ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ="

#: What guests and clients may try.
texts = st.text(st.characters()) | st.sampled_from(
    ["a\nb", "a\r\nb", "\u2028", "\x85", "\x1b[2J", "\udcff", '" vm=x', "a=b", "\\", "\u202e", "é"]
)
events = st.dictionaries(st.sampled_from(FIELDS), texts | st.integers() | st.none())


class Logged:
    """A log whose lines are kept, with a L{Logger} that writes to it."""

    def __init__(self, logFormat: str = "text", level: str = "debug") -> None:
        self.output: list[bytes] = []
        settings = Settings(logFormat=logFormat, logLevel=level)
        sink = Sink(asLine(FORMATS[logFormat]), self.output.append)
        self.log = DaemonLog(settings, [sink])
        self.logger = Logger("ccproxy.net.client", observer=self.log)

    def lines(self) -> list[str]:
        """What was written since the last call."""
        self.log.flush(0)
        text = b"".join(self.output).decode("utf-8")
        self.output.clear()
        if text and not text.endswith("\n"):
            raise AssertionError(f"the last line has no end: {text!r}")
        return text.split("\n")[:-1]

    def line(self) -> str:
        """The one line that was written."""
        (line,) = self.lines()
        return line


def parseLogfmt(line: str) -> dict[str, str]:
    """What a parser of logfmt reads."""
    pair = re.compile(r'([A-Za-z_]+)=("(?:[^"\\]|\\.)*"|[^" =]+)(?: |$)')
    found, position = {}, 0
    while position < len(line):
        match = pair.match(line, position)
        if match is None:
            raise AssertionError(f"not logfmt from {position} on: {line!r}")
        value = match[2]
        found[match[1]] = json.loads(value) if value.startswith('"') else value
        position = match.end()
    return found


def valid(text: str) -> str:
    """The text with what is no valid Unicode made visible."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class LineTests(SynchronousTestCase):
    """
    Every event is one line, whatever is in it.
    """

    @given(texts, events, st.sampled_from(LOG_FORMATS))
    def test_oneLine(self, message: str, fields: dict[str, Any], logFormat: str) -> None:
        """No text of an event breaks a line, moves a cursor or reverses a direction."""
        logged = Logged(logFormat)
        logged.logger.info("said: {text}", text=message, **fields)
        line = logged.line()
        self.assertEqual(line.splitlines(), [line])
        self.assertTrue(line.isprintable(), line)

    @given(texts, events)
    def test_logfmt(self, message: str, fields: dict[str, Any]) -> None:
        """A parser of logfmt gets back just what was said."""
        logged = Logged("logfmt")
        logged.logger.warn("said: {text}", text=message, **fields)
        self.assertSaid(parseLogfmt(logged.line()), message, fields)

    @given(texts, events)
    def test_json(self, message: str, fields: dict[str, Any]) -> None:
        """A parser of JSON gets back just what was said."""
        logged = Logged("json")
        logged.logger.warn("said: {text}", text=message, **fields)
        self.assertSaid(json.loads(logged.line()), message, fields)

    def assertSaid(self, found: dict[str, Any], message: str, fields: dict[str, Any]) -> None:
        """Check what was parsed against what was logged."""
        self.assertRegex(found.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$")
        self.assertEqual(int(found.pop("pid")), os.getpid())
        expected = {
            "level": "warn",
            "msg": "said: " + valid(message),
            "name": "ccproxy",
            "source": "proxy",
            "section": "net.client",
        }
        for name, value in fields.items():
            if value is not None:
                text = shortToken(str(value)) if name == "token" else str(value)
                expected[name] = valid(text)
        self.assertEqual(found, expected)

    def test_text(self) -> None:
        """The text format is for people."""
        logged = Logged()
        logged.logger.info("VM {vm} registered", vm="demo", client="pid=1 uid=0")
        self.assertRegex(
            logged.line(),
            r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info  VM demo registered"
            '  vm=demo client="pid=1 uid=0"$',
        )

    def test_fieldsInAMessage(self) -> None:
        """A text with what looks like fields is quoted."""
        logged = Logged()
        logged.logger.info("{text}", text="lost  vm=other")
        self.assertTrue(logged.line().endswith('info  "lost  vm=other"'))

    def test_longValues(self) -> None:
        """A long value is cut, and says so."""
        logged = Logged()
        logged.logger.info("{text}", text="x" * (LONGEST_VALUE + 5))
        line = logged.line()
        self.assertTrue(line.endswith("x [5 more characters]"))
        self.assertLess(len(line), LONGEST_VALUE + 100)

    def test_valueWithoutText(self) -> None:
        """A value that cannot be shown does not keep the event from being logged."""

        class Broken:
            def __str__(self) -> str:
                raise ValueError("no")

        logged = Logged()
        logged.logger.info("event", vm=Broken())
        self.assertTrue(logged.line().endswith('event  vm="(Broken without a text)"'))
        logged.logger.info("event", token=Broken())
        self.assertIn("cannot be shown", logged.line())

    def test_otherFields(self) -> None:
        """A field of ours that the message does not name is shown; those of others are not."""
        logged = Logged()
        logged.logger.info("{count} dropped", count=3, serial=7, time="x", name=None)
        self.assertTrue(logged.line().endswith("3 dropped  serial=7"))
        Logger("other", observer=logged.log).info("hello", serial=7)
        self.assertTrue(logged.line().endswith("hello"))

    def test_interface(self) -> None:
        """It is an observer of L{twisted.logger}."""
        verifyObject(ILogObserver, Logged().log)


class TokenTests(SynchronousTestCase):
    """
    No token is ever logged whole.
    """

    @given(st.sampled_from(LOG_FORMATS), st.text(st.characters(categories=("L", "Nd", "Cc"))))
    def test_anywhere(self, logFormat: str, before: str) -> None:
        """Wherever a token stands, six characters of it are shown."""
        logged = Logged(logFormat)
        logged.logger.info("token {token}: {text}", token=TOKEN, text=before + TOKEN)
        logged.logger.failure(before, Failure(ValueError(f"unknown token: {before}{TOKEN}")))
        logged.logger.info("event", client=before + TOKEN, serial=TOKEN)
        for line in logged.lines():
            self.assertNotIn(TOKEN[:7], line)
            self.assertIn("Ab3-_9", line)

    def test_mistaken(self) -> None:
        """However a client has mistaken a token, no more than six characters of it are shown."""
        chance = random.Random(1)
        for nth in range(60):
            token = base64.urlsafe_b64encode(chance.randbytes(32)).decode()
            self.checkMistaken(token, LOG_FORMATS[nth % len(LOG_FORMATS)])

    def checkMistaken(self, token: str, logFormat: str) -> None:
        """Log a token in many ways."""
        bare = token[:-1]
        mistaken = {
            bare, quote(token), quote(quote(token)), quote(token).lower(), bare + "\\u003d",
            bare.lower(), bare.upper(), token.swapcase(), f"{token}{token}", f"{bare}{bare}",
            f"{bare}{token}", f"/tokens/{bare}/", f"token={bare}&x=1", repr(f"\n{bare}"),
            json.dumps({"token": bare}), json.dumps({"token": json.dumps([token])}),
            shortToken(bare) + bare, f"{bare}\n{bare}", f"unknown token: {bare}: it is {bare}",
        }  # fmt: skip
        logged = Logged(logFormat)
        for text in mistaken:
            logged.logger.info("{text}", text=text, vm=text, serial=text, token=text)
            logged.logger.failure("{text}", Failure(BadPayload(text)), text=text)
        log = "\n".join(logged.lines()).casefold()
        for at in range(len(bare) - 6):
            self.assertNotIn(bare[at : at + 7].casefold(), log)

    def test_noToken(self) -> None:
        """Text that is no token stays: shorter text, repeated characters, long names."""
        logged = Logged()
        for text in (
            "x" * 42 + "=", "x" * 100, "-" * 80, "0123456789abcdef" * 4, "ABCDEF01" * 5,
            "run-8f14e45f-ceea-467f-a8f0-d5f0e5b2c3a1-sandbox-1", "=" * 60, "a/b." * 40,
        ):  # fmt: skip
            logged.logger.info("{text}", text=text)
            self.assertTrue(logged.line().endswith(text))


class FailureTests(SynchronousTestCase):
    """
    Failures are one line, too.
    """

    def logFailure(self, logged: Logged) -> str:
        """Log one, and return its line."""
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logged.logger.failure("it went wrong")
        return logged.line()

    def test_text(self) -> None:
        """The error and where it was raised; at debug the whole traceback."""
        line = self.logFailure(Logged(level="info"))
        self.assertRegex(
            line,
            r'error it went wrong  error="ValueError: two\\nlines"'
            r' at="test_daemonlog.py:\d+\(logFailure\)"$',
        )
        self.assertIn('traceback="Traceback (most', self.logFailure(Logged(level="debug")))

    def test_programs(self) -> None:
        """The whole traceback, for those who can unfold it."""
        for logFormat, parse in (("logfmt", parseLogfmt), ("json", json.loads)):
            found = parse(self.logFailure(Logged(logFormat, "info")))
            self.assertEqual(found["level"], "error")
            self.assertEqual(found["error"], "ValueError: two\nlines")
            self.assertIn("\nbuiltins.ValueError: two\nlines", found["traceback"])

    def test_withoutMessage(self) -> None:
        """An unhandled error is called so."""
        logged = Logged(level="info")
        logged.logger.failure("", Failure(ValueError("x")))
        self.assertIn("unhandled error  error=", logged.line())

    def test_old(self) -> None:
        """So is one of C{twisted.python.log}."""
        logged = Logged(level="info")
        publisher = LogPublisher(logged.log)
        old = OldLogPublisher(publisher, publisher)
        old.msg(failure=Failure(ValueError("x")), why="why", isError=1)
        self.assertRegex(logged.line(), 'error why  error="ValueError: x"$')


class LevelTests(SynchronousTestCase):
    """
    What is logged, and what is not.
    """

    def shown(self, level: str) -> list[str]:
        """The levels of events that are logged at a level."""
        logged = Logged(level="debug")
        logged.log.level = level
        for each in LogLevel.iterconstants():
            logged.logger.emit(each, each.name)
        return [line.split()[2] for line in logged.lines()]

    def test_levels(self) -> None:
        """A level shows itself and what is more severe, under any of its names."""
        most = ["warn", "error", "critical"]
        self.assertEqual(self.shown("debug"), ["debug", "info", *most])
        self.assertEqual(self.shown("INFO"), ["info", *most])
        self.assertEqual(self.shown("warn"), most)
        self.assertEqual(self.shown("Warning"), most)
        for name in ("error", "fatal", "PANIC"):
            self.assertEqual(self.shown(name), most[1:])

    def test_unknown(self) -> None:
        """An unknown level is refused, and the old one stays."""
        logged = Logged(level="warn")
        with self.assertRaisesRegex(ValueError, "'loud'"):
            logged.log.level = "loud"
        self.assertEqual(logged.log.level, "warn")

    def test_chatter(self) -> None:
        """What Twisted tells of its doings shows at debug; its warnings show as they are."""
        logged = Logged(level="info")
        twisted = Logger("twisted.internet.protocol", observer=logged.log)
        twisted.info("Starting factory")
        publisher = LogPublisher(logged.log)
        OldLogPublisher(publisher, publisher).msg("Main loop terminated.")
        self.assertEqual(logged.lines(), [])
        twisted.warn("careful")
        self.assertIn("warn  careful", logged.line())
        logged.log.level = "debug"
        twisted.info("Starting factory")
        self.assertIn("debug Starting factory", logged.line())


class Stalled:
    """A place to write to that takes nothing until told to."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.failing = False
        self.written = b""

    def __call__(self, data: bytes) -> None:
        self.entered.set()
        self.open.wait(10)
        if self.failing:
            raise BrokenPipeError
        self.written += data


class WriterTests(SynchronousTestCase):
    """
    Tests for L{LogWriter}.
    """

    def setUp(self) -> None:
        """Make a writer that holds 100 bytes."""
        self.sink = Stalled()
        self.addCleanup(self.sink.open.set)
        self.writer = LogWriter(self.sink, b"[%d lost]".__mod__, capacity=100)

    def stall(self) -> None:
        """Let the thread hang in the writing of a line."""
        self.writer.start()
        self.writer.put(b"first.")
        self.assertTrue(self.sink.entered.wait(10))

    def test_stalled(self) -> None:
        """A sink that takes nothing holds up nobody; what does not fit is counted."""
        self.stall()
        for _ in range(1000):
            self.writer.put(b"x" * 10)
        self.assertFalse(self.writer.flush(0.001))
        self.sink.open.set()
        self.assertTrue(self.writer.flush(10))
        self.assertEqual(self.sink.written, b"first." + b"x" * 100 + b"[990 lost]")

    def test_oneGap(self) -> None:
        """After a loss nothing is taken until half the queue is free; the gap is in its place."""
        self.writer.put(b"a" * 60)
        self.writer.put(b"b" * 60)
        self.writer.put(b"c" * 10)
        self.sink.open.set()
        self.writer.flush(0)
        self.writer.put(b"d")
        self.writer.flush(0)
        self.assertEqual(self.sink.written, b"a" * 60 + b"[2 lost]" + b"d")

    def test_failing(self) -> None:
        """What cannot be written is counted, and reported when something can."""
        self.sink.open.set()
        self.sink.failing = True
        for line in (b"a", b"b", b"c"):
            self.writer.put(line)
            self.writer.flush(0)
        self.sink.failing = False
        self.writer.put(b"d")
        self.writer.flush(0)
        self.assertEqual(self.sink.written, b"[3 lost]d")
        self.assertEqual(self.writer.lost, 3)

    @given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 200))
    def test_partlyWritten(self, sizes: list[int], room: int) -> None:
        """Of lines that are written together, those that are not written whole are counted."""
        written = bytearray()

        def write(data: bytes) -> None:
            written.extend(data[:room])
            if len(data) > room:
                raise PartlyWritten(OSError(errno.ENOSPC, "full"), room)

        writer = LogWriter(write, b"[%d lost]\n".__mod__)
        for size in sizes:
            writer.put(b"x" * (size - 1) + b"\n")
        writer.flush(0)
        self.assertEqual(written.count(b"\n") + writer.lost, len(sizes))

    def test_otherErrors(self) -> None:
        """An exception of any kind costs what was to be written, and not the thread."""
        taken: list[bytes] = []

        def write(data: bytes) -> None:
            if data == b"bad":
                raise ValueError("I/O operation on closed file")
            taken.append(data)

        writer = LogWriter(write, b"[%d lost]".__mod__, joins=False)
        writer.start()
        for line in (b"one", b"bad", b"two"):
            writer.put(line)
        self.assertTrue(writer.flush(30))
        self.assertEqual(taken, [b"one", b"two", b"[1 lost]"])

    def test_batches(self) -> None:
        """Short lines are written together, though never more than a pipe takes as a whole."""
        sizes: list[int] = []
        writer = LogWriter(lambda data: sizes.append(len(data)), b"%d".__mod__)
        for size in (2000, 2000, 96, 1, 5000, 10):
            writer.put(b"x" * size)
        writer.flush(0)
        self.assertEqual(sizes, [4096, 1, 5000, 10])

    def test_reentrant(self) -> None:
        """A garbage collection may log while a line is appended."""
        with self.writer._changed:
            self.writer.put(b"x")
        self.sink.open.set()
        self.writer.flush(0)
        self.assertEqual(self.sink.written, b"x")


class DescriptorTests(SynchronousTestCase):
    """
    Tests for L{descriptorWriter}.
    """

    def setUp(self) -> None:
        """Make a pipe."""
        self.reading, self.writing = os.pipe()
        self.addCleanup(os.close, self.reading)

    def test_nonBlocking(self) -> None:
        """A descriptor that somebody else made non-blocking is written to all the same."""
        os.set_blocking(self.writing, False)
        data = os.urandom(300_000)

        def write() -> None:
            descriptorWriter(self.writing)(data)
            os.close(self.writing)

        thread = threading.Thread(target=write)
        thread.start()
        read = b""
        while part := os.read(self.reading, 65536):
            read += part
        thread.join()
        self.assertEqual(read, data)

    def test_cut(self) -> None:
        """A disk that got full in the middle of a line makes no line of two."""
        path = self.mktemp()
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.addCleanup(os.close, file)
        write = descriptorWriter(file)
        write(b"first\n")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            self.assertRaises(OSError, write, b"second\n")
            self.assertRaises(OSError, write, b"third\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        write(b"fourth\n")
        write(b"fifth\n")
        self.assertEqual(Path(path).read_bytes(), b"first\nseco\nfourth\nfifth\n")

    def test_broken(self) -> None:
        """The reader's end is an error for L{LogWriter}, and leaves the mode alone."""
        reading, writing = os.pipe()
        os.close(reading)
        self.assertRaises(OSError, descriptorWriter(writing), b"x")
        self.assertTrue(os.get_blocking(writing))
        os.close(writing)
        os.close(self.writing)
