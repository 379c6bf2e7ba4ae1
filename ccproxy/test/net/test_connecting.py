"""
Which sockets a VM's console may be.
"""

from __future__ import annotations

import os
import socket
import tempfile

from ccproxy.net.connecting import CONSOLE_RETRY, Connector
from ccproxy.wire.codes import Command, ControlCode
from ccproxy.wire.messages import encodeControl

from ..memory import World
from ..sockets import SocketCase


class ConsoleTests(SocketCase):
    """P3: a console is looked at anew whenever it is connected."""

    def setUp(self) -> None:
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.inside = os.path.join(directory.name, "inside")
        self.outside = os.path.join(directory.name, "outside")
        os.mkdir(self.inside)
        os.mkdir(self.outside)
        self.world = World()
        connector = Connector(self.poller, [self.inside])
        connector.registry = self.world.registry
        self.world.registry.connector = connector
        self.addCleanup(self.world.registry.shutDown)

    def listen(self, *path: str) -> socket.socket:
        """Play a hypervisor's socket."""
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.setblocking(False)
        listening.bind(os.path.join(*path))
        listening.listen()
        return listening

    def register(self, console: str) -> None:
        """Register a VM with a console of that name."""
        control = self.listen(self.inside, "control")
        self.listen(self.inside, "io")
        paths = {"ctlSerial": "control", "ioSerial": "io", "console": console}
        client = self.world.client()
        client.send(
            Command.REGISTER_VM,
            {
                "containerId": "vm",
                **{name: os.path.join(self.inside, path) for name, path in paths.items()},
            },
        )
        self.agent = control.accept()[0]
        self.addCleanup(self.agent.close)
        self.agent.send(encodeControl(ControlCode.READY))
        self.turn(3)
        self.assertFalse(client.frame().error)

    def unreachable(self) -> str:
        """What the log says about the console."""
        (entry,) = self.world.logged("console-unreachable")
        return str(entry["reason"])

    def test_notThereYet(self) -> None:
        """One that comes later is read."""
        self.register("console")
        self.assertIn("No such file", self.unreachable())
        console = self.listen(self.inside, "console")
        self.world.clock.advance(CONSOLE_RETRY)
        console.accept()[0].close()

    def test_linkToTheOutside(self) -> None:
        """A link that leads out of C{--vm-socket-dir}, made after the registration, is refused."""
        self.register("console")
        outside = self.listen(self.outside, "console")
        os.symlink(os.path.join(self.outside, "console"), os.path.join(self.inside, "console"))
        self.world.clock.advance(CONSOLE_RETRY)
        self.assertRaises(BlockingIOError, outside.accept)

    def test_channel(self) -> None:
        """A channel of a VM is none: who waits there would have it once the VM is gone."""
        os.symlink("control", os.path.join(self.inside, "console"))
        self.register("console")
        self.assertIn("console is a channel of VM vm", self.unreachable())
