"""
Whether the daemon works: it listens, and its loop is not late.
"""

from __future__ import annotations

from collections.abc import Callable

from .looplag import LoopLag
from .views import Health as HealthView


class Health:
    """
    Looks whether the daemon works.

    @ivar lag: how late its loop is.
    """

    def __init__(self, lag: LoopLag, maxLag: float, listening: Callable[[], bool]) -> None:
        """
        @param maxLag: how late the loop may be, in seconds.
        @param listening: whether clients can connect.
        """
        self.lag = lag
        self._maxLag = maxLag
        self._listening = listening

    def look(self) -> HealthView:
        """How it is."""
        lag, listening = self.lag.worst, self._listening()
        return HealthView(listening and lag <= self._maxLag, listening, lag, self._maxLag)
