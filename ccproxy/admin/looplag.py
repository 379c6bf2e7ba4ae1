"""
By how much the daemon's loop is late.
"""

from __future__ import annotations

from collections import deque

from ..core.context import Clock, Wait, cancel

#: Seconds between two looks at the clock.
INTERVAL = 1.0
#: How many looks are remembered.
REMEMBERED = 10


class LoopLag:
    """
    By how much the loop is late: a timer that should run at once tells what every other event
    has to wait.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lags: deque[float] = deque([0.0], REMEMBERED)
        self._due = 0.0
        self._wait: Wait | None = None

    def start(self) -> None:
        """Begin to look."""
        self._due = self._clock.seconds() + INTERVAL
        self._wait = self._clock.callLater(INTERVAL, self._look)

    def stop(self) -> None:
        """Look no more."""
        cancel(self._wait)

    def _look(self) -> None:
        self._lags.append(max(0.0, self._clock.seconds() - self._due))
        self.start()

    @property
    def worst(self) -> float:
        """How late the worst of the remembered looks was, one that is overdue now included."""
        overdue = self._clock.seconds() - self._due if self._wait is not None else 0.0
        return max(0.0, overdue, *self._lags)
