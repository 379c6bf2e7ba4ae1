"""
The daemon's log: events of L{twisted.logger} become entries, which L{ccproxy.log.formats}
writes, one line for each, and L{ccproxy.log.sinks} takes to where they belong.

Clients and guests choose much of what is logged. So long texts are cut, and whatever looks like a
token is shortened, in every field of every event.

An event's fields are shown behind its message: those of L{FIELDS}, which programs read, always, and
of our own events also those that the message does not name.
"""

from __future__ import annotations

import atexit
import os
import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from ..config.settings import Settings, canonicalLevel
from ..core.session import shortToken
from .formats import RESERVED, Entry
from .rate import RateLimit
from .sinks import Sink, sinksOf
from .writer import LogWriter

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

# 32 bytes in URL-safe base64 are 43 characters and a padding, which a client may have left out or
# quoted. A longer run counts too: what stands around the token may be of the same alphabet.
_DIGITS = 43
_TOKEN = re.compile(
    rf"(?<![A-Za-z0-9_-])([A-Za-z0-9_-]{{{_DIGITS},}}+)(=|%3[Dd]|%253[Dd]|\\u003[Dd])?"
)
# Names longer than a token that hold none: hexadecimal ids, and short words in small letters
# with numbers and hexadecimal ids. Not one token in 10^9 looks so.
_NAME = re.compile(r"[0-9A-Fa-f-]+|(?:[a-z]{1,12}|[0-9a-f]+)(?:[-_](?:[a-z]{1,12}|[0-9a-f]+))+")


def hideTokens(text: str) -> str:
    """
    Shorten whatever in C{text} may be a token to its first 6 characters: with its padding, without
    it, or with a quoted one, and in whatever letter case.
    """
    return _TOKEN.sub(_hidden, text) if len(text) >= _DIGITS else text


def _hidden(match: re.Match[str]) -> str:
    run, padding = match.groups()
    if padding is None:
        return _hiddenRun(run)
    return _hiddenRun(run[:-_DIGITS]) + shortToken(run[-_DIGITS:])


def _hiddenRun(run: str) -> str:
    """Shorten what has no padding behind it."""
    long = len(run) > _DIGITS and (_NAME.fullmatch(run) is not None or len(set(run)) < 4)
    return run if long or len(run) < _DIGITS else shortToken(run)


def clean(value: object) -> str:
    """Any value as a text of bounded length that is valid Unicode and shows no token."""
    try:
        text = str(value)
    except Exception:
        text = f"({type(value).__name__} without a text)"
    text = hideTokens(text)
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
        if event.get(name) is not None and not name.startswith("log_") and name not in RESERVED
    }


def _failureIn(event: LogEvent) -> Failure | None:
    failure = event.get("log_failure") or event.get("failure")
    return failure if isinstance(failure, Failure) else None


def _failureFields(failure: Failure) -> dict[str, str]:
    """What became of a failure, and the innermost places where it did."""
    places = [
        f"{os.path.basename(frame[1])}:{frame[2]}({frame[0]})" for frame in failure.frames[-4:]
    ]
    fields = {"error": f"{type(failure.value).__name__}: {failure.getErrorMessage()}"}
    return {**fields, "at": ",".join(places)} if places else fields


def _message(event: LogEvent) -> str:
    if "log_text" in event and "failure" in event:
        # An event of twisted.python.log: its text is the traceback, which is a field of its own.
        return event.get("why") or "unhandled error"
    return formatEvent(event) or ("unhandled error" if "log_failure" in event else "")


