"""
The lives of real VMs and of their proxy: restarts, deaths, and many at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

from ccproxy.test.adminhttp import Admin
from ccproxy.test.vm.realvm import PATIENCE, RealVM, RealVMTestCase, started
from ccproxy.testing.client import BlockingClient
from ccproxy.testing.daemon import Daemon, script
from ccproxy.wire.codes import Command, Stream

#: Seconds within which shims are told of the death of their VM.
NOTICE = 2.0


class ProxyRestartTests(RealVMTestCase):
    """The daemon starts again under a VM, and keeps its connections."""

    def setUp(self) -> None:
        super().setUp()
        self.admin = Admin(f"{self.real.daemon.path}.admin")

    def daemonPid(self) -> int:
        """The process of the daemon itself, which its supervisor has started."""
        pid: int = self.admin.get("/v1/status")["pid"]
        return pid

    def goOn(self, restart: Callable[[], None]) -> tuple[bytes, bytes]:
        """
        Restart the daemon twice, while output and echoes flow.

        @return: the digest of what was written, and what has come of it.
        """
        other = self.run_("cat")
        flow = self.sh("head -c 6000000 /dev/urandom > /tmp/d; sha256sum < /tmp/d >&2; cat /tmp/d")
        digest = flow.waitFor(b"\n", Stream.STDERR).split()[0]
        received = flow.shim.output(Stream.STDOUT, 1)
        for nth in range(2):
            before = self.daemonPid()
            restart()
            self.eventually(lambda: self._restarted(before), "the next daemon")  # noqa: B023
            received += flow.shim.output(Stream.STDOUT, 500_000)
            other.shim.stdin(b"%08d" % nth)
            # The echo may be behind more of the flow than anybody keeps.
            while not other.shim.read(0):
                flow.shim.read(0.1)
            self.assertEqual(other.shim.output(Stream.STDOUT, 8), b"%08d" % nth)
        out, err, status = flow.finish()
        self.assertEqual((err, status), (b"", 0))
        other.shim.stdin(b"")
        self.assertEqual(other.finish()[2], 0)
        return digest, received + out

    def _restarted(self, before: int) -> bool:
        try:
            return self.daemonPid() != before
        except OSError:
            return False

    def test_planned(self) -> None:
        """Asked to, with output on its way: not a byte is lost."""
        restart = self.real.daemon.process.send_signal
        digest, received = self.goOn(lambda: restart(signal.SIGUSR2))
        self.assertEqual(len(received), 6_000_000)
        self.assertEqual(hashlib.sha256(received).hexdigest().encode(), digest)

    def test_crash(self) -> None:
        """Killed, with output on its way: what the daemon held is lost, and nothing else is."""
        _, received = self.goOn(lambda: os.kill(self.daemonPid(), signal.SIGKILL))
        self.assertGreater(len(received), 2_000_000)

    def test_console(self) -> None:
        """What the guest's console has said last can be asked for."""
        [vm] = (vm for vm in self.admin.get("/v1/vms") if vm["containerId"] == "shared")
        said = self.admin.ask("GET", f"/v1/vms/{vm['serial']}/console").body
        self.assertIn(b"a host is connected to /dev/vport", said)


class PortTests(RealVMTestCase):
    """A guest whose host goes, and comes back."""

    def test_reopened(self) -> None:
        """A VM whose proxy was killed can be registered with the next one."""
        daemon = Daemon.byTwistd("--log-level", "debug").start()
        self.addCleanup(daemon.clear)
        vm = RealVM("again", daemon)
        self.addCleanup(vm.kill)
        vm.start()
        left = self.sh("echo one; read line; echo two", vm=vm)
        left.waitFor(b"one")
        daemon.process.kill()
        daemon.wait()
        daemon.start()
        client = BlockingClient(daemon.path, PATIENCE)
        self.addCleanup(client.close)
        sockets = {"ctlSerial": vm.path("control"), "ioSerial": vm.path("io")}
        client.accepted(
            Command.REGISTER_VM, {"containerId": vm.name, "console": vm.path("console"), **sockets}
        )
        self.assertEnds(self.sh("echo three", vm=vm), b"three\n")
        client.hyper("killcontainer", {"container": left.container, "signal": signal.SIGKILL})
        said = vm.stop()
        self.assertNotIn("switched off", said)
        self.assertEqual(vm.pid(), 0)
        self.assertFalse(os.path.exists(vm.path("control")))


