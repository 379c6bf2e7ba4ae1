"""
The agent of a VM, as its control channel shows it: what it is, and the commands that it is sent.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import attrs

from ..errors import AgentError, InternalError, RequestError, VMGone
from ..interfaces import IConnection
from ..wire.codes import ControlCode, Dialect
from ..wire.messages import encodeControl
from .commands import (
    ControlCommand,
    PingCommand,
    SignalCommand,
    StartCommand,
    VersionCommand,
    dialectOfVersion,
)
from .context import Wait, cancel
from .control import ControlQueue
from .outlet import Outlet
from .records import Reader, Writer, derived, formOf, part, read, saved, transient
from .starts import Starts, StartsVM


class AgentVM(StartsVM, Protocol):
    """A VM, as its agent's side knows it."""

    starts: Starts

    def readyIsPast(self) -> None:
        """The agent has answered C{ping} without READY."""


@attrs.define(eq=False)
class Agent:
    """
    The agent of one VM.

    @ivar configured: its dialect, if that is configured.
    @ivar connection: the control channel, while there is one.
    @ivar dialect: what is known of the agent.
    @ivar commands: the commands that wait for it or for its answer.
    """

    _vm: AgentVM = transient()
    _configured: Dialect | None = transient()
    connection: IConnection | None = transient(None, init=False)
    dialect: Dialect = saved(Dialect.UNKNOWN, init=False)
    commands: ControlQueue = part()
    _out: Outlet | None = transient(None, init=False)
    _wait: Wait | None = transient(None, init=False)
    _waitUntil: float = transient(0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.dialect = self._configured or Dialect.UNKNOWN
        self.commands = ControlQueue(self._vm.context, self._vm.containerId)

    def _written(self, writer: Writer) -> Any:
        return formOf(Outlet)() if self._out is None else self._out.whole()

    def _read(self, out: Any, reader: Reader) -> None:
        if self._out is not None:
            read(self._out, out, reader)

    DERIVED: ClassVar = (
        derived("controlOut", formOf(Outlet), formOf(Outlet), _written, _read),
    )

    def connect(self, connection: IConnection) -> None:
        """Use a connection to the agent's control channel."""
        self.connection = connection
        self._out = Outlet(connection, self._vm.context.budget)

    def disconnect(self) -> None:
        """Close the control channel."""
        if self.connection is not None:
            self.connection.close()
        self.connection = self._out = None

    # -- what it is

    def learn(self, dialect: Dialect) -> None:
        """The agent has shown what it is; a configured dialect and a decided hyperstart stay."""
        if self._configured is not None or self.dialect is dialect:
            return
        if dialect is Dialect.HYPERSTART and self.dialect.isHyperstart:
            return
        self.dialect = dialect
        vm = self._vm
        vm.log.debug(
            "the agent speaks {dialect}", event="dialect", dialect=dialect.value, **vm.fields
        )

    def _learnVersion(self, answer: bytes | RequestError) -> None:
        """The agent has answered C{version}."""
        dialect = None if isinstance(answer, RequestError) else dialectOfVersion(answer)
        if dialect is not None:
            self.learn(dialect)

    @property
    def poweringOff(self) -> bool:
        """Whether it is a hyperstart that was told to power the VM off."""
        command = self.commands.inFlight
        return command is not None and command.name == "destroypod" and self.dialect.isHyperstart

    # -- commands

    def send(self, command: ControlCommand) -> None:
        """
        Queue a command, and send it if nothing is in flight.

        @raise RequestError: it could not be sent, or too many wait already.
        """
        if self.connection is None:
            name = self._vm.containerId
            raise VMGone(f"{name}: VM is lost: it has no control channel")
        self.commands.add(command)
        self.pump()

    def pump(self) -> None:
        """Send the next command, if there is one and the agent is free."""
        while self._out is not None and (command := self.commands.take(self.dialect)) is not None:
            try:
                self._out.push(self._encoded(command))
            except RequestError as error:
                self._settle(command, error)
            except Exception:
                self._vm.context.failed()
                self._settle(command, InternalError())
            else:
                self.commands.sent(command)
                self.writable()
        self._arm()

    def _encoded(self, command: ControlCommand) -> bytes:
        """
        Return the message that is sent.

        @raise RequestError: the command cannot be sent.
        """
        if isinstance(command, StartCommand):
            self._vm.starts.begin(command, self.dialect)
        elif isinstance(command, SignalCommand):
            session = self._vm.processes.byNumber.get(command.stdio or -1)
            if session is None:
                raise RequestError("process has exited")
            session.checkAlive()
        return encodeControl(*command.encode(self.dialect))

    def answered(self, number: int, body: bytes) -> None:
        """The agent has sent a message that answers the command in flight."""
        vm, command = self._vm, self.commands.answered()
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
        if command.countsForDialect and self.dialect is Dialect.UNKNOWN:
            self.learn(Dialect.CC)
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
        answer: bytes | RequestError = body
        if number == ControlCode.ERROR:
            answer = AgentError(body.rstrip(b"\0").decode("utf-8", "replace"))
        elif not good:
            answer = RequestError(
                f"the agent answered {command.name} with a message of code {number}"
            )
        self._settle(command, answer)

    def _settle(self, command: ControlCommand, answer: bytes | RequestError) -> None:
        """
        Tell all who wait for a command what has become of it.

        @param answer: the body of the agent's ACK, or why there is none.
        """
        if isinstance(command, StartCommand):
            self._vm.starts.settle(command, answer)
        elif isinstance(command, PingCommand):
            if not isinstance(answer, RequestError) or isinstance(answer, AgentError):
                self._vm.readyIsPast()
        elif isinstance(command, VersionCommand):
            self._learnVersion(answer)
        elif command.slot is not None:
            if command.name == "version":
                self._learnVersion(answer)
            elif isinstance(command, SignalCommand) and not isinstance(answer, RequestError):
                answer = b""
            command.slot.settle(answer)

    def poweredOff(self) -> None:
        """The VM has gone because it was told to: this is the answer to the command in flight."""
        command = self.commands.answered()
        if command is not None:
            self._settle(command, b"")

    def drop(self, error: RequestError, keep: bool = False) -> None:
        """
        Fail all commands.

        @param error: what is said to those who wait.
        @param keep: leave the command in flight: its answer can still come.
        """
        dropped = self.commands.drop(keep)
        if self.commands.inFlight is None:
            cancel(self._wait)
            self._wait = None
        for command in dropped:
            self._settle(command, error)

    # -- time

    def _arm(self) -> None:
        """Have L{_check} called when the first of all deadlines and reports is due."""
        due = self.commands.due
        if due is None or (self._wait is not None and self._waitUntil <= due):
            return  # a wait that is over too early is cheaper than a new one for each command
        cancel(self._wait)
        self._waitUntil = due
        context = self._vm.context
        self._wait = context.later(max(0.0, due - context.clock.seconds()), self._check)

    def _check(self) -> None:
        """Report a slow answer, and fail commands whose deadline has passed."""
        vm, self._wait = self._vm, None
        vm.context.changed(vm)
        # The time for which all input has been read: what became due since has its own turn.
        now = self._waitUntil
        slow = self.commands.slow(now)
        if slow is not None:
            vm.log.warn(
                "the agent has not answered {command} for {seconds:.0f} s",
                event="slow-answer",
                command=slow.name,
                seconds=now - slow.sent,
                **vm.fields,
            )
        for command, error in self.commands.overdue(now):
            if command is not self.commands.inFlight:
                self._settle(command, error)
            elif command.slot is not None:
                command.slot.fail(error)
        self._arm()

    # -- bytes

    @property
    def unsent(self) -> Outlet | None:
        """What the agent has not been sent yet, if there is something."""
        return self._out if self._out is not None and self._out.size else None

    def writable(self) -> None:
        """The control channel's socket has room for messages."""
        context = self._vm.context
        if context.whenChanged is None:
            self.sendNow()
        elif self.unsent is not None:
            # Not before it is written down; and who writes it down knows how to send it.
            context.changed(self._vm)

    def sendNow(self) -> None:
        """Hand over to the control channel's socket what it takes now."""
        if self._out is not None:
            try:
                self._out.flush()
            except Exception:
                self._vm.context.failed()
                self._vm.channelBroken(False)  # some of it may have been sent
