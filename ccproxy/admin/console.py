"""
Following a VM's console.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.console import ConsoleRing
from .calls import OCTETS, Outflow


class ConsoleFollower:
    """
    Sends what a console has said last, and what it says from now on, until the VM's channels are
    closed. A reader that is slow misses what has left the ring meanwhile. No character is cut.
    """

    type = OCTETS

    def __init__(self, ring: ConsoleRing) -> None:
        self._ring = ring
        self._position = 0
        self._outflow: Outflow | None = None
        self._paused = False
        self._leave: Callable[[], None] | None = None

    def begin(self, outflow: Outflow) -> None:
        """See L{ccproxy.admin.calls.Stream.begin}."""
        self._outflow = outflow
        self._leave = self._ring.follow(self._more)
        self._more()

    def _more(self) -> None:
        outflow = self._outflow
        if self._paused or outflow is None:
            return
        data, self._position = self._ring.wholeSince(self._position)
        if data:
            outflow.write(data)
        if self._ring.closed and not self._paused:
            self.gone()
            outflow.finish()

    def pause(self) -> None:
        """See L{ccproxy.admin.calls.Stream.pause}."""
        self._paused = True

    def resume(self) -> None:
        """See L{ccproxy.admin.calls.Stream.resume}."""
        self._paused = False
        self._more()

    def gone(self) -> None:
        """See L{ccproxy.admin.calls.Stream.gone}."""
        self._outflow = None
        if self._leave is not None:
            self._leave()
