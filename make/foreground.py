"""
Run a command in a process group of its own, which has the terminal as long as the command runs.

Usage: foreground.py COMMAND [ARGUMENT...]. The exit status is the command's, as a shell gives it.

A terminal sends Ctrl-C, Ctrl-\\ and Ctrl-Z to a whole process group. make and the shell of a recipe
are in the recipe's group, and would end with messages of their own while the command still decides
what Ctrl-C means. So this does for a recipe what an interactive shell does for each of its jobs.
"""

import contextlib
import ctypes
import os
import signal
import stat
import sys
import time

#: Seconds between two looks whether a shell has brought us to the foreground: nothing tells.
FOREGROUND_INTERVAL = 0.2
PR_SET_PDEATHSIG = 1
#: Shells give these statuses to what cannot be started.
NOT_EXECUTABLE, NOT_FOUND = 126, 127


def foregroundOf(terminal: int) -> int:
    """Return the process group in the foreground, -1 if the terminal was hung up."""
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return -1


def dieWithParent() -> None:
    """Get SIGTERM when the parent dies: make ends a recipe by killing its shell."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def execute(command: list[str]) -> int:
    """Become the command; if that fails, return the status of a shell."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def attend(pid: int, terminal: int) -> int:
    """
    Wait for a child that leads a process group, and lend it the terminal while we have it.

    @return: its exit status.
    """
    stopped = False
    while True:
        if foregroundOf(terminal) == os.getpgrp():
            os.tcsetpgrp(terminal, pid)
        if stopped:
            os.killpg(pid, signal.SIGCONT)
        inForeground = foregroundOf(terminal) in (pid, -1)
        ended, status = os.waitpid(pid, os.WUNTRACED | (0 if inForeground else os.WNOHANG))
        stopped = bool(ended) and os.WIFSTOPPED(status)
        if not ended:
            time.sleep(FOREGROUND_INTERVAL)
            continue
        if foregroundOf(terminal) == pid:
            os.tcsetpgrp(terminal, os.getpgrp())
        if not stopped:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        # Stop make too, so that the shell that has started it goes on.
        os.kill(0, signal.SIGTSTP)


def main(command: list[str]) -> int:
    """Run the command."""
    dieWithParent()
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        pipes = any(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in range(3))
    except OSError:
        return execute(command)
    if pipes:
        # The other end may be a pager of the same job, which needs the terminal itself.
        return execute(command)
    # Or else who changes the foreground from the background would be stopped.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    inForeground = foregroundOf(terminal) == os.getpgrp()
    pid = os.fork()
    if not pid:
        dieWithParent()
        os.setpgid(0, 0)
        if inForeground:
            os.tcsetpgrp(terminal, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        os._exit(execute(command))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    # It fails if the child has done so, and has become the command.
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    return attend(pid, terminal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
