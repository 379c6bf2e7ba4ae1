"""
A session: one process in a VM, and the shim that stands for it on the host.

It has a token, by which the shim and the start command find it, and a pair of I/O sequence
numbers, by which the agent does. What the process writes is kept here until it has been written
whole to a shim (L{ccproxy.core.flow} says how much), and so is the stdin that waits for the
process.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Protocol

import attrs
from msgspec import Meta

from ..errors import AgentError, InternalError, NotAShim, RegistryError, RequestError
from ..wire.codes import ControlCode, Dialect, Stream
from ..wire.frames import encodeStream
from ..wire.messages import IO_HEADER, LOST_STATUS
from ..wire.payloads import Signal
from .commands import ControlCommand, SignalCommand, Slot, StartCommand, signalName
from .context import Context, Wait, cancel
from .exits import Exit
from .outlet import MOST_PER_SEND
from .output import Output, Shim
from .ports import VMPort
from .records import Count, custom, derived, moment, part, reference, saved, timer
from .signals import HeldForm, HeldSignals, readHeld, writeHeld
from .states import SESSION_TABLE, SessionInput, SessionState, advance
from .stdin import StdinQueue, StdinScheduler

#: Seconds that an absent shim has at least to come back after a crash: its deadline may have passed
#: while there was no daemon to come back to.
RECONNECT_TIME = 1.0
SIGKILL = 9
SIGTERM = 15
#: What hyperstart calls a container's first process that has no id.
FIRST_PROCESS = "init"
#: The most output in a frame, so that one is never sent in part: L{MOST_PER_SEND} says why. Agents'
#: messages are much shorter, as a rule.
MOST_PER_FRAME = MOST_PER_SEND - IO_HEADER.size
_ALIVE = (SessionState.STARTING, SessionState.RUNNING)


def shortToken(token: str) -> str:
    """A token as it may appear in a log: its first 6 characters."""
    return token[:6] + "..." if len(token) > 6 else token


class SessionTable(Protocol):
    """The sessions of a VM, as each of them knows it."""

    def begin(self, session: Session, container: str, process: str | None) -> None:
        """
        Let the agent's numbers and names lead to a session whose process is about to be started.

        @raise RequestError: a hyperstart 1.x has a live process of that name.
        """

    def end(self, session: Session) -> None:
        """Let the agent's numbers and names lead to it no longer."""

    def isNumbered(self, session: Session) -> bool:
        """Return whether the agent's numbers lead to a session."""

    def isNamed(self, session: Session) -> bool:
        """Return whether the agent's names lead to a session."""

    def number(self, session: Session) -> None:
        """Let the agent's numbers lead to a session."""

    def name(self, session: Session) -> None:
        """Let the agent's names lead to a session."""

    def free(self, session: Session) -> None:
        """Forget a session that has ended."""

    def dropToken(self, session: Session) -> None:
        """Make a session's token void."""


class ParkedStarts(Protocol):
    """The starts of a VM that wait for their shims, as its sessions know them."""

    def shimArrived(self, start: StartCommand) -> None:
        """Send a start whose shim is there."""

    def giveUp(self, start: StartCommand, error: RequestError) -> None:
        """Fail a start that was not sent."""

    def settle(self, start: StartCommand, answer: bytes | RequestError) -> None:
        """Tell all who wait for a start what the agent has answered."""


class SessionVM(VMPort, Protocol):
    """A VM, as its sessions know it."""

    stdin: StdinScheduler

    @property
    def processes(self) -> SessionTable: ...
    @property
    def starts(self) -> ParkedStarts: ...
    @property
    def startsProcesses(self) -> bool: ...
    @property
    def readFor(self) -> float: ...

    def recheck(self, session: Session) -> None:
        """A session may have room again, or has gained or lost its shim."""

    def checkStarts(self) -> None:
        """
        @raise RequestError: no process can be started any more.
        """


