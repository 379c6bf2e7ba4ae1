"""
A VM, as the objects that belong to it know it. They cannot import the class, which imports them.

Each of their modules adds to L{VMPort} what it needs besides.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.logger import Logger

from ..interfaces import IConnection
from ..wire.codes import Dialect
from .commands import ControlCommand
from .context import Context
from .tally import Traffic


class VMPort(Protocol):
    """A L{VM <ccproxy.core.vm.VM>}."""

    containerId: str
    context: Context
    io: IConnection | None
    traffic: Traffic

    @property
    def dialect(self) -> Dialect: ...
    @property
    def fields(self) -> dict[str, Any]: ...
    @property
    def log(self) -> Logger: ...

    def send(self, command: ControlCommand) -> None:
        """
        Queue a command for the agent.

        @raise ccproxy.errors.RequestError: it cannot be sent, or too many wait already.
        """

    def withdraw(self, command: ControlCommand) -> None:
        """Take back a command if it still waits."""

    def learn(self, dialect: Dialect) -> None:
        """The agent has shown what it is."""

    def channelBroken(self, io: bool) -> None:
        """An internal error has made it unknown what was read from a channel, or written to it."""