class ManyTests(RealVMTestCase):
    """Five VMs at once."""

    def test_five(self) -> None:
        """They boot and run side by side; one that is killed is noticed, and by its shims alone."""
        vms = [RealVM(f"five-{nth}", self.real.daemon) for nth in range(4)]
        for vm in vms:
            self.addCleanup(vm.kill)
        started(*[vm.starting() for vm in vms])
        vms.append(self.real)
        running = [self.sh("hostname; read line; echo $line; exit 3", vm=vm) for vm in vms]
        for vm, one in zip(vms, running, strict=True):
            one.waitFor(vm.name.encode() + b"\n")
        self.listed(vms)
        killed, *others = running
        second = self.sh("read line", vm=vms[0])
        vms[0].kill()
        begun = time.monotonic()
        self.assertEqual([killed.finish()[2], second.finish()[2]], [255, 255])
        self.assertLess(time.monotonic() - begun, NOTICE)
        for one in others:
            one.shim.stdin(b"go\n")
            self.assertEqual(one.finish()[0::2], (b"go\n", 3))
        self.gone(vms[0])
        for vm in vms[1:4]:
            vm.stop()

    def listed(self, vms: list[RealVM]) -> None:
        """C{vm list} names them all."""
        found = self.listing()
        self.assertEqual({vm["name"]: vm["pid"] for vm in found}, {v.name: v.pid() for v in vms})

    def listing(self) -> list[dict[str, object]]:
        """What C{vm list} says."""
        command = [*script("ccproxyctl"), "vm", "list", "--json"]
        output = subprocess.run(command, env=self.real.environment, capture_output=True, check=True)
        found: list[dict[str, object]] = json.loads(output.stdout)
        return found

    def gone(self, vm: RealVM) -> None:
        """One that was killed is still listed until it is stopped, which succeeds."""
        self.assertIn((vm.name, 0), [(one["name"], one["pid"]) for one in self.listing()])
        vm.stop()
        self.assertNotIn(vm.name, [one["name"] for one in self.listing()])
        client = BlockingClient(vm.daemon.path, PATIENCE)
        self.addCleanup(client.close)
        self.assertIn(vm.name, client.refused(Command.ATTACH_VM, {"containerId": vm.name}))


class ShareTests(RealVMTestCase):
    """What the VM shares with its host."""

    def test_writable(self) -> None:
        """
        A folder of one's own is a container's root, which it may write to; more of it can be seen
        in there, and may be read-only.
        """
        share = self.mktemp()
        root = os.path.join(share, "mine", "rootfs")
        for folder in ("bin", "proc", "data", "fixed"):
            os.makedirs(os.path.join(root, folder))
        for folder in ("data", "fixed"):
            os.mkdir(os.path.join(share, folder))
        busybox = os.path.join(os.environ["CCPROXY_VM_CACHE"], "guest", "busybox")
        for name in ("sh", "cat"):
            os.link(busybox, os.path.join(root, "bin", name))
        vm = RealVM("sharing", self.real.daemon)
        self.addCleanup(vm.kill)
        vm.start("--share", share, "--memory", "192")
        script = "echo out > /written; echo d > /data/file; echo d > /fixed/file; echo $$"
        fsmap = [
            {"source": "data", "path": "/data", "readOnly": False},
            {"source": "fixed", "path": "/fixed", "readOnly": True},
        ]
        running = self.sh(script, vm=vm, image="mine", fsmap=fsmap)
        out, err, status = running.finish()
        self.assertEqual((out, status), (b"1\n", 0))
        self.assertIn(b"/fixed/file: Read-only file system", err)
        for path in ("mine/rootfs/written", "data/file"):
            with open(os.path.join(share, path)) as file:
                self.assertIn(file.read(), ("out\n", "d\n"))
        vm.stop()
