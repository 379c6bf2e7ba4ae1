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
    LimitReached,
    RegistryError,
    RequestError,
    VMGone,
)
from ..interfaces import IConnection
from ..wire.codes import ControlCode, Dialect
from ..wire.messages import AsyncEvent
from ..wire.payloads import RegisterVM
from .channels import ControlSink, IOSink
from .clock import Wait, cancel
from .commands import PingCommand, StartCommand, dialectOfVersion
from .control import ControlQueue
from .flow import Flow
from .outlet import Outlet
from .session import FIRST_PROCESS, Session
from .states import VM_TABLE, SessionState, VMInput, VMState, advance
from .stdin import StdinScheduler

if TYPE_CHECKING:
    from .client import Client, Slot
    from .registry import Registry

#: The sequence numbers of the null session: docs/protocol, "Relocation".
NULL_STDIO = 1
FIRST_STDIO = 3
#: What an event calls a process that has no id.
NO_PROCESS_ID = "(null)"
#: Where the numbers of a VM begin whose agent may still run processes of an earlier registration.
LATE_STDIO = 1 << 32
#: Seconds for which the other channel is read on after one has closed.
LAST_WORDS = 2.0


class VM:
    """
    A virtual machine and its agent.

    @ivar request: the RegisterVM that made it.
    @ivar containerId: its name.
    @ivar serial: tells it from others of the same name.
    @ivar state: where it is in its life.
    @ivar dialect: what is known of its agent.
    @ivar control: the connection of its control channel, while it has one.
    @ivar io: that of its I/O channel.
    @ivar commands: the commands for its agent.
    @ivar clients: those attached to it.
    @ivar sessions: all that have not ended.
    @ivar numbers: sessions whose start was sent, by each of their sequence numbers.
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
        self.request = request
        self.containerId = request.containerId
        self.serial = serial
        self.state = VMState.CONNECTING
        self.dialect = registry.agentDialect or Dialect.UNKNOWN
        self.control: IConnection | None = None
        self.io: IConnection | None = None
        self.commands = ControlQueue(self)
        self.stdin = StdinScheduler(self)
        self.flow = Flow(self)
        self.clients: set[Client] = set()
        self.sessions: set[Session] = set()
        self.numbers: dict[int, Session] = {}
        self.resync = True
        self.lostAt = 0.0
        self._processes: dict[tuple[str, str | None], Session] = {}
        self._parked: dict[StartCommand, Wait] = {}
        self._slot = slot
        self._controlOut: Outlet | None = None
        self._nextStdio = FIRST_STDIO
        self._nullFree = True
        self._readyMayCome = True
        self._notify = False
        self._waits: list[Wait] = []

    @property
    def log(self) -> Logger:
        """Where its events are noted."""
        return self.registry.log

    @property
    def fields(self) -> dict[str, object]:
        """What every log line about it says."""
        return {"vm": self.containerId, "serial": self.serial}

    def _advance(self, input: VMInput) -> None:
        self.state = advance(VM_TABLE, self.state, input)

    def _later(self, delay: float, action: Callable[..., object], *args: object) -> None:
        self._waits.append(self.registry.later(delay, action, *args))

    def _cancelWaits(self) -> None:
        for wait in self._waits:
            cancel(wait)
        self._waits.clear()

    # -- registration

    def beginRegistration(self) -> None:
        """Have its sockets connected; READY has its deadline from now on."""
        limits = self.registry.limits
        self._later(limits.readyTimeout, self._neverReady)
        self.registry.connector.connect(self)

    def connected(self, control: IConnection, io: IConnection) -> tuple[ControlSink, IOSink]:
        """
        Both channels are connected: the agent's READY is waited for.

        @return: the sinks of what comes on them.
        """
        self.control, self.io = control, io
        self._controlOut = Outlet(control, self.registry.budget)
        self._advance(VMInput.CONNECTED)
        self._later(self.registry.limits.readyPing, self._askPing)
        return ControlSink(self), IOSink(self)

    def connectFailed(self, reason: str) -> None:
        """
        A channel could not be connected.

        @param reason: which one and why.
        """
        self.failRegistration(RegistryError(f"{self.containerId}: {reason}"))

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
        self._nextStdio = LATE_STDIO + 2 * int(self.registry.wallClock())
        self._nullFree = False
        self._ready()

    def _ready(self) -> None:
        self._advance(VMInput.READY)
        self._cancelWaits()
        slot, self._slot = self._slot, None
        self.log.info(
            "VM registered",
            event="vm-registered",
            client=slot.client.name if slot else None,
            **self.fields,
        )
        if slot is not None:
            self.registry.registered(self, slot)

    def _neverReady(self) -> None:
        self.failRegistration(
            DeadlineExceeded(
                f"{self.containerId}: no READY from the agent on {self.request.ctlSerial}"
                f" within {self.registry.limits.readyTimeout:g} s"
            )
        )

    def failRegistration(self, error: RequestError) -> None:
        """It cannot be registered: nothing of it remains."""
        if self.state not in (VMState.CONNECTING, VMState.WAITING):
            return
        self._advance(VMInput.FAIL)
        self.log.warn(
            "VM not registered: {reason}", event="vm-failed", reason=str(error), **self.fields
        )
        self._close(error)
        self.registry.forget(self)
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.client.registering = None
            slot.fail(error)

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

    # -- tokens and sessions

    def newSession(self, token: str | None = None) -> Session:
        """A session with the next pair of numbers."""
        session = Session(self, self._nextStdio, self.registry.clock.seconds(), token)
        self._nextStdio += 2
        self.sessions.add(session)
        return session

    def tokens(self, count: int) -> list[str]:
        """
        Hand out tokens.

        @raise LimitReached: the VM has too many.
        """
        self._makeRoom(count)
        tokens = []
        for _ in range(count):
            token = self.registry.makeToken()
            self.registry.tokens[token] = self.newSession(token)
            tokens.append(token)
        return tokens

    def _makeRoom(self, count: int) -> None:
        """
        Make room for C{count} more sessions; the oldest tokens that nobody wants may have to go.

        @raise LimitReached: too few of them are unwanted, and old enough to tell.
        """
        limits = self.registry.limits
        excess = len(self.sessions) + count - limits.maxTokens
        if excess <= 0:
            return
        youngest = self.registry.clock.seconds() - limits.tokenTimeout
        unwanted = [
            session
            for session in self.sessions
            if session.claimable and session.created <= youngest
        ]
        if len(unwanted) < excess:
            raise LimitReached(
                f"{self.containerId}: no more than {limits.maxTokens} I/O tokens; end some of"
                " its processes, or raise --max-tokens"
            )
        unwanted.sort(key=lambda session: session.created)
        for session in unwanted[:excess]:
            session.vmGone()

    def detachedSession(self) -> Session:
        """
        A session for a process that was started without a token.

        @raise LimitReached: the VM has too many.
        """
        self._makeRoom(1)
        if self._nullFree:
            self._nullFree = False
            session = Session(self, NULL_STDIO, self.registry.clock.seconds())
            self.sessions.add(session)
        else:
            session = self.newSession()
        session.state = SessionState.DETACHED
        return session

    def freeSession(self, session: Session) -> None:
        """C{session} has ended."""
        self.dropProcess(session)
        self.sessions.discard(session)
        if session.stdio == NULL_STDIO:
            self._nullFree = True
        self.dropToken(session)

    def dropToken(self, session: Session) -> None:
        """The token of C{session} is void."""
        if session.token is not None:
            self.registry.tokens.pop(session.token, None)

    def claimProcess(self, session: Session, container: str, process: str | None) -> None:
        """
        C{session} is about to start a process: from now on it gets its output.

        @raise RequestError: a hyperstart 1.x has a live process of that name.
        """
        key = (container, process)
        if self.dialect is Dialect.HYPERSTART1 and key in self._processes:
            raise RequestError(
                f"{self.containerId}: process {str(process)[:64]} of container {container[:64]}"
                " is running"
            )
        self._processes[key] = session
        self.numbers[session.stdio] = self.numbers[session.stderr] = session

    def dropProcess(self, session: Session) -> None:
        """The process of C{session} has ended, or was not started."""
        if self.numbers.get(session.stdio) is session:
            del self.numbers[session.stdio], self.numbers[session.stderr]
        key = (session.container, session.process)
        if self._processes.get(key) is session:
            del self._processes[key]

    def processEvent(self, event: AsyncEvent | None) -> None:
        """hyperstart 1.x tells that a process has ended, unless what it tells is unreadable."""
        event = event or AsyncEvent("")
        if event.event and self.dialect.isHyperstart:
            self.learn(Dialect.HYPERSTART1)
        session = self._processes.get((event.container, event.process))
        if session is None and event.process == NO_PROCESS_ID:
            session = self._processes.get((event.container, None)) or self._processes.get(
                (event.container, FIRST_PROCESS)
            )
        if session is None or event.event != "finished" or event.status is None:
            self.log.info(
                "dropped the event {name} of a process that is none of ours",
                event="stray-event",
                name=event.event[:32],
                container=event.container[:128],
                **self.fields,
            )
            return
        session.exitEvent(event.status & 0xFF)

    # -- starts

    def start(self, start: StartCommand) -> None:
        """
        Send a start, once its shim is there.

        @raise RequestError: it cannot be sent.
        """
        session = start.session
        if session is not None:
            session.start = start
            if session.shim is None:
                start.slot.client.parked.add(start)
                self._parked[start] = self.registry.later(
                    self.registry.limits.shimTimeout, self._shimOverdue, start
                )
                return
        try:
            self.commands.add(start)
        except RequestError:
            if session is not None:
                session.start = None
            raise

    def checkStarts(self) -> None:
        """
        @raise VMGone: no process can be started any more.
        """
        if self.state is not VMState.REGISTERED:
            raise VMGone(f"{self.containerId}: VM is {self.state.value} and starts no process")

    def _noMoreStarts(self, error: RequestError) -> None:
        """Every start that was not sent fails, and whatever waits for one."""
        for start in list(self._parked):
            self.giveUp(start, error)
        for session in list(self.sessions):
            session.noStart(error)

    def shimArrived(self, start: StartCommand) -> None:
        """The shim that C{start} waits for is there."""
        wait = self._parked.pop(start, None)
        if wait is None:
            return
        cancel(wait)
        start.slot.client.parked.discard(start)
        try:
            self.commands.add(start)
        except RequestError as error:
            start.refused(error)

    def _shimOverdue(self, start: StartCommand) -> None:
        session = start.session
        self.giveUp(
            start,
            DeadlineExceeded(
                f"timeout waiting for shim with token {session.token if session else None}:"
                f" not connected within {self.registry.limits.shimTimeout:g} s"
                f" in VM {self.containerId}"
            ),
        )

    def giveUp(self, start: StartCommand, error: RequestError) -> None:
        """Fail C{start}, which was not sent."""
        cancel(self._parked.pop(start, None))
        start.slot.client.parked.discard(start)
        self.commands.withdraw(start)
        start.refused(error)

    # -- ends

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
        self._detachAll(VMGone(f"{self.containerId}: VM has been unregistered"))
        for session in [session for session in self.sessions if session.claimable]:
            session.vmGone()
        self.registry.forget(self)
        if self.control is None and self.io is None:
            self._cancelWaits()

    def _detachAll(self, error: RequestError) -> None:
        for client in self.clients:
            client.vm = None
        self.clients.clear()
        self.commands.drop(error, keep=True)
        self._noMoreStarts(error)

    def sendControl(self, message: bytes) -> None:
        """Send a message to the agent."""
        assert self._controlOut is not None
        self._controlOut.push(message)
        self._controlOut.flush()

    def controlWritable(self) -> None:
        """The control channel's socket has room again."""
        if self._controlOut is not None:
            self._controlOut.flush()

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
        error = VMGone(f"{self.containerId}: VM is lost: the {channel} channel {reason}")
        if self.state is VMState.WAITING:
            self.failRegistration(
                RegistryError(f"{self.containerId}: the {channel} channel {reason} before READY")
            )
            return
        poweredOff = self._poweringOff()
        if self.state in (VMState.REGISTERED, VMState.UNREGISTERED):
            known = self.state is VMState.REGISTERED
            self._advance(VMInput.LOSE)
            self.lostAt = self.registry.clock.seconds()
            self.log.emit(
                LogLevel.warn if known else LogLevel.info,
                "VM lost: the {channel} channel {reason}" if known else "VM gone",
                event="vm-lost" if known else "vm-gone",
                channel=channel,
                reason=reason,
                **self.fields,
            )
            self.commands.drop(error, keep=poweredOff)
            self._noMoreStarts(error)
            self._notify = known
            self._later(LAST_WORDS, self._lastWords, error)
            if known:
                self._later(self.registry.limits.lostTimeout, self._forgotten)
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
        """The other channel has had its time; while a full session holds it up, it has more."""
        if self.flow.blocker is not None and self.io is not None:
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
        for session in list(self.sessions):
            session.end()

    def _close(self, error: RequestError) -> None:
        """Close the channels, and end or hand over what is left to the sessions."""
        self.registry.connector.abandon(self)
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
        for session in list(self.sessions):
            session.vmGone(self._notify)
        self.registry.channelsClosed(self)

    def _forgottenWait(self) -> float | None:
        """Seconds until a lost VM is forgotten, or L{None} if it is not lost."""
        if self.state is not VMState.LOST:
            return None
        clock = self.registry.clock
        return max(0.0, self.lostAt + self.registry.limits.lostTimeout - clock.seconds())


def checkFree(vm: VM | None, containerId: str) -> None:
    """
    @raise AlreadyRegistered: C{vm} has the id and is not lost.
    """
    if vm is not None and vm.state is not VMState.LOST:
        raise AlreadyRegistered(containerId)
