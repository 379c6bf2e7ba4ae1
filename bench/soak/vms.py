"""
VMs whose agents listen on two sockets, as a hypervisor's character devices do.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from ccproxy.agent.agent import Agent
from ccproxy.agent.listening import SerialPort
from ccproxy.agent.protocols import ControlProtocol, IOProtocol
from ccproxy.wire.codes import Dialect

from .programs import ScriptedMachine


class ScriptedVM:
    """
    A VM whose programs do tasks, and whose agent is as mortal as the real one of its dialect.

    @ivar name: what the proxy knows it by.
    @ivar machine: where its tasks are.
    @ivar ended: whether it has ended, by itself or not.
    @ivar killed: whether we have ended it.
    @ivar unregistered: whether a client has asked for that.
    """

    def __init__(self, reactor: Any, folder: str, name: str, serial: int, dialect: Dialect) -> None:
        self.name = name
        self.dialect = dialect
        self.killed = False
        self.unregistered = False
        self.controlPath = os.path.join(folder, f"{name}.{serial}.ctl")
        self.ioPath = os.path.join(folder, f"{name}.{serial}.io")
        self.machine = ScriptedMachine(reactor)
        self._agent = Agent(dialect, self.machine, strict=True)
        self._agent.whenOff = self.machine.stop
        self._ports = [
            SerialPort(reactor, self.controlPath, partial(ControlProtocol, self._agent)),
            SerialPort(reactor, self.ioPath, partial(IOProtocol, self._agent)),
        ]

    @property
    def ended(self) -> bool:
        return self._agent.off

    @property
    def over(self) -> bool:
        """Whether what is asked of it may be refused."""
        return self.ended or self.unregistered

    def end(self) -> Deferred[Any]:
        """
        Switch it off, as a hypervisor does that is killed.

        @return: fires when its sockets are gone.
        """
        self.killed = True
        self._agent.end()
        return gatherResults([port.close() for port in self._ports])
