"""
Tests for L{ccproxy.admin.events}.
"""

from __future__ import annotations

import ast
import json
import threading
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel
from twisted.trial.unittest import SynchronousTestCase

import ccproxy

from ...admin.calls import Refused
from ...admin.events import (
    ALIVE_INTERVAL,
    MAX_BYTES,
    MAX_EVENTS,
    MAX_LISTENERS,
    NAMES,
    Events,
    Listener,
)


class ThreadClock(Clock):
    """A clock that takes calls from other threads."""

    fromThreads = 0

    def callFromThread(self, action: Any, *args: object) -> None:
        """Call it in the thread that turns the clock."""
        self.fromThreads += 1
        self.callLater(0, action, *args)


class Outflow:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.finished = False

    def write(self, data: bytes) -> None:
        """See L{ccproxy.admin.calls.Outflow.write}."""
        assert not self.finished
        self.written += data

    def finish(self) -> None:
        """See L{ccproxy.admin.calls.Outflow.finish}."""
        self.finished = True

    def events(self) -> list[tuple[str, Any]]:
        """The events in it."""
        records = bytes(self.written).decode().split("\n\n")
        assert records.pop() == "", "a record is not whole"
        found = []
        for record in records:
            lines = dict(line.split(": ", 1) for line in record.split("\n"))
            if "event" in lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found


def _eventsOf(call: ast.Call) -> set[str]:
    """The names that a call may give to an event of the log."""
    return {
        part.value
        for keyword in call.keywords
        if keyword.arg == "event"
        for part in ast.walk(keyword.value)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }


