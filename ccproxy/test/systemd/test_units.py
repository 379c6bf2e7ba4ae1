"""
The installed units with a real systemd: what C{make test-systemd} runs in a box of its own.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ...testing.agent import ScriptedAgent
from ...testing.client import BlockingClient, registration
from ...testing.daemon import eventually
from ...wire.codes import Command, Stream
from ..processes import PlayedVM, Running

CLIENTS = "/run/clear-containers/proxy.sock"
ADMIN = "/run/ccproxy/admin.sock"
CONFIG = Path("/etc/ccproxy/ccproxy.toml")
DROP_INS = Path("/run/systemd/system")


def run(*words: str, status: int | None = 0) -> str:
    """
    Run a program; all that it has printed.

    @param status: the exit status that it must have, L{None} for any.
    """
    result = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )
    if status is not None and result.returncode != status:
        raise AssertionError(f"{' '.join(words)}: {result.returncode}: {result.stdout}{journal()}")
    return result.stdout


def journal() -> str:
    """What the service has logged, the end of it."""
    return "".join(run("journalctl", "-u", "ccproxy", "-n", "30", "--no-pager", "-o", "cat"))


def shown(name: str) -> str:
    """A property of the service."""
    return run("systemctl", "show", "-p", name, "--value", "ccproxy").strip()


def mode(path: str) -> str:
    """Permissions, user and group of a file."""
    status = os.stat(path)
    user, group = pwd.getpwuid(status.st_uid)[0], grp.getgrgid(status.st_gid)[0]
    return f"{stat.S_IMODE(status.st_mode):o} {user} {group}"


#: What docs/systemd says to add where metrics are fetched over the network.
NETWORK = """\
[Service]
PrivateNetwork=no
RestrictAddressFamilies=AF_INET AF_INET6
IPAddressAllow=localhost
"""


class UnitTests(SynchronousTestCase):
    """
    C{ccproxy.service} and C{ccproxy.socket}, as they were installed.
    """

    if not os.environ.get("CCPROXY_BOX"):
        skip = "it takes a systemd of its own: make test-systemd"

    def setUp(self) -> None:
        """The units as they are, and a daemon as it is configured by default."""
        CONFIG.write_text("")
        run("systemctl", "daemon-reload")
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """Stop everything, and forget what was added to the units."""
        run("systemctl", "stop", "ccproxy.socket", "ccproxy.service")
        run("systemctl", "reset-failed", "ccproxy.socket", "ccproxy.service", status=None)
        for path in DROP_INS.glob("ccproxy.*/*"):
            path.unlink()

    def start(self) -> None:
        """Start the service, and with it the socket."""
        run("systemctl", "start", "ccproxy")

    def add(self, unit: str, text: str) -> None:
        """Add settings to a unit."""
        folder = DROP_INS / f"{unit}.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test.conf").write_text(text)
        run("systemctl", "daemon-reload")

    def client(self) -> BlockingClient:
        """A client of the daemon."""
        client = BlockingClient(CLIENTS)
        self.addCleanup(client.close)
        return client

    def agent(self, mask: int = 0) -> ScriptedAgent:
        """
        An agent.

        @param mask: what its sockets do not allow; by default, the daemon's user may open them.
        """
        folder = tempfile.mkdtemp(dir="/run")
        os.chmod(folder, 0o755)
        before = os.umask(mask)
        try:
            agent = ScriptedAgent(folder)
        finally:
            os.umask(before)
        self.addCleanup(agent.close)
        return agent

    def proc(self, name: str) -> str:
        """A file of the daemon in /proc."""
        return Path(f"/proc/{shown('MainPID')}/{name}").read_text()

    def waitAnother(self, pid: str) -> None:
        """Wait until the service has another process."""
        eventually(lambda: shown("MainPID") not in (pid, "0"), "another process")

    def waitJournal(self, text: str) -> None:
        """Wait until the service has logged a text."""
        eventually(lambda: text in journal(), f"{text!r} in the journal: {journal()}")

    def test_verify(self) -> None:
        """systemd has nothing to say against the units."""
        # It looks the manual pages up, too.
        pages = "yes" if shutil.which("man") else "no"
        units = ("ccproxy.service", "ccproxy.socket")
        self.assertEqual(run("systemd-analyze", "verify", f"--man={pages}", *units), "")

    def test_security(self) -> None:
        """The service is exposed to 2.0 of 10 at most, also with the user root."""
        for text in ("", "[Service]\nUser=root\n"):
            self.add("ccproxy.service", text)
            report = run(
                "systemd-analyze", "security", "--no-pager", "--threshold=20", "ccproxy.service"
            )
            self.assertIn("Overall exposure level for ccproxy.service: ", report)

    def test_account(self) -> None:
        """The daemon has a user and a group of its own, whose folder the socket is in."""
        self.assertEqual(pwd.getpwnam("ccproxy").pw_shell, "/usr/sbin/nologin")
        self.assertEqual(mode(os.path.dirname(CLIENTS)), "750 ccproxy ccproxy")
        self.start()
        self.assertEqual(os.stat(f"/proc/{shown('MainPID')}").st_uid, os.stat(CLIENTS).st_uid)

    def test_readiness(self) -> None:
        """Once C{systemctl start} returns, the daemon serves, and says what it does."""
        self.start()
        self.assertEqual(shown("ActiveState"), "active")
        self.assertEqual(shown("StatusText"), f"0 VMs, 0 clients on unix://{CLIENTS}")
        client = self.client()
        client.registerVM("vm", self.agent())
        client.hyper("ping")
        self.assertEqual(mode(ADMIN), "600 ccproxy ccproxy")

    def test_root(self) -> None:
        """
        The sockets of a hypervisor that runs as root are not for the daemon's user. As root it
        reaches them, still without any capability.
        """
        self.start()
        request = registration("vm", self.agent(0o077))
        self.assertIn("Permission denied", self.client().refused(Command.REGISTER_VM, request))
        self.add("ccproxy.service", "[Service]\nUser=root\n")
        run("systemctl", "restart", "ccproxy")
        self.client().registerVM("vm", self.agent(0o077))
        self.assertIn("CapEff:\t0000000000000000\n", self.proc("status"))

    def test_notReady(self) -> None:
        """A daemon that cannot start never was ready, and why is in the journal."""
        CONFIG.write_text("max-vm = 3")
        run("systemctl", "start", "ccproxy", status=1)
        self.waitJournal(f"{CONFIG}: unknown key 'max-vm'; did you mean max-vms?")

    def test_passedSocket(self) -> None:
        """
        The socket is systemd's: a client starts the service, and neither its start nor its end
        touches the socket.
        """
        run("systemctl", "start", "ccproxy.socket")
        before = os.stat(CLIENTS)
        self.assertEqual(mode(CLIENTS), "660 ccproxy ccproxy")
        self.assertEqual(shown("ActiveState"), "inactive")
        self.client().probe()
        self.assertEqual(shown("ActiveState"), "active")
        run("systemctl", "stop", "ccproxy")
        after = os.stat(CLIENTS)
        self.assertEqual(
            (after.st_ino, after.st_mode, after.st_uid, after.st_gid),
            (before.st_ino, before.st_mode, before.st_uid, before.st_gid),
        )
        self.client().probe()

    def test_socketOfAnotherName(self) -> None:
        """The socket is known by what it is, whatever the unit calls it."""
        for name in ("", "ccproxy.socket", "whatever"):
            self.add("ccproxy.socket", f"[Socket]\nFileDescriptorName={name}\n")
            run("systemctl", "start", "ccproxy.socket")
            before = os.stat(CLIENTS).st_ino
            self.client().probe()
            self.assertEqual(os.stat(CLIENTS).st_ino, before)
            run("systemctl", "stop", "ccproxy.socket", "ccproxy.service")

    def test_restartKeepsClientsWaiting(self) -> None:
        """Who connects while the daemon is away is served when it is back."""
        self.start()
        pid = shown("MainPID")
        run("systemctl", "kill", "-s", "KILL", "ccproxy")
        self.client().probe()
        self.assertNotEqual(shown("MainPID"), pid)

    def process(self) -> Running:
        """A process in a VM, with its shim and the client that has started it."""
        agent, client = self.agent(), self.client()
        tokens = client.registerVM("vm", agent, 1)
        return PlayedVM(self.client, "vm", agent, client, tokens).start()

    def test_restartUnnoticed(self) -> None:
        """A restart hands over all connections: nobody notices."""
        self.start()
        process = self.process()
        for command in (
            ("systemctl", "restart", "ccproxy"),
            ("/usr/local/bin/ccproxyctl", "restart"),
        ):
            pid = shown("MainPID")
            process.say(b"before")
            self.assertEqual(process.shim.output(Stream.STDOUT, 6), b"before")
            run(*command)
            self.waitAnother(pid)
            process.say(b"after")
            self.assertEqual(process.shim.output(Stream.STDOUT, 5), b"after")
            process.vm.client.hyper("ping")
            eventually(lambda: shown("ActiveState") == "active", "readiness")
            self.assertEqual(shown("StatusText"), f"1 VMs, 2 clients on unix://{CLIENTS}")

    def test_crash(self) -> None:
        """A daemon that is killed costs no process its life, and no shim its connection."""
        self.start()
        process = self.process()
        run("systemctl", "kill", "-s", "KILL", "ccproxy")
        process.say(b"after")
        self.assertEqual(process.shim.output(Stream.STDOUT, 5), b"after")
        process.exit(7)
        self.assertEqual(process.shim.exited(), 7)

    def test_keepsTrying(self) -> None:
        """
        A daemon that cannot start is tried again for as long as it takes, and its clients wait.
        """
        self.add("ccproxy.service", "[Service]\nRestartSec=100ms\n")
        self.start()
        CONFIG.write_text("max-vm = 3")
        run("systemctl", "kill", "-s", "KILL", "ccproxy")
        client = self.client()
        eventually(lambda: int(shown("NRestarts")) > 6, "several tries", timeout=20.0)
        CONFIG.write_text("")
        client.probe()
        self.assertEqual(shown("ActiveState"), "active")

    def test_twoSockets(self) -> None:
        """Two listening sockets are an error that says so."""
        self.add("ccproxy.socket", "[Socket]\nListenStream=/run/clear-containers/other.sock\n")
        run("systemctl", "start", "ccproxy", status=1)
        self.waitJournal("expected one socket from systemd (LISTEN_FDS), got 2")

    def test_watchdog(self) -> None:
        """A daemon that stands still is ended and started again; one that works is not."""
        self.add("ccproxy.service", "[Service]\nWatchdogSec=1\nTimeoutAbortSec=2\n")
        self.start()
        pid = shown("MainPID")
        time.sleep(2.5)
        self.assertEqual((shown("MainPID"), shown("NRestarts")), (pid, "0"))
        os.kill(int(pid), signal.SIGSTOP)
        eventually(lambda: shown("NRestarts") == "1", "a restart", timeout=15.0)
        self.client().probe()
        self.assertNotEqual(shown("MainPID"), pid)
        # Where it was when it hung.
        self.waitJournal("Fatal Python error: Aborted")

    def test_reload(self) -> None:
        """A reload puts new limits into force, while the clients stay connected."""
        self.start()
        pid, client = shown("MainPID"), self.client()
        client.registerVM("first", self.agent())
        CONFIG.write_text('max-vms = 1\nlog-level = "debug"\n')
        run("systemctl", "reload", "ccproxy")
        self.waitJournal("the configuration was read again")
        (entry,) = run(
            "journalctl", "-u", "ccproxy", "-o", "json", "CCPROXY_EVENT=reloaded"
        ).splitlines()
        self.assertEqual(json.loads(entry)["CCPROXY_CHANGED"], "log-level=debug max-vms=1")
        eventually(lambda: shown("ActiveState") == "active", "the end of the reload")
        self.assertEqual(shown("MainPID"), pid)
        client.hyper("ping")
        other = self.client()
        request = {"containerId": "second", "ctlSerial": "/a", "ioSerial": "/b"}
        text = other.refused(Command.REGISTER_VM, request)
        self.assertIn("no more than 1 VMs at a time", text)

    def test_badReload(self) -> None:
        """A configuration that cannot be used fails the reload, and the daemon goes on."""
        self.start()
        client = self.client()
        CONFIG.write_text("max-vms = 0")
        run("systemctl", "reload", "ccproxy", status=1)
        self.waitJournal(f"{CONFIG}: max-vms: 0 is less than 1")
        client.probe()
        # Also where it reaches the daemon.
        run("systemctl", "kill", "-s", "HUP", "ccproxy")
        self.waitJournal("the configuration cannot be used, and nothing has changed")
        eventually(lambda: "reload failed: " in shown("StatusText"), "the status")
        client.probe()

    def test_limit(self) -> None:
        """The daemon may open as many files as it is allowed to be allowed."""
        self.add("ccproxy.service", "[Service]\nLimitNOFILE=100:4321\n")
        self.start()
        lines = self.proc("limits").splitlines()
        line = next(line for line in lines if line.startswith("Max open files"))
        self.assertEqual(line.split()[3:5], ["4321", "4321"])

    def test_stop(self) -> None:
        """The daemon ends in order, and quickly."""
        self.start()
        self.client().probe()
        run("systemctl", "stop", "ccproxy.socket", "ccproxy.service")
        self.assertEqual(shown("Result"), "success")
        self.assertEqual(shown("ExecMainStatus"), "0")
        self.assertFalse(os.path.exists(CLIENTS))

    def test_admin(self) -> None:
        """root asks the confined daemon all that can be asked."""
        self.start()
        status = json.loads(run("/usr/local/bin/ccproxyctl", "status", "--json"))
        self.assertEqual(status["pid"], int(shown("MainPID")))
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(ADMIN)
            admin.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with admin.makefile("rb") as answer:
                self.assertIn(b" 200 ", answer.readline())
                self.assertIn(b"process_open_fds", answer.read())

    def test_network(self) -> None:
        """Metrics over the network take three more settings, and hardly more exposure."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        CONFIG.write_text(f'metrics-address = "127.0.0.1:{port}"\n')
        self.add("ccproxy.service", NETWORK)
        self.start()
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as answer:
                self.assertIn(b" 200 ", answer.readline())
        run("systemd-analyze", "security", "--no-pager", "--threshold=20", "ccproxy.service")