@attrs.define(eq=False)
class Session:
    """
    @ivar vm: its VM.
    @ivar token: its token, or L{None} once it has none.
    @ivar stdio: the sequence number of stdin and stdout; stderr has the next one.
    @ivar created: when it was made, in seconds of the clock.
    @ivar state: where it is in its life.
    @ivar start: the start command that names it, from its arrival to its answer.
    @ivar kind: C{NEWCONTAINER} for a container's first process, C{EXECCMD} for another.
    @ivar container: its container's id.
    @ivar process: its process's id, where it has one.
    @ivar terminal: whether it has a terminal.
    @ivar output: what its shim is owed.
    @ivar stdin: what its process is owed.
    @ivar exit: the end of its process.
    @ivar held: signals that wait for the start.
    @ivar killed: it was ended by a signal before its start was sent.
    @ivar crashLoss: how many bytes of output and stdin crashes of the daemon have cost it.
    """

    vm: SessionVM = reference("vms")
    stdio: int = saved(type=Annotated[int, Meta(ge=0, lt=1 << 62)])
    created: float = moment()
    token: str | None = saved(None)
    state: SessionState = saved(SessionState.CREATED)
    start: StartCommand | None = reference("commands", None)
    kind: ControlCode = saved(ControlCode.NEWCONTAINER)
    container: str = saved("")
    process: str | None = saved(None)
    terminal: bool = saved(False)
    killed: bool = saved(False)
    crashLoss: tuple[int, int] = saved((0, 0), type=tuple[Count, Count])
    output: Output = part()
    stdin: StdinQueue = part()
    exit: Exit = part()
    held: HeldSignals = custom("held", list[HeldForm], list, writeHeld, readHeld)
    _claimed: bool = saved(False)
    _acked: bool = saved(False)
    _closeAfter: bool = saved(False)
    _endWait: Wait | None = timer("_giveUp", key="endIn", grace=RECONNECT_TIME)

    DERIVED: ClassVar = (
        derived(
            "numbered",
            bool,
            False,
            lambda session, _: session.vm.processes.isNumbered(session),
            lambda session, numbered, _: numbered and session.vm.processes.number(session),
        ),
        derived(
            "named",
            bool,
            False,
            lambda session, _: session.vm.processes.isNamed(session),
            lambda session, named, _: named and session.vm.processes.name(session),
        ),
        derived(
            "lostOutput",
            Count,
            0,
            lambda session, writer: session.exit.undelivered if writer.crash else 0,
        ),
    )

    def __attrs_post_init__(self) -> None:
        self.output = Output(self.context.budget)
        self.stdin = StdinQueue(self.context.budget, self.stdio, self._stdinTaken)
        self.held = HeldSignals(self)
        self.exit = Exit(self)

    @property
    def context(self) -> Context:
        """What it shares with all others."""
        return self.vm.context

    @property
    def containerId(self) -> str:
        """The id of its VM."""
        return self.vm.containerId

    @property
    def status(self) -> int | None:
        """The exit status, once the agent has told it."""
        return self.exit.status

    @property
    def readFor(self) -> float:
        """For how many seconds the output of its VM has been read without a pause."""
        return self.vm.readFor

    def changed(self) -> None:
        """Note that it is to be written down."""
        self.context.changed(self.vm)

    @property
    def shim(self) -> Shim | None:
        """The connected shim."""
        return self.output.shim

    @property
    def stderr(self) -> int:
        """The sequence number of stderr."""
        return self.stdio + 1

    @property
    def name(self) -> str:
        """What logs call it: its token, shortened, or its number."""
        return shortToken(self.token) if self.token else f"number {self.stdio}"

    @property
    def fields(self) -> dict[str, object]:
        """What every log line about it says."""
        return {**self.vm.fields, "session": self.name, "container": self.container or None}

    @property
    def claimable(self) -> bool:
        """Whether nobody has claimed its token yet, and no start names it."""
        return self.state is SessionState.CREATED and not self._claimed and self.start is None

    def _advance(self, input: SessionInput) -> None:
        state = advance(SESSION_TABLE, self.state, input)
        self.changed()
        self.state = state

    # -- the shim

    def claim(self, shim: Shim) -> None:
        """C{shim} has connected: it gets what is pending, then what comes."""
        cancel(self._endWait)
        self._claimed = True
        self.output.connect(shim)
        self.vm.log.info("shim connected", event="shim-connected", client=shim.name, **self.fields)
        self._deliverExit()
        start = self.start
        if start is not None and self.state is SessionState.CREATED:
            self.vm.starts.shimArrived(start)
        self.vm.recheck(self)
        if self._closeAfter:
            shim.finishAfterOutput()

    def shimGone(self) -> None:
        """The shim's connection was lost: what was not delivered is kept for the next one."""
        shim = self.shim
        if shim is None:
            return
        self.changed()
        self.output.disconnect()
        self.exit.shimGone()
        self.vm.log.info("shim gone", event="shim-gone", client=shim.name, **self.fields)
        self.vm.recheck(self)
        if self._closeAfter:
            self._endSoon()

    def release(self) -> None:
        """The shim has disconnected: the token is void, and the process's output is dropped."""
        running = self.state in (SessionState.STARTING, SessionState.RUNNING)
        self.vm.log.info("shim disconnected", event="shim-disconnected", **self.fields)
        self._fail(RequestError(f"shim disconnected from token {self.name}"))
        self._advance(SessionInput.RELEASE)
        self._forgetOutput()
        self.vm.processes.dropToken(self)
        if running:
            self.takeInput(b"")
        else:
            self._free()

    # -- start

    def begin(self, kind: ControlCode, container: str, process: str | None, terminal: bool) -> None:
        """
        Its start is about to be sent.

        @raise RequestError: this hyperstart has a process of that name already.
        """
        if process is None and kind is ControlCode.NEWCONTAINER:
            process = FIRST_PROCESS
        self.vm.processes.begin(self, container, process)
        self.kind, self.container, self.process = kind, container, process
        self.terminal = terminal
        self._advance(SessionInput.START)

    def started(self) -> None:
        """The agent has acknowledged the start: what was held goes through."""
        self._advance(SessionInput.ACK)
        self._acked = True
        start, self.start = self.start, None
        self.vm.log.info(
            "process started",
            event="process-started",
            command=self.kind.name.lower(),
            client=start.slot.client.name if start else None,
            **self.fields,
        )
        self._goOn()

    def _goOn(self) -> None:
        """Let through what has waited for the process."""
        self.exit.retry()
        self.held.release()
        if self.stdin:
            self.vm.stdin.add(self.stdin)

    def notStarted(self, start: StartCommand, error: RequestError) -> None:
        """The start was refused, or not even sent. Its token can be used for another try."""
        self.changed()
        if self.start is start:
            self.start = None
            self.held.fail(RequestError(f"the process was not started: {error}"))
        if self.state is SessionState.STARTING:
            self.exit.forget()
            self.vm.processes.end(self)
            self.output.dropping, self.output.dropped = False, 0
            if isinstance(error, AgentError):
                self._dropUndelivered()
            self._advance(SessionInput.REFUSE)
            if not self.vm.startsProcesses:
                self._neverStarts()
        elif self.state is SessionState.DETACHED:
            self._advance(SessionInput.REFUSE)
            self._free()

    # -- output

    def received(self, number: int, body: bytes) -> None:
        """The agent sent C{body} on one of the session's numbers."""
        if self.state in (SessionState.CREATED, SessionState.EXITED, SessionState.ENDED):
            return
        if number == self.stdio:
            if not body:
                self.exit.end()
                return
            inBand = self.vm.dialect is not Dialect.HYPERSTART1
            if self.exit.ended and inBand and len(body) == 1:
                self.exited(body[0])
                return
            self.exit.goOn()
        elif not body:
            return
        if self.state is SessionState.DETACHED:
            return
        if self.output.dropping:
            self.output.dropped += len(body)
            return
        stream = Stream.STDOUT if number == self.stdio else Stream.STDERR
        for at in range(0, len(body), MOST_PER_FRAME):
            self.output.queue(encodeStream(stream, body[at : at + MOST_PER_FRAME]))

    def roomFor(self, number: int, size: int) -> int:
        """
        How many bytes of messages can be translated in place now, for L{output}.

        @param number: the messages' number.
        @param size: the length of one of them, header included.
        @return: 0 if L{received} has to look at the next message.
        """
        # After an empty message it may be the exit status, or show that the output goes on.
        if not self._flowing or size <= IO_HEADER.size or self.exit.ended:
            return 0
        return self.output.room

    @property
    def _flowing(self) -> bool:
        """Whether output goes to the shim, or is kept for one."""
        return not self.output.dropping and self.state in _ALIVE

    def dropOutput(self) -> None:
        """Nobody has taken its output for too long: what follows is dropped, but for its end."""
        self.output.dropping = True
        self.vm.log.warn(
            "nobody reads the output of the process: it is dropped from now on",
            event="output-dropped",
            **self.fields,
        )

    def _dropUndelivered(self) -> None:
        self.output.forget()
        self.vm.recheck(self)

    def _forgetOutput(self) -> None:
        """Drop all that was not delivered, and leave the shim."""
        self._dropUndelivered()
        if self.output.shim is not None:
            self.output.shim.leaveSession()
            self.output.shim = None

    # -- exit

    def exited(self, status: int) -> None:
        """
        The process has ended, all its output has come, and nothing more will.

        @param status: 0 to 255.
        """
        self.exit.status = status
        detached = self.state is SessionState.DETACHED
        if self.state is SessionState.STARTING or (detached and not self._acked):
            self.changed()
            return  # until the answer to the start has gone to its client
        self.exit.cancel()
        self._fail(RequestError("process has exited"))
        self._advance(SessionInput.EXIT)
        self.vm.log.info(
            "process exited with {status}",
            event="process-exited",
            status=status,
            dropped=self.output.dropped or None,
            **self.fields,
        )
        self._forgetStdin()
        self.vm.processes.end(self)
        if detached:
            self._free()
        else:
            self._deliverExit()

    def _deliverExit(self) -> None:
        """Have the exit status delivered, if the process has exited."""
        if self.state is SessionState.EXITED:
            self.exit.deliver()

    def exitAgain(self) -> None:
        """The status may not have been delivered before a crash: twice is better than never."""
        if self.state is SessionState.EXITED:
            self.exit.deliverAgain()

    # -- signals

    def signal(self, slot: Slot, signal: Signal) -> None:
        """
        The shim sends a signal.

        @raise RequestError: it cannot reach the process.
        """
        self.checkAlive()
        if self.state is SessionState.CREATED:
            if signal.signalNumber in (SIGKILL, SIGTERM):
                self._killed()
                slot.answer()
            else:
                self.vm.checkStarts()
                self.held.add(slot, signal)
        elif self.state is SessionState.STARTING:
            self.held.add(slot, signal)
        else:
            command = SignalCommand(
                name=signalName(signal),
                slot=slot,
                signal=signal,
                stdio=self.stdio,
                startedBy=self.kind,
                container=self.container,
                process=self.process,
            )
            command.code(self.vm.dialect)
            self.vm.send(command)

    def checkAlive(self) -> None:
        """
        @raise RequestError: the process has ended.
        """
        if self.state in (SessionState.EXITED, SessionState.ENDED):
            raise RequestError("process has exited")

    def _killed(self) -> None:
        """SIGKILL or SIGTERM before the start was sent: there will be no process."""
        error = RequestError("process was killed before its start")
        self._fail(error)
        self.exit.status = 0
        self.killed = True
        self._advance(SessionInput.EXIT)
        self.vm.log.info("process killed before its start", event="process-exited", **self.fields)
        self._forgetStdin()
        self._deliverExit()

    def noStart(self, error: RequestError) -> None:
        """Its VM starts no more processes: what waits for one fails."""
        if self.state is SessionState.CREATED:
            self._fail(error)
            self._neverStarts()

    def _neverStarts(self) -> None:
        """No process will read its stdin, which must not stand before the shim's signals."""
        self.stdin.ended = True
        self._forgetStdin()

    def _fail(self, error: RequestError) -> None:
        """Nothing that waits for the process can come true: those who wait are told."""
        start, self.start = self.start, None
        if start is not None and self.state is SessionState.CREATED:
            self.vm.starts.giveUp(start, error)
        self.held.fail(error)

    # -- stdin

    def takeInput(self, data: bytes) -> None:
        """
        stdin from the shim; empty at its end.
        """
        if self.stdin.ended or self.state in (SessionState.EXITED, SessionState.ENDED):
            return
        self.stdin.add(data)
        if not data:
            self.changed()
        if self._acked:
            self.vm.stdin.add(self.stdin)

    def _stdinTaken(self) -> None:
        """
        Note that stdin was given to the channel's socket: the shim may be read again. If the socket
        had no room for it, this is called once more when it has taken it.
        """
        if self.stdin.ended and not self.stdin:
            # After a crash its end is not sent a second time.
            self.changed()
        if self.shim is not None and self.stdin.hasRoom:
            self.shim.wake()

    def _forgetStdin(self) -> None:
        self.vm.stdin.remove(self.stdin)
        self.stdin.clear()
        if self.shim is not None:
            self.shim.wake()

    # -- ends

    def vmGone(self, notify: bool = False) -> None:
        """
        The VM's channels have closed, or nobody wants the token.

        @param notify: tell a shim that has no exit status that its process is lost. That of a VM
            that was unregistered knows: it is closed, and no more.
        """
        if self._closeAfter:
            return
        self.exit.cancel()
        self._fail(RequestError(f"VM {self.vm.containerId} is gone"))
        if self.state is SessionState.DETACHED or self.claimable:
            self.end()
            return
        if self.state is not SessionState.EXITED and (notify or self.status is not None):
            self.exit.status = LOST_STATUS if self.status is None else self.status
            self._advance(SessionInput.EXIT)
            self._forgetStdin()
            self._deliverExit()
        self._closeAfter = True
        if self.shim is not None:
            self.shim.finishAfterOutput()
        else:
            self._endSoon()

    def _endSoon(self) -> None:
        """Keep what is undelivered for a shim that may come back, but not for ever."""
        if not self.output.pending:
            self.end()
            return
        context = self.context
        self._endWait = context.later(context.limits.undeliveredTimeout, self._giveUp)

    def _giveUp(self) -> None:
        """Nobody came for it."""
        self.vm.log.warn(
            "dropped {dropped} bytes of output that no shim came for",
            event="undelivered",
            dropped=self.exit.undelivered + self.output.dropped,
            **self.fields,
        )
        self.end()

    def end(self) -> None:
        """Nothing of it is wanted any more."""
        self._forgetOutput()
        self._advance(SessionInput.END)
        self._free()

    def repair(self, commands: Collection[ControlCommand]) -> None:
        """
        Finish what a turn has begun that was cut short: see L{ccproxy.core.context}.

        @param commands: those that will still be answered.
        """
        start = self.start
        if start is not None and start not in commands:
            if start.acknowledged:
                self.vm.starts.settle(start, b"")
            else:
                self.vm.starts.giveUp(start, InternalError())
        self.held.repair()
        if self.shim is not None and self.shim.session is not self:
            self.output.disconnect()
        if self.state is SessionState.ENDED:
            self._free()
            return
        if self.state is SessionState.RUNNING:
            self._goOn()
        elif self.state is SessionState.EXITED:
            self._fail(RequestError("process has exited"))
            self._forgetStdin()
            self.vm.processes.end(self)
            self._deliverExit()
        elif self.state is SessionState.DETACHED and self.token is not None:
            self._forgetOutput()
            self.vm.processes.dropToken(self)
            self.takeInput(b"")
        if self._closeAfter:
            if self.shim is not None:
                self.shim.finishAfterOutput()
            elif self._endWait is None or not self._endWait.active():
                self._endSoon()

    def _free(self) -> None:
        """It has ended: nobody finds it any more."""
        self.exit.cancel()
        cancel(self._endWait)
        self._forgetStdin()
        self.vm.processes.free(self)


def requireSession(session: Session | None) -> Session:
    """
    @raise NotAShim: the client has none.
    """
    if session is None:
        raise NotAShim()
    return session


def unusable(session: Session) -> RegistryError | None:
    """Why a new start cannot use the session's token, or L{None} if it can."""
    if session.killed:
        return RegistryError("process was killed before its start")
    if session.start is not None or session.state is not SessionState.CREATED:
        return RegistryError(f"token {session.name} is used by another process already")
    return None
