"""
The daemon's events, counted and told to whoever listens, as server-sent events.

They are the events of the log, before any level or rate limit. A listener has a bounded queue. One
that does not read is told that it has missed some, and cut off: no listener holds up the daemon.
"""

from __future__ import annotations

from collections import Counter, deque
from datetime import UTC, datetime
from threading import get_ident
from typing import Any

import msgspec
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from ..core.context import Clock, Wait, cancel
from ..log.daemonlog import clean
from .calls import EVENTS, Outflow, Refused

#: The most listeners at a time.
MAX_LISTENERS = 32
#: The most events, and the most bytes, that wait for a listener.
MAX_EVENTS = 1024
MAX_BYTES = 256 << 10
#: Seconds between two signs of life.
ALIVE_INTERVAL = 15.0

#: What a runtime, a shim or a guest has said is no event of the daemon. Nor is what SIGUSR1 writes.
_NO_EVENTS = ("console", "log-entry")
#: Those that contrib/prometheus alerts on are counted from 0: nobody sees a new counter increase.
_ALERTED = (
    "output-dropped",
    "shim-stalled",
    "slow-answer",
    "undelivered",
    "vm-failed",
    "vm-lost",
)
#: The only events of level debug that count.
_TOLD = ("backpressure-on", "backpressure-off")
#: All events that can be told. A name that is not among them is a mistake of whoever waits for it.
NAMES = frozenset(
    (
        "admin-drop",
        "admin-failed",
        "admin-forget",
        "admin-refused",
        "admin-restart",
        "admin-socket",
        "admin-stop",
        "admin-unavailable",
        "backpressure-off",
        "backpressure-on",
        "bad-frame",
        "bad-status",
        "clients-turned-away",
        "command-failed",
        "connection-failed",
        "console-unreachable",
        "crash-loss",
        "descriptor-dropped",
        "draining",
        "dump-failed",
        "embedded-failed",
        "handed-over",
        "handover-failed",
        "ignored",
        "internal-error",
        "journal-failed",
        "journal-recovered",
        "ksm",
        "ksm-overdue",
        "ksm-unused",
        "late-answer",
        "log-level",
        "log-sink-missing",
        "metrics",
        "not-joined",
        "notify-failed",
        "output-dropped",
        "pid-file-stale",
        "pid-file-taken",
        "pod-ended",
        "pod-finished",
        "pod-joined",
        "pod-left",
        "process-exited",
        "process-started",
        "ready-ping",
        "recovered",
        "reload-failed",
        "reloaded",
        "restart-needed",
        "restarting",
        "restore-dropped",
        "resumed",
        "shim-connected",
        "shim-disconnected",
        "shim-gone",
        "shim-stalled",
        "slow-answer",
        "socket-lost",
        "socket-moved",
        "socket-replaced",
        "stale-answer",
        "started",
        "starting",
        "state-refused",
        "stop-failed",
        "stop-overdue",
        "stopped",
        "stopping",
        "store-full",
        "store-missing",
        "stray-answer",
        "stray-event",
        "too-many-clients",
        "undelivered",
        "undrained",
        "vm-failed",
        "vm-gone",
        "vm-lost",
        "vm-orphaned",
        "vm-registered",
        "vm-unregistered",
        "write-failed",
    )
)


