"""
Signals that must not kill a daemon before it has handlers for them.

A command holds them back before it imports anything else, so this module imports nothing else
itself.
"""

from __future__ import annotations

import signal

#: Signals whose default would kill a process that has no handlers for them yet.
HELD = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


def hold() -> None:
    """Hold back the signals L{HELD} until L{release}: they stay pending."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def release() -> None:
    """Deliver the signals L{HELD} again. Call this once they have handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
