"""
C{ccproxyctl demo}: a proxy with a VM for as long as one command takes.

It starts a daemon of its own with its socket in a private folder, and a VM: an embedded one, or a
real one by C{ccproxyctl vm}. It runs the command in the VM through the daemon with C{ccproxyctl
run}, ends with the command's status, and leaves nothing behind.
All that it says itself goes to stderr: stdin and stdout belong to the command.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from ..shim.terminal import Terminal
from .arguments import text
from .output import say

VM = "demo"
#: The root file system in what a real VM shares.
BUSYBOX = "busybox"
START_TIMEOUT = 30.0
#: More than the daemon takes at most for an ordered stop.
STOP_TIMEOUT = 10.0
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GREETING = 'echo "Hello from the VM: $(uname -sr), user $(id -un), process $$"'

_libc = ctypes.CDLL(None, use_errno=True)


class DemoError(Exception):
    """The demo could not begin; its text says why."""


def _dieWithParent() -> None:
    """Get SIGTERM when the parent dies, however it dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child that ends when the demo dies."""
    # What makes preexec_fn unsafe is threads, and there are none.
    return subprocess.Popen(command, preexec_fn=_dieWithParent, **options)  # noqa: PLW1509


class Demo:
    """
    One daemon and one command, as a context that stops whatever it started.

    @ivar logPath: where the daemon's log is.
    @ivar socketPath: where the daemon listens.
    """

    def __init__(self, logPath: str | None = None, real: bool = False) -> None:
        """
        @param real: whether the VM is a real one.
        """
        self._folder = tempfile.mkdtemp(prefix="ccproxy-")
        self.socketPath = os.path.join(self._folder, "proxy.sock")
        self.logPath = os.path.abspath(logPath or os.path.join(self._folder, "daemon.log"))
        self._real = real
        self._daemon: subprocess.Popen[bytes] | None = None
        self._command: subprocess.Popen[bytes] | None = None
        self._terminal = Terminal(0) if os.isatty(0) else None
        if self._terminal is not None:
            self._terminal.save()
        self._ending = False
        self._status = 0

    def __enter__(self) -> Demo:
        # Functions rather than SIG_IGN, which the children would inherit.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._end)
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._interrupted)
        # Whoever started us may be killed without a word, as make kills a recipe's shell.
        _dieWithParent()
        # What a command leaves in the background comes to us when its parent has gone.
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending = True
        for process in (self._daemon, self._command):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        _killDescendants()
        if self._terminal is not None:
            self._terminal.restore()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C and Ctrl-\\ reach the command by themselves: it is in our process group."""
        if self._command is None:
            self._end(number, frame)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """End on a signal: interrupt what waits in L{start} or L{run}."""
        if not self._ending:
            self._ending, self._status = True, 128 + number
            raise SystemExit(self._status)

    def start(self) -> None:
        """
        Start the daemon, and wait until it listens; then the VM, if it is a real one.

        @raise DemoError: one of them does not come up.
        """
        twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
        command = [twistd, "-n", "--pidfile=", "ccproxy"]
        command += ["--socket-path", self.socketPath]
        if not self._real:
            command += ["--embedded-vm", VM]
        try:
            with open(self.logPath, "wb") as log:
                self._daemon = _spawn(
                    command,
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise DemoError(f"it cannot be started: {error}") from None
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listens():
            if self._daemon.poll() is not None:
                raise DemoError(
                    f"the daemon ended with status {self._daemon.returncode}. "
                    f"The end of its log:\n{_tail(self.logPath)}"
                )
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the daemon does not listen after {START_TIMEOUT:g} s. "
                    f"The end of its log:\n{_tail(self.logPath)}"
                )
            time.sleep(0.02)
        if self._real:
            # In our own folder, so that it is in nobody's way and goes with us.
            os.environ["CCPROXY_VM_RUN"] = os.path.join(self._folder, "vms")
            # Its own messages say why, if it does not start.
            if self._ctl("vm", "start", "--socket-path", self.socketPath, VM):
                raise DemoError("the VM could not be started")

    def _ctl(self, *words: str) -> int:
        """
        Run one of our own commands.

        @return: its exit status.
        @raise SystemExit: a signal has ended us before.
        """
        if self._ending:
            # Python drops the exception of a handler that has interrupted a finalizer.
            raise SystemExit(self._status)
        program = [sys.executable, "-P", "-m", "ccproxy.ctl.ccproxyctl"]
        self._command = _spawn([*program, *words])
        status = self._command.wait()
        return status if status >= 0 else 128 - status

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.socketPath)
            except OSError:
                return False
            return True

    def run(self, command: Sequence[str], terminal: bool) -> int:
        """
        Run a command in the VM, with the stdin, stdout and stderr that we have.

        @param terminal: whether it gets a terminal.
        @return: its exit status, as a shell would give it.
        """
        words = ["--socket-path", self.socketPath, "--vm", VM, *(["--tty"] if terminal else [])]
        if self._real:
            words += ["--image", BUSYBOX]
        return self._ctl("run", *words, "--", *command)


