"""
The ways to start the daemon: C{twist}, C{twistd} with its options, C{.tac} files, and signals that
come before it has handlers. P16, P17 and P25.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ccproxy.test.processes import DaemonTestCase
from ccproxy.testing.client import BlockingClient
from ccproxy.testing.daemon import Daemon, environment, eventually, script

KEPT_ALIVE = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
OPTIONS = ("ccproxy", "--config", "/dev/null", "--socket-path", "{socket}", "--embedded-vm=inside")

#: Stops a process where it imports the module HOLD_AT, until there is a file "go".
SITE = """\
import os, sys, time

class Hold:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["HOLD_AT"] and not os.path.exists("go"):
            with open("held.new", "w") as file:
                file.write(str(os.getpid()))
            os.rename("held.new", "held")
            while not os.path.exists("go"):
                time.sleep(0.01)

sys.meta_path.insert(0, Hold())
"""

TAC = """\
from twisted.application.service import Application
from ccproxy.service.making import Options, makeService

options = Options()
options.parseOptions([*{options!r}])
application = Application("proxy")
makeService(options).setServiceParent(application)
"""


def isRunning(pid: int) -> bool:
    """Return whether a process runs, one that is not our child included."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class WayTestCase(DaemonTestCase):
    """A test of a command line."""

    def daemon(self, *command: str) -> Daemon:
        """A daemon with a folder that every user may enter, not started yet."""
        daemon = self.cleared(Daemon(command=command))
        os.chmod(daemon.directory, 0o755)
        return daemon

    def start(self, daemon: Daemon) -> int:
        """Start it, in the background if it goes there; the process id of what serves."""
        daemon.spawn()
        eventually(daemon.isListening, "the socket", 60)
        path = Path(daemon.directory, "twistd.pid")
        if not path.exists():
            return daemon.pid
        self.assertEqual(daemon.wait(), 0)
        pid = int(path.read_text())
        self.addCleanup(self.kill, pid)
        return pid

    def kill(self, pid: int) -> None:
        """Kill what is in the background, if it runs."""
        if isRunning(pid):
            os.kill(pid, signal.SIGKILL)

    def assertUsable(self, daemon: Daemon, pid: int) -> None:
        """Commands run in its embedded VM, with no signal held back, as the daemon's user."""
        command = [*script("ccproxyctl"), "run", "--socket-path", daemon.path, "--vm", "inside"]
        command += ["--", "sh", "-c", "id -u; grep SigBlk /proc/self/status"]
        ran = subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60, check=True,
        )  # fmt: skip
        words = ran.stdout.split()
        user = Path(f"/proc/{pid}/status").read_text().partition("Uid:")[2].split()[0]
        self.assertEqual(words, [user, "SigBlk:", "0" * 16])

    def assertEndsInOrder(self, daemon: Daemon, pid: int) -> None:
        """P16, P25: signals do not kill it, and SIGTERM ends it with status 0, its socket gone."""
        for number in KEPT_ALIVE:
            os.kill(pid, number)
        client = BlockingClient(daemon.path)
        client.probe()
        client.close()
        os.kill(pid, signal.SIGTERM)
        if pid == daemon.pid:
            self.assertEqual(daemon.wait(), 0, daemon.log())
        else:
            eventually(lambda: not isRunning(pid), "it ends")
        self.assertFalse(os.path.exists(daemon.path))