@implementer(ILogObserver)
class Events:
    """
    Counts events, and tells them.

    @ivar counts: how often each has happened.
    @ivar listeners: who is told.
    """

    def __init__(self, reactor: Any) -> None:
        """
        To be called in the reactor's thread.
        """
        self._reactor = reactor
        self._thread = get_ident()
        self.counts: Counter[str] = Counter(dict.fromkeys(_ALERTED, 0))
        self.listeners: set[Listener] = set()

    def start(self) -> None:
        """Begin to count."""
        globalLogPublisher.addObserver(self)

    def stop(self) -> None:
        """Count no more, and leave the listeners."""
        globalLogPublisher.removeObserver(self)
        for listener in list(self.listeners):
            listener.end("stopping", "the daemon stops")

    def __call__(self, event: LogEvent) -> None:
        """Something has happened."""
        name = event.get("event")
        if not isinstance(name, str) or name in _NO_EVENTS or name.startswith("dump-"):
            return
        # Steps of level debug are not even noted unless the log wants them.
        if event["log_level"] is LogLevel.debug and name not in _TOLD:
            return
        self.counts[name] += 1
        if not self.listeners:
            return
        if get_ident() == self._thread:
            self._tell(name, event)
        else:
            self._reactor.callFromThread(self._tell, name, event)

    def _tell(self, name: str, event: LogEvent) -> None:
        data = encode(name, event)
        for listener in list(self.listeners):
            if listener.wants(name, event.get("vm")):
                listener.put(data)

    def listen(self, names: str = "", vm: str = "") -> Listener:
        """
        A new listener.

        @param names: the events that it wants, with commas between them; all if empty.
        @param vm: the name of the VM whose events it wants; of all and of none if empty.
        @raise Refused: there are too many, or a name that no event has.
        """
        wanted = frozenset(filter(None, names.split(",")))
        known = NAMES | self.counts.keys()
        for name in sorted(wanted - known):
            names = ", ".join(sorted(known))
            raise Refused(400, f"no event is called {name[:64]!r}; there are: {names}")
        if len(self.listeners) >= MAX_LISTENERS:
            raise Refused(503, f"no more than {MAX_LISTENERS} listeners at a time; end some")
        return Listener(self, self._reactor, wanted, vm)


def encode(name: str, event: LogEvent) -> bytes:
    """An event of the log as a server-sent event: its name, and its fields in JSON."""
    fields = {
        "time": datetime.fromtimestamp(event["log_time"], UTC),
        "event": name,
        "level": event["log_level"].name,
        "msg": clean(formatEvent(event)),
    }
    for field, value in event.items():
        if value is not None and not field.startswith("log_") and field not in fields:
            fields[field] = value if isinstance(value, (int, float)) else clean(value)
    return _record(name, fields)


def _record(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(fields))


class Listener:
    """
    Somebody who is told events.
    """

    type = EVENTS

    def __init__(self, events: Events, clock: Clock, names: frozenset[str], vm: str) -> None:
        self._events = events
        self._clock = clock
        self._names = names
        self._vm = vm
        self._outflow: Outflow | None = None
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._soon: Wait | None = None
        self._alive: Wait | None = None

    def wants(self, name: str, vm: object) -> bool:
        """Whether it is to be told of an event."""
        return (not self._names or name in self._names) and self._vm in ("", vm)

    def put(self, data: bytes) -> None:
        """
        Tell it, soon: whoever logs is not to be interrupted.
        """
        self._queue.append(data)
        self._size += len(data)
        if len(self._queue) > MAX_EVENTS or self._size > MAX_BYTES:
            missed = len(self._queue)
            self._queue.clear()
            self.end("cut-off", f"too slow: {missed} events are missing here", missed=missed)
        elif self._soon is None and not self._paused:
            self._soon = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._soon = None
        data = b"".join(self._queue)
        self._queue.clear()
        self._size = 0
        if data and self._outflow is not None:
            self._outflow.write(data)

    def end(self, name: str, message: str, **fields: object) -> None:
        """Tell it why nothing more will come."""
        outflow = self._outflow
        if outflow is not None:
            self._flush()
            outflow.write(_record(name, {"event": name, "msg": message, **fields}))
            outflow.finish()

    def _sayAlive(self) -> None:
        self._alive = self._clock.callLater(ALIVE_INTERVAL, self._sayAlive)
        if not self._paused:
            self.put(b": alive\n\n")

    # See L{ccproxy.admin.calls.Stream}.

    def begin(self, outflow: Outflow) -> None:
        """From now on it is told."""
        self._outflow = outflow
        self._events.listeners.add(self)
        outflow.write(b": listening\n\n")
        self._alive = self._clock.callLater(ALIVE_INTERVAL, self._sayAlive)

    def pause(self) -> None:
        """It does not read: what happens is kept for it, for a while."""
        self._paused = True

    def resume(self) -> None:
        """It reads again."""
        self._paused = False
        self._flush()

    def gone(self) -> None:
        """It has gone."""
        self._outflow = None
        self._events.listeners.discard(self)
        cancel(self._soon)
        cancel(self._alive)
