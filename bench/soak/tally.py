"""
What has happened in a soak.
"""

from __future__ import annotations

import attrs
from twisted.python.failure import Failure

from .records import Violation


@attrs.define(eq=False)
class Tally:
    """
    Counts, and what must not have happened.

    @ivar vms: how many VMs were registered.
    @ivar deaths: how many of them died with processes in them.
    @ivar abandoned: how many registrations were given up half way.
    @ivar processes: how many processes were started.
    @ivar real: how many of them were programs of this machine.
    @ivar reconnects: how often a shim that was killed has come back.
    @ivar output: bytes from processes to shims.
    @ivar stdin: bytes to processes.
    @ivar tokens: all that were handed out.
    @ivar violations: in words.
    """

    vms: int = 0
    deaths: int = 0
    abandoned: int = 0
    processes: int = 0
    real: int = 0
    reconnects: int = 0
    output: int = 0
    stdin: int = 0
    tokens: list[str] = attrs.field(factory=list)
    violations: list[str] = attrs.field(factory=list)

    def failed(self, problem: BaseException, where: str = "") -> None:
        """
        Note what must not have happened.

        @param where: the VM.
        """
        text = str(problem)
        if not isinstance(problem, Violation):
            text = Failure(problem).getTraceback(detail="brief", elideFrameworkCode=1)
        self.violations.append(f"{where}: {text}" if where else text)
