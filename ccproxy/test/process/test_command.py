"""
The daemon's two command lines, C{cc-proxy} and C{twistd ccproxy}, and pod mode.
"""

from __future__ import annotations

import os
import subprocess
import time

from ccproxy import __version__
from ccproxy.test.processes import DaemonTestCase, ProcessTestCase, runProxy
from ccproxy.testing.client import failure
from ccproxy.testing.daemon import Daemon, environment, script
from ccproxy.wire.codes import Command


class HistoricFlagsTests(DaemonTestCase):
    """The flags of C{cc-proxy}, as runtimes give them."""

    def test_version(self) -> None:
        """-version prints it and exits with 0."""
        for flag in ("-version", "--version", "-version=true"):
            ran = runProxy(flag)
            self.assertEqual((ran.returncode, ran.stdout), (0, f"Version: {__version__}\n"))

    def test_help(self) -> None:
        """-h prints the usage and exits with 0; it names all flags."""
        for flag in ("-h", "--help"):
            ran = runProxy(flag)
            self.assertEqual(ran.returncode, 0)
            for name in ("uri", "socket-path", "log", "ksm", "pprof", "pprof-port", "version"):
                self.assertIn("-" + name, ran.stdout + ran.stderr)

    def test_badFlags(self) -> None:
        """A bad flag or value: usage on standard error, exit 2."""
        for arguments in (["-nonsense"], ["-log"], ["-ksm", "sometimes"], ["-pprof-port", "x"]):
            ran = runProxy(*arguments)
            self.assertEqual((ran.returncode, ran.stdout), (2, ""))
            self.assertIn("-socket-path", ran.stderr)

    def test_badLevel(self) -> None:
        """An unknown log level exits with 1."""
        self.assertEqual(runProxy("-log", "loud").returncode, 1)
        self.assertEqual(runProxy("-version", CC_PROXY_LOG_LEVEL="loud").returncode, 0)
        self.assertEqual(runProxy("-log", "info", CC_PROXY_LOG_LEVEL="loud").returncode, 1)

    def test_levels(self) -> None:
        """The default level is warn; -log and the environment choose, the environment wins."""
        for flags, variables, shown in (
            ([], {}, False),
            (["-log", "DEBUG"], {}, True),
            (["--log=debug"], {"CC_PROXY_LOG_LEVEL": "error"}, False),
            (["-log", "error"], {"CC_PROXY_LOG_LEVEL": "Debug"}, True),
        ):
            daemon = self.cleared(Daemon(*flags, extra=variables)).start()
            self.client(daemon).log({"source": "shim", "level": "debug", "msg": "a-debug-line"})
            self.client(daemon).probe()
            self.assertEqual(daemon.stop(), 0)
            self.assertEqual("a-debug-line" in daemon.log(), shown, (flags, variables))

    def test_accepted(self) -> None:
        """The flags of later versions are accepted."""
        daemon = self.cleared(Daemon("-ksm", "off", "-pprof=false", "-pprof-port", "6061")).start()
        self.assertEqual(daemon.stop(), 0)


