"""
For tests of what a person does at a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping

import pexpect
from twisted.trial.unittest import SynchronousTestCase

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
