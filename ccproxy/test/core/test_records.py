"""
Tests for L{ccproxy.core.records}: attributes that say how they persist.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import attrs
import msgspec
from msgspec.msgpack import decode, encode
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.core.context import Wait
from ccproxy.core.records import (
    Count,
    derived,
    formOf,
    moment,
    part,
    read,
    reference,
    saved,
    timer,
    transient,
    write,
)
from ccproxy.core.session import Session
from ccproxy.core.snapshot import unseal

from ..memory import World


@attrs.define(eq=False)
class Inner:
    """A part of an L{Outer}."""

    budget: list[int] = transient()
    count: int = saved(0, type=Count, crash=False, init=False)

    DERIVED = (derived("doubled", int, 0, lambda inner, _: 2 * inner.count),)


@attrs.define(eq=False)
class Outer:
    """Something of each kind."""

    number: int = saved()
    other: Outer | None = reference("outers", None)
    made: float = moment(0.0)
    names: list[str] = saved(factory=list, key="called")
    inner: Inner = part()
    happened: list[str] = transient(attrs.Factory(list))
    _wait: Wait | None = timer("overdue", key="overdueIn", grace=2.0)

    def __attrs_post_init__(self) -> None:
        self.inner = Inner([])

    def overdue(self) -> None:
        """The wait is over."""
        self.happened.append("overdue")


@attrs.define(eq=False)
class NotedSession(Session):
    """A session with one more attribute."""

    note: str = saved("")


class Table:
    """
    A writer and reader with one table.

    @ivar crash: whether it writes for a crash.
    """

    def __init__(self, crash: bool = False) -> None:
        self.crash = crash
        self.clock = Clock()
        self.things: list[Any] = []

    def place(self, table: str, thing: Any) -> int | None:
        if thing is None:
            return None
        if thing not in self.things:
            self.things.append(thing)
        return self.things.index(thing)

    @property
    def now(self) -> float:
        """The time of the table's clock."""
        return self.clock.seconds()

    def key(self, connection: object) -> None:
        """There are no connections."""

    def ago(self, moment: float) -> float:
        return self.clock.seconds() - moment

    def left(self, wait: Any, grace: float = 0.0) -> Any:
        """Of a wait, or of the seconds that it had."""
        if wait is None or isinstance(wait, float):
            return None if wait is None else max(grace if self.crash else 0.0, wait)
        return wait.getTime() - self.clock.seconds()

    def thing(self, table: str, place: int | None) -> Any:
        return None if place is None else self.things[place]

    def moment(self, ago: float) -> float:
        return self.clock.seconds() - ago

    def later(self, delay: float, action: Any) -> Any:
        return self.clock.callLater(delay, action)


class RecordTests(SynchronousTestCase):
    """A class with something of each kind."""

    def test_opposite(self) -> None:
        """What is read is what was written, at another time of another clock."""
        table = Table()
        table.clock.advance(100)
        other = Outer(1)
        thing = Outer(7, other, 90.0, ["a", "b"])
        thing.inner.count = 3
        thing._wait = table.clock.callLater(5, print)
        body = encode(write(thing, table))
        self.assertEqual(
            decode(body),
            {
                "number": 7, "other": 0, "made": 10.0, "called": ["a", "b"], "count": 3,
                "doubled": 6, "overdueIn": 5.0,
            },
        )  # fmt: skip
        following = Table()
        following.things = table.things
        following.clock.advance(20)
        again = Outer(0)
        read(again, decode(body, type=formOf(Outer)), following)
        self.assertEqual((again.number, again.names, again.inner.count), (7, ["a", "b"], 3))
        self.assertEqual((again.other, again.made), (other, 10.0))
        following.clock.advance(4.9)
        self.assertEqual(again.happened, [])
        following.clock.advance(0.1)
        self.assertEqual(again.happened, ["overdue"])

    def test_crash(self) -> None:
        """For a crash what is on its way has its default, and a wait has its grace."""
        table = Table(crash=True)
        thing = Outer(7)
        thing.inner.count = 3
        thing._wait = table.clock.callLater(0.5, print)
        form = write(thing, table)
        self.assertEqual((form.count, form.overdueIn), (0, 0.5))
        again = Outer(0)
        read(again, form, table)
        table.clock.advance(1.9)
        self.assertEqual(again.happened, [])
        table.clock.advance(0.1)
        self.assertEqual(again.happened, ["overdue"])

    def test_otherVersions(self) -> None:
        """Keys of a later version are ignored, and what an earlier one lacks has its default."""
        form = decode(encode({"number": 1, "invented": [1]}), type=formOf(Outer))
        self.assertEqual((form.called, form.other, form.overdueIn), ([], None, None))

    def test_bounds(self) -> None:
        """What has another type, or is out of bounds, is refused."""
        for key, value in (("number", "x"), ("count", -1), ("overdueIn", -1.0), ("called", [1])):
            body = encode({"number": 1, key: value})
            self.assertRaises(msgspec.ValidationError, decode, body, type=formOf(Outer))
        self.assertRaises(msgspec.ValidationError, decode, encode({}), type=formOf(Outer))

    def test_undeclared(self) -> None:
        """An attribute that does not say how it persists is an error, which names it."""

        @attrs.define
        class Silent:
            number: int

        error = self.assertRaises(TypeError, formOf, Silent)
        self.assertIn("Silent.number", str(error))


class SessionTests(SynchronousTestCase):
    """One more attribute of a session."""

    def test_oneLine(self) -> None:
        """One line makes it persist, and a state without it is read."""
        agent, _, _ = World().register()
        old = NotedSession(agent.vm, 3, 0.0)
        old.note = "remember"
        form = decode(encode(write(old, Table())), type=formOf(NotedSession))
        table = Table()
        table.things = [agent.vm]
        again = NotedSession(agent.vm, 3, 0.0)
        read(again, form, table)
        self.assertEqual(again.note, "remember")
        state = files("ccproxy.test.core") / "states" / "before-redesign-planned"
        [snapshot] = decode(unseal(state.read_bytes()))
        for session in snapshot["sessions"]:
            self.assertEqual(msgspec.convert(session, formOf(NotedSession)).note, "")