@implementer(ILogObserver)
class DaemonLog:
    """
    Makes an entry of each event that is severe enough, and has it written to all sinks.

    An event with a true C{log_always} was asked for by a person: it is written whatever the level
    and the rate.

    @ivar whenLevelSet: told the level when it has been set.
    """

    whenLevelSet: Callable[[str], object] | None = None

    def __init__(
        self,
        settings: Settings,
        sinks: Iterable[Sink],
        later: Callable[[float, Callable[[], None]], object] = lambda delay, call: None,
    ) -> None:
        """
        @param settings: the level and the rate.
        @param sinks: where the log goes.
        @param later: calls a function after so many seconds: there is more to say about a flood
            when it is over. It is called from any thread.
        """
        self.level = settings.logLevel
        self._limit = RateLimit(settings.logRate, self._reportRefused, later)
        self._sinks = [
            (sink.render, LogWriter(sink.write, _lossReport(sink), joins=sink.joins))
            for sink in sinks
        ]

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
        if self.whenLevelSet is not None:
            self.whenLevelSet(self._level)

    @property
    def rate(self) -> int:
        """How many entries of a kind are logged per second, as C{--log-rate}; it can be set."""
        return self._limit.rate

    @rate.setter
    def rate(self, rate: int) -> None:
        self._limit.rate = rate

    @property
    def refused(self) -> int:
        """How many entries were left out because there were too many of their kind."""
        return self._limit.refused

    @property
    def lost(self) -> int:
        """How many entries the sinks have not taken."""
        return sum(writer.lost for _, writer in self._sinks)

    def __call__(self, event: LogEvent) -> None:
        """Log an event."""
        if not event.get("log_always"):
            # First what costs least: most events are not severe enough.
            if _RANKS[_LEVELS.get(event.get("log_level"), "info")] < self._rank:
                return
            if _RANKS[self._levelOf(event)] < self._rank or not self._limit.admits(_kind(event)):
                return
        level = self._levelOf(event)
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
        self._put(entry)

    def start(self) -> None:
        """Begin to write. Call this once, after the process's last fork."""
        for _, writer in self._sinks:
            writer.start()

    def flush(self, timeout: float) -> None:
        """
        Wait until all is written.

        @param timeout: for how many seconds at most, for all sinks together.
        """
        self._limit.endPeriod()
        deadline = time.monotonic() + timeout
        for _, writer in self._sinks:
            writer.flush(max(0.0, deadline - time.monotonic()))

    def flushAtExit(self) -> None:
        """Let the process end only when the log has been written, or after L{FLUSH_TIMEOUT}."""
        atexit.register(self.flush, FLUSH_TIMEOUT)

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
        details = {} if event.get("section") is not None else {"section": _section(event)}
        failure = _failureIn(event)
        if failure is not None:
            fields.update(_failureFields(failure))
            everybody = fields if self._level == "debug" else details
            everybody["traceback"] = failure.getTraceback()
        return Entry(
            event["log_time"],
            level,
            clean(_message(event)),
            {name: clean(value) for name, value in fields.items()},
            {name: clean(value) for name, value in details.items()},
        )

    def _reportRefused(self, counts: Mapping[Hashable, int]) -> None:
        for kind, count in counts.items():
            of, vm = kind if isinstance(kind, tuple) else (None, None)
            fields = {"event": "log-rate", "of": clean(of or "others"), "count": str(count)}
            if vm is not None:
                fields["vm"] = clean(vm)
            text = f"{count} log entries left out: more than {self.rate} per second of one kind"
            self._put(Entry(time.time(), "warn", text, fields))

    def _put(self, entry: Entry) -> None:
        for render, writer in self._sinks:
            writer.put(render(entry))


def _kind(event: LogEvent) -> Hashable:
    """What may be logged only so often: an event, of one VM."""
    what, vm = event.get("event") or event.get("log_format"), event.get("vm")
    return what if isinstance(what, str) else None, vm if isinstance(vm, str) else None


def _lossReport(sink: Sink) -> Callable[[int], bytes]:
    def report(count: int) -> bytes:
        return sink.render(Entry(time.time(), "warn", f"{count} log entries are missing here"))

    return report


def beginLogging(settings: Settings, reactor: Any) -> DaemonLog:
    """
    Log from now on, and until the end of the process.

    @param settings: where, what and how.
    @param reactor: what will run.
    """
    log = DaemonLog(settings, sinksOf(settings), laterOn(reactor))
    log.start()
    log.flushAtExit()
    globalLogBeginner.beginLoggingTo([log])
    return log


def laterOn(reactor: Any) -> Callable[[float, Callable[[], None]], object]:
    """A function like C{reactor.callLater}, for any thread."""
    return lambda delay, call: reactor.callFromThread(reactor.callLater, delay, call)
