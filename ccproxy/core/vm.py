"""
A VM: its two channels, its sessions, and its agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Optional, Protocol, cast

import attrs
from twisted.logger import Logger, LogLevel

from ..errors import AlreadyRegistered, InternalError, RegistryError, RequestError, VMGone
from ..interfaces import IConnection, IConnector
from ..wire.codes import Dialect
from ..wire.payloads import RegisterVM
from .agent import Agent
from .commands import ControlCommand, Slot
from .console import ConsoleRing
from .context import Context, Wait, cancel, isDue
from .control import ControlQueue
from .flow import Flow
from .processes import Processes, Tokens
from .records import (
    Count,
    Left,
    Place,
    Reader,
    Writer,
    custom,
    derived,
    moment,
    nested,
    part,
    saved,
    timer,
    transient,
)
from .registration import Registrant, Registration
from .session import Session
from .starts import Starts
from .states import VM_TABLE, VMInput, VMState, advance
from .stdin import StdinScheduler
from .tally import Traffic, readTraffic, writeTraffic

#: Seconds for which the other channel is read on after one has closed: what had come is read by
#: then, and shims wait for their last word no longer (promise P12).
LAST_WORDS = 1.0
_BROKEN = "was closed after an internal error of the proxy; its log says more"


class VMRegistry(Tokens, Protocol):
    """The registry, as its VMs know it."""

    agentDialect: Dialect | None
    connector: IConnector
    context: Context

    @property
    def whenUnregistered(self) -> Callable[[], None] | None: ...

    def ioResponse(self, client: Registrant, tokens: Sequence[str]) -> bytes:
        """Return the payload that tells a client where shims connect, and with which tokens."""

    def registered(self, vm: VM, slot: Slot, answer: bytes) -> None:
        """Tell the client of a VM that it is registered."""

    def forget(self, vm: VM) -> None:
        """Make a VM's name free."""

    def channelsClosed(self, vm: VM) -> None:
        """The channels of a VM are closed, and its sessions have been told."""