def _killDescendants() -> None:
    """Kill what is left below this process, until nothing is."""
    children = f"/proc/self/task/{os.getpid()}/children"
    while os.path.exists(children):
        with open(children) as file:
            pids = [int(pid) for pid in file.read().split()]
        if not pids:
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _tail(path: str, lines: int = 15) -> str:
    with open(path, errors="replace") as file:
        return "".join(file.readlines()[-lines:])


def demo(command: Sequence[str], logPath: str | None = None, real: bool = False) -> int:
    """
    Run a command in a VM behind a daemon of its own.

    @param command: the command, word for word; empty is a shell or a greeting.
    @param logPath: where to keep the daemon's log; L{None} is nowhere.
    @param real: whether the VM is a real one, or an embedded one.
    @return: the exit status.
    """
    terminal = not command and os.isatty(0)
    if not command:
        shell = "sh" if real else shutil.which("bash") or "sh"
        command = [shell] if terminal else [shell, "-c", GREETING]
    with Demo(logPath, real) as stage:
        kind = "a real" if real else "an embedded"
        say(f"ccproxy: starting the proxy with {kind} VM, {VM}; its log: {stage.logPath}")
        try:
            stage.start()
        except DemoError as error:
            say(f"ccproxy: {error}")
            return 1
        ends = "your terminal" if terminal else "these pipes"
        say(f"ccproxy: {ends} <-> shim <-> proxy <-> agent <-> {os.path.basename(command[0])}")
        if terminal:
            say("ccproxy: leave with exit or Ctrl-D; all that was started ends with the shell")
        return stage.run(command, terminal)


def makeParser() -> argparse.ArgumentParser:
    """What its command line may say."""
    parser = argparse.ArgumentParser(
        prog="ccproxyctl demo",
        description="Start a proxy with a VM, run a command in the VM, and stop it all. "
        "The VM is an embedded one, which isolates nothing: the command runs on this machine, as "
        "who started it. With --qemu it is a real one, and the command runs in a container in it.",
        epilog="Exit status: the command's; 1 if the proxy does not start; 2 for a bad option.",
    )
    parser.add_argument(
        "--log", metavar="FILE", help="keep the daemon's log there (default: gone at the end)"
    )
    parser.add_argument("--qemu", action="store_true", help="start a real VM, by QEMU")
    parser.add_argument(
        "command",
        nargs="*",
        type=text,
        metavar="COMMAND",
        help="the program and its arguments, after a -- if they have options "
        "(default: a shell if stdin is a terminal, else a greeting)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the words after C{demo}.
    @return: the exit status.
    """
    options = makeParser().parse_args(arguments)
    return demo(options.command, options.log, options.qemu)
