"""
Time, as the core sees it: a clock that is handed in, C{twisted.internet.task.Clock} in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Wait(Protocol):
    """Something that will be called later."""

    def cancel(self) -> None:
        """Call it no more."""

    def active(self) -> bool:
        """Whether it is still to be called."""

    def getTime(self) -> float:
        """When, in seconds of the clock."""


class Clock(Protocol):
    """The part of C{IReactorTime} that the core uses."""

    def seconds(self) -> float:
        """Now, in seconds, counted from whenever."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Wait:
        """Call C{callable(*args)} in C{delay} seconds."""


def cancel(wait: Wait | None) -> None:
    """Cancel a wait, if there is one that is not over."""
    if wait is not None and wait.active():
        wait.cancel()
