"""
Tests for the agent as a guest's first process: L{ccproxy.agent.guestports} and
L{ccproxy.agent.guestmachine}. What needs a kernel of its own is in C{ccproxy.test.vm}.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.agent import guestmachine, guestports
from ccproxy.agent.agent import Agent
from ccproxy.agent.guestports import VirtioPort, findPort
from ccproxy.agent.interfaces import Root, StartError
from ccproxy.agent.protocols import IOProtocol
from ccproxy.test.agent.doubles import FakeMachine
from ccproxy.testing.daemon import environment
from ccproxy.wire.codes import Dialect
from ccproxy.wire.messages import encodeIO

REAPING = """
import ctypes, os, subprocess, time
from ccproxy.agent import reaping
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
own = subprocess.Popen(["true"])
reaping.own.add(own.pid)
subprocess.run(["sh", "-c", "sleep 0 & sleep 0 & sleep 600 &"])
children = f"/proc/self/task/{os.getpid()}/children"
zombies = lambda: sum(
    open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    for pid in open(children).read().split()
)
while zombies() < 3:
    time.sleep(0.01)
reaping.reapOrphans()
left = open(children).read().split()
print(zombies(), len(left), str(own.pid) in left)
for pid in left:
    os.kill(int(pid), 9)
"""


class PortTests(SynchronousTestCase):
    """A port: hosts come, go, and come back."""

    def setUp(self) -> None:
        self.reactor = EPollReactor()
        self.agent = Agent(Dialect.CC, FakeMachine())
        self.ends: list[socket.socket] = []
        self.hosts: list[socket.socket] = []
        self.port = VirtioPort(
            self.reactor, "port", lambda lost: IOProtocol(self.agent, lost), self.open
        )

    def tearDown(self) -> None:
        self.reactor.fireSystemEvent("shutdown")
        os.close(self.port._fd)
        for end in [*self.ends, *self.hosts]:
            end.close()

    def open(self, path: str, flags: int) -> int:
        """
        Open the port: a socket whose other end is the next host. It is hung up when that is
        closed, as a port is.
        """
        end, host = socket.socketpair()
        end.setblocking(False)
        host.setblocking(False)
        self.ends.append(end)
        self.hosts.append(host)
        return os.dup(end.fileno())

    def until(self, probe: Callable[[], object]) -> None:
        """Run the reactor until something is true."""
        deadline = self.reactor.seconds() + 60
        while not probe():
            self.assertLess(self.reactor.seconds(), deadline)
            self.reactor.iterate(0.02)

    def received(self) -> bytes:
        """What comes to the host, at once."""
        poll = select.poll()
        poll.register(self.hosts[-1], select.POLLIN)
        self.until(lambda: poll.poll(0))
        return self.hosts[-1].recv(1 << 16)

    def drop(self) -> None:
        """The host goes, and the next is there."""
        count = len(self.hosts)
        self.ends[-1].close()
        self.hosts[-1].close()
        self.until(lambda: len(self.hosts) > count and self.agent.outputFlows)

    def test_back(self) -> None:
        """
        The next host gets whole messages from the beginning, whatever the last one has not read or
        has sent in part.
        """
        self.until(lambda: self.agent.outputFlows)
        self.hosts[-1].send(encodeIO(3, b"x" * 100)[:50])
        self.agent.io.send(encodeIO(3, b"a" * (1 << 20)))
        self.assertTrue(self.received().startswith(encodeIO(3, b"a" * (1 << 20))[:100]))
        self.drop()
        self.agent.io.send(encodeIO(5, b"whole"))
        self.assertEqual(self.received(), encodeIO(5, b"whole"))

    def test_held(self) -> None:
        """What is said while there is no host waits for the next one."""
        self.until(lambda: self.agent.outputFlows)
        self.ends[-1].close()
        self.hosts[-1].close()
        self.until(lambda: not self.agent.outputFlows)
        self.agent.io.send(encodeIO(3))
        self.until(lambda: self.agent.outputFlows)
        self.assertEqual(self.received(), encodeIO(3))

    def test_unread(self) -> None:
        """A host that goes while it is not read is noticed too."""
        self.until(lambda: self.agent.outputFlows)
        self.agent.io.pause("unread stdin")
        self.hosts[-1].send(b"garbage of the last one")
        self.drop()
        self.agent.io.resume("unread stdin")
        self.agent.io.send(encodeIO(4))
        self.assertEqual(self.received(), encodeIO(4))

    def test_slow(self) -> None:
        """A host that does not read stops the output until it does."""
        self.until(lambda: self.agent.outputFlows)
        self.agent.io.send(encodeIO(3, b"a" * (1 << 21)))
        self.until(lambda: not self.agent.outputFlows)
        seen = 0
        while seen < (1 << 21) + 12:
            seen += len(self.received())
        self.until(lambda: self.agent.outputFlows)

    def test_names(self) -> None:
        """Ports are found by their names; one that is not there is named with those that are."""
        ports = Path(self.mktemp())
        for number, name in enumerate(("other", guestports.CONTROL), 1):
            (ports / f"vport0p{number}").mkdir(parents=True)
            (ports / f"vport0p{number}" / "name").write_text(f"{name}\n")
        self.patch(guestports, "_CLASS", ports)
        self.assertEqual(findPort(guestports.CONTROL, 0), "/dev/vport0p2")
        error = self.assertRaises(OSError, findPort, guestports.IO, 0)
        self.assertIn("vport0p1, vport0p2", str(error))


class MachineTests(SynchronousTestCase):
    """What of a guest's machine works anywhere."""

    def test_roots(self) -> None:
        """A container's root is a folder in the share, and nowhere else."""
        share = Path(self.mktemp()).absolute()
        (share / "image" / "rootfs").mkdir(parents=True)
        self.patch(guestmachine, "SHARE", str(share))
        root = guestmachine.rootPath(Root("image", "rootfs"))
        self.assertEqual(root, str(share / "image" / "rootfs"))
        for image, rootfs in (("image", "none"), ("..", ".."), ("image", "../../..")):
            error = self.assertRaises(StartError, guestmachine.rootPath, Root(image, rootfs))
            self.assertIn("the host shares", str(error))
        inside = guestmachine.rootPath(Root("/image", "/rootfs"))
        self.assertEqual(inside, str(share / "image" / "rootfs"))

    def test_reaping(self) -> None:
        """Orphans that have ended are reaped; who lives, and who is our own to reap, is left."""
        result = subprocess.run(
            [sys.executable, "-c", REAPING], env=environment(), capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        self.assertEqual(result.stdout, "1 2 True\n")
