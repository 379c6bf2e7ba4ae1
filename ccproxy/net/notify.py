"""
Telling the service manager how the daemon is, and giving it descriptors to keep: sd_notify.

systemd names a datagram socket in C{NOTIFY_SOCKET}. It may be busy, and the reactor never waits for
it: what it does not take at once is queued, within bounds, and tried again for a while.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from array import array
from collections import deque
from collections.abc import MutableMapping, Sequence
from contextlib import suppress

import attrs
from twisted.logger import Logger

from ..core.clock import Clock, Wait, cancel

#: The most descriptors that one datagram carries (SCM_MAX_FD).
MOST_DESCRIPTORS = 253
#: Datagrams that may wait until the manager takes them: some for each VM that comes at once.
MOST_WAITING = 16384
#: Characters of a status.
LONGEST_STATUS = 500
#: Seconds between two tries to send what it has not taken: while it takes some, and otherwise.
BUSY_INTERVAL, RETRY_INTERVAL = 0.002, 0.05
#: Seconds in which the manager has taken nothing, after which a datagram is dropped.
PATIENCE = 30.0

_BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)


@attrs.frozen
class _Message:
    text: bytes
    descriptors: Sequence[int]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Notifier:
    """
    Sends to the service manager; without one, everything here does nothing.

    @ivar watchdog: seconds within which the manager wants to hear from the daemon again and again,
        or L{None}.
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
        self._clock = clock
        self._waiting: deque[_Message] = deque()
        self._retry: Wait | None = None
        self._takenAt = 0.0
        self._failing = False
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

    def ready(self, status: str) -> bool:
        """
        The daemon serves, from now on or again after L{reloading}.

        @param status: what C{systemctl status} shows: one line, which is cut if it is long.
        """
        return self.send(f"READY=1\nSTATUS={_line(status)}")

    def reloading(self) -> bool:
        """It reads its configuration again. L{ready} must follow."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self.send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> bool:
        """It is about to end."""
        return self.send("STOPPING=1\nSTATUS=stopping")

    def alive(self, status: str) -> bool:
        """
        For the watchdog: the loop turns.

        @param status: see L{ready}.
        """
        # One that waits says as much.
        return not self._waiting and self.send(f"WATCHDOG=1\nSTATUS={_line(status)}")

    def store(self, name: str, descriptors: Sequence[int]) -> bool:
        """
        Let the manager keep descriptors, and pass them to the next process of this service.

        It keeps those also of which the other end has closed: what that end has written before is
        still to be read.

        @param name: at most 255 printable ASCII characters, without a colon. Several descriptors
            may have one name.
        @param descriptors: they can be closed as soon as this returns.
        """
        return all(
            self.send(
                f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", descriptors[at : at + MOST_DESCRIPTORS]
            )
            for at in range(0, len(descriptors), MOST_DESCRIPTORS)
        )

    def discard(self, name: str) -> bool:
        """Let the manager close what it keeps under this name."""
        return self.send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def barrier(self) -> int | None:
        """
        Find out when the manager has read everything that was sent until now.

        @return: a descriptor, to be closed by the caller, that is at its end from then on; L{None}
            if there is no manager.
        """
        if self._socket is None:
            return None
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.send("BARRIER=1", [writing])
        os.close(writing)
        return reading

    def send(self, text: str, descriptors: Sequence[int] = ()) -> bool:
        """
        Send a datagram, now or as soon as the manager takes it. Never blocks.

        @param text: lines of C{NAME=value}.
        @param descriptors: at most L{MOST_DESCRIPTORS}. They can be closed as soon as this returns.
        @return: whether it is on its way.
        """
        if self._socket is None:
            return False
        message = _Message(text.encode(), descriptors)
        if not self._waiting:
            if self._sendNow(self._socket, message):
                return not self._failing
        elif len(self._waiting) >= MOST_WAITING:
            self._failed("more than it takes is waiting")
            return False
        try:
            own = tuple(_duplicates(descriptors))
        except OSError as error:
            self._failed(error.strerror)
            return False
        self._waiting.append(attrs.evolve(message, descriptors=own))
        if self._retry is None:
            self._takenAt = self._clock.seconds()
            self._retry = self._clock.callLater(RETRY_INTERVAL, self._sendWaiting)
        return True

    def flush(self) -> bool:
        """
        Try now what waits.

        @return: whether nothing waits any more.
        """
        while self._socket is not None and self._waiting:
            if not self._sendNow(self._socket, self._waiting[0]):
                return False
            self._waiting.popleft().close()
        return True

    def close(self) -> None:
        """Tell the manager nothing any more. What still waits is tried once, and dropped."""
        cancel(self._retry)
        if self._socket is not None:
            self.flush()
            self._socket.close()
            self._socket = None
        while self._waiting:
            self._waiting.popleft().close()

    def _sendWaiting(self) -> None:
        self._retry = None
        now, interval = self._clock.seconds(), RETRY_INTERVAL
        while self._socket is not None and self._waiting:
            if self._sendNow(self._socket, self._waiting[0]):
                self._takenAt, interval = now, BUSY_INTERVAL
            elif now < self._takenAt + PATIENCE:
                self._retry = self._clock.callLater(interval, self._sendWaiting)
                return
            else:
                self._failed(f"it has taken nothing for {PATIENCE:g} s")
            self._waiting.popleft().close()

    def _sendNow(self, to: socket.socket, message: _Message) -> bool:
        """Send it; whether that is settled, well or not."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", message.descriptors))]
        try:
            # An address for each, since the manager may make its socket anew.
            to.sendmsg([message.text], rights if message.descriptors else [], 0, self._address)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            self._failed(error.strerror)
        else:
            self._failing = False
        return True

    def _failed(self, reason: str | None) -> None:
        """Something is lost. It is said once, until something goes through again."""
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


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    made: list[int] = []
    try:
        for descriptor in descriptors:
            made.append(os.dup(descriptor))
    except OSError:
        for duplicate in made:
            with suppress(OSError):
                os.close(duplicate)
        raise
    return made
