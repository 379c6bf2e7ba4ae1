"""
Telling the service manager how the daemon is, and giving it descriptors to keep: sd_notify.

systemd names a datagram socket in C{NOTIFY_SOCKET}. It may be busy, and the reactor never waits for
it: what the manager does not take at once waits, within bounds, until the manager takes it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence

from twisted.logger import Logger

from ..core.context import Clock, Wait, cancel

#: The most descriptors in one datagram. A manager that is offered descriptors again needs room for
#: both, so this is less than the kernel allows (253, SCM_MAX_FD).
MOST_DESCRIPTORS = 32
#: Texts that may wait until the manager takes them. The last word counts: the oldest are dropped.
MOST_WAITING = 64
#: Characters of a status.
LONGEST_STATUS = 500
#: Seconds between two tries to send: while the manager takes something, while it takes nothing, and
#: while its socket is gone.
BUSY_INTERVAL, RETRY_INTERVAL, GONE_INTERVAL = 0.002, 0.05, 1.0
#: Seconds in which the manager has taken nothing, after which that is logged.
PATIENCE = 30.0

_BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)


class Notifier:
    """
    Sends to the service manager; without one, everything here does nothing.

    @ivar watchdog: seconds within which the manager wants to hear from the daemon again and again,
        or L{None}.
    @ivar clock: what tells the time, and calls later.
    @ivar whenRoom: sends what else there is to send, with L{offer}, and returns whether all of it
        is sent. Called when the manager may take something.
    """

    _log = Logger()

    def __init__(self, environment: MutableMapping[str, str], clock: Clock) -> None:
        """
        @param environment: that of the process. What is meant for the daemon alone, and not for
            processes that it starts, is removed from it.
        @param clock: what tells the time, and calls later.
        """
        names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        address, microseconds, pid = (environment.pop(name, "") for name in names)
        self.watchdog = _watchdog(microseconds, pid)
        self.clock = clock
        self.whenRoom: Callable[[], bool] = lambda: True
        self._waiting: deque[str] = deque(maxlen=MOST_WAITING)
        self._retry: Wait | None = None
        self._takes = self._failing = False
        self._busySince: float | None = None
        self._socket: socket.socket | None = None
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address and address[0] not in "@/":
            self._log.warn(
                "NOTIFY_SOCKET={address} is no socket that can be used: "
                "the service manager is not told anything",
                event="notify-failed",
                address=address,
            )
        elif address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @property
    def present(self) -> bool:
        """Whether there is a manager to tell."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """
        The daemon serves, from now on or again after L{reloading}.

        @param status: what C{systemctl status} shows: one line, which is cut if it is long.
        """
        self.send(f"READY=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """It reads its configuration again. L{ready} must follow."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """It is about to end."""
        self.send("STOPPING=1\nSTATUS=stopping")

    def alive(self, status: str) -> None:
        """
        For the watchdog: the loop turns.

        @param status: see L{ready}.
        """
        if not self._waiting:  # what waits says as much
            self.send(f"WATCHDOG=1\nSTATUS={_line(status)}")

    def send(self, text: str) -> None:
        """
        Send a datagram, now or as soon as the manager takes it. Never blocks.

        @param text: lines of C{NAME=value}.
        """
        if self._socket is not None:
            self._waiting.append(text)
            self.flush()

    def flush(self) -> bool:
        """
        Send what waits, as far as the manager takes it.

        @return: whether nothing waits any more.
        """
        while self._waiting:
            if not self.offer(self._waiting[0]):
                return False
            self._waiting.popleft()
        return self.whenRoom()

    def offer(self, text: str, descriptors: Sequence[int] = ()) -> bool:
        """
        Send a datagram now. If the manager does not take it, L{whenRoom} is called again later.

        @param text: lines of C{NAME=value}.
        @param descriptors: at most L{MOST_DESCRIPTORS}, all open.
        @return: whether the manager has taken it.
        """
        if self._socket is None:
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
        try:
            # An address for each, since the manager may make its socket anew.
            self._socket.sendmsg(
                [text.encode()], rights if descriptors else [], 0, self._address
            )
        except OSError as error:
            if error.errno in _BUSY:
                self._busy()
            else:
                self._failed(error.strerror)
                self._again(GONE_INTERVAL)
            return False
        self._takes, self._failing, self._busySince = True, False, None
        return True

    def close(self) -> None:
        """Tell the manager nothing any more. What still waits is tried once, and dropped."""
        if self._socket is not None:
            self.flush()
            self._socket.close()
            self._socket = None
        cancel(self._retry)
        self._waiting.clear()

    def _busy(self) -> None:
        now = self.clock.seconds()
        if self._busySince is None:
            self._busySince = now
        elif now >= self._busySince + PATIENCE:
            self._failed(f"it has taken nothing for {PATIENCE:g} s; what is to be told waits")
        self._again(BUSY_INTERVAL if self._takes else RETRY_INTERVAL)
        self._takes = False

    def _again(self, interval: float) -> None:
        if self._retry is None:
            self._retry = self.clock.callLater(interval, self._tryAgain)

    def _tryAgain(self) -> None:
        self._retry = None
        self.flush()

    def _failed(self, reason: str | None) -> None:
        """Say it once, until something goes through again."""
        if not self._failing:
            self._failing = True
            self._log.warn(
                "the service manager cannot be told anything: {reason}",
                event="notify-failed",
                reason=reason,
            )


def _watchdog(microseconds: str, pid: str) -> float | None:
    if pid not in ("", str(os.getpid())) or not microseconds.isdecimal():
        return None
    return int(microseconds) / 1e6 or None


def _line(text: str) -> str:
    return " ".join(text.splitlines())[:LONGEST_STATUS]
