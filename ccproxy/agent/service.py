"""
The embedded agent as a Twisted service.
"""

from __future__ import annotations

import os
import pwd
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from ..net.monotonic import useMonotonicTime
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

    @ivar agent: the agent, from the first start of the service on.
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
        useMonotonicTime(reactor)
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
        control = SerialPort(self.reactor, self.controlPath, partial(ControlProtocol, agent))
        try:
            io = SerialPort(self.reactor, self.ioPath, partial(IOProtocol, agent))
        except OSError:
            control.close()
            raise
        self._ports = [control, io]
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
            vm=self.name,
        )

    def stopService(self) -> Deferred[None]:
        """
        End the VM: close and remove the sockets, kill all that was started.

        @return: fires when all its processes have been reaped.
        """
        super().stopService()
        if self.agent is not None:
            self.agent.off = True
        return self._end()

    def _poweredOff(self) -> None:
        self.log.info("embedded agent on {control} has powered off", control=self.controlPath)
        ending = self._end()
        ending.addErrback(lambda reason: self.log.failure("ending the embedded agent", reason))

    def _end(self) -> Deferred[None]:
        """Close the channels and end all processes; doing it twice is no harm."""
        ends = [port.close() for port in self._ports]
        if self._machine is not None:
            ends.append(Deferred.fromCoroutine(self._machine.stop()))
        return gatherResults(ends, consumeErrors=True).addCallback(lambda _: None)


def _user() -> str:
    try:
        # Not the environment's: twistd may have given up root's privileges.
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
