"""
The embedded agent as a Twisted service.
"""

from __future__ import annotations

import getpass
import os
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..wire.codes import Dialect
from .agent import Agent
from .listening import SerialPort
from .machine import Machine
from .protocols import ControlProtocol, IOProtocol


class EmbeddedAgent(Service):
    """
    A VM without a VM: an agent whose two channels are UNIX sockets, as a hypervisor offers them.

    B{It gives no isolation.} What it is told to run, runs on this machine as this user.

    Each start of the service is the life of one VM, with a READY of its own.

    @ivar agent: the agent, while the service runs.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        controlPath: str,
        ioPath: str,
        dialect: Dialect = Dialect.CC,
        strict: bool = False,
    ) -> None:
        """
        @param reactor: needs IReactorFDSet, IReactorTime and IReactorSocket.
        @param controlPath: where the control channel listens.
        @param ioPath: where the I/O channel listens.
        @param dialect: which agent it plays: cc, hyperstart0 or hyperstart1.
        @param strict: whether it plays the real agents' weaknesses too, see L{Agent}.
        """
        self.reactor = reactor
        self.controlPath = controlPath
        self.ioPath = ioPath
        self.dialect = dialect
        self.strict = strict
        self.agent: Agent | None = None
        self._machine: Machine | None = None
        self._ports: list[SerialPort] = []

    def startService(self) -> None:
        """
        Listen on both sockets.

        @raise OSError: one of them cannot be listened on.
        """
        machine = Machine(self.reactor)
        agent = Agent(self.dialect, machine, self.strict)
        agent.whenOff = self._poweredOff
        try:
            self._ports.append(
                SerialPort(
                    self.reactor, self.controlPath, lambda lost: ControlProtocol(agent, lost)
                )
            )
            self._ports.append(
                SerialPort(self.reactor, self.ioPath, lambda lost: IOProtocol(agent, lost))
            )
        except OSError:
            self._closePorts()
            raise
        self._machine = machine
        self.agent = agent
        super().startService()
        self.log.warn(
            "embedded {dialect} agent on {control} and {io}: NO ISOLATION, what it is told to run"
            " runs on this machine as user {user}",
            dialect=self.dialect.value,
            control=self.controlPath,
            io=self.ioPath,
            user=_user(),
        )

    def stopService(self) -> Deferred[None]:
        """
        End the VM: close and remove the sockets, kill all that was started.

        @return: fires when all its processes have been reaped.
        """
        super().stopService()
        self._closePorts()
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.off = True
        return Deferred.fromCoroutine(self._stopMachine())

    def _closePorts(self) -> None:
        ports, self._ports = self._ports, []
        for port in ports:
            port.close()

    def _poweredOff(self) -> None:
        """The agent has ended by itself; its processes end with it, as with a real VM."""
        self.log.info("embedded agent on {control} has powered off", control=self.controlPath)
        self._closePorts()
        stopping = Deferred.fromCoroutine(self._stopMachine())
        stopping.addErrback(lambda reason: self.log.failure("stopping the embedded agent", reason))

    async def _stopMachine(self) -> None:
        if self._machine is not None:
            await self._machine.stop()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
