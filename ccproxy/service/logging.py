"""
The daemon's log: events of L{twisted.logger} become lines, one for each, whatever is in them.

Clients and guests choose much of what is logged. So everything that is not printable is escaped,
long texts are cut, and whatever looks like a token is shortened, in every field of every event.

An event's fields are shown behind its message: those of L{FIELDS}, which programs read, always, and
of our own events also those that the message does not name.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from ..core.session import shortToken
from .logwriter import LogWriter, descriptorWriter
from .settings import Settings, canonicalLevel

#: The fields that are shown of every event that has them, in this order.
FIELDS = (
    "source",
    "section",
    "event",
    "vm",
    "client",
    "container",
    "command",
    "session",
    "token",
)

# Names in the output that no event may set.
_RESERVED = ("time", "level", "msg", "name", "pid")

#: Longer values are cut: as many characters remain.
LONGEST_VALUE = 8192

#: How many seconds the end of the process waits for the log to be written.
FLUSH_TIMEOUT = 1.0

_LEVELS = {
    LogLevel.debug: "debug",
    LogLevel.info: "info",
    LogLevel.warn: "warn",
    LogLevel.error: "error",
    LogLevel.critical: "error",
}
_RANKS = {"debug": 0, "info": 1, "warn": 2, "error": 3}

# 32 bytes in URL-safe base64, with its padding. A longer run of its alphabet counts too: what
# stands before the token may be of the same alphabet.
_TOKEN_PATTERN = r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43,}+="
_TOKEN = re.compile(_TOKEN_PATTERN)
_BARE = re.compile(r"[A-Za-z0-9._/@^+:,-]+")


@attrs.frozen
class Entry:
    """
    What a line says.

    @ivar time: seconds since the epoch.
    @ivar level: C{debug}, C{info}, C{warn} or C{error}.
    @ivar message: the text of the event.
    @ivar fields: the fields that are shown.
    """

    time: float
    level: str
    message: str
    fields: Mapping[str, str] = attrs.field(factory=dict)


def _timestamp(seconds: float, digits: int) -> str:
    """A time in RFC 3339, in UTC."""
    whole = int(seconds)
    fraction = int((seconds - whole) * 10**digits)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{fraction:0{digits}}Z"


def _escaped(text: str) -> str:
    """A text on one line, whatever is in it; not printable characters escaped as in JSON."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _quoted(text: str) -> str:
    """A value of a field: as it stands where that is unmistakable, else as a string of JSON."""
    if _BARE.fullmatch(text):
        return text
    return '"{}"'.format(_escaped(text.replace("\\", "\\\\").replace('"', '\\"')))


def _pairs(fields: Mapping[str, str]) -> str:
    return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


def formatText(entry: Entry) -> str:
    """For people: time, level, message, fields."""
    line = f"{_timestamp(entry.time, 3)} {entry.level:<5} {_escaped(entry.message)}"
    return f"{line}  {_pairs(entry.fields)}" if entry.fields else line


def _complete(entry: Entry) -> dict[str, str]:
    """All that there is to say, for programs: the names are those that parsers know."""
    return {
        "time": _timestamp(entry.time, 9),
        "level": entry.level,
        "msg": entry.message,
        "name": "ccproxy",
        "pid": str(os.getpid()),
        "source": "proxy",
        **entry.fields,
    }


def formatLogfmt(entry: Entry) -> str:
    """For the parsers of the historic proxy's log: C{name=value} pairs."""
    return _pairs(_complete(entry))


def formatJSON(entry: Entry) -> str:
    """For everything else: a JSON object."""
    return json.dumps({**_complete(entry), "pid": os.getpid()})


_FORMATS: dict[str, Callable[[Entry], str]] = {
    "text": formatText,
    "logfmt": formatLogfmt,
    "json": formatJSON,
}


def _clean(value: object) -> str:
    """Any value as a text of bounded length that is valid Unicode and shows no token."""
    try:
        text = str(value)
    except Exception:
        text = f"({type(value).__name__} without a text)"
    text = _TOKEN.sub(lambda match: match[0][:-44] + shortToken(match[0][-44:]), text)
    if len(text) > LONGEST_VALUE:
        text = f"{text[:LONGEST_VALUE]} [{len(text) - LONGEST_VALUE} more characters]"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _isOurs(event: LogEvent) -> bool:
    return _section(event) != event.get("log_namespace")


def _section(event: LogEvent) -> str:
    """The module that logs, without the name of the package where it is ours."""
    namespace = str(event.get("log_namespace"))
    return "core" if namespace == "ccproxy" else namespace.removeprefix("ccproxy.")


