"""
The processes of a VM: its sessions, and how the agent's numbers and names lead to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, ValuesView
from contextlib import contextmanager
from typing import ClassVar, Protocol

import attrs

from ..errors import LimitReached, RequestError
from ..wire.codes import Dialect
from ..wire.messages import LOST_STATUS, AsyncEvent
from .commands import Slot
from .records import Count, Place, Reader, Writer, derived, saved, transient
from .session import FIRST_PROCESS, Session, SessionVM
from .states import SessionState

#: The sequence numbers of the null session: docs/protocol, "Relocation".
NULL_STDIO = 1
FIRST_STDIO = 3
#: What an event calls a process that has no id.
NO_PROCESS_ID = "(null)"


class Tokens(Protocol):
    """
    The registry, as far as tokens and numbers are concerned.

    @ivar tokens: sessions by token.
    @ivar makeToken: makes a new token.
    @ivar makeBase: makes the base of a VM's sequence numbers.
    """

    tokens: dict[str, Session]

    @property
    def makeToken(self) -> Callable[[], str]: ...
    @property
    def makeBase(self) -> Callable[[], int]: ...


@attrs.define(eq=False)
class Processes:
    """
    The sessions of one VM.

    @ivar byNumber: all that have not ended, by the sequence number of their stdin and stdout.
    @ivar numbers: those whose start was sent, by each of their sequence numbers.
    @ivar base: what is added to every sequence number; 0 for a VM whose READY came.
    """

    _vm: SessionVM = transient()
    _registry: Tokens = transient()
    byNumber: dict[int, Session] = transient(attrs.Factory(dict), init=False)
    numbers: dict[int, Session] = transient(attrs.Factory(dict), init=False)
    _named: dict[tuple[str, str | None], Session] = transient(attrs.Factory(dict), init=False)
    base: int = saved(0, type=Count, init=False)
    _nextStdio: int = saved(FIRST_STDIO, type=Count, init=False)
    _nullFree: bool = saved(True, init=False)

    def _written(self, writer: Writer) -> list[Place | None]:
        return [writer.place("sessions", each) for each in self.sessions]

    def _read(self, sessions: list[Place], reader: Reader) -> None:
        for place in sessions:
            session = reader.thing("sessions", place)
            self.byNumber[session.stdio] = session

    DERIVED: ClassVar = (derived("sessions", list[Place], list, _written, _read),)

    @property
    def sessions(self) -> ValuesView[Session]:
        """All sessions that have not ended."""
        return self.byNumber.values()

    def beginLate(self) -> None:
        """
        Move all numbers by a fresh base, before the first one is handed out: the agent may run
        processes of an earlier registration.
        """
        self.base = self._registry.makeBase()
        self._nextStdio += self.base

    def new(self, token: str | None = None) -> Session:
        """A session with the next pair of numbers."""
        session = self._add(self._nextStdio, token)
        self._nextStdio += 2
        return session

    def _add(self, stdio: int, token: str | None = None) -> Session:
        session = Session(self._vm, stdio, self._vm.context.clock.seconds(), token)
        self.byNumber[stdio] = session
        return session

    @contextmanager
    def tokens(self, count: int, slot: Slot) -> Iterator[list[str]]:
        """
        Hand out tokens. If an exception keeps them from being told, they end.

        @param slot: the place of the response that tells them.
        @raise LimitReached: the VM has too many.
        """
        self.makeRoom(count)
        sessions: list[Session] = []
        try:
            for _ in range(count):
                token = self._registry.makeToken()
                sessions.append(self.new(token))
                self._registry.tokens[token] = sessions[-1]
            yield [session.token or "" for session in sessions]
        except Exception:
            if slot.reply is None:
                for session in sessions:
                    session.end()
            raise

    def makeRoom(self, count: int) -> None:
        """
        Make room for C{count} more sessions; the oldest tokens that nobody wants may have to go.

        @raise LimitReached: too few of them are unwanted, and old enough to tell.
        """
        limits = self._vm.context.limits
        excess = len(self.sessions) + count - limits.maxTokens
        if excess <= 0:
            return
        youngest = self._vm.context.clock.seconds() - limits.tokenTimeout
        unwanted = [
            session
            for session in self.sessions
            if session.claimable and session.created <= youngest
        ]
        if len(unwanted) < excess:
            raise LimitReached(
                f"{self._vm.containerId}: no more than {limits.maxTokens} I/O tokens; end some of"
                " its processes, or raise --max-tokens"
            )
        unwanted.sort(key=lambda session: session.created)
        for session in unwanted[:excess]:
            session.vmGone()

    def detached(self) -> Session:
        """
        A session for a process that was started without a token.

        @raise LimitReached: the VM has too many.
        """
        self.makeRoom(1)
        if self._nullFree:
            self._nullFree = False
            session = self._add(self.base + NULL_STDIO)
        else:
            session = self.new()
        session.state = SessionState.DETACHED
        return session

    def free(self, session: Session) -> None:
        """C{session} has ended."""
        self.end(session)
        if self.byNumber.get(session.stdio) is session:
            del self.byNumber[session.stdio]
            self._nullFree = self._nullFree or session.stdio == self.base + NULL_STDIO
        self.dropToken(session)

    def dropToken(self, session: Session) -> None:
        """The token of C{session} is void."""
        if session.token is not None:
            self._registry.tokens.pop(session.token, None)

    def begin(self, session: Session, container: str, process: str | None) -> None:
        """
        C{session} is about to start a process: from now on it gets its output.

        @raise RequestError: a hyperstart 1.x has a live process of that name.
        """
        key = container, process
        if self._vm.dialect is Dialect.HYPERSTART1 and key in self._named:
            raise RequestError(
                f"{self._vm.containerId}: process {str(process)[:64]} of container {container[:64]}"
                " is running"
            )
        self._named[key] = session
        self.number(session)

    def isNumbered(self, session: Session) -> bool:
        """Return whether the agent's numbers lead to a session."""
        return self.numbers.get(session.stdio) is session

    def isNamed(self, session: Session) -> bool:
        """Return whether the agent's names lead to a session."""
        return self._named.get((session.container, session.process)) is session

    def number(self, session: Session) -> None:
        """Let the agent's numbers lead to a session."""
        self.numbers[session.stdio] = self.numbers[session.stderr] = session

    def name(self, session: Session) -> None:
        """Let the agent's names lead to a session."""
        self._named[session.container, session.process] = session

    def end(self, session: Session) -> None:
        """The process of C{session} has ended, or was not started."""
        if self.isNumbered(session):
            del self.numbers[session.stdio], self.numbers[session.stderr]
        if self.isNamed(session):
            del self._named[session.container, session.process]

    def event(self, event: AsyncEvent) -> None:
        """hyperstart 1.x tells that a process has ended."""
        if event.event and self._vm.dialect.isHyperstart:
            self._vm.learn(Dialect.HYPERSTART1)
        container, process = event.container or "", event.process or NO_PROCESS_ID
        session = self._named.get((container, process))
        if session is None and process == NO_PROCESS_ID:
            session = self._named.get((container, None)) or self._named.get(
                (container, FIRST_PROCESS)
            )
        if session is None or event.event != "finished":
            self._vm.log.info(
                "dropped the event {name} of a process that is none of ours",
                event="stray-event",
                name=event.event[:32],
                container=container[:128],
                **self._vm.fields,
            )
            return
        status = event.exitStatus
        if status is None and session.status is None:
            status = LOST_STATUS
            self._vm.log.warn(
                "the agent told the exit status {told}, which is no integer from 0 to 255: the"
                " process counts as exited with {status}",
                event="bad-status",
                told=bytes(event.status).decode("utf-8", "replace")[:64] or "(none)",
                status=status,
                **session.fields,
            )
        if status is not None:
            session.exit.tell(status)