@attrs.define(eq=False, slots=False)
class VM:
    """
    A virtual machine and its agent.

    @ivar context: what it shares with all others.
    @ivar request: the RegisterVM that made it.
    @ivar containerId: its name.
    @ivar url: the URL of the socket over which it was registered, if it is not the registry's.
    @ivar serial: tells it from others of the same name.
    @ivar state: where it is in its life.
    @ivar agent: its agent, with the control channel.
    @ivar io: the connection of its I/O channel, while it has one.
    @ivar console: what its console has said last, kept as long as the VM is known.
    @ivar clients: those attached to it.
    @ivar processes: its sessions.
    @ivar starts: the starts that wait for their shims.
    @ivar registration: the way to its registration.
    @ivar created: when it was made, in seconds of the clock.
    @ivar lostAt: when it was lost, in seconds of the clock.
    @ivar handled: how many bytes at the beginning of the control channel's input have been used and
        are still there.
    @ivar resync: the I/O channel may begin inside a message of an earlier registration, as long
        as no READY has come and no message of a process of ours.
    """

    registry: VMRegistry = transient()
    request: RegisterVM = saved()
    serial: int = saved(type=Count)
    url: str = saved("")
    state: VMState = saved(VMState.CONNECTING, init=False)
    context: Context = transient(init=False)
    containerId: str = transient(init=False)
    io: IConnection | None = transient(None, init=False)
    agent: Agent = part()
    traffic: Traffic = custom("traffic", dict[str, Count], dict, writeTraffic, readTraffic)
    console: ConsoleRing = transient(init=False)
    stdin: StdinScheduler = part()
    flow: Flow = nested()
    clients: set[Registrant] = transient(attrs.Factory(set), init=False)
    processes: Processes = part()
    starts: Starts = part()
    registration: Registration = part()
    resync: bool = saved(True, init=False)
    handled: int = saved(0, type=Count, init=False)
    created: float = moment(0.0, init=False)
    lostAt: float = moment(0.0, key="lost", init=False)
    _notify: bool = saved(False, init=False)
    _lostReason: str = saved("", init=False)
    _lastWordsWait: Wait | None = timer("lastWords", key="lastWordsIn")
    _forgottenWait: Wait | None = timer("forgotten", key="forgottenIn")

    def __attrs_post_init__(self) -> None:
        self.context = self.registry.context
        self.containerId = self.request.containerId
        self.agent = Agent(self, self.registry.agentDialect)
        self.traffic = Traffic()
        self.console = ConsoleRing(self.context.limits.consoleBuffer)
        self.stdin = StdinScheduler(self)
        self.flow = Flow(self)
        self.processes = Processes(self, self.registry)
        self.starts = Starts(self)
        self.registration = Registration(self)
        self.created = self.context.clock.seconds()

    def _clientPlaces(self, writer: Writer) -> list[Place | None]:
        # Of clients only the shims outlive a crash.
        kept = [each for each in self.clients if not writer.crash or each.session is not None]
        return [writer.place("clients", each) for each in kept]

    def _readClients(self, places: list[Place], reader: Reader) -> None:
        self.clients.update(reader.thing("clients", place) for place in places)

    def _readWaits(self, waits: dict[str, tuple[float, str]], reader: Reader) -> None:
        """Go on with the waits of form 1."""
        for name, (left, reason) in waits.items():
            seconds = reader.left(left)
            if name == "_neverReady":
                self.registration.waitForReady(seconds)
            elif name == "_askPing":
                self.registration.waitToAsk(seconds)
            elif name == "_lastWords":
                self._lostReason = reason
                self._lastWordsWait = reader.later(seconds, self.lastWords)
            elif name == "_forgotten":
                self._forgottenWait = reader.later(seconds, self.forgotten)

    def _turnPlaces(self, writer: Writer) -> list[Place | None]:
        queues = self.stdin.turns
        if writer.crash:
            waiting = dict.fromkeys([*queues, *self.stdin.resting])
            queues = [each for each in waiting if each.endWaits]
        return [writer.place("sessions", self.processes.byNumber[each.number]) for each in queues]

    def _readTurns(self, places: list[Place], reader: Reader) -> None:
        for place in places:
            queue = reader.thing("sessions", place).stdin
            queue.scheduled = True
            self.stdin.turns.append(queue)

    DERIVED: ClassVar = (
        derived("control", Optional[Count], None, lambda vm, writer: writer.key(vm.control)),
        derived("io", Optional[Count], None, lambda vm, writer: writer.key(vm.io)),
        derived("clients", list[Place], list, _clientPlaces, _readClients),
        derived("waits", dict[str, tuple[Left, str]], dict, lambda *_: {}, _readWaits),
        derived("turns", list[Place], list, _turnPlaces, _readTurns),
    )

    @property
    def control(self) -> IConnection | None:
        """The connection of its control channel, while it has one."""
        return self.agent.connection

    @property
    def dialect(self) -> Dialect:
        """What is known of its agent."""
        return self.agent.dialect

    @property
    def commands(self) -> ControlQueue:
        """The commands for its agent."""
        return self.agent.commands

    @property
    def log(self) -> Logger:
        """Where its events are noted."""
        return self.context.log

    @property
    def fields(self) -> dict[str, Any]:
        """What every log line about it says."""
        return {"vm": self.containerId, "serial": self.serial}

    @property
    def registrant(self) -> Registrant | None:
        """The client that waits for its registration."""
        return self.registration.client

    def _advance(self, input: VMInput) -> None:
        state = advance(VM_TABLE, self.state, input)
        self.context.changed(self)
        self.state = state

    def _cancelWaits(self) -> None:
        self.registration.cancelWaits()
        cancel(self._lastWordsWait)
        cancel(self._forgottenWait)

    # -- its sessions

    def send(self, command: ControlCommand) -> None:
        """
        Queue a command for the agent.

        @raise RequestError: it cannot be sent, or too many wait already.
        """
        self.agent.send(command)

    def withdraw(self, command: ControlCommand) -> None:
        """Take back a command if it still waits."""
        self.commands.withdraw(command)

    def learn(self, dialect: Dialect) -> None:
        """The agent has shown what it is."""
        self.agent.learn(dialect)

    def recheck(self, session: Session) -> None:
        """A session may have room again, or has gained or lost its shim."""
        self.flow.recheck(session)

    @property
    def readFor(self) -> float:
        """For how many seconds the I/O channel has been read without a pause."""
        return self.flow.readFor

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

    # -- registration

    def beginRegistration(self) -> None:
        """Have its sockets connected; READY has its deadline from now on."""
        self.registration.waitForReady(self.context.limits.readyTimeout)
        self.registry.connector.connect(self)

    def connected(self, control: IConnection, io: IConnection) -> None:
        """Both channels are connected: the agent's READY is waited for."""
        self.agent.connect(control)
        self.io = io
        self._advance(VMInput.CONNECTED)
        self.registration.waitToAsk(self.context.limits.readyPing)

    def connectFailed(self, reason: str) -> None:
        """
        A channel could not be connected.

        @param reason: which one and why.
        """
        self.failRegistration(RegistryError(f"{self.containerId}: {reason}"))
        if self.context.whenChanged is not None:
            self.context.later(0, self.context.flush)  # no turn of the core's may end here

    def readyIsPast(self) -> None:
        """The agent has answered C{ping} without READY."""
        self.registration.readyIsPast()

    def ioResponse(self, tokens: Sequence[str]) -> bytes:
        """Return the payload of the response to RegisterVM."""
        client = self.registrant
        assert client is not None
        return self.registry.ioResponse(client, tokens)

    def registered(self, slot: Slot | None, answer: bytes) -> None:
        """The agent is ready."""
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

    def failRegistration(self, error: RequestError) -> None:
        """It cannot be registered: nothing of it remains, if it was not registered before."""
        self.registration.fail(error)

    def notRegistered(self, error: RequestError) -> None:
        """Nothing of it remains."""
        self._advance(VMInput.FAIL)
        self._registrationFailed(error)

    def _registrationFailed(self, error: RequestError) -> None:
        self.log.warn(
            "VM not registered: {reason}", event="vm-failed", reason=str(error), **self.fields
        )
        self._close(error)
        self.registry.forget(self)
        self.registration.answer(error)

    # -- ends

    def unregister(self, client: Registrant | None = None) -> None:
        """
        Clients know it no longer; claimed sessions go on until the channels close.

        @param client: who asked for it, if anybody did.
        """
        self._retire(client)
        if self.registry.whenUnregistered is not None:
            self.registry.whenUnregistered()

    def _retire(self, client: Registrant | None = None) -> None:
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
            client.leaveVM()
        self.clients.clear()
        self.agent.drop(error, keep=True)
        self.starts.failAll(error)

    def channelEnded(self, io: bool, reason: str) -> None:
        """
        A channel has closed.

        @param io: the I/O channel, not the control channel.
        @param reason: how, for the log and for those who wait.
        """
        if (self.io if io else self.control) is None:
            return
        self._disconnect(io)
        channel = "I/O" if io else "control"
        if self.state is VMState.WAITING:
            self.failRegistration(
                RegistryError(f"{self.containerId}: the {channel} channel {reason} before READY")
            )
            return
        self._channelLost(channel, reason)

    def _disconnect(self, io: bool) -> None:
        if not io:
            self.agent.disconnect()
        elif self.io is not None:
            self.io.close()
            self.io = None

    def channelBroken(self, io: bool) -> None:
        """An internal error has made it unknown what was read from a channel, or written to it."""
        self.channelEnded(io, _BROKEN)

    def _channelLost(self, channel: str, reason: str) -> None:
        self._lostReason = f"{self.containerId}: VM is lost: the {channel} channel {reason}"
        error, poweredOff = VMGone(self._lostReason), self.agent.poweringOff
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
            self.agent.drop(error, keep=poweredOff)
            self.starts.failAll(error)
            self._lastWordsWait = self.context.later(LAST_WORDS, self.lastWords)
            self._waitToBeForgotten()
        if self.io is None and self.control is None:
            if poweredOff:
                self.agent.poweredOff()
            self._close(error)

    def lastWords(self) -> None:
        """The other channel has had its time, unless a full session has held it up meanwhile."""
        if self.flow.readFor < LAST_WORDS and self.io is not None:
            self._lastWordsWait = self.context.later(LAST_WORDS, self.lastWords)
        else:
            self._close(VMGone(self._lostReason))

    def _waitToBeForgotten(self) -> None:
        """A lost VM is forgotten after a while; another one is not lost any more."""
        if self.state is not VMState.LOST:
            cancel(self._forgottenWait)
        elif not isDue(self._forgottenWait):
            context = self.context
            due = self.lostAt + context.limits.lostTimeout
            delay = max(0.0, due - context.clock.seconds())
            self._forgottenWait = context.later(delay, self.forgotten)

    def forgotten(self) -> None:
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
        self.registration.repair(None not in (self.control, self.io))
        if self.state is VMState.UNREGISTERED:
            self._retired()
        known = self.state in (VMState.REGISTERED, VMState.UNREGISTERED)
        if known and (self.control is None or self.io is None):
            self._channelLost("I/O" if self.io is None else "control", _BROKEN)
        elif self.state in (VMState.LOST, VMState.GONE):
            if self.registrant is not None:
                self._registrationFailed(InternalError())
            if self.state is VMState.GONE:
                self.registry.forget(self)
            open = self.control is not None or self.io is not None
            if not (open and isDue(self._lastWordsWait)):
                self._close(VMGone(f"{self.containerId}: VM is lost"))
        self.agent.writable()
        self.starts.repair()
        self.agent.pump()
        self.flow.repair()
        self.stdin.repair([session.stdin for session in self.processes.sessions])

    def _close(self, error: RequestError) -> None:
        """Close the channels, and end or hand over what is left to the sessions."""
        self.registry.connector.abandon(self)
        self.console.close()
        self.registration.cancelWaits()
        cancel(self._lastWordsWait)
        self._waitToBeForgotten()
        for io in (False, True):
            self._disconnect(io)
        self.agent.drop(error)
        self.flow.release()
        for session in list(self.processes.sessions):
            session.vmGone(self._notify)
        self.registry.channelsClosed(self)


def checkFree(vm: VM | None, containerId: str) -> None:
    """
    @raise AlreadyRegistered: C{vm} has the id and is not lost.
    """
    if vm is not None and vm.state is not VMState.LOST:
        raise AlreadyRegistered(containerId)


def vmOf(session: Session) -> VM:
    """Return the VM of a session, which knows only a part of it."""
    return cast(VM, session.vm)