def _fields(event: LogEvent) -> dict[str, Any]:
    names = list(FIELDS)
    if _isOurs(event):
        text = str(event.get("log_format"))
        names += [name for name in event if f"{{{name}" not in text]
    return {
        name: event[name]
        for name in names
        if event.get(name) is not None and not name.startswith("log_") and name not in _RESERVED
    }


def _failureIn(event: LogEvent) -> Failure | None:
    failure = event.get("log_failure") or event.get("failure")
    return failure if isinstance(failure, Failure) else None


def _failureFields(failure: Failure, whole: bool) -> dict[str, str]:
    """
    What became of a failure.

    @param whole: whether the whole traceback is wanted, or just the innermost places.
    """
    fields = {"error": f"{type(failure.value).__name__}: {failure.getErrorMessage()}"}
    places = [
        f"{os.path.basename(frame[1])}:{frame[2]}({frame[0]})" for frame in failure.frames[-4:]
    ]
    if whole:
        fields["traceback"] = failure.getTraceback()
    elif places:
        fields["at"] = ",".join(places)
    return fields


def _message(event: LogEvent) -> str:
    if "log_text" in event and "failure" in event:
        # An event of twisted.python.log: its text is the traceback, which is a field of its own.
        return event.get("why") or "unhandled error"
    return formatEvent(event) or ("unhandled error" if "log_failure" in event else "")


@implementer(ILogObserver)
class DaemonLog:
    """
    Makes a line of each event that is severe enough, and has it written.

    @ivar writer: where the lines go.
    """

    def __init__(self, settings: Settings, write: Callable[[bytes], object]) -> None:
        """
        @param settings: the level and the format.
        @param write: writes bytes, all of them. It may block, and it may raise L{OSError}.
        """
        self._format = _FORMATS[settings.logFormat]
        self.level = settings.logLevel
        self.writer = LogWriter(write, self._lostLine)

    @property
    def level(self) -> str:
        """
        The least severe level that is logged. It can be set at any time, under every name that
        the option C{--log-level} takes.
        """
        return self._level

    @level.setter
    def level(self, name: str) -> None:
        self._level = canonicalLevel(name)
        self._rank = _RANKS[self._level]

    def __call__(self, event: LogEvent) -> None:
        """Log an event."""
        level = self._levelOf(event)
        if _RANKS[level] < self._rank:
            return
        try:
            entry = self._entry(event, level)
        except Exception as problem:
            # No event is worth the end of the log: whoever looks at this line finds its origin.
            entry = Entry(
                event.get("log_time", 0.0),
                "error",
                f"a log event of {event.get('log_namespace')} cannot be shown",
                {"error": type(problem).__name__},
            )
        self.writer.put(self._line(entry))

    def flushAtExit(self) -> None:
        """Let the process end only when the log has been written, or after L{FLUSH_TIMEOUT}."""
        atexit.register(self.writer.flush, FLUSH_TIMEOUT)

    def _levelOf(self, event: LogEvent) -> str:
        level = _LEVELS.get(event.get("log_level"), "info")
        if level == "info" and self._isChatter(event):
            return "debug"
        return level

    def _isChatter(self, event: LogEvent) -> bool:
        """Whether Twisted tells of its own doings, such as of the start of a factory."""
        return str(event.get("log_namespace")).startswith(("twisted.", "log_legacy"))

    def _entry(self, event: LogEvent, level: str) -> Entry:
        if event.get("token") is not None:
            event = {**event, "token": shortToken(str(event["token"]))}
        fields = _fields(event)
        if self._format is not formatText and event.get("section") is None:
            fields["section"] = _section(event)
        failure = _failureIn(event)
        if failure is not None:
            whole = self._format is not formatText or self._level == "debug"
            fields.update(_failureFields(failure, whole))
        return Entry(
            event["log_time"],
            level,
            _clean(_message(event)),
            {name: _clean(value) for name, value in fields.items()},
        )

    def _lostLine(self, count: int) -> bytes:
        return self._line(Entry(time.time(), "warn", f"{count} log entries are missing here"))

    def _line(self, entry: Entry) -> bytes:
        return f"{self._format(entry)}\n".encode()


def standardErrorWriter() -> Callable[[bytes], object]:
    """
    A function that writes to stderr, or nowhere if there was none when the process began: its
    descriptor may be a socket by now.
    """
    return descriptorWriter(2) if sys.__stderr__ is not None else len


def beginLogging(settings: Settings) -> DaemonLog:
    """
    Log to stderr from now on, and until the end of the process.

    @param settings: the level and the format.
    """
    log = DaemonLog(settings, standardErrorWriter())
    log.writer.start()
    log.flushAtExit()
    globalLogBeginner.beginLoggingTo([log])
    return log
