"""
The monotonic clock for any reactor.

Twisted's reactors schedule timers on the wall clock. A step of that clock would make all deadlines
fall due at once, or hold up every timer for the length of the step.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.base import ReactorBase


def useMonotonicTime(reactor: Any) -> None:
    """
    Make a reactor keep time by CLOCK_MONOTONIC, timers that are scheduled already included.

    C{reactor.seconds()} counts from an arbitrary moment afterwards. It is the same moment for all
    processes of this machine, until the machine boots again.

    @param reactor: anything that keeps time. Only Twisted's own reactors are changed.
    """
    if not isinstance(reactor, ReactorBase) or reactor.seconds is time.monotonic:
        return
    scheduled = [(call, call.getTime() - reactor.seconds()) for call in reactor.getDelayedCalls()]
    anyReactor: Any = reactor
    anyReactor.seconds = time.monotonic
    for each, left in scheduled:
        call: Any = each
        call.seconds = time.monotonic
        call.reset(max(0.0, left))
