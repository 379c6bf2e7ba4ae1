"""
Starts of processes that wait for their shims.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ..errors import DeadlineExceeded, RequestError
from .commands import StartCommand
from .context import Wait, cancel

if TYPE_CHECKING:
    from .vm import VM


class Starts:
    """
    The starts of one VM, until they are queued for its agent.
    """

    __slots__ = ("_parked", "_vm")

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._parked: dict[StartCommand, Wait] = {}

    @property
    def parked(self) -> Collection[StartCommand]:
        """Those that wait for their shims."""
        return self._parked

    def add(self, start: StartCommand) -> None:
        """
        Send a start, once its shim is there.
        """
        session = start.session
        if session is not None:
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
        start.slot.client.parked.add(start)
        self._parked[start] = self._vm.context.later(within, self._shimOverdue, start)

    def failAll(self, error: RequestError) -> None:
        """Every start that was not sent fails, and whatever waits for one."""
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
        """The shim that C{start} waits for is there."""
        wait = self._parked.pop(start, None)
        if wait is None:
            return
        cancel(wait)
        start.slot.client.parked.discard(start)
        self._send(start)

    def _send(self, start: StartCommand) -> None:
        """Send a start; with one that cannot be sent, what waits for the process fails too."""
        try:
            self._vm.commands.add(start)
        except RequestError as error:
            start.refused(error)

    def _shimOverdue(self, start: StartCommand) -> None:
        session = start.session
        self.giveUp(
            start,
            DeadlineExceeded(
                f"timeout waiting for shim with token {session.token if session else None}:"
                f" not connected within {self._vm.context.limits.shimTimeout:g} s"
                f" in VM {self._vm.containerId}"
            ),
        )

    def giveUp(self, start: StartCommand, error: RequestError) -> None:
        """Fail C{start}, which was not sent."""
        cancel(self._parked.pop(start, None))
        start.slot.client.parked.discard(start)
        self._vm.commands.withdraw(start)
        start.refused(error)
