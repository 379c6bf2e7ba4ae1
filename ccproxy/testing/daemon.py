"""
The real daemon in a folder of its own: started, watched through C{/proc}, and stopped.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ccproxy


def eventually(probe: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """
    Ask again and again until the probe is true; what it gave then.

    @param timeout: seconds after which it will never be, on the slowest and busiest of machines.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.01)


#: Where the commands of ccproxy are, for when they are not installed.
_ENTRIES = {"cc-proxy": "ccProxy", "ccproxyctl": "ccproxyctl"}


def script(name: str) -> list[str]:
    """
    How a command line begins that runs a command of the environment of this Python.

    @param name: C{cc-proxy}, C{ccproxyctl} or C{twistd}.
    """
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return [str(beside)]
    program = f"import sys; from ccproxy.ctl import entry; sys.exit(entry.{_ENTRIES[name]}())"
    return [sys.executable, "-c", program]


#: What a child would take for its own: ours are the proxy's, the rest a service manager's.
_NOT_INHERITED = {
    "CCPROXY_ADMIN_SOCKET", "CCPROXY_SOCKET", "CC_PROXY_JOIN", "CC_PROXY_LOG_LEVEL", "FDSTORE",
    "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC",
}  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """
    The environment in which a child imports the same ccproxy as this process has, and leaves the
    KSM and the service manager of this machine alone.
    """
    return {
        **{name: value for name, value in os.environ.items() if name not in _NOT_INHERITED},
        "PYTHONPATH": str(Path(ccproxy.__file__).parent.parent),
        "CCPROXY_KSM_ROOT": "/nonexistent",
        **more,
    }


def isIdle(pid: int) -> bool:
    """Whether all threads of a process sleep."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # One that is missing has ended between the two calls.
        with suppress(FileNotFoundError, ProcessLookupError):
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] != "S":
                return False
    return True


class Daemon:
    """
    A daemon. It is not started yet.

    @ivar directory: its folder, in which a test may put sockets too.
    @ivar path: where its socket is.
    """

    def __init__(
        self,
        *flags: str,
        command: Sequence[str] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """
        @param flags: more arguments.
        @param command: how the command line begins, in which C{{socket}} is replaced with the
            socket's path; C{cc-proxy} by default.
        @param extra: more for its environment.
        """
        self.directory = tempfile.mkdtemp(prefix="ccp")
        self.path = os.path.join(self.directory, "proxy.sock")
        begin = command or [*script("cc-proxy"), "-socket-path", "{socket}"]
        self.arguments = [word.replace("{socket}", self.path) for word in [*begin, *flags]]
        self._environment = environment(**(extra or {}))
        self._logPath = os.path.join(self.directory, "log")
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def byTwistd(cls, *options: str) -> Daemon:
        """The daemon as C{twistd -n ccproxy} starts it, with its options."""
        begin = [*script("twistd"), "-n", "--pidfile=", "ccproxy", "--socket-path", "{socket}"]
        return cls(*options, command=begin)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process, or the one that ran last."""
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def child(self) -> int:
        """The process id of its only child: the daemon, of a supervisor."""
        (child,) = self._children()
        return child

    def _children(self) -> list[int]:
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(child) for child in found]

    def spawn(self, output: int | None = None, inherited: Sequence[int] = ()) -> None:
        """
        Start it, without waiting for its socket.

        @param output: the descriptor of its standard output and error, the log by default.
        @param inherited: more descriptors that it gets.
        """
        with open(self._logPath, "ab") as log:
            out = log if output is None else output
            self._process = subprocess.Popen(
                self.arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                cwd=self.directory, env=self._environment, pass_fds=inherited,
            )  # fmt: skip

    def start(self, output: int | None = None, timeout: float = 60.0) -> Daemon:
        """
        Start it, and wait until its socket takes connections.

        @param output: see L{spawn}.
        """
        self.spawn(output)
        eventually(lambda: not self.isAlive() or self.isListening(), "the socket", timeout)
        if not self.isAlive():
            raise AssertionError(f"the daemon ended with {self.process.poll()}: {self.log()}")
        return self

    def isAlive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def isListening(self) -> bool:
        """Whether somebody takes connections at the socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.path)
            except OSError:
                return False
        return True

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end; its exit status."""
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop, with SIGTERM by default; its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def clear(self) -> None:
        """Kill it if it runs, and those that it has started, and remove its folder."""
        if self.isAlive():
            children = self._children()
            self.process.kill()
            self.process.wait()
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """All that it has written to its standard output and error."""
        path = Path(self._logPath)
        return path.read_text(errors="replace") if path.exists() else ""

    def waitLog(self, text: str) -> str:
        """Wait for a text in the log; the line that has it."""
        eventually(lambda: text in self.log(), f"{text!r} in the log")
        return next(line for line in self.log().splitlines() if text in line)

    def descriptors(self) -> dict[int, str]:
        """What its open descriptors are."""
        found = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            # One that is missing was closed between the two calls.
            with suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/{self.pid}/fd/{name}")
        return found

    def isIdle(self) -> bool:
        """Whether it has done all that there was to do."""
        return isIdle(self.pid)

    def settledDescriptors(self) -> int:
        """How many descriptors it has, once it has closed those that others have left."""
        counts = [-1]

        def settled() -> bool:
            if not self.isIdle():
                return False
            counts.append(len(self.descriptors()))
            return counts[-1] == counts[-2]

        eventually(settled, "the daemon opens and closes descriptors all the time")
        return counts[-1]

    def memory(self) -> int:
        """Its resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpuSeconds(self) -> float:
        """The processor time that it has used, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