class EventTests(SynchronousTestCase):
    """
    What is logged is counted, and told to those who listen.
    """

    def setUp(self) -> None:
        self.clock = ThreadClock()
        self.events = Events(self.clock)
        self.log = Logger(namespace="ccproxy.core", observer=self.events)

    def listen(self, names: str = "", vm: str = "") -> tuple[Listener, Outflow]:
        """A listener."""
        listener, outflow = self.events.listen(names, vm), Outflow()
        listener.begin(outflow)
        return listener, outflow

    def told(self, outflow: Outflow) -> list[str]:
        """The names of the events that a listener was told."""
        self.clock.advance(0)
        return [name for name, _ in outflow.events()]

    def test_event(self) -> None:
        """An event has its name, time, level and text, and all its fields as they are."""
        _, outflow = self.listen()
        self.log.info("VM {vm} is {what}", event="vm-x", vm="a", what="here", serial=3, none=None)
        self.assertEqual(bytes(outflow.written), b": listening\n\n", "who logs is interrupted")
        self.clock.advance(0)
        ((name, data),) = outflow.events()
        self.assertRegex(data.pop("time"), r"^\d{4}-\d\d-\d\dT.*Z$")
        self.assertEqual(name, "vm-x")
        fields = {"event": "vm-x", "level": "info", "msg": "VM a is here"}
        self.assertEqual(data, {**fields, "vm": "a", "what": "here", "serial": 3})

    def test_counts(self) -> None:
        """Events are counted whether anybody listens or not; steps and what others say are none."""
        self.log.info("x", event="vm-lost")
        self.log.debug("x", event="step")
        self.log.debug("x", event="backpressure-on")
        self.log.info("no event")
        for foreign in ("console", "log-entry", "dump-vm"):
            self.log.info("x", event=foreign)
        self.assertEqual(+self.events.counts, {"vm-lost": 1, "backpressure-on": 1})

    def test_debug(self) -> None:
        """Of level debug, only backpressure is told."""
        _, outflow = self.listen()
        for name in ("step", "backpressure-on", "backpressure-off"):
            self.log.debug("x", event=name)
        self.assertEqual(self.told(outflow), ["backpressure-on", "backpressure-off"])

    def test_wanted(self) -> None:
        """A listener is told what it wants."""
        self.events.counts.update({"a": 1, "c": 1})
        _, some = self.listen(names="a,c")
        _, ofVM = self.listen(vm="x")
        for name, vm in (("a", "x"), ("b", "x"), ("c", None)):
            self.log.info("-", event=name, vm=vm)
        self.assertEqual(self.told(some), ["a", "c"])
        self.assertEqual(self.told(ofVM), ["a", "b"])

    def test_unknown(self) -> None:
        """A listener for an unknown event is refused with the list of known events."""
        refusal = self.assertRaises(Refused, self.events.listen, "vm-lost,nosuch")
        self.assertEqual(refusal.status, 400)
        self.assertRegex(str(refusal), "^no event is called 'nosuch'; there are: .* vm-lost, ")
        # A step of level debug is never told.
        self.assertRaises(Refused, self.events.listen, "client-connected")
        self.assertEqual(self.events.listeners, set())

    def test_names(self) -> None:
        """The names are those of the events in our sources: a new event is added to both."""
        names: set[str] = set()
        steps: set[str] = set()
        folder = Path(ccproxy.__file__).parent
        for path in folder.rglob("*.py"):
            if folder / "test" not in path.parents:
                for call in ast.walk(ast.parse(path.read_text())):
                    if isinstance(call, ast.Call):
                        debug = isinstance(call.func, ast.Attribute) and call.func.attr == "debug"
                        (steps if debug else names).update(_eventsOf(call))
        told = {"backpressure-on", "backpressure-off", "stopping"}
        known = names - {"log-entry", "dump-"} | (steps & told)
        self.assertEqual((known - NAMES, NAMES - known), (set(), set()))

    def test_hostile(self) -> None:
        """Nothing that a guest or a client says can forge an event, or show a token."""
        _, outflow = self.listen()
        token = "T" * 43 + "="
        self.log.info("{why}", event="a", why=f"\n\nevent: b\ndata: {{}}\n\n\ud800 {token}")
        self.log.emit(LogLevel.warn, "{x.y}", event="c", x=object())
        self.assertEqual(self.told(outflow), ["a", "c"])
        self.assertNotIn(token, bytes(outflow.written).decode())

    def test_slow(self) -> None:
        """What happens while a listener does not read waits for it."""
        listener, outflow = self.listen()
        listener.pause()
        self.log.info("x", event="a")
        self.assertEqual(self.told(outflow), [])
        listener.resume()
        self.assertEqual(self.told(outflow), ["a"])

    def test_tooSlow(self) -> None:
        """When too much waits, by number or by size, the listener is told and cut off."""
        for count, size in ((MAX_EVENTS + 1, 1), (MAX_BYTES // 8000 + 1, 8000)):
            listener, outflow = self.listen()
            other = self.listen()[1]
            listener.pause()
            for _ in range(count):
                self.log.info("x", event="a", text="y" * size)
                self.clock.advance(0)
            ((name, data),) = outflow.events()
            self.assertEqual((name, outflow.finished), ("cut-off", True))
            self.assertEqual(data["missed"], count)
            listener.gone()
            self.log.info("x", event="a")
            self.assertEqual(len(self.told(other)), count + 1)

    def test_tooMany(self) -> None:
        """There are only so many listeners; one that leaves makes room."""
        first, _ = self.listen()
        for _ in range(MAX_LISTENERS - 1):
            self.listen()
        self.assertRaises(Refused, self.events.listen)
        first.gone()
        self.listen()

    def test_alive(self) -> None:
        """A sign of life comes now and then, unless the peer does not read."""
        listener, outflow = self.listen()
        self.clock.advance(ALIVE_INTERVAL)
        self.clock.advance(0)
        self.assertEqual(outflow.written.count(b": alive\n\n"), 1)
        listener.pause()
        for _ in range(MAX_EVENTS * 2):
            self.clock.advance(ALIVE_INTERVAL)
        self.assertFalse(outflow.finished)

    def test_gone(self) -> None:
        """Nothing is left of a listener that has gone."""
        listener, _ = self.listen()
        self.log.info("x", event="a")
        listener.gone()
        self.assertEqual((self.clock.getDelayedCalls(), self.events.listeners), ([], set()))

    def test_stop(self) -> None:
        """Listeners are told of the end, after what happened before."""
        self.events.start()
        _, outflow = self.listen()
        self.log.info("x", event="a")
        self.events.stop()
        self.assertEqual([name for name, _ in outflow.events()], ["a", "stopping"])
        self.assertTrue(outflow.finished)

    def test_thread(self) -> None:
        """An event of another thread is told by the reactor's."""
        _, outflow = self.listen()
        thread = threading.Thread(target=self.log.info, args=("x",), kwargs={"event": "a"})
        thread.start()
        thread.join()
        self.assertEqual(self.clock.fromThreads, 1)
        self.assertEqual(self.told(outflow), ["a"])
