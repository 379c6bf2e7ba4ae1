"""
The queue of commands for an agent: one at a time, each with its own answer (promise P10).

The agent answers in order and says nothing about which command it answers, so exactly one is in
flight, and the rest waits here, where it can still be taken back. Signals and window sizes go
before the waiting commands of other clients; the commands of one client keep their order.

A command whose deadline passes in flight is answered with an error and stays in flight: only the
agent's own answer, then discarded, lets the next one go. Those behind it fail one by one, each
when its own time, counted from its arrival, is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import attrs

from ..errors import DeadlineExceeded, LimitReached
from ..wire.codes import Dialect
from .commands import ControlCommand, Requester, VersionCommand
from .context import Context
from .records import reference, references, saved, transient


@attrs.define(eq=False)
class ControlQueue:
    """
    The commands of one VM.

    @ivar owner: the VM's id, for errors.
    @ivar waiting: those that were not sent, in the order in which they will be.
    @ivar inFlight: the one that the agent has not answered.
    """

    _context: Context = transient()
    _owner: str = transient()
    waiting: list[ControlCommand] = references("commands")
    inFlight: ControlCommand | None = reference("commands", None, init=False)
    _asked: bool = saved(False, init=False)
    _reported: ControlCommand | None = reference("commands", None, init=False)

    def add(self, command: ControlCommand) -> None:
        """
        Queue a command.

        @raise LimitReached: too many wait already.
        """
        limit = self._context.limits.maxCommands
        if len(self.waiting) >= limit:
            raise LimitReached(
                f"{self._owner}: {limit} control commands are waiting for the agent already; try"
                " again later"
            )
        command.arrived = self._context.clock.seconds()
        if command.urgent:
            self.waiting.insert(self._place(command.client), command)
        else:
            self.waiting.append(command)

    def _place(self, client: Requester | None) -> int:
        """
        Where an urgent command of C{client} goes: behind the last one of its own, and behind the
        urgent ones that follow that.
        """
        waiting = self.waiting
        place = len(waiting)
        while place and (client is None or waiting[place - 1].client is not client):
            place -= 1
        while place < len(waiting) and waiting[place].urgent:
            place += 1
        return place

    def withdraw(self, command: ControlCommand) -> bool:
        """
        Take back a command.

        @return: whether it was still waiting.
        """
        try:
            self.waiting.remove(command)
        except ValueError:
            return False
        return True

    def take(self, dialect: Dialect) -> ControlCommand | None:
        """
        Take the next command to send, if there is one and the agent is free. L{sent} must follow,
        unless it cannot be sent.

        @param dialect: what is known of the agent now.
        """
        if self.inFlight is not None or not self.waiting:
            return None
        command = self.waiting[0]
        if command.needsDialect and dialect is Dialect.HYPERSTART and not self._asked:
            self._asked = True
            command = VersionCommand()
            command.arrived = self._context.clock.seconds()
            return command
        return self.waiting.pop(0)

    def sent(self, command: ControlCommand) -> None:
        """Note that a command was sent."""
        command.sent = self._context.clock.seconds()
        command.sentAt = self._context.wallClock()
        self.inFlight = command

    def answered(self) -> ControlCommand | None:
        """Return the command that an answer of the agent answers, and let the next one go."""
        command, self.inFlight, self._reported = self.inFlight, None, None
        return command

    @property
    def unanswered(self) -> list[ControlCommand]:
        """Commands whose client is still to be answered."""
        return [command for command in self.all() if not command.expired]

    def drop(self, keep: bool = False) -> list[ControlCommand]:
        """
        Empty the queue.

        @param keep: leave the command in flight: its answer can still come.
        @return: those that will not be answered.
        """
        dropped = list(self.waiting)
        self.waiting.clear()
        if not keep and self.inFlight is not None:
            dropped.insert(0, self.inFlight)
            self.inFlight = self._reported = None
        return dropped

    # -- time

    def all(self) -> list[ControlCommand]:
        """Return the command in flight and those that wait."""
        return [*([self.inFlight] if self.inFlight else ()), *self.waiting]

    @property
    def due(self) -> float | None:
        """When the first of all deadlines and reports is due, in seconds of the clock."""
        return min((when for command in self.all() for when in self._times(command)), default=None)

    def _times(self, command: ControlCommand) -> list[float]:
        """When something is due for C{command}."""
        limits = self._context.limits
        times = []
        if limits.commandTimeout and not command.expired:
            times.append(command.arrived + limits.commandTimeout)
        if command is self.inFlight and self._reported is not command:
            times.append(command.sent + limits.commandWarning)
        return times

    def slow(self, now: float) -> ControlCommand | None:
        """Return the command in flight if it is due to be reported as slow, once."""
        stuck = self.inFlight
        if stuck is None or stuck is self._reported:
            return None
        if now < stuck.sent + self._context.limits.commandWarning:
            return None
        self._reported = stuck
        return stuck

    def overdue(self, now: float) -> Iterator[tuple[ControlCommand, DeadlineExceeded]]:
        """
        Yield commands whose deadline has passed, with their errors. The one in flight stays so;
        the others are taken back.
        """
        timeout, stuck = self._context.limits.commandTimeout, self.inFlight
        for command in self.all():
            if not timeout or command.expired or now < command.arrived + timeout:
                continue
            if command is stuck:
                command.expired = True
                reason = f"agent has not answered {command.name} within {timeout:g} s"
            elif stuck is not None and self.withdraw(command):
                since = datetime.fromtimestamp(stuck.sentAt, UTC)
                reason = f"agent has not answered {stuck.name} since {since:%Y-%m-%dT%H:%M:%SZ}"
            else:
                continue
            yield command, DeadlineExceeded(f"{self._owner}: {reason}")
