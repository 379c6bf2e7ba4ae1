"""
Starts of processes: they wait for their shims, are sent, and are answered.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Protocol

import attrs

from ..errors import DeadlineExceeded, RequestError
from ..wire.codes import Dialect
from .commands import StartCommand
from .context import Wait, cancel
from .ports import VMPort
from .processes import Processes
from .records import Left, Place, Reader, Writer, derived, transient
from .session import Session


class StartsVM(VMPort, Protocol):
    """A VM, as its starts know it."""

    processes: Processes


@attrs.define(eq=False)
class Starts:
    """
    The starts of one VM.
    """

    _vm: StartsVM = transient()
    _parked: dict[StartCommand, Wait] = transient(attrs.Factory(dict), init=False)

    def _written(self, writer: Writer) -> list[tuple[Place | None, float]]:
        return [
            (writer.place("commands", start), writer.left(wait) or 0.0)
            for start, wait in self._parked.items()
        ]

    def _read(self, parked: list[tuple[Place, float]], reader: Reader) -> None:
        for place, left in parked:
            self.park(reader.thing("commands", place), reader.left(left))

    DERIVED: ClassVar = (derived("parked", list[tuple[Place, Left]], list, _written, _read),)

    @property
    def parked(self) -> Collection[StartCommand]:
        """Those that wait for their shims."""
        return self._parked

    def add(self, start: StartCommand, session: Session | None) -> None:
        """
        Send a start, once its shim is there.

        @param session: that of its token, if it has one.
        """
        if session is not None:
            start.stdio = session.stdio
            session.start = start
            if session.shim is None:
                start.arrived = self._vm.context.clock.seconds()
                self.park(start, self._vm.context.limits.shimTimeout)
                return
        self._send(start)

    def park(self, start: StartCommand, within: float) -> None:
        """
        Let a start wait for its shim.

        @param within: for how many seconds.
        """
        start.slot.client.parked[start] = self.giveUp
        self._parked[start] = self._vm.context.later(within, self._shimOverdue, start)

    def failAll(self, error: RequestError) -> None:
        """Fail every start that was not sent, and whatever waits for one."""
        for start in list(self._parked):
            self.giveUp(start, error)
        for session in list(self._vm.processes.sessions):
            session.noStart(error)

    def repair(self) -> None:
        """Finish what a turn has begun that was cut short: see L{ccproxy.core.context}."""
        for start, wait in list(self._parked.items()):
            if not wait.active():
                self._shimOverdue(start)

    def shimArrived(self, start: StartCommand) -> None:
        """Send a start whose shim is there."""
        wait = self._parked.pop(start, None)
        if wait is None:
            return
        cancel(wait)
        start.slot.client.parked.pop(start, None)
        self._send(start)

    def _send(self, start: StartCommand) -> None:
        """Send a start; with one that cannot be sent, what waits for the process fails too."""
        try:
            self._vm.send(start)
        except RequestError as error:
            self.settle(start, error)

    def begin(self, start: StartCommand, dialect: Dialect) -> None:
        """
        Give a start that is about to be sent the numbers of its session.

        @param dialect: what is known of the agent now.
        @raise RequestError: this agent cannot be sent the start.
        """
        if dialect is Dialect.HYPERSTART0:
            start.data.checkHyperstart0()
        processes = self._vm.processes
        if start.stdio is None:
            session = processes.detached()
            start.stdio = session.stdio
        else:
            session = processes.byNumber[start.stdio]
        data = start.data
        session.begin(start.kind, data.container, start.process(dialect), data.terminal)

    def settle(self, start: StartCommand, answer: bytes | RequestError) -> None:
        """
        Tell all who wait for a start what has become of it.

        @param answer: the agent's answer, or why it has none.
        """
        session = self._session(start)
        if isinstance(answer, RequestError):
            start.slot.fail(answer)
            if session is not None:
                session.notStarted(start, answer)
        else:
            start.acknowledged = True
            start.slot.answer(answer)
            if session is not None:
                session.started()

    def _session(self, start: StartCommand) -> Session | None:
        return None if start.stdio is None else self._vm.processes.byNumber.get(start.stdio)

    def _shimOverdue(self, start: StartCommand) -> None:
        session = self._session(start)
        self.giveUp(
            start,
            DeadlineExceeded(
                f"timeout waiting for shim with token {session.token if session else None}:"
                f" not connected within {self._vm.context.limits.shimTimeout:g} s"
                f" in VM {self._vm.containerId}"
            ),
        )

    def giveUp(self, start: StartCommand, error: RequestError) -> None:
        """Fail a start that was not sent."""
        cancel(self._parked.pop(start, None))
        start.slot.client.parked.pop(start, None)
        self._vm.withdraw(start)
        self.settle(start, error)
