"""
What the tests of real VMs have in common: a daemon and a VM for many tests, containers in it,
and their shims.

A VM takes its time to boot, most of all without KVM, so only C{make test-vm} runs these.
"""

from __future__ import annotations

import atexit
import itertools
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.testing.client import BlockingClient, hyperPayload
from ccproxy.testing.daemon import Daemon, environment, eventually, script
from ccproxy.vm.image import BUSYBOX
from ccproxy.wire.codes import Command, Stream

#: Seconds that anything may take in a VM without KVM, beside others.
PATIENCE = 120.0

_serial = itertools.count(1)
_shared: list[RealVM] = []


def clearShared() -> None:
    """End the VM that the tests share, and its daemon."""
    for vm in _shared:
        vm.kill()
        vm.daemon.clear()
    _shared.clear()


atexit.register(clearShared)


@attrs.define(eq=False)
class RealVM:
    """
    A VM that was started and registered by C{ccproxyctl vm}.

    @ivar name: its name, and containerId.
    @ivar daemon: the daemon that it is registered with, in whose folder its sockets are.
    """

    name: str
    daemon: Daemon

    @classmethod
    def shared(cls) -> RealVM:
        """The VM that all tests may use, if they leave it as it was."""
        if not _shared or not _shared[0].isUsable():
            clearShared()
            twistd = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--log-level", "debug"]
            begin = [*script("ccproxyctl"), "supervise", "--", *twistd, "--socket-path", "{socket}"]
            vm = cls("shared", Daemon(command=begin).start())
            vm.start()
            _shared.append(vm)
        return _shared[0]

    def ctl(self, *words: str) -> list[str]:
        """The command line of C{ccproxyctl vm} for it."""
        command, *options = words
        ctl = [*script("ccproxyctl"), "vm", command, "-u", self.daemon.path]
        return [*ctl, *options, self.name]

    @property
    def environment(self) -> dict[str, str]:
        """What C{ccproxyctl} needs in its environment."""
        return environment(CCPROXY_VM_RUN=os.path.join(self.daemon.directory, "vms"))

    def starting(self, *options: str) -> subprocess.Popen[str]:
        """Begin to start it."""
        return subprocess.Popen(
            self.ctl("start", *options), env=self.environment, stderr=subprocess.PIPE, text=True
        )

    def start(self, *options: str) -> str:
        """Start it, and wait until it is registered; what was said of it."""
        return _ended(self.starting(*options))

    def stop(self) -> str:
        """Stop it; what was said of it."""
        command = self.ctl("stop", "--timeout", "30")
        stopping = subprocess.Popen(
            command, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        return _ended(stopping)

    def path(self, name: str) -> str:
        """The path of one of its files: C{control}, C{io}, C{console}, C{pid}."""
        return os.path.join(self.daemon.directory, "vms", self.name, name)

    def pid(self) -> int:
        """The process id of its QEMU, 0 if that does not run."""
        try:
            with open(self.path("pid")) as file:
                pid = int(file.read())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return 0
        return pid

    def isUsable(self) -> bool:
        """Whether it runs, and its agent answers."""
        try:
            client = self.client()
            client.hyper("ping")
            client.close()
        except (AssertionError, OSError):
            return False
        return self.pid() != 0

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        pid = self.pid()
        if pid:
            os.kill(pid, 9)

    def client(self) -> BlockingClient:
        """A new client of the daemon, which is attached to it."""
        client = BlockingClient(self.daemon.path, PATIENCE)
        client.attachVM(self.name)
        return client


def _ended(command: subprocess.Popen[str]) -> str:
    _, said = command.communicate(timeout=5 * PATIENCE)
    if command.returncode:
        raise AssertionError(f"ccproxyctl vm ended with {command.returncode}: {said}")
    return said


def started(*commands: subprocess.Popen[str]) -> list[str]:
    """Wait for VMs that are being started; what was said of each."""
    return [_ended(command) for command in commands]


@attrs.define(eq=False)
class Running:
    """
    A process in a VM.

    @ivar container: the container that it is in.
    @ivar shim: its shim.
    """

    container: str
    shim: BlockingClient

    def waitFor(self, text: bytes, stream: Stream = Stream.STDOUT) -> bytes:
        """Wait until it has written something; all that it wrote until then."""
        said = b""
        while text not in said:
            said += self.shim.output(stream, 1)
        return said

    def finish(self) -> tuple[bytes, bytes, int]:
        """Wait for its end; what it wrote to stdout and stderr, and its status."""
        output = self.shim.untilExit()
        return output.stdout, output.stderr, output.status


class RealVMTestCase(SynchronousTestCase):
    """A test that needs a real VM."""

    if "CCPROXY_VM_CACHE" not in os.environ:
        skip = "it boots a VM: make test-vm"

    def setUp(self) -> None:
        """Get the VM."""
        self.real = RealVM.shared()
        self._logged = len(self.real.daemon.log())

    def tearDown(self) -> None:
        """The daemon has not stumbled."""
        said = self.real.daemon.log()[self._logged :]
        for sign in ("Traceback", "Unhandled"):
            self.assertNotIn(sign, said)

    def unique(self) -> str:
        """A name that no other test has used."""
        return f"c{next(_serial)}"

    def run_(
        self,
        *args: str,
        vm: RealVM | None = None,
        image: str = BUSYBOX,
        fsmap: Sequence[object] = (),
        **process: object,
    ) -> Running:
        """
        Start a container.

        @param vm: where, the shared one by default.
        @param image: its folder in what the VM shares.
        @param fsmap: what else it sees.
        @param process: more members of its process.
        """
        name = self.unique()
        data = {"id": name, "rootfs": "rootfs", "image": image, "fsmap": list(fsmap)}
        return self._start("newcontainer", name, data, args, vm or self.real, process)

    def exec(self, container: Running, *args: str, **process: object) -> Running:
        """Start one more process in a container of the shared VM."""
        name = container.container
        return self._start("execcmd", name, {"container": name}, args, self.real, process)

    def refused(self, *args: str, image: str = BUSYBOX, **process: object) -> str:
        """Try to start a container, which must fail; the text of the error."""
        client = self._client(self.real)
        [token] = client.attachVM(self.real.name, 1)
        shim = self._client(self.real)
        shim.connectShim(token)
        data = {
            "id": self.unique(),
            "rootfs": "rootfs",
            "image": image,
            "process": {"args": args, **process},
        }
        return client.hyperRefused("newcontainer", data, [token])

    def _start(
        self,
        kind: str,
        name: str,
        data: dict[str, Any],
        args: tuple[str, ...],
        vm: RealVM,
        process: dict[str, object],
    ) -> Running:
        client, shim = self._client(vm), self._client(vm)
        [token] = client.attachVM(vm.name, 1)
        shim.connectShim(token)
        members = {"args": args, "terminal": False, **process}
        client.accepted(Command.HYPER, hyperPayload(kind, {**data, "process": members}, [token]))
        client.close()
        return Running(name, shim)

    def _client(self, vm: RealVM) -> BlockingClient:
        client = vm.client()
        self.addCleanup(client.close)
        return client

    def sh(self, script: str, **process: Any) -> Running:
        """Start a container with a shell that does something."""
        return self.run_("sh", "-c", script, **process)

    def assertEnds(self, running: Running, out: bytes, err: bytes = b"", status: int = 0) -> None:
        """What comes until the exit status, and it, are these."""
        self.assertEqual(running.finish(), (out, err, status))

    def eventually(self, probe: Any, what: str, timeout: float = PATIENCE) -> Any:
        """Wait until something is true."""
        return eventually(probe, what, timeout)
