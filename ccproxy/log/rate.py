"""
A bound on how much of one kind is logged, so that nobody's flood hides what others have to say, or
costs the daemon its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping

#: Seconds over which the rate is an average.
PERIOD = 5.0
#: How many kinds are told apart in a period; all others together are one more.
MOST_KINDS = 4096


class RateLimit:
    """
    Counts what is logged in one period after the other.

    @ivar rate: how many entries of a kind there may be per second, on the average of a period; 0 is
        any number.
    @ivar refused: how many entries were refused so far.
    """

    def __init__(
        self,
        rate: int,
        report: Callable[[Mapping[Hashable, int]], None],
        later: Callable[[float, Callable[[], None]], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param report: told at the end of a period how many entries of each kind were refused in
            it, if there were any.
        @param later: calls a function after so many seconds.
        @param now: tells the time in seconds.
        """
        self.rate = rate
        self.refused = 0
        self._report = report
        self._later = later
        self._now = now
        self._end = 0.0
        self._counts: dict[Hashable, int] = {}
        self._refused: dict[Hashable, int] = {}

    def admits(self, kind: Hashable) -> bool:
        """Whether one more entry of that kind may be logged now."""
        if not self.rate:
            return True
        now = self._now()
        if now >= self._end:
            self.endPeriod()
            self._end = now + PERIOD
        if kind not in self._counts and len(self._counts) >= MOST_KINDS:
            kind = None
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= self.rate * PERIOD:
            return True
        if not self._refused:
            self._later(self._end - now, self.endPeriod)
        self._refused[kind] = self._refused.get(kind, 0) + 1
        self.refused += 1
        return False

    def endPeriod(self) -> None:
        """The period is over, or no more is to come in it."""
        refused, self._refused, self._counts = self._refused, {}, {}
        if refused:
            self._report(refused)
