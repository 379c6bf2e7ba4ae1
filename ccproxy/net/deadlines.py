"""
Deadlines that are missed only after all input that came in time has been read.

A reactor calls what is due before it polls its descriptors. If the process was held up (stopped,
swapped out or busy), a deadline would be judged while the input that meets it still waits in a
socket, or in the queue of a listening one. Here a call that falls due first lets the reactor go
round: until its poller finds nothing more, and at most for the rounds in which everything that
waited at the beginning has had its turn, so that a flood of input does not put a deadline off for
ever.

Intervals, such as the beats of a watchdog, belong to the reactor itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

#: Rounds of the reactor for each deadline. One accepts a connection. The others read what a socket
#: holds (208 KiB by default), and its end, with the 64 KiB that Twisted reads at a time.
MIN_ROUNDS = 8
#: Cancelled calls that may stay in the queue before it is cleared of them.
_MAX_CANCELLED = 50


def looks(deadline: float) -> Iterator[float]:
    """
    Yield the seconds left until a deadline, and 0 once it has passed. A loop over them, in a
    process without a reactor, looks once more for input that came in time.

    @param deadline: in seconds of the monotonic clock.
    """
    left = 1.0
    while left > 0:
        left = max(0.0, deadline - time.monotonic())
        yield left


class Rounds(Protocol):
    """A poller's report on its part of a reactor's round."""

    def quiet(self) -> bool:
        """Return whether there was nothing to do since the last call."""

    def maxRounds(self) -> int:
        """Return after how many rounds everything that waits now has had its turn."""


@implementer(IReactorTime)
class Deadlines:
    """
    Calls functions later, like a reactor, but not before all earlier input has been read.
    """

    _log = Logger()

    def __init__(self, reactor: Any, poller: Rounds | None = None) -> None:
        """
        @param reactor: an L{IReactorTime}, which polls between two rounds of calls.
        @param poller: reads input beside the reactor.
        """
        self._reactor = reactor
        self._poller = poller
        self._calls: list[DelayedCall] = []  # a heap
        self._cancelled = 0
        #: The reactor's call for the first of them, and the time for which it was made.
        self._timer: IDelayedCall | None = None
        self._timerFor = 0.0
        #: While input is read: when the calls were due that wait for that, and how many rounds it
        #: has taken and may take.
        self._due: float | None = None
        self._rounds = self._maxRounds = 0

    def seconds(self) -> float:
        """See L{IReactorTime.seconds}."""
        now: float = self._reactor.seconds()
        return now

    def callLater(
        self, delay: float, callable: Callable[..., Any], *args: object, **kw: object
    ) -> DelayedCall:
        """See L{IReactorTime.callLater}."""
        call = DelayedCall(
            self.seconds() + delay, callable, args, kw, self._cancel, self._reset, self.seconds
        )
        if self._cancelled > _MAX_CANCELLED and self._cancelled > len(self._calls) // 2:
            self._calls = [each for each in self._calls if not each.cancelled]
            heapify(self._calls)
            self._cancelled = 0
        heappush(self._calls, call)
        self._arm()
        return call

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """See L{IReactorTime.getDelayedCalls}."""
        return [call for call in self._calls if not call.cancelled]

    def isTimer(self, call: object) -> bool:
        """Return whether a call of the reactor's is only there for the first of these."""
        return call is self._timer

    def _cancel(self, call: DelayedCall) -> None:
        self._cancelled += 1
        if self._cancelled == len(self._calls):
            self._calls.clear()
            self._cancelled = 0
            self._disarm()

    def _reset(self, call: DelayedCall) -> None:
        heapify(self._calls)
        self._arm()

    def _arm(self) -> None:
        """Have the reactor call when the first is due."""
        if self._due is not None or not self._calls:
            return
        first = self._calls[0].time
        if self._timer is None or first < self._timerFor:
            self._disarm()
            self._timerFor = first
            delay = max(0.0, first - self.seconds())
            self._timer = self._reactor.callLater(delay, self._begin)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _begin(self) -> None:
        """Some may be due: read first."""
        self._timer = None
        now = self.seconds()
        if self._calls and self._calls[0].time <= now:
            self._due, self._rounds = now, 0
            self._maxRounds = MIN_ROUNDS + (self._poller.maxRounds() if self._poller else 0)
            self._reactor.callLater(0, self._round)
        else:
            self._arm()

    def _round(self) -> None:
        """The reactor has been round once more."""
        self._rounds += 1
        quiet = self._poller is None or self._poller.quiet()
        if self._rounds < (MIN_ROUNDS if quiet else self._maxRounds):
            self._reactor.callLater(0, self._round)
        else:
            self._call()

    def _call(self) -> None:
        """Call what was due before the input was read, and is not cancelled since."""
        try:
            while self._calls and self._due is not None and self._calls[0].time <= self._due:
                call = heappop(self._calls)
                if call.cancelled:
                    self._cancelled -= 1
                elif call.delayed_time > 0.0:
                    call.activate_delay()
                    heappush(self._calls, call)
                else:
                    call.called = 1
                    try:
                        call.func(*call.args, **call.kw)
                    except Exception:
                        self._log.failure("a call at a deadline has failed")
        finally:
            self._due = None
            self._arm()
