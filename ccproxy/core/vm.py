"""
A VM: its two channels, its sessions, and what is known of its agent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.logger import Logger, LogLevel

from ..errors import (
    AlreadyRegistered,
    DeadlineExceeded,
    InternalError,
    RegistryError,
    RequestError,
    VMGone,
)
from ..interfaces import IConnection
from ..wire.codes import ControlCode, Dialect
from ..wire.payloads import RegisterVM
from .channels import ControlSink, IOSink
from .commands import ControlCommand, PingCommand, dialectOfVersion
from .console import ConsoleRing
from .context import Wait, cancel
from .control import ControlQueue
from .flow import Flow
from .outlet import Outlet
from .processes import Processes
from .starts import Starts
from .states import VM_TABLE, VMInput, VMState, advance
from .stdin import StdinScheduler
from .tally import Traffic

if TYPE_CHECKING:
    from .client import Client
    from .commands import Slot
    from .registry import Registry

#: Seconds for which the other channel is read on after one has closed: what had come is read by
#: then, and shims wait for their last word no longer (promise P12).
LAST_WORDS = 1.0
_BROKEN = "was closed after an internal error of the proxy; its log says more"


class VM:
    """
    A virtual machine and its agent.

    @ivar context: what it shares with all others.
    @ivar request: the RegisterVM that made it.
    @ivar containerId: its name.
    @ivar url: the URL of the socket over which it was registered, if it is not the registry's.
    @ivar serial: tells it from others of the same name.
    @ivar state: where it is in its life.
    @ivar dialect: what is known of its agent.
    @ivar control: the connection of its control channel, while it has one.
    @ivar io: that of its I/O channel.
    @ivar commands: the commands for its agent.
    @ivar console: what its console has said last, kept as long as the VM is known.
    @ivar clients: those attached to it.
    @ivar processes: its sessions.
    @ivar starts: the starts that wait for their shims.
    @ivar created: when it was made, in seconds of the clock.
    @ivar slot: the place of the response to RegisterVM, until it is given.
    @ivar handled: how many bytes at the beginning of the control channel's input have been used and
        are still there.
    @ivar resync: the I/O channel may begin inside a message of an earlier registration, as long
        as no READY has come and no message of a process of ours.
    """

    def __init__(
        self, registry: Registry, request: RegisterVM, serial: int, slot: Slot | None
    ) -> None:
        """
        @param slot: the registering client's answer.
        """
        self.registry = registry
        self.context = registry.context
        self.request = request
        self.containerId = request.containerId
        self.url = slot.client.url if slot is not None else ""
        self.serial = serial
        self.state = VMState.CONNECTING
        self.dialect = registry.agentDialect or Dialect.UNKNOWN
        self.control: IConnection | None = None
        self.io: IConnection | None = None
        self.commands = ControlQueue(self)
        self.traffic = Traffic()
        self.console = ConsoleRing(registry.context.limits.consoleBuffer)
        self.stdin = StdinScheduler(self)
        self.flow = Flow(self)
        self.clients: set[Client] = set()
        self.processes = Processes(self)
        self.starts = Starts(self)
        self.resync = True
        self.handled = 0
        self.created = registry.context.clock.seconds()
        self.lostAt = 0.0
        self.slot = slot
        self._controlOut: Outlet | None = None
        self._readyMayCome = True
        self._notify = False
        self._waits: dict[str, tuple[Wait, tuple[object, ...]]] = {}

    @property
    def log(self) -> Logger:
        """Where its events are noted."""
        return self.context.log

    @property
    def fields(self) -> dict[str, object]:
        """What every log line about it says."""
        return {"vm": self.containerId, "serial": self.serial}

    @property
    def registrant(self) -> Client | None:
        """The client that waits for its registration."""
        return self.slot.client if self.slot is not None else None

    def _advance(self, input: VMInput) -> None:
        state = advance(VM_TABLE, self.state, input)
        self.context.changed(self)
        self.state = state

    def _later(self, delay: float, action: Callable[..., object], *args: object) -> None:
        # Each is waited for once at a time. The name is what is written down of it.
        self._waits[action.__name__] = (self.context.later(delay, action, *args), args)

    def _cancelWaits(self) -> None:
        for wait, _ in self._waits.values():
            cancel(wait)
        self._waits.clear()

    # -- registration

    def beginRegistration(self) -> None:
        """Have its sockets connected; READY has its deadline from now on."""
        limits = self.context.limits
        self._later(limits.readyTimeout, self._neverReady)
        self.registry.connector.connect(self)

    def connected(self, control: IConnection, io: IConnection) -> tuple[ControlSink, IOSink]:
        """
        Both channels are connected: the agent's READY is waited for.

        @return: the sinks of what comes on them.
        """
        self.control, self.io = control, io
        self._controlOut = Outlet(control, self.context.budget)
        self._advance(VMInput.CONNECTED)
        self._later(self.context.limits.readyPing, self._askPing)
        return ControlSink(self), IOSink(self)

    def connectFailed(self, reason: str) -> None:
        """
        A channel could not be connected.

        @param reason: which one and why.
        """
        self.failRegistration(RegistryError(f"{self.containerId}: {reason}"))
        if self.context.whenChanged is not None:
            self.context.later(0, self.context.flush)  # no turn of the core's may end here

    def awaitsReady(self, code: int, body: bytes) -> bool:
        """
        Look at a message on the control channel in the light of the registration.

        @return: whether it was dealt with.
        """
        if code == ControlCode.READY and self._readyMayCome:
            self._readyMayCome = False
            if self.state is VMState.WAITING:
                self.resync = False
                self._ready()
            return True
        if self.state is not VMState.WAITING:
            return False
        if self.commands.inFlight is not None:
            return False
        if code == ControlCode.ERROR:
            text = body.rstrip(b"\0").decode("utf-8", "replace")
            self.failRegistration(
                RegistryError(f"{self.containerId}: the agent said ERROR instead of READY: {text}")
            )
        else:
            self.log.info(
                "dropped a stale message of code {code} before READY",
                event="stale-answer",
                code=code,
                **self.fields,
            )
        return True

    def _askPing(self) -> None:
        """READY stays away: perhaps it came to somebody else, long ago."""
        if self.state is VMState.WAITING:
            self.log.info(
                "no READY yet: asking the agent with ping", event="ready-ping", **self.fields
            )
            self.commands.add(PingCommand(self))

    def readyIsPast(self) -> None:
        """
        The agent has answered C{ping} without READY: it may run processes of an earlier
        registration, whose numbers are not ours, and its I/O channel may begin inside a message.
        """
        if self.state is not VMState.WAITING:
            return
        self.processes.beginLate()
        self._ready()

    def _ready(self) -> None:
        slot, answer = self.slot, b""
        if slot is not None:
            # Take the steps that can fail before those that others see.
            try:
                with self.processes.tokens(self.request.numIOStreams or 0, slot) as tokens:
                    answer = self.registry.ioResponse(slot.client, tokens)
            except Exception as error:
                if not isinstance(error, RequestError):
                    self.context.failed()
                    error = InternalError()
                self.failRegistration(error)
                return
        self._advance(VMInput.READY)
        self._cancelWaits()
        self.log.info(
            "VM registered",
            event="vm-registered",
            client=slot.client.name if slot else None,
            **self.fields,
        )
        if slot is not None:
            self.registry.registered(self, slot, answer)
            self.slot = None

    def _neverReady(self) -> None:
        self.failRegistration(
            DeadlineExceeded(
                f"{self.containerId}: no READY from the agent on {self.request.ctlSerial}"
                f" within {self.context.limits.readyTimeout:g} s"
            )
        )

    def failRegistration(self, error: RequestError) -> None:
        """It cannot be registered: nothing of it remains."""
        answered = self.state is VMState.REGISTERED and self.slot is None
        if answered or self.state not in (VMState.CONNECTING, VMState.WAITING, VMState.REGISTERED):
            return
        self._advance(VMInput.FAIL)
        self._registrationFailed(error)

    def _registrationFailed(self, error: RequestError) -> None:
        self.log.warn(
            "VM not registered: {reason}", event="vm-failed", reason=str(error), **self.fields
        )
        self._close(error)
        self.registry.forget(self)
        if self.slot is not None:
            self.slot.client.registering = None
            self.slot.fail(error)
            self.slot = None

    # -- dialect

    def learn(self, dialect: Dialect) -> None:
        """The agent has shown what it is; a configured dialect and a decided hyperstart stay."""
        if self.registry.agentDialect is not None or self.dialect is dialect:
            return
        if dialect is Dialect.HYPERSTART and self.dialect.isHyperstart:
            return
        self.dialect = dialect
        self.log.debug(
            "the agent speaks {dialect}", event="dialect", dialect=dialect.value, **self.fields
        )

    def learnVersion(self, body: bytes) -> None:
        """The agent has answered C{version} with C{body}."""
        dialect = dialectOfVersion(body)
        if dialect is not None:
            self.learn(dialect)

    # -- ends

    @property
    def unanswered(self) -> list[ControlCommand]:
        """Its commands whose client is still to be answered."""
        return [*self.commands.unanswered, *self.starts.parked]

    @property
    def startsProcesses(self) -> bool:
        """Whether a process can still be started."""
        return self.state is VMState.REGISTERED

    def checkStarts(self) -> None:
        """
        @raise VMGone: no process can be started any more.
        """
        if not self.startsProcesses:
            raise VMGone(f"{self.containerId}: VM is {self.state.value} and starts no process")

    def unregister(self, client: Client | None = None) -> None:
        """
        Clients know it no longer; claimed sessions go on until the channels close.

        @param client: who asked for it, if anybody did.
        """
        self._retire(client)
        if self.registry.whenUnregistered is not None:
            self.registry.whenUnregistered()

    def _retire(self, client: Client | None = None) -> None:
        self._advance(VMInput.UNREGISTER)
        self.log.info(
            "VM unregistered",
            event="vm-unregistered",
            client=client.name if client else None,
            **self.fields,
        )
        self._retired()

    def _retired(self) -> None:
        self._detachAll(VMGone(f"{self.containerId}: VM has been unregistered"))
        for session in [session for session in self.processes.sessions if session.claimable]:
            session.vmGone()
        self.registry.forget(self)
        if self.control is None and self.io is None:
            self._cancelWaits()

    def _detachAll(self, error: RequestError) -> None:
        for client in self.clients:
            client.vm = None
        self.clients.clear()
        self.commands.drop(error, keep=True)
        self.starts.failAll(error)

    def queueControl(self, message: bytes) -> None:
        """Queue a message to the agent; L{controlWritable} sends it."""
        assert self._controlOut is not None
        self._controlOut.push(message)

    @property
    def unsent(self) -> Outlet | None:
        """What the agent has not been sent yet, if there is something."""
        return self._controlOut if self._controlOut is not None and self._controlOut.size else None

    def controlWritable(self) -> None:
        """The control channel's socket has room for messages."""
        if self.context.whenChanged is None:
            self.sendNow()
        elif self.unsent is not None:
            # Not before it is written down; and who writes it down knows how to send it.
            self.context.changed(self)

    def sendNow(self) -> None:
        """Hand over to the control channel's socket what it takes now."""
        if self._controlOut is not None:
            try:
                self._controlOut.flush()
            except Exception:
                self.context.failed()
                self.channelBroken(False)  # some of it may have been sent

    def channelEnded(self, io: bool, reason: str) -> None:
        """
        A channel has closed.

        @param io: the I/O channel, not the control channel.
        @param reason: how, for the log and for those who wait.
        """
        connection = self.io if io else self.control
        if connection is None:
            return
        connection.close()
        if io:
            self.io = None
        else:
            self.control = self._controlOut = None
        channel = "I/O" if io else "control"
        if self.state is VMState.WAITING:
            self.failRegistration(
                RegistryError(f"{self.containerId}: the {channel} channel {reason} before READY")
            )
            return
        self._channelLost(channel, reason)

    def channelBroken(self, io: bool) -> None:
        """An internal error has made it unknown what was read from a channel, or written to it."""
        self.channelEnded(io, _BROKEN)

    def _channelLost(self, channel: str, reason: str) -> None:
        error = VMGone(f"{self.containerId}: VM is lost: the {channel} channel {reason}")
        poweredOff = self._poweringOff()
        if self.state in (VMState.REGISTERED, VMState.UNREGISTERED):
            known = self.state is VMState.REGISTERED
            self.lostAt = self.context.clock.seconds()
            self._advance(VMInput.LOSE)
            self._notify = known
            self.log.emit(
                LogLevel.warn if known else LogLevel.info,
                "VM lost: the {channel} channel {reason}" if known else "VM gone",
                event="vm-lost" if known else "vm-gone",
                channel=channel,
                reason=reason,
                **self.fields,
            )
            self.commands.drop(error, keep=poweredOff)
            self.starts.failAll(error)
            self._later(LAST_WORDS, self._lastWords, error)
            if known:
                self._later(self.context.limits.lostTimeout, self._forgotten)
        if self.io is None and self.control is None:
            command = self.commands.inFlight
            if poweredOff and command is not None:
                self.commands.inFlight = None
                command.acked(b"")
            self._close(error)

    def _poweringOff(self) -> bool:
        """Whether the agent is a hyperstart that was told to power the VM off."""
        command = self.commands.inFlight
        return command is not None and command.name == "destroypod" and self.dialect.isHyperstart

    def _lastWords(self, error: RequestError) -> None:
        """The other channel has had its time, unless a full session has held it up meanwhile."""
        if self.flow.readFor < LAST_WORDS and self.io is not None:
            self._later(LAST_WORDS, self._lastWords, error)
        else:
            self._close(error)

    def _forgotten(self) -> None:
        """Nobody has unregistered it since it was lost."""
        if self.state is VMState.LOST:
            self.unregister()

    def replace(self) -> None:
        """Another VM takes its sockets or its id: end all that is left of it."""
        if self.state is VMState.LOST:
            self._retire()
        elif self.state is VMState.UNREGISTERED:
            self._advance(VMInput.LOSE)
        self._close(VMGone(f"{self.containerId}: VM was replaced"))

    def shutDown(self) -> None:
        """The proxy stops."""
        if self.state in (VMState.CONNECTING, VMState.WAITING):
            self.failRegistration(VMGone(f"{self.containerId}: the proxy is stopping"))
        elif self.state is VMState.REGISTERED:
            self._advance(VMInput.LOSE)
        self._close(VMGone(f"{self.containerId}: the proxy is stopping"))
        self._cancelWaits()
        for session in list(self.processes.sessions):
            session.end()

    def repair(self) -> None:
        """Finish what a turn has begun that was cut short: see L{ccproxy.core.context}."""
        if self.slot is not None and self.slot.reply is not None:
            self.slot = None
        waiting = {name for name, (wait, _) in self._waits.items() if wait.active()}
        registering = self.state in (VMState.CONNECTING, VMState.WAITING)
        if self.slot is not None and (
            not registering
            or self.slot.client.registering is not self
            or self._neverReady.__name__ not in waiting
            or (self.state is VMState.WAITING and None in (self.control, self.io))
        ):
            self.failRegistration(InternalError())
        if self.state is VMState.UNREGISTERED:
            self._retired()
        known = self.state in (VMState.REGISTERED, VMState.UNREGISTERED)
        if known and (self.control is None or self.io is None):
            self._channelLost("I/O" if self.io is None else "control", _BROKEN)
        elif self.state in (VMState.LOST, VMState.GONE):
            if self.slot is not None:
                self._registrationFailed(InternalError())
            if self.state is VMState.GONE:
                self.registry.forget(self)
            open = self.control is not None or self.io is not None
            if not (open and self._lastWords.__name__ in waiting):
                self._close(VMGone(f"{self.containerId}: VM is lost"))
        self.controlWritable()
        self.starts.repair()
        self.commands.repair()
        self.flow.repair()
        self.stdin.repair()

    def _close(self, error: RequestError) -> None:
        """Close the channels, and end or hand over what is left to the sessions."""
        self.registry.connector.abandon(self)
        self.console.close()
        forget = self._forgottenWait()
        self._cancelWaits()
        if forget is not None:
            self._later(forget, self._forgotten)
        for connection in (self.control, self.io):
            if connection is not None:
                connection.close()
        self.control = self.io = self._controlOut = None
        self.commands.drop(error)
        self.flow.release()
        for session in list(self.processes.sessions):
            session.vmGone(self._notify)
        self.registry.channelsClosed(self)

    def _forgottenWait(self) -> float | None:
        """Seconds until a lost VM is forgotten, or L{None} if it is not lost."""
        if self.state is not VMState.LOST:
            return None
        clock = self.context.clock
        return max(0.0, self.lostAt + self.context.limits.lostTimeout - clock.seconds())


def checkFree(vm: VM | None, containerId: str) -> None:
    """
    @raise AlreadyRegistered: C{vm} has the id and is not lost.
    """
    if vm is not None and vm.state is not VMState.LOST:
        raise AlreadyRegistered(containerId)
