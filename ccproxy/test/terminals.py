"""
For tests of what a person does at a terminal.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import pexpect
from twisted.trial.unittest import SynchronousTestCase

from ..testing.daemon import eventually

#: Seconds that anything waited for at a terminal may take.
TIMEOUT = 60


def interactiveShell(
    case: SynchronousTestCase, environment: Mapping[str, str], folder: str | None = None
) -> pexpect.spawn[str]:
    """
    Start bash with job control and without echo. Its prompt is the last status in brackets.

    @param case: the test that ends the shell.
    @param folder: the folder that the shell starts in.
    """
    shell = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        cwd=folder,
        env={**environment, "PS1": "[$?]", "INPUTRC": "/dev/null", "TERM": "dumb"},
        timeout=TIMEOUT,
        encoding="utf-8",
    )
    case.addCleanup(shell.close, force=True)
    shell.expect_exact("[0]")
    shell.sendline("stty -echo")
    shell.expect_exact("[0]")
    return shell


def pgrep(text: str) -> bytes:
    """Return the pids of the processes whose command line this is."""
    return subprocess.run(["pgrep", "-xf", text], check=False, capture_output=True).stdout


def expectRunning(shell: pexpect.spawn[str], command: str) -> None:
    """
    Wait for C{up}, and until the command that the same script starts next runs.

    A shell with a trap can take a signal between the fork and the exec of a command, which does not
    get the signal then: a test that presses Ctrl-C earlier would wait for ever.

    @param command: its words, which no other process has.
    """
    shell.expect_exact("up\r\n")
    eventually(lambda: pgrep(command), f"{command} runs")
