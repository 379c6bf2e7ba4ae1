"""
One channel to the host, as the agent sees it: hosts come and go, what goes out waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..wire.messages import Message


class Host(Protocol):
    """Who is at the other end of a channel, for the time of a connection."""

    def send(self, data: bytes) -> None:
        """Take bytes for the host."""

    def pauseReading(self) -> None:
        """Hand over no more messages."""

    def resumeReading(self) -> None:
        """Hand over messages again, those already read first."""

    def hangUp(self) -> None:
        """Close the connection."""


class Channel:
    """
    The control or the I/O channel.

    @ivar received: called with each message from the host.
    @ivar turn: called when no further message is at hand.
    @ivar flowing: called with whether the host takes more; false while there is none.
    """

    def __init__(
        self,
        received: Callable[[Message], None],
        turn: Callable[[], None],
        flowing: Callable[[bool], None],
    ) -> None:
        self.received = received
        self.turn = turn
        self.flowing = flowing
        self._pausedFor: set[str] = set()
        self._host: Host | None = None
        self._waiting: list[bytes] = []

    def send(self, data: bytes) -> None:
        """
        Send bytes to the host, or to the next one if there is none.

        What waits so is bounded by the number of processes: nothing else is sent without a host.
        """
        if self._host is None:
            self._waiting.append(data)
        else:
            self._host.send(data)

    @property
    def paused(self) -> bool:
        """Whether messages shall stay with the host."""
        return bool(self._pausedFor)

    def pause(self, reason: str) -> None:
        """Take no more messages, until L{resume} is called with the same reason."""
        self._pausedFor.add(reason)
        if self._host is not None:
            self._host.pauseReading()

    def resume(self, reason: str) -> None:
        """Take messages again, if no other reason is left. Doing it twice is no harm."""
        if reason in self._pausedFor:
            self._pausedFor.remove(reason)
            if not self._pausedFor and self._host is not None:
                self._host.resumeReading()

    def attach(self, host: Host) -> None:
        """A host has connected."""
        self._host = host
        if self.paused:
            host.pauseReading()
        self.flowing(True)
        waiting, self._waiting = self._waiting, []
        if waiting:
            host.send(b"".join(waiting))

    def detach(self, host: Host) -> None:
        """A host has gone."""
        if self._host is host:
            self._host = None
            self.flowing(False)

    def hangUp(self) -> None:
        """Close the host's connection, if there is one."""
        if self._host is not None:
            self._host.hangUp()
