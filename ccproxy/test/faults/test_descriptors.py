"""
The daemon at its limit of open files: P5 and P13.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time

from ccproxy.test.faults.conversation import FaultTestCase
from ccproxy.testing.client import BlockingClient, registration
from ccproxy.testing.daemon import eventually
from ccproxy.wire.codes import Command, Stream

REPORT = "clients are turned away"


class DescriptorLimitTests(FaultTestCase):
    """P5: running out of file descriptors is reported and survived."""

    options = ("--log-level=debug", "--stop-timeout=2")
    expectedErrors = REPORT

    def setUp(self) -> None:
        """Remember the limit."""
        super().setUp()
        self._limit = resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE)
        self.addCleanup(self.free)

    def spare(self, count: int) -> None:
        """Let the daemon open so many descriptors more than it has, and no other."""
        self.daemon.settledDescriptors()
        used = set(self.daemon.descriptors())
        limit = 0
        while limit - len([fd for fd in used if fd < limit]) < count or limit in used:
            limit += 1
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (limit, self._limit[1]))

    def free(self) -> None:
        """Let it open as many as before."""
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, self._limit)

    def served(self, client: BlockingClient) -> bool:
        """Whether a client is served; if not, it is turned away."""
        while not client.frames and not client.closed:
            self.assertTrue(client.read(), "P5: neither served nor turned away")
        return bool(client.frames)

    def reports(self) -> int:
        """How often it has been reported, once all that there was to log is in the log."""
        eventually(self.daemon.isIdle, "the daemon comes to rest")
        return self.newLog().count(REPORT)

    def crowd(self, count: int) -> list[BlockingClient]:
        """Clients that come together; those that are served."""
        clients = [self.client() for _ in range(count)]
        for client in clients:
            client.command(Command.ATTACH_VM, {"containerId": "none"})
        return [client for client in clients if self.served(client)]

    def test_turnedAway(self) -> None:
        """P5: those for whom there is one are served, all others closed at once; one report."""
        self.spare(3)
        self.assertEqual(len(self.crowd(25)), 3)
        self.assertEqual(self.reports(), 1, "P5: reported once")
        self.assertEqual(len(self.crowd(25)), 0)
        self.assertEqual(self.reports(), 1, "P5: reported once")
        self.undisturbedThere()
        self.free()
        self.assertEqual(len(self.crowd(25)), 25)
        self.spare(0)
        self.crowd(5)
        self.assertEqual(self.reports(), 2, "P5: the second time is reported too")
        self.free()
        self.vm(1).start()

    def undisturbedThere(self) -> None:
        """What needs no new descriptor works as ever."""
        self.undisturbed()
        self.bystander.vm.client.attachVM(self.bystander.vm.id, 10)

    def test_comesAndGoes(self) -> None:
        """P5: a descriptor that becomes free is used at once, again and again."""
        self.spare(1)
        for _ in range(20):
            (client,) = self.crowd(1)
            self.assertEqual(self.crowd(2), [])
            client.close()
            self.daemon.settledDescriptors()
        self.assertLess(self.reports(), 22)

    def test_registrations(self) -> None:
        """P5, P13: a VM for which there are too few is refused with the reason; nothing remains."""
        client, agent, name = self.client(), self.agent(), self.unique()
        client.probe()
        before = self.daemon.settledDescriptors()
        for spare in (0, 1):
            self.spare(spare)
            for _ in range(20):
                text = client.refused(Command.REGISTER_VM, registration(name, agent, 3))
                self.assertNames(text, name, "Too many open files")
                self.assertRegex(text, r"\.(io|ctl)\b", "P5: says which of its sockets")
            self.assertEqual(self.daemon.settledDescriptors(), before, "P13: descriptors left")
            self.assertNames(
                client.refused(Command.ATTACH_VM, {"containerId": name}), "unknown containerID"
            )
            self.undisturbedThere()
        self.spare(2)
        tokens = client.registerVM(name, agent, 1)
        client.hyper("ping")
        self.free()
        client.unregisterVM(name)
        agent.hangUp()
        self.void(tokens)

    def test_console(self) -> None:
        """P5: a console for which there is none is no reason to refuse a VM; it is read later."""
        client, agent, name = self.client(), self.agent(), self.unique()
        path = os.path.join(self.daemon.directory, name)
        with socket.socket(socket.AF_UNIX) as console:
            console.bind(path)
            console.listen()
            console.settimeout(30)
            client.probe()
            self.spare(2)
            client.registerVM(name, agent, console=path)
            self.waitLog("cannot read the console")
            self.free()
            connection = console.accept()[0]
            connection.sendall(b"Linux version of the guest\n")
            self.waitLog("Linux version of the guest")
            client.unregisterVM(name)
            agent.hangUp()
            connection.close()

    def test_shimReturns(self) -> None:
        """P5, P7: at the limit a shim can come back: its own descriptor has become free."""
        process = self.process()
        self.spare(0)
        self.assertEqual(self.crowd(2), [])
        for nth in range(10):
            process.shim.close()
            process.say(b"%d" % nth)
            before = self.daemon.descriptors()
            process.shim = eventually(lambda: self.tries(process.token), "P7: the shim is back")
            self.assertEqual(process.shim.output(Stream.STDOUT, 1), b"%d" % nth)
            self.assertLessEqual(len(self.daemon.descriptors()), len(before) + 1)
        self.free()

    def tries(self, token: str) -> BlockingClient | None:
        """A shim, if it is not turned away."""
        shim = self.client()
        shim.command(Command.CONNECT_SHIM, {"token": token})
        return shim if self.served(shim) else None

    def test_storm(self) -> None:
        """P5: many at once, for a while: each is served or closed, and those there go on."""
        self.spare(4)
        problems: list[BaseException] = []
        counts = {True: 0, False: 0}
        until = time.monotonic() + 1

        def come() -> None:
            try:
                while time.monotonic() < until:
                    client = BlockingClient(self.daemon.path)
                    client.command(Command.ATTACH_VM, {"containerId": "none"})
                    counts[self.served(client)] += 1
                    client.close()
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            self.assertSays(self.bystander, b"x" * 999)
        for thread in threads:
            thread.join()
        self.assertEqual(problems, [])
        self.assertGreater(counts[True], 0)
        self.assertGreater(counts[False], 0)
        self.free()
        self.assertEqual(len(self.crowd(5)), 5)

    def test_idle(self) -> None:
        """P5: at the limit the daemon does not spin."""
        self.spare(0)
        self.crowd(3)
        used = self.daemon.cpuSeconds()
        time.sleep(0.5)
        self.assertLess(self.daemon.cpuSeconds() - used, 0.2, "P5: the daemon spins")
        self.free()