class TwistTests(WayTestCase):
    """C{twist ccproxy} and C{python -m twisted ccproxy}."""

    def test_serves(self) -> None:
        """They serve, log on stdout in our format, and end in order."""
        for begin in (script("twist"), [sys.executable, "-m", "twisted"]):
            daemon = self.daemon(*begin, *OPTIONS)
            pid = self.start(daemon)
            self.assertUsable(daemon, pid)
            self.assertEndsInOrder(daemon, pid)
            daemon.waitLog("event=started")
            daemon.waitLog("event=stopped")

    def test_logFile(self) -> None:
        """C{--log-file} is where the log goes, at our own level."""
        daemon = self.daemon(*script("twist"), "--log-file=l", *OPTIONS, "--log-level=debug")
        self.assertEndsInOrder(daemon, self.start(daemon))
        self.assertEqual(daemon.log(), "")
        log = Path(daemon.directory, "l").read_text()
        self.assertIn("event=started", log)
        self.assertIn(" debug ", log)

    def test_cannotStart(self) -> None:
        """A failed start reports one line, and the exit status is 1."""
        first = self.cleared(Daemon()).start()
        second = self.daemon(*script("twist"), "ccproxy", "--socket-path", first.path)
        second.spawn()
        self.assertEqual(second.wait(), 1)
        self.assertEqual(second.log().count(f"cannot listen on {first.path}: another"), 1)


