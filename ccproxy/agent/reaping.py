"""
Reaping orphans, which is the duty of process 1: the kernel makes it the parent of every process
whose own parent has ended.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: Processes that this one has started and reaps elsewhere.
own: set[int] = set()


def reapOrphans() -> None:
    """Reap all children that have ended, but those that are L{own} or Twisted's."""
    process = sys.modules.get("twisted.internet.process")
    elsewhere = own.union(getattr(process, "reapProcessHandlers", ()))
    me = os.getpid()
    with suppress(FileNotFoundError):  # A container without /proc.
        children = Path(f"/proc/{me}/task/{me}/children").read_text()
        for pid in map(int, children.split()):
            if pid not in elsewhere:
                os.waitpid(pid, os.WNOHANG)


def beProcess1(later: Callable[[Callable[[], None]], object]) -> None:
    """
    If this is process 1, reap orphans from now on.

    @param later: calls a function soon, outside of the handler of a signal.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGCHLD, lambda *_: later(reapOrphans))
        later(reapOrphans)
