"""
What the log writes of an entry: a line of text, logfmt or JSON, a message of syslog, or the fields
of the journal.

Clients and guests choose much of what is logged. Whatever they say, it stays within its line and
its field: what is not printable is escaped, and values that could be taken for more are quoted.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping

import attrs

#: What the log calls the daemon.
NAME = "ccproxy"
#: The longest message of syslog, in bytes: rsyslog's own limit, unless it is configured.
LONGEST_SYSLOG = 8192

# Names that no event may set.
RESERVED = ("time", "level", "msg", "name", "pid")

#: Severities of syslog by level.
_SEVERITIES = {"debug": 7, "info": 6, "warn": 4, "error": 3}
#: Syslog's "system daemons".
_FACILITY = 3

_BARE = re.compile(r"[A-Za-z0-9._/@^+:,-]+")


@attrs.frozen
class Entry:
    """
    What is said.

    @ivar time: seconds since the epoch.
    @ivar level: C{debug}, C{info}, C{warn} or C{error}.
    @ivar message: the text of the event.
    @ivar fields: the fields that everybody is shown.
    @ivar details: those for programs.
    """

    time: float
    level: str
    message: str
    fields: Mapping[str, str] = attrs.field(factory=dict)
    details: Mapping[str, str] = attrs.field(factory=dict)


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


def _sentence(entry: Entry) -> str:
    """
    Message and fields, for people. A message with the two spaces that stand between them is quoted,
    so that no client's text looks like fields of ours.
    """
    message = (_quoted if "  " in entry.message else _escaped)(entry.message)
    return f"{message}  {_pairs(entry.fields)}" if entry.fields else message


def formatText(entry: Entry) -> str:
    """For people: time, level, message, fields."""
    return f"{_timestamp(entry.time, 3)} {entry.level:<5} {_sentence(entry)}"


def _complete(entry: Entry) -> dict[str, str]:
    """All that there is to say, for programs: the names are those that parsers know."""
    return {
        "time": _timestamp(entry.time, 9),
        "level": entry.level,
        "msg": entry.message,
        "name": NAME,
        "pid": str(os.getpid()),
        "source": "proxy",
        **entry.fields,
        **entry.details,
    }


def formatLogfmt(entry: Entry) -> str:
    """For the parsers of the historic proxy's log: C{name=value} pairs."""
    return _pairs(_complete(entry))


def formatJSON(entry: Entry) -> str:
    """For everything else: a JSON object."""
    return json.dumps({**_complete(entry), "pid": os.getpid()})


#: What an entry becomes on one line.
Format = Callable[[Entry], str]

FORMATS: dict[str, Format] = {"text": formatText, "logfmt": formatLogfmt, "json": formatJSON}


def asLine(format: Format) -> Callable[[Entry], bytes]:
    """What is written of an entry to a stream: its line."""
    return lambda entry: f"{format(entry)}\n".encode()


def asSyslog(format: Format) -> Callable[[Entry], bytes]:
    """
    What syslog is told of an entry, as C{syslog(3)} does: its line, after a header.

    @param format: how the line is written. Time and level are not said twice to people.
    """
    inner = _sentence if format is formatText else format

    def render(entry: Entry) -> bytes:
        priority = _FACILITY << 3 | _SEVERITIES[entry.level]
        when = time.strftime("%b %e %H:%M:%S", time.localtime(entry.time))
        line = f"<{priority}>{when} {NAME}[{os.getpid()}]: {inner(entry)}".encode()
        return line[:LONGEST_SYSLOG].decode("utf-8", "ignore").encode()

    return render


def asJournal(entry: Entry) -> bytes:
    """What the journal is told of an entry: its fields, in the journal's native protocol."""
    fields = {
        "MESSAGE": _sentence(entry),
        "PRIORITY": str(_SEVERITIES[entry.level]),
        "SYSLOG_FACILITY": str(_FACILITY),
        "SYSLOG_IDENTIFIER": NAME,
    }
    for name, value in {**entry.fields, **entry.details}.items():
        fields[journalName(name)] = value
    return b"".join(_journalField(name, value.encode()) for name, value in fields.items())


def journalName(name: str) -> str:
    """What a field is called in the journal: C{CCPROXY_EXIT_STATUS} for C{exitStatus}."""
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name)
    return f"{NAME}_{words}".upper()


def _journalField(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
    return b"%b=%b\n" % (name.encode(), value)