class TwistdTests(WayTestCase):
    """C{twistd}, with what it can be told."""

    def test_reactors(self) -> None:
        """Every reactor of Linux serves, in the foreground and in the background."""
        for reactor in ("epoll", "poll", "select", "asyncio", "ccproxy"):
            for foreground in (["-n"], []):
                daemon = self.daemon(*script("twistd"), "-r", reactor, *foreground, *OPTIONS)
                pid = self.start(daemon)
                self.assertUsable(daemon, pid)
                self.assertEndsInOrder(daemon, pid)

    def test_user(self) -> None:
        """With another user its sockets are usable, and are removed at the end."""
        if os.geteuid():
            self.skipTest("it takes root")
        nobody = pwd.getpwnam("nobody")
        for options in (["-n", "--uid=nobody", "--gid=1"], ["--uid=nobody"]):
            daemon = self.daemon(*script("twistd"), *options, *OPTIONS)
            # Made by the daemon, with parents, while it is root and may have a narrow umask.
            daemon.path = os.path.join(daemon.directory, "a/b/proxy.sock")
            daemon.arguments[daemon.arguments.index("--socket-path") + 1] = daemon.path
            pid = self.start(daemon)
            gid = 1 if "-n" in options else nobody.pw_gid
            self.assertUsable(daemon, pid)
            for path in (daemon.path, f"{daemon.path}.admin", os.path.dirname(daemon.path)):
                found = os.stat(path)
                self.assertEqual((found.st_uid, found.st_gid), (nobody.pw_uid, gid), path)
            for path, mode in ((daemon.path, 0o660), (f"{daemon.path}.admin", 0o600)):
                self.assertEqual(os.stat(path).st_mode & 0o777, mode)
            self.assertEndsInOrder(daemon, pid)
            self.assertEqual(os.listdir(os.path.dirname(daemon.path)), [])

    def test_group(self) -> None:
        """The folder that is made for both sockets has the group of the client socket."""
        if os.geteuid():
            self.skipTest("it takes root")
        for options in ([], ["--uid=nobody"]):
            daemon = self.daemon(*script("twistd"), "-n", *options, *OPTIONS, "--socket-group=1")
            daemon.path = os.path.join(daemon.directory, "a/proxy.sock")
            daemon.arguments[daemon.arguments.index("--socket-path") + 1] = daemon.path
            pid = self.start(daemon)
            self.assertUsable(daemon, pid)
            groups = [os.stat(path).st_gid for path in (daemon.path, os.path.dirname(daemon.path))]
            self.assertEqual(groups, [1, 1])
            self.assertEndsInOrder(daemon, pid)

    def test_application(self) -> None:
        """C{-y} runs an application made by hand; it logs where C{twistd} was told to."""
        for options, log in ((["-noy"], "log"), (["-l", "l", "-y"], "l"), (["-y"], "twistd.log")):
            daemon = self.daemon(*script("twistd"), *options, "app.tac")
            words = [word.replace("{socket}", daemon.path) for word in OPTIONS[1:]]
            Path(daemon.directory, "app.tac").write_text(TAC.format(options=words))
            pid = self.start(daemon) if log != "log" else self._startFront(daemon)
            self.assertUsable(daemon, pid)
            self.assertEndsInOrder(daemon, pid)
            self.assertIn("event=started", Path(daemon.directory, log).read_text())

    def _startFront(self, daemon: Daemon) -> int:
        """Start it, though twistd writes a pid file in the foreground too."""
        return daemon.start().pid

    def test_cannotStart(self) -> None:
        """In the background too, a start that fails is one error in the log, with the reason."""
        first = self.cleared(Daemon()).start()
        daemon = self.daemon(*script("twistd"), "ccproxy", "--socket-path", first.path)
        daemon.spawn()
        self.assertEqual(daemon.wait(), 1)
        daemon.waitLog("cannot listen on")
        log = Path(daemon.directory, "twistd.log")
        eventually(lambda: log.exists() and "cannot start" in log.read_text(), "the reason")
        eventually(lambda: not Path(daemon.directory, "twistd.pid").exists(), "the end")
        (error,) = [line for line in log.read_text().splitlines() if " error " in line]
        self.assertIn(f"cannot start: cannot listen on {first.path}: another daemon", error)

    def test_nobodyGetsThrough(self) -> None:
        """No client connects to a daemon that cannot serve all that was asked for."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            for option in (f"--metrics-address={address}", "--admin-socket=/proc/none/admin"):
                daemon = self.daemon(*script("twistd"), "-n", *OPTIONS, option)
                folder = Path(daemon.directory, "sockets")
                folder.mkdir()
                at = daemon.arguments.index("--socket-path") + 1
                daemon.arguments[at] = str(folder / "proxy.sock")
                before = folder.stat().st_mtime_ns
                daemon.spawn()
                self.assertEqual(daemon.wait(), 1)
                daemon.waitLog("cannot start: cannot")
                # Nothing was ever made in it.
                self.assertEqual(folder.stat().st_mtime_ns, before)


class PidFileTests(WayTestCase):
    """P17: no pid file prevents a start."""

    def test_left(self) -> None:
        """One that a dead daemon has left is none, whoever has its number now."""
        for foreground in (["-n"], []):
            for content in ("1\n", "999999999", "", str(os.getpid())):
                for name in ("twistd.pid", "other.pid"):
                    daemon = self.daemon(
                        *script("twistd"), *foreground, f"--pidfile={name}", *OPTIONS
                    )
                    path = Path(daemon.directory, name)
                    path.write_text(content)
                    daemon.spawn()
                    eventually(daemon.isListening, f"{foreground} {name} {content}", 60)
                    if not foreground or name == "other.pid":
                        self.assertNotEqual(path.read_text(), content)
                        os.kill(int(path.read_text()), signal.SIGTERM)
                    else:
                        daemon.process.terminate()
                    self.assertEqual(daemon.wait(), 0)
                    eventually(partial(self.hasEnded, daemon), "it has ended")

    def hasEnded(self, daemon: Daemon) -> bool:
        """Return whether its socket was removed."""
        return not os.path.exists(daemon.path)

    def test_living(self) -> None:
        """The pid file of another living twistd stays."""
        first = self.daemon(*script("twistd"), "-n", "--pidfile=both.pid", *OPTIONS)
        pid = self.start(first)
        path = Path(first.directory, "both.pid")
        second = self.daemon(*script("twistd"), "-n", f"--pidfile={path}", *OPTIONS)
        second.start()
        self.assertEqual(path.read_text(), str(pid))
        second.waitLog("event=pid-file-taken")
        self.assertEqual(second.stop(), 0)
        self.assertEqual(path.read_text(), str(pid))

    def test_precious(self) -> None:
        """A file that is no pid file is left alone."""
        daemon = self.daemon(*script("twistd"), "-n", "--pidfile=notes", *OPTIONS)
        Path(daemon.directory, "notes").write_text("precious")
        daemon.spawn()
        self.assertEqual(daemon.wait(), 1)
        self.assertEqual(Path(daemon.directory, "notes").read_text(), "precious")


class Process1Tests(WayTestCase):
    """The daemon, or its supervisor, as process 1 of a container."""

    def test_orphans(self) -> None:
        """It reaps orphans that have ended, and knows the ends of its own programs."""
        if os.geteuid():
            self.skipTest("it takes root")
        twistd = [*script("twistd"), "-n", *OPTIONS]
        for command in (
            twistd,
            [*script("ccproxyctl"), "supervise", "--", *twistd],
            [*script("cc-proxy"), "-uri", "{socket}", "-config", "/dev/null"],
        ):
            daemon = self.daemon(
                "unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command
            )
            daemon.start()
            first = str(daemon.child)
            ended = Path(daemon.directory, "ended")
            orphan = f"(sleep 0.1; touch {ended}) > /dev/null 2>&1 < /dev/null &"
            subprocess.run(["nsenter", "-t", first, "-p", "sh", "-c", orphan], check=True)
            eventually(ended.exists, "the orphan ends")
            eventually(partial(self.hasNoZombie, first), f"{command} reaps it")
            if "--embedded-vm=inside" in command:
                self.assertUsable(daemon, int(first))
            os.kill(int(first), signal.SIGTERM)
            self.assertEqual(daemon.wait(), 0, daemon.log())

    def hasNoZombie(self, pid: str) -> bool:
        """Return whether no child of a process has ended and is not reaped."""
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return all(isRunning(int(child)) for child in children)


class EarlySignalTests(WayTestCase):
    """P25: signals that come before there are handlers for them."""

    ways: Sequence[tuple[Sequence[str], str]] = (
        (["cc-proxy", "-socket-path", "{socket}"], "ccproxy.service.ccproxy_command"),
        (["twistd", "-n", *OPTIONS], "ccproxy.config.options"),
        (["twist", *OPTIONS], "ccproxy.config.options"),
        (["ccproxyctl", "supervise", "--", "twistd", "-n", *OPTIONS], "ccproxy.ctl.supervise"),
        (["ccproxyctl", "supervise", "--", "twistd", "-n", *OPTIONS], "twisted.scripts.twistd"),
    )

    def held(self, words: Sequence[str], module: str) -> tuple[Daemon, int]:
        """A daemon stopped where it imports a module, and the process that was."""
        daemon = self.daemon(*(part for word in words for part in self.resolved(word)))
        Path(daemon.directory, "sitecustomize.py").write_text(SITE)
        more = {"HOLD_AT": module, "PYTHONPATH": daemon.directory}
        more["PYTHONPATH"] += os.pathsep + environment()["PYTHONPATH"]
        daemon._environment.update(more)
        daemon.spawn()
        path = Path(daemon.directory, "held")
        eventually(path.exists, f"{words} imports {module}")
        return daemon, int(path.read_text())

    def resolved(self, word: str) -> list[str]:
        """A command is that of the environment of the tests."""
        return script(word) if word in ("cc-proxy", "ccproxyctl", "twist", "twistd") else [word]

    def test_alive(self) -> None:
        """SIGHUP, SIGUSR1 and SIGUSR2 kill neither the daemon nor the supervisor."""
        for words, module in self.ways:
            daemon, pid = self.held(words, module)
            for number in KEPT_ALIVE:
                os.kill(pid, number)
            Path(daemon.directory, "go").touch()
            eventually(partial(self.hasBegun, daemon), "the socket", 60)
            self.assertTrue(daemon.isAlive(), (words, module, daemon.log()))
            self.assertEqual(daemon.stop(), 0)

    def test_end(self) -> None:
        """SIGTERM ends it in order, with status 0, as soon as it serves."""
        for words, module in self.ways[:4]:
            daemon, pid = self.held(words, module)
            os.kill(pid, signal.SIGTERM)
            Path(daemon.directory, "go").touch()
            self.assertEqual(daemon.wait(), 0, (words, module, daemon.log()))
            self.assertFalse(os.path.exists(daemon.path))

    def hasBegun(self, daemon: Daemon) -> bool:
        """Return whether it has started, or failed to."""
        return not daemon.isAlive() or daemon.isListening()
