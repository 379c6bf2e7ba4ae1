"""
Tests for L{ccproxy.admin.gradual}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ...admin.calls import Reply
from ...admin.gradual import PER_TURN, LongAnswer, answer, array, members
from .test_events import Outflow


class TurnClock(Clock):
    """A clock that can be turned by single calls."""

    def turn(self) -> None:
        """Do what is to be done in the next turn, and not what that leaves to do."""
        calls, self.calls = self.calls, []
        for call in calls:
            call.called = 1
            call.func(*call.args, **call.kw)


class GradualTests(SynchronousTestCase):
    """
    A long answer leaves everybody else their turns.
    """

    def setUp(self) -> None:
        self.clock = TurnClock()
        self.outflow = Outflow()
        self.shown = 0

    def things(self, count: int) -> Iterator[int]:
        """Some things, which are counted as they are shown."""
        for number in range(count):
            self.shown += 1
            yield number

    def begin(self, count: int) -> LongAnswer:
        """Begin a long answer."""
        found = answer(array(self.things(count)), self.clock)
        assert isinstance(found, LongAnswer)
        found.begin(self.outflow)
        return found

    def test_short(self) -> None:
        """A short answer is given at once."""
        for count in (0, 1, PER_TURN - 4):
            found = answer(array(self.things(count)), self.clock)
            assert isinstance(found, Reply)
            self.assertEqual(json.loads(found.body), list(range(count)))

    def test_long(self) -> None:
        """Of a long one, so many things are shown in each turn, and the whole is right."""
        self.begin(PER_TURN * 3)
        for turn in (1, 2, 3):
            self.assertLessEqual(self.shown, turn * PER_TURN)
            self.clock.turn()
        self.clock.advance(0)
        self.assertEqual(json.loads(bytes(self.outflow.written)), list(range(PER_TURN * 3)))
        self.assertTrue(self.outflow.finished)

    def test_object(self) -> None:
        """An object has its members in order, iterators among them as arrays."""
        found = answer(members({"a": 1, "b": self.things(2), "c": self.things(0)}), self.clock)
        assert isinstance(found, Reply)
        self.assertEqual(found.body, b'{"a":1,"b":[0,1],"c":[]}\n')

    def test_slow(self) -> None:
        """Nothing more is shown while the peer does not read."""
        long = self.begin(PER_TURN * 3)
        long.pause()
        self.clock.advance(0)
        self.assertLessEqual(self.shown, PER_TURN)
        long.resume()
        long.resume()
        self.assertLessEqual(self.shown, 2 * PER_TURN)
        self.clock.advance(0)
        self.assertEqual(len(json.loads(bytes(self.outflow.written))), PER_TURN * 3)

    def test_gone(self) -> None:
        """Nothing is shown to a peer that has gone."""
        long = self.begin(PER_TURN * 3)
        long.gone()
        self.clock.advance(0)
        self.assertLessEqual(self.shown, PER_TURN)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_bug(self) -> None:
        """An error of ours ends the answer, which nobody can take for a whole one."""

        def failing() -> Iterator[int]:
            yield from self.things(PER_TURN * 2)
            raise ZeroDivisionError

        long = answer(array(failing()), self.clock)
        assert isinstance(long, LongAnswer)
        long.begin(self.outflow)
        self.assertRaises(ZeroDivisionError, self.clock.advance, 0)
        self.assertTrue(self.outflow.finished)
        self.assertRaises(ValueError, json.loads, bytes(self.outflow.written))