class PodModeTests(DaemonTestCase):
    """C{-uri}: one daemon for each pod, which nobody stops."""

    def pod(self, form: str = "unix://{socket}") -> Daemon:
        """A daemon in pod mode."""
        return self.cleared(Daemon(command=[*script("cc-proxy"), "-uri", form])).start()

    def test_life(self) -> None:
        """It ends by itself after UnregisterVM, with 0, when the VM's channels have closed."""
        for form in ("unix://{socket}", "{socket}"):
            daemon = self.pod(form)
            vm = self.vm(daemon)
            vm.client.hyper("startpod", {})
            vm.client.unregisterVM(vm.id)
            time.sleep(0.3)
            self.assertTrue(daemon.isAlive())
            vm.agent.hangUp()
            self.assertEqual(daemon.wait(), 0)
            self.assertFalse(os.path.exists(daemon.path))

    def test_clientGone(self) -> None:
        """UnregisterVM counts also when its sender does not wait for the answer."""
        daemon = self.pod()
        vm = self.vm(daemon)
        vm.client.command(Command.UNREGISTER_VM, {"containerId": vm.id})
        vm.client.close()
        vm.agent.hangUp()
        self.assertEqual(daemon.wait(), 0)

    def test_lostFirst(self) -> None:
        """It also ends when the VM is lost before UnregisterVM."""
        daemon = self.pod()
        vm = self.vm(daemon)
        vm.agent.hangUp()
        vm.client.unregisterVM(vm.id)
        self.assertEqual(daemon.wait(), 0)

    def test_undelivered(self) -> None:
        """It stays for what a shim has not got yet."""
        daemon = self.pod()
        vm = self.vm(daemon)
        process = vm.start()
        for _ in range(100):
            process.say(b"x" * 4096)
        process.exit(7)
        vm.usable()
        vm.client.unregisterVM(vm.id)
        vm.agent.hangUp()
        time.sleep(0.3)
        self.assertTrue(daemon.isAlive())
        output = process.shim.untilExit()
        self.assertEqual((len(output.stdout), output.status), (100 * 4096, 7))
        process.shim.command(Command.DISCONNECT_SHIM)
        self.assertEqual(daemon.wait(), 0)

    def impatient(self) -> Daemon:
        """One that ends soon when it is of no use."""
        daemon = self.cleared(Daemon(command=[*script("cc-proxy"), "-uri", "unix://{socket}"]))
        path = os.path.join(daemon.directory, "ccproxy.toml")
        with open(path, "w") as file:
            file.write("pod-idle-timeout = 3\n")
        daemon.arguments += ["-config", path]
        return daemon.start()

    def test_forgotten(self) -> None:
        """It ends when its VM is lost and no client comes for a while; one that is there counts."""
        daemon = self.impatient()
        vm = self.vm(daemon)
        vm.agent.hangUp()
        time.sleep(4)
        self.assertTrue(daemon.isAlive())
        vm.client.close()
        self.assertEqual(daemon.wait(), 0)
        self.assertFalse(os.path.exists(daemon.path))

    def test_neverUsed(self) -> None:
        """It ends when no VM ever comes, and stays as long as one lives, with no client at all."""
        self.assertEqual(self.impatient().wait(), 0)
        daemon = self.impatient()
        self.vm(daemon).client.close()
        time.sleep(4)
        self.assertTrue(daemon.isAlive())

    def test_socketPathWins(self) -> None:
        """-socket-path wins over the path of -uri."""
        daemon = self.cleared(Daemon("-uri", "unix:///nonexistent/proxy.sock")).start()
        self.client(daemon).probe()
        self.assertEqual(daemon.stop(), 0)


class TwistdTests(DaemonTestCase):
    """C{twistd ccproxy}."""

    def test_help(self) -> None:
        """--help works from any folder, and explains each option."""
        ran = subprocess.run(
            [*script("twistd"), "ccproxy", "--help"], env=environment(), cwd="/",
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        for option in ("--socket-path", "--max-vms", "--embedded-vm", "--log-level"):
            self.assertIn(option, ran.stdout)

    def test_reactor(self) -> None:
        """The reactor that a poller leads can be chosen, serves, and ends in order."""
        begin = [*script("twistd"), "--reactor=ccproxy", "-n", "--pidfile=", "ccproxy"]
        begin += ["--socket-path", "{socket}", "--embedded-vm=inside"]
        daemon = self.cleared(Daemon(command=begin))
        daemon.start()
        self.client(daemon).attachVM("inside")
        self.assertEqual(daemon.stop(), 0)

    def test_badOption(self) -> None:
        """A value that makes no sense is refused in one line, which names the option."""
        ran = subprocess.run(
            [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--max-vms=many"],
            env=environment(), cwd="/", capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        self.assertEqual((ran.returncode, ran.stdout), (1, ""))
        self.assertEqual(
            ran.stderr,
            "twistd ccproxy: --max-vms: 'many' is no whole number"
            " (twistd ccproxy --help has the options)\n",
        )


class ConfinedTests(ProcessTestCase):
    """C{--vm-socket-dir}: where the sockets of VMs may be."""

    options = ("--log-level=debug", "--vm-socket-dir=/nonexistent", "--vm-socket-dir=/run")

    def test_outside(self) -> None:
        """P3: a socket outside of the folders is refused, whatever links lead there."""
        client, agent, name = self.client(), self.agent(), self.unique()
        frame = client.call(
            Command.REGISTER_VM,
            {"containerId": name, "ctlSerial": agent.control.path, "ioSerial": agent.io.path},
        )
        self.assertIn(agent.control.path, failure(frame))
        self.assertEqual(agent.control.connections, 0)
        winding = "/run/.." + agent.control.path
        text = client.refused(
            Command.REGISTER_VM,
            {"containerId": name, "ctlSerial": winding, "ioSerial": agent.io.path},
        )
        self.assertIn(winding, text)
        self.assertEqual(agent.control.connections, 0)


class ConfinedEmbeddedTests(ProcessTestCase):
    """C{--vm-socket-dir} and C{--embedded-vm} together."""

    options = ("--log-level=debug", "--vm-socket-dir=/nonexistent", "--embedded-vm=inside")

    def test_inside(self) -> None:
        """The daemon's own VM can be used at once, and wherever others' sockets must be."""
        self.client().attachVM("inside")
