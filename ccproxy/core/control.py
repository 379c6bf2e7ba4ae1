"""
The control channel's queue: one command at a time, each with its own answer (promise P10).

The agent answers in order and says nothing about which command it answers, so exactly one is in
flight, and the rest waits here, where it can still be taken back. Signals and window sizes go
before the waiting commands of other clients; the commands of one client keep their order.

A command whose deadline passes in flight is answered with an error and stays in flight: only the
agent's own answer, then discarded, lets the next one go. Those behind it fail one by one, each
when its own time, counted from its arrival, is over.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..errors import (
    AgentError,
    DeadlineExceeded,
    InternalError,
    LimitReached,
    RequestError,
    VMGone,
)
from ..wire.codes import ControlCode, Dialect
from ..wire.messages import encodeControl, readEvent
from .commands import ControlCommand, VersionCommand
from .context import Wait, cancel

if TYPE_CHECKING:
    from .client import Client
    from .vm import VM

#: Messages that may carry an event of hyperstart 1.x.
_EVENT_CODES = (ControlCode.PROCESS_ASYNC_EVENT, ControlCode.SIGNALPROCESS)


class ControlQueue:
    """
    The commands of one VM.

    @ivar waiting: those that were not sent, in the order in which they will be.
    @ivar inFlight: the one that the agent has not answered.
    """

    __slots__ = ("_asked", "_reported", "_vm", "_wait", "_waitUntil", "inFlight", "waiting")

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._wait: Wait | None = None
        self._waitUntil = 0.0
        self._asked = False
        self._reported: ControlCommand | None = None
        self.waiting: list[ControlCommand] = []
        self.inFlight: ControlCommand | None = None

    # -- commands

    def add(self, command: ControlCommand) -> None:
        """
        Queue a command, and send it if nothing is in flight.

        @raise RequestError: it could not be sent, or too many wait already.
        """
        if self._vm.control is None:
            raise VMGone(f"{self._vm.containerId}: VM is lost: it has no control channel")
        limits = self._vm.context.limits
        if len(self.waiting) >= limits.maxCommands:
            raise LimitReached(
                f"{self._vm.containerId}: {limits.maxCommands} control commands are waiting"
                " for the agent already; try again later"
            )
        command.arrived = self._vm.context.clock.seconds()
        if command.urgent:
            self.waiting.insert(self._place(command.client), command)
        else:
            self.waiting.append(command)
        self.pump()
        self._arm()

    def _place(self, client: Client | None) -> int:
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

    def pump(self) -> None:
        """Send the next command, if there is one and the agent is free."""
        vm = self._vm
        while self.waiting and self.inFlight is None and vm.control is not None:
            command = self.waiting[0]
            if command.needsDialect and vm.dialect is Dialect.HYPERSTART and not self._asked:
                self._asked = True
                command = VersionCommand(vm)
                command.arrived = vm.context.clock.seconds()
            else:
                self.waiting.pop(0)
            try:
                message = encodeControl(*command.message(vm.dialect))
                command.sent = vm.context.clock.seconds()
                command.sentAt = vm.context.wallClock()
                vm.queueControl(message)
            except RequestError as error:
                command.refused(error)
                continue
            except Exception:
                vm.context.failed()
                command.refused(InternalError())
                continue
            self.inFlight = command
            vm.controlWritable()
            self._arm()

    # -- what the agent says

    def message(self, number: int, body: bytes) -> None:
        """A message came on the control channel."""
        vm = self._vm
        if number == ControlCode.NEXT:
            vm.learn(Dialect.HYPERSTART)
            return
        if number in _EVENT_CODES:
            event = readEvent(body)
            if event is not None:
                vm.processes.event(event)
            else:
                vm.log.info(
                    "dropped an event that cannot be read", event="stray-event", **vm.fields
                )
            return
        if number == ControlCode.POD_FINISHED:
            vm.log.info("all containers of the pod have ended", event="pod-finished", **vm.fields)
            return
        if vm.awaitsReady(number, body):
            return
        command, self.inFlight = self.inFlight, None
        if command is None:
            vm.log.warn(
                "dropped a message of code {code} that answers no command",
                event="stray-answer",
                code=number,
                **vm.fields,
            )
            return
        try:
            self._answer(command, number, body)
        except Exception:
            vm.context.failed()
        self.pump()

    def _answer(self, command: ControlCommand, number: int, body: bytes) -> None:
        """The agent has answered C{command}."""
        vm = self._vm
        if command.countsForDialect and vm.dialect is Dialect.UNKNOWN:
            vm.learn(Dialect.CC)
        if command.expired:
            vm.log.info(
                "the agent has answered {command}, too late",
                event="late-answer",
                command=command.name,
                **vm.fields,
            )
        good = number == ControlCode.ACK
        seconds = vm.context.clock.seconds() - command.sent
        vm.context.tally.acknowledgement(command.name, seconds, good)
        if good:
            command.acked(body)
        elif number == ControlCode.ERROR:
            command.refused(AgentError(body.rstrip(b"\0").decode("utf-8", "replace")))
        else:
            command.refused(
                RequestError(f"the agent answered {command.name} with a message of code {number}")
            )

    # -- ends

    @property
    def unanswered(self) -> list[ControlCommand]:
        """Commands whose client is still to be answered."""
        return [command for command in self._all() if not command.expired]

    def repair(self) -> None:
        """Finish what a turn has begun that was cut short: see L{ccproxy.core.context}."""
        self.pump()
        self._arm()

    def drop(self, error: RequestError, keep: bool = False) -> None:
        """
        Nothing more will be answered.

        @param error: what is said to those who wait.
        @param keep: leave the command in flight: its answer can still come.
        """
        failed = list(self.waiting)
        self.waiting.clear()
        if not keep and self.inFlight is not None:
            failed.insert(0, self.inFlight)
            self.inFlight = None
        if self.inFlight is None:
            cancel(self._wait)
            self._wait = None
        for command in failed:
            command.refused(error)

    # -- time

    def _arm(self) -> None:
        """Have L{_check} called when the first of all deadlines and reports is due."""
        due = min((when for command in self._all() for when in self._times(command)), default=None)
        if due is None or (self._wait is not None and self._waitUntil <= due):
            return
        cancel(self._wait)
        self._waitUntil = due
        now = self._vm.context.clock.seconds()
        self._wait = self._vm.context.later(max(0.0, due - now), self._check)

    def _all(self) -> list[ControlCommand]:
        return [*([self.inFlight] if self.inFlight else ()), *self.waiting]

    def _times(self, command: ControlCommand) -> list[float]:
        """When something is due for C{command}."""
        limits = self._vm.context.limits
        times = []
        if limits.commandTimeout and not command.expired:
            times.append(command.arrived + limits.commandTimeout)
        if command is self.inFlight and self._reported is not command:
            times.append(command.sent + limits.commandWarning)
        return times

    def _check(self) -> None:
        """A deadline may have passed."""
        self._wait = None
        self._vm.context.changed(self._vm)
        # The time for which all input has been read: what became due since has its own turn.
        vm, now = self._vm, self._waitUntil
        limits, stuck = vm.context.limits, self.inFlight
        slow = stuck is not None and now >= stuck.sent + limits.commandWarning
        if stuck is not None and slow and stuck is not self._reported:
            self._reported = stuck
            vm.log.warn(
                "the agent has not answered {command} for {seconds:.0f} s",
                event="slow-answer",
                command=stuck.name,
                seconds=now - stuck.sent,
                **vm.fields,
            )
        if limits.commandTimeout:
            for command in self._all():
                if not command.expired and now >= command.arrived + limits.commandTimeout:
                    self._expire(command, stuck)
        self._arm()

    def _expire(self, command: ControlCommand, stuck: ControlCommand | None) -> None:
        """The deadline of C{command} has passed."""
        name = self._vm.containerId
        if command is stuck:
            command.expired = True
            command.timedOut(
                DeadlineExceeded(
                    f"{name}: agent has not answered {command.name} within"
                    f" {self._vm.context.limits.commandTimeout:g} s"
                )
            )
        elif self.withdraw(command) and stuck is not None:
            since = datetime.fromtimestamp(stuck.sentAt, UTC)
            command.refused(
                DeadlineExceeded(
                    f"{name}: agent has not answered {stuck.name} since {since:%Y-%m-%dT%H:%M:%SZ}"
                )
            )
