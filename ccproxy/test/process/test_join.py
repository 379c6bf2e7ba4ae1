"""
Pods of C{cc-proxy -uri} that join the daemon of the host: docs/reliability, "Pods that join".
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from ccproxy.net.binding import bind
from ccproxy.service.join import join
from ccproxy.testing.agent import ScriptedAgent
from ccproxy.testing.client import BlockingClient
from ccproxy.testing.daemon import Daemon, environment, eventually, isIdle, script
from ccproxy.wire.codes import Stream

from ..processes import DaemonTestCase, PlayedVM

PODS = 10


def waitingAt(path: str) -> bool:
    """Return whether a connection is pending on a socket that does not accept."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    # The listening one is in state 01 and has flags; a connection that waits has the path, too.
    return sum(line.endswith(f" {path}") for line in sockets) > 1


class JoinTests(DaemonTestCase):
    """A daemon with a supervisor, and pods that join it."""

    def setUp(self) -> None:
        """Start the daemon."""
        twistd = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
        begin = [*script("ccproxyctl"), "supervise", "--", *twistd]
        self.daemon = self.cleared(Daemon(command=begin)).start()
        self.addCleanup(lambda: self.daemon.isAlive() and self.daemon.stop())

    def pod(
        self, name: str, admin: str = "", join: str = "1", patient: bool = False
    ) -> subprocess.Popen[bytes]:
        """
        Start C{cc-proxy} for a pod.

        @param patient: it gives the daemon all the time that this machine may need.
        """
        program = (
            "import sys; from ccproxy.service import ccproxy_command, join; join.TIMEOUT = 60.0;"
            " sys.exit(ccproxy_command.main())"
        )
        begin = [sys.executable, "-c", program] if patient else script("cc-proxy")
        path = os.path.join(self.daemon.directory, name)
        process = subprocess.Popen(
            [*begin, "-uri", f"unix://{path}", "-log", "info"],
            env=environment(
                CC_PROXY_JOIN=join, CCPROXY_ADMIN_SOCKET=admin or f"{self.daemon.path}.admin"
            ),
            stderr=subprocess.PIPE,
        )
        self.addCleanup(process.stderr.close)  # type: ignore[union-attr]
        return process

    def podVM(self, name: str) -> PlayedVM:
        """The VM of a pod, registered over the pod's own socket."""
        path = os.path.join(self.daemon.directory, name)

        def connect() -> BlockingClient:
            client = eventually(lambda: self.tries(path), f"{path} is served", 60)
            self.addCleanup(client.close)
            return client  # type: ignore[no-any-return]

        agent, client = ScriptedAgent(self.daemon.directory, f"agent-{name}"), connect()
        self.addCleanup(agent.close)
        return PlayedVM(connect, name, agent, client, client.registerVM(name, agent, 1))

    def tries(self, path: str) -> BlockingClient | None:
        """A client, if somebody listens there."""
        try:
            return BlockingClient(path)
        except OSError:
            return None

    def started(self) -> int:
        """How many daemons there have been."""
        return self.daemon.log().count("event=started")

    def test_pods(self) -> None:
        """
        Pods cost no process, survive restarts and a kill, and end with their VMs, socket and all.
        """
        names = [f"pod{n}" for n in range(PODS)]
        pods = [self.pod(name) for name in names]
        for pod in pods:
            self.assertEqual(pod.wait(60), 0)
        processes = [self.podVM(name).start(container=name) for name in names]
        for nth, number in enumerate((signal.SIGUSR2, signal.SIGUSR2, signal.SIGKILL)):
            for process in processes:
                process.say(b"before")
                self.assertEqual(process.shim.output(Stream.STDOUT, 6), b"before")
            if number == signal.SIGKILL:
                pid = self.daemon.pid
                with open(f"/proc/{pid}/task/{pid}/children") as children:
                    child = int(children.read().split()[0])
                # Or it dies before it has noted that it has delivered.
                eventually(lambda: isIdle(child), "it has noted all")  # noqa: B023
                os.kill(child, number)
            else:
                self.daemon.process.send_signal(number)
            for process in processes:
                process.say(b"meanwhile")
            eventually(lambda: self.started() > nth + 1, "another daemon", 60)  # noqa: B023
            for process in processes:
                self.assertEqual(process.shim.output(Stream.STDOUT, 9), b"meanwhile")
        for process in processes:
            process.exit(3)
            self.assertEqual(process.shim.exited(), 3)
            process.vm.attach().unregisterVM(process.vm.id)
        paths = [os.path.join(self.daemon.directory, name) for name in names]
        eventually(lambda: not any(map(os.path.exists, paths)), "the sockets' removal")

    def test_deadDaemon(self) -> None:
        """A pod whose request died with the daemon joins the next one, once."""
        self.daemon.waitLog("event=started")
        child = self.daemon.child
        os.kill(child, signal.SIGSTOP)
        pod = self.pod("pod", patient=True)
        path = f"{self.daemon.path}.admin"
        eventually(lambda: waitingAt(path) or pod.poll() is not None, "the pod has asked")
        os.kill(child, signal.SIGKILL)
        self.assertEqual(pod.wait(60), 0)
        self.podVM("pod").usable()
        self.assertEqual(self.daemon.log().count("event=pod-joined"), 1)

    def test_revoked(self) -> None:
        """A pod that has had no answer serves alone; a daemon that has its socket serves it not."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.bind(os.path.join(self.daemon.directory, "dies"))
            admin.listen()
            pod = self.pod("pod", admin=admin.getsockname())
            connection = admin.accept()[0]
            _, (taken,), _, _ = socket.recv_fds(connection, 1 << 16, 1)
            early = BlockingClient(os.path.join(self.daemon.directory, "pod"))
            self.addCleanup(early.close)
            os.unlink(admin.getsockname())
            connection.close()
        with socket.socket(fileno=taken) as daemons:
            daemons.setblocking(False)
            self.podVM("pod").usable()
            early.probe()
            poll = select.poll()
            poll.register(daemons, 0)
            self.assertEqual(poll.poll(0), [(taken, select.POLLHUP)])
        pod.terminate()
        self.assertEqual(pod.wait(60), 0)

    def test_revokedThere(self) -> None:
        """A daemon that has taken a pod's socket lets it go when the pod's process revokes it."""
        path = os.path.join(self.daemon.directory, "pod")
        listening = bind(path)
        self.addCleanup(listening.close)
        join(listening, f"{self.daemon.path}.admin")
        listening.revoke()
        self.daemon.waitLog("event=pod-left")
        self.assertTrue(os.path.exists(path))

    def test_url(self) -> None:
        """Clients are told the pod's own socket."""
        self.assertEqual(self.pod("pod").wait(60), 0)
        path = os.path.join(self.daemon.directory, "pod")
        agent, client = ScriptedAgent(self.daemon.directory), BlockingClient(path)
        self.addCleanup(agent.close)
        self.addCleanup(client.close)
        client.registerVM("vm", agent, 0)
        answer = client.accepted(2, {"containerId": "vm"})
        self.assertIn(f'"url":"unix://{path}"'.encode(), answer)

    def test_alone(self) -> None:
        """Where no daemon runs, the pod is served alone, and the log says so."""
        pod = self.pod("pod", admin="/no/such/socket")
        vm = self.podVM("pod")
        vm.usable()
        vm.client.unregisterVM("pod")
        vm.agent.hangUp()
        self.assertEqual(pod.wait(60), 0)
        assert pod.stderr is not None
        self.assertIn(b"serving alone: no daemon at /no/such/socket", pod.stderr.read())

    def test_off(self) -> None:
        """By default each pod has its process."""
        pod = self.pod("pod", join="0")
        self.podVM("pod").usable()
        self.assertIs(pod.poll(), None)
        pod.terminate()
        self.assertEqual(pod.wait(60), 0)
